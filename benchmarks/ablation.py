"""From the published recipe to the strong one, one change at a time, on validation patients only.

`python -m benchmarks.ablation DATA [--steps 3 4 ...] [--status]`. Every step is one training: of the 56 patients whom
fold 0 does not test, 16 validate (the first 8 of the next two fifths) and 40 train. A step changes one field of the
recipe (more where one makes no sense alone) and keeps the changes of the step that it follows. Steps are independent:
several processes may do some each; a step that was stopped goes on; a step that is done is read from
`benchmarks/measured/`.
"""

import argparse
from dataclasses import dataclass, field
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
    shuffled_patients,
    with_interval,
)
from unetlib.data.split import Split
from unetlib.recipe import Recipe
from unetlib.show.plots import save, staircase_figure
from unetlib.support.command import run_command
from unetlib.support.files import atomic


@dataclass(frozen=True)
class Step:
    """A change of the recipe, after another step: that before it, unless it says which."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    after: str | None = None
    phantoms: bool = False  # begun with weights trained on phantoms, as are the steps after it


STEPS = (
    Step("published"),
    Step("half the width", {"width": 16}),
    Step("slices without tumour, too", {"slices": "all", "balance": True}),
    Step("scaled by the median of the head", {"normalise": "median-volume"}),
    Step("cut to the head", {"crop": True}),
    Step("Dice + cross-entropy", {"loss": "dice+bce"}),
    Step("batches of 8, cosine schedule", {"batch_size": 8, "learning_rate": 2e-3, "schedule": "cosine"}),
    Step("averaged weights", {"average": 0.99}),
    Step("the nose stays up", {"upright": True}),
    Step("neighbouring slices", {"neighbours": 1}),
    Step("turn, scale, bend", {"warp": True}),
    Step("gamma, bias field, noise", {"intensity": True}),
    Step("predict the mirror image, too", {"mirror": True}),
    Step("threshold and components tuned", {"tune": True}),
    Step("begun on phantoms", phantoms=True),
    Step("20 epochs", {"epochs": 20}),
    # The second walk leaves out the two steps that lowered the figure.
    Step("again: turn, scale, bend", {"warp": True}, after="averaged weights"),
    Step("again: gamma, bias field, noise", {"intensity": True}),
    Step("again: predict the mirror image, too", {"mirror": True}),
    Step("again: threshold and components tuned", {"tune": True}),
    Step("again: begun on phantoms", phantoms=True),
    Step("again: 20 epochs", {"epochs": 20}),
    Step("no mirror image, 20 epochs", {"mirror": False}, after="again: 20 epochs"),
    Step("only flips and turns, 20 epochs", {"warp": False, "intensity": False}, after="again: 20 epochs"),
    Step("only flips and turns, 30 epochs", {"epochs": 30}),
    Step("again: 40 epochs", {"epochs": 40}, after="again: 20 epochs"),
)
PAGE = Path(__file__).with_name("ABLATION.md")
TEXT = """\
# From the published recipe to the strong one, step by step

Each step keeps the changes of the step that it follows, the one above unless said below, and is one training of its
own, but for those that only predict otherwise (mirror, tune). 40 patients train and 16 others, on whom these figures
are, validate; the patients whom fold 0 tests are not looked at, but of the 16 eight are tested in fold 1 and eight in
fold 2 (`benchmarks/PROTOCOL.md`). Dice: volumetric, all slices, native grid, mean over patients. Gain: to the step
that it follows, where that was measured, paired, with a 95 % bootstrap interval over patients. Tuning is measured on
the patients that it was chosen on: its gain is an upper bound. False: millilitres a patient on slices without tumour.
Seconds to train are wall time on one core while other work ran; those to predict are processor time, of one patient.
The first walk ends at the recipe `first` of the protocol. The second ("again") starts after the averaged weights,
leaves out the next two steps, which had lowered the figure, and ends at `Recipe.strong`. Three steps follow "again: 20
epochs": "no mirror image, 20 epochs", "only flips and turns, 20 epochs", and "again: 40 epochs", which is that recipe
and the only step whose largest piece always stays.

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


def places() -> list[int | None]:
    """Return for every step the place of the one whose changes it keeps."""
    names = [step.name for step in STEPS]
    return [None, *(names.index(step.after) if step.after else place for place, step in enumerate(STEPS[1:]))]


def cells(data: Path) -> list[Cell]:
    """Return the steps, each with the changes of the one that it follows."""
    split, found = ablation_split(data), list[Cell]()
    for number, (step, place) in enumerate(zip(STEPS, places(), strict=True)):
        before = None if place is None else found[place]
        recipe = (before.recipe if before else Recipe.published).but(**step.changes)
        same = before if step.changes.keys() and step.changes.keys() <= PREDICTING else None
        phantoms = step.phantoms or (before is not None and before.phantoms)
        found.append(Cell(f"ablation-{number:02}", recipe, split, "val", same, phantoms))
    return found


def table(steps: list[Cell]) -> str:
    """Return the steps that are done as a table, each beside the one that it follows."""
    lines = [
        "| step | changed | Dice | gain, 95 % interval | pooled | false, ml | s to train | s to predict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step, place, cell in zip(STEPS, places(), steps, strict=True):
        fields = ", ".join(f"{name} {value}" for name, value in step.changes.items()) or "-"
        if not cell.result.exists():
            lines.append(f"| {step.name} | {fields} | not measured | | | | | |")
            continue
        now = cell.read()
        before = steps[place] if place is not None else None
        by = with_interval(*gain(before.read(), now)) if before and before.result.exists() else ""
        figures = f"{pooled_dice(now):.3f} | {mean(now, 'false_ml'):.2f}"
        lines.append(
            f"| {step.name} | {fields} | {mean(now):.3f} | {by} | {figures} | "
            f"{now['seconds'] * now['threads']:.0f} | {now['seconds_to_predict']:.1f} |"
        )
    return "\n".join(lines)


def write(data: Path, steps: list[Cell]) -> None:
    """Write `ABLATION.md` and `ablation.png` from the steps that are done."""
    done = [number for number, step in enumerate(steps) if step.result.exists()]
    results, before = [steps[number].read() for number in done], [places()[number] for number in done]
    after = [done.index(place) if place in done else None for place in before]
    gains = [None if at is None else gain(results[at], now)[1] for at, now in zip(after, results, strict=True)]
    note = f"{len(steps[0].split.val)} validation patients of {data.name}; Dice of all slices"
    names, dices = [STEPS[number].name for number in done], list(map(mean, results))
    save(staircase_figure(names, dices, gains, note, after), PAGE.with_name("ablation.png"))
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
    steps = cells(arguments.data)
    for number in arguments.steps:
        if not arguments.status and not steps[number].result.exists():
            steps[number].measure(arguments.data, arguments.work)
        print(f"{number:2} {STEPS[number].name:38} {steps[number].progress(arguments.work)}", flush=True)
    if not arguments.status:
        write(arguments.data, steps)


if __name__ == "__main__":
    run_command(main)
