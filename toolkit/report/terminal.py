"""Results as tables for the terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from ...deploy.visible import visible
from ..analysis.diagnosis import DeviceDiagnosis, Diagnosis, PackageStatus, RuntimeEntry
from ..analysis.report_schema import Comparison, Document, JoinedReport, Report, SelfTest, Verdict
from ..analysis.statistics import wilson
from ..analysis.sweep import SweepRow
from ..analysis.wording import (
    DEVICE_COLUMNS,
    against_lines,
    agreement_lines,
    device_rows,
    drop_text,
    engine_lines,
    headline_of,
    host_lines,
    mean_text,
    megabytes,
    milliseconds,
    model_name,
    model_rows,
    noise_summary,
    noisy_devices,
    ratio_lines,
    recommendation_lines,
    scenario_lines,
    share,
    speedup_text,
    speedups,
    subject,
    thread_lines,
    warning_lines,
)
from ..console import Line, styled
from ..predict import Prediction
from ..runs import RunEntry

# Columns with text; the others have figures.
_TEXT_COLUMNS = (
    "model", "run", "made from", "device", "against", "against itself", "found", "expected", "result", "true",
    "predicted", "point",
)  # fmt: skip
# Number of pairs of confused classes that predict lists.
_CONFUSIONS = 10
# What is not a bundle, in words.
_KINDS = {"training": "unfinished training", "sweep": "sweep"}
# A width in characters that no table reaches.
_UNLIMITED = 10_000
VERDICT_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


# The notes below a validation's table.
_NOTES = (
    thread_lines, ratio_lines, speedups, engine_lines, scenario_lines, against_lines, host_lines, recommendation_lines,
)  # fmt: skip


def document_table(document: Document) -> Iterator[RenderableType]:
    """A report, the reports of several devices side by side, or a comparison."""
    if "devices" in document:
        return devices_table(document)
    return comparison_table(document) if "rows" in document else validation_table(document)


def validation_table(report: Report) -> Iterator[RenderableType]:
    """The headline, the table of models, the warnings, and the verdict last, next to the prompt."""
    yield styled(report["headline"], "bold")
    yield subject(report)
    table = text_table("model", "size", "top-1", "drop, points", "mean latency", "p50", "speed-up")
    for model, (name, top1, drop, mean, speedup) in zip(report["models"], model_rows(report), strict=True):
        size, median = megabytes(model["size_bytes"]), milliseconds(model["latency_ms"]["p50"])
        table.add_row(name, size, top1, stacked(drop), mean, median, stacked(speedup))
    yield Fitting(table)
    for line in (line for lines_of in _NOTES for line in lines_of(report)):
        yield line
    for line in warning_lines(report):
        yield Text.assemble(("warning", "yellow"), f" {visible(line)}")
    for line in noise_summary(report):
        yield styled(line, "dim")
    yield _verdict(report)


def devices_table(document: JoinedReport) -> Iterator[RenderableType]:
    """The models on several devices, whether the devices agree, and the worst verdict last."""
    yield styled(headline_of(document), "bold")
    table = text_table(*DEVICE_COLUMNS)
    for row in device_rows(document):
        table.add_row(*row[:3], *map(stacked, row[3:]))
    yield Fitting(table)
    for line in (*agreement_lines(document), *recommendation_lines(document)):
        yield line
    for line in noisy_devices(document):
        yield styled(line, "yellow")
    yield _verdict(document)


def prediction_table(predictions: Sequence[Prediction]) -> Iterator[RenderableType]:
    """One row per image; for labelled images also the accuracy and the most frequent confusions."""
    table = Table()
    for column in ("image", "true", "predicted"):
        table.add_column(column)
    for prediction in predictions:
        pairs = zip(prediction.labels, prediction.confidences, strict=True)
        best = ", ".join(f"{label} {share:.1%}" for label, share in pairs)
        table.add_row(prediction.id, prediction.truth or "-", best)
    yield table
    yield from _confusions([(entry.truth, entry.labels[0]) for entry in predictions if entry.truth is not None])


def _confusions(answers: Sequence[tuple[str, str]]) -> Iterator[RenderableType]:
    """The accuracy of (true label, predicted label) pairs with its interval, and the pairs that are confused most."""
    if not answers:
        return
    right = sum(truth == predicted for truth, predicted in answers)
    accuracy = wilson(right, len(answers))
    yield (
        f"top-1 accuracy {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]: {right} of {len(answers)} "
        f"labelled image{'s' * (len(answers) != 1)}"
    )
    confused = Counter((truth, predicted) for truth, predicted in answers if truth != predicted)
    if not confused:
        return
    sizes = Counter(truth for truth, _ in answers)
    table = text_table("true", "predicted", "images", "share")
    for (truth, predicted), count in confused.most_common(_CONFUSIONS):
        table.add_row(truth, predicted, str(count), f"{count / sizes[truth]:.0%}")
    yield "most frequent errors, with their share of the images of the true class:"
    yield table
    if len(confused) > _CONFUSIONS:
        yield f"and {len(confused) - _CONFUSIONS} more pairs of classes"


def runs_table(runs: Sequence[RunEntry]) -> Iterator[RenderableType]:
    """One row per bundle, unfinished training and sweep; damaged bundles below."""
    table = text_table("run", "model", "size", "created", "verdict", "made from")
    for run in runs:
        if run["kind"] == "damaged":
            continue
        created = f"{datetime.fromtimestamp(run['created']):%Y-%m-%d %H:%M}" if run["created"] else ""
        model = f"{run['format']} {run['precision']}" if run["format"] else _KINDS[run["kind"]]
        table.add_row(
            Path(run["path"]).name, model + (", rejected" if run["kind"] == "rejected" else ""),
            megabytes(run["size_bytes"]), created, run["verdict"] or "",
            run["made_from"] or "",
        )  # fmt: skip
    yield Fitting(table) if table.row_count else "runs/ has no bundles yet: edgekit train"
    yield from (styled(f"damaged: {run['path']}: {run['problem']}", "yellow") for run in runs if run["problem"])


def sweep_table(rows: Sequence[SweepRow]) -> Iterator[RenderableType]:
    """One row per point, with what was remarkable about it below."""
    keys = [key for key in rows[0]["values"] if key != "train.epochs"]
    table = text_table("point", *keys, "epochs", "test accuracy", "best validation", "seconds", "images/s")
    for row in rows:
        cells = [row["point"], *(str(row["values"][key]) for key in keys), str(row["epochs"] or "")]
        if row["trained"]:
            low, high = row["test_accuracy_low"], row["test_accuracy_high"]
            cells += [f"{row['test_accuracy']:.4f} [{low:.4f}, {high:.4f}]", f"{row['best_validation']:.4f}",
                      f"{row['seconds']:.0f}", f"{row['images_per_s']:.0f}"]  # fmt: skip
        table.add_row(*(Text(visible(cell)) for cell in cells))
    yield Fitting(table)
    yield from (styled(f"{row['point']}: {row['note']}", "yellow") for row in rows if row["note"])


def facts_table(facts: Mapping[str, object]) -> Iterator[RenderableType]:
    """Two columns, nested entries indented."""
    table = Table(show_header=False, box=None)
    _add_facts(table, facts, "")
    yield table


def doctor_table(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    """The machine, its state, the overhead of measuring, and the packages."""
    overhead = diagnosis["overhead"]
    yield from facts_table(
        {
            **diagnosis["machine"],
            "gpu seen by torch": diagnosis["gpu"] or "none",
            "state": diagnosis["state"],
            "overhead of a timed call": f"{overhead['in_process_ns'] / 1e3:.2f} µs, "
            f"through the agent {overhead['through_agent_ns'] / 1e3:.2f} µs",
        }
    )
    yield _packages(diagnosis["packages"])
    yield _runtimes(diagnosis["runtimes"])
    yield f"quantize --target {diagnosis['target']['name']}: {diagnosis['target']['why']}"
    advised, allowed = diagnosis["threads_advised"], diagnosis["machine"]["cores_allowed"]
    if advised < allowed:
        advice = f": validate --threads {advised}, or wait until they finish"
        yield Text.assemble(("other processes keep cores busy", "yellow"), advice)


def board_table(diagnosis: DeviceDiagnosis) -> Iterator[RenderableType]:
    """A board: its machine and state as far as they are known, its packages, and any problems."""
    facts = diagnosis["python"]
    device_facts = {
        "python": f"{'.'.join(map(str, facts['python']))} {facts['executable']}",
        "cache": f"{facts['cache']}, {megabytes(facts['cache_bytes'])} used, {megabytes(facts['free_bytes'])} free",
        "rsync": "installed" if facts["rsync"] else "missing: files are sent by sftp",
    }
    machine = diagnosis.get("machine", {"machine": facts["machine"], "system": facts["system"]})
    yield from facts_table(
        {**machine, **device_facts, **({"state": diagnosis["state"]} if "state" in diagnosis else {})}
    )
    yield _packages(diagnosis["packages"])
    for remark in diagnosis["remarks"]:
        yield styled(remark, "yellow")
    if "target" in diagnosis:
        yield f"quantize --target {diagnosis['target']['name']}: {diagnosis['target']['why']}"


def _packages(packages: Sequence[PackageStatus]) -> Table:
    table = Table()
    for column in ("package", "version", "for"):
        table.add_column(column)
    table.add_column("install", overflow="fold")  # to be copied
    for package in packages:
        missing = package.version is None
        version = styled("missing", "yellow") if missing else package.version
        table.add_row(package.name, version, package.purpose, package.install if missing else "")
    return table


def _runtimes(runtimes: Sequence[RuntimeEntry]) -> Table:
    table = Table()
    for column in ("runtime", "installed", "opens", "options"):
        table.add_column(column)
    for runtime in runtimes:
        installed = "yes" if runtime["installed"] else styled("no", "yellow")
        table.add_row(runtime["name"], installed, ", ".join(runtime["formats"]), ", ".join(runtime["options"]))
    return table


def self_test_table(result: SelfTest) -> Iterator[RenderableType]:
    """A model against itself and a slowed copy, and the difference that this machine resolves."""
    yield f"{result['model']}, {milliseconds(result['call_ms'])} per call"
    table = text_table("against itself", "speed-up", "found", "expected")
    slowed = f"slowed to {result['slowed']['planted']:.3f}x"
    for name, comparison, expected in (
        ("unchanged", result["same"], "no difference"),
        (slowed, result["slowed"], "slower"),
    ):
        interval = stacked(f"{comparison['ratio']:.4f}x [{comparison['low']:.4f}, {comparison['high']:.4f}]")
        colour = "green" if comparison["outcome"] == expected else "red"
        table.add_row(name, interval, styled(comparison["outcome"], colour), expected)
    yield Fitting(table)
    for line in noise_summary(result):
        yield styled(line, "dim")
    yield f"in {result['seconds']:.0f} s this machine resolves a difference of about {share(result['resolves'])}"


def comparison_table(comparison: Comparison) -> Iterator[RenderableType]:
    """The last report's candidates against each earlier report, and the verdict against the first."""
    yield styled(headline_of(comparison), "bold")
    yield comparison["report"]
    table = text_table("model", "against", "drop, points", "mean latency", "before", "speed-up")
    for row in comparison["rows"]:
        against = row["against"]
        speedup = f"{speedup_text(against['speedup'])} {against['outcome']}"
        table.add_row(
            model_name(row), against["report"], stacked(drop_text(against["drop"])), mean_text(row),
            milliseconds(against.get("time_ms")), stacked(speedup),
        )  # fmt: skip
    yield Fitting(table)
    for how in dict.fromkeys(row["against"]["how"] for row in comparison["rows"]):
        yield f"compared {how}"
    for line in noise_summary(comparison):
        yield styled(line, "dim")
    yield _verdict(comparison)


def _verdict(document: Verdict) -> Text:
    verdict = document["verdict"]
    return Text.assemble((verdict, f"bold {VERDICT_COLOURS[verdict]}"), f": {visible(document['reason'])}")


def text_table(*columns: str) -> Table:
    """An empty table: names wrap between words, figures never wrap."""
    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        is_text = column in _TEXT_COLUMNS
        header = Text(column if is_text else column.replace(" ", "\n"))
        table.add_column(header, justify="left" if is_text else "right", no_wrap=not is_text, vertical="top")
    return table


def stacked(text: str) -> Text:
    """Estimate, interval and outcome on separate lines, so that the table fits 80 columns."""
    return Text(visible(text).replace(" [", "\n[").replace("] ", "]\n"))


class Fitting:
    """A table; on a terminal too narrow for its words, the cells of each row are stacked."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update(max_width=_UNLIMITED)
        natural = Measurement.get(console, unlimited, self._table).maximum
        if options.no_wrap:  # a file or a pipe
            yield from console.render(self._table, options.update(max_width=natural))
            return
        if natural > options.max_width:
            for column in self._table.columns:
                column.width = _least_width(column)
        if Measurement.get(console, unlimited, self._table).minimum > options.max_width:
            self._table.padding, self._table.pad_edge = 0, False
        if Measurement.get(console, unlimited, self._table).minimum <= options.max_width:
            yield self._table
            return
        yield from self._rows()

    def _rows(self) -> Iterator[RenderableType]:
        columns = self._table.columns
        for row in zip(*(column.cells for column in columns), strict=True):
            yield Text()
            for column, cell in zip(columns, row, strict=True):
                yield Line(" ".join(f"{_plain(column.header)}: {_plain(cell)}".split()))


def _least_width(column: Column) -> int:
    """The minimum width of a column: that of its longest word or figure."""
    cells = [_plain(cell) for cell in (column.header, *column.cells)]
    return max(cell_len(part) for cell in cells for part in (cell.splitlines() if column.no_wrap else cell.split()))


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _add_facts(table: Table, facts: Mapping[str, object], indent: str) -> None:
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            table.add_row(styled(f"{indent}{key}", "bold"), "")
            _add_facts(table, value, indent + "  ")
            continue
        if isinstance(value, (list, tuple)):
            flat = [" ".join(map(str, entry.values())) if isinstance(entry, Mapping) else str(entry) for entry in value]
            value = ", ".join(flat[:20]) + (f" … ({len(flat)})" if len(flat) > 20 else "")
        table.add_row(f"{indent}{key}", str(value))
