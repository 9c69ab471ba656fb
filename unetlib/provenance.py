"""Where a run comes from: its data, split and recipe, and the software and machines that it was trained with."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unetlib import __version__
from unetlib.files import digest, read_json, write_json
from unetlib.prepare import Prepared
from unetlib.split import PARTS

NAME = "provenance.json"
PACKAGES = ("torch", "lightning-fabric", "numpy", "scipy", "nibabel", "pillow")


def write_provenance(run: Path, data: Prepared, recipe: dict[str, Any], device: torch.device) -> None:
    """Write `provenance.json` of a run: what it is trained on, and a list of sessions, with one entry more
    when this session's software, machine, device or number of threads differ from those of the last.

    `files` and `contents` are SHA-256 of the list of file names and of the files' bytes; every case
    has its files as (name, size, time of change in ns), the SHA-256 of their bytes, its part and number of
    prepared slices. `left_out` names the cases that could not be used.
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
    }
    sessions = read_provenance(run).get("sessions", [])
    if sessions[-1:] != [now := _session(recipe, device)]:
        sessions = [*sessions, now]
    write_json(run / NAME, {**about, "sessions": sessions})


def read_provenance(run: Path) -> dict[str, Any]:
    """Return the content of a run's `provenance.json`, empty where a version before 0.3 has written none."""
    return read_json(run / NAME) if (run / NAME).exists() else {}


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
