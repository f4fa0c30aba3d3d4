"""A request to lower a model's precision, and its result."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import onnx

from ...deploy.bundle import Bundle
from ...deploy.progress import Progress
from ..datasets import BundleImages
from .gate import Run
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
        content: the model's file.
        unoptimised: runs the same file without the optimisations of its runtime.
        details: entries for the details of its manifest.
        requires: requirements on the machine.
        layers: names of the lowered nodes.
        alone: takes one of these names, and returns the model with only that node lowered; None if there is no such
            model.
        runtime: the runtime that it is judged on.
        timed: whether this machine is its target, so that a speed trial means something.
        portable: the graph, if its answers on other CPUs can be computed (see portability.py).
        remarks: lines for the user, warnings first.
    """

    content: bytes
    unoptimised: Run
    details: dict[str, Any]
    requires: dict[str, Any]
    layers: Sequence[str] = ()
    alone: Callable[[str], onnx.ModelProto] | None = None
    runtime: str = "onnxruntime"
    timed: bool = False
    portable: onnx.ModelProto | None = None
    remarks: tuple[str, ...] = ()
