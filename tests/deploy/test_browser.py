"""The browser: real Chromium at a phone's size runs ONNX Runtime Web, locally and from another network."""

import base64
import contextlib
import http.client
import io
import json
import os
import queue
import re
import select
import socket
import subprocess
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.browser import device, server
from edgekit.deploy.devices.browser.server import Server
from edgekit.deploy.devices.device import open_device
from edgekit.deploy.documents import plain
from edgekit.deploy.errors import DeviceError, EdgeKitError, LostDeviceError
from edgekit.deploy.measuring import agent
from edgekit.deploy.measuring.measure import lacking
from edgekit.deploy.measuring.measurement import Block
from edgekit.deploy.measuring.plan import Candidate, Plan
from edgekit.deploy.measuring.rules import RULES
from edgekit.deploy.preprocess import INTERPOLATIONS, Preprocess, decode
from edgekit.toolkit.importing.edit import prepend
from edgekit.toolkit.importing.import_model import ImportOptions, import_model
from edgekit.toolkit.report.files import write_reports
from edgekit.toolkit.validation.validate import ValidateOptions, validate
from edgekit.toolkit.validation.validation import Validation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import open_browser
from tests.needs import need

QUICK = Plan(seconds=0.1, rounds=2, processes=3, block_ms=5)
HERE = Path(device.__file__).parent


@pytest.fixture(scope="session")
def ort_web() -> None:
    """Require ONNX Runtime Web's files, which `make ort-web` downloads."""
    installed = all((HERE / "ort-web" / name).exists() for name in device.FILES["wasm"])
    need(installed, "ONNX Runtime Web", "make ort-web, which needs npm", "EDGEKIT_BROWSER")


@pytest.fixture
def invited(monkeypatch: pytest.MonkeyPatch) -> "Future[str]":
    """The address that is shown to the user."""
    shown: Future[str] = Future()
    monkeypatch.setattr("edgekit.deploy.devices.browser.device._log_address", shown.set_result)
    return shown


@pytest.fixture
def quick_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the warm-up: on a busy machine times do not settle, and the page would wait for that."""
    monkeypatch.setattr(device, "RULES", replace(RULES, warm_up_s=0.1, warm_up_cap_s=0.3))


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], Any]], "Future[Any]"]]:
    """Run functions in parallel with the test."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def _open_and_wait(browser: Any, url: str, work: "Future[Any]", screenshot: Path | None = None) -> list[str]:
    """Open the page on a phone until the work is done; return its console messages and its final text."""
    messages: list[str] = []
    context = browser.new_context(viewport={"width": 412, "height": 839}, device_scale_factor=2, is_mobile=True)
    page = context.new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(url)
    while not work.done():
        page.wait_for_timeout(200)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if screenshot:
        page.screenshot(path=screenshot)
    messages.append(page.inner_text("main"))
    context.close()
    return messages


@pytest.mark.usefixtures("ort_web")
@pytest.mark.slow
def test_fp32_and_int8_on_a_phone(
    browser: Any, fp32: Bundle, int8: Bundle, invited: "Future[str]", in_background: Any, tmp_path: Path
) -> None:
    """The input is the same bit for bit, the answers equal the host's, and the report is like any other."""
    work = in_background(
        lambda: validate(
            [int8],
            baseline=fp32,
            images="digits",
            limit=64,
            plan=QUICK,
            options=ValidateOptions(devices=["browser://127.0.0.1"]),
        )
    )
    *messages, shown = _open_and_wait(browser, invited.result(30), work, tmp_path / "phone.png")
    result: Validation = work.result()
    assert [line for line in messages if "No available adapters" not in line] == []
    assert "done: the verdict is on the computer" in shown
    assert "lenet int8" in shown
    report = result.report
    assert "Chrome" in report["device"]["browser"]
    assert report["device"]["cross_origin_isolated"]
    assert (report["device"]["cpu"], report["device"]["cores_got"]) == ("unavailable", "unavailable")
    for model in report["models"]:
        assert model["session"]["runtime"] == "onnxruntime-web wasm"
        assert model["parity"]["checksums_agreement"] == 1.0
        assert model["parity"]["tensor_max_abs"] == 0.0
        assert model["top1"] > 0.8
        assert model["host"]["images"] == 64
        assert all(image["gap"] <= 2 * model["host"]["logits_max_abs"] for image in model["host"]["differ"])
        assert {block["process"] for block in model["blocks"]} == {0, 1, 2}
        assert model["peak_rss_bytes"] is None, "a browser does not report it"
        assert model["samples"] > 0
    assert report["models"][0]["parity"]["logits_max_abs"] < 1e-3
    assert len(report["models"][0]["host"]["differ"]) == 0
    page = write_reports(report, result.images, tmp_path / "report")[-1].read_text()
    assert "onnxruntime-web" in page


@pytest.mark.usefixtures("ort_web", "quick_warm_up")
def test_uint8_pixels_on_a_phone(
    browser: Any, fp32: Bundle, invited: "Future[str]", in_background: Any, tmp_path: Path
) -> None:
    """A network that normalizes its own input gets the pixels unchanged."""
    model = onnx.load(str(fp32.model_path))
    entry = model.graph.input[0]
    shape = [side.dim_value for side in entry.type.tensor_type.shape.dim]
    prepend(model, entry.name, "Cast", to=onnx.TensorProto.FLOAT)
    entry.CopyFrom(onnx.helper.make_tensor_value_info(entry.name, onnx.TensorProto.UINT8, shape))
    onnx.save(model, str(tmp_path / "pixels.onnx"))
    preprocess = replace(fp32.manifest.preprocess, mean=(0.0,), std=(1.0,), dtype="uint8")
    bundle = import_model(
        str(tmp_path / "pixels.onnx"), ImportOptions(fp32.manifest.labels), name="pixels", preprocess=preprocess,
        images="digits", out=tmp_path / "pixels",
    )  # fmt: skip
    work = in_background(
        lambda: validate(
            [bundle], images="digits", limit=16, plan=QUICK, options=ValidateOptions(devices=["browser://127.0.0.1"])
        )
    )
    messages = _open_and_wait(browser, invited.result(30), work)
    (measured,) = work.result().report["models"]
    assert "done: the verdict is on the computer" in messages[-1]
    assert (measured["parity"]["checksums_agreement"], measured["parity"]["tensor_max_abs"]) == (1.0, 0.0)
    assert measured["parity"]["logits_max_abs"] < 1e-3 * np.abs(bundle.golden().logits).max()


@pytest.fixture
def elsewhere(chromium: str, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Another network: this machine's address in it, and a browser that runs there."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    name, number = f"phone{os.getpid()}", os.getpid() % 250
    host, phone = f"10.78.{number}.1", f"10.78.{number}.2"
    link = f"ph{os.getpid()}"[:14]
    for command in (
        f"netns add {name}", f"link add {link} type veth peer name eth0 netns {name}", f"addr add {host}/30 dev {link}",
        f"link set {link} up", f"-n {name} addr add {phone}/30 dev eth0", f"-n {name} link set eth0 up",
        f"-n {name} link set lo up",
    ):  # fmt: skip
        subprocess.run(["ip", *command.split()], check=True)
    program = tmp_path / "chromium-elsewhere"
    program.write_text(f'#!/bin/sh\nexec ip netns exec {name} {chromium} "$@"\n')
    program.chmod(0o755)
    yield host, str(program)
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.usefixtures("ort_web")
@pytest.mark.slow
def test_over_plain_http_from_another_network(
    elsewhere: tuple[str, str], fp32: Bundle, invited: "Future[str]", in_background: Any
) -> None:
    """No isolation, one thread, a clock of 0.1 ms: blocks are long enough for its resolution."""
    host, program = elsewhere
    work = in_background(
        lambda: validate(
            [fp32], images="digits", limit=50, plan=QUICK, options=ValidateOptions(devices=[f"browser://{host}"])
        )
    )
    with open_browser(program) as browser:
        _open_and_wait(browser, invited.result(30), work)
    report = work.result().report
    assert not report["device"]["secure_context"]
    assert not report["device"]["cross_origin_isolated"]
    assert report["device"]["timer_ns"] >= 50_000
    (model,) = report["models"]
    assert model["session"]["threads"] == 1
    assert all(ns >= 50 * report["device"]["timer_ns"] for block in model["blocks"] for ns in block["ns"])
    assert model["host"]["differ"] == []


def test_preprocessing_equals_pillow(browser: Any) -> None:
    """Any size, filter, crop and mode, from PNG and JPEG, gives the same pixels and float32 values."""
    page = browser.new_page()
    page.goto("about:blank")
    page.add_script_tag(content=(HERE / "preprocess.mjs").read_text().replace("export ", ""))
    generator = np.random.default_rng()
    for case in range(90):
        width, height = (int(side) for side in generator.integers(1, 90, 2))
        mode = ("RGB", "L")[case % 2]
        shape = (height, width, 3) if generator.random() < 0.7 else (height, width)
        picture = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        stream = io.BytesIO()
        jpeg = case % 3 == 0
        picture.save(stream, *(("JPEG",) if jpeg else ("PNG",)), **({"quality": 90} if jpeg else {}))
        resize: Any = [None, int(generator.integers(1, 60)), tuple(int(side) for side in generator.integers(1, 60, 2))][
            case % 3
        ]
        crop: Any = tuple(int(side) for side in generator.integers(1, 70, 2)) if case % 4 else None
        channels = 3 if mode == "RGB" else 1
        settings = Preprocess(
            mode, resize, crop, list(INTERPOLATIONS)[case % len(INTERPOLATIONS)],  # pyright: ignore[reportArgumentType]
            tuple(generator.random(channels).tolist()), tuple((0.1 + generator.random(channels)).tolist()),
        )  # fmt: skip
        image = decode(stream.getvalue())
        if isinstance(resize, int) and max(image.size) / min(image.size) * resize > 2000:
            continue  # refused as too large
        result = page.evaluate(
            """async ([file, settings]) => {
                const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
                const image = await decode(bytes, settings.mode);
                return [checksum(image), [...preprocess(image, settings)]];
            }""",
            [base64.b64encode(stream.getvalue()).decode(), device.preprocess_settings(settings)],
        )
        assert result[0] == settings.checksum(image), (settings, picture.size, jpeg)
        expected = settings(image)
        np.testing.assert_array_equal(np.asarray(result[1], np.float32), expected.ravel(), err_msg=str(settings))
    page.close()


def _mulberry32(seed: int) -> Iterator[float]:
    """The generator's definition in Python integers."""
    state, mask = seed % 2**32, 2**32 - 1
    while True:
        state = (state + 0x6D2B79F5) & mask
        mixed = (state ^ state >> 15) * (state | 1) & mask
        mixed ^= (mixed + ((mixed ^ mixed >> 7) * (mixed | 61) & mask)) & mask
        yield (mixed ^ mixed >> 14) / 2**32


def _shuffle(values: list[int], numbers: Iterator[float]) -> None:
    for last in range(len(values) - 1, 0, -1):
        chosen = int(next(numbers) * (last + 1))
        values[last], values[chosen] = values[chosen], values[last]


def _orders(seed: int, size: int, count: int) -> list[list[int]]:
    """`count` successive shuffles of one list."""
    values, numbers, orders = list(range(size)), _mulberry32(seed), []
    for _ in range(count):
        _shuffle(values, numbers)
        orders.append(list(values))
    return orders


def _schedule(browser: Any, script: str, argument: Any) -> Any:
    """Evaluate a script with the page's schedule module."""
    page = browser.new_page()
    page.goto("about:blank")
    page.add_script_tag(content=(HERE / "schedule.mjs").read_text().replace("export ", ""))
    result = page.evaluate(script, argument)
    page.close()
    return result


def test_the_page_s_order_follows_the_seed(browser: Any) -> None:
    """The same seed gives the same orders, another seed gives others, and all orders are about as frequent."""
    seeds = [0, 1, 7, 2**32 - 1]
    results = _schedule(
        browser,
        """(seeds) => seeds.map((seed) => {
            const random = mulberry32(seed), values = [0, 1, 2], orders = [];
            for (let count = 0; count < 6000; count++) { shuffle(values, random); orders.push([...values]); }
            return orders;
        })""",
        seeds,
    )
    assert results == [_orders(seed, 3, 6000) for seed in seeds]
    assert results[0][:20] != results[1][:20]
    for orders in results:
        counts = Counter(map(tuple, orders))
        # 1000 of each are expected; five standard deviations of a binomial count are 144
        assert len(counts) == 6
        assert all(abs(count - 1000) < 144 for count in counts.values()), counts


def test_the_page_s_time_budget_is_the_package_s(browser: Any) -> None:
    """The page and the package decide by the same rule which blocks are insufficient."""
    generator, cases = np.random.default_rng(0), []
    for _ in range(60):
        count, samples = int(generator.integers(2, 20)), int(generator.integers(1, 40))
        spread = float(generator.choice([0.001, 0.01, 0.03, 0.2]))
        cases.append((1e6 * generator.normal(1, spread, (count, samples)).clip(0.1)).astype(int).tolist())
    decisions = _schedule(
        browser,
        "([cases, rules]) => cases.map((blocks) => lacking(blocks.map((ns) => ({ ns })), 3, rules))",
        [cases, plain(RULES)],
    )
    blocks = [[Block(0, 0, 0.0, 1, tuple(ns), 0) for ns in case] for case in cases]
    assert decisions == [bool(lacking(case, Plan(processes=3))) for case in blocks]
    assert set(decisions) == {True, False}


@pytest.mark.usefixtures("ort_web", "quick_warm_up")
def test_threads_of_each_candidate_in_a_browser(
    browser: Any, fp32: Bundle, invited: "Future[str]", in_background: Any
) -> None:
    """One model with one thread and with two has two rows, timed in the order of the plan's seed."""
    names = ["onnxruntime:threads=1", "onnxruntime:threads=2"]
    plan = replace(QUICK, seed=5)
    options = ValidateOptions(devices=["browser://127.0.0.1"], runtimes=names)
    work = in_background(lambda: validate([fp32], options, images="digits", limit=16, plan=plan))
    messages = _open_and_wait(browser, invited.result(30), work)
    report = work.result().report
    assert report["device"]["cross_origin_isolated"]
    assert [model["session"]["threads"] for model in report["models"]] == [1, 2]
    assert [model["id"] for model in report["models"]] == [f"{fp32.id}@{name}" for name in names]
    assert all(f"lenet fp32 on {name}" in messages[-1] for name in names)
    timed = sorted(
        (block["process"], block["at"], index)
        for index, model in enumerate(report["models"])
        for block in model["blocks"]
    )
    numbers = _mulberry32(5)
    for process in range(3):
        order = [index for number, _, index in timed if number == process]
        values, expected = [0, 1], []
        while len(expected) < len(order):
            _shuffle(values, numbers)
            expected += [*values, *reversed(values)]
        assert order == expected


@pytest.mark.usefixtures("ort_web")
def test_the_page_receives_the_rules(fp32: Bundle) -> None:
    """It gets the rules of the package's own loop and the plan's time budget."""
    opened = device.BrowserDevice("browser://127.0.0.1")
    job = json.loads(opened._pages([fp32], QUICK, None)["job.json"][0]())
    assert job["rules"] == plain(RULES)
    assert job["budget_s"] == QUICK.budget_s


@pytest.mark.usefixtures("ort_web")
def test_an_error_in_the_browser_is_reported(
    browser: Any, fp32: Bundle, invited: "Future[str]", in_background: Any, tmp_path: Path
) -> None:
    """If the runtime refuses a model, the phone and the host show why."""
    import shutil

    import onnx
    from edgekit.deploy.files import sha256
    from edgekit.deploy.manifest import MANIFEST

    shutil.copytree(fp32.path, tmp_path / "odd")
    model = onnx.load(tmp_path / "odd/model.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd/model.onnx")
    manifest = json.loads((tmp_path / "odd" / MANIFEST).read_text())
    path = tmp_path / "odd/model.onnx"
    manifest["files"]["model.onnx"] = {"sha256": sha256(path), "size": path.stat().st_size}
    (tmp_path / "odd" / MANIFEST).write_text(json.dumps(manifest))

    def measure() -> Any:
        with open_device("browser://127.0.0.1", invite=invited.set_result) as opened:
            return opened.measure([Bundle.open(tmp_path / "odd")], QUICK, None, lambda stage, share: None)

    work = in_background(measure)
    shown = _open_and_wait(browser, invited.result(30), work)[-1]
    with pytest.raises(EdgeKitError, match="the browser: lenet fp32: .*NoSuchOperator"):
        work.result()
    assert "NoSuchOperator" in shown


@pytest.mark.usefixtures("ort_web")
@pytest.mark.slow
def test_a_page_that_falls_silent(
    browser: Any, fp32: Bundle, invited: "Future[str]", in_background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the phone is put away, an error follows after seconds, with the completed measurements."""
    monkeypatch.setattr(device, "_SILENCE_S", 4.0)
    first = threading.Event()
    plan = Plan(seconds=30, rounds=2, processes=10, block_ms=5)

    def progress(stage: str, share: float) -> None:
        if stage == "latency" and share > 0.15:
            first.set()

    def measure() -> Any:
        with open_device("browser://127.0.0.1", invite=invited.set_result) as opened:
            return opened.measure([fp32], plan, None, progress)

    work = in_background(measure)
    page = browser.new_page()
    page.goto(invited.result(30))
    while not first.is_set():
        page.wait_for_timeout(200)
    page.close()
    with pytest.raises(LostDeviceError, match="the page has been silent for 4 s") as caught:
        work.result(30)
    assert caught.value.measured is not None
    assert caught.value.measured["measurements"][0]["blocks"]


def _get(url: str, path: str, method: str = "GET", body: bytes | None = None, source: str = "127.0.0.1") -> int:
    host, port = re.findall(r"//([\d.]+):(\d+)/", url)[0]
    connection = http.client.HTTPConnection(host, int(port), timeout=5, source_address=(source, 0))
    connection.request(method, path, body)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_nothing_else_is_served() -> None:
    """Only listed files, only under the secret, only to the first client; invalid messages are refused."""
    with Server("127.0.0.1", 0, {"": (lambda: b"page", "text/html"), "model": (lambda: b"m", "x/y")}) as server:
        secret = server.url.split("/")[3]
        assert len(secret) >= 20
        assert _get(server.url, "/") == 404
        assert _get(server.url, "/model") == 404
        assert _get(server.url, f"/{secret[:-1]}x/model") == 404
        assert _get(server.url, f"/{secret}/model") == 200
        for path in ("../../etc/passwd", "%2e%2e/etc/passwd", "page.html", "/etc/passwd", "model/"):
            assert _get(server.url, f"/{secret}/{path}") == 404, path
        assert _get(server.url, f"/{secret}/model", source="127.0.0.2") == 404
        assert _get(server.url, f"/{secret}/message", "POST", b"{") == 400
        assert _get(server.url, f"/{secret}/message", "POST", b"[]") == 400
        assert _get(server.url, f"/{secret}/other", "POST", b"{}") == 404
        assert server.messages.empty()
        assert _get(server.url, f"/{secret}/message", "POST", b'{"alive": true}') == 204
        assert server.messages.get(timeout=1) == {"alive": True}


def test_onnx_runtime_web_is_checked(tmp_path: Path) -> None:
    """Missing and wrong files are refused; the fix says where to get the right ones."""
    with (
        pytest.raises(DeviceError, match="ONNX Runtime Web is not installed") as caught,
        open_device("browser", ort_web=tmp_path),
    ):
        pass
    assert f"npm pack onnxruntime-web@{device.ORT_WEB}" in caught.value.fix
    for name in device.FILES["wasm"]:
        (tmp_path / name).write_text("other")
    other = open_device("browser", ort_web=tmp_path)
    with pytest.raises(DeviceError, match="is not from ONNX Runtime Web"), other:
        pass


@pytest.mark.usefixtures("ort_web")
@pytest.mark.parametrize("change", [{"offline": True}, {"fps": 30.0}, {"sustained_s": 60.0}])
def test_scenarios_are_refused(fp32: Bundle, change: dict[str, Any]) -> None:
    """They are not silently omitted."""
    with open_device("browser://127.0.0.1") as opened, pytest.raises(DeviceError, match="the single stream only"):
        opened.measure([fp32], Plan(**change), None, lambda stage, share: None)


@pytest.mark.usefixtures("ort_web")
def test_what_a_browser_cannot_run_is_refused(trained: Bundle, ort_web: None) -> None:
    """The error names the format and what the browser runs."""
    with pytest.raises(DeviceError, match=r"is torch, which browser://127.0.0.1 cannot run: it runs onnx"):
        validate([trained], ValidateOptions(devices=["browser://127.0.0.1"]))


def test_a_port_that_is_taken(fp32: Bundle, ort_web: None) -> None:
    """It is an error, as is an invalid address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        name = f"browser://127.0.0.1:{taken.getsockname()[1]}"
        with open_device(name) as opened, pytest.raises(DeviceError, match="cannot listen on 127"):
            opened.measure([fp32], QUICK, None, lambda stage, share: None)
    with pytest.raises(DeviceError, match="is not a browser address"):
        open_device("browser://a b")


def _served() -> Server:
    return Server("127.0.0.1", 0, {"": (lambda: b"page", "text/html")})


def _address(served: Server) -> tuple[str, int]:
    host, port = served.host.split(":")
    return host, int(port)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [({"Content-Length": "-1"}, b"", 411), ({"Content-Length": "x"}, b"", 411), ({}, b"", 411),
     ({"Content-Length": "3", "Transfer-Encoding": "chunked"}, b"{}", 411),
     ({"Content-Length": str(1 << 40)}, b"", 413),
     ({"Content-Length": "99999"}, b"[" * 99_999, 400), ({"Content-Length": "2"}, b"[]", 400),
     ({"Content-Length": "4"}, b"\xff\xfe{}", 400), ({"Content-Length": "1" * 30}, b"", 411)],
)  # fmt: skip
def test_hostile_bodies_are_refused(headers: dict, body: bytes, status: int) -> None:
    """Each gets an HTTP status; nothing reaches the measurement, and the server keeps running."""
    with _served() as served:
        host, secret = served.host, served.url.rstrip("/").rpartition("/")[2]
        address, port = host.split(":")
        lines = [
            f"POST /{secret}/message HTTP/1.1",
            f"Host: {host}",
            *(f"{k}: {v}" for k, v in headers.items()),
            "",
            "",
        ]
        with socket.create_connection((address, int(port)), timeout=10) as line:
            line.sendall("\r\n".join(lines).encode() + body)
            assert line.recv(100).startswith(f"HTTP/1.1 {status}".encode())
        assert served.messages.empty()
        assert _get(served.url, f"/{secret}/") == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:{port}", ""])
def test_a_request_for_another_host_is_refused(host: str) -> None:
    """Another site's name may point to this machine (DNS rebinding)."""
    with _served() as served:
        address, port = served.host.split(":")
        request = f"GET {served.url.partition(served.host)[2]} HTTP/1.1\r\nHost: {host.format(port=port)}\r\n\r\n"
        with socket.create_connection((address, int(port)), timeout=10) as line:
            line.sendall(request.encode())
            assert b" 404 " in line.recv(100)


def test_a_body_that_does_not_arrive_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not keep the connection open forever."""
    monkeypatch.setattr(server, "_BODY_S", 0.5)
    with _served() as served, socket.create_connection(_address(served), timeout=10) as line:
        path = served.url.partition(served.host)[2]
        line.sendall(f"POST {path}message HTTP/1.1\r\nHost: {served.host}\r\nContent-Length: 1000\r\n\r\n".encode())
        for _ in range(200):
            line.sendall(b"[")
            if select.select([line], [], [], 0.1)[0]:
                break
        assert line.recv(100).startswith(b"HTTP/1.1 400")
        assert served.messages.empty()


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond the limit are closed at once and cost no thread; when one ends, another is accepted."""
    monkeypatch.setattr(server, "_MAX_CONNECTIONS", 5)
    with _served() as served, contextlib.ExitStack() as lines:
        before = threading.active_count()
        opened = [lines.enter_context(socket.create_connection(_address(served), timeout=10)) for _ in range(30)]
        for line in opened[5:]:
            with contextlib.suppress(ConnectionResetError):
                assert line.recv(1) == b"", "closed"
        assert threading.active_count() <= before + 5
        opened[0].close()
        secret = served.url.rstrip("/").rpartition("/")[2]
        for _ in range(50):
            with contextlib.suppress(OSError, http.client.HTTPException):
                if _get(served.url, f"/{secret}/") == 200:
                    break
            time.sleep(0.05)
        else:
            pytest.fail("no connection is accepted after one ended")


def test_unread_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that sends faster than messages are read gets status 503."""
    monkeypatch.setattr(server, "_MAX_WAITING", 3)
    monkeypatch.setattr(server, "_BODY_S", 0.2)
    with _served() as served:
        secret = served.url.rstrip("/").rpartition("/")[2]
        answers = [_get(served.url, f"/{secret}/message", "POST", b'{"alive": true}') for _ in range(5)]
        assert answers == [204, 204, 204, 503, 503]


@pytest.fixture
def sent(fp32: Bundle) -> dict[str, Any]:
    """A page's result for one model and no images."""
    golden = fp32.golden()
    count = len(golden.images)
    return {
        "environment": {"userAgent": "Mozilla/5.0 (X11; Linux) Chrome/140.0", "threads": 1, "cores": 2, "gpu": None,
                        "memory_gb": 8, "screen": "1x1", "secure": False, "isolated": False, "clock_ms": 0.1},
        "models": [{
            "bundle": fp32.id, "golden": {"logits": golden.logits.tolist(), "checksums": golden.checksums.tolist(),
                                          "tensor_max_abs": 0.0},
            "blocks": [{"round": 0, "process": number, "at": 1.0, "calls": 1, "ns": [5, 6], "switches": None}
                       for number in range(3)],
            "prepared": [{"preprocess_ns": [1], "postprocess_ns": [1],
                          "warm_up": {"ms": 1.0, "calls": 3, "settled": True}}],
            "opened": [{"file_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0}], "checked": count, "differed": 0,
            "one_thread": [],
            "predictions": None}],
    }  # fmt: skip


def _received(message: Any, bundle: Bundle) -> Any:
    """The measurement read from a page's last message."""
    opened = device.BrowserDevice("browser")
    served = types.SimpleNamespace(messages=queue.Queue())
    served.messages.put(message)
    result = agent.follow(opened._words(served, [bundle], [Candidate(bundle.id)]), lambda stage, share: None)
    return agent.Measured.from_json(result, "browser", [bundle], 0)


def test_a_valid_result_is_accepted(sent: dict[str, Any], fp32: Bundle) -> None:
    """It is read like any device's."""
    assert len(_received({"result": sent}, fp32).measurements[0].blocks) == 3


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_of_a_result_is_accepted_or_refused(sent: dict[str, Any], fp32: Bundle, data: st.DataObject) -> None:
    """Any entry may have any value."""
    changed: Any = {"result": json.loads(json.dumps(sent))}
    container, values = (
        changed,
        [None, True, -1, 1e308, 1 << 80, float("nan"), "x", "1" * 5000, [], [[1]], {}, {"x": 1}],
    )
    while True:
        key = data.draw(
            st.sampled_from(sorted(container) if isinstance(container, dict) else list(range(min(3, len(container)))))
        )
        if not isinstance(container[key], dict | list) or not container[key] or data.draw(st.integers(0, 3)) == 0:
            break
        container = container[key]
    container[key] = data.draw(st.sampled_from(values))
    with contextlib.suppress(EdgeKitError):
        _received(changed, fp32)


@pytest.mark.parametrize(
    "message", [{"error": {"x": [1]}}, {"error": None}, {"progress": [], "share": 1}, {"progress": "x", "share": None},
                {"measured": 3}, {"result": None}, {"result": []}, {"progress": "x\x1b", "share": 2}],
)  # fmt: skip
def test_malformed_messages_are_one_line_errors(message: dict[str, Any], fp32: Bundle) -> None:
    """Never a traceback."""
    with pytest.raises(EdgeKitError):
        _received(message, fp32)
