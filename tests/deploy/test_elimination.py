"""Racing: the fastest candidate is kept, slower ones are dropped early, and equal ones end the race."""

import math
from statistics import mean, median

import numpy as np
import pytest
from edgekit.deploy.measuring.elimination import ERROR_RATE, REGRET, STOP_ERROR, decided, survivors
from hypothesis import given
from hypothesis import strategies as st

LOOKS, ROUNDS = 7, 4
# of the logarithm of a model's time from process to process
BETWEEN = 0.02

Logs = dict[str, list[list[float]]]


def _race(generator: np.random.Generator, speeds: list[float], noise: float) -> tuple[list[str], list[int]]:
    """The survivors of a race on simulated processes, and the number of processes of each candidate."""
    logs: Logs = {str(index): [] for index in range(len(speeds))}
    counts = [0] * len(speeds)
    alive = list(logs)
    for _ in range(LOOKS):
        turn = generator.normal(0, 0.2)  # the machine's speed, which all candidates share
        for key in alive:
            process = math.log(speeds[int(key)]) + turn + generator.normal(0, BETWEEN)
            logs[key].append([process + generator.normal(0, noise) for _ in range(ROUNDS)])
            counts[int(key)] += 1
        alive = survivors({key: logs[key] for key in alive}, LOOKS)
        if decided({key: logs[key] for key in alive}):
            break
    return alive, counts


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.1])
def test_the_fastest_is_rarely_dropped(noise: float) -> None:
    """In no more races than the error rate allows, with candidates of all distances."""
    generator = np.random.default_rng(0)
    speeds = [1.0, 1.005, 1.01, 1.03, 1.06, 1.1, 1.2, 1.3, 1.6, 2.0, 3.0]
    lost = sum("0" not in _race(generator, speeds, noise)[0] for _ in range(400))
    assert lost <= 400 * ERROR_RATE


@pytest.mark.parametrize("noise", [0.005, 0.03])
def test_the_winner_is_about_as_fast_as_the_fastest(noise: float) -> None:
    """After a race has ended early, its first is more than 3 % slower in no more races than announced."""
    generator = np.random.default_rng(3)
    speeds = [1.0, 1.02, 1.04, 1.08, 1.15, 1.5]
    chosen = [speeds[int(_race(generator, speeds, noise)[0][0])] for _ in range(300)]
    assert sum(speed > 1.03 for speed in chosen) <= 300 * STOP_ERROR


def test_slower_candidates_get_few_processes() -> None:
    """A clear winner ends the race early; what is far off is measured once."""
    alive, counts = _race(np.random.default_rng(1), [1.0, 1.12, 1.4, 2.0, 3.0, 5.0], 0.01)
    assert alive[0] == "0"
    assert counts[2:] == [1, 1, 1, 1]
    assert sum(counts) <= 12, "of 42"


def test_equal_candidates_end_the_race() -> None:
    """Nobody gains by separating candidates that differ by less than the noise that is left."""
    logs = {key: [[0.001 * (number % 2)] * ROUNDS for number in range(4)] for key in "abc"}
    assert len(survivors(logs, LOOKS)) == 3
    assert decided(logs)
    assert not decided({key: values[:1] for key, values in logs.items()}), "one process cannot show it"


def test_noise_keeps_candidates() -> None:
    """The same difference is certain if the rounds agree, and is not if they do not."""
    quiet = {"a": [[0.0, 0.001, -0.001, 0.0]], "b": [[0.25, 0.251, 0.249, 0.25]]}
    noisy = {key: [[value + offset for value, offset in zip(rows[0], (-0.5, 0.5, -0.4, 0.4), strict=True)]]
             for key, rows in quiet.items()}  # fmt: skip
    assert survivors(quiet, LOOKS) == ["a"]
    assert survivors(noisy, LOOKS) == ["a", "b"]


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=8), st.integers(1, 20))
def test_the_best_mean_always_survives(rows: list[list[float]], looks: int) -> None:
    """For any times; survivors are a subset, the fastest first."""
    logs = {str(index): [[value] for value in row] for index, row in enumerate(rows)}
    alive = survivors(logs, looks)
    assert set(alive) <= set(logs)
    means = {key: mean(median(values) for values in row) for key, row in logs.items()}
    assert means[alive[0]] == pytest.approx(min(means.values()))


def test_a_single_value_drops_only_by_a_wide_margin() -> None:
    """It shows no noise at all."""
    logs = {"a": [[0.0]], "b": [[math.log(1.499)]], "c": [[math.log(1.501)]]}
    assert survivors(logs, LOOKS) == ["a", "b"]
    assert not decided({"a": [[0.0]], "b": [[0.0]]})
    assert decided({"a": [[0.0]]})
    assert REGRET < 1.03
