"""A synthetic patient with one of the many appearances that MRI has in hospitals, to pre-train on for real MRI.

What differs between scanners is drawn at random, from wider ranges than the real ones. The anatomy, the growth of the
tumour and the grids are those of `anatomy` and `tumours`; the scan is in thick slices and, most often, shows the head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.special import expit

from unetlib.phantom.anatomy import BOX, COARSE, GRID, STEP, THICK, Phantom, Rng, column, field, fine, tissues_at
from unetlib.phantom.head import Head, draw_head
from unetlib.phantom.sequences import Core, draw_looks, draw_parts, draw_signal, draw_vessels
from unetlib.phantom.tumours import EDGE, ENHANCING, NECROSIS, OEDEMA, distractors, grow, make_room, patchy_age

MIDDLE = (np.array(BOX) - 1) / 2


def varied_patient(rng: Rng, bright: tuple[float, float] = (1.2, 2.4), parts: bool = False) -> Phantom:
    """Return a patient of the varied cohort, as varied as scans of glioma are: FLAIR, and 2 for its whole tumour.

    `bright`: the least and the largest signal of a tumour on FLAIR, relative to grey matter. `parts`: also T1,
    contrast-enhanced T1 and T2, and the three labels; FLAIR and the outline of the tumour stay the same.
    """
    more = rng.spawn(1)[0]  # of the same seed, and draws nothing from `rng`
    atrophy, volume = rng.uniform(1.0, 2.2), float(np.clip(rng.lognormal(np.log(65e3), 0.9), 2e3, 150e3))
    coords, coarse, outline, depth, start = make_room(rng, atrophy, volume, least=0)
    tissue, brain = tissues_at(fine(coords, THICK), atrophy, rng.uniform(2, 4))
    tissue = _furrowed(rng, tissue, outline)
    wander = rng.uniform(0, 1) * coarse[1]  # a tumour that grey matter stops less is rounder
    density, age = grow(rng, coarse + np.stack([0 * wander, -wander, wander]), start, volume)
    lesion, artefact = distractors(rng, tissue[0], coarse[0], depth)

    fluid, white = rng.uniform(0.05, 0.45), rng.uniform(0.72, 1.06)  # relative to grey matter
    signal = fluid * tissue[0] + tissue[1] + white * tissue[2]
    signal += rng.uniform(0, 0.7) * lesion * (rng.uniform(1.1, 1.7) - signal)
    signal, tumour, core = _glioma(rng, signal, tissue[0], density, age, fluid, bright)
    signal *= artefact * (1 + fine(0.03 * field(rng, 3) + 0.03 * field(rng, 12), THICK))
    view = _draw_view(rng)
    inside = view.slices(brain.astype(np.float32))
    head = None if rng.random() < 0.3 else _draw_head(rng, view, outline, fluid)
    images = {"flair": _scan(rng, view, signal * brain, inside, head, {})}
    whole = _outline(view.slices(tumour * brain), inside > 0.5)
    if not parts:
        return Phantom(images, np.where(whole, OEDEMA, 0).astype(np.uint8), view.affine)

    drawn, vessels = draw_parts(more, tumour, density, age, core), draw_vessels(more, tissue[0], depth)
    for name, look in draw_looks(more, fluid).items():
        signal = draw_signal(more, look, tissue, lesion, drawn, vessels)
        images[name] = _scan(more, view, signal * brain, inside, head, look)
    enhancing, necrosis = (_majority(view.slices(part * brain)) for part in (drawn.enhancing, drawn.necrosis))
    seg = np.select([~whole, necrosis, enhancing], [0, NECROSIS, ENHANCING], OEDEMA).astype(np.uint8)
    return Phantom(images, seg, view.affine)


def _furrowed(rng: Rng, tissue: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return `tissue` with furrows, which an average of many heads lacks; `brain` is the mask on the coarse grid."""
    depth, nearest = ndimage.distance_transform_edt(brain, return_indices=True)
    lines = field(rng, rng.uniform(6, 10))[tuple(nearest)]  # the same from the surface inwards
    lines = fine(ndimage.gaussian_filter(lines, 0.7), THICK)
    near = np.clip(rng.uniform(1, 1.6) - fine((depth * STEP).astype(np.float32), THICK) / rng.uniform(12, 22), 0, 1)
    furrow = near * np.exp(-((lines / rng.uniform(0.08, 0.25)) ** 2))
    ribbon = near * np.exp(-((lines / 0.5) ** 2))
    tissue = tissue + np.stack([2 * furrow, ribbon, 0 * ribbon])
    return tissue / tissue.sum(axis=0)


def _glioma(
    rng: Rng,
    signal: np.ndarray,
    csf: np.ndarray,
    density: np.ndarray,
    age: np.ndarray,
    fluid: float,
    bright: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, Core | None]:
    """Return `signal` with a tumour painted over it, how much (0..1, soft) of each voxel is tumour, and its core.

    It is homogeneous or patchy; one in three has a core that is darker, down to a cyst.
    """
    tumour = expit((fine(density + 0.06 * field(rng, 4), THICK) - EDGE) / rng.uniform(0.03, 0.12))
    level = float(np.exp(rng.uniform(*np.log(bright))))
    patchy = rng.uniform(0.02, 0.15) * field(rng, 5) + rng.uniform(0.02, 0.15) * field(rng, 14)
    paint, shown = level * (1 + fine(patchy, THICK)), None
    if rng.random() < 0.35:
        age = patchy_age(rng, age)
        limit = float(np.quantile(age[density > EDGE], rng.uniform(0.5, 0.9)))
        core = expit((fine(age, THICK) - limit) / rng.uniform(0.01, 0.05))
        inner = rng.uniform(fluid, level)
        paint += core * (inner - paint)
        shown = Core(age, limit, (level - inner) / (level - fluid))
    return signal + tumour * (1 - rng.uniform(0.5, 1) * csf) * (paint - signal), tumour, shown


@dataclass(frozen=True)
class _View:
    """The grid of a scan in thick slices, in a head: voxels of `spacing` mm, turned, from `corner` mm on."""

    shape: tuple[int, int, int]
    spacing: np.ndarray
    turn: np.ndarray
    corner: np.ndarray
    averaged: int  # points of the box in a slice

    @property
    def affine(self) -> np.ndarray:
        """The affine (4, 4) of the scan's file."""
        return np.diag([-1, -1, 1, 1] * np.append(self.spacing, 1))

    def sample(self, volume: np.ndarray, step: np.ndarray, margin: float = 0, mode: str = "constant") -> np.ndarray:
        """Return a volume with voxels of `step` mm that starts `margin` mm outside the box, on the scan's grid."""
        matrix, offset = self.turn * self.spacing / step[:, None], (self.corner + MIDDLE + margin) / step
        return ndimage.affine_transform(volume, matrix, offset, self.shape, order=1, mode=mode)

    def slices(self, volume: np.ndarray) -> np.ndarray:
        """Return a map of the grid `THICK` as the scan's slices average it."""
        averaged = ndimage.uniform_filter1d(volume, self.averaged, axis=2)
        return self.sample(averaged, MIDDLE * 2 / (np.array(THICK) - 1))

    def points(self) -> np.ndarray:
        """Return the positions (3, X, Y, Z) of the voxels, in mm from the middle of the box."""
        matrix, voxels = (self.turn * self.spacing).astype(np.float32), np.indices(self.shape, np.float32)
        return np.einsum("ij,jxyz->ixyz", matrix, voxels) + column(self.corner).astype(np.float32)


def _draw_view(rng: Rng) -> _View:
    """Return a grid of thick slices, somewhere in a square field of view."""
    pixel, thick = rng.uniform(0.85, 1.1), rng.uniform(3, 7)
    low, high = rng.uniform(-80, -55), rng.uniform(76, 96)
    shape = (*GRID[:2], int(np.clip((high - low) / thick, 20, 60)))
    turn = Rotation.from_euler("xyz", rng.uniform([-10, -4, -8], [10, 4, 8]), degrees=True).as_matrix()
    corner = turn @ np.array([*rng.uniform(-8, 8, 2) - pixel * (GRID[0] - 1) / 2, low])
    averaged = max(1, round(rng.uniform(0.7, 1) * thick / (MIDDLE[2] * 2 / (THICK[2] - 1))))
    return _View(shape, np.array([pixel, pixel, thick]), turn, corner, averaged)


def _draw_head(rng: Rng, view: _View, brain: np.ndarray, fluid: float) -> Head:
    """Return what the scan shows around the brain, whose mask on the coarse grid is `brain`."""
    pad = 12
    distance = view.sample(
        _distance(np.pad(brain, pad)), 2 * MIDDLE / (np.array(COARSE) - 1), pad * STEP, mode="nearest"
    )
    return draw_head(rng, view.points(), distance, fluid)


def _scan(
    rng: Rng, view: _View, signal: np.ndarray, inside: np.ndarray, head: Head | None, gain: Mapping[str, float]
) -> np.ndarray:
    """Return the scan of a brain's signal in scanner units; `inside` is the brain on the grid of the scan."""
    scan = view.slices(signal)
    if head is not None:
        scan += (1 - inside) * head.paint(gain)
    scan = _acquire(rng, scan, inside > 0.5, head is None)
    scale = float(np.exp(rng.uniform(np.log(100), np.log(1500))))
    units = scale * np.clip(scan / float(np.quantile(scan[inside > 0.5], 0.99)), 0, 4)
    return np.rint(units).astype(np.int16)


def _majority(part: np.ndarray) -> np.ndarray:
    """Return where most of a voxel is a part of the tumour, smoothed in plane as an expert draws."""
    return ndimage.gaussian_filter(part, 0.7, axes=(0, 1)) > 0.5


def _outline(tumour: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the mask of the whole tumour, without the specks that no expert would draw."""
    components, _ = ndimage.label(_majority(tumour) & brain)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return (sizes > sizes.max() / 10)[components]


def _acquire(rng: Rng, scan: np.ndarray, brain: np.ndarray, stripped: bool) -> np.ndarray:
    """Return a scan with coil profile, blur, a motion ghost and noise, 0 outside the brain or the field of view."""
    scan *= np.exp(rng.uniform(0.03, 0.2) * fine(field(rng, 50), scan.shape))
    scan = ndimage.gaussian_filter(scan, rng.uniform(0, 0.6), axes=(0, 1))
    axis = rng.integers(0, 2)
    scan += rng.uniform(0, 0.04) * np.roll(scan, rng.integers(60, 180), axis)  # the patient moved
    noise = rng.uniform(0.005, 0.06)
    real, imaginary = (noise * rng.standard_normal(scan.shape, dtype=np.float32) for _ in range(2))
    scan = ndimage.gaussian_filter(np.hypot(scan + real, imaginary), 0.4, axes=(0, 1))
    if stripped:
        scan *= brain
    elif rng.random() < 0.4:  # what lay outside the field of view is filled with 0
        edge = rng.integers(4, 24)
        scan[:edge] = scan[-edge:] = 0
    return scan


def _distance(brain: np.ndarray) -> np.ndarray:
    """Return the mm to the brain, negative inside; folds narrower than 3 cm count as inside."""
    edt = ndimage.distance_transform_edt
    closed = edt(edt(~brain) < 5) > 5
    return ndimage.gaussian_filter((edt(~closed) - edt(closed)).astype(np.float32), 1.2) * STEP
