"""A browser: a page served by this machine runs the models in ONNX Runtime Web and returns its measurements."""

import hashlib
import json
import logging
import queue
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from PIL import __version__ as pillow_version

from ...bundle import Bundle
from ...documents import plain, read
from ...environment import UNAVAILABLE
from ...errors import DeviceError, LostDeviceError
from ...images import ImageSet
from ...measuring.agent import Measured, follow
from ...measuring.answers import Steps
from ...measuring.measurement import Environment, Measurement
from ...measuring.plan import Candidate, Plan
from ...measuring.rules import RULES
from ...parity import compare
from ...preprocess import Preprocess
from ...progress import Progress
from ..device import Device
from .answers import PageAnswer, PageFacts, PageModel
from .server import Page, Pages, Server

_log = logging.getLogger(__name__)

ORT_WEB = "1.30.0"

# SHA-256 of the files of this version of ONNX Runtime Web, as published on npm: provider -> name -> hash.
FILES = {
    "wasm": {
        "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
        "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
        "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    },
    "webgpu": {
        "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
        "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
        "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
    },
}

# Time limits for opening the page, and between its messages after that.
_OPEN_S, _SILENCE_S = 600.0, 30.0
# Time limit of a measurement.
_MAX_S = 24 * 3600.0

# Preprocess.dtype -> numpy dtype of the tensors sent to the page, little-endian
_DTYPES = {"float32": "<f4", "uint8": "u1"}

_HERE = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
}
_NAME = re.compile(r"browser(?P<webgpu>\+webgpu)?(?:://(?P<address>[\w.-]+)(?::(?P<port>\d+))?)?")


class BrowserDevice(Device):
    """A browser: "browser" or "browser+webgpu"; a suffix "://ADDRESS:PORT" selects where the page is served.

    Args:
        ort_web: the folder of ONNX Runtime Web's files; None selects the folder that `make ort-web` fills.
        invite: shows the page's address to the user; by default it is logged.
    """

    def __init__(self, name: str, ort_web: Path | None = None, invite: Callable[[str], object] | None = None) -> None:
        match = _NAME.fullmatch(name)
        if match is None:
            raise DeviceError(
                f"{name} is not a browser address", fix="--device browser, or browser+webgpu, or browser://0.0.0.0:8000"
            )
        self.name = name
        self._provider = "webgpu" if match["webgpu"] else "wasm"
        self._address = match["address"] or "0.0.0.0", int(match["port"] or 0)  # noqa: S104 # the phone is another machine
        self._ort_web = ort_web or _HERE / "ort-web"
        self._invite = invite or _log_address

    def __enter__(self) -> "BrowserDevice":
        for name, digest in FILES[self._provider].items():
            path = self._ort_web / name
            fix = f"npm pack onnxruntime-web@{ORT_WEB}, unpack it, and pass --ort-web package/dist"
            if not path.is_file():
                raise DeviceError(f"ONNX Runtime Web is not installed: {path} is missing", fix=fix)
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise DeviceError(f"{path} is not from ONNX Runtime Web {ORT_WEB}", fix=fix)
        return self

    def runtimes(self) -> set[str]:
        """ONNX Runtime, as ONNX Runtime Web."""
        return {"onnxruntime"}

    def measure(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None, progress: Progress) -> Measured:
        """Serve the page, wait until it is opened, and read its messages."""
        if plan.offline or plan.fps is not None or plan.sustained_s is not None:
            raise DeviceError(
                "a browser measures the single stream only", fix="leave out --scenario, --fps and --sustained"
            )
        candidates = plan.measured(bundle.id for bundle in bundles)
        names = {name for candidate in candidates for name in candidate.options} | plan.options.keys()
        if unsupported := sorted(names - {"threads"}):
            raise DeviceError(
                f"a browser supports the option threads, but not {unsupported[0]}",
                fix="leave it out; --device browser+webgpu chooses ONNX Runtime Web's other provider",
            )
        try:
            server = Server(*self._address, self._pages(bundles, plan, images))
        except OSError as error:
            raise DeviceError(
                f"cannot listen on {self._address[0]}:{self._address[1]}: {error.strerror}", fix="choose another port"
            ) from error
        with server:
            self._invite(server.url)
            progress("waiting for the page to be opened", 0.0)
            result = follow(self._words(server, bundles, candidates), progress)
            return Measured.from_json(result, self.name, bundles, len(images or ()), plan)

    def _pages(self, bundles: Sequence[Bundle], plan: Plan, images: ImageSet | None) -> Pages:
        pages = {"": _file(_HERE / "page.html")}
        pages |= {name: _file(_HERE / name) for name in ("page.mjs", "worker.mjs", "preprocess.mjs", "schedule.mjs")}
        pages |= {f"ort/{name}": _file(self._ort_web / name) for name in FILES[self._provider]}
        described: dict[str, dict[str, object]] = {}
        for bundle in bundles:
            golden, manifest = bundle.golden(), bundle.manifest
            pages[f"bundles/{bundle.id}/model"] = _file(bundle.model_path)
            pages[f"bundles/{bundle.id}/tensors"] = _content(
                golden.tensors.astype(_DTYPES[manifest.preprocess.dtype]).tobytes()
            )
            pages |= {f"bundles/{bundle.id}/golden/{n}": _content(image) for n, image in enumerate(golden.images)}
            described[bundle.id] = {
                "folder": f"bundles/{bundle.id}", "name": f"{manifest.name} {manifest.precision}",
                "labels": len(manifest.labels),
                "input": vars(manifest.input), "golden": len(golden.images),
                "preprocess": preprocess_settings(manifest.preprocess),
            }  # fmt: skip
        models = [
            {
                **described[candidate.bundle], "id": candidate.key, "threads": candidate.threads,
                "runtime": candidate.choice and str(candidate.choice),
            }
            for candidate in plan.measured(described)
        ]  # fmt: skip
        job = {
            "models": models, "plan": plain(plan), "provider": self._provider, "rules": plain(RULES),
            "budget_s": plan.budget_s, "images": 0, "targets": None,
        }  # fmt: skip
        if images is not None:
            for index in range(len(images)):
                pages[f"images/{index}"] = partial(_encoded, images, index), "application/octet-stream"
            job |= {"images": len(images), "targets": images.targets.tolist() if images.labelled else None}
        return {**pages, "job.json": _content(json.dumps(job).encode(), ".json")}

    def _words(
        self, server: Server, bundles: Sequence[Bundle], candidates: Sequence[Candidate]
    ) -> Iterator[str]:  # fmt: skip
        """The page's messages, converted to those of the agent."""
        patience, end = _OPEN_S, time.monotonic() + _MAX_S
        while True:
            if time.monotonic() > end:
                raise DeviceError(f"the page has not finished after {_MAX_S / 3600:.0f} hours", fix="run it again")
            try:
                message = server.messages.get(timeout=patience)
            except queue.Empty:
                if patience == _OPEN_S:
                    raise DeviceError(
                        f"nobody opened the page in {_OPEN_S / 60:.0f} minutes", fix="run it again"
                    ) from None
                raise LostDeviceError(
                    f"the page has been silent for {_SILENCE_S:.0f} s",
                    fix="keep it open and the screen on; run it again",
                ) from None
            patience = _SILENCE_S
            if "error" in message:
                message = {
                    "error": f"the browser: {str(message['error'])[:1000]}",
                    "fix": "check the browser's console, or try another browser",
                }
            for key in ("measured", "result"):
                if key in message:
                    message = {key: self._measured(message[key], bundles, candidates).to_json()}
            yield json.dumps(message)

    def _measured(self, message: object, bundles: Sequence[Bundle], candidates: Sequence[Candidate]) -> Measured:
        """The page's measurements, in the form common to all devices.

        Raises:
            DeviceError: the measurements are invalid.
        """
        try:
            answer = read(PageAnswer, message)
            facts = answer["environment"]
            session = {
                "runtime": f"onnxruntime-web {self._provider}", "version": ORT_WEB, "threads": facts["threads"],
                "graph_optimization": "all",
            }  # fmt: skip
            by_id = {bundle.id: bundle for bundle in bundles}
            measurements = [
                _measurement(
                    candidate.key, by_id[candidate.bundle], model,
                    {**session, "threads": candidate.threads or session["threads"]},
                )
                for candidate, model in zip(candidates, answer["models"], strict=True)
            ]  # fmt: skip
            return Measured(_environment(facts), measurements)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise DeviceError(f"the page sent an invalid measurement: {error!r}", fix="run it again") from error


def preprocess_settings(preprocess: Preprocess) -> dict[str, object]:
    """Settings for the page's preprocessing that match Pillow on this machine."""
    return {**plain(preprocess), "height_first": int(pillow_version.partition(".")[0]) >= 13}


def _environment(facts: PageFacts) -> Environment:
    """The environment that a report requires; a browser reveals little of it."""
    agent = facts["userAgent"]
    system = re.search(r"\(([^)]*)\)", agent)
    program = re.findall(r"(?:Firefox|FxiOS|Edg|OPR|SamsungBrowser|CriOS|Chrome|Version)/\S+", agent)
    environment = {
        "machine": UNAVAILABLE,
        "system": system[1] if system else UNAVAILABLE,
        "board": f"{program[-1] if program else 'a browser'} on {system[1] if system else 'an unknown system'}",
        "cpu": UNAVAILABLE,
        "browser": agent,
        "cores": facts["cores"],
        "cores_allowed": facts["threads"],
        "threads": facts["threads"],
        "cores_got": UNAVAILABLE,
        "isa": [],
        "gpu": facts["gpu"] or UNAVAILABLE,
        "memory_bytes": int(facts["memory_gb"] * 2**30) if facts["memory_gb"] else UNAVAILABLE,
        "screen": facts["screen"],
        "secure_context": facts["secure"],
        "cross_origin_isolated": facts["isolated"],
        "timer_ns": int(facts["clock_ms"] * 1e6),
        "versions": {"onnxruntime-web": ORT_WEB},
        "before": {},
        "after": {},
    }
    return cast("Environment", environment)


def _measurement(key: str, bundle: Bundle, model: PageModel, session: Mapping[str, object]) -> Measurement:
    """One candidate's measurement; its parity is computed here."""
    golden, answer = bundle.golden(), model["golden"]
    exact = np.asarray([[np.nan if value is None else value for value in row] for row in answer["logits"]], np.float64)
    if (np.abs(exact) > np.finfo(np.float32).max).any():
        raise ValueError("a logit is not a float32 number")
    logits = exact.astype(np.float32)
    agreement = float(np.mean(np.asarray(answer["checksums"], np.uint32) == golden.checksums))
    parity = compare(golden, logits, checksums_agreement=agreement, tensor_max_abs=answer["tensor_max_abs"])
    if model["bundle"] != key or not model["blocks"]:
        raise ValueError("another model, or no blocks")
    return read(
        Measurement,
        {
            "bundle": key, "session": session,
            **{name: [opened[name] for opened in model["opened"]] for name in Steps.__annotations__},
            "preprocess_ns": [ns for prepared in model["prepared"] for ns in prepared["preprocess_ns"]],
            "postprocess_ns": [ns for prepared in model["prepared"] for ns in prepared["postprocess_ns"]],
            "warm_ups": [prepared["warm_up"] for prepared in model["prepared"]], "blocks": model["blocks"],
            "one_thread": model["one_thread"],
            "checked": model["checked"], "differed": model["differed"], "peak_rss_bytes": None,
            "parity": vars(parity), "golden_logits": logits.tolist(), "predictions": model["predictions"],
            "throughput": [], "frames": [], "sustained": [],
        }
    )  # fmt: skip


def _log_address(url: str) -> None:
    _log.info(f"open this address on the phone: {url}", extra={"address": url})


def _file(path: Path) -> Page:
    return path.read_bytes, _TYPES.get(path.suffix, "application/octet-stream")


def _content(content: bytes, suffix: str = "") -> Page:
    return (lambda: content), _TYPES.get(suffix, "application/octet-stream")


def _encoded(images: ImageSet, index: int) -> bytes:
    return images.encoded(index)[0]
