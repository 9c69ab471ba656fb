"""The protocol of PROTOCOL.md: published against strong on five folds of real patients.

`python -m studies.protocol DATA [--arms published strong] [--folds 0 1] [--status] [--train-only]`. `--train-only`
leaves the test patients alone. The strong recipes start from weights trained on phantoms, except for the arm from
scratch. Test patients are scored when `unetlib` and `studies` are committed, and by one arm never again.
"""

from pathlib import Path

import pandas as pd

from benchmarks.common import markdown_table, record
from studies.ablation import ablation_split
from studies.cells import (
    FIRST,
    FOLDS,
    LOOKED_AT,
    PAGE,
    STRONG,
    Cell,
    make_folds,
    require_committed,
    shuffled_patients,
    study_parser,
)
from studies.results import DICE, Result, gain_text, measured_on, pooled_dice, seconds_of_training
from unetlib import Recipe
from unetlib.show.plots import DISCLAIMER, overlay_figure, paired_figure, save, worst
from unetlib.support.command import run_command
from unetlib.support.messages import say

LONG = 25  # epochs of the published recipe in the time of the strong one with its share of the pre-training
ARMS = {
    "published": Recipe.published,
    "published-long": Recipe.published.but(epochs=LONG),
    "first": FIRST,
    "second": STRONG,  # tuned when pieces were dropped whatever was left: to be read, not measured anew
    "strong": STRONG,
    "strong-scratch": STRONG,
    "strong-seed-1": STRONG.but(seed=1),
    "strong-seed-2": STRONG.but(seed=2),
}
FROM_SCRATCH = ("published", "published-long", "strong-scratch")
COLUMNS = {
    "Dice": DICE,
    "precision": "precision",
    "recall": "recall",
    "Dice per slice": "dice_slices",
    "false, ml": "false_ml",
    "HD95, voxels (undefined)": "hd95",
}
LOW = 0.3  # patients below this Dice are looked at


def cells(data: Path, arm: str) -> list[Cell]:
    """Return the cells of an arm: one a fold, of the further seeds only fold 0."""
    folds = make_folds(shuffled_patients(data))
    trained = {"published-long": "published", "strong": "second"}.get(arm)
    same = cells(data, trained) if trained else [None] * FOLDS
    return [
        Cell(f"{arm}-fold-{fold}", ARMS[arm], split, "test", same[fold], arm not in FROM_SCRATCH)
        for fold, split in enumerate(folds)
        if fold == 0 or "seed" not in arm
    ]


def finished(data: Path) -> dict[str, list[Result]]:
    """Return the results, one a fold, of the arms whose folds are all measured."""
    found = {arm: [cell.result() for cell in cells(data, arm)] for arm in ARMS}
    return {arm: own for arm, own in found.items() if all(result is not None for result in own)}


def tables(done: dict[str, list[Result]], untouched: list[str]) -> list[str]:
    """Return the arms as a table, and the differences to the strong one, also on `untouched` patients alone."""
    whole = {arm: pd.concat(results) for arm, results in done.items() if len(results) == FOLDS}
    rows = []
    for arm, result in whole.items():
        means = [f"{result[column].mean():.3f}" for column in COLUMNS.values()]
        means[-1] += f" ({result['hd95'].isna().sum()})"
        rows.append([arm, *means, f"{pooled_dice(result):.3f}", f"{seconds_of_training(*done[arm]):.0f}"])
    blocks = [markdown_table(["arm", *COLUMNS, "pooled Dice", "s a fold"], rows)]
    strong = whole.pop("strong", None)
    for arm, other in whole.items() if strong is not None else ():
        false = " against ".join(f"{result['false_ml'].mean():.2f} ml" for result in (strong, other))
        fair, before = strong.loc[untouched], other.loc[untouched]
        blocks.append(
            f"strong against {arm}: Dice {gain_text(other, strong)}; marked on slices without tumour {false}. "
            f"On the {len(untouched)} who neither validated nor were looked at: {fair[DICE].mean():.3f}, "
            f"{gain_text(before, fair)}."
        )
    # The further seeds start from the same phantoms' weights: only the order and the augmentation differ.
    seeds = [results[0][DICE].mean() for arm, results in done.items() if arm == "strong" or "seed" in arm]
    if len(seeds) > 1:
        blocks.append(f"Seeds of the strong recipe on fold 0: {', '.join(f'{dice:.3f}' for dice in seeds)}.")
    return blocks


def untouched(data: Path) -> list[str]:
    """Return the patients on whom nothing was chosen, neither by the maker of the phantoms nor by the ablation."""
    chosen_on = set(ablation_split(data).val)
    return [name for name in shuffled_patients(data)[LOOKED_AT:] if name not in chosen_on]


def failures(result: Result, name: str) -> str:
    """Return a line on each patient below `LOW` under the recipe `name`: what is wrong, and the tumour's size."""
    low = result[result[DICE] < LOW].sort_values(DICE)
    if low.empty:
        return f"Under {name}, no patient is below {LOW}."
    lines = [f"Patients below {LOW} under {name}:", ""]
    for patient, row in low.iterrows():
        what = "missed" if row.recall < row.precision or not row.recall else "false alarms"
        lines.append(
            f"- {patient}: Dice {row[DICE]:.2f}, {what} (precision {row.precision:.2f}, recall {row.recall:.2f}); "
            f"{(row.tp + row.fn) / 1000:.0f} thousand voxels; "
            f"components below {float(row['decision.smallest_ml']):g} ml were dropped."
        )
    return "\n".join(lines)


def draw(done: dict[str, list[Result]], work: Path) -> None:
    """Draw what the strong recipe changes for each patient, and those who fail."""
    before, after = (pd.concat(done[arm])[DICE].sort_index() for arm in ("published", "strong"))
    note = "Dice of all slices, each patient tested once"
    figure = paired_figure([*before.index], [*before], [*after], ("published", "strong"), note)
    save(figure, PAGE.with_name("protocol.png"))
    draw_failures(dict(enumerate(done["strong"])), "strong", work)


def draw_failures(results: dict[int, Result], name: str, work: Path) -> None:
    """Draw, below `work`, the slices of the patients below `LOW`; `results` by fold.

    They show real patients: they stay on the machine of whoever has the data.
    """
    rows = []
    for fold, result in results.items():
        low, run = int((result[DICE] < LOW).sum()), work / "runs" / f"{name}-fold-{fold}"
        rows += [one.overlay() for one in worst(run, low)] if low and run.exists() else []
    if rows:
        save(overlay_figure(rows, DISCLAIMER), work / "failures.png")
        say(f"{work / 'failures.png'} shows them.")


def main() -> None:
    """Do what is missing, then print and record the tables."""
    parser = study_parser("protocol", __doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), default=list(range(FOLDS)))
    parser.add_argument("--train-only", action="store_true", help="leave the test patients alone")
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    if not (arguments.status or arguments.train_only):
        require_committed()
    for arm in arguments.arms:
        for fold, cell in enumerate(cells(data, arm)):
            if fold in arguments.folds and not arguments.status and cell.result() is None:
                (cell.fit if arguments.train_only else cell.measure)(data, work)
            print(f"{cell.name:24} {cell.progress(work)}", flush=True)
    done = finished(data)
    if arguments.status or arguments.train_only or not {"published", "strong"} <= done.keys():
        return
    draw(done, work)
    blocks = [*tables(done, untouched(data)), failures(pd.concat(done["strong"]), "strong")]
    record("protocol", *blocks, f"{data.name}; {measured_on(*(f'{arm}-fold-' for arm in ARMS))}", page=PAGE)


if __name__ == "__main__":
    run_command(main)
