"""Figures of chapter 7: what networks cost, and where the gates of one are open."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from unetlib.engine.costs import Cost
from unetlib.show.plots.colours import CURVES, FAINT
from unetlib.show.plots.common import DISCLAIMER, new_chart, new_figure
from unetlib.show.plots.drawing import cut_to_head, draw_outline, fit_height, show_slice

MARKERS = "osD^vP"


def costs_figure(costs: Sequence[Cost], note: str = "") -> Figure:
    """Return the time of a training step on one slice against the parameters of each network that was measured."""
    measured = ((one.network, one.parameters, one.milliseconds) for one in costs)
    points = [(name, number / 1e6, milliseconds) for name, number, milliseconds in measured if number and milliseconds]
    told = ", ".join(f"{name} {millions:.1f} million, {milliseconds:.0f} ms" for name, millions, milliseconds in points)
    figure, axes = new_chart(f"Time of a step on one slice against parameters: {told}", 3.2, note)
    for place, (name, millions, milliseconds) in enumerate(points):
        look = {"marker": MARKERS[place % len(MARKERS)], "color": CURVES[place % len(CURVES)]}
        axes.plot(millions, milliseconds, ls="", ms=10, label=name, **look)
    axes.set(xscale="log", xlabel="parameters, million", ylabel="core-ms a slice")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(y=0.15)
    axes.set_ylim(0, None)
    axes.grid(color=FAINT)
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def gates_figure(
    image: np.ndarray, mask: np.ndarray, rows: Mapping[str, Sequence[np.ndarray]], note: str = ""
) -> Figure:
    """Return a slice with its mask outlined and beside it, in a row for each network, the gates of every level.

    `image`, `mask`: (H, W). `rows`: the gates (h, w) in 0..1 of each network by name, the finest first; they are
    enlarged to the slice without smoothing, with one scale of colours for all.
    """
    levels = len(next(iter(rows.values())))
    alt = f"A slice with the tumour outlined, and the gates of {levels} levels, in rows: {', '.join(rows)}"
    figure = new_figure(alt, note=note or DISCLAIMER)
    panels = figure.subplots(len(rows), 1 + levels, squeeze=False)
    extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
    for line, (name, gates) in zip(panels, rows.items(), strict=True):
        show_slice(line[0], image)
        draw_outline(line[0], mask)
        line[0].set_ylabel(name)
        for level, (axes, gate) in enumerate(zip(line[1:], gates, strict=True)):
            shown = axes.imshow(gate, cmap="viridis", vmin=0, vmax=1, extent=extent, interpolation="nearest")
            axes.set(xticks=[], yticks=[], title=f"level {level}")
            draw_outline(axes, mask, "white")
    ratio = cut_to_head([(axes, image) for axes in panels.flat], [mask > 0])
    fit_height(figure, ratio, 1 + levels, len(rows), 0.9)
    figure.colorbar(ScalarMappable(shown.norm, shown.cmap), ax=[*panels.flat], label="gate", fraction=0.03)
    return figure
