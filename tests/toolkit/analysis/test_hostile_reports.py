"""A foreign report with any entry changed is shown or refused in one line, without a traceback."""

import contextlib
import copy
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.measuring.agent import Measured
from edgekit.deploy.measuring.measurement import Frames, Measurement, Sustained, Throughput
from edgekit.deploy.measuring.plan import Plan
from edgekit.deploy.measuring.result import Result
from edgekit.toolkit.analysis.compare import compare_reports, read_document, read_report
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.document import make_report
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.analysis.migrate import migrate_report
from edgekit.toolkit.console import PlainConsole
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.junit import junit
from edgekit.toolkit.report.markdown import markdown
from edgekit.toolkit.report.terminal import comparison_table, devices_table, validation_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import DATA
from tests.toolkit.conftest import ENVIRONMENT, STATE, measurement

Documents = dict[str, dict[str, Any]]


def _deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


# values that replace an entry, and a marker that removes it
REMOVED = "\0removed"
VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 1e-320, -0.5, 0.5, 1e308, -1e308, 1 << 53, -(1 << 53), 1 << 70, float("nan"),
    float("inf"), "", "x", "1", "\udcff", "\ud800", "a" * 70_000, [], [1], [[]], ["x"], {}, {"x": 1}, {"": None},
    _deep(20), _deep(60), REMOVED,
]  # fmt: skip


@pytest.fixture(scope="session")
def documents() -> Documents:
    """One document of each kind, made once by `_all`."""
    return {}


def _with_everything(judged: Callable[..., Any]) -> dict[str, Any]:
    """A report with every optional entry."""
    report = judged(second=1.0, lost=3, min_speedup=1.2).report
    interval = {"low": 1.0, "high": 3.0}
    differ = [{"id": "1", "truth": "1", "host": "1", "device": "2", "gap": 0.1}]
    pairs = [{"id": "1", "other": "2 of the training images"}]
    report["overlap"] = {"unchecked": ["runs/1"], "excluded": 2, "excluded_ids": ["3", "4"], "near_duplicates": 1,
                         "pairs": pairs, "searched": [5, 6]}  # fmt: skip
    for model in report["models"]:
        model["offline"] = {"sizes": [{"batch": 4, "images_per_s": 2.0, **interval}], "best_batch": 4}
        model["frames"] = {"fps": 30.0, "offered": 9, "missed": 1, "missed_share": {"value": 0.1, **interval},
                           "latency_ms": {"p50": 1.0, "p99": None}}  # fmt: skip
        model["sustained"] = {"minutes": [{"minute": 1, "p50_ms": 1.5}, {"minute": 2, "p50_ms": 1.5}],
                              "slope_per_minute": 0.1, "trend_p": 0.5, "first_ms": 1.0, "steady_ms": 2.0}  # fmt: skip
        model["host"] = {"images": 9, "logits_max_abs": 0.1, "differ": differ}
        model["engine"] = {"layers": [{"name": "a", "type": "b", "precision": "int8"}], "precisions": {"int8": 1},
                           "reformats": 0}  # fmt: skip
        model["stages_ms"] = {"compute": 1.0}
        model["blocks"] = model["blocks"][::5]
        for block in model["blocks"]:
            block["ns"] = block["ns"][:2]
    count = 12
    for model in report["models"]:
        model["predictions"], model["confidences"] = model["predictions"][:count], model["confidences"][:count]
    report |= {"images": count, "ids": report["ids"][:count], "targets": report["targets"][:count]}
    report["recommendation"] = {"id": None, "sentence": "take it"}
    report["noise"] = [{"name": "load", "detail": "busy"}]
    return json.loads(json.dumps(report))


def _all(documents: Documents, judged: Callable[..., Any]) -> Documents:
    if not documents:
        for number in (1, 2, 3):
            documents[f"schema {number}"] = json.loads((DATA / f"reports/schema-{number}.json").read_text())
        current = _with_everything(judged)
        other = {**current, "device": {**current["device"], "name": "pi"}}
        failed = [{"device": "jetson", "error": "gone", "fix": "look"}]
        documents["schema 4"] = current
        documents["several"] = json.loads(json.dumps(join_reports([current, other], failed)))
    return documents


def _show(document: dict[str, Any], table: Callable[..., Any]) -> None:
    """Render the document for the terminal and every file format."""
    terminal = PlainConsole(file=io.StringIO(), width=100)
    for part in table(document):
        terminal.print(part)
    terminal.file.getvalue().encode()  # type: ignore[attr-defined]
    junit(document).encode()
    markdown(document).encode()
    render(document, None).encode()


def _use(path: Path, original: dict[str, Any]) -> None:
    """Do all that `edgekit report` does with a report, alone and with the original."""
    document = read_document(path)
    outputs = [(document, devices_table if "devices" in document else validation_table)]
    if "devices" not in document:
        sound = {**migrate_report(original), "source": "sound"}
        outputs.append((compare_reports([sound, document], Contract(), across_hardware=True), comparison_table))
        outputs.append((compare_reports([document, sound], Contract(), across_hardware=True), comparison_table))
        named = {**sound, "device": {**sound["device"], "name": "another"}}
        outputs.append((join_reports([document, named]), devices_table))
    for rendered, table in outputs:
        _show(rendered, table)


def _changed(document: Any, draw: Callable[[Any], Any]) -> Any:
    """A copy with one entry replaced or removed."""
    changed = copy.deepcopy(document)
    container = changed
    while True:
        keys = sorted(container) if isinstance(container, dict) else range(min(3, len(container)))
        key = draw(st.sampled_from(list(keys)))
        inner = container[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 4)) == 0:
            break
        container = inner
    value = draw(st.sampled_from(VALUES))
    if value == REMOVED:
        del container[key]
    else:
        container[key] = value
    return changed


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["schema 1", "schema 2", "schema 3", "schema 4", "schema 4", "several"]))
def test_a_changed_report_is_shown_or_refused(
    data: st.DataObject, kind: str, documents: Documents, judged: Callable[..., Any], tmp_path: Path
) -> None:
    """Any entry has another type, is missing, huge, negative, not a number or deeply nested."""
    document, path = _all(documents, judged)[kind], tmp_path / "report.json"
    path.write_text(json.dumps(_changed(document, data.draw)))
    try:
        _use(path, document)
    except EdgeKitError as error:
        assert len(str(error)) < 1000


def _answer(bundle: Bundle, ms: float) -> Measurement:
    """A measurement with every scenario, on eight images."""
    base = measurement(bundle, ms, np.arange(8))
    return replace(
        base,
        blocks=tuple(replace(block, ns=block.ns[:4]) for block in base.blocks),
        golden_logits=bundle.golden().logits.tolist(),
        throughput=tuple(Throughput(process, batch, (1000, 1100)) for process in range(3) for batch in (1, 4)),
        frames=tuple(Frames(process, 30.0, 5, (10**6,) * 5) for process in range(3)),
        sustained=tuple(Sustained(float(at), 10**6, None if at % 10 else STATE) for at in range(130)),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_answer_of_a_board_is_reported_or_refused(
    data: st.DataObject, fp32: Bundle, int8: Bundle, tmp_path: Path
) -> None:
    """Its figures give a report that can be shown, and read back from result.json."""
    sound = Measured(ENVIRONMENT, [_answer(fp32, 1.0), _answer(int8, 0.5)]).to_json()
    changed = json.loads(json.dumps(_changed(json.loads(json.dumps(sound)), data.draw)))
    try:
        measured = Measured.from_json(changed, "pi", [fp32, int8], 8)
    except EdgeKitError:
        return
    plan, contract, ids = Plan(processes=3, threads=1), asdict(Contract()), tuple(map(str, range(8)))
    result = Result("ssh://pi", [fp32, int8], [int8.id], plan, contract, ids, np.arange(8), *measured[:2])
    with contextlib.suppress(EdgeKitError):
        _show(make_report(result), validation_table)
        (tmp_path / "result.json").write_text(json.dumps(result.to_json()))
        read_report(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("scenario", "key", "value"),
    [("frames", "fps", 0), ("frames", "offered", 0), ("frames", "ns", [1] * 6), ("throughput", "ns", []),
     ("throughput", "batch", 0), ("sustained", "call_ns", 0)],
)  # fmt: skip
def test_impossible_counts_are_refused(
    fp32: Bundle, int8: Bundle, scenario: str, key: str, value: object
) -> None:  # fmt: skip
    """A rate of zero, more answers than images, a call that takes no time."""
    answer = json.loads(json.dumps(Measured(ENVIRONMENT, [_answer(fp32, 1.0), _answer(int8, 0.5)]).to_json()))
    answer["measurements"][1][scenario][1][key] = value
    with pytest.raises(EdgeKitError):
        Measured.from_json(answer, "pi", [fp32, int8], 8)


@pytest.mark.parametrize("kind", ["schema 1", "schema 2", "schema 3", "schema 4", "several"])
def test_a_sound_report_is_shown(
    kind: str, documents: Documents, judged: Callable[..., Any], tmp_path: Path
) -> None:  # fmt: skip
    """Each kind is valid unchanged, so that the test above is meaningful."""
    document, path = _all(documents, judged)[kind], tmp_path / "report.json"
    path.write_text(json.dumps(document))
    _use(path, document)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"3", b"null", b"{}", b"[" * 100_000, b'{"schema": 4}', b'{"devices": 1}',
                b'{"result": 1}', b'{"schema": [1]}',
                b'{"schema": {}}', b'{"schema": 4, "x": 1e999}', b"1" * 10_000, b'{"schema": NaN}'],
)  # fmt: skip
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(EdgeKitError, match=r"x\.json"):
        read_document(path)


def test_numbers_are_checked_before_statistics(
    documents: Documents, judged: Callable[..., Any], tmp_path: Path
) -> None:
    """Times of zero have no logarithm."""
    document = copy.deepcopy(_all(documents, judged)["schema 4"])
    for value in (0, -1.0, 1e300):
        document["models"][0]["blocks"][0]["ms"] = value
        (tmp_path / "report.json").write_text(json.dumps(document))
        with np.errstate(all="raise"), pytest.raises(EdgeKitError, match="is not between"):
            read_report(tmp_path / "report.json")
