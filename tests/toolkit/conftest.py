"""Reports on synthetic measurements."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.images import ImageSet
from edgekit.deploy.measuring.measurement import Block, Measurement, Predictions, WarmUp
from edgekit.deploy.measuring.plan import Plan
from edgekit.deploy.measuring.result import Result, ids_and_targets
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.document import make_report
from edgekit.toolkit.datasets import part_of

STATE = {
    "load": [0.1, 0.2, 0.3], "mhz": [2000, 2000], "temperature_c": 40.0, "throttled": 0, "cgroup_throttled": 0,
    "swap_used_bytes": 0, "power": "unavailable",
}  # fmt: skip
ENVIRONMENT = {
    "machine": "x86_64", "cpu": "a <b>CPU</b> & more", "isa": ["avx2"], "cores_allowed": 2, "cores_got": 2.0,
    "before": STATE, "after": {**STATE, "temperature_c": 51.5}, "versions": {"numpy": "2"},
}  # fmt: skip


def measurement(
    bundle: Bundle, ms: float, classes: np.ndarray, spread: float = 0.01, drift: float = 0.0
) -> Measurement:
    """Calls of about `ms` each: three processes of ten blocks of 80 calls; speeds differ by `spread` / 4."""
    generator = np.random.default_rng(int(ms * 1000))
    process_factors = 1 + generator.normal(0, spread / 4, 3)
    blocks = []
    for number in range(30):
        drifted = ms * 1e6 * process_factors[number // 10] * (1 + drift * number / 30)
        factor = drifted * generator.normal(1, spread / 4)
        ns = tuple(int(factor * value) for value in generator.normal(1, spread, 80))
        blocks.append(Block(number, number // 10, number * 0.2, 1, ns, 0))
    predictions = Predictions(tuple(classes.tolist()), (0.9,) * len(classes), (True,) * len(classes))
    parity = {
        "checksums_agreement": 1.0,
        "tensor_max_abs": 0.0,
        "logits_max_abs": 0.1,
        "top1_agreement": 1.0,
        "scale": 10.0,
    }
    return Measurement(
        bundle=bundle.id, session={"runtime": "made up"}, file_ms=(0.5,) * 3, load_ms=(1.0,) * 3, first_ms=(2.0,) * 3,
        preprocess_ns=(1000,) * 192, postprocess_ns=(500,) * 192, warm_ups=(WarmUp(500.0, 100, True),) * 3,
        blocks=tuple(blocks), checked=30, differed=0, peak_rss_bytes=1 << 26, parity=parity, golden_logits=[],
        predictions=predictions,
    )  # fmt: skip


def report_on(
    bundles: list[Bundle], candidates: list[str], plan: Plan, environment: dict[str, Any],
    measurements: list[Measurement], **contract: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Make a report on measurements without test images."""
    ids, targets = ids_and_targets(None)
    return make_report(
        Result(
            "local", bundles, candidates, plan, asdict(Contract(**contract)), ids, targets, environment, measurements
        )
    )


class Judged(NamedTuple):
    """A report and its test images."""

    report: dict[str, Any]
    test: ImageSet


@pytest.fixture
def judged(fp32: Bundle, int8: Bundle) -> Callable[..., Judged]:
    """Make a report on a baseline and a candidate: `first` and `second` are times in ms, `lost` counts wrong images."""
    test = part_of(fp32, "test")
    assert test is not None

    def run(
        first: float = 2.0, second: float = 1.0, lost: int = 0,
        change: Callable[[list[Measurement]], list[Measurement]] | None = None,
        environment: dict[str, Any] | None = None, threads: int | None = 1,
        plan: dict[str, Any] | None = None, host: dict[str, Any] | None = None,
        chain: Callable[[list[Bundle]], list[Bundle]] = list,
        candidates: Callable[[list[Bundle]], list[str]] = lambda bundles: [bundles[-1].id],
        **contract: float | None,
    ) -> Judged:  # fmt: skip
        answers = test.targets.copy()
        answers[:lost] = (answers[:lost] + 1) % 10
        measured = [measurement(fp32, first, test.targets), measurement(int8, second, answers)]
        bundles = chain([fp32, int8])
        measured = change(measured) if change else measured
        result = Result(
            device="local", bundles=bundles, candidates=candidates(bundles),
            plan=Plan(processes=3, threads=threads, **(plan or {})), contract=asdict(Contract(**contract)),
            ids=test.ids, targets=test.targets, environment={**ENVIRONMENT, **(environment or {})},
            measurements=measured, host=host or {},
        )  # fmt: skip
        return Judged(make_report(result), test)

    return run
