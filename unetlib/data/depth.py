"""Whole volumes for 3-D networks: slices on the model's grid become a cube of isotropic voxels, and the way back.

In the plane, nothing differs from slices (see `slices`). Along z, the cube sees as many millimetres as along x; these
slices are resampled to as many planes by linear interpolation with a low-pass filter. Beyond the volume, it is 0.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from unetlib.data.slices import Window, foreground, resize
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError, brief

MOST = 32  # times as long as wide: a voxel of thick slices; more is a damaged header


@dataclass(frozen=True)
class Cube:
    """The cube around a head: its window in each slice, its lowest slice, and how many slices it sees of all `slices`.

    It may extend beyond the volume, as the window does. Its height is a whole number of slices, so that its voxels are
    isotropic to within half a slice in the height of a head.
    """

    window: Window
    bottom: int
    height: int
    slices: int

    @classmethod
    def of(cls, voxels: np.ndarray, recipe: Recipe, spacing: tuple[float, float, float] | None) -> "Cube":
        """Return the cube of a volume (X, Y, Z) or (C, X, Y, Z); `spacing`: mm per voxel along x, y and z.

        It is centred on the planes with at least 1 % foreground (see `foreground`); if it sees fewer, as where
        the neck is among them, it ends with the top of the head. Raises `UnetlibError` without a usable spacing.
        """
        x, _, z = _require_spacing(spacing)
        window, slices = Window.of(voxels, recipe, spacing), voxels.shape[-1]
        inside = np.flatnonzero(foreground(voxels).mean((0, 1)) >= 0.01)
        low, high = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, slices)
        height = max(round(window.side * x / z), 1)
        bottom = max(low - (height - (high - low)) // 2, high - height)
        return cls(window, bottom, height, slices)

    def planes(self, slices: Tensor) -> Tensor:
        """Return slices (Z, C, S, S) in 0..1 as a cube (C, S, S, S); its axes are z from the feet up, y, x."""
        side = slices.shape[-1]
        columns = F.pad(slices.flatten(1).T, self._margins)
        return _resize(columns, side).T.reshape(side, *slices.shape[1:]).transpose(0, 1)

    def back(self, cube: Tensor) -> Tensor:
        """Return a cube (K, S, S, S) in 0..1 as slices (Z, K, S, S), 0 outside the cube."""
        planes = cube.transpose(0, 1)
        columns = F.pad(_resize(planes.flatten(1).T, self.height), [-margin for margin in self._margins])
        return columns.T.reshape(self.slices, *planes.shape[1:])

    def inside(self, mask: np.ndarray) -> np.ndarray:
        """Return the part of a mask (X, Y, Z), or of another array, that lies in the cube."""
        starts = (self.window.left, self.window.top, self.bottom)
        sides = (self.window.side, self.window.height, self.height)
        ends = (start + side for start, side in zip(starts, sides, strict=True))
        return mask[tuple(slice(max(start, 0), max(end, 0)) for start, end in zip(starts, ends, strict=True))]

    @property
    def _margins(self) -> tuple[int, int]:
        """What to add (negative: to cut off) below and above the slices of a volume to see the cube."""
        return -self.bottom, self.bottom + self.height - self.slices


def _resize(columns: Tensor, number: int) -> Tensor:
    """(N, n) to (N, number)."""
    return resize(columns[None, None], (len(columns), number))[0, 0]


def _require_spacing(spacing: tuple[float, float, float] | None) -> tuple[float, ...]:
    if spacing is None:
        raise UnetlibError(
            "a 3-D network needs the size of the voxels in millimetres: give the spacing of the volume, as in "
            "predictor.volume(volume.voxels, volume.spacing)."
        )
    try:
        sizes = tuple(map(float, spacing))
    except (TypeError, ValueError):  # these are no numbers
        sizes = ()
    if len(sizes) != 3 or not np.isfinite(sizes).all() or min(sizes) <= 0 or max(sizes) > MOST * min(sizes):
        raise UnetlibError(
            f"its voxels are {brief(sizes or spacing)} mm wide; three sizes, the longest at most {MOST} times the "
            "shortest, were expected for a 3-D network. Export the image again, or use a network for slices (dims 2)."
        )
    return sizes
