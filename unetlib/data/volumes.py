"""Read a 3-D volume from NIfTI or TIFF in one orientation, LPS, and return results to the file's own.

In LPS order, x grows towards the patient's left, y towards the back (posterior), z towards the head (superior): then
`voxels[:, :, z].T` is an axial slice in radiological display, nose at the top, the patient's right on the left.
"""

import os
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from unetlib.data.contents import AGAIN, EXPORT, reason
from unetlib.data.nifti import open_nifti, require_voxels, single_header
from unetlib.data.source import Source, require_channel
from unetlib.data.tiff import AFFINE, is_tiff, open_tiff, read_tiffs
from unetlib.support.errors import UnetlibError, counted

LPS = axcodes2ornt(("L", "P", "S"))
ASSUMABLE = ("ras", "lps")  # where the three axes of an image that does not say so run to
ASSUME = "UNETLIB_ASSUME"  # the environment variable for the same choice as --assume-ras or --assume-lps
GUESS = "las"  # of a viewer: what nibabel and most programs take
MAX_VOXELS = 2**27  # 512 x 512 x 512, 15 BraTS volumes, 1 GB as float64; more is a damaged or hostile header
MAX_VALUE = 1e30  # of a voxel: single precision ends at 3e38
NEARLY = 1.001e-3  # of a label
SPACINGS = 1e-3, 1e3  # millimetres
TOLERANCE = 0.1  # voxels between the corners of images on one grid
MAX_SHEAR = 0.5  # cosine of the angle of two axes: scanners tilt by up to 30 degrees
KINDS = {"c": "Save their magnitude as float32.", "V": "They are colours: export the intensities themselves."}


@dataclass(frozen=True)
class Volume:
    """A volume in LPS order, with what is needed to write a result on the grid of its file.

    `voxels`: (X, Y, Z), any real dtype; of several sequences, (C, X, Y, Z). `affine`: (4, 4), voxel to millimetres, of
    the LPS voxels. `stored_affine`, `header`: as in the file. `assumed`: the assumed orientation of the file, such as
    "ras"; empty if the header has it. `resampled`: the sequences that came from another grid.
    """

    voxels: np.ndarray
    affine: np.ndarray
    stored_affine: np.ndarray
    header: nib.Nifti1Header
    assumed: str = ""
    resampled: tuple[str, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in millimetres along x, y and z of the LPS voxels."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def stored_axes(self) -> str:
        """Where the axes run to in the file, such as "RAS"."""
        return "".join(nib.aff2axcodes(self.stored_affine))

    def lies_on(self, other: "Volume") -> bool:
        """Tell whether both have one position in space.

        If only one of them states its own, the order of the voxels in the files and their size are compared instead.
        """
        if bool(self.assumed) == bool(other.assumed):
            return self.shares_grid(other)
        alike = np.allclose(self.spacing, other.spacing, rtol=1e-2, atol=0)
        return self.stored_axes == other.stored_axes and alike

    def shares_grid(self, other: "Volume") -> bool:
        """Tell whether both have one shape and each voxel the same place, within `TOLERANCE`."""
        if self.voxels.shape[-3:] != other.voxels.shape[-3:]:
            return False
        corners = np.array(list(product(*((0, side - 1) for side in self.voxels.shape[-3:]))))  # lie farthest apart
        apart = np.linalg.norm(apply_affine(self.affine, corners) - apply_affine(other.affine, corners), axis=1)
        return bool(apart.max() <= TOLERANCE * min(self.spacing))

    def require_contrast(self, name: str) -> None:
        """Raise `UnetlibError` when all voxels have nearly the same value: there is nothing to see."""
        low, high = float(self.voxels.min()), float(self.voxels.max())
        if low == high or high - low < 1e-4 * max(abs(low), abs(high)):
            raise UnetlibError(f"{name} is constant: its voxels are {low:g} to {high:g}. Export the image again.")

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """Return an (X, Y, Z) array in LPS order in the axis order and directions of the file."""
        return apply_orientation(array, ornt_transform(LPS, io_orientation(self.stored_affine)))

    def to_lps(self, array: np.ndarray) -> np.ndarray:
        """Return an array in the axis order and directions of the file in LPS order."""
        return apply_orientation(array, ornt_transform(io_orientation(self.stored_affine), LPS))


def read_volume(source: Source) -> Volume:
    """Return the volume at `source`, turned to LPS.

    Raises `UnetlibError` naming the file when it is missing, damaged, not 3-D (or lacks the
    channel), has no usable affine, is unreasonably large, or holds other than real numbers.
    """
    if is_tiff(source.paths[0]):
        voxels = read_tiffs(source.paths, source.channel, MAX_VOXELS)
        return _turn(str(source), voxels, AFFINE, nib.Nifti1Image(voxels.astype(np.float32), AFFINE).header)
    with open_nifti(source.paths[0]) as image:
        volume = image_to_volume(image, str(source), source.channel, source.assume)
        require_voxels(image, source.paths[0])
    return volume


def assumption(given: str | None) -> str | None:
    """Return how files without an orientation are to be read: as `given`, else as the variable `UNETLIB_ASSUME` says.

    The result is "ras", "lps" or `None`, which refuses such files. Raises `UnetlibError` for any other word.
    """
    word = (given or os.environ.get(ASSUME) or "").lower() or None
    if word is None or word in ASSUMABLE:
        return word
    raise UnetlibError(f"the orientation to assume is {word!r}; {' or '.join(ASSUMABLE)} was expected.")


def assumed_as(assume: str | None) -> str:
    """Return the command line's flag for an assumption."""
    return f"--assume-{assume}" if assume else "no --assume flag"


def image_to_volume(image: nib.Nifti1Pair, name: str, channel: int | None = None, assume: str | None = None) -> Volume:
    """Return a nibabel image, or one channel of a 4-D one, turned to LPS; `assume` as in `Source`.

    Raises `UnetlibError` where `read_volume` does, with `name` in the place of the file.
    """
    shape = _without_ones(image.shape, 3 if channel is None else 4)
    _require_shape(shape, name, channel)
    require_real(image.get_data_dtype(), name)
    proxy = image.dataobj
    try:
        voxels = np.asanyarray(proxy if channel is None else proxy[:, :, :, channel]).reshape(shape[:3])
    except MemoryError:
        raise
    except Exception as error:  # a truncated gzip raises EOFError, zlib.error, OSError or ValueError
        at = getattr(proxy, "offset", 0)
        odd = f" Or its vox_offset is wrong: {at} where 352 is usual." if at not in (0, 352, 544) else ""
        what = f"{name} is damaged: its voxels cannot be read ({reason(error)})"
        raise UnetlibError(f"{what}. It is cut off or was changed on the way. {AGAIN}{odd}") from error
    _require_finite(voxels, name)
    volume = _turn(name, voxels, _affine(image, name, assume), single_header(image.header))
    return volume if is_oriented(image) else replace(volume, assumed=assume or "")


def _require_shape(shape: tuple[int, ...], name: str, channel: int | None) -> None:
    """Raise `UnetlibError` unless a shape is that of one 3-D volume, or of a 4-D file that has the channel."""
    require_channel(channel, name)
    if min(shape, default=0) < 1 or np.prod([float(n) for n in shape]) > MAX_VOXELS:
        raise UnetlibError(
            f"{name}: the header announces {shape} voxels, which no MRI volume has. It is damaged or no image. {EXPORT}"
        )
    if channel is None and len(shape) != 3:
        advice = "It is a single slice: give the whole volume."
        if len(shape) == 4:
            advice = "Name one of its volumes (`unetlib predict --channel 0`), or split it into one file per modality."
        elif len(shape) > 4:
            advice = "It holds several values per voxel, as a field of vectors does: give the image itself."
        raise UnetlibError(f"{name} is {len(shape)}-D, of shape {shape}; one 3-D volume was expected. {advice}")
    if channel is not None and (len(shape) != 4 or shape[3] <= channel):
        advice = "It holds one volume: leave the channel out." if len(shape) == 3 else "Choose another channel."
        expected = f"a 4-D file with at least {counted(channel + 1, 'channel')}"
        raise UnetlibError(f"{name} has shape {shape}; {expected} was expected. {advice}")


def _without_ones(shape: tuple[int, ...], least: int = 3) -> tuple[int, ...]:
    """Return a shape without axes of length 1 at its end, down to `least` axes: a 4-D file of one volume is 3-D."""
    while len(shape) > least and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def is_oriented(image: Any) -> bool:
    """Tell whether the header of a NIfTI image says how its voxels lie: by a transform with a code above 0."""
    return max(int(image.header["sform_code"]), int(image.header["qform_code"])) > 0


def _affine(image: Any, name: str, assume: str | None) -> np.ndarray:
    """Return (4, 4), voxel to millimetres: that of the image or its header, else one with axes that run to `assume`."""
    if is_oriented(image):
        try:
            return np.asarray(image.header.get_best_affine() if image.affine is None else image.affine, np.float64)
        except ValueError as error:  # a quaternion longer than 1
            raise UnetlibError(f"{name}: its qform is no rotation ({reason(error)}). {EXPORT}") from error
    rows, signs = axcodes2ornt(_require_assumption(name, assume).upper()).T
    affine = np.diag([0.0, 0, 0, 1])
    affine[rows.astype(int), range(3)] = signs * np.abs(image.header.get_zooms()[:3])
    affine[:3, 3] = affine[:3, :3] @ (1 - np.array(image.shape[:3])) / 2  # the centre of the image is the origin
    return affine


def _require_assumption(name: str, assume: str | None) -> str:
    if assume is None:
        raise UnetlibError(
            f"{name} does not say how it is oriented: the codes of its sform and qform are 0. Export it again from the "
            "original images, or say how its voxels are stored: --assume-ras (first axis to the patient's right, "
            "second to the front, third to the head) or --assume-lps (left, back, head)."
        )
    return assume


def array_to_volume(array: np.ndarray, affine: np.ndarray, name: str) -> Volume:
    """Return an array (X, Y, Z) in LPS order as a volume; `affine`: (4, 4), voxel to millimetres.

    Raises `UnetlibError` with `name` when it is not 3-D, holds other than finite real numbers, or
    the affine is not that of voxels in LPS order.
    """
    if (shape := _without_ones(array.shape)) != array.shape:
        array = array.reshape(shape)
    if array.ndim != 3 or not array.size:
        raise UnetlibError(f"{name} has shape {array.shape}; a 3-D array (X, Y, Z) was expected. Choose one volume.")
    _require_finite(array, name)
    if affine.shape != (4, 4) or not np.array_equal(_orientation(affine, name), LPS):
        raise UnetlibError(
            f"the affine of {name} is {affine.tolist()}; that of an array in LPS order was expected: (4, 4), axes "
            "towards left, back and head. Give a nibabel image instead, which is turned by its affine."
        )
    return Volume(array, affine, affine, nib.Nifti1Header())


def read_shape(source: Source) -> tuple[int, ...]:
    """Return the shape that a source announces, from headers alone.

    Raises `UnetlibError` when it is unreadable, or its orientation is neither said nor assumed.
    """
    if is_tiff(source.paths[0]):
        return (*open_tiff(source.paths[0]).size, len(source.paths))
    with open_nifti(source.paths[0]) as image:
        if not is_oriented(image):
            _require_assumption(str(source), source.assume)
        return _without_ones(image.shape)


def read_assumed(source: Source) -> str:
    """Return the assumed orientation of a NIfTI source, such as "ras"; empty if its header has one."""
    with open_nifti(source.paths[0]) as image:
        return "" if is_oriented(image) else source.assume or ""


def whole_labels(voxels: np.ndarray) -> np.ndarray:
    """Return the voxels of a mask, with values within `NEARLY` of a whole number as that number.

    A mask that was scaled or compressed on its way holds 0.99999994 or 1.0000153 where 1 is meant.
    """
    if voxels.dtype.kind != "f":
        return voxels
    whole = np.rint(voxels)
    return np.where(np.abs(voxels - whole) <= NEARLY, whole, voxels)


def _orientation(affine: np.ndarray, name: str) -> np.ndarray:
    orientation = io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)  # it fails on NaN
    if np.isnan(orientation).any():
        raise UnetlibError(
            f"{name}: its affine {affine.tolist()} does not map voxels to millimetres, so the orientation "
            "is unknown. Export the file again with a valid sform or qform."
        )
    return orientation


def _turn(name: str, stored: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header) -> Volume:
    """Return stored voxels as a volume; raises `UnetlibError` for an affine that no scanner has."""
    orientation = ornt_transform(_orientation(affine, name), LPS)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (SPACINGS[0] <= spacing.min() and spacing.max() <= SPACINGS[1]):
        raise UnetlibError(f"{name}: its voxels are {spacing.tolist()} mm wide; no MRI has such. Export it again.")
    axes = affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > MAX_SHEAR:
        raise UnetlibError(f"{name}: the axes of its affine {affine.tolist()} are oblique to each other. {EXPORT}")
    voxels = apply_orientation(stored, orientation)
    return Volume(voxels, affine @ inv_ornt_aff(orientation, stored.shape), affine, header)


def require_real(dtype: np.dtype, name: str) -> None:
    """Raise `UnetlibError` for voxels of a type that is no real number, or that needs more than 8 bytes."""
    if dtype.kind in "biuf" and dtype.itemsize <= 8:
        return
    advice = KINDS.get(dtype.kind, "Save them as float32.")
    raise UnetlibError(f"{name} holds voxels of type {dtype}; real numbers of up to 8 bytes were expected. {advice}")


def _require_finite(voxels: np.ndarray, name: str) -> None:
    require_real(voxels.dtype, name)
    if voxels.dtype.kind != "f":
        return
    if bad := int((~np.isfinite(voxels)).sum()):
        number = counted(bad, "NaN or infinite voxel")
        raise UnetlibError(f"{name} holds {number}; finite numbers were expected. Export it again.")
    if max(abs(float(voxels.min())), abs(float(voxels.max()))) > MAX_VALUE:
        raise UnetlibError(f"{name} holds {voxels.min()} to {voxels.max()}; no image has such values. Export it again.")
