"""The study of BEST.md: which changes make the strong recipe better at equal time.

`python -m studies.best DATA [--brats FOLDER] [--arms base quick ...] [--folds 0 1 ...] [--status]` trains what is
missing of the screening, or resumes it, and scores validation patients alone. Several processes may do some arms or
folds each. A result in `results.csv` is read, not computed again.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from benchmarks.common import machine, markdown_table, record
from studies import deep, encoder
from studies.cells import FOLDS, STRONG, Cell, make_fold, shuffled_patients, study_parser
from studies.results import DICE, Result, gain_text, seconds_of_training
from unetlib import Recipe, find_cases
from unetlib.data.split import Split
from unetlib.phantom.varied import varied_patient
from unetlib.support.command import run_command
from unetlib.support.jobs import progress

# Epochs of 10 minutes of one core, from ten steps and a validation: 24 s an epoch of `base`, 91 of `quick`, 38 of
# `size`, 33 of `deep`, 59 of `encoder`.
PAGE = Path(__file__).with_name("BEST.md")
GO_ON = 3  # arms, besides `base`, after two folds
FAINT, FAINT_SEED = 24, 1  # phantoms of the arm `mixed`; the pre-training has those of seed 0
BASE = STRONG.but(epochs=25, tune=False)
QUICK = BASE.but(
    epochs=7, width=32, image_size=128, neighbours=1, batch_size=16, learning_rate=3e-3, upright=True, average=0.0
)


@dataclass(frozen=True)
class Arm:
    """A recipe of the screening, and what it begins with and learns from besides the patients."""

    recipe: Recipe
    on_brats: int  # epochs on fold 0 of BraTS, for as many steps: there, an epoch has 158 instead of 128
    phantoms: bool = True  # begins with weights trained on phantoms
    mixed: bool = False  # learns from further phantoms, too


ARMS = {
    "base": Arm(BASE, 20),
    "quick": Arm(QUICK, 6),
    "size": Arm(BASE.but(image_size=128, epochs=16), 13),
    "deep": Arm(BASE.but(network="deep", loss=deep.LOSS, epochs=18), 15),
    "mixed": Arm(BASE.but(epochs=15), 13, mixed=True),
    "encoder": Arm(QUICK.but(network="lite0", epochs=10, learning_rate=1e-3), 8, phantoms=False),
    "twice": Arm(BASE.but(epochs=50), 41),
    "base-seed-1": Arm(BASE.but(seed=1), 20),
}


def folds_of(data: Path) -> list[Split]:
    """Return five splits: each tests a fifth, validates on the next fifth and trains on the others."""
    patients = shuffled_patients(data)
    fifths = [patients[fold::FOLDS] for fold in range(FOLDS)]
    return [make_fold(patients, fifths[fold], fifths[(fold + 1) % FOLDS]) for fold in range(FOLDS)]


def cell(name: str, fold: int, data: Path, where: str = "") -> "BestCell":
    """Return an arm on a fold; `where` names another cohort than TCGA-LGG."""
    arm, split = ARMS[name], folds_of(data)[fold]
    if arm.mixed:
        split = Split((*split.train, *(f"Faint_{index:05d}" for index in range(FAINT))), split.val, split.test)
    recipe = arm.recipe.but(epochs=arm.on_brats) if where else arm.recipe
    return BestCell(f"screen-{name}-{where}fold-{fold}", recipe, split, "val", None, arm.phantoms)


@dataclass(frozen=True)
class BestCell(Cell):
    """A cell of this study: its patients may include phantoms: the faint ones of the arm `mixed`."""

    def patients(self, data: Path, work: Path) -> Path:
        """Return the folder of its patients, with the faint phantoms if it learns from them."""
        if not any(name.startswith("Faint") for name in self.split.train):
            return super().patients(data, work)
        folder = work / f"mixed-{data.name}"
        for case in find_cases(data).cases:
            if not (folder / case.id).exists():
                shutil.copytree(case.files()[0].parent, folder / case.id)
        make_faint(folder)
        return super().patients(folder, work)


def make_faint(folder: Path) -> None:
    """Write the phantoms of the arm `mixed`: tumours from hardly brighter than grey matter to moderately bright."""
    missing = [index for index in range(FAINT) if not (folder / f"Faint_{index:05d}").exists()]
    with progress(FAINT, "faint phantoms", "patient", FAINT - len(missing)) as bar:
        for index in missing:
            name = f"Faint_{index:05d}"
            phantom = varied_patient(np.random.default_rng([FAINT_SEED, index, 1]), bright=(1.05, 1.6))
            (folder / ".tmp" / name).mkdir(parents=True, exist_ok=True)
            for kind, voxels in (("flair", phantom.images["flair"]), ("seg", phantom.seg)):
                nib.save(nib.Nifti1Image(voxels, phantom.affine), folder / ".tmp" / name / f"{name}_{kind}.nii.gz")
            (folder / ".tmp" / name).rename(folder / name)
            bar.update()


def compared(found: dict[str, list[Result]]) -> str:
    """Return the arms in Markdown, each against `base` on the patients that both have validated on."""
    base, rows = pd.concat(found["base"]), []
    for name, results in found.items():
        own = pd.concat(results)
        shared = own.index.intersection(base.index)
        against = "" if name == "base" else gain_text(base.loc[shared], own.loc[shared])
        seconds = sum(map(seconds_of_training, results)) / len(results)
        row = [name, len(own), f"{own[DICE].mean():.3f}", f"{own[DICE].median():.3f}", against]
        scores = [f"{own[column].mean():.3f}" for column in ("precision", "recall", "dice_slices")]
        rows.append([*row, *scores, f"{own['false_ml'].mean():.2f}", f"{seconds:.0f}"])
    columns = ("arm", "patients", "Dice", "median", "against base, 95 % interval", "precision", "recall")
    return markdown_table((*columns, "Dice per slice", "false, ml", "s to train"), rows)


def stopped(found: dict[str, list[Result]]) -> list[str] | None:
    """Return the arms that the protocol stops: all but `base` and the best three; `None` before all have two folds."""
    arms = [name for name in ARMS if not name.startswith("base")]
    if any(len(found.get(name, ())) < 2 for name in arms):
        return None
    return sorted(arms, key=lambda name: -float(pd.concat(found[name][:2])[DICE].mean()))[GO_ON:]


def main() -> None:
    """Do what is missing, then renew the tables."""
    deep.register()
    encoder.register()
    parser = study_parser("best", __doc__)
    parser.add_argument("--brats", type=Path, help="the folder of the patients of BraTS")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--folds", type=int, nargs="*", choices=range(FOLDS), default=list(range(FOLDS)))
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    todo = [(arm, fold, data, "") for fold in arguments.folds for arm in arguments.arms]
    todo += [(arm, 0, arguments.brats, "brats-") for arm in arguments.arms] if arguments.brats else []
    for arm, fold, patients, where in todo:
        one = cell(arm, fold, patients, where)
        ended = stopped(results_of(data)) if fold > 1 or where else []
        if ended is None or arm in ended:
            print(f"{one.name:28} {'waits for folds 0 and 1 of all arms' if ended is None else 'stopped'}", flush=True)
            continue
        if not arguments.status:
            one.measure(patients, work)
        print(f"{one.name:28} {one.progress(work)}", flush=True)
    write(data, arguments.brats)


def results_of(data: Path) -> dict[str, list[Result]]:
    """Return the results of each arm that has some, fold by fold."""
    found = {name: [cell(name, fold, data).result() for fold in range(FOLDS)] for name in ARMS}
    kept = {name: [result for result in own if result is not None] for name, own in found.items()}
    return {name: own for name, own in kept.items() if own}


def write(data: Path, brats: Path | None) -> None:
    """Renew the tables of the page from what is measured."""
    found = results_of(data)
    if "base" not in found:
        return
    blocks = [compared(found), f"Stopped after two folds: {', '.join(stopped(found) or ['none'])}."]
    if brats:
        others = {name: cell(name, 0, brats, "brats-").result() for name in ARMS}
        measured = {name: [result] for name, result in others.items() if result is not None}
        blocks += ["On BraTS:", compared(measured)] if "base" in measured else []
    record("screening", *blocks, f"{data.name}; {machine(('torch',))}", page=PAGE)


if __name__ == "__main__":
    run_command(main)
