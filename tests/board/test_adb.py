"""Devices behind the Android Debug Bridge: the real client with a test server (see bridge.py)."""

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.adb import Adb, open_board
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.devices.transport import CommandError
from edgekit.deploy.errors import DeviceError, LostDeviceError
from edgekit.deploy.measuring import cargo
from edgekit.deploy.measuring.plan import Plan
from edgekit.deploy.progress import silent
from edgekit.toolkit.doctor.diagnose import diagnose_device
from edgekit.toolkit.doctor.provision import provision, remove_all
from edgekit.toolkit.validation.validate import ValidateOptions, validate

from .bridge import Bridge, bridge, need_adb

QUICK = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5, threads=1)
PYTHON = sys.executable
PHONE = f"adb://PHONE1{PYTHON}"


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    """A server with one device, PHONE1, which this process's `adb` finds."""
    need_adb()
    with bridge(tmp_path / "phone") as server:
        monkeypatch.setenv("ADB_SERVER_SOCKET", server.socket_name)
        yield server


@pytest.fixture
def transport(phone: Bridge) -> Iterator[Adb]:
    """A connection to PHONE1."""
    with Adb("PHONE1", None) as connected:
        yield connected


def test_models_are_validated_over_the_bridge(phone: Bridge, fp32: Bundle, int8: Bundle) -> None:
    """Code, models and images are pushed once; the agent answers like the host; doctor works too."""
    result = validate(
        [int8], baseline=fp32, images="digits", limit=20, plan=QUICK, options=ValidateOptions(devices=[PHONE])
    )
    report = result.report
    assert report["device"]["name"] == PHONE
    assert report["images"] == 20
    assert all(model["host"] and model["host"]["differ"] == [] for model in report["models"])
    cache = phone.folder / ".cache/edgekit"
    assert not [
        path.name for path in cache.iterdir() if path.name.startswith(("job", "result-")) or "part" in path.name
    ]
    before = phone.pushed
    assert before >= 3
    described = diagnose_device(open_device(PHONE))
    assert described["remarks"] == []
    assert described["python"]["executable"] == PYTHON
    assert described["machine"]["machine"] == report["device"]["machine"]
    assert phone.pushed == before, "nothing is sent twice"
    assert remove_all(PHONE) == [str(cache)]
    assert not cache.exists()


def test_a_provisioned_python_is_found_without_its_path(
    phone: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A phone's Python is not in PATH, so provision needs its path; later commands do not."""
    bare, installed = phone.folder / "bare", phone.folder / ".cache/edgekit/venv/bin/python3"

    def install(*arguments: object) -> None:
        installed.parent.mkdir(parents=True)
        installed.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
        installed.chmod(0o755)

    bare.write_text(f'#!/bin/sh\nexec {PYTHON} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr("edgekit.deploy.devices.board.board.install", install)
    assert diagnose_device(open_device(f"adb://PHONE1{bare}"))["remarks"][0] == "it has no numpy"
    with caplog.at_level("INFO", "edgekit"):
        assert provision(f"adb://PHONE1{bare}", offline=False).keys() == {"numpy", "pillow", "onnxruntime"}
    assert "installed; from now on use --device adb://PHONE1," in caplog.text
    with open_device("adb://PHONE1") as device:
        assert "onnxruntime" in device.runtimes()


@pytest.mark.parametrize(
    ("state", "message", "fix"),
    [
        ("unauthorized", "does not trust this machine yet", "unlock it"),
        ("authorizing", "does not trust this machine yet", "unlock it"),
        ("offline", "is offline", "plug it in again"),
        ("no permissions", "may not be used by this account", "udev"),
        ("recovery", "its state is 'recovery'", "adb reboot"),
    ],
)
def test_a_device_that_is_not_ready_is_refused(phone: Bridge, state: str, message: str, fix: str) -> None:
    """The error is one line with a fix."""
    phone.devices = {"PHONE1": state}
    with pytest.raises(DeviceError, match=message) as caught:
        open_board("adb://PHONE1").__enter__()
    assert fix in caught.value.fix
    assert "\n" not in f"{caught.value}{caught.value.fix}"


@pytest.mark.parametrize(
    ("devices", "name", "message"),
    [
        ([], "adb://", "the Android device is not connected"),
        (["A", "B"], "adb://", "the Android device is not the only one connected"),
        (["A", "B"], "adb://C", "adb://C is not connected"),
        (["10.0.0.7:5555"], "adb://10.0.0.7:5556", "adb://10.0.0.7:5556 is not connected"),
    ],
)
def test_a_missing_or_ambiguous_device_is_refused(phone: Bridge, devices: list[str], name: str, message: str) -> None:
    """No device, several devices, or one with another serial number."""
    phone.devices = dict.fromkeys(devices, "device")
    with pytest.raises(DeviceError, match=message) as caught:
        open_board(name).__enter__()
    assert "adb" in caught.value.fix


def test_the_only_device_keeps_its_serial(phone: Bridge) -> None:
    """A device plugged in later is not used; a device over TCP is connected first."""
    with Adb(None, None) as connected:
        phone.devices["OTHER"] = "device"
        assert list(connected.run("echo here", "", 10.0)) == ["here"]
    phone.connectable = ["10.0.0.7:5555"]
    with Adb("10.0.0.7:5555", None) as connected:
        assert list(connected.run("echo there", "", 10.0)) == ["there"]


@pytest.mark.parametrize(
    "name",
    ["adb://-s", "adb://--help", "adb://a b", "adb://a;reboot", "adb://$(reboot)", "adb://a'b", f"adb://{'x' * 200}",
     "adb:PHONE1", "adb://a\nb", "adb://a@b"],
)  # fmt: skip
def test_an_invalid_adb_address_is_refused(name: str) -> None:
    """The error is raised before adb is called."""
    with pytest.raises(DeviceError):
        open_device(name)


def test_a_serial_number_from_the_bridge_is_checked(phone: Bridge) -> None:
    """It becomes a command argument and is shown to the user."""
    phone.devices = {"-H evil\x1b[31m": "device"}
    with pytest.raises(DeviceError, match="which is not a serial number") as caught:
        open_board("adb://").__enter__()
    assert str(caught.value).isprintable()


def test_commands_keep_their_quotes_and_exit_codes(transport: Adb) -> None:
    """Quotes, line breaks and input arrive unchanged; a failure has its exit code and last line."""
    text = 'it\'s "$HOME" `x`\n\\ two'
    assert list(transport.run("cat; printf '%s' \"it's\"", f"{text}\n", 10.0)) == [*text.splitlines(), "it's"]
    with pytest.raises(CommandError, match="exit code 7: no room"):
        list(transport.run("echo no room >&2; exit 7", "", 10.0))
    with pytest.raises(CommandError, match="exit code 1$"):
        list(transport.run("exec false", "", 10.0))


def test_files_are_sent_and_fetched(transport: Adb, phone: Bridge, tmp_path: Path) -> None:
    """Every byte arrives, under names with spaces and quotes; no more bytes than requested come back."""
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    remote = f"{phone.folder}/it's a file"
    transport.put(tmp_path / "file", remote, 0, lambda share: None)
    transport.get(remote, tmp_path / "back", len(content))
    assert (tmp_path / "back").read_bytes() == content
    with pytest.raises(DeviceError, match="sends more than the allowed 1000 bytes"):
        transport.get(remote, tmp_path / "bounded", 1000)
    with pytest.raises(DeviceError, match="cannot be fetched"):
        transport.get(f"{remote}?", tmp_path / "missing", 1000)


def test_a_file_that_the_device_cannot_store(transport: Adb, phone: Bridge, tmp_path: Path) -> None:
    """A full disk and a missing folder are reported as such, not as a lost connection."""
    (tmp_path / "file").write_bytes(bytes(100_000))
    with pytest.raises(DeviceError, match="a file cannot be sent"):
        transport.put(tmp_path / "file", f"{phone.folder}/no/such/folder", 0, lambda share: None)
    phone.full = True
    with pytest.raises(DeviceError, match="the disk is full"):
        transport.put(tmp_path / "file", f"{phone.folder}/file", 0, lambda share: None)


def test_a_cable_that_is_pulled(phone: Bridge, transport: Adb, until: Callable[..., None]) -> None:
    """The client's exit code does not show it: the command is lost, not successful."""
    lost: list[BaseException] = []

    def run() -> None:
        try:
            list(transport.run("echo started; exec sleep 30", "", 60.0))
        except BaseException as error:
            lost.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: any("sleep 30" in line for line in phone.shell_lines), 10)
    phone.devices.clear()
    phone.cut()
    thread.join(20)
    assert isinstance(lost[0], LostDeviceError)


@pytest.mark.parametrize("returns", [True, False])
def test_a_cable_that_is_pulled_during_a_measurement(
    phone: Bridge, fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returns: bool
) -> None:
    """An error follows in seconds, even if the device comes back; completed measurements are kept; the agent ends."""
    monkeypatch.setattr("edgekit.deploy.devices.board.attend.RECONNECT_S", 1.0)
    shown: list[str] = []
    plan = replace(QUICK, processes=3 if returns else 8)
    first = 1.2 / 3  # the first of the three processes that a slow model gets at least

    def show(stage: str, share: float) -> None:
        if stage.startswith("latency") and share > first and "cut" not in shown:
            shown.append("cut")
            if not returns:
                phone.devices.clear()
            phone.cut()
        shown.append(stage)

    def measure() -> Any:
        options = ValidateOptions(devices=[PHONE], keep=tmp_path / "kept")
        return validate([fp32], options, images="digits", limit=5, plan=plan, progress=show)

    with pytest.raises(LostDeviceError, match="is gone"):
        measure()
    assert "reconnecting" in shown
    assert (tmp_path / "kept/result.json").exists()
    deadline = time.monotonic() + 20
    while (phone.folder / ".cache/edgekit/job").exists():  # the agent notices that the host is gone
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_broken_transfer_is_repeated(phone: Bridge, tmp_path: Path) -> None:
    """The host reconnects and sends the file again from its start."""
    (tmp_path / "file").write_bytes(os.urandom(2_000_000))
    parcel = cargo.parcel(iter([("file", tmp_path / "file")]), tmp_path)
    phone.cut_after = 500_000
    with open_board(PHONE) as board:
        assert board.send([parcel], silent).files[parcel.sha256] == "whole"
    assert phone.cut_after is None


def test_a_shell_without_exit_codes_is_refused(phone: Bridge) -> None:
    """Android 6 and older have no exit codes."""
    phone.features = "cmd"
    with pytest.raises(DeviceError, match="has no shell that reports exit codes") as caught:
        open_board("adb://PHONE1").__enter__()
    assert "Android 7" in caught.value.fix


def test_adb_is_found(phone: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found in PATH or in the SDK; otherwise the error names what to install."""
    adb = shutil.which("adb")
    assert adb
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    monkeypatch.delenv("ANDROID_SDK_ROOT", raising=False)
    with pytest.raises(DeviceError, match="adb is not installed") as caught:
        open_board("adb://").__enter__()
    assert "apt install adb" in caught.value.fix
    tools = tmp_path / "sdk/platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").symlink_to(adb)
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    with open_board("adb://"):
        pass


def test_messages_of_the_bridge_are_one_bounded_line(phone: Bridge) -> None:
    """The server may send any text."""
    phone.answer = "first\n" + "\x1b[31m" + "x" * 60_000 + "\nlast"
    with pytest.raises(DeviceError, match="cannot be reached: last") as caught:
        open_board("adb://PHONE1").__enter__()
    assert re.fullmatch(r"[ -~]{1,300}", str(caught.value))
