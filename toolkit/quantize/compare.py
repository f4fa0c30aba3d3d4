"""Compare a model of lower precision with its source: answers, noise, accuracy and speed."""

from dataclasses import asdict, dataclass
from functools import partial
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
from ..analysis.statistics import Interval
from .gate import SignalToNoise
from .lowered import Lowered
from .trial import speedup_interval

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
    """A new model compared with its source.

    Attributes:
        speedup: over the source, in a short trial with one thread; None if this machine is not the target.
    """

    parity: Parity
    drop: Drop | None
    changed: Changed | None
    noise: SignalToNoise
    speedup: Interval | None

    @property
    def slower(self) -> bool:
        """Whether the new model is certainly slower than its source."""
        return self.speedup is not None and self.speedup.high < 1

    def speed(self, precision: str) -> str | None:
        """How fast the new model is, for the user; None if it was not timed."""
        if self.speedup is None:
            return None
        found = self.speedup
        figures = f"{found.value:.2f}x [{found.low:.2f}, {found.high:.2f}] as fast as fp32 in a short trial"
        if self.slower:
            return f"keep fp32: {precision} is slower here, {figures}; edgekit validate measures it"
        return f"{precision} is {figures}; edgekit validate measures it"

    def to_json(self) -> dict[str, object]:
        """For the details of a manifest."""
        return {
            "parity": asdict(self.parity),
            "signal_to_noise_db": asdict(self.noise),
            "selection": self.drop and asdict(self.drop),
            "changed": self.changed and asdict(self.changed),
            "speedup": self.speedup and asdict(self.speedup),
        }


def compare_models(
    source: Bundle, manifest: Manifest, lowered: Lowered, selection: ImageSet | None, progress: Progress
) -> Compared:
    """Run the new model, the same file unoptimised, and the source on the golden and selection images.

    Args:
        manifest: of the new model.
    """
    runtime, run_unoptimised = lowered.runtime, lowered.unoptimised
    golden = source.golden()
    with scratch_folder() as folder:
        (folder / manifest.model).write_bytes(lowered.content)
        quantized = Bundle(folder, manifest, id="")
        sessions = [open_session(source), open_session(quantized, runtime)]
        tensor = golden.tensors[: manifest.input.batch or 1]
        speedup = _speedup(source, quantized, runtime, tensor) if lowered.timed else None
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
    return Compared(compare(golden, logits), drop, changed, noise, speedup)


def _speedup(source: Bundle, lowered: Bundle, runtime: str, tensor: np.ndarray) -> Interval:
    """The speed-up of the new model over its source in a short trial.

    With one thread: on a busy machine, several threads would mostly wait for one another.
    """
    first, second = (partial(open_session, bundle, runtime, threads=1) for bundle in (source, lowered))
    return speedup_interval(first, second, tensor)
