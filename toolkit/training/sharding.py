"""Divide the images of an epoch among steps and processes; every image is in exactly one step of one process."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """This process's share of the work.

    Attributes:
        rank: number of this process, from 0.
        processes: number of processes.
    """

    rank: int = 0
    processes: int = 1

    def of(self, indices: np.ndarray) -> np.ndarray:
        """The part of int64 [n] indices for this process; the parts of all processes differ by one index at most."""
        return np.array_split(indices, self.processes)[self.rank]


def step_count(images: int, batch_size: int) -> int:
    """The number of steps in an epoch."""
    return -(-images // batch_size)


def divided(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Indices in batches of at most `batch_size`, over all processes.

    The batches differ by one image at most: a small last batch would be a noisy step, and BatchNorm cannot train on one
    image.
    """
    return np.array_split(order, step_count(len(order), batch_size))
