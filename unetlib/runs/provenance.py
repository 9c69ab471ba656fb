"""Provenance of a run: its data, split and recipe, and the software and machines that trained it."""

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unetlib.data.cases import HASHES, is_unchanged
from unetlib.data.naming import world_name
from unetlib.data.patients import Case, Cohort, find_cases
from unetlib.data.prepared import Prepared
from unetlib.data.split import PARTS
from unetlib.dataset import Trainable
from unetlib.other_networks import OTHERS
from unetlib.recipe import Recipe
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError, counted, first_of, quoted
from unetlib.support.files import digest, write_json
from unetlib.support.jobs import processor
from unetlib.support.messages import warn
from unetlib.support.version import __version__

PACKAGES = ("torch", "lightning-fabric", "numpy", "scipy", "nibabel", "pillow")
OF_OTHERS = ("monai", "einops")  # the extra `networks`


def write_provenance(
    run: Run,
    data: Prepared | Trainable,
    recipe: Recipe,
    device: torch.device,
    start_from: Run | None,
    threads: int | None,
    network: dict[str, Any],
) -> None:
    """Write `provenance.json` of a run: what it is trained on, how its `network` was made, and a list of sessions.

    A new session is added when its software, machine, device or number of threads differ from those of the last.
    `earlier` holds the cases that the run `start_from` and those before it have learned from; a run that goes on need
    not name it.
    """
    about, before = _described(data) if isinstance(data, Prepared) else {}, run.provenance
    about["recipe"] = recipe.as_dict()
    about["network"] = {"name": recipe.network, **network}
    about["earlier"] = before.get("earlier", {}) | (learned(start_from) if start_from else {})
    if not (before or start_from) and run.about().get("start_from"):
        warn(
            f"{run} began with the weights of another run, and {run.provenance_file.name} is gone: it no longer says "
            "whom that run had learned from. Name that run once more with --start-from to record it."
        )
    sessions, now = before.get("sessions", []), _session(recipe, device, threads)
    write_json(run.provenance_file, {**about, "sessions": sessions if sessions[-1:] == [now] else [*sessions, now]})


def _described(data: Prepared) -> dict[str, Any]:
    """Return the provenance of prepared slices.

    `files` and `contents` are SHA-256 of the list of file names and of all images and masks. Every case has its files
    as (name, size, time of change in ns), three hashes (`sha256` of their bytes, `image` of its voxels, `content` of
    the voxels of images and mask; of several sequences, `images` has the hash of each), its part and its number of
    slices. `left_out` names the cases that could not be used, `prepared_by` the version that prepared the data.
    """
    part_of = {patient: part for part in PARTS for patient in getattr(data.split, part)}
    described = (*HASHES, "images", "slices", "named_by")  # 0.3 knows only two
    cases = {
        name: {
            "patient": case["patient"],
            "part": part_of[case["patient"]],
            "files": case["stamp"],
            **{kind: case[kind] for kind in described if kind in case},
        }
        for name, case in data.about["cases"].items()
    }
    return {
        "data": str(data.data),
        "prepared_by": data.version,
        "files": digest(sorted(file[0] for case in cases.values() for file in case["files"])),
        "contents": data.contents["data"],
        "split": data.split.hash,
        "cases": cases,
        "left_out": sorted(data.about["left_out"]),
    }


def note_threads(run: Run, threads: int) -> None:
    """Add a session to `provenance.json`: the last one with another number of threads."""
    about = run.provenance
    if sessions := about.get("sessions"):  # not if the file was removed meanwhile
        write_json(run.provenance_file, {**about, "sessions": [*sessions, {**sessions[-1], "threads": threads}]})


def find_own(run: Run) -> Cohort:
    """Return the cohort that a run was prepared from, to be read as it was read then, with the names of today.

    Raises `UnetlibError` when it is not there.
    """
    if not (root := run.data).exists():
        raise UnetlibError(
            f"{root}, where the patients were, no longer exists. If they were moved, change `data` in "
            f"{run.recipe_file}; to score others: unetlib evaluate {quoted(run)} --data FOLDER"
        )
    return find_cases(root, assume=run.about().get("assume"), **run.reading)


def own_cases(run: Run, cohort: Cohort, *wanted: str) -> list[Case]:
    """Return a run's cases of the `wanted` parts, with the patient names of its split (today's may be others).

    `cohort`: that of `find_own`. Raises `UnetlibError` when a case is missing, or its image or mask has changed; voxels
    are compared, so files may be renamed or compressed again.
    """
    split, known = run.split, run.provenance.get("cases", {})
    patients, chosen = split.patients(), []
    for case in cohort.cases:  # before 0.3 only the split was recorded
        record = known.get(case.id, {"patient": case.id if case.id in patients else case.patient})
        if (record.get("part") if known else split.part_of(record["patient"])) in wanted:
            chosen.append(replace(case, patient=record["patient"]))
    for unit, planned, there in (
        ("patient", split.patients(*wanted), {case.patient for case in chosen}),
        ("case", {id for id in known if known[id]["part"] in wanted}, {case.id for case in chosen}),
    ):
        if missing := sorted(planned - there):
            raise UnetlibError(
                f"{cohort.root} lacks {counted(len(missing), unit)} that the run was made with "
                f"({first_of(missing, 5)}).{reasons(cohort)} Put back what is missing; if the data were moved, change "
                f"`data` in {run.recipe_file}; to score what is there: unetlib evaluate {quoted(run)} --data "
                f"{quoted(cohort.root)}"
            )
    changed = [
        case.id
        for case in chosen
        if case.id in known and not is_unchanged(case, cohort.root, known[case.id]["files"], known[case.id])
    ]
    if changed:
        raise UnetlibError(
            f"{cohort.root}: the files of {counted(len(changed), 'case')} ({first_of(changed, 5)}) have changed since "
            "the run was prepared on them. Put the old ones back, or score what is there: unetlib evaluate "
            f"{quoted(run)} --data {quoted(cohort.root)}"
        )
    return chosen


def reasons(cohort: Cohort) -> str:
    """Return which cases cannot be used, and why."""
    return "".join(f" {name}: {reason}" for name, reason in cohort.left_out.items())


def learned(run: Run) -> dict[str, dict[str, Any]]:
    """Return, by hash, the cases that a run, or an earlier one that it started from, was trained or validated on."""
    known = run.provenance
    own = {
        case.get("image", case["sha256"]): {**case, "case": name}
        for name, case in known.get("cases", {}).items()
        if case["part"] != "test"
    }
    return {**known.get("earlier", {}), **own}


def signs(case: dict[str, Any], name: str = "") -> set[str]:
    """Return what identifies a recorded case in any folder: hashes of scan and files, and globally unique names.

    Two cases with a sign in common are of one person. `name` is the id of the case if the record lacks it.
    """
    hashes = {case[kind] for kind in ("image", "sha256") if kind in case} | set(case.get("images", ()))
    return hashes | set(filter(None, map(world_name, (case["patient"], name or case.get("case", "")))))


def part_by_sign(cases: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the part of each sign of recorded cases; train goes before val, and val before test."""
    last_first = sorted(cases, key=lambda case: -PARTS.index(case["part"]))
    return {sign: case["part"] for case in last_first for sign in signs(case)}


def _session(recipe: Recipe, device: torch.device, threads: int | None) -> dict[str, Any]:
    return {
        "unetlib": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in (*PACKAGES, *(OF_OTHERS if recipe.network in OTHERS else ()))},
        "system": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": recipe.precision,
        "seed": recipe.seed,
    }


def _commit() -> str | None:
    """Return the commit of the running library, with `-dirty` if files differ from it; `None` without a repository."""
    repository = Path(__file__).parents[2]
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip() or None  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # no git on this machine
        return None
