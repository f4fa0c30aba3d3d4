"""A runtime's precision is an optimisation: such a candidate is judged, and never the baseline of another."""

import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.errors import EdgeKitError, RecipeError
from edgekit.deploy.measuring.plan import Candidate, Plan
from edgekit.deploy.measuring.result import Result
from edgekit.deploy.runtimes.runtime import Choice
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.document import make_report
from edgekit.toolkit.analysis.report_schema import Report
from edgekit.toolkit.analysis.wording import model_names
from edgekit.toolkit.datasets import part_of
from edgekit.toolkit.packing.on_device import PACKED
from edgekit.toolkit.packing.pack import PackOptions, pack
from edgekit.toolkit.validation.candidates import candidates_of, with_baseline
from edgekit.toolkit.validation.validate import ValidateOptions, _check_stored, validate

from tests.toolkit.conftest import ENVIRONMENT, measurement

OPENVINO, BF16 = Choice("openvino"), Choice("openvino", {"precision": "bf16"})
HERE = {"onnxruntime", "openvino"}


def _measured(chain: list[Bundle], judged: Bundle, *choices: Choice) -> list[tuple[str, str]]:
    candidates = with_baseline(candidates_of(chain, {judged.id}, choices, HERE, "local"), chain)
    names = {bundle.id: bundle.manifest.precision for bundle in chain}
    return [(names[candidate.bundle], str(candidate.choice)) for candidate in candidates]


def test_an_ancestor_runs_in_its_own_precision(fp32: Bundle, int8: Bundle) -> None:
    """The int8 model is asked for in bf16 besides; its source stays what it is, once on each runtime."""
    assert _measured([fp32, int8], int8, BF16) == [
        ("fp32", "openvino"),
        ("int8", "openvino:precision=bf16"),
    ]
    assert _measured([fp32, int8], int8, Choice("onnxruntime"), OPENVINO, BF16) == [
        ("fp32", "None"),
        ("fp32", "openvino"),
        ("int8", "None"),
        ("int8", "openvino"),
        ("int8", "openvino:precision=bf16"),
    ]


def test_a_source_asked_for_in_a_lower_precision_is_measured_in_its_own_too(fp32: Bundle) -> None:
    """Its loss of accuracy would be relative to itself otherwise."""
    assert _measured([fp32], fp32, BF16) == [("fp32", "openvino"), ("fp32", "openvino:precision=bf16")]
    assert _measured([fp32], fp32, BF16, OPENVINO) == [("fp32", "openvino:precision=bf16"), ("fp32", "openvino")]
    threads = Choice("openvino", {"precision": "bf16", "threads": 2})
    assert _measured([fp32], fp32, threads) == [("fp32", "openvino:threads=2"), ("fp32", str(threads))]


def _report(bundles: list[Bundle], candidates: tuple[Candidate, ...], judged: list[str], times: list[float]) -> Report:
    test = part_of(bundles[0], "test")
    assert test is not None
    by_id = {bundle.id: bundle for bundle in bundles}
    measured = [
        replace(
            measurement(by_id[candidate.bundle], ms, test.targets),
            bundle=candidate.key,
            session={"runtime": "openvino"},
        )
        for candidate, ms in zip(candidates, times, strict=True)
    ]
    return make_report(
        Result(
            "local",
            bundles,
            judged,
            Plan(processes=3, candidates=candidates),
            asdict(Contract(min_speedup=1.0)),
            test.ids,
            test.targets,
            ENVIRONMENT,
            measured,
        )
    )


def test_int8_is_compared_with_fp32_and_not_with_bf16(fp32: Bundle, int8: Bundle) -> None:
    """The fastest unoptimised model is fp32, although bf16 is faster than both."""
    candidates = (Candidate(fp32.id, OPENVINO), Candidate(fp32.id, BF16), Candidate(int8.id, OPENVINO))
    report = _report([fp32, int8], candidates, [candidate.key for candidate in candidates[1:]], [4.0, 1.0, 2.0])
    assert [model["precision"] for model in report["models"]] == ["fp32", "bf16", "int8"]
    assert {model["speed_baseline"] for model in report["models"][1:]} == {candidates[0].key}
    assert list(model_names(report).values()) == ["fp32 openvino", "bf16 openvino", "int8 openvino"]
    assert "bf16 openvino is faster than fp32 openvino" in report["headline"]
    assert report["recommendation"] is not None
    assert report["recommendation"]["sentence"].startswith("take bf16 openvino")


def test_a_rebuilt_model_is_compared_with_its_earlier_report(fp32: Bundle) -> None:
    """In the same precision of the runtime, although the bundle has another id."""
    candidates = (Candidate(fp32.id, OPENVINO), Candidate(fp32.id, BF16))
    stored = _report([fp32], candidates, [candidates[1].key], [4.0, 2.0])
    rebuilt = replace(fp32, id="another")
    devices = {"local": open_device("local")}
    _check_stored(stored, [rebuilt], [Candidate("another", BF16)], devices, across_hardware=True)
    with pytest.raises(EdgeKitError, match="has no lenet onnx fp16"):
        half = Candidate("another", Choice("openvino", {"precision": "fp16"}))
        _check_stored(stored, [rebuilt], [half], devices, across_hardware=True)


def test_a_packed_file_measures_the_source_in_its_own_precision_too(fp32: Bundle, tmp_path: Path) -> None:
    """As validate does; only the lower precision is judged."""
    path = pack([fp32], PackOptions(runtimes=["openvino:precision=bf16"]), limit=5, out=tmp_path / "model.pyz")
    result = json.loads(zipfile.ZipFile(path).read(PACKED))
    options = [candidate["choice"]["options"] for candidate in result["plan"]["candidates"]]
    assert options == [{}, {"precision": "bf16"}]
    assert result["candidates"] == [f"{fp32.id}@openvino:precision=bf16"]


def test_a_precision_cannot_be_asked_for_all_models() -> None:
    """The baseline would be lowered as well."""
    with pytest.raises(RecipeError, match="cannot apply to all models") as caught:
        Plan(options={"precision": "bf16"})
    assert "--runtime openvino:precision=bf16" in caught.value.fix


@pytest.mark.parametrize(("ran", "warned"), [({"fp32": 3}, True), ({"fp16": 2, "fp32": 1}, False)])
def test_an_fp16_model_that_ran_in_fp32_is_reported(fp32: Bundle, ran: dict[str, int], warned: bool) -> None:
    """The report has the layers, and a warning if none of them computed in fp16."""
    half = replace(fp32, manifest=replace(fp32.manifest, precision="fp16"))
    test = part_of(half, "test")
    assert test is not None
    layers = {
        "layers": [{"name": "conv", "type": "Conv", "precision": next(iter(ran))}],
        "precisions": ran,
        "reformats": 1,
    }
    measured = replace(measurement(half, 1.0, test.targets), session={"runtime": "onnxruntime", "layers": layers})
    result = Result(
        "local",
        [half],
        [half.id],
        Plan(processes=3),
        asdict(Contract()),
        test.ids,
        test.targets,
        ENVIRONMENT,
        [measured],
    )
    (model,) = make_report(result)["models"]
    assert any("computed in fp32 here" in warning for warning in model["warnings"]) == warned
    assert model["engine"] == layers


@pytest.mark.slow
def test_a_lower_precision_is_measured_and_judged(fp32: Bundle, tmp_path: Path) -> None:
    """In real processes: the report says in what the layers computed."""
    pytest.importorskip("openvino")
    options = ValidateOptions(runtimes=["onnxruntime", "openvino", "openvino:precision=bf16"], keep=tmp_path)
    plan = Plan(seconds=0.2, rounds=2, processes=3, block_ms=2, threads=1)
    report = validate([fp32], options, images="digits", limit=20, plan=plan).report
    models = {model["precision"]: model for model in report["models"]}
    assert "judgements" in models["bf16"]
    assert models["bf16"]["drop"] is not None
    engine = models["bf16"]["engine"]
    assert engine is not None
    assert engine["precisions"]["bf16"] >= 3
    assert "layers" not in models["bf16"]["session"]
