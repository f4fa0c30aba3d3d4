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
        bundles: the models, the baseline first; of a result that was read, only their manifests are there.
        candidates: keys (see plan.Candidate) of those that a contract is about.
        plan: which runtimes ran them, and how they were measured.
        contract: the limits of the candidates (see toolkit.analysis.contract.Contract).
        ids, targets: of the test images, in their order (see ImageSet); empty where there are none.
        environment: the facts of the device.
        measurements: one per candidate of the plan, in its order.
        host: a candidate's key -> what this machine answered on the same images (see analysis.host_answers), where it
            was asked.
        overlap: test images that the models were made with; None if unchecked.
        provenance: what makes the validation again; None in results of earlier versions.
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
        asked = self.plan.measured(bundles)
        return [(one, bundles[one.bundle], found) for one, found in zip(asked, self.measurements, strict=True)]

    def to_json(self) -> dict[str, object]:
        """Plain values."""
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
            EdgeKitError: another schema, or not a result.
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
            asked = {one.key: labels[one.bundle] for one in document.plan.measured(labels)}
            check_measurements(measurements, asked, len(document.ids))
            check_numbers(document.environment)
            if len(document.targets) != len(document.ids) or not bundles:
                raise DocumentError("targets and ids are not of the same images")
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
    """A result of schema 1, whose plan named the options of runtimes itself, as one of schema 2."""
    plan = Plan.from_report(read(dict[str, object], data.get("plan"), "plan"))
    return {**data, "result": SCHEMA, "plan": plain(plan)}


class _BundleEntry(NamedTuple):
    """What describe_bundle writes."""

    id: str
    path: str
    manifest: Mapping[str, object]


@dataclass(frozen=True)
class Alike:
    """A test image, and the image that it looks like."""

    id: str
    other: str


@dataclass(frozen=True)
class Overlap:
    """Test images that the models have seen.

    Attributes:
        unchecked: bundles that record no fingerprints of images, as those of earlier versions.
        excluded: number of test images left out, because a model was made with identical ones.
        excluded_ids: the first of them.
        near_duplicates: number of remaining images that look like one that a model was made with.
        pairs: the first of them.
        searched: how many images that the models were made with were looked at for that, and how many there are.
    """

    unchecked: tuple[str, ...] = ()
    excluded: int = 0
    excluded_ids: tuple[str, ...] = ()
    near_duplicates: int = 0
    pairs: tuple[Alike, ...] = ()
    searched: tuple[int, int] = (0, 0)


class _Provenance(TypedDict, total=False):
    runtimes: list[str]


class Provenance(_Provenance):
    """Everything that repeats a validation, in addition to its plan, contract and models.

    Attributes:
        command: arguments as typed; empty where it was called from Python.
        edgekit: its version.
        candidates: ids of the bundles that were named.
        runtimes: that were named, as --runtime takes them.
        baseline: id of the baseline that was named; null for the models that the candidates were made from.
        images: place of the test images as given; null for the bundle's own.
        images_sha256: of the names and contents of the test images; null without any.
        limit: test images that were asked for; null for all.
        skip_corrupt: images that cannot be decoded were left out.
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
    """An image that device and host answer differently: labels, and by how much the host's logit of its own answer is
    above that of the device's."""

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
