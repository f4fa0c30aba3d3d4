"""A quantized model whose answers differ from its source's is refused with the reason."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from edgekit.deploy.bundle import Bundle, create
from edgekit.deploy.errors import DataError
from edgekit.deploy.parity import decibels, powers
from edgekit.deploy.session import load
from edgekit.toolkit.analysis.statistics import Interval
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.quantize import compare, emit, float_model, gate, int8, observe, precise, trial, tune
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from edgekit.toolkit.quantize.targets import TARGETS, Form
from onnx import TensorProto, helper, numpy_helper

Make = Callable[[onnx.ModelProto], Bundle]


@pytest.fixture
def bundle_of(fp32: Bundle, tmp_path: Path) -> Make:
    """Make a bundle of another network for the digits: float32 [1, 1, 32, 32] to logits [1, 10]."""

    def make(model: onnx.ModelProto) -> Bundle:
        golden = fp32.golden()
        logits = np.concatenate([_run(model, tensor[None]) for tensor in golden.tensors])
        path = tmp_path / "float"
        with create(path) as draft:
            onnx.save(model, str(draft.folder / fp32.manifest.model))
            draft.add_golden(golden._replace(logits=logits))
            draft.add_splits(fp32.splits())
            draft.finish(fp32.manifest)
        return Bundle.open(path)

    return make


def _run(model: onnx.ModelProto, tensor: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: tensor})[0]


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", [image], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _transformer(sharp: float = 1.0, decomposed: bool = False) -> onnx.ModelProto:
    """A block of a vision transformer: patches, a class token of large values, attention, GELU, residual sums."""
    generator = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (generator.normal(size=shape) * scale).astype(np.float32)

    half, one = np.float32(0.5), np.float32(1)
    constants = {
        "patch": normal(32, 1, 4, 4, scale=0.5), "tokens": np.asarray([1, 32, 64]), "class": normal(1, 1, 32, scale=40),
        "gamma": 1 + normal(32, scale=0.1), "beta": normal(32, scale=0.1), "q": normal(32, 32, scale=sharp / 6),
        "k": normal(32, 32, scale=sharp / 6), "v": normal(32, 32, scale=0.3), "up": normal(32, 64, scale=0.3),
        "down": normal(64, 32, scale=0.3), "root": np.float32(2**0.5), "one": one, "half": half, "two": np.float32(2),
        "eps": np.float32(1e-5), "head": normal(32, 10, scale=0.3), "scale": np.float32(32**-0.5),
        "eps2": np.float32(1e-5),
    }  # fmt: skip

    def node(kind: str, inputs: str, output: str, **settings) -> list[onnx.NodeProto]:
        return [helper.make_node(kind, inputs.split(), [output], f"{output}_node", **settings)]

    def norm(source: str, output: str) -> list[onnx.NodeProto]:
        if not decomposed:
            return node("LayerNormalization", f"{source} gamma beta", output, axis=-1)
        names = {
            key: f"{output}_{key}" for key in ("mean", "away", "square", "variance", "sum", "root", "unit", "wide")
        }
        return [
            *node("ReduceMean", source, names["mean"], axes=[-1]),
            *node("Sub", f"{source} {names['mean']}", names["away"]),
            *node("Pow", f"{names['away']} two", names["square"]),
            *node("ReduceMean", names["square"], names["variance"], axes=[-1]),
            *node("Add", f"{names['variance']} eps", names["sum"]),
            *node("Sqrt", names["sum"], names["root"]),
            *node("Div", f"{names['away']} {names['root']}", names["unit"]),
            *node("Mul", f"{names['unit']} gamma", names["wide"]),
            *node("Add", f"{names['wide']} beta", output),
        ]

    nodes = [
        *node("Conv", "image patch", "patches", strides=[4, 4]),
        *node("Reshape", "patches tokens", "columns"),
        *node("Transpose", "columns", "rows", perm=[0, 2, 1]),
        *node("Concat", "class rows", "x0", axis=1),
        *norm("x0", "n0"),
        *node("MatMul", "n0 q", "queries"), *node("MatMul", "n0 k", "keys"), *node("MatMul", "n0 v", "values"),
        *node("Transpose", "keys", "keys_t", perm=[0, 2, 1]),
        *node("MatMul", "queries keys_t", "scores"),
        *node("Mul", "scores scale", "scaled"),
        *node("Softmax", "scaled", "attention", axis=-1),
        *node("MatMul", "attention values", "mixed"),
        *node("Add", "x0 mixed", "x1"),
        *norm("x1", "n1"),
        *node("MatMul", "n1 up", "wide"),
        *node("Div", "wide root", "gelu0"), *node("Erf", "gelu0", "gelu1"), *node("Add", "gelu1 one", "gelu2"),
        *node("Mul", "wide gelu2", "gelu3"), *node("Mul", "gelu3 half", "gelu"),
        *node("MatMul", "gelu down", "narrow"),
        *node("Add", "x1 narrow", "x2"),
        *norm("x2", "n2"),
        *node("ReduceMean", "n2", "pooled", axes=[1], keepdims=0),
        *node("MatMul", "pooled head", "logits"),
    ]  # fmt: skip
    return _model(nodes, constants)


def _selector() -> onnx.ModelProto:
    """Two branches weighted by a Softmax between two convolutions, as in a selective kernel."""
    generator = np.random.default_rng(1)
    constants = {
        "first": generator.normal(size=(2, 1, 4, 4)).astype(np.float32),
        "weigh": (generator.normal(size=(2, 2, 1, 1)) / 8).astype(np.float32),
        "head": generator.normal(size=(2, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], "first_conv", strides=[4, 4]),
        helper.make_node("Conv", ["a", "weigh"], ["b"], "weigh_conv"),
        helper.make_node("Softmax", ["b"], ["c"], "softmax", axis=1),
        helper.make_node("Mul", ["a", "c"], ["d"], "product"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "head"], ["logits"], "head_gemm"),
    ]
    return _model(nodes, constants)


NETWORKS = {
    "attention": _transformer,
    "sharp attention": lambda: _transformer(sharp=3.0),
    "LayerNorm in parts": lambda: _transformer(decomposed=True),
    "selective kernel": _selector,
}


@pytest.mark.parametrize("target", ["x86", "arm", "tensorrt"])
@pytest.mark.parametrize("network", NETWORKS)
def test_precise_operators_stay_float(bundle_of: Make, tmp_path: Path, network: str, target: str) -> None:
    """Attention, LayerNorm, GELU, a class token of large values: logits stay close, and Softmax is not fused."""
    made = quantize(
        bundle_of(NETWORKS[network]()), QuantizeOptions(target=target, calibration_images=32), out=tmp_path / "made"
    )
    ratios = made.bundle.manifest.details["signal_to_noise_db"]
    assert min(ratios.values()) > 20, ratios
    assert "QLinearSoftmax" not in made.bundle.manifest.details["verified"]["operators_as_run"]


def test_inputs_of_precise_operators_stay_float() -> None:
    """Residual sums before a normalization, its scale and shift, the parts of a GELU; not the layers between."""
    for decomposed in (False, True):
        names = precise.leave_float(_transformer(decomposed=decomposed))
        assert {"x0_node", "x1_node", "x2_node", "scaled_node", "gelu2_node", "gelu3_node", "gelu_node"} <= set(names)
        assert not {name for name in names if "MatMul" in name or name in ("queries_node", "patches_node")}


def _broken(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same int8 graph with the activation scale before one layer divided by 1000."""
    constants = {entry.name: entry for entry in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(constants[makers[node.input[1]].input[0]].dims) == 4:
            scale = constants[makers[node.input[0]].input[1]]
            scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 1000, scale.name))
            return model
    raise AssertionError("no convolution")


def test_noise_is_refused_with_the_layers_that_cost_most(
    fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the contract allows; the bundle is kept as .rejected, with its ratios in the manifest."""
    real = int8.emit_int8
    monkeypatch.setitem(TARGETS, "x86", replace(TARGETS["x86"], forms=(Form(),), rewrites=False))

    def damage(model, ranges, target, form=None, only=()):
        made = real(model, ranges, target, form, only)
        first = next(node.name for node in model.graph.node if node.op_type == "Conv")
        return _broken(made) if not only or first in only else made

    monkeypatch.setattr(int8, "emit_int8", damage)
    result = quantize(fp32, QuantizeOptions(target="x86", float_layers=False), max_drop=100.0, out=tmp_path / "made")
    first = next(node.name for node in prepare(onnx.load(str(fp32.model_path))).graph.node if node.op_type == "Conv")
    assert (result.judgement.rule, result.judgement.exit_code) == ("signal_to_noise", 3)
    assert result.bundle.path.name == "made.rejected"
    assert not (tmp_path / "made").exists()
    assert result.bundle.manifest.details["signal_to_noise_db"]["golden"] < 10
    sentence = result.sentences[0]
    assert sentence.startswith("the int8 model is rejected")
    assert f"cost most: {first} (" in sentence
    assert "--precision fp16" in sentence


def test_a_fusion_that_changes_answers_is_found(
    bundle_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantized Softmax over two values, with a finer scale than ONNX Runtime's kernel supports."""
    for name in ("leave_float", "read_float"):
        monkeypatch.setattr(emit, name, lambda model: [])
    real = float_model.observe

    def narrow(*arguments):
        ranges = real(*arguments)
        return {**ranges, "c": (0.0, 0.75)}

    monkeypatch.setattr(float_model, "observe", narrow)
    options = QuantizeOptions(target="x86", calibration="minmax", calibration_images=16, float_layers=False)
    result = quantize(bundle_of(_selector()), options, out=tmp_path / "made")
    details = result.bundle.manifest.details
    assert details["verified"]["operators_as_run"]["QLinearSoftmax"] == 1
    assert result.judgement.outcome == "fail"
    assert "ONNX Runtime's graph optimisations change its answers" in result.sentences[0]


def test_the_gate_applies_to_fp16(bundle_of: Make, tmp_path: Path) -> None:
    """A value is too large for float16."""
    model = _selector()
    for entry in model.graph.initializer:
        if entry.name == "first":
            entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) * np.float32(1e6), "first"))
    result = quantize(bundle_of(model), QuantizeOptions(precision="fp16"), out=tmp_path / "made")
    assert result.judgement.rule == "signal_to_noise"
    assert "first_conv" in result.sentences[0]


def test_a_low_ratio_is_the_first_line(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between 10 and 20 dB the model is kept with a warning; above 20 dB there is none."""
    monkeypatch.setattr(gate, "WARNED_DB", 149.0)
    monkeypatch.setattr(compare, "speedup_interval", lambda *arguments: Interval(1.5, 1.4, 1.6))
    result = quantize(fp32, out=tmp_path / "made")
    assert result.sentences[0].startswith("warning: the int8 logits have only")
    assert result.bundle.path.name == "made"
    monkeypatch.undo()
    quiet = quantize(fp32, out=tmp_path / "again")
    assert not any("dB" in sentence for sentence in quiet.sentences)
    assert quiet.bundle.manifest.details["signal_to_noise_db"]["golden"] > 20


class _Clock:
    """A clock advanced only by its sessions; now and then a run is disturbed."""

    def __init__(self) -> None:
        self.now, self._runs = 0.0, 0

    def perf_counter(self) -> float:
        return self.now

    def session(self, ms: float) -> SimpleNamespace:
        def run(batch: np.ndarray) -> np.ndarray:
            self._runs += 1
            self.now += ms / 1000 + (0.05 if self._runs % 97 == 0 else 0.0)
            return batch

        return SimpleNamespace(run=run)


def test_the_trial_distinguishes_slower_from_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its median, and by its interval, in about the time that it may take."""
    tensor = np.zeros((1, 1), np.float32)
    for first, second in ((1.0, 1.5), (3.0, 1.0)):
        clock = _Clock()
        monkeypatch.setattr(trial, "time", clock)
        median = trial.speedup(clock.session(first), clock.session(second), tensor)
        assert median == pytest.approx(first / second, rel=0.01)
        assert clock.now < 1.5
        found = trial.speedup_interval(lambda: clock.session(first), lambda: clock.session(second), tensor)  # noqa: B023
        assert found.low <= first / second <= found.high
        assert (found.high < 1) == (first < second)
        assert clock.now < 6


@pytest.mark.parametrize("target", ["arm", None])
def test_a_slower_model_is_reported_first(
    fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str | None
) -> None:
    """Only if the model was made for this machine."""
    for module in (int8, tune):
        monkeypatch.setattr(module, "this_machine", lambda: "x86-avx2")
    monkeypatch.setattr(compare, "speedup_interval", lambda *arguments: Interval(0.64, 0.6, 0.7))
    sentences = quantize(fp32, QuantizeOptions(target=target), out=tmp_path / "made").sentences
    slower = [sentence for sentence in sentences if "keep fp32: int8 is slower here, 0.64x [0.60, 0.70]" in sentence]
    assert len(slower) == (target is None)
    if slower:
        assert sentences[0] == slower[0]


def test_few_calibration_images(fp32: Bundle, tmp_path: Path) -> None:
    """Fewer than 8 are refused unless allowed; fewer than 100, and missing classes, give a warning."""
    for count in (1, 7):
        with pytest.raises(DataError, match=f"{count} calibration images are too few") as caught:
            quantize(fp32, QuantizeOptions(calibration_images=count), out=tmp_path / "none")
        assert "--allow-few" in caught.value.fix
    allowed = quantize(fp32, QuantizeOptions(calibration_images=7, allow_few=True), out=tmp_path / "allowed").sentences
    assert any("only 7 calibration images" in sentence for sentence in allowed)
    assert any("7 of 10 classes" in sentence for sentence in allowed)
    many = quantize(fp32, QuantizeOptions(calibration_images=99), out=tmp_path / "99").sentences
    assert any("only 99 calibration images" in sentence for sentence in many)
    assert not any("classes" in sentence for sentence in many)
    enough = quantize(fp32, QuantizeOptions(calibration_images=100), out=tmp_path / "100")
    assert not any("calibration" in remark for remark in enough.remarks)


def test_the_command_prints_warnings_first(
    edgekit: Callable[..., subprocess.CompletedProcess[str]], fp32: Bundle
) -> None:
    """--allow-few is passed on, and warnings come before other output."""
    refused = edgekit("quantize", fp32.path, "--calibration-images", 4, "--out", "made", code=1)
    assert "--allow-few" in refused.stderr
    done = edgekit("quantize", fp32.path, "--calibration-images", 4, "--allow-few", "--out", "made")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("quantize: ")]
    assert not any(line.startswith("keep fp32") for line in lines[1:])
    warned = [line.startswith("warning: ") for line in lines if not line.startswith("keep fp32")]
    assert warned[0]
    assert warned == sorted(warned, reverse=True)


def test_decibels() -> None:
    """Noise of a tenth of the amplitude is 20 dB; an offset of all classes is not noise; NaN is all noise."""
    logits = np.asarray([[1.0, -1.0, 3.0], [0.0, 2.0, 1.0]], np.float32)
    centred = logits - logits.mean(axis=1, keepdims=True)
    assert decibels(powers(logits, logits + 0.1 * centred)) == pytest.approx(20, abs=1e-3)
    assert decibels(powers(logits, logits + 5)) > 100
    assert decibels(powers(logits, logits)) == 150
    assert decibels(powers(logits, logits * np.nan)) == -150
    assert decibels(powers(logits * 0, logits)) == -150


_PEAK = """
import sys, onnx
from edgekit.deploy.bundle import Bundle
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.quantize.observe import observe
model, bundle = onnx.load(sys.argv[1]), Bundle.open(sys.argv[2])
images = part_of(bundle, "train").take(range(32))
def peak():  # getrusage would also count the memory of the process that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before = peak()
observe(model, bundle.manifest, images, lambda stage, share: None)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_images(fp32: Bundle, tmp_path: Path) -> None:
    """Sixty activations of 2 MB per image, those of one image at a time."""
    generator = np.random.default_rng(0)
    constants = {f"w{index}": generator.normal(size=(32, 32, 1, 1)).astype(np.float32) / 6 for index in range(1, 30)}
    constants["w0"] = generator.normal(size=(32, 1, 1, 1)).astype(np.float32)
    constants["sizes"] = np.asarray([1, 1, 4, 4], np.float32)
    constants["head"] = generator.normal(size=(32, 10)).astype(np.float32)
    nodes = [helper.make_node("Resize", ["image", "", "sizes"], ["x0"], "larger", mode="nearest")]
    for index in range(30):
        nodes.append(helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"y{index}"], f"conv{index}"))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"x{index + 1}"], f"relu{index}"))
    nodes.append(helper.make_node("GlobalAveragePool", ["x30"], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", "head"], ["logits"], "gemm"))
    model = _model(nodes, constants)
    for entry in (model.graph.input[0], model.graph.output[0]):
        entry.type.tensor_type.shape.dim[0].dim_param = "n"
    path, free = tmp_path / "model.onnx", tmp_path / "free"
    onnx.save(prepare(model), str(path))
    with create(free) as draft:
        onnx.save(model, str(draft.folder / fp32.manifest.model))
        draft.add_golden(fp32.golden())
        draft.add_splits(fp32.splits())
        draft.finish(dataclasses.replace(fp32.manifest, input=dataclasses.replace(fp32.manifest.input, batch=None)))
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), str(free)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 150, "MB; all activations of 16 images are 1,900"


def test_ranges_do_not_depend_on_the_batch(fp32: Bundle) -> None:
    """Ranges are the same for any number of images per run."""
    train = part_of(fp32, "train")
    assert train is not None
    model = _selector()
    for entry in (model.graph.input[0], model.graph.output[0]):
        entry.type.tensor_type.shape.dim[0].dim_param = "n"
    model = prepare(model)
    ranges = []
    for size in (None, 4, 16):
        manifest = dataclasses.replace(fp32.manifest, input=dataclasses.replace(fp32.manifest.input, batch=size))
        ranges.append(observe.observe(model, manifest, train.take(range(19)), lambda stage, share: None))
    for other in ranges[1:]:
        assert other.keys() == ranges[0].keys()
        for name, values in other.items():
            assert values == pytest.approx(ranges[0][name], rel=1e-6, abs=1e-7)


def test_the_gate_is_recorded(fp32: Bundle, tmp_path: Path) -> None:
    """The manifest records how far the logits are from the source's."""
    path = quantize(fp32, QuantizeOptions(target="x86-avx2"), out=tmp_path / "made").bundle.path
    recorded = json.loads((path / "manifest.json").read_text())["details"]["signal_to_noise_db"]
    golden = fp32.golden()
    expected = decibels(powers(golden.logits, load(path).run(golden.tensors)))
    assert recorded["golden"] == pytest.approx(expected)
    assert recorded.keys() == {"golden", "selection", "unoptimised"}


@pytest.mark.parametrize(
    ("runtime", "remedy"),
    [("onnxruntime", "ONNX Runtime's graph optimisations change its answers: upgrade onnxruntime"),
     ("openvino", "openvino's graph optimisations change its answers: upgrade openvino")],
)  # fmt: skip
def test_the_remedy_names_the_runtime_that_gave_the_logits(runtime: str, remedy: str) -> None:
    """A model that is judged on OpenVINO is not the fault of ONNX Runtime."""
    judgement = gate.refusal(gate.SignalToNoise(5.0, None, 5.0), "int8", runtime, list)
    assert judgement is not None
    assert remedy in judgement.sentence
