"""The forecast times every candidate in a process of its own, without images, and says what it could not time."""

import functools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, DeviceError
from edgekit.deploy.images import ImageSet
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.deploy.session import open_session
from edgekit.toolkit.analysis.forecast import (
    ForecastEntry,
    conclude_forecast,
    forecast_line,
    speedup_over,
    time_of,
    with_forecast,
)
from edgekit.toolkit.optimizing import forecast as module
from edgekit.toolkit.optimizing import forecast_child
from edgekit.toolkit.optimizing.forecast import forecast, forecast_source
from edgekit.toolkit.optimizing.space import SOURCE, Contender, Variant
from edgekit.toolkit.quantize.targets import TARGETS
from edgekit.toolkit.report.forecast import forecast_table
from edgekit.toolkit.report.search import render_search, search_table

Run = Callable[..., subprocess.CompletedProcess[str]]
DATA = Path(__file__).parents[2] / "data"
SHORT = 0.2

# Starts the process for timing, with a crash where a session is opened without spinning.
DYING = """
from edgekit.toolkit.optimizing import forecast_child as child
opened = child._opened

def dying(entry, tensor):
    if {condition}:
        {crash}
    return opened(entry, tensor)

child._opened = dying
child.main()
"""


def _on(**options: Any) -> Contender:
    return Contender(SOURCE, Choice("onnxruntime", options))


REFERENCE = _on(threads=1)


def test_every_candidate_is_forecast_or_fails_with_a_reason(edgekit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a bundle whose images are not here: none is read."""

    def read(*_: object) -> None:
        raise AssertionError("the forecast reads an image")

    monkeypatch.setattr(ImageSet, "__getitem__", read)
    monkeypatch.setattr(module, "forecast_here", functools.partial(module.forecast_here, seconds=SHORT))
    found = json.loads(edgekit("inspect", DATA / "lenet-fp32", "--forecast", "--json").stdout)
    names = [entry["name"] for entry in found["candidates"]]
    assert "fp32 on onnxruntime threads=1" in names
    assert any(name.startswith("int8 (") for name in names)
    assert len(set(names)) == len(names)
    for entry in found["candidates"]:
        assert (entry["time"] is None) == (entry["speedup"] is None) == bool(entry["reason"])
        if entry["time"] is not None:
            assert 0 < entry["time"]["low"] <= entry["time"]["ms"] <= entry["time"]["high"]
    times = [entry["time"]["ms"] for entry in found["candidates"] if entry["time"]]
    assert times == sorted(times)
    assert all("export it first" in entry["reason"] for entry in found["candidates"] if "ncnn" in entry["name"])
    baseline = next(entry for entry in found["candidates"] if entry["name"] == found["baseline"])
    assert (baseline["precision"], baseline["speedup"]) == ("fp32", {"ratio": 1.0, "low": None, "high": None})
    assert found["sentence"].startswith("forecast: ")


def test_a_candidate_that_fails_is_left_out(fp32: Bundle) -> None:
    """With the runtime's own reason; the others are forecast."""
    found = forecast(fp32, [REFERENCE, _on(provider="xnnpack"), _on(threads=1, spinning=False)], seconds=SHORT)
    failed = {entry["runtime"]: entry["reason"] for entry in found["candidates"] if entry["reason"]}
    assert list(failed) == ["onnxruntime:provider=xnnpack"]
    assert "has no XnnpackExecutionProvider" in failed["onnxruntime:provider=xnnpack"]
    assert len(found["candidates"]) == 3


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        ("import os; os._exit(7)", "its process ended with exit code 7"),
        ("import os; os._exit(0)", "its process ended with exit code 0"),
        ("import os; os.kill(os.getpid(), 11)", "its process was killed by signal 11"),
        ("import sys; sys.exit('no more memory')", "its process ended with exit code 1: no more memory"),
    ],
)
def test_a_crash_fails_one_candidate(fp32: Bundle, monkeypatch: pytest.MonkeyPatch, crash: str, reason: str) -> None:
    """The rest is forecast by a new process."""
    code = DYING.format(condition='entry["options"].get("spinning") is False', crash=crash)
    monkeypatch.setattr(module, "_CHILD", ("-c", code))
    found = forecast(fp32, [REFERENCE, _on(threads=1, spinning=False), _on(threads=2)], seconds=SHORT)
    reasons = {entry["runtime"]: entry["reason"] for entry in found["candidates"]}
    assert reasons == {
        "onnxruntime:threads=1": "", "onnxruntime:threads=2": "", "onnxruntime:spinning=false,threads=1": reason,
    }  # fmt: skip


def test_a_reference_that_crashes_is_an_error(fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to compare with."""
    monkeypatch.setattr(module, "_CHILD", ("-c", DYING.format(condition="True", crash="import os; os._exit(3)")))
    with pytest.raises(DeviceError, match="the reference of the forecast cannot run: .* exit code 3"):
        forecast(fp32, [REFERENCE, _on(threads=2)], seconds=SHORT)


def test_a_process_that_does_not_start_is_an_error(fp32: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of starting it again and again."""
    monkeypatch.setattr(module, "_CHILD", ("-c", "raise SystemExit('broken')"))
    with pytest.raises(DeviceError, match="broken"):
        forecast(fp32, [REFERENCE], seconds=SHORT)


def test_the_reference_alone(fp32: Bundle) -> None:
    """A machine that runs nothing else gets a forecast that says so."""
    found = forecast(fp32, [REFERENCE], seconds=SHORT)
    assert [entry["runtime"] for entry in found["candidates"]] == ["onnxruntime:threads=1"]
    assert "no lower precision runs here" in found["sentence"]


@pytest.mark.parametrize(
    "variant", [*(Variant("onnx", "int8", target) for target in TARGETS), Variant("onnx", "fp16")], ids=str
)
def test_files_without_images_run(fp32: Bundle, tmp_path: Path, variant: Variant) -> None:
    """With answers that are numbers."""
    file = module._Quantizer(fp32, tmp_path).file(variant)
    assert file.manifest.precision == variant.precision
    assert file.size_bytes < 0.8 * fp32.size_bytes
    logits = open_session(file, "onnxruntime", threads=1).run(fp32.golden().tensors)
    assert logits.shape == fp32.golden().logits.shape
    assert np.isfinite(logits).all()


def test_an_export_beside_the_bundle_is_forecast(trained: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing is named with the command that makes it."""
    pytest.importorskip("openvino")
    from edgekit.export.export_bundle import export_bundle

    monkeypatch.chdir(trained.path.parent)
    with pytest.raises(BundleError, match="no fp32 ONNX export"):
        forecast_source(trained)
    made = [export_bundle(trained, format, trained.path.parent / format) for format in ("onnx", "openvino")]
    assert forecast_source(trained).id == forecast_source(made[0]).id == made[0].id
    contenders = [
        REFERENCE,
        Contender(Variant("openvino", "fp32"), Choice("openvino", {"threads": 1})),
        Contender(Variant("ncnn", "fp32"), Choice("ncnn", {"threads": 1})),
    ]
    found = forecast(made[0], contenders, seconds=SHORT)
    reasons = {entry["file"]: entry["reason"] for entry in found["candidates"]}
    assert reasons.pop("ncnn fp32") == "not forecast: export it first (edgekit export --format ncnn)"
    assert reasons == {"onnx fp32": "", "openvino fp32": ""}


def test_a_bundle_that_is_not_an_original_is_refused(edgekit: Run) -> None:
    """In one line, with a remedy."""
    done = edgekit("inspect", DATA / "lenet-int8", "--forecast", code=1)
    assert done.stderr.splitlines()[0].endswith(
        "lenet-int8 is onnx int8; expected: original model (fp32 ONNX, or from train or import)"
    )


def _entry(name: str, ms: float | None, spread: float = 0.0, reason: str = "") -> ForecastEntry:
    ratios = [1.0 / (1 + spread), 1.0, 1 + spread]
    return {
        "name": name, "file": "onnx", "precision": name.split()[0], "runtime": "onnxruntime",
        "time": None if ms is None else time_of(ratios, ms), "speedup": None, "reason": reason,
    }  # fmt: skip


def test_the_interval_covers_blocks_and_processes() -> None:
    """It is wider for blocks that vary, and it has a width even if they do not."""
    steady, varying = time_of([0.5] * 9, 10.0), time_of([0.3, 0.5, 0.9], 10.0)
    assert steady["low"] < steady["ms"] == varying["ms"] == 5.0 < steady["high"]
    assert varying["low"] < steady["low"] < steady["high"] < varying["high"]
    speedup = speedup_over(steady, varying)
    low, high = speedup["low"], speedup["high"]
    assert low is not None
    assert high is not None
    assert low < steady["low"] / steady["ms"] < speedup["ratio"] == 1.0 < varying["ms"] / varying["low"] < high


@pytest.mark.parametrize(
    ("int8", "expected"),
    [
        (_entry("int8 runtime", 5.0), "forecast: int8 runtime, 2.00x [1.64, 2.44] as fast as fp32 b here; accuracy is"),
        (_entry("int8 runtime", 5.0, 2.0), "forecast: a lower precision may not be faster: int8 runtime, 2.00x ["),
        (_entry("int8 runtime", None, reason="fails"), "forecast: no lower precision runs here; fp32 b is the fastest"),
    ],
)
def test_the_sentence(int8: ForecastEntry, expected: str) -> None:
    """It promises nothing that the interval does not exclude, and nothing about accuracy."""
    found = conclude_forecast([_entry("fp32 a", 12.0), int8, _entry("fp32 b", 10.0)], "runs/a", 1.0)
    assert found["sentence"].startswith(expected)
    assert found["baseline"] == "fp32 b"


def test_the_sentence_names_the_candidate_that_is_certainly_fast() -> None:
    """Not one that may be faster still, on blocks that vary."""
    entries = [_entry("fp32 a", 10.0), _entry("int8 varying", 3.0, 2.0), _entry("int8 steady", 4.0)]
    assert conclude_forecast(entries, "runs/a", 1.0)["sentence"].startswith("forecast: int8 steady, 2.50x")


def test_the_table_names_what_was_not_timed() -> None:
    """Candidates with the same reason are in one line."""
    entries = [_entry("fp32 a", 10.0), _entry("int8 b", None, reason="no"), _entry("int8 c", None, reason="no")]
    lines = [str(part) for part in forecast_table(conclude_forecast(entries, "runs/a", 1.0))]
    assert "int8 b, int8 c: no" in lines


@pytest.fixture
def search() -> Iterator[dict[str, Any]]:
    """A search with three candidates, without a forecast."""
    candidates = [
        {
            "id": name, "name": name, "bundle": "runs/a", "format": "onnx", "precision": name.split()[0],
            "target": None, "runtime": "onnxruntime", "size_bytes": 1, "peak_rss_bytes": None,
            "speedup": {"ratio": ratio, "low": None, "high": None}, "forecast_speedup": None, "time_ms": 10 / ratio,
            "images_per_s": None, "points_lost": None, "changed": None, "processes": 1, "pareto": False,
            "status": status, "detail": "",
        }
        for name, ratio, status in (("int8 a", 3.0, "chosen"), ("fp32 b", 1.0, "slower"), ("int8 c", 0.5, "slower"))
    ]  # fmt: skip
    device = {
        "name": "local", "machine": {}, "candidates": candidates, "chosen": "int8 a", "baseline": "fp32 b",
        "sentence": "use int8 a", "use": None, "report": None, "headline": None, "verdict": "pass", "reason": "",
        "exit_code": 0, "seconds": 1.0,
    }  # fmt: skip
    yield {
        "search": 1, "source": "runs/a", "objective": "latency", "limits": {}, "images": 0, "not_made": [],
        "devices": [device], "failed": [], "shared": None, "seconds": 1.0, "verdict": "pass", "exit_code": 0,
    }  # fmt: skip


def test_a_search_says_how_right_the_forecast_was(search: dict[str, Any]) -> None:
    """Over the race's own baseline, even where the forecast has another one; the baseline itself does not count."""
    assert forecast_line(search["devices"][0]) is None
    entries = [_entry("int8 a", 4.0), _entry("fp32 b", 10.0), _entry("fp32 d", 8.0), _entry("int8 c", 40.0)]
    found = with_forecast(search["devices"][0], conclude_forecast(entries, "runs/a", 1.0))
    ratios = [entry["forecast_speedup"]["ratio"] for entry in found["candidates"]]
    assert ratios == pytest.approx([2.5, 1.0, 0.25])
    assert forecast_line(found) == "the forecast was within 20 % for 1 of 2 candidates"
    search["devices"] = [found]
    page = render_search(search)
    assert "he forecast was within 20 % for 1 of 2 candidates" in page
    assert "2.50x" in page
    assert any("within 20 %" in str(part) for part in search_table(search))


def test_a_search_without_a_forecast_of_its_baseline_has_none(search: dict[str, Any]) -> None:
    """There is nothing that the others could be relative to."""
    expected = conclude_forecast([_entry("int8 a", 4.0), _entry("fp32 d", 10.0)], "runs/a", 1.0)
    assert forecast_line(with_forecast(search["devices"][0], expected)) is None


def test_only_single_threads_are_timed_by_the_processor() -> None:
    """The threads of a reference with two would add their times, and the candidate would look faster."""
    one, two = (
        forecast_child.Entry(file="", runtime="onnxruntime", options={"threads": threads}, seconds=1.0)
        for threads in (1, 2)
    )
    assert (
        forecast_child._clock(two, one)
        is forecast_child._clock(one, two)
        is forecast_child._clock(two, two)
        is time.perf_counter
    )
    if time.get_clock_info("process_time").resolution < 1e-4:
        assert forecast_child._clock(one, one) is time.process_time
