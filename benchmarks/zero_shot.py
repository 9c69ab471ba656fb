"""What the synthetic patients are worth on real ones: zero-shot, and as the start of a training on few patients.

`python -m benchmarks.zero_shot DATA [--status]`. A network is trained on varied phantoms alone, its threshold chosen
on phantoms; it is scored on the 20 real patients that come first in the protocol's order, which the phantoms' maker may
look at, and once on the other 50. Then 5, 10, 20 and 40 of fold 0's training patients, nested, are learned from these
weights and from scratch, in as many steps each, and fold 0's test patients scored. Everything resumes.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import machine, record
from benchmarks.folds import (
    MEASURED,
    PRETRAINING,
    Cell,
    figures_of,
    gain,
    make_folds,
    mean,
    pooled_dice,
    pretrained,
    shuffled_patients,
)
from unetlib.evaluation import evaluate
from unetlib.files import read_json, write_json
from unetlib.metrics import bootstrap_interval
from unetlib.patients import find_cases
from unetlib.recipe import Recipe
from unetlib.split import Split

LOOKED_AT = 20
SIZES = (5, 10, 20, 40)
SHOWN = 6000  # slices that each training of a learning curve shows, about


def zero_shot(data: Path, work: Path, name: str, patients: list[str]) -> dict:
    """Return the figures of real patients predicted by the network that has seen phantoms alone; computed once."""
    result = MEASURED / f"zero-shot-{name}.json"
    if result.exists():
        return read_json(result)
    folder, run = work / f"zero-shot-{name}", pretrained(work)
    for case in find_cases(data).cases:
        if case.patient in patients and not (folder / case.id).exists():
            shutil.copytree(case.files()[0].parent, folder / ".tmp" / case.id, dirs_exist_ok=True)
            (folder / ".tmp" / case.id).rename(folder / case.id)
    evaluate(run, folder)
    found = figures_of(run / "evaluation" / f"data-{folder.name}", folder)
    write_json(result, {"recipe": PRETRAINING.as_dict(), "machine": machine(("torch",)), "patients": found})
    return read_json(result)


def curve(data: Path) -> Iterator[tuple[int, bool, Cell]]:
    """Yield number of patients, whether phantoms come first, and the cell of every point of the learning curves."""
    patients = shuffled_patients(data)
    fold = make_folds(patients)[0]
    ordered = [name for name in patients if name in fold.train]
    for number in SIZES:
        split = Split(tuple(sorted(ordered[:number])), fold.val, fold.test)
        epochs = max(1, round(SHOWN / (26 * number)))  # some 26 slices of a patient in an epoch: half show tumour
        for first in (True, False):
            name = f"curve-{number:02}-{'phantoms' if first else 'scratch'}"
            yield number, first, Cell(name, Recipe.strong.but(epochs=epochs), split, "test")


def main() -> None:
    """Do what is missing, then print and record the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zero_shot", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work/study"))
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--only", choices=("phantoms", "looked-at", "others", "curve"), nargs="+")
    parser.add_argument("--status", action="store_true", help="only say how far it is")
    arguments = parser.parse_args()
    data, work, only = arguments.data, arguments.work, arguments.only
    if arguments.status:
        for _, _, cell in curve(data):
            print(f"{cell.name:24} {cell.progress(work)}")
        return
    if not only or "phantoms" in only:
        pretrained(work)
    names = shuffled_patients(data)
    groups = {"looked-at": names[:LOOKED_AT], "others": names[LOOKED_AT:]}
    lines = [
        "## Phantoms first",
        "",
        "| zero-shot on real patients | Dice | 95 % interval | pooled |",
        "|---|---|---|---|",
    ]
    for name, chosen in groups.items():
        if not only or name in only:
            found = zero_shot(data, work, name, chosen)
            low, high = bootstrap_interval_of(found)
            lines.append(
                f"| the {len(chosen)} {name} | {mean(found):.3f} | {low:.3f} to {high:.3f} | {pooled_dice(found):.3f} |"
            )
    if only and "curve" not in only:
        print("\n".join(lines))
        return
    lines += ["", "| patients | from scratch | phantoms first | gain, 95 % interval |", "|---|---|---|---|"]
    found = {}
    for number, first, cell in curve(data):
        if number in arguments.sizes:
            found[number, first] = cell.measure(data, work, pretrained(work) if first else None)
    for number in arguments.sizes:
        by, interval = gain(found[number, False], found[number, True])
        assert interval
        lines.append(
            f"| {number} | {mean(found[number, False]):.3f} | {mean(found[number, True]):.3f} | {by:+.3f}, "
            f"{interval[0]:+.3f} to {interval[1]:+.3f} |"
        )
    if not only and len(arguments.sizes) == len(SIZES):
        record("zero-shot", "\n".join([*lines, "", machine(("torch",))]))


def bootstrap_interval_of(result: dict) -> tuple[float, float]:
    """Return the 95 % interval of the mean Dice over the patients of a result."""
    import numpy as np

    interval = bootstrap_interval(np.array([row["dice"] for row in result["patients"].values()]))
    assert interval
    return interval


if __name__ == "__main__":
    main()
