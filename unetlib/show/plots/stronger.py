"""Figures of chapter 5: what each step from one recipe to a stronger one does, and what it gains."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from unetlib.data.slices import Window
from unetlib.prediction.decision import SIZES_ML, THRESHOLDS, Decision
from unetlib.show.plots.colours import BLUE, FAINT, GREY, INK, ORANGE
from unetlib.show.plots.common import DISCLAIMER, draw_curves, new_chart, new_figure, signed
from unetlib.show.plots.drawing import fit_height, show_slice


def staircase_figure(
    names: Sequence[str],
    dices: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    note: str = "",
    after: Sequence[int | None] | None = None,
) -> Figure:
    """Return the mean Dice after each step, and beside it what the step gained.

    `dices` in 0..1, one a step. `intervals`: that of the gain, or `None`; the first step has nothing before it.
    `after`: for every step the place of that which it follows, `None` where that is not shown (as for the first);
    without it, the one before.
    """
    walk = ", ".join(f"{name} {dice:.3f}" for name, dice in zip(names, dices, strict=True))
    figure = new_figure(f"Mean Dice after each step: {walk}; beside it what each gained", 0.36 * len(names) + 1.3)
    stairs, gains = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    height, before = np.arange(len(names)), [None, *range(len(names) - 1)] if after is None else after
    begun = [dice if place is None else dices[place] for dice, place in zip(dices, before, strict=True)]
    for y, (begin, dice) in enumerate(zip(begun, dices, strict=True)):
        stairs.plot([begin, dice, dice], [y - 0.5, y - 0.5, y + 0.5], color=GREY, lw=1)
    stairs.plot(dices, height, "o", ms=7, color=BLUE)
    span = max(max(dices) - min(dices), 0.02)
    for y, dice in enumerate(dices):
        stairs.annotate(f"{dice:.3f}", (dice, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9)
    stairs.set(xlim=(min(dices) - 0.08 * span, max(dices) + 0.2 * span), ylim=(len(names) - 0.5, -0.5))
    stairs.set(xlabel="mean Dice of a patient, after the step")
    stairs.set_yticks(height, names)
    for y, interval in enumerate(intervals):
        if before[y] is None:
            continue
        change = dices[y] - begun[y]
        colour = BLUE if change > 0 else ORANGE
        if interval is not None:
            gains.plot(interval, [y, y], "-", color=colour, lw=1.5)
        gains.plot(change, y, "o", ms=7, color=colour, gid=names[y])
    gains.axvline(0, color=GREY, lw=1, zorder=0)
    gains.set(xlabel="its gain" + (", 95 % interval" if any(intervals) else ""))
    for axes in (stairs, gains):
        axes.grid(axis="y", color=FAINT)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.supxlabel(signed(note), fontsize=8)
    return figure


def window_figure(image: np.ndarray, window: Window, pictures: Mapping[str, np.ndarray], note: str = "") -> Figure:
    """Return a slice with the window that a recipe sees of it, and beside it what arrives on the model's grid.

    `image`: (H, W), the slice as scanned. `pictures`: a title for each (S, S), 0..1, shown with 0 as black and 1 as
    white.
    """
    alt = f"A slice with the square that a recipe sees, and the images on the model's grid: {', '.join(pictures)}"
    figure = new_figure(alt, note=note or DISCLAIMER)
    native, *others = figure.subplots(1, len(pictures) + 1)
    show_slice(native, image, f"as scanned, {image.shape[0]} x {image.shape[1]}")
    corner = (window.left - 0.5, window.top - 0.5)
    native.add_patch(Rectangle(corner, window.side, window.side, fill=False, edgecolor=ORANGE, lw=1.5, clip_on=False))
    for axes, (title, picture) in zip(others, pictures.items(), strict=True):
        show_slice(axes, picture, f"{title}, {picture.shape[0]} x {picture.shape[1]}", (0, 1))
    fit_height(figure, image.shape[0] / image.shape[1], len(pictures) + 1)
    return figure


def rates_figure(rates: Mapping[str, Sequence[float]]) -> Figure:
    """Return the learning rate of every step of a training, a curve a schedule: `rates` maps its name to the rates."""
    alt = f"The learning rate at every step of a training, a curve a schedule: {', '.join(rates)}"
    figure, axes = new_chart(alt)
    draw_curves(axes, rates)
    top = max(max(values) for values in rates.values())
    axes.set(xlabel="step", ylabel="learning rate", ylim=(0, 1.08 * top), xlim=(0, None))
    axes.legend(frameon=False)
    return figure


def decision_figure(dices: np.ndarray, chosen: Decision, note: str = "") -> Figure:
    """Return the mean Dice for every threshold and every smallest component kept, with the pair that was chosen.

    `dices`: (thresholds, sizes) as in `unetlib.prediction.decision.dice_table`.
    """
    alt = f"Mean validation Dice for {len(THRESHOLDS)} thresholds and {len(SIZES_ML)} smallest components"
    figure, axes = new_chart(f"{alt}; chosen: {chosen.threshold:g} and {chosen.smallest_ml:g} ml", note=note)
    names = [f"components of {size:g} ml or more" if size else "all components" for size in SIZES_ML]
    draw_curves(axes, dict(zip(names, dices.T, strict=True)), THRESHOLDS, marker="o")
    if chosen.threshold in THRESHOLDS and chosen.smallest_ml in SIZES_ML:
        best = dices[THRESHOLDS.index(chosen.threshold), SIZES_ML.index(chosen.smallest_ml)]
        axes.plot(chosen.threshold, best, "o", ms=20, mfc="none", mec=INK, mew=2, ls="", label="chosen", clip_on=False)
    axes.set(xlabel="threshold", ylabel="mean Dice, validation", xlim=(0, 1))
    figure.legend(loc="outside right upper", frameon=False)
    return figure
