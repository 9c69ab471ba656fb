"""What is around the brain of a synthetic patient on FLAIR: fluid, skull, scalp, face and neck.

No template of it comes with the library, so it is drawn from the distance to the brain and from ellipsoids: enough to
teach a network that bright fat and grey muscle are no tumour. Lengths are in mm, positions relative to the middle of
the brain (x to the left, y to the back, z up), signals relative to grey matter. Arrays are float32 on the scan's grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from unetlib.phantom.anatomy import Rng, field, fine

Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]  # centre and radii
# Ellipsoids whose x is not 0 are on both sides: at x and at -x.
OUTLINE: tuple[Ellipsoid, ...] = (  # what the skin covers besides the skull
    ((0, -6, -58), (73, 84, 58)),  # base of the head
    ((0, -48, -72), (60, 52, 62)),  # face
    ((0, -97, -66), (13, 26, 22)),  # nose
    ((44, -42, -84), (34, 42, 44)),  # cheeks
    ((0, 30, -98), (60, 62, 52)),  # neck
    ((75, 8, -52), (7, 12, 20)),  # ears
)
FAT: tuple[Ellipsoid, ...] = (
    ((28, -62, -38), (17, 26, 15)),  # orbits
    ((50, -48, -62), (12, 20, 22)),  # in front of the temples
    ((0, -38, -60), (24, 12, 10)),  # clivus
)
BONES: tuple[Ellipsoid, ...] = (
    ((0, -38, -52), (40, 34, 12)),  # base of the skull
    ((48, 24, -58), (20, 20, 18)),  # mastoids
    ((40, -40, -84), (12, 22, 34)),  # jaw
)
AIR: tuple[Ellipsoid, ...] = (
    ((30, -64, -72), (15, 19, 18)),  # maxillary sinuses
    ((10, -66, -66), (5, 34, 24)),  # nose
    ((0, -28, -86), (12, 12, 26)),  # throat
    ((0, -88, -24), (14, 6, 9)),  # frontal sinus
)
EYES: tuple[Ellipsoid, ...] = (((31, -77, -38), (12.5, 12.5, 12.5)),)


@dataclass(frozen=True)
class Head:
    """What is around a brain: layers, each painted over those before it.

    `layers`: tissue, weight (0..1) and signal on FLAIR, (X, Y, Z) or a number. `outline`: (X, Y, Z), from 0 in air to 1
    inside the skin.
    """

    layers: list[tuple[str, np.ndarray | float, np.ndarray | float]]
    outline: np.ndarray

    def paint(self, gain: Mapping[str, float]) -> np.ndarray:
        """Return the signal (X, Y, Z) of all layers, 0 in air; `gain` multiplies that of some tissues on FLAIR."""
        head = np.zeros_like(self.outline)
        for tissue, weight, signal in self.layers:
            head += weight * (gain.get(tissue, 1) * signal - head)
        return head * self.outline


def draw_head(rng: Rng, points: np.ndarray, distance: np.ndarray, fluid: float) -> Head:
    """Return everything but the brain at `points` (3, X, Y, Z), `distance` from it; `fluid`: the signal of CSF."""

    def smooth(width: float) -> np.ndarray:
        return fine(field(rng, width), distance.shape)

    gap, skull, scalp = (rng.uniform(*limits) * np.exp(0.2 * smooth(40)) for limits in ((1, 4), (4, 8), (3, 9)))
    # A slice is thick: where a surface is oblique to it, several tissues share a voxel.
    blur = (0.5 + 0.2 * np.abs(np.gradient(distance, axis=2))).astype(np.float32)
    move, stretch = rng.normal(0, 2.5, 3), rng.uniform(0.92, 1.08)
    lower = int((points[2].min(axis=(0, 1)) < 10).sum())  # slices that can meet one of the ellipsoids

    def inside(bodies: tuple[Ellipsoid, ...]) -> np.ndarray:
        """Return roughly how deep each point is within one of the ellipsoids."""
        deep = np.full(distance.shape, -99, dtype=np.float32)
        for centre, radii in bodies:
            grown = (stretch * np.array(radii) * rng.uniform(0.88, 1.12, 3)).astype(np.float32)
            middle = (stretch * np.array(centre) + move + rng.normal(0, 1.5, 3)).astype(np.float32)
            for side in ((1, 1, 1), (-1, 1, 1)) if centre[0] else ((1, 1, 1),):
                x, y, z = ((points[axis, :, :, :lower] - side[axis] * middle[axis]) / grown[axis] for axis in range(3))
                here = grown.min() * (1 - np.sqrt(x * x + y * y + z * z))
                np.maximum(deep[:, :, :lower], here, out=deep[:, :, :lower])
        return deep

    def level(low: float, high: float, patchy: float) -> np.ndarray:
        return rng.uniform(low, high) * np.exp(patchy * (smooth(5) + smooth(12)) / 1.4)

    wave = 1.5 * smooth(9)  # no tissue is an exact ellipsoid
    skin = np.maximum(gap + skull + scalp - distance, inside(OUTLINE) + wave)
    bright = float(np.exp(rng.uniform(np.log(0.9), np.log(3))))
    fat = level(bright, bright, 0.15)
    marrow = rng.uniform(0, 0.45) * np.exp(-(((distance - gap - skull / 2) / (0.22 * skull)) ** 2))

    layers: list[tuple[str, np.ndarray | float, np.ndarray | float]] = [
        ("muscle", 1.0, level(0.3, 0.7, 0.4)),
        ("fat", expit((inside(FAT) + wave) / 1.2), fat),
        ("bone", expit((inside(BONES) + wave) / 1.2), level(0.05, 0.3, 0.6)),
        ("fat", expit((scalp - skin) / blur), fat),
        ("bone", expit((gap + skull - distance) / blur), 0.05 + marrow),
        ("fluid", expit((gap - distance) / blur), fluid),
        ("air", expit((inside(AIR) + wave) / 0.8), 0.03),
    ]
    eye = inside(EYES)
    layers.append(("eye", expit(eye / 0.6), rng.uniform(0.1, 0.5) + 0.5 * np.exp(-((eye / 1.5) ** 2))))
    return Head(layers, expit((skin - 0.5) / blur))
