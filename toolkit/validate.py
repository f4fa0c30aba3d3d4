"""Validation: measure the original and the optimised models together on a device, compare, and give a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..deploy.bundle import Bundle
from ..deploy.devices import open_device
from ..deploy.errors import BundleError
from ..deploy.images import ImageSet
from ..deploy.plan import Plan
from .comparison import counterpart, hold_against
from .console import progress_bar, say
from .contract import Contract, Judgement
from .datasets import part_of
from .results import make_report
from .workspace import RUNS, find


@dataclass(frozen=True)
class Validation:
    """What validate found.

    Attributes:
        report: the document of schema 2 (documented in the README).
        judgement: the verdict and its exit code.
        images: the test images, for the report's pictures; None when there are none.
    """

    report: dict[str, Any]
    judgement: Judgement
    images: ImageSet | None


def validate(
    bundles: Sequence[Bundle],
    *,
    baseline: Bundle | None = None,
    stored: Mapping[str, Any] | None = None,
    images: str | None = None,
    limit: int | None = None,
    contract: Contract | None = None,
    plan: Plan | None = None,
    device: str = "local",
    skip_corrupt: bool = False,
    across_hardware: bool = False,
) -> Validation:
    """Compare optimised models with their original, measured together on one device.

    Args:
        bundles: the candidates; the models that they were made from are measured too, as far as they are found.
        baseline: what they are compared with, alone; None is the source model in torch, or the fp32 ONNX without torch.
        stored: an earlier report (see comparison.read_report) whose models the candidates are held against instead.
        images: test images from elsewhere than the bundle's own test part.
        limit: take this many of them, drawn by class.
        contract: what they are held to.
        across_hardware: `stored` may be of another machine.

    Raises:
        BundleError: the candidates do not belong together.
        EdgeKitError: a model cannot be run, or `stored` cannot be compared with.
    """
    contract, plan = contract or Contract(), plan or Plan()
    chain = _with_ancestors(bundles, baseline)
    if stored is not None:
        for bundle in bundles:  # before minutes are spent on measuring
            own = bundle.manifest
            counterpart(stored, {"id": bundle.id, "name": own.name, "format": own.format, "precision": own.precision})
    test = part_of(bundles[0], "test", images, skip_corrupt=skip_corrupt)
    if test is not None and limit is not None:
        test = test.stratified(limit, seed=0)
    if test is None:
        say("no test images are known: accuracy is not measured (pass --images)")
    with progress_bar("validate") as show:
        measured = open_device(device).measure(chain, plan, test, show)
    report, judgement = make_report(chain, measured, test, [bundle.id for bundle in bundles], plan, contract)
    if stored is not None:
        report, judgement = hold_against(
            stored, report, [bundle.id for bundle in bundles], contract, across_hardware=across_hardware
        )
    return Validation(report, judgement, test)


def _with_ancestors(bundles: Sequence[Bundle], baseline: Bundle | None) -> list[Bundle]:
    """[baseline, the models between where no baseline was named, candidates], each once."""
    labels = {bundle.manifest.labels for bundle in (*bundles, *([baseline] if baseline else []))}
    if len(labels) != 1:
        raise BundleError("the bundles have different labels", fix="validate models of the same classes together")
    if baseline is not None:
        return list({bundle.id: bundle for bundle in (baseline, *bundles)}.values())
    found = []
    for bundle in bundles:
        for entry in bundle.manifest.lineage:
            ancestor = find(entry["id"], bundle.path.parent, RUNS)
            if ancestor is None:
                say(f"{entry['name']} ({entry['format']} {entry['precision']}) is not here: not compared")
            elif not _runs_here(ancestor):
                say(f"{ancestor.path} needs a runtime that is not installed here: not compared")
            else:
                found.append(ancestor)
    return list({bundle.id: bundle for bundle in (*found, *bundles)}.values())


def _runs_here(bundle: Bundle) -> bool:
    from importlib.util import find_spec

    return find_spec("onnxruntime" if bundle.manifest.format == "onnx" else "torch") is not None
