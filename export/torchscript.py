"""TorchScript by tracing and freezing. Deprecated upstream, but many mobile apps still run it."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..deploy.manifest import Manifest
from .export_bundle import Options, example_input


def export(
    network: nn.Module, images: np.ndarray, path: Path, options: Options, manifest: Manifest
) -> dict[str, object]:
    """Trace, freeze and save the network (see Format.export). A traced network takes any batch size."""
    del manifest
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch announces the deprecation at every call; `deprecated` records it
        traced = torch.jit.trace(network, torch.from_numpy(example_input(images, options)))
        assert isinstance(traced, torch.jit.ScriptModule)  # noqa: S101 # what trace returns for a module
        torch.jit.save(torch.jit.freeze(traced.eval()), stream)
    path.write_bytes(stream.getvalue())  # torch itself crashes if the disk is full
    return {"exporter": "torch.jit.trace", "deprecated": "TorchScript is deprecated by PyTorch; prefer onnx"}
