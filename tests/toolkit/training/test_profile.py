"""Where the time of a training step goes: the count of operations, the phases, and the advice."""

import json
from pathlib import Path

import pytest
import torch
from edgekit.deploy.errors import EdgeKitError
from edgekit.toolkit.analysis.training_profile import Limits, Measured, advice, phase_entries, roofline
from edgekit.toolkit.training import profile as profiling
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.training.roofline import Counter
from edgekit.toolkit.training.step import PHASES
from hypothesis import given
from hypothesis import strategies as st
from torch import nn


@given(
    groups=st.sampled_from([1, 2, 4, 8]), side=st.integers(4, 9), kernel=st.integers(1, 3), stride=st.integers(1, 2),
    transposed=st.booleans(),
)  # fmt: skip
def test_a_convolutions_backward_pass_takes_twice_its_forward_pass(
    groups: int, side: int, kernel: int, stride: int, transposed: bool
) -> None:
    """The gradients of input and weight take as many operations as the convolution, with groups too."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(8, 8, kernel, stride, groups=groups, bias=False)
    inputs = torch.zeros(2, 8, side, side, requires_grad=True)
    with Counter() as counter:
        output = layer(inputs)
        forward = counter.flops
        output.sum().backward()
    positions = (side if transposed else output.shape[2]) ** 2
    assert forward == 2 * 2 * positions * 8 * (8 // groups) * kernel**2
    assert counter.flops == 3 * forward


def test_bytes_are_those_of_inputs_and_outputs() -> None:
    """Views move nothing, an expanded tensor is as large as its memory, and a change in place reads and writes."""
    first, second = torch.zeros(100), torch.zeros(100)
    with Counter() as counter:
        first.view(10, 10).t()
        assert counter.moved == 0
        torch.add(first, second)
        assert counter.moved == 1200
        first.add_(second)
        assert counter.moved == 2400
        torch.zeros(1).expand(100)
        assert counter.moved <= 2404


def _measured(seconds: dict[str, float], moved: int = 1000) -> Measured:
    flops = dict.fromkeys(PHASES, 0) | {"forward": 1000, "backward": 2000}
    return Measured(dict.fromkeys(PHASES, 0.1) | seconds, [1.0, 1.1], flops, moved, Limits(10_000.0, 1000.0))


@pytest.mark.parametrize(
    ("seconds", "moved", "device", "expected"),
    [
        ({"data": 1.0}, 1000, "cpu", "71% of a step waits for images"),
        ({"augment": 1.0}, 1000, "cpu", "71% of a step changes images"),
        ({"optimizer": 1.0}, 1000, "cpu", "--find-batch-size"),
        ({"forward": 10.0}, 1000, "cuda", "the GPU reaches 10% of what it could"),
        ({"forward": 1.0}, 1000, "cpu", "memory is its limit"),
        ({"forward": 1.0}, 100, "cpu", "arithmetic is its limit"),
    ],
)
def test_the_advice_names_the_largest_part(seconds: dict[str, float], moved: int, device: str, expected: str) -> None:
    """One line with what to change."""
    assert expected in advice(_measured(seconds, moved), device)


def test_the_roofline_is_the_lower_of_two_limits() -> None:
    """3 operations per byte at 1000 bytes/s are 3000 operations/s, below the peak of 10 000."""
    found = roofline(_measured({"forward": 0.5, "backward": 0.5}))
    assert (found["limit"], found["attainable_flops_per_s"], found["achieved_flops_per_s"]) == ("memory", 3000, 3000)
    assert found["share"] == 1.0
    assert found["share_of_peak"] == pytest.approx(3000 / 1.05 / 10_000)
    entries = {entry["name"]: entry for entry in phase_entries(_measured({"forward": 0.6}))}
    assert entries["forward"]["share"] == pytest.approx(0.6)
    assert entries["data"]["flops_per_s"] is None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices and few steps: the figures do not matter."""
    from edgekit.toolkit.training import roofline as limits

    monkeypatch.setattr(limits, "_SIDE", {"cpu": 64})
    monkeypatch.setattr(limits, "_COPIED_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(profiling, "_MOST_STEPS", 2)


def test_a_profile_measures_every_phase_and_keeps_nothing(quick: None) -> None:
    """Operations are those of the network: three times the forward pass, less the gradient of the first input."""
    recipe = Recipe.load("digits", ["model.name=lenet", "preprocess.size=16", "train.accumulate=2", "train.clip=1.0"])
    found = profiling.profile_training(recipe)
    assert [phase["name"] for phase in found["phases"]] == list(PHASES)
    assert all(phase["ms"] > 0 for phase in found["phases"])
    assert sum(phase["share"] for phase in found["phases"]) == pytest.approx(1)
    flops = {phase["name"]: phase["flops"] for phase in found["phases"]}
    assert flops["forward"] < flops["backward"] < 2 * flops["forward"]
    assert flops["data"] == flops["augment"] == flops["optimizer"] == 0
    assert found["steps"] == 20
    assert found["step_ms_interval"][0] <= found["step_ms"] <= found["step_ms_interval"][1]
    assert not list(Path().iterdir())


def test_the_command_prints_a_table_or_json(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The advice first, then the phases; JSON for programs."""
    from edgekit.toolkit.commands.train import command

    command(data="digits", model="lenet", settings=["preprocess.size=16"], profile=True)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*PHASES, "measured limits", "FLOP per byte"))
    command(data="digits", model="lenet", settings=["preprocess.size=16"], profile=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["name"] == "lenet on digits"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"find_lr": True, "settings": ["train.lr=0.1"]}, "both given and to be found"),
        ({"find_batch_size": True, "settings": ["train.batch_size=8"]}, "both given and to be found"),
        ({"profile": True, "find_lr": True}, "does not train"),
        ({"profile": True, "out": Path("made")}, "does not train"),
        ({"as_json": True}, "--json is for --profile"),
        ({"resume": True, "find_lr": True}, "its own settings"),
        ({"resume": True, "profile": True}, "its own settings"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict, message: str) -> None:
    """Neither of the two is ignored."""
    from edgekit.toolkit.commands.train import command

    with pytest.raises(EdgeKitError, match=message):
        command(**options)
