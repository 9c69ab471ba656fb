"""What helped and what was noise: the gains of both studies in one figure, `gains.png`.

`python -m studies.gains DATA` draws it from `results.csv`; nothing is trained. DATA names the patients.
"""

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies import ablation, best
from studies.cells import study_parser
from studies.results import gain
from unetlib.show.plots import BLUE, GREY, ORANGE, new_chart, save, signed
from unetlib.support.command import BEGINS_ANEW, run_command

PICTURE = Path(__file__).with_name("gains.png")
ARMS = {
    "twice": "50 epochs instead of 25",
    "mixed": "fainter phantoms among the patients",
    "size": "128 x 128 pixels",
    "encoder": "an encoder trained on photographs",
    "deep": "instance norm, a loss on each level",
    "quick": "wide network, large batches, few steps",
    "base-seed-1": "another seed, nothing else",
}
NAMES = {"20 epochs": "20 epochs instead of 10"}  # what the names of the ablation do not say
Gain = tuple[float, tuple[float, float] | None]  # and its interval


def of_ablation(data: Path) -> dict[str, Gain]:
    """Return the gains of the first walk of the ablation, each over the step before it, by what was changed."""
    found = [cell.result() for cell in ablation.cells(data)]
    walk = takewhile(lambda step: not step.after, ablation.STEPS)
    gains = dict[str, Gain]()
    for step, place, now in zip(walk, ablation.places(), found, strict=False):
        before = None if place is None else found[place]
        if before is not None and now is not None:
            gains[NAMES.get(step.name, step.name)] = gain(before, now)
    return gains


def of_screening(data: Path) -> dict[str, Gain]:
    """Return the gains of the arms of the screening over `base`, on the patients that both have validated on."""
    folds, gains = range(best.CHOSEN_ON), dict[str, Gain]()
    base = pd.concat(best.found_on(best.cell, "base", data, folds))
    for arm, name in ARMS.items():
        if results := best.found_on(best.cell, arm, data, folds):
            own = pd.concat(results)
            gains[name] = gain(base.loc[own.index], own)
    return gains


def draw(axes: Axes, gains: Mapping[str, Gain], title: str) -> None:
    """Draw gains with their intervals: blue or orange if the interval excludes 0, else grey."""
    for y, (by, interval) in enumerate(gains.values()):
        low, high = interval or (by, by)
        colour = BLUE if low > 0 else ORANGE if high < 0 else GREY
        axes.plot([low, high], [y, y], color=colour, lw=1.5)
        axes.plot(by, y, "o", ms=7, color=colour)
    axes.axvline(0, color=GREY, lw=1, zorder=0)
    axes.set_yticks(range(len(gains)), [*gains])
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def gains_figure(first: Mapping[str, Gain], second: Mapping[str, Gain]) -> Figure:
    """Return the gains of both studies, each change on a line, one study below the other."""
    rows = len(first), len(second)
    alt = f"The gain in Dice of {sum(rows)} changes, with 95 % intervals; grey where the interval includes 0"
    figure, (above, below) = new_chart(alt, 0.27 * sum(rows) + 1.6, rows=2, sharex=True, height_ratios=rows)
    draw(above, first, "From published to strong: each over the step before, 16 validation patients")
    draw(below, second, "From there on: each over 25 epochs of the strong recipe, 28 or 14 validation patients")
    below.set_xlabel("gain in mean Dice of a patient, 95 % interval; grey: could be chance")
    figure.supxlabel(signed(""), fontsize=8)
    return figure


def main() -> None:
    """Draw the figure."""
    arguments = study_parser("gains", __doc__).parse_args()
    save(gains_figure(of_ablation(arguments.data), of_screening(arguments.data)), PICTURE)


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
