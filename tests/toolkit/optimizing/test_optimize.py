"""The search from the source to the confirmed choice: files, races, limits, interruptions, several devices."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import Device, open_device
from edgekit.deploy.documents import read
from edgekit.deploy.errors import BundleError, DeviceError, EdgeKitError, RecipeError
from edgekit.deploy.measuring.plan import Plan
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.search_schema import Search
from edgekit.toolkit.optimizing import on_device
from edgekit.toolkit.optimizing import optimize as module
from edgekit.toolkit.optimizing.optimize import Optimization, optimize, plan_search
from edgekit.toolkit.optimizing.options import OptimizeOptions
from edgekit.toolkit.optimizing.space import SOURCE, Variant
from edgekit.toolkit.optimizing.variants import MakingOptions, is_source, make, source_of

Run = Callable[..., subprocess.CompletedProcess[str]]

QUICK = OptimizeOptions(runtimes=("onnxruntime",), calibration_images=32, selection_images=30, limit=30)
INT8 = Variant("onnx", "int8", "x86")


@pytest.fixture
def source(fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The committed fp32 bundle in an empty folder, with measurements as short as possible."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fp32.path, tmp_path / "runs" / "001-lenet")

    def short(**options: object) -> Plan:
        return replace(Plan(**options), processes=3, rounds=2, block_ms=5, seconds=0.2)  # type: ignore[arg-type]

    monkeypatch.setattr(on_device, "Plan", short)
    return Bundle.open(tmp_path / "runs" / "001-lenet")


def _optimize(source: Bundle, options: OptimizeOptions = QUICK, **contract: float) -> Optimization:
    return optimize(source, options, contract=Contract(**contract), folder=Path("out"))


@pytest.mark.slow
def test_a_search(source: Bundle) -> None:
    """It makes the files, races them, and confirms the choice; its document is read by its type."""
    result = _optimize(source)
    (found,) = result.search["devices"]
    assert found["candidates"][0]["id"] == found["chosen"]
    assert {entry["precision"] for entry in found["candidates"]} == {"fp32", "int8"}
    assert all(entry["changed"] is not None for entry in found["candidates"])
    assert result.validations["local"].report["images"] == 30
    report = json.loads(Path("out/local/report.json").read_text())
    judged = [model["precision"] for model in report["models"] if "judgements" in model]
    assert judged == ["int8"], "the original is not judged"
    written = json.loads(Path("out/optimize.json").read_text())
    assert read(Search, written)["exit_code"] == result.exit_code == found["exit_code"]
    assert found["sentence"] in Path("out/optimize.html").read_text()
    assert not list(Path("out").glob("*.race.json")), "the record of the race is for an interrupted search"
    # the report alone repeats the confirmation
    from edgekit.toolkit.validation.reproduce import recorded

    again = recorded(Path("out/local/report.json"))
    assert [candidate.key for candidate in again.plan.candidates] == [model["id"] for model in report["models"]]


@pytest.mark.slow
def test_an_interrupted_search_goes_on(source: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and race are not repeated; another selection is another race."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(on_device, "validate", stop)
        with pytest.raises(KeyboardInterrupt):
            _optimize(source)
    files = sorted(path.name for path in Path("runs").iterdir())
    assert Path("out/local.race.json").is_file()
    measure, measured = Device.measure, []

    def counted(self: Device, *arguments: object) -> object:
        measured.append(self.name)
        return measure(self, *arguments)

    from edgekit.deploy.devices.local import LocalDevice

    measure = LocalDevice.measure
    monkeypatch.setattr(LocalDevice, "measure", counted)
    first = _optimize(source)
    assert measured == ["local"], "only the confirmation is measured"
    assert sorted(path.name for path in Path("runs").iterdir()) == files
    assert first.search["devices"][0]["candidates"]
    Path("out/local.race.json").write_text('{"key": "x", "measured": 3}')
    _optimize(source, replace(QUICK, selection_images=20))
    assert measured == ["local"] * 3, "a record of another search, or a damaged one, is not used"


@pytest.mark.slow
def test_a_speedup_that_nothing_reaches(source: Bundle) -> None:
    """Exit 3, and the reason."""
    result = _optimize(source, min_speedup=1000.0)
    assert result.exit_code == 3
    assert result.search["verdict"] == "fail"
    assert "1000" in result.search["devices"][0]["reason"]


@pytest.mark.slow
def test_a_size_that_nothing_reaches(source: Bundle) -> None:
    """Exit 3: each candidate is too large."""
    result = _optimize(source, replace(QUICK, size_bytes=1000))
    (found,) = result.search["devices"]
    assert (result.exit_code, found["chosen"], found["report"]) == (3, None, None)
    assert {entry["status"] for entry in found["candidates"]} <= {"too large", "failed"}


@pytest.mark.slow
def test_one_of_two_devices_fails(source: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is searched, and the exit code is 1."""
    from edgekit.deploy.devices.local import LocalDevice

    class Second(LocalDevice):
        def measure(self, *_: object) -> object:
            raise DeviceError("second was lost", fix="try again")

    second = Second()
    second.name = "ssh://second"
    monkeypatch.setattr(module, "open_device", lambda name: second if name == "ssh://second" else open_device(name))
    result = _optimize(source, replace(QUICK, devices=("local", "ssh://second")))
    assert [found["name"] for found in result.search["devices"]] == ["local"]
    assert result.search["failed"] == [{"device": "ssh://second", "error": "second was lost", "fix": "try again"}]
    assert result.exit_code == 1


def test_files_are_made_once(source: Bundle) -> None:
    """The same request finds the bundle; other calibration images make another one."""
    first = make(INT8, source, MakingOptions(calibration_images=32, selection_images=20), lambda *_: None)
    again = make(INT8, source, MakingOptions(calibration_images=32, selection_images=20), lambda *_: None)
    other = make(INT8, source, MakingOptions(calibration_images=16, selection_images=20), lambda *_: None)
    assert (first.found, again.found, other.found) == (False, True, False)
    assert first.bundle.id == again.bundle.id != other.bundle.id
    assert first.bundle.manifest.details["selection"]["count"] == 20
    assert make(SOURCE, source, MakingOptions(), lambda *_: None).bundle is source


def test_other_formats_need_the_network(source: Bundle) -> None:
    """The committed bundle's network is not beside it."""
    with pytest.raises(BundleError, match="no network in torch beside it") as caught:
        make(Variant("ncnn", "fp32"), source, MakingOptions(), lambda *_: None)
    assert "train or import" in caught.value.fix


def test_a_network_is_exported_once(trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search can start from training's result."""
    monkeypatch.chdir(tmp_path)
    assert is_source(trained.manifest)
    exported = source_of(trained, lambda *_: None)
    assert (exported.manifest.format, exported.manifest.precision) == ("onnx", "fp32")
    assert source_of(trained, lambda *_: None).id == exported.id


def test_an_optimised_bundle_is_not_a_source(int8: Bundle) -> None:
    """One line, and what to pass."""
    with pytest.raises(BundleError, match="is onnx int8; optimize starts from the original model"):
        source_of(int8, lambda *_: None)
    assert not is_source(int8.manifest)


def test_the_plan_measures_nothing(source: Bundle) -> None:
    """Candidates of this machine, and no new file."""
    planned = plan_search(QUICK)
    assert planned.variants[0] == SOURCE
    assert len(planned.contenders["local"]) >= 2
    assert [path.name for path in Path("runs").iterdir()] == [source.path.name]


def test_the_command_lists_its_plan(edgekit: Run, fp32: Bundle) -> None:
    """As a table and as JSON, with the expected time."""
    done = edgekit("optimize", fp32.path, "--plan", "--runtime", "onnxruntime")
    assert "onnx fp32 on onnxruntime:threads=1" in done.stdout
    assert "min on a device as fast as this machine" in done.stdout
    plan = json.loads(edgekit("optimize", fp32.path, "--plan", "--json").stdout)
    assert plan["candidates"]["local"][0] == "onnx fp32 on onnxruntime:threads=1"
    assert plan["racing_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--size small", "error: --size small is not a size\nfix: e.g. --size 4MB, --size 512kB\n"),
        ("--memory 0MB", "error: --memory 0MB is not a size"),
        ("--budget soon", "error: --budget soon is not a time"),
        ("--objective speed", "error: unknown objective 'speed'"),
        ("--runtime nothing", "error: unknown runtime 'nothing'"),
        ("--device local --device local", "error: a device is named twice"),
        ("--device browser", "error: browser can be examined only during a measurement"),
        ("--min-speedup 0", "error: --min-speedup 0 is not a ratio"),
    ],
)
def test_user_errors(edgekit: Run, fp32: Bundle, arguments: str, message: str) -> None:
    """Two lines before any file is made."""
    done = edgekit("optimize", fp32.path, *arguments.split(), code=1)
    assert done.stderr.startswith(message), done.stderr


def test_a_report_is_not_written_into_a_bundle(edgekit: Run, fp32: Bundle, tmp_path: Path) -> None:
    """It would make the bundle unreadable."""
    shutil.copytree(fp32.path, tmp_path / "bundle")
    done = edgekit("optimize", "bundle", "--out", "bundle", code=1)
    assert "bundle is a bundle, which a report would damage" in done.stderr
    Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "speed"}, "unknown objective 'speed'"),
        ({"devices": ("local", "local")}, "a device is named twice"),
        ({"runtimes": ("onnxruntime", "onnxruntime")}, "a runtime is named twice"),
        ({"budget_s": 0.0}, "--budget 0 is not positive"),
        ({"threads": (2, 0)}, "--threads 0 is not positive"),
        ({"selection_images": -1}, "--selection-images -1 is not positive"),
    ],
)
def test_options_are_checked_in_python_too(options: dict, message: str) -> None:
    """Not silently changed."""
    with pytest.raises(RecipeError, match=message):
        OptimizeOptions(**options)


def test_a_search_is_not_written_into_a_bundle(source: Bundle) -> None:
    """From Python either."""
    with pytest.raises(EdgeKitError, match="is a bundle, which a report would damage"):
        optimize(source, QUICK, folder=source.path)
