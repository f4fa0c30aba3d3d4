"""Rewrite a float graph into one that computes the same function and runs faster in int8."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx

from ...deploy.errors import EdgeKitError
from ...deploy.progress import Progress, silent
from .gate import run_float
from .rewrites.depthwise_channels import full_vectors
from .rewrites.hard_sigmoid import saturating_sums
from .rewrites.pooling import global_pooling

# Largest difference of the logits from those before a rewrite, relative to the largest logit. Other orders of addition
# change them by 1e-6; see deploy.parity.
_TOLERANCE = 1e-5

# description -> changes a graph in place, and returns whether it did. In the order in which they are tried.
REWRITES: dict[str, Callable[[onnx.GraphProto], bool]] = {
    "means as global pooling": global_pooling,
    "HardSwish and HardSigmoid as sums that saturate": saturating_sums,
    "depthwise convolutions of full vectors": full_vectors,
}


class Rewritten(NamedTuple):
    """A graph after its rewrites.

    Attributes:
        model: with inferred shapes.
        applied: descriptions of the rewrites that were kept.
        refused: description -> why it was not kept.
    """

    model: onnx.ModelProto
    applied: list[str]
    refused: dict[str, str]


def rewrite(
    model: onnx.ModelProto,
    tensors: np.ndarray,
    faster: Callable[[onnx.ModelProto, onnx.ModelProto], bool] | None = None,
    progress: Progress = silent,
    rewrites: Mapping[str, Callable[[onnx.GraphProto], bool]] = REWRITES,
) -> Rewritten:
    """Apply each rewrite that keeps the function, and makes the model faster.

    Args:
        model: a prepared float model (see prepare).
        tensors: in Preprocess.dtype [n, c, h, w], to compare the answers.
        faster: takes the float models without and with a rewrite, and returns whether the second one's int8 form runs
            faster; None to keep each rewrite.
    """
    expected, applied, refused = run_float(model, tensors), list[str](), dict[str, str]()
    for index, (name, apply) in enumerate(rewrites.items()):
        progress("rewrites", index / len(rewrites))
        candidate = onnx.ModelProto()
        candidate.CopyFrom(model)
        if not apply(candidate.graph):
            continue
        candidate = onnx.shape_inference.infer_shapes(candidate)
        if reason := _changed(candidate, tensors, expected):
            refused[name] = reason
        elif faster is not None and not faster(model, candidate):
            refused[name] = "not faster here"
        else:
            model = candidate
            applied.append(name)
    return Rewritten(model, applied, refused)


def _changed(candidate: onnx.ModelProto, tensors: np.ndarray, expected: np.ndarray) -> str:
    """How a rewrite changed the answers; "" if it did not."""
    try:
        answers = run_float(candidate, tensors)
    except EdgeKitError as error:
        return str(error)
    difference = float(np.abs(answers - expected).max()) if answers.shape == expected.shape else np.inf
    limit = _TOLERANCE * float(np.abs(expected).max())
    return "" if difference <= limit else f"changes the logits by {difference:.2g}, more than {limit:.2g}"
