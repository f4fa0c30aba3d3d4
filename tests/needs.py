"""What some tests need beside Python: without it they are skipped, and the end of the run says what was not run."""

import os
from collections import Counter
from collections.abc import Iterable

import pytest

_NEEDS = "needs "


def need(there: object, what: str, how: str, variable: str) -> None:
    """Skip the test where something is not there; fail it where the environment says `variable=required`."""
    if not there:
        reason = f"{_NEEDS}{what}: {how}"
        (pytest.fail if os.environ.get(variable) == "required" else pytest.skip)(reason)


def summary(reasons: Iterable[str]) -> str | None:
    """One line on the tests that were skipped by `need`; None where all of them ran."""
    counts = Counter(reason.partition(_NEEDS)[2] for reason in reasons if reason.startswith(f"Skipped: {_NEEDS}"))
    if not counts:
        return None
    return f"not run here: {'; '.join(f'{count} that need {reason}' for reason, count in counts.most_common())}. \
make test-all installs what it may."
