"""The study on a GPU, in its form for a CPU: what travels, what is trained, what comes back."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from studies import best, gpu
from tests.conftest import SMALL, write_patient
from unetlib.data.prepared import Prepared
from unetlib.evaluation.evaluate import evaluate
from unetlib.runs.run import Run

ROOT = Path(__file__).parents[1]
RECIPE = SMALL.but(slices="all", average=0.9, upright=True, loss="dice+bce")
ALONE = """
import sys
others = ["lightning_fabric", "nibabel", "scipy", "pandas", "PIL", "tqdm", "safetensors", "matplotlib"]
sys.modules.update(dict.fromkeys(others))  # as if they were not installed
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    for index in range(10):
        write_patient(folder / "data", index)
    gpu.pack(folder / "data", folder / "slices.npz", RECIPE, 2, folder / "prepared")
    return folder


def train(folder: Path) -> str:
    """Train where there is nothing but PyTorch and NumPy: `sitecustomize` is imported by each process as it starts."""
    (folder / "alone").mkdir(exist_ok=True)
    (folder / "alone" / "sitecustomize.py").write_text(ALONE)
    command = [sys.executable, "studies/gpu.py", "train", folder / "slices.npz", folder / "out"]
    alone = {**os.environ, "PYTHONPATH": str(folder / "alone")}
    options = ["--device", "cpu", "--at-once", "2"]
    done = subprocess.run([*command, *options], cwd=ROOT, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_travels_is_what_was_prepared_in_bytes(packed):
    found, slices = gpu.Packed.load(packed / "slices.npz"), Prepared.open(packed / "prepared")
    assert np.abs(found.images / 255 - slices.images).max() <= 0.5 / 255 + 1e-3
    np.testing.assert_array_equal(found.masks, slices.masks)
    assert len(found.jobs) == 5 * 2
    patients = [case["patient"] for case in slices.about["cases"].values()]
    for fold, split in enumerate(best.folds_of(packed / "data")):
        members = [job for job in found.jobs if job.name.startswith(f"fold-{fold}-")]
        seen = [{patients[i] for i in (*job.train, *job.val)} for job in members]
        assert all(one == split.patients("train", "val") for one in seen)
        validated = [i for job in members for i in job.val]
        assert len(set(validated)) == len(validated) == 8  # each patient validates once


def test_it_trains_with_pytorch_and_numpy_alone_and_its_weights_are_scored_as_a_run(packed):
    said = train(packed)
    assert "fp32: resumed, the same bits" in said
    assert "10 of 10 trainings are finished" in said
    before = (packed / "out" / "fold-0-member-1.pt").stat().st_mtime_ns
    train(packed)
    assert (packed / "out" / "fold-0-member-1.pt").stat().st_mtime_ns == before  # not done again
    places = [packed / name for name in ("slices.npz", "out", "runs", "data")]
    gpu.unpack(*places, 2, packed / "prepared")
    run = Run(packed / "runs" / "fold-0-member-1")
    content = torch.load(packed / "out" / "fold-0-member-1.pt", weights_only=True)
    network, _, about = run.load()
    assert about["epoch"] == content["best"]["epoch"]
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, content["best"]["model"][name])
    assert not run.caveats()
    assert evaluate(run, device="cpu")["patients"] == 2


def test_it_stops_in_time_and_goes_on_to_the_same_weights(packed, tmp_path):
    found = gpu.Packed.load(packed / "slices.npz")
    small, steps = replace(found, recipe=found.recipe.but(precision="fp32")), iter(range(100))
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    gpu.make_loop(small, small.jobs[3], "cpu", gpu.Keep(whole)).run()
    state = gpu.make_loop(small, small.jobs[3], "cpu", gpu.Keep(parts, lambda: next(steps) == 4)).run()
    assert state.epoch < small.recipe.epochs
    gpu.make_loop(small, small.jobs[3], "cpu", gpu.Keep(parts)).run()
    one, other = (torch.load(path, weights_only=True) for path in (whole, parts))
    assert one["state"] == other["state"]
    for kind in ("model", "average"):
        assert all(torch.equal(one[kind][name], other[kind][name]) for name in one[kind])
