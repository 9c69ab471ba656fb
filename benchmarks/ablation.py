"""From the published recipe to the strong one, one change at a time, on validation patients only.

`python -m benchmarks.ablation DATA [--steps 3 4 ...] [--status]`. Every step is one training: of the 56 patients
whom fold 0 does not test, 16 validate (the first 8 of the next two fifths) and 40 train. A step changes one field of
the recipe (two where one makes no sense alone) and keeps those before it. Steps are independent: several processes may
do some each; a step that was stopped goes on; a step that is done is read from `benchmarks/measured/`.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.folds import VALIDATION, Cell, make_fold, make_folds, shuffled_patients
from unetlib.recipe import Recipe
from unetlib.split import Split

STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("published", {}),
    ("half the width", {"width": 16}),
    ("slices without tumour, too", {"slices": "all", "balance": True}),
    ("scaled by the median of the head", {"normalise": "median-volume"}),
    ("cut to the head", {"crop": True}),
    ("Dice + cross-entropy", {"loss": "dice+bce"}),
    ("batches of 8, cosine schedule", {"batch_size": 8, "learning_rate": 2e-3, "schedule": "cosine"}),
    ("averaged weights", {"average": 0.99}),
    ("the nose stays up", {"upright": True}),
    ("neighbouring slices", {"neighbours": 1}),
    ("turn, scale, bend", {"warp": True}),
    ("gamma, bias field, noise", {"intensity": True}),
    ("predict the mirror image, too", {"mirror": True}),
    ("threshold and components tuned", {"tune": True}),
    ("128 x 128 pixels", {"image_size": 128}),
    ("30 epochs", {"epochs": 30}),
)
PREDICTING = {"mirror", "tune"}  # fields that training does not depend on


def ablation_split(data: Path) -> Split:
    """Return the split of the ablation: fold 0 tests, the first 8 of the next two fifths validate."""
    patients = shuffled_patients(data)
    folds = make_folds(patients)
    return make_fold(patients, folds[0].test, [*patients[1::5][:VALIDATION], *patients[2::5][:VALIDATION]])


def cells(data: Path) -> list[Cell]:
    """Return the steps, each with the changes of those before it."""
    recipe, split, found = Recipe.published, ablation_split(data), []
    for number, (_, changes) in enumerate(STEPS):
        recipe = recipe.but(**changes)
        same = found[-1] if changes.keys() and changes.keys() <= PREDICTING else None
        found.append(Cell(f"ablation-{number:02}", recipe, split, "val", same))
    return found


def main() -> None:
    """Do the steps that are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work/study"))
    parser.add_argument("--steps", type=int, nargs="+", default=list(range(len(STEPS))))
    parser.add_argument("--status", action="store_true", help="only say how far it is")
    arguments = parser.parse_args()
    steps = cells(arguments.data)
    for number in arguments.steps:
        if not arguments.status:
            steps[number].measure(arguments.data, arguments.work)
        print(f"{number:2} {STEPS[number][0]:34} {steps[number].progress(arguments.work)}", flush=True)


if __name__ == "__main__":
    main()
