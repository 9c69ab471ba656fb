"""The brain of a phantom: the atlas, deformed into another person's brain, and smooth random fields.

Arrays of this package are float32 in LPS order, on one of these grids: the box (1 mm) that holds the head; `THICK`, the
same box in slices of 2 mm; the coarse grid (3 mm) of what is smooth; that of the scan. Several maps lie along axis 0.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

Rng = np.random.Generator

GRID = (240, 240, 155)  # the grid of BraTS, 1 mm
BOX = (169, 205, 155)  # the part of it that a head fills
THICK = (169, 205, 78)  # points in the same box, 2 mm from slice to slice, for what becomes a thick slice
COARSE = (57, 69, 52)
STEP = 3.0  # mm between two coarse points
ATLAS_CENTRE = (98.0, 115.0, 77.0)  # middle of the brain, in voxels of the atlas


@dataclass(frozen=True)
class Phantom:
    """One synthetic patient.

    `images`: flair, t1, t1ce and t2, each (240, 240, 155) int16 in LPS order, skull-stripped, 0 outside the brain and
    at least 1 inside, in arbitrary scanner units. `seg`: the same shape, uint8: 1 necrotic core, 2 oedema, 4 enhancing
    rim, 0 else. `affine`: (4, 4), voxel to mm. A varied patient is (240, 240, 20 to 60), most often with its head. With
    flair alone, its whole tumour is 2.
    """

    images: dict[str, np.ndarray]
    seg: np.ndarray
    affine: np.ndarray


def field(rng: Rng, width: float) -> np.ndarray:
    """Return a smooth random field on the coarse grid, of `width` mm, mean about 0 and deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(COARSE, dtype=np.float32), width / STEP)
    return noise / noise.std()


def fine(coarse: np.ndarray, shape: tuple[int, ...] = BOX) -> np.ndarray:
    """Return one or several maps of the coarse grid, interpolated on the box, or stretched to another `shape`."""
    for axis, (many, few) in enumerate(zip(shape, COARSE, strict=True), start=coarse.ndim - 3):
        place = np.linspace(0, few - 1, many)
        below = np.minimum(place.astype(int), few - 2)
        weight = np.expand_dims(place - below, tuple(range(1, coarse.ndim - axis))).astype(np.float32)
        coarse = coarse.take(below, axis) * (1 - weight) + coarse.take(below + 1, axis) * weight
    return coarse


@lru_cache(maxsize=1)
def atlas() -> np.ndarray:
    """Return grey matter, white matter and brain mask of the MNI152 template, (3, 197, 233, 189)."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template  # 1 s

    loaders = (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    maps = [load(resolution=1).get_fdata(dtype=np.float32) for load in loaders]
    return np.ascontiguousarray(np.stack(maps)[:, ::-1, ::-1])  # the template is RAS


def column(point: Any) -> np.ndarray:
    """Return a point (3,) as (3, 1, 1, 1), so that it is added to every point of a grid."""
    return np.reshape(point, (3, 1, 1, 1))


def coarse_points() -> np.ndarray:
    """Return the positions of the coarse points in the box, in mm from its corner."""
    axes = [np.linspace(0, many - 1, few, dtype=np.float32) for many, few in zip(BOX, COARSE, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def deformation(rng: Rng) -> np.ndarray:
    """Return which voxel of the atlas is at each coarse point: an affine map, an elastic one, wider ventricles."""
    turn = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    matrix = (turn * rng.uniform([0.97, 0.97, 1.02], [1.1, 1.1, 1.12])).astype(np.float32)
    shift = rng.uniform([-3, -4, -3], [3, 4, 3])
    points = coarse_points() - column(BOX).astype(np.float32) / 2
    coords = np.einsum("ij,jxyz->ixyz", matrix, points) + column(ATLAS_CENTRE + shift)
    coords += np.stack([2.5 * field(rng, 16) + 0.9 * field(rng, 7) for _ in range(3)])
    ventricles = np.array([BOX[0] / 2, BOX[1] / 2 + 5, BOX[2] / 2 + 20])
    return push(coords.astype(np.float32), ventricles, rng.uniform(-0.05, 0.3), 20.0, 1.0)


def push(coords: np.ndarray, centre: np.ndarray, strength: float, reach: float, room: np.ndarray | float) -> np.ndarray:
    """Return `coords` with the tissue within about `reach` mm of `centre` pushed outwards.

    Tissue at the centre moves by `strength` times its distance; `room`, 0..1, is where it may move.
    """
    away = coarse_points() - column(centre).astype(np.float32)
    moved = strength * room * np.exp(-(away**2).sum(axis=0) / (2 * reach**2))
    return (coords - moved * away).astype(np.float32)


def tissues_at(coords: np.ndarray, atrophy: float, crisp: float = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return the fractions of CSF, grey and white matter at atlas voxels `coords`, and the brain mask.

    The template averages many heads; the power `crisp` sharpens it, `atrophy` > 1 widens furrows and ventricles.
    """
    grey, white, brain = (ndimage.map_coordinates(one, coords, order=1) for one in atlas())
    tissue = np.stack([atrophy * np.clip(1 - grey - white, 0, 1), grey, white]) ** crisp
    return tissue / tissue.sum(axis=0), brain > 0.5
