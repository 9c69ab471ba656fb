"""What every figure shares: colours, a slice with its masks, a small file.

The colours are those of Okabe and Ito (2008), which colour-blind people can tell apart.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from unetlib.data.slices import foreground
from unetlib.data.volumes import Volume
from unetlib.support.files import atomic, takes_paths

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE = "#009E73", "#D55E00", "#56B4E9", "#F0E442"
KEPT = TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE  # exactly, in a PNG of 256 colours
VIVID, EDGES, GREYS = 128, 48, 40  # of the 256: for other colours, half-transparent pixels, greys
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"  # training, validation, what is for comparison only
CURVES = (BLUE, ORANGE, TRUE_POSITIVE, "#CC79A7", GREY)  # 3 to 1 or more against white, and against #111
INK = "#797979"  # of letters and axes: 4.3 to 1 against white, and against the #111 of a dark theme
FAINT = (*to_rgb(INK), 0.25)  # grid lines and shaded ranges
ERRORS = ((TRUE_POSITIVE, "tp"), (FALSE_POSITIVE, "fp"), (FALSE_NEGATIVE, "fn"))
DISCLAIMER = "for research and education, never for clinical use"
WIDTH = 9.0  # inches of a figure
SHOWN = 900  # pixels of the page that a notebook gives a figure, where there is room


def new_figure(alt: str, height: float = 3.0, note: str | None = None) -> Figure:
    """Return an empty figure, 9 inches wide; `alt`: one line on what it shows; `note`: what stands below it."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.set_label(alt)
    if note is not None:
        figure.supxlabel(note, fontsize=9)
    return figure


def new_chart(
    alt: str, height: float = 3.0, note: str | None = None, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure, and what `Figure.subplots` gives: axes without a line at the top and on the right."""
    figure = new_figure(alt, height, note)
    panels = figure.subplots(rows, columns, **options)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def signed(note: str) -> str:
    """Return a note followed by the disclaimer, which stands once under each figure of a network's results."""
    return "\n".join(filter(None, [note, "" if DISCLAIMER in note else DISCLAIMER]))


def legend_above(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Give a figure the legend of one of its axes, above all of them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)


def label_errors(axes: Axes, names: Sequence[str] = ("found", "false alarm", "missed")) -> None:
    """Name the colours of `draw_errors` for the legend of axes."""
    for (colour, _), name in zip(ERRORS, names, strict=True):
        axes.plot([], [], "s", color=colour, label=name)


def in_notebook(figure: Figure) -> tuple[bytes, dict[str, Any]]:
    """Return a figure as PNG, 1,800 pixels wide, and what a notebook notes beside it: width on the page, alt text."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(WIDTH, height * WIDTH / width)  # so that letters have one size in all figures
    return to_png(figure, dpi=round(2 * SHOWN / WIDTH)), {"width": SHOWN, "alt": figure.get_label() or "a figure"}


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Return a figure as PNG of at most 256 colours: a third of the size, and no difference to the eye.

    What is white by default becomes transparent, and what is black by default a grey that can be read on any page,
    light or dark. The colours of a legend are kept exactly; greys, other colours and half-transparent pixels are
    quantised apart: MRI has so many greys that the few pixels of a legend would drift.
    """
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        if to_hex(patch.get_facecolor()) == "#ffffff":
            patch.set_alpha(0)
    for axes in figure.axes:
        axes.tick_params(which="both", color=INK, labelcolor=INK)
        axes.spines[:].set_color(INK)
    for text in figure.findobj(Text):
        if str(text.get_color()) == "black":
            text.set_color(INK)
    buffer, small = BytesIO(), BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    pixels = np.asarray(Image.open(buffer).convert("RGBA"))
    opaque = pixels[..., 3] == 255
    kept = [opaque & (pixels[..., :3] == np.round(255 * np.array(to_rgb(colour)))).all(-1) for colour in KEPT]
    others, vivid = opaque & ~np.any(kept, axis=0), np.ptp(pixels[..., :3], axis=-1) > 16
    groups = [*((group, 1) for group in kept), (others & vivid, VIVID), (others & ~vivid, GREYS), (~opaque, EDGES)]
    image, palette = np.zeros(pixels.shape[:2], np.uint8), np.zeros((0, 4), np.uint8)
    for group, number in groups:
        if group.any():
            mode = "RGB" if opaque[group].all() else "RGBA"
            own = Image.fromarray(pixels[group][None]).convert(mode).quantize(number)
            image[group] = np.asarray(own)[0] + len(palette)
            colours = np.array(own.getpalette("RGBA"), np.uint8).reshape(-1, 4)
            palette = np.concatenate([palette, colours[:number]])
    result = Image.fromarray(image)
    result.putpalette(palette[:, :3].tobytes())
    result.save(small, "png", optimize=True, **({} if opaque.all() else {"transparency": palette[:, 3].tobytes()}))
    return small.getvalue()


@takes_paths
def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(to_png(figure, dpi=120))


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


def draw_curves(
    axes: Axes, curves: Mapping[str, Sequence[float]], x: Sequence[float] | None = None, marker: str = ""
) -> None:
    """Draw named curves over `x` (0, 1, 2, ...), each narrower than the one below it, so that none hides another."""
    for number, (name, values) in enumerate(curves.items()):
        width, colour = 1.5 + 2.5 * (len(curves) - 1 - number), CURVES[number % len(CURVES)]
        places = range(len(values)) if x is None else x
        axes.plot(places, values, color=colour, lw=width, marker=marker, ms=width + 2, label=name)


def draw_outline(axes: Axes, mask: np.ndarray) -> None:
    """Draw the border of a boolean mask (H, W); nothing where it is empty."""
    if mask.any():
        axes.contour(mask, levels=[0.5], colors=OUTLINE, linewidths=1.2)


def draw_errors(axes: Axes, truth: np.ndarray, prediction: np.ndarray) -> None:
    """Colour where two boolean masks (H, W) agree on tumour, and where one of them is wrong."""
    for mask, (colour, _) in zip((truth & prediction, ~truth & prediction, truth & ~prediction), ERRORS, strict=True):
        axes.imshow(mask[..., None] * np.array(to_rgba(colour, 0.65)), interpolation="nearest")


def largest_slice(mask: np.ndarray) -> int:
    """Return the z of the axial slice of a mask (X, Y, Z) that holds most tumour."""
    return int(mask.sum((0, 1)).argmax())


def is_synthetic(volume: Volume) -> bool:
    """Tell whether a volume's header marks it as made by `unetlib phantom`."""
    return b"SYNTHETIC" in volume.header["descrip"].tobytes()
