"""One scan of one patient: where its files lie, how image and mask are read and checked together, and their hashes.

A scan is recognised whatever its file's name, type, compression, number type or header, as long as its voxels in LPS
order have the same values; a scan that was rescaled, resampled, cropped or skull-stripped is another one.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unetlib.data.layouts import BY_NAME, KAGGLE
from unetlib.data.nifti import files_of
from unetlib.data.regions import Regions
from unetlib.data.sequences import stack
from unetlib.data.volumes import Source, Volume, read_volume, whole_labels
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError, first_of
from unetlib.support.files import digest, sha256

SHARE = 50  # starting a worker costs as much as reading 50 cases
NO_SIZE = f"{KAGGLE} has no voxel size: a nominal 1 mm is used, so millimetres mean pixels."
NOMINAL = f"1 mm is only the nominal voxel size of {KAGGLE}, and a 3-D network would see its heads distorted"
_ONCE = "a scan counts once."
HASHES = ("sha256", "image", "content")  # of a case's files; of its (first) image; of its images and mask


@dataclass(frozen=True)
class Case:
    """One scan of one patient: where each modality and the mask lie.

    `patient` is what a split groups by (see `naming`). `layout` names an entry of `LAYOUTS`. `images` maps a modality
    ("flair", "t1", "t1ce", "t2") to its source. `modalities` are read, in this order; with `fill`, absent ones as 0.
    """

    id: str
    patient: str
    layout: str
    images: dict[str, Source]
    seg: Source | None
    modalities: tuple[str, ...] = ("flair",)
    fill: bool = False

    def files(self) -> tuple[Path, ...]:
        """Return the files of the modalities that are read and of the mask: two for a pair of header and voxels."""
        sources = (*(self.images[name] for name in self.modalities if name in self.images), self.seg)
        paths = dict.fromkeys(path for source in sources if source for path in source.paths)
        return tuple(file for path in paths for file in files_of(path))

    def stamp(self, root: Path) -> list[list[str | int]]:
        """Return name (below `root`), size and time of change of these files: equal stamps spare reading them.

        A file that is not there (a link to nowhere) has size and time -1.
        """
        stats = [(path.relative_to(root).as_posix(), path.stat() if path.exists() else None) for path in self.files()]
        return [[name, stat.st_size, stat.st_mtime_ns] if stat else [name, -1, -1] for name, stat in stats]


def read_case(case: Case, modality: str | None = None) -> tuple[Volume, np.ndarray, frozenset[int]]:
    """Return a case's image, its whole-tumour mask and the labels found in the mask file.

    The image is in LPS order, its voxels as stored: (X, Y, Z) of `modality`, or of the only one of `case.modalities`;
    of several, (C, X, Y, Z) on the grid of the first. The mask is boolean, (X, Y, Z), on the same grid: label > 0.
    Raises `UnetlibError` naming case and file when one is missing or damaged, mask and image do not share one grid,
    images lie apart, a voxel is not finite, an image is constant, two are the same, or the mask holds a value that the
    layout does not know.
    """
    image, labels, found = read_labels(replace(case, modalities=(modality,)) if modality else case)
    return image, labels > 0, found


def read_regions(case: Case, recipe: Recipe) -> tuple[Volume, np.ndarray]:
    """Return a case's image as `read_case` does, and its mask of each region of a recipe, (K, X, Y, Z) booleans."""
    image, labels, _ = read_labels(case)
    try:
        return image, Regions.of(recipe, case.layout).masks(labels)
    except UnetlibError as error:
        raise UnetlibError(f"{case.id}: {error}") from error


def read_labels(case: Case) -> tuple[Volume, np.ndarray, frozenset[int]]:
    """Return what `read_case` does, but the voxels of the mask as stored instead of the boolean mask."""
    try:
        if lacking := [name for name in case.modalities if name not in case.images and not case.fill]:
            there = ", ".join(case.images) or "another case"
            raise UnetlibError(f"it has no {lacking[0]} image. Choose one of {there}.")
        if case.seg is None:
            raise UnetlibError("it has no tumour mask. Add it to the folder of the case.")
        images, mask = read_images(case), read_volume(case.seg)
        mask = replace(mask, voxels=whole_labels(mask.voxels))
        first = next(iter(images))
        try:
            _require_one_grid(case.images[first], images[first], case.seg, mask)
        except UnetlibError as error:
            if len(case.modalities) == 1:
                raise
            advice = "If another sequence has the grid of the mask, name it first in --modalities."
            raise UnetlibError(f"{error} {advice}") from error
        for name, volume in images.items():
            volume.require_contrast(str(case.images[name]))
        return stack(images, case.modalities, case.fill), mask.voxels, _labels_of(case, mask.voxels)
    except UnetlibError as error:
        raise UnetlibError(f"{case.id}: {error}") from error
    except Exception as error:  # one strange file must not end the work on a thousand
        raise UnetlibError(f"{case.id}: {unforeseen(error)}") from error


def read_images(case: Case) -> dict[str, Volume]:
    """Return the images of a case by modality, in the order of `case.modalities`, each on its own grid."""
    return {name: read_volume(case.images[name]) for name in case.modalities if name in case.images}


def unforeseen(error: Exception) -> str:
    """Return the sentence for a case whose files raised an error that no other message foresees."""
    if isinstance(error, MemoryError):
        return "it cannot be read: there is not enough memory. Close other programs, or use fewer --workers."
    advice = "See whether another program, such as ITK-SNAP, opens its files, and save them again from there."
    return f"it cannot be read ({type(error).__name__}: {error}). {advice}"


def _require_one_grid(source: Source, image: Volume, seg: Source, mask: Volume) -> None:
    if image.voxels.shape != mask.voxels.shape:
        raise UnetlibError(
            f"{seg} has shape {mask.voxels.shape} and the image {source} has {image.voxels.shape}; they must be the "
            "same. Find the mask that belongs to this image."
        )
    if mask.lies_on(image):
        return
    if bool(image.assumed) == bool(mask.assumed):
        raise UnetlibError(
            f"{seg} has the affine {mask.affine.round(3).tolist()} and the image {source} has "
            f"{image.affine.round(3).tolist()}; they must be the same, or the mask marks the wrong tissue. "
            "Resample or export the mask on the grid of the image."
        )
    silent, other = (source, seg) if image.assumed else (seg, source)
    raise UnetlibError(
        f"{silent} does not say how it is oriented: {(image.assumed or mask.assumed).upper()} was assumed, while "
        f"{other} is stored as {(mask if image.assumed else image).stored_axes}, with voxels of {image.spacing} mm in "
        f"the image and {mask.spacing} mm in the mask. Save {silent} again with the header of {other}."
    )


def _labels_of(case: Case, voxels: np.ndarray) -> frozenset[int]:
    """Return the labels in a mask; raises `UnetlibError` when one is not among those of the layout."""
    allowed = BY_NAME[case.layout].labels
    stored = voxels.ravel("K")  # in the order of memory: 4 x faster
    foreground = stored[stored != 0]  # few voxels: sorting all of them would take ten times longer
    values = np.unique(foreground).tolist() + [0] * (foreground.size < voxels.size)
    strange = [f"{value:.9g}" for value in values if value not in allowed]
    if not strange:
        return frozenset(allowed[value] for value in values)
    advice = "Find the mask of this case, or map its labels to these."
    if set(values) <= {0, 255}:
        advice = "It is an 8-bit mask: divide it by 255."
    known = f"{case.layout} has {', '.join(map(str, allowed))} only"
    raise UnetlibError(f"{case.seg} holds the labels {first_of(strange, 5)}; {known}. {advice}")


def has_nominal_spacing(id: str, spacing: tuple[float, float, float]) -> bool:
    """Tell whether the voxel size of a case is only nominal, so that no millimetre is true.

    So it is in TCGA-LGG as published on Kaggle, and in NIfTI files made from it: its names, cubes of exactly 1 mm.
    """
    return spacing == (1.0, 1.0, 1.0) and bool(BY_NAME[KAGGLE].names.fullmatch(f"{id}_1.tif"))


def require_spacing(id: str, spacing: tuple[float, float, float], dims: int) -> None:
    """Raise `UnetlibError` for a case whose voxels have no true size if a 3-D network is to see it."""
    if dims == 3 and has_nominal_spacing(id, spacing):
        raise UnetlibError(f"{id}: {NOMINAL}. Use a network for slices instead (dims 2).")


def hash_voxels(voxels: np.ndarray, dtype: str = "<f4") -> str:
    """Return the SHA-256 of the shape and values of an array (X, Y, Z) in LPS order, by default in single precision."""
    found = hashlib.sha256(str(voxels.shape).encode())
    for z in range(voxels.shape[2]):  # slice by slice, x fastest, as NIfTI stores them: 4 x faster than in C order
        plane = np.ascontiguousarray(voxels[:, :, z].T, dtype=dtype)
        found.update((plane + plane.dtype.type(0) if voxels.dtype.kind == "f" else plane).data)  # -0 becomes 0
    return found.hexdigest()


def hash_case(image: Volume, labels: np.ndarray) -> tuple[list[str], str]:
    """Return the hash of each image, each of which says whose scan it is, and one of images and (whole) labels."""
    scans = hash_images(image)
    return scans, digest([*scans, hash_voxels(labels, "u1")])


def hash_images(image: Volume) -> list[str]:
    """Return the hash of each sequence of a volume (X, Y, Z) or (C, X, Y, Z), without those that are empty."""
    sequences = image.voxels if image.voxels.ndim == 4 else image.voxels[None]
    return [hash_voxels(one) for one in sequences if image.voxels.ndim == 3 or one.any()]


def is_unchanged(case: Case, root: Path, stamp: list[list[str | int]], known: dict[str, Any]) -> bool:
    """Tell whether a case holds what it held when its `stamp` was taken: by files, then by bytes, then by voxels.

    `known` holds the hashes of that time; version 0.3 has written none of voxels.
    """
    try:
        if case.stamp(root) == stamp or sha256(*case.files()) == known["sha256"]:
            return True
        return "content" in known and hash_case(*read_labels(case)[:2])[1] == known["content"]
    except (UnetlibError, OSError):
        return False


def copy_of(other: str) -> str:
    """Return the sentence for a case whose image is there already."""
    return f"its image has the same voxels as that of {other}: {_ONCE}"


def is_copy(reason: str) -> bool:
    """Tell whether a case was left out for `copy_of` another."""
    return reason.endswith(_ONCE)


def without_copies(cases: Iterable[tuple[Case, list[str]]]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the patient of each case, and the cases that are copies of another one, with the reason.

    `cases`: each case and the hashes of its images. Two patients who share a scan are one person, and get one name.
    """
    first, copies, same, patients = dict[str, Case](), dict[str, str](), dict[str, str](), dict[str, str]()

    def name(patient: str) -> str:
        return name(same[patient]) if patient in same else patient

    for case, scans in cases:
        patients[case.id] = case.patient
        if other := next((first[scan] for scan in scans if scan in first), None):
            copies[case.id] = copy_of(other.id)
            if name(case.patient) != name(other.patient):
                same[name(case.patient)] = name(other.patient)
        first |= {scan: case for scan in scans if scan not in first}
    return {id: name(patient) for id, patient in patients.items()}, copies
