"""What is known of a model file once it is written into a bundle."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Written(NamedTuple):
    """A model file in a bundle.

    Attributes:
        batch: that it is fixed to; None for any.
        parameters: how many it has.
        precision: fp32, fp16 or int8.
        dtype: of its input, as Preprocess.dtype.
        changes: what was changed in the user's file, a sentence each.
        check: raises ParityError where the changed file, which answered inputs [n, c, h, w] with logits [n, k], is not
            the user's model; None where nothing was changed.
    """

    batch: int | None
    parameters: int
    precision: str = "fp32"
    dtype: str = "float32"
    changes: Sequence[str] = ()
    check: Callable[[np.ndarray, np.ndarray], None] | None = None
