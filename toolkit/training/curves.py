"""Training curves."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")


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
    return _png(figure)


def draw_comparison(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """A PNG of the validation accuracy over the epochs, with a line per training, by name."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for index, (name, history) in enumerate(histories.items()):
        values = [[row[key] for row in history] for key in ("epoch", "validation_accuracy")]
        # ten colours, then the same with other dashes
        style = {"color": colormaps["tab10"](index % 10), "linestyle": _DASHES[index // 10 % len(_DASHES)]}
        axis.plot(*values, marker="o", markersize=3, label=name, **style)
    axis.set(xlabel="epoch", ylabel="validation accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small", ncols=1 + len(histories) // 16)
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
