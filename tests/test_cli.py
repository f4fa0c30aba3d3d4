"""The command line, as a user runs it."""

import csv
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgekit import __version__ as edgekit_version
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.preprocess import decode
from PIL import Image

from .conftest import DATA, EDGEKIT

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_the_four_commands(edgekit: Run, tmp_path: Path) -> None:
    """train, export, quantize and validate in an empty folder, with default arguments but fewer epochs."""
    edgekit("train", "--set", "train.epochs=3")
    exported = edgekit("export", "--format", "onnx")
    assert "using runs/001-convnet-digits" in exported.stderr
    assert exported.stdout == "runs/002-convnet-digits-onnx-fp32\n"
    edgekit("quantize")
    done = edgekit("validate", "--seconds", "1")
    folder = tmp_path / "runs/003-convnet-digits-onnx-int8.report"
    assert sorted(path.name for path in folder.iterdir()) == ["junit.xml", "report.html", "report.json", "summary.md"]
    report = json.loads((folder / "report.json").read_text())
    assert [model["session"]["runtime"] for model in report["models"]] == ["torch eager", "onnxruntime", "onnxruntime"]
    assert [model["precision"] for model in report["models"]] == ["fp32", "fp32", "int8"]
    assert report["verdict"] in done.stdout
    assert report["models"][2]["top1"] > 0.5


@pytest.mark.filterwarnings("ignore")  # from torch.onnx
@pytest.mark.slow
def test_import_then_the_chain(edgekit: Run, tmp_path: Path) -> None:
    """An ONNX file from plain torch, with its own training loop and exporter, passes quantize and validate."""
    import numpy as np
    import torch
    from edgekit.toolkit.datasets import load_dataset
    from torch import nn

    digits = load_dataset("digits")
    for index, sample in enumerate(digits.test):
        folder = tmp_path / "my images" / f"digit {sample.label}"
        folder.mkdir(parents=True, exist_ok=True)
        sample.image.save(folder / f"{index}.png")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Hardswish(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10), nn.Softmax(1),
    )  # fmt: skip
    images = torch.from_numpy(np.stack([np.asarray(sample.image) for sample in digits.train])[:, None] / 255.0).float()
    targets = torch.from_numpy(digits.train.targets)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.nll_loss(network(images).log(), targets).backward()
        optimizer.step()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(network.eval(), (images[:2],), str(tmp_path / "foreign.onnx"), dynamo=True, opset_version=20,
                      dynamic_shapes=shapes, verbose=False)  # fmt: skip
    (tmp_path / "labels.txt").write_text("".join(f"digit {index}\n" for index in range(10)))
    edgekit("import", "foreign.onnx", "--name", "mine", "--input", "1x8x8", "--mean", "0", "--std", "1",
            "--labels", "labels.txt", "--images", "my images")  # fmt: skip
    edgekit("quantize")
    report = json.loads(edgekit("validate", "--seconds", "0.5", "--json").stdout)
    float_, int8 = report["models"]
    assert report["images"] == 72
    assert (float_["format"], float_["precision"], int8["precision"]) == ("onnx", "fp32", "int8")
    assert float_["top1"] > 0.85
    assert int8["top1"] > 0.8
    assert float_["parity"]["logits_max_abs"] < 1e-5


def test_json_is_the_report(report_of: Callable[..., dict], tmp_path: Path) -> None:
    """--json prints the contents of report.json."""
    printed = report_of(DATA / "lenet-int8", "--limit", "40", "--out", "there")
    assert json.loads((tmp_path / "there/report.json").read_text()) == printed


def test_a_contract_that_cannot_be_met_fails(report_of: Callable[..., dict]) -> None:
    """Exit 3 for a speed-up that is clearly missed, 4 for a drop that 20 images cannot prove."""
    assert report_of(DATA / "lenet-int8", "--limit", "20", "--min-speedup", "50", code=3)["verdict"] == "fail"
    assert report_of(DATA / "lenet-int8", "--limit", "20", "--max-drop", "1", code=4)["verdict"] == "inconclusive"


def test_one_model_alone(report_of: Callable[..., dict]) -> None:
    """A model without a baseline is compared with its golden samples."""
    report = report_of(DATA / "lenet-fp32", "--limit", "20", "--baseline", DATA / "lenet-fp32")
    assert (len(report["models"]), report["verdict"]) == (1, "pass")


def test_predict(edgekit: Run, tmp_path: Path) -> None:
    """One image, many, a CSV, a grid; greyscale, colour and palette images."""
    edgekit("predict", DATA / "lenet-fp32", "digits", "--csv", "out.csv", "--grid", "grid.png")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert len(rows) == 359
    assert set(rows[0]) == {"Image", "Category"}
    assert decode(tmp_path / "grid.png").width > 400
    for mode in ("L", "RGB", "RGBA", "CMYK", "P", "1"):
        Image.new("RGB", (1, 1), "white").convert(mode).save(
            tmp_path / f"ä {mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        )
        path = f"ä {mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        answer = json.loads(edgekit("predict", DATA / "lenet-fp32", path, "--json", "--top", "2").stdout)
        assert len(answer[0]["labels"]) == 2
        assert answer[0]["truth"] is None


def test_predictions_are_good(edgekit: Run) -> None:
    """Over 90 % of the digits' test images are classified correctly."""
    answers = json.loads(edgekit("predict", DATA / "lenet-int8", "digits", "--json").stdout)
    assert sum(answer["truth"] == answer["labels"][0] for answer in answers) / len(answers) > 0.9
    assert all(0 <= share <= 1.0001 for answer in answers for share in answer["confidences"])


def test_inspect(edgekit: Run) -> None:
    """Operators, parameters, multiply-accumulates, quantized share, lineage."""
    float_, quantized = (
        json.loads(edgekit("inspect", DATA / name, "--json").stdout) for name in ("lenet-fp32", "lenet-int8")
    )
    # conv 6@5x5 on 28x28, conv 16@5x5 of 6 on 10x10, then the dense layers
    assert float_["macs"] == quantized["macs"] == 6 * 25 * 784 + 16 * 150 * 100 + 400 * 120 + 120 * 84 + 84 * 10
    assert float_["parameters"] == 61_706
    assert float_["operators"]["Conv"] == 2
    assert (float_["quantized_share"], quantized["quantized_share"] > 0.8) == (0.0, True)
    assert [step["precision"] for step in quantized["lineage"]] == ["fp32", "fp32", "int8"]
    assert "61706" in edgekit("inspect", DATA / "lenet-int8").stdout


def test_predict_and_inspect_take_the_newest_bundle(edgekit: Run, tmp_path: Path) -> None:
    """Without a bundle argument, and report which; a bundle alone is not mistaken for images."""
    for number, name in enumerate(("lenet-fp32", "lenet-int8"), 1):
        shutil.copytree(DATA / name, tmp_path / f"runs/00{number}-{name}")
    newest = max(
        (DATA / name for name in ("lenet-fp32", "lenet-int8")), key=lambda path: Bundle.open(path).manifest.created
    )
    done = edgekit("predict", "digits", "--json")
    assert f"-{newest.name}" in done.stderr
    assert len(json.loads(done.stdout)) == 359
    assert json.loads(edgekit("inspect", "--json").stdout)["id"] == Bundle.open(newest).id
    assert "is a bundle, and the images are missing" in edgekit("predict", newest, code=1).stderr
    assert "not 3 arguments" in edgekit("predict", newest, "digits", "digits", code=1).stderr


@pytest.mark.parametrize("program", [[sys.executable, "-m", "edgekit"], [Path(sys.executable).parent / "edgekit"]])
def test_the_program_runs_under_both_names(program: list) -> None:
    """`python -m edgekit` and `edgekit` print the version and help; without a command they exit with 2."""

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    assert run("--version") == f"edgekit {edgekit_version}\n"
    assert run("-h") == run("--help") != run(code=2)
    assert "Usage: edgekit " in run("-h")
    assert "Usage: edgekit quantize" in run("quantize", "-h")


def test_doctor(edgekit: Run) -> None:
    """The installed packages and this machine's target are reported."""
    diagnosis = json.loads(edgekit("doctor", "--json").stdout)
    assert {"numpy", "onnxruntime", "torch"} <= {package["name"] for package in diagnosis["packages"]}
    assert diagnosis["target"]["name"] in ("x86", "x86-avx2", "arm")
    assert "onnxruntime" in edgekit("doctor").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --model mobilnet_v2", "did you mean mobilenet_v2"),
        ("train --recipe lennet", "did you mean lenet"),
        ("train --set train.lrr=1", "did you mean train.lr"),
        ("train --data fashion_mnist", "did you mean fashion-mnist"),
        ("train --data digits --root folder", "leave out --root"),
        ("train --resume", "no unfinished training"),
        ("train --resume --epochs 3", "no training in runs/"),
        ("train --resume --model lenet", "pass --resume alone"),
        ("export", "run: edgekit train"),
        ("quantize", "run: edgekit export --format onnx"),
        ("quantize --dynamic", "slower"),
        ("validate", "run: edgekit quantize"),
        ("validate nowhere", "pass a folder under runs/"),
        ("inspect .", "is not a bundle"),
        ("report nothing.json", "report.json of edgekit validate"),
        ("import x.onnx --name a --input 3x8 --images .", "channels x height x width"),
        ("import x.onnx --name a --input 3x8x8 --images .", "no file at x.onnx"),
        ("import resnet18 --name a --input 3x8x8 --images .", "--mean 0.485"),
        ("import x.onnx --name a --input 3x8x8 --images . --mean 0 --std 1", "no file at x.onnx"),
        ("import resnet18 --name a --input 3x8x8 --images . --mean 0,1 --std 1", "mean has 2"),
        ("import resnet18 --name a --input 3x8x8 --images . --mean a --std 1", "not a list of numbers"),
        (
            "import resnet18 --name a --input 3x8x8 --images . --mean 0 --std 1 --interpolation cubic",
            "did you mean bicubic",
        ),
    ],
)
def test_user_errors_are_two_lines(edgekit: Run, tmp_path: Path, arguments: str, message: str) -> None:
    """The error and what to type next; exit 1, no traceback, nothing written."""
    done = edgekit(*arguments.split(), code=1)
    lines = done.stderr.strip().splitlines()
    assert lines[-2].startswith("error: ")
    assert lines[-1].startswith("fix: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export --format onx", "did you mean onnx"),
        ("export --cross-check --format torchscript", "does not apply"),
        ("export --opset 99", "opset 99 was requested"),
    ],
)
def test_export_errors(edgekit: Run, trained: Bundle, arguments: str, message: str) -> None:
    """Errors of export on a valid bundle: two lines, without the exporter's own log."""
    stderr = edgekit("export", trained.path, *arguments.split()[1:], code=1).stderr
    assert message in stderr
    assert len(stderr.splitlines()) == 2


def test_a_report_is_not_written_into_a_bundle(edgekit: Run, int8: Bundle) -> None:
    """A file that its manifest does not list would make the bundle unreadable."""
    result = edgekit("validate", str(int8.path), "--out", str(int8.path), code=1)
    assert f"{int8.path} is a bundle" in result.stderr
    assert f"--out {int8.path}.report" in result.stderr


def test_usage_errors_exit_2(edgekit: Run) -> None:
    """An unknown option exits with 2."""
    assert "No such option" in edgekit("train", "--epoch", "3", code=2).stderr


@pytest.mark.parametrize(
    ("blocked", "arguments", "line"),
    [
        ("torch", "train", "pip install 'edgekit-vision[train]'"),
        ("onnx", f"quantize {DATA}/lenet-fp32", "pip install 'edgekit-vision[quantize]'"),
        ("lightning_fabric", "train", "pip install 'edgekit-vision[train]'"),
        ("matplotlib", f"predict {DATA}/lenet-fp32 digits --grid g.png", "pip install 'edgekit-vision[train]'"),
    ],
)
def test_a_missing_package_says_what_to_install(tmp_path: Path, blocked: str, arguments: str, line: str) -> None:
    """The fix is exactly the install command."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {blocked!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from edgekit.toolkit.cli import main\n"
        f"sys.argv = ['edgekit', *{arguments.split()!r}]\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"fix: {line}"


def test_no_text_tells_users_to_install_the_bare_name() -> None:
    """`edgekit` on PyPI is another project."""
    root = DATA.parent.parent
    files = [*root.glob("*.md"), *root.glob("*/**/*.py"), root / "pyproject.toml", root / "Makefile"]
    texts = {path: path.read_text() for path in files if ".venv" not in path.parts}
    assert [
        path for path, text in texts.items() if "install " + "edgekit " in text or "install " + "edgekit\n" in text
    ] == []


@pytest.mark.parametrize(
    "command", ["import", *(pytest.param(name, marks=pytest.mark.slow) for name in ("export", "quantize", "validate"))]
)
def test_kill_9_leaves_no_partial_results(tmp_path: Path, trained: Bundle, command: str) -> None:
    """A command killed at any moment leaves its result complete or not at all."""
    arguments = {
        "export": ["export", trained.path, "--out", "made"],
        "quantize": ["quantize", DATA / "lenet-fp32", "--out", "made"],
        "import": ["import", DATA / "lenet-fp32/model.onnx", "--name", "x", "--input", "1x32x32", "--mean", "0.3",
                   "--std", "0.3", "--images", "digits", "--out", "made"],
        "validate": ["validate", DATA / "lenet-int8", "--limit", "10", "--seconds", "0", "--out", "made"],
    }[command]  # fmt: skip
    duration = time.monotonic()
    subprocess.run([*EDGEKIT, *map(str, arguments)], cwd=tmp_path, check=True, capture_output=True)
    duration = time.monotonic() - duration
    for share in (0.5, 0.8, 0.9, 0.95, 0.98):
        folder = tmp_path / f"at {share}"
        folder.mkdir()
        process = subprocess.Popen([*EDGEKIT, *map(str, arguments)], cwd=folder, stdout=-3, stderr=-3)
        time.sleep(duration * share)
        process.send_signal(signal.SIGKILL)
        process.wait()
        ends = {"report.json": "}", "report.html": "</html>", "junit.xml": "</testsuite>", "summary.md": "\n"}
        if (folder / "made").exists() and command != "validate":
            Bundle.open(folder / "made")
        for path in (folder / "made").glob("*") if command == "validate" and (folder / "made").exists() else ():
            assert path.name.startswith(".") or path.read_text().endswith(ends[path.name])


def test_paths_with_spaces_and_other_letters(edgekit: Run, tmp_path: Path) -> None:
    """Paths with spaces and non-ASCII letters work for outputs, bundles and reports."""
    out = tmp_path / "größe 1" / "模型"
    edgekit("quantize", DATA / "lenet-fp32", "--out", out)
    edgekit("validate", out, "--limit", "10", "--seconds", "0", "--baseline", DATA / "lenet-fp32")
    assert (tmp_path / "runs" / "模型.report" / "report.html").exists()


def test_report_schema_is_printed(edgekit: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """--schema prints JSON without a report; with a report it is refused."""
    schema = json.loads(edgekit("report", "--schema").stdout)
    assert schema["$schema"].endswith("2020-12/schema")
    assert "fix:" in edgekit("report", code=1).stderr
    assert "--schema takes no report" in edgekit("report", "x.json", "--schema", code=1).stderr


def test_help_lists_the_entries_of_the_registries() -> None:
    """Some help texts repeat a registry's names, because --help must not import numpy; both agree."""
    import typer
    from edgekit.deploy.preprocess import INTERPOLATIONS
    from edgekit.deploy.runtimes.onnxruntime import PROVIDERS
    from edgekit.toolkit.cli import app

    commands: Any = typer.main.get_command(app)
    for command, option, names in (("import", "interpolation", INTERPOLATIONS), ("validate", "provider", PROVIDERS)):
        (text,) = (entry.help for entry in commands.commands[command].params if entry.name == option)
        listed = text.partition(": ")[2].partition(". ")[0] or text.rstrip(".")
        assert set(re.split(", | or ", listed.rstrip("."))) == set(names)


def test_an_address_for_the_phone_is_shown_with_its_qr_code(capsys: pytest.CaptureFixture[str]) -> None:
    """The library logs the address; the command line draws the code."""
    from edgekit.toolkit.logs import logged_to_stderr

    with logged_to_stderr():
        logging.getLogger("edgekit.x").info("open this: http://h/", extra={"address": "http://h/"})
        logging.getLogger("edgekit.x").warning("%s", "\x1b[31m")
        logging.getLogger("edgekit.x").debug("not shown")
    logging.getLogger("edgekit.x").info("after the command")
    first, *code, last = capsys.readouterr().err.splitlines()
    assert (first, last) == ("open this: http://h/", "warning: \\x1b[31m")
    assert code


@pytest.mark.parametrize("path", ["nothing", "folder", "loop", "text/below", "x" * 300])
@pytest.mark.parametrize(
    "command",
    ["report P", "report P --join", "inspect P", "predict P", "export P", "quantize P", "validate P", "pack P",
     "build P",
     "train --data P", "train --recipe P", "validate INT8 --images P", "validate INT8 --baseline P", "predict INT8 P",
     "validate INT8 --reproduce P", "validate INT8 --verify P"],
)  # fmt: skip
def test_a_path_that_cannot_be_read_is_one_plain_line(
    edgekit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, command: str, path: str
) -> None:
    """Missing, a folder, a link loop, below a file, too long: no errno is shown, and there is a fix."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("text")
    (tmp_path / "loop").symlink_to("loop")
    tokens = [{"P": path, "INT8": str(DATA / "lenet-int8")}.get(token, token) for token in command.split()]
    shown = edgekit(*tokens, code=1).stderr
    assert "Errno" not in shown
    assert re.search(r"^error: .+\nfix: .+\n\Z", shown, re.MULTILINE), shown


def test_a_report_that_is_not_named_exactly(
    edgekit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A folder's report is suggested only if it exists; a baseline that ends in .json is a report, not a bundle."""
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    (tmp_path / "with/report.json").write_text("{}")
    assert "with/report.json" in edgekit("report", "with", code=1).stderr
    assert "report.json of edgekit validate" in edgekit("report", "without", code=1).stderr
    missing = edgekit("validate", DATA / "lenet-int8", "--baseline", "missing.json", code=1).stderr
    assert "cannot read missing.json: No such file" in missing
