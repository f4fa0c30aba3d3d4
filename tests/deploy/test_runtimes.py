"""Runtimes: strict, typed choices from text; one bundle on several runtimes in one measurement."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.browser.device import BrowserDevice
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.documents import plain, read
from edgekit.deploy.errors import BundleError, DeviceError, EdgeKitError, MissingPackageError, RecipeError
from edgekit.deploy.measuring import agent, cargo
from edgekit.deploy.measuring.plan import Candidate, Plan
from edgekit.deploy.runtimes.openvino import OpenVinoOptions
from edgekit.deploy.runtimes.runtime import (
    RUNTIMES,
    Choice,
    Package,
    Runtime,
    all_runtimes,
    default_runtime,
    runtime_named,
)
from edgekit.deploy.session import open_session
from hypothesis import given
from hypothesis import strategies as st

QUICK = {"seconds": 0.1, "rounds": 2, "processes": 3, "block_ms": 5, "threads": 1}

choices = st.one_of(
    st.builds(
        Choice, st.sampled_from(["onnxruntime", "openvino", "torch"]), st.builds(dict, threads=st.integers(1, 64))
    ),
    st.builds(Choice, st.sampled_from(sorted(RUNTIMES))),
    st.builds(Choice, st.just("tensorrt"), st.builds(dict, cuda_graph=st.booleans())),
    st.builds(
        Choice,
        st.just("onnxruntime"),
        st.builds(dict, threads=st.integers(1, 64), provider=st.just("cuda"), allow_fallback=st.booleans()),
    ),
)


@given(choices)
def test_a_choice_reads_back_the_same(choice: Choice) -> None:
    """It becomes text on the command line and JSON in a job."""
    assert Choice.parse(str(choice)) == choice
    plan = Plan(candidates=(Candidate("a", choice), Candidate("b")))
    assert read(Plan, json.loads(json.dumps(plain(plan)))) == plan
    assert Plan.from_report(json.loads(json.dumps(plan.to_report()))) == plan


@given(st.text(max_size=30) | st.from_regex(r"(onnxruntime|openvino|tensorrt):[a-z_]{0,8}=?[\w=,.-]{0,12}"))
def test_any_text_is_a_choice_or_an_error_with_a_fix(text: str) -> None:
    """A choice reads back as itself; an error has a fix."""
    try:
        choice = Choice.parse(text)
    except EdgeKitError as error:
        assert error.fix
        return
    assert Choice.parse(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "unknown runtime 'nope'"),
        ("openvin", "did you mean openvino"),
        ("null", "unknown runtime 'null'"),
        ("slowed:threads=1", "unknown runtime 'slowed'"),
        ("openvino:thread=1", "did you mean threads"),
        ("tensorrt:threads=1", "unknown option of tensorrt 'threads'"),
        ("onnxruntime:threads=two", "a whole number"),
        ("onnxruntime:threads=1.5", "a whole number"),
        ("onnxruntime:threads=0", "out of range"),
        ("onnxruntime:threads=99999999999999999999", "whole number"),
        ("onnxruntime:provider=cude", "did you mean cuda"),
        ("onnxruntime:allow_fallback=yes", "true or false"),
        ("onnxruntime:allow_fallback=true", "requires a provider other than cpu"),
        ("onnxruntime:", "NAME:OPTION=VALUE"),
        ("onnxruntime:threads", "NAME:OPTION=VALUE"),
        ("onnxruntime:threads=1,threads=2", "twice"),
    ],
)
def test_a_wrong_choice_names_what_exists(text: str, message: str) -> None:
    """An unknown runtime, option or value."""
    with pytest.raises(RecipeError, match=message) as caught:
        Choice.parse(text)
    assert caught.value.fix


def test_the_default_is_the_first_runtime_that_opens_the_format() -> None:
    """ONNX files run on ONNX Runtime unless another is named."""
    assert default_runtime("onnx").name == "onnxruntime"
    assert [runtime.name for runtime in all_runtimes() if "onnx" in runtime.formats] == ["onnxruntime", "openvino"]
    with pytest.raises(BundleError, match="unknown bundle format 'null'"):
        default_runtime("null")


def test_a_missing_runtime_names_what_to_install(fp32: Bundle) -> None:
    """The error names the extra or the package; a runtime refuses formats that it does not open."""
    package = Package(modules=("no_such_module",), distributions=("no-such-package",), purpose="")
    absent = Runtime(name="absent", formats={"onnx": ".x:y"}, packages=(package,))
    assert not absent.installed
    with pytest.raises(MissingPackageError) as caught:
        absent.opener("onnx")
    assert caught.value.fix == "pip install no-such-package"
    with pytest.raises(BundleError, match="openvino does not open tensorrt"):
        runtime_named("openvino").opener("tensorrt")
    with pytest.raises(BundleError, match="torch does not open onnx"):
        open_session(fp32, "torch")


def test_a_runtime_without_options_says_so() -> None:
    """The error does not offer an empty list."""

    @dataclass(frozen=True)
    class NoOptions:
        pass

    with pytest.raises(RecipeError, match="has no options"):
        Runtime(name="bare", formats={}, options=NoOptions).read_options({"threads": 1})


def test_defaults_reach_the_runtimes_that_have_them() -> None:
    """A candidate's own options take precedence; options that a runtime lacks are omitted."""
    defaults: dict[str, Any] = {"threads": 4, "provider": "cuda", "cuda_graph": True}
    ort = runtime_named("onnxruntime").read_options({"threads": 1}, defaults)
    assert (ort.threads, ort.provider) == (1, "cuda")
    assert runtime_named("openvino").read_options({}, defaults) == OpenVinoOptions(threads=4)
    assert runtime_named("tensorrt").read_options({}, defaults).cuda_graph
    with pytest.raises(RecipeError, match="unknown runtime option 'thread'"):
        Plan(options={"thread": 1})
    with pytest.raises(RecipeError, match="did you mean cuda"):
        Plan(options={"provider": "cude"})


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_every_onnx_runtime_reproduces_the_golden_logits(name: str, fp32: Bundle, int8: Bundle) -> None:
    """Each runtime of ONNX files reproduces the logits that the bundle recorded."""
    for bundle, tolerance in ((fp32, 1e-4), (int8, 0.05)):
        golden = bundle.golden()
        session = open_session(bundle, name, threads=1)
        logits = session.run(golden.tensors)
        assert np.abs(logits - golden.logits).max() <= tolerance * np.abs(golden.logits).max()
        assert (logits.argmax(axis=1) == golden.logits.argmax(axis=1)).all()
        session.close()


def test_one_bundle_runs_on_two_runtimes_and_with_two_thread_counts(fp32: Bundle) -> None:
    """In one measurement, each has its own key and is loaded with its own options."""
    plan = Plan(
        **QUICK,
        candidates=(
            Candidate(fp32.id),
            Candidate(fp32.id, Choice("onnxruntime", {"threads": 2})),
            Candidate(fp32.id, Choice("openvino")),
        ),
    )
    measured = open_device("local").measure([fp32], plan, None, lambda stage, share: None).measurements
    assert [model.bundle for model in measured] == [
        fp32.id, f"{fp32.id}@onnxruntime:threads=2", f"{fp32.id}@openvino",
    ]  # fmt: skip
    facts = [(model.session["runtime"], model.session["threads"]) for model in measured]
    assert facts == [("onnxruntime", 1), ("onnxruntime", 2), ("openvino", 1)]
    first, *others = [np.asarray(model.golden_logits) for model in measured]
    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-3)
    assert all(model.one_thread for model in measured), "if one uses several threads, all are also timed with one"


def _answers(job: Any, folder: Path) -> list[dict[str, Any]]:
    (folder / agent.JOB).write_text(job if isinstance(job, str) else json.dumps(job))
    messages: list[dict[str, Any]] = []
    agent.run_and_report(folder, messages.append)
    return messages


def _changed(job: dict[str, Any], path: Sequence[Any], value: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(job))
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["plan", "candidates"], [{"bundle": "other", "choice": None}], "is not among its bundles"),
        (["plan", "candidates"], [{"bundle": "b"}, {"bundle": "b"}], "measured twice"),
        (["plan", "candidates"], [{"bundle": 7}], "a text"),
        (["plan", "candidates"], [{"bundle": "b", "choice": {"name": "null"}}], "unknown runtime 'null'"),
        (["plan", "candidates"], [{"bundle": "b", "choice": {"name": "os"}}], "unknown runtime 'os'"),
        (["plan", "candidates"], [{"bundle": "b", "choice": {"name": ".null:RUNTIME"}}], "unknown runtime"),
        (["plan", "candidates"],
         [{"bundle": "b", "choice": {"name": "openvino", "options": {"x": 1}}}], "unknown option"),
        (["plan", "candidates"],
         [{"bundle": "b", "choice": {"name": "openvino", "options": {"threads": [1]}}}], "expected"),
        (["plan", "candidates"],
         [{"bundle": "b", "choice": {"name": "openvino", "options": {"threads": 1e300}}}], "whole number"),
        (["plan", "candidates"], [{"bundle": "b", "choice": {"name": "torch"}}], "torch does not open onnx"),
        (["plan", "options"], {"cuda": True}, "unknown runtime option"),
        (["plan", "provider"], "cpu", "unknown entry 'provider'"),
        (["plan"], [], "an object"),
        (["bundles"], ["x"], "an object"),
        (["device"], 7, "a text"),
        (["planted"], "yes", "true or false"),
        (["more"], 1, "unknown entry 'more'"),
    ],
)  # fmt: skip
def test_a_hostile_job_is_answered_by_one_line(
    path: list[Any], value: Any, message: str, fp32: Bundle, tmp_path: Path
) -> None:
    """Candidates are typed and bounded; a name in a job is never imported."""
    job = {**cargo.job([fp32], Plan(**QUICK)), "bundles": {"b": str(fp32.path)}}
    (answer,) = [sent for sent in _answers(_changed(job, path, value), tmp_path) if "progress" not in sent]
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    assert answer["fix"]


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "7", "{}", '{"build": 3}', '{"build": {"bundle": "b"}}', "[" * 100_000]
)
def test_a_file_that_is_not_a_job_is_answered_by_one_line(text: str, tmp_path: Path) -> None:
    """Not JSON, not an object, not a job."""
    (answer,) = _answers(text, tmp_path)
    assert answer["error"]
    assert answer["fix"]


def test_a_job_cannot_name_a_planted_runtime(fp32: Bundle, tmp_path: Path) -> None:
    """Planted models open by their format alone, and only if the job says that they are planted."""
    with pytest.raises(RecipeError, match="unknown runtime 'null'"):
        read(Plan, {"candidates": [{"bundle": fp32.id, "choice": {"name": "null"}}]})


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(candidates=(Candidate("b", Choice("onnxruntime", {"provider": "cuda"})),)), "but not provider"),
        (Plan(options={"provider": "cuda"}), "but not provider"),
    ],
)
def test_a_browser_has_no_option_except_threads(plan: Plan, message: str, fp32: Bundle) -> None:
    """The device's name selects the provider."""
    import dataclasses

    bundle = dataclasses.replace(fp32, id="b")
    assert BrowserDevice("browser").runtimes() == {"onnxruntime"}
    with pytest.raises(DeviceError, match=message):
        BrowserDevice("browser").measure([bundle], plan, None, lambda stage, share: None)
