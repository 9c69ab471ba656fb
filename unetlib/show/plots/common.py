"""What every figure shares: its size, its legend, its curves, and a small file."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unetlib.data.regions import region_names
from unetlib.recipe import Recipe
from unetlib.show.plots.colours import CURVES, INK, KEPT
from unetlib.support.files import atomic
from unetlib.support.paths import takes_paths

VIVID, EDGES, GREYS = 128, 48, 40  # of the 256: for other colours, half-transparent pixels, greys
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


def named_regions(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of a recipe's regions in their order; none where there is only one, which needs no name."""
    names = tuple(region_names(recipe))
    return names if len(names) > 1 else ()


def legend_above(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Give a figure the legend of one of its axes, above all of them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)


def in_notebook(figure: Figure) -> tuple[bytes, dict[str, Any]]:
    """Return a figure as PNG, 1,800 pixels wide, and what a notebook notes beside it: width on the page, alt text."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(WIDTH, height * WIDTH / width)  # so that letters have one size in all figures
    return to_png(figure, dpi=round(2 * SHOWN / WIDTH)), {"width": SHOWN, "alt": figure.get_label() or "a figure"}


def to_png(figure: Figure, dpi: int = 100, comment: str = "") -> bytes:
    """Return a figure as PNG of at most 256 colours: a third of the size, and no difference to the eye.

    What is white by default becomes transparent, and what is black by default a grey that can be read on any page,
    light or dark. The colours of a legend are kept exactly; greys, other colours and half-transparent pixels are
    quantised apart: MRI has so many greys that the few pixels of a legend would drift. A `comment` is in the file.
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
    result, about = Image.fromarray(image), PngInfo()
    result.putpalette(palette[:, :3].tobytes())
    if comment:
        about.add_text("Comment", comment)
    alpha = {} if opaque.all() else {"transparency": palette[:, 3].tobytes()}
    result.save(small, "png", optimize=True, pnginfo=about, **alpha)
    return small.getvalue()


@takes_paths
def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(to_png(figure, dpi=120))


def draw_curves(
    axes: Axes, curves: Mapping[str, Sequence[float]], x: Sequence[float] | None = None, marker: str = ""
) -> None:
    """Draw named curves over `x` (0, 1, 2, ...), each narrower than the one below it, so that none hides another."""
    for number, (name, values) in enumerate(curves.items()):
        width, colour = 1.5 + 2.5 * (len(curves) - 1 - number), CURVES[number % len(CURVES)]
        places = range(len(values)) if x is None else x
        axes.plot(places, values, color=colour, lw=width, marker=marker, ms=width + 2, label=name)
