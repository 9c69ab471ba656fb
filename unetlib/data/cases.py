"""One scan of one patient: where its files lie, and how image and mask are read and checked together."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unetlib.data.layouts import BY_NAME
from unetlib.data.nifti import files_of
from unetlib.data.volumes import Source, Volume, read_volume, whole_labels
from unetlib.support.errors import UnetlibError, first_of

SHARE = 50  # starting a worker costs as much as reading 50 cases
TOLERANCE = 1e-2  # millimetres between the affines of an image and its mask


@dataclass(frozen=True)
class Case:
    """One scan of one patient: where each modality and the mask lie.

    `patient` is what a split groups by: time points of one patient share it (see `naming`). `layout` names an entry
    of `LAYOUTS`. `images` maps a modality ("flair", "t1", "t1ce", "t2") to its source.
    """

    id: str
    patient: str
    layout: str
    images: dict[str, Source]
    seg: Source | None

    def files(self, modality: str = "flair") -> tuple[Path, ...]:
        """Return the files of one modality and of the mask: two for a pair of header and voxels."""
        paths = (*self.images[modality].paths, *(self.seg.paths if self.seg else ()))
        return tuple(file for path in paths for file in files_of(path))

    def stamp(self, root: Path) -> list[list[str | int]]:
        """Return name (below `root`), size and time of change of these files: equal stamps spare reading them.

        A file that is not there (a link to nowhere) has size and time -1.
        """
        stats = [(path.relative_to(root).as_posix(), path.stat() if path.exists() else None) for path in self.files()]
        return [[name, stat.st_size, stat.st_mtime_ns] if stat else [name, -1, -1] for name, stat in stats]


def read_case(case: Case, modality: str = "flair") -> tuple[Volume, np.ndarray, frozenset[int]]:
    """Return a case's image, its whole-tumour mask and the labels found in the mask file.

    The image is in LPS order, its voxels as stored; the mask is boolean, (X, Y, Z), on the same grid: label > 0.
    Raises `UnetlibError` naming case and file when either is missing or damaged, they do not share one grid, a voxel
    is not finite, the image is constant, or the mask holds a value that the layout does not know.
    """
    image, labels, found = read_labels(case, modality)
    return image, labels > 0, found


def read_labels(case: Case, modality: str = "flair") -> tuple[Volume, np.ndarray, frozenset[int]]:
    """Return what `read_case` does, but the voxels of the mask as stored instead of the boolean mask."""
    try:
        return _read(case, modality)
    except UnetlibError as error:
        raise UnetlibError(f"{case.id}: {error}") from error
    except Exception as error:  # one strange file must not end the work on a thousand
        raise UnetlibError(f"{case.id}: {unforeseen(error)}") from error


def unforeseen(error: Exception) -> str:
    """Return the sentence for a case whose files raised an error that no other message foresees."""
    if isinstance(error, MemoryError):
        return "it cannot be read: there is not enough memory. Close other programs, or use fewer --workers."
    advice = "See whether another program, such as ITK-SNAP, opens its files, and save them again from there."
    return f"it cannot be read ({type(error).__name__}: {error}). {advice}"


def _read(case: Case, modality: str) -> tuple[Volume, np.ndarray, frozenset[int]]:
    source = case.images.get(modality)
    if source is None:
        raise UnetlibError(f"it has no {modality} image. Choose one of {', '.join(case.images) or 'another case'}.")
    if case.seg is None:
        raise UnetlibError("it has no tumour mask. Add it to the folder of the case.")
    image, mask = read_volume(source), read_volume(case.seg)
    mask = replace(mask, voxels=whole_labels(mask.voxels))
    _require_one_grid(source, image, case.seg, mask)
    image.require_contrast(str(source))
    return image, mask.voxels, _labels_of(case, mask.voxels)


def _require_one_grid(source: Source, image: Volume, seg: Source, mask: Volume) -> None:
    """Raise `UnetlibError` unless image and mask have the same shape and lie in the same place."""
    if image.voxels.shape != mask.voxels.shape:
        raise UnetlibError(
            f"{seg} has shape {mask.voxels.shape} and the image {source} has {image.voxels.shape}; they must be the "
            "same. Find the mask that belongs to this image."
        )
    if bool(image.assumed) == bool(mask.assumed):
        if not np.allclose(image.affine, mask.affine, rtol=0, atol=TOLERANCE):
            raise UnetlibError(
                f"{seg} has the affine {mask.affine.round(3).tolist()} and the image {source} has "
                f"{image.affine.round(3).tolist()}; they must be the same, or the mask marks the wrong tissue. "
                "Resample or export the mask on the grid of the image."
            )
    # Only one of the two has a position, so the order of their voxels is compared instead.
    elif image.stored_axes != mask.stored_axes or not np.allclose(image.spacing, mask.spacing, rtol=0, atol=TOLERANCE):
        silent, other = (source, seg) if image.assumed else (seg, source)
        raise UnetlibError(
            f"{silent} does not say how it is oriented: {(image.assumed or mask.assumed).upper()} was assumed, while "
            f"{other} is stored as {(mask if image.assumed else image).stored_axes}, with voxels of {image.spacing} mm "
            f"in the image and {mask.spacing} mm in the mask. Save {silent} again with the header of {other}."
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
    binary = set(values) <= {0, 255}
    advice = (
        "It is an 8-bit mask: divide it by 255."
        if binary
        else "Find the mask of this case, or map its labels to these."
    )
    known = f"{case.layout} has {', '.join(map(str, allowed))} only"
    raise UnetlibError(f"{case.seg} holds the labels {first_of(strange, 5)}; {known}. {advice}")
