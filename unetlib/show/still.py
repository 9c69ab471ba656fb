"""The still image of a viewer, for where no JavaScript runs or no Python answers.

A notebook keeps it in an output of its own, at the end of the cell: in the viewer's own output JupyterLab would prefer
the widget, of which nothing is left without its kernel. `viewer.css` hides the still while a viewer lives beside it.
"""

import base64
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from IPython import get_ipython
from IPython.display import publish_display_data
from ipywidgets import Box
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unetlib.show.embedded import embed
from unetlib.show.panels import AXIS, LETTERS, Panel
from unetlib.show.plots.common import DISCLAIMER, to_png
from unetlib.show.plots.drawing import draw_outline

if TYPE_CHECKING:
    from unetlib.show.viewer import SliceViewer

SMALL = 45_000  # bytes
MARK = "unetlib: still of a viewer"  # `viewer.css` knows a still by it, as base64 at the place of a PNG's second chunk
MASKS = {"truth": "reference", "prediction": "prediction"}
LINES = {"truth": "-", "prediction": "--", "errors": "-"}  # of masks with named regions
HINT = "A still image. Run the cell again for the viewer itself."


def draw_still(viewer: "SliceViewer") -> bytes:
    """Return the slices at the viewer's position, with the overlay, as a PNG of at most 45 kB."""
    panels = viewer.panels
    planes = [viewer.plane] if len(panels) > 1 else list(AXIS)
    shown = [(panel, box, plane) for panel, box in zip(panels, viewer.frames, strict=True) for plane in planes]
    with matplotlib.rc_context({"text.color": "#DDDDDD", "font.size": 8}):
        figure = Figure(figsize=(9, 9 / max(len(shown), 3) + 0.9), facecolor="black")
        figure.subplots_adjust(left=0.005, right=0.995, bottom=0.18, top=0.88, wspace=0.02)
        for axes, (panel, box, plane) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw(axes, viewer, panel, box, plane)
        figure.suptitle(viewer.title, y=0.99, fontsize=9, parse_math=False)
        if entries := _legend(viewer):
            columns = max(3, len(entries)) if viewer.regions else 3
            look = {"ncols": columns, "frameon": False, "bbox_to_anchor": (0.5, 0.095)}
            figure.legend(handles=entries, loc="lower center", **look)
        figure.text(0.5, 0.055, HINT, ha="center", fontsize=9, color="white")
        notes = " · ".join([*viewer.notes, DISCLAIMER.capitalize()])
        figure.text(0.5, 0.015, notes, ha="center", fontsize=7, parse_math=False)
        for dpi in (80, 68, 56, 40):
            image = to_png(figure, dpi, MARK)
            if len(image) < SMALL:
                break
    return image


def _legend(viewer: "SliceViewer") -> list[Line2D]:
    """Return what the colours mean, and with named regions what is filled, a line and a dashed line."""
    layers = [layer for panel in viewer.panels for layer in panel.layers(viewer.show)]
    colours = {layer.name: layer.colour for layer in layers}
    entries = [Line2D([], [], color=colour, marker="s", ls="", label=name) for name, colour in colours.items()]
    if not (viewer.regions and {*MASKS} <= {layer.of for layer in layers}):
        return entries
    lines = {layer.of for layer in viewer.regions.parts(layers, viewer.show, viewer.style)[1]}
    for of, word in MASKS.items():
        dashes, marker = (LINES[of], "") if of in lines else ("", "s")
        entries.append(Line2D([], [], color="#AAAAAA", ls=dashes, marker=marker, label=word))
    return entries


def _draw(axes: Axes, viewer: "SliceViewer", panel: Panel, box: np.ndarray, plane: str) -> None:
    index = int(panel.voxel(viewer.position)[AXIS[plane]])
    image, classes = panel.slices(plane, index)
    low, high = viewer.window_of(panel)
    grey = np.rint(np.clip((image.astype(float) - low) / (high - low), 0, 1) * 31) / 31  # few levels: a small file
    colours = np.repeat(grey[..., None], 3, axis=2)
    filled, outlined = viewer.regions.parts(panel.layers(viewer.show), viewer.show, viewer.style)
    for number in np.unique(classes):
        if own := [to_rgb(colour) for colour in viewer.regions.colour(filled, number)]:
            mixed = colours[classes == number] * (1 - viewer.opacity) + viewer.opacity * np.mean(own, axis=0)
            colours[classes == number] = mixed
    sides = np.delete(panel.volume.spacing, AXIS[plane])
    axes.imshow(colours, aspect=sides[1] / sides[0])
    for layer in outlined if viewer.opacity else ():
        dashes = LINES[layer.of] if viewer.regions else "-"
        draw_outline(axes, classes & layer.mask == layer.value, layer.colour, 1, dashes)
    (left, low), (right, high) = np.delete(box, AXIS[plane], axis=1)
    top, bottom = (low, high) if plane == "axial" else (len(image) - 1 - high, len(image) - 1 - low)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    places = ((0.01, 0.5, "left", "center"), (0.99, 0.5, "right", "center"), (0.5, 0.99, "center", "top"))
    for letter, (x, y, across, up) in zip(LETTERS[plane], (*places, (0.5, 0.01, "center", "bottom")), strict=True):
        axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=up)
    name = panel.name if len(viewer.panels) > 1 else plane
    axes.set_title(f"{name}, {'xyz'[AXIS[plane]]} = {index}", fontsize=8, parse_math=False)
    axes.set_axis_off()


# The outputs of a cell

_waiting: dict[str, "SliceViewer"] = {}  # viewers shown in the cell that runs, by the ids of their models


def watch_notebook() -> None:
    """Have the notebook that runs this, if one does, keep a still of each viewer that it shows in a box."""
    if shell := _notebook():
        shell.events.register("post_execute", _show_stills)  # the same function again counts once
        shell.display_formatter.mimebundle_formatter.for_type(Box, _box_bundle)


def show_still_at_end(viewer: "SliceViewer") -> None:
    """Have the notebook show the still of a viewer, as it is then, at the end of the cell that runs now."""
    if _notebook():
        _waiting[viewer.model_id] = viewer


def _notebook() -> Any:
    """Return IPython's shell where it belongs to a notebook, not to a terminal."""
    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


def _box_bundle(box: Any) -> Any:
    inside = list(box.children)
    for child in inside:
        inside.extend(getattr(child, "children", ()))
        if hasattr(child, "to_fragment"):
            show_still_at_end(child)
    return box._repr_mimebundle_()


def _show_stills() -> None:
    shown = [*_waiting.values()]
    _waiting.clear()
    for viewer in shown:
        if html := embed(viewer.to_fragment):
            publish_display_data({"text/html": html, "text/plain": repr(viewer)})
        else:
            image = base64.b64encode(viewer.to_png()).decode()
            about = {"alt": f"Still image of the viewer {viewer.title!r} at voxel {viewer.position}"}
            publish_display_data({"image/png": image, "text/plain": HINT}, {"image/png": about})
