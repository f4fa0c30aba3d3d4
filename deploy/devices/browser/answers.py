"""The page's measurements, as JSON objects (see page.mjs)."""

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
    """The golden samples: checksums of their pixels, the largest tensor difference, logits (null if not finite)."""

    checksums: Sequence[int]
    tensor_max_abs: float
    logits: Sequence[Sequence[float | None]]


class PageModel(TypedDict):
    """A candidate's measurements; blocks and predictions as in measuring.measurement."""

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
    """The result: the browser, and one entry per candidate in the plan's order."""

    environment: PageFacts
    models: Sequence[PageModel]
