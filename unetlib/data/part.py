"""The part of one case: its slices and what identifies it, in a file of its own until all parts are merged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unetlib.data.cases import HASHES, Case, hash_case, read_labels, require_spacing
from unetlib.data.depth import Cube
from unetlib.data.regions import Regions
from unetlib.data.slices import Window, choose_slices, image_to_slices, mask_shares, mask_to_slices, packed
from unetlib.data.volumes import Volume
from unetlib.recipe import PREPARE, Recipe
from unetlib.support import files
from unetlib.support.errors import UnetlibError, brief
from unetlib.support.parts import Parts
from unetlib.support.records import refuse_packed

PART = ("images", "masks", "z", "tumour_voxels", *HASHES, "scans", "resampled", "regions", "outside")


@dataclass(frozen=True)
class Job:
    """One case to prepare, and everything its part is made from."""

    case: Case
    recipe: Recipe
    parts: Parts
    stamp: list[list[str | int]]

    @property
    def part(self) -> Path:
        """The file of its part."""
        assume = [self.case.seg.assume] if self.case.seg and self.case.seg.assume else []
        return self.parts.path(self.case.id, self.recipe.stage(PREPARE), self.stamp, HASHES, *assume)


def prepare_case(job: Job) -> str | None:
    """Write the part of one case; return why it is left out, or `None`."""
    try:
        volume, labels, _ = read_labels(job.case)
        regions = Regions.of(job.recipe, job.case.layout).masks(labels)
        require_spacing(job.case.id, volume.spacing, job.recipe.dims)
        arrays = (_cube if job.recipe.dims == 3 else _slices)(volume, regions, job.recipe)
    except UnetlibError as error:
        return str(error).removeprefix(f"{job.case.id}: ")
    scans, content = hash_case(volume, labels)
    with files.atomic(job.part) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            **arrays,
            sha256=files.sha256(*job.case.files()),
            image=scans[0],
            content=content,
            scans=scans,
            resampled=np.array(volume.resampled, dtype=str),
            regions=regions.any((1, 2, 3)),
        )
    return None


def _slices(volume: Volume, regions: np.ndarray, recipe: Recipe) -> dict[str, Any]:
    """Return the slices to keep of a volume and its masks (K, X, Y, Z), and what the table says of them."""
    mask = np.asarray(regions.any(0))
    z = choose_slices(volume.voxels, mask, recipe.slices)
    images = image_to_slices(volume.voxels, recipe, z)  # 5 x faster than resizing all, then selecting
    masks = mask_to_slices(regions, recipe, z, Window.of(volume.voxels, recipe))
    return {**_stored(images, masks), "z": z, "tumour_voxels": mask[:, :, z].sum((0, 1)), "outside": 0}


def _cube(volume: Volume, regions: np.ndarray, recipe: Recipe) -> dict[str, Any]:
    """Return the cube around the head and its mask; `outside`: the voxels of the tumour that are not in it."""
    cube, mask = Cube.of(volume.voxels, recipe, volume.spacing), np.asarray(regions.any(0))
    images = cube.planes(image_to_slices(volume.voxels, recipe, window=cube.window))
    masks = cube.planes(mask_shares(regions, recipe, window=cube.window)) >= 0.5
    outside = mask.sum() - cube.inside(mask).sum()
    rows = {"z": np.array([-1]), "tumour_voxels": mask.sum(keepdims=True).ravel()}  # no slice, but all of them
    return {**_stored(images[None], masks[None]), **rows, "outside": outside}


def _stored(images: Tensor, masks: Tensor) -> dict[str, np.ndarray]:
    return {"images": images.numpy().astype(np.float16), "masks": packed(masks.numpy().astype(np.uint8))}


def read_part(job: Job) -> dict[str, np.ndarray]:
    """Return the arrays that `prepare_case` has written; raises `UnetlibError` when they are damaged or invalid."""
    side = job.recipe.image_size
    try:
        refuse_packed(job.part)
        with np.load(job.part, allow_pickle=False) as file:
            part = {name: file[name] for name in PART}
        images, masks, number = part["images"], part["masks"], len(part["z"])
        channels, regions = len(job.case.modalities), len(job.recipe.regions.split())
        size = (side,) * job.recipe.dims
        if images.shape != (number, channels, *size) or masks.shape != (number, 1, *size):
            raise ValueError(f"images {images.shape} and masks {masks.shape}")
        if images.dtype != np.float16 or masks.dtype != np.uint8 or any(part[kind].dtype != "<U64" for kind in HASHES):
            raise ValueError("arrays of other types")
        if part["regions"].shape != (regions,) or part["scans"].dtype != "<U64" or part["resampled"].dtype.kind != "U":
            raise ValueError("other regions or sequences")
        if (
            part["tumour_voxels"].shape != (number,)
            or part["outside"].shape
            or masks.max(initial=0) >> regions
            or not np.isfinite(images).all()
        ):
            raise ValueError("values that no slice has")
    except Exception as error:  # zipfile and numpy raise many types of exception on damaged files
        raise UnetlibError(
            f"{job.part} is damaged ({brief(str(error))}). Delete it, then give the same command again."
        ) from error
    return part
