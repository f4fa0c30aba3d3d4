"""Racing: the fastest candidate is kept, slower ones are dropped early, and equal ones end the race."""

import math

import numpy as np
import pytest
from edgekit.deploy.measuring.elimination import ERROR_RATE, FIRST_MARGIN, decided, survivors
from hypothesis import given
from hypothesis import strategies as st

LOOKS = 7


def _race(generator: np.random.Generator, speeds: list[float], noise: float) -> tuple[list[str], list[int]]:
    """The survivors of a race on simulated processes, and the number of processes of each candidate."""
    times: dict[str, list[float]] = {str(index): [] for index in range(len(speeds))}
    counts = [0] * len(speeds)
    alive = list(times)
    for _ in range(LOOKS):
        turn = math.exp(generator.normal(0, 0.2))  # the machine's speed, which all candidates share
        for key in alive:
            times[key].append(speeds[int(key)] * turn * math.exp(generator.normal(0, noise)))
            counts[int(key)] += 1
        alive = survivors({key: times[key] for key in alive}, LOOKS)
        if decided({key: times[key] for key in alive}, LOOKS):
            break
    return alive, counts


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_the_fastest_is_rarely_dropped(noise: float) -> None:
    """In no more races than the error rate allows, with candidates of all distances."""
    generator = np.random.default_rng(0)
    speeds = [1.0, 1.005, 1.01, 1.03, 1.06, 1.1, 1.2, 1.3, 1.6, 2.0, 3.0]
    lost = sum("0" not in _race(generator, speeds, noise)[0] for _ in range(400))
    assert lost <= 400 * ERROR_RATE


def test_slower_candidates_get_few_processes() -> None:
    """A clear winner ends the race early; what is far off is measured once."""
    alive, counts = _race(np.random.default_rng(1), [1.0, 1.2, 1.4, 2.0, 3.0, 5.0], 0.01)
    assert alive == ["0"]
    assert counts[3:] == [1, 1, 1]
    assert sum(counts) <= 15, "of 42"


def test_equal_candidates_end_the_race() -> None:
    """Nobody gains by separating candidates that differ by less than the noise that is left."""
    alive, counts = _race(np.random.default_rng(2), [1.0, 1.0, 1.0], 0.002)
    assert len(alive) == 3
    assert max(counts) < LOOKS


@given(st.lists(st.lists(st.floats(1e-3, 1e4), min_size=3, max_size=3), min_size=1, max_size=8), st.integers(1, 20))
def test_the_best_mean_always_survives(rows: list[list[float]], looks: int) -> None:
    """For any times; survivors are a subset, the fastest first."""
    times = {str(index): row for index, row in enumerate(rows)}
    alive = survivors(times, looks)
    assert set(alive) <= set(times)
    means = {key: float(np.log(row).mean()) for key, row in times.items()}
    assert means[alive[0]] == pytest.approx(min(means.values()))


def test_one_process_drops_only_by_the_margin() -> None:
    """It shows no variation between processes."""
    times = {"a": [1.0], "b": [FIRST_MARGIN * 0.999], "c": [FIRST_MARGIN * 1.001]}
    assert survivors(times, LOOKS) == ["a", "b"]
    assert not decided({"a": [1.0], "b": [1.0]}, LOOKS)
    assert decided({"a": [1.0]}, LOOKS)
