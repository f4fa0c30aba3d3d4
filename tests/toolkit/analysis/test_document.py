"""The report's document says what was measured, and the verdict follows from it."""

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


def _slower_rounds(one: Measurement, factor: Callable[[int], float]) -> Measurement:
    blocks = [replace(block, ns=tuple(int(ns * factor(block.round)) for ns in block.ns)) for block in one.blocks]
    return replace(one, blocks=tuple(blocks))


def test_report_has_what_the_schema_promises(judged: Judge) -> None:
    """And is plain JSON."""
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
    """Of accuracy and speed, on the bounds."""
    report, _ = judged(second=second, lost=lost, **contract)
    assert (report["verdict"], report["exit_code"]) == (verdict, code)
    failures = ElementTree.fromstring(junit(report)).findall(".//failure")
    assert bool(failures) == (code != 0)


def test_a_slower_model_is_called_slower(judged: Judge) -> None:
    """Even where no speed was asked for: in the first line of every output, and fp32 is what to keep."""
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
    """A report on torch eager, its fp32 ONNX and the int8 made from that, as a user measures them."""
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
    """An int8 file 4 times as fast as torch eager and 0.64 times its own fp32 ONNX is no speed-up, and fails a gate."""
    report = _three(judged, 4.01, 0.64, 1.0, min_speedup=1.2)
    torch, fp32, int8 = report["models"]
    assert report["speed_baseline"] == fp32["id"] == int8["speed_baseline"]
    assert int8["speedup"]["ratio"] == pytest.approx(0.64, rel=0.03)
    assert int8["speedup_over"][torch["id"]]["ratio"] == pytest.approx(4.01, rel=0.03)
    assert (report["verdict"], report["exit_code"]) == ("fail", 3)
    assert "less than the 1.2 asked for" in report["reason"]
    assert "is slower than fp32 made up here: 0.64x" in report["headline"]
    assert fp32["speedup"] is None, "it is the reference"
    assert torch["outcome"] == "slower"
    assert report["recommendation"]["id"] == fp32["id"]


def test_a_torch_that_is_faster_than_its_export_is_the_reference(judged: Judge) -> None:
    """Whatever its runtime: the fastest that is neither quantized nor built."""
    report = _three(judged, 1.0, 2.0, 0.8)
    assert report["speed_baseline"] == "source"
    assert report["models"][2]["speedup"]["ratio"] == pytest.approx(1.25, rel=0.03)


def test_an_export_is_judged_against_what_it_was_made_from(judged: Judge) -> None:
    """A candidate that is not optimised itself cannot be its own reference."""
    report = _three(judged, 4.0, 1.0, 0.5, candidates=lambda bundles: [bundles[1].id, bundles[2].id])
    _, fp32, int8 = report["models"]
    assert fp32["speed_baseline"] == "source"
    assert fp32["speedup"]["ratio"] == pytest.approx(4.0, rel=0.03)
    assert int8["speed_baseline"] == fp32["id"]
    assert int8["speedup"]["ratio"] == pytest.approx(2.0, rel=0.03)


def test_noise_is_one_sentence(judged: Judge) -> None:
    """However many signals on however many models; what was seen is folded below it."""
    report, test = judged(change=lambda measured: [_bursts(_loses_its_core(one)) for one in measured])
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


def test_the_latency_shown_is_what_the_speedup_is_a_ratio_of(judged: Judge) -> None:
    """Means of blocks, where a few interrupted calls leave the median far below."""

    def interrupted(one: Measurement) -> Measurement:
        blocks = [replace(block, ns=(*block.ns[:-2], *(40 * ns for ns in block.ns[-2:]))) for block in one.blocks]
        return replace(one, blocks=tuple(blocks))

    report, _ = judged(change=lambda measured: [interrupted(measured[0]), measured[1]])
    first, second = (model["time_ms"]["value"] for model in report["models"])
    assert first / second == pytest.approx(report["models"][1]["speedup"]["ratio"], rel=0.02)
    for text in (report["headline"], markdown(report), _terminal(report)):
        assert f"{first:.3g} ms" in text
        assert f"{second:.3g} ms" in text


def test_a_ratio_that_the_latencies_do_not_make_says_why(judged: Judge) -> None:
    """A machine that slowed down for one process: each model's mean is off, the ratio of the same rounds is not."""

    def change(measured: list[Measurement]) -> list[Measurement]:
        kept = [block for block in measured[0].blocks if block.process != 2]
        return [
            replace(measured[0], blocks=tuple(kept)),
            _slower_rounds(measured[1], lambda at: 1.0 if at < 20 else 2.0),
        ]

    report, test = judged(change=change)
    for text in (_terminal(report), markdown(report), render(report, test)):
        assert "compares only blocks of the same round" in " ".join(text.split())
    assert "compares only blocks" not in _terminal(judged().report)


def test_junit_is_well_formed_whatever_a_name_holds(judged: Judge) -> None:
    """Control characters have no form in XML 1.0."""
    report, _ = judged(second=3.0, min_speedup=1.2)
    for model in report["models"]:
        model["name"] = "a\x00\x1b[31m\ud800 ]]> <b>"
    suite = ElementTree.fromstring(junit(report))
    assert "]]> <b>" in suite.findall("testcase")[0].attrib["classname"]


def test_a_model_that_answers_no_numbers_is_called_so(judged: Judge) -> None:
    """And the report stays JSON."""

    def change(one: Measurement) -> Measurement:
        assert one.predictions is not None
        wrong = replace(one.predictions, classes=(0,) * len(one.predictions.classes))
        broken = {**one.parity, "logits_max_abs": float("nan"), "top1_agreement": 0.0}
        return replace(one, parity=broken, predictions=wrong)

    report, _ = judged(change=_candidate(change))
    assert report["verdict"] == "fail"
    assert report["models"][1]["parity"]["logits_max_abs"] is None
    assert "not numbers" in report["models"][1]["warnings"][0]
    assert "not a number" in render(json.loads(json.dumps(report, allow_nan=False)), None)


def test_an_fp32_model_that_is_another_one_here_is_called_so(judged: Judge) -> None:
    """A kernel of this device that computes something else."""
    report, _ = judged()
    assert "not the same model" in report["models"][0]["warnings"][0]
    assert not any("not the same model" in warning for warning in report["models"][1]["warnings"])


def test_what_the_rules_ask_for_and_the_run_did_not_reach_is_said(judged: Judge) -> None:
    """Too few images or samples, a warm-up that did not settle, answers that were not those of the accuracy run."""

    def change(one: Measurement) -> Measurement:
        return replace(
            one, differed=3, postprocess_ns=(500,) * 60, blocks=tuple(replace(b, ns=b.ns[:4]) for b in one.blocks),
            warm_ups=(WarmUp(30_000.0, 9000, False), *one.warm_ups[1:]),
        )  # fmt: skip

    report, _ = judged(change=_candidate(change))
    warnings = " | ".join(report["models"][1]["warnings"])
    for words in ("20 different images", "1 of 3 processes", "662 samples", "3 of 30 answers"):
        assert words in warnings
    assert report["models"][1]["latency_ms"]["p50"] is not None
    assert report["models"][1]["latency_ms"]["p99"] is None


def test_outliers_are_counted_and_placed(judged: Judge) -> None:
    """And left where they are: the 99th percentile has them."""

    def change(one: Measurement) -> Measurement:
        blocks = list(one.blocks)
        blocks[7] = replace(blocks[7], ns=tuple(ns * 3 for ns in blocks[7].ns))
        return replace(one, blocks=tuple(blocks))

    report, _ = judged(change=_candidate(change))
    candidate = report["models"][1]
    assert candidate["outliers"]["count"] >= 80
    assert 7 in candidate["outliers"]["rounds"]
    assert candidate["latency_ms"]["p99"] > 2.5
    assert candidate["speedup"]["ratio"] == pytest.approx(2.0, rel=0.02), "one round of thirty does not move it"


def _bursts(one: Measurement) -> Measurement:
    return _slower_rounds(one, lambda number: 1.3 if number % 5 == 0 else 1.0)


def _drifts(one: Measurement) -> Measurement:
    return _slower_rounds(one, lambda number: 1 + 0.1 * number / 30)


def _loses_its_core(one: Measurement) -> Measurement:
    return replace(one, blocks=tuple(replace(block, switches=20) for block in one.blocks))


@pytest.mark.parametrize(
    ("change", "environment", "signal"),
    [
        (_bursts, {}, "variation"),
        (_drifts, {}, "trend"),
        (_loses_its_core, {}, "switches"),
        (lambda one: one, {"cores_got": 1.33}, "load"),
        (lambda one: one, {"after": {"cgroup_throttled": 9}}, "quota"),
        (lambda one: one, {"after": {"throttled": 1}}, "heat"),
    ],
)
def test_a_noisy_run_says_which_signal_fired(judged: Judge, change: Change, environment: dict, signal: str) -> None:
    """And never passes a gate of speed in silence: not in the verdict, not in JUnit, not in the summary."""
    quiet = judged().report["device"]
    environment = {k: {**quiet[k], **v} if k == "after" else v for k, v in environment.items()}
    report, _ = judged(change=_candidate(change), environment=environment, min_speedup=1.2, max_drop=2.0)
    assert [one["name"] for one in report["noise"]] == [signal]
    assert report["exit_code"] == 0
    (speed,) = [one for one in report["models"][1]["judgements"] if one["rule"] == "min_speedup"]
    assert f"noisy ({signal})" in speed["sentence"]
    assert f"noisy ({signal})" in report["reason"]
    assert f"noisy run ({signal})" in junit(report)
    assert f"noisy run ({signal})" in markdown(report).replace("\\", "")


def test_threads_that_do_not_collapse_are_advised(judged: Judge) -> None:
    """With one of two cores busy, one thread."""
    busy = {"cores_allowed": 2, "cores_got": 1.33}
    assert busy_cores(busy) == pytest.approx(1.0, abs=0.05)
    assert threads_advised(busy) == 1
    assert threads_advised({"cores_allowed": 4, "cores_got": 3.9}) == 4
    assert threads_advised({"cores_allowed": 1, "cores_got": 0.3}) == 1


def test_as_many_threads_as_cores_beside_one_busy_core_is_noisy(judged: Judge) -> None:
    """However many cores there are; fewer threads are not disturbed by it."""
    many = {"cores_allowed": 16, "cores_got": 15.0}
    report, _ = judged(environment=many, threads=16)
    assert [one["name"] for one in report["noise"]] == ["load"]
    assert "--threads 15" in report["noise"][0]["detail"]
    assert judged(environment=many, threads=15).report["noise"] == []


def test_more_work_than_cores_is_called_so() -> None:
    """Nobody keeps 5.8 of 2 cores busy."""
    assert load_text({"cores_allowed": 2, "cores_got": 1.0}) == (
        "other processes kept about 2.0 of 2 cores busy at the start"
    )
    assert load_text({"cores_allowed": 2, "cores_got": 0.5}) == (
        "other processes had work for about 6.0 cores at the start, and there are 2"
    )


def _with_one_thread(alone: dict[int, float]) -> Callable[[list[Measurement]], list[Measurement]]:
    """Blocks with one thread beside those with several: so many milliseconds a call of the first, the second model."""

    def change(measured: list[Measurement]) -> list[Measurement]:
        blocks = [
            [replace(block, ns=(int(alone[at] * 1e6),)) for block in one.blocks[:6]] for at, one in enumerate(measured)
        ]
        return [replace(one, one_thread=tuple(own)) for one, own in zip(measured, blocks, strict=True)]

    return change


@pytest.mark.parametrize("contract", [{}, {"min_speedup": 1.2}])
def test_a_ratio_that_one_thread_contradicts_is_never_a_pass(judged: Judge, contract: dict) -> None:
    """Two threads beside a busy loop: 459.5 ms against 1.0, where one thread needs 7.2 against 1.0."""
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


def test_threads_that_help_one_model_more_are_believed(judged: Judge) -> None:
    """On a quiet machine: one model twice as fast with two threads, the other no faster; or both slowed alike."""
    for alone in ({0: 2.0, 1: 2.0}, {0: 2.6, 1: 1.0}, {0: 0.2, 1: 0.1}):
        report, _ = judged(first=2.0, second=1.0, change=_with_one_thread(alone), threads=2, min_speedup=1.2)
        assert "one_thread" not in report["models"][1]["speedup"]
        assert report["exit_code"] == 0


def test_fewer_threads_than_cores_are_said(judged: Judge) -> None:
    """And why; a number of the user's own needs no reason."""
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
    """A corruption of one class comes first, and is significant after adjusting; stray flips are not."""

    def change(one: Measurement) -> Measurement:
        assert one.predictions is not None
        classes = list(one.predictions.classes)
        sevens = [index for index, value in enumerate(classes) if value == 7]
        for index in [*sevens[:15], classes.index(1), classes.index(2)]:
            classes[index] = (classes[index] + 1) % 10
        return replace(one, predictions=replace(one.predictions, classes=tuple(classes)))

    report, _ = judged(change=_candidate(change))
    first, *rest = report["models"][1]["flips_by_class"]
    assert (first["label"], first["lost"], first["gained"]) == ("7", 15, 0)
    assert first["p"] == pytest.approx(10 * 2 * 0.5**15)
    assert [one["label"] for one in rest] == ["1", "2"]
    assert all(one["p"] == 1 for one in rest)


def test_calibration_error(judged: Judge) -> None:
    """All answers right at 0.9 confidence is 0.1 off."""
    report, _ = judged()
    assert report["models"][0]["calibration_error"] == pytest.approx(0.1)


def test_offline(judged: Judge) -> None:
    """The best batch size, with the interval that the processes leave."""

    def change(one: Measurement) -> Measurement:
        runs = [
            Throughput(process, batch, (int(ms * 1e6 * (1 + 0.01 * process)),) * 3)
            for process in range(3)
            for batch, ms in ((1, 1.0), (8, 4.0), (64, 40.0))
        ]
        return replace(one, throughput=tuple(runs))

    report, _ = judged(change=_candidate(change))
    offline = report["models"][1]["offline"]
    assert offline["best_batch"] == 8
    best = offline["sizes"][1]
    assert best["low"] < best["images_per_s"] < best["high"]
    assert best["images_per_s"] == pytest.approx(1980, rel=0.01)
    assert report["models"][0]["offline"] is None


def test_deadlines(judged: Judge) -> None:
    """Late answers and those that never came are missed; percentiles of the answered alone would flatter."""

    def frames(count: int) -> Change:
        late = (20_000_000,) * (count - 5) + (60_000_000,) * 5
        return lambda one: replace(one, frames=(Frames(0, 30.0, 700, late),))

    whole = judged(change=_candidate(frames(700))).report["models"][1]["frames"]
    assert (whole["missed"], whole["latency_ms"]["p50"]) == (5, 20.0)
    assert whole["missed_share"]["low"] < 5 / 700 < whole["missed_share"]["high"]
    behind = judged(change=_candidate(frames(100))).report["models"][1]["frames"]
    assert behind["missed"] == 605
    assert behind["latency_ms"]["p99"] is None


def test_sustained(judged: Judge) -> None:
    """A device that warms up from 5 to 8 ms: minutes, the trend, the limit."""

    def change(one: Measurement) -> Measurement:
        ns = [int(1e6 * (8 - 3 * np.exp(-second / 120))) for second in range(600)]
        state = judged().report["device"]["before"]
        seconds = [Sustained(float(at), value, state if at % 60 == 0 else None) for at, value in enumerate(ns)]
        return replace(one, sustained=tuple(seconds))

    report, _ = judged(change=_candidate(change))
    sustained = report["models"][1]["sustained"]
    assert [minute["minute"] for minute in sustained["minutes"]] == list(range(1, 11))
    assert sustained["steady_ms"] == pytest.approx(8, rel=0.01)
    assert sustained["first_ms"] == pytest.approx(5.05, rel=0.01)
    assert sustained["trend_p"] < 0.001
    assert len(sustained["states"]) == 10
    assert "approaching 8 ms" in markdown(report)


def test_a_rate_that_is_held_for_ten_minutes(judged: Judge) -> None:
    """30 images a second for three minutes: some dropped in the second, others late; the worst minute is held."""

    def change(one: Measurement) -> Measurement:
        late = {70: (6, 6), 71: (6, 6), 130: (3, 0)}
        seconds = [Sustained(float(at), 20_000_000, None, 30, *late.get(at, (0, 0))) for at in range(181)]
        return replace(one, sustained=tuple(seconds))

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
        words = " ".join(text.split())
        assert "answers 29.8 images/s in its worst minute of the 30 images/s offered" in words
        assert "15 of 5430 missed their deadline (12 dropped, by minute 0, 12, 3, 0)" in words
    kept = judged(change=_candidate(lambda one: replace(one, sustained=(Sustained(0.0, 1, None, 30, 0, 0),))),
                  plan={"fps": 30.0, "sustained_s": 10.0}).report  # fmt: skip
    assert "holds the 30 images/s offered" in _terminal(kept)


def _entry(name: str, ratio: float, over: dict[str, tuple[float, float, float]]) -> dict:
    """A model's entry, as far as a recommendation reads it."""
    entries = {other: {"ratio": one, "low": low, "high": high} for other, (one, low, high) in over.items()}
    return {
        "id": name, "name": "net", "format": "tensorrt", "precision": name, "session": {"runtime": "tensorrt"},
        "speedup": {"ratio": ratio}, "outcome": "faster", "speed_baseline": "torch", "time_ms": {"value": 1 / ratio},
        "speedup_over": entries, "judgements": [{"outcome": "pass"}],
    }  # fmt: skip


def test_the_fastest_that_holds_the_contract_is_recommended() -> None:
    """int8 is not, where fp16 is faster, nor where it loses too much; a difference that is not certain is said."""
    fp32 = _entry("fp32", 2.0, {"fp16": (0.5, 0.48, 0.52), "int8": (0.6, 0.58, 0.62)})
    fp16 = _entry("fp16", 4.0, {"fp32": (2.0, 1.9, 2.1), "int8": (1.2, 1.15, 1.25)})
    int8 = _entry("int8", 3.3, {"fp32": (1.65, 1.6, 1.7), "fp16": (0.83, 0.8, 0.87)})
    ids = ["fp32", "fp16", "int8"]
    found = recommend([fp32, fp16, int8], ids)
    assert found is not None
    assert found["id"] == "fp16"
    assert "1.20x [1.15, 1.25] as fast as int8" in found["sentence"]
    broken = {**int8, "time_ms": {"value": 1 / 9.0}, "judgements": [{"outcome": "pass"}, {"outcome": "fail"}]}
    found = recommend([fp32, fp16, broken], ids)
    assert found is not None
    assert found["id"] == "fp16"
    assert "not shown to meet the contract" in found["sentence"]
    near = _entry("fp16", 4.0, {"fp32": (2.0, 1.9, 2.1), "int8": (1.01, 0.98, 1.04)})
    found = recommend([near, int8], ids)
    assert found is not None
    assert "not certain" in found["sentence"]
    assert recommend([{**fp16, "judgements": [{"outcome": "inconclusive"}]}, broken], ids)["id"] is None  # type: ignore[index]
    assert recommend([fp32, fp16], ["fp16"]) is None
