"""The published schema, its page and the strict reader agree: all are derived from the same types."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from edgekit.deploy.documents import DocumentError, read
from edgekit.toolkit.analysis.compare import compare_reports, read_report
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.join import join_reports
from edgekit.toolkit.analysis.json_schema import report_page, report_schema
from edgekit.toolkit.analysis.report_schema import Report

from tests.conftest import DATA
from tests.toolkit.analysis.test_hostile_reports import _with_everything

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    """A validator for the published schema, which is itself checked."""
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_reports_follow_the_schema(validator: jsonschema.Draft202012Validator, judged: Callable[..., Any]) -> None:
    """A new report, one with all entries, a joined one, a comparison."""
    fresh, everything = judged(lost=2).report, _with_everything(judged)
    other = {**everything, "device": {**everything["device"], "name": "pi"}}
    joined = join_reports([everything, other], [{"device": "jetson", "error": "gone", "fix": "look"}])
    compared = compare_reports([{**fresh, "source": "a"}, {**fresh, "source": "b"}], Contract())
    for document in (fresh, everything, joined, compared):
        validator.validate(json.loads(json.dumps(document)))


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_earlier_reports_follow_the_schema_once_read(schema: int, validator: jsonschema.Draft202012Validator) -> None:
    """Reading a report migrates it to the current schema."""
    report = read_report(DATA / f"reports/schema-{schema}.json")
    validator.validate(json.loads(json.dumps(report)))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("verdict", "maybe"),
        ("images", "many"),
        ("models", []),
        ("noise", [{"name": "load"}]),
        ("headline", None),
        ("plan", {"rounds": "10"}),
        ("plan", {"candidates": [{"bundle": "b"}]}),
    ],
)
def test_the_reader_and_the_schema_refuse_the_same(
    entry: str, value: object, validator: jsonschema.Draft202012Validator, judged: Callable[..., Any]
) -> None:
    """Both ignore an unknown entry."""
    report = json.loads(json.dumps(judged().report))
    assert read(Report, {**report, "new": [1]})["new"] == [1]  # type: ignore[typeddict-item]
    validator.validate({**report, "new": [1]})
    with pytest.raises(DocumentError):
        read(Report, {**report, entry: value})
    assert not validator.is_valid({**report, entry: value})


def test_every_entry_of_a_report_is_in_the_schema(judged: Callable[..., Any]) -> None:
    """Every entry that is written is documented."""
    definitions: Any = report_schema()["$defs"]
    report = judged(lost=2).report
    assert report.keys() <= definitions["Report"]["properties"].keys()
    assert report["plan"].keys() == definitions["PlanEntry"]["properties"].keys()
    for model in report["models"]:
        assert model.keys() <= definitions["Model"]["properties"].keys()


def test_the_page_is_up_to_date() -> None:
    """`python -m edgekit.toolkit.analysis.json_schema > docs/report-schema.md` updates it."""
    assert (ROOT / "docs/report-schema.md").read_text(encoding="utf-8") == report_page()
