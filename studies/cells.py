"""What the study of the recipes shares: its folds, and a cell of it, one recipe trained and scored on one split.

A cell is trained below --work, where it can be stopped and resumed. Its result goes to `results.csv`; a cell that has
its rows there is never computed again.
"""

import argparse
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
from filelock import FileLock

from benchmarks.common import machine, parser
from studies import results
from studies.results import DICE, SCORES, Result
from unetlib import Predictor, Recipe, UnetlibError, evaluate, find_cases, make_cohort, prepare, read_case
from unetlib.data.split import SPLIT_FILE, Split, make_split
from unetlib.data.volumes import read_volume
from unetlib.evaluation.table import read_patients
from unetlib.metrics import COUNTS
from unetlib.phantom.cohort import MODALITIES
from unetlib.pipeline import run_recipe
from unetlib.recipe import PREPARE
from unetlib.runs.checkpoint import load_checkpoint, save_checkpoint
from unetlib.runs.run import Run
from unetlib.support.chance import generator
from unetlib.support.errors import counted
from unetlib.support.fields import changed
from unetlib.support.files import digest, read_csv, read_json
from unetlib.support.messages import say

PAGE = Path(__file__).with_name("RESULTS.md")
FOLDS, VALIDATION = 5, 8
LOOKED_AT = 20  # real patients whom the maker of the phantoms could look at
PHANTOMS = 115
STRONG = Recipe.strong.but(phantoms=False)  # a cell says what it starts from
FIRST = STRONG.but(neighbours=1, upright=True, epochs=20)  # the strong recipe before the ablation was complete
# What weights on phantoms depend on.
NETWORK = ("network", "width", "image_size", "neighbours", "modalities", "regions", "drop_modalities")
DIGITS = 12  # of a hash in the table
VOLUMES = (*SCORES[:3], "hd95", "lesion_dice", "lesion_hd95_mm", "truth_ml", "prediction_ml", *COUNTS)
Scores = dict[str, dict[str, float | None]]  # of each patient by name


def study_parser(name: str, doc: str, many: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a study, with the arguments that all of them take; `many`: any number of data folders."""
    made = parser(f"studies.{name}", doc)
    made.add_argument("data", type=Path, nargs="*" if many else None)
    made.add_argument("--work", type=Path, default=Path("work/study"))
    made.add_argument("--status", action="store_true", help="only say how far it is")
    return made


def shuffled_patients(data: Path) -> list[str]:
    """Return the patients of a folder, sorted by name, then in the protocol's one random order."""
    names = sorted({case.patient for case in find_cases(data).cases})
    if len(names) < 2 * FOLDS:
        raise UnetlibError(f"{data} holds {counted(len(names), 'usable patient')}; {FOLDS} folds need {2 * FOLDS}.")
    return [str(name) for name in generator(0, 0).permutation(names)]


def make_folds(patients: Sequence[str], folds: int = FOLDS, most: int | None = VALIDATION) -> list[Split]:
    """Return splits of the shuffled patients: each tests a part, validates on at `most` so many of the next one."""
    parts = [patients[fold::folds] for fold in range(folds)]
    return [make_fold(patients, parts[fold], parts[(fold + 1) % folds][:most]) for fold in range(folds)]


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
    trained_as: "Cell | None" = None  # another whose training is the same, or the first epochs of this one
    phantoms: bool = False  # starts from weights trained on phantoms

    def result(self) -> Result | None:
        """Return its rows of the table, `None` before it was measured.

        Raises `UnetlibError` when they are of another recipe or of other patients.
        """
        found = results.read(self.name)
        if found is None:
            return None
        first = found.iloc[0]
        if first["split"] != self.split.hash[:DIGITS]:
            raise UnetlibError(f"{results.TABLE} holds other patients. Move it away to measure yours.")
        theirs, ours = _texts(Recipe.published), _texts(self.recipe)
        theirs |= {name: first[name] for name in theirs if first.get(name)}  # an older row lacks newer fields
        ours["recipe.precision"] = theirs["recipe.precision"]  # that of the machine
        if differences := changed(theirs, ours):
            raise UnetlibError(
                f"{results.TABLE} holds {self.name} of another recipe ({differences}). Delete its rows to measure anew."
            )
        return found

    def run(self, work: Path) -> Run:
        """Return its training run."""
        return Run(work / "runs" / self.name)

    def progress(self, work: Path) -> str:
        """Say how far it is."""
        if (found := self.result()) is not None:
            return f"done, mean Dice {found[DICE].mean():.3f}"
        begun = [one for one in self.run(work).members if one.latest.exists()]
        if not begun:
            return "not begun"
        done, epochs = load_checkpoint(begun[-1].latest)["progress"]["epoch"], self.recipe.epochs
        which = f"member {len(begun)} of {self.recipe.members}, " if self.recipe.members > 1 else ""
        ended = done == epochs and len(begun) == self.recipe.members
        return "trained" if ended else f"{which}epoch {min(done + 1, epochs)} of {epochs}"

    def fit(self, data: Path, work: Path) -> Run:
        """Prepare, train and tune, or resume that; return the run."""
        start_from = self.start_from(work)
        key, data = digest([self.recipe.stage(PREPARE), self.split.hash])[:12], self.patients(data, work)
        prepared, run = work / f"prepared-{key}", self.run(work)
        with FileLock(work / f"prepared-{key}.lock"):  # several processes may need it
            if not (prepared / SPLIT_FILE).exists():
                self.split.save(prepared / SPLIT_FILE)
            prepare(data, prepared, self.recipe)
        if self.trained_as and not run.folder.exists():
            copy_training(self.trained_as.fit(data, work), run, self.recipe)
        return run_recipe(self.recipe, prepared, run, start_from=start_from).run

    def start_from(self, work: Path) -> Run | None:
        """Return the run whose weights it begins with."""
        return pretrained(work, self.recipe) if self.phantoms else None

    def scores(self, folder: Path, data: Path) -> Scores:
        """Return the scores of an evaluation in `folder`, of patients in `data`."""
        return scores_of(folder, data)

    def patients(self, data: Path, work: Path) -> Path:
        """Return the folder of the patients of its split: `data`, or a copy of some of them."""
        wanted = self.split.patients()
        if wanted == {case.patient for case in find_cases(data).cases}:
            return data
        return copied(data, work / f"patients-{self.split.hash[:12]}", wanted)

    def measure(self, data: Path, work: Path) -> Result:
        """Return its result; computed once, and then read."""
        if (found := self.result()) is not None:
            return found
        run = self.fit(data, work)
        evaluate(run, split=self.part)
        own, trained = self.patients(data, work), [load_checkpoint(one.latest) for one in run.members]
        decision = read_json(run.decision_file) if self.recipe.tune else {}
        about = {
            "part": self.part,
            "split": self.split.hash[:DIGITS],
            "epoch": " ".join(str(load_checkpoint(one.best)["epoch"]) for one in run.members),
            "seconds": round(sum(one["progress"]["seconds"] for one in trained), 1),
            "threads": torch.get_num_threads(),
            "seconds_to_predict": round(seconds_to_predict(run, own, self.split), 2),
            **{f"decision.{name}": value for name, value in decision.items()},
            "start_from": (trained[0].get("start_from") or "")[:DIGITS],
        }
        about |= {"decision.weights": decision["weights"][:DIGITS]} if decision else {}
        folder = run.evaluation / ("" if self.part == "test" else self.part)
        recipe = self.recipe.but(precision=trained[0]["recipe"]["precision"])
        return record_run(self.name, self.scores(folder, own), about, recipe)


def _texts(recipe: Recipe) -> dict[str, str]:
    """Return the fields of a recipe as the table holds them."""
    return {f"recipe.{name}": str(value) for name, value in recipe.as_dict().items()}


def record_run(name: str, scores: Scores, about: dict[str, Any], recipe: Recipe) -> Result:
    """Add the scores of an evaluation to the table as the run `name`; return its rows."""
    results.append(name, scores, {**about, "machine": machine(("torch",)), **_texts(recipe)})
    found = results.read(name)
    say(f"{name}: mean Dice {found[DICE].mean():.4f}")
    return found


def seconds_to_predict(run: Run, data: Path, split: Split) -> float:
    """Return the core seconds that the first validation patient takes, from volume to probabilities."""
    predictor = Predictor.open(run)
    cases = find_cases(data, **run.reading).cases
    case = next(case for case in cases if case.patient == split.val[0])
    volume = read_case(case)[0]
    begun = time.process_time()
    predictor.volume(volume.voxels, volume.spacing)
    return time.process_time() - begun


def copied(data: Path, folder: Path, patients: Collection[str]) -> Path:
    """Return a folder that holds some patients of `data`, each copied whole or not at all."""
    for case in find_cases(data).cases:
        if case.patient in patients and not (folder / case.id).exists():
            shutil.copytree(case.files()[0].parent, folder / ".tmp" / case.id, dirs_exist_ok=True)
            (folder / ".tmp" / case.id).rename(folder / case.id)
    return folder


def copy_training(other: Run, run: Run, recipe: Recipe) -> None:
    """Make `run` from another run; their recipes may differ only in what the training has not used so far."""
    fields, temporary = recipe.as_dict(), Run(run.folder.with_name(f".tmp-{run.folder.name}"))
    shutil.rmtree(temporary.folder, ignore_errors=True)
    temporary.folder.mkdir()
    for path, copy in ((other.latest, temporary.latest), (other.best, temporary.best)):
        content = load_checkpoint(path)
        fields["precision"] = content["recipe"]["precision"]
        save_checkpoint(copy, {**content, "recipe": fields})
    temporary.folder.rename(run.folder)


def on_phantoms(recipe: Recipe, epochs: int = 10) -> Recipe:
    """Return the recipe of the training on phantoms from which a training with `recipe` starts."""
    own = {name: getattr(recipe, name) for name in (*NETWORK, "loss")}
    if recipe.regions != "whole":
        own["labels"] = "brats2021"  # which the names of phantoms do not show
    return (FIRST if recipe.neighbours else STRONG).but(epochs=epochs, **own)


def pretrained(work: Path, recipe: Recipe, epochs: int = 10) -> Run:
    """Return the run that was trained on phantoms alone, after making and training what is missing."""
    own, usual = recipe.as_dict(), (FIRST if recipe.neighbours else STRONG).as_dict()
    four = any(own.get(name) != usual.get(name) for name in ("modalities", "regions"))  # FLAIR alone has one label
    data = work / ("phantoms-four" if four else "phantoms")
    make_cohort(data, PHANTOMS, varied=True, modalities=" ".join(MODALITIES) if four else "flair")
    split = make_split([case.patient for case in find_cases(data).cases], train_fraction=0.9)
    other = "".join(f"-{own[name]}".replace(" ", "-") for name in NETWORK if own[name] != usual[name])
    cell = Cell(f"phantoms{'-first' if recipe.neighbours else ''}{other}", on_phantoms(recipe, epochs), split, "val")
    with FileLock(work / f"{cell.name}.lock"):  # several processes may start from it
        done = cell.run(work).decision_file.exists()
        return cell.run(work) if done else cell.fit(data, work)


def _patients(folder: Path, *choice: str) -> list[dict[str, str]]:
    """Return rows of `read_patients`, with `hd95` in whichever unit it has."""
    return [{**row, "hd95": row.get("hd95_mm") or row.get("hd95_voxels", "")} for row in read_patients(folder, *choice)]


def scores_of(folder: Path, data: Path) -> Scores:
    """Return the scores of every patient of an evaluation in `folder`, by name; `data` holds the patients."""
    millilitres = {
        case.id: float(np.prod(read_volume(case.images["flair"]).spacing)) / 1000 for case in find_cases(data).cases
    }
    slices, found = read_csv(folder / "slices.csv"), Scores()
    for row in sorted(_patients(folder), key=lambda row: row["patient"]):
        dices, false = [], 0.0
        for one in (one for one in slices if one["patient"] == row["patient"]):
            tp, fp, fn = (int(one[f"native_{name}"]) for name in ("tp", "fp", "fn"))
            if one["tumour"] == "1":
                dices.append(2 * tp / (2 * tp + fp + fn))
            else:
                false += fp * millilitres[one["case"]]
        scores = {name: float(row[name]) if row[name] else None for name in SCORES if name in row}
        found[row["patient"]] = {**scores, "dice_slices": float(np.mean(dices)) if dices else None, "false_ml": false}
    return found


def scores_of_regions(folder: Path) -> Scores:
    """Return the scores of every patient and region of an evaluation in `folder`; those of the whole tumour come first.

    The columns of other regions begin with their names. `model.tp` and the like are counts on the model's grid, over
    the slices with tumour.
    """
    found: Scores = {}
    kinds = [(_patients(folder), VOLUMES, ""), (_patients(folder, "model", "tumour"), COUNTS, "model.")]
    for rows, columns, grid in kinds:
        for row in sorted(rows, key=lambda row: (row["patient"], row.get("region", "") != "whole")):
            region = "" if row.get("region", "whole") == "whole" else f"{row['region']}."
            own = {f"{region}{grid}{name}": float(row[name]) if row.get(name) else None for name in columns}
            found.setdefault(row["patient"], {}).update(own)
    return found


def require_committed() -> None:
    """Raise `SystemExit` while what was chosen is not committed: it could still be chosen by what the test shows."""
    root = Path(__file__).parents[1]
    command = ["git", "status", "--porcelain", "unetlib", "studies/*.py"]
    changes = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if changes.returncode or changes.stdout.strip():
        sys.exit(
            "error: unetlib or studies hold changes that are not committed. Commit them, then score test patients."
        )
