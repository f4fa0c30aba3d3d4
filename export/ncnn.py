"""ncnn's .param (layers) with the weights in .bin beside it, made by pnnx from a verified ONNX export."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
from torch import nn

from ..deploy.errors import EdgeKitError
from ..deploy.files import scratch_folder
from ..deploy.manifest import Manifest
from ..deploy.runtimes.ncnn import read_layers, unknown_layers
from . import onnx
from .export_bundle import Options

# Far above the seconds that the networks here take.
_TIMEOUT_S = 900
# pnnx lists every operator; its reasons are among the last lines.
_MAX_OUTPUT_BYTES = 1 << 20
_REASON = 200


def export(
    network: nn.Module, images: np.ndarray, path: Path, options: Options, manifest: Manifest
) -> dict[str, object]:
    """Export to ONNX, which pnnx converts in float32 (see Format.export).

    ONNX rather than TorchScript: pnnx leaves the attention of vision transformers unconverted in TorchScript. The
    Python files that it also writes are removed unread.

    Raises:
        EdgeKitError: pnnx fails, or leaves operators that ncnn does not have.
    """
    import pnnx

    with scratch_folder() as folder:
        details = onnx.export(network, images, folder / "model.onnx", options, manifest)
        shape = ",".join(map(str, (1, *images.shape[1:])))
        output = _run([pnnx.EXEC_PATH, "model.onnx", f"inputshape=[{shape}]f32", "fp16=0", "device=cpu"], folder)
        layers, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
        if not (layers.is_file() and weights.is_file()):
            raise _refused("it wrote no model", output)
        # it also succeeds when it cannot convert an operator, which it writes under a name that ncnn does not know
        if unknown := unknown_layers(read_layers(layers)):
            raise _refused(f"ncnn has no {unknown}", output)
        shutil.copyfile(layers, path)
        shutil.copyfile(weights, path.with_suffix(".bin"))
    return details


def _run(command: list[str], folder: Path) -> str:
    """Run pnnx in `folder`; returns the end of its output.

    Raises:
        EdgeKitError: it fails, crashes or hangs.
    """
    log = folder / "log"
    try:
        with log.open("wb") as stream:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, timeout=_TIMEOUT_S,
                check=False,
            )  # fmt: skip
        code = done.returncode
        problem = f"it crashed (signal {-code})" if code < 0 else f"it exited with code {code}" if code else ""
    except subprocess.TimeoutExpired:
        problem = f"it took over {_TIMEOUT_S} seconds"
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _MAX_OUTPUT_BYTES))
        output = stream.read().decode(errors="replace")
    if problem:
        raise _refused(problem, output)
    return output


def _refused(problem: str, output: str) -> EdgeKitError:
    lines = [" ".join(line.split()) for line in output.splitlines()]
    reason = next((line for line in lines if "support" in line), "")
    return EdgeKitError(
        f"pnnx cannot convert this network: {problem}{f'; it reports: {reason[:_REASON]}' if reason else ''}",
        fix="try --format onnx, which ONNX Runtime and OpenVINO run",
    )
