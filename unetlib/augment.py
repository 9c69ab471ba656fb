"""Random changes of training slices, drawn per slice: of place, alike on image and mask, and of intensity.

The flips and rotations of a square are its eight symmetries. Each of them is one transposition,
one flip up-down and one flip left-right, each done or not: three coins a slice draw all eight
with equal chance, and three `torch.where` apply them to a whole batch.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unetlib.support.chance import AUGMENTATION, INTENSITY, WARP, generator
from unetlib.support.errors import UnetlibError


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


def augment(
    images: Tensor, masks: Tensor, seed: int, epoch: int, step: int, upright: bool = False
) -> tuple[Tensor, Tensor]:
    """Return images and masks, each (N, C, H, H), moved by the same random symmetry slice by slice.

    `upright` slices are only mirrored, left to right: no patient lies on the nose.
    """
    coins = draw_symmetries(seed, epoch, step, len(images))
    if upright:
        coins[:2] = False
    return apply_symmetries(images, coins), apply_symmetries(masks, coins)


def warp(images: Tensor, masks: Tensor, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) and masks (N, 1, H, W) turned, scaled, shifted and bent alike, slice by slice.

    Angles have a deviation of 10 degrees, scales of 12 % along each axis, shifts of 4 % of the side; a smooth
    field bends by some 2 %. Images are 0 where they were not seen; masks stay 0 and 1. A pure function of its
    arguments.
    """
    grid = draw_warp(seed, epoch, step, len(images), images.shape[-2:]).to(images.device)
    moved = F.grid_sample(torch.cat([images, masks], dim=1), grid, mode="bilinear", align_corners=False)
    return moved[:, :-1], (moved[:, -1:] >= 0.5).to(masks.dtype)


def draw_warp(seed: int, epoch: int, step: int, slices: int, size: tuple[int, ...]) -> Tensor:
    """Return where each pixel of a warped batch comes from, (slices, H, W, 2): x and y, -1 to 1 across a slice."""
    chance = generator(WARP, seed, epoch, step)
    angle, (sx, sy), shift = (
        chance.normal(0, math.radians(10), slices),
        np.exp(chance.normal(0, 0.12, (2, slices))),
        chance.normal(0, 0.08, (2, slices)),
    )
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.stack([[sx * cos, -sy * sin, shift[0]], [sx * sin, sy * cos, shift[1]]]).transpose(2, 0, 1)
    grid = F.affine_grid(_tensor(matrix), [slices, 1, *size], align_corners=False)
    return grid + _smooth(chance.normal(0, 0.05, (slices, 2, 5, 5)), size).permute(0, 2, 3, 1)


def change_intensity(images: Tensor, seed: int, epoch: int, step: int) -> Tensor:
    """Return images (N, C, H, W), 0..1, as another scanner might show them; air stays 0 but for noise.

    A gamma (deviation 25 %), a brightness (15 %), a smooth bias field (10 %), and noise of up to 4 % of the range.
    All channels of a slice are changed alike, but for the noise. A pure function of its arguments.
    """
    chance = generator(INTENSITY, seed, epoch, step)
    each = (len(images), 1, 1, 1)
    gamma, gain = (np.exp(chance.normal(0, deviation, each)) for deviation in (0.25, 0.15))
    bias = _smooth(chance.normal(0, 0.1, (len(images), 1, 4, 4)), tuple(images.shape[-2:])).exp()
    noise = chance.uniform(0, 0.04, each) * chance.standard_normal(images.shape, dtype=np.float32)
    to = images.device
    images = images ** _tensor(gamma).to(to) * _tensor(gain).to(to) * bias.to(to)
    return (images + _tensor(noise).to(to)).clamp_(0, 1)


def _tensor(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers.astype(np.float32))


def _smooth(coarse: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """Return random fields (N, C, h, w), interpolated to `size`."""
    return F.interpolate(_tensor(coarse), size=size, mode="bicubic", align_corners=True)
