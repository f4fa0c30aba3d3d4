"""The page of a quantized bundle: complete, self-contained, and safe if the manifest is not."""

import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError, EdgeKitError
from edgekit.toolkit.analysis.quantization_record import noise_by_layer
from edgekit.toolkit.report.quantization import render_quantization, write_quantization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.toolkit.report.quantized import searched, with_details

HUGE = 30_000


class _Page(HTMLParser):
    """Collects tags, text, and URLs that would be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(bundle: Bundle, details: dict[str, Any]) -> _Page:
    return _Page(render_quantization(with_details(bundle, details)))


def test_the_page_shows_the_choice_and_the_noise(fp32: Bundle) -> None:
    """The verdict, the reason, each model, the noise by layer, rewrites, calibration and CPUs; nothing is loaded."""
    page = _page(fp32, searched())
    assert page.loads == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 4, "two charts, each for a wide page and for a phone"
    for text in (
        "pass", "within the 0.2 allowed", "the ranges still grow", "the fewest that fulfil the contract.",
        "11 float", "1.54×", "[-0.23, +0.16]", "it is not proved to lose at most 0.2 points", "Pareto front",
        "its weights are rounded", "limit of the contract", "conv as a sum", "conv is slower",
        "the inputs are not divided by 255", "2 look like another", "does not hold", "Layers that stay float: 11",
    ):  # fmt: skip
        assert text in page.text
    assert page.text.index("within the 0.2 allowed") < page.text.index("the ranges still grow")


def test_the_page_of_a_bundle_without_a_search(
    fp32: Bundle, tmp_path: Path, edgekit: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """quantize --sensitivity measures the noise although no layer has to be float; the page and the table show it."""
    command = ("quantize", fp32.path, "--max-drop", 50, "--calibration-images", 64)
    printed = edgekit(*command, "--sensitivity", "--out", "made").stderr
    assert "most noise comes from: " in printed
    shown = edgekit("inspect", "made", "--html", "page.html").stdout
    details = Bundle.open(tmp_path / "made").manifest.details
    assert details["mixed_precision"] is None
    worst = details["sensitivity"][0]
    page = _Page((tmp_path / "page.html").read_text())
    assert worst["name"] in page.text
    assert worst["name"] in shown.partition("sensitivity")[2]
    assert "Float layers" not in page.text
    assert all(line in page.text for line in details["remarks"])
    edgekit(*command, "--out", "plain")
    edgekit("inspect", "plain", "--html", "plain.html")
    assert "edgekit quantize --sensitivity" in (tmp_path / "plain.html").read_text()


def test_the_page_of_a_bundle_of_an_earlier_version(int8: Bundle) -> None:
    """It has what that version recorded."""
    page = _Page(render_quantization(int8))
    assert "inconclusive" in page.text
    assert "Ranges by " in page.text


def test_other_bundles_have_no_page(fp32: Bundle, tmp_path: Path) -> None:
    """Nor is a page written into a bundle, which would damage it."""
    with pytest.raises(BundleError, match="no record of a quantization"):
        write_quantization(fp32, tmp_path / "page.html")
    with pytest.raises(EdgeKitError, match="is a bundle"):
        write_quantization(with_details(fp32, searched()), fp32.path / "page.html")
    assert not list(tmp_path.iterdir())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["<script>alert(1)</script>", "</style><b>", "\x1b[31m\u202e", "]]>", "&lt;", "a" * 60_000]))
def test_names_are_text(fp32: Bundle, text: str) -> None:
    """Whatever a manifest calls its layers, images and methods, it adds no markup, and long ones are cut off."""
    page = render_quantization(with_details(fp32, searched(name=text)))
    assert _Page(page).tags == _Page(render_quantization(with_details(fp32, searched(name="x")))).tags
    assert not set(page) & {"\x1b", "\u202e"}
    assert len(page) < 200_000


def test_long_lists_are_cut_off(fp32: Bundle) -> None:
    """The page says how many entries are not shown."""
    details = searched()
    details["sensitivity"] = [{"name": f"n{number}", "kind": "weights", "noise": 1e40} for number in range(HUGE)]
    details["float_layers"] = [f"n{number}" for number in range(HUGE)]
    details["mixed_precision"]["points"] *= 1000
    for name in ("remarks", "rewrites"):
        details[name] = ["warning: x"] * HUGE
    for place in (details, details["calibration"], details["portability"]):
        for name, entries in place.items():
            if isinstance(entries, dict) and name in ("rewrites_refused", "expected_changes", "cpus"):
                place[name] = {f"{name} {number}": value for value in entries.values() for number in range(HUGE)}
    page = render_quantization(with_details(fp32, details))
    assert len(page) < 500_000
    assert f"the first 200 of {HUGE}" in _Page(page).text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e300, 1e300, "1", None])
@pytest.mark.parametrize("place", ["noise", "value", "speedup", "half_width", "max_drop"])
def test_a_number_that_is_none_is_refused(fp32: Bundle, place: str, number: object) -> None:
    """One line names its place, except where there may be none."""
    details = searched()
    points, advice = details["mixed_precision"]["points"], details["calibration"]["advice"]
    entry = {
        "noise": details["sensitivity"][3], "value": points[2]["drop"]["points"], "speedup": points[1],
        "half_width": advice["convergence"], "max_drop": details["contract"],
    }[place]  # fmt: skip
    entry[place] = number
    bundle = with_details(fp32, details)
    if number is None and place in ("speedup", "max_drop"):
        assert "<svg" in render_quantization(bundle)
        return
    with pytest.raises(BundleError, match=place) as caught:
        render_quantization(bundle)
    assert "\n" not in str(caught.value)


_numbers = st.sampled_from([0.0, -0.0, 5e-324, 1e-300, 1e-9, 1.0, 99.9999999, 100.0])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drop=_numbers, speedup=_numbers | st.just(1e40), noise=_numbers, points=st.integers(1, 3), labels=st.booleans())
def test_any_valid_numbers_can_be_drawn(
    fp32: Bundle, drop: float, speedup: float, noise: float, points: int, labels: bool
) -> None:
    """Also equal, tiny and huge ones."""
    details = searched(labels=labels)
    search = details["mixed_precision"]
    search["points"] = search["points"][:points]
    search["chosen"] = None
    for point in search["points"]:
        point["speedup"] = speedup
        if labels:
            point["drop"]["points"] = {"value": drop, "low": drop, "high": drop}
    for entry in details["sensitivity"]:
        entry["noise"] = noise
    assert "nan" not in render_quantization(with_details(fp32, details)).partition("</style>")[2]


def test_the_noise_of_a_layer_is_that_of_its_result_and_weights() -> None:
    """As shares of all noise, the largest first; an input named like a layer is another row."""
    found = noise_by_layer([
        {"name": "a", "kind": "result", "noise": 1.0}, {"name": "b", "kind": "weights", "noise": 3.0},
        {"name": "a", "kind": "weights", "noise": 4.0}, {"name": "a", "kind": "input", "noise": 2.0},
    ])  # fmt: skip
    assert [(layer["name"], layer["result"], layer["weights"]) for layer in found] == [
        ("a", 0.1, 0.4), ("b", 0.0, 0.3), ("a (input)", 0.2, 0.0),
    ]  # fmt: skip


def test_what_is_only_for_onnx_is_left_out(fp32: Bundle) -> None:
    """The record of another format has neither rewrites nor noise; --sensitivity would be refused."""
    details = searched()
    for key in ("rewrites", "rewrites_refused", "sensitivity", "mixed_precision", "portability"):
        del details[key]
    page = render_quantization(with_details(fp32, details))
    assert "Calibration" in page
    assert "--sensitivity" not in page
    assert "Rewrites" not in page
