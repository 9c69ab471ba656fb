"""Read a 3-D volume from NIfTI or TIFF in one orientation, and bring results back to the file's own.

Every volume is turned to LPS voxel order: x grows towards the patient's left, y towards the back
(posterior), z towards the head (superior). Then `voxels[:, :, z].T` is an axial slice in
radiological display: the nose up, the patient's right on the left of the picture.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from PIL import Image

from unetlib.errors import UnetlibError

LPS = axcodes2ornt(("L", "P", "S"))
MAX_VOXELS = 2**29  # 1 GB as int16: 50 times a BraTS volume; more is a damaged or hostile header
MAX_SIDE = 2**15 - 1  # pixels along an axis: what a NIfTI header can hold


@dataclass(frozen=True)
class Source:
    """Where one 3-D volume lies: a NIfTI file, one channel of a 4-D NIfTI, or TIFF slices in order.

    `channel` is the index in the last axis of a 4-D NIfTI or of a colour TIFF, `None` where there is none.
    """

    paths: tuple[Path, ...]
    channel: int | None = None

    def __str__(self) -> str:
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)


@dataclass(frozen=True)
class Volume:
    """A volume in LPS order, with what is needed to write a result on the grid of its file.

    `voxels`: (X, Y, Z), any real dtype. `affine`: (4, 4), voxel to millimetres, of the LPS voxels.
    `stored`: the NIfTI header and affine as they are in the file.
    """

    voxels: np.ndarray
    affine: np.ndarray
    stored_affine: np.ndarray
    header: nib.Nifti1Header

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along x, y and z of the LPS voxels."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def require_contrast(self, name: str) -> None:
        """Raise `UnetlibError` when every voxel has the same value: there is nothing to see."""
        if self.voxels.min() == self.voxels.max():
            raise UnetlibError(f"{name} is constant: every voxel is {self.voxels.min()}. Export the image again.")

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """Return an (X, Y, Z) array in LPS order in the axis order and directions of the file."""
        return apply_orientation(array, ornt_transform(LPS, io_orientation(self.stored_affine)))


def read_volume(source: Source) -> Volume:
    """Return the volume at `source`, turned to LPS.

    Raises `UnetlibError` naming the file when it is missing, damaged, not 3-D (or lacks the
    channel), has no usable affine, is unreasonably large, or holds other than real numbers.
    """
    stored, affine, header = _read_tiffs(source) if _is_tiff(source) else _read_nifti(source)
    orientation = io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)  # it fails on NaN
    if np.isnan(orientation).any():
        raise UnetlibError(
            f"{source}: its affine {affine.tolist()} does not map voxels to millimetres, so the orientation "
            "is unknown. Export the file again with a valid sform or qform."
        )
    to_lps = ornt_transform(orientation, LPS)
    voxels = apply_orientation(stored, to_lps)
    return Volume(voxels, affine @ inv_ornt_aff(to_lps, stored.shape), affine, header)


def read_shape(source: Source) -> tuple[int, ...]:
    """Return the shape that a source announces, from headers alone; raises `UnetlibError` when unreadable."""
    if _is_tiff(source):
        return (*_open_tiff(source.paths[0]).size, len(source.paths))
    return tuple(int(n) for n in _open_nifti(source.paths[0]).shape)


def _is_tiff(source: Source) -> bool:
    return source.paths[0].suffix.lower() in (".tif", ".tiff")


def _open_nifti(path: Path) -> Any:
    if not path.is_file():
        raise UnetlibError(f"{path} does not exist or is not a file. A .nii or .nii.gz file was expected.")
    try:
        image = nib.load(path)
    except Exception as error:  # nibabel raises a dozen kinds on damaged headers
        raise UnetlibError(f"{path} cannot be read as NIfTI ({_reason(error)}). Copy or download it again.") from error
    if not isinstance(image, nib.Nifti1Image):
        raise UnetlibError(f"{path} is a {type(image).__name__}, not a NIfTI file. Convert it to .nii.gz.")
    return image


def _read_nifti(source: Source) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    path = source.paths[0]
    image = _open_nifti(path)
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1 and source.channel is None:
        shape = shape[:-1]
    if min(shape, default=0) < 1 or np.prod([float(n) for n in shape]) > MAX_VOXELS:
        raise UnetlibError(f"{path}: the header announces {shape} voxels, which no MRI volume has. Copy it again.")
    if source.channel is None and len(shape) != 3:
        raise UnetlibError(
            f"{path} is {len(shape)}-D, of shape {shape}; one 3-D volume was expected. "
            "Name one of its volumes (`unetlib predict --channel 0`), or split it into one file per modality."
        )
    if source.channel is not None and (len(shape) != 4 or shape[3] <= source.channel):
        raise UnetlibError(
            f"{path} has shape {shape}; a 4-D file with at least {source.channel + 1} channels was expected."
        )
    try:
        proxy = image.dataobj
        voxels = np.asanyarray(proxy if source.channel is None else proxy[..., source.channel]).reshape(shape[:3])
    except Exception as error:  # a truncated gzip raises EOFError, zlib.error, OSError or ValueError
        raise UnetlibError(
            f"{path} is damaged: its voxels cannot be read ({_reason(error)}). Copy or download it again."
        ) from error
    if voxels.dtype.kind not in "biuf":
        raise UnetlibError(f"{path} holds voxels of type {voxels.dtype}; real numbers were expected.")
    if bad := int((~np.isfinite(voxels)).sum() if voxels.dtype.kind == "f" else 0):
        raise UnetlibError(f"{path} holds {bad} NaN or infinite voxels; finite numbers were expected. Export it again.")
    return voxels, np.asarray(image.affine, dtype=np.float64), image.header


def _open_tiff(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
    except Exception as error:  # Pillow too raises a dozen kinds on damaged headers
        raise UnetlibError(f"{path} cannot be read as TIFF ({_reason(error)}). Copy or download it again.") from error
    if max(image.size) > MAX_SIDE:
        raise UnetlibError(f"{path}: the header announces {image.size} pixels, which no MRI slice has. Copy it again.")
    return image


def _read_tiffs(source: Source) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    planes: list[np.ndarray] = []
    for path in source.paths:
        try:
            with warnings.catch_warnings(action="ignore"):  # Pillow warns where it will raise
                plane = np.asarray(_open_tiff(path))
        except UnetlibError:
            raise
        except Exception as error:
            raise UnetlibError(f"{path} is damaged ({_reason(error)}). Copy or download it again.") from error
        if source.channel is not None:
            if plane.ndim != 3 or plane.shape[2] <= source.channel:
                raise UnetlibError(
                    f"{path} has shape {plane.shape}; a picture of at least {source.channel + 1} channels was expected."
                )
            plane = plane[:, :, source.channel]
        if plane.ndim != 2 or (planes and plane.shape != planes[0].shape):
            raise UnetlibError(
                f"{path} has shape {plane.shape}; {planes[0].shape if planes else 'one channel'} was expected, "
                "as in the patient's other slices."
            )
        planes.append(plane)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # TIFF has no spacing: a nominal 1 mm, rows as displayed
    voxels = np.stack([plane.T for plane in planes], axis=2)
    return voxels, affine, nib.Nifti1Image(voxels.astype(np.float32), affine).header


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
