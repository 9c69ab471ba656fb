"""What the quality study shares: its folds, one cell of it (a recipe trained and scored on one split), and its figures.

A cell is trained below --work, where it can be stopped and goes on; its result, figures of every scored patient, is a
small JSON file in `benchmarks/measured/`, which is committed. A cell that has its result is never computed again.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import machine
from unetlib.data.patients import find_cases
from unetlib.data.prepare import prepare
from unetlib.data.split import Split, make_split
from unetlib.data.volumes import read_volume
from unetlib.evaluation.evaluate import evaluate
from unetlib.metrics import bootstrap_interval
from unetlib.phantom.cohort import make_cohort
from unetlib.prediction.inference import Predictor
from unetlib.prediction.tuning import tune
from unetlib.recipe import PREPARE, Recipe, changed
from unetlib.runs.checkpoint import BEST, LATEST, load_checkpoint, save_checkpoint
from unetlib.runs.training import train
from unetlib.support.chance import generator
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.files import digest, read_csv, read_json, write_json
from unetlib.support.jobs import say

MEASURED = Path(__file__).with_name("measured")
FOLDS, VALIDATION = 5, 8
LOOKED_AT = 20  # real patients whom the maker of the phantoms could look at
PHANTOMS = 115
# the strong recipe as it was before all of the ablation was known
FIRST = Recipe.strong.but(neighbours=1, upright=True, epochs=20)
MAIN = "dice"  # volumetric, all slices, native grid
FIGURES = (MAIN, "precision", "recall", "hd95_mm", "false_ml", "dice_slices", "tp", "fp", "fn")


def shuffled_patients(data: Path) -> list[str]:
    """Return the patients of a folder, sorted by name, then in the protocol's one random order."""
    names = sorted({case.patient for case in find_cases(data).cases})
    if len(names) < 2 * FOLDS:
        raise UnetlibError(f"{data} holds {counted(len(names), 'usable patient')}; {FOLDS} folds need {2 * FOLDS}.")
    return [str(name) for name in generator(0, 0).permutation(names)]


def make_folds(patients: Sequence[str]) -> list[Split]:
    """Return five splits of the shuffled patients: each tests a fifth, and validates on 8 of the next fifth."""
    fifths = [patients[fold::FOLDS] for fold in range(FOLDS)]
    return [make_fold(patients, fifths[fold], fifths[(fold + 1) % FOLDS][:VALIDATION]) for fold in range(FOLDS)]


def make_fold(patients: Sequence[str], test: Sequence[str], val: Sequence[str]) -> Split:
    """Return a split: these patients to test and to validate on, all others to train on."""
    others = set(patients) - set(test) - set(val)
    return Split(tuple(sorted(others)), tuple(sorted(val)), tuple(sorted(test)))


@dataclass(frozen=True)
class Cell:
    """One recipe, trained on one split, scored on one part of it."""

    name: str
    recipe: Recipe
    split: Split
    part: str  # "val" or "test"
    trained_as: "Cell | None" = None  # another whose training is the same, or the first epochs of this
    phantoms: bool = False  # begun with weights trained on phantoms

    @property
    def result(self) -> Path:
        """Where its figures lie when it is done."""
        return MEASURED / f"{self.name}.json"

    def run(self, work: Path) -> Path:
        """Return the folder of its training run."""
        return work / "runs" / self.name

    def progress(self, work: Path) -> str:
        """Say how far it is."""
        if self.result.exists():
            return f"done, mean Dice {mean(self.read()):.3f}"
        if not (self.run(work) / LATEST).exists():
            return "not begun"
        done = load_checkpoint(self.run(work) / LATEST)["progress"]
        return f"epoch {done['epoch'] + 1} of {self.recipe.epochs}" if done["epoch"] < self.recipe.epochs else "trained"

    def fit(self, data: Path, work: Path) -> Path:
        """Prepare, train and tune, or go on with it; return the run."""
        start_from = pretrained(work, self.recipe) if self.phantoms else None
        key, data = digest([self.recipe.stage(PREPARE), self.split.hash])[:12], self.patients(data, work)
        prepared, run = work / f"prepared-{key}", self.run(work)
        if not (prepared / "split.json").exists():
            self.split.save(prepared / "split.json")
        prepare(data, prepared, self.recipe, workers=1)
        if self.trained_as and not run.exists():
            copy_training(self.trained_as.fit(data, work), run, self.recipe)
        train(prepared, run, self.recipe, start_from=start_from)
        tune(run)
        return run

    def patients(self, data: Path, work: Path) -> Path:
        """Return the folder of the patients of its split: `data`, or a copy of some of them."""
        wanted = self.split.patients()
        if wanted == {case.patient for case in find_cases(data).cases}:
            return data
        return copied(data, work / f"patients-{self.split.hash[:12]}", wanted)

    def read(self) -> dict[str, Any]:
        """Return its result; raises `UnetlibError` when that is of another recipe or split."""
        known = read_json(self.result)
        ours = self.recipe.but(precision=known["recipe"]["precision"]).as_dict()
        theirs = {**Recipe.published.as_dict(), **known["recipe"]}  # an older one did not know every field
        if known["split"] != self.split.hash:
            raise UnetlibError(f"{MEASURED} holds figures of other patients. Move that folder away to measure yours.")
        if differences := changed(theirs, ours):
            raise UnetlibError(f"{self.result} is of another recipe ({differences}). Move it away to measure anew.")
        return known

    def measure(self, data: Path, work: Path) -> dict[str, Any]:
        """Return the figures of its patients; computed once, and then read."""
        if self.result.exists():
            return self.read()
        run = self.fit(data, work)
        evaluate(run, split=self.part)
        folder = run / "evaluation" / ("" if self.part == "test" else self.part)
        trained = load_checkpoint(run / LATEST)
        result = {
            "recipe": trained["recipe"],
            "start_from": trained.get("start_from"),
            "split": self.split.hash,
            "part": self.part,
            "epoch": load_checkpoint(run / BEST)["epoch"],
            "decision": read_json(run / "decision.json") if self.recipe.tune else None,
            "seconds": round(trained["progress"]["seconds"], 1),
            "threads": torch.get_num_threads(),
            "seconds_to_predict": round(seconds_to_predict(run, self.patients(data, work), self.split), 2),
            "machine": machine(("torch",)),
            "patients": figures_of(folder, self.patients(data, work)),
        }
        write_json(self.result, result)
        say(f"{self.name}: mean Dice {mean(result):.4f} in {result['seconds']:.0f} s")
        return result


def seconds_to_predict(run: Path, data: Path, split: Split) -> float:
    """Return the seconds of all processors that the first validation patient takes, from volume to probabilities."""
    predictor = Predictor.open(run)
    case = next(case for case in find_cases(data).cases if case.patient == split.val[0])
    voxels = read_volume(case.images["flair"]).voxels
    begun = time.process_time()
    predictor.volume(voxels)
    return time.process_time() - begun


def copied(data: Path, folder: Path, patients: Collection[str]) -> Path:
    """Return a folder that holds some patients of `data`, each copied whole or not at all."""
    for case in find_cases(data).cases:
        if case.patient in patients and not (folder / case.id).exists():
            shutil.copytree(case.files()[0].parent, folder / ".tmp" / case.id, dirs_exist_ok=True)
            (folder / ".tmp" / case.id).rename(folder / case.id)
    return folder


def copy_training(other: Path, run: Path, recipe: Recipe) -> None:
    """Make `run` of another run whose recipe differs in nothing that its training has depended on so far."""
    fields, temporary = recipe.as_dict(), run.with_name(f".tmp-{run.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name in (LATEST, BEST):
        content = load_checkpoint(other / name)
        save_checkpoint(
            temporary / name, {**content, "recipe": {**fields, "precision": content["recipe"]["precision"]}}
        )
    temporary.rename(run)


def on_phantoms(recipe: Recipe) -> Recipe:
    """Return the recipe of the training on phantoms with which that of another recipe begins."""
    return (FIRST if recipe.neighbours else Recipe.strong).but(epochs=10)


def pretrained(work: Path, recipe: Recipe) -> Path:
    """Return the run that was trained on phantoms alone, after making and training what is missing."""
    make_cohort(work / "phantoms", PHANTOMS, varied=True)
    split = make_split([case.patient for case in find_cases(work / "phantoms").cases], train_fraction=0.9)
    cell = Cell("phantoms-first" if recipe.neighbours else "phantoms", on_phantoms(recipe), split, "val")
    done = (cell.run(work) / "decision.json").exists()  # then several processes may begin with it at once
    return cell.run(work) if done else cell.fit(work / "phantoms", work)


def figures_of(folder: Path, data: Path) -> dict[str, dict[str, float | None]]:
    """Return the figures of every patient of an evaluation, by name."""
    slices = read_csv(folder / "slices.csv")
    volumes = voxel_millilitres(data, {row["case"] for row in slices})
    found: dict[str, dict[str, float | None]] = {}
    for row in read_csv(folder / "patients.csv"):
        if (row["grid"], row["slices"]) == ("native", "all"):
            found[row["patient"]] = {name: float(row[name]) if row[name] else None for name in FIGURES if name in row}
    by_slice: dict[str, list[float]] = {name: [] for name in found}
    false = dict.fromkeys(found, 0.0)
    for row in slices:
        tp, fp, fn = (int(row[f"native_{name}"]) for name in ("tp", "fp", "fn"))
        if row["tumour"] == "1":
            by_slice[row["patient"]].append(2 * tp / (2 * tp + fp + fn))
        else:
            false[row["patient"]] += fp * volumes[row["case"]]
    for name, row in found.items():
        row["dice_slices"] = float(np.mean(by_slice[name])) if by_slice[name] else None
        row["false_ml"] = false[name]
    return found


def voxel_millilitres(data: Path, names: set[str]) -> dict[str, float]:
    """Return the volume of a voxel of these cases."""
    cases = [case for case in find_cases(data).cases if case.id in names]
    return {case.id: float(np.prod(read_volume(case.images["flair"]).spacing)) / 1000 for case in cases}


def values(result: dict[str, Any], figure: str = MAIN) -> dict[str, float]:
    """Return one figure of every patient of a result, by name, where it is defined."""
    return {name: row[figure] for name, row in result["patients"].items() if row[figure] is not None}


def mean(result: dict[str, Any], figure: str = MAIN) -> float:
    """Return the mean of a figure over the patients of a result."""
    return float(np.mean(list(values(result, figure).values())))


def pooled_dice(result: dict[str, Any]) -> float:
    """Return the Dice of all voxels of all patients together."""
    tp, fp, fn = (sum(values(result, name).values()) for name in ("tp", "fp", "fn"))
    return 2 * tp / (2 * tp + fp + fn)


def gain(before: dict[str, Any], after: dict[str, Any], figure: str = MAIN) -> tuple[float, tuple[float, float] | None]:
    """Return the mean paired difference of a figure over the patients, and its bootstrapped 95 % interval."""
    one, other = values(before, figure), values(after, figure)
    differences = np.array([other[name] - one[name] for name in sorted(one.keys() & other.keys())])
    return float(differences.mean()), bootstrap_interval(differences)


def with_interval(by: float, interval: tuple[float, float] | None) -> str:
    """Return a gain and its interval as text."""
    return f"{by:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")


def joined(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the patients of several folds as one result."""
    return {"patients": {name: row for result in results for name, row in result["patients"].items()}}


def require_committed() -> None:
    """Raise `SystemExit` while what was chosen is not committed: it could still be chosen by what the test shows."""
    root = Path(__file__).parents[1]
    command = ["git", "status", "--porcelain", "unetlib", "benchmarks/*.py"]
    changes = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if changes.returncode or changes.stdout.strip():
        sys.exit(
            "error: unetlib or benchmarks hold changes that are not committed. Commit them, then score test patients."
        )
