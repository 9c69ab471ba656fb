"""Predicted against true volumes."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unetlib.evaluation.summary import limits_of_agreement
from unetlib.show.plots.colours import BLUE, FAINT, ORANGE
from unetlib.show.plots.common import legend_above, new_chart, signed
from unetlib.support.errors import counted


def volumes_figure(volumes: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str = "ml", note: str = "") -> Figure:
    """Return the difference of predicted and true volume of every patient against their mean, and its limits.

    `volumes`: predicted and true volumes (N,), in `unit`, under the name of each of several regions, or under "".
    Source: Bland and Altman, Lancet 1986, as in `limits_of_agreement`.
    """
    number = counted(len(next(iter(volumes.values()))[1]), "patient")
    alt = f"Predicted minus true tumour volume of {number} against the mean of both"
    figure, panels = new_chart("", 3.6, signed(note), 1, len(volumes), squeeze=False)
    between = " " if len(volumes) == 1 else "\n"  # of several panels the labels would overlap
    for axes, (region, (prediction, truth)) in zip(panels[0], volumes.items(), strict=True):
        alt += f"; {_draw_volumes(axes, region, prediction, truth, unit)}"
        axes.set_xlabel(f"mean of predicted{between}and true volume, {unit}")
    figure.set_label(alt)
    panels[0, 0].set_ylabel(f"predicted - true, {unit}")
    if len(volumes) == 1:
        legend_above(figure, panels[0, 0])
    return figure


def _draw_volumes(axes: Axes, region: str, prediction: np.ndarray, truth: np.ndarray, unit: str) -> str:
    """Draw the volumes of one region, and return its bias and limits in words."""
    differences, limits = prediction - truth, limits_of_agreement(prediction - truth)
    bias, of = float(differences.mean()), f" of {region}" if region else ""
    axes.plot((prediction + truth) / 2, differences, "o", color=BLUE, ms=8 if len(truth) <= 50 else 3, label="patient")
    axes.axhline(0, color=FAINT, lw=1, zorder=0)
    axes.axhline(bias, color=ORANGE, lw=1.5, label=f"bias {bias:z.1f} {unit}", gid="bias")
    for limit in limits or ():
        axes.axhline(limit, color=ORANGE, lw=1.5, ls="--", gid="limit")
    title, words = f"bias {bias:z.1f} {unit}", f"the mean difference{of} is {bias:z.1f} {unit}"
    if limits:
        text = f"{limits[0]:z.1f} to {limits[1]:z.1f} {unit}"
        axes.plot([], [], "--", color=ORANGE, lw=1.5, label=f"95 % limits of agreement, {text}")
        title += f"\nlimits {text}"
        words += f", the 95 % limits of agreement are {limits[0]:z.1f} and {limits[1]:z.1f} {unit}"
    if region:
        axes.set_title(f"{region}\n{title}", fontsize=10)
    return words
