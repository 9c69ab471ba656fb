"""A synthetic patient with one of the many appearances that FLAIR has in hospitals, to pre-train on for real MRI.

What differs between scanners is drawn at random, from wider ranges than the real ones. The anatomy, the growth of the
tumour and the grids are those of `anatomy` and `tumours`; the scan is in thick slices and, most often, shows the head.
"""

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.special import expit

from unetlib.phantom.anatomy import BOX, COARSE, GRID, STEP, Phantom, Rng, column, field, fine, tissues_at
from unetlib.phantom.head import draw_head
from unetlib.phantom.tumours import EDGE, OEDEMA, distractors, grow, make_room, patchy_age

THICK = (169, 205, 78)  # points in the same box, 2 mm from slice to slice, for what becomes a thick slice


def varied_patient(rng: Rng, bright: tuple[float, float] = (1.2, 2.4)) -> Phantom:
    """Return a patient of the varied cohort: FLAIR alone, as varied as scans of low-grade glioma are.

    `bright`: the least and the largest signal of a tumour, relative to grey matter.
    """
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
    signal, tumour = _glioma(rng, signal, tissue[0], density, age, fluid, bright)
    signal *= artefact * (1 + fine(0.03 * field(rng, 3) + 0.03 * field(rng, 12), THICK))
    return _scan(rng, signal, tumour, brain, outline, fluid)


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
) -> tuple[np.ndarray, np.ndarray]:
    """Return `signal` with a low-grade tumour painted over it, and how much (0..1, soft) of each voxel is tumour.

    It is homogeneous or patchy; one in three has a core that is darker, down to a cyst.
    """
    tumour = expit((fine(density + 0.06 * field(rng, 4), THICK) - EDGE) / rng.uniform(0.03, 0.12))
    level = float(np.exp(rng.uniform(*np.log(bright))))
    patchy = rng.uniform(0.02, 0.15) * field(rng, 5) + rng.uniform(0.02, 0.15) * field(rng, 14)
    paint = level * (1 + fine(patchy, THICK))
    if rng.random() < 0.35:
        age = patchy_age(rng, age)
        limit = float(np.quantile(age[density > EDGE], rng.uniform(0.5, 0.9)))
        core = expit((fine(age, THICK) - limit) / rng.uniform(0.01, 0.05))
        paint += core * (rng.uniform(fluid, level) - paint)
    return signal + tumour * (1 - rng.uniform(0.5, 1) * csf) * (paint - signal), tumour


def _scan(
    rng: Rng, signal: np.ndarray, tumour: np.ndarray, brain: np.ndarray, outline: np.ndarray, fluid: float
) -> Phantom:
    """Return the scan of a brain in thick slices, with or without its head, somewhere in a square field of view."""
    pixel, thick = rng.uniform(0.85, 1.1), rng.uniform(3, 7)
    low, high = rng.uniform(-80, -55), rng.uniform(76, 96)
    shape = (*GRID[:2], int(np.clip((high - low) / thick, 20, 60)))
    spacing = np.array([pixel, pixel, thick])
    turn = Rotation.from_euler("xyz", rng.uniform([-10, -4, -8], [10, 4, 8]), degrees=True).as_matrix()
    corner = turn @ np.array([*rng.uniform(-8, 8, 2) - pixel * (GRID[0] - 1) / 2, low])
    middle = (np.array(BOX) - 1) / 2

    def sample(volume: np.ndarray, step: np.ndarray, margin: float, mode: str) -> np.ndarray:
        """Return a volume with voxels of `step` mm that starts `margin` mm outside the box, on the scan's grid."""
        matrix, offset = turn * spacing / step[:, None], (corner + middle + margin) / step
        return ndimage.affine_transform(volume, matrix, offset, shape, order=1, mode=mode)

    box_step = middle * 2 / (np.array(THICK) - 1)
    averaged = max(1, round(rng.uniform(0.7, 1) * thick / box_step[2]))
    inside, scan, tumour = (
        sample(ndimage.uniform_filter1d(one, averaged, axis=2), box_step, 0, "constant")
        for one in (brain.astype(np.float32), signal * brain, tumour * brain)
    )

    def smooth(width: float) -> np.ndarray:
        return fine(field(rng, width), shape)

    stripped = rng.random() < 0.3
    if not stripped:
        pad, coarse_step = 12, 2 * middle / (np.array(COARSE) - 1)
        distance = sample(_distance(np.pad(outline, pad)), coarse_step, pad * STEP, "nearest")
        points = np.stack(np.meshgrid(*(np.arange(size, dtype=np.float32) for size in shape), indexing="ij"))
        points = np.einsum("ij,jxyz->ixyz", (turn * spacing).astype(np.float32), points)
        points += column(corner).astype(np.float32)
        scan += (1 - inside) * draw_head(rng, points, distance, fluid, smooth)
    scan = _acquire(rng, scan, inside > 0.5, stripped)
    scale = float(np.exp(rng.uniform(np.log(100), np.log(1500))))
    units = scale * np.clip(scan / float(np.quantile(scan[inside > 0.5], 0.99)), 0, 4)
    # Without the specks that no expert would draw: components below a tenth of the largest.
    components, _ = ndimage.label((ndimage.gaussian_filter(tumour, 0.7, axes=(0, 1)) > 0.5) & (inside > 0.5))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    seg = OEDEMA * (sizes > sizes.max() / 10)[components]
    affine = np.diag([-pixel, -pixel, thick, 1])
    return Phantom({"flair": np.rint(units).astype(np.int16)}, seg.astype(np.uint8), affine)


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
