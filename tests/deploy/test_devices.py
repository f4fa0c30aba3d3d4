"""The device registry: what each kind can do, and that no other code checks a device's name."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from edgekit.deploy.devices.board.board import Board
from edgekit.deploy.devices.device import DEVICES, addresses, kind_of, open_device
from edgekit.deploy.errors import DeviceError
from edgekit.toolkit.doctor.provision import provision

ROOT = Path(__file__).parent.parent.parent
NAMES = {"local": "local", "ssh": "ssh://pi@board", "adb": "adb://PHONE1", "browser": "browser",
         "browser+webgpu": "browser+webgpu"}  # fmt: skip


@pytest.mark.parametrize("kind", DEVICES)
def test_every_kind_has_the_methods_of_its_abilities(kind: str) -> None:
    """Each kind implements the methods of its declared abilities and no others; NAMES needs an example of each."""
    from edgekit.deploy.devices.device import Device

    device = open_device(NAMES[kind])
    assert device.name == NAMES[kind]
    assert device.here == (kind == "local")
    assert NAMES[kind].partition("://")[0] in addresses()
    methods = {"build": ["build"], "describe": ["describe"], "provision": ["provision", "clean"]}
    for ability, names in methods.items():
        if ability in DEVICES[kind].can:
            device.require(ability)
            overridden = [getattr(type(device), name) is not getattr(Device, name) for name in names]
            assert all(overridden) or device.here, f"{kind} cannot {ability}"
        else:
            with pytest.raises(DeviceError, match=re.escape(NAMES[kind])) as caught:
                device.require(ability)
            assert addresses(ability) in caught.value.fix


def test_a_board_is_the_same_over_every_transport() -> None:
    """Code above the transport does not know which transport is used."""
    assert {kind for kind in DEVICES if isinstance(open_device(NAMES[kind]), Board)} == {"ssh", "adb"}
    for path in (ROOT / "deploy/devices/board").glob("*.py"):
        imported = {name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
                    for name in (node.module or "").split(".")}  # fmt: skip
        assert not imported & DEVICES.keys(), path


def test_a_setting_reaches_the_kinds_that_use_it(tmp_path: Path) -> None:
    """A board ignores the folder of the browser's files."""
    assert "ort_web" in kind_of("browser").settings
    open_device("ssh://board", ort_web=tmp_path)
    with pytest.raises(DeviceError, match="ONNX Runtime Web is not installed"):
        open_device("browser", ort_web=tmp_path).__enter__()


@pytest.mark.parametrize("name", ["local", "browser"])
def test_devices_that_cannot_be_provisioned_are_refused(name: str) -> None:
    """The error is raised before anything is connected or downloaded."""
    with pytest.raises(DeviceError, match="does not support installing packages") as caught:
        provision(name, offline=True)
    assert "ssh://" in caught.value.fix
    assert "adb://" in caught.value.fix


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor", "--device", "browser"], "browser can be examined only during a measurement"),
        (["doctor", "--device", "serial://x"], "unknown device 'serial'"),
        (["provision", "--device", "browser", "--clean"], "browser does not support installing packages"),
        (["doctor", "--device", "ssh://board", "--self-test"], "the self-test runs on this machine only"),
        (["doctor", "--device", "local://x"], "local://x is not this machine"),
    ],
)
def test_commands_refuse_what_a_device_cannot_do(
    arguments: list[str], message: str, edgekit: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The error is one line, with exit code 1."""
    assert message in edgekit(*arguments, code=1).stderr


def test_doctor_of_this_machine_by_name(edgekit: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`--device local` shows the same as no `--device`."""
    assert "torch" in edgekit("doctor", "--device", "local", "--json").stdout


@pytest.mark.parametrize("command", ["validate", "build", "doctor", "provision"])
def test_help_lists_the_devices_of_the_registry(command: str) -> None:
    """It lists the devices with the ability that the command needs."""
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", command, "--help"], capture_output=True, text=True, check=True
    )
    shown = re.sub(r"[\s│]+", "", done.stdout)
    ability = {"build": "build", "doctor": "describe", "provision": "provision"}.get(command)
    assert re.sub(r"\s+", "", addresses(ability)) in shown  # type: ignore[arg-type]


def _device_names(tree: ast.AST) -> list[str]:
    """Text constants that begin like a device's name, in comparisons and in calls such as startswith."""
    places = [
        [node.left, *node.comparators]
        if isinstance(node, ast.Compare)
        else node.args
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "removeprefix", "partition")
        else []
        for node in ast.walk(tree)
    ]
    constants = [
        inner.value
        for place in places
        for part in place
        for inner in ast.walk(part)
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    ]
    return [value for value in constants if value.partition("://")[0].rstrip("+") in DEVICES]


def test_no_module_checks_a_device_name() -> None:
    """Code outside deploy/devices checks what a device can do, not what it is called."""
    modules = [path for folder in ("deploy", "toolkit", "export", "models") for path in (ROOT / folder).rglob("*.py")]
    for path in modules:
        if "devices" not in path.relative_to(ROOT).parts:
            assert _device_names(ast.parse(path.read_text())) == [], path
