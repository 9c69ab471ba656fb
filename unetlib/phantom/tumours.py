"""The tumour of a phantom, and what a network could mistake for one."""

import numpy as np
from scipy import ndimage
from scipy.special import expit

from unetlib.phantom.anatomy import COARSE, STEP, Rng, coarse_points, column, deformation, field, fine, push, tissues_at

NECROSIS, OEDEMA, ENHANCING = 1, 2, 4  # the labels of BraTS
EDGE = 0.3  # cell density at the outline that an expert draws
DIFFUSION, PROLIFERATION, MAX_STEPS = 0.12, 0.06, 600  # per time step, on the coarse grid


def tumour_start(rng: Rng, coords: np.ndarray, tissue: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return where a tumour begins, mm in the box: in the cerebrum, more often in white matter."""
    x, y, z = coords[0] - 98, 98 - coords[1], coords[2] - 72  # mm of MNI space, but x to the left
    cerebrum = (z > 2) | ((y > -25) & (np.abs(x) > 18) & (z > -30))
    weight = np.where(cerebrum & (depth > 8), 0.3 * tissue[1] + tissue[2], 0).ravel().astype(np.float64)
    return coarse_points().reshape(3, -1)[:, rng.choice(weight.size, p=weight / weight.sum())]


def make_room(rng: Rng, atrophy: float, volume: float, least: float) -> tuple[np.ndarray, ...]:
    """Return a head in which a tumour of `volume` mm3 pushes the tissue aside, on the coarse grid.

    That is: voxels of the atlas, fractions of the tissues, brain mask, mm to the brain's surface before the push, and
    where the tumour begins. `least` is the weakest push.
    """
    coords = deformation(rng)
    tissue, brain = tissues_at(coords, atrophy)
    depth = ndimage.distance_transform_edt(brain).astype(np.float32) * STEP
    start = tumour_start(rng, coords, tissue, depth)
    coords = push(coords, start, rng.uniform(least, 0.5), 0.8 * volume ** (1 / 3), np.clip(depth / 20, 0, 1))
    return coords, *tissues_at(coords, atrophy), depth, start


def grow(rng: Rng, tissue: np.ndarray, start: np.ndarray, volume: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell density, and its mean over time, of a tumour of `volume` mm3, both 0..1, on the coarse grid.

    Solves du/dt = div(D grad u) + rho u (1 - u) by explicit steps; D is 10 times larger in white matter than in grey
    and 0 in CSF, and both D and rho vary smoothly so that the outline is ragged.
    """
    _, grey, white = tissue
    mobility = np.clip((white + grey / 10) * np.exp(0.7 * field(rng, 6)), 0, 1.3) * DIFFUSION
    rate = (white + 0.6 * grey) * np.exp(0.6 * field(rng, 9)) * PROLIFERATION
    faces = [np.minimum(mobility, np.roll(mobility, -1, axis)) for axis in range(3)]  # 0 where the grid wraps round
    density = np.exp(-((coarse_points() - column(start)) ** 2).sum(axis=0) / (2 * STEP**2))
    burden = np.zeros_like(density)
    for _ in range(MAX_STEPS):
        if (density > EDGE).sum() * STEP**3 >= volume:
            break
        change = rate * density * (1 - density)
        for axis, face in enumerate(faces):
            flow = face * (np.roll(density, -1, axis) - density)
            change += flow - np.roll(flow, 1, axis)
        density += change
        burden += density
    return density, burden / burden.max()


def patchy_age(rng: Rng, age: np.ndarray) -> np.ndarray:
    """Return how long cells have been at each point of the coarse grid, made irregular."""
    return age + 0.08 * field(rng, 5) + 0.1 * field(rng, 12)


def tumour(
    rng: Rng, density: np.ndarray, age: np.ndarray, csf: np.ndarray, brain: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the fractions (0..1, soft) of oedema, enhancing rim and necrosis on the box, and the labels.

    The inner parts are where the cells have been longest; one patient in four has no enhancing rim.
    """
    age = patchy_age(rng, age)
    inside, enhancing = age[density > EDGE], rng.uniform(0.12, 0.5)
    core, necrosis = (float(np.quantile(inside, 1 - x)) for x in (enhancing, enhancing * rng.uniform(0.2, 0.6)))
    if rng.random() < 0.25:
        core = np.inf  # a low grade: nothing enhances
    density, age = fine(density + 0.05 * field(rng, 4)), fine(age)
    healthy = (density <= EDGE) | ~brain | (csf > 0.6)
    seg = np.select([healthy, age > necrosis, age > core], [0, NECROSIS, ENHANCING], OEDEMA).astype(np.uint8)
    visible = expit((density - EDGE - rng.uniform(-0.1, 0.1)) / 0.08) * (1 - csf)
    return (visible, *(visible * expit((age - limit) / 0.015) for limit in (core, necrosis))), seg


def distractors(rng: Rng, csf: np.ndarray, fluid: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much (0..1) of healthy tissue is a bright lesion, and the gain of artefacts on FLAIR.

    `csf` is the fraction of CSF on the box, `fluid` the same on the coarse grid, `depth` the mm to the brain's surface.
    """
    ventricle = ndimage.distance_transform_edt((fluid < 0.5) | (depth < 30)).astype(np.float32) * STEP
    near = np.exp(-ventricle / 6)
    blobs = field(rng, 4) + field(rng, 9) + 2.2 * near - rng.uniform(1.6, 2.8)
    caps = np.clip(near * (1 + 0.6 * field(rng, 12)) * rng.uniform(0.3, 1.3), 0, 0.9)
    lesion = np.maximum(expit(5 * fine(blobs, csf.shape)) * rng.uniform(0.7, 1.0), fine(caps, csf.shape))
    low = np.linspace(1, 0.2, COARSE[2], dtype=np.float32)
    rim = np.exp(-depth / 7) * low * np.clip(field(rng, 14) + 0.3, 0, 2) * rng.uniform(0.15, 0.6)
    pulsation = fine(np.clip(field(rng, 9) - 0.5, 0, 2), csf.shape) * rng.uniform(0, 1.8) * csf
    return lesion * (1 - csf), 1 + fine(rim, csf.shape) + pulsation
