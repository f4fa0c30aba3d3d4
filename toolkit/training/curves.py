"""Training curves."""

import io
from collections.abc import Sequence


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
