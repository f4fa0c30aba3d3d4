"""Capture a network defined in code, the user's or a library's, with its weights as a torch.export program."""

import importlib
import importlib.util
import logging
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

from ...deploy.errors import EdgeKitError, listed, missing_package
from ...deploy.manifest import TensorSpec
from ...models.network import LIBRARIES, MODELS, create_network
from .files import refuse_foreign
from .written import Written

_log = logging.getLogger(__name__)

# How to save a library's published weights to a file for --weights.
_PUBLISHED = {
    "timm": "import timm, torch; torch.save(timm.create_model('{}', pretrained=True).state_dict(), '{}.pth')",
    "torchvision": (
        "import torch, torchvision; torch.save(torchvision.models.get_model('{}', weights='DEFAULT').state_dict(), "
        "'{}.pth')"
    ),
}


def is_named(model: str) -> bool:
    """Whether `train --model` knows a network by this name."""
    library, colon, name = model.partition(":")
    return model in MODELS or (library in LIBRARIES and bool(colon and name))


def capture_named(name: str, weights: Path | None, out: Path, spec: TensorSpec, classes: int) -> Written:
    """A network as `train --model` creates it, for this number of classes.

    Raises:
        EdgeKitError: there is no such network, or its weights do not fit.
    """
    if classes < 2:
        raise EdgeKitError(f"{name} needs the number of classes", fix="pass --labels, one class name per line")
    try:
        network = create_network(name, classes, spec.channels, (spec.height, spec.width))
    except ModuleNotFoundError as error:
        raise missing_package(error) or error from error
    except ValueError as error:
        raise EdgeKitError(str(error), fix="check the name, or pass package.module:factory") from error
    if weights is not None:
        _load_weights(
            network, weights, f"{name} is made for {classes} classes: --labels must list the classes of the weights"
        )
    else:
        library, _, entry = MODELS.get(name, name).partition(":")
        _log.warning(f"no --weights: {name} is imported untrained, with random weights")
        if library in _PUBLISHED:
            _log.info(f'to save the published ones: python -c "{_PUBLISHED[library].format(entry, entry)}"')
    if name.startswith("torchvision:") or MODELS.get(name, "").startswith("torchvision:"):
        from ...models.torchvision import SMALL

        if min(spec.height, spec.width) < SMALL:
            _log.info(
                f"{name} for images under {SMALL} pixels has a first layer that keeps their size, as edgekit train does"
            )
    return _capture(network, name, out, spec)


def capture_factory(module: str, factory: str, weights: Path | None, out: Path, spec: TensorSpec) -> Written:
    """The network that the user's code creates; the bundle does not need that code.

    Raises:
        EdgeKitError: the factory or its weights cannot be loaded.
    """
    import torch

    network = _call_factory(module, factory)
    if not isinstance(network, torch.nn.Module):
        raise EdgeKitError(
            f"{module}:{factory} returned a value of type {type(network).__name__}, not a torch module",
            fix="name a function or class that returns a torch module",
        )
    if weights is not None:
        _load_weights(network, weights, "check that the weights are of this network")
    else:
        _log.info(f"no --weights: {factory} is imported with its initial weights")
    return _capture(network, factory, out, spec)


def _capture(network: Any, name: str, out: Path, spec: TensorSpec) -> Written:
    import torch

    from ...deploy.runtimes.exported_program import save_program

    network = network.cpu().float().eval()
    example = torch.zeros(2, *spec.shape)
    try:
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        batch = None
    except Exception as batch_error:  # torch.export fails in many ways; some networks support only one image
        try:
            program = torch.export.export(network, (example[:1],))
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EdgeKitError(
                f"torch.export cannot capture {name} for an input of {list(example[:1].shape)}: {lines[0]}",
                fix="correct --input; data-dependent control flow in forward() cannot be exported",
            ) from error
        batch = 1
        _log.info(f"{name} takes one image at a time: {str(batch_error).strip().splitlines()[0]}")
    save_program(program, out)
    return Written(batch, sum(weight.numel() for _, weight in program.named_parameters()))


def _call_factory(module: str, factory: str) -> Any:
    """Import the user's module as their own code would, and call the factory.

    EdgeKit's own `models` and `export` are `edgekit.models` and `edgekit.export`, so they do not shadow the user's.
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
            fix="run this from the folder that contains the package, and install its dependencies",
        ) from error
    except AttributeError as error:
        raise EdgeKitError(f"{module}: {error}", fix="check the name after the colon") from error
    except EdgeKitError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise EdgeKitError(
            f"{module}:{factory}() raised {type(error).__name__}: {error}",
            fix="name a function or class that can be called without arguments",
        ) from error


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: S101 # a .py file has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _load_weights(network: Any, weights: Path, misfit: str) -> None:
    """Load a state dict; `misfit` is the fix to show if it is of another network."""
    import torch
    from safetensors.torch import load_file

    from ...deploy.runtimes.program_archive import check_size

    if not weights.is_file():
        raise EdgeKitError(f"no weights at {weights}", fix="check the path")
    refuse_foreign(weights)
    try:
        if weights.suffix == ".safetensors":
            state = load_file(weights)
        else:
            if zipfile.is_zipfile(weights):
                reader = torch._C.PyTorchFileReader(str(weights))
                check_size(map(reader.get_record_size, reader.get_all_records()), weights)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; the error below is what matters
                state = torch.load(weights, map_location="cpu", weights_only=True)
    except EdgeKitError:
        raise
    except Exception as error:  # a file that is not a pickle can raise any error: KeyError, IndexError, …
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EdgeKitError(
            f"{weights} is not a plain state dict: {reason[:200]}",
            fix="save it with torch.save(network.state_dict(), path), or as safetensors",
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise EdgeKitError(
            f"{weights} is not a plain state dict: it is a {type(state).__name__} with values other than tensors",
            fix="save it with torch.save(network.state_dict(), path)",
        )
    expected = network.state_dict()
    differences = [
        ("is missing", [name for name in expected if name not in state]),
        ("has unexpected", [name for name in state if name not in expected]),
        (
            "has a different shape for",
            [name for name in expected if name in state and expected[name].shape != state[name].shape],
        ),
    ]
    misfits = [f"it {difference} {listed(names)}" for difference, names in differences if names]
    if misfits:
        raise EdgeKitError(f"{weights} does not fit the network: {'; '.join(misfits)}", fix=misfit)
    network.load_state_dict(state)
