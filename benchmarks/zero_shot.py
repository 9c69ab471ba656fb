"""What the synthetic patients are worth on real ones: zero-shot, and as the start of a training on few patients.

`python -m benchmarks.zero_shot DATA [--status]`. A network is trained on varied phantoms alone, its threshold chosen
on phantoms; it is scored on the 20 real patients that come first in the protocol's order, which the phantoms' maker may
look at, and once on the other 50. Then 5, 10, 20 and 40 of fold 0's training patients, nested, are learned from these
weights and from scratch, in as many steps each, and fold 0's test patients scored. Everything resumes. The recipe
is the first strong one: real patients were scored by it once, and are not again.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import machine, record
from benchmarks.folds import (
    FIRST,
    LOOKED_AT,
    MEASURED,
    Cell,
    copied,
    figures_of,
    gain,
    joined,
    make_folds,
    mean,
    on_phantoms,
    pooled_dice,
    pretrained,
    require_committed,
    shuffled_patients,
    values,
    with_interval,
)
from unetlib.data.split import Split
from unetlib.evaluation.evaluate import evaluate
from unetlib.metrics import bootstrap_interval
from unetlib.show.plots import DISCLAIMER, save
from unetlib.support.command import run_command
from unetlib.support.files import read_json, write_json

SIZES = (5, 10, 20, 40)
SHOWN = 6000  # slices that each training of a learning curve shows, about


TEXT = """\
A network trained on varied phantoms alone, its threshold chosen on phantoms, scored on real patients: on the 20 whom
the maker of the phantoms could look at, and once on the others. Then it learns from some of fold 0's training
patients, and so does a fresh one, both in as many steps; the test patients of fold 0, {both} of the 20 among them, are
scored. Epoch, threshold and smallest component are chosen on the same 8 other patients each time. The recipe is `first`
of the protocol. Dice: volumetric, all slices, native grid, mean over patients. `python -m benchmarks.zero_shot DATA`;
the curves are in `zero-shot.png`, over the Dice of the phantoms alone on the same test patients."""


def zero_shot(data: Path, work: Path, name: str, patients: list[str]) -> dict[str, Any]:
    """Return the figures of real patients predicted by the network that has seen phantoms alone; computed once."""
    result = MEASURED / f"zero-shot-{name}.json"
    if result.exists():
        return read_json(result)
    folder, run = copied(data, work / f"zero-shot-{name}", patients), pretrained(work, FIRST)
    evaluate(run, folder)
    found = figures_of(run / "evaluation" / f"data-{folder.name}", folder)
    write_json(result, {"recipe": on_phantoms(FIRST).as_dict(), "machine": machine(("torch",)), "patients": found})
    return read_json(result)


def curve(data: Path) -> Iterator[tuple[int, Cell]]:
    """Yield the number of patients and the cell of every point of the learning curves."""
    patients = shuffled_patients(data)
    fold = make_folds(patients)[0]
    ordered = [name for name in patients if name in fold.train]
    for number in SIZES:
        split = Split(tuple(sorted(ordered[:number])), fold.val, fold.test)
        epochs = max(1, round(SHOWN / (26 * number)))  # some 26 slices of a patient in an epoch: half show tumour
        for first in (True, False):
            name = f"curve-{number:02}-{'phantoms' if first else 'scratch'}"
            yield number, Cell(name, FIRST.but(epochs=epochs), split, "test", phantoms=first)


def curve_figure(found: dict[tuple[int, bool], dict[str, Any]], without: float) -> Figure:
    """Return the learning curves: Dice over the number of patients, with and without phantoms first."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(without, color="0.5", ls=":", label="phantoms alone, no real patient")
    for first, name, style in ((True, "phantoms first", "o-"), (False, "from scratch", "s--")):
        points = sorted((number, mean(result)) for (number, begun), result in found.items() if begun is first)
        axes.plot([number for number, _ in points], [dice for _, dice in points], style, label=name)
    axes.set(xscale="log", xlabel="real patients to learn from", ylabel="mean Dice of the test patients", ylim=(0, 1))
    axes.set_xticks(SIZES, [str(number) for number in SIZES])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.supxlabel(DISCLAIMER, fontsize=8)
    return figure


def zero_table(zeros: dict[str, dict[str, Any]]) -> str:
    """Return the figures of the network that has seen phantoms alone, on both groups of real patients."""
    lines = [
        "| real patients, none learned from | Dice | 95 % interval | pooled | precision | recall |",
        "|---|" + "---|" * 5,
    ]
    for name, result in zeros.items():
        interval = bootstrap_interval(np.array(list(values(result).values())))
        assert interval
        figures = (pooled_dice(result), mean(result, "precision"), mean(result, "recall"))
        shown = " | ".join(f"{figure:.3f}" for figure in figures)
        number = len(result["patients"])
        lines.append(f"| the {number} {name} | {mean(result):.3f} | {interval[0]:.3f} to {interval[1]:.3f} | {shown} |")
    return "\n".join(lines)


def curve_table(found: dict[tuple[int, bool], dict[str, Any]]) -> str:
    """Return the learning curves as a table, as far as both points of a size are there."""
    lines = ["| patients learned from | from scratch | phantoms first | gain, 95 % interval |", "|---|---|---|---|"]
    for number in SIZES:
        if (number, True) in found and (number, False) in found:
            scratch, first = found[number, False], found[number, True]
            by = with_interval(*gain(scratch, first))
            lines.append(f"| {number} | {mean(scratch):.3f} | {mean(first):.3f} | {by} |")
    return "\n".join(lines)


def main() -> None:
    """Do what is missing, then print and record what is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zero_shot", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work/study"))
    parser.add_argument("--sizes", type=int, nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--status", action="store_true", help="only say how far it is")
    arguments = parser.parse_args()
    data, work, cells = arguments.data, arguments.work, list(curve(arguments.data))
    if arguments.status:
        for _, cell in cells:
            print(f"{cell.name:24} {cell.progress(work)}")
        return
    require_committed()
    names = shuffled_patients(data)
    groups = {"looked at": names[:LOOKED_AT], "others": names[LOOKED_AT:]}
    zeros = {name: zero_shot(data, work, name.replace(" ", "-"), chosen) for name, chosen in groups.items()}
    for number, cell in cells:
        if number in arguments.sizes:
            cell.measure(data, work)
    found = {(number, cell.phantoms): cell.read() for number, cell in cells if cell.result.exists()}
    every, tested = joined(list(zeros.values()))["patients"], cells[0][1].split.test
    zeros["test patients of fold 0"] = {"patients": {name: every[name] for name in tested}}
    text = TEXT.format(both=len(set(tested) & set(groups["looked at"])))
    parts = ["## Phantoms first", text, zero_table(zeros), curve_table(found), machine(("torch",))]
    record("zero-shot", "\n\n".join(parts))
    save(curve_figure(found, mean(zeros["test patients of fold 0"])), MEASURED.with_name("zero-shot.png"))


if __name__ == "__main__":
    run_command(main)
