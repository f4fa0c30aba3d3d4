"""The contract: is an optimised model accurate and fast enough? Shared by quantize and validate."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...deploy.errors import RecipeError
from ...deploy.images import UNLABELLED
from .statistics import CONFIDENCE, Interval, images_needed, images_without_loss, mcnemar, paired_difference

Outcome = Literal["pass", "fail", "inconclusive"]
SpeedOutcome = Literal["faster", "slower", "no difference", "inconclusive"]
ExitCode = Literal[0, 1, 3, 4]

# Default limit in percentage points of top-1.
DEFAULT_MAX_DROP = 1.0

PASS: ExitCode = 0
FAIL: ExitCode = 3
INCONCLUSIVE: ExitCode = 4

# A speed-up counts if its interval excludes 1 and it is at least SMALLEST. It is "no difference" if the interval
# excludes differences beyond RESOLVED, else "inconclusive".
SMALLEST, RESOLVED = 0.01, 0.05


@dataclass(frozen=True)
class Drop:
    """The top-1 accuracy that a candidate loses, compared with its baseline on the same labelled images.

    Attributes:
        points: percentage points with their interval; positive is a loss.
        lost, gained: images that only the baseline, or only the candidate, gets right.
        flips: images with different answers, right or wrong.
        p: p value of McNemar's exact test.
    """

    points: Interval
    lost: int
    gained: int
    flips: int
    count: int
    p: float


@dataclass(frozen=True)
class Contract:
    """Requirements on an optimised model.

    Attributes:
        max_drop: the largest loss of top-1 in percentage points; None for the default.
        min_speedup: the smallest speed-up, a ratio; None for no limit.
        confidence: confidence level of all intervals.

    Raises:
        RecipeError: min_speedup is not positive.
    """

    max_drop: float | None = None
    min_speedup: float | None = None
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if self.min_speedup is not None and not self.min_speedup > 0:
            raise RecipeError(f"--min-speedup {self.min_speedup:g} is not a ratio", fix="pass e.g. --min-speedup 1.2")

    def judge(self, drop: "Drop | None", speedup: Interval | None, against: str) -> "list[Judgement]":
        """Judge the drop, and with `min_speedup` also the speed-up over the model `against`; None if not measured."""
        judged = [judge_drop(drop, self.max_drop, self.confidence)]
        return judged if self.min_speedup is None else [*judged, judge_speedup(speedup, self.min_speedup, against)]


@dataclass(frozen=True)
class Judgement:
    """The outcome of a rule (max_drop, min_speedup), its explanation, and whether an undecided outcome fails."""

    rule: str
    outcome: Outcome
    sentence: str
    strict: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """0 for success, 3 if the contract is not met, 4 if a requested limit cannot be decided."""
        if self.outcome == "fail":
            return FAIL
        return INCONCLUSIVE if self.outcome == "inconclusive" and self.strict else PASS


def compare_accuracy(
    targets: np.ndarray, baseline: np.ndarray, candidate: np.ndarray, confidence: float = CONFIDENCE
) -> Drop | None:
    """Compare int64 [n] predictions with the labels, image by image; None without labels."""
    if len(targets) == 0 or (targets == UNLABELLED).any():
        return None
    baseline_right, candidate_right = baseline == targets, candidate == targets
    lost, gained = int((baseline_right & ~candidate_right).sum()), int((~baseline_right & candidate_right).sum())
    count = len(targets)
    share = paired_difference(lost, gained, count, confidence)
    points = Interval(100 * share.value, 100 * share.low, 100 * share.high)
    return Drop(points, lost, gained, int((baseline != candidate).sum()), count, mcnemar(lost, gained))


def judge_drop(drop: Drop | None, max_drop: float | None, confidence: float = CONFIDENCE) -> Judgement:
    """Judge a drop by the bounds of its interval.

    Args:
        max_drop: percentage points; None for DEFAULT_MAX_DROP, with which an undecided outcome does not fail.
    """
    strict = max_drop is not None
    limit = DEFAULT_MAX_DROP if max_drop is None else max_drop
    if drop is None:
        sentence = f"not proved to be within the limit of {limit:g} points: the images have no labels"
        return Judgement("max_drop", "inconclusive", sentence, strict)
    points = drop.points
    figures = f"top-1 drop {points.value:+.2f} points [{points.low:+.2f}, {points.high:+.2f}] on {drop.count} images"
    if points.low > limit:
        return Judgement("max_drop", "fail", f"{figures}: more than the {limit:g} allowed", strict)
    if points.high <= limit:
        return Judgement("max_drop", "pass", f"{figures}: within the {limit:g} allowed", strict)
    sentence = f"{figures}: not proved to be within the limit of {limit:g}; {_missing(drop, limit / 100, confidence)}"
    return Judgement("max_drop", "inconclusive", sentence, strict)


def _missing(drop: Drop, limit: float, confidence: float) -> str:
    """What is missing for a drop to be proved within a limit (a share)."""
    if limit <= 0:
        return "only a model that gains answers proves that none are lost: pass e.g. --max-drop 0.5"
    least = images_without_loss(limit, confidence)
    if drop.count < least:
        return f"even without a changed answer this takes {least} images"
    return f"about {images_needed(drop.lost, drop.gained, drop.count, limit, confidence)} more images are needed"


def judge_speedup(speedup: Interval | None, min_speedup: float, against: str = "the baseline") -> Judgement:
    """Judge a speed-up (a ratio, over the model `against`; None if not measured) by the bounds of its interval."""
    if speedup is None:
        return Judgement("min_speedup", "inconclusive", "the speed-up was not measured", strict=True)
    figures = f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}] as fast as {against}"
    if speedup.low >= min_speedup:
        return Judgement("min_speedup", "pass", f"{figures}: at least the {min_speedup:g} required", strict=True)
    if speedup.high < min_speedup:
        return Judgement("min_speedup", "fail", f"{figures}: less than the {min_speedup:g} required", strict=True)
    sentence = (
        f"{figures}: not proved to be at least {min_speedup:g}; measure longer (--seconds) or on a quieter machine"
    )
    return Judgement("min_speedup", "inconclusive", sentence, strict=True)


def speed_outcome(speedup: Interval) -> SpeedOutcome:
    """The outcome of a speed-up, for display only: the contract is judged on the bounds of the interval."""
    if speedup.low > 1 and speedup.value > 1 + SMALLEST:
        return "faster"
    if speedup.high < 1 and speedup.value < 1 / (1 + SMALLEST):
        return "slower"
    resolved = speedup.low > 1 / (1 + RESOLVED) and speedup.high < 1 + RESOLVED
    return "no difference" if resolved else "inconclusive"


def reason(judgements: list[Judgement]) -> str:
    """The reason for the verdict: the first judgement of each rule that is as bad as the worst."""
    worst = overall(judgements)
    sentences = {
        judgement.rule: judgement.sentence for judgement in reversed(judgements) if judgement.outcome == worst.outcome
    }
    return "; ".join(
        sentences[rule] for rule in dict.fromkeys(judgement.rule for judgement in judgements) if rule in sentences
    )


def overall(judgements: list[Judgement]) -> Judgement:
    """The worst judgement: fail, then a strict inconclusive, then inconclusive, then pass."""
    badness = {"pass": 0, "inconclusive": 1, "fail": 3}
    return max(judgements, key=lambda judgement: badness[judgement.outcome] + (judgement.exit_code == INCONCLUSIVE))
