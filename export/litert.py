"""LiteRT (.tflite, float32), converted by litert-torch in a child process with its own packages.

The child process imports torch from the environment (see litert_packages.py). It receives the network as a torch.export
program, which holds tensors and operators and no pickle.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..deploy.errors import EdgeKitError
from ..deploy.files import scratch_folder
from ..deploy.manifest import Manifest
from ..deploy.runtimes.exported_program import save_program
from ..deploy.runtimes.program_archive import check_program
from ..deploy.runtimes.runtime import runtime_named
from . import litert_child
from .export_bundle import Options
from .litert_packages import CONVERTER, REASON, converter_packages, run_child


def export(
    network: nn.Module, images: np.ndarray, path: Path, options: Options, manifest: Manifest
) -> dict[str, object]:
    """Convert the network (see Format.export).

    The model takes one image at a time: litert-torch fails on a reshape with a dynamic batch, and LiteRT cannot resize
    the input of a model with a static reshape.

    Raises:
        EdgeKitError: litert-torch cannot convert the network, or cannot be installed here.
        MissingPackageError: ai-edge-litert, which runs the result, or uv is not installed.
    """
    del options, manifest
    runtime_named("litert").opener("litert")
    packages = converter_packages()
    with scratch_folder() as folder:
        source = folder / "model.pt2"
        save_program(_capture(network, images[:1]), source)
        check_program(source)
        reason = run_child(litert_child.__file__, packages, source, path)
    if reason or not path.is_file():
        raise EdgeKitError(
            f"{CONVERTER} cannot convert this network: {reason or 'it wrote no file'}",
            fix="export it to ONNX: --format onnx",
        )
    return {"exporter": CONVERTER}


def _capture(network: nn.Module, image: np.ndarray) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(network, (torch.from_numpy(image),))
    except Exception as error:  # torch.export raises errors of many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EdgeKitError(
            f"torch.export cannot capture this network: {reason[:REASON]}", fix="export it to ONNX: --format onnx"
        ) from error
