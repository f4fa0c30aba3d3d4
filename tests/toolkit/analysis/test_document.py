"""The report contains what was measured, and its verdict follows from that."""

import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.measuring.measurement import Frames, Measurement, Sustained, Throughput, WarmUp
from edgekit.toolkit.analysis.noise import busy_cores, load_text, threads_advised
from edgekit.toolkit.analysis.recommend import recommend
from edgekit.toolkit.console import PlainConsole
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.junit import junit
from edgekit.toolkit.report.markdown import markdown
from edgekit.toolkit.report.terminal import validation_table

from tests.toolkit.conftest import measurement

PROMISED = {"id", "bundle", "format", "precision", "size_bytes", "parameters", "top1", "top1_interval", "top5", "drop",
            "flips", "flips_by_class", "calibration_error", "latency_ms", "latency_upper_ms", "time_ms", "samples",
            "calls_per_sample", "outliers", "speedup", "file_ms", "load_ms", "first_ms", "warm_up_ms", "preprocess_ms",
            "postprocess_ms", "peak_rss_bytes", "parity", "blocks", "offline", "frames", "sustained",
            "warnings", "host", "first_difference"}  # fmt: skip

Judge = Callable[..., Any]
Change = Callable[[Measurement], Measurement]


def _candidate(change: Change) -> Callable[[list[Measurement]], list[Measurement]]:
    """Change the candidate's measurement."""
    return lambda measured: [*measured[:-1], change(measured[-1])]


def _slower_rounds(measured: Measurement, factor: Callable[[int], float]) -> Measurement:
    blocks = [replace(block, ns=tuple(int(ns * factor(block.round)) for ns in block.ns)) for block in measured.blocks]
    return replace(measured, blocks=tuple(blocks))


def test_report_has_what_the_schema_promises(judged: Judge) -> None:
    """It is plain JSON with every promised entry."""
    report, _ = judged(lost=2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["schema"] == 4
    for model in report["models"]:
        assert model.keys() >= PROMISED
    base, candidate = report["models"]
    assert (base["id"], base["drop"], base["speedup"]) == (report["baseline"], None, None)
    assert candidate["speedup"]["ratio"] == pytest.approx(2.0, rel=0.02)
    assert candidate["speedup"]["low"] < candidate["speedup"]["ratio"] < candidate["speedup"]["high"]
    assert candidate["drop"]["points"] == pytest.approx(100 * 2 / 359)
    assert candidate["flips"] == 2
    assert candidate["latency_ms"]["p50"] == pytest.approx(1.0, rel=0.02)
    assert candidate["latency_ms"]["p99"] < candidate["latency_upper_ms"]["p99"]
    assert candidate["time_ms"]["low"] < candidate["latency_ms"]["p50"] < candidate["time_ms"]["high"]
    assert (candidate["samples"], len(candidate["blocks"][0]["ns"])) == (2400, 80)
    assert candidate["outcome"] == "faster"
    assert report["noise"] == []


@pytest.mark.parametrize(
    ("second", "lost", "contract", "verdict", "code"),
    [
        (1.0, 0, {}, "pass", 0),
        (1.0, 0, {"max_drop": 1.0, "min_speedup": 1.5}, "pass", 0),
        (1.0, 40, {}, "fail", 3),
        (1.0, 2, {}, "inconclusive", 0),
        (1.0, 2, {"max_drop": 1.0}, "inconclusive", 4),
        (3.0, 0, {"min_speedup": 1.2}, "fail", 3),
        (2.001, 0, {"min_speedup": 1.0}, "inconclusive", 4),
    ],
)
def test_verdicts_and_exit_codes(
    judged: Judge, second: float, lost: int, contract: dict, verdict: str, code: int
) -> None:
    """Accuracy and speed are judged by the bounds of their intervals."""
    report, _ = judged(second=second, lost=lost, **contract)
    assert (report["verdict"], report["exit_code"]) == (verdict, code)
    failures = ElementTree.fromstring(junit(report)).findall(".//failure")
    assert bool(failures) == (code != 0)


def test_a_slower_model_is_called_slower(judged: Judge) -> None:
    """Even without a required speed-up: the first line of every output says so, and fp32 is recommended."""
    report, test = judged(second=3.0)
    assert report["models"][1]["outcome"] == "slower"
    assert report["headline"].startswith("int8 made up is slower than fp32 made up here: 0.67x [")
    assert report["recommendation"]["id"] == report["baseline"]
    assert "keep fp32" in report["recommendation"]["sentence"]
    assert "int8 is 1.49× slower \\[" in markdown(report).splitlines()[0]
    suite = ElementTree.fromstring(junit(report))
    first = suite[0][0]
    assert (first.get("name"), first.get("value")) == ("headline", report["headline"])
    page = render(report, test)
    body = page[page.index("<main>") :]
    assert body.index("<h1>") < body.index("int8 is 1.49× slower") < body.index("</h1>")
    terminal = PlainConsole(file=io.StringIO(), width=100)
    for part in validation_table(report):
        terminal.print(part)
    assert terminal.file.getvalue().startswith("int8 made up is slower than fp32 made up here: 0.67x [")  # type: ignore[attr-defined]


def _three(judged: Judge, torch_ms: float, fp32_ms: float, int8_ms: float, **settings: Any) -> dict[str, Any]:
    """A report on torch eager, its fp32 ONNX export and the int8 model made from that."""
    chain: list[Bundle] = []

    def add_source(bundles: list[Bundle]) -> list[Bundle]:
        source = replace(bundles[0], manifest=replace(bundles[0].manifest, format="torch"), id="source")
        chain.extend([source, *bundles])
        return chain

    def add_measurement(measured: list[Measurement]) -> list[Measurement]:
        targets = np.asarray(measured[0].predictions.classes)  # type: ignore[union-attr]
        return [measurement(chain[0], torch_ms, targets), *measured]

    return judged(
        first=fp32_ms, second=int8_ms, chain=add_source, change=add_measurement, **settings
    ).report  # fmt: skip


def test_speed_is_judged_against_the_fastest_unoptimised_model(judged: Judge) -> None:
    """An int8 model 4 times as fast as torch eager but 0.64 times as fast as its fp32 ONNX fails a gate."""
    report = _three(judged, 4.01, 0.64, 1.0, min_speedup=1.2)
    torch, fp32, int8 = report["models"]
    assert report["speed_baseline"] == fp32["id"] == int8["speed_baseline"]
    assert int8["speedup"]["ratio"] == pytest.approx(0.64, rel=0.03)
    assert int8["speedup_over"][torch["id"]]["ratio"] == pytest.approx(4.01, rel=0.03)
    assert (report["verdict"], report["exit_code"]) == ("fail", 3)
    assert "less than the 1.2 required" in report["reason"]
    assert "is slower than fp32 made up here: 0.64x" in report["headline"]
    assert fp32["speedup"] is None, "it is the reference"
    assert torch["outcome"] == "slower"
    assert report["recommendation"]["id"] == fp32["id"]


def test_a_torch_that_is_faster_than_its_export_is_the_reference(judged: Judge) -> None:
    """The reference is the fastest model that is neither quantized nor built, whatever its runtime."""
    report = _three(judged, 1.0, 2.0, 0.8)
    assert report["speed_baseline"] == "source"
    assert report["models"][2]["speedup"]["ratio"] == pytest.approx(1.25, rel=0.03)


def test_an_export_is_judged_against_its_source(judged: Judge) -> None:
    """An unoptimised candidate cannot be its own reference."""
    report = _three(judged, 4.0, 1.0, 0.5, candidates=lambda bundles: [bundles[1].id, bundles[2].id])
    _, fp32, int8 = report["models"]
    assert fp32["speed_baseline"] == "source"
    assert fp32["speedup"]["ratio"] == pytest.approx(4.0, rel=0.03)
    assert int8["speed_baseline"] == fp32["id"]
    assert int8["speedup"]["ratio"] == pytest.approx(2.0, rel=0.03)


def test_noise_is_one_sentence(judged: Judge) -> None:
    """One sentence for any number of signals and models; the details are folded below it."""
    report, test = judged(change=lambda measured: [_bursts(_loses_its_core(entry)) for entry in measured])
    assert len(report["noise"]) == 4
    terminal = PlainConsole(file=io.StringIO(), width=200)
    for part in validation_table(report):
        terminal.print(part)
    assert terminal.file.getvalue().count("noisy") == 1  # type: ignore[attr-defined]
    page = render(report, test)
    assert page.count("noisy run") == 1
    assert page.index("noisy run (variation, switches)") < page.index("its blocks vary by")
    assert '<details class="noise"><summary>noisy run' in page
    assert markdown(report).count("noisy run") == 1


def test_the_speedup_is_the_ratio_of_the_latencies_shown(judged: Judge) -> None:
    """Both use means of blocks, even if a few interrupted calls make the median far lower."""

    def interrupted(first: Measurement) -> Measurement:
        blocks = [replace(block, ns=(*block.ns[:-2], *(40 * ns for ns in block.ns[-2:]))) for block in first.blocks]
        return replace(first, blocks=tuple(blocks))

    report, _ = judged(change=lambda measured: [interrupted(measured[0]), measured[1]])
    first, second = (model["time_ms"]["value"] for model in report["models"])
    assert first / second == pytest.approx(report["models"][1]["speedup"]["ratio"], rel=0.02)
    for text in (report["headline"], markdown(report), _terminal(report)):
        assert f"{first:.3g} ms" in text
        assert f"{second:.3g} ms" in text


def test_a_ratio_that_differs_from_that_of_the_latencies_is_explained(judged: Judge) -> None:
    """If the machine slowed down for one process, each model's mean is off, but the ratio of equal rounds is not."""

    def change(measured: list[Measurement]) -> list[Measurement]:
        blocks = [block for block in measured[0].blocks if block.process != 2]
        return [
            replace(measured[0], blocks=tuple(blocks)),
            _slower_rounds(measured[1], lambda at: 1.0 if at < 20 else 2.0),
        ]

    report, test = judged(change=change)
    for text in (_terminal(report), markdown(report), render(report, test)):
        assert "compares only blocks of the same round" in " ".join(text.split())
    assert "compares only blocks" not in _terminal(judged().report)


def test_junit_is_well_formed_for_any_name(judged: Judge) -> None:
    """XML 1.0 cannot represent control characters."""
    report, _ = judged(second=3.0, min_speedup=1.2)
    for model in report["models"]:
        model["name"] = "a\x00\x1b[31m\ud800 ]]> <b>"
    suite = ElementTree.fromstring(junit(report))
    assert "]]> <b>" in suite.findall("testcase")[0].attrib["classname"]


def test_a_model_that_returns_nan_is_reported(judged: Judge) -> None:
    """The report remains valid JSON."""

    def change(candidate: Measurement) -> Measurement:
        assert candidate.predictions is not None
        wrong = replace(candidate.predictions, classes=(0,) * len(candidate.predictions.classes))
        broken = {**candidate.parity, "logits_max_abs": float("nan"), "top1_agreement": 0.0}
        return replace(candidate, parity=broken, predictions=wrong)

    report, _ = judged(change=_candidate(change))
    assert report["verdict"] == "fail"
    assert report["models"][1]["parity"]["logits_max_abs"] is None
    assert "not numbers" in report["models"][1]["warnings"][0]
    assert "not a number" in render(json.loads(json.dumps(report, allow_nan=False)), None)


def test_an_fp32_model_that_computes_something_else_is_reported(judged: Judge) -> None:
    """A kernel of this device gives other logits."""
    report, _ = judged()
    assert "not equivalent to its source" in report["models"][0]["warnings"][0]
    assert not any("not the same model" in warning for warning in report["models"][1]["warnings"])


def test_requirements_that_a_run_misses_are_reported(judged: Judge) -> None:
    """Too few images or samples, a warm-up that did not settle, answers that differ from the accuracy run."""

    def change(candidate: Measurement) -> Measurement:
        return replace(
            candidate, differed=3, postprocess_ns=(500,) * 60,
            blocks=tuple(replace(block, ns=block.ns[:4]) for block in candidate.blocks),
            warm_ups=(WarmUp(30_000.0, 9000, False), *candidate.warm_ups[1:]),
        )  # fmt: skip

    report, _ = judged(change=_candidate(change))
    warnings = " | ".join(report["models"][1]["warnings"])
    for warning in ("20 different images", "1 of 3 processes", "662 samples", "3 of 30 answers"):
        assert warning in warnings
    assert report["models"][1]["latency_ms"]["p50"] is not None
    assert report["models"][1]["latency_ms"]["p99"] is None


def test_outliers_are_counted_and_located(judged: Judge) -> None:
    """They are kept: the 99th percentile includes them."""

    def change(candidate: Measurement) -> Measurement:
        blocks = list(candidate.blocks)
        blocks[7] = replace(blocks[7], ns=tuple(ns * 3 for ns in blocks[7].ns))
        return replace(candidate, blocks=tuple(blocks))

    report, _ = judged(change=_candidate(change))
    candidate = report["models"][1]
    assert candidate["outliers"]["count"] >= 80
    assert 7 in candidate["outliers"]["rounds"]
    assert candidate["latency_ms"]["p99"] > 2.5
    assert candidate["speedup"]["ratio"] == pytest.approx(2.0, rel=0.02), "one round of thirty does not move it"


def _bursts(measured: Measurement) -> Measurement:
    return _slower_rounds(measured, lambda number: 1.3 if number % 5 == 0 else 1.0)


def _drifts(measured: Measurement) -> Measurement:
    return _slower_rounds(measured, lambda number: 1 + 0.1 * number / 30)


def _loses_its_core(measured: Measurement) -> Measurement:
    return replace(measured, blocks=tuple(replace(block, switches=20) for block in measured.blocks))


@pytest.mark.parametrize(
    ("change", "environment", "signal"),
    [
        (_bursts, {}, "variation"),
        (_drifts, {}, "trend"),
        (_loses_its_core, {}, "switches"),
        (lambda measured: measured, {"cores_got": 1.33}, "load"),
        (lambda measured: measured, {"after": {"cgroup_throttled": 9}}, "quota"),
        (lambda measured: measured, {"after": {"throttled": 1}}, "heat"),
    ],
)
def test_a_noisy_run_says_which_signal_fired(judged: Judge, change: Change, environment: dict, signal: str) -> None:
    """If it passes a speed gate, the verdict, JUnit and the summary name the signal."""
    quiet = judged().report["device"]
    environment = {k: {**quiet[k], **v} if k == "after" else v for k, v in environment.items()}
    report, _ = judged(change=_candidate(change), environment=environment, min_speedup=1.2, max_drop=2.0)
    assert [entry["name"] for entry in report["noise"]] == [signal]
    assert report["exit_code"] == 0
    (speed,) = [entry for entry in report["models"][1]["judgements"] if entry["rule"] == "min_speedup"]
    assert f"noisy ({signal})" in speed["sentence"]
    assert f"noisy ({signal})" in report["reason"]
    assert f"noisy run ({signal})" in junit(report)
    assert f"noisy run ({signal})" in markdown(report).replace("\\", "")


def test_the_advised_threads_leave_busy_cores_out(judged: Judge) -> None:
    """With one of two cores busy, one thread is advised."""
    busy = {"cores_allowed": 2, "cores_got": 1.33}
    assert busy_cores(busy) == pytest.approx(1.0, abs=0.05)
    assert threads_advised(busy) == 1
    assert threads_advised({"cores_allowed": 4, "cores_got": 3.9}) == 4
    assert threads_advised({"cores_allowed": 1, "cores_got": 0.3}) == 1


def test_as_many_threads_as_cores_beside_one_busy_core_is_noisy(judged: Judge) -> None:
    """For any number of cores; fewer threads are not disturbed."""
    many = {"cores_allowed": 16, "cores_got": 15.0}
    report, _ = judged(environment=many, threads=16)
    assert [entry["name"] for entry in report["noise"]] == ["load"]
    assert "--threads 15" in report["noise"][0]["detail"]
    assert judged(environment=many, threads=15).report["noise"] == []


def test_more_work_than_cores_is_described_as_such() -> None:
    """The text does not claim that more cores are busy than exist."""
    assert load_text({"cores_allowed": 2, "cores_got": 1.0}) == (
        "other processes kept about 2.0 of 2 cores busy at the start"
    )
    assert load_text({"cores_allowed": 2, "cores_got": 0.5}) == (
        "other processes had work for about 6.0 cores at the start, more than the 2 available"
    )


def _with_one_thread(alone: dict[int, float]) -> Callable[[list[Measurement]], list[Measurement]]:
    """Add blocks with one thread; `alone` gives the ms per call by the model's index."""

    def change(measured: list[Measurement]) -> list[Measurement]:
        return [
            replace(model, one_thread=tuple(replace(block, ns=(int(alone[at] * 1e6),)) for block in model.blocks[:6]))
            for at, model in enumerate(measured)
        ]

    return change


@pytest.mark.parametrize("contract", [{}, {"min_speedup": 1.2}])
def test_a_ratio_that_one_thread_contradicts_is_never_a_pass(judged: Judge, contract: dict) -> None:
    """Two threads on a busy machine take 459.5 and 1.0 ms, but one thread takes 7.2 and 1.0 ms."""
    busy = {"change": _with_one_thread({0: 7.2, 1: 1.0}), "threads": 2, "environment": {"threads": 2}}
    report, test = judged(first=459.5, second=1.0, **busy, **contract)
    int8 = report["models"][1]
    assert int8["speedup"]["ratio"] == pytest.approx(459.5, rel=0.03)
    assert int8["speedup"]["one_thread"] == pytest.approx(7.2)
    assert int8["outcome"] == "inconclusive"
    assert (report["verdict"], report["exit_code"]) == ("inconclusive", 4 if contract else 0)
    assert report["recommendation"]["sentence"].startswith("keep fp32")
    assert "is not shown to be faster" in report["headline"]
    for text in (report["headline"], markdown(report), junit(report), render(report, test), _terminal(report)):
        assert "7.20x with one thread" in " ".join(text.split())
        assert "is faster than" not in text
    assert "64 times as long with 2 threads as with one" in report["models"][0]["warnings"][-1]


def test_threads_that_help_one_model_more_are_accepted(judged: Judge) -> None:
    """On a quiet machine, two threads may speed up only one model, or slow down both equally."""
    for alone in ({0: 2.0, 1: 2.0}, {0: 2.6, 1: 1.0}, {0: 0.2, 1: 0.1}):
        report, _ = judged(first=2.0, second=1.0, change=_with_one_thread(alone), threads=2, min_speedup=1.2)
        assert "one_thread" not in report["models"][1]["speedup"]
        assert report["exit_code"] == 0


def test_fewer_threads_than_cores_are_explained(judged: Judge) -> None:
    """A number of threads set by the user needs no explanation."""
    busy = {"threads": 1, "cores_got": 1.33}
    report, test = judged(environment=busy, threads=None)
    for text in (_terminal(report), markdown(report), render(report, test)):
        assert "measured with 1 of 2 threads: other processes kept about 1.0 of 2 cores busy" in " ".join(text.split())
    assert "measured with" not in _terminal(judged(environment=busy, threads=1).report)


def _terminal(report: dict[str, Any], width: int = 200) -> str:
    terminal = PlainConsole(file=io.StringIO(), width=width)
    for part in validation_table(report):
        terminal.print(part)
    return terminal.file.getvalue()  # type: ignore[attr-defined]


def test_flips_by_class_find_the_class_that_suffers(judged: Judge) -> None:
    """A corrupted class comes first and is significant after adjusting; stray flips are not."""

    def change(candidate: Measurement) -> Measurement:
        assert candidate.predictions is not None
        classes = list(candidate.predictions.classes)
        sevens = [index for index, value in enumerate(classes) if value == 7]
        for index in [*sevens[:15], classes.index(1), classes.index(2)]:
            classes[index] = (classes[index] + 1) % 10
        return replace(candidate, predictions=replace(candidate.predictions, classes=tuple(classes)))

    report, _ = judged(change=_candidate(change))
    first, *others = report["models"][1]["flips_by_class"]
    assert (first["label"], first["lost"], first["gained"]) == ("7", 15, 0)
    assert first["p"] == pytest.approx(10 * 2 * 0.5**15)
    assert [entry["label"] for entry in others] == ["1", "2"]
    assert all(entry["p"] == 1 for entry in others)


def test_calibration_error(judged: Judge) -> None:
    """If all answers are right at a confidence of 0.9, the error is 0.1."""
    report, _ = judged()
    assert report["models"][0]["calibration_error"] == pytest.approx(0.1)


def test_offline(judged: Judge) -> None:
    """The best batch size, with an interval from the differences between processes."""

    def change(candidate: Measurement) -> Measurement:
        runs = [
            Throughput(process, batch, (int(ms * 1e6 * (1 + 0.01 * process)),) * 3)
            for process in range(3)
            for batch, ms in ((1, 1.0), (8, 4.0), (64, 40.0))
        ]
        return replace(candidate, throughput=tuple(runs))

    report, _ = judged(change=_candidate(change))
    offline = report["models"][1]["offline"]
    assert offline["best_batch"] == 8
    best = offline["sizes"][1]
    assert best["low"] < best["images_per_s"] < best["high"]
    assert best["images_per_s"] == pytest.approx(1980, rel=0.01)
    assert report["models"][0]["offline"] is None


def test_deadlines(judged: Judge) -> None:
    """Late and missing answers count as missed; percentiles of the answered frames alone would be too good."""

    def frames(count: int) -> Change:
        late = (20_000_000,) * (count - 5) + (60_000_000,) * 5
        return lambda candidate: replace(candidate, frames=(Frames(0, 30.0, 700, late),))

    complete = judged(change=_candidate(frames(700))).report["models"][1]["frames"]
    assert (complete["missed"], complete["latency_ms"]["p50"]) == (5, 20.0)
    assert complete["missed_share"]["low"] < 5 / 700 < complete["missed_share"]["high"]
    behind = judged(change=_candidate(frames(100))).report["models"][1]["frames"]
    assert behind["missed"] == 605
    assert behind["latency_ms"]["p99"] is None


def test_sustained(judged: Judge) -> None:
    """A device that warms up from 5 to 8 ms: minutes, the trend, the limit."""

    def change(candidate: Measurement) -> Measurement:
        ns = [int(1e6 * (8 - 3 * np.exp(-second / 120))) for second in range(600)]
        state = judged().report["device"]["before"]
        seconds = [Sustained(float(at), value, state if at % 60 == 0 else None) for at, value in enumerate(ns)]
        return replace(candidate, sustained=tuple(seconds))

    report, _ = judged(change=_candidate(change))
    sustained = report["models"][1]["sustained"]
    assert [minute["minute"] for minute in sustained["minutes"]] == list(range(1, 11))
    assert sustained["steady_ms"] == pytest.approx(8, rel=0.01)
    assert sustained["first_ms"] == pytest.approx(5.05, rel=0.01)
    assert sustained["trend_p"] < 0.001
    assert len(sustained["states"]) == 10
    assert "approaching 8 ms" in markdown(report)


def test_a_state_without_a_value_is_shown_as_unavailable(judged: Judge) -> None:
    """A device that does not report its clock is not an error."""

    def change(candidate: Measurement) -> Measurement:
        seconds = [Sustained(float(at), 20_000_000, {"temperature_c": 40.0}) for at in range(10)]
        return replace(candidate, sustained=tuple(seconds))

    report, _ = judged(change=_candidate(change))
    first = report["models"][1]["sustained"]["states"][0]
    assert (first["mhz"], first["temperature_c"]) == ("unavailable", 40.0)


def test_the_sustained_rate_is_that_of_the_worst_minute(judged: Judge) -> None:
    """30 images/s for three minutes: images are dropped in the second minute and late in the third."""

    def change(candidate: Measurement) -> Measurement:
        late = {70: (6, 6), 71: (6, 6), 130: (3, 0)}
        seconds = [Sustained(float(at), 20_000_000, None, 30, *late.get(at, (0, 0))) for at in range(181)]
        return replace(candidate, sustained=tuple(seconds))

    report, test = judged(change=_candidate(change), plan={"fps": 30.0, "sustained_s": 180.0})
    sustained = report["models"][1]["sustained"]
    assert [minute["missed"] for minute in sustained["minutes"]] == [0, 12, 3, 0]
    assert sustained["rate"] == {
        "fps": 30.0,
        "offered": 5430,
        "missed": 15,
        "dropped": 12,
        "held_fps": 30 * (1 - 12 / 1800),
    }
    for text in (_terminal(report), markdown(report), render(report, test)):
        shown = " ".join(text.split())
        assert "answers 29.8 images/s in its worst minute of the 30 images/s offered" in shown
        assert "15 of 5430 missed their deadline (12 dropped, by minute 0, 12, 3, 0)" in shown
    second = (Sustained(0.0, 1, None, 30, 0, 0),)
    steady = judged(change=_candidate(lambda candidate: replace(candidate, sustained=second)),
                  plan={"fps": 30.0, "sustained_s": 10.0}).report  # fmt: skip
    assert "holds the 30 images/s offered" in _terminal(steady)


def _entry(name: str, ratio: float, over: dict[str, tuple[float, float, float]]) -> dict:
    """The parts of a model's entry that a recommendation reads."""
    entries = {other: {"ratio": value, "low": low, "high": high} for other, (value, low, high) in over.items()}
    return {
        "id": name, "name": "net", "format": "tensorrt", "precision": name, "session": {"runtime": "tensorrt"},
        "speedup": {"ratio": ratio}, "outcome": "faster", "speed_baseline": "torch", "time_ms": {"value": 1 / ratio},
        "speedup_over": entries, "judgements": [{"outcome": "pass"}],
    }  # fmt: skip


def test_the_fastest_that_meets_the_contract_is_recommended() -> None:
    """int8 is not recommended if fp16 is faster or int8 loses too much; an uncertain difference is reported."""
    fp32 = _entry("fp32", 2.0, {"fp16": (0.5, 0.48, 0.52), "int8": (0.6, 0.58, 0.62)})
    fp16 = _entry("fp16", 4.0, {"fp32": (2.0, 1.9, 2.1), "int8": (1.2, 1.15, 1.25)})
    int8 = _entry("int8", 3.3, {"fp32": (1.65, 1.6, 1.7), "fp16": (0.83, 0.8, 0.87)})
    ids = ["fp32", "fp16", "int8"]
    recommendation = recommend([fp32, fp16, int8], ids)
    assert recommendation is not None
    assert recommendation["id"] == "fp16"
    assert "1.20x [1.15, 1.25] as fast as int8" in recommendation["sentence"]
    broken = {**int8, "time_ms": {"value": 1 / 9.0}, "judgements": [{"outcome": "pass"}, {"outcome": "fail"}]}
    recommendation = recommend([fp32, fp16, broken], ids)
    assert recommendation is not None
    assert recommendation["id"] == "fp16"
    assert "not shown to meet the contract" in recommendation["sentence"]
    near = _entry("fp16", 4.0, {"fp32": (2.0, 1.9, 2.1), "int8": (1.01, 0.98, 1.04)})
    recommendation = recommend([near, int8], ids)
    assert recommendation is not None
    assert "not certain" in recommendation["sentence"]
    assert recommend([{**fp16, "judgements": [{"outcome": "inconclusive"}]}, broken], ids)["id"] is None  # type: ignore[index]
    assert recommend([fp32, fp16], ["fp16"]) is None
