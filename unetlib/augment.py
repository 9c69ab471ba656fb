"""Augmentation: random changes of geometry (the same on image and mask) and of intensity, drawn for each slice.

The flips and rotations of a square are its eight symmetries. Each is a combination of a transposition, a flip up-down
and a flip left-right. Three coin tosses for each slice therefore draw all eight with equal probability, and three
`torch.where` apply them to a whole batch.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unetlib.recipe import Recipe
from unetlib.support.chance import AUGMENTATION, DROP, INTENSITY, WARP, generator
from unetlib.support.errors import UnetlibError


def change(images: Tensor, masks: Tensor, recipe: Recipe, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """Return images and masks, each (N, C, H, H), with the random changes that the recipe makes in this step.

    The planes of a volume (N, C, D, H, H) change alike, as the channels of a slice do.
    """
    seed, shapes = (recipe.seed, epoch, step), (images.shape, masks.shape)
    there = images.flatten(2).any(2) if recipe.missing == "zero" else None
    images, masks = images.flatten(1, -3), masks.flatten(1, -3)
    if recipe.augment:
        images, masks = augment(images, masks, *seed, recipe.upright)
    if recipe.warp:
        images, masks = warp(images, masks, *seed)
    images = change_intensity(images, *seed) if recipe.intensity else images
    images, masks = images.reshape(shapes[0]), masks.reshape(shapes[1])
    if there is not None:  # noise would make a sequence of one that is missing
        images = _only(images, there)
    if recipe.drop_modalities:
        images = drop_sequences(images, *seed, len(recipe.modalities.split()), recipe.drop_modalities)
    return images, masks


def drop_sequences(images: Tensor, seed: int, epoch: int, step: int, sequences: int, probability: float) -> Tensor:
    """Return images (N, C, H, W), or volumes, with sequences set to 0, each with this probability, but never all.

    The channels of a slice and its neighbours repeat the `sequences` in order. One that is 0 everywhere counts as
    missing: another one is kept. A pure function of its arguments.
    """
    rng, every = generator(DROP, seed, epoch, step), np.arange(len(images))
    there = images.flatten(2).any(2).reshape(len(images), -1, sequences).any(1).cpu().numpy()
    kept, drawn = rng.random((len(images), sequences)) >= probability, rng.integers(0, sequences, len(images))
    which = np.argsort(~there, axis=1, kind="stable")[every, drawn % np.maximum(there.sum(1), 1)]
    kept[every, which] |= ~(kept & there).any(1)
    return _only(images, _tensor(kept).tile(images.shape[1] // sequences).to(images.device))


def _only(images: Tensor, channels: Tensor) -> Tensor:
    """Return images (N, C, ...) with 0 in all channels but these, (N, C)."""
    return images * channels.reshape(*channels.shape, *(images.dim() - 2) * [1])


def draw_symmetries(seed: int, epoch: int, step: int, slices: int) -> Tensor:
    """Return three coin tosses for each slice of a batch, (3, `slices`) booleans; a pure function of its arguments."""
    coins = generator(AUGMENTATION, seed, epoch, step).integers(0, 2, size=(3, slices))
    return torch.from_numpy(coins.astype(bool))


def apply_symmetries(batch: Tensor, coins: Tensor) -> Tensor:
    """Return images (N, C, H, H) transposed and flipped as the (3, N) `coins` say; `UnetlibError` unless square."""
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

    `upright`: only mirror left and right, so that the nose stays up.
    """
    coins = draw_symmetries(seed, epoch, step, len(images))
    if upright:
        coins[:2] = False
    return apply_symmetries(images, coins), apply_symmetries(masks, coins)


def warp(images: Tensor, masks: Tensor, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) and masks (N, K, H, W) rotated, scaled, shifted and bent in the same way.

    Standard deviations: 10 degrees, scale 12 % along each axis, shift 4 % of the side; a smooth field bends by about
    2 %. Drawn for each slice. Pixels from outside the image are 0; masks stay 0 and 1. A pure function.
    """
    grid = draw_warp(seed, epoch, step, len(images), images.shape[-2:]).to(images.device)
    moved = F.grid_sample(torch.cat([images, masks], dim=1), grid, mode="bilinear", align_corners=False)
    images, seen = moved.split([images.shape[1], masks.shape[1]], dim=1)
    return images, (seen >= 0.5).to(masks.dtype)


def draw_warp(seed: int, epoch: int, step: int, slices: int, size: tuple[int, ...]) -> Tensor:
    """Return where each pixel of a warped batch comes from, (slices, H, W, 2): x and y, -1 to 1 across a slice."""
    rng = generator(WARP, seed, epoch, step)
    angle, (sx, sy), shift = (
        rng.normal(0, math.radians(10), slices),
        np.exp(rng.normal(0, 0.12, (2, slices))),
        rng.normal(0, 0.08, (2, slices)),
    )
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.stack([[sx * cos, -sy * sin, shift[0]], [sx * sin, sy * cos, shift[1]]]).transpose(2, 0, 1)
    grid = F.affine_grid(_tensor(matrix), [slices, 1, *size], align_corners=False)
    return grid + _smooth(rng.normal(0, 0.05, (slices, 2, 5, 5)), size).permute(0, 2, 3, 1)


def change_intensity(images: Tensor, seed: int, epoch: int, step: int) -> Tensor:
    """Return images (N, C, H, W), 0..1, as another scanner might show them; air stays 0 except for noise.

    Changes gamma (standard deviation 25 %), brightness (15 %) and a smooth bias field (10 %), and adds noise of up to
    4 % of the range. Apart from noise, all channels of a slice change alike. A pure function of its arguments.
    """
    rng = generator(INTENSITY, seed, epoch, step)
    each = (len(images), 1, 1, 1)
    gamma, gain = (np.exp(rng.normal(0, deviation, each)) for deviation in (0.25, 0.15))
    bias = _smooth(rng.normal(0, 0.1, (len(images), 1, 4, 4)), tuple(images.shape[-2:])).exp()
    noise = rng.uniform(0, 0.04, each) * rng.standard_normal(images.shape, dtype=np.float32)
    to = images.device
    images = images ** _tensor(gamma).to(to) * _tensor(gain).to(to) * bias.to(to)
    return (images + _tensor(noise).to(to)).clamp_(0, 1)


def _tensor(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers.astype(np.float32))


def _smooth(coarse: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """Return random fields (N, C, h, w), interpolated to `size`."""
    return F.interpolate(_tensor(coarse), size=size, mode="bicubic", align_corners=True)
