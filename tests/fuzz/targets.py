"""Fuzz targets: each reads a case as EdgeKit reads such a file or message, and uses the result."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.devices.board.probe import Wanted
from edgekit.deploy.devices.browser.device import BrowserDevice
from edgekit.deploy.devices.ssh import open_board
from edgekit.deploy.documents import parse, plain
from edgekit.deploy.engine.passport import Passport, rebuild
from edgekit.deploy.errors import EdgeKitError
from edgekit.deploy.image_sources import open_images, read_idx
from edgekit.deploy.measuring import agent, cargo
from edgekit.deploy.measuring.agent import Measured
from edgekit.deploy.measuring.measurement import Block, Measurement, Predictions, WarmUp
from edgekit.deploy.measuring.plan import Plan
from edgekit.deploy.measuring.result import Result
from edgekit.deploy.onnx_data import external_files
from edgekit.deploy.preprocess import Preprocess, decode
from edgekit.toolkit import console
from edgekit.toolkit.analysis.compare import read_document
from edgekit.toolkit.analysis.contract import Contract
from edgekit.toolkit.analysis.document import make_report
from edgekit.toolkit.importing.import_model import read_labels
from edgekit.toolkit.inspect import inspect_bundle
from edgekit.toolkit.packing import pack as packing
from edgekit.toolkit.report.html import render
from edgekit.toolkit.report.junit import junit
from edgekit.toolkit.report.markdown import markdown
from edgekit.toolkit.report.terminal import devices_table, facts_table, validation_table
from edgekit.toolkit.signing import verify_bundle
from edgekit.toolkit.training.recipe import Recipe
from edgekit.toolkit.validation.validate import validate

from tests.fuzz import mutate
from tests.fuzz.mutate import Mutation

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
CORPUS = HERE / "corpus"

_STATE: dict[str, Any] = {"load": [0.1], "mhz": [2000], "temperature_c": 40.0, "throttled": 0, "cgroup_throttled": 0,
                          "swap_used_bytes": 0, "power": "unavailable"}  # fmt: skip
ENVIRONMENT: dict[str, Any] = {
    "machine": "x86_64", "cpu": "a CPU", "isa": ["avx2"], "cores_allowed": 2, "cores_got": 2.0,
    "before": _STATE, "after": _STATE, "versions": {"numpy": "2"},
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader of input from outside.

    Attributes:
        seeds: valid inputs.
        mutate: makes a case from a seed.
        run: reads a case, given a scratch folder; returns or raises EdgeKitError.
        weight: number of its cases relative to other targets.
    """

    seeds: Callable[[], list[bytes]]
    mutate: Mutation
    run: Callable[[bytes, Path], object]
    weight: int = 1


def _file(case: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(case)
    return path


@cache
def _manifest(name: str) -> dict[str, Any]:
    return json.loads((DATA / name / "manifest.json").read_text())


def _bundle(folder: Path, source: str = "lenet-int8") -> Path:
    """A copy of a committed bundle next to its ancestor; later cases reuse it."""
    for name in (source, "lenet-fp32"):
        if not (folder / name).is_dir():
            shutil.copytree(DATA / name, folder / name)
    return folder / source


def _relist(path: Path, changed: str, content: bytes) -> None:
    """Put a file into a bundle and update its manifest entry."""
    (path / changed).write_bytes(content)
    manifest = _manifest(path.name)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    text = json.dumps({**manifest, "files": {**manifest["files"], changed: entry}})
    (path / "manifest.json").write_text(text)


def _show(table: Any) -> None:
    """Print a table as on a terminal."""
    screen = console.PlainConsole(file=io.StringIO(), width=80)
    for part in table:
        screen.print(part)


def _use_bundle(bundle: Bundle) -> None:
    bundle.golden()
    bundle.splits()
    if bundle.manifest.format == "tensorrt":
        Passport.of(bundle)
        rebuild(bundle)
    _show(facts_table(inspect_bundle(bundle)))


def _run_manifest(case: bytes, folder: Path) -> None:
    path = _bundle(folder)
    (path / "manifest.json").write_bytes(case)
    _use_bundle(Bundle.open(path))


def _run_file(name: str, use: Callable[[Bundle], object], case: bytes, folder: Path) -> None:
    """Replace a file of a bundle by the case, and use it."""
    path = _bundle(folder)
    try:
        _relist(path, name, case)
        use(Bundle.open(path))
    finally:
        shutil.copyfile(DATA / path.name / name, path / name)
        shutil.copyfile(DATA / path.name / "manifest.json", path / "manifest.json")


def _run_external(case: bytes, folder: Path) -> None:
    external_files(_file(case, folder, "model.onnx"))


def _measurement(bundle: Bundle, images: int, ms: float) -> Measurement:
    blocks = tuple(
        Block(number, number // 4, number * 0.2, 1, (int(ms * 1e6), int(ms * 1e6) + number), 0) for number in range(12)
    )
    parity = {"checksums_agreement": 1.0, "tensor_max_abs": 0.0, "logits_max_abs": 0.1, "top1_agreement": 1.0,
              "scale": 10.0}  # fmt: skip
    return Measurement(
        bundle=bundle.id, session={"runtime": "onnxruntime", "version": "1"}, file_ms=(0.5,) * 3, load_ms=(1.0,) * 3,
        first_ms=(2.0,) * 3, preprocess_ns=(1000,) * 3, postprocess_ns=(500,) * 3,
        warm_ups=(WarmUp(500.0, 100, True),) * 3, blocks=blocks, checked=3, differed=0, peak_rss_bytes=1 << 26,
        parity=parity, golden_logits=[],
        predictions=Predictions((0,) * images, (0.9,) * images, (True,) * images) if images else None,
    )  # fmt: skip


class _Device:
    """A device that returns made-up measurements."""

    name = "local"
    here = True

    def __enter__(self) -> "_Device":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def runtimes(self) -> set[str]:
        return {"onnxruntime", "tensorrt"}

    def measure(self, bundles: list[Bundle], plan: Plan, images: Any, progress: Any) -> Measured:
        for bundle in bundles:
            bundle.golden()
        count = len(images or ())
        measured = [_measurement(bundle, count, 2.0 - at) for at, bundle in enumerate(bundles[:2])]
        return Measured(ENVIRONMENT, [*measured, *(_measurement(bundle, count, 1.0) for bundle in bundles[2:])])


def _run_validate(case: bytes, folder: Path) -> None:
    """Run the host's part of a validation, of a bundle whose manifest is the case."""
    path = _bundle(folder)
    (path / "manifest.json").write_bytes(case)
    with mock.patch("edgekit.toolkit.validation.validate.open_device", lambda name, **settings: _Device()):
        validation = validate([Bundle.open(path)], limit=20)
    _show_report(validation.report)


def _show_report(report: Mapping[str, Any]) -> None:
    junit(report)
    markdown(report)
    render(report, None)
    _show((devices_table if "devices" in report else validation_table)(report))


@cache
def _result() -> dict[str, Any]:
    bundles = [Bundle.open(DATA / name) for name in ("lenet-fp32", "lenet-int8")]
    measured = [_measurement(bundle, 4, 2.0 - at) for at, bundle in enumerate(bundles)]
    result = Result(
        device="local", bundles=bundles, candidates=[bundles[1].id], plan=Plan(processes=3), ids=tuple("abcd"),
        contract=asdict(Contract(1.0, 1.2)), targets=np.zeros(4, np.int64), environment=ENVIRONMENT,
        measurements=measured,
    )  # fmt: skip
    document = result.to_json()
    for entry in document["bundles"]:
        entry["manifest"]["details"] = {}  # hundreds of ids
        entry["path"] = "runs/model"
    return document


@cache
def _report() -> bytes:
    return json.dumps(make_report(Result.from_json(json.loads(json.dumps(_result())), Path("x")))).encode()


def _run_document(case: bytes, folder: Path) -> None:
    """Read a report.json or result.json."""
    read_document(_file(case, folder, "report.json"))


def _run_plan(case: bytes, folder: Path) -> None:
    try:
        plan = json.loads(case)
    except (ValueError, RecursionError):
        return
    document = {**_result(), "plan": plan}
    Result.from_json(document, folder)


def _silent(stage: str, share: float) -> None:
    pass


@cache
def _requested() -> list[Bundle]:
    return [Bundle.open(DATA / "lenet-int8")]


def _measured_seed() -> dict[str, Any]:
    return Measured(ENVIRONMENT, [_measurement(_requested()[0], 4, 1.0)]).to_json()


def _board_seeds() -> list[bytes]:
    facts = {"python": [3, 11, 2], "executable": "/usr/bin/python3", "base": "/usr/bin/python3", "machine": "aarch64",
             "libc": ["glibc", "2.36"], "system": "Linux", "cache": "/home/pi/.cache/edgekit", "rsync": True,
             "time": 1e9, "free_bytes": 1 << 30, "cache_bytes": 0}  # fmt: skip
    bootstrap: list[dict[str, Any]] = [
        {"facts": facts}, {"files": {"a" * 64: "whole", "b" * 64: 7}}, {"code": "/home/pi/.cache/edgekit/code-a"},
        {"collected": "{}"}, {"importing": "numpy"}, {"imported": "numpy", "version": "2.0"},
        {"failed": "PIL", "missing": True, "error": "no"}, {"found": {"tensorrt": "10.1"}}, {"cleaned": ["/x"]},
    ]  # fmt: skip
    followed = [{"alive": True}, {"progress": "latency", "share": 0.5}, {"measured": _measured_seed()},
                {"result": _measured_seed()}, {"error": "no room", "fix": "make some"}]  # fmt: skip
    return [b"\n".join(json.dumps(message).encode() for message in (*bootstrap, *followed))]


def _run_board(case: bytes, folder: Path) -> None:
    """Read the lines as the bootstrap's and as the agent's."""
    board = open_board("ssh://board")
    lines = case.decode(errors="replace").split("\n")
    refused: EdgeKitError | None = None
    wanted = Wanted(land=["a" * 64], packages=["numpy", "PIL"], modules={"tensorrt": ["tensorrt"]})
    with mock.patch.object(board, "_ask", lambda request: map(agent.parse_message, lines)):
        for ask in (partial(board.probe, wanted), board.clean):
            try:
                ask()
            except EdgeKitError as error:
                refused = error
    for first in range(len(lines)):
        try:
            answer = agent.follow(lines[first:], _silent)
            Measured.from_json(answer, "board", _requested(), 4)
        except EdgeKitError as error:
            refused = error
            if (measured := getattr(error, "measured", None)) is not None:
                Measured.from_json(measured, "board", _requested(), 4)
    if refused is not None:
        raise refused


def _browser_seeds() -> list[bytes]:
    golden = _requested()[0].golden()
    prepared = {
        "preprocess_ns": [1000],
        "postprocess_ns": [500],
        "warm_up": {"ms": 500.0, "calls": 10, "settled": True},
    }
    blocks = [asdict(block) for block in _measurement(_requested()[0], 4, 1.0).blocks]
    model = {
        "bundle": _requested()[0].id, "opened": [{"file_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0}] * 3,
        "golden": {"logits": golden.logits.tolist(), "checksums": golden.checksums.tolist(), "tensor_max_abs": 0.0},
        "prepared": [prepared] * 3, "blocks": blocks, "one_thread": [], "checked": 3, "differed": 0,
        "predictions": {"classes": [0] * 4, "confidences": [0.9] * 4, "in_top5": [True] * 4},
    }  # fmt: skip
    page = {"userAgent": "Mozilla/5.0 (Android 14; Mobile) Chrome/130.0", "cores": 8, "threads": 4, "gpu": None,
            "memory_gb": 8, "screen": "400x800", "secure": True, "isolated": True, "clock_ms": 0.005}  # fmt: skip
    return [json.dumps({"environment": page, "models": [model]}).encode()]


def _run_browser(case: bytes, folder: Path) -> None:
    try:
        answer = json.loads(case)
    except (ValueError, RecursionError):
        return  # the server refuses it
    device = BrowserDevice("browser")
    candidates = Plan().measured(bundle.id for bundle in _requested())
    Measured.from_json(device._measured(answer, _requested(), candidates).to_json(), "browser", _requested(), 4)


@cache
def _parcel(built: bool = False) -> bytes:
    """A bundle in a zip file; with `built`, its manifest says that it is an engine."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, file in cargo.bundle_files(_requested()[0], "bundles/a"):
            content = file.read_bytes()
            if built and name.endswith("manifest.json"):
                content = json.dumps({**json.loads(content), "format": "tensorrt"}).encode()
            archive.writestr(name, content)
    return stream.getvalue()


def _emptied(folder: Path, name: str) -> Path:
    shutil.rmtree(folder / name, ignore_errors=True)
    return folder / name


def _run_parcel(case: bytes, folder: Path) -> None:
    unpacked, out = _emptied(folder, "unpacked"), _emptied(folder, "out")
    first, *_ = cargo.unpack_bundles(_file(case, folder, "parcel"), unpacked, 4 << 20, "the board")
    cargo.adopt(first, Bundle.open(DATA / "lenet-fp32"), out)


def _run_packed(case: bytes, folder: Path) -> None:
    """A packed file with a correct hash, whose content is the case."""
    body = packing._SHEBANG + case + b"-" * packing.SIGNATURE_DIGITS
    packed = packing._read(_file(body + hashlib.sha256(body).hexdigest().encode(), folder, "model.pyz"))
    packing.unpack(packed, _emptied(folder, "out"))


def _run_npz(case: bytes, folder: Path) -> None:
    images = open_images(_file(case, folder, "set.npz"))
    images.stratified(4, 0).sha256()


def _run_idx(case: bytes, folder: Path) -> None:
    """The case is read as labels, then as images."""
    images, labels = _committed_seeds("idx")
    with contextlib.suppress(EdgeKitError):
        read_idx(_file(images, folder, "images"), _file(case, folder, "labels"))
    read_idx(_file(case, folder, "images"), _file(labels, folder, "labels"))


def _run_csv(case: bytes, folder: Path) -> None:
    place = folder / "set"
    place.mkdir(exist_ok=True)
    shutil.copyfile(DATA / "lenet-fp32/golden/000.img", place / "1.png")
    _file(case, place, "labels.csv")
    open_images(place)[0]


def _run_image(case: bytes, folder: Path) -> None:
    image = decode(_file(case, folder, "image"))
    Preprocess("RGB", 32, (32, 32), "bilinear", (0.5,) * 3, (0.25,) * 3)(image)
    Preprocess("L", (20, 30), (32, 32), "nearest", (0.5,), (0.25,)).checksum(image)


def _run_preprocess(case: bytes, folder: Path) -> None:
    """Settings from a manifest, used on an image."""
    document = parse(case, "preprocess", "settings", limit=1 << 20)
    manifest = {**_manifest("lenet-int8"), "preprocess": document}
    path = _bundle(folder)
    (path / "manifest.json").write_text(json.dumps(manifest))
    Bundle.open(path).manifest.preprocess(_picture())


@cache
def _picture() -> Any:
    return decode(DATA / "lenet-fp32/golden/000.img")


def _run_key(case: bytes, folder: Path) -> None:
    path = _bundle(folder)
    (path / "manifest.sig").write_bytes(case[:64])
    try:
        verify_bundle(Bundle(path, _requested()[0].manifest, "x"), _file(case[64:], folder, "key.pub"))
    finally:
        (path / "manifest.sig").unlink()


def _run_program(case: bytes, folder: Path) -> None:
    from edgekit.deploy.runtimes.program_archive import check_program

    check_program(_file(case, folder, "model.pt2"))


def _run_weights(case: bytes, folder: Path) -> None:
    """A state dict; its first bytes decide between torch's format and safetensors."""
    import torch
    from edgekit.toolkit.importing.network import _load_weights

    name = "weights.pt" if case[:1] in b"P\x80" else "weights.safetensors"
    _load_weights(torch.nn.Linear(4, 2), _file(case, folder, name), "another network")


def _mutate_weights(random: Random, content: bytes) -> bytes:
    return mutate.mutate_zip(random, content) if content[:2] == b"PK" else mutate.mutate_bytes(random, content)


def _committed_seeds(name: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted((CORPUS / "seeds").glob(f"{name}*"))]


def _data(*names: str) -> list[bytes]:
    return [(DATA / name).read_bytes() for name in names]


def _manifests() -> list[bytes]:
    committed = _data("lenet-int8/manifest.json")
    older = _manifest("lenet-int8-schema-1") | {"files": _manifest("lenet-int8")["files"]}
    engine = _manifest("lenet-int8") | {
        "format": "tensorrt",
        "requires": {"tensorrt": json.loads((CORPUS / "seeds/passport.json").read_text())},
        "details": {"engine": {"layers": [{"name": "conv", "type": "conv", "precision": "int8"}],
                               "precisions": {"int8": 1}, "reformats": 0},
                    "build": {"source": "runs/a", "arguments": ["--batch", "1"], "batch": [1, 1, 8]}},
    }  # fmt: skip
    short = _manifest("lenet-int8") | {"details": {"calibration": {"images": None, "ids": ["3"], "seed": 0}}}
    return [*committed, *(json.dumps(manifest).encode() for manifest in (older, engine, short))]


TARGETS: dict[str, Target] = {
    "manifest": Target(_manifests, mutate.mutate_json, _run_manifest, 3),
    "validate": Target(_manifests, mutate.mutate_json, _run_validate),
    "golden": Target(
        lambda: _data("lenet-int8/golden.npz"), mutate.mutate_npz, partial(_run_file, "golden.npz", Bundle.golden), 3
    ),
    "splits": Target(
        lambda: [gzip.compress(b'{"train": ["1", "2"], "validation": ["3"], "test": ["4"]}')],
        mutate.mutate_gzip_json, partial(_run_file, "splits.json.gz", Bundle.splits), 3,
    ),
    "model": Target(
        lambda: _committed_seeds("onnx"), mutate.mutate_protobuf, partial(_run_file, "model.onnx", inspect_bundle), 3
    ),
    "external": Target(lambda: _committed_seeds("onnx"), mutate.mutate_protobuf, _run_external, 30),
    "result": Target(lambda: [json.dumps(_result()).encode()], mutate.mutate_json, _run_document, 3),
    "report": Target(
        lambda: [_report(), *_data("reports/schema-1.json", "reports/schema-2.json", "reports/schema-3.json")],
        mutate.mutate_json, _run_document, 3,
    ),
    "plan": Target(lambda: [json.dumps(plain(Plan())).encode()], mutate.mutate_json, _run_plan, 5),
    "board": Target(_board_seeds, mutate.mutate_lines, _run_board, 5),
    "browser": Target(_browser_seeds, mutate.mutate_json, _run_browser, 5),
    "parcel": Target(lambda: [_parcel(built=True), _parcel()], mutate.mutate_zip, _run_parcel, 2),
    "packed": Target(lambda: [_parcel()], mutate.mutate_zip, _run_packed, 2),
    "npz": Target(lambda: _committed_seeds("set"), mutate.mutate_npz, _run_npz, 5),
    "idx": Target(lambda: _committed_seeds("idx"), mutate.mutate_gzip, _run_idx, 10),
    "csv": Target(lambda: _committed_seeds("table"), mutate.mutate_bytes, _run_csv, 5),
    "labels": Target(
        lambda: ["cat\ndog\nbird é\n".encode()], mutate.mutate_bytes,
        lambda case, folder: read_labels(_file(case, folder, "labels.txt")), 10,
    ),
    "recipe": Target(
        lambda: _committed_seeds("recipe"), mutate.mutate_bytes,
        lambda case, folder: Recipe.load(str(_file(case, folder, "own.toml"))), 10,
    ),
    "image": Target(
        lambda: [*_committed_seeds("image"), *_data("lenet-fp32/golden/000.img")], mutate.mutate_bytes, _run_image, 10
    ),
    "preprocess": Target(
        lambda: [json.dumps(_manifest("lenet-int8")["preprocess"]).encode()], mutate.mutate_json, _run_preprocess, 5
    ),
    "key": Target(lambda: _committed_seeds("key"), mutate.mutate_bytes, _run_key, 5),
    "weights": Target(lambda: _committed_seeds("weights"), _mutate_weights, _run_weights, 5),
    "program": Target(lambda: _committed_seeds("program"), mutate.mutate_zip, _run_program, 5),
}  # fmt: skip


def quiet() -> None:
    """Silence the commands' output."""
    console.stderr.quiet = console.stdout.quiet = True
    os.environ["XDG_CACHE_HOME"] = "/nonexistent"
