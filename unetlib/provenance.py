"""Where a run comes from: its data, split and recipe, and the software and machines that it was trained with."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unetlib import __version__
from unetlib.checkpoint import read_run
from unetlib.errors import UnetlibError, counted, first_of
from unetlib.files import digest, read_json, sha256, write_json
from unetlib.patients import Case, Cohort, find_cases
from unetlib.prepare import Prepared
from unetlib.split import PARTS

NAME = "provenance.json"
PACKAGES = ("torch", "lightning-fabric", "numpy", "scipy", "nibabel", "pillow")


def write_provenance(
    run: Path, data: Prepared, recipe: dict[str, Any], device: torch.device, start_from: Path | None = None
) -> None:
    """Write `provenance.json` of a run: what it is trained on, and a list of sessions, with one entry more
    when this session's software, machine, device or number of threads differ from those of the last.

    `files` and `contents` are SHA-256 of the list of file names and of the files' bytes; every case
    has its files as (name, size, time of change in ns), the SHA-256 of their bytes, its part and number of
    prepared slices. `left_out` names the cases that could not be used. `earlier` are the cases that the run
    `start_from`, whose weights this one began with, and those before it have learned from.
    """
    part_of = {patient: part for part in PARTS for patient in getattr(data.split, part)}
    cases = {
        name: {
            "patient": case["patient"],
            "part": part_of[case["patient"]],
            "files": case["stamp"],
            "sha256": case["sha256"],
            "slices": case["slices"],
        }
        for name, case in data.about["cases"].items()
    }
    about = {
        "data": str(data.data),
        "files": digest(sorted(file[0] for case in cases.values() for file in case["files"])),
        "contents": data.identity["data"],
        "split": data.split.hash,
        "recipe": recipe,
        "cases": cases,
        "left_out": sorted(data.about["left_out"]),
        "earlier": learned(start_from) if start_from else read_provenance(run).get("earlier", {}),
    }
    sessions = read_provenance(run).get("sessions", [])
    if sessions[-1:] != [now := _session(recipe, device)]:
        sessions = [*sessions, now]
    write_json(run / NAME, {**about, "sessions": sessions})


def read_provenance(run: Path) -> dict[str, Any]:
    """Return the content of a run's `provenance.json`, empty where a version before 0.3 has written none."""
    return read_json(run / NAME) if (run / NAME).exists() else {}


def own_cohort(run: Path) -> Cohort:
    """Return the cohort that a run was prepared from, to be read as it was read then."""
    about = read_run(run)
    return find_cases(Path(about["data"]), assume=about.get("assume"))


def learned(run: Path) -> dict[str, dict[str, Any]]:
    """Return the cases that a run, or one whose weights it began with, has trained or validated on, by SHA-256."""
    known = read_provenance(run)
    own = {case["sha256"]: case for case in known.get("cases", {}).values() if case["part"] != "test"}
    return {**known.get("earlier", {}), **own}


def require_unchanged(known: dict[str, dict[str, Any]], chosen: list[Case], cohort: Cohort) -> None:
    """Raise `UnetlibError` when files of a run's own patients are others now: the figures would be of other data."""
    changed = [
        case.id
        for case in chosen
        if case.id in known
        and case.stamp(cohort.root) != known[case.id]["files"]
        and sha256(*case.files()) != known[case.id]["sha256"]
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
    repository = Path(__file__).parent.parent
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
