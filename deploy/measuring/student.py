"""Student's t distribution, in numpy only."""

import functools
import math

import numpy as np


@functools.cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(200)


@functools.lru_cache(maxsize=256)
def student_critical(confidence: float, freedom: float) -> float:
    """The two-sided critical value of Student's t distribution (2.78 for 0.95 and 4 degrees of freedom).

    With t = sqrt(freedom) * tan(angle) the density is a power of the cosine, which Gauss and Legendre's rule
    integrates; the angle is found by bisection.
    """
    nodes, weights = _legendre()

    def inside(angle: float) -> float:
        """Integral of the density from 0 to this angle, up to a factor."""
        return float(angle / 2 * (weights * np.cos(angle / 2 * (nodes + 1)) ** (freedom - 1)).sum())

    target = confidence * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)) * math.sqrt(math.pi) / 2
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < target else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
