"""The volumes and masks that a viewer shows: of any kind, read, turned to LPS order, and brought to one grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from unetlib.data.nifti import stem
from unetlib.data.volumes import GUESS, Source, Volume, array_to_volume, image_to_volume, read_volume, whole_labels
from unetlib.metrics import millilitres
from unetlib.show.layers import Layer, Layers
from unetlib.show.plots.drawing import is_synthetic, largest_slice
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.paths import home

AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis along which a plane is a slice
NOMINAL = np.diag([-1.0, -1.0, 1.0, 1.0])  # the affine of an array without one: 1 mm, LPS order

Image = str | Path | Source | Volume | nib.Nifti1Pair | np.ndarray
Images = Image | Sequence[Image] | Mapping[str, Image]
Masks = Image | Sequence[Image | None] | Mapping[str, Image | None] | None
WITH_GRID = (str, Path, Source, Volume, nib.Nifti1Pair)
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top, bottom; volumes are LPS


@dataclass(frozen=True)
class Panel:
    """A volume with its masks, uint8 (X, Y, Z) on its grid: labels, or one bit for each of several `regions`.

    `window`: the intensities shown black and white by default. `link`: (4, 4), from voxels of the
    first volume to voxels of this one.
    """

    name: str
    volume: Volume
    truth: np.ndarray | None
    prediction: np.ndarray | None
    window: tuple[float, float]
    link: np.ndarray
    regions: Layers

    def voxel(self, position: Sequence[int]) -> np.ndarray:
        """Return the voxel (3,) at a position in the first volume, clipped to this one."""
        at = np.rint(self.link[:3] @ (*position, 1)).astype(int)
        return np.clip(at, 0, np.array(self.volume.voxels.shape) - 1)

    def layers(self, show: str) -> list[Layer]:
        """Return what is drawn: where one mask is missing there are no errors, only the other mask."""
        layers, (kind, _, region) = self.regions.by_choice, show.partition(": ")
        if kind == "errors" and (self.truth is None) != (self.prediction is None):
            alone = layers["prediction" if self.truth is None else "truth"]
            return [one for one in alone if region in ("", one.name)]
        return layers[show]

    def slices(self, plane: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the intensities and the classes (see `Layer`) of one slice, (H, W), as displayed."""
        image = _slice(self.volume.voxels, plane, index)
        classes = np.zeros(image.shape, np.uint16)
        for shift, mask in ((0, self.truth), (self.regions.bits, self.prediction)):
            if mask is not None:
                own = _slice(mask, plane, index)
                classes |= np.uint16(1 << shift) * (own if self.regions else own > 0)
        return image, classes


def read_panels(
    volume: Images, truth: Masks, prediction: Masks, affine: Any, regions: Layers
) -> tuple[list[Panel], list[str]]:
    """Return the volumes with their masks, and notes that the reader needs.

    The kinds of input are those of `SliceViewer`. Raises `UnetlibError` when one of them cannot be
    read or does not fit the others.
    """
    try:
        given = NOMINAL if affine is None else np.asarray(affine, np.float64)
    except (TypeError, ValueError) as error:
        raise UnetlibError(f"the affine is {affine!r}; (4, 4) numbers were expected.") from error
    volumes = {name: _read(item, name, given) for name, item in _named(volume).items()}
    first = next(iter(volumes.values()))
    guessed = ((name, one.assumed.upper()) for name, one in volumes.items() if one.assumed)
    notes = [f"The orientation of {name} is guessed ({axes}): its file does not say it" for name, axes in guessed]
    if any(map(is_synthetic, volumes.values())):
        notes.append("Synthetic images")
    truths, predictions = (
        _fit_all(kind, given, volumes, notes, regions) for kind, given in (("truth", truth), ("prediction", prediction))
    )
    panels = []
    for (name, one), true, predicted in zip(volumes.items(), truths, predictions, strict=True):
        link = np.linalg.inv(one.affine) @ first.affine
        if not _meet(link, first.voxels.shape, one.voxels.shape):
            # The first voxel to the first, the last to the last.
            pairs = zip(first.voxels.shape, one.voxels.shape, strict=True)
            link = np.diag([*(max(b - 1, 1) / max(a - 1, 1) for a, b in pairs), 1.0])
            notes.append(f"{name} lies elsewhere in space than {next(iter(volumes))}: its slices follow in proportion")
        panels.append(Panel(name, one, true, predicted, _default_window(one.voxels), link, regions))
    return panels, notes


def _named(volume: Any) -> dict[str, Any]:
    if isinstance(volume, Mapping):
        named = _by_text(volume, "volume")
    else:
        items = list(volume) if isinstance(volume, list | tuple) else [volume]
        files = [one.get_filename() or "" if isinstance(one, nib.Nifti1Pair) else one for one in items]
        names = [
            (stem(Path(str(file)).name) if isinstance(file, str | Path | Source) else "") or f"volume {number}"
            for number, file in enumerate(files, start=1)
        ]
        if len(set(names)) < len(names):
            names = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
        named = dict(zip(names, items, strict=True))
    if not named:
        raise UnetlibError("there is no volume to show. Give a path, an image, an array, or several of them.")
    return named


def _by_text(given: Mapping[Any, Any], kind: str) -> dict[str, Any]:
    """Return a mapping with its names as text, in which 1 and "1" are one name: the second would hide the first."""
    named = {str(name): item for name, item in given.items()}
    if len(named) < len(given):
        raise UnetlibError(f"{kind} names {first_of([*map(str, given)], 5)}; names that differ as text were expected.")
    return named


def _read(item: Any, name: str, affine: np.ndarray) -> Volume:
    if isinstance(item, Volume):
        if item.voxels.ndim != 3:
            raise UnetlibError(
                f"{name} holds {counted(len(item.voxels), 'sequence')}; one 3-D volume was expected. Show one of them: "
                "plots.first_sequence(volume), or a dictionary with a volume for each."
            )
        return item
    if isinstance(item, str | Path):
        item = Source((home(item),))
    if isinstance(item, Source):
        return read_volume(replace(item, assume=item.assume or GUESS))
    if isinstance(item, nib.Nifti1Pair):
        return image_to_volume(item, name, assume=GUESS)
    if not hasattr(item, "__array__"):
        raise UnetlibError(f"{name} is a {type(item).__name__}; a path, a NIfTI image or a 3-D array was expected.")
    return array_to_volume(np.asarray(item), affine, name)


def _fit_all(
    kind: str, given: Any, volumes: dict[str, Volume], notes: list[str], regions: Layers
) -> list[np.ndarray | None]:
    """Return the mask of each volume on its grid; volumes on one grid that have one mask share the array."""
    fitted: dict[Any, np.ndarray | None] = {}
    masks = []
    for (name, volume), item in zip(volumes.items(), _one_each(kind, given, list(volumes)), strict=True):
        key = (id(item), volume.voxels.shape, volume.affine.tobytes())
        if key not in fitted:
            what = f"the {'reference' if kind == 'truth' else kind} of {name}"
            fitted[key] = None if item is None else _fit_regions(item, what, volume, notes, regions)
        masks.append(fitted[key])
    return masks


def _one_each(kind: str, given: Any, names: list[str]) -> list[Any]:
    if isinstance(given, Mapping):
        given = _by_text(given, kind)
        if strange := [name for name in given if name not in names]:
            raise UnetlibError(f"{kind} names {first_of(strange, 5)}; the volumes are {first_of(names, 5)}.")
        return [given.get(name) for name in names]
    if not isinstance(given, list | tuple):
        return [given] * len(names)
    if len(given) != len(names):
        raise UnetlibError(
            f"{kind} is a list of {len(given)} masks for {len(names)} volumes. Give one each, None where there is "
            "none, or a single mask that belongs to all."
        )
    return list(given)


def _fit_regions(item: Any, name: str, volume: Volume, notes: list[str], regions: Layers) -> np.ndarray:
    """Return a mask as `_fit` does, or as one bit for each of several regions; of those it may be (K, X, Y, Z)."""
    stack = not isinstance(item, WITH_GRID) and getattr(item, "shape", ())[1:] == volume.voxels.shape
    if not regions and stack and len(item) > 1:
        raise UnetlibError(f'{name} has masks of {len(item)} regions. Name them, such as regions=("whole", "core").')
    if not regions or not stack:
        labels = _fit(item, name, volume, notes)
        return regions.from_labels(labels, name, notes) if regions else labels
    return regions.from_stack([_fit(one, f"a region in {name}", volume, notes) for one in np.asarray(item)], name)


def _fit(item: Any, name: str, volume: Volume, notes: list[str]) -> np.ndarray:
    """Return a mask as uint8 labels (X, Y, Z) on the grid of its volume, resampled where it has another."""
    mask = _read(item, name, volume.affine)
    labels, shape = _labels(mask.voxels, name), volume.voxels.shape
    if (mask.assumed or volume.assumed) and isinstance(item, WITH_GRID):
        labels = volume.to_lps(mask.to_stored(labels))
        if labels.shape != shape:
            raise UnetlibError(
                f"{name} has shape {labels.shape} and the volume {shape}, and one of them does not say how it is "
                "oriented, so the mask cannot be resampled. Give a mask on the grid of the volume."
            )
        if not volume.assumed:
            notes.append(f"The orientation of {name} is guessed: its voxels are taken to lie as those of the volume")
        return labels
    if mask.shares_grid(volume):
        return labels
    if not isinstance(item, WITH_GRID):
        raise UnetlibError(
            f"{name} has shape {labels.shape} and the volume {shape}; they must be the same, for an array does not "
            "say where it lies. Give the mask in LPS order, or as a NIfTI image or file."
        )
    to_mask = np.linalg.inv(mask.affine) @ volume.affine
    if not _meet(to_mask, shape, labels.shape):
        starts = [one.affine[:3, 3].round(1).tolist() for one in (mask, volume)]
        raise UnetlibError(
            f"{name} and the volume do not overlap in space: their first voxels lie at {starts[0]} and {starts[1]} mm. "
            "Find the mask that belongs to this volume."
        )
    found = ndimage.affine_transform(labels, to_mask, output_shape=shape, order=0, mode="grid-constant")
    before, after = (millilitres(np.count_nonzero(one), of.spacing) for one, of in ((labels, mask), (found, volume)))
    grid = " x ".join(map(str, labels.shape))
    notes.append(
        f"T{name[1:]} was resampled from {grid} voxels ({before:.1f} ml) to those of the volume ({after:.1f} ml)"
    )
    return found


def _labels(voxels: np.ndarray, name: str) -> np.ndarray:
    voxels = whole_labels(voxels)
    low, high = voxels.min(), voxels.max()
    strange = voxels[voxels != np.rint(voxels)] if voxels.dtype.kind == "f" else voxels[:0]
    if low < 0 or high > 255 or strange.size:
        example = f" ({strange.flat[0]:.9g} is not one)" if strange.size else ""
        raise UnetlibError(
            f"{name} holds values from {low:g} to {high:g}; whole labels from 0 to 255 were expected{example}. "
            "Threshold probabilities first."
        )
    return voxels.astype(np.uint8)


def _meet(link: np.ndarray, shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Tell whether two boxes of voxels overlap; `link`: (4, 4), from voxels of the first to those of the second."""
    low, high = around(np.array([(-0.5, n - 0.5) for n in shape]).T, link)
    return bool((high > -0.5).all() and (low < np.array(other) - 0.5).all())


def around(box: np.ndarray, link: np.ndarray) -> np.ndarray:
    """Return the box (2, 3) around a box in another volume; `link`: (4, 4), from voxels to voxels."""
    corners = np.array([(*corner, 1) for corner in product(*box.T)]) @ link[:3].T
    return np.stack([corners.min(0), corners.max(0)])


def _default_window(voxels: np.ndarray) -> tuple[float, float]:
    """Return the 0.5 and 99.5 percentiles of the voxels that are not 0; two different numbers always."""
    inside = voxels[voxels != 0].astype(np.float64)
    low, high = np.percentile(inside, (0.5, 99.5)).tolist() if inside.size else (0.0, 0.0)
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (0.0, 1.0)


def middle(panels: list[Panel]) -> np.ndarray:
    """Return the voxel (3,) of the first volume in the middle of the largest axial slice of the first mask.

    The reference goes before the prediction; without a mask it is the middle of the volume.
    """
    for panel, mask in [(p, p.truth) for p in panels] + [(p, p.prediction) for p in panels]:
        if mask is not None and mask.any():
            z = largest_slice(mask > 0)
            x, y = np.argwhere(mask[:, :, z]).mean(0)
            return np.linalg.inv(panel.link)[:3] @ (x, y, z, 1)
    return (np.array(panels[0].volume.voxels.shape) - 1) / 2


def encode(voxels: np.ndarray, step: float | None = None) -> tuple[np.ndarray, float, float]:
    """Return int16 voxels, slope and intercept: value = slope * voxel + intercept.

    Exact for whole numbers that span up to 65,535; otherwise in 65,535 steps from lowest to highest. With `step`, the
    values are rounded to its multiples.
    """
    if step is not None:
        return np.clip(np.rint(voxels / step), -32768, 32767).astype("<i2"), step, 0.0
    low, high = float(voxels.min()), float(voxels.max())
    whole = voxels.dtype.kind in "biu" or np.array_equal(voxels, np.rint(voxels))
    slope = 1.0 if low == high or (whole and high - low <= 65535) else (high - low) / 65535
    intercept = 0.0 if slope == 1 and whole and low >= -32768 and high <= 32767 else low + 32768 * slope
    if slope == 1 and intercept == 0:
        return voxels.astype("<i2"), slope, intercept
    return np.rint((voxels.astype(np.float64) - intercept) / slope).astype("<i2"), slope, intercept


def _slice(array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return a slice of a volume in LPS order as displayed: nose or top of the head up, the patient's right left."""
    flat = np.moveaxis(array, AXIS[plane], 0)[index].T  # `take` would copy the volume
    return flat if plane == "axial" else flat[::-1]
