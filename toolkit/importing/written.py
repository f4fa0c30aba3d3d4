"""The result of writing a model file into a bundle."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Written(NamedTuple):
    """A model file that was written into a bundle.

    Attributes:
        batch: its fixed batch size; None for any.
        parameters: number of parameters.
        precision: fp32, fp16 or int8.
        dtype: type of its input, as in Preprocess.dtype.
        changes: the changes to the user's file, one sentence each.
        check: takes inputs [n, c, h, w] and the changed file's logits [n, k], and raises ParityError if the
            user's original file answers differently; None without changes.
    """

    batch: int | None
    parameters: int
    precision: str = "fp32"
    dtype: str = "float32"
    changes: Sequence[str] = ()
    check: Callable[[np.ndarray, np.ndarray], None] | None = None
