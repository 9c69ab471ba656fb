"""What the figures of a cohort need of each patient."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unetlib.data.patients import Case, read_case
from unetlib.data.volumes import Volume
from unetlib.metrics import millilitres
from unetlib.support.jobs import progress

BINS = 48  # of a head's width and length: about 3 mm each
SAMPLE = 5000  # intensities kept of a patient


@dataclass(frozen=True)
class Portrait:
    """What one patient adds to the figures of a cohort, without the voxels.

    `tumour_per_slice`: (Z,) voxels of tumour. `pixels`: those of one axial slice. `sample`: some
    intensities inside the head, `limits` the lowest and highest of the volume. `tumour_map` and
    `head_map`: (BINS, BINS) bool, the volume all slices added up, x by y, in the box around the head.
    `centre`: (3,), the tumour's middle in that box, 0..1 along x, y, z; NaN without tumour.
    """

    id: str
    spacing: tuple[float, float, float]
    tumour_per_slice: np.ndarray
    pixels: int
    sample: np.ndarray
    limits: tuple[float, float]
    tumour_map: np.ndarray
    head_map: np.ndarray
    centre: np.ndarray

    @property
    def millilitres(self) -> float:
        """Size of the whole tumour."""
        return float(millilitres(self.tumour_per_slice.sum(), self.spacing))

    @property
    def tumour_slices(self) -> int:
        """Number of axial slices with at least one voxel of tumour."""
        return int((self.tumour_per_slice > 0).sum())

    @property
    def share_of_slices(self) -> float:
        """Share of the axial slices with tumour, 0..1."""
        return float((self.tumour_per_slice > 0).mean())

    @property
    def share_of_voxels(self) -> float:
        """Share of the voxels that are tumour, 0..1."""
        return float(self.tumour_per_slice.mean() / self.pixels)


def portray(cases: Sequence[Case]) -> list[Portrait]:
    """Read the FLAIR image and the mask of each case, one at a time, and keep what the figures need.

    Raises `UnetlibError` as `read_case` does.
    """
    portraits = []
    with progress(len(cases), "read", "case") as bar:
        for case in cases:
            portraits.append(_portray(case.id, *read_case(case)[:2]))
            bar.update()
    return portraits


def find_head(voxels: np.ndarray) -> np.ndarray:
    """Return where a volume is brighter than its mean, as a boolean array: the head, roughly, with or without skull."""
    return voxels > voxels.mean()


def _portray(id: str, image: Volume, mask: np.ndarray) -> Portrait:
    head = find_head(image.voxels)
    low, high = _box(head)
    inside, places = image.voxels[head], np.argwhere(mask)
    centre = (places.mean(0) + 0.5 - low) / (high - low) if len(places) else np.full(3, np.nan)
    return Portrait(
        id,
        image.spacing,
        mask.sum((0, 1)),
        mask.shape[0] * mask.shape[1],
        inside[:: max(1, inside.size // SAMPLE)].astype(np.float32),
        (float(image.voxels.min()), float(image.voxels.max())),
        _flattened(mask.max(2), low, high),
        _flattened(head.mean(2) > 0.1, low, high),
        centre,
    )


def _box(head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (3,) of a head: what lies between is the planes that hold more than a few voxels of it."""
    sums = [head.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    spans = [np.flatnonzero(line > 0.02 * line.max()) for line in sums]
    return np.array([span[0] for span in spans], float), np.array([span[-1] + 1 for span in spans], float)


def _flattened(flat: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return a mask (X, Y) on the (BINS, BINS) of the box: a bin is true where a voxel of the mask lies in it."""
    places = (np.argwhere(flat) + 0.5 - low[:2]) / (high - low)[:2]
    bins = (places[((places >= 0) & (places < 1)).all(1)] * BINS).astype(int)
    found = np.zeros((BINS, BINS), bool)
    found[tuple(bins.T)] = True
    return found
