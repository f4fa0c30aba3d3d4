"""Validation compares what belongs together and says what it found."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices import Measured
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.deploy.measurement import Block, Measurement, Predictions
from edgekit.deploy.plan import Plan
from edgekit.toolkit.comparison import compare_reports, read_report
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.files import junit
from edgekit.toolkit.report import render
from edgekit.toolkit.validate import make_report, validate

PROMISED = {"id", "bundle", "format", "precision", "size_bytes", "parameters", "top1", "top1_interval", "top5", "drop",
            "flips", "latency_ms", "speedup", "preprocess_ms", "load_ms", "first_ms", "peak_rss_bytes", "parity",
            "warnings"}  # fmt: skip
ENVIRONMENT = {"machine": "x86_64", "cpu": "a <b>CPU</b> & more", "cores_allowed": 2, "versions": {"numpy": "2"}}


def _measurement(bundle: Bundle, ms: float, classes: np.ndarray) -> Measurement:
    generator = np.random.default_rng(int(ms * 1000))
    blocks = [
        Block(number, number % 3, tuple(int(ms * 1e6 * value) for value in generator.normal(1, 0.01, 80)))
        for number in range(12)
    ]
    predictions = Predictions(tuple(classes.tolist()), (0.9,) * len(classes), (True,) * len(classes))
    parity = {"tensor_max_abs": 0.0, "logits_max_abs": 0.1, "top1_agreement": 1.0, "scale": 10.0}
    return Measurement(bundle.id, {"runtime": "made up"}, (1.0,) * 3, (2.0,) * 3, (1000,) * 64, tuple(blocks), 1 << 26,
                       parity, predictions)  # fmt: skip


@pytest.fixture
def judged(fp32: Bundle, int8: Bundle) -> Callable[..., tuple]:
    """A report on made-up measurements: so many milliseconds, so many images lost."""

    def run(first: float = 2.0, second: float = 1.0, lost: int = 0, **contract: float | None):
        test = part_of(fp32, "test")
        assert test is not None
        answers = test.targets.copy()
        answers[:lost] = (answers[:lost] + 1) % 10
        measured = Measured(ENVIRONMENT, [_measurement(fp32, first, test.targets), _measurement(int8, second, answers)])
        settings = {"max_drop": None, "min_speedup": None, **contract}
        return make_report([fp32, int8], measured, test, [int8.id], Plan(), **settings, confidence=0.95), test

    return run


def test_report_has_what_the_schema_promises(judged: Callable[..., tuple]) -> None:
    """And is plain JSON."""
    (report, _), _ = judged(lost=2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["schema"] == 1
    for model in report["models"]:
        assert model.keys() >= PROMISED
    base, candidate = report["models"]
    assert (base["id"], base["drop"], base["speedup"]) == (report["baseline"], None, None)
    assert candidate["speedup"]["ratio"] == pytest.approx(2.0, rel=0.02)
    assert candidate["speedup"]["low"] < candidate["speedup"]["ratio"] < candidate["speedup"]["high"]
    assert candidate["drop"]["points"] == pytest.approx(100 * 2 / 359)
    assert candidate["flips"] == 2
    assert candidate["latency_ms"]["p50"] == pytest.approx(1.0, rel=0.02)
    assert candidate["latency_ms"]["p99"] is not None
    assert candidate["outcome"] == "faster"


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
    judged: Callable[..., tuple], second: float, lost: int, contract: dict, verdict: str, code: int
) -> None:
    """Of accuracy and speed, on the bounds."""
    (report, judgement), _ = judged(second=second, lost=lost, **contract)
    assert (report["verdict"], judgement.exit_code) == (verdict, code)
    failures = ElementTree.fromstring(junit(report)).findall(".//failure")
    assert bool(failures) == (code != 0)


def test_a_slower_model_is_called_slower(judged: Callable[..., tuple]) -> None:
    """Even where no speed was asked for."""
    (report, _), _ = judged(second=3.0)
    assert report["models"][1]["outcome"] == "slower"
    assert any("slower than the baseline" in warning for warning in report["models"][1]["warnings"])


def test_a_model_that_answers_no_numbers_is_called_so(fp32: Bundle, int8: Bundle) -> None:
    """And the report stays JSON."""
    test = part_of(fp32, "test")
    assert test is not None
    good, bad = _measurement(fp32, 2.0, test.targets), _measurement(int8, 1.0, np.zeros(len(test), int))
    bad = replace(bad, parity={**bad.parity, "logits_max_abs": float("nan"), "top1_agreement": 0.0})
    report, judgement = make_report(
        [fp32, int8], Measured(ENVIRONMENT, [good, bad]), test, [int8.id], Plan(), None, None, 0.95
    )
    assert judgement.outcome == "fail"
    assert report["models"][1]["parity"]["logits_max_abs"] is None
    assert "not numbers" in report["models"][1]["warnings"][0]
    assert "not a number" in render(json.loads(json.dumps(report, allow_nan=False)), None)


def test_an_fp32_model_that_is_another_one_here_is_called_so(fp32: Bundle, int8: Bundle) -> None:
    """A kernel of this device that computes something else."""
    test = part_of(fp32, "test")
    assert test is not None
    measured = [_measurement(fp32, 2.0, test.targets), _measurement(int8, 1.0, test.targets)]
    report, _ = make_report([fp32, int8], Measured(ENVIRONMENT, measured), test, [int8.id], Plan(), None, None, 0.95)
    assert "not the same model" in report["models"][0]["warnings"][0]
    assert not any("not the same model" in warning for warning in report["models"][1]["warnings"])


class _Page(HTMLParser):
    """Counts tags, and finds whatever would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_self_contained_and_escapes(judged: Callable[..., tuple]) -> None:
    """No script, nothing loaded, a label's or a CPU's name is text and never markup."""
    (report, _), test = judged(lost=30)
    hostile = {**report, "labels": ["<script>alert(1)</script>", *report["labels"][1:]]}
    content = render(hostile, test)
    page = _Page()
    page.feed(content)
    assert page.loads == []
    assert "script" not in page.tags
    assert "a <b>CPU</b> & more" in page.text
    assert page.tags.count("img") == 24, "a gallery of the images that changed"
    assert page.tags.count("svg") == 2
    assert page.text.index("fail") < page.text.index("Models"), "the verdict comes first"


def test_page_of_a_report_without_images(judged: Callable[..., tuple], tmp_path: Path) -> None:
    """A report read again from its file has no pictures, and everything else."""
    (report, _), _ = judged()
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert "<svg" in render(read_report(tmp_path / "report.json"), None)


def test_reports_compare_offline(judged: Callable[..., tuple], tmp_path: Path) -> None:
    """The same model in two reports; other hardware is refused unless it is meant."""
    for name, ms, cpu in (("a", 1.0, "one"), ("b", 2.0, "one"), ("c", 1.0, "two")):
        (report, _), _ = judged(second=ms)
        (tmp_path / f"{name}.json").write_text(json.dumps({**report, "device": {**report["device"], "cpu": cpu}}))
    first, second, third = (read_report(tmp_path / f"{name}.json") for name in "abc")
    rows = compare_reports([first, second])["rows"]
    assert [row["latency_ratio"] for row in rows] == [
        None,
        None,
        pytest.approx(1.0, rel=0.02),
        pytest.approx(2.0, rel=0.02),
    ]
    with pytest.raises(EdgeKitError, match="different machines") as caught:
        compare_reports([first, third])
    assert "--across-hardware" in caught.value.fix
    assert len(compare_reports([first, third], across_hardware=True)["rows"]) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"schema": 2}',
        '{"schema": 1}',
        '{"schema": 1, "models": [{}]}',
        '{"schema": 1, "models": 3}',
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    """The file is named."""
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(EdgeKitError, match=r"x\.json"):
        read_report(tmp_path / "x.json")


def test_validation_finds_the_baseline_by_lineage(int8: Bundle, fp32: Bundle) -> None:
    """The fp32 ONNX beside it, where the torch model is not; a sample of the test part."""
    result = validate([int8], limit=50, plan=Plan(seconds=0.1, rounds=4, processes=2, block_ms=5, threads=1))
    assert [model["id"] for model in result.report["models"]] == [fp32.id, int8.id]
    assert result.report["images"] == 50
    assert result.report["models"][0]["top1"] > 0.8


def test_models_of_other_classes_are_not_compared(int8: Bundle) -> None:
    """A baseline with other labels is a mistake."""
    import dataclasses

    other = dataclasses.replace(int8, manifest=dataclasses.replace(int8.manifest, labels=("a", "b")))
    with pytest.raises(BundleError, match="different labels"):
        validate([int8], baseline=other)


def test_a_damaged_neighbour_is_in_nobodys_way(int8: Bundle, fp32: Bundle, tmp_path: Path) -> None:
    """Looking for the baseline beside a bundle opens only the baseline; a named baseline is the only one."""
    import shutil

    for name in ("lenet-fp32", "lenet-int8"):
        shutil.copytree(int8.path.parent / name, tmp_path / "all" / name)
    shutil.copytree(fp32.path, tmp_path / "all" / "a-damaged")
    (tmp_path / "all" / "a-damaged" / "model.onnx").write_bytes(b"x")
    manifest = json.loads((fp32.path / "manifest.json").read_text())
    (tmp_path / "all" / "a-damaged" / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}))
    quick = Plan(seconds=0.1, rounds=3, processes=1, block_ms=2, threads=1)
    candidate = Bundle.open(tmp_path / "all" / "lenet-int8")
    assert len(validate([candidate], limit=5, plan=quick).report["models"]) == 2
    alone = validate([candidate], baseline=candidate, limit=5, plan=quick)
    assert len(alone.report["models"]) == 1
