"""Figures of chapter 3: the network, its loss, and how it learned."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import matplotlib
import numpy as np
from IPython import display as notebook
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import nn

from unetlib.other_networks import how_made, level_shapes, parameter_count
from unetlib.recipe import SAMPLE_NAMES
from unetlib.show.plots.colours import BLUE, GREY, INK, ORANGE
from unetlib.show.plots.common import DISCLAIMER, in_notebook, legend_above, new_chart, new_figure
from unetlib.show.plots.drawing import (
    cut_to_head,
    draw_errors,
    draw_outline,
    draw_regions,
    fit_height,
    label_errors,
    label_regions,
    show_slice,
)
from unetlib.support.errors import counted
from unetlib.unet import UNet

CONVOLUTION, POOLING, UPSAMPLING, SKIP, HEAD = ARROWS = (
    "3 x 3 convolution, batch norm, ReLU",
    "max-pooling 2 x 2",
    "bilinear upsampling",
    "skip: copied and concatenated",
    "1 x 1 convolution",
)
IN_3D = {  # what differs in a 3-D network
    CONVOLUTION: "3 x 3 x 3 convolution, instance norm, ReLU",
    POOLING: "max-pooling 2 x 2 x 2",
    UPSAMPLING: "trilinear upsampling",
    HEAD: "1 x 1 x 1 convolution",
}
COLOURS = dict(zip(ARROWS, (BLUE, ORANGE, "#009E73", GREY, "#CC79A7"), strict=True))
LINES: dict[str, Literal["-", "--"]] = {kind: "--" if kind == SKIP else "-" for kind in ARROWS}
GAP = 1.1  # between the middles of two boxes of a level, in units of the drawing


def architecture_figure(net: nn.Module, size: int = 96) -> Figure:
    """Return the U of this network: the channels and the size of every feature map on the path of one slice.

    `size`: height and width of the slice, in pixels, or the sides of a volume. Boxes are as high as the square
    root of their map's height, and as wide as the logarithm of its channels. Of a network that is not a `UNet`, only
    its levels are drawn.

    Source: Ronneberger, Fischer, Brox, MICCAI 2015, figure 1, for the way to draw it.
    """
    if not isinstance(net, UNet):
        return _levels_figure(net, size)
    shapes, depth = dict(net.level_shapes(*net.dims * [size])), len(net.up)
    words = {kind: kind for kind in ARROWS} | (IN_3D if net.dims == 3 else {})
    heights = [2.1 * (shapes[f"down {level}"][1] / size) ** 0.5 for level in range(depth + 1)]
    middles = [-sum(heights[:level]) - heights[level] / 2 - 0.8 * level for level in range(depth + 1)]
    end, bottom = 2 * GAP * (2 * depth + 1) + 1.4 * GAP, middles[-1] - heights[-1] / 2 - 0.3
    title = f"U-Net, width {shapes['down 0'][0]}, depth {depth}: {net.parameter_count():,} parameters"
    alt = f"{title}; a U of the channels and the size of every feature map on the path of one {SAMPLE_NAMES[net.dims]}"
    figure = new_figure(alt)
    figure.set_size_inches(max(0.5 * (end + 2), 9.0), 0.5 * (1 - bottom) + 1)
    axes = figure.subplots()
    axes.set(xlim=(-1.7, end + 0.6), ylim=(bottom, 0.5))
    axes.set_axis_off()

    def box(level: int, centre: float, channels: int, copied: bool = False) -> tuple[float, float]:
        height, middle, width = heights[level], middles[level], _width(channels)
        face = "#EEEEEE" if copied else matplotlib.colormaps["Blues"](0.15 + 0.09 * level)
        corner = (centre - width / 2, middle - height / 2)
        axes.add_patch(Rectangle(corner, width, height, facecolor=face, edgecolor=GREY))
        place, side = (corner[0] + width - 0.15, "right") if copied else (centre, "center")  # a copy stands close
        axes.text(place, middle + height / 2 + 0.05, str(channels), ha=side, va="bottom", fontsize=8)
        return corner[0], corner[0] + width

    def arrow(kind: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        look = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0, "lw": 1.8}
        axes.annotate("", end, start, arrowprops={**look, "color": COLOURS[kind], "linestyle": LINES[kind]})

    def row(level: int, left: float, channels: Sequence[int]) -> tuple[float, float]:
        edges = [box(level, left + index * GAP, count) for index, count in enumerate(channels)]
        for (_, start), (stop, _) in pairwise(edges):
            arrow(CONVOLUTION, (start + 0.06, middles[level]), (stop - 0.06, middles[level]))
        return edges[-1]

    for level in range(depth + 1):
        channels, *sides = shapes[f"down {level}"]
        incoming = net.down[level][0].in_channels  # type: ignore[index]
        left, back = 2 * GAP * level, 2 * GAP * (2 * depth - level)  # where the ways down and up enter this level
        axes.text(left - 0.4, middles[level], " x ".join(map(str, sides)), ha="right", va="center", fontsize=9)
        last = row(level, left, [incoming, channels, channels])
        if level < depth:
            from_below = net.up[depth - 1 - level][0].in_channels - channels  # type: ignore[index]
            row(level, back, [from_below, shapes[f"up {level}"][0], shapes[f"up {level}"][0]])
            copied = box(level, back - _width(from_below) / 2 - _width(channels) / 2, channels, copied=True)
            arrow(SKIP, (last[1] + 0.06, middles[level]), (copied[0] - 0.06, middles[level]))
            over, under = middles[level] - heights[level] / 2, middles[level + 1] + heights[level + 1] / 2 + 0.36
            arrow(POOLING, (left + 2 * GAP, over - 0.06), (left + 2 * GAP, under))
            arrow(UPSAMPLING, (back, under), (back, over - 0.06))
    logits, features = box(0, end, shapes["logits"][0]), _width(shapes["up 0"][0]) / 2
    arrow(HEAD, (end - 1.4 * GAP + features + 0.06, middles[0]), (logits[0] - 0.06, middles[0]))
    for x, text in ((0.0, SAMPLE_NAMES[net.dims]), (end, "logits")):
        axes.text(x, -heights[0] - 0.12, text, ha="center", va="top", fontsize=9)
    lines = [Line2D([], [], color=COLOURS[kind], linestyle=LINES[kind], lw=2, label=words[kind]) for kind in ARROWS]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def _levels_figure(net: nn.Module, size: int) -> Figure:
    """Return the size of the feature maps on every level of any network, and the most channels found there."""
    shapes = level_shapes(net, size)
    largest = max([size, *(sides[0] for _, (_, *sides) in shapes)])  # of images that the network pads
    title = f"{how_made(net)['class'].rpartition('.')[2]}: {parameter_count(net):,} parameters"
    title += f"; {size} padded to {largest}" if largest > size else ""
    figure = new_figure(f"{title}; the channels and the size of the feature maps on each of {len(shapes)} levels")
    figure.set_size_inches(max(1.4 * len(shapes), 6.0), 2.6)
    axes = figure.subplots()
    axes.set(xlim=(-0.7, max(len(shapes), 1) - 0.3), ylim=(-1.5, 1.4))
    axes.set_axis_off()
    for place, (name, (channels, *sides)) in enumerate(shapes):
        height, width = 2.1 * (sides[0] / largest) ** 0.5, _width(channels)
        face = matplotlib.colormaps["Blues"](0.15 + 0.09 * min(place, 8))
        axes.add_patch(Rectangle((place - width / 2, -height / 2), width, height, facecolor=face, edgecolor=GREY))
        axes.text(place, height / 2 + 0.05, str(channels), ha="center", va="bottom", fontsize=8)
        axes.text(place, -1.15, f"{name}\n{' x '.join(map(str, sides))}", ha="center", va="top", fontsize=9)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def _width(channels: int) -> float:
    return 0.12 + 0.055 * float(np.log2(channels))


def loss_figure() -> Figure:
    """Return the cross-entropy of one pixel, and its gradient, against the logit, for both targets."""
    logits = np.linspace(-6, 6, 241)
    probabilities = 1 / (1 + np.exp(-logits))
    alt = "Cross-entropy of one pixel, and its gradient, against the logit, for target 1 and target 0"
    figure, (losses, gradients) = new_chart(alt, 3.2, None, 1, 2)
    for target, colour in ((1, ORANGE), (0, BLUE)):
        name = f"target {target} ({'tumour' if target else 'no tumour'})"
        losses.plot(logits, np.logaddexp(0, logits) - target * logits, color=colour, label=name)
        gradients.plot(logits, probabilities - target, color=colour, label=name)
    losses.set(xlabel="logit", ylabel="loss")
    gradients.set(xlabel="logit", ylabel="gradient = probability - target")
    for axes in (losses, gradients):
        axes.axvline(0, color=GREY, lw=0.8)
        axes.axhline(0, color=GREY, lw=0.8)
    legend_above(figure, losses, 2)
    return figure


def batch_figure(
    images: np.ndarray, truths: np.ndarray, predictions: np.ndarray, note: str = "", regions: Sequence[str] = ()
) -> Figure:
    """Return the slices of a batch in a row, coloured where prediction and reference agree or differ.

    `images`: (N, H, W). `truths`, `predictions`: boolean, (N, H, W); with the names of several `regions`, (N, K, H, W):
    each is outlined in its colour, in the reference with a line and in the prediction with a dashed one.
    """
    alt = f"{len(images)} slices of a batch: found, missed and false alarm in colours"
    if regions:
        alt = f"{len(images)} slices of a batch: {', '.join(regions)} outlined in reference and prediction (dashed)"
    figure = new_figure(alt, note=note or DISCLAIMER)
    panels = figure.subplots(1, len(images), squeeze=False)[0]
    for axes, image, truth, prediction in zip(panels, images, truths, predictions, strict=True):
        show_slice(axes, image)
        if regions:
            draw_regions(axes, truth)
            draw_regions(axes, prediction, dashed=True)
        else:
            draw_errors(axes, truth, prediction)
    masks = [one for stack in (truths, predictions) for one in stack.reshape(-1, *images.shape[1:])]
    ratio = cut_to_head([*zip(panels, images, strict=True)], masks)
    fit_height(figure, ratio, max(len(images), 3), extra=1)
    if regions:
        label_regions(panels[0], regions)
        for dashes, name in (("-", "reference"), ("--", "prediction")):
            panels[0].plot([], [], dashes, color=GREY, label=name)
    else:
        label_errors(panels[0])
    legend_above(figure, panels[0], max(3, len(regions) + 2))
    return figure


def probability_figure(
    image: np.ndarray, truth: np.ndarray, probability: np.ndarray, threshold: float = 0.5, note: str = ""
) -> Figure:
    """Return a slice with the reference outlined, the probability of tumour, and where a threshold is right and wrong.

    All (H, W), ready for display; `truth` is boolean, `probability` in 0..1.
    """
    alt = "A slice with the reference outlined, the probability of tumour in each pixel, and where a threshold of"
    figure = new_figure(f"{alt} {threshold:g} is right and wrong", note=note or DISCLAIMER)
    outlined, shaded, compared = figure.subplots(1, 3)
    show_slice(outlined, image, "FLAIR, reference outlined")
    show_slice(compared, image, f"probability >= {threshold:g} against reference")
    draw_outline(outlined, truth)
    shades = shaded.imshow(probability, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    shaded.set(xticks=[], yticks=[])
    shaded.set_title("probability of tumour", fontsize=10)
    figure.colorbar(shades, ax=shaded, shrink=0.7)
    panels, marks = (outlined, shaded, compared), [truth, probability >= threshold]
    fit_height(figure, cut_to_head([(axes, image) for axes in panels], marks), 3, extra=1)
    draw_errors(compared, truth, probability >= threshold)
    label_errors(compared)
    legend_above(figure, compared)
    return figure


def curves_figure(
    history: Sequence[Mapping[str, Any]], title: str = "", killed_at: float | None = None, regions: Sequence[str] = ()
) -> Figure:
    """Return loss and validation Dice against the epoch, from the rows of `history.csv` or `State.history`.

    `killed_at` marks where the run was killed and resumed, in epochs: 2.5 is the middle of the third. `regions`: the
    names of several regions, whose mean the Dice is.
    """
    epochs = [int(row["epoch"]) for row in history]
    column = {name: [float(row[name]) for row in history] for name in ("train_loss", "val_loss", "val_dice")}
    best = int(np.argmax(column["val_dice"]))
    alt = f"Loss and validation Dice of {counted(len(epochs), 'epoch')}; the best Dice is"
    reached = f"{column['val_dice'][best]:.3f}"
    figure, (losses, dices) = new_chart(f"{alt} {reached}, in epoch {epochs[best]}", 3.4, None, 1, 2)
    losses.plot(epochs, column["train_loss"], "o-", color=BLUE, label="training")
    losses.plot(epochs, column["val_loss"], "s-", color=ORANGE, label="validation")
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, 1.08 * max(column["train_loss"] + column["val_loss"])))
    dices.plot(epochs, column["val_dice"], "s-", color=ORANGE)
    dices.plot(epochs[best], column["val_dice"][best], "o", ms=14, mfc="none", mec=INK)
    place = {"xytext": (0.95, 0.08), "textcoords": "axes fraction", "ha": "right"}
    dices.annotate(f"best: {reached} in epoch {epochs[best]}", (epochs[best], column["val_dice"][best]), **place)
    mean = f",\nmean of {len(regions)} regions" if regions else ""
    dices.set(xlabel="epoch", ylabel=f"validation Dice, pooled{mean}", ylim=(-0.04, 1.04))
    for axes in (losses, dices):
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if killed_at is not None:
            axes.axvline(killed_at, color=GREY, linestyle="--", label="killed and resumed")
    losses.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


class LiveCurves:
    """The curves of a run in a notebook, redrawn in place: `train(..., on_epoch=LiveCurves())`."""

    def __init__(self, title: str = "", killed_at: float | None = None) -> None:
        self.title, self.killed_at = title, killed_at
        self.shown: Any = None

    def __call__(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Draw the epochs so far."""
        png, about = in_notebook(curves_figure(history, self.title, self.killed_at))
        picture = notebook.Image(data=png, **about)
        if self.shown is None:
            self.shown = notebook.display(picture, display_id=True)
        else:
            self.shown.update(picture)
