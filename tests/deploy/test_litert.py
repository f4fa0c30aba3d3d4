"""LiteRT: XNNPACK runs the operators, or the session is refused; what a file takes is what its manifest says."""

import dataclasses
import json
import random
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, DeviceError, RecipeError
from edgekit.deploy.manifest import TensorSpec
from edgekit.deploy.runtimes.litert import read_placement, reason_of
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.deploy.session import open_session
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert")

from ai_edge_litert import interpreter

from tests.tflite import CLASSES, IMAGE, linear

DRAWN = np.random.default_rng(0).normal(size=(5, *IMAGE)).astype(np.float32)


def _bundle(fp32: Bundle, folder: Path, content: bytes, batch: int | None = 1) -> Bundle:
    """A bundle of a model for images of IMAGE."""
    (folder / "model.tflite").write_bytes(content)
    spec = TensorSpec(*IMAGE, batch=batch)
    manifest = dataclasses.replace(fp32.manifest, format="litert", model="model.tflite", input=spec)
    return Bundle(folder, manifest, "x")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_a_file_takes_images_in_its_own_layout(channels_last: bool, size: int, fp32: Bundle, tmp_path: Path) -> None:
    """Any number of images, in any number at once, channels first or last: the same answers."""
    content, weights = linear(channels_last=channels_last, batch=size)
    session = open_session(_bundle(fp32, tmp_path, content, size), threads=1)
    seen = DRAWN.transpose(0, 2, 3, 1) if channels_last else DRAWN
    expected = seen.reshape(len(DRAWN), -1) @ weights.T
    for count in (1, 2, 5):
        logits = session.run(DRAWN[:count])
        assert logits.dtype == np.float32
        assert logits.shape == (count, CLASSES)
        np.testing.assert_allclose(logits, expected[:count], atol=1e-5)
    assert session.facts["placement"] == {"XNNPACK": 2}
    assert session.facts["threads"] == 1
    session.close()


def test_operators_that_xnnpack_leaves_are_counted(fp32: Bundle, tmp_path: Path) -> None:
    """As the report shows them; XNNPACK has no CUMSUM."""
    content, weights = linear(ends_in_cumsum=True)
    session = open_session(_bundle(fp32, tmp_path, content))
    assert session.facts["placement"] == {"XNNPACK": 2, "built-in kernels": 1}
    expected = np.cumsum(DRAWN.reshape(len(DRAWN), -1) @ weights.T, axis=1)
    np.testing.assert_allclose(session.run(DRAWN), expected, atol=1e-4)


def test_a_silent_fallback_is_refused(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteRT runs a model without XNNPACK as well, several times slower, and says nothing."""
    without = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    planted = partial(interpreter.Interpreter, experimental_op_resolver_type=without)
    monkeypatch.setattr(interpreter, "Interpreter", planted)
    content, _ = linear(ends_in_cumsum=True)
    with pytest.raises(DeviceError, match="XNNPACK runs none of the 3 operators") as caught:
        open_session(_bundle(fp32, tmp_path, content))
    assert "ONNX" in caught.value.fix


def test_a_model_that_xnnpack_cannot_take_is_refused(fp32: Bundle, tmp_path: Path) -> None:
    """Its operators are none of XNNPACK's."""
    content, _ = linear(only_cumsum=True)
    with pytest.raises(DeviceError, match="XNNPACK runs none of the 1 operators"):
        open_session(_bundle(fp32, tmp_path, content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"batch": 2},
            r"float32 \[2, 3, 4, 5\] and returns float32 \[2, 10\]; its manifest says float32 \[1, 3, 4, 5\]",
        ),
        ({"image": (3, 5, 4)}, r"takes float32 \[1, 3, 5, 4\]"),
        ({"image": (60,)}, r"takes float32 \[1, 60\]"),
        ({"image": ()}, r"takes float32 \[\] and returns"),
        ({"quantized": True}, r"takes int8 \[1, 3, 4, 5\] and returns int8"),
    ],
)
def test_another_input_than_the_manifests_is_refused(
    change: dict[str, object], words: str, fp32: Bundle, tmp_path: Path
) -> None:
    """By what the file takes, and what the manifest says."""
    content, _ = linear(**change)
    with pytest.raises(BundleError, match=words):
        open_session(_bundle(fp32, tmp_path, content))


@pytest.mark.parametrize("text", ["litert:threads=0", "litert:precision=fp16", "litert:device=GPU"])
def test_an_option_that_does_not_exist_is_refused(text: str) -> None:
    """FORCE_FP16 cannot be read back from LiteRT, so there is no option for it."""
    with pytest.raises(RecipeError):
        Choice.parse(text)


_OPEN = """
import json, sys
from pathlib import Path
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.manifest import TensorSpec
from edgekit.deploy.session import open_session
import dataclasses, numpy as np
manifest = Bundle.open(sys.argv[1]).manifest
for folder in sys.argv[2:]:
    spec = TensorSpec(3, 4, 5, batch=1)
    there = dataclasses.replace(manifest, format="litert", model="model.tflite", input=spec)
    try:
        open_session(Bundle(Path(folder), there, "x")).run(np.zeros((1, 3, 4, 5), np.float32))
        print(json.dumps("ran"))
    except EdgeKitError as error:
        print(json.dumps(str(error)))
"""


def test_a_damaged_file_is_one_line(fp32: Bundle, tmp_path: Path) -> None:
    """Cut, or with bytes changed: refused by its reason, or it runs; never a trace, never a crash."""
    content, _ = linear()
    folders = []
    for seed in range(150):
        drawn, damaged = random.Random(seed), bytearray(content)
        for _ in range(drawn.choice([1, 4, 16])):
            damaged[drawn.randrange(len(damaged))] = drawn.randrange(256)
        folders.append(tmp_path / str(seed))
        folders[-1].mkdir()
        (folders[-1] / "model.tflite").write_bytes(
            damaged[: drawn.randrange(len(damaged))] if seed % 5 == 0 else damaged
        )
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, fp32.path, *folders], capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(folders)
    assert sum(answer != "ran" for answer in answers) > 30
    assert all("\n" not in answer for answer in answers)


def test_a_reason_is_one_line_without_places() -> None:
    """LiteRT names its own source files."""
    error = RuntimeError("tflite/kernels/conv.cc:425 NumElements(bias) != 3 (4 != 3)\nNode number 1 failed to prepare.")
    assert reason_of(error) == "NumElements(bias) != 3 (4 != 3) Node number 1 failed to prepare."
    assert reason_of(RuntimeError()) == "RuntimeError"


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_chain_is_counted_part_by_part(taken: list[bool]) -> None:
    """Each run of taken operators is one part, as LiteRT lists it; an optional input has the number -1."""
    chain = [
        {"op_name": "ADD", "index": i, "inputs": np.array([i, 100, -1]), "outputs": np.array([i + 1])}
        for i in range(len(taken))
    ]
    parts, start = [], None
    for i, one in enumerate([*taken, False]):
        if one and start is None:
            start = i
        if not one and start is not None:
            parts.append({"op_name": "DELEGATE", "index": 50 + i, "inputs": np.array([start, 100]), "outputs": [i]})
            start = None
    assert read_placement([*chain, *parts]) == Counter({"XNNPACK": sum(taken), "built-in kernels": taken.count(False)})
