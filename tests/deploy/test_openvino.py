"""OpenVINO: what was asked runs, or is refused by name; the report says what ran."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.engine.layers import Layer
from edgekit.deploy.errors import DeviceError, EdgeKitError, RecipeError
from edgekit.deploy.runtimes.openvino import check_precision, read_layer
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.deploy.session import open_session

openvino = pytest.importorskip("openvino")

_RELATIVE = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.01}


@pytest.mark.parametrize(
    "device", ["AUTO", "AUTO:GPU,CPU", "HETERO:GPU,CPU", "MULTI:CPU", "BATCH:GPU", "cpu", "", "GPU.x"]
)
def test_only_a_named_device_is_accepted(device: str) -> None:
    """A device that OpenVINO chooses itself would hide what ran."""
    with pytest.raises(RecipeError, match="does not name one device") as caught:
        Choice("openvino", {"device": device})
    assert "device=CPU" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("openvino:precision=int8", "precision"),
        ("openvino:precision=f32", "precision"),
        ("openvino:streams=0", "streams=0 is out of range"),
        ("openvino:cache=yes", "cache"),
    ],
)
def test_a_wrong_option_is_refused(text: str, words: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(RecipeError, match=words):
        Choice.parse(text)


def test_a_device_that_is_not_here_is_refused(fp32: Bundle) -> None:
    """With those that are here."""
    if "NPU" in openvino.Core().available_devices:
        pytest.skip("this machine has an NPU")
    with pytest.raises(DeviceError, match=r"here has no NPU: it has .*CPU"):
        open_session(fp32, "openvino", device="NPU")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_precision_runs_or_is_refused(precision: str, fp32: Bundle) -> None:
    """The layers that compute run in it, and the logits show its rounding; else the message names what runs here."""
    golden = fp32.golden()
    try:
        session = open_session(fp32, "openvino", precision=precision, threads=1)
    except EdgeKitError as error:
        assert precision != "fp32"
        assert precision in str(error)
        return
    layers = session.facts["layers"]["precisions"]
    assert layers[precision] >= 3
    error = np.abs(session.run(golden.tensors) - golden.logits).max() / np.abs(golden.logits).max()
    assert error <= _RELATIVE[precision]
    if precision != "fp32":
        assert error > 1e-5, "float32 logits"


_OPEN = (
    "import json, sys; from edgekit.deploy.session import load; from edgekit.deploy.errors import EdgeKitError\n"
    "try: print(json.dumps(load(sys.argv[1], 'openvino', precision='fp16', threads=1).facts['layers']['precisions']))\n"
    "except EdgeKitError as error: print(json.dumps(str(error)))"
)


def test_a_silent_fallback_is_refused(fp32: Bundle) -> None:
    """OpenVINO computes fp16 in bf16 on a CPU that has only that, here because its kernels are limited to it."""
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a CPU with bf16")
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(fp32.path)], env=limited, capture_output=True, text=True, check=True
    )
    assert "computes in bf16 here, not in fp16" in json.loads(done.stdout)


def test_what_is_read_back_must_be_what_was_asked() -> None:
    """The setting, and the layers with weights; int8 layers beside them are as the model says."""
    conv = {kind: Layer("conv", "Convolution", kind) for kind in ("fp32", "bf16", "fp16", "int8")}
    pool = Layer("pool", "Pooling", "fp32")
    check_precision("bf16", "bf16", [conv["bf16"], conv["int8"], pool])
    check_precision("bf16", "bf16", [conv["int8"]])
    check_precision("bf16", "bf16", [])
    check_precision("bf16", "bf16", [conv["bf16"], conv["fp32"]])
    for precision, hint, layers, ran in (
        ("bf16", "f32", [], "fp32"),
        ("bf16", "bf16", [conv["fp32"], pool], "fp32"),
        ("fp16", "f16", [conv["bf16"]], "bf16"),
        ("fp32", "bf16", [conv["bf16"]], "bf16"),
    ):
        with pytest.raises(DeviceError, match=f"computes in {ran} here, not in {precision}"):
            check_precision(precision, hint, layers)


@pytest.mark.parametrize(
    ("info", "layer"),
    [
        ({"layerType": "Convolution", "primitiveType": "brgconv_avx512_amx_1x1_I8", "runtimePrecision": "u8"},
         ("Convolution", "int8")),
        ({"layerType": "Subgraph", "primitiveType": "jit_avx512_f32", "runtimePrecision": "u8"}, ("Subgraph", "fp32")),
        ({"layerType": "Convolution", "primitiveType": "brgconv_avx512_bf16", "runtimePrecision": "bf16"},
         ("Convolution", "bf16")),
        ({"layerType": "Reorder", "primitiveType": "reorder_f32", "runtimePrecision": "f32"}, ("Reformat", "fp32")),
        ({"layerType": "Math", "primitiveType": "unknown", "runtimePrecision": "f16"}, ("Math", "fp16")),
        ({}, ("", "unknown")),
    ],
)  # fmt: skip
def test_a_layer_is_read_from_the_runtime_model(info: dict[str, str], layer: tuple[str, str]) -> None:
    """By its kernel's name, else by the type that it reads."""
    assert read_layer("name", info) == Layer("name", *layer)


def test_the_layers_of_an_int8_model_run_in_int8(int8: Bundle) -> None:
    """As the report shows them."""
    session = open_session(int8, "openvino", threads=1)
    summary = session.facts["layers"]
    assert summary["precisions"]["int8"] >= 2
    assert len(summary["layers"]) == sum(summary["precisions"].values()) + summary["reformats"]


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_streams_answer_as_one_request_does(count: int, fp32: Bundle) -> None:
    """For any number of images, in their order."""
    tensors = fp32.golden().tensors[:count]
    expected = open_session(fp32, "openvino", threads=1).run(tensors)
    session = open_session(fp32, "openvino", threads=2, streams=2)
    for _ in range(2):
        np.testing.assert_allclose(session.run(tensors), expected, atol=1e-5)
    assert session.facts["streams"] == 2


def test_a_compiled_model_is_kept_and_used_again(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In EdgeKit's cache; without `cache` nothing is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not open_session(fp32, "openvino", threads=1).facts["loaded_from_cache"]
    assert not list(tmp_path.rglob("*"))
    golden = fp32.golden()
    for loaded in (False, True):
        session = open_session(fp32, "openvino", threads=1, cache=True)
        assert session.facts["loaded_from_cache"] is loaded
        assert np.abs(session.run(golden.tensors) - golden.logits).max() <= 1e-4 * np.abs(golden.logits).max()
        session.close()
