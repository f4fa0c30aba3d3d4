"""Parity distinguishes the same model from another one."""

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle, Golden
from edgekit.deploy.parity import compare, replay
from edgekit.deploy.preprocess import decode
from edgekit.deploy.session import open_session


@pytest.fixture
def golden() -> Golden:
    """Logits of a made-up model."""
    logits = np.random.default_rng(0).normal(0, 5, (8, 4)).astype(np.float32)
    return Golden([], np.zeros((8, 1, 2, 2), np.float32), logits, np.zeros(8, np.uint32))


def test_rounding_is_the_same_model(golden: Golden) -> None:
    """Another order of additions has this effect."""
    assert compare(golden, golden.logits * np.float32(1 + 1e-6)).exact


@pytest.mark.parametrize("wrong", ["bias", "nan", "inf", "shape", "order"])
def test_another_model_is_detected(golden: Golden, wrong: str) -> None:
    """A slightly wrong bias, NaN or infinity, another shape, images in another order."""
    logits = golden.logits.copy()
    if wrong == "bias":
        logits[:, 2] += 0.01
    elif wrong in ("nan", "inf"):
        logits[3, 1] = float(wrong)
    elif wrong == "shape":
        logits = logits[:, :3]
    else:
        logits = logits[::-1]
    assert not compare(golden, logits).exact


def test_a_tie_may_change_its_class() -> None:
    """Two logits that are equal up to rounding may swap."""
    logits = np.array([[1.0, 1.0 + 1e-6]], np.float32)
    golden = Golden([], np.zeros((1, 1, 1, 1), np.float32), logits, np.zeros(1, np.uint32))
    assert compare(golden, golden.logits[:, ::-1]).exact


def test_another_preprocessing_is_not_mistaken_for_another_model(fp32: Bundle) -> None:
    """The tensors differ; the logits, computed from the recorded tensors, do not."""
    import dataclasses

    session = open_session(fp32)
    other = dataclasses.replace(fp32.manifest.preprocess, interpolation="nearest")
    changed = dataclasses.replace(fp32, manifest=dataclasses.replace(fp32.manifest, preprocess=other))
    parity = replay(changed, session.run)
    assert not parity.same_input
    assert parity.exact
    assert parity.first_difference == "preprocessing"


def test_another_decoder_is_not_mistaken_for_another_preprocessing(
    fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that is off by one is named, although later steps differ too; the original one is not."""
    run = open_session(fp32).run
    assert replay(fp32, run).first_difference == "none"
    monkeypatch.setattr(
        "edgekit.deploy.parity.decode", lambda file: decode(file).point(lambda value: min(value + 1, 255))
    )
    parity = replay(fp32, run)
    assert parity.checksums_agreement == 0.0
    assert not parity.same_input
    assert parity.first_difference == "decoder"
    assert compare(fp32.golden(), run(fp32.golden().tensors) + 1).first_difference == "logits"
