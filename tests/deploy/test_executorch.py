"""ExecuTorch: XNNPACK computes, or the export is refused; the report says what ran."""

import contextlib
import io
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgekit.deploy.bundle import Bundle, create, make_golden
from edgekit.deploy.errors import BundleError, DeviceError, EdgeKitError, MissingPackageError, ParityError
from edgekit.deploy.manifest import TensorSpec
from edgekit.deploy.measuring.worker import Worker
from edgekit.deploy.preprocess import Preprocess
from edgekit.deploy.runtimes.executorch_program import Steps, read_steps
from edgekit.deploy.runtimes.exported_program import save_program
from edgekit.deploy.session import open_session
from edgekit.export.export_bundle import export_bundle
from edgekit.toolkit.datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

pytest.importorskip("executorch.extension.pybindings._C")


@pytest.fixture(scope="module")
def program(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The trained network as an ExecuTorch program."""
    return export_bundle(trained, "executorch", tmp_path_factory.mktemp("executorch") / "program")


@pytest.fixture(scope="module")
def network_bundle(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[[nn.Module], Bundle]:
    """Make a bundle of any network of images [n, 3, 16, 16] and 10 classes."""

    def make(network: nn.Module) -> Bundle:
        preprocess = Preprocess("RGB", 16, (16, 16), "bilinear", (0.5,) * 3, (0.25,) * 3)
        example = torch.zeros(2, 3, 16, 16)
        exported = torch.export.export(network.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        run = exported.module()
        manifest = replace(
            trained.manifest, name="planted", format="exported-program", model="model.pt2", architecture={},
            input=TensorSpec(3, 16, 16), preprocess=preprocess,
        )  # fmt: skip
        path = tmp_path_factory.mktemp("planted") / "source"
        with create(path) as draft:
            save_program(exported, draft.folder / manifest.model)
            images = load_dataset("digits").test
            draft.add_golden(make_golden(images, preprocess, lambda part: run(torch.from_numpy(part)).detach().numpy()))
            draft.add_splits({})
            draft.finish(manifest)
        return Bundle.open(path)

    return make


class _OwnWeights(nn.Module):
    """A convolution whose weights depend on the image, which XNNPACK does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(4, 10)
        self.weight = nn.Parameter(torch.randn(4, 8, 3, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        return self.head(functional.conv2d(features, self.weight * features.mean()).mean((2, 3)))


class _Cumulative(nn.Module):
    """A cumulative sum, which XNNPACK does not take, between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(images).cumsum(2).mean((2, 3)))


def test_xnnpack_computes_every_operator_of_a_plain_network(program: Bundle) -> None:
    """The manifest and the session agree."""
    session = open_session(program, threads=1)
    placement = program.manifest.details["export"]["placement"]
    assert placement.keys() == {"XNNPACK"}
    assert placement["XNNPACK"] >= 5
    assert program.manifest.details["export"]["kernels"] == {}
    assert session.facts["placement"] == placement
    assert session.facts["version"]
    assert "executorch" in program.manifest.tools
    session.close()


def test_a_convolution_that_xnnpack_does_not_take_is_refused(
    network_bundle: Callable[[nn.Module], Bundle], tmp_path: Path
) -> None:
    """ExecuTorch would compute it by a kernel of its own; nothing is left behind."""
    with pytest.raises(BundleError, match=r"XNNPACK leaves 1 aten::convolution\.out of .* to ExecuTorch's own"):
        export_bundle(network_bundle(_OwnWeights()), "executorch", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_delegate_is_refused(trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of which XNNPACK computes nothing."""
    from edgekit.export import executorch

    def lower(captured: torch.export.ExportedProgram) -> bytes:
        # Imported here, where the export ignores its warnings. As errors, they leave a package that is half imported.
        from executorch.exir import to_edge_transform_and_lower

        return to_edge_transform_and_lower(captured).to_executorch().buffer

    monkeypatch.setattr(executorch, "_lower", lower)
    with pytest.raises(BundleError, match=r"XNNPACK leaves \d+ aten::convolution\.out"):
        export_bundle(trained, "executorch", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_other_operators_are_reported(
    network_bundle: Callable[[nn.Module], Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By name and number: in the manifest, in the session's facts, and by the export."""
    made = export_bundle(network_bundle(_Cumulative()), "executorch", tmp_path / "made")
    details = made.manifest.details["export"]
    assert details["kernels"]["aten::cumsum.out"] == 1
    assert details["placement"]["ExecuTorch's own kernels"] == sum(details["kernels"].values())
    assert "1 aten::cumsum.out" in caplog.text
    session = open_session(made)
    assert session.facts["kernels"] == details["kernels"]
    session.close()


def test_an_export_leaves_logging_as_it_was(trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing ExecuTorch's exporter adds a handler to the root logger."""
    from edgekit.export import executorch

    lower, handlers = executorch._lower, list(logging.root.handlers)

    def add_handler(captured: torch.export.ExportedProgram) -> bytes:
        logging.root.addHandler(logging.StreamHandler())
        return lower(captured)

    monkeypatch.setattr(executorch, "_lower", add_handler)
    export_bundle(trained, "executorch", tmp_path / "made")
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == logging.NOTSET


def test_a_program_of_another_network_is_refused(
    trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parity gate holds for this format too."""
    from edgekit.export import executorch

    other = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    lower, captured = executorch._lower, torch.export.export(other, (torch.zeros(1, 1, 16, 16),))
    monkeypatch.setattr(executorch, "_lower", lambda _: lower(captured))
    with pytest.raises(ParityError, match="not the same model"):
        export_bundle(trained, "executorch", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_threads_are_set_and_read_back(program: Bundle) -> None:
    """The pool belongs to the process: it is not changed under a loaded program, which would crash."""
    first = open_session(program, threads=2)
    logits = first.run(program.golden().tensors)
    assert first.facts["threads"] == 2
    with pytest.raises(DeviceError, match="runs ExecuTorch with 2 threads, which cannot be changed to 1") as caught:
        open_session(program, threads=1)
    assert "threads=2" in caught.value.fix
    same = open_session(program, threads=2)
    same.close()
    np.testing.assert_array_equal(first.run(program.golden().tensors), logits)
    first.close()
    alone = open_session(program, threads=1)
    assert alone.facts["threads"] == 1
    np.testing.assert_allclose(alone.run(program.golden().tensors), logits, rtol=1e-4, atol=1e-4)
    alone.close()


def test_a_forgotten_session_does_not_hold_the_threads(program: Bundle) -> None:
    """Nor does one that failed to open."""
    open_session(program, threads=2)
    session = open_session(program, threads=1)
    session.close()
    with pytest.raises(BundleError):
        open_session(replace(program, manifest=replace(program.manifest, labels=("one", "two"))), threads=2)
    open_session(program, threads=1).close()


def test_a_worker_measures_with_one_thread_after_several(program: Bundle) -> None:
    """It closes its session before it opens the next."""
    worker = Worker(io.StringIO())
    worker.start(str(program.path), None)
    assert worker.open(threads=2)["session"]["threads"] == 2
    assert worker.open(threads=1)["session"]["threads"] == 1
    assert worker.golden()["parity"]["top1_agreement"] == 1.0


def _with_content(bundle: Bundle, folder: Path, content: bytes) -> Bundle:
    (folder / "model.pte").write_bytes(content)
    return Bundle(folder, bundle.manifest, "x")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"XnnpackBackend", b"UnknownBackend", "calls the backend 'UnknownBackend'"),
        (b"XnnpackBackend", b"Xnnpack\xffackend", "damaged"),
        (b"ET12", b"ET13", "not an ExecuTorch program"),
        (b"ET12", b"\xff\xff\xff\xff", "not an ExecuTorch program"),
        (b"XH00", b"XH\xff0", "part for XNNPACK is damaged"),
        (b"XN01", b"\xffN01", "part for XNNPACK is damaged"),
        (b"forward", b"forwarX", "No method named 'forward'"),
    ],
)
def test_a_foreign_program_is_refused_in_one_line(
    program: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str], old: bytes, new: bytes, words: str
) -> None:
    """Also where ExecuTorch itself would end the process, because it cannot print what it found."""
    content = program.model_path.read_bytes()
    assert old in content
    with pytest.raises(BundleError, match=words) as caught:
        open_session(_with_content(program, tmp_path, content.replace(old, new)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_a_program_of_another_shape_is_refused(program: Bundle) -> None:
    """The manifest says what the file takes and returns."""
    manifest = program.manifest
    for wrong in (replace(manifest, input=TensorSpec(1, 8, 8, 1)), replace(manifest, labels=("one", "two"))):
        with pytest.raises(BundleError, match="its manifest says float32"):
            open_session(Bundle(program.path, wrong, "x"))


@given(st.data())
def test_steps_of_damaged_programs_are_read_or_refused(program: Bundle, data: st.DataObject) -> None:
    """Whatever bytes are changed, by one kind of error."""
    content = bytearray(program.model_path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.integers(0, 9000) | st.integers(0, 1 << 30)) % max(1, len(content))
        content[place : place + 4] = data.draw(
            st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"]) | st.binary(min_size=1, max_size=4)
        )
    with contextlib.suppress(ValueError):
        assert isinstance(read_steps(bytes(content)), Steps)


_DAMAGE = """
import random, sys
from pathlib import Path
from edgekit.deploy.bundle import Bundle
from edgekit.deploy.errors import BundleError
from edgekit.deploy.session import open_session
program, folder = Bundle.open(sys.argv[1]), Path(sys.argv[2])
content, generator, refused = program.model_path.read_bytes(), random.Random(0), 0
for _ in range(300):
    damaged = bytearray(content)
    for _ in range(generator.choice([1, 2, 8])):
        damaged[generator.randrange(content.index(b"XH00"))] = generator.choice([0, 255, generator.randrange(256)])
    (folder / "model.pte").write_bytes(damaged)
    try:
        open_session(Bundle(folder, program.manifest, "x"), threads=1).close()
    except BundleError:
        refused += 1
print(refused)
"""


def test_damaged_programs_are_opened_or_refused(program: Bundle, tmp_path: Path) -> None:
    """In one process, which opening them never ends; ExecuTorch does not verify all that it needs to run one."""
    done = subprocess.run(
        [sys.executable, "-c", _DAMAGE, str(program.path), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout.splitlines()[-1]) > 100


def test_a_library_for_another_torch_is_named(program: Bundle, tmp_path: Path) -> None:
    """Here one that lacks a symbol, before the installed one on the path."""
    folder = tmp_path / "executorch/extension/pybindings"
    folder.mkdir(parents=True)
    (folder / "_C.py").write_text("raise ImportError('undefined symbol: _ZN2at')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from edgekit.deploy.errors import DeviceError\nfrom edgekit.deploy.session import load\n"
        f"try: load({str(program.path)!r})\nexcept DeviceError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be loaded with torch" in done.stdout
    assert "undefined symbol: _ZN2at" in done.stdout


def test_without_the_package_the_line_that_installs_it(
    trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the export."""
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(MissingPackageError) as caught:
        export_bundle(trained, "executorch", tmp_path / "made")
    assert caught.value.fix == "pip install 'edgekit-vision[executorch]'"


def test_a_network_that_cannot_be_captured_is_refused(
    trained: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line."""
    from edgekit.export import executorch

    def fail(captured: object) -> bytes:
        raise RuntimeError("no kernel\nand a long trace")

    monkeypatch.setattr(executorch, "_lower", fail)
    with pytest.raises(EdgeKitError, match="ExecuTorch cannot export this network: no kernel$"):
        export_bundle(trained, "executorch", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
