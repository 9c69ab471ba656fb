"""What can be reused from an earlier preparation: a finished folder with the same data and recipe, and its split."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from unetlib.data.cases import is_unchanged
from unetlib.data.naming import TABLE, divided, key
from unetlib.data.patients import Cohort
from unetlib.data.prepared import PREPARED_FILE, Prepared
from unetlib.data.split import SPLIT_FILE, Split, make_split
from unetlib.data.volumes import assumed_as
from unetlib.recipe import PREPARE, Recipe
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.fields import changed
from unetlib.support.files import read_json
from unetlib.support.messages import say, warn


def warn_of_divided(prepared: Prepared, cohort: Cohort) -> None:
    """Warn of patients whose scans the split of an older version has put into two parts."""
    parts = {id: prepared.split.part_of(case["patient"]) or "" for id, case in prepared.about["cases"].items()}
    if names := divided(parts, {case.id: case.patient for case in cohort.cases}):
        warn(
            f"{prepared.folder} was split under other names: scans of {counted(len(names), 'patient')} "
            f"({first_of(names, 5)}) are in two parts, so the scores will be too high. Prepare again with --rebuild."
        )


def differing(cohort: Cohort, about: Mapping[str, Any]) -> set[str]:
    """Return the ids of cases that were added, removed or changed since the folder that `about` describes was made."""
    hashes = about.get("unusable_sha256", {})  # of a case that could not be used, only the files can be compared
    unusable = {id: {"stamp": stamp, "sha256": hashes.get(id)} for id, stamp in about["unusable"].items()}
    known, now = unusable | about["cases"], {case.id: case for case in cohort.cases}
    both = known.keys() & now.keys()
    changed = {id for id in both if not is_unchanged(now[id], cohort.root, known[id]["stamp"], known[id])}
    return (known.keys() ^ now.keys()) | changed


def refuse_changes(prepared: Prepared, cohort: Cohort, recipe: Recipe) -> None:
    """Raise `UnetlibError` when a finished folder was made with another recipe or from other data."""
    folder, about = prepared.folder, prepared.about
    again = (
        f"Choose another folder, or replace it: delete {folder} (or add --rebuild to `unetlib prepare`), then give the "
        "same command again."
    )
    if differences := changed(about["recipe"], recipe.stage(PREPARE)):
        raise UnetlibError(f"{folder} was prepared with another recipe ({differences}). {again}")
    if prepared.assume != cohort.assume:
        raise UnetlibError(
            f"{folder} was prepared with {assumed_as(prepared.assume)}, not with {assumed_as(cohort.assume)}. {again}"
        )
    before = about.get("patients_csv", {})
    tables = before.keys() | cohort.table.keys()
    if renamed := sorted(one for one in tables if key(before.get(one, "")) != key(cohort.table.get(one, ""))):
        raise UnetlibError(
            f"{folder} was split by other patients: {TABLE} has changed for {counted(len(renamed), 'case')} "
            f"({first_of(renamed, 5)}). {again}"
        )
    if news := differing(cohort, about):
        raise UnetlibError(
            f"{folder} was prepared from other data: {counted(len(news), 'case')} added, removed or changed "
            f"({first_of(sorted(news), 5)}). {again}"
        )


def refuse_members(folder: Path, cohort: Cohort, recipe: Recipe) -> None:
    """Raise `UnetlibError` if the last member of a recipe has nobody to validate on, were all patients usable."""
    path, patients = folder / SPLIT_FILE, {case.patient for case in cohort.cases}
    known = path.exists()
    split = Split.load(path) if known else make_split(patients, recipe.split_seed, recipe.train_fraction)
    split.of_member(recipe.members - 1)


def get_split(folder: Path, patients: set[str], recipe: Recipe, rebuild: bool) -> Split:
    """Return the split in the folder, or a new one; with `rebuild`, also a new one if the old one does not fit.

    A split without prepared slices is the user's own, or of a call that was stopped: it is never replaced. Raises
    `UnetlibError` if it does not fit the patients, or a seed is given that draws another.
    """
    path, fresh = folder / SPLIT_FILE, make_split(patients, recipe.split_seed, recipe.train_fraction)
    if not path.exists():
        return fresh
    again = rebuild and (folder / PREPARED_FILE).exists()
    if again:  # is it of these patients, and drawn with the same seed?
        before = recipe.as_dict()  # if that file is damaged
        with suppress(UnetlibError, KeyError):
            before = read_json(folder / PREPARED_FILE)["recipe"]
        same = all(before.get(name) == getattr(recipe, name) for name in ("split_seed", "train_fraction"))
        try:
            if not same or Split.load(path).patients() != patients:
                return fresh
        except UnetlibError:
            return fresh
    split = Split.load(path)
    gone, new = sorted(split.patients() - patients), sorted(patients - split.patients())
    if gone or new:
        lacks = (("no usable case is of", gone), ("it lacks", new))
        why = "; ".join(f"{what} {first_of(names, 5)}" for what, names in lacks if names)
        raise UnetlibError(f"{path} does not fit the data: {why}. Delete it to draw a new split.")
    if split != fresh and recipe.split_seed and not again:  # the folder would say that this seed drew it
        raise UnetlibError(
            f"{path} is not the split that the seed {recipe.split_seed} draws. Delete it to draw that one, or leave "
            "out the seed to use it."
        )
    of = "" if split == fresh else f", which is not the one that the seed {recipe.split_seed} draws"
    say(f"{path} exists: the split is reused{of}.")
    return split
