"""OpenVINO's IR (.xml, with the weights in .bin beside it), made from a verified ONNX export."""

from pathlib import Path

import numpy as np
from torch import nn

from ..deploy.files import scratch_folder
from ..deploy.manifest import Manifest
from ..deploy.runtimes.runtime import runtime_named
from . import onnx
from .export_bundle import Options


def export(
    network: nn.Module, images: np.ndarray, path: Path, options: Options, manifest: Manifest
) -> dict[str, object]:
    """Export to ONNX, read that by OpenVINO, and save what it read in float32 (see Format.export).

    Raises:
        MissingPackageError: OpenVINO is not installed.
    """
    runtime_named("openvino").opener("openvino")
    import openvino
    from openvino.frontend import FrontEndManager

    with scratch_folder() as folder:
        details = onnx.export(network, images, folder / "model.onnx", options, manifest)
        reader = FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(str(folder / "model.onnx")))
        openvino.save_model(model, str(path), compress_to_fp16=False)
    return details
