"""Which candidate of a race is chosen, and what is said about the others."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.documents import plain, read
from edgekit.deploy.measuring.agent import Measured
from edgekit.deploy.measuring.measurement import Block, Measurement, Predictions, Throughput
from edgekit.deploy.measuring.plan import Candidate, Plan, Race
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.toolkit.analysis.search import Raced, conclude, shared_file
from edgekit.toolkit.analysis.search_schema import DeviceSearch

from tests.toolkit.conftest import ENVIRONMENT, measurement

TARGETS = [number % 10 for number in range(200)]
PROCESSES = 4


def _measurement(bundle: Bundle, candidate: Candidate, ms: float, processes: int, lost: int) -> Measurement:
    """A candidate in so many processes of a race, two rounds each; `lost` of its answers are wrong."""
    generator = np.random.default_rng(round(1000 * ms))
    blocks = [
        Block(2 * process + number, process, 0.1 * process, 1, (int(1e6 * ms * generator.normal(1, 0.002)),) * 9, 0)
        for process in range(processes)
        for number in range(2)
    ]
    classes = [(target + 1) % 10 if index < lost else target for index, target in enumerate(TARGETS)]
    whole = measurement(bundle, ms, np.asarray(TARGETS))
    return replace(
        whole, bundle=candidate.key, blocks=tuple(blocks), processes=processes,
        predictions=Predictions(tuple(classes), (0.9,) * len(classes), (True,) * len(classes)),
    )  # fmt: skip


# runtime and options, whether it is the int8 file, ms, processes, wrong answers
Row = tuple[str, bool, float, int, int]


def _search(
    fp32: Bundle, int8: Bundle, rows: Sequence[Row], rules: Race | None = None, *, device: str = "local",
    failed: Mapping[str, str] | None = None, labelled: bool = True, throughput: Sequence[float] = (),
) -> DeviceSearch:  # fmt: skip
    candidates, measurements = [], []
    for at, (runtime, quantized, ms, processes, lost) in enumerate(rows):
        bundle = int8 if quantized else fp32
        candidate = Candidate(bundle.id, Choice.parse(runtime))
        candidates.append(candidate)
        entry = _measurement(bundle, candidate, ms, processes, lost)
        if throughput:
            batches = tuple(Throughput(process, 4, (int(4e9 / throughput[at]),) * 3) for process in range(processes))
            entry = replace(entry, throughput=batches)
        measurements.append(entry)
    missing = dict(failed or {})
    for key in missing:
        identity, _, choice = key.partition("@")
        candidates.append(Candidate(identity, Choice.parse(choice)))
    plan = Plan(processes=PROCESSES, candidates=tuple(candidates), race=rules or Race(max_loss=1.0))
    targets = TARGETS if labelled else [-1] * len(TARGETS)
    measured = Measured(ENVIRONMENT, measurements, missing)
    return conclude(Raced(device, {fp32.id: fp32, int8.id: int8}, plan, measured, targets, 1.0))


FP32 = ("onnxruntime:threads=1", False, 4.0, PROCESSES, 0)


def test_the_fastest_within_the_limits_is_chosen(fp32: Bundle, int8: Bundle) -> None:
    """Over the fastest float32 model, with an interval where several processes measured it."""
    found = _search(
        fp32, int8,
        [FP32, ("openvino:threads=1", False, 3.0, PROCESSES, 0), ("openvino:threads=1", True, 1.0, PROCESSES, 1),
         ("onnxruntime:threads=1", True, 2.0, 1, 1)],
    )  # fmt: skip
    best, second, *others = found["candidates"]
    assert (best["id"], best["status"]) == (found["chosen"], "chosen")
    assert best["runtime"] == "openvino:threads=1"
    assert best["precision"] == "int8"
    assert best["speedup"] is not None
    assert best["speedup"]["ratio"] == pytest.approx(3.0, rel=0.02)
    assert best["speedup"]["low"] is not None
    assert best["speedup"]["low"] < best["speedup"]["ratio"] < (best["speedup"]["high"] or 0)
    assert second["status"] == "slower"
    assert second["speedup"] == {"ratio": pytest.approx(1.5, rel=0.02), "low": None, "high": None}
    assert found["baseline"] == f"{fp32.id}@openvino:threads=1"
    assert found["sentence"].startswith("use int8 (x86-avx2) on openvino threads=1: 3.0")
    assert "as fast as fp32 on openvino threads=1" in found["sentence"]
    assert "as fast as it" not in found["sentence"], "the second best file is what it was compared with"
    assert found["use"] == f"edgekit validate {int8.path} --runtime openvino:threads=1"
    assert [entry["precision"] for entry in others] == ["fp32", "fp32"]
    assert (found["verdict"], found["exit_code"]) == ("pass", 0)


def test_a_loss_of_accuracy_is_not_chosen(fp32: Bundle, int8: Bundle) -> None:
    """The fastest answers 3 of 200 wrongly, 1.5 points; one that loses nothing is slower and chosen."""
    found = _search(
        fp32, int8,
        [FP32, ("onnxruntime:threads=1", True, 1.0, 1, 3), ("openvino:precision=bf16,threads=1", False, 2.0, 4, 0)],
    )  # fmt: skip
    by_status = {entry["status"]: entry for entry in found["candidates"]}
    assert by_status["chosen"]["precision"] == "bf16"
    assert by_status["loses accuracy"]["points_lost"] == 1.5
    assert by_status["loses accuracy"]["detail"] == "+1.50 points lost on 200 selection images, 1 allowed"
    assert not by_status["loses accuracy"]["pareto"]


def test_without_labels_changed_answers_count(fp32: Bundle, int8: Bundle) -> None:
    """Each may be a loss, and no loss is claimed."""
    found = _search(fp32, int8, [FP32, ("onnxruntime:threads=1", True, 1.0, 1, 3)], labelled=False)
    best, other = found["candidates"]
    assert best["precision"] == "fp32"
    assert (other["status"], other["points_lost"], other["changed"]) == ("loses accuracy", None, 0.015)
    assert other["detail"] == "1.50 % of 200 selection images are answered differently, 1 % allowed without labels"


def test_nothing_beats_float32(fp32: Bundle, int8: Bundle) -> None:
    """It is kept, on the fastest runtime; among equals, one that is not optimised."""
    slower = ("onnxruntime:threads=1", True, 5.0, 1, 0)
    found = _search(fp32, int8, [FP32, slower])
    assert found["sentence"] == (
        "keep fp32: no optimised candidate within the limits is faster than fp32 on onnxruntime threads=1"
    )
    equal = ("openvino:threads=1", True, 4.0, PROCESSES, 0)
    assert _search(fp32, int8, [FP32, equal])["chosen"] == f"{fp32.id}@onnxruntime:threads=1"


def test_among_equals_fewer_threads(fp32: Bundle, int8: Bundle) -> None:
    """A core that is not needed stays free."""
    rows = [FP32, ("openvino:threads=2", True, 1.0, PROCESSES, 0), ("openvino:threads=1", True, 1.005, PROCESSES, 0)]
    found = _search(fp32, int8, rows)
    assert found["candidates"][0]["runtime"] == "openvino:threads=1"
    assert found["candidates"][1]["status"] == "close"


@pytest.mark.parametrize(
    ("rules", "status", "detail"),
    [
        (Race(max_rss_bytes=1000), "takes too much memory", "67.11 MB, 0.00 MB allowed"),
        (Race(max_bytes=1000), "too large", "allowed"),
    ],
)
def test_no_candidate_keeps_to_the_limits(fp32: Bundle, int8: Bundle, rules: Race, status: str, detail: str) -> None:
    """The search fails, and says which limit each one exceeds."""
    found = _search(fp32, int8, [FP32, ("onnxruntime:threads=1", True, 1.0, 1, 0)], rules)
    assert (found["chosen"], found["use"], found["verdict"], found["exit_code"]) == (None, None, "fail", 3)
    assert found["sentence"] == "no candidate keeps to the limits"
    assert {entry["status"] for entry in found["candidates"]} == {status}
    assert detail in found["candidates"][0]["detail"]


def test_the_smallest_file(fp32: Bundle, int8: Bundle) -> None:
    """It wins although it is slower, and the larger one is larger, not slower."""
    found = _search(fp32, int8, [FP32, ("onnxruntime:threads=1", True, 5.0, PROCESSES, 0)], Race("size"))
    assert found["sentence"].startswith("use int8 (x86-avx2) on onnxruntime threads=1, the smallest with")
    assert [entry["status"] for entry in found["candidates"]] == ["chosen", "larger"]


def test_throughput_decides_by_batches(fp32: Bundle, int8: Bundle) -> None:
    """The one with more images per second wins, although its single images take longer."""
    rows = [FP32, ("openvino:streams=2,threads=2", True, 6.0, PROCESSES, 0)]
    found = _search(fp32, int8, rows, Race("throughput"), throughput=[250.0, 900.0])
    assert found["candidates"][0]["images_per_s"] == pytest.approx(900, rel=0.01)
    assert found["candidates"][0]["speedup"] is not None
    assert found["candidates"][0]["speedup"]["ratio"] == pytest.approx(3.6, rel=0.01)


def test_failures_come_last_with_their_message(fp32: Bundle, int8: Bundle) -> None:
    """They have no figures, and do not count for the Pareto front."""
    failed = {f"{int8.id}@openvino:precision=fp16,threads=1": "OpenVINO cannot load it"}
    found = _search(fp32, int8, [FP32, ("onnxruntime:threads=1", True, 1.0, 4, 0)], failed=failed)
    last = found["candidates"][-1]
    assert (last["status"], last["detail"], last["speedup"], last["pareto"]) == (
        "failed", "OpenVINO cannot load it", None, False,
    )  # fmt: skip


def test_the_document_is_valid_json_of_its_type(fp32: Bundle, int8: Bundle) -> None:
    """A program reads what the types say."""
    found = _search(fp32, int8, [FP32, ("onnxruntime:threads=1", True, 1.0, 1, 0)])
    assert read(DeviceSearch, json.loads(json.dumps(plain(found)))) == json.loads(json.dumps(found))


def test_one_file_for_all_devices(fp32: Bundle, int8: Bundle) -> None:
    """Each device prefers another file; the one that loses less on the other device is proposed."""
    first = _search(fp32, int8, [FP32, ("onnxruntime:threads=1", True, 1.0, 4, 0)], device="ssh://a")
    second = _search(fp32, int8, [FP32, ("onnxruntime:threads=1", True, 5.0, 4, 0)], device="ssh://b")
    shared = shared_file([first, second])
    assert shared is not None
    assert shared["bundle"] == str(int8.path)
    assert shared["slower"] == {"ssh://a": pytest.approx(1.0), "ssh://b": pytest.approx(1.25, rel=0.01)}
    assert shared["candidates"] == {
        search["name"]: "int8 (x86-avx2) on onnxruntime threads=1" for search in (first, second)
    }
    for search in (first, second):
        assert search["use"] is not None
        assert search["use"].endswith(f" --device {search['name']}"), "else it would validate on this machine"
    assert shared_file([first]) is None
    broken = _search(fp32, int8, [FP32, ("onnxruntime:threads=1", True, 1.0, 4, 40)], device="ssh://c")
    kept = shared_file([first, broken])
    assert kept is not None
    assert kept["bundle"] == str(fp32.path), "the other file loses accuracy on one of them"
