"""A slice with its masks on axes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from unetlib.data.slices import first_of_sequences, foreground
from unetlib.data.volumes import Volume
from unetlib.show.plots.colours import ERRORS, OUTLINE, REGIONS


def show_slice(axes: Axes, image: np.ndarray, title: str = "", window: Sequence[float] | None = None) -> None:
    """Show a slice (H, W) voxel by voxel in grey, without ticks.

    `window`: the values shown as black and as white; by default the 0.5 and 99.5 percentiles.
    """
    low, high = np.percentile(image, (0.5, 99.5)) if window is None else window
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    axes.set(xticks=[], yticks=[], facecolor="black")
    if title:
        axes.set_title(title, fontsize=10)


def cut_to_head(panels: Sequence[tuple[Axes, np.ndarray]], marks: Sequence[np.ndarray] = ()) -> float:
    """Zoom axes, each given with a slice (H, W), to the heads there, and return the largest height to width of them.

    All slices of one shape are cut alike: to the rows and columns of which at least 1 % are `slices.foreground` in one
    of them, what a boolean mask in `marks` touches (a false alarm in the air is seen), and a margin of 4 %.
    """
    ratios = []
    for shape in {image.shape for _, image in panels}:
        alike = [(axes, image) for axes, image in panels if image.shape == shape]
        spans = []  # the first of what is to be seen and the one after the last, of columns and of rows
        for across, size in ((0, shape[1]), (1, shape[0])):
            lines = [foreground(image).mean(across) >= 0.01 for _, image in alike]
            lines += [mark.any(across) for mark in marks if mark.shape == shape]
            seen = np.flatnonzero(np.any(lines, axis=0))
            spans.append((seen[0], seen[-1] + 1) if len(seen) else (0, size))
        margin = round(0.04 * max(end - begin for begin, end in spans))
        (left, right), (top, bottom) = (
            (max(begin - margin, 0), min(end + margin, size))
            for (begin, end), size in zip(spans, reversed(shape), strict=True)
        )
        for axes, _ in alike:
            axes.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
            ratios.append(float(axes.get_aspect()) * (bottom - top) / (right - left))
    return max(ratios)


def fit_height(figure: Figure, ratio: float, columns: int, rows: int = 1, extra: float = 0.6) -> None:
    """Make a figure as high as rows of panels, `ratio` times as high as wide, and `extra` inches for the letters."""
    figure.set_figheight(rows * min(ratio * figure.get_figwidth() / columns, 4) + extra)


def draw_outline(axes: Axes, mask: np.ndarray, colour: str = OUTLINE, width: float = 1.2, dashes: str = "-") -> None:
    """Draw the border of a boolean mask (H, W); nothing where it is empty."""
    if not mask.any():
        return
    y, x = (np.arange(-1, side + 1) if min(mask.shape) < 2 else np.arange(side) for side in mask.shape)
    mask = np.pad(mask, 1) if min(mask.shape) < 2 else mask  # of a single row there is no contour
    axes.contour(x, y, mask, levels=[0.5], colors=colour, linewidths=width, linestyles=dashes)


def draw_regions(axes: Axes, masks: np.ndarray, dashed: bool = False) -> None:
    """Draw the border of each region in its colour, from boolean masks (K, H, W); nothing where one is empty.

    Each line is so much narrower than the one below it that both are seen where regions share a border.
    """
    step = min(1.8, 5.4 / max(len(masks), 1))  # of many regions, the widest is no band
    widths = 1.2 + step * np.arange(len(masks))[::-1]
    for mask, colour, width in zip(masks, REGIONS, widths, strict=False):
        draw_outline(axes, mask, colour, width, "--" if dashed else "-")


def label_regions(axes: Axes, names: Sequence[str]) -> None:
    """Name the colours of `draw_regions` for the legend of axes."""
    for name, colour in zip(names, REGIONS, strict=False):
        axes.plot([], [], "-", color=colour, lw=3, label=name)


def draw_errors(axes: Axes, truth: np.ndarray, prediction: np.ndarray) -> None:
    """Colour where two boolean masks (H, W) agree on tumour, and where one of them is wrong."""
    for mask, (colour, _) in zip((truth & prediction, ~truth & prediction, truth & ~prediction), ERRORS, strict=True):
        axes.imshow(mask[..., None] * np.array(to_rgba(colour, 0.65)), interpolation="nearest")


def label_errors(axes: Axes, names: Sequence[str] = ("found", "false alarm", "missed")) -> None:
    """Name the colours of `draw_errors` for the legend of axes."""
    for (colour, _), name in zip(ERRORS, names, strict=True):
        axes.plot([], [], "s", color=colour, label=name)


def largest_slice(mask: np.ndarray) -> int:
    """Return the z of the axial slice that holds most tumour, of a mask (X, Y, Z) or of several (K, X, Y, Z)."""
    return int((mask.any(0) if mask.ndim == 4 else mask).sum((0, 1)).argmax())


def first_sequence(volume: Volume) -> Volume:
    """Return the first sequence that is not empty of voxels (X, Y, Z) or (C, X, Y, Z), as a volume (X, Y, Z)."""
    return replace(volume, voxels=first_of_sequences(volume.voxels))


def displayed(volume: np.ndarray, z: int) -> np.ndarray:
    """Return an axial slice (..., H, W) of arrays (..., X, Y, Z), as displayed."""
    return np.swapaxes(volume[..., z], -1, -2)


def is_synthetic(volume: Volume) -> bool:
    """Tell whether a volume's header marks it as made by `unetlib phantom`."""
    return b"SYNTHETIC" in volume.header["descrip"].tobytes()
