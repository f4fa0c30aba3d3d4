"""Run cases: `python -m tests.fuzz.campaign --cases 1000000`, or replay a failed one: `--replay FILE`.

A case depends only on its number and the seed, so a campaign, or any part of it, can be repeated. A case fails if it
raises anything but EdgeKitError, exceeds the time or memory of tests/fuzz/guard.py, or touches anything outside its
folder. Failing cases are saved under tests/fuzz/failures/, one per kind of failure.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

from edgekit.deploy.errors import EdgeKitError

from tests.fuzz.guard import Escape, Guard, Slow
from tests.fuzz.targets import TARGETS, quiet

HERE = Path(__file__).parent
# The outcomes that are not failures.
EXPECTED = ("accepted", "refused")


@dataclass
class Outcome:
    """The result of a campaign: cases, refused cases and seconds by target; failures by kind."""

    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)


def make_case(name: str, number: int, seed: int) -> bytes:
    """Make the case with this number."""
    random = Random(f"{seed}/{number}/{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicate names in zip files are intended
        return TARGETS[name].mutate(random, random.choice(_seeds(name)))


@cache
def _seeds(name: str) -> list[bytes]:
    return TARGETS[name].seeds()


def run_case(guard: Guard, name: str, case: bytes, folder: Path) -> str:
    """Run a case; return "accepted", "refused", or the failure."""
    try:
        with guard.case(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[name].run(case, folder)
    except EdgeKitError:
        return "refused"
    except (Exception, Escape, Slow) as error:
        frames = traceback.extract_tb(error.__traceback__)
        product = [frame for frame in frames if f"{os.sep}tests{os.sep}" not in frame.filename] or frames
        last = next((frame for frame in reversed(product) if "site-packages" not in frame.filename), product[-1])
        place = f"{Path(last.filename).name}:{last.lineno}"
        return f"{name}: {type(error).__name__} at {place}\t{str(error)[:160]!r}"
    return "accepted"


def schedule(names: Sequence[str]) -> list[str]:
    """One round of targets, each as often as its weight, interleaved."""
    return [
        name
        for turn in range(max(TARGETS[name].weight for name in names))
        for name in names
        if turn < TARGETS[name].weight
    ]


def campaign(
    guard: Guard, names: Sequence[str], cases: int, seconds: float, seed: int, folder: Path
) -> Outcome:  # fmt: skip
    """Run this many cases, or as many as fit into the time."""
    outcome, turns, end = Outcome(), schedule(names), time.monotonic() + seconds
    for number in range(cases):
        if time.monotonic() > end:
            break
        name = turns[number % len(turns)]
        begun = time.process_time()
        case = make_case(name, number, seed)
        scratch = folder / name
        scratch.mkdir(exist_ok=True)
        result = run_case(guard, name, case, scratch)
        outcome.seconds[name] += time.process_time() - begun
        outcome.cases[name] += 1
        outcome.refused[name] += result == "refused"
        if result not in EXPECTED:
            kind = result.partition("\t")[0]
            outcome.failures[kind] += 1
            outcome.examples.setdefault(kind, (result, case))
    return outcome


def run_kept(guard: Guard, names: Sequence[str], folder: Path) -> int:
    """Run the cases that failed in the past; return how many fail again."""
    failed = 0
    for path in sorted((HERE / "corpus" / "cases").iterdir()):
        name = path.name.partition("-")[0]
        if name in names and (result := run_case(guard, name, path.read_bytes(), folder / name)) not in EXPECTED:
            print(f"{path.name}: {result}")
            failed += 1
    return failed


def start(names: Sequence[str], folder: Path) -> Guard:
    """Read every seed unchanged, then limit this process."""
    quiet()
    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    guard = Guard()
    for name in names:
        (folder / name).mkdir()
        for seed in _seeds(name):
            with contextlib.suppress(EdgeKitError):  # an engine is valid, but does not run here
                TARGETS[name].run(seed, folder / name)
    guard.limit_memory()
    return guard


def main() -> int:
    """Run a campaign; exit code 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--kept", action="store_true", help="first run the cases that failed in the past")
    parser.add_argument("--replay", type=Path, help="a saved case, whose name begins with its target's")
    arguments = parser.parse_args()
    names = arguments.target or list(TARGETS)
    with tempfile.TemporaryDirectory(prefix="edgekit-fuzz-") as scratch:
        if arguments.replay:
            name = arguments.replay.name.partition("-")[0]
            case = arguments.replay.read_bytes()
            TARGETS[name].run(case, Path(scratch))
            return 0
        guard = start(names, Path(scratch))
        print(f"seed {arguments.seed}", flush=True)
        begun, worked = time.monotonic(), time.process_time()
        failed = run_kept(guard, names, Path(scratch)) if arguments.kept else 0
        outcome = campaign(guard, names, arguments.cases, arguments.seconds, arguments.seed, Path(scratch))
        elapsed, busy = time.monotonic() - begun, time.process_time() - worked
    total = sum(outcome.cases.values())
    for name, count in outcome.cases.items():
        refused, ms = outcome.refused[name] / count, outcome.seconds[name] / count * 1e3
        print(f"{name:12} {count:8} cases, {refused:4.0%} refused, {ms:.2f} ms")
    print(f"{total} cases in {elapsed:.0f} s, {sum(outcome.failures.values())} failed")
    print(f"{total / elapsed:.0f} per second, {total / busy:.0f} per second of processor time")
    for kind, count in outcome.failures.most_common():
        message, case = outcome.examples[kind]
        path = HERE / "failures" / f"{kind.partition(':')[0]}-{hashlib.sha256(case).hexdigest()[:16]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(case)
        print(f"{count:6} x {message}\n         {path}")
    return 1 if outcome.failures or failed else 0


if __name__ == "__main__":
    sys.exit(main())
