"""The pixels of a part in batches: kept in memory if they fit, else decoded by loader processes."""

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from ...deploy.environment import memory_cap
from ...deploy.errors import DataError, EdgeKitError
from ...deploy.images import ImageSet
from ...deploy.preprocess import Preprocess
from ...deploy.progress import Progress, silent
from .random_crop import RandomCrop
from .sharding import divided

# A part may take this share of the free memory of a GPU, or of the machine's memory, divided among its processes.
_MEMORY_SHARE = 0.25
# Assumed on systems that do not say how much memory they have.
_MEMORY = 4 << 30
# Number of images that a loader process decodes at a time.
_CHUNK = 64


class Batch(NamedTuple):
    """Images on the training device.

    Attributes:
        pixels: uint8 [n, c, h, w].
        targets: int64 [n].
        indices: int64 [n], the images' numbers in their part.
    """

    pixels: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor


class Pixels(Protocol):
    """The pixels of a part, preprocessed up to the normalization."""

    def batches(self, plan: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """The images of each entry of `plan`, int64 [n] indices. Random crops depend on the epoch.

        Raises:
            EdgeKitError: an image cannot be read.
        """
        ...


class Resident:
    """Pixels in the memory of the training device, or of the host if only that is large enough."""

    def __init__(self, pixels: torch.Tensor, targets: torch.Tensor, device: torch.device) -> None:
        self._pixels, self._targets, self._device = pixels, targets, device

    def batches(self, plan: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """See Pixels."""
        del epoch
        for chosen in plan:
            indices = torch.from_numpy(chosen).to(self._pixels.device)
            yield Batch(*(part.to(self._device) for part in (self._pixels[indices], self._targets[indices], indices)))


class Decoded(torch.utils.data.Dataset):
    """Decoded images for a DataLoader, by (epoch, index): uint8 [c, h, w] and the target.

    Args:
        resized_crop: the smallest share of the area that a random resized crop retains; 0 for the crop of `preprocess`.
        seed: of random crops. A crop depends on seed, epoch and image alone, not on the process that makes it.

    Attributes:
        shape: (c, h, w) of an image.
        random: whether an image differs between epochs.
        targets: int64 [n].
        nbytes: of all images.
    """

    def __init__(self, images: ImageSet, preprocess: Preprocess, resized_crop: float = 0.0, seed: int = 0) -> None:
        self._images, self._preprocess, self._seed = images, preprocess, seed
        self._random_crop = RandomCrop(resized_crop, preprocess) if resized_crop else None
        self.shape = (len(preprocess.mean), *(preprocess.crop or ()))
        self.random, self.targets = resized_crop > 0, images.targets
        self.nbytes = len(images) * math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> "list[tuple[torch.Tensor, int]] | EdgeKitError":
        """A batch for a DataLoader.

        An error is returned instead of raised: from a loader process, it would arrive as the text of its traceback.
        """
        try:
            return [self[key] for key in keys]
        except EdgeKitError as error:
            return error

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = key
        if self._random_crop is not None:
            seed = int(np.random.SeedSequence((self._seed, epoch, index)).generate_state(1)[0])
            image = self._random_crop(self._images, index, seed)
        else:
            image = self._images[index].image
            try:
                image = self._preprocess.pixels(image)
            except DataError as error:
                raise DataError(f"{self._images.ids[index]}: {error}", fix=error.fix) from error
        array = np.array(image, np.uint8)
        planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(planes)), int(self.targets[index])


class Streamed:
    """Pixels that are decoded when they are needed, by loader processes if their number is not 0."""

    def __init__(self, images: Decoded, workers: int, device: torch.device) -> None:
        self._sampler, self._device = _Plan(), device
        # with a generator of its own, it draws no number of the training's
        self._loader = DataLoader(
            images, batch_sampler=self._sampler, collate_fn=_collate, num_workers=workers,
            persistent_workers=workers > 0, multiprocessing_context="spawn" if workers else None,
            pin_memory=device.type == "cuda", generator=torch.Generator(),
        )  # fmt: skip

    def batches(self, plan: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """See Pixels."""
        self._sampler.plan, self._sampler.epoch = plan, epoch
        for chosen, batch in zip(plan, self._loader, strict=True):
            if isinstance(batch, EdgeKitError):
                raise batch
            parts = (*batch, torch.from_numpy(chosen))
            yield Batch(*(part.to(self._device, non_blocking=True) for part in parts))


def open_pixels(images: Decoded, workers: int, device: torch.device, stage: str, progress: Progress = silent) -> Pixels:
    """The pixels of a part that every epoch reads: in memory if they do not differ between epochs and fit there.

    Raises:
        EdgeKitError: an image cannot be read.
    """
    if images.random or images.nbytes > _limit(torch.device("cpu")):
        return Streamed(images, workers, device)
    chunks = divided(np.arange(len(images)), _CHUNK)
    pixels = torch.empty((len(images), *images.shape), dtype=torch.uint8)
    for index, batch in enumerate(Streamed(images, workers, torch.device("cpu")).batches(chunks, epoch=0)):
        pixels[batch.indices] = batch.pixels
        progress(stage, (index + 1) / len(chunks))
    place = device if images.nbytes <= _limit(device) else torch.device("cpu")
    return Resident(pixels.to(place), torch.from_numpy(images.targets).to(place), device)


def _limit(device: torch.device) -> float:
    """Maximum bytes of a part in the memory of a GPU, or of the machine for the CPU."""
    if device.type == "cuda":
        return _MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    total = memory_cap()[0]
    return _MEMORY_SHARE * (total if isinstance(total, int) else _MEMORY) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class _Plan:
    """What a DataLoader loads next, set for each pass."""

    plan: Sequence[np.ndarray] = ()
    epoch: int = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self.plan:
            yield [(self.epoch, int(index)) for index in indices]

    def __len__(self) -> int:
        return len(self.plan)


def _collate(examples: "list[tuple[torch.Tensor, int]] | EdgeKitError") -> Any:
    return examples if isinstance(examples, EdgeKitError) else default_collate(examples)
