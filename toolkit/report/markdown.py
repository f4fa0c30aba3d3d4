"""A report as Markdown, for a comment on a pull request."""

import re
from collections.abc import Iterable, Sequence

from ...deploy.visible import visible
from ..analysis.report_schema import Comparison, Document, JoinedReport, Report
from ..analysis.sentence import verdict_sentence
from ..analysis.wording import (
    DEVICE_COLUMNS,
    LONG,
    MODEL_COLUMNS,
    against_lines,
    agreement_lines,
    device_rows,
    drop_text,
    headline_of,
    host_lines,
    mean_text,
    milliseconds,
    model_name,
    model_rows,
    noise_details,
    noise_summary,
    ratio_lines,
    recommendation_lines,
    scenario_lines,
    speedup_text,
    subject,
    thread_lines,
    warning_lines,
)

# Inline markup of GitHub's Markdown; markers of lists, headings and rules at the start of a line; and text that
# becomes a link or a mention unless a zero-width space follows.
_MARKUP = re.compile(r"[\\`*_\[\]<>|!&~$]")
_BLOCK = re.compile(r"^(\d*)([-+=#.])")
_LINK = re.compile(r"[@#](?=\w)|:(?=//)|www(?=\.)", re.IGNORECASE)


# The notes below a summary's table.
_REMARKS = (thread_lines, ratio_lines, against_lines, scenario_lines, host_lines)
_ICONS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}


def markdown(document: Document) -> str:
    """A summary for a pull request's comment: the verdict, the models or changes as a table, the warnings.

    Each candidate is shown beside the model that its speed is judged against; the speed-ups over all others are in
    report.json.
    """
    verdict = document["verdict"]
    lines = [f"### {_ICONS[verdict]} {verdict}: {_escaped(verdict_sentence(document))}", ""]
    headline, reason = headline_of(document), document["reason"]
    # with many models these texts are long, and the table has the figures
    lines += [line for text in (headline, reason) if len(text) <= LONG for line in (_line(text), "")]
    warnings = []
    if "models" in document:
        lines += _models(document)
        warnings = warning_lines(document)
    elif "devices" in document:
        lines += _table(DEVICE_COLUMNS, device_rows(document))
        remarks = (*agreement_lines(document), *_recommendation(document))
        lines += ["", *(f"- {_line(line)}" for line in remarks)]
    else:
        lines += _changes(document)
    lines += ["", *(f"- ⚠️ {_escaped(warning)}" for warning in warnings), *map(_line, noise_summary(document))]
    if len(reason) > LONG:
        lines += _folded("why", [_line(reason)])
    if document["noise"]:
        lines += _folded("noise", [f"- {_line(detail)}" for detail in noise_details(document)])
    return "\n".join(lines).rstrip() + "\n"


def _models(report: Report) -> list[str]:
    remarks = [*_recommendation(report), *(line for lines_of in _REMARKS for line in lines_of(report))]
    return [
        *_table(MODEL_COLUMNS, model_rows(report)),
        "",
        *(f"- {_line(line)}" for line in remarks),
        _line(subject(report)),
    ]


def _recommendation(document: Report | JoinedReport) -> list[str]:
    """The recommendation; if it is too long, without the speed-up over each other candidate."""
    pairs = zip(recommendation_lines(document), recommendation_lines(document, short=True), strict=True)
    return [line if len(line) <= LONG else short for line, short in pairs]


def _folded(title: str, lines: Iterable[str]) -> list[str]:
    return ["", f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]


def _changes(comparison: Comparison) -> list[str]:
    """Each model compared with earlier reports."""
    rows = [
        [model_name(row), row["against"]["report"], drop_text(row["against"]["drop"]), mean_text(row),
         milliseconds(row["against"].get("time_ms")),
         f"{speedup_text(row['against']['speedup'])} {row['against']['outcome']}"]
        for row in comparison["rows"]
    ]  # fmt: skip
    how = dict.fromkeys(row["against"]["how"] for row in comparison["rows"])
    header = ("model", "against", "drop, points", "mean latency", "before", "speed-up")
    return [*_table(header, rows), "", *(f"- compared {_line(line)}" for line in how)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(map(_escaped, row))} |" for row in (header, ["---"] * len(header), *rows)]


def _line(text: str) -> str:
    """Text escaped for the start of a line too."""
    return _BLOCK.sub(r"\1\\\2", _escaped(text))


def _escaped(text: str) -> str:
    """Text without markup, links, or mentions of users and issues: labels and file names may contain anything."""
    text = _MARKUP.sub(r"\\\g<0>", " ".join(visible(text).split()))
    return _LINK.sub("\\g<0>\N{ZERO WIDTH SPACE}", text)
