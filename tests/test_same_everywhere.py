"""The same seed gives the same split, slices, phantom and training, whatever the habits of the machine.

Run as a programme, this file is the probe: it computes everything once, in a process of its own, and prints hashes.
"""

import json
import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

STEPS = 20
ROOT = Path(__file__).parents[1]
PLAIN = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
ODD = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# threads, environment, order of the directory (a seed; 0: as it is), data named from another working directory
PROBES = {
    "plain": (1, PLAIN, 0, False),
    "odd": (1, ODD, 1, True),
    "two threads": (2, {**ODD, "PYTHONHASHSEED": "1", "TZ": "America/St_Johns"}, 2, True),
}
WITH_PHANTOM = ("plain", "two threads")


class Shuffled:
    """What `os.scandir` gives, in another order."""

    def __init__(self, path: Any, seed: str):
        with SCANDIR(path) as entries:
            self.entries = iter(shuffled(entries, seed))

    def __enter__(self) -> "Shuffled":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> "Shuffled":
        return self

    def __next__(self) -> os.DirEntry:
        return next(self.entries)

    def close(self) -> None:
        pass


SCANDIR, LISTDIR = os.scandir, os.listdir


def shuffled(items: Any, seed: str) -> list:
    items = sorted(items, key=str)
    random.Random(seed).shuffle(items)
    return items


def probe(data: Path, out: Path, seed: str, with_phantom: bool) -> dict[str, Any]:
    if seed != "0":
        os.scandir = lambda path=".": Shuffled(path, seed)
        os.listdir = lambda path=".": shuffled(LISTDIR(path), seed)
    import torch

    from tests.conftest import SMALL
    from unetlib.data.prepare import prepare
    from unetlib.hooks import Hook
    from unetlib.phantom.cohort import make_patient
    from unetlib.runs.checkpoint import load_checkpoint
    from unetlib.runs.run import Run
    from unetlib.runs.training import train

    prepared = prepare(data, out / "prepared", SMALL, workers=1)
    losses: list[float] = []

    class Losses(Hook):
        def on_step_end(self, loop, loss):
            losses.append(loss)

    train(prepared, run := Run.of(out / "run"), SMALL.but(epochs=3), "cpu", max_steps=STEPS, hooks=(Losses(),))
    names = ("split.json", "slices.csv", "images.npy", "masks.npy")
    found = {name: [(out / "prepared" / name).read_bytes()] for name in names}
    found["what a run is tied to"] = [json.dumps(prepared.contents).encode()]
    if with_phantom:  # it takes as long as all the rest
        patient = make_patient(seed=1, index=2)
        found["phantom"] = [patient.seg.tobytes(), *(patient.images[name].tobytes() for name in sorted(patient.images))]
    found["weights"] = [value.numpy().tobytes() for value in load_checkpoint(run.latest)["model"].values()]
    hashes = {name: sha256(b"".join(content)).hexdigest() for name, content in found.items()}
    seen = {"threads": torch.get_num_threads(), "folder": [path.name for path in data.iterdir()], "hash": hash("a")}
    return {"hashes": hashes, "losses": losses, "seen": seen}


@pytest.fixture(scope="module")
def probes(cohort, tmp_path_factory):
    """What each probe printed."""
    found = {}
    for number, (name, (threads, habits, seed, elsewhere)) in enumerate(PROBES.items()):
        out = tmp_path_factory.mktemp(f"probe{number}")
        data, cwd = (cohort.name, cohort.parent) if elsewhere else (cohort, out)
        env = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
        env |= habits | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "tests.test_same_everywhere", str(data), str(out), str(seed)]
        words += ["with phantom"] * (name in WITH_PHANTOM)
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_probes_differ_in_what_must_not_matter(probes):
    seen = [one["seen"] for one in probes.values()]
    assert [one["threads"] for one in seen] == [1, 1, 2]
    assert len({one["hash"] for one in seen}) == 3
    assert len({tuple(one["folder"]) for one in seen}) == 3


def test_split_slices_and_phantom_are_the_same_bits_everywhere(probes):
    first = probes["plain"]["hashes"]
    for name, one in probes.items():
        assert ("phantom" in one["hashes"]) == (name in WITH_PHANTOM)
        assert {**first, **one["hashes"], "weights": ""} == {**first, "weights": ""}, name


def test_training_gives_the_same_bits_for_the_same_number_of_threads(probes):
    assert probes["odd"]["losses"] == probes["plain"]["losses"]
    assert probes["odd"]["hashes"]["weights"] == probes["plain"]["hashes"]["weights"]


def test_training_with_more_threads_differs_by_rounding_only(probes):
    one, two = probes["plain"]["losses"], probes["two threads"]["losses"]
    assert len(one) == STEPS
    assert two == pytest.approx(one, rel=1e-4)


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], len(sys.argv) > 4)))
