"""Figures of chapter 2: from volumes to slices."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from unetlib.show.plots.colours import BLUE, GREY, ORANGE
from unetlib.show.plots.common import new_chart, new_figure
from unetlib.show.plots.drawing import cut_to_head, draw_errors, draw_outline, fit_height, label_errors, show_slice


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
    alt = f"{len(images)} small slices, each with its mask outlined in yellow: {', '.join(titles)}"
    figure = new_figure(alt, note=note)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, mask, title in zip(figure.axes[: len(images)], images, masks, titles, strict=True):
        show_slice(axes, image, title)
        draw_outline(axes, mask)
    ratio = cut_to_head([*zip(figure.axes, images, strict=False)], [np.asarray(mask) > 0 for mask in masks])
    fit_height(figure, ratio, columns, rows, 0.4 + 0.3 * rows)
    return figure


def outlier_figure(clean: np.ndarray, spoiled: np.ndarray, note: str = "") -> Figure:
    """Return a normalised slice without and with an outlier, and the histograms of both.

    `clean`, `spoiled`: (H, W) in 0..1, shown with 0 as black and 1 as white. The histograms hold the
    pixels brighter than the mean of `clean`: head rather than background.
    """
    alt = "A slice as it is, the same slice darkened by one bright voxel, and the histograms of both"
    figure = new_figure(alt, note=note)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    inside = clean > clean.mean()
    pictures = (left, clean, "as it is", BLUE), (middle, spoiled, "with one bright voxel", ORANGE)
    for axes, image, title, colour in pictures:
        show_slice(axes, image, title, (0, 1))
        right.hist(image[inside], bins=50, range=(0, 1), histtype="stepfilled", alpha=0.6, color=colour, label=title)
    row, column = np.unravel_index(spoiled.argmax(), spoiled.shape)
    middle.plot(column, row, "o", ms=14, mfc="none", mec=ORANGE)
    outlier = np.zeros(spoiled.shape, bool)
    outlier[row, column] = True
    fit_height(figure, cut_to_head([(left, clean), (middle, clean)], [outlier]), 3)
    right.set(xlabel="normalised value", ylabel="pixels of the head", yticks=[], xlim=(0, 1))
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def grid_figure(
    image: np.ndarray, mask: np.ndarray, small_image: np.ndarray, small_mask: np.ndarray, back: np.ndarray, note: str
) -> Figure:
    """Return the surroundings of a tumour on its own grid and on the model's, and what resampling changed.

    `image`, `mask`, `back`: (H, W); `small_image`, `small_mask`: (S, S). All masks are boolean.
    """
    alt = "A tumour as scanned, on the model's grid, and which pixels of its mask are kept, added and lost"
    figure = new_figure(alt, 3.6, note=note)
    native, small, errors = figure.subplots(1, 3)
    for axes, picture, outline, title in (
        (native, image, mask, "as scanned"),
        (small, small_image, small_mask, "as the network sees it"),
        (errors, image, np.zeros_like(mask), "the mask, there and back"),
    ):
        show_slice(axes, picture, f"{title}: {picture.shape[0]} x {picture.shape[1]}")
        draw_outline(axes, outline)
        _zoom(axes, mask | back, len(picture) / max(mask.shape) if axes is small else None)
    draw_errors(errors, mask, back)
    label_errors(errors, ("kept", "added", "lost"))
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return figure


def _zoom(axes: Axes, mask: np.ndarray, scale: float | None) -> None:
    """Show the surroundings of a mask (H, W); `scale` is that of axes on the model's grid, padding included."""
    side = max(mask.shape)
    where = np.argwhere(mask) if mask.any() else np.array([(0, 0), mask.shape])
    centre, half = (where.min(0) + where.max(0) + 1) / 2, float(np.ptp(where, axis=0).max()) / 2 + side / 24
    if scale is not None:
        centre, half = (centre + (side - np.array(mask.shape)) // 2) * scale, half * scale
    row, column = centre - 0.5  # the first pixel reaches from -0.5 to 0.5
    axes.set(xlim=(column - half, column + half), ylim=(row + half, row - half))


def ceiling_figure(voxels: Sequence[int], dices: Sequence[float], size: int, note: str = "") -> Figure:
    """Return the Dice that a mask keeps on a grid of `size` x `size` against its volume in voxels, a dot a patient.

    Patients without tumour cannot stand on a logarithmic axis and are left out.
    """
    dots = [(volume, dice) for volume, dice in zip(voxels, dices, strict=True) if volume > 0]
    alt = f"Dice that the masks of {len(dots)} patients keep on a grid of {size} x {size}, against the size of the"
    figure, axes = new_chart(f"{alt} tumour; the lowest is {min((dice for _, dice in dots), default=1):.3f}", 3.3, note)
    axes.plot(*np.array(dots).reshape(-1, 2).T, "o", color=BLUE, alpha=0.8, clip_on=False)
    axes.axhline(1, color=GREY, lw=0.8, ls="--")
    axes.set(xlabel="tumour volume in voxels", ylabel=f"Dice after {size} x {size} and back")
    if dots:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter("")
    axes.set_ylim(min([0.95, *(dice for _, dice in dots)]) - 0.02, 1.005)
    return figure


def leak_figure(names: Sequence[str], leaky: Sequence[float], honest: Sequence[float], note: str = "") -> Figure:
    """Return two Dices a network, joined by a line: known patients' other slices, and patients never seen.

    The last row is the mean of all networks.
    """
    rows = [*zip(names, leaky, honest, strict=True), ("mean", float(np.mean(leaky)), float(np.mean(honest)))]
    alt = f"Pooled Dice of {len(names)} networks; on average {rows[-1][1]:.2f} on other slices of known patients"
    figure, axes = new_chart(f"{alt}, {rows[-1][2]:.2f} on patients never seen", 0.5 * len(rows) + 1.5, note)
    for y, (_, known, unseen) in enumerate(rows):
        axes.plot([known, unseen], [y, y], "-", color=GREY, lw=3 if y == len(names) else 1.5, zorder=1)
        axes.text(max(known, unseen) + 0.025, y, f"{known - unseen:+.2f}", va="center", fontsize=9)
    height = np.arange(len(rows))
    axes.plot([row[2] for row in rows], height, "s", ms=9, color=BLUE, label="patients never seen")
    axes.plot([row[1] for row in rows], height, "o", ms=9, color=ORANGE, label="other slices of the training patients")
    axes.set_yticks(height, [row[0] for row in rows])
    axes.set(xlim=(0, 1.08), ylim=(len(names) + 0.5, -0.5), xlabel="pooled Dice of the same network")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
