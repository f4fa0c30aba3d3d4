"""Results: all that a report is made from, as one document that a device can write and any machine can read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle, Manifest
from .errors import EdgeKitError
from .images import ImageSet
from .measurement import Measurement
from .plan import Plan

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """What was asked of a device and what it answered.

    Attributes:
        device: the device's name.
        bundles: the models, the baseline first; of a result that was read, only their manifests are there.
        candidates: ids of those that a contract is about.
        plan: how they were measured.
        contract: what the candidates are held to (see toolkit.contract.Contract).
        ids, targets: of the test images, in their order (see ImageSet); empty where there are none.
        environment: what the device says of itself.
        measurements: one a bundle, in their order.
        host: bundle id -> what this machine answered on the same images (see toolkit.host), where it was asked.
    """

    device: str
    bundles: Sequence[Bundle]
    candidates: Sequence[str]
    plan: Plan
    contract: Mapping[str, Any]
    ids: Sequence[str]
    targets: np.ndarray
    environment: Mapping[str, Any]
    measurements: Sequence[Measurement]
    host: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "result": SCHEMA,
            "device": self.device,
            "bundles": [describe_bundle(bundle) for bundle in self.bundles],
            "candidates": list(self.candidates),
            "plan": self.plan.to_json(),
            "contract": dict(self.contract),
            "ids": list(self.ids),
            "targets": self.targets.tolist(),
            "environment": dict(self.environment),
            "measurements": [measurement.to_json() for measurement in self.measurements],
            "host": dict(self.host),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: Path) -> "Result":
        """Read what `to_json` wrote.

        Raises:
            EdgeKitError: another schema, or not a result.
        """
        try:
            schema = data["result"]
            if schema != SCHEMA:
                raise EdgeKitError(
                    f"{where} has schema {schema}; this EdgeKit reads {SCHEMA}", fix="measure again, or upgrade"
                )
            return cls(
                device=data["device"],
                bundles=[read_bundle(entry, where) for entry in data["bundles"]],
                candidates=data["candidates"],
                plan=Plan.from_json(data["plan"]),
                contract=data["contract"],
                ids=data["ids"],
                targets=np.asarray(data["targets"], np.int64),
                environment=data["environment"],
                measurements=[Measurement.from_json(entry) for entry in data["measurements"]],
                host=data["host"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EdgeKitError(f"{where} is not an EdgeKit result: {error!r}", fix="measure again") from error


def ids_and_targets(images: ImageSet | None) -> tuple[tuple[str, ...], np.ndarray]:
    """What a result holds of the test images."""
    return (images.ids, images.targets) if images is not None else ((), np.empty(0, np.int64))


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """A bundle without its files."""
    return {"id": bundle.id, "path": str(bundle.path), "manifest": json.loads(bundle.manifest.to_json())}


def read_bundle(entry: Mapping[str, Any], where: Path) -> Bundle:
    """Read what `describe_bundle` wrote."""
    return Bundle(Path(entry["path"]), Manifest.from_json(json.dumps(entry["manifest"]), where), entry["id"])
