"""A request to lower a model's precision, and its result."""

from collections.abc import Callable
from typing import Any, NamedTuple

import onnx

from ...deploy.bundle import Bundle
from ...deploy.progress import Progress
from ..datasets import BundleImages
from .options import QuantizeOptions


class Request(NamedTuple):
    """A request to lower a bundle's precision.

    Attributes:
        images: the source of calibration and selection images, as the user gave it; None for the bundle's own.
        source: these images.
    """

    bundle: Bundle
    options: QuantizeOptions
    images: str | None
    source: BundleImages
    progress: Progress


class Lowered(NamedTuple):
    """A model of lower precision.

    Attributes:
        details: entries for the details of its manifest.
        requires: requirements on the machine.
        layers: names of the lowered nodes.
        alone: takes one of these names, and returns the model with only that node lowered.
        runtime: the runtime that it is judged on.
        timed: whether this machine is its target, so that a speed trial means something.
        portable: whether its answers on other CPUs can be computed (see portability.py).
        remarks: lines for the user, warnings first.
    """

    model: onnx.ModelProto
    details: dict[str, Any]
    requires: dict[str, Any]
    layers: list[str]
    alone: Callable[[str], onnx.ModelProto]
    runtime: str = "onnxruntime"
    timed: bool = False
    portable: bool = False
    remarks: tuple[str, ...] = ()
