"""Score masks that any tool has made: matched by name to the cases of a data folder, on the native grid."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unetlib.data.cases import Case, has_nominal_spacing, read_labels, unforeseen
from unetlib.data.layouts import MODALITIES
from unetlib.data.naming import key
from unetlib.data.nifti import OURS, WEIGHTS, files_of, read_description, stem
from unetlib.data.patients import Cohort, find_cases
from unetlib.data.regions import Regions, region_names, with_scheme
from unetlib.data.volumes import Source, Volume, read_volume, whole_labels
from unetlib.evaluation.matching import fitting_cases, index_names, nifti_files
from unetlib.evaluation.scores import ScoreFolder, compare
from unetlib.evaluation.summary import SLICES_FILE, SUMMARY_FILE, read_earlier
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import locked, refuse_link, require_empty, sha256, write_json
from unetlib.support.messages import say
from unetlib.support.parts import Parts

PROBABILITY = re.compile(r".+[-_. ](?:prob|probability|probabilities|softmax)(?:[-_]\w+)?", re.IGNORECASE)
MOST_LABELS = 64  # distinct values; more is an image, not a mask
NAMES = "Name a mask as its case, such as {0}.nii.gz or {0}_mask.nii.gz, or put it into a folder {0}."


@dataclass(frozen=True)
class Masks:
    """The masks of a folder, or one mask, for cases of a cohort: `found` maps the id of a case to its mask.

    `note` says what is not scored. The regions to score are those of `recipe`.
    """

    root: Path
    cohort: Cohort
    found: dict[str, Path]
    note: str
    recipe: Recipe

    @classmethod
    def find(
        cls, root: Path, data: Path, assume: str | None = None, regions: str = "whole", labels: str = "auto"
    ) -> "Masks":
        """Return the masks in a folder, at any depth, or in one file, for the cases of a data folder.

        A mask fits a case if its name, without .nii or .nii.gz, is that of the case, or of its image or reference where
        these begin with it. Words such as `_mask`, `_seg` or `-pred` may follow. Or it lies in a folder of the case's
        name. Raises `UnetlibError` when there is no mask, one fits no case or several, or several fit one case.
        """
        cohort, (paths, others) = _cases_with_any_image(data, assume), nifti_files(root)
        recipe = with_scheme(Recipe.published.but(regions=regions, labels=labels), {c.layout for c in cohort.cases})
        index, found, strangers = index_names(cohort), defaultdict[str, list[Path]](list), list[Path]()
        names = {path: stem(path.name) for path in paths}
        maps = [path for path, name in names.items() if PROBABILITY.fullmatch(name) and key(name) not in index]
        left_out = {*map(key, cohort.left_out)}
        for path in (path for path in paths if path not in maps):
            fits = sorted(fitting_cases(path, root, index, left_out))
            if len(fits) > 1:
                raise UnetlibError(f"{path} fits {len(fits)} cases: {first_of(fits, 5)}. {NAMES.format(fits[0])}")
            for id in fits:
                found[id].append(path)
            strangers += [] if fits else [path]
        if strangers:
            raise UnetlibError(_unknown(strangers, root, cohort))
        for id, own in found.items():
            if len(own) > 1:
                raise UnetlibError(
                    f"{root}: {len(own)} masks fit the case {id}: {first_of([*map(str, own)], 5)}. Keep one, and move "
                    "the others out of the folder."
                )
        if not found:
            raise UnetlibError(
                f"{root} holds {counted(len(maps), 'probability map')} and {counted(others, 'other file')}; masks in "
                f"NIfTI were expected. {NAMES.format(_example(cohort))}"
            )
        note = " ".join(_notes(maps, cohort, found))
        return cls(root, cohort, {id: own[0] for id, own in sorted(found.items())}, note, recipe)

    @property
    def cases(self) -> list[Case]:
        """The cases that have a mask."""
        return [case for case in self.cohort.cases if case.id in self.found]

    def read(self, case: Case) -> tuple[Volume, np.ndarray, np.ndarray]:
        """Return the image of a case, and its reference and mask, boolean (K, X, Y, Z).

        Raises `UnetlibError` when one of them cannot be read, the mask is on another grid than the reference, or it
        holds anything but labels: whole numbers of at least 0, few of them.
        """
        image, labels, _ = read_labels(case)
        path = self.found[case.id]
        mask = read_volume(Source((path,), assume=self.cohort.assume))
        _require_grid(path, mask, case, image)
        found = whole_labels(mask.voxels)
        _require_labels(path, found)
        regions = Regions.of(self.recipe, case.layout)
        if self.binary:
            return image, regions.masks(labels), (found > 0)[None]
        if regions.scheme == "brats2021" and not (found == 4).any():
            found = np.where(found == 3, 4, found)  # of nnU-Net, and of BraTS since 2023
        if self.older:
            if (labels == 4).any():
                raise UnetlibError(
                    f"{path}: no mask holds label 3, and label 4 is enhancing tumour in BraTS 2021, but the resection "
                    f"cavity in the reference of {case.id}. Give the masks the labels of the data."
                )
            found = np.where(found == 4, 3, found)
        try:
            return image, regions.masks(labels), regions.masks(found)
        except UnetlibError as error:
            raise UnetlibError(f"{path}, {case.id}: {error}") from error

    @cached_property
    def _labels(self) -> set[float]:
        """The labels in all masks; of what is no mask, the lowest values."""
        found = set[float]()
        for path in self.found.values():
            with suppress(UnetlibError):  # `read` says what is wrong with a mask
                voxels = read_volume(Source((path,), assume=self.cohort.assume)).voxels
                found.update(np.unique(whole_labels(voxels))[:MOST_LABELS].tolist())
        return found

    @property
    def binary(self) -> bool:
        """Whether there is one region to score, and no mask holds a label but 1: then 1 is this region.

        So `predict` writes a single region, and `export` its reference; in the data, the region has other labels.
        """
        one = len(region_names(self.recipe)) == 1 and self.recipe.regions != "whole"
        return one and self._labels <= {0, 1}

    @property
    def older(self) -> bool:
        """Whether the data have the labels of BraTS since 2023, and the masks those before: 4 for enhancing tumour."""
        return self.recipe.labels == "brats2023" and 4 in self._labels and 3 not in self._labels

    @property
    def notes(self) -> str:
        """What a reader of the scores should know."""
        one = f"The masks hold 0 and 1 only: 1 is taken for {self.recipe.regions}." if self.binary else ""
        made = ""
        if weights := sorted({*filter(None, map(_weights, self.found.values()))}):
            advice = "`unetlib evaluate RUN --data DATA` leaves out patients from whom the run has learned."
            made = f"Masks by `unetlib predict`, with the weights {first_of(weights, 3)}: {advice}"
        old = "No mask holds label 3: 4 is taken for enhancing tumour, as in BraTS 2021." if self.older else ""
        return " ".join(filter(None, (self.note, one, old, made)))

    def made_from(self, case: Case) -> list[Any]:
        """Return what the scores of a case depend on: its patient, its files by name, size and time, and the mask."""
        files = files_of(self.found[case.id])
        own = [[file.name for file in files], sha256(*files)]  # copying may keep a time
        what = [] if self.recipe == Recipe.published else [self.recipe.regions, self.recipe.labels, self.binary]
        what += [self.older] if self.older else []
        return [own, case.stamp(self.cohort.root), case.patient, self.cohort.assume, *what]


def _weights(path: Path) -> str:
    """Return what `predict` wrote into the header of a mask to identify its weights; empty for masks of other tools."""
    found = re.match(re.escape(OURS) + WEIGHTS.format(r"(\w+)"), read_description(path))
    return found[1] if found else ""


def score_masks(masks: Masks, folder: Path) -> dict[str, Any]:
    """Score masks on the native grid; return the summary, and write it to `folder` with its tables.

    A stopped call is resumed, a finished one reused. Raises `UnetlibError` when the folder holds anything else or is in
    use, or, once all others are scored, for masks that cannot be read or are on another grid.
    """
    _require_scores(folder, masks)
    scored = ScoreFolder.open(folder, {case.id: masks.made_from(case) for case in masks.cases}, masks.notes)
    with locked(folder):
        if done := scored.done():
            say(f"{folder} is done already, for these masks and references: reused.")
            return done
        if failed := _score_missing(masks, scored):
            reasons = failed[0] if len(failed) == 1 else "".join(f"\n- {reason}" for reason in failed)
            raise UnetlibError(f"{len(failed)} of {counted(len(masks.found), 'mask')} cannot be scored: {reasons}")
        about = {"masks": str(masks.root.resolve()), "data": str(masks.cohort.root.resolve()), "left_out": {}}
        return scored.write(masks.cases, about)


def _score_missing(masks: Masks, scored: ScoreFolder) -> list[str]:
    """Score every mask that has no scores yet; return the reasons of those that cannot be."""
    failed = []
    for case in scored.missing(masks.cases, "score"):
        try:
            image, truth, prediction = masks.read(case)
        except Exception as error:  # one bad file must not stop the others
            failed.append(str(error) if isinstance(error, UnetlibError) else f"{case.id}: {unforeseen(error)}")
        else:
            names = {"case": case.id, "patient": case.patient}
            nominal = has_nominal_spacing(case.id, image.spacing)
            regions = region_names(masks.recipe)
            found = compare(prediction, truth, image.spacing, names, nominal=nominal, regions=regions)
            write_json(scored.part(case), found)
    return failed


def _require_scores(folder: Path, masks: Masks) -> None:
    """Raise `UnetlibError` unless a folder is new, empty, or holds scores of these masks."""
    refuse_link(folder)
    path, parts = folder / SUMMARY_FILE, Parts.open(folder)
    if not (parts.left or path.is_file()):
        require_empty(folder, "a folder of scores")
    known = read_earlier(path)
    foreign = known is None and path.is_file() and not (folder / SLICES_FILE).is_file()
    if foreign or parts.foreign:
        raise UnetlibError(f"{folder} holds what another program or command has written. Choose another with --out.")
    for name, root, what in (("masks", masks.root, "the scores of"), ("data", masks.cohort.root, "scores against")):
        if known is not None and (other := known.get(name, "a run")) != str(root.resolve()):
            raise UnetlibError(f"{folder} holds {what} {other}. Choose another folder with --out.")


def _cases_with_any_image(data: Path, assume: str | None) -> Cohort:
    """Return the cases in a folder that have a reference and some image, whose grid is that of the reference."""
    cohort = find_cases(data, " ".join(MODALITIES), assume, "zero")
    first = {case.id: next(name for name in MODALITIES if name in case.images) for case in cohort.cases}
    cases = (replace(case, modalities=(first[case.id],), fill=False) for case in cohort.cases)
    return replace(cohort, cases=tuple(cases))


def _example(cohort: Cohort) -> str:
    return cohort.cases[0].id if cohort.cases else "CASE"


def _unknown(strangers: list[Path], root: Path, cohort: Cohort) -> str:
    """Return the sentence about masks that fit no case; their cases may have been left out of the data."""
    left_out = {key(id): (id, reason) for id, reason in cohort.left_out.items()}
    known = set(left_out).intersection(key(stem(path.name))[:at] for path in strangers for at in range(len(path.name)))
    why = " ".join("The case {} cannot be used: {}".format(*left_out[one]) for one in sorted(known)[:1])
    shown = first_of([path.relative_to(root).as_posix() if path != root else path.name for path in strangers], 5)
    number = f"{counted(len(strangers), 'mask')} {'fits' if len(strangers) == 1 else 'fit'} no case of {cohort.root}"
    advice = f"{NAMES.format(_example(cohort))} Move other files out of the folder."
    return " ".join(filter(None, (f"{root}: {number}: {shown}.", why, advice)))


def _notes(maps: list[Path], cohort: Cohort, found: Mapping[str, list[Path]]) -> Iterator[str]:
    if maps:
        yield f"Not scored, since they are named as probability maps: {first_of([path.name for path in maps], 5)}."
    if without := [case.id for case in cohort.cases if case.id not in found]:
        of = f"{len(without)} of {counted(len(cohort.cases), 'case')} ({first_of(without, 3)})"
        yield f"Not scored, since they have no mask: {of}."


def _require_grid(path: Path, mask: Volume, case: Case, image: Volume) -> None:
    """Raise `UnetlibError` unless a mask has the shape of a case's reference, and its affine or, if one of them is
    assumed, its order of voxels and their size."""
    if mask.voxels.shape != image.voxels.shape:
        raise UnetlibError(
            f"{path} has shape {mask.voxels.shape} and the reference of {case.id} has {image.voxels.shape}; masks are "
            "scored on the native grid. Resample or export it on the grid of the image."
        )
    if not mask.lies_on(image):
        raise UnetlibError(
            f"{path} has the affine {mask.affine.round(3).tolist()} and the reference of {case.id} has "
            f"{image.affine.round(3).tolist()}; they must be the same, or other tissue is compared. Resample or export "
            "the mask on the grid of the image."
        )


def _require_labels(path: Path, voxels: np.ndarray) -> None:
    """Raise `UnetlibError` unless a mask holds whole numbers of at least 0, and few different ones."""
    values = np.unique(voxels)
    if (broken := values[values != np.rint(values)]).size:
        raise UnetlibError(
            f"{path} holds {broken[0]:.4g}, so it is no mask of labels but a probability map or an image. Apply a "
            "threshold, such as 0.5, and save the result."
        )
    if values[0] < 0 or len(values) > MOST_LABELS:
        raise UnetlibError(
            f"{path} holds {counted(len(values), 'different value')} from {values[0]:g} to {values[-1]:g}; a mask of "
            "labels was expected, 0 where there is no tumour. Is it an image or a probability map?"
        )
