"""Reports of several devices side by side, as one document."""

from collections.abc import Sequence

from ...deploy.errors import EdgeKitError
from .contract import ExitCode, Outcome
from .model_schema import identity_of
from .report_schema import SCHEMA, Agreement, DeviceAnswers, Failed, JoinedReport, Report

_BADNESS = {"pass": 0, "inconclusive": 1, "fail": 2}


def join_reports(reports: Sequence[Report], failed: Sequence[Failed] = ()) -> JoinedReport:
    """Join the reports of several devices; the verdict is the worst of them.

    Args:
        reports: one per device.
        failed: devices that gave no report: "device", "error", "fix".

    Raises:
        EdgeKitError: two reports are for the same device, or the reports have no model in common.
    """
    names = [report["device"]["name"] for report in reports]
    if len(set(names)) < len(names):
        raise EdgeKitError(
            f"two reports are for the device {max(names, key=names.count)}",
            fix="join one report per device; --across-hardware compares reports",
        )
    shared = set.intersection(*({model["id"] for model in report["models"]} for report in reports))
    if not shared:
        raise EdgeKitError("the reports have no model in common", fix="validate the same bundles on each device")
    verdict: Outcome = max((report["verdict"] for report in reports), key=lambda outcome: _BADNESS[outcome])
    reasons = [f"{report['device']['name']}: {report['reason']}" for report in reports if report["verdict"] == verdict]
    reasons = [*(f"{failure['device']}: {failure['error']}" for failure in failed), *reasons]
    codes = {report["exit_code"] for report in reports}
    code: ExitCode = 3 if 3 in codes else 4 if 4 in codes else 0
    return {
        "schema": SCHEMA,
        "verdict": "fail" if failed else verdict,
        "reason": "; ".join(reasons),
        "exit_code": 1 if failed else code,
        "noise": [
            {"name": signal["name"], "detail": f"{report['device']['name']}: {signal['detail']}"}
            for report in reports
            for signal in report["noise"]
        ],
        "failed": list(failed),
        "devices": list(reports),
        "agreement": [_agreement(reports, identity) for identity in sorted(shared)],
    }  # fmt: skip


def _agreement(reports: Sequence[Report], identity: str) -> Agreement:
    """The images that devices answer differently; "images" is None if the devices had different images."""
    models = [next(model for model in report["models"] if model["id"] == identity) for report in reports]
    entry = identity_of(models[0])
    comparable = all(report["ids"] == reports[0]["ids"] for report in reports) and all(
        model["predictions"] for model in models
    )
    if not comparable:
        return {**entry, "images": None, "differ": []}
    answers = zip(reports[0]["ids"], *(model["predictions"] or () for model in models), strict=True)
    labels = reports[0]["labels"]
    differ: list[DeviceAnswers] = [
        {"id": image, "answers": [labels[index] for index in classes]}
        for image, *classes in answers
        if len(set(classes)) > 1
    ]
    return {**entry, "images": len(reports[0]["ids"]), "differ": differ}
