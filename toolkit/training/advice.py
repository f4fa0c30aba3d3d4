"""What went wrong in a training, as far as its metrics tell, each in one line with what to try."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..analysis.statistics import wilson

# A validation loss this far above its best, while the training loss still falls, counts as over-fitting rather than
# noise.
_RISE = 1.1
# A training accuracy this far below that of the epoch with the lowest training loss is more than noise. The loss itself
# is no measure: a network that forgets everything it learned ends at the loss of guessing, however little that rose.
_FALL = 0.05
# Training accuracy this far above guessing counts as learned.
_LEARNED = 1.5
# A training loss that is still above this share of the first epoch's after several epochs does not fall. With a rate of
# 0.1 and momentum 0.9, LeNet's wavered (1.314 in the first of five epochs, 1.264 in the last).
_STALLED, _STALLED_EPOCHS = 0.95, 3
# With a training accuracy above this there is little left to learn.
_ENOUGH = 0.9
# The standard deviation of normalized inputs, about 1, is unusual outside this range.
_USUAL_STD = (0.1, 10.0)
# The share of the time that may be spent on waiting for images.
_WAITING = 0.3

SCALE_FIX = "leave out preprocess.mean and preprocess.std, which are on the scale 0 to 1"

Row = dict[str, float]


class Circumstances(NamedTuple):
    """What the metrics depend on.

    Attributes:
        guessing: the share of the most frequent class among the validation images.
        images: number of validation images.
        input_std: standard deviation of the first batch of inputs; None if no step was made.
        lr: the recipe's learning rate.
    """

    guessing: float
    images: int
    input_std: float | None
    lr: float


def advise(history: Sequence[Row], circumstances: Circumstances) -> Iterator[str]:
    """Lines for the user.

    Args:
        history: a row of metrics per epoch, at least one.
    """
    learning = _nothing_learned(history, circumstances) or diverging(history, circumstances.lr)
    for line in (learning or stalled(history, circumstances.lr), over_fitting(history), _slow(history)):
        if line:
            yield line


def _nothing_learned(history: Sequence[Row], found: Circumstances) -> str | None:
    best = max(row["validation_accuracy"] for row in history)
    if wilson(round(best * found.images), found.images).low > found.guessing:
        return None
    start = f"nothing learned: the validation accuracy is {best:.3f}, and always guessing one class gives "
    start += f"{found.guessing:.3f}; "
    if wrong := unusual_scale(found.input_std):
        return f"{start}{wrong}: {SCALE_FIX}"
    if max(row["train_accuracy"] for row in history) > _LEARNED * found.guessing:
        return (
            f"{start}but the training images were learned by heart: check that the labels belong to the images, and "
            "that training and validation images show the same classes"
        )
    return (
        f"{start}check that the labels belong to the images, then try a tenth of the rate "
        f"(--set train.lr={found.lr / 10:.3g}), ten times the rate, or more epochs"
    )


def unusual_scale(input_std: float | None) -> str | None:
    """What is unusual about the standard deviation of normalized inputs; None if nothing is, or it is not known."""
    if input_std is None or _USUAL_STD[0] <= input_std <= _USUAL_STD[1]:
        return None
    return f"the inputs have a standard deviation of {input_std:.3g} instead of about 1"


def over_fitting(history: Sequence[Row]) -> str | None:
    """One line if the validation loss rose from its best while the training loss kept falling, else None."""
    best = min(range(len(history)), key=lambda index: history[index]["validation_loss"])
    first, last = history[best], history[-1]
    rose = last["validation_loss"] > _RISE * first["validation_loss"]
    if best >= len(history) - 2 or not rose or last["train_loss"] >= first["train_loss"]:
        return None
    return (
        f"over-fitting since epoch {first['epoch']:.0f}: the validation loss rose from "
        f"{first['validation_loss']:.3f} to {last['validation_loss']:.3f} while the training loss fell; "
        "fewer epochs, augmentation or weight decay help"
    )


def diverging(history: Sequence[Row], lr: float) -> str | None:
    """One line if the training loss rose from its lowest and the training accuracy fell, else None.

    Args:
        lr: the recipe's learning rate.
    """
    best = min(range(len(history)), key=lambda index: history[index]["train_loss"])
    first, last = history[best], history[-1]
    if last["train_accuracy"] > first["train_accuracy"] - _FALL:
        return None
    return (
        f"diverging since epoch {first['epoch']:.0f}: the training loss rose from {first['train_loss']:.3f} to "
        f"{last['train_loss']:.3f}; try a tenth of the rate (--set train.lr={lr / 10:.3g}), a schedule that "
        "lowers it, or fewer epochs"
    )


def stalled(history: Sequence[Row], lr: float) -> str | None:
    """One line if the training loss has not fallen since the first epoch, else None.

    Args:
        lr: the recipe's learning rate.
    """
    first, *later = (row["train_loss"] for row in history)
    accuracy = history[-1]["train_accuracy"]
    if len(history) < _STALLED_EPOCHS or accuracy > _ENOUGH or min(later) < _STALLED * first:
        return None
    return (
        f"the training loss has not fallen since the first epoch ({first:.3f}, then at least {min(later):.3f}): try a "
        f"tenth of the rate (--set train.lr={lr / 10:.3g}), or ten times the rate"
    )


def _slow(history: Sequence[Row]) -> str | None:
    waiting = sum(row["waiting"] for row in history) / len(history)
    if waiting < _WAITING:
        return None
    return (
        f"slow images: {waiting:.0%} of the time was spent on waiting for them; shrink the files once, leave out "
        "augment.resized_crop, which decodes every image in every epoch, or raise train.workers"
    )
