"""Results: everything that a report is made from, in one document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypedDict

import numpy as np

from ..bundle import Bundle
from ..documents import DocumentError, check_numbers, plain, read
from ..errors import EdgeKitError, RecipeError
from ..images import ImageSet
from ..manifest import Manifest
from .measurement import Environment, Measurement, check_measurements
from .plan import Candidate, Plan

SCHEMA = 2


@dataclass(frozen=True)
class Result:
    """A request to a device, and its answer.

    Attributes:
        device: the device's name.
        bundles: the models, the baseline first; a result that was read has only their manifests.
        candidates: keys (see plan.Candidate) of those that the contract applies to.
        plan: which runtimes ran them, and how they were measured.
        contract: the limits of the candidates (see toolkit.analysis.contract.Contract).
        ids, targets: of the test images, in their order (see ImageSet); empty without test images.
        environment: the facts of the device.
        measurements: one per candidate of the plan, in its order.
        host: a candidate's key -> this machine's answers on the same images (see analysis.host_answers), if
            requested.
        overlap: test images that the models were made with; None if unchecked.
        provenance: how to repeat the validation; None in results of earlier versions.
    """

    device: str
    bundles: Sequence[Bundle]
    candidates: Sequence[str]
    plan: Plan
    contract: Mapping[str, float | None]
    ids: Sequence[str]
    targets: np.ndarray
    environment: Environment
    measurements: Sequence[Measurement]
    host: "Mapping[str, HostAnswers]" = field(default_factory=dict)
    overlap: "Overlap | None" = None
    provenance: "Provenance | None" = None

    def measured(self) -> list[tuple[Candidate, Bundle, Measurement]]:
        """Each candidate with its bundle and its measurement."""
        bundles = {bundle.id: bundle for bundle in self.bundles}
        pairs = zip(self.plan.measured(bundles), self.measurements, strict=True)
        return [(candidate, bundles[candidate.bundle], measurement) for candidate, measurement in pairs]

    def to_json(self) -> dict[str, object]:
        """Convert to plain values."""
        return {
            "result": SCHEMA,
            "device": self.device,
            "bundles": [describe_bundle(bundle) for bundle in self.bundles],
            "candidates": list(self.candidates),
            "plan": plain(self.plan),
            "contract": dict(self.contract),
            "ids": list(self.ids),
            "targets": self.targets.tolist(),
            "environment": dict(self.environment),
            "measurements": plain(self.measurements),
            "host": dict(self.host),
            "overlap": plain(self.overlap),
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, data: object, where: Path) -> "Result":
        """Read what `to_json` wrote.

        Raises:
            EdgeKitError: `data` has another schema, or is not a result.
        """
        try:
            if isinstance(data, dict) and data.get("result") == 1:
                data = _from_1(data)
            if not isinstance(data, dict) or data.get("result") != SCHEMA:
                schema = str(data.get("result"))[:80] if isinstance(data, dict) else None
                raise EdgeKitError(
                    f"{where} has schema {schema}; this EdgeKit reads {SCHEMA}", fix="measure again, or upgrade"
                )
            document = read(_Document, data)
            bundles = [read_bundle(entry, where) for entry in document.bundles]
            labels = {bundle.id: len(bundle.manifest.labels) for bundle in bundles}
            measurements = document.measurements
            candidates = document.plan.measured(labels)
            classes = {candidate.key: labels[candidate.bundle] for candidate in candidates}
            check_measurements(measurements, classes, len(document.ids))
            check_numbers(document.environment)
            if len(document.targets) != len(document.ids) or not bundles:
                raise DocumentError("targets and ids differ in number, or there are no bundles")
            if document.targets and not -1 <= min(document.targets) <= max(document.targets) < min(labels.values()):
                raise DocumentError("a target is not one of the labels")
            return cls(
                device=document.device,
                bundles=bundles,
                candidates=document.candidates,
                plan=document.plan,
                contract=document.contract,
                ids=document.ids,
                targets=np.asarray(document.targets, np.int64),
                environment=document.environment,
                measurements=measurements,
                host=document.host,
                overlap=document.overlap,
                provenance=document.provenance,
            )
        except (DocumentError, RecipeError) as error:
            raise EdgeKitError(f"{where} is not an EdgeKit result: {error}", fix="measure again") from error


def _from_1(data: Mapping[str, object]) -> dict[str, object]:
    """Convert a result of schema 1, whose plan had the runtimes' options as its own entries, to schema 2."""
    plan = Plan.from_report(read(dict[str, object], data.get("plan"), "plan"))
    return {**data, "result": SCHEMA, "plan": plain(plan)}


class _BundleEntry(NamedTuple):
    """The output of describe_bundle."""

    id: str
    path: str
    manifest: Mapping[str, object]


@dataclass(frozen=True)
class NearDuplicate:
    """A test image, and the image that it looks like."""

    id: str
    other: str


@dataclass(frozen=True)
class Overlap:
    """Test images that the models have seen.

    Attributes:
        unchecked: bundles without fingerprints of images, such as those of earlier versions.
        excluded: number of test images left out, because a model was made with identical ones.
        excluded_ids: the first of them.
        near_duplicates: number of remaining images that look like one that a model was made with.
        pairs: the first of them.
        searched: number of images that the models were made with and that were compared, and their total number.
    """

    unchecked: tuple[str, ...] = ()
    excluded: int = 0
    excluded_ids: tuple[str, ...] = ()
    near_duplicates: int = 0
    pairs: tuple[NearDuplicate, ...] = ()
    searched: tuple[int, int] = (0, 0)


class _Provenance(TypedDict, total=False):
    runtimes: list[str]


class Provenance(_Provenance):
    """Everything that repeats a validation, in addition to its plan, contract and models.

    Attributes:
        command: arguments as typed; empty if called from Python.
        edgekit: its version.
        candidates: ids of the bundles that were passed.
        runtimes: the requested ones, as --runtime takes them.
        baseline: id of the baseline that was passed; null for the models that the candidates were made from.
        images: source of the test images as passed; null for the bundle's own.
        images_sha256: hash of the names and contents of the test images; null without any.
        limit: requested number of test images; null for all.
        skip_corrupt: whether images that cannot be decoded were left out.
    """

    command: list[str]
    edgekit: str
    candidates: list[str]
    baseline: str | None
    images: str | None
    images_sha256: str | None
    limit: int | None
    skip_corrupt: bool


class OtherAnswer(TypedDict):
    """An image that device and host classify differently: its labels, and how far the host's logit of its own answer
    exceeds its logit of the device's answer."""

    id: str
    truth: str | None
    host: str
    device: str
    gap: float


class HostAnswers(TypedDict):
    """The host's answers on the device's images, and the largest difference of a logit on the golden samples."""

    images: int
    logits_max_abs: float
    differ: list[OtherAnswer]


class _Document(NamedTuple):
    """The entries of a result, as JSON."""

    result: int
    device: str
    bundles: tuple[_BundleEntry, ...]
    candidates: tuple[str, ...]
    plan: Plan
    contract: Mapping[str, float | None]
    ids: tuple[str, ...]
    targets: tuple[int, ...]
    environment: Environment
    measurements: tuple[Measurement, ...]
    host: Mapping[str, HostAnswers] = MappingProxyType({})
    overlap: Overlap | None = None
    provenance: Provenance | None = None


def ids_and_targets(images: ImageSet | None) -> tuple[tuple[str, ...], np.ndarray]:
    """The ids and targets of the test images."""
    return (images.ids, images.targets) if images is not None else ((), np.empty(0, np.int64))


def describe_bundle(bundle: Bundle) -> dict[str, object]:
    """A bundle without its files."""
    return {"id": bundle.id, "path": str(bundle.path), "manifest": json.loads(bundle.manifest.to_json())}


def read_bundle(entry: _BundleEntry, where: Path) -> Bundle:
    """Read what `describe_bundle` wrote."""
    return Bundle(Path(entry.path), Manifest.from_json(json.dumps(entry.manifest), where), entry.id)
