"""What to measure, and how long."""

from dataclasses import dataclass

from ..errors import RecipeError
from ..registry import choose
from ..session import PROVIDERS, SessionOptions

# The highest percentile that is shown, and the samples it needs (see toolkit.statistics.PERCENTILE_SAMPLES).
SAMPLES_WANTED = 662
# A process's blocks are enough once the interval of their median is this narrow (half of it, as a share).
HALF_WIDTH_WANTED = 0.01


@dataclass(frozen=True)
class Plan:
    """How a set of models is measured together.

    Attributes:
        seconds: least time for the latency blocks of all models together. The time budget is three times this: what is
            not settled by then is reported as such. The least number of rounds comes first.
        rounds: least number of rounds; in a round every model is timed for one block. Rounds come in pairs, the second
            with the order of the first backwards.
        processes: fresh processes a model, one after the other; at least 3, since their variance enters the interval.
        block_ms: length of one block.
        threads: threads for one inference; None is what the affinity mask and the cgroup allow.
        provider, allow_fallback, cuda_graph: see session.SessionOptions.
        seed: of the order of the blocks.
        offline: also measure throughput by batch size.
        fps: also offer this many images a second to each model.
        sustained_s: also run each model this long without a pause.
    """

    seconds: float = 8.0
    rounds: int = 10
    processes: int = 7
    block_ms: float = 50.0
    threads: int | None = None
    provider: str = "cpu"
    allow_fallback: bool = False
    cuda_graph: bool = False
    seed: int = 0
    offline: bool = False
    fps: float | None = None
    sustained_s: float | None = None

    def __post_init__(self) -> None:
        choose(PROVIDERS, self.provider, "provider")
        if self.processes < 3:
            raise RecipeError(
                f"{self.processes} processes per model are too few to estimate variation",
                fix="plan at least 3",
            )
        if self.fps is not None and not 0 < self.fps <= 10_000:
            raise RecipeError(f"--fps {self.fps:g} is not a frame rate", fix="pass images a second, e.g. --fps 30")
        if self.sustained_s is not None and self.sustained_s < 10:
            raise RecipeError(
                f"--sustained {self.sustained_s:g}s is too short to show a steady state", fix="e.g. --sustained 10m"
            )

    def session(self, threads: int) -> SessionOptions:
        """How the models are loaded, with so many threads where the plan names none."""
        return SessionOptions(self.threads or threads, self.provider, self.allow_fallback, self.cuda_graph)

    @property
    def budget_s(self) -> float:
        """When the latency blocks end, settled or not."""
        return 3 * self.seconds
