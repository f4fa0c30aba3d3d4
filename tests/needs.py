"""Programs that some tests need: without them the tests are skipped, and the end of the run reports it."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

_NEEDS = "needs "


def need(available: object, requirement: str, how: str, variable: str) -> None:
    """Skip the test unless the requirement is available; fail it if the environment has `variable=required`."""
    if not available:
        reason = f"{_NEEDS}{requirement}: {how}"
        (pytest.fail if os.environ.get(variable) == "required" else pytest.skip)(reason)


def summary(reasons: Iterable[str]) -> str | None:
    """One line on the tests that `need` skipped; None if all of them ran."""
    counts = Counter(reason.partition(_NEEDS)[2] for reason in reasons if reason.startswith(f"Skipped: {_NEEDS}"))
    if not counts:
        return None
    return f"not run here: {'; '.join(f'{count} that need {reason}' for reason, count in counts.most_common())}. \
make test-all installs what it may."


def need_converter(format: str) -> None:
    """Skip the test if the format's converter, which the first export installs, is not there."""
    if format == "litert":
        from edgekit.export.litert_packages import packages_place

        need(packages_place().is_dir(), "the LiteRT converter", "edgekit export --format litert", "EDGEKIT_LITERT")


def make_ssh_keys(path: Path, kind: str = "ed25519", passphrase: str = "") -> None:
    """Write a private key to `path` and its public key beside it, as users do."""
    need(shutil.which("ssh-keygen"), "ssh-keygen", "apt install openssh-client", "EDGEKIT_BOARD")
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", path], check=True)
