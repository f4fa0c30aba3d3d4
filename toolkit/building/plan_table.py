"""A build plan as text for a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from ...deploy.visible import visible
from .build import BuildPlan, FindingEntry

_NODES_SHOWN = 3


def build_plan_table(plan: BuildPlan) -> Iterator[RenderableType]:
    """Findings of the TensorRT lint, one line per rule with its first nodes, and the command lines."""
    rules: dict[tuple[str, str, str], list[FindingEntry]] = {}
    for finding in plan.findings:
        rules.setdefault((finding["severity"], finding["rule"], finding["fix"]), []).append(finding)
    if not rules:
        yield f"{plan.bundle}: found nothing that TensorRT refuses, slows down or changes"
    for (severity, rule, fix), findings in sorted(rules.items()):
        colour = "red" if severity == "error" else "yellow"
        releases = f" (TensorRT {', '.join(findings[0]['releases'])})" if findings[0]["releases"] else ""
        yield Text.assemble((severity, colour), visible(f" {rule}{releases}, {len(findings)}x; {fix}"))
        for finding in findings[:_NODES_SHOWN]:
            yield f"    {finding['node']}: {finding['message']}"
        if len(findings) > _NODES_SHOWN:
            yield f"    … and {len(findings) - _NODES_SHOWN} more (--json)"
    for release, line in plan.commands.items():
        yield f"TensorRT {release}: {line}"
