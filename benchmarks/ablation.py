"""From the published recipe to the strong one, one change at a time, on validation patients only.

`python -m benchmarks.ablation DATA [--steps 3 4 ...] [--status]`. Every step is one training: of the 56 patients
whom fold 0 does not test, 16 validate (the first 8 of the next two fifths) and 40 train. A step changes one field of
the recipe (two where one makes no sense alone) and keeps those before it. Steps are independent: several processes may
do some each; a step that was stopped goes on; a step that is done is read from `benchmarks/measured/`.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.folds import (
    VALIDATION,
    Cell,
    gain,
    make_fold,
    make_folds,
    mean,
    pooled_dice,
    pretrained,
    run_main,
    shuffled_patients,
    with_interval,
)
from unetlib.files import atomic
from unetlib.plots import save, staircase_figure
from unetlib.recipe import Recipe
from unetlib.split import Split

PHANTOMS_FIRST = "begun on phantoms"
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
    (PHANTOMS_FIRST, {}),
    ("20 epochs", {"epochs": 20}),
    ("128 x 128 pixels", {"image_size": 128}),
)
PAGE = Path(__file__).with_name("ABLATION.md")
TEXT = """\
# From the published recipe to the strong one, step by step

Each step keeps the changes of those before it and is one training of its own. 40 patients train and 16 others, on whom
these figures are, validate; the patients whom fold 0 tests are not looked at, but of the 16 eight are tested in fold 1
and eight in fold 2 (`benchmarks/PROTOCOL.md`). Dice: volumetric, all slices, native grid, mean over patients. Gain: to
the step before, where that was measured, paired, with a 95 % bootstrap interval over patients. Tuning is measured on
the patients that it was chosen on: its gain is an upper bound. False: millilitres a patient on slices without tumour.
Seconds to train are wall time on one core while other work ran; those to predict are processor time, of one patient.

{table}

![Dice after each step](ablation.png)

`python -m benchmarks.ablation DATA`, {data}; {machine}. For research and education, never for clinical use.
"""
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


def table(steps: list[Cell]) -> str:
    """Return the steps that are done as a table, each beside the one before it."""
    lines = [
        "| step | changed | Dice | gain, 95 % interval | pooled | false, ml | s to train | s to predict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before = None
    for (name, changes), cell in zip(STEPS, steps, strict=True):
        fields = ", ".join(f"{field} {value}" for field, value in changes.items()) or "-"
        if not cell.result.exists():
            lines.append(f"| {name} | {fields} | not measured | | | | | |")
            before = None
            continue
        now = cell.read()
        by = "" if before is None else with_interval(*gain(before, now))
        lines.append(
            f"| {name} | {fields} | {mean(now):.3f} | {by} | {pooled_dice(now):.3f} | {mean(now, 'false_ml'):.2f} | "
            f"{now['seconds'] * now['threads']:.0f} | {now['seconds_to_predict']:.1f} |"
        )
        before = now
    return "\n".join(lines)


def write(data: Path, steps: list[Cell]) -> None:
    """Write `ABLATION.md` and `ablation.png` from the steps that are done."""
    done = [(number, name) for number, (name, _) in enumerate(STEPS) if steps[number].result.exists()]
    results = {number: steps[number].read() for number, _ in done}
    gains = [gain(results[n - 1], results[n])[1] if n - 1 in results else None for n in results]
    note = f"{len(steps[0].split.val)} validation patients of {data.name}; Dice of all slices"
    save(
        staircase_figure([name for _, name in done], list(map(mean, results.values())), gains, note),
        PAGE.with_name("ablation.png"),
    )
    with atomic(PAGE) as temporary:
        temporary.write_text(TEXT.format(table=table(steps), data=data.name, machine=machine(("torch",))), "utf-8")


def main() -> None:
    """Do the steps that are missing, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work/study"))
    parser.add_argument("--steps", type=int, nargs="+", default=list(range(len(STEPS))))
    parser.add_argument("--status", action="store_true", help="only say how far it is")
    arguments = parser.parse_args()
    steps, names = cells(arguments.data), [name for name, _ in STEPS]
    for number in arguments.steps:
        if not arguments.status:
            begun = number >= names.index(PHANTOMS_FIRST) and not steps[number].result.exists()
            first = pretrained(arguments.work) if begun else None
            steps[number].measure(arguments.data, arguments.work, first)
        print(f"{number:2} {STEPS[number][0]:34} {steps[number].progress(arguments.work)}", flush=True)
    if not arguments.status:
        write(arguments.data, steps)


if __name__ == "__main__":
    run_main(main)
