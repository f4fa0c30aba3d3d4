"""Keep the fewest and cheapest layers float with which an int8 model fulfils its contract."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import NamedTuple

import numpy as np
import onnx

from ...deploy.images import ImageSet
from ...deploy.parity import decibels, powers
from ...deploy.session import Session, open_session
from ...export.onnx_file import multiplications, to_bytes
from ..analysis.contract import DEFAULT_MAX_DROP, PASS, Contract, Drop, compare_accuracy, judge_drop
from .compare import Compared
from .gate import REFUSED_DB
from .int8 import Int8
from .lowered import Request
from .operators import COMPUTE
from .rewrites.graph import arrays, shapes
from .sensitivity import NoiseSource, noise_sources
from .trial import open_model, speedup

# Number of golden samples for the sensitivity.
_SAMPLES = 8
# Choices that avoid at least this share of the noise that the best one avoids are compared by what they cost.
_SIMILAR = 0.5
# Costs in multiplications of a float convolution, from trials of 32 choices in MobileNetV3-Small (48 pixels): to
# convert a number between int8 and float, to read a float weight, and of each operator that no longer runs in int8.
_CONVERSION, _WEIGHT, _CALL = 16, 8, 400_000
# Number of float layers that are named for the user.
_NAMED = 8


class Point(NamedTuple):
    """An int8 model with some layers float.

    Attributes:
        layers: names of those.
        changed: number of selection images, or without them of golden samples, with another answer than the source's.
        drop: see compare_accuracy.
        decibels: signal-to-noise ratio of the logits on these images.
        speedup: over the float source in a short trial with one thread; None if this machine is not the target.
    """

    layers: frozenset[str]
    changed: int
    drop: Drop | None
    decibels: float
    speedup: float | None

    @property
    def sentence(self) -> str:
        """For the user."""
        parts = [f"{_counted(self)} float: {self.changed} answers changed"]
        if self.drop is not None:
            points = self.drop.points
            parts.append(f"top-1 drop {points.value:+.2f} points [{points.low:+.2f}, {points.high:+.2f}]")
        if self.speedup is not None:
            parts.append(f"{self.speedup:.2f}x as fast as fp32")
        return ", ".join(parts)

    def to_json(self) -> dict[str, object]:
        """For the details of a manifest."""
        drop = self.drop and asdict(self.drop)
        return {**self._asdict(), "layers": sorted(self.layers), "drop": drop, "sentence": self.sentence}


class MixedPrecision(NamedTuple):
    """The search for float layers.

    Attributes:
        points: the models that were compared, by number of float layers.
        chosen: the first of them that fulfils the contract; None if none does.
        sources: see noise_sources.
        contract: which the models were to fulfil.
        cut_s: the seconds after which the search was cut off; None if it came to its end.
    """

    points: list[Point]
    chosen: Point | None
    sources: list[NoiseSource]
    contract: Contract
    cut_s: float | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """Lines for the user: each model that was compared, and the choice."""
        lines = [f"  {point.sentence}" for point in self.points]
        if self.chosen is None or not self.chosen.layers:
            return tuple(lines)
        choice = f"float to fulfil the contract: {self._listed(self.chosen)}"
        lines.append(f"{choice}; it was chosen on these images, and edgekit validate confirms it on the test images")
        if self.cut_s is not None:
            lines.append(f"{self._cut}: fewer may be enough; {self._longer}")
        return tuple(lines)

    @property
    def failure(self) -> str | None:
        """What to keep if no choice fulfils the contract, for the user's first line; else None."""
        if self.chosen is not None:
            return None
        if self.cut_s is not None:
            return f"{self._cut} before a model fulfilled the contract; {self._longer}"
        if self.points[0].speedup is None:
            return "keep fp32: no choice of float layers fulfils the contract"
        return "keep fp32: no choice of float layers fulfils the contract and is faster than fp32 here"

    @property
    def reason(self) -> str:
        """Why this model was chosen, or none, for the user."""
        if self.chosen is None:
            return self.failure or ""
        if not self.chosen.layers:
            return "no layer has to be float: the accuracy holds without"
        before = [point for point in self.points if len(point.layers) < len(self.chosen.layers)][-1]
        text = (
            f"{_counted(self.chosen)} float: the fewest of those tried that fulfil the contract; with "
            f"{_counted(before)} float, {problem(before, self.contract)}"
        )
        return text if self.cut_s is None else f"{text}; {self._cut}: fewer may be enough"

    @property
    def _cut(self) -> str:
        return f"the search for float layers was cut off by --budget {self.cut_s:g}s"

    @property
    def _longer(self) -> str:
        return f"to search further: --budget {4 * (self.cut_s or 0):g}s, or leave it out"

    def _listed(self, point: Point) -> str:
        """The names of the float layers, or their number if they are many."""
        names = sorted(point.layers)
        return ", ".join(names) if len(names) <= _NAMED else f"{len(names)} layers, which edgekit inspect lists"

    def to_json(self) -> dict[str, object]:
        """For the details of a manifest."""
        points = [{**point.to_json(), "problem": problem(point, self.contract)} for point in self.points]
        chosen = None if self.chosen is None else self.points.index(self.chosen)
        return {"points": points, "chosen": chosen, "reason": self.reason, "cut_s": self.cut_s}


def problem(point: Point, contract: Contract) -> str | None:
    """Why a model does not fulfil the contract, for the user; None if it does."""
    return _loss(point, contract) or _slowness(point, contract)


def _loss(point: Point, contract: Contract) -> str | None:
    if point.decibels < REFUSED_DB:
        return f"its logits have {point.decibels:.1f} dB, under {REFUSED_DB:g}"
    judgement = judge_drop(point.drop, contract.max_drop)
    if judgement.exit_code == PASS:
        return None
    limit = DEFAULT_MAX_DROP if contract.max_drop is None else contract.max_drop
    proved = "it loses more than" if judgement.outcome == "fail" else "it is not proved to lose at most"
    return f"{proved} {limit:g} points"


def _slowness(point: Point, contract: Contract) -> str | None:
    least = contract.min_speedup or 1.0
    if point.speedup is None or point.speedup >= least:
        return None
    return f"it is less than {least:g}x as fast as fp32"


def _counted(point: Point) -> str:
    count = len(point.layers)
    return f"{count} {'layer' if count == 1 else 'layers'}"


def find_sources(int8: Int8, request: Request) -> list[NoiseSource]:
    """The sources of noise on a few golden samples, worst first."""
    golden, size = request.bundle.golden().tensors, request.bundle.manifest.input.batch or 1
    tensors = golden[: max(size, _SAMPLES // size * size)]
    return noise_sources(int8.source, int8.graph(), int8.form, tensors, request.progress)


def provable(selection: ImageSet | None, contract: Contract) -> bool:
    """Whether the images can prove that a model without a changed answer fulfils the contract."""
    targets = selection.targets if selection else None
    equal = None if targets is None else compare_accuracy(targets, targets, targets)
    return judge_drop(equal, contract.max_drop).exit_code == PASS


def keep_float(
    int8: Int8, request: Request, selection: ImageSet | None, contract: Contract, compared: Compared
) -> MixedPrecision:
    """Find the fewest layers that must stay float for the contract.

    The layers are ordered by `float_order`. Their number is doubled until the contract holds, and then halved. More
    float layers are slower, so the search ends where a trial is no faster than fp32 or than the contract requires. It
    also ends with the budget of the options; a model that fulfils the contract by then is chosen.

    Args:
        selection: with which the contract is `provable`.
        compared: how the model without float layers compares with its source. It is not measured again, which would be
            a second try.
    """
    budget = _Budget(request.options.budget_s)
    sources = find_sources(int8, request)
    steps = float_order(sources, costs(int8.source))
    compute = {node.name for node in int8.source.graph.node if node.op_type in COMPUTE}
    steps = [frozenset[str](), *(layers for layers in steps if not compute <= layers)]
    compare = _Comparison(int8, request, selection or None)
    points = {0: _without_float_layers(compared)}

    def point(count: int) -> Point:
        if count not in points:
            points[count] = compare(steps[count], len(points))
        return points[count]

    def holds(count: int) -> bool:
        return _loss(point(count), contract) is None

    def hopeful(count: int) -> bool:
        return _slowness(point(count), contract) is None

    count = _smallest(len(steps), holds, hopeful, budget)
    chosen = None if count is None or not hopeful(count) else points[count]
    cut_s = request.options.budget_s if budget.ended else None
    return MixedPrecision([points[index] for index in sorted(points)], chosen, sources, contract, cut_s)


class _Budget:
    """The time for a search.

    Attributes:
        ended: whether the last call returned True.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self.ended = False

    def __call__(self) -> bool:
        """Whether no time is left."""
        self.ended = time.monotonic() >= self._end
        return self.ended


def _without_float_layers(compared: Compared) -> Point:
    speed = compared.speedup and compared.speedup.value
    changed = compared.changed.images if compared.changed else 0
    return Point(frozenset(), changed, compared.drop, compared.noise.worst[0], speed)


def float_order(sources: Sequence[NoiseSource], costs: Mapping[str, float]) -> list[frozenset[str]]:
    """Growing sets of float layers: each adds the layers that avoid much noise at a low cost.

    Of the choices that avoid about the most noise, the one that avoids most per cost is added. To leave an activation
    unrounded, all layers that write or read it must be float, so a choice is one or several layers.

    Args:
        costs: layer -> what it costs to leave it float.
    """
    chosen: frozenset[str] = frozenset()
    steps = []
    left = [entry for entry in sources if entry.noise > 0]
    while left:
        gains = {
            layers: sum(entry.noise for entry in left if entry.layers <= chosen | layers)
            for layers in dict.fromkeys(entry.layers - chosen for entry in left)
        }
        most = max(gains.values())
        similar = [layers for layers, gain in gains.items() if gain >= _SIMILAR * most]
        best = max(similar, key=lambda layers: gains[layers] / sum(costs.get(layer, 1.0) for layer in layers))
        chosen |= best
        steps.append(chosen)
        left = [entry for entry in left if not entry.layers <= chosen]
    return steps


def costs(source: onnx.ModelProto) -> dict[str, int]:
    """Node -> what it costs to compute it in float instead of int8, in multiplications for one image.

    Its multiplications, the weights that are four times as large, and the conversions of what it reads and writes.
    """
    graph, values = source.graph, arrays(source.graph)
    known = {name: [size or 1 for size in shape] for name, shape in shapes(graph).items()}
    found = {}
    for node in graph.node:
        activations = [known[name] for name in (*node.input, *node.output) if name in known and name not in values]
        cost = _CALL + _CONVERSION * sum(map(math.prod, activations))
        weight = values.get(node.input[1]) if node.op_type in COMPUTE else None
        if weight is not None and node.output[0] in known:
            cost += _WEIGHT * weight.size + multiplications(node, known[node.output[0]], weight.shape)
        found[node.name] = cost
    return found


class _Comparison:
    """Compares int8 models with their source on the selection images, or on golden samples if there are none."""

    def __init__(self, int8: Int8, request: Request, selection: ImageSet | None) -> None:
        self._int8, self._request, self._selection = int8, request, selection

    @cached_property
    def _expected(self) -> np.ndarray:
        """The source's logits, float32 [n, k]; computed for the first trial, if the budget allows one."""
        return self._answers(open_session(self._request.bundle), "the float model")

    def __call__(self, layers: frozenset[str], trial: int) -> Point:
        """The model with these float layers, the trial of this number."""
        int8, bundle = self._int8, self._request.bundle
        content = to_bytes(int8.graph(layers))
        logits = self._answers(open_model(bundle, content, int8.runtime), f"mixed precision, trial {trial}")
        speed = None
        if int8.timed:
            first = open_session(bundle, int8.runtime, threads=1)
            second = open_model(bundle, content, int8.runtime, threads=1)
            speed = speedup(first, second, bundle.golden().tensors[: bundle.manifest.input.batch or 1])
        before, after = (values.argmax(axis=1) for values in (self._expected, logits))
        drop = None if self._selection is None else compare_accuracy(self._selection.targets, before, after)
        noise = decibels(powers(self._expected, logits))
        return Point(layers, int((before != after).sum()), drop, noise, speed)

    def _answers(self, session: Session, stage: str) -> np.ndarray:
        """Logits, float32 [n, k]."""
        bundle, progress = self._request.bundle, self._request.progress
        if self._selection is None:
            return session.run(bundle.golden().tensors)
        logits = []
        for index, sample in enumerate(self._selection):
            logits.append(session.run(bundle.manifest.preprocess(sample.image)[None]))
            progress(stage, (index + 1) / len(self._selection))
        return np.concatenate(logits)


def _smallest(
    count: int, holds: Callable[[int], bool], hopeful: Callable[[int], bool], ended: Callable[[], bool]
) -> int | None:
    """The smallest number under `count` that holds, if all larger ones do; None if none of those tried does.

    Args:
        hopeful: whether a larger number than one that does not hold is worth a try.
        ended: whether there is no time for another one; called only where it would be tried.
    """
    low, high = -1, 0
    while not holds(high):
        if high == count - 1 or not hopeful(high) or ended():
            return None
        low, high = high, min(count - 1, max(1, 2 * high))
    while high - low > 1 and not ended():
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
