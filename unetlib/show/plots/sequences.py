"""Figures of chapter 6: what each sequence shows of each region, and what a network finds in which of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from unetlib.recipe import SEQUENCES
from unetlib.show.plots.colours import CURVES, FAINT
from unetlib.show.plots.common import DISCLAIMER, legend_above, new_chart, new_figure, signed
from unetlib.show.plots.drawing import cut_to_head, draw_regions, fit_height, label_regions, show_slice


def sequences_figure(
    images: Mapping[str, np.ndarray], masks: np.ndarray, regions: Sequence[str], note: str = ""
) -> Figure:
    """Return one slice in every sequence: as it is, and below it with the border of each region.

    `images`: (H, W) of each sequence by name. `masks`: (K, H, W) booleans, one for each of the `regions`.
    """
    alt = f"One slice in {', '.join(images)}; below, the borders of the regions: {', '.join(regions)}"
    figure = new_figure(alt, note=note or DISCLAIMER)
    panels = figure.subplots(2, len(images), squeeze=False)
    for (plain, outlined), (name, image) in zip(panels.T, images.items(), strict=True):
        show_slice(plain, image, SEQUENCES.get(name, name))
        show_slice(outlined, image)
        draw_regions(outlined, masks)
    shown = [(axes, image) for line in panels for axes, image in zip(line, images.values(), strict=True)]
    fit_height(figure, cut_to_head(shown, [*masks]), len(images), 2)
    label_regions(panels[1, 0], regions)
    legend_above(figure, panels[1, 0])
    return figure


def by_region_figure(series: Mapping[str, Mapping[str, np.ndarray]], regions: Sequence[str], note: str = "") -> Figure:
    """Return the Dice in each region, a panel each, of what the rows name: the patients as small dots, and their mean.

    `series`: Dice (P, K) of P patients under the name of each row, for each of several series, which have colours and
    share their rows; a legend names them if there are several.
    """
    means = {f"{name} {row}".strip(): dices.mean(0) for name, own in series.items() for row, dices in own.items()}
    told = "; ".join(f"{what} {', '.join(f'{value:.2f}' for value in mean)}" for what, mean in means.items())
    rows = list(next(iter(series.values())))
    alt = f"Mean Dice over patients for {', '.join(regions)}. {told}"
    figure, panels = new_chart(
        alt, 0.36 * len(rows) + 1.5, signed(note), 1, len(regions), sharex=True, sharey=True, squeeze=False
    )
    shifts = np.linspace(-0.15, 0.15, len(series)) if len(series) > 1 else [0.0]
    for k, (axes, region) in enumerate(zip(panels[0], regions, strict=True)):
        for (name, own), shift, colour in zip(series.items(), shifts, CURVES, strict=False):
            for row, dices in own.items():
                place = rows.index(row) + shift
                axes.plot(dices[:, k], np.full(len(dices), place), "o", ms=4, color=colour, alpha=0.4)
            mean = [dices[:, k].mean() for dices in own.values()]
            axes.plot(mean, np.arange(len(rows)) + shift, "D", ms=8, color=colour, label=name, gid=region)
        axes.set(title=region, xlabel="Dice", xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="y", color=FAINT)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
    panels[0, 0].set_yticks(range(len(rows)), rows)
    if len(series) > 1:
        legend_above(figure, panels[0, 0])
    return figure
