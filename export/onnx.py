"""ONNX, by one of torch's two exporters, folded and simplified."""

import contextlib
import io
import json
import warnings
from collections.abc import Callable
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

_INPUT, _OUTPUT = "image", "logits"
_OPSET, _DYNAMO_OPSET = 17, 18


def export(
    network: nn.Module, images: np.ndarray, path: Path, options: Options, manifest: Manifest
) -> dict[str, object]:
    """Export, fold and simplify, write labels and preprocessing into the file (see Format.export).

    The exporter that torch used to have comes first: it needs no opset above the default, folds BatchNorm into the
    convolutions, and takes a fraction of the time. Where it cannot, or answers wrongly, the one on torch.export is
    taken, and the manifest says so.

    Opset 17 is the default: the lowest that has every operator of the networks here in its present form (LayerNorm
    came with 17), and the highest that TensorRT 8.6 reads. The other exporter makes 18, its lowest. An opset that is
    asked for is made or refused.

    Raises:
        EdgeKitError: neither exporter can export the network.
        ParityError: with options.cross_check, the two exporters disagree.
    """
    first, second = EXPORTERS
    used, model, failure = first, None, ""
    try:
        model = _export_with(first, network, images, options)
        _compare_with(network, images, model, options)
    except Exception as error:  # an exporter fails in any way it likes; the other one is asked then
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
    metadata = {
        "edgekit.labels": json.dumps(manifest.labels, ensure_ascii=False),
        "edgekit.preprocess": json.dumps(plain(manifest.preprocess)),
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
    assert program is not None  # noqa: S101 # no file was asked for, so a program is returned
    return program.model_proto.SerializeToString()


EXPORTERS: dict[str, Callable[[nn.Module, torch.Tensor, Options], bytes]] = {
    "torch.onnx (TorchScript)": _torch_script,
    "torch.onnx (torch.export)": _dynamo,
}


def _export_with(exporter: str, network: nn.Module, images: np.ndarray, options: Options) -> onnx.ModelProto:
    """The simplified, checked model."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        content = EXPORTERS[exporter](network, torch.from_numpy(example_input(images, options)), options)
    model = onnxslim.slim(onnx.load_from_string(content))
    assert isinstance(model, onnx.ModelProto)  # noqa: S101 # what slim returns when no file is asked for
    sort_nodes(model.graph)
    onnx.checker.check_model(model, full_check=True)
    version = model.opset_import[0].version
    if options.opset not in (None, version):
        raise ValueError(f"opset {options.opset} was asked for and {version} made")
    return model


def _compare_with(network: nn.Module, images: np.ndarray, model: onnx.ModelProto, options: Options) -> None:
    """Hold the model's answers on up to three images against torch's on the three at once."""
    batch = images[:3]
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    _require_close(expected, _run(model, batch, 1), "torch and the exported file")
    if options.dynamic_batch:
        _require_close(expected, _run(model, batch, len(batch)), "torch and the exported file")


def _disagreement(
    model: onnx.ModelProto, other_exporter: str, network: nn.Module, images: np.ndarray, options: Options
) -> float:
    """Largest difference between the two exporters' answers on all the images."""
    try:
        witness = _export_with(other_exporter, network, images, options)
    except Exception as error:
        raise EdgeKitError(
            f"the cross-check cannot be made: {other_exporter} cannot export this network: {_reason(error)}",
            fix="leave out --cross-check; the parity gate still holds",
        ) from error
    return _require_close(_run(witness, images, 1), _run(model, images, 1), "the two exporters")


def _require_close(expected: np.ndarray, actual: np.ndarray, who: str) -> float:
    difference = float(np.abs(expected - actual).max()) if expected.shape == actual.shape else float("nan")
    if not difference <= FLOAT_TOLERANCE * max(float(np.abs(expected).max()), 1e-3):
        raise ParityError(f"{who} disagree by {difference:.3g}", fix="nothing was kept; report the network")
    return difference


def _run(model: onnx.ModelProto, images: np.ndarray, batch: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    starts = range(0, len(images), batch)
    return np.concatenate([np.asarray(session.run(None, {name: images[at : at + batch]})[0]) for at in starts])


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
