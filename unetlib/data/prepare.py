"""Prepare a cohort: read every volume once, keep its slices on disk, train many times.

A prepared folder holds `images.npy` and `masks.npy` (memory-mapped), `slices.csv` (one row a slice,
for people), `split.json`, and `prepared.json`, which is written last: its presence says that the
folder is whole.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap, write_array_header_1_0
from torch import Tensor

from unetlib.data.naming import TABLE, divided, key, scheme_of
from unetlib.data.patients import SHARE, Case, Cohort, find_cases, read_labels
from unetlib.data.sameness import HASHES, copy_of, hash_case, is_unchanged
from unetlib.data.slices import Window, choose_slices, image_to_slices, mask_to_slices
from unetlib.data.split import PARTS, Split, make_split
from unetlib.data.volumes import ASSUMABLE, assumed_as
from unetlib.recipe import PREPARE, Recipe, changed, with_defaults
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by
from unetlib.support.files import (
    PARTIAL,
    atomic,
    digest,
    locked,
    read_csv,
    read_json,
    refuse_link,
    refuse_packed,
    require_empty,
    sha256,
    takes_paths,
    write_csv,
    write_json,
)
from unetlib.support.jobs import run_jobs, say
from unetlib.support.version import __version__

SHARD = ".unetlib-shard"
SLICE_COLUMNS = ("index", "case", "patient", "z", "tumour_voxels", "tumour_pixels")


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, opened: memory-mapped slices, the split, and where they come from.

    `images`: (N, 1, S, S) float16 in 0..1. `masks`: (N, 1, S, S) uint8, 0 or 1. `about`: the
    content of `prepared.json`.
    """

    folder: Path
    about: dict[str, Any]
    split: Split
    images: np.ndarray
    masks: np.ndarray

    @classmethod
    @takes_paths
    def open(cls, folder: Path) -> "Prepared":
        """Open a folder made by `prepare`; raises `UnetlibError` when it is missing, unfinished or damaged."""
        if not (folder / "prepared.json").is_file():
            raise UnetlibError(
                f"{folder} is not a finished prepared folder (it has no prepared.json). "
                f"Make it, or finish it, with: unetlib prepare DATA {folder}"
            )
        about = read_json(folder / "prepared.json")
        try:
            images, masks = _map(folder / "images.npy", np.float16), _map(folder / "masks.npy", np.uint8)
            slices, side = _require_types(about), about["recipe"]["image_size"]
        except Exception as error:  # numpy raises a dozen kinds on damaged headers
            reason = brief(error.args[0]) if error.args else type(error).__name__
            raise UnetlibError(
                f"{folder} is damaged ({reason}). Make it again with: unetlib prepare DATA {folder} --rebuild"
            ) from error
        if images.shape != masks.shape or images.shape != (slices, 1, side, side):
            raise UnetlibError(
                f"{folder}: images {images.shape} and masks {masks.shape} were found, {(slices, 1, side, side)} was "
                f"expected. Make it again with: unetlib prepare DATA {folder} --rebuild"
            )
        try:
            split = Split.load(folder / "split.json")
            if split.patients() != {case["patient"] for case in about["cases"].values()}:
                raise UnetlibError(f"{folder}: split.json and prepared.json tell of different patients. Restore them.")
            return cls(folder, about, split, images, masks)
        except UnetlibError as error:
            raise UnetlibError(f"{error} Or prepare again: unetlib prepare DATA {folder} --rebuild") from error

    @property
    def data(self) -> Path:
        """The folder of patients that it was made from."""
        return Path(self.about["data"])

    @property
    def assume(self) -> str | None:
        """The orientation that was assumed for files that do not say theirs, as in `find_cases`."""
        return self.about.get("assume")

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a run is tied to: the recipe's fields of the stage `prepare`, and hashes of data and split."""
        known = all("content" in case for case in self.about["cases"].values())
        data = self.digest("content") if known else self.digest("sha256")
        assume = {"assume": self.assume} if self.assume else {}
        return {"data": data, "split": self.split.hash, **self.about["recipe"], **assume}

    @property
    def version(self) -> str:
        """The version of the library that made it."""
        return made_by(self.about)

    def digest(self, kind: str) -> str:
        """Return one hash for all cases: of their files (`"sha256"`, as in version 0.3) or of their `"content"`."""
        return digest({name: case[kind] for name, case in self.about["cases"].items()})

    @cached_property
    def bounds(self) -> np.ndarray:
        """The first and the last position of the slices of the case that each slice belongs to, (N, 2)."""
        numbers = np.array([case["slices"] for case in self.about["cases"].values()])
        ends = numbers.cumsum()
        return np.repeat(np.stack([ends - numbers, ends - 1], axis=1), numbers, axis=0)

    @cached_property
    def tumour(self) -> np.ndarray:
        """Whether a slice shows tumour on the model's grid, (N,) booleans, from `slices.csv`."""
        rows = read_csv(self.folder / "slices.csv", numbers=("index", "tumour_pixels"))
        if [float(row["index"]) for row in rows] != list(range(len(self.images))):
            raise UnetlibError(
                f"{self.folder / 'slices.csv'} has {len(rows)} rows; {len(self.images)} in the order of their index "
                f"were expected. Make it again with: unetlib prepare DATA {self.folder} --rebuild"
            )
        return np.array([float(row["tumour_pixels"]) > 0 for row in rows], dtype=bool)

    def indices(self, part: str) -> np.ndarray:
        """Return the positions of the slices of one part of the split, in ascending order."""
        patients, found, start = set(getattr(self.split, part)), [], 0
        for case in self.about["cases"].values():
            if case["patient"] in patients:
                found.append(np.arange(start, start + case["slices"]))
            start += case["slices"]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def batch(self, indices: np.ndarray, neighbours: int = 0) -> tuple[Tensor, Tensor]:
        """Return images (N, 2 `neighbours` + 1, S, S) and masks (N, 1, S, S) at these positions, both float32.

        A slice's channels are itself between the slices below and above it; the first and the last of a case
        stand in for those beyond.
        """
        near = indices[:, None] + np.arange(-neighbours, neighbours + 1)
        first, last = self.bounds[indices].T[:, :, None]
        images, masks = self.images[near.clip(first, last), 0], self.masks[indices]
        return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(masks.astype(np.float32))

    def __str__(self) -> str:
        cases = self.about["cases"]
        patients = {part: len(getattr(self.split, part)) for part in PARTS}
        slices = {part: len(self.indices(part)) for part in PARTS}
        lines = [
            f"{self.folder}: {len(self.images)} slices of {len(cases)} cases "
            f"({self.about['recipe']['slices']} slices, {self.images.shape[2]} x {self.images.shape[3]} pixels)",
            "split by patient: "
            + ", ".join(f"{part} {patients[part]} ({counted(slices[part], 'slice')})" for part in PARTS)
            + f"; made by unetlib {self.version}",
        ]
        if left_out := self.about["left_out"]:
            lines.append(f"left out: {len(left_out)} ({', '.join(sorted(left_out))})")
        return "\n".join(lines)


def _map(path: Path, dtype: type) -> np.ndarray:
    """Return an array on disk; raises `ValueError` or `OSError` when it is not a plain .npy file of that type."""
    if not path.is_file():
        raise OSError(f"{path.name} is missing")
    array = open_memmap(path, mode="r")  # unlike np.load, it takes neither pickles nor zip files
    if array.dtype.newbyteorder("=") != dtype:
        raise ValueError(f"{path.name} holds {array.dtype}")
    return array


def _require_types(about: dict[str, Any]) -> int:
    """Return the number of slices that a `prepared.json` tells of; raises `ValueError` or the like for wrong types."""
    slices = 0
    for case in about["cases"].values():
        hashes = [case.get(kind, case["sha256"]) for kind in HASHES]  # before 0.4 only that of the files
        strings = all(isinstance(text, str) for text in (case["patient"], *hashes))
        if not strings or type(case["slices"]) is not int or case["slices"] < 0:
            raise ValueError("a case without patient, number of slices or hash")
        slices, _ = slices + case["slices"], case["stamp"]
    about["recipe"] = with_defaults(about["recipe"], PREPARE)
    Recipe.published.but(depth=1, **about["recipe"])
    reasons = {name: about["left_out"][name] for name in about["unusable"].keys() & about["left_out"].keys()}
    texts = [about["data"], *about["left_out"].values(), *about.get("patients_csv", {}).values()]
    if reasons.keys() != about["unusable"].keys() or not all(isinstance(text, str) for text in texts):
        raise ValueError("data or left_out")
    if about.get("assume") not in (None, *ASSUMABLE):
        raise ValueError("assume")
    return slices


@dataclass(frozen=True)
class _Job:
    """One case to prepare; its part's name changes with the recipe and the files, so a stale part is never used."""

    case: Case
    recipe: Recipe
    folder: Path
    stamp: list[list[str | int]]

    @property
    def part(self) -> Path:
        assume = [self.case.seg.assume] if self.case.seg and self.case.seg.assume else []
        key = digest([self.recipe.stage(PREPARE), self.stamp, HASHES, *assume])
        return self.folder / PARTIAL / f"{self.case.id}-{key[:16]}.npz"


def _prepare_case(job: _Job) -> str | None:
    """Write the part of one case; return why it is left out, or `None`."""
    try:
        volume, labels, _ = read_labels(job.case)
    except UnetlibError as error:
        return str(error).removeprefix(f"{job.case.id}: ")
    mask, (image, content) = labels > 0, hash_case(volume, labels)
    z = choose_slices(volume.voxels, mask, job.recipe.slices)
    images = image_to_slices(volume.voxels, job.recipe, z)  # 5 x faster than all, then those
    masks = mask_to_slices(mask, job.recipe, z, Window.of(volume.voxels, job.recipe))
    with atomic(job.part) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            images=images.numpy().astype(np.float16),
            masks=masks.numpy(),
            z=z,
            tumour_voxels=mask[:, :, z].sum((0, 1)),
            sha256=np.array(sha256(*job.case.files())),
            image=np.array(image),
            content=np.array(content),
        )
    return None


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

    Works with one volume in memory for each of `workers` processes, shows the time left, and goes
    on where it was stopped. A finished folder made from the same data and recipe is reused; a
    change of either is refused by name, unless `rebuild`. A `split.json` that lies in the folder is
    reused. A patient who cannot be used is named and left out; with `strict` this is an error. So is a scan that is
    there under another name already. `assume` ("ras" or "lps") is the orientation of files that do not say theirs: it
    is kept, for the runs that are trained here.

    Raises `UnetlibError` for unusable data, fewer than three patients, no tumour anywhere, or when
    another process is preparing the same folder.
    """
    cohort = find_cases(data, assume=assume)
    _report(cohort.left_out, strict)
    if cohort.doubt:
        say(cohort.doubt)
    with locked(folder):
        for shard in folder.glob(f"{SHARD}-*"):  # one that is still at work is told by its lock
            with locked(shard):
                pass
            shutil.rmtree(shard, ignore_errors=True)
        return _prepare(cohort, folder, recipe, workers, strict, rebuild)


@takes_paths
def prepare_shard(
    data: Path,
    folder: Path,
    shard: str,
    recipe: Recipe = Recipe.published,
    workers: int | None = None,
    assume: str | None = None,
) -> int:
    """Do a share of the work of `prepare`, and return of how many cases: `shard` "2/8" is the second of eight.

    For many machines with one file system: each does its shard, then `prepare` itself on any of them merges what
    they have left in the same `folder`. Raises `UnetlibError` for unusable data or a shard that does not exist.
    """
    number, _, total = shard.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise UnetlibError(f"the shard is {shard!r}; two numbers such as 1/8, up to 8/8, were expected.")
    cohort = find_cases(data, assume=assume)
    mine = cohort.cases[int(number) - 1 :: int(total)]
    jobs = [_Job(case, recipe, folder, case.stamp(cohort.root)) for case in mine]
    with locked(folder / f"{SHARD}-{number}-of-{total}"):
        refuse_link(folder / PARTIAL)
        todo = [job for job in jobs if not job.part.exists()]
        for job, reason in run_jobs(_prepare_case, todo, "prepare", "case", workers, SHARE):
            if reason is not None:
                _report({job.case.id: reason}, strict=False)
    return len(jobs)


def _prepare(
    cohort: Cohort, folder: Path, recipe: Recipe, workers: int | None, strict: bool, rebuild: bool
) -> Prepared:
    known = any((folder / name).exists() for name in ("prepared.json", "split.json", PARTIAL))
    if not known or (folder / "recipe.json").exists():  # a run has a split, too
        require_empty(folder, "a prepared folder")
    refuse_link(folder / PARTIAL)
    jobs = [_Job(case, recipe, folder, case.stamp(cohort.root)) for case in cohort.cases]
    if (folder / "prepared.json").exists() and not rebuild:
        prepared = Prepared.open(folder)
        _refuse_changes(prepared, cohort, jobs, recipe)
        _tell_divided(prepared, cohort)
        _report({name: prepared.about["left_out"][name] for name in prepared.about["unusable"]}, strict)
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)  # where a kill came before the last line below
        say(f"{folder} is prepared already, from the same data with the same recipe: reused.")
        return prepared
    todo = [job for job in jobs if not job.part.exists()]
    if len(todo) < len(jobs):
        say(f"{folder}: {len(jobs) - len(todo)} of {len(jobs)} cases were prepared before the last stop; going on.")
    unusable: dict[str, str] = {}
    for job, reason in run_jobs(_prepare_case, todo, "prepare", "case", workers, SHARE):
        if reason is not None:
            _report({job.case.id: reason}, strict)
            unusable[job.case.id] = reason
    patients, copies = _without_copies([job for job in jobs if job.case.id not in unusable])
    _report(copies, strict)
    unusable |= copies
    usable = [job for job in jobs if job.case.id not in unusable]
    split = _get_split(folder, {patients[job.case.id] for job in usable}, recipe, rebuild)
    cases = _merge(folder, usable, patients, recipe)
    for name, case in cases.items():
        case["named_by"] = TABLE if name in cohort.table else scheme.name if (scheme := scheme_of(name)) else "its name"
    split.save(folder / "split.json")
    about = {
        "unetlib": __version__,
        "data": str(cohort.root.resolve()),
        "recipe": recipe.stage(PREPARE),
        "cases": cases,
        "patients_csv": cohort.table,
        "left_out": {**cohort.left_out, **unusable},
        "unusable": {job.case.id: job.stamp for job in jobs if job.case.id in unusable},
        **({"assume": cohort.assume} if cohort.assume else {}),
    }
    write_json(folder / "prepared.json", about)  # last: its presence says that the folder is whole
    shutil.rmtree(folder / PARTIAL)
    return Prepared.open(folder)


def _report(left_out: dict[str, str], strict: bool) -> None:
    for name, reason in left_out.items():
        if strict:
            raise UnetlibError(f"{name}: {reason} (--strict stops at the first patient who cannot be used)")
        say(f"left out {name}: {reason}")


def _without_copies(jobs: list[_Job]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the patient of each case, and the cases whose image is that of another one, with a sentence.

    Two patients who share a scan are one person: all that they have gets one name.
    """
    first: dict[str, Case] = {}
    copies: dict[str, str] = {}
    same: dict[str, str] = {}

    def name(patient: str) -> str:
        return name(same[patient]) if patient in same else patient

    for job in jobs:
        case, image = job.case, str(_read_part(job)["image"])
        other = first.setdefault(image, case)
        if other is not case:
            copies[case.id] = copy_of(other.id)
            if name(case.patient) != name(other.patient):
                same[name(case.patient)] = name(other.patient)
    return {job.case.id: name(job.case.patient) for job in jobs}, copies


def _tell_divided(prepared: Prepared, cohort: Cohort) -> None:
    """Say whose scans the split of an older version has put on two sides."""
    parts = {id: prepared.split.part_of(case["patient"]) or "" for id, case in prepared.about["cases"].items()}
    if names := divided(parts, {case.id: case.patient for case in cohort.cases}):
        say(
            f"{prepared.folder} was split under other names: scans of {counted(len(names), 'patient')} "
            f"({first_of(names, 5)}) are in two parts, and the figures will flatter. Prepare again with --rebuild."
        )


def _refuse_changes(prepared: Prepared, cohort: Cohort, jobs: list[_Job], recipe: Recipe) -> None:
    """Raise `UnetlibError` when a finished folder was made with another recipe or from other data."""
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
    now, known = {job.case.id: job for job in jobs}, about["cases"]
    differing = [
        name
        for name in sorted(stamps.keys() | now.keys())
        if name not in now or name not in stamps or not _is_same(now[name], cohort.root, stamps[name], known.get(name))
    ]
    if differing:
        raise UnetlibError(
            f"{folder} was prepared from other data: {counted(len(differing), 'case')} added, removed or changed "
            f"({first_of(differing, 5)}). {again}"
        )


def _is_same(job: _Job, root: Path, stamp: list[list[str | int]], known: dict[str, Any] | None) -> bool:
    """Tell whether a case is as it was: by its stamp alone where it could not be read."""
    return job.stamp == stamp if known is None else is_unchanged(job.case, root, stamp, known)


def _get_split(folder: Path, patients: set[str], recipe: Recipe, rebuild: bool) -> Split:
    """Return the split that lies in the folder, or a new one; `rebuild` draws anew where the old one does not fit."""
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


def _merge(folder: Path, jobs: list[_Job], patients: dict[str, str], recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Write all parts into two arrays and one table; return what is known of each case."""
    cases: dict[str, dict[str, Any]] = {}
    rows: list[list[Any]] = []
    for job in jobs:
        part = _read_part(job)
        pixels = part["masks"].sum((1, 2, 3))
        for z, voxels, inside in zip(part["z"], part["tumour_voxels"], pixels, strict=True):
            rows.append([len(rows), job.case.id, patients[job.case.id], int(z), int(voxels), int(inside)])
        cases[job.case.id] = {
            "patient": patients[job.case.id],
            "slices": len(part["z"]),
            **{kind: str(part[kind]) for kind in HASHES},
            "stamp": job.stamp,
        }
    if not any(row[4] for row in rows):
        raise UnetlibError(
            f"no tumour anywhere in {counted(len(jobs), 'case')}: every mask is empty, so there is nothing to learn. "
            "Check that the masks belong to the images."
        )
    (folder / "prepared.json").unlink(missing_ok=True)  # from here on an old result is being replaced
    shape = (len(rows), 1, recipe.image_size, recipe.image_size)
    for name, dtype in (("images", np.float16), ("masks", np.uint8)):
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        # Written, not memory-mapped: a full disk then raises an error, where a mapped page would kill the process.
        with atomic(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            write_array_header_1_0(file, header)
            for job in jobs:
                file.write(_read_part(job)[name].tobytes())
    write_csv(folder / "slices.csv", (dict(zip(SLICE_COLUMNS, row, strict=True)) for row in rows), SLICE_COLUMNS)
    return cases


def _read_part(job: _Job) -> dict[str, np.ndarray]:
    """Return the arrays that `_prepare_case` has written; raises `UnetlibError` when they are damaged or foreign."""
    side = job.recipe.image_size
    try:
        refuse_packed(job.part)
        with np.load(job.part, allow_pickle=False) as file:
            part = {name: file[name] for name in ("images", "masks", "z", "tumour_voxels", *HASHES)}
        images, masks, number = part["images"], part["masks"], len(part["z"])
        if images.shape != (number, 1, side, side) or masks.shape != images.shape:
            raise ValueError(f"images {images.shape} and masks {masks.shape}")
        if images.dtype != np.float16 or masks.dtype != np.uint8 or any(part[kind].dtype != "<U64" for kind in HASHES):
            raise ValueError("arrays of other types")
        if part["tumour_voxels"].shape != (number,) or masks.max(initial=0) > 1 or not np.isfinite(images).all():
            raise ValueError("values that no slice has")
    except Exception as error:  # zipfile and numpy raise a dozen kinds on damaged files
        raise UnetlibError(
            f"{job.part} is damaged ({brief(str(error))}). Delete it, then give the same command again."
        ) from error
    return part
