"""The sequences of one patient, such as FLAIR and T1, on one grid."""

from dataclasses import replace

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from unetlib.data.slices import foreground
from unetlib.data.volumes import Volume
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.messages import say

MIN_OVERLAP = 0.5  # of the head in the first sequence that each other one must show


def stack(images: dict[str, Volume], modalities: tuple[str, ...], fill: bool = False) -> Volume:
    """Return a patient's images as one volume: of several `modalities`, voxels (C, X, Y, Z) on the grid of the first.

    Images on another grid are interpolated. With `fill`, those that are not there are 0, and copies of an earlier one
    count as not there: that is how TCGA-LGG marks a missing sequence. Raises `UnetlibError` when two images lie apart,
    or are the same without `fill`.
    """
    first = next(iter(images.values()))
    if len(modalities) == 1:
        return first
    found: dict[str, np.ndarray] = {}
    moved = []
    for name, volume in images.items():
        voxels = resampled(volume, first, name)
        if same := next((other for other, earlier in found.items() if np.array_equal(earlier, voxels)), ""):
            if not fill:
                raise UnetlibError(
                    f"its {name} image has the voxels of its {same} image, so it is missing. Add the image, leave "
                    "the case out, or train with it empty: --missing zero."
                )
            continue
        found[name] = voxels
        moved += [] if voxels is volume.voxels else [name]
    empty = np.zeros(first.voxels.shape, np.float32)
    voxels = np.stack([found.get(name, empty) for name in modalities], dtype=np.float32)
    return replace(first, voxels=voxels, resampled=tuple(moved))


def say_resampled(cases: list[str], modalities: str) -> None:
    """Say which cases have sequences that were resampled, if any."""
    if cases:
        first = modalities.split()[0]
        say(f"Resampled to the grid of {first}: sequences of {counted(len(cases), 'case')} ({first_of(cases, 5)}).")


def resampled(volume: Volume, grid: Volume, name: str) -> np.ndarray:
    """Return the voxels of a volume on the grid of another, interpolated linearly unless the grids agree.

    Raises `UnetlibError` with the `name` of the volume when it does not show most of what the other one shows.
    """
    if volume.shares_grid(grid):
        return volume.voxels
    if bool(volume.assumed) != bool(grid.assumed):
        raise UnetlibError(
            f"its {name} image and another one cannot be brought together: only one of them says where "
            "it lies. Export both in one format."
        )
    head = np.argwhere(foreground(grid.voxels))
    seen = apply_affine(np.linalg.inv(volume.affine) @ grid.affine, head)
    inside = ((seen > -1) & (seen < volume.voxels.shape)).all(1).mean() if len(head) else 0.0
    if inside < MIN_OVERLAP:
        raise UnetlibError(
            f"its {name} image shows {inside:.0%} of the head that the first one shows, so they cannot be brought "
            "together. See whether both are of this patient and lie in one space (register them)."
        )
    from nibabel.processing import resample_from_to  # here, since scipy adds 0.3 s to every start

    moving = nib.Nifti1Image(np.asarray(volume.voxels, np.float32), volume.affine)
    onto = grid.voxels.shape, grid.affine
    return np.asarray(resample_from_to(moving, onto, order=1, cval=float(volume.voxels.min())).dataobj)
