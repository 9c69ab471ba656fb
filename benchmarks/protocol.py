"""The protocol of PROTOCOL.md: published against strong on five folds of real patients.

`python -m benchmarks.protocol DATA [--arms published strong] [--folds 0 1] [--status] [--train-only]`. Everything that
is missing is trained and then scored, or goes on where it was stopped; `--status` says how far it is. `--train-only`
leaves the test patients alone. The strong recipes begin with weights trained on phantoms, but for the arm from
scratch. Test patients are scored when `unetlib/recipe.py` is committed, and by one arm never again: a result in
`benchmarks/measured/` is read, not computed. Several processes may do some arms or folds each.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation import ablation_split
from benchmarks.common import machine, record
from benchmarks.folds import (
    FIRST,
    FOLDS,
    LOOKED_AT,
    Cell,
    gain,
    joined,
    make_folds,
    mean,
    pooled_dice,
    require_committed,
    shuffled_patients,
    values,
    with_interval,
)
from unetlib.data.patients import Case, find_cases, read_case
from unetlib.data.slices import foreground
from unetlib.recipe import Recipe
from unetlib.show.plots import DISCLAIMER, overlay_figure, paired_figure, save, worst
from unetlib.support.command import run_command
from unetlib.support.jobs import say

LONG = 25  # epochs of the published recipe in the time of the strong one with its share of the pre-training
ARMS = {
    "published": Recipe.published,
    "published-long": Recipe.published.but(epochs=LONG),
    "first": FIRST,
    "second": Recipe.strong,  # tuned when pieces were dropped whatever was left: to be read, not measured anew
    "strong": Recipe.strong,
    "strong-scratch": Recipe.strong,
    "strong-seed-1": Recipe.strong.but(seed=1),
    "strong-seed-2": Recipe.strong.but(seed=2),
}
FROM_SCRATCH = ("published", "published-long", "strong-scratch")
COLUMNS = {
    "Dice": "dice",
    "precision": "precision",
    "recall": "recall",
    "Dice per slice": "dice_slices",
    "false, ml": "false_ml",
    "HD95, mm (undefined)": "hd95_mm",
}
TEXT = """\
Every arm tests every patient once, by a network that was neither trained nor tuned on them (`benchmarks/PROTOCOL.md`);
`published-long` has as much time of a core as the strong arms, or more. The recipe was chosen on 16 of them and the
phantoms were made with a look at 20, so the difference is given without these, too. `first` is the strong recipe that
was scored first; `second` was chosen on validation patients when its figures were known; `strong` is `second`, tuned
anew without erasing the largest piece of a patient, a rule that was thought of when the figures of `second` were
known. Means over patients: volumetric Dice, precision and recall over all slices, native grid; Dice per slice, over
those with tumour; millilitres marked on slices without tumour; HD95. Seconds are wall time on one core while other
work ran, without the pre-training on phantoms, which is done once. Differences are paired, with a 95 % bootstrap
interval over patients. `python -m benchmarks.protocol DATA`; each patient's figures lie in `benchmarks/measured/`, and
their differences in `protocol.png`."""
LOW = 0.3  # a patient below is looked at


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


def finished(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the results of the arms whose folds are all done; of the further seeds, there is only fold 0."""
    found = {}
    for arm in ARMS:
        own = cells(data, arm)
        if all(cell.result.exists() for cell in own):
            found[arm] = [cell.read() for cell in own]
    return found


def tables(done: dict[str, list[dict[str, Any]]], untouched: Sequence[str]) -> str:
    """Return the arms as a table, and the differences to the strong one, also on `untouched` patients alone."""
    lines = [f"| | {' | '.join(COLUMNS)} | pooled Dice | s a fold |", f"|---|{'---|' * (len(COLUMNS) + 2)}"]
    whole = {arm: joined(results) for arm, results in done.items() if len(results) == FOLDS}
    for arm, result in whole.items():
        figures = [f"{mean(result, figure):.3f}" for figure in COLUMNS.values()]
        undefined = len(result["patients"]) - len(values(result, "hd95_mm"))
        seconds = sum(one["seconds"] * one["threads"] for one in done[arm]) / FOLDS
        lines.append(f"| {arm} | {' | '.join(figures)} ({undefined}) | {pooled_dice(result):.3f} | {seconds:.0f} |")
    strong = whole.get("strong", {"patients": {}})
    for arm in [arm for arm in whole if arm != "strong"] if strong["patients"] else ():
        by = with_interval(*gain(whole[arm], strong))
        false = [f"{mean(result, 'false_ml'):.2f} ml" for result in (strong, whole[arm])]
        lines += ["", f"strong against {arm}: Dice {by}; marked on slices without tumour {' against '.join(false)}."]
        fair, before = ({"patients": {n: r["patients"][n] for n in untouched}} for r in (strong, whole[arm]))
        by, who = with_interval(*gain(before, fair)), f"{len(untouched)} who neither validated nor were looked at"
        lines[-1] += f" On the {who}: {mean(fair):.3f}, {by}."
    # The further seeds begin on the same phantoms' weights: only the order and the augmentation differ.
    seeds = [mean(results[0]) for arm, results in done.items() if arm == "strong" or "seed" in arm]
    if len(seeds) > 1:
        lines += ["", f"Seeds of the strong recipe on fold 0: {', '.join(f'{dice:.3f}' for dice in seeds)}."]
    return "\n".join(lines)


def untouched(data: Path) -> list[str]:
    """Return the patients on whom nothing was chosen: neither the phantoms looked at them, nor did the ablation."""
    chosen_on = set(ablation_split(data).val)
    return [name for name in shuffled_patients(data)[LOOKED_AT:] if name not in chosen_on]


def failures(data: Path, done: dict[str, list[dict[str, Any]]]) -> str:
    """Return a line on each patient below `LOW` under the strong recipe: what went wrong, and how the tumour looks."""
    patients = joined(done["strong"])["patients"]
    dropped = {name: one["decision"]["smallest_ml"] for one in done["strong"] for name in one["patients"]}
    contrasts = {case.patient: contrast(case) for case in find_cases(data).cases}
    usual = float(np.median(list(contrasts.values())))
    lines = [
        f"Patients below {LOW} under strong (a tumour is usually {usual:.2f} times as bright as the head around it):",
        "",
    ]
    for name, row in sorted(patients.items(), key=lambda item: item[1]["dice"]):
        if row["dice"] < LOW:
            what = "missed" if row["recall"] < row["precision"] or not row["recall"] else "false alarms"
            size = (row["tp"] + row["fn"]) / 1000
            lines.append(
                f"- {name}: Dice {row['dice']:.2f}, {what} (precision {row['precision']:.2f}, recall "
                f"{row['recall']:.2f}); {size:.0f} thousand voxels, {contrasts[name]:.2f} times as bright; "
                f"pieces below {dropped[name]:g} ml were dropped."
            )
    return "\n".join(lines if len(lines) > 2 else [f"Under strong, no patient is below {LOW}."])


def contrast(case: Case) -> float:
    """Return how bright the tumour of a case is, as a multiple of the median of the head on the slices that show it."""
    volume, mask, _ = read_case(case)
    voxels, z = volume.voxels.astype(float), mask.any((0, 1))
    around = (foreground(voxels) & ~mask)[:, :, z]
    return float(np.median(voxels[mask]) / np.median(voxels[:, :, z][around]))


def pictures(done: dict[str, list[dict[str, Any]]], work: Path) -> None:
    """Draw patient by patient what the strong recipe changes, and below `work` the slices of those who fail.

    The slices show real patients: they stay on the machine of whoever has the data.
    """
    before, after = (values(joined(done[arm])) for arm in ("published", "strong"))
    names = sorted(before)
    figure = paired_figure(
        names,
        [before[name] for name in names],
        [after[name] for name in names],
        ("published", "strong"),
        "Dice of all slices, each patient tested once",
    )
    save(figure, Path(__file__).with_name("protocol.png"))
    rows = []
    for fold, result in enumerate(done["strong"]):
        low, run = sum(dice < LOW for dice in values(result).values()), work / "runs" / f"strong-fold-{fold}"
        rows += [one.overlay() for one in worst(run, low)] if low and run.exists() else []
    if rows:
        save(overlay_figure(rows, DISCLAIMER), work / "failures.png")
        say(f"{work / 'failures.png'} shows them.")


def main() -> None:
    """Do what is missing, then print and record the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protocol", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work/study"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), default=list(range(FOLDS)))
    parser.add_argument("--status", action="store_true", help="only say how far it is")
    parser.add_argument("--train-only", action="store_true", help="leave the test patients alone")
    arguments = parser.parse_args()
    if not (arguments.status or arguments.train_only):
        require_committed()
    for arm in arguments.arms:
        for fold, cell in enumerate(cells(arguments.data, arm)):
            if fold in arguments.folds and not arguments.status and not cell.result.exists():
                (cell.fit if arguments.train_only else cell.measure)(arguments.data, arguments.work)
            print(f"{cell.name:24} {cell.progress(arguments.work)}", flush=True)
    done = finished(arguments.data)
    if arguments.status or arguments.train_only or not {"published", "strong"} <= done.keys():
        return
    pictures(done, arguments.work)
    parts = (
        f"## Published against strong: {arguments.data.name}, five folds",
        TEXT,
        tables(done, untouched(arguments.data)),
    )
    record("protocol", "\n\n".join([*parts, failures(arguments.data, done), machine(("torch",))]))


if __name__ == "__main__":
    run_command(main)
