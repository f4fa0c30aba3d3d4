"""Test images that a model was made with: identical images are left out, similar ones are listed."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.errors import DataError
from ...deploy.fingerprints import appearance, distances, fingerprint
from ...deploy.images import ImageSet
from ...deploy.measuring.result import NearDuplicate, Overlap
from ..datasets import BundleImages, calibration_of

_log = logging.getLogger(__name__)

# The parts of a bundle whose images influenced the model -> their names in messages.
_SEEN = {
    "train": "training", "validation": "validation", "calibration": "calibration", "selection": "selection",
    "earlier": "earlier training",
}  # fmt: skip

# Two images look alike if at most this many bits differ, of 63 and of 64. 300 synthetic photographs, as JPEG of quality
# 60 or scaled to half, double or a fifth of their size, differed by at most 2 and 8; the closest different ones by 14.
# Of 2,000 Fashion-MNIST images, which are very similar, 22 look like one of 20,000 others.
_LOW_BITS, _HIGH_BITS = 2, 8
# Maximum length of each list in a report.
_MAX_LISTED = 20


class _Block(NamedTuple):
    """Consecutive rows of fingerprints, of the images of one part."""

    part: str
    ids: Sequence[str]
    rows: np.ndarray


def unseen(
    bundles: Sequence[Bundle], test: ImageSet, *, own: bool, limit: int | None = None
) -> tuple[ImageSet, Overlap]:
    """The test images that none of the models was made with, and the overlap of the others.

    Args:
        own: `test` is the first bundle's own test part, whose fingerprints it may record.
        limit: take at most this many of these images, drawn by class.

    Raises:
        DataError: no image is left.
    """
    bundles = list({bundle.id: bundle for bundle in bundles}.values())
    recorded = [bundle.fingerprints() for bundle in bundles]
    unchecked = [str(bundle.path) for bundle, parts in zip(bundles, recorded, strict=True) if not parts]
    if unchecked:
        _log.info(
            f"cannot check whether {', '.join(unchecked)} has seen test images: it records no fingerprints of images"
        )
    blocks = [block for bundle, parts in zip(bundles, recorded, strict=True) for block in _blocks(bundle, parts)]
    if not blocks:
        return _limited(test, limit), Overlap(tuple(unchecked))
    rows = _recorded(bundles[0], recorded[0], test) if own else None
    appearance_known = rows is not None
    if rows is None:
        rows = fingerprint(test, looks=False)
    seen = np.concatenate([block.rows for block in blocks])
    repeated = np.flatnonzero(np.isin(rows[:, 0], seen[:, 0]))
    excluded = tuple(test.ids[index] for index in repeated)
    if excluded:
        other = _named(blocks, int(np.flatnonzero(seen[:, 0] == rows[repeated[0], 0])[0]))
        example = f"{excluded[0]} is {other}"
        if len(excluded) == len(test):
            raise DataError(
                f"the model was made with all {len(test)} test images: {example}", fix="pass --images with others"
            )
        _log.info(f"left out {len(excluded)} of {len(test)} test images that the model was made with: {example}")
    remaining = _limited(test.take(np.setdiff1d(np.arange(len(test)), repeated)) if excluded else test, limit)
    appearances = rows[_indices(test, remaining), 1:] if appearance_known else appearance(remaining)
    pairs = _alike(remaining, appearances, seen, blocks)
    if pairs:
        shown = ", ".join(f"{pair.id} like {pair.other}" for pair in pairs[:3])
        _log.info(f"{len(pairs)} of {len(remaining)} test images look like ones that the model was made with: {shown}")
    searched = len(np.unique(seen[seen[:, 1] != 0, 0])), len(np.unique(seen[:, 0]))
    return remaining, Overlap(
        tuple(unchecked), len(excluded), excluded[:_MAX_LISTED], len(pairs), tuple(pairs[:_MAX_LISTED]), searched
    )


def used_elsewhere(source: BundleImages, details: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Fingerprints of the images that quantize used from outside the bundle's own data set."""
    if source.own:
        return {}
    used = {"selection": source.part("validation")}
    if "calibration" in details:
        train = source.part("train")
        used["calibration"] = train and train.select(details["calibration"]["ids"])
    return {part: fingerprint(images) for part, images in used.items() if images is not None}


def _limited(images: ImageSet, limit: int | None) -> ImageSet:
    return images if limit is None else images.stratified(limit, seed=0)


def _blocks(bundle: Bundle, parts: Mapping[str, np.ndarray]) -> list[_Block]:
    calibration = calibration_of(bundle.manifest).get("ids")
    ids = {**bundle.splits(), "calibration": calibration if isinstance(calibration, list) else ()}
    return [_Block(part, ids.get(part, ()), parts[part]) for part in _SEEN if part in parts]


def _named(blocks: Sequence[_Block], index: int) -> str:
    """The name of an image that a model was made with, by its row in all blocks."""
    for block in blocks:
        if index < len(block.rows):
            name = block.ids[index] if index < len(block.ids) else f"number {index}"
            return f"{name} of the {_SEEN[block.part]} images"
        index -= len(block.rows)
    raise IndexError(index)


def _recorded(bundle: Bundle, parts: Mapping[str, np.ndarray], test: ImageSet) -> np.ndarray | None:
    """The fingerprints that the bundle records of these images of its test part; None if it lacks some."""
    rows = {name: row for row, name in enumerate(bundle.splits().get("test", ()))}
    if "test" not in parts or not rows.keys() >= set(test.ids):
        return None
    return parts["test"][[rows[name] for name in test.ids]]


def _indices(images: ImageSet, subset: ImageSet) -> list[int]:
    indices = {name: index for index, name in enumerate(images.ids)}
    return [indices[name] for name in subset.ids]


def _alike(test: ImageSet, appearances: np.ndarray, seen: np.ndarray, blocks: Sequence[_Block]) -> list[NearDuplicate]:
    """Each test image that looks like an image that a model has seen, with the closest such image."""
    _, first = np.unique(seen[:, 1:], axis=0, return_index=True)
    first = first[seen[first, 1] != 0]
    low, high = np.ascontiguousarray(seen[first, 1]), np.ascontiguousarray(seen[first, 2])
    pairs = []
    for name, looks in zip(test.ids, appearances, strict=True):
        index = closest(looks, low, high)
        if index is not None:
            pairs.append(NearDuplicate(name, _named(blocks, int(first[index]))))
    return pairs


def closest(looks: np.ndarray, low: np.ndarray, high: np.ndarray) -> int | None:
    """The index of the image that looks most like another one; None if none looks like it.

    Args:
        looks: uint64 [2], the other image's looks (see deploy.fingerprints); a plain image looks like none.
        low, high: uint64 [m], the looks of m images. Those of plain images are 0 in both.
    """
    near = np.flatnonzero(next(distances(looks[:1], low)) <= _LOW_BITS)
    if not looks[0] or not len(near):
        return None
    high_distances = next(distances(looks[1:], high[near]))
    return int(near[high_distances.argmin()]) if high_distances.min() <= _HIGH_BITS else None
