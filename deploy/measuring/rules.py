"""Constants of every measuring loop: this package's, and the browser page's, which receives them with its plan."""

from dataclasses import dataclass

from .plan import HALF_WIDTH_WANTED, SAMPLES_WANTED


@dataclass(frozen=True)
class Rules:
    """How models are warmed up and timed.

    Attributes:
        inputs: timed calls cycle through this many different real inputs, so that caches do not favour one of them.
        warm_up_calls: minimum number of calls in a warm-up.
        warm_up_s: minimum time of a warm-up.
        warm_up_cap_s: maximum time of a warm-up, settled or not.
        race_inputs, race_warm_up_cap_s: the same in a race, which starts many models and needs less precision.
        window_calls: minimum number of calls in a window of the warm-up.
        window_s: minimum time of a window.
        settled: a warm-up ends once two windows in a row differ by less than this share.
        sample_ns: calls are timed together until they take this long, so that reading the clock costs little.
        untimed_from: in a block of at least this many samples the first calls are not timed.
        untimed_every: one of this many samples is not timed.
        one_thread_rounds: additional rounds with one thread: enough to see a factor, not to measure a percentage.
        samples_wanted: see plan.SAMPLES_WANTED.
        half_width_wanted: see plan.HALF_WIDTH_WANTED.
    """

    inputs: int = 64
    warm_up_calls: int = 10
    warm_up_s: float = 0.5
    warm_up_cap_s: float = 30.0
    race_inputs: int = 16
    race_warm_up_cap_s: float = 1.0
    window_calls: int = 5
    window_s: float = 0.1
    settled: float = 0.01
    sample_ns: int = 1_000_000
    untimed_from: int = 5
    untimed_every: int = 20
    one_thread_rounds: int = 6
    samples_wanted: int = SAMPLES_WANTED
    half_width_wanted: float = HALF_WIDTH_WANTED


RULES = Rules()
