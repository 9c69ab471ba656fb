"""Read the TIFF slices of a volume; TIFF says neither voxel size nor orientation."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unetlib.data.contents import AGAIN, EXPORT, TIFF, damage_in, first_bytes, reason, require_file, what_it_is
from unetlib.support.errors import UnetlibError

MAX_SIDE = 2**15 - 1  # pixels along an axis: what a NIfTI header can hold
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # nominal: 1 mm, slices in radiological display


def is_tiff(path: Path) -> bool:
    """Tell whether a file is named like TIFF."""
    return path.suffix.lower() in (".tif", ".tiff")


def open_tiff(path: Path) -> Image.Image:
    """Return an image whose pixels are not read yet; raises `UnetlibError` when it is no TIFF of reasonable size."""
    require_file(path, "A TIFF file was expected.")
    head = first_bytes(path)
    try:
        image = Image.open(path, formats=["TIFF"])  # Pillow would hand PostScript of that name to Ghostscript
    except Exception as error:  # Pillow too raises a dozen kinds on damaged headers
        what = f"damaged. {AGAIN}" if head.startswith(TIFF) else what_it_is(head, "TIFF")
        raise UnetlibError(f"{path} cannot be read as TIFF ({reason(error)}): it is {what}") from error
    if max(image.size) > MAX_SIDE:
        raise UnetlibError(f"{path}: the header announces {image.size} pixels, which no MRI slice has. {EXPORT}")
    return image


def read_tiffs(paths: Sequence[Path], channel: int | None, max_voxels: int) -> np.ndarray:
    """Return slices in order, or one channel of colour ones, as an array (X, Y, Z); rows run along y.

    Raises `UnetlibError` for a slice that cannot be read, or has another shape than the first or no such channel.
    """
    planes: list[np.ndarray] = []
    for path in paths:
        with damage_in(path), warnings.catch_warnings(action="ignore"):  # Pillow warns where it will raise
            image = open_tiff(path)
            if image.width * image.height * len(paths) > max_voxels:
                what = f"{len(paths)} slices of {image.size} pixels are more than an MRI volume has"
                raise UnetlibError(f"{path}: {what}. Give each patient's slices a folder.")
            plane = np.asarray(image)
        if channel is not None:
            if plane.ndim != 3 or plane.shape[2] <= channel:
                expected = f"an image of at least {channel + 1} channels"
                raise UnetlibError(f"{path} has shape {plane.shape}; {expected} was expected.")
            plane = plane[:, :, channel].copy()  # not a view that keeps the other channels in memory
        if plane.ndim != 2 or (planes and plane.shape != planes[0].shape):
            expected = f"{planes[0].shape} as in the patient's other slices" if planes else "one channel"
            raise UnetlibError(f"{path} has shape {plane.shape}; {expected} was expected.")
        planes.append(plane)
    return np.stack([plane.T for plane in planes], axis=2)
