"""What the synthetic patients are worth on real ones: zero-shot, and as the start of a training on few patients.

`python -m studies.zero_shot DATA [--status]`. A network is trained on varied phantoms alone, its threshold chosen on
phantoms; it is scored on the 20 real patients that come first in the protocol's order, which the phantoms' maker could
look at, and once on the other 50. Then a network learns from 5, 10, 20 and 40 of fold 0's training patients, nested,
starting from these weights and from scratch, in as many steps each, and fold 0's test patients are scored. The recipe
is the first strong one: it scored real patients once, and does not score them again.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import markdown_table, record
from studies import results
from studies.cells import (
    FIRST,
    LOOKED_AT,
    PAGE,
    Cell,
    copied,
    make_folds,
    on_phantoms,
    pretrained,
    record_run,
    require_committed,
    scores_of,
    shuffled_patients,
    study_parser,
)
from studies.results import DICE, Result, gain_text, measured_on, pooled_dice
from unetlib import evaluate
from unetlib.data.split import Split
from unetlib.metrics import bootstrap_interval
from unetlib.show.plots import DISCLAIMER, save
from unetlib.support.command import run_command

SIZES = (5, 10, 20, 40)
SHOWN = 6000  # slices that each training of a learning curve shows, about
Curves = dict[tuple[int, bool], Result]  # by the number of patients, and whether the training started from phantoms


def zero_shot(data: Path, work: Path, name: str, patients: list[str]) -> Result:
    """Return the scores of real patients by the network that has seen phantoms alone; computed once."""
    run_name = f"zero-shot-{name}"
    if (found := results.read(run_name)) is not None:
        return found
    folder, run = copied(data, work / run_name, patients), pretrained(work, FIRST)
    evaluate(run, folder)
    scores = scores_of(run.evaluation / f"data-{folder.name}", folder)
    return record_run(run_name, scores, {"part": "test"}, on_phantoms(FIRST))


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


def curve_figure(found: Curves, without: float) -> Figure:
    """Return the learning curves: Dice over the number of patients, with and without phantoms first."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(without, color="0.5", ls=":", label="phantoms alone, no real patient")
    for first, name, style in ((True, "phantoms first", "o-"), (False, "from scratch", "s--")):
        points = {number: result[DICE].mean() for (number, begun), result in sorted(found.items()) if begun is first}
        axes.plot([*points], [*points.values()], style, label=name)
    axes.set(xscale="log", xlabel="real patients to learn from", ylabel="mean Dice of the test patients", ylim=(0, 1))
    axes.set_xticks(SIZES, [str(number) for number in SIZES])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.supxlabel(DISCLAIMER, fontsize=8)
    return figure


def zero_table(zeros: dict[str, Result]) -> str:
    """Return the scores of the network that has seen phantoms alone, on groups of real patients."""
    rows = []
    for name, result in zeros.items():
        low, high = bootstrap_interval(result[DICE].to_numpy()) or (float("nan"),) * 2
        scores = (pooled_dice(result), result["precision"].mean(), result["recall"].mean())
        shown = [f"{result[DICE].mean():.3f}", f"{low:.3f} to {high:.3f}", *(f"{score:.3f}" for score in scores)]
        rows.append([f"the {len(result)} {name}", *shown])
    columns = ("real patients, none learned from", "Dice", "95 % interval", "pooled", "precision", "recall")
    return markdown_table(columns, rows)


def curve_table(found: Curves) -> str:
    """Return the learning curves as a table, as far as both points of a size are there."""
    rows = []
    for number in SIZES:
        scratch, first = found.get((number, False)), found.get((number, True))
        if scratch is not None and first is not None:
            means = [f"{result[DICE].mean():.3f}" for result in (scratch, first)]
            rows.append([number, *means, gain_text(scratch, first)])
    return markdown_table(("patients learned from", "from scratch", "phantoms first", "gain, 95 % interval"), rows)


def main() -> None:
    """Do what is missing, then print and record what is there."""
    parser = study_parser("zero_shot", __doc__)
    parser.add_argument("--sizes", type=int, nargs="*", choices=SIZES, default=list(SIZES))
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
    measured = {(number, cell.phantoms): cell.result() for number, cell in cells}
    found = {key: result for key, result in measured.items() if result is not None}
    tested = pd.concat(zeros.values()).loc[[*cells[0][1].split.test]]
    both = len({*tested.index} & {*groups["looked at"]})
    zeros[f"test patients of fold 0, of whom {both} were looked at"] = tested
    where = f"{data.name}; {measured_on('zero-shot-', 'curve-')}"
    record("zero-shot", zero_table(zeros), curve_table(found), where, page=PAGE)
    save(curve_figure(found, float(tested[DICE].mean())), PAGE.with_name("zero-shot.png"))


if __name__ == "__main__":
    run_command(main)
