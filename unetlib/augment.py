"""Flips and 90-degree rotations, drawn per slice, alike on image and mask.

The flips and rotations of a square are its eight symmetries. Each of them is one transposition,
one flip up-down and one flip left-right, each done or not: three coins a slice draw all eight
with equal chance, and three `torch.where` apply them to a whole batch.
"""

import torch
from torch import Tensor

from unetlib.chance import AUGMENTATION, generator
from unetlib.errors import UnetlibError


def draw_symmetries(seed: int, epoch: int, step: int, slices: int) -> Tensor:
    """Return three coins for each of a batch's `slices`, as (3, slices) booleans.

    A pure function of its arguments: there is no generator whose state a resumed run would need.
    """
    coins = generator(AUGMENTATION, seed, epoch, step).integers(0, 2, size=(3, slices))
    return torch.from_numpy(coins.astype(bool))


def apply_symmetries(batch: Tensor, coins: Tensor) -> Tensor:
    """Return (N, C, H, H) pictures transposed and flipped as the (3, N) `coins` say.

    Values are moved, never changed. Raises `UnetlibError` when the pictures are not square.
    """
    if batch.shape[-1] != batch.shape[-2]:
        raise UnetlibError(
            f"slices of shape {tuple(batch.shape)} cannot be rotated by 90 degrees; squares were expected."
        )
    transpose, flip_rows, flip_columns = coins.to(batch.device)[:, :, None, None, None]
    batch = torch.where(transpose, batch.transpose(-1, -2), batch)
    batch = torch.where(flip_rows, batch.flip(-2), batch)
    return torch.where(flip_columns, batch.flip(-1), batch)


def augment(images: Tensor, masks: Tensor, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """Return images and masks, each (N, C, H, H), moved by the same random symmetry slice by slice."""
    coins = draw_symmetries(seed, epoch, step, len(images))
    return apply_symmetries(images, coins), apply_symmetries(masks, coins)
