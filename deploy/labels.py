"""Class names: read from a file, and found in a list."""

from collections.abc import Sequence
from pathlib import Path

from .errors import DataError, unknown

# Largest file of class names: as many as a manifest may contain, each as long as possible.
_MAX_BYTES = 64 << 20


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one per line.

    Raises:
        DataError: the file cannot be read, is empty or too large, or repeats a name.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise DataError(f"{path} is too large for a list of labels", fix="a text file with one name per line")
        names = tuple(line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(
            f"cannot read the labels in {path}: {reason}", fix="a text file with one name per line"
        ) from error
    if not names or len(set(names)) != len(names):
        raise DataError(
            f"{path} is empty or has a label twice",
            fix="write one class name per line, without duplicates, in the order of the logits",
        )
    return names


def index_of(name: str, labels: Sequence[str], place: object) -> int:
    """The index of a class name in a list.

    Raises:
        DataError: it is not in the list; the message says in which `place` it was found.
    """
    try:
        return list(labels).index(name)
    except ValueError:
        raise DataError(
            f"{place}: {unknown('label', name, labels)}",
            fix="rename the folder or label, or pass images with the model's labels",
        ) from None
