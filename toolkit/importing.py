"""A person's own model as a bundle: .onnx, TorchScript, torch.export .pt2, or a factory in their own code."""

import importlib
import importlib.util
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..deploy.bundle import Bundle, Draft, Manifest, TensorSpec, create, make_golden
from ..deploy.errors import BundleError, DataError, EdgeKitError, ParityError
from ..deploy.parity import FLOAT_TOLERANCE
from ..deploy.preprocess import Preprocess
from ..deploy.session import open_session
from .console import say
from .datasets import Dataset, load_dataset
from .workspace import RUNS, new_path


@dataclass(frozen=True)
class Source:
    """A model to be imported.

    Attributes:
        format: of the bundle it becomes.
        suffix: of its model file.
        write: writes the model file into a path; returns the batch it is fixed to (None: any) and how many parameters
            it has.
        packages: whose versions are recorded.
    """

    format: str
    suffix: str
    write: Callable[[Path, TensorSpec], tuple[int | None, int]]
    packages: tuple[str, ...]


def import_model(
    model: str,
    *,
    name: str,
    input: tuple[int, int, int],
    preprocess: Preprocess,
    labels: Sequence[str],
    images: str,
    weights: Path | None = None,
    seed: int = 0,
    skip_corrupt: bool = False,
    out: Path | None = None,
    runs: Path = RUNS,
) -> Bundle:
    """Make a bundle of a model that EdgeKit did not make.

    Args:
        model: a file (.onnx, TorchScript, .pt2), or `package.module:factory`, `path/to/net.py:Net`.
        input: (channels, height, width).
        labels: class names, in the order of the logits; empty for numbers.
        images: a folder or named data set; golden samples, calibration and test images come from it.
        weights: for a factory: safetensors, or a state dict (loaded with weights_only).

    Raises:
        BundleError: the file is not a model of one image input and one [n, k] output of these shapes.
        EdgeKitError: the factory or its weights cannot be loaded.
        DataError: the images cannot be used.
        ParityError: the model's answers are not numbers, or depend on what else is in the batch.
    """
    source = _source(model, weights)
    channels, height, width = input
    if preprocess.crop != (height, width) or len(preprocess.mean) != channels:
        raise BundleError(
            f"preprocessing makes {len(preprocess.mean)} x {preprocess.crop} images, --input says {input}",
            fix="let --crop, --mean and --std agree with --input",
        )
    dataset = load_dataset(images, seed=seed, labels=tuple(labels) or None, skip_corrupt=skip_corrupt)
    path = out or new_path(name, runs)
    with create(path) as draft:
        batch, parameters = source.write(draft.folder / f"model{source.suffix}", TensorSpec(channels, height, width))
        manifest = Manifest(
            name=name,
            format=source.format,
            precision="fp32",
            model=f"model{source.suffix}",
            labels=tuple(labels) or dataset.test.labels,
            input=TensorSpec(channels, height, width, batch),
            preprocess=preprocess,
            parameters=parameters,
            data=dataset.reference(),
            details={"imported": model, "weights": str(weights) if weights else None},
        )
        _fill(draft, manifest, dataset, source.packages)
    return Bundle.open(path)


def _fill(draft: Draft, manifest: Manifest, dataset: Dataset, packages: tuple[str, ...]) -> None:
    """Run the model on real images for the golden samples, and look hard at what it answers."""
    height, width = manifest.input.height, manifest.input.width
    placeholder = np.zeros((1, manifest.input.channels, height, width), np.float32)
    session = open_session(Bundle(draft.folder, manifest, id=""))
    try:
        classes = session.run(placeholder).shape
    except Exception as error:  # whatever a runtime raises for a shape it does not take
        raise BundleError(
            f"the model does not run on an input of {[1, *manifest.input.shape]}: {error}",
            fix="correct --input (channels x height x width)",
        ) from error
    if len(classes) != 2 or classes[0] != 1:
        raise BundleError(
            f"the model answers with a shape of {list(classes)}, not [1, classes]", fix="import an image classifier"
        )
    if manifest.labels and len(manifest.labels) != classes[1]:
        raise BundleError(
            f"the model has {classes[1]} outputs, and there are {len(manifest.labels)} labels",
            fix="pass --labels with one class name a line, in the order of the outputs",
        )
    golden = make_golden(dataset.test, manifest.preprocess, session.run)
    if not np.isfinite(golden.logits).all():
        raise ParityError("the model answers real images with what is not a number", fix="check its weights")
    _check_batch(golden.tensors, golden.logits, session.run)
    session.close()
    draft.add_golden(golden)
    draft.add_splits(dataset.splits())
    if not manifest.labels:
        manifest = replace(manifest, labels=tuple(str(index) for index in range(classes[1])))
    draft.finish(manifest, packages)


def _check_batch(tensors: np.ndarray, logits: np.ndarray, run: Callable[[np.ndarray], np.ndarray]) -> None:
    """An image's answer must not depend on its neighbours (a BatchNorm left in training mode does that)."""
    alone = run(tensors[:1])
    if not np.abs(alone - logits[:1]).max() <= FLOAT_TOLERANCE * max(float(np.abs(logits).max()), 1e-3):
        raise ParityError(
            "the model answers an image differently when others are in the batch: it is in training mode",
            fix="call .eval() before saving it",
        )


def _source(model: str, weights: Path | None) -> Source:
    path = Path(model)
    if path.is_file():
        if weights is not None:
            raise EdgeKitError(f"{model} holds its own weights", fix="leave out --weights")
        return _file_source(path)
    module, colon, factory = model.rpartition(":")
    if not colon or not module or not factory:
        raise EdgeKitError(
            f"no file at {model}, and it is not package.module:factory", fix="check the path, or name a factory"
        )
    return Source(
        "exported-program", ".pt2", lambda out, spec: _capture(module, factory, weights, out, spec), ("torch",)
    )


def _file_source(path: Path) -> Source:
    if path.suffix == ".onnx":
        return Source("onnx", ".onnx", lambda out, spec: _copy_onnx(path, out, spec), ("onnx", "onnxruntime"))
    if not zipfile.is_zipfile(path):
        raise EdgeKitError(
            f"{path} is not an ONNX, TorchScript or torch.export file",
            fix="for weights name their network: module:factory",
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names):
        return Source("torchscript", ".torchscript", lambda out, _: _copy_torchscript(path, out), ("torch",))
    if any(
        name.endswith(("archive_format", "models/model.json", "serialized_exported_program.json")) for name in names
    ):
        return Source("exported-program", ".pt2", lambda out, spec: _copy_program(path, out, spec), ("torch",))
    raise EdgeKitError(
        f"{path} is a pickled checkpoint, not a model: EdgeKit does not run pickles",
        fix=f"name its network: edgekit import package.module:factory --weights {path}",
    )


def _copy_torchscript(path: Path, out: Path) -> tuple[int | None, int]:
    """A TorchScript module; tracing leaves the batch free, and the parity gates see to it when it is not."""
    from ..deploy.runtimes.torchscript import load_module

    out.write_bytes(path.read_bytes())
    return None, sum(weight.numel() for weight in load_module(out).parameters())


def _copy_program(path: Path, out: Path, spec: TensorSpec) -> tuple[int | None, int]:
    """A torch.export program; its batch is what its first input's shape says."""
    from ..deploy.runtimes.exported_program import load_program

    out.write_bytes(path.read_bytes())
    program = load_program(out)
    wanted = program.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name in wanted)
    if len(wanted) != 1 or tuple(shape[1:]) != spec.shape:
        raise BundleError(f"{path} takes {len(wanted)} input(s), the first {list(shape)}", fix="correct --input")
    return shape[0] if isinstance(shape[0], int) else None, _parameters(program)


def _parameters(program: Any) -> int:
    return sum(weight.numel() for _, weight in program.named_parameters())


def _copy_onnx(path: Path, out: Path, spec: TensorSpec) -> tuple[int | None, int]:
    """An ONNX file with one float32 [n, c, h, w] input and one output; external weights are taken in."""
    import onnx

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the file system each raise their own
        raise BundleError(f"{path} is not a valid ONNX model: {error}", fix="export it again") from error
    initializers = {entry.name for entry in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in initializers]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        names = [entry.name for entry in (*inputs, *model.graph.output)]
        raise BundleError(
            f"{path} has {len(inputs)} inputs and {len(model.graph.output)} outputs ({', '.join(names)})",
            fix="EdgeKit takes classifiers with one image input and one output; cut it with onnx.utils.extract_model",
        )
    tensor = inputs[0].type.tensor_type
    shape = [entry.dim_value or None for entry in tensor.shape.dim]
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise BundleError(f"{path} takes {kind} {shape}", fix="EdgeKit takes float32 [n, channels, height, width]")
    if any(given not in (None, wanted) for given, wanted in zip(shape[1:], spec.shape, strict=True)):
        fix = f"pass --input {'x'.join(str(side) for side in shape[1:])}"
        if shape[3] == spec.channels and shape[1] != spec.channels:
            fix = "it wants channels last; export it with channels first"
        raise BundleError(f"{path} takes {shape}, --input says {list(spec.shape)}", fix=fix)
    onnx.save(model, str(out))
    floats = [entry for entry in model.graph.initializer if entry.data_type == onnx.TensorProto.FLOAT]
    return shape[0], sum(int(np.prod(entry.dims, dtype=np.int64)) for entry in floats)


def _capture(module: str, factory: str, weights: Path | None, out: Path, spec: TensorSpec) -> tuple[int | None, int]:
    """Make the person's network, load its weights, and save it with torch.export, so that the bundle needs no code."""
    import torch

    from ..deploy.runtimes.exported_program import save_program

    network = _call_factory(module, factory)
    if not isinstance(network, torch.nn.Module):
        raise EdgeKitError(f"{module}:{factory} made a {type(network).__name__}", fix="name what makes a torch module")
    if weights is not None:
        _load_weights(network, weights)
    else:
        say(f"no --weights: {factory} is imported with the weights that it makes itself")
    network = network.cpu().float().eval()
    example = torch.zeros(2, *spec.shape)
    try:
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        batch = None
    except Exception as free:  # torch.export refuses in many ways; a network may be fine with one image only
        try:
            program = torch.export.export(network, (example[:1],))
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EdgeKitError(
                f"torch.export cannot capture {factory} for an input of {list(example[:1].shape)}: {lines[0]}",
                fix="correct --input; data-dependent control flow in forward() cannot be exported",
            ) from error
        batch = 1
        say(f"{factory} takes one image at a time: {str(free).strip().splitlines()[0]}")
    save_program(program, out)
    return batch, _parameters(program)


def _call_factory(module: str, factory: str) -> Any:
    """Import the person's module as their own code would, and call the factory.

    EdgeKit's own `models` and `export` are `edgekit.models` and `edgekit.export`, so they stand in nobody's way.
    """
    path = Path(module)
    try:
        if path.suffix == ".py":
            folder = str(path.resolve().parent)
            sys.path.insert(0, folder)
            loaded = _load_file(path)
        else:
            sys.path.insert(0, str(Path.cwd()))
            loaded = importlib.import_module(module)
        return getattr(loaded, factory)()
    except FileNotFoundError as error:
        raise EdgeKitError(f"no file at {path}", fix="check the path") from error
    except ModuleNotFoundError as error:
        raise EdgeKitError(
            f"cannot import {module}: no module named {error.name}",
            fix="run it from the folder that holds the package, and install what it needs",
        ) from error
    except AttributeError as error:
        raise EdgeKitError(f"{module}: {error}", fix="check the name after the colon") from error
    except EdgeKitError:
        raise
    except Exception as error:  # the person's own code may raise anything
        raise EdgeKitError(
            f"{module}:{factory}() raised {type(error).__name__}: {error}",
            fix="name a function or class that can be called without arguments",
        ) from error


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: S101 # always so for a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _load_weights(network: Any, weights: Path) -> None:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not weights.is_file():
        raise EdgeKitError(f"no weights at {weights}", fix="check the path")
    try:
        if weights.suffix == ".safetensors":
            state = load_file(weights)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of pickle protocols; the error below says what matters
                state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise EdgeKitError(
            f"{weights} is not a plain state dict: {str(error).strip().splitlines()[0]}",
            fix="save it with torch.save(network.state_dict(), path), or as safetensors",
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise EdgeKitError(
            f"{weights} is not a plain state dict: it holds a {type(state).__name__} of more than tensors",
            fix="save it with torch.save(network.state_dict(), path)",
        )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        raise EdgeKitError(f"{weights} does not fit the network: {' '.join(lines)}", fix="check both") from error


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line.

    Raises:
        DataError: no such file, an empty one, or a name twice.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the labels in {path}: {error}", fix="a text file with one name a line") from error
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path} is empty or has a label twice", fix="one class name a line, in the logits' order")
    return names
