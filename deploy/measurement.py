"""Measurements: what a device reports of one model. Raw values only; every figure shown is derived from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """Calls timed in a row.

    Attributes:
        round: the models of one round were timed within a moment of each other.
        process: which of the model's processes ran it.
        ns: nanoseconds of each call.
    """

    round: int
    process: int
    ns: tuple[int, ...]


@dataclass(frozen=True)
class Predictions:
    """What a model answered on the test images, in their order.

    Attributes:
        classes: index of the best class.
        confidences: softmax of the best class's logit.
        in_top5: whether the label is among the five best; None without labels.
    """

    classes: tuple[int, ...]
    confidences: tuple[float, ...]
    in_top5: tuple[bool, ...] | None


@dataclass(frozen=True)
class Measurement:
    """One model on one device.

    Attributes:
        bundle: the bundle's id.
        session: what the session says of itself (runtime, version, provider, threads).
        load_ms, first_ms: a value a process: reading the file and making the session; the first inference.
        preprocess_ns: decoding and preprocessing, a value an image.
        blocks: timed calls of inference alone, batch 1, in the order they ran.
        peak_rss_bytes: largest resident memory of a fresh process that loaded the model and ran it; None when the
            system does not say.
        parity: the golden samples replayed here (see deploy.parity.Parity).
        predictions: None when there are no test images.
    """

    bundle: str
    session: Mapping[str, Any]
    load_ms: tuple[float, ...]
    first_ms: tuple[float, ...]
    preprocess_ns: tuple[int, ...]
    blocks: tuple[Block, ...]
    peak_rss_bytes: int | None
    parity: Mapping[str, float]
    predictions: Predictions | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Measurement":
        """Read what `to_json` wrote."""
        blocks = tuple(Block(b["round"], b["process"], tuple(b["ns"])) for b in data["blocks"])
        seen = data["predictions"]
        predictions = seen and Predictions(
            tuple(seen["classes"]), tuple(seen["confidences"]), seen["in_top5"] and tuple(seen["in_top5"])
        )
        rest = {name: tuple(data[name]) for name in ("load_ms", "first_ms", "preprocess_ns")}
        return cls(**{**data, **rest, "blocks": blocks, "predictions": predictions})
