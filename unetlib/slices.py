"""Turn one volume into slices on the model's grid, and slices back into a volume.

A volume (X, Y, Z) in LPS order becomes Z axial slices, rows from front to back and columns from
the patient's right to left. On the way to the model's grid each slice is

1. min-max normalised on its own grid (a constant slice becomes 0);
2. padded with 0 to a centred square, so that nothing is squeezed;
3. resampled by bilinear interpolation with a low-pass filter (antialiasing).

The mask goes through steps 2 and 3 as numbers 0 and 1, then counts as tumour from 0.5 on. This
neither grows nor shrinks large tumours, but tumours narrower than a pixel of the model's grid vanish.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unetlib.recipe import Recipe

ALL = slice(None)


def image_to_slices(voxels: np.ndarray, recipe: Recipe, z: np.ndarray | slice = ALL) -> Tensor:
    """Return slices of a volume (X, Y, Z) of any real dtype as float32 (N, 1, S, S) in 0..1, S = `recipe.image_size`.

    `z`: the positions of the N slices wanted; by default all Z.
    """
    if recipe.normalise == "minmax-slice":
        slices, over = _planes(voxels, z), (1, 2)
        low, high = slices.amin(over, keepdim=True), slices.amax(over, keepdim=True)
    else:
        slices = _planes(voxels)
        low, high, slices = slices.min(), slices.max(), slices[z]
    span = torch.where(high > low, high - low, 1.0)
    return _resize(_pad_to_square(slices.sub_(low).div_(span)), recipe.image_size)


def mask_to_slices(mask: np.ndarray, recipe: Recipe, z: np.ndarray | slice = ALL) -> Tensor:
    """Return slices `z` of a boolean mask (X, Y, Z) as uint8 (N, 1, S, S) of 0 and 1, S = `recipe.image_size`."""
    return (_resize(_pad_to_square(_planes(mask, z)), recipe.image_size) >= 0.5).to(torch.uint8)


def slices_to_volume(slices: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Return slices (Z, 1, S, S) as a float32 volume of `shape` (X, Y, Z): the way back of `image_to_slices`.

    Bilinear interpolation to the padded square, then the padding is cut off.
    """
    x, y, _ = shape
    side = max(x, y)
    left, top = (side - x) // 2, (side - y) // 2
    square = _resize(slices[:, 0].float(), side)[:, 0]
    return square[:, top : top + y, left : left + x].permute(2, 1, 0).contiguous().numpy()


def _planes(voxels: np.ndarray, z: np.ndarray | slice = ALL) -> Tensor:
    """Slices `z` of (X, Y, Z) as float32 (N, Y, X), from 0 where single precision could blur neighbouring values."""
    slices = voxels.transpose(2, 1, 0)[z]
    if slices.size and not np.can_cast(voxels.dtype, np.float32):
        slices = slices - np.float64(slices.min())
    # A copy: where an axis has one voxel, `ascontiguousarray` keeps a negative stride, which torch refuses.
    return torch.from_numpy(np.array(slices, dtype=np.float32, order="C"))


def _pad_to_square(slices: Tensor) -> Tensor:
    height, width = slices.shape[-2:]
    side = max(height, width)
    if height == width:
        return slices  # `F.pad` would copy them
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(slices, (left, side - width - left, top, side - height - top))


def _resize(slices: Tensor, side: int) -> Tensor:
    """(Z, H, H) to (Z, 1, side, side)."""
    resized = F.interpolate(slices[:, None], size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def choose_slices(voxels: np.ndarray, mask: np.ndarray, policy: str) -> np.ndarray:
    """Return the z of the slices to keep, for a volume and its boolean mask, both (X, Y, Z).

    `tumour`: at least one voxel of the mask. `brain`: at least 2 % of the voxels brighter than the
    mean of the volume. `all`: every slice.
    """
    if policy == "tumour":
        keep = mask.any((0, 1))
    elif policy == "brain":
        keep = (voxels > voxels.mean()).mean((0, 1)) >= 0.02
    else:
        keep = np.ones(voxels.shape[2], dtype=bool)
    return np.flatnonzero(keep)
