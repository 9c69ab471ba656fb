"""Write the masks of patients whose images are NIfTI files."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from unetlib.data.cases import require_spacing, unforeseen
from unetlib.data.nifti import OURS, WEIGHTS, open_nifti, read_description, require_voxels
from unetlib.data.regions import Regions, region_names
from unetlib.data.volumes import Volume, assumption, read_shape
from unetlib.prediction.predictor import Predictor
from unetlib.prediction.scans import Reader, Scan
from unetlib.prediction.segment import Segmentation, segment
from unetlib.recipe import REGIONS
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import atomic, remove_temporary
from unetlib.support.jobs import progress
from unetlib.support.messages import say
from unetlib.support.paths import fold, takes_paths

LONGEST = 200  # bytes of a file's name: most file systems take 255, and its temporary name is longer
ORIGIN = OURS + WEIGHTS + " image {} {}{}"  # 80 bytes at the most


@takes_paths
def predict(
    run: Run | Path | str | Sequence[Run | Path | str],
    images: list[Path | dict[str, Path]],
    out: Path,
    probabilities: bool = False,
    channel: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
    assume: str | None = None,
    threads: int | None = None,
) -> list[Path]:
    """Write a mask `<name>_mask.nii.gz` to `out` for each NIfTI file, and return their paths.

    `run` may be several runs, whose probabilities are averaged. `images` may also hold folders of patients, or a .tar
    of one, in the layouts of `find_cases`, with or without masks. For a run that sees several sequences, each patient
    is such a folder or a dictionary from sequence to file, such as `{"flair": "a.nii.gz", "t1": "b.nii.gz"}`; sequences
    on other grids are interpolated to that of the first. `<name>` is then the patient's id, else the name of the file.

    The mask is uint8, 0 or 1, with the shape, affine and header of the (first) input. Several of BraTS's regions make a
    label map, with the labels of the training data; of regions of one's own each has a file, such as
    `<name>_solid_mask.nii.gz` (without names, `<name>_mask_0.nii.gz`). With `probabilities`, a float32
    `<name>_probability.nii.gz` is written, too; of several regions `<name>_whole_probability.nii.gz` and so on.
    `channel` picks the FLAIR volume of a 4-D file. `assume` ("ras" or "lps") is the orientation of images that do not
    state one; their masks do not state one either, so that every program shows both in the same way. `threads`: CPU
    threads, by default one for each idle processor. The description in a mask's header names its weights and images;
    the same call, repeated, makes only what is missing. For research and education, never for clinical use.

    If some images fail, the others still get their masks, and `UnetlibError` then names those that failed. An image
    fails if it cannot be used, has the name of another one, or has a mask from other weights or another image (unless
    `overwrite`); a patient, if a sequence is missing (unless the run has learned to do without), or the files are of
    two patients. Raises `UnetlibError` at once for a run that cannot be used or a folder that cannot be written.
    """
    if not images:
        raise UnetlibError("no image was given; NIfTI files were expected.")
    predictor = Predictor.open(run, device, threads=threads)
    reader = Reader(tuple(predictor.recipe.modalities.split()), predictor.takes_gaps, channel, assumption(assume))
    scans, failed = _find(reader, images)
    jobs, taken = list[_Job](), _Taken.of(scans, out, *_kinds(predictor, probabilities))
    for scan in scans:
        try:
            jobs.append(_Job.plan(reader, scan, taken, predictor.key[:16], overwrite))
        except UnetlibError as error:
            failed.append(str(error))
    unit, total = "image" if len(reader.modalities) == 1 else "patient", len(jobs) + len(failed)
    with progress(total, "predict", unit, total - sum(not job.done for job in jobs)) as bar:
        for job in jobs:
            if job.done:
                say(f"{first_of([*map(str, job.files)])}: exists already, from these weights and this {unit}.")
                continue
            try:
                volume = reader.read(job.scan)
                require_spacing(job.scan.case, volume.spacing, predictor.dims)
            except Exception as error:  # one bad file must not stop the others
                failed.append(str(error) if isinstance(error, UnetlibError) else f"{job.scan}: {unforeseen(error)}")
                bar.update()
                continue
            try:
                found = segment(predictor, volume)
            except UnetlibError as error:  # this network cannot use it
                failed.append(f"{job.scan}: {error}")
            else:
                for array, file in zip(_arrays(predictor, found), job.files, strict=False):
                    _save_like(volume, volume.to_stored(array), job.origin, file)
                    say(str(file))
                for file in job.stale:
                    file.unlink()
                    say(f"{file} was of an earlier mask, and is removed. --probabilities writes a new one.")
            bar.update()
    if failed:
        reasons = failed[0] if len(failed) == 1 else "".join(f"\n- {reason}" for reason in failed)
        raise UnetlibError(f"{len(failed)} of {counted(total, unit)} got no mask: {reasons}")
    return [file for job in jobs for file in job.files]


def _find(reader: Reader, images: list[Path | dict[str, Path]]) -> tuple[list[Scan], list[str]]:
    """Return the scans that were named, each once, and a sentence for each that cannot be used."""
    scans, failed = dict[Any, Scan](), list[str]()
    for one in images:
        try:
            found, left_out = reader.find(one)
        except UnetlibError as error:
            found, left_out = [], [str(error)]
        scans |= {scan.files: scan for scan in found}  # .hdr and .img are one image
        failed += left_out
    return [*scans.values()], failed


def _label_map(predictor: Predictor) -> Regions | None:
    """Return the regions whose masks are written as one label map: two or all of BraTS's, with known labels."""
    names, recipe = region_names(predictor.recipe), predictor.recipe
    if len(names) != predictor.channels[1] or len(names) == 1 or not {*names} <= {*REGIONS} or recipe.labels == "auto":
        return None
    return Regions.of(recipe)


def _kinds(predictor: Predictor, probabilities: bool) -> tuple[list[str], list[str]]:
    """Return what each file of a scan is called after its name, masks or a label map, then probabilities.

    The second list names the probabilities if they are not to be written.
    """
    names, number = region_names(predictor.recipe), predictor.channels[1]
    if len(names) != number:  # of a user's own data set, whose recipe does not name them
        each = {kind: [f"{kind}_{region}" for region in range(number)] for kind in ("mask", "probability")}
    else:
        before = [f"{name}_" for name in names] if number > 1 else [""]
        each = {kind: [f"{region}{kind}" for region in before] for kind in ("mask", "probability")}
    masks = ["mask"] if _label_map(predictor) else each["mask"]
    return (masks + each["probability"], []) if probabilities else (masks, each["probability"])


def _arrays(predictor: Predictor, found: Segmentation) -> list[np.ndarray]:
    """Return the arrays (X, Y, Z) of these files."""
    regions = _label_map(predictor)
    labels = regions.label_map(found.mask) if regions else None
    return [*(found.mask.astype(np.uint8) if labels is None else [labels]), *found.probability]


@dataclass(frozen=True)
class _Taken:
    """The files that all scans of a call would write, each with its scans, and the images that it reads."""

    out: Path
    kinds: list[str]
    others: list[str]  # kinds that an earlier call may have written
    scans: dict[str, list[Scan]]
    images: set[Path]

    @classmethod
    def of(cls, scans: list[Scan], out: Path, kinds: list[str], others: list[str]) -> "_Taken":
        images = {path.resolve() for scan in scans for paths in scan.files for path in paths[1]}
        made = cls(out, kinds, others, {}, images)
        for scan in scans:
            for file in made.files(scan, kinds):
                made.scans.setdefault(fold(file.name), []).append(scan)
        return made

    def files(self, scan: Scan, kinds: list[str]) -> list[Path]:
        """Return the files of a scan of these kinds."""
        return [self.out / f"{scan.name}_{kind}.nii.gz" for kind in kinds]


@dataclass(frozen=True)
class _Job:
    """One scan to predict, the description for its masks' headers, and the files to write and to remove."""

    scan: Scan
    origin: str
    files: list[Path]
    stale: list[Path]  # probabilities of an earlier mask
    done: bool

    @classmethod
    def plan(cls, reader: Reader, scan: Scan, taken: _Taken, weights: str, overwrite: bool) -> "_Job":
        """Return the job of a scan; raises `UnetlibError` if it cannot be done."""
        for source in scan.sources.values():
            read_shape(source)  # raises for what cannot be used, as far as its header tells
        files = taken.files(scan, taken.kinds)
        if max(len(file.name.encode()) for file in files) > LONGEST:
            raise UnetlibError(f"{scan}: its name is too long for the name of a mask. Rename the image.")
        if lost := [file for file in files if file.resolve() in taken.images]:
            raise UnetlibError(
                f"{scan}: its mask {lost[0]} would overwrite an image of this call. Name another folder."
            )
        same = [other for file in files for other in taken.scans[fold(file.name)]]  # Windows and macOS ignore case
        if others := [*dict.fromkeys(str(other) for other in same if other is not scan)]:
            raise UnetlibError(
                f"{scan} and {first_of(others)} give files of the same name, so their masks would overwrite each "
                "other. Predict them into different folders"
                + ("." if len(reader.modalities) == 1 else ", or give the files of one patient after one --image.")
            )
        origin = ORIGIN.format(weights, *reader.fingerprint(scan))
        known = {file: read_description(file) for file in taken.files(scan, taken.others) if file.exists()}
        stale = [file for file, other in known.items() if other.startswith(OURS) and other != origin]
        return cls(scan, origin, files, stale, not overwrite and _are_done(files, stale, origin))


def _are_done(files: list[Path], stale: list[Path], origin: str) -> bool:
    """Tell whether all files exist and are whole; raises `UnetlibError` if one has another origin, or is stale."""
    for file in files:
        remove_temporary(file.parent, file.name)
    if other := [file for file in files if file.exists() and read_description(file) != origin] + stale:
        raise UnetlibError(
            f"{other[0]} exists already, from other weights, another decision or another image. Choose another "
            "folder, or replace it with --overwrite."
        )
    return all(file.exists() and _is_whole(file) for file in files)


def _is_whole(file: Path) -> bool:
    with suppress(UnetlibError), open_nifti(file) as image:
        require_voxels(image, file)
        return True
    return False


def _save_like(volume: Volume, array: np.ndarray, origin: str, path: Path) -> None:
    """Write an array with the header of a volume, except for its number type, intensity scale and description."""
    image = nib.Nifti1Image(array, None if volume.assumed else volume.stored_affine, volume.header)
    image.set_data_dtype(array.dtype)
    image.header["cal_min"], image.header["cal_max"] = 0, max(1, int(array.max()))  # a label may be above 1
    image.header["descrip"] = origin
    with atomic(path) as temporary:
        nib.save(image, temporary)
