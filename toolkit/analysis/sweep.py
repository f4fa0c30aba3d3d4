"""What a sweep found, as one row per point."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TypedDict


class SweepRow(TypedDict):
    """A point of a sweep. If it is not trained, there are no figures, and the note says why.

    Attributes:
        point: name of its folder in the sweep's folder.
        values: key of the recipe -> its value at this point.
        epochs: number of complete epochs.
        test_accuracy: of the epoch that is best on the validation part; on test_images images, with the bounds of its
            95 % interval.
        best_validation: the accuracy by which that epoch was chosen.
        seconds: for all epochs, without reading the images.
        images_per_s: the median over the epochs.
        note: why it is not trained, or a warning on its curves; else "".
    """

    point: str
    values: Mapping[str, object]
    trained: bool
    epochs: int
    test_accuracy: float | None
    test_accuracy_low: float | None
    test_accuracy_high: float | None
    test_images: int | None
    best_validation: float | None
    seconds: float | None
    images_per_s: float | None
    note: str


def sweep_csv(rows: Sequence[SweepRow]) -> str:
    """The rows as CSV, with a column for each swept key."""
    stream = io.StringIO()
    flat = [{"point": row["point"], **row["values"], **{k: row[k] for k in row if k != "values"}} for row in rows]
    writer = csv.DictWriter(stream, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()
