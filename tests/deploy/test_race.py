"""A race on real processes: slow candidates are dropped early, limits are kept, and a failure is one candidate's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.documents import plain, read
from edgekit.deploy.errors import DeviceError, EdgeKitError
from edgekit.deploy.images import ImageSet
from edgekit.deploy.measuring import race as race_module
from edgekit.deploy.measuring.agent import Measured
from edgekit.deploy.measuring.elimination import points_lost
from edgekit.deploy.measuring.plan import Candidate, Plan, Race
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.toolkit.datasets import load_dataset
from edgekit.toolkit.doctor.planted_models import slowed

from tests.toolkit.conftest import ENVIRONMENT, measurement

PLAN = Plan(seconds=0.2, rounds=4, processes=4, block_ms=5, threads=1)


@pytest.fixture
def images() -> ImageSet:
    """Twenty digits with labels."""
    return load_dataset("digits").validation.take(range(20))


def _run(bundles: list[Bundle], images: ImageSet | None, race: Race, *candidates: Candidate) -> Measured:
    plan = replace(PLAN, race=race, candidates=candidates)
    return open_device("local", planted=True).measure(bundles, plan, images, lambda stage, share: None)


@pytest.mark.slow
def test_a_slow_candidate_has_one_process(fp32: Bundle, tmp_path: Path, images: ImageSet) -> None:
    """50 times slower is certain at once; the reference runs in all processes; memory is that of the others."""
    slow, fast = slowed(fp32, tmp_path / "slow", 50.0), slowed(fp32, tmp_path / "fast", 1.0)
    first, second, third = (Candidate(bundle.id) for bundle in (fp32, slow, fast))
    measured = _run([fp32, slow, fast], images, Race(), first, second, third)
    reference, dropped, other = measured.measurements
    assert [entry.bundle for entry in measured.measurements] == [fp32.id, slow.id, fast.id]
    assert dropped.processes == 1
    assert dropped.peak_rss_bytes is None
    assert reference.processes == max(entry.processes or 0 for entry in measured.measurements)
    assert reference.peak_rss_bytes is None or reference.peak_rss_bytes > 10_000_000
    rounds = {block.round for block in reference.blocks}
    for entry in (dropped, other):
        assert entry.predictions is not None
        assert {block.round for block in entry.blocks} <= rounds, "its times are relative to the reference's"
        assert len({block.process for block in entry.blocks}) == entry.processes
    assert measured.failed == {}


@pytest.mark.slow
def test_a_failing_candidate_is_left_out(fp32: Bundle, int8: Bundle, images: ImageSet) -> None:
    """The others are measured, and the reason is reported and survives the way to the host."""
    broken = Candidate(int8.id, Choice("onnxruntime", {"threads": 1, "provider": "dnnl"}))
    reference = Candidate(fp32.id, Choice("onnxruntime", {"threads": 1}))
    measured = _run([fp32, int8], images, Race(), reference, broken)
    assert [entry.bundle for entry in measured.measurements] == [reference.key]
    assert "DnnlExecutionProvider" in measured.failed[broken.key]
    plan = replace(PLAN, race=Race(), candidates=(reference, broken))
    again = Measured.from_json(plain(measured.to_json()), "local", [fp32, int8], len(images), plan)
    assert again.failed == measured.failed


@pytest.mark.slow
def test_a_failing_reference_ends_the_race(fp32: Bundle) -> None:
    """Nothing could be compared."""
    reference = Candidate(fp32.id, Choice("onnxruntime", {"threads": 1, "provider": "dnnl"}))
    with pytest.raises(EdgeKitError, match="DnnlExecutionProvider"):
        _run([fp32], None, Race(), reference, Candidate(fp32.id))


@pytest.mark.slow
@pytest.mark.parametrize("race", [Race(max_loss=-1.0), Race(max_rss_bytes=1000), Race(max_bytes=10), Race(seconds=0.0)])
def test_limits_and_time_end_a_race(fp32: Bundle, int8: Bundle, images: ImageSet, race: Race) -> None:
    """If no candidate keeps to the limits, or the time is over, each has one process."""
    measured = _run([fp32, int8], images, race, Candidate(fp32.id), Candidate(int8.id))
    assert [entry.processes for entry in measured.measurements] == [1, 1]


@pytest.mark.slow
def test_the_smallest_file_wins(fp32: Bundle, int8: Bundle) -> None:
    """However slow it is; the other one is out after its first process."""
    measured = _run([fp32, int8], None, Race("size"), Candidate(fp32.id), Candidate(int8.id))
    assert measured.measurements[1].processes == measured.measurements[0].processes
    assert int8.size_bytes < fp32.size_bytes


@pytest.mark.slow
def test_throughput_is_measured_in_batches(fp32: Bundle, int8: Bundle) -> None:
    """In each process of each candidate."""
    measured = _run([fp32, int8], None, Race("throughput"), Candidate(fp32.id), Candidate(int8.id))
    for entry in measured.measurements:
        assert {batch.process for batch in entry.throughput} == {block.process for block in entry.blocks}


def test_the_same_answers_are_found_once(fp32: Bundle, images: ImageSet) -> None:
    """Two numbers of threads give the same predictions, which one of them makes."""
    first, second = (
        Candidate(fp32.id, Choice("onnxruntime", {"threads": 1, "spinning": flag})) for flag in (True, False)
    )
    measured = _run([fp32], images, Race(seconds=0.0), first, second)
    one, other = measured.measurements
    assert one.predictions == other.predictions
    assert one.predictions is not None
    assert read(dict[str, object], plain(measured.to_json()))["failed"] == {}


def test_points_lost() -> None:
    """With labels a gain offsets a loss; without them each changed answer may be a loss."""
    targets = np.asarray([0, 1, 2, 3]).tolist()
    assert points_lost(targets, [0, 1, 2, 0], [0, 1, 0, 3]) == 0.0
    assert points_lost(targets, [0, 1, 2, 3], [0, 1, 0, 3]) == 25.0
    assert points_lost([-1] * 4, [0, 1, 2, 0], [0, 1, 0, 3]) == 50.0
    assert points_lost([], [], []) == 0.0


def _raced(fp32: Bundle, int8: Bundle) -> tuple[Plan, dict[str, object]]:
    """A plan, and what a device may send for it."""
    candidates = (Candidate(fp32.id), Candidate(int8.id))
    whole = [replace(measurement(bundle, 1.0, np.arange(3) % 10), golden_logits=[]) for bundle in (fp32, int8)]
    return replace(PLAN, race=Race(), candidates=candidates), plain(Measured(ENVIRONMENT, whole, {}).to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry, _: entry.update(failed={entry["measurements"].pop(0)["bundle"]: "x"}), "reference was not"),
        (lambda _, other: other["blocks"][0].update(round=99), "was not timed beside the reference"),
        (lambda _, other: [block.update(process=5) for block in other["blocks"]], "was not timed beside"),
        (lambda _, other: other.update(blocks=[]), "no blocks"),
        (lambda entry, _: entry.update(failed="yes"), "failed"),
        (lambda entry, _: entry["measurements"].pop(), "not of the requested models"),
    ],
)
def test_a_hostile_device_is_refused(fp32: Bundle, int8: Bundle, change: Any, message: str) -> None:
    """A race that cannot have happened is one clear error, not a traceback later."""
    plan, sent = _raced(fp32, int8)
    entry: Any = json.loads(json.dumps(sent))
    assert len(Measured.from_json(entry, "board", [fp32, int8], 3, plan).measurements) == 2
    change(entry, entry["measurements"][1])
    with pytest.raises(DeviceError, match=message):
        Measured.from_json(entry, "board", [fp32, int8], 3, plan)


def test_batches_are_part_of_a_race_for_throughput(fp32: Bundle, int8: Bundle) -> None:
    """Without them nothing could be concluded."""
    plan, sent = _raced(fp32, int8)
    with pytest.raises(DeviceError, match="was not timed in batches"):
        Measured.from_json(sent, "board", [fp32, int8], 3, replace(plan, race=Race("throughput")))


@pytest.mark.slow
def test_a_race_without_time_measures_the_first_few(fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are listed with the reason, and nothing is concluded about them."""
    candidates = [Candidate(fp32.id, Choice("onnxruntime", {"threads": 1, "spinning": flag})) for flag in (True, False)]
    candidates += [Candidate(fp32.id, Choice("onnxruntime", {"threads": count})) for count in (1, 2)]
    monkeypatch.setattr(race_module, "_groups", lambda subjects: [[subject] for subject in subjects])
    plan = replace(PLAN, race=Race(seconds=0.0), candidates=tuple(candidates))
    measured, failed = race_module.race({fp32.id: fp32.path}, plan, None, None, lambda stage, share: None)
    assert [entry.bundle for entry in measured] == [candidate.key for candidate in candidates[:2]]
    assert list(failed) == [candidate.key for candidate in candidates[2:]]
    assert all("--budget" in reason for reason in failed.values())


@pytest.mark.slow
def test_a_model_of_one_image_gets_one_for_each_stream(fp32: Bundle) -> None:
    """Otherwise streams would bring nothing."""
    pytest.importorskip("openvino")
    streams = Candidate(fp32.id, Choice("openvino", {"threads": 2, "streams": 2}))
    measured = _run([fp32], None, Race("throughput", seconds=0.0), Candidate(fp32.id), streams)
    batches = [{entry.batch for entry in model.throughput} for model in measured.measurements]
    assert batches == [{1}, {2}]
