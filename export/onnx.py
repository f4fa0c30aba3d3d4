"""ONNX export by one of torch's two exporters, then folding and simplification."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from torch import nn

from ..deploy.documents import plain
from ..deploy.errors import EdgeKitError, ParityError
from ..deploy.manifest import Manifest
from ..deploy.parity import FLOAT_TOLERANCE
from .export_bundle import Options, example_input
from .onnx_file import save, sort_nodes
from .pixels import pixels_of, take_pixels

_INPUT, _OUTPUT = "image", "logits"
_OPSET, _DYNAMO_OPSET = 17, 18


def export(
    network: nn.Module, images: np.ndarray, path: Path, options: Options, manifest: Manifest
) -> dict[str, object]:
    """Export, fold and simplify, and write labels and preprocessing into the file (see Format.export).

    torch's older exporter is tried first: it needs no opset above the default, folds BatchNorm into the convolutions,
    and takes a fraction of the time. If it fails or its model gives wrong answers, the exporter based on torch.export
    is used, and the manifest records this.

    The default is opset 17: the lowest with the current form of every operator of the networks here (LayerNorm was
    added in 17), and the highest that TensorRT 8.6 reads. The other exporter writes 18, its lowest. A requested opset
    is written or refused.

    Raises:
        EdgeKitError: neither exporter can export the network.
        ParityError: with options.cross_check, the two exporters disagree.
    """
    first, second = EXPORTERS
    used, model, failure = first, None, ""
    try:
        model = _export_with(first, network, images, options)
        _compare_with(network, images, model, options)
    except Exception as error:  # exporters raise arbitrary errors; fall back to the other one
        failure, used = _reason(error), second
        try:
            model = _export_with(second, network, images, options)
        except Exception as second_error:
            raise EdgeKitError(
                f"torch.onnx cannot export this network: {failure}; the other exporter: {_reason(second_error)}",
                fix="try another --opset, or --format exported-program",
            ) from second_error
    details: dict[str, object] = {"exporter": used, "opset": model.opset_import[0].version}
    if failure:
        details["fallback_because"] = failure
    if options.cross_check:
        other_exporter = second if used == first else first
        details["cross_check"] = {
            "exporter": other_exporter,
            "max_abs": _disagreement(model, other_exporter, network, images, options),
        }
    preprocess = manifest.preprocess
    if options.uint8_input:
        take_pixels(model, preprocess)
        details["normalization"] = {"mean": preprocess.mean, "std": preprocess.std}
        preprocess = pixels_of(preprocess)
    metadata = {
        "edgekit.labels": json.dumps(manifest.labels, ensure_ascii=False),
        "edgekit.preprocess": json.dumps(plain(preprocess)),
    }
    onnx.helper.set_model_props(model, metadata)
    save(model, path)
    return details


def _torch_script(network: nn.Module, example: torch.Tensor, options: Options) -> bytes:
    stream = io.BytesIO()
    axes = {_INPUT: {0: "batch"}, _OUTPUT: {0: "batch"}} if options.dynamic_batch else None
    torch.onnx.export(
        network, (example,), stream,  # pyright: ignore[reportArgumentType] # this exporter takes a stream
        dynamo=False, opset_version=options.opset or _OPSET,
        input_names=[_INPUT], output_names=[_OUTPUT], dynamic_axes=axes,
    )  # fmt: skip
    return stream.getvalue()


def _dynamo(network: nn.Module, example: torch.Tensor, options: Options) -> bytes:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if options.dynamic_batch else None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its steps
        program = torch.onnx.export(
            network, (example,), dynamo=True, opset_version=options.opset or _DYNAMO_OPSET,
            input_names=[_INPUT], output_names=[_OUTPUT], dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
    assert program is not None  # noqa: S101 # without an output file, a program is returned
    return program.model_proto.SerializeToString()


EXPORTERS: dict[str, Callable[[nn.Module, torch.Tensor, Options], bytes]] = {
    "torch.onnx (TorchScript)": _torch_script,
    "torch.onnx (torch.export)": _dynamo,
}


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
    """Silence the exporters, which log tracebacks of errors that they also raise."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


def _export_with(exporter: str, network: nn.Module, images: np.ndarray, options: Options) -> onnx.ModelProto:
    """Export the network; return the simplified and checked model."""
    with warnings.catch_warnings(), _without_logs(), torch.inference_mode():
        warnings.simplefilter("ignore")
        content = EXPORTERS[exporter](network, torch.from_numpy(example_input(images, options)), options)
    model = onnxslim.slim(onnx.load_from_string(content))
    assert isinstance(model, onnx.ModelProto)  # noqa: S101 # what slim returns without an output file
    sort_nodes(model.graph)
    onnx.checker.check_model(model, full_check=True)
    version = model.opset_import[0].version
    if options.opset not in (None, version):
        raise ValueError(f"opset {options.opset} was requested, but {version} was written")
    return model


def _compare_with(network: nn.Module, images: np.ndarray, model: onnx.ModelProto, options: Options) -> None:
    """Compare the model's logits on up to three images, one at a time, with those of torch on all of them at once."""
    batch = images[:3]
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    _require_close(expected, _run(model, batch, 1), "torch and the exported file")
    if options.dynamic_batch:
        _require_close(expected, _run(model, batch, len(batch)), "torch and the exported file")


def _disagreement(
    model: onnx.ModelProto, other_exporter: str, network: nn.Module, images: np.ndarray, options: Options
) -> float:
    """Largest difference between the logits of the two exporters' models on all images."""
    try:
        other_model = _export_with(other_exporter, network, images, options)
    except Exception as error:
        raise EdgeKitError(
            f"the cross-check is not possible: {other_exporter} cannot export this network: {_reason(error)}",
            fix="leave out --cross-check; the parity gate still applies",
        ) from error
    return _require_close(_run(other_model, images, 1), _run(model, images, 1), "the two exporters")


def _require_close(expected: np.ndarray, actual: np.ndarray, sources: str) -> float:
    difference = float(np.abs(expected - actual).max()) if expected.shape == actual.shape else float("nan")
    if not difference <= FLOAT_TOLERANCE * max(float(np.abs(expected).max()), 1e-3):
        raise ParityError(f"{sources} disagree by {difference:.3g}", fix="nothing was kept; report the network")
    return difference


def _run(model: onnx.ModelProto, images: np.ndarray, batch: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    starts = range(0, len(images), batch)
    return np.concatenate([np.asarray(session.run(None, {name: images[at : at + batch]})[0]) for at in starts])


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
