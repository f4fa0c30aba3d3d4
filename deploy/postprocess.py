"""From logits to an answer."""

import numpy as np


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of float32 [k] logits, in float64 so that it sums to one."""
    shares = np.exp(logits - logits.max(), dtype=np.float64)
    return shares / shares.sum()


def ranked(logits: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` best of [k] logits, best first; ties keep their order."""
    return np.argsort(-logits, kind="stable")[:count]
