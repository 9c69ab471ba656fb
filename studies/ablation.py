"""From the published recipe to the strong one, one change at a time, on validation patients only.

`python -m studies.ablation DATA [--steps 3 4 ...] [--status]`. Every step is one training: of the 56 patients whom
fold 0 does not test, 16 validate (the first 8 of the next two fifths) and 40 train. A step changes one field of the
recipe (more where one makes no sense alone) and keeps the changes of the step that it follows. Steps are independent.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import markdown_table, record
from studies.cells import VALIDATION, Cell, make_fold, make_folds, shuffled_patients, study_parser
from studies.results import DICE, Result, gain, gain_text, measured_on, pooled_dice, seconds_of_training
from unetlib import Recipe
from unetlib.data.split import Split
from unetlib.show.plots import save, staircase_figure
from unetlib.support.command import run_command


@dataclass(frozen=True)
class Step:
    """A change of the recipe, after another step: the one before it, unless it names one."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    after: str | None = None
    phantoms: bool = False  # starts from weights trained on phantoms, as do the steps after it


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
    # The second walk leaves out the two steps that lowered the Dice.
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
PREDICTING = {"mirror", "tune"}  # fields that training does not depend on


def ablation_split(data: Path) -> Split:
    """Return the split of the ablation: fold 0 tests, the first 8 of the next two fifths validate."""
    patients = shuffled_patients(data)
    folds = make_folds(patients)
    return make_fold(patients, folds[0].test, [*patients[1::5][:VALIDATION], *patients[2::5][:VALIDATION]])


def places() -> list[int | None]:
    """Return for every step the index of the one that it follows."""
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


def table(found: list[Result | None]) -> str:
    """Return the steps in Markdown, each measured one beside the one that it follows."""
    rows = []
    for step, place, now in zip(STEPS, places(), found, strict=True):
        row = [step.name, ", ".join(f"{name} {value}" for name, value in step.changes.items()) or "-"]
        if now is None:
            rows.append([*row, "not measured", "", "", "", "", ""])
            continue
        before = None if place is None else found[place]
        row += [f"{now[DICE].mean():.3f}", "" if before is None else gain_text(before, now), f"{pooled_dice(now):.3f}"]
        row += [f"{now['false_ml'].mean():.2f}", f"{seconds_of_training(now):.0f}"]
        rows.append([*row, f"{now['seconds_to_predict'].iloc[0]:.1f}"])
    columns = ("step", "changed", "Dice", "gain, 95 % interval", "pooled", "false, ml", "s to train", "s to predict")
    return markdown_table(columns, rows)


def write(data: Path, steps: list[Cell]) -> None:
    """Renew the table of `ABLATION.md`, and `ablation.png`, from the steps that are measured."""
    found = [step.result() for step in steps]
    done = {number: result for number, result in enumerate(found) if result is not None}
    after = [place if place in done else None for place in (places()[number] for number in done)]
    gains = [
        None if place is None else gain(done[place], now)[1] for place, now in zip(after, done.values(), strict=True)
    ]
    names, dices = [STEPS[number].name for number in done], [float(result[DICE].mean()) for result in done.values()]
    rows = [None if place is None else [*done].index(place) for place in after]
    note = f"{len(steps[0].split.val)} validation patients of {data.name}; Dice of all slices"
    save(staircase_figure(names, dices, gains, note, rows), PAGE.with_name("ablation.png"))
    signature = f"`python -m studies.ablation DATA`, {data.name}; {measured_on('ablation-')}."
    record("ablation", table(found), "![Dice after each step](ablation.png)", signature, page=PAGE)


def main() -> None:
    """Do the steps that are missing, then renew the page."""
    parser = study_parser("ablation", __doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=list(range(len(STEPS))))
    arguments = parser.parse_args()
    steps = cells(arguments.data)
    for number in arguments.steps:
        if not arguments.status:
            steps[number].measure(arguments.data, arguments.work)
        print(f"{number:2} {STEPS[number].name:38} {steps[number].progress(arguments.work)}", flush=True)
    if not arguments.status:
        write(arguments.data, steps)


if __name__ == "__main__":
    run_command(main)
