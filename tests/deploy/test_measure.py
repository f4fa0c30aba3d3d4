"""The agent measures models side by side and reports processes that die."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from edgekit.deploy import environment
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.documents import plain, read
from edgekit.deploy.environment import UNAVAILABLE, allowed_cores, cores_got, describe, state
from edgekit.deploy.errors import DeviceError, EdgeKitError, RecipeError
from edgekit.deploy.images import ImageSet
from edgekit.deploy.measuring import agent, cargo, measure
from edgekit.deploy.measuring.measurement import Block, Measurement
from edgekit.deploy.measuring.plan import SAMPLES_WANTED, Candidate, Plan
from edgekit.deploy.measuring.subject import Subject
from edgekit.deploy.measuring.worker import Worker
from edgekit.deploy.measuring.worker_process import WorkerProcess
from edgekit.deploy.progress import silent
from edgekit.deploy.runtimes.runtime import default_runtime
from edgekit.export.export_bundle import Options, export_bundle
from edgekit.toolkit.analysis.host_answers import compare_with_host
from edgekit.toolkit.doctor.planted_models import null_bundle

from tests.toolkit.conftest import ENVIRONMENT, report_on

QUICK = Plan(seconds=0.2, rounds=6, processes=3, block_ms=5, threads=1)


@pytest.fixture
def images() -> ImageSet:
    """Twenty digits with labels."""
    from edgekit.toolkit.datasets import load_dataset

    return load_dataset("digits").test.take(range(20))


def test_local_device(fp32: Bundle, int8: Bundle, images: ImageSet) -> None:
    """Every round has both models; processes are fresh, predictions in order, and all values recorded."""
    stages: list[str] = []
    measured = open_device("local").measure([fp32, int8], QUICK, images, lambda stage, share: stages.append(stage))
    first, second = measured.measurements
    assert [first.bundle, second.bundle] == [fp32.id, int8.id]
    for model in measured.measurements:
        assert [block.round for block in model.blocks] == list(range(len(model.blocks)))
        assert len(model.blocks) >= 6
        assert [block.process for block in model.blocks] == sorted(block.process for block in model.blocks)
        assert {block.process for block in model.blocks} == {0, 1, 2}
        assert all(ns > 0 for block in model.blocks for ns in block.ns)
        assert all(block.calls > 10 for block in model.blocks), "calls of some microseconds are timed together"
        assert all(ns > 500_000 for block in model.blocks for ns in block.ns)
        assert all(before.at < after.at for before, after in pairwise(model.blocks))
        assert model.predictions is not None
        assert len(model.predictions.classes) == len(images)
        assert np.mean(np.asarray(model.predictions.classes) == images.targets) > 0.7
        assert (model.checked, model.differed) == (len(model.blocks), 0)
        assert model.peak_rss_bytes is None or model.peak_rss_bytes > 10_000_000
        assert len(model.file_ms) == len(model.load_ms) == len(model.first_ms) == len(model.warm_ups) == 3
        assert len(model.preprocess_ns) == len(model.postprocess_ns) == 3 * len(images)
        assert all(warm_up.calls >= 10 and warm_up.ms >= 500 for warm_up in model.warm_ups)
        assert model.session["threads"] == 1
    assert first.parity["logits_max_abs"] == pytest.approx(0, abs=1e-4)
    assert second.parity["logits_max_abs"] > 1e-3
    assert measured.environment["cpu"]
    assert 0 < measured.environment["cores_got"] <= 1.1 * measured.environment["cores_allowed"]
    assert measured.environment["before"].keys() == measured.environment["after"].keys() == state().keys()
    assert list(dict.fromkeys(stages)) == ["loading", "accuracy", "memory", "warm-up", "latency"]
    assert measured.environment["threads"] == 1
    assert first.one_thread == (), "the measurement itself has one thread"


@pytest.mark.slow
def test_scenarios(images: ImageSet, tmp_path: Path, trained: Bundle) -> None:
    """Throughput by batch size, and offered images, of models with a fixed and with any batch size."""
    dynamic = export_bundle(trained, "onnx", tmp_path / "dynamic", Options(dynamic_batch=True))
    fixed = export_bundle(trained, "onnx", tmp_path / "fixed")
    plan = replace(QUICK, offline=True, fps=200.0)
    measured = open_device("local").measure([fixed, dynamic], plan, images, lambda stage, share: None)
    first, second = measured.measurements
    assert {entry.batch for entry in first.throughput} == {1}
    batches = [entry.batch for entry in second.throughput if entry.process == 0]
    assert batches[:2] == [1, 2]
    assert [entry.batch for entry in second.throughput if entry.process == 2] == batches
    for model in measured.measurements:
        assert {(entry.process, entry.fps) for entry in model.frames} == {(0, 200.0), (1, 200.0), (2, 200.0)}
        assert sum(entry.offered for entry in model.frames) >= SAMPLES_WANTED
        assert all(len(entry.ns) == entry.offered for entry in model.frames)
        assert read(Measurement, json.loads(json.dumps(plain(model)))) == model


@pytest.mark.parametrize("fps", [None, 100.0])
@pytest.mark.slow
def test_a_long_run(fps: float | None, int8: Bundle) -> None:
    """It runs without a pause, or at a rate: then only that many images are offered, and missed ones counted."""
    plan = replace(QUICK, fps=fps, sustained_s=10.0)
    (model,) = open_device("local").measure([int8], plan, None, lambda stage, share: None).measurements
    assert 5 <= len(model.sustained) <= 11
    assert model.sustained[0].state is not None
    assert model.frames == ()
    for second in model.sustained:
        assert second.offered is None if fps is None else 0 <= second.dropped <= second.missed <= second.offered
    if fps is not None:
        assert sum(second.offered for second in model.sustained) == pytest.approx(1000, rel=0.15)
    assert read(Measurement, json.loads(json.dumps(plain(model)))) == model


@pytest.mark.slow
def test_threads_that_wait_for_one_another_give_no_speedup(tmp_path: Path, fp32: Bundle) -> None:
    """A model whose threads wait is 50 times slower with two threads, and as fast as the other with one.

    The test covers agent, workers and report. The plan requests two threads, so two are used.
    """
    waiting = null_bundle(tmp_path / "waiting", ns=400_000, waiting_ns=20_000_000)
    other = null_bundle(tmp_path / "other", ns=400_000)
    plan = Plan(seconds=0.2, rounds=6, processes=3, block_ms=20, threads=2)
    measured = open_device("local", planted=True).measure([waiting, other], plan, None, lambda stage, share: None)
    assert measured.environment["threads"] == 2
    assert all(len(model.one_thread) == 6 for model in measured.measurements)
    environment, measurements, _ = measured
    report = report_on([waiting, other], [other.id], plan, environment, measurements, min_speedup=1.2)
    speedup = report["models"][1]["speedup"]
    assert speedup["ratio"] > 10
    assert speedup["one_thread"] < 2
    assert (report["verdict"], report["exit_code"]) == ("inconclusive", 4)
    assert report["models"][1]["outcome"] == "inconclusive"
    assert "is not shown to be faster" in report["headline"]
    assert any("wait for one another (--threads 1)" in warning for warning in report["models"][0]["warnings"])


@pytest.mark.parametrize(("got", "threads"), [(2.0, 2), (1.33, 1), (1.0, 1)])
def test_as_many_threads_as_cores_are_free(
    got: float, threads: int, tmp_path: Path, fp32: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is the default; a number that the user sets is kept."""
    asked: list[Plan] = []

    def fake_measure(bundles: object, plan: Plan, *arguments: object, **named: object) -> list[Measurement]:
        asked.append(plan)
        return []

    monkeypatch.setattr(agent, "allowed_cores", lambda: 2)
    monkeypatch.setattr(agent, "cores_got", lambda cores: got)
    monkeypatch.setattr(agent, "measure", fake_measure)
    for named in (None, 2):
        job = {**cargo.job([fp32], Plan(threads=named)), "bundles": {fp32.id: str(fp32.path)}}
        (tmp_path / agent.JOB).write_text(json.dumps(job))
        environment = agent.run(tmp_path, lambda message: None).environment
        assert environment["threads"] == asked[-1].threads == (named or threads)


@pytest.mark.slow
def test_a_model_that_is_slow_to_start_gets_fewer_processes(
    fp32: Bundle, int8: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets three, the others get the planned number, and the reason is reported."""
    plan = Plan(seconds=0.05, rounds=4, processes=4, block_ms=5, threads=1)
    third = null_bundle(tmp_path / "null", ns=1_000_000)
    paths = {model.id: model.path for model in (third, fp32, int8)}
    stages: list[str] = []
    monkeypatch.setattr(measure, "_SETUP_S", 30.0)
    real_ask = WorkerProcess.ask

    def slow_start(self: WorkerProcess, command: str, *arguments: Any, **named: Any) -> dict[str, Any]:
        if command == "open" and self._bundle == third.path:
            clock.append(20.0)
        return real_ask(self, command, *arguments, **named)

    clock: list[float] = []
    monotonic = time.monotonic
    monkeypatch.setattr(measure.time, "monotonic", lambda: monotonic() + sum(clock))
    monkeypatch.setattr(WorkerProcess, "ask", slow_start)
    measured = measure.measure(paths, plan, None, None, lambda stage, share: stages.append(stage), planted=True)
    assert [model.processes for model in measured] == [3, 4, 4]
    assert [len(model.warm_ups) for model in measured] == [3, 4, 4]
    assert any(
        stage.startswith("latency (null fp32 takes 2") and "3 processes instead of 4" in stage for stage in stages
    )
    report = report_on([third, fp32, int8], [int8.id], plan, ENVIRONMENT, measured)
    assert report["models"][2]["speedup_over"][third.id]["low"] > 1
    warnings = [" ".join(model["warnings"]) for model in report["models"]]
    assert ["3 processes instead of 4" in text for text in warnings] == [True, False, False]
    monkeypatch.setattr(WorkerProcess, "ask", slow_start)
    paths = {model.id: model.path for model in (third, int8)}
    pair = measure.measure(paths, plan, None, None, lambda stage, share: None, planted=True)
    assert [model.processes for model in pair] == [3, 3], "one model alone could not be compared"


@pytest.mark.parametrize(
    ("samples", "share", "waits"),
    [(1, 0.3, False), (40, 0.3, True), (40, 0.05, True), (60, 0.9, False)],
)  # fmt: skip
def test_a_slow_model_does_not_prolong_the_measurement(samples: int, share: float, waits: bool) -> None:
    """More blocks are timed only if they can still reach the wanted precision.

    With six blocks of one sample after 30 % of the time budget, p99's 662 samples are out of reach. With more samples
    they are not, or only the interval is still too wide.
    """
    subject = Subject(Candidate("id"), default_runtime("onnx"), Path(), None, False, "onnx fp32", 3, 1000)
    times = [1_000_000, 1_200_000] if samples == 40 else [1_000_000, 1_000_100]
    subject.blocks = [Block(at, 0, 0.1 * at, 1, (times[at % 2],) * samples, 0) for at in range(6)]
    assert measure._worth_waiting_for(subject, 6, QUICK, share) == waits


@pytest.mark.parametrize(("ns", "fps", "dropped"), [(1_000_000, 10.0, 0), (30_000_000, 50.0, 12)])
def test_a_rate_is_kept_or_missed_images_are_counted(ns: int, fps: float, dropped: int, tmp_path: Path) -> None:
    """At 50 images per second, a model of 30 ms answers 33, all late, and drops others. At 10, one of 1 ms keeps up."""
    worker = _worker(null_bundle(tmp_path / "null", ns=ns))
    start = time.monotonic()
    seconds = [worker.sustain(with_state=False, fps=fps) for _ in range(3)]
    for second in seconds:
        assert dropped <= second["dropped"] <= second["missed"] <= second["offered"]
    assert sum(second["offered"] for second in seconds) == pytest.approx(fps * (time.monotonic() - start), abs=4)
    if dropped:
        assert all(second["missed"] == second["offered"] for second in seconds)
    else:
        assert sum(second["missed"] for second in seconds) <= 15, "a busy machine may miss some of 30"


def _worker(bundle: Bundle) -> Worker:
    worker = Worker(io.StringIO())
    worker.start(str(bundle.path), None, planted=True)
    worker.open(threads=1)
    worker.prepare()
    return worker


def test_an_answer_that_is_not_a_number_has_no_confidence(fp32: Bundle, images: ImageSet, tmp_path: Path) -> None:
    """A model that overflows is reported as wrong; its answers stay valid JSON."""
    images.take(range(3)).save(tmp_path)
    worker = _worker(fp32)
    worker.start(str(fp32.path), str(tmp_path))
    worker._session = _Overflowing()
    assert worker.predict()["confidences"] == [0.0] * 3


def test_equal_logits_differ_by_nothing(fp32: Bundle, int8: Bundle, images: ImageSet) -> None:
    """Logits are recorded exactly: rounded, they would differ from the host's by more than its kernels do."""
    bundles, few = [fp32, int8], images.take(range(3))
    (first, second) = open_device("local").measure(bundles, QUICK, few, silent).measurements
    measured = [(Candidate(fp32.id), fp32, first), (Candidate(int8.id), int8, second)]
    answers = compare_with_host(measured, few, silent)
    assert [(answer["logits_max_abs"], answer["differ"]) for answer in answers.values()] == [(0, []), (0, [])]


class _Overflowing:
    """A model whose logits are not numbers."""

    facts: ClassVar = {"runtime": "overflowing"}

    def run(self, batch: np.ndarray) -> np.ndarray:
        return np.full((len(batch), 10), np.nan, np.float32)

    def close(self) -> None:
        pass


class _Stalling:
    """A model that takes no time, except for 200 ms once."""

    facts: ClassVar = {"runtime": "stalling"}

    def __init__(self) -> None:
        self.calls = 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls == 10:
            time.sleep(0.2)
        return np.zeros((len(batch), 10), np.float32)


def test_a_stall_counts_for_every_image_that_it_made_wait(tmp_path: Path) -> None:
    """At 100 images per second a stall of 200 ms delays about 20 images, not one: no coordinated omission."""
    worker = _worker(null_bundle(tmp_path / "null"))
    worker._session = _Stalling()  # type: ignore[assignment]
    late = np.asarray(worker.serve(fps=100, frames=60)["ns"]) / 1e6
    assert len(late) == 60
    assert late[9] >= 200
    assert (late > 10).sum() >= 15


def test_an_impossible_rate_is_given_up(tmp_path: Path) -> None:
    """A model of 20 ms at 1,000 images per second does not take 20 times as long as planned."""
    worker = _worker(null_bundle(tmp_path / "null", ns=20_000_000))
    start = time.monotonic()
    assert len(worker.serve(fps=1000, frames=300)["ns"]) < 60
    assert time.monotonic() - start < 3


def test_timed_calls_go_through_all_inputs(tmp_path: Path) -> None:
    """The 64 inputs are used in turn; the answer contains the index of the last one."""
    worker = _worker(null_bundle(tmp_path / "null"))
    seen = [worker.time(samples=1, calls=1)["input"] for _ in range(130)]
    assert len(set(seen)) == 64
    assert seen[:64] == seen[64:128]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"processes": 2}, "2 processes"), ({"fps": 0.0}, "--fps"), ({"fps": -3.0}, "--fps"),
     ({"fps": float("nan")}, "--fps"), ({"sustained_s": 3.0}, "--sustained")],
)  # fmt: skip
def test_an_invalid_plan_is_refused(change: dict, message: str) -> None:
    """It is refused before anything is started."""
    with pytest.raises(RecipeError, match=message):
        replace(QUICK, **change)


def test_a_measurement_survives_json(fp32: Bundle) -> None:
    """The host receives exactly what the device measured."""
    measured = open_device("local").measure([fp32], QUICK, None, lambda stage, share: None)
    measurement = measured.measurements[0]
    assert measurement.predictions is None
    assert read(Measurement, json.loads(json.dumps(plain(measurement)))) == measurement


def test_a_killed_worker_is_reported_with_its_signal(fp32: Bundle) -> None:
    """The kernel's out-of-memory killer sends the same signal."""
    worker = WorkerProcess(fp32.path, None)
    worker.ask("open", threads=1)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match="killed by signal 9") as caught:
        worker.ask("golden")
    assert "memory" in caught.value.fix
    worker.close()


def test_a_damaged_bundle_is_refused_by_the_device_too(int8: Bundle, tmp_path: Path) -> None:
    """The agent checks the received files before it loads them."""
    import shutil

    copy = shutil.copytree(int8.path, tmp_path / "copy")
    (copy / "model.onnx").write_bytes(b"x")
    with pytest.raises(EdgeKitError, match=r"model\.onnx"):
        open_device("local").measure([Bundle(copy, int8.manifest, int8.id)], QUICK, None, lambda stage, share: None)


def test_an_agent_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch, fp32: Bundle) -> None:
    """There is no hang and no empty report."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DeviceError, match="ended without a result"):
        open_device("local").measure([fp32], QUICK, None, lambda stage, share: None)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads Linux's /proc")
def test_no_process_is_left_behind(fp32: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After a measurement neither the agent nor a worker runs on."""
    monkeypatch.setenv("EDGEKIT_TEST", str(tmp_path))
    open_device("local").measure([fp32], QUICK, None, lambda stage, share: None)
    pids = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # processes come and go
            if f"EDGEKIT_TEST={tmp_path}".encode() in environ.read_bytes():
                pids.append(environ.parent.name)
    assert pids == []


def test_unknown_facts_are_unavailable_and_never_zero() -> None:
    """This applies to every value that cannot be read."""
    facts = describe()
    assert facts["cores_allowed"] == allowed_cores() >= 1
    assert facts["governor"] == UNAVAILABLE or facts["governor"].isalpha()
    assert all(value not in (0, "", None) for value in facts.values())
    assert facts["timer_ns"] > 0


def test_the_state_of_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The /sys of a Raspberry Pi: hot, throttled by its firmware, on mains power, 1.5 cores for a container."""
    entries = {
        "class/thermal/thermal_zone0/temp": "61200",
        "class/thermal/thermal_zone1/temp": "84300",
        "class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "class/thermal/cooling_device0/cur_state": "2",
        "class/thermal/cooling_device1/type": "pwm-fan",
        "class/thermal/cooling_device1/cur_state": "4",
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000",
        "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "600000",
        "devices/platform/soc/soc:firmware/get_throttled": "50005",
        "class/power_supply/rpi/type": "Mains",
        "class/power_supply/rpi/online": "1",
        "fs/cgroup/cpu.max": "max 100000",
        "fs/cgroup/job/cpu.max": "150000 100000",
        "fs/cgroup/job/inner/cpu.max": "max 100000",
        "fs/cgroup/job/cpu.stat": "nr_periods 9\nnr_throttled 7",
    }
    for name, text in entries.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    lines = environment._lines
    monkeypatch.setattr(environment, "_SYSTEM", tmp_path)
    monkeypatch.setattr(environment, "_CGROUP", tmp_path / "fs/cgroup")
    monkeypatch.setattr(
        environment, "_lines", lambda path: ["0::/job/inner"] if str(path) == "/proc/self/cgroup" else lines(path)
    )
    board = state()
    assert board["temperature_c"] == pytest.approx(84.3)
    assert board["mhz"] == [1500, 600]
    assert board["throttled"] == 2 + bin(0x50005).count("1")
    assert board["cgroup_throttled"] == 7
    assert board["power"] == "mains"
    assert describe()["cgroup_cores"] == 1.5
    assert allowed_cores() <= 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins processes to cores")
def test_a_busy_core_is_noticed() -> None:
    """A thread that shares its only core with another process gets about half of it."""
    allowed = os.sched_getaffinity(0)
    core = {min(allowed)}
    burner = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {core})\nwhile True: pass"])
    try:
        os.sched_setaffinity(0, core)
        time.sleep(0.3)
        assert allowed_cores() == 1
        assert cores_got(1, seconds=0.5) < 0.75
    finally:
        os.sched_setaffinity(0, allowed)
        burner.kill()
        burner.wait()


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["CPU implementer : 0x41", "CPU part : 0xd08"] * 4, "Cortex-A72"),
        (["CPU implementer : 0x41", "CPU part : 0xd05"] * 4 + ["CPU implementer : 0x41", "CPU part : 0xd0b"] * 2,
         "Cortex-A55 + Cortex-A76"),
        (["CPU implementer : 0x51", "CPU part : 0x804"], "implementer 0x51 part 0x804"),
        (["model name : AMD EPYC", "model name : AMD EPYC"], "AMD EPYC"),
    ],
)  # fmt: skip
def test_a_cpu_has_a_name(lines: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ARM kernels report numbers; a chip with two kinds of core has two names."""
    monkeypatch.setattr(environment, "_lines", lambda path: lines if path == "/proc/cpuinfo" else [])
    assert describe()["cpu"] == name


def test_a_board_has_a_name_and_a_memory_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read from the device tree and the cgroups."""
    tree = tmp_path / "firmware/devicetree/base"
    tree.mkdir(parents=True)
    (tree / "model").write_text("Raspberry Pi 4 Model B Rev 1.4\0")
    (tree / "compatible").write_text("raspberrypi,4-model-b\0brcm,bcm2711\0")
    monkeypatch.setattr(environment, "_SYSTEM", tmp_path)
    monkeypatch.setattr(environment, "_CGROUP", tmp_path / "cgroup")
    group = tmp_path / "cgroup/small"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("268435456\n")
    (group / "memory.peak").write_text("200000000\n")
    (tmp_path / "cgroup/memory.max").write_text("max\n")
    lines = environment._lines
    monkeypatch.setattr(
        environment, "_lines", lambda path: ["0::/small"] if path == "/proc/self/cgroup" else lines(path)
    )
    facts = describe()
    assert (facts["board"], facts["soc"]) == ("Raspberry Pi 4 Model B Rev 1.4", "brcm,bcm2711")
    assert facts["memory_cap_bytes"] == 268435456
    assert environment.memory_cap() == (268435456, 200000000)


def test_onnx_runtime_telemetry_is_disabled() -> None:
    """This is set before it is loaded; a user's own setting is kept."""
    code = "import edgekit.deploy, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for variables, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        environ = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | variables
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_a_slow_first_window_does_not_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a single call can take longer than the entire warm-up should."""
    now = [0.0]

    def window(*_: object) -> list[int]:
        now[0] += 1.0
        return [1_000_000] * 20

    worker = Worker(io.StringIO())
    monkeypatch.setattr(worker, "_run_for", window)
    monkeypatch.setattr("edgekit.deploy.measuring.worker.time.monotonic", lambda: now[0])
    assert worker._warm_up(30.0) == ({"ms": 2000.0, "calls": 40, "settled": True}, 1_000_000)
