"""A short campaign, and every case that ever failed, in a separate process that keeps the limits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from edgekit.deploy.errors import EdgeKitError

from tests.fuzz.campaign import make_case, schedule
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]


def _campaign(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.campaign", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_short_campaign_has_no_failures() -> None:
    """Every kept case, then new ones of all targets in turn; the seed makes them reproducible."""
    done = _campaign("--kept", "--cases", "1500", "--seconds", "5", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(line.split()[:2] for line in done.stdout.splitlines() if " refused, " in line)
    assert counts.keys() == TARGETS.keys()


def test_a_case_is_reproducible() -> None:
    """Its number and the seed determine it, so a campaign can be repeated."""
    for number, name in enumerate(schedule(list(TARGETS))[:40]):
        if name != "program":
            assert make_case(name, number, 7) == make_case(name, number, 7)


def test_failures_are_detected(tmp_path: Path) -> None:
    """Tracebacks, too much memory or time, files outside the folder, and processes."""
    code = f"""
import os, sys
from pathlib import Path
from tests.fuzz import campaign, guard, targets
guard.SECONDS = 1.0
kinds = {{
    "error": lambda case, folder: 1 / 0,
    "slow": lambda case, folder: spin(),
    "large": lambda case, folder: b"x" * (300 << 20),
    "written": lambda case, folder: Path({str(tmp_path / "out")!r}).write_text("x"),
    "above": lambda case, folder: Path("../outside").write_text("x"),
    "read": lambda case, folder: Path("/etc/hostname").read_text(),
    "process": lambda case, folder: os.system("true"),
    "hidden": lambda case, folder: hide(),
    "good": lambda case, folder: Path("inside").write_text("x"),
}}
def spin():
    while True:
        pass
def hide():
    try:
        os.system("true")
    except BaseException:
        pass
folder = Path({str(tmp_path)!r}) / "scratch"
folder.mkdir()
guarded = guard.Guard()
guarded.limit_memory()
for name, run in kinds.items():
    targets.TARGETS[name] = targets.Target(lambda: [b""], lambda random, seed: seed, run)
    (folder / name).mkdir()
    print(name, campaign.run_case(guarded, name, b"", folder / name).split("\\t")[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    outcomes = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert outcomes.pop("good") == "accepted"
    kinds = {name: outcome.split()[1] for name, outcome in outcomes.items()}
    assert kinds == {
        "error": "ZeroDivisionError", "slow": "Slow", "large": "LargeError", "written": "Escape", "above": "Escape",
        "read": "Escape", "process": "Escape", "hidden": "Escape",
    }  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["browser", "plan", "report", "result"])
def test_seeds_are_valid(name: str, tmp_path: Path) -> None:
    """Otherwise no case would get past the first check."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed, tmp_path)
        with pytest.raises(EdgeKitError):
            TARGETS[name].run(json.dumps({"schema": 4, "models": 1}).encode(), tmp_path)
