"""What this machine answers on the images that a device answered: do the two agree, image by image?"""

from collections.abc import Sequence

import numpy as np

from ...deploy.bundle import Bundle
from ...deploy.engine.passport import ENGINE_FORMAT
from ...deploy.images import UNLABELLED, ImageSet
from ...deploy.measuring.measurement import Measurement
from ...deploy.measuring.result import HostAnswers, OtherAnswer
from ...deploy.progress import Progress
from ...deploy.session import open_session


def compare_with_host(
    bundles: Sequence[Bundle], measurements: Sequence[Measurement], images: ImageSet, progress: Progress
) -> dict[str, HostAnswers]:
    """Run each model on this machine too.

    Returns:
        bundle id -> "images", how many; "logits_max_abs", the largest difference of a logit on the golden samples;
        "differ", the images with another answer: "id", "truth", "host", "device" (labels), and "gap", by how much the
        host's logit of its own answer is above that of the device's.
    """
    found = {}
    for index, (bundle, measurement) in enumerate(zip(bundles, measurements, strict=True)):
        if (
            measurement.predictions is None or bundle.manifest.format == ENGINE_FORMAT
        ):  # which runs where it was built alone
            continue
        labels, session = bundle.manifest.labels, open_session(bundle)
        golden = session.run(bundle.golden().tensors)
        differ: list[OtherAnswer] = []
        for position, (sample, device) in enumerate(zip(images, measurement.predictions.classes, strict=True)):
            logits = session.run(bundle.manifest.preprocess(sample.image)[None])[0]
            here = int(logits.argmax())
            if here != device:
                differ.append(
                    {"id": sample.id, "truth": None if sample.label == UNLABELLED else labels[sample.label],
                     "host": labels[here], "device": labels[device], "gap": float(logits[here] - logits[device])}
                )  # fmt: skip
            progress("the host's answers", (index + position / len(images)) / len(bundles))
        session.close()
        difference = float(np.abs(golden - np.asarray(measurement.golden_logits)).max())
        found[bundle.id] = {"images": len(images), "logits_max_abs": difference, "differ": differ}
    return found


def near_tie(one: OtherAnswer, host: HostAnswers) -> bool:
    """Whether the kernels' difference explains another answer.

    Where no logit differs by more than d, an answer can only change between classes whose logits are within 2 d.
    """
    return one["gap"] <= 2 * host["logits_max_abs"]


def unexplained(host: HostAnswers) -> int:
    """How many answers differ from the host's by more than the kernels do."""
    return sum(not near_tie(one, host) for one in host["differ"])
