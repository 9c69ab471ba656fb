"""Write patients in the raw layout of nnU-Net, with this library's split, so that both train on the same patients.

Sources: Isensee et al., "nnU-Net", Nature Methods 2021; the documentation of nnU-Net 2 on its data sets and regions.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np

from unetlib.data.cases import SHARE, Case, hash_images, read_regions, without_copies
from unetlib.data.patients import Cohort, find_cases, require_sequences
from unetlib.data.prepared import PREPARED_FILE, Prepared
from unetlib.data.regions import SCHEMES, Regions, absent_regions, region_names, with_scheme
from unetlib.data.reuse import differing
from unetlib.data.sequences import say_resampled
from unetlib.data.split import Split, make_split
from unetlib.recipe import OF_PATIENTS, REGIONS, SEQUENCES, Recipe
from unetlib.support import files
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.jobs import run_jobs
from unetlib.support.messages import say, warn
from unetlib.support.parts import Parts
from unetlib.support.paths import takes_paths

NAME = re.compile(r"Dataset\d{3}_\w+")
RESULT = "dataset.json"  # written last: if it exists, the folder is complete
SPLITS = "splits_final.json"
BEGUN = "begun"  # the first part: what all others are made from


@dataclass(frozen=True)
class _Job:
    """One case to write, and its part, which is written after its files and says what they hold."""

    case: Case
    recipe: Recipe
    part: Path

    @property
    def files(self) -> dict[tuple[str, str], Path]:
        """Its files by kind and name, and where each lies until all cases are written."""
        found = _files(self.case.id, len(self.case.modalities))
        return {(kind, name): self.part.with_name(f"{kind}-{name}") for kind, name in found}


def _files(case: str, sequences: int) -> list[tuple[str, str]]:
    """Return kind and name of the files of a case: a number for each sequence, then the label map."""
    images = [("images", f"{case}_{place:04d}.nii.gz") for place in range(sequences)]
    return [*images, ("labels", f"{case}.nii.gz")]


@takes_paths
def export_nnunet(
    data: Path,
    folder: Path,
    recipe: Recipe = Recipe.published,
    workers: int | None = None,
    assume: str | None = None,
    split: Split | None = None,
) -> dict[str, Any]:
    """Write the patients of `data` to `folder` as a raw data set of nnU-Net; return what its `dataset.json` says.

    `data`: a folder of patients, which are divided by `split`, or as `prepare` would divide them with this recipe; or a
    folder that `prepare` has made, whose patients, split, sequences and regions are used. `folder` has a name such as
    `Dataset501_Tumours`. It gets `imagesTr` and `labelsTr`, `imagesTs` and `labelsTs` (the test patients), and
    `splits_final.json`, whose only fold is our training and validation. Images keep grid and values, as float32; a
    sequence on another grid than the first is resampled to it. One region gets the label 1; the three of BraTS get the
    labels 1 to 3 without a gap, since nnU-Net counts so. A stopped call is resumed, a finished one reused. Cases that
    cannot be used are named and left out.

    Raises `UnetlibError` for a folder of another name or content, or within the data, for unusable data, or data that
    have changed since they were prepared, for other regions, fewer than three patients, or files of an earlier call
    that are gone.
    """
    if not NAME.fullmatch(folder.absolute().name):
        raise UnetlibError(
            f"{folder} is no name of a data set for nnU-Net; one such as Dataset501_Tumours was expected, with three "
            "digits that none of your others has."
        )
    if (data / PREPARED_FILE).exists():
        prepared = Prepared.open(data)
        recipe = prepared.reading
        split, cohort = prepared.split, _prepared_cohort(prepared, recipe, assume)
    else:
        cohort = find_cases(data, recipe.modalities, assume, recipe.missing)
    if cohort.root.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UnetlibError(
            f"{folder} lies in {cohort.root}, where its images would be taken for further patients. Choose a folder "
            "elsewhere."
        )
    if not cohort.cases:
        reasons = "".join(f"\n- {name}: {reason}" for name, reason in [*cohort.left_out.items()][:5])
        raise UnetlibError(f"{cohort.root}: none of {counted(len(cohort.left_out), 'case')} can be used:{reasons}")
    require_sequences(cohort.root, recipe.modalities.split(), cohort.cases)
    for note in cohort.notes:
        warn(note)
    recipe = with_scheme(recipe, {case.layout for case in cohort.cases})
    choices = {name: getattr(recipe, name) for name in OF_PATIENTS}
    made_from = [choices, cohort.assume, cohort.table, split and split.hash]
    key = files.digest([*made_from, {case.id: case.stamp(cohort.root) for case in cohort.cases}])
    about = {
        "channel_names": {str(place): SEQUENCES[name] for place, name in enumerate(recipe.modalities.split())},
        **_labels(recipe),
        "file_ending": ".nii.gz",
        "made_from": key,
    }
    with files.locked(folder):
        if (folder / RESULT).exists():
            known = files.read_json(folder / RESULT)
            if known.get("made_from") != key and known.get("content") != _content(made_from, cohort, workers, {}):
                _refuse(folder, known)
            _require_all(folder, known)
            Parts(folder).remove()  # left by a kill before the last line of `_export`
            say(f"{folder} is written already, from the same data: reused.")
            return known
        begun = Parts.open(folder).path(BEGUN)
        if begun.exists() and files.read_json(begun).get("made_from") != key and not files.visible(folder):
            Parts(folder).remove()  # of other choices, which may have failed: nothing has its place yet
        if not begun.exists():
            files.require_empty(folder, "a data set of nnU-Net that unetlib has written")
            files.write_json(begun, {"made_from": key})
        elif (known := files.read_json(begun)).get("made_from") != key:
            _refuse(folder, known)
        return _export(cohort, folder, recipe, about, made_from, split, workers)


def _content(made_from: list[Any], cohort: Cohort, workers: int | None, known: dict[str, str]) -> str:
    """Return what an export depends on, with the bytes of the files: copying a folder changes its times alone.

    `known`: the hashes of cases whose files need not be read again.
    """
    todo = [case for case in cohort.cases if case.id not in known]
    hashes = {case.id: found for case, found in run_jobs(_hash_files, todo, "hash", "case", workers, SHARE)}
    return files.digest([*made_from, {**known, **hashes}])


def _hash_files(case: Case) -> str:
    return files.sha256(*(path for path in case.files() if path.exists()))


def _prepared_cohort(prepared: Prepared, recipe: Recipe, assume: str | None) -> Cohort:
    """Return the cases of a prepared folder, with its names of patients; raises `UnetlibError` if they have changed."""
    if not prepared.data.exists():
        raise UnetlibError(
            f"{prepared.folder} was prepared from {prepared.data}, which no longer exists. Put it back, or change "
            f"`data` in {prepared.folder / 'prepared.json'} to where it is now."
        )
    cohort = find_cases(prepared.data, recipe.modalities, prepared.assume or assume, recipe.missing)
    known, before = prepared.about["cases"], prepared.about["left_out"]
    if news := differing(cohort, prepared.about):
        raise UnetlibError(
            f"{cohort.root} has changed since it was prepared: {first_of(sorted(news), 5)} was added, removed or "
            f"changed. Prepare it again, then export it."
        )
    cases = tuple(replace(case, patient=known[case.id]["patient"]) for case in cohort.cases if case.id in known)
    return replace(cohort, cases=cases, left_out={**before, **cohort.left_out})


def _refuse(folder: Path, about: dict[str, Any]) -> NoReturn:
    if "made_from" not in about:
        raise UnetlibError(f"{folder} holds a data set that unetlib has not written. Choose another folder.")
    raise UnetlibError(
        f"{folder} was written, or begun, from other data or with other choices. Choose another folder, or delete this "
        "one first."
    )


def _require_all(folder: Path, about: dict[str, Any]) -> None:
    """Raise `UnetlibError` if a file of a finished data set is gone."""
    expected = [SPLITS] + [
        f"{kind}{end}/{name}"
        for end, cases in about.get("cases", {}).items()
        for case in cases
        for kind, name in _files(case, len(about["channel_names"]))
    ]
    if gone := [name for name in expected if not (folder / name).exists()]:
        raise UnetlibError(f"{folder} lacks {first_of(gone)}, which was there. Delete the folder and export again.")


def _labels(recipe: Recipe) -> dict[str, Any]:
    """Return the labels of the regions as `dataset.json` names them; raises `UnetlibError` for regions without any."""
    names = tuple(region_names(recipe))
    if taken := {"background", "ignore"}.intersection(names):
        raise UnetlibError(f"the region {taken.pop()!r} has a name that nnU-Net uses itself. Choose another name.")
    if len(names) == 1:
        return {"labels": {"background": 0, names[0]: 1}}
    if names != REGIONS:
        raise UnetlibError(
            f"the regions {recipe.regions} cannot be written for nnU-Net, which has one label a voxel; one region, or "
            f"{' '.join(REGIONS)} in this order, was expected. Export DATA with such --regions, or prepare it anew so."
        )
    core, oedema, enhancing = (min(label, 3) for label in SCHEMES[recipe.labels])
    inside = {"whole": sorted((core, oedema, enhancing)), "core": sorted((core, enhancing)), "enhancing": [enhancing]}
    return {"labels": {"background": 0, **inside}, "regions_class_order": [oedema, core, enhancing]}


def _export(
    cohort: Cohort,
    folder: Path,
    recipe: Recipe,
    about: dict[str, Any],
    made_from: list[Any],
    split: Split | None,
    workers: int | None,
) -> dict[str, Any]:
    """Write what is missing; return `about` with the number of training cases, and with what it depends on."""
    parts = Parts.open(folder)
    jobs = [_Job(case, recipe, parts.path(case.id, about["made_from"])) for case in cohort.cases]
    todo = [job for job in jobs if not job.part.exists()]
    done = run_jobs(_write, todo, "export", "case", workers, SHARE)
    left_out = cohort.left_out | {job.case.id: reason for job, reason in done if reason is not None}
    jobs = [job for job in jobs if job.case.id not in left_out]
    written = {job.case.id: files.read_json(job.part) for job in jobs}
    about["content"] = _content(made_from, cohort, workers, {id: one["files"] for id, one in written.items()})
    patients, copies = without_copies([(job.case, written[job.case.id]["images"]) for job in jobs])
    for name, reason in (left_out | copies).items():
        warn(f"left out {name}: {reason}")
    jobs = [job for job in jobs if job.case.id not in copies]
    if absent := absent_regions(recipe, [written[job.case.id]["regions"] for job in jobs]):
        raise UnetlibError(f"{cohort.root}: no case has a voxel of {first_of(absent)}: there is nothing to learn.")
    own = {patients[job.case.id] for job in jobs}
    split = split or make_split(own, recipe.split_seed, recipe.train_fraction)
    if apart := own ^ split.patients():
        raise UnetlibError(
            f"{cohort.root} and the split name different patients: {first_of(sorted(apart), 5)} in one of the two "
            "only. Make a split of all patients that can be used."
        )
    part_of = {job.case.id: split.part_of(patients[job.case.id]) for job in jobs}
    for job in jobs:
        ends = ("Ts", "Tr") if part_of[job.case.id] == "test" else ("Tr", "Ts")
        for (kind, name), path in job.files.items():
            goal, other = (folder / f"{kind}{end}" / name for end in ends)
            _move(path, goal, other)
    say_resampled([job.case.id for job in jobs if written[job.case.id]["resampled"]], recipe.modalities)
    if any(written[job.case.id]["sheared"] for job in jobs):
        about["overwrite_image_reader_writer"] = "NibabelIO"  # nnU-Net's usual one needs axes at right angles
    fold = {part: [name for name, other in part_of.items() if other == part] for part in ("train", "val")}
    training, test = [*fold["train"], *fold["val"]], [name for name, part in part_of.items() if part == "test"]
    about |= {"numTraining": len(training), "cases": {"Tr": training, "Ts": test}}
    (folder / SPLITS).unlink(missing_ok=True)
    files.write_json(folder / SPLITS, [fold])
    files.write_json(folder / RESULT, about)
    parts.remove()
    return about


def _write(job: _Job) -> str | None:
    """Write the files of one case beside its part, then the part; return why it is left out, or `None`."""
    try:
        image, masks = read_regions(job.case, job.recipe)
    except UnetlibError as error:
        return str(error).removeprefix(f"{job.case.id}: ")
    labels = masks[0] if len(masks) == 1 else Regions.of(job.recipe, job.case.layout).label_map(masks)
    sequences = image.voxels if image.voxels.ndim == 4 else image.voxels[None]
    arrays = [*(one.astype(np.float32) for one in sequences), np.minimum(np.asarray(labels, np.uint8), 3)]
    for array, path in zip(arrays, job.files.values(), strict=True):
        with files.atomic(path) as temporary:
            nib.save(nib.Nifti1Image(image.to_stored(array), image.stored_affine), temporary)
    axes = image.stored_affine[:3, :3] / np.linalg.norm(image.stored_affine[:3, :3], axis=0)
    about = {
        "regions": masks.any((1, 2, 3)).tolist(),
        "resampled": list(image.resampled),
        "sheared": not np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=1e-5),
    }
    files.write_json(job.part, {"files": _hash_files(job.case), "images": hash_images(image), **about})
    return None


def _move(path: Path, goal: Path, other: Path) -> None:
    """Move a file, unless it was moved before a stop: to `goal`, or to `other` if the split was another one then."""
    goal.parent.mkdir(exist_ok=True)
    for place in (path, other):
        if place.exists():
            os.replace(place, goal)
    if not goal.exists():
        raise UnetlibError(
            f"{goal} was written before the last stop, and is gone. Delete {goal.parents[1]} and export again."
        )
