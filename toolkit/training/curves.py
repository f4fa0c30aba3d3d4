"""Training curves, and a check for over-fitting."""

import io
from collections.abc import Sequence

# A validation loss this far above its best, while the training loss still falls, counts as over-fitting rather than
# noise.
_RISE = 1.1


def draw_curves(history: Sequence[dict[str, float]]) -> bytes:
    """A PNG of the training and validation loss and accuracy over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axis, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, style in (("train", "o-"), ("validation", "s--")):
            axis.plot(epochs, [row[f"{part}_{quantity}"] for row in history], style, label=part, markersize=3)
        axis.set(xlabel="epoch", ylabel=quantity)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        axis.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def over_fitting(history: Sequence[dict[str, float]]) -> str | None:
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
