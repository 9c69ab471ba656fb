"""The protocol of PROTOCOL.md: published against strong on five folds of real patients, test patients scored once.

`python -m benchmarks.protocol DATA [--arms published strong] [--folds 0 1] [--status] [--train-only]`. Everything that
is missing is trained and then scored, or goes on where it was stopped; `--status` says how far it is. `--train-only`
leaves the test patients alone. The strong recipe begins with weights trained on phantoms, but for the arm from scratch.
Test patients are scored when `unetlib/recipe.py` is committed, and never again: a result in `benchmarks/measured/` is
read, not computed. Several processes may do some arms or folds each.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, record
from benchmarks.folds import (
    FOLDS,
    MEASURED,
    Cell,
    gain,
    joined,
    make_folds,
    mean,
    pooled_dice,
    pretrained,
    shuffled_patients,
    values,
    with_interval,
)
from unetlib.files import read_json
from unetlib.jobs import say
from unetlib.patients import Case, find_cases, read_case
from unetlib.plots import overlay_figure, paired_figure, save, worst
from unetlib.recipe import Recipe
from unetlib.slices import foreground

LONG = 15  # epochs of the published recipe in the time of the strong one with its share of the pre-training
ARMS = {
    "published": Recipe.published,
    "published-long": Recipe.published.but(epochs=LONG),
    "strong": Recipe.strong,
    "strong-scratch": Recipe.strong,
    "strong-seed-1": Recipe.strong.but(seed=1),
    "strong-seed-2": Recipe.strong.but(seed=2),
}
COLUMNS = {
    "Dice": "dice",
    "precision": "precision",
    "recall": "recall",
    "Dice per slice": "dice_slices",
    "false, ml": "false_ml",
    "HD95, mm (undefined)": "hd95_mm",
}
TEXT = """\
Every patient is tested once, by a network that has neither learned nor been tuned on them: `benchmarks/PROTOCOL.md`.
Means over patients: volumetric Dice, precision and recall over all slices, native grid; Dice per slice, over those
with tumour; millilitres marked on slices without tumour; HD95. Seconds are those of one core, without the pre-training
on phantoms, which is done once. Differences are paired, with a 95 % bootstrap interval over patients. `python -m
benchmarks.protocol DATA`; each patient's figures lie in `benchmarks/measured/`, their differences in `protocol.png`."""
LOW = 0.3  # a patient below is looked at


def cells(data: Path, arm: str) -> list[Cell]:
    """Return the cells of an arm: one a fold, of the further seeds only fold 0."""
    folds = make_folds(shuffled_patients(data))
    short = cells(data, "published") if arm == "published-long" else [None] * FOLDS
    return [
        Cell(f"{arm}-fold-{fold}", ARMS[arm], split, "test", short[fold])
        for fold, split in enumerate(folds)
        if fold == 0 or "seed" not in arm
    ]


def require_committed() -> None:
    """Raise `SystemExit` while the recipe is not committed: it could still be chosen by what the test shows."""
    command = ["git", "status", "--porcelain", "unetlib/recipe.py"]
    changes = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if changes.returncode or changes.stdout.strip():
        sys.exit("error: unetlib/recipe.py is not committed. Commit it, and only then score test patients.")


def finished() -> dict[str, list[dict[str, Any]]]:
    """Return the results of the arms whose folds are all done; of the further seeds, there is only fold 0."""
    found = {}
    for arm in ARMS:
        paths = [MEASURED / f"{arm}-fold-{fold}.json" for fold in range(1 if "seed" in arm else FOLDS)]
        if all(path.exists() for path in paths):
            found[arm] = [read_json(path) for path in paths]
    return found


def tables(done: dict[str, list[dict[str, Any]]]) -> str:
    """Return the arms as a table, and the differences to the strong one with their intervals."""
    lines = [f"| | {' | '.join(COLUMNS)} | pooled Dice | s a fold |", f"|---|{'---|' * (len(COLUMNS) + 2)}"]
    whole = {arm: joined(results) for arm, results in done.items() if len(results) == FOLDS}
    for arm, result in whole.items():
        figures = [f"{mean(result, figure):.3f}" for figure in COLUMNS.values()]
        undefined = len(result["patients"]) - len(values(result, "hd95_mm"))
        seconds = sum(one["seconds"] * one["threads"] for one in done[arm]) / FOLDS
        lines.append(f"| {arm} | {' | '.join(figures)} ({undefined}) | {pooled_dice(result):.3f} | {seconds:.0f} |")
    strong = whole.get("strong", {"patients": {}})
    for arm in whole.keys() - {"strong"} if strong["patients"] else ():
        by = with_interval(*gain(whole[arm], strong))
        less = mean(whole[arm], "false_ml") / max(mean(strong, "false_ml"), 1e-9)
        lines += ["", f"strong against {arm}: Dice {by}; {less:.1f} x less marked on slices without tumour."]
    seeds = [mean(results[0]) for arm, results in done.items() if arm == "strong" or "seed" in arm]
    if len(seeds) > 1:
        lines += ["", f"Seeds of the strong recipe on fold 0: {', '.join(f'{dice:.3f}' for dice in seeds)}."]
    return "\n".join(lines)


def failures(data: Path, done: dict[str, list[dict[str, Any]]]) -> str:
    """Return a line on each patient below `LOW` under the strong recipe: what went wrong, and how the tumour looks."""
    patients = joined(done["strong"])["patients"]
    contrasts = {case.patient: contrast(case) for case in find_cases(data).cases}
    usual = float(np.median(list(contrasts.values())))
    lines = [f"Patients below {LOW} (a tumour is usually {usual:.2f} times as bright as the head around it):", ""]
    for name, row in sorted(patients.items(), key=lambda item: item[1]["dice"]):
        if row["dice"] < LOW:
            what = "missed" if row["recall"] < row["precision"] or not row["recall"] else "false alarms"
            size = (row["tp"] + row["fn"]) / 1000
            lines.append(
                f"- {name}: Dice {row['dice']:.2f}, {what} (precision {row['precision']:.2f}, recall "
                f"{row['recall']:.2f}); {size:.0f} thousand voxels, {contrasts[name]:.2f} times as bright."
            )
    return "\n".join(lines if len(lines) > 2 else [f"No patient is below {LOW}."])


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
        "Dice of all slices, each patient tested once. Not for clinical use.",
    )
    save(figure, Path(__file__).with_name("protocol.png"))
    rows = []
    for fold, result in enumerate(done["strong"]):
        low = sum(dice < LOW for dice in values(result).values())
        rows += [one.overlay() for one in worst(work / "runs" / f"strong-fold-{fold}", low)] if low else []
    if rows:
        save(overlay_figure(rows, "Not for clinical use."), work / "failures.png")
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
            if fold in arguments.folds and not arguments.status:
                first = pretrained(arguments.work) if "strong" in arm and "scratch" not in arm else None
                (cell.fit if arguments.train_only else cell.measure)(arguments.data, arguments.work, first)
            print(f"{cell.name:24} {cell.progress(arguments.work)}", flush=True)
    done = finished()
    if arguments.status or arguments.train_only or not {"published", "strong"} <= done.keys():
        return
    pictures(done, arguments.work)
    parts = (f"## Published against strong: {arguments.data.name}, five folds", TEXT, tables(done))
    record("protocol", "\n\n".join([*parts, failures(arguments.data, done), machine(("torch",))]))


if __name__ == "__main__":
    main()
