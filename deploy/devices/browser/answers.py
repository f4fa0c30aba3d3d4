"""What the page sends once it has measured, as JSON objects (see page.mjs)."""

from collections.abc import Sequence
from typing import TypedDict

from ...measuring.answers import PreparedInputs, Steps


class PageFacts(TypedDict):
    """The browser and its machine; memory in GiB, the clock's step in milliseconds."""

    userAgent: str
    cores: int
    threads: int
    isolated: bool
    secure: bool
    clock_ms: float
    memory_gb: float | None
    gpu: str | None
    screen: str


class PageGolden(TypedDict):
    """The golden samples: checksums of their pixels, the largest difference of a tensor, logits; null is not finite."""

    checksums: Sequence[int]
    tensor_max_abs: float
    logits: Sequence[Sequence[float | None]]


class PageModel(TypedDict):
    """A candidate; blocks and predictions are read as those of measuring.measurement."""

    bundle: str
    opened: Sequence[Steps]
    prepared: Sequence[PreparedInputs]
    blocks: Sequence[object]
    one_thread: Sequence[object]
    golden: PageGolden
    predictions: object
    checked: int
    differed: int


class PageAnswer(TypedDict):
    """All that was measured, one entry per candidate in the plan's order."""

    environment: PageFacts
    models: Sequence[PageModel]
