"""Models of known speed, for testing measurements."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from ...deploy.bundle import Bundle, create, make_golden
from ...deploy.images import ImageSet
from ...deploy.manifest import Manifest, TensorSpec
from ...deploy.preprocess import Preprocess

_SIDE, _CLASSES = 8, 10


def null_bundle(path: Path, ns: int = 0, waiting_ns: int | None = None) -> Bundle:
    """Create a bundle of the null runtime: a call spins for `ns` nanoseconds, or `waiting_ns` with several threads."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, _SIDE, _SIDE), dtype=np.uint8)
    labels = tuple(str(label) for label in range(_CLASSES))
    images = ImageSet(labels, tuple(map(str, range(len(pixels)))), np.arange(len(pixels)) % _CLASSES, list(pixels))
    preprocess = Preprocess(
        mode="L", resize=_SIDE, crop=(_SIDE, _SIDE), mean=(0.5,), std=(0.5,), interpolation="bilinear"
    )
    golden = make_golden(images, preprocess, lambda batch: np.zeros((len(batch), _CLASSES), np.float32), len(pixels))
    manifest = Manifest("null", "null", "fp32", "model.json", labels, TensorSpec(1, _SIDE, _SIDE), preprocess)
    with create(path) as draft:
        (draft.folder / manifest.model).write_text(
            json.dumps({"ns": ns, "waiting_ns": ns if waiting_ns is None else waiting_ns})
        )
        draft.add_golden(golden)
        draft.finish(manifest)
    return Bundle.open(path)


def slowed(bundle: Bundle, path: Path, factor: float = 1.0, drift_per_s: float = 0.0, since: float = 0.0) -> Bundle:
    """Copy a model, slowed by `factor`, which grows by the share `drift_per_s` with each second after `since`."""
    original = bundle.manifest
    source = {"format": original.format, "model": original.model}
    settings = {**source, "factor": factor, "drift_per_s": drift_per_s, "since": since}
    with create(path) as draft:
        for name in original.files:
            (draft.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, draft.folder / name)
        (draft.folder / "slowed.json").write_text(json.dumps(settings))
        draft.finish(dataclasses.replace(original, format="slowed", model="slowed.json"))
    return Bundle.open(path)
