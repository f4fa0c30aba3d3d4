"""What to measure, and how long."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """How a set of models is measured together.

    Attributes:
        seconds: time for the latency blocks of all models together; the least number of rounds comes first.
        rounds: least number of rounds; in a round every model is timed for one block, in random order.
        processes: fresh processes a model.
        block_ms: length of one block.
        threads: threads for one inference; None is what the affinity mask and the cgroup allow.
        seed: of the order of the blocks.
    """

    seconds: float = 8.0
    rounds: int = 9
    processes: int = 3
    block_ms: float = 100.0
    threads: int | None = None
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """Read what `to_json` wrote."""
        return cls(**data)
