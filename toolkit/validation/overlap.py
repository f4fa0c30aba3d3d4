"""Test images that a model was made with: identical ones are left out, similar ones are listed."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.errors import DataError
from ...deploy.fingerprints import appearance, distances, fingerprint
from ...deploy.images import ImageSet
from ...deploy.measuring.result import Alike, Overlap
from ..datasets import BundleImages, calibration_of

_log = logging.getLogger(__name__)

# Of a bundle's fingerprints, those of images that had a say in the model.
_SEEN = {"train": "training", "validation": "validation", "calibration": "calibration", "selection": "selection"}

# Differing bits, of 63 and of 64, up to which two images look alike. 300 made-up photographs, as JPEG of quality 60 or
# at half, double or a fifth of their size, differed by 2 and 8 at most; the closest pair of different ones by 14. Of
# 2,000 Fashion-MNIST images, which are much alike, 22 are within it of one of 20,000 others.
_LOW_BITS, _HIGH_BITS = 2, 8
# Entries of each list that a report contains.
_KEPT = 20


class _Block(NamedTuple):
    """Consecutive rows of fingerprints: the images of one part."""

    part: str
    ids: Sequence[str]
    rows: np.ndarray


def unseen(
    bundles: Sequence[Bundle], test: ImageSet, *, own: bool, limit: int | None = None
) -> tuple[ImageSet, Overlap]:
    """The test images that none of the models was made with, and the overlap of the others.

    Args:
        own: `test` is the first bundle's own test part, of which it records fingerprints.
        limit: take at most this many of them, drawn by class.

    Raises:
        DataError: none is left.
    """
    bundles = list({bundle.id: bundle for bundle in bundles}.values())
    parts = [bundle.fingerprints() for bundle in bundles]
    unchecked = [str(bundle.path) for bundle, found in zip(bundles, parts, strict=True) if not found]
    if unchecked:
        _log.info(
            f"cannot check whether {', '.join(unchecked)} has seen test images: it records no fingerprints of images"
        )
    blocks = [block for bundle, found in zip(bundles, parts, strict=True) for block in _blocks(bundle, found)]
    if not blocks:
        return _limited(test, limit), Overlap(tuple(unchecked))
    rows = _recorded(bundles[0], parts[0], test) if own else None
    looks_known = rows is not None
    if rows is None:
        rows = fingerprint(test, looks=False)
    seen = np.concatenate([block.rows for block in blocks])
    again = np.flatnonzero(np.isin(rows[:, 0], seen[:, 0]))
    excluded = tuple(test.ids[index] for index in again)
    if excluded:
        other = _named(blocks, int(np.flatnonzero(seen[:, 0] == rows[again[0], 0])[0]))
        what = f"{excluded[0]} is {other}"
        if len(excluded) == len(test):
            raise DataError(
                f"the model was made with all {len(test)} test images: {what}", fix="pass --images with others"
            )
        _log.info(f"left out {len(excluded)} of {len(test)} test images that the model was made with: {what}")
    left = _limited(test.take(np.setdiff1d(np.arange(len(test)), again)) if excluded else test, limit)
    looks = rows[_places(test, left), 1:] if looks_known else appearance(left)
    pairs = _alike(left, looks, seen, blocks)
    if pairs:
        shown = ", ".join(f"{pair.id} like {pair.other}" for pair in pairs[:3])
        _log.info(f"{len(pairs)} of {len(left)} test images look like ones that the model was made with: {shown}")
    searched = len(np.unique(seen[seen[:, 1] != 0, 0])), len(np.unique(seen[:, 0]))
    return left, Overlap(tuple(unchecked), len(excluded), excluded[:_KEPT], len(pairs), tuple(pairs[:_KEPT]), searched)


def used_elsewhere(source: BundleImages, details: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Fingerprints of what quantize used that is not of the bundle's own data set."""
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
    """The name of an image that a model was made with, by its place in all blocks."""
    for block in blocks:
        if index < len(block.rows):
            name = block.ids[index] if index < len(block.ids) else f"number {index}"
            return f"{name} of the {_SEEN[block.part]} images"
        index -= len(block.rows)
    raise IndexError(index)


def _recorded(bundle: Bundle, parts: Mapping[str, np.ndarray], test: ImageSet) -> np.ndarray | None:
    """The fingerprints that the bundle records of these images of its own test part."""
    where = {name: index for index, name in enumerate(bundle.splits().get("test", ()))}
    if "test" not in parts or not where.keys() >= set(test.ids):
        return None
    return parts["test"][[where[name] for name in test.ids]]


def _places(whole: ImageSet, part: ImageSet) -> list[int]:
    where = {name: index for index, name in enumerate(whole.ids)}
    return [where[name] for name in part.ids]


def _alike(test: ImageSet, looks: np.ndarray, seen: np.ndarray, blocks: Sequence[_Block]) -> list[Alike]:
    """Test images that look like one that a model has seen, each once, with the closest one."""
    _, first = np.unique(seen[:, 1:], axis=0, return_index=True)
    first = first[seen[first, 1] != 0]
    low, high = np.ascontiguousarray(seen[first, 1]), np.ascontiguousarray(seen[first, 2])
    pairs = []
    for name, words, different in zip(test.ids, looks, distances(looks[:, 0], low), strict=True):
        near = np.flatnonzero(different <= _LOW_BITS)
        if not words[0] or not len(near):
            continue
        bits = next(distances(words[1:], high[near]))
        if bits.min() <= _HIGH_BITS:
            pairs.append(Alike(name, _named(blocks, int(first[near[bits.argmin()]]))))
    return pairs
