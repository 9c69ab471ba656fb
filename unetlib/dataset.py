"""Prepared slices as a PyTorch data set: `len`, `[i]`, and batches of chosen positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unetlib.checks import name_of, samples
from unetlib.support.chance import balanced, shuffled
from unetlib.support.errors import UnetlibError


@runtime_checkable
class Trainable(Protocol):
    """A data set to train on: `SliceDataset`, or your own class with these two methods."""

    def indices(self, part: str) -> np.ndarray:
        """Return the positions (M,) of the samples of `"train"` or `"val"`."""
        ...

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return images (M, C, H, W) and masks (M, K, H, W) of 0 and 1, float32; volumes have D before H."""
        ...


@dataclass(frozen=True)
class SliceDataset(Dataset[tuple[Tensor, Tensor]]):
    """Axial slices and their masks, in memory or memory-mapped.

    `images`: (N, C, S, S) in 0..1, of C sequences. `masks`: (N, K, S, S) of 0 and 1, of K `regions`; or (N, 1, S, S) of
    uint8, packed: bit k of a pixel is its value in region k. Volumes have one more axis of S. `parts`: the
    positions of each part of the split. `cases`: the number of slices of each case; they are stored one after another,
    from feet to head. `neighbours`: how many slices below and above are added to each slice as channels. `name`: for
    messages.
    """

    images: np.ndarray
    masks: np.ndarray
    parts: Mapping[str, np.ndarray]
    cases: np.ndarray
    neighbours: int = 0
    name: str = "SliceDataset"
    regions: int = 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, masks = self.batch(np.array([range(len(self))[index]]))
        return images[0], masks[0]

    def indices(self, part: str) -> np.ndarray:
        """Return the positions of the slices of one part, in ascending order."""
        return self.parts[part]

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return images (M, (2 `neighbours` + 1) C, S, S) and masks (M, K, S, S) at these positions, both float32.

        The channels run from the slice below to the slice above, C for each. At the ends of a case, its first or
        last slice is repeated.
        """
        images = with_neighbours(self.images, indices, self.neighbours, *self.bounds[indices].T[:, :, None])
        masks = unpacked(self.masks[indices], self.regions)
        return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(masks.astype(np.float32))

    @cached_property
    def bounds(self) -> np.ndarray:
        """The first and the last position of the case that each slice belongs to, (N, 2)."""
        ends = self.cases.cumsum()
        return np.repeat(np.stack([ends - self.cases, ends - 1], axis=1), self.cases, axis=0)

    @cached_property
    def tumour(self) -> np.ndarray:
        """Whether each slice shows tumour, (N,) booleans."""
        return np.asarray(self.masks.reshape(len(self.masks), -1).any(1))


def unpacked(masks: np.ndarray, regions: int) -> np.ndarray:
    """Return packed masks (N, 1, ...), uint8, as (N, `regions`, ...) of 0 and 1; other masks as they are."""
    if regions == 1 or masks.shape[1] == regions:
        return masks
    return masks >> np.arange(regions, dtype=masks.dtype).reshape(-1, *(1,) * (masks.ndim - 2)) & 1


def with_neighbours(images: np.ndarray, indices: np.ndarray, neighbours: int, first: Any, last: Any) -> np.ndarray:
    """Return images (N, C, S, S) at `indices` (M,) with neighbours as channels, (M, (2 `neighbours` + 1) C, S, S).

    Beyond `first` and `last`, numbers or arrays (M, 1), the images at these positions are repeated.
    """
    near = (indices[:, None] + np.arange(-neighbours, neighbours + 1)).clip(first, last)
    return images[near].reshape(len(indices), -1, *images.shape[2:])


def epoch_order(dataset: Trainable, balance: bool, seed: int, epoch: int) -> np.ndarray:
    """Return the positions of the training samples of an epoch, in random order; a pure function of its arguments.

    With `balance` these are the slices with tumour and as many without, drawn anew in each epoch; `dataset` then needs
    the attribute `tumour` of `SliceDataset`. Raises `UnetlibError` if it lacks it, or nothing is left to train on.
    """
    training = samples(dataset, "train")
    if balance:
        tumour = np.asarray(getattr(dataset, "tumour", ()), bool)
        if len(tumour) <= training.max() or not (tumour := tumour[training]).any():
            raise UnetlibError(
                f"{name_of(dataset)}: the train part of the split has no slice with tumour, which balance needs. "
                "Prepare again with another seed or more patients, add `tumour`, (N,) booleans, to your own data set, "
                "or train without balance."
            )
        training = balanced(training, tumour, seed, epoch)
    return shuffled(training, seed, epoch)
