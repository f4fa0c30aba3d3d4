"""Answers of devices are hostile until checked: typed, bounded, consistent with the request, never a path."""

import contextlib
import json
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices import transport
from edgekit.deploy.devices.board.board import Board
from edgekit.deploy.devices.board.probe import Facts, Probe, Wanted
from edgekit.deploy.devices.ssh import Address, Ssh, open_board
from edgekit.deploy.devices.transport import CommandError, ended
from edgekit.deploy.engine.build import Options
from edgekit.deploy.errors import BundleError, DeviceError, EdgeKitError, LostDeviceError
from edgekit.deploy.measuring import agent, cargo
from edgekit.deploy.measuring.agent import Measured, follow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.toolkit.conftest import ENVIRONMENT, measurement

FACTS = Facts((3, 11, 2), "/usr/bin/python3", "/usr/bin/python3", "aarch64", ("glibc", "2.36"), "Linux",
              "/home/pi/.cache/edgekit", True, 1e9, 1 << 30, 0)  # fmt: skip

CONNECTION = Ssh(Address("pi", "board", None, None))
PROBE = Probe(FACTS, "/home/pi/.cache/edgekit", {}, {}, None, None, {"tensorrt": "10.1"})

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def _silent(stage: str, share: float) -> None:
    pass


@pytest.mark.parametrize(
    "name", ["/tmp/owned", "../../owned", "a" * 63, "A" * 64, "", None, 7, ["x"], "a" * 64 + "\n!id"]
)
def test_a_board_cannot_name_a_file_on_the_host(
    name: object, fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine is fetched by its hash to a name that the host chooses, or not at all."""
    board, probe = open_board("ssh://board"), PROBE
    fetched: list[str] = []
    monkeypatch.setattr(Board, "_check", lambda self: None)
    monkeypatch.setattr(Board, "inspect", lambda self: probe)
    monkeypatch.setattr(Board, "_run", lambda self, *arguments: (probe, {"parcel": name}))
    monkeypatch.setattr(Ssh, "get", lambda self, remote, path, most: fetched.append(remote))
    with pytest.raises(DeviceError, match="not a hash"):
        board.build(fp32, Options(), tmp_path / "made", _silent)
    assert fetched == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"x", "arrived damaged"),
        (b"", "did not return an engine of"),
        (None, "contains something that is not a bundle"),
    ],
)
def test_a_board_returns_an_engine_of_the_model_that_was_sent(
    damage: bytes | None, message: str, fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hash, format and lineage are checked; here the model itself comes back, or an archive of other files."""
    files = cargo.code("deploy") if damage is None else cargo.bundle_files(fp32, cargo.bundle_folder(fp32))
    parcel = cargo.parcel(files, tmp_path)
    parcel.path.write_bytes(parcel.path.read_bytes() + (damage or b""))
    board, probe = open_board("ssh://board"), PROBE
    monkeypatch.setattr(Board, "_check", lambda self: None)
    monkeypatch.setattr(Board, "inspect", lambda self: probe)
    monkeypatch.setattr(Board, "_run", lambda self, *arguments: (probe, {"parcel": parcel.sha256}))
    monkeypatch.setattr(Ssh, "get", lambda self, remote, path, most: shutil.copy(parcel.path, path))
    with pytest.raises(EdgeKitError, match=message):
        board.build(fp32, Options(), tmp_path / "made", _silent)
    assert not (tmp_path / "made").exists()


def _zip(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "entries",
    [{"bundles/a/model": b"", "bundles/a/../../outside": b"x"}, {"bundles/../../outside/x": b""}, {"/outside/a/b": b""},
     {"bundles/a/x": b"", "bundles/a/./y": b""}, {"bundles/a//x": b""}, {"bundles\\a\\x": b""}, {"bundles/x": b""},
     {"other/a/x": b""},
     {"bundles/a/x": bytes(20 << 20)}, {}],
)  # fmt: skip
def test_a_device_archive_contains_only_bundles(entries: dict[str, bytes], tmp_path: Path) -> None:
    """Nothing is unpacked outside its folder, and no more than the size limit."""
    parcel = _zip(tmp_path / "parcel", **entries)
    (tmp_path / "in").mkdir()
    with pytest.raises(BundleError, match="the engine from pi"):
        cargo.unpack_bundles(parcel, tmp_path / "in" / "unpacked", 10 << 20, "the engine from pi")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "in" / "outside").exists()


@pytest.mark.parametrize(
    "message",
    [{"error": 3, "fix": "x"}, {"error": "x"}, {"progress": 3, "share": 0}, {"progress": "x", "share": "y"},
     {"progress": "x"}, {"progress": "x", "share": float("nan")}, {"result": 3}, {"result": None},
     {"progress": "x" * 100_000, "share": 0.5}, {"error": [], "fix": []}, {"result": [1]}],
)  # fmt: skip
def test_malformed_messages_are_one_line_errors(message: dict) -> None:
    """Never a traceback."""
    with pytest.raises(EdgeKitError):
        follow([json.dumps(message)], _silent)


def test_lines_that_are_not_messages_are_skipped() -> None:
    """The output of a login script is skipped; the result after it counts."""
    lines = [
        "Welcome!",
        "[1, 2]",
        '"x"',
        "{",
        "[" * 100_000,
        f"[{'[],' * 3_000_000}1]",
        '{"motd": 1}',
        '{"result": {"a": 1}}',
    ]
    assert follow(lines, _silent) == {"a": 1}


@pytest.fixture
def answer(fp32: Bundle) -> dict[str, Any]:
    """A device's answer for three images."""
    measured = Measured(ENVIRONMENT, [measurement(fp32, 1.0, np.asarray([1, 2, 3]))])
    return json.loads(json.dumps(measured.to_json()))


def test_a_valid_answer_is_read(answer: dict, fp32: Bundle) -> None:
    """Reading it gives what was written."""
    assert json.loads(json.dumps(Measured.from_json(answer, "pi", [fp32], 3).to_json())) == answer


@pytest.mark.parametrize(
    "change",
    [lambda entry: entry.update(bundle="other"), lambda entry: entry["predictions"].update(classes=[1, 2]),
     lambda entry: entry["predictions"].update(confidences=[0.5, 0.5, float("nan")]),
     lambda entry: entry["predictions"].update(confidences=[0.5, 0.5, 1.5]),
     lambda entry: entry["predictions"].update(classes=[1, 2, 99]), lambda entry: entry.update(predictions=None),
     lambda entry: entry.update(blocks=[]), lambda entry: entry["blocks"][0].update(ns=[]),
     lambda entry: entry["blocks"][0].update(ns=[0]), lambda entry: entry["blocks"][0].update(calls=0),
     lambda entry: entry.update(golden_logits=[[1.0]]), lambda entry: entry.update(parity={}),
     lambda entry: entry.update(x=1), lambda entry: entry["session"].update(runtime=["x"]),
     lambda entry: entry.update(warm_ups=[])],
)  # fmt: skip
def test_an_answer_must_match_the_request(answer: dict, fp32: Bundle, change: Callable[[dict], object]) -> None:
    """Models, images and classes match the request, and times are valid."""
    change(answer["measurements"][0])
    with pytest.raises(DeviceError, match="pi sent an invalid measurement"):
        Measured.from_json(answer, "pi", [fp32], 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=anything)
def test_any_edit_of_an_answer_is_accepted_or_refused(
    answer: dict, fp32: Bundle, data: st.DataObject, value: object
) -> None:
    """Any entry may have any value."""
    changed = json.loads(json.dumps(answer))
    container: Any = changed
    while True:
        key = data.draw(
            st.sampled_from(sorted(container) if isinstance(container, dict) else list(range(min(3, len(container)))))
        )
        if not isinstance(container[key], dict | list) or not container[key] or data.draw(st.integers(0, 3)) == 0:
            break
        container = container[key]
    container[key] = value
    try:
        Measured.from_json(json.loads(json.dumps(changed)), "pi", [fp32], 3)
    except DeviceError:
        return


@pytest.mark.parametrize(
    "message",
    [{"facts": 3}, {"facts": {}}, {"facts": {**FACTS._asdict(), "cache": "relative"}},
     {"facts": {**FACTS._asdict(), "cache": "/x\n!touch owned"}}, {"facts": {**FACTS._asdict(), "python": "3.11"}},
     {"facts": {**FACTS._asdict(), "executable": "/usr/bin/python3\x1b[31m"}}, {"code": "relative"}, {"files": [1]},
     {"collected": 7}, {"imported": ["x"]}],
)  # fmt: skip
def test_a_probe_refuses_invalid_paths(message: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder with a line break would be a command in sftp's batch language."""
    monkeypatch.setattr(Board, "_ask", lambda self, request: iter([json.loads(json.dumps(message))]))
    with pytest.raises(DeviceError, match="sent an invalid message"):
        open_board("ssh://board").probe(Wanted())


def test_a_probe_accepts_a_valid_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that were not requested are ignored."""
    messages = [{"facts": FACTS._asdict()}, {"files": {"a": "whole", "b": 3}}, {"motd": 1},
                {"imported": "numpy", "version": "2"}, {"imported": "evil", "version": "1"}]  # fmt: skip
    monkeypatch.setattr(Board, "_ask", lambda self, request: iter(json.loads(json.dumps(messages))))
    probe = open_board("ssh://board").probe(Wanted(land=["a"], packages=["numpy"]))
    assert probe.files == {"a": "whole"}
    assert probe.packages.keys() == {"numpy"}


@contextlib.contextmanager
def _started(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a local process in place of a command on a board."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe)
    with ended(process):
        yield process
        process.kill()


@pytest.mark.parametrize(
    "program",
    ["import sys\nwhile True: sys.stdout.write('x' * 100_000)", "while True: print('x')", "while True: print()",
     "import sys\nwhile True: sys.stderr.write('y' * 10_000); print('x' * 10_000)"],
)  # fmt: skip
def test_endless_output_ends(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless line or endless lines, with endless errors too; memory holds one line and the queue."""
    monkeypatch.setattr(transport, "_MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(transport, "_MAX_LINES", 10_000)
    tracemalloc.start()
    try:
        with _started(program) as process, pytest.raises(DeviceError, match="prints too much"):
            for _ in CONNECTION.lines(process, 20.0):
                pass
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "program",
    ["import time; time.sleep(60)", "import time\nwhile True: print('.', end='', flush=True); time.sleep(0.05)",
     "import sys\nwhile True: sys.stderr.write('y' * 1000)",
     "import os, time; os.close(1); os.close(2); time.sleep(60)"],
)  # fmt: skip
def test_a_command_without_complete_lines_is_lost(program: str) -> None:
    """It is silent, prints single characters, prints only errors, or closes its output and runs on."""
    with _started(program) as process, pytest.raises(LostDeviceError, match="no output for 1 s|does not end"):
        list(CONNECTION.lines(process, 1.0))


def test_the_lines_of_a_command_arrive() -> None:
    """Complete, in order, also a last line without a line end; a failure quotes the last error line."""
    accents = "\u00e9" * 70_000
    with _started("print('a'); print(); print('\u00e9' * 70_000); print('z', end='')") as process:
        assert list(CONNECTION.lines(process, 20.0)) == ["a", "", accents, "z"]
    failing = _started("import sys; print('no room', file=sys.stderr); sys.exit(3)")
    with failing as process, pytest.raises(CommandError, match="exit code 3: no room"):
        list(CONNECTION.lines(process, 20.0))


@pytest.mark.parametrize(("size", "fits"), [(0, True), (3_000_000, True), (3_000_001, False), (1 << 40, False)])
def test_a_file_from_a_board_is_bounded(
    size: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Whatever its size on the board, no more bytes than requested are written."""
    program = f"import sys\nfor at in range(0, {size}, 100_000): sys.stdout.write('x' * min(100_000, {size} - at))"
    path = tmp_path / "fetched"
    with _started(program) as process:
        monkeypatch.setattr(Ssh, "start", lambda self, command: process)
        monkeypatch.setattr(transport, "ended", lambda process: contextlib.nullcontext())
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(DeviceError, match="sends more than the allowed 3000000 bytes")
        ):
            CONNECTION.get("/cache/x", path, 3_000_000)
    assert path.stat().st_size == size if fits else path.stat().st_size <= 3_000_000


def test_the_agent_s_own_answer_is_accepted(fp32: Bundle, tmp_path: Path) -> None:
    """The real agent runs a job, and its answer passes the checks."""
    job = {"bundles": {fp32.id: str(fp32.path)}, "device": None,
           "plan": {"seconds": 0.1, "rounds": 2, "processes": 3, "threads": 1}}  # fmt: skip
    (tmp_path / agent.JOB).write_text(json.dumps(job))
    messages: list[dict] = []
    agent.run_and_report(tmp_path, messages.append)
    lines = [json.dumps(message) for message in messages]
    assert len(Measured.from_json(follow(lines, _silent), "local", [fp32], 0).measurements) == 1
