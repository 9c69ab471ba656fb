"""The study of BEST.md: which changes make the strong recipe better at equal time.

`python -m studies.best DATA [--brats FOLDER] [--stages 1 2 3] [--arms base quick ...] [--folds 0 1 ...] [--status]`
does what is missing. Stages 1 and 2 score validation patients alone; stage 3 scores each test patient once. A stage
waits for the one before.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from benchmarks.common import markdown_table, record
from studies import deep, encoder, protocol
from studies.cells import (
    FOLDS,
    NETWORK,
    STRONG,
    Cell,
    copied,
    make_folds,
    pretrained,
    require_committed,
    shuffled_patients,
    study_parser,
)
from studies.protocol import LOW, draw_failures, failures
from studies.regions import mean_text
from studies.results import DICE, Result, gain, gain_text, measured_on, seconds_of_training
from unetlib import Recipe, UnetlibError, find_cases
from unetlib.data.split import Split
from unetlib.phantom.varied import varied_patient
from unetlib.runs.first_weights import shipped_for
from unetlib.runs.run import Run
from unetlib.support.command import run_command
from unetlib.support.jobs import watched
from unetlib.support.messages import say

# Epochs of 10 minutes of one core, from ten steps and a validation: 24 s an epoch of `base`, 91 of `quick`, 38 of
# `size`, 33 of `deep`, 59 of `encoder`.
PAGE = Path(__file__).with_name("BEST.md")
BRATS = "brats-"  # in the names of cells on BraTS
CHOSEN_ON, FINALISTS = 2, 2  # folds of stages 1 and 2, arms that go on to stage 2
STOPPED = ("size", "deep")  # after fold 0
MINUTES, MEMBERS = 25, 3  # of one core for a training of stages 2 and 3, networks for a fold in stage 3
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
    minutes: int = 10
    pretraining: int = 10  # epochs on phantoms alone, before
    mixed: bool = False  # learns from further phantoms, too

    def cell(self, label: str, recipe: Recipe, fold: int, data: Path, part: str = "val") -> "BestCell":
        """Return a training of it on a fold, whose name begins with `label`, with the phantoms that it learns from."""
        split = folds_of(data)[fold]
        faint = [f"Faint_{index:05d}" for index in range(FAINT)] if self.mixed else []
        split = Split((*split.train, *faint), split.val, split.test)
        return BestCell(f"{label}fold-{fold}", recipe, split, part, pretraining=self.pretraining)


ARMS = {
    "base": Arm(BASE, 20),
    "quick": Arm(QUICK, 6, pretraining=5),
    "size": Arm(BASE.but(image_size=128, epochs=16), 13),
    "deep": Arm(BASE.but(network="deep", loss=deep.LOSS, epochs=18), 15),
    "mixed": Arm(BASE.but(epochs=15), 13, mixed=True),
    "encoder": Arm(QUICK.but(network="lite0", epochs=10, learning_rate=1e-3), 8, pretraining=0),
    "twice": Arm(BASE.but(epochs=50), 41, minutes=20),
    "base-seed-1": Arm(BASE.but(seed=1), 20),
}


def folds_of(data: Path) -> list[Split]:
    """Return five splits: each tests a fifth, validates on the next fifth and trains on the others."""
    return make_folds(shuffled_patients(data), most=None)


def cell(name: str, fold: int, data: Path, where: str = "") -> "BestCell":
    """Return an arm on a fold; `where` names another cohort than TCGA-LGG."""
    arm = ARMS[name]
    recipe = arm.recipe.but(epochs=arm.on_brats) if where else arm.recipe
    return arm.cell(f"screen-{name}-{where}", recipe, fold, data)


def final_cell(name: str, fold: int, data: Path, where: str = "") -> "BestCell":
    """Return an arm of stage 2 on a fold; `published`, the recipe as it is, is compared on BraTS."""
    if name == "published":
        return BestCell(f"final-{name}-{where}fold-{fold}", Recipe.published, folds_of(data)[fold], "val")
    arm = ARMS[name]
    epochs = round((arm.on_brats if where else arm.recipe.epochs) * MINUTES / arm.minutes)
    return arm.cell(f"final-{name}-{where}", arm.recipe.but(epochs=epochs, seed=1), fold, data)


def best_cell(name: str, fold: int, data: Path) -> "BestCell":
    """Return the recipe of the arm that won, with its members, on the test patients of a fold.

    Raises `UnetlibError` for an arm whose members would validate on phantoms.
    """
    if ARMS[name].mixed:
        raise UnetlibError(f"{name} won: its members would validate on phantoms. See to it first.")
    recipe = final_cell(name, fold, data).recipe.but(seed=0, members=MEMBERS, tune=True)
    return ARMS[name].cell("best-", recipe, fold, data, "test")


@dataclass(frozen=True)
class BestCell(Cell):
    """A cell of this study: its patients may include phantoms, the faint ones of the arm `mixed`."""

    pretraining: int = 0  # epochs on phantoms alone, before

    def start_from(self, work: Path) -> Run | None:
        """Return the run on phantoms that it begins with: the one that is shipped, if that has its network."""
        if not self.pretraining:
            return None
        if all(getattr(self.recipe, name) == getattr(STRONG, name) for name in NETWORK):
            return shipped_for(self.recipe)
        return pretrained(work, self.recipe, self.pretraining)

    def patients(self, data: Path, work: Path) -> Path:
        """Return the folder of its patients, with the faint phantoms if it learns from them."""
        if not any(name.startswith("Faint") for name in self.split.train):
            return super().patients(data, work)
        folder = copied(data, work / f"mixed-{data.name}", {case.patient for case in find_cases(data).cases})
        make_faint(folder)
        return super().patients(folder, work)


def make_faint(folder: Path) -> None:
    """Write the phantoms of the arm `mixed`: tumours from hardly brighter than grey matter to moderately bright."""
    missing = [index for index in range(FAINT) if not (folder / f"Faint_{index:05d}").exists()]
    for index in watched(missing, "faint phantoms", "patient", FAINT - len(missing)):
        name = f"Faint_{index:05d}"
        phantom = varied_patient(np.random.default_rng([FAINT_SEED, index, 1]), bright=(1.05, 1.6))
        (folder / ".tmp" / name).mkdir(parents=True, exist_ok=True)
        for kind, voxels in (("flair", phantom.images["flair"]), ("seg", phantom.seg)):
            nib.save(nib.Nifti1Image(voxels, phantom.affine), folder / ".tmp" / name / f"{name}_{kind}.nii.gz")
        (folder / ".tmp" / name).rename(folder / name)


def compared(found: dict[str, list[Result]], basis: str = "base") -> str:
    """Return the arms in Markdown, each against `basis` on the patients that both have validated on."""
    base, rows = pd.concat(found[basis]), []
    for name, results in found.items():
        own = pd.concat(results)
        shared = own.index.intersection(base.index)
        against = "" if name == basis else gain_text(base.loc[shared], own.loc[shared])
        row = [name, len(own), f"{own[DICE].mean():.3f}", f"{own[DICE].median():.3f}", against]
        scores = [f"{own[column].mean():.3f}" for column in ("precision", "recall", "dice_slices")]
        rows.append([*row, *scores, f"{own['false_ml'].mean():.2f}", f"{seconds_of_training(*results):.0f}"])
    columns = ("arm", "patients", "Dice", "median", f"against {basis}, 95 % interval", "precision", "recall")
    return markdown_table((*columns, "Dice per slice", "false, ml", "s to train"), rows)


def finalists(data: Path) -> list[str] | None:
    """Return the two arms of the highest mean Dice in the screening; `None` before it is complete.

    `base` is not among them: with more minutes it is `twice`.
    """
    arms = [name for name in ARMS if not name.startswith("base") and name not in STOPPED]
    found = {name: found_on(cell, name, data, range(CHOSEN_ON)) for name in arms}
    if any(len(own) < CHOSEN_ON for own in found.values()):
        return None
    return sorted(arms, key=lambda name: -mean_dice(found[name]))[:FINALISTS]


def winner(data: Path, brats: Path) -> str | None:
    """Return the arm that becomes `best`; `None` before stage 2 is complete.

    It has the highest mean Dice among those that do not lose to `base` or `published` on BraTS; further phantoms must
    gain more than chance. Raises `UnetlibError` when each of them loses there.
    """
    names = finalists(data)
    if names is None:
        return None
    found = {name: found_on(final_cell, name, data, range(CHOSEN_ON)) for name in names}
    screened = {name: found_on(cell, name, brats, [0], BRATS) for name in ("base", *names)}
    final = {name: found_on(final_cell, name, brats, [0], BRATS) for name in ("published", *names)}
    if any(len(own) < CHOSEN_ON for own in found.values()) or not all((*screened.values(), *final.values())):
        return None
    order = sorted(names, key=lambda name: -mean_dice(found[name]))
    if ARMS[order[0]].mixed and not surely_better(found[order[0]], found[order[1]]):
        order.reverse()
    for name in order:
        pairs = ((screened[name], screened["base"]), (final[name], final["published"]))
        if all(mean_dice(own) >= mean_dice(other) for own, other in pairs):
            return name
    raise UnetlibError(f"{' and '.join(names)} lose to base or published on BraTS, so none of them becomes best.")


def found_on(make: Callable[..., "BestCell"], name: str, data: Path, folds: Iterable[int], *where: str) -> list[Result]:
    """Return the results of an arm on those folds that have some."""
    results = [make(name, fold, data, *where).result() for fold in folds]
    return [result for result in results if result is not None]


def mean_dice(results: list[Result]) -> float:
    """Return the mean Dice of the patients of some results."""
    return float(pd.concat(results)[DICE].mean())


def surely_better(results: list[Result], others: list[Result]) -> bool:
    """Return whether the interval of the paired differences in Dice lies above 0."""
    _, interval = gain(pd.concat(others), pd.concat(results))
    return interval is not None and interval[0] > 0


def cells_of(
    stage: int, data: Path, brats: Path | None, arms: list[str], folds: list[int]
) -> list[tuple["BestCell", Path]]:
    """Return the cells of a stage, each with the folder of its patients; none before the stage before is complete."""
    few = [fold for fold in folds if fold < CHOSEN_ON]
    if stage == 1:
        on = [name for name in arms if name not in STOPPED]
        cells = [(cell(name, fold, data), data) for fold in few for name in (on if fold else arms)]
        return cells + ([(cell(name, 0, brats, BRATS), brats) for name in on] if brats else [])
    if stage == 2:
        names = [name for name in finalists(data) or () if name in arms]
        cells = [(final_cell(name, fold, data), data) for fold in few for name in names]
        return cells + [(final_cell(name, 0, brats, BRATS), brats) for name in ("published", *names) if brats and names]
    name = winner(data, brats) if brats else None
    return [(best_cell(name, fold, data), data) for fold in folds] if name else []


def main() -> None:
    """Do what is missing, then renew the tables."""
    deep.register()
    encoder.register()
    parser = study_parser("best", __doc__)
    parser.add_argument("--brats", type=Path, help="the folder of the patients of BraTS")
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--folds", type=int, nargs="*", choices=range(FOLDS), default=list(range(FOLDS)))
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    for stage in arguments.stages:
        cells = cells_of(stage, data, arguments.brats, arguments.arms, arguments.folds)
        if not cells:
            say(f"stage {stage} waits for the stage before it, or for --brats")
        for one, patients in cells:
            if not arguments.status:
                if stage == 3:
                    require_committed()
                one.measure(patients, work)
            say(f"{one.name:28} {one.progress(work)}")
    write(data, arguments.brats, work)


def write(data: Path, brats: Path | None, work: Path) -> None:
    """Renew the tables of the page from what is measured."""
    found = {name: own for name in ARMS if (own := found_on(cell, name, data, range(CHOSEN_ON)))}
    if "base" not in found:
        return
    names = finalists(data)
    blocks = [compared(found)]
    if brats:
        others = {name: own for name in ARMS if (own := found_on(cell, name, brats, [0], BRATS))}
        blocks += ["On BraTS:", compared(others)] if "base" in others else []
    blocks += [f"On to stage 2: {' and '.join(names)}."] if names else []
    record("screening", *blocks, f"{data.name}; {measured_on('screen-')}", page=PAGE)
    if blocks := final_tables(data, brats, names or []):
        record("final choice", *blocks, f"{data.name}; {measured_on('final-')}", page=PAGE)
    name = winner(data, brats) if brats else None
    results = {fold: best_cell(name, fold, data).result() for fold in range(FOLDS)} if name else {}
    if tested := {fold: result for fold, result in results.items() if result is not None}:
        record("best", *tables_of_test(tested, data), f"{data.name}; {measured_on('best-')}", page=PAGE)
        draw_failures(tested, "best", work)


def final_tables(data: Path, brats: Path | None, names: list[str]) -> list[str]:
    """Return what stage 2 has measured: its arms on TCGA-LGG and, with `published`, on BraTS; empty without results."""
    blocks = []
    for folder, arms, where in ((data, names, []), (brats, ["published", *names], [BRATS])):
        folds = [0] if where else range(CHOSEN_ON)
        found = {name: own for name in arms if folder and (own := found_on(final_cell, name, folder, folds, *where))}
        if arms and arms[0] in found:
            blocks += [*(["On BraTS:"] if where else []), compared(found, arms[0])]
    return blocks


def tables_of_test(tested: dict[int, Result], data: Path) -> list[str]:
    """Return the scores of the folds that `best` has tested, beside those of the first study on the same patients.

    The difference to `strong` is also given for those who neither validated nor were looked at, before this study and
    in all. The rule of the largest component was found with all of them in view.
    """
    done, best = protocol.finished(data), pd.concat(tested.values())
    arms = {name: [done[name][fold] for fold in tested] for name in ("published", "published-long", "strong")}
    rows = []
    for name, results in (arms | {"best": [*tested.values()]}).items():
        own = pd.concat(results)
        means = [f"{own[column].mean():.3f}" for column in ("precision", "recall", "dice_slices")]
        means += [f"{own['false_ml'].mean():.1f}", f"{own['hd95'].mean():.1f} ({own['hd95'].isna().sum()})"]
        folds = ", ".join(f"{result[DICE].mean():.3f}" for result in results)
        low, minutes = (own[DICE] < LOW).sum(), seconds_of_training(*results) / 60
        rows.append([name, mean_text(own[DICE]), f"{own[DICE].median():.3f}", folds, *means, low, f"{minutes:.0f}"])
    columns = ("recipe", "Dice per patient", "median", "folds", "precision", "recall", "Dice per slice", "false, ml")
    table = markdown_table((*columns, "HD95, voxels (undefined)", f"below {LOW}", "min to train"), rows)
    strong, before = pd.concat(arms["strong"]), best.index.intersection(protocol.untouched(data))
    none = before.difference([name for split in folds_of(data)[:CHOSEN_ON] for name in split.val])
    against = (
        f"best against strong: {gain_text(strong, best)} on {len(best)} patients, "
        f"{gain_text(strong.loc[before], best.loc[before])} on the {len(before)} who had neither validated nor been "
        f"looked at before this study, and {gain_text(strong.loc[none], best.loc[none])} on the {len(none)} who did "
        "not validate in it either."
    )
    so_far = "" if len(tested) == FOLDS else f" Folds measured so far: {', '.join(map(str, tested))}."
    return [table, against + so_far, failures(best, "best")]


if __name__ == "__main__":
    run_command(main)
