"""torch.export programs (.pt2)."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..deploy.manifest import Manifest
from ..deploy.runtimes.exported_program import save_program
from .export_bundle import Options, example_input


def export(
    network: nn.Module, images: np.ndarray, path: Path, options: Options, manifest: Manifest
) -> dict[str, object]:
    """Capture and save the network (see Format.export)."""
    del manifest
    shapes = ({0: torch.export.Dim.DYNAMIC},) if options.dynamic_batch else None
    program = torch.export.export(network, (torch.from_numpy(example_input(images, options)),), dynamic_shapes=shapes)
    save_program(program, path)
    return {"exporter": "torch.export"}
