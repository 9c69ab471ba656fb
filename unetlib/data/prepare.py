"""Prepare a cohort: read every volume once, store its slices on disk, train many times.

A prepared folder holds `images.npy` and `masks.npy` (memory-mapped), `slices.csv` (one row per slice, for human
readers), `split.json`, and `prepared.json`, which is written last: if it exists, the folder is complete.
"""

import shutil
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import write_array_header_1_0

from unetlib.data.cases import HASHES, NOMINAL, SHARE, is_copy, without_copies
from unetlib.data.layouts import KAGGLE
from unetlib.data.naming import TABLE, scheme_of
from unetlib.data.part import Job, prepare_case, read_part
from unetlib.data.patients import Case, Cohort, find_cases, require_sequences
from unetlib.data.prepared import PREPARED_FILE, Prepared
from unetlib.data.regions import absent_regions, region_names, with_scheme
from unetlib.data.reuse import get_split, refuse_changes, refuse_members, warn_of_divided
from unetlib.data.sequences import say_resampled
from unetlib.data.split import SPLIT_FILE, Split
from unetlib.recipe import PREPARE, Recipe
from unetlib.support import files
from unetlib.support.errors import UnetlibError, counted, first_of, quoted
from unetlib.support.jobs import run_jobs
from unetlib.support.messages import say, warn
from unetlib.support.parts import Parts
from unetlib.support.paths import takes_paths
from unetlib.support.version import __version__

SHARD = ".unetlib-shard"
SLICES_FILE = "slices.csv"
SLICE_COLUMNS = ("index", "case", "patient", "z", "tumour_voxels", "tumour_pixels")


def _find(data: Path, recipe: Recipe, assume: str | None) -> tuple[Cohort, Recipe]:
    """Return the cohort to prepare, and the recipe with the scheme of its labels."""
    cohort = find_cases(data, recipe.modalities, assume, recipe.missing)
    require_sequences(cohort.root, recipe.modalities.split(), cohort.cases)
    if recipe.dims == 3 and cohort.cases and all(case.layout == KAGGLE for case in cohort.cases):
        raise UnetlibError(f"{cohort.root}: {NOMINAL}. Prepare slices instead (--dims 2).")
    return cohort, with_scheme(recipe, {case.layout for case in cohort.cases})


def _plan(cohort: Cohort, cases: tuple[Case, ...], recipe: Recipe, folder: Path) -> list[Job]:
    parts = Parts.open(folder, ".npz")
    return [Job(case, recipe, parts, case.stamp(cohort.root)) for case in cases]


def _run(jobs: list[Job], workers: int | None, strict: bool) -> dict[str, str]:
    """Do the jobs whose part is missing; return the cases that cannot be used, with the reason."""
    unusable: dict[str, str] = {}
    todo = [job for job in jobs if not job.part.exists()]
    for job, reason in run_jobs(prepare_case, todo, "prepare", "case", workers, SHARE):
        if reason is not None:
            _report({job.case.id: reason}, strict)
            unusable[job.case.id] = reason
    return unusable


@takes_paths
def holds_patients(folder: Path) -> bool:
    """Tell whether a folder, or a .tar, is to be prepared: it holds something, but nothing that `prepare` wrote."""
    if folder.is_dir():
        names = {path.name for path in files.visible(folder)}
        return bool(names) and not names & {PREPARED_FILE, SPLIT_FILE}
    return folder.is_file()


@takes_paths
def prepare(
    data: Path,
    folder: Path,
    recipe: Recipe = Recipe.published,
    workers: int | None = None,
    strict: bool = False,
    rebuild: bool = False,
    assume: str | None = None,
) -> Prepared:
    """Write the slices of every usable patient in `data` to `folder`, split them, and open the result.

    It holds one volume in memory for each of `workers` processes, shows the time left, and resumes after a stop. A
    finished folder made from the same data and recipe is reused; if either has changed, it is refused unless `rebuild`
    is set. A `split.json` in the folder is reused. Patients who cannot be used, and copies of a scan under another
    name, are named and left out; with `strict` this is an error. `assume` ("ras" or "lps") is the orientation of files
    that do not state one; it is stored for the runs that are trained here.

    Raises `UnetlibError` for unusable data, fewer than three patients, no tumour anywhere, fewer patients than the
    recipe's members need, or when another process is preparing the same folder.
    """
    cohort, recipe = _find(data, recipe, assume)
    _report(cohort.left_out, strict)
    for note in cohort.notes:
        warn(note)
    for shard in folder.glob(f"{SHARD}-*"):
        with files.locked(shard):  # raises if it is still running; the lock of the folder would remove its files
            pass
        shutil.rmtree(shard, ignore_errors=True)
    with files.locked(folder):
        return _prepare(cohort, folder, recipe, workers, strict, rebuild)


@takes_paths
def prepare_shard(
    data: Path,
    folder: Path,
    shard: str,
    recipe: Recipe = Recipe.published,
    workers: int | None = None,
    assume: str | None = None,
    strict: bool = False,
) -> int:
    """Prepare one shard of the cases, and return how many of them can be used: `shard` "2/8" is the second of eight.

    For several machines with a shared file system: each does its shard, then `prepare` on any of them merges the
    results in the same `folder`. Raises `UnetlibError` for unusable data (with `strict`, for one unusable case), a
    shard that does not exist, or a folder that holds something else.
    """
    number, _, total = shard.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise UnetlibError(f"the shard is {shard!r}; two numbers such as 1/8, up to 8/8, were expected.")
    cohort, recipe = _find(data, recipe, assume)
    _report(cohort.left_out, strict)
    _require_own(folder)
    mine = cohort.cases[int(number) - 1 :: int(total)]
    with files.locked(folder / f"{SHARD}-{number}-of-{total}"):
        return len(mine) - len(_run(_plan(cohort, mine, recipe, folder), workers, strict))


def _require_own(folder: Path) -> None:
    """Raise `UnetlibError` if a folder holds anything, but nothing that `prepare` has written or reads."""
    begun = Parts(folder, ".npz").left or any((folder / name).exists() for name in (PREPARED_FILE, SPLIT_FILE))
    if not begun or (folder / "recipe.json").exists():  # run folders have a split, too
        files.require_empty(folder, "a prepared folder")


def _prepare(
    cohort: Cohort, folder: Path, recipe: Recipe, workers: int | None, strict: bool, rebuild: bool
) -> Prepared:
    jobs = _plan(cohort, cohort.cases, recipe, folder)
    _require_own(folder)
    if (folder / PREPARED_FILE).exists() and not rebuild:
        prepared = Prepared.open(folder)
        refuse_changes(prepared, cohort, recipe)
        if not (folder / SLICES_FILE).is_file():
            raise UnetlibError(
                f"{folder} has lost its {SLICES_FILE}. Restore it from a copy, or make the folder again with: unetlib "
                f"prepare DATA {quoted(folder)} --rebuild"
            )
        warn_of_divided(prepared, cohort)
        known = {name: prepared.about["left_out"][name] for name in prepared.about["unusable"]}
        copies = {name: reason for name, reason in known.items() if is_copy(reason)}
        _report(copies, strict)
        again = [job for job in jobs if job.case.id in known.keys() - copies.keys()]
        still = _run(again, workers, strict)
        if now := [job.case.id for job in again if job.case.id not in still]:
            raise UnetlibError(
                f"{folder} was prepared without {first_of(now, 5)}, who can be read now. Choose another folder, or "
                f"replace it with: unetlib prepare DATA {quoted(folder)} --rebuild"
            )
        Parts(folder).remove()  # left by a kill before the last line below
        say(f"{folder} is prepared already, from the same data with the same recipe: reused.")
        return prepared
    if recipe.members > 1 and not rebuild:  # now, not after hours
        refuse_members(folder, cohort, recipe)
    if before := sum(job.part.exists() for job in jobs):
        say(f"{folder}: {before} of {len(jobs)} cases were prepared before the last stop; going on.")
    size = len(jobs) * recipe.image_size**recipe.dims * (2 * len(recipe.modalities.split()) + 1) / 1e9
    if recipe.dims == 3 and size >= 1:  # of slices the number is not known yet
        say(
            f"{folder}: the volumes of {counted(len(jobs), 'case')} will take {size:.1f} GB on the disk, twice that "
            "while they are made."
        )
    unusable = _run(jobs, workers, strict)
    if len(unusable) == len(jobs) and len(reasons := {*unusable.values()}) == 1:
        raise UnetlibError(f"{cohort.root}: no case can be used. {reasons.pop()}")
    read = [job for job in jobs if job.case.id not in unusable]
    patients, copies = without_copies([(job.case, read_part(job)["scans"].tolist()) for job in read])
    _report(copies, strict)
    unusable |= copies
    usable = [job for job in jobs if job.case.id not in unusable]
    split = get_split(folder, {patients[job.case.id] for job in usable}, recipe, rebuild)
    cases = _merge(folder, usable, patients, recipe, split)
    for name, case in cases.items():
        case["named_by"] = TABLE if name in cohort.table else scheme.name if (scheme := scheme_of(name)) else "its name"
    about = {
        "unetlib": __version__,
        "data": str(cohort.root.resolve()),
        "recipe": recipe.stage(PREPARE),
        "cases": cases,
        "patients_csv": cohort.table,
        "left_out": {**cohort.left_out, **unusable},
        "unusable": {job.case.id: job.stamp for job in jobs if job.case.id in unusable},
        "unusable_sha256": {job.case.id: _sha256(job.case) for job in jobs if job.case.id in unusable},
        **({"assume": cohort.assume} if cohort.assume else {}),
    }
    files.write_json(folder / PREPARED_FILE, about)  # last
    Parts(folder).remove()
    return Prepared.open(folder)


def _sha256(case: Case) -> str | None:
    """Return the hash of a case's files, or `None` where one cannot be read."""
    with suppress(OSError):
        if all(path.is_file() for path in case.files()):  # a pipe would be read for ever
            return files.sha256(*case.files())
    return None


def _report(left_out: dict[str, str], strict: bool) -> None:
    for name, reason in left_out.items():
        if strict:
            raise UnetlibError(f"{name}: {reason} (--strict stops at the first patient who cannot be used)")
        warn(f"left out {name}: {reason}")


def _merge(
    folder: Path, jobs: list[Job], patients: dict[str, str], recipe: Recipe, split: Split
) -> dict[str, dict[str, Any]]:
    """Merge all parts into two arrays and one table, beside the split; return a description of each case."""
    cases: dict[str, dict[str, Any]] = {}
    rows: list[list[Any]] = []
    present, pixels_seen = list[np.ndarray](), set[int]()
    outside: dict[str, float] = {}
    for job in jobs:
        part = read_part(job)
        pixels = (part["masks"] > 0).sum((*range(1, part["masks"].ndim),))
        if part["outside"]:
            outside[job.case.id] = float(part["outside"] / part["tumour_voxels"].sum())
        present.append(part["regions"])
        pixels_seen.update(np.unique(part["masks"]).tolist())
        for z, voxels, inside in zip(part["z"], part["tumour_voxels"], pixels, strict=True):
            rows.append([len(rows), job.case.id, patients[job.case.id], int(z), int(voxels), int(inside)])
        cases[job.case.id] = {
            "patient": patients[job.case.id],
            "slices": len(part["z"]),
            **{kind: str(part[kind]) for kind in HASHES},
            **({"images": part["scans"].tolist()} if len(job.case.modalities) > 1 else {}),
            **({"resampled": part["resampled"].tolist()} if len(part["resampled"]) else {}),
            "stamp": job.stamp,
        }
    _require_regions(recipe, present, pixels_seen)
    say_resampled([name for name, case in cases.items() if "resampled" in case], recipe.modalities)
    if outside:
        shares = [f"{name} {100 * share:.1f} %" for name, share in outside.items()]
        warn(
            f"the tumour of {counted(len(outside), 'case')} lies partly or wholly outside the cube around the head, "
            f"where no network will find it: {first_of(shares)}."
        )
    split.save(folder / SPLIT_FILE)  # first, so that a rebuild goes on with the split that it has drawn
    (folder / PREPARED_FILE).unlink(missing_ok=True)  # from here on, the old result is being replaced
    side = recipe.image_size
    for name, dtype, channels in (("images", np.float16, len(recipe.modalities.split())), ("masks", np.uint8, 1)):
        shape = (len(rows), channels, *recipe.dims * (side,))
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        # Written, not memory-mapped: on a full disk this raises an error, but a mapped page would kill the process.
        with files.atomic(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            write_array_header_1_0(file, header)
            for job in jobs:
                file.write(read_part(job)[name].tobytes())
    files.write_csv(folder / SLICES_FILE, (dict(zip(SLICE_COLUMNS, row, strict=True)) for row in rows), SLICE_COLUMNS)
    return cases


def _require_regions(recipe: Recipe, present: list[np.ndarray], pixels: set[int]) -> None:
    """Raise `UnetlibError` for a region without a voxel; warn of two that are equal in all `pixels` of the masks."""
    names, absent = region_names(recipe), absent_regions(recipe, present)
    if "whole" in absent:
        raise UnetlibError(
            f"no tumour anywhere in {counted(len(present), 'case')}: every mask is empty, so there is nothing to learn."
            " Check that the masks belong to the images."
        )
    if absent:
        raise UnetlibError(
            f"no case has a voxel of the region {', '.join(absent)}: none of its labels is in the masks. Leave it out, "
            "or see with `unetlib check` which labels there are."
        )
    for one, other in combinations(range(len(names)), 2):
        if all(pixel >> one & 1 == pixel >> other & 1 for pixel in pixels):
            warn(
                f"the regions {names[one]} and {names[other]} are the same in all masks: their labels do not tell them "
                "apart. See with `unetlib check` which labels there are."
            )
