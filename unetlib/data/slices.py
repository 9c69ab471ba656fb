"""Turn one volume into slices on the model's grid, and slices back into a volume.

A volume (X, Y, Z) in LPS order becomes Z axial slices, rows from front to back and columns from
the patient's right to left. On the way to the model's grid each slice is

1. normalised to 0..1 on its own grid (a constant slice becomes 0);
2. cut or padded with 0 to a square window, so that nothing is distorted;
3. resampled by bilinear interpolation with a low-pass filter (antialiasing).

The mask goes through steps 2 and 3 as numbers 0 and 1, then counts as tumour from 0.5 on. This
neither grows nor shrinks large tumours, but tumours narrower than a pixel of the model's grid vanish.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError

ALL = slice(None)
MEDIANS = 3  # on FLAIR, a tumour is about 1 to 2 medians of the head bright; 3 medians become 1, and more is clipped


@dataclass(frozen=True)
class Window:
    """The square of every slice that the network sees: its side and the position of its corner, in pixels.

    It may extend beyond the slice; the values there are 0. `rows`: its height, if pixels are not as high as wide.
    """

    left: int
    top: int
    side: int
    rows: int | None = None

    @classmethod
    def of(cls, voxels: np.ndarray, recipe: Recipe, spacing: tuple[float, ...] | None = None) -> "Window":
        """Return the window of a volume (X, Y, Z), or of the first sequence of (C, X, Y, Z) that is not empty.

        It is the smallest centred square that contains the slices. With `recipe.crop` it contains the head instead:
        the columns and rows with at least 1 % foreground (see `foreground`), and a margin of 4 % on every side.
        It is a square in pixels, but for 3-D networks in the millimetres of `spacing`.
        """
        if not recipe.crop:
            return cls.whole(voxels.shape[-3:])
        bright = foreground(voxels)
        inside = [np.flatnonzero(bright.mean(axes) >= 0.01) for axes in ((1, 2), (0, 2))]
        if not all(map(len, inside)):
            return cls.whole(bright.shape)
        spans = [(int(found[0]), int(found[-1]) + 1) for found in inside]
        ratio = spacing[1] / spacing[0] if spacing is not None and recipe.dims == 3 else 1.0
        longest = max(round((end - begin) * scale) for (begin, end), scale in zip(spans, (1.0, ratio), strict=True))
        return cls._around(spans, longest + 2 * round(0.04 * longest), ratio)

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Window":
        """Return the smallest centred square that holds the slices of a volume of that shape (X, Y, Z)."""
        return cls._around([(0, shape[0]), (0, shape[1])], max(shape[:2]))

    @classmethod
    def _around(cls, spans: list[tuple[int, int]], side: int, ratio: float = 1.0) -> "Window":
        sides = side, max(round(side / ratio), 1)
        left, top = (begin - (one - (end - begin)) // 2 for (begin, end), one in zip(spans, sides, strict=True))
        return cls(left, top, side, None if ratio == 1 else sides[1])

    @property
    def height(self) -> int:
        """Its number of rows."""
        return self.side if self.rows is None else self.rows

    def margins(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return what to add to a slice (negative: to cut off) on the left, right, top and bottom to see the window."""
        return -self.left, self.left + self.side - width, -self.top, self.top + self.height - height


def first_of_sequences(voxels: np.ndarray) -> np.ndarray:
    """Return the first sequence of a volume (C, X, Y, Z) that is not empty, or a volume (X, Y, Z) itself."""
    return voxels[first_seen(voxels)] if voxels.ndim == 4 else voxels


def first_seen(voxels: np.ndarray) -> int:
    """Return the place of the first sequence of a volume (C, X, Y, Z) that is not empty, else 0; 0 for (X, Y, Z)."""
    return 0 if voxels.ndim == 3 else next((place for place, one in enumerate(voxels) if one.any()), 0)


def foreground(voxels: np.ndarray) -> np.ndarray:
    """Return whether each voxel is brighter than the mean of its volume: head, not air.

    Of several sequences (C, X, Y, Z), the first that is not empty shows it. In an image whose head was scaled to the
    mean 0, which is also the value of its air, the head is all but this value.
    """
    voxels = first_of_sequences(voxels)
    air = _air_at_mean(voxels)
    return voxels > voxels.mean() if air is None else voxels != air


def outermost(voxels: np.ndarray) -> float:
    """Return the median of the outermost voxels of an image of any dimensions: its air, where there is any."""
    faces = [np.moveaxis(voxels, axis, 0)[side].ravel() for axis in range(voxels.ndim) for side in (0, -1)]
    return float(np.median(np.concatenate(faces)))


def _air_at_mean(voxels: np.ndarray) -> float | None:
    """Return the value of the air, by the outermost voxels, if it is the mean of an image; else `None`."""
    air = outermost(voxels)
    if not voxels.min() < air:  # as usual, air is darkest
        return None
    wide = np.float64 if voxels.dtype == np.float16 else None  # in half precision, the squares would overflow
    mean, spread = float(voxels.mean(dtype=wide)), float(voxels.std(dtype=wide))
    return air if abs(mean - air) <= 1e-3 * spread else None


def image_to_slices(
    voxels: np.ndarray, recipe: Recipe, z: np.ndarray | slice = ALL, window: Window | None = None
) -> Tensor:
    """Return slices of a volume as float32 (N, C, S, S) in 0..1, S = `recipe.image_size`.

    `voxels`: (X, Y, Z), or (C, X, Y, Z) of C sequences, each normalised by itself, of any real dtype. `z`: the
    positions of the N slices wanted; by default all Z. `window`: by default that of the recipe.
    """
    window = window or Window.of(voxels, recipe)
    sequences = voxels if voxels.ndim == 4 else voxels[None]
    seen = torch.stack([_see(_normalised(one, recipe, z), window) for one in sequences], dim=1)
    return resize(seen, recipe.image_size)


def _normalised(voxels: np.ndarray, recipe: Recipe, z: np.ndarray | slice) -> Tensor:
    """(X, Y, Z) to (N, Y, X) in 0..1."""
    if recipe.normalise == "minmax-slice":
        slices, over = _planes(voxels, z), (1, 2)
        low, high = slices.amin(over, keepdim=True), slices.amax(over, keepdim=True)
    else:
        slices = _planes(voxels)
        low, high = slices.min(), slices.max()
        if recipe.normalise == "median-volume":
            # Fat, vessels and spikes determine the maximum of a volume, but hardly change the median of the head.
            air = _air_at_mean(voxels)
            head = None if air is None else torch.from_numpy((voxels != air).transpose(2, 1, 0))
            bright = slices[slices > slices.mean() if head is None else head]
            high = low + MEDIANS * (bright.median() - low) if len(bright) else high
        slices = slices[z]
    return slices.sub_(low).div_(torch.where(high > low, high - low, 1.0))


def mask_to_slices(
    mask: np.ndarray, recipe: Recipe, z: np.ndarray | slice = ALL, window: Window | None = None
) -> Tensor:
    """Return slices `z` of a boolean mask as uint8 (N, K, S, S) of 0 and 1, S = `recipe.image_size`.

    `mask`: (X, Y, Z), or (K, X, Y, Z) of K regions. `window`: that of the mask's image, which a recipe with `crop`
    needs; raises `UnetlibError` without it.
    """
    return (mask_shares(mask, recipe, z, window) >= 0.5).to(torch.uint8)


def mask_shares(mask: np.ndarray, recipe: Recipe, z: np.ndarray | slice = ALL, window: Window | None = None) -> Tensor:
    """Return the share of each pixel that a mask covers, float32 (N, K, S, S) in 0..1; see `mask_to_slices`."""
    if window is None and recipe.crop:
        raise UnetlibError(
            "a recipe with crop needs the window of the image: mask_to_slices(..., window=Window.of(...))."
        )
    regions = mask if mask.ndim == 4 else mask[None]
    seen = [_see(_planes(one, z), window or Window.whole(one.shape)) for one in regions]
    return resize(torch.stack(seen, dim=1), recipe.image_size)


def packed(masks: np.ndarray) -> np.ndarray:
    """Return masks (N, K, ...) of 0 and 1, of up to 8 regions, as (N, 1, ...) uint8: bit k is region k."""
    bits = np.arange(masks.shape[1], dtype=np.uint8).reshape(-1, *(1,) * (masks.ndim - 2))
    return (masks << bits).sum(1, dtype=np.uint8, keepdims=True)


def slices_to_volume(slices: Tensor, shape: tuple[int, ...], window: Window | None = None) -> np.ndarray:
    """Return slices (Z, K, S, S) as a float32 volume (K, X, Y, Z), the inverse of `image_to_slices`.

    `shape`: (X, Y, Z). Slices are interpolated bilinearly to the window (by default that of a recipe without `crop`),
    then cut to the native slice, with 0 outside the window.
    """
    x, y, _ = shape
    window = window or Window.whole(shape)
    square = resize(slices.float(), (window.height, window.side))
    back = F.pad(square, [-margin for margin in window.margins(y, x)])
    return back.permute(1, 3, 2, 0).contiguous().numpy()


def _planes(voxels: np.ndarray, z: np.ndarray | slice = ALL) -> Tensor:
    """Slices `z` of (X, Y, Z) as float32 (N, Y, X), shifted to 0 if single precision could merge nearby values."""
    slices = voxels.transpose(2, 1, 0)[z]
    if slices.size and not np.can_cast(voxels.dtype, np.float32):
        slices = slices - np.float64(slices.min())
    # A copy: if an axis has one voxel, `ascontiguousarray` keeps a negative stride, which torch refuses.
    return torch.from_numpy(np.array(slices, dtype=np.float32, order="C"))


def _see(slices: Tensor, window: Window) -> Tensor:
    margins = window.margins(*slices.shape[-2:])
    return F.pad(slices, margins) if any(margins) else slices  # `F.pad` would copy them


def resize(slices: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Return images (N, C, H, W) in 0..1 as (N, C, *`size`), by bilinear interpolation with a low-pass filter."""
    resized = F.interpolate(slices, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def choose_slices(voxels: np.ndarray, mask: np.ndarray, policy: str) -> np.ndarray:
    """Return the z indices of the slices to keep, for a volume and its boolean mask (X, Y, Z) of any region.

    `tumour`: at least one voxel of the mask. `brain`: at least 2 % foreground (see `foreground`). `all`: every slice.
    """
    if policy == "tumour":
        keep = mask.any((0, 1))
    elif policy == "brain":
        keep = foreground(voxels).mean((0, 1)) >= 0.02
    else:
        keep = np.ones(voxels.shape[-1], dtype=bool)
    return np.flatnonzero(keep)
