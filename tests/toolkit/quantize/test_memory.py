"""Calibration keeps to a limit of memory, or says which one it needs."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError
from edgekit.export.export_bundle import Options, export_bundle
from edgekit.toolkit.quantize.histogram import histograms, with_width
from edgekit.toolkit.quantize.memory import plan
from edgekit.toolkit.quantize.observe import Batch, activations, ranges_of
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.quantize import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

PEAK = """
import sys
from edgekit.deploy.bundle import Bundle
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.quantize.calibrate import calibrate
from edgekit.toolkit.quantize.advice import Watch
from edgekit.toolkit.quantize.emit import emit_int8
from edgekit.toolkit.quantize.float_model import OnnxFloat
from edgekit.toolkit.quantize.gate import run_optimised
from edgekit.toolkit.quantize.options import QuantizeOptions
from edgekit.toolkit.quantize.prepare import prepare
from edgekit.toolkit.quantize.targets import TARGETS
from pathlib import Path
import onnx
bundle, target = Bundle.open(Path(sys.argv[1])), TARGETS["arm"]
model, images = prepare(onnx.load(str(bundle.model_path))), part_of(bundle, "train").take(range(64))
options = QuantizeOptions(memory_limit=int(sys.argv[2]))
calibrate(OnnxFloat(model), bundle.manifest, images, options, target.activations,
          lambda ranges, tensors: run_optimised(emit_int8(model, ranges, target), tensors),
          lambda stage, share: None, Watch(bundle.manifest.preprocess, len(images)))
# getrusage would also count the memory of the process that started it
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def _chain(sides: list[int]) -> onnx.ModelProto:
    """Activations of these sides, one after the other, for any batch."""
    nodes, infos = [], []
    before = "image"
    for index, side in enumerate(sides):
        name = f"x{index}"
        nodes.append(helper.make_node("Relu", [before], [name], name))
        infos.append(helper.make_tensor_value_info(name, 1, ["n", 1, side, side]))
        before = name
    entry = helper.make_tensor_value_info("image", 1, ["n", 1, sides[0], sides[0]])
    return helper.make_model(helper.make_graph(nodes, "chain", [entry], [infos[-1]], value_info=infos[:-1]))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.integers(100, 2000))
def test_a_plan_is_kept_or_the_least_limit_is_named(sides: list[int], megabytes: int) -> None:
    """Every activation is in one group, in order; the limit that a refusal names is accepted, and is needed."""
    model = _chain(sides)
    names = activations(model)
    try:
        made = plan(model, names, 8, megabytes * 10**6)
    except EdgeKitError as error:
        found = re.fullmatch(r"--memory-limit (\d+)MB", error.fix or "")
        assert found is not None
        least = int(found[1])
        assert least > megabytes
        made = plan(model, names, 8, least * 10**6)
        with pytest.raises(EdgeKitError):
            plan(model, names, 8, (least - 1) * 10**6)
    assert [name for group in made for name in group] == names
    assert all(made)


def test_groups_give_the_same_histograms(fp32: Bundle) -> None:
    """As all activations at once."""
    model, tensors = prepare(onnx.load(str(fp32.model_path))), fp32.golden().tensors[:4]
    batches = [Batch(tensor[None], ["image"]) for tensor in tensors]
    ranges = with_width(ranges_of(model, batches))
    whole = histograms(model, ranges, batches)
    for name, bounds in ranges.items():
        alone = histograms(model, {name: bounds}, batches)
        assert np.array_equal(alone[name].counts, whole[name].counts)


def test_a_limit_that_is_too_small_names_the_one_that_is_needed(fp32: Bundle, tmp_path: Path) -> None:
    """In one line, and with this limit the result is that without one."""
    with pytest.raises(EdgeKitError, match="more than the limit of 20 MB") as error:
        quantize(fp32, QuantizeOptions(target="arm", memory_limit=20_000_000), out=tmp_path / "refused")
    found = re.fullmatch(r"--memory-limit (\d+)MB", error.value.fix or "")
    assert found is not None
    made = [
        quantize(fp32, QuantizeOptions(target="arm", memory_limit=limit), out=tmp_path / str(limit)).bundle
        for limit in (int(found[1]) * 10**6, None)
    ]
    assert made[0].model_path.read_bytes() == made[1].model_path.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_the_process_keeps_to_the_limit(name: str, untrained: Callable[..., Bundle], tmp_path: Path) -> None:
    """At the least limit, with a model that takes any batch, at 224 pixels."""
    source = untrained(name, tmp_path / "source", 224)
    exported = export_bundle(source, "onnx", tmp_path / "onnx", Options(dynamic_batch=True))
    model = prepare(onnx.load(str(exported.model_path)))
    with pytest.raises(EdgeKitError) as error:
        plan(model, activations(model), 64, 1)
    least = int((error.value.fix or "").removeprefix("--memory-limit ").removesuffix("MB")) * 10**6
    assert least < 400e6
    command = [sys.executable, "-c", PEAK, str(exported.path), str(least)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 <= least
