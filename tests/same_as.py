"""Whether the present version computes what an earlier one did, to the last bit: `python -m tests.same_as COMMIT`.

The earlier version is checked out beside. Both are given the same commands on the same synthetic patients, in one
job on one machine, and what they leave is compared: phantoms, prepared slices, the split, weights and Adam's moments,
history, decision, masks, probabilities, and every score. Minutes, with a line for each group of commands.
"""

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetlib.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
SMALL = "--width 8 --depth 3 --precision fp32 --device cpu --threads 1"
STEPS = f"{SMALL} --max-steps 20"
NEWER = "--no-phantoms"  # what the strong recipe did before it began with the weights that come with the library
NORMALISATIONS = ("minmax-volume", "median-volume")  # beside that of the published recipe
IMAGE = "plain/Phantom_00000/Phantom_00000_flair.nii.gz"
# name -> commands, in an empty folder of both versions; later groups find what the earlier ones left
GROUPS = {
    "phantoms": ["phantom plain --patients 5"],
    "varied phantoms": ["phantom varied --patients 3 --varied"],
    "prepare, published": ["prepare plain published"],
    "prepare, strong": ["prepare plain strong --recipe strong"],
    "prepare, cut to the head": ["prepare varied cropped --crop --image-size 64"],
    **{f"prepare, {name}": [f"prepare plain {name} --normalise {name} --image-size 48"] for name in NORMALISATIONS},
    "train, published": [f"train published run {STEPS}"],
    "train, two threads": [f"train published two {STEPS.replace('--threads 1', '--threads 2')}"],
    "train, resumed": [f"train published resumed {SMALL} --max-steps {steps}" for steps in (7, 13)],
    "train, strong": [f"train strong strong-run {STEPS} --recipe strong {NEWER}"],
    "train, neighbours": [f"train strong three {STEPS} --neighbours 1"],
    "train, start from another": [
        f"train published whole {SMALL} --epochs 1",
        f"train published more {STEPS} --start-from whole",
    ],
    "evaluate": ["evaluate whole --device cpu --threads 1"],
    "decision and scores, strong": [
        f"train strong strong-whole {SMALL} --recipe strong --epochs 1 {NEWER}",
        "evaluate strong-whole --device cpu --threads 1",
    ],
    "predict": [
        f"predict {run} {IMAGE} --out {run}-masks --probabilities --device cpu --threads 1"
        for run in ("whole", "strong-whole")
    ],
}
OTHERWISE = {"seconds", "unetlib", "key", "check", "data", "weights"}  # times, and what identifies versions and files
DESCRIPTION = slice(148, 228)  # of a NIfTI header: here the hash of the file of the weights


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a folder that holds the files of a commit."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "earlier")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def run(source: Path, work: Path, command: str) -> None:
    """Give a command of unetlib to the version in `source`, in the folder `work`."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    environment.pop("OMP_NUM_THREADS", None)
    if "phantoms: bool" not in (source / "unetlib" / "recipe.py").read_text():
        command = command.replace(NEWER, "")
    done = subprocess.run(
        [sys.executable, "-m", "unetlib", *command.split()], cwd=work, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{source}: unetlib {command}\n{done.stderr[-2000:]}")


def values(folder: Path, seen: set[Path]) -> dict[str, Any]:
    """Return what counts in new files below a folder, by file and place in it: arrays, tensors, bytes, numbers, texts.

    The files are added to `seen`.
    """
    found: dict[str, Any] = {}
    for path in sorted({*folder.rglob("*")} - seen):
        seen.add(path)
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".npy":
            found[name] = np.load(path)
        elif path.suffix == ".pth":
            checkpoint = load_checkpoint(path)
            kept = {key: checkpoint[key] for key in ("model", "average", "optimizer", "progress") if key in checkpoint}
            found |= flat(name, kept)
        elif path.suffix == ".csv":
            found |= flat(name, list(csv.DictReader(path.read_text().splitlines())))
        elif path.name in ("split.json", "decision.json", "summary.json"):
            found |= flat(name, json.loads(path.read_text()))
        elif path.suffix == ".gz":
            content = bytearray(gzip.decompress(path.read_bytes()))
            content[DESCRIPTION] = bytes(80)
            found[name] = bytes(content)
    return found


def flat(name: str, value: Any) -> dict[str, Any]:
    """Return the leaves of nested dictionaries and lists by their place, but for what may be `OTHERWISE`."""
    if not isinstance(value, dict | list | tuple):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    leaves = [flat(f"{name}/{key}", item) for key, item in pairs if key not in OTHERWISE]
    return {key: leaf for some in leaves for key, leaf in some.items()}


def equal(one: Any, other: Any) -> bool:
    """Tell whether two leaves are equal in type and to the last bit."""
    if isinstance(one, torch.Tensor):
        one, other = one.numpy(), other.numpy() if isinstance(other, torch.Tensor) else other
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return type(one) is type(other) and (one == other or one != one)


def differences(earlier: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Return the places of the earlier version's values that the present one lacks or has otherwise."""
    return [name for name, value in earlier.items() if name not in present or not equal(value, present[name])]


def compare(earlier: Path, present: Path, work: Path) -> bool:
    """Run all groups in both versions, print a line for each, and tell whether everything is the same."""
    folders, seen, same = {earlier: work / "earlier", present: work / "present"}, set[Path](), True
    for folder in folders.values():
        folder.mkdir()
    for group, commands in GROUPS.items():
        made: list[dict[str, Any]] = []
        for source, folder in folders.items():
            for command in commands:
                run(source, folder, command)
            made.append(values(folder, seen))
        wrong = differences(*made)
        same &= not wrong and bool(made[0])
        print(f"{group}: {len(made[0]) - len(wrong)} of {len(made[0])} values are the same", flush=True)
        print("".join(f"  {name} differs\n" for name in wrong[:10]), end="", flush=True)
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", help="the earlier version")
    arguments = parser.parse_args()
    with checked_out(arguments.commit) as earlier, tempfile.TemporaryDirectory() as work:
        sys.exit(not compare(earlier, ROOT, Path(work)))


if __name__ == "__main__":
    main()
