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

from benchmarks.common import machine, record
from benchmarks.folds import (
    FOLDS,
    Cell,
    gain,
    joined,
    make_folds,
    mean,
    pooled_dice,
    pretrained,
    shuffled_patients,
    values,
)
from unetlib.files import read_json
from unetlib.recipe import Recipe

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
    "HD95, mm": "hd95_mm",
    "Dice per slice": "dice_slices",
    "false, ml": "false_ml",
}
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


def tables() -> str:
    """Return the tables of the arms whose folds are all done, and the patients who fail."""
    done = {}
    for arm in ARMS:
        paths = [Cell(f"{arm}-fold-{fold}", ARMS[arm], None, "test").result for fold in range(FOLDS)]  # type: ignore[arg-type]
        if "seed" not in arm and all(path.exists() for path in paths):
            done[arm] = [read_json(path) for path in paths]
    lines = [f"| | {' | '.join(COLUMNS)} | pooled Dice | s a fold |", f"|---|{'---|' * (len(COLUMNS) + 2)}"]
    for arm, results in done.items():
        whole = joined(results)
        figures = [
            f"{mean(whole, figure):.3f}" if figure != "hd95_mm" else distance(whole) for figure in COLUMNS.values()
        ]
        seconds = sum(result["seconds"] for result in results) / len(results)
        lines.append(f"| {arm} | {' | '.join(figures)} | {pooled_dice(whole):.3f} | {seconds:.0f} |")
    for arm in [arm for arm in done if arm != "strong" and "strong" in done]:
        by, interval = gain(joined(done[arm]), joined(done["strong"]))
        assert interval
        lines += ["", f"strong - {arm}: {by:+.3f} Dice, 95 % interval {interval[0]:+.3f} to {interval[1]:+.3f}."]
    if "strong" in done:
        low = {name: dice for name, dice in values(joined(done["strong"])).items() if dice < LOW}
        lines += [
            "",
            f"Below {LOW}: "
            + (", ".join(f"{name} {dice:.2f}" for name, dice in sorted(low.items())) or "nobody")
            + ".",
        ]
    return "\n".join(lines)


def distance(result: dict) -> str:
    """Return the mean HD95 over the patients where it is defined, and the number of the others."""
    undefined = len(result["patients"]) - len(values(result, "hd95_mm"))
    return f"{mean(result, 'hd95_mm'):.1f}" + (f" ({undefined} undefined)" if undefined else "")


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
    if not (arguments.status or arguments.train_only):
        record(
            "protocol",
            f"## Published against strong: {arguments.data.name}, five folds\n\n{tables()}\n\n{machine(('torch',))}",
        )


if __name__ == "__main__":
    main()
