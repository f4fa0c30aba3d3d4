"""The program of a packed model: measure, write result.json, print the verdict. Needs numpy, Pillow and the runtime."""

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from ...deploy.documents import plain, read
from ...deploy.errors import EdgeKitError
from ...deploy.files import require_writable, sweep_scratch, write_file
from ...deploy.measuring import agent
from ...deploy.measuring.plan import Plan
from ...deploy.measuring.result import Result
from ...deploy.visible import visible
from ..analysis.document import make_report
from ..analysis.report_schema import Report
from ..analysis.wording import (
    DEVICE_COLUMNS,
    noise_summary,
    ratio_lines,
    recommendation_lines,
    report_rows,
    scenario_lines,
    speedups,
    subject,
    thread_lines,
    warning_lines,
)
from .zipapp_main import check_undamaged

# The rest of the report's input, next to the agent's job.
PACKED = "packed.json"


def main(path: Path, folder: Path) -> int:
    """Run the unpacked job in `folder`; returns the same exit code as validate."""
    check_undamaged(path)
    sweep_scratch(folder.parent.parent)
    parser = argparse.ArgumentParser(prog=path.name, description="Measure the packed model on this machine.")
    parser.add_argument("--out", type=Path, default=Path("result.json"), help="output file")
    parser.add_argument("--threads", type=int, help="threads per inference; default: the allowed cores that are free")
    parser.add_argument("--seconds", type=float, help="minimum time for the latency blocks")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    os.chdir(folder)  # a folder called edgekit in the user's directory must not shadow this package
    try:
        require_writable(out)  # before minutes are spent on measuring
        return _run(out, {key: getattr(arguments, key) for key in ("threads", "seconds") if getattr(arguments, key)})
    except EdgeKitError as error:
        _show(f"error: {error}", f"fix: {error.fix}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(out: Path, changes: dict[str, object]) -> int:
    packed = json.loads(Path(PACKED).read_text(encoding="utf-8"))
    job = json.loads(Path(agent.JOB).read_text(encoding="utf-8"))
    plan = replace(read(Plan, job["plan"]), **changes)
    Path(agent.JOB).write_text(json.dumps({**job, "plan": plain(plan)}), encoding="utf-8")
    measured = agent.run(Path(), _progress())
    document = {
        **packed, "device": platform.node() or "board", "plan": plain(plan), "environment": measured.environment,
        "measurements": plain(measured.measurements),
    }  # fmt: skip
    write_file(out, json.dumps(document))
    report = make_report(Result.from_json(document, out))
    _print(report)
    _show(f"wrote {out}", file=sys.stderr)
    return report["exit_code"]


def _progress() -> agent.Send:
    """Show one line per stage on standard error."""
    stages: set[str] = set()

    def say(message: agent.Message) -> None:
        stage = message.get("progress")
        if stage and stage not in stages:
            stages.add(stage)
            _show(stage, file=sys.stderr)

    return say


def _print(report: Report) -> None:
    """Print the report as plain text."""
    rows = [DEVICE_COLUMNS, *report_rows(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(DEVICE_COLUMNS))]
    _show(report["headline"], subject(report))
    _show(*("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows))
    for lines_of in (thread_lines, ratio_lines, speedups, scenario_lines, recommendation_lines, noise_summary):
        _show(*lines_of(report))
    _show(*(f"warning: {line}" for line in warning_lines(report)), f"{report['verdict']}: {report['reason']}")


def _show(*lines: str, file: TextIO | None = None) -> None:
    for line in lines:
        print(visible(line), file=file)
