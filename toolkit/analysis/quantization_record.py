"""What the manifest of a quantized bundle records, as far as it is shown; read strictly: it may come from anyone."""

from typing import Annotated, Literal, TypedDict

from ...deploy.bundle import Bundle
from ...deploy.documents import Bounds, DocumentError, read
from ...deploy.errors import BundleError

# Larger than any figure that quantize writes; nan is not within bounds.
_MOST = 1e40

Share = Annotated[float, Bounds(0, 1)]
Positive = Annotated[float, Bounds(0, _MOST)]
Points = Annotated[float, Bounds(-100, 100)]


class PointsEntry(TypedDict):
    """Percentage points of top-1 that a model loses, with their interval."""

    value: Points
    low: Points
    high: Points


class LossEntry(TypedDict):
    """The accuracy that a model loses on so many images (see contract.Drop)."""

    points: PointsEntry
    count: int


class RatioEntry(TypedDict):
    """A speed-up over fp32 with its interval, which may be unbounded."""

    value: Positive
    low: float
    high: float


class PointEntry(TypedDict):
    """A model of a search for float layers (see quantize.mixed_precision)."""

    sentence: str
    layers: list[str]
    changed: int
    drop: LossEntry | None
    speedup: Positive | None
    problem: str | None


class MixedPrecisionEntry(TypedDict):
    """A search for float layers.

    Attributes:
        chosen: the index of the chosen point; None if the contract was not fulfilled.
        reason: why it was chosen, or none.
    """

    points: list[PointEntry]
    chosen: int | None
    reason: str


class NoiseEntry(TypedDict):
    """A source of noise (see quantize.sensitivity)."""

    name: str
    kind: Literal["result", "weights", "input"]
    noise: Positive


class JudgementEntry(TypedDict):
    """The contract's judgement."""

    outcome: Literal["pass", "fail", "inconclusive"]
    sentence: str


class ContractEntry(TypedDict):
    """See contract.Contract."""

    max_drop: Points | None
    min_speedup: Positive | None


class ConvergenceEntry(TypedDict):
    """See quantize.advice.Convergence."""

    images: int
    stable_after: int
    half_width: Positive


class DuplicatesEntry(TypedDict):
    """See quantize.advice.Duplicates."""

    identical: int
    alike: int
    leaked: int
    leaked_alike: int


class AdviceEntry(TypedDict):
    """See quantize.advice.Advice."""

    convergence: ConvergenceEntry
    duplicates: DuplicatesEntry
    mistake: str | None


class CalibrationEntry(TypedDict, total=False):
    """How the ranges of the activations were set; bundles of earlier versions have the method only."""

    method: str
    expected_changes: dict[str, Positive]
    advice: AdviceEntry


class DifferenceEntry(TypedDict):
    """See quantize.portability.Difference."""

    images: int
    answers: int


class CpuEntry(TypedDict):
    """See quantize.portability.OnCpu."""

    from_host: DifferenceEntry
    holds: bool


class PortabilityEntry(TypedDict):
    """See quantize.portability.Portability."""

    images: int
    cpus: dict[str, CpuEntry]


class ChangedEntry(TypedDict):
    """See quantize.compare.Changed."""

    images: int
    count: int


class QuantizationRecord(TypedDict, total=False):
    """The details of a quantized bundle's manifest; bundles of earlier versions and fp16 ones have fewer entries.

    Attributes:
        remarks: the lines that quantize printed.
        selection: on the selection images, which have labels.
        sensitivity: without float layers, worst first; None if it was not measured.
    """

    target: str
    judgement: JudgementEntry
    contract: ContractEntry
    remarks: list[str]
    rewrites: list[str]
    rewrites_refused: dict[str, str]
    float_layers: list[str]
    selection: LossEntry | None
    changed: ChangedEntry | None
    speedup: RatioEntry | None
    calibration: CalibrationEntry
    portability: PortabilityEntry | None
    mixed_precision: MixedPrecisionEntry | None
    sensitivity: list[NoiseEntry] | None


class LayerNoise(TypedDict):
    """Shares of the noise of a model that one layer causes, or the input.

    Attributes:
        result, weights: by rounding what it writes, and its weights.
    """

    name: str
    result: float
    weights: float


def quantization_record(bundle: Bundle) -> QuantizationRecord:
    """What the manifest records of the quantization.

    Raises:
        BundleError: it is not valid.
    """
    try:
        record = read(QuantizationRecord, bundle.manifest.details, "details")
        search = record.get("mixed_precision")
        if search is not None and search["chosen"] is not None and search["chosen"] not in range(len(search["points"])):
            raise DocumentError("details.mixed_precision.chosen: there is no such point")
    except DocumentError as error:
        raise BundleError(f"{bundle.path}: manifest.json: {error}", fix="quantize the model again") from error
    return record


def noise_by_layer(sources: list[NoiseEntry]) -> list[LayerNoise]:
    """What each layer adds to the noise, the most first."""
    total = sum(entry["noise"] for entry in sources) or 1.0
    layers: dict[tuple[str, bool], LayerNoise] = {}
    for entry in sources:
        is_input = entry["kind"] == "input"
        name = f"{entry['name']} (input)" if is_input else entry["name"]
        layer = layers.setdefault((name, is_input), {"name": name, "result": 0.0, "weights": 0.0})
        layer["weights" if entry["kind"] == "weights" else "result"] += entry["noise"] / total
    return sorted(layers.values(), key=lambda layer: -(layer["result"] + layer["weights"]))
