"""Compare a model of lower precision with its source: answers, noise, accuracy and speed."""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.files import scratch_folder
from ...deploy.images import ImageSet, stratified
from ...deploy.manifest import Manifest
from ...deploy.parity import Parity, compare, decibels, powers
from ...deploy.progress import Progress
from ...deploy.session import open_session
from ..analysis.contract import Drop, compare_accuracy
from .gate import SignalToNoise, unoptimised
from .trial import speedup

# Number of selection images for the unoptimised run, which is several times slower.
_UNOPTIMISED_IMAGES = 48
_SEED = 0


@dataclass(frozen=True)
class Changed:
    """Images whose class differs from the source's, right or wrong.

    Attributes:
        images: number of those.
        count: number of all images.
    """

    images: int
    count: int

    @property
    def sentence(self) -> str:
        """For the user."""
        return f"{self.images} of {self.count} answers changed"


class Compared(NamedTuple):
    """A new model compared with its source; `slower` is a warning if it is slower on this machine."""

    parity: Parity
    drop: Drop | None
    changed: Changed | None
    noise: SignalToNoise
    slower: str | None

    def to_json(self) -> dict[str, object]:
        """For the details of a manifest."""
        return {
            "parity": asdict(self.parity),
            "signal_to_noise_db": asdict(self.noise),
            "selection": self.drop and asdict(self.drop),
            "changed": self.changed and asdict(self.changed),
        }


def compare_models(
    source: Bundle,
    manifest: Manifest,
    content: bytes,
    selection: ImageSet | None,
    runtime: str,
    timed: bool,
    progress: Progress,
) -> Compared:
    """Run the new model, the same file unoptimised, and the source on the golden and selection images."""
    golden = source.golden()
    run_unoptimised = unoptimised(content, manifest.input.batch)
    with scratch_folder() as folder:
        (folder / manifest.model).write_bytes(content)
        quantized = Bundle(folder, manifest, id="")
        sessions = [open_session(source), open_session(quantized, runtime)]
        tensor = golden.tensors[: manifest.input.batch or 1]
        slower = _slower(source, quantized, runtime, tensor) if timed else None
        logits = sessions[1].run(golden.tensors)
        against_itself = powers(run_unoptimised(golden.tensors), logits)
        selected, predictions = np.zeros(2), np.zeros((2, len(selection or ())), np.int64)
        unoptimised_indices = stratified(selection.targets, _UNOPTIMISED_IMAGES, _SEED) if selection is not None else ()
        for index, sample in enumerate(selection or ()):
            tensor = manifest.preprocess(sample.image)[None]
            answers = [session.run(tensor) for session in sessions]
            selected += powers(answers[0], answers[1])
            if index in unoptimised_indices:
                against_itself += powers(run_unoptimised(tensor), answers[1])
            predictions[:, index] = [int(answer[0].argmax()) for answer in answers]
            progress("selection images", (index + 1) / len(predictions[0]))
    drop = compare_accuracy(selection.targets, predictions[0], predictions[1]) if selection is not None else None
    on_selection = decibels(selected) if predictions.size else None
    noise = SignalToNoise(decibels(powers(golden.logits, logits)), on_selection, decibels(against_itself))
    changed = Changed(int((predictions[0] != predictions[1]).sum()), predictions.shape[1]) if predictions.size else None
    return Compared(compare(golden, logits), drop, changed, noise, slower)


def _slower(source: Bundle, lowered: Bundle, runtime: str, tensor: np.ndarray) -> str | None:
    """A warning if the new model is slower than its source in a short trial, else None."""
    # one thread: on a busy machine, several threads would mostly wait for one another
    first, second = (open_session(bundle, runtime, threads=1) for bundle in (source, lowered))
    median, upper = speedup(first, second, tensor)
    if upper >= 1:
        return None
    return (
        f"warning: {lowered.manifest.precision} is slower than fp32 here: {median:.2f}x in a one-second trial with one "
        "thread; edgekit validate measures it"
    )
