"""Figures of chapter 2: from volumes to slices."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from unetlib.plots.common import (
    BLUE,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    GREY,
    ORANGE,
    TRUE_POSITIVE,
    draw_errors,
    draw_outline,
    show_slice,
)


def sheet_figure(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int = 4,
    note: str = "",
) -> Figure:
    """Return many small slices, each with its mask outlined and a title, in rows of `columns`.

    `images`, `masks`: one (H, W) array a slice, real numbers and 0/1 or bool.
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.75 * columns, 1.95 * rows + 0.25), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, image, mask, title in zip(figure.axes[: len(images)], images, masks, titles, strict=True):
        show_slice(axes, image)
        draw_outline(axes, mask)
        axes.set_title(title, fontsize=8)
    figure.supxlabel(note, fontsize=8)
    return figure


def outlier_figure(clean: np.ndarray, spoiled: np.ndarray, note: str = "") -> Figure:
    """Return a min-max normalised slice without and with an outlier, and the histograms of both.

    `clean`, `spoiled`: (H, W) in 0..1, shown with 0 as black and 1 as white. The background, exactly 0
    in `clean`, is left out of the histograms.
    """
    figure = Figure(figsize=(8.5, 2.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    inside = clean > 0
    for axes, image, title, colour in (
        (left, clean, "as it is", BLUE),
        (middle, spoiled, "with one bright voxel", ORANGE),
    ):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
        right.hist(image[inside], bins=50, range=(0, 1), histtype="stepfilled", alpha=0.6, color=colour, label=title)
    row, column = np.unravel_index(spoiled.argmax(), spoiled.shape)
    middle.plot(column, row, "o", ms=14, mfc="none", mec=ORANGE)
    right.set(xlabel="value after min-max", ylabel="pixels", yticks=[], xlim=(0, 1))
    right.legend(frameon=False, fontsize=9)
    right.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=8)
    return figure


def grid_figure(
    image: np.ndarray, mask: np.ndarray, small_image: np.ndarray, small_mask: np.ndarray, back: np.ndarray, note: str
) -> Figure:
    """Return a slice on its own grid, on the model's, and what the mask lost on the way there and back.

    `image`, `mask`, `back`: (H, W); `small_image`, `small_mask`: (S, S). All masks are boolean.
    """
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    native, small, errors = figure.subplots(1, 3)
    for axes, picture, outline, title in (
        (native, image, mask, "as scanned"),
        (small, small_image, small_mask, "as the network sees it"),
        (errors, image, None, "the mask, there and back"),
    ):
        show_slice(axes, picture)
        axes.set_title(f"{title}: {picture.shape[0]} x {picture.shape[1]}", fontsize=9)
        if outline is not None:
            draw_outline(axes, outline)
    draw_errors(errors, mask, back)
    for colour, text in ((TRUE_POSITIVE, "kept"), (FALSE_POSITIVE, "added"), (FALSE_NEGATIVE, "lost")):
        errors.plot([], [], "s", color=colour, label=text)
    figure.legend(loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel(note, fontsize=8)
    return figure


def ceiling_figure(voxels: Sequence[int], dices: Sequence[float], size: int, note: str = "") -> Figure:
    """Return the Dice that a mask keeps on a grid of `size` x `size` against its volume in voxels, a dot a patient.

    Patients without tumour cannot stand on a logarithmic axis and are left out.
    """
    dots = [(volume, dice) for volume, dice in zip(voxels, dices, strict=True) if volume > 0]
    figure = Figure(figsize=(6, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.plot(*np.array(dots).reshape(-1, 2).T, "o", color=BLUE, alpha=0.8, clip_on=False)
    axes.axhline(1, color=GREY, lw=0.8, ls="--")
    axes.set(xscale="log", xlabel="tumour volume in voxels", ylabel=f"Dice after {size} x {size} and back")
    axes.set_ylim(min([0.9, *(dice for _, dice in dots)]) - 0.02, 1.005)
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=8)
    return figure


def leak_figure(names: Sequence[str], leaky: Sequence[float], honest: Sequence[float], note: str = "") -> Figure:
    """Return two Dices a network, joined by a line: known patients' other slices, and patients never seen.

    The last row is the mean of all networks.
    """
    rows = [*zip(names, leaky, honest, strict=True), ("mean", float(np.mean(leaky)), float(np.mean(honest)))]
    figure = Figure(figsize=(7.5, 0.5 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    for y, (_, known, unseen) in enumerate(rows):
        axes.plot([known, unseen], [y, y], "-", color=GREY, lw=3 if y == len(names) else 1.5, zorder=1)
        axes.text(max(known, unseen) + 0.025, y, f"{known - unseen:+.2f}", va="center", fontsize=9)
    y = np.arange(len(rows))
    axes.plot([row[2] for row in rows], y, "s", ms=9, color=BLUE, label="patients never seen")
    axes.plot([row[1] for row in rows], y, "o", ms=9, color=ORANGE, label="other slices of the training patients")
    axes.set_yticks(y, [row[0] for row in rows])
    axes.set(xlim=(0, 1.08), ylim=(len(names) + 0.5, -0.5), xlabel="pooled Dice of the same network")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    figure.supxlabel(note, fontsize=8)
    return figure
