"""ExecuTorch programs (.pte) in float32, for its XNNPACK backend."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..deploy.errors import EdgeKitError
from ..deploy.manifest import Manifest
from ..deploy.runtimes.executorch_program import read_steps
from ..deploy.runtimes.runtime import runtime_named
from .export_bundle import Options, example_input

_log = logging.getLogger(__name__)


def export(
    network: nn.Module, images: np.ndarray, path: Path, options: Options, manifest: Manifest
) -> dict[str, object]:
    """Capture the network, give XNNPACK what it takes of it, and save it (see Format.export).

    What XNNPACK does not take is left to ExecuTorch's own kernels, and counted.

    Raises:
        MissingPackageError: ExecuTorch is not installed.
        EdgeKitError: ExecuTorch cannot export the network.
    """
    del manifest
    runtime_named("executorch").opener("executorch")
    try:
        with _quiet():
            program = torch.export.export(network, (torch.from_numpy(example_input(images, options)),))
            content = _lower(program)
    except Exception as error:  # each of its passes raises errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EdgeKitError(
            f"ExecuTorch cannot export this network: {reason}", fix="try another --format, such as onnx"
        ) from error
    path.write_bytes(content)
    steps = read_steps(content)
    if steps.kernels:
        own = ", ".join(f"{count} {name}" for name, count in steps.kernels.items())
        _log.info(f"XNNPACK computes {steps.delegated} operators, ExecuTorch's own kernels the rest: {own}")
    return {"exporter": "torch.export, XnnpackPartitioner", "placement": steps.placement, "kernels": steps.kernels}


def _lower(program: torch.export.ExportedProgram) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch and ExecuTorch about each other, and with the root logger as it was.

    Importing ExecuTorch's exporter adds a handler to it, which would print EdgeKit's own messages twice.
    """
    disabled, handlers, level = logging.root.manager.disable, list(logging.root.handlers), logging.root.level
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
