"""Image-by-image comparison of a device's answers with this machine's."""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.engine.passport import ENGINE_FORMAT
from ...deploy.images import UNLABELLED, ImageSet
from ...deploy.measuring.measurement import Measurement
from ...deploy.measuring.plan import Candidate
from ...deploy.measuring.result import HostAnswers, OtherAnswer
from ...deploy.progress import Progress
from ...deploy.session import open_session


def compare_with_host(
    measured: Sequence[tuple[Candidate, Bundle, Measurement]], images: ImageSet, progress: Progress
) -> dict[str, HostAnswers]:
    """Run each model on this machine, on the default runtime of its format.

    Returns:
        For each candidate's key: "images", the number of images; "logits_max_abs", the largest difference of a logit on
        the golden samples; "differ", the images with different answers: "id", "truth", "host", "device" (labels), and
        "gap", the difference of the host's logits for the two answers.
    """
    answers: dict[str, HostAnswers] = {}
    bundles = {bundle.id: bundle for _, bundle, measurement in measured if measurement.predictions is not None}
    # an engine runs only where it was built
    runnable = [bundle for bundle in bundles.values() if bundle.manifest.format != ENGINE_FORMAT]
    for index, bundle in enumerate(runnable):

        def report_progress(share: float, index: int = index) -> None:
            progress("the host's answers", (index + share) / len(runnable))

        golden, logits = _answers(bundle, images, report_progress)
        for candidate, _, measurement in measured:
            if candidate.bundle == bundle.id and measurement.predictions is not None:
                difference = float(np.abs(golden - np.asarray(measurement.golden_logits)).max())
                differ = _differences(bundle, images, logits, measurement.predictions.classes)
                answers[candidate.key] = {"images": len(images), "logits_max_abs": difference, "differ": differ}
    return answers


def _differences(bundle: Bundle, images: ImageSet, logits: np.ndarray, classes: Sequence[int]) -> list[OtherAnswer]:
    """The images with different answers on a device (`classes`) and on this machine (`logits`, [n, k])."""
    labels = bundle.manifest.labels
    return [
        {"id": images.ids[at], "truth": None if images.targets[at] == UNLABELLED else labels[images.targets[at]],
         "host": labels[host], "device": labels[device], "gap": float(logits[at, host] - logits[at, device])}
        for at, (host, device) in enumerate(zip(logits.argmax(axis=1).tolist(), classes, strict=True))
        if host != device
    ]  # fmt: skip


def _answers(bundle: Bundle, images: ImageSet, progress: Callable[[float], None]) -> tuple[np.ndarray, np.ndarray]:
    """This machine's float32 logits on a bundle's golden samples and on the images, [n, k] each."""
    with contextlib.closing(open_session(bundle)) as session:
        golden, logits = session.run(bundle.golden().tensors), []
        for position, sample in enumerate(images):
            logits.append(session.run(bundle.manifest.preprocess(sample.image)[None])[0])
            progress(position / len(images))
    return golden, np.stack(logits)


def near_tie(answer: OtherAnswer, host: HostAnswers) -> bool:
    """Whether the difference between kernels explains a different answer.

    If no logit differs by more than d, the answer can only change between classes whose logits are within 2 d.
    """
    return answer["gap"] <= 2 * host["logits_max_abs"]


def unexplained(host: HostAnswers) -> int:
    """Number of different answers that the difference between kernels does not explain."""
    return sum(not near_tie(answer, host) for answer in host["differ"])
