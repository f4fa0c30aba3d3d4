"""Predict images with a bundle."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..deploy.bundle import Bundle
from ..deploy.errors import DataError
from ..deploy.files import write_file
from ..deploy.image_sources import open_images
from ..deploy.images import UNLABELLED, ImageSet
from ..deploy.postprocess import probabilities, ranked
from ..deploy.session import open_session
from ..deploy.shards import SHARD
from ..deploy.visible import visible
from .dataset_names import DATASETS
from .datasets import part_of

_GRID = 12

# Starts of a spreadsheet formula (OWASP, CSV injection), also in full width; and the mark of a cell with text.
_FORMULA = (*"=+-@\t\r\n＝＋－＠", "'")


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first, with their softmax confidences; its true label if known."""

    id: str
    labels: tuple[str, ...]
    confidences: tuple[float, ...]
    truth: str | None


def open_for_prediction(bundle: Bundle, source: str, *, skip_corrupt: bool = False) -> ImageSet:
    """Open an image file, a folder, or a named data set (its test part); labels refer to the bundle's list.

    Raises:
        DataError: there is no image at the path.
    """
    path = Path(source)
    if path.is_file() and path.suffix not in (".npz", SHARD):
        return ImageSet(bundle.manifest.labels, (path.name,), np.asarray([UNLABELLED]), [path])
    if source in DATASETS:
        images = part_of(bundle, "test", source)
        assert images is not None  # noqa: S101 # named sets always have a test part
        return images
    return open_images(path, bundle.manifest.labels, skip_corrupt=skip_corrupt)


def predict(bundle: Bundle, images: ImageSet | Path | str, top: int = 5) -> list[Prediction]:
    """The `top` best classes of each image, preprocessed as the bundle's manifest says.

    Args:
        images: a set of images, or a source for `open_for_prediction`.

    Raises:
        DataError: there are no images, or `top` is less than 1.
    """
    if not isinstance(images, ImageSet):
        images = open_for_prediction(bundle, str(images))
    if top < 1:
        raise DataError(f"--top {top} is too small", fix="pass 1 or more")
    session = open_session(bundle)
    names = bundle.manifest.labels
    predictions = []
    for sample in images:
        logits = session.run(bundle.manifest.preprocess(sample.image)[None])[0]
        shares, best = probabilities(logits), ranked(logits, top)
        truth = None if sample.label == UNLABELLED else names[sample.label]
        predictions.append(
            Prediction(sample.id, tuple(names[i] for i in best), tuple(float(shares[i]) for i in best), truth)
        )
    session.close()
    return predictions


def write_csv(predictions: list[Prediction], path: Path) -> None:
    """Write `Image,Category` with the best class of each image.

    A spreadsheet runs a cell that begins like a formula. Such a cell, and one that begins with an apostrophe, gets an
    apostrophe in front. A program restores the name by removing one leading apostrophe.
    """
    stream = io.StringIO()
    rows = [("Image", "Category"), *((_cell(prediction.id), _cell(prediction.labels[0])) for prediction in predictions)]
    # csv quotes only cells with its own line terminator
    quoting = csv.QUOTE_ALL if any("\r" in cell for row in rows for cell in row) else csv.QUOTE_MINIMAL
    csv.writer(stream, lineterminator="\n", quoting=quoting).writerows(rows)
    write_file(path, stream.getvalue().encode(errors="surrogateescape"))  # file names may be any bytes


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def draw_grid(images: ImageSet, predictions: list[Prediction], path: Path, seed: int = 0) -> None:
    """Draw a PNG of up to 12 random images with their true and predicted labels; wrong ones are marked in red."""
    from matplotlib.figure import Figure

    chosen = np.random.default_rng(seed).permutation(len(images))[:_GRID]
    columns = min(4, len(chosen))
    figure = Figure(figsize=(2.4 * columns, 2.7 * -(-len(chosen) // columns)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(-(-len(chosen) // columns), columns)).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(axes, chosen, strict=False):
        prediction, image = predictions[index], images[index].image
        axis.imshow(np.asarray(image.convert("RGB")))
        wrong = prediction.truth is not None and prediction.truth != prediction.labels[0]
        truth = "" if prediction.truth is None else f"\ntrue: {visible(prediction.truth)}"
        axis.set_title(
            f"{visible(prediction.labels[0])} ({prediction.confidences[0]:.0%}){truth}", fontsize=9,
            color="crimson" if wrong else "black", parse_math=False,
        )  # fmt: skip
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    write_file(path, stream.getvalue())
