"""Figures of chapter 1: what the images hold, in one patient and across a cohort."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from unetlib.data.patients import MODALITIES, Case, read_case
from unetlib.data.sequences import resampled
from unetlib.data.slices import foreground as find_head
from unetlib.data.volumes import Volume, read_volume
from unetlib.metrics import millilitres
from unetlib.show.plots.colours import BLUE, FALSE_NEGATIVE, GREY, LABELS, ORANGE, OUTLINE
from unetlib.show.plots.common import DISCLAIMER, new_chart, new_figure
from unetlib.show.plots.drawing import cut_to_head, draw_outline, fit_height, is_synthetic, largest_slice, show_slice
from unetlib.support.errors import UnetlibError
from unetlib.support.jobs import watched

BINS = 48  # of a head's width and length in a portrait: about 3 mm each
SQUARE = 7  # pixels, the side of what is shown as numbers
SAMPLE = 5000  # intensities kept of a patient
HEAD_ASPECT = 1.2  # length to width


@dataclass(frozen=True)
class Portrait:
    """What one patient adds to the figures of a cohort, without the voxels.

    `tumour_per_slice`: (Z,) voxels of tumour. `pixels`: those of one axial slice. `sample`: some
    intensities inside the head, `limits` the lowest and highest of the volume. `tumour_map` and
    `head_map`: (BINS, BINS) bool, the volume all slices added up, x by y, in the box around the head.
    `centre`: (3,), the tumour's middle in that box, 0..1 along x, y, z; NaN without tumour.
    """

    id: str
    spacing: tuple[float, float, float]
    tumour_per_slice: np.ndarray
    pixels: int
    sample: np.ndarray
    limits: tuple[float, float]
    tumour_map: np.ndarray
    head_map: np.ndarray
    centre: np.ndarray

    @property
    def millilitres(self) -> float:
        """Size of the whole tumour."""
        return float(millilitres(self.tumour_per_slice.sum(), self.spacing))

    @property
    def tumour_slices(self) -> int:
        """Number of axial slices with at least one voxel of tumour."""
        return int((self.tumour_per_slice > 0).sum())

    @property
    def share_of_slices(self) -> float:
        """Share of the axial slices with tumour, 0..1."""
        return float((self.tumour_per_slice > 0).mean())


def portray(cases: Sequence[Case]) -> list[Portrait]:
    """Read the FLAIR image and the mask of each case, one at a time, and keep what the figures need.

    Raises `UnetlibError` as `read_case` does.
    """
    return [_portray(case.id, *read_case(case)[:2]) for case in watched(cases, "read", "case")]


def _portray(id: str, image: Volume, mask: np.ndarray) -> Portrait:
    head = find_head(image.voxels)
    # The corners of the head: what lies between are the planes that hold more than a few voxels of it.
    sums = [head.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    spans = [np.flatnonzero(line > 0.02 * line.max()) for line in sums]
    low, high = np.array([(float(span[0]), float(span[-1] + 1)) for span in spans]).T
    inside, places = image.voxels[head], np.argwhere(mask)
    centre = (places.mean(0) + 0.5 - low) / (high - low) if len(places) else np.full(3, np.nan)
    return Portrait(
        id,
        image.spacing,
        mask.sum((0, 1)),
        mask.shape[0] * mask.shape[1],
        inside[:: max(1, inside.size // SAMPLE)].astype(np.float32),
        (float(image.voxels.min()), float(image.voxels.max())),
        _flattened(mask.max(2), low, high),
        _flattened(head.mean(2) > 0.1, low, high),
        centre,
    )


def _flattened(flat: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return a mask (X, Y) on the (BINS, BINS) of the box: a bin is true where a voxel of the mask lies in it."""
    places = (np.argwhere(flat) + 0.5 - low[:2]) / (high - low)[:2]
    bins = (places[((places >= 0) & (places < 1)).all(1)] * BINS).astype(int)
    found = np.zeros((BINS, BINS), bool)
    found[tuple(bins.T)] = True
    return found


def case_figure(cases: Sequence[Case], modalities: Sequence[str] = MODALITIES) -> Figure:
    """Return one row a case: the modalities it has in the slice with most tumour, the whole tumour outlined."""
    names = ", ".join(case.id for case in cases)
    figure = new_figure(f"Axial slices of {names} in {', '.join(modalities)}, the whole tumour outlined in yellow")
    panels = figure.subplots(len(cases), len(modalities), squeeze=False)
    synthetic, shown, masks = False, [], []
    for case, line in zip(cases, panels, strict=True):
        flair, mask, _ = read_case(case)
        synthetic |= is_synthetic(flair)
        z = largest_slice(mask)
        masks.append(mask[:, :, z].T)
        for axes, modality in zip(line, modalities, strict=True):
            axes.set_axis_off()
            if modality in case.images:
                try:
                    voxels = resampled(read_volume(case.images[modality]), flair, modality)
                except UnetlibError:  # images that lie apart
                    axes.set_title(f"{modality} lies elsewhere", fontsize=10)
                    continue
                show_slice(axes, voxels[:, :, z].T, f"{modality}, slice {z}")
                draw_outline(axes, masks[-1])
                shown.append((axes, flair.voxels[:, :, z].T))
        line[0].set_title(f"{case.id}\n{line[0].get_title()}", fontsize=10)
    fit_height(figure, cut_to_head(shown, masks), max(len(modalities), 2), len(cases), 0.4 + 0.4 * len(cases))
    figure.supxlabel(("synthetic images; " if synthetic else "") + DISCLAIMER, fontsize=9)
    return figure


def voxels_figure(image: np.ndarray, centre: tuple[int, int], note: str = "") -> Figure:
    """Return a slice (H, W) and, beside it, a square of 7 x 7 pixels around `centre` (row, column) as numbers.

    `centre` is moved inwards where the square would leave the slice.
    """
    row, column = np.clip(np.subtract(centre, SQUARE // 2), 0, np.array(image.shape) - SQUARE)
    square = np.s_[row : row + SQUARE, column : column + SQUARE]
    alt = "An axial slice, a small square marked on it, and the square magnified: a number in each voxel"
    figure = new_figure(alt, note=note)
    whole, zoom = figure.subplots(1, 2)
    show_slice(whole, image, f"one slice: {image.shape[1]} x {image.shape[0]} voxels, cut to the head")
    corner = (column - 0.5, row - 0.5)
    whole.add_patch(Rectangle(corner, SQUARE, SQUARE, fill=False, edgecolor=OUTLINE, linewidth=1.5))
    mark = np.zeros(image.shape, bool)
    mark[square] = True
    fit_height(figure, cut_to_head([(whole, image)], [mark]), 2)
    low, high = whole.images[0].get_clim()
    zoom.imshow(image[square], cmap="gray", vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(image[square]):
        colour = "#000000" if value > (low + high) / 2 else "white"
        zoom.text(j, i, f"{value:.4g}", ha="center", va="center", color=colour, fontsize=11)
    zoom.set(xticks=[], yticks=[])
    zoom.set_title("the yellow square, as numbers", fontsize=10)
    return figure


def labels_figure(image: np.ndarray, labels: np.ndarray, note: str = "") -> Figure:
    """Return a slice plain, with each label of `labels` in its colour, and with the whole tumour outlined.

    `image` and `labels`: (H, W), as displayed; 0 is none, and labels other than 1 to 4 share a colour.
    """
    found = sorted(set(np.unique(labels).tolist()) - {0})
    alt = f"An axial slice plain, with the labels {', '.join(map(str, found)) or 'none'} in colours, and outlined"
    figure = new_figure(alt, note=note)
    panels = figure.subplots(1, 3)
    for axes, title in zip(panels, ("image", "labels", "whole tumour: label > 0"), strict=True):
        show_slice(axes, image, title)
    for label in found:
        colour = LABELS.get(label, ORANGE)
        panels[1].imshow((labels == label)[..., None] * np.array(to_rgba(colour, 0.75)), interpolation="nearest")
        panels[1].plot([], [], "s", color=colour, label=f"label {label}")
    draw_outline(panels[2], labels > 0)
    if panels[1].lines:
        panels[1].legend(loc="lower right", fontsize=9, facecolor="#000000", labelcolor="white", handletextpad=0.2)
    fit_height(figure, cut_to_head([(axes, image) for axes in panels], [labels > 0]), 3)
    return figure


def pictures_figure(pictures: Mapping[str, np.ndarray], aspects: Sequence[float] = (), note: str = "") -> Figure:
    """Return slices (H, W) side by side under their titles; `aspects`: height to width of each one's pixels, or 1."""
    figure = new_figure(f"Slices side by side: {', '.join(pictures)}".replace("\n", " "), note=note)
    panels = figure.subplots(1, len(pictures), squeeze=False)[0]
    ratios = aspects or [1.0] * len(pictures)
    for axes, (title, image), ratio in zip(panels, pictures.items(), ratios, strict=True):
        show_slice(axes, image, title)
        axes.set_aspect(ratio)
    ratio = cut_to_head([*zip(panels, pictures.values(), strict=True)])
    lines = max(len(title.splitlines()) for title in pictures)
    fit_height(figure, ratio, max(len(pictures), 2), extra=0.4 + 0.2 * lines)
    return figure


def histograms_figure(samples: Mapping[str, np.ndarray], xlabel: str, note: str = "") -> Figure:
    """Return the histogram of each named sample of intensities, all with area 1."""
    figure, axes = new_chart(f"Histograms of {xlabel}: {', '.join(samples)}", note=note)
    low, top = np.percentile(np.concatenate([*samples.values()]), (0.2, 99.8))
    for (name, values), colour in zip(samples.items(), cycle((GREY, ORANGE, BLUE, FALSE_NEGATIVE)), strict=False):
        look = {"density": True, "histtype": "stepfilled", "alpha": 0.6, "color": colour, "label": name}
        axes.hist(values, bins=60, range=(min(low, 0), top), **look)
    axes.set(xlabel=xlabel, ylabel="share of voxels", yticks=[])
    axes.legend(frameon=False)
    return figure


def intensities_figure(portraits: Sequence[Portrait], note: str = "") -> Figure:
    """Return a line a patient, the histogram inside the head with peak 1: as stored, and after min-max to 0..1.

    In colour: the patients of the lowest and of the highest median as stored.
    """
    alt = f"Histograms of {len(portraits)} patients inside the head, as stored and after min-max to 0..1"
    figure, panels = new_chart(alt, 3.0, note, 1, 2, sharey=True)
    order = sorted(portraits, key=lambda one: float(np.median(one.sample)))
    special = {order[0].id: (BLUE, "lowest as stored"), order[-1].id: (ORANGE, "highest as stored")}
    for one in [*order[1:-1], order[0], order[-1]]:  # the coloured ones on top
        low, high = one.limits
        colour, name = special.get(one.id, ((GREY, 0.5), ""))
        for axes, values in zip(panels, (one.sample, (one.sample - low) / (high - low)), strict=True):
            counts, edges = np.histogram(values, 30)
            middles = (edges[1:] + edges[:-1]) / 2
            axes.plot(middles, counts / counts.max(), color=colour, label=name, linewidth=1.8 if name else 0.7)
    panels[0].set(xscale="log", xlabel="intensity as stored, no unit", ylabel="share, peak = 1")
    first, last = panels[0].get_xlim()
    panels[0].set_xticks([tick for power in range(6) for tick in (10**power, 3 * 10**power) if first < tick < last])
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_formatter("")
    panels[1].set(xlabel="after min-max of the volume", xlim=(0, 1))
    panels[1].legend(frameon=False)
    return figure


def sizes_figure(portraits: Sequence[Portrait], note: str = "") -> Figure:
    """Return the size of each patient's tumour in ml, from the smallest to the largest, and the median."""
    sizes = sorted(one.millilitres for one in portraits)
    alt = f"Tumour volumes of {len(sizes)} patients in order, from {sizes[0]:.0f} to {sizes[-1]:.0f} ml"
    figure, axes = new_chart(f"{alt}; the median is {np.median(sizes):.0f} ml", note=note)
    axes.bar(range(1, len(sizes) + 1), sizes, color=BLUE)
    axes.axhline(np.median(sizes), color=ORANGE, linestyle="--", label=f"median {np.median(sizes):.0f} ml")
    axes.set(xlabel="patients, ordered by size", ylabel="whole tumour, ml")
    axes.legend(frameon=False, loc="upper left")
    return figure


def positions_figure(portraits: Sequence[Portrait], note: str = "") -> Figure:
    """Return how many patients have tumour where, axial slices added up, and the centres from the front.

    Every head is stretched to one box; the line is the outline of half of the heads, the area of a
    dot grows with the size of the tumour.
    """
    alt = "Where tumours lie: patients with tumour at each place from above, and the centres from the front"
    figure = new_figure(f"{alt}, {len(portraits)} patients", 4.5, note=note)
    axial, front = figure.subplots(1, 2)
    heat = np.sum([one.tumour_map for one in portraits], axis=0)
    picture = axial.imshow(heat.T, cmap="magma", aspect=HEAD_ASPECT)
    axial.contour(np.mean([one.head_map for one in portraits], axis=0).T, levels=[0.5], colors="white", linewidths=1)
    axial.set_title("all axial slices: patients with tumour", fontsize=10)
    figure.colorbar(picture, ax=axial, shrink=0.7)
    x, _, z = np.array([one.centre for one in portraits]).T
    sizes = np.array([one.millilitres for one in portraits])
    front.scatter(
        x, z, s=10 + 150 * sizes / max(sizes.max(), 1e-9), color=ORANGE, alpha=0.8, edgecolors="white", linewidths=0.5
    )
    front.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", facecolor="black")
    front.set_title("seen from the front: centres, area = size", fontsize=10)
    for axes, letters in ((axial, "RLAP"), (front, "RLSI")):
        axes.set(xticks=[], yticks=[])
        for letter, (x, y) in zip(letters, ((0.04, 0.5), (0.96, 0.5), (0.5, 0.95), (0.5, 0.05)), strict=True):
            axes.text(x, y, letter, transform=axes.transAxes, color=OUTLINE, ha="center", va="center", fontsize=9)
    return figure


def profiles_figure(portraits: Sequence[Portrait], note: str = "") -> Figure:
    """Return, a row a patient, which slices from the lowest to the highest hold tumour, and their share."""
    order = sorted(portraits, key=lambda one: one.share_of_slices)
    places = np.linspace(0, 1, 100, endpoint=False)  # of each of them, the share of the nearest slice
    shares_at = [one.tumour_per_slice[(places * len(one.tumour_per_slice)).astype(int)] / one.pixels for one in order]
    alt = f"A row a patient, {len(portraits)} in all: which slices from neck to crown hold tumour, and their share"
    figure = new_figure(alt, 3.8, note=note)
    strips, shares = figure.subplots(1, 2, width_ratios=(2, 1))
    look = {"cmap": "magma", "aspect": "auto", "origin": "lower", "interpolation": "nearest"}
    picture = strips.imshow(100 * np.stack(shares_at), **look)
    figure.colorbar(picture, ax=strips, label="% of the slice that is tumour")
    strips.set(xlabel="height of the slice: neck to crown, %", ylabel="patients", yticks=[])
    shares.barh(range(len(order)), [100 * one.share_of_slices for one in order], height=0.9, color=BLUE)
    shares.set(xlabel="slices with tumour, %", xlim=(0, 100), ylim=(-0.5, len(order) - 0.5), yticks=[])
    shares.spines[["top", "right"]].set_visible(False)
    return figure
