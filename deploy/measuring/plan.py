"""What to measure, and how long."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypedDict

from ..documents import plain, read
from ..errors import RecipeError
from ..runtimes.runtime import PRECISION, Choice, OptionValue, check_defaults

# The samples that p99, the highest percentile shown, needs (see toolkit.analysis.statistics.PERCENTILE_SAMPLES).
SAMPLES_WANTED = 662
# A process has enough blocks once the interval of their median is this narrow (half its width, as a share).
HALF_WIDTH_WANTED = 0.01


# Options that were entries of every plan before it had candidates. Reports still have them.
_LEGACY_OPTIONS = {"provider": "cpu", "allow_fallback": False, "cuda_graph": False}


@dataclass(frozen=True)
class Candidate:
    """What is measured: a bundle, the runtime that runs it, and its options.

    Attributes:
        bundle: the bundle's id.
        choice: the runtime and this candidate's own options; None is the default runtime of the bundle's format.
    """

    bundle: str
    choice: Choice | None = None

    @property
    def key(self) -> str:
        """Its id among the candidates of a plan: the bundle's id without a choice."""
        return self.bundle if self.choice is None else f"{self.bundle}@{self.choice}"

    @property
    def threads(self) -> int | None:
        """Its own number of threads per inference; None leaves it to the plan."""
        return self.options.get("threads")  # type: ignore[return-value] # Choice has checked the type

    @property
    def options(self) -> Mapping[str, OptionValue]:
        """Its own options."""
        return {} if self.choice is None else self.choice.options

    def precision(self, bundle: str) -> str:
        """The precision it computes in: of a float32 bundle its own option's, else the bundle's."""
        return str(self.options.get(PRECISION, bundle)) if bundle == "fp32" else bundle


# What a race looks for.
Objective = Literal["latency", "throughput", "size"]


@dataclass(frozen=True)
class Race:
    """A search for the best candidate, which measures the others only until they have certainly lost.

    Attributes:
        objective: the shortest time per image at batch 1, the shortest in batches, or the smallest file.
        max_loss: percentage points of top-1 that a candidate may lose against the first one on the images. For images
            without labels, each changed answer counts as a loss. None for no limit.
        max_bytes, max_rss_bytes: the largest file, and the largest resident memory; None for no limit.
        seconds: no further processes start after this time; None for no limit. The first few always run.
    """

    objective: Objective = "latency"
    max_loss: float | None = None
    max_bytes: int | None = None
    max_rss_bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """How a set of models is measured together.

    Attributes:
        seconds: minimum time for the latency blocks of all models together. The time budget is three times this; a
            model that is not settled by then is reported as such. `rounds` takes precedence.
        rounds: minimum number of rounds; in a round every model is timed for one block. Rounds come in pairs; the
            second reverses the order of the first.
        processes: fresh processes per model, one after the other; at least 3, since their variance enters the interval.
        block_ms: length of one block.
        threads: threads per inference of each candidate that sets none itself; None is what the affinity mask and the
            cgroup allow.
        options: other options, for each candidate whose runtime has them, unless it sets its own.
        candidates: what is measured, in this order; empty for each bundle on the default runtime of its format.
        seed: seed of the order of the blocks.
        offline: also measure throughput by batch size.
        fps: also offer this many images per second to each model.
        sustained_s: also run each model this long without a pause.
        race: measure only until the best candidate is known; None measures each to the end. A report needs the latter.
    """

    seconds: float = 8.0
    rounds: int = 10
    processes: int = 7
    block_ms: float = 50.0
    threads: int | None = None
    seed: int = 0
    offline: bool = False
    fps: float | None = None
    sustained_s: float | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    race: Race | None = None

    def __post_init__(self) -> None:
        check_defaults(self.options)
        if PRECISION in self.options:  # it would lower the baseline too
            raise RecipeError(
                "a precision cannot apply to all models",
                fix="name it for one runtime: --runtime openvino:precision=bf16",
            )
        keys = [candidate.key for candidate in self.candidates]
        if len(set(keys)) < len(keys):
            raise RecipeError(f"{max(keys, key=keys.count)} would be measured twice", fix="pass each --runtime once")
        if self.processes < 3:
            raise RecipeError(
                f"{self.processes} processes per model are too few to estimate variation",
                fix="plan at least 3",
            )
        if self.fps is not None and not 0 < self.fps <= 10_000:
            raise RecipeError(f"--fps {self.fps:g} is not a frame rate", fix="pass images per second, e.g. --fps 30")
        if self.sustained_s is not None and self.sustained_s < 10:
            raise RecipeError(
                f"--sustained {self.sustained_s:g}s is too short to show a steady state", fix="e.g. --sustained 10m"
            )

    def measured(self, bundles: Iterable[str]) -> tuple[Candidate, ...]:
        """The candidates among the bundles with these ids.

        Raises:
            RecipeError: a candidate's bundle is not among them.
        """
        ids = list(bundles)
        for candidate in self.candidates:
            if candidate.bundle not in ids:
                raise RecipeError(
                    f"the plan measures {candidate.bundle[:80]!r}, which is not among its bundles", fix="plan it again"
                )
        return self.candidates or tuple(Candidate(bundle) for bundle in ids)

    @property
    def budget_s(self) -> float:
        """Seconds after which the latency blocks end, settled or not."""
        return 3 * self.seconds

    def to_report(self) -> "PlanEntry":
        """The form in reports: its own entries, and each option for all candidates as another entry."""
        own = {name: value for name, value in plain(self).items() if name != "race"}
        return read(PlanEntry, {**own, **_LEGACY_OPTIONS, **self.options})

    @classmethod
    def from_report(cls, data: Mapping[str, object]) -> "Plan":
        """Read what `to_report` wrote, or an older plan without candidates, whose options are its own entries.

        Raises:
            DocumentError: `data` is not a plan.
            RecipeError: the plan cannot be carried out.
        """
        legacy = {name: data[name] for name, default in _LEGACY_OPTIONS.items() if data.get(name, default) != default}
        names = {field.name for field in fields(cls)}
        options = read(dict[str, OptionValue], data.get("options", {}), "options")
        copies = {*_LEGACY_OPTIONS, *options} - names
        entries = {name: value for name, value in data.items() if name not in copies}
        return read(cls, {**entries, "options": {**options, **legacy}}, "plan")


class ChoiceEntry(TypedDict):
    """A runtime, and the options of this candidate alone."""

    name: str
    options: Mapping[str, OptionValue]


class CandidateEntry(TypedDict):
    """What was measured: a bundle and its runtime; null is the default of the bundle's format."""

    bundle: str
    choice: ChoiceEntry | None


class PlanEntry(TypedDict, total=False):
    """The plan of a validation; options of all candidates are also entries of their own.

    Attributes:
        seconds: minimum time for the latency blocks of all models together.
        rounds: minimum number of rounds.
        processes: fresh processes per model.
        block_ms: length of one block.
        threads: threads per inference; null for what the affinity mask and the cgroup allow.
        seed: seed of the order of the blocks.
        offline: throughput by batch size was measured too.
        fps: images per second that were also offered to each model; null for none.
        sustained_s: how long each model also ran without a pause; null for none.
        options: options of all candidates whose runtime has them.
        candidates: what was measured; empty for each model on the default runtime of its format.
    """

    seconds: float
    rounds: int
    processes: int
    block_ms: float
    threads: int | None
    seed: int
    offline: bool
    fps: float | None
    sustained_s: float | None
    options: Mapping[str, OptionValue]
    candidates: list[CandidateEntry]
    provider: str
    allow_fallback: bool
    cuda_graph: bool
