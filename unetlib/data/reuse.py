"""What can be reused from an earlier preparation: a finished folder with the same data and recipe, and its split."""

from pathlib import Path

from unetlib.data.naming import TABLE, divided, key
from unetlib.data.patients import Cohort
from unetlib.data.prepared import Prepared
from unetlib.data.sameness import is_unchanged
from unetlib.data.split import Split, make_split
from unetlib.data.volumes import assumed_as
from unetlib.recipe import PREPARE, Recipe, changed
from unetlib.support.errors import UnetlibError, counted, first_of
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


def refuse_changes(prepared: Prepared, cohort: Cohort, now: dict[str, list[list[str | int]]], recipe: Recipe) -> None:
    """Raise `UnetlibError` when a finished folder was made with another recipe or from other data.

    `now` holds the current stamp of each case.
    """
    folder, about = prepared.folder, prepared.about
    again = f"Choose another folder, or replace it with: unetlib prepare DATA {folder} --rebuild"
    if differences := changed(about["recipe"], recipe.stage(PREPARE)):
        raise UnetlibError(f"{folder} was prepared with another recipe ({differences}). {again}")
    if prepared.assume != cohort.assume:
        raise UnetlibError(
            f"{folder} was prepared with {assumed_as(prepared.assume)}, not with {assumed_as(cohort.assume)}. {again}"
        )
    before = about.get("patients_csv", {})
    renamed = sorted(
        name
        for name in before.keys() | cohort.table.keys()
        if key(before.get(name, "")) != key(cohort.table.get(name, ""))
    )
    if renamed:
        raise UnetlibError(
            f"{folder} was split by other patients: {TABLE} has changed for {counted(len(renamed), 'case')} "
            f"({first_of(renamed, 5)}). {again}"
        )
    stamps = {name: case["stamp"] for name, case in about["cases"].items()} | about["unusable"]
    cases, known = {case.id: case for case in cohort.cases}, about["cases"]

    def is_same(name: str) -> bool:
        if name not in known:  # it could not be read, so only its stamp can be compared
            return now[name] == stamps[name]
        return is_unchanged(cases[name], cohort.root, stamps[name], known[name])

    differing = sorted(stamps.keys() ^ now.keys() | {name for name in stamps.keys() & now.keys() if not is_same(name)})
    if differing:
        raise UnetlibError(
            f"{folder} was prepared from other data: {counted(len(differing), 'case')} added, removed or changed "
            f"({first_of(differing, 5)}). {again}"
        )


def get_split(folder: Path, patients: set[str], recipe: Recipe, rebuild: bool) -> Split:
    """Return the split in the folder, or a new one; with `rebuild`, also a new one if the old one does not fit."""
    path, fresh = folder / "split.json", make_split(patients, recipe.split_seed, recipe.train_fraction)
    if not path.exists() or (rebuild and not _still_fits(folder, patients, recipe)):
        return fresh
    split = Split.load(path)
    planned = split.patients()
    if planned != patients:
        raise UnetlibError(
            f"{path} does not fit the data: {len(planned - patients)} of its patients are missing and "
            f"{len(patients - planned)} patients are not in it. Delete it to draw a new split."
        )
    say(f"{path} exists: the split is reused.")
    return split


def _still_fits(folder: Path, patients: set[str], recipe: Recipe) -> bool:
    """Tell whether an old split is of these patients, and drawn with the same seed and fraction."""
    try:
        split, before = Split.load(folder / "split.json"), read_json(folder / "prepared.json")["recipe"]
    except (UnetlibError, KeyError):
        return False
    same = all(before.get(name) == getattr(recipe, name) for name in ("split_seed", "train_fraction"))
    return same and split.patients() == patients
