"""Where a run comes from: its data, split and recipe, and the software and machines that it was trained with."""

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unetlib.data.naming import world_name
from unetlib.data.patients import Case, Cohort, find_cases
from unetlib.data.prepare import Prepared
from unetlib.data.sameness import HASHES, is_unchanged
from unetlib.data.split import PARTS, Split
from unetlib.runs.checkpoint import read_run
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import digest, read_json, takes_paths, write_json
from unetlib.support.version import __version__

NAME = "provenance.json"
PACKAGES = ("torch", "lightning-fabric", "numpy", "scipy", "nibabel", "pillow")


def write_provenance(
    run: Path,
    data: Prepared,
    recipe: dict[str, Any],
    device: torch.device,
    start_from: Path | None = None,
    threads: int | None = None,
) -> None:
    """Write `provenance.json` of a run: what it is trained on, and a list of sessions, with one entry more
    when this session's software, machine, device or number of threads differ from those of the last.

    `files` and `contents` are SHA-256 of the list of file names and of all images and masks; every case has its
    files as (name, size, time of change in ns), three hashes (`sha256` of their bytes, `image` of its voxels,
    `content` of those and the mask's), its part and number of prepared slices. `left_out` names the cases that could
    not be used. `earlier` are the cases that the run `start_from`, whose weights this one began with, and those
    before it have learned from. `prepared_by` is the version of the library that prepared the data.
    """
    part_of = {patient: part for part in PARTS for patient in getattr(data.split, part)}
    cases = {
        name: {
            "patient": case["patient"],
            "part": part_of[case["patient"]],
            "files": case["stamp"],
            **{name: case[name] for name in (*HASHES, "slices", "named_by") if name in case},  # 0.3 knows only two
        }
        for name, case in data.about["cases"].items()
    }
    about = {
        "data": str(data.data),
        "prepared_by": data.version,
        "files": digest(sorted(file[0] for case in cases.values() for file in case["files"])),
        "contents": data.identity["data"],
        "split": data.split.hash,
        "recipe": recipe,
        "cases": cases,
        "left_out": sorted(data.about["left_out"]),
        "earlier": learned(start_from) if start_from else read_provenance(run).get("earlier", {}),
    }
    sessions = read_provenance(run).get("sessions", [])
    now = _session(recipe, device) | ({"threads": threads} if threads else {})
    if sessions[-1:] != [now]:
        sessions = [*sessions, now]
    write_json(run / NAME, {**about, "sessions": sessions})


def note_threads(run: Path, threads: int) -> None:
    """Add a session to `provenance.json` that differs from the last one in its number of threads."""
    about = read_provenance(run)
    write_json(run / NAME, {**about, "sessions": [*about["sessions"], {**about["sessions"][-1], "threads": threads}]})


@takes_paths
def read_provenance(run: Path) -> dict[str, Any]:
    """Return the content of a run's `provenance.json`, empty where a version before 0.3 has written none."""
    return read_json(run / NAME) if (run / NAME).exists() else {}


@takes_paths
def find_own(run: Path) -> Cohort:
    """Return the cohort that a run was prepared from, to be read as it was read then, with the names of today."""
    about = read_run(run)
    return find_cases(Path(about["data"]), assume=about.get("assume"))


def own_cohort(run: Path) -> Cohort:
    """Return the cohort that a run was prepared from, with the patients' names that the run was split with."""
    return as_recorded(find_own(run), run)


@takes_paths
def learned(run: Path) -> dict[str, dict[str, Any]]:
    """Return the cases that a run, or one whose weights it began with, has trained or validated on, by a hash."""
    known = read_provenance(run)
    own = {
        case.get("image", case["sha256"]): {**case, "case": name}
        for name, case in known.get("cases", {}).items()
        if case["part"] != "test"
    }
    return {**known.get("earlier", {}), **own}


def signs(case: dict[str, Any], name: str = "") -> set[str]:
    """Return by what a recorded case is known in any folder: hashes of scan and files, and a name that is unique.

    Two cases with a sign in common are of one person. `name` is the id of the case, where the record lacks it.
    """
    hashes = {case[kind] for kind in ("image", "sha256") if kind in case}
    return hashes | set(filter(None, map(world_name, (case["patient"], name or case.get("case", "")))))


def part_by_sign(cases: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the part of each sign of recorded cases; of several the first, since to be trained on weighs most."""
    last_first = sorted(cases, key=lambda case: -PARTS.index(case["part"]))
    return {sign: case["part"] for case in last_first for sign in signs(case)}


def as_recorded(cohort: Cohort, run: Path) -> Cohort:
    """Return the cases of a run's own data with the patients' names that the run was split with.

    An older version may have named them in another way, or `patients.csv` may have come later.
    """
    known, split = read_provenance(run).get("cases", {}), Split.load(run / "split.json").patients()

    def patient(case: Case) -> str:
        if case.id in known:
            return str(known[case.id]["patient"])
        return case.id if case.id in split else case.patient  # before 0.3 nothing was recorded but the split

    return replace(cohort, cases=tuple(replace(case, patient=patient(case)) for case in cohort.cases))


def require_unchanged(known: dict[str, dict[str, Any]], chosen: list[Case], cohort: Cohort) -> None:
    """Raise `UnetlibError` when images or masks of a run's own patients are others now.

    The figures would be of other data. Files that were renamed or compressed anew are the same, voxel by voxel.
    """
    changed = [
        case.id
        for case in chosen
        if case.id in known and not is_unchanged(case, cohort.root, known[case.id]["files"], known[case.id])
    ]
    if changed:
        raise UnetlibError(
            f"{cohort.root}: the files of {counted(len(changed), 'case')} ({first_of(changed, 5)}) have changed since "
            f"the run was prepared on them. Put the old ones back, or score what is there with --data {cohort.root}."
        )


def _session(recipe: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        "unetlib": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": recipe["precision"],
        "seed": recipe["seed"],
    }


def _commit() -> str | None:
    """Return the commit that the library runs from, with `-dirty` where files differ from it, if there is one."""
    repository = Path(__file__).parents[2]
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip() or None  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # no git on this machine
        return None


def processor() -> str:
    """Return the name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
