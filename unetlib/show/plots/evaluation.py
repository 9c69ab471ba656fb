"""Figures of chapter 4: how good the network is, and where it fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unetlib import metrics
from unetlib.evaluation.summary import AGGREGATIONS, SLICES, interval_remark
from unetlib.metrics import Counts
from unetlib.show.plots.colours import BLUE, ERRORS, FAINT, GREY, INK, ORANGE
from unetlib.show.plots.common import legend_above, new_chart, signed
from unetlib.support.errors import counted


def metrics_figure(summary: Mapping[str, Any], note: str = "", regions: Sequence[str] = ()) -> Figure:
    """Return every Dice in a summary of `evaluate`, named by aggregation, slices and grid, with its interval if any.

    `regions`: the names of several regions; each has a column.
    """
    groups = _by_region(summary["figures"], regions)
    rows = [(aggregation, slices) for aggregation in AGGREGATIONS for slices in SLICES]
    figure, panels = new_chart("", 4.8, signed(note), 1, len(groups), sharey=True, squeeze=False)
    alts = [_draw_dices(axes, *group, rows) for axes, group in zip(panels[0], groups.items(), strict=True)]
    figure.set_label("Dice by aggregation, slices and grid: " + "; ".join(alts))
    names = [f"{aggregation}, {slices} slices" for aggregation, slices in rows]
    names[0] += "\n(published: model grid)"
    axes = panels[0, 0]
    axes.set_yticks([place + 0.5 * (place // 2) for place in range(len(rows))], names)
    for face, text in ((GREY, "model grid"), ("none", "native grid")):
        axes.plot([], [], "o", color=GREY, mfc=face, label=text)
    axes.plot([], [], "-", color=GREY, label=f"95 % interval (bootstrap over patients{_narrow(summary['patients'])})")
    legend_above(figure, axes)
    numbers = f"{counted(summary['patients'], 'patient')}, {summary['slices']} slices"
    title = f"One network, {len(summary['figures'])} Dice figures ({numbers}, {summary['tumour_slices']} with tumour)"
    if len(groups) == 1:
        axes.set_title(title, pad=10)
    else:
        figure.supxlabel(f"{title}\n{signed(note)}", fontsize=9)
    return figure


def _narrow(patients: int) -> str:
    return ", too narrow with so few" if interval_remark(patients) else ""


def _by_region(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of each region by its name; all of them under "" where there is one region.

    A region is given by its number in `names`, or by its name.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        region = str(row.get("region", ""))
        name = names[int(region)] if region.isdecimal() and int(region) < len(names) else region
        groups.setdefault(name, []).append(row)
    return groups


def _draw_dices(axes: Axes, region: str, entries: Sequence[Mapping[str, Any]], rows: Sequence[tuple[str, str]]) -> str:
    """Draw the Dice figures of one region, and return them in words."""
    shown = {(entry["aggregation"], entry["slices"], entry["grid"]): entry for entry in entries}
    for place, (aggregation, slices) in enumerate(rows):
        for grid, shift, face in (("model", -0.18, None), ("native", 0.18, "none")):
            if (entry := shown.get((aggregation, slices, grid))) is None:
                continue
            y, colour = place + 0.5 * (place // 2) + shift, ORANGE if slices == "tumour" else BLUE
            if entry.get("dice_interval"):
                axes.plot(entry["dice_interval"], [y, y], "-", color=colour, lw=1.5)
            name = f"{aggregation} {slices} {grid} {region}".strip()
            axes.plot(entry["dice"], y, "o", ms=8, color=colour, mfc=face or colour, gid=name)
            axes.text(1.03, y, f"{entry['dice']:.3f}", va="center", fontsize=9, color=colour)
    axes.set(
        xlim=(0, 1.3 if region else 1.12), ylim=(len(rows) + 0.5, -0.6), xlabel="Dice", xticks=np.linspace(0, 1, 6)
    )
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines.left.set_visible(False)
    axes.tick_params(axis="y", length=0)
    if region:
        axes.set_title(region, fontsize=10)
    named = (f"{', '.join(name[:2])} slices, {name[2]} grid {entry['dice']:.3f}" for name, entry in shown.items())
    return f"{region}: {', '.join(named)}" if region else ", ".join(named)


def patients_figure(
    dices: Mapping[str, Sequence[float]], intervals: Mapping[str, Sequence[float] | None], note: str = ""
) -> Figure:
    """Return the Dice of every patient in ascending order, their mean, and the interval of the mean if there is one.

    Both stand under the name of each of several regions, which has a column of its own, or under "".
    """
    alts = [
        f"Dice of {counted(len(own), 'test patient')}{f' for {name}' if name else ''}"
        + (f" in ascending order, from {min(own):.2f} to {max(own):.2f}; the mean is" * (len(own) > 1) or ":")
        + f" {np.mean(own):.3f}"
        for name, own in dices.items()
    ]
    figure, panels = new_chart(". ".join(alts), 3.4, signed(note), 1, len(dices), sharey=True, squeeze=False)
    for axes, (name, own) in zip(panels[0], dices.items(), strict=True):
        _draw_patients(axes, name, own, intervals.get(name))
    panels[0, 0].set_ylabel("Dice")
    legend_above(figure, panels[0, 0])
    return figure


def _draw_patients(axes: Axes, region: str, dices: Sequence[float], interval: Sequence[float] | None) -> None:
    size, mean = 8 if len(dices) <= 50 else 3, float(np.mean(dices))
    axes.plot(range(1, len(dices) + 1), sorted(dices), "o", color=BLUE, ms=size, label="patient")
    axes.axhline(mean, color=ORANGE, lw=1.5, label="mean" if region else f"mean {mean:.3f}")
    if interval:
        label = f"95 % interval of the mean (bootstrap{_narrow(len(dices))})"
        axes.axhspan(*interval, color=ORANGE, alpha=0.15, lw=0, label=label)
    axes.set(xlabel="test patient, from worst to best", xlim=(0.5, len(dices) + 0.5), ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if region:
        axes.set_title(f"{region}: mean {mean:.3f}", fontsize=10)


def paired_figure(
    names: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    labels: tuple[str, str] = ("before", "after"),
    note: str = "",
) -> Figure:
    """Return the Dice of the same patients under two recipes: a line a patient, up or down, and the means beside it.

    `before`, `after`: in 0..1, in the order of `names`.
    """
    means = [float(np.mean(before)), float(np.mean(after))]
    alt = f"Dice of {counted(len(names), 'patient')} under two recipes: a mean of {means[0]:.3f} {labels[0]}"
    figure, axes = new_chart(f"{alt}, {means[1]:.3f} {labels[1]}", 3.8, signed(note))
    for name, *pair in zip(names, before, after, strict=True):
        axes.plot([0, 1], pair, "o-", color=BLUE if pair[1] > pair[0] else ORANGE, lw=1.2, ms=5, gid=name)
    axes.plot([0, 1], means, "s-", color=INK, lw=3.5, ms=9, gid="mean")
    for x, mean, side in ((0, means[0], "right"), (1, means[1], "left")):
        where = (-12 if side == "right" else 12, 0)
        axes.annotate(f"{mean:.3f}", (x, mean), xytext=where, textcoords="offset points", ha=side, va="center")
    if len(names) <= 12:
        for y, name in _apart([(value, name) for value, name in zip(after, names, strict=True)], gap=0.055):
            axes.annotate(name, (1, y), xytext=(58, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xticks([0, 1], labels)
    axes.set(xlim=(-0.35, 1.9 if len(names) <= 12 else 1.35), ylim=(-0.03, 1.03), ylabel="Dice of a patient")
    for colour, text in ((BLUE, "better"), (ORANGE, "not better"), (INK, "mean")):
        axes.plot([], [], "-", color=colour, label=text)
    legend_above(figure, axes)
    return figure


def _apart(labels: Sequence[tuple[float, str]], gap: float) -> list[tuple[float, str]]:
    """Return labels from low to high, moved up where they would stand closer than `gap`."""
    placed: list[tuple[float, str]] = []
    for y, text in sorted(labels):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, text))
    return placed


def errors_figure(
    rows: Sequence[Mapping[str, Any]], cases: Mapping[str, str], note: str = "", regions: Sequence[str] = ()
) -> Figure:
    """Return, for each case, what was found, missed and falsely marked in every slice, from the rows of `slices.csv`.

    `cases` maps the id of a case to its title. `regions`: the names of several regions; each has a row of its own.
    """
    alt = f"Pixels found, missed and falsely marked in every axial slice of {', '.join(cases.values())}"
    shown = {
        ", ".join(filter(None, (title, region))): own
        for case, title in cases.items()
        for region, own in _by_region([row for row in rows if row["case"] == case], regions).items()
    }
    alt += f", for {', '.join(regions)}" if regions else ""
    height = 1.7 * len(shown) + 0.9
    figure, panels = new_chart(alt.replace("\n", " "), height, signed(note), len(shown), squeeze=False)
    for (title, own), axes in zip(shown.items(), panels[:, 0], strict=True):
        z, base = [int(row["z"]) for row in own], np.zeros(len(own))
        for (colour, name), text in zip(ERRORS, ("found", "false alarm", "missed"), strict=True):
            values = np.array([int(row[f"native_{name}"]) for row in own])
            axes.bar(z, values, bottom=base, width=1.0, color=colour, label=text)
            base = base + values
        inside = [int(row["z"]) for row in own if int(row["tumour"])]
        if inside:
            axes.axvspan(min(inside) - 0.5, max(inside) + 0.5, color=FAINT, lw=0, zorder=0, label="tumour")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set(ylabel="pixels", xlim=(min(z) - 0.5, max(z) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("axial slice z, from neck to crown")
    legend_above(figure, panels[0, 0], 4)
    return figure


def threshold_figure(
    thresholds: np.ndarray,
    val: Sequence[Counts],
    test: Sequence[Counts],
    chosen: float | Sequence[float],
    note: str = "",
    regions: Sequence[str] = ("",),
) -> Figure:
    """Return Dice, precision and recall against the threshold: chosen on validation patients, shown on test patients.

    `val` and `test` hold the pooled counts at each of `thresholds` (T,). `regions`: the names of several regions, K;
    the counts are then (K,), `chosen` may be one threshold for each, and each has a row.
    """
    every = np.broadcast_to(chosen, len(regions)).tolist()
    text = ", ".join(f"{one:.2f}{f' for {name}' if name else ''}" for one, name in zip(every, regions, strict=True))
    alt = "Dice, precision and recall against the threshold, on validation patients and on test patients"
    look = {"sharex": True, "sharey": True, "squeeze": False}
    height = 3.4 + 2.2 * (len(regions) - 1)
    figure, panels = new_chart(f"{alt}; chosen: {text}", height, signed(note), len(regions), 2, **look)
    for k, (row, one, region) in enumerate(zip(panels, every, regions, strict=True)):
        for axes, counts, title in zip(row, (val, test), ("validation: choose here", "test: look once"), strict=True):
            for name, style, colour in (("dice", "o-", BLUE), ("precision", "--", GREY), ("recall", ":", GREY)):
                values = [np.ravel(metrics.METRICS[name](at))[k] for at in counts]
                axes.plot(thresholds, values, style, color=colour, ms=3, label=name)
            axes.axvline(one, color=ORANGE, lw=1.5, label="chosen" if region else f"chosen: {one:.2f}")
            axes.axvline(0.5, color=FAINT, lw=1, zorder=0)
            axes.set_title(f"{region}, {title}; chosen: {one:.2f}" if region else title, fontsize=10)
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
        row[0].set_ylabel("pooled over the tumour slices")
    for axes in panels[-1]:
        axes.set_xlabel("threshold")
    legend_above(figure, panels[0, 0], 4)
    return figure


@dataclass(frozen=True)
class Reliability:
    """Pixels sorted into equal bins by their predicted probability: arrays (bins,), 0 where a bin is empty.

    `number` of pixels; `predicted`, their mean probability; `observed`, the share that is tumour.
    """

    number: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> "Reliability":
        """Sort probabilities in 0..1 and a mask of 0 and 1, of one shape, into `bins` bins."""
        place = np.minimum((probabilities.ravel() * bins).astype(np.int64), bins - 1)
        number = np.bincount(place, minlength=bins)
        sums = (np.bincount(place, values.ravel(), minlength=bins) for values in (probabilities, truth))
        return cls(number, *(total / np.maximum(number, 1) for total in sums))

    def error(self, first: int = 0) -> float:
        """Return the expected calibration error, in 0..1, of the bins from `first` on.

        The mean of |predicted - observed| over the bins, each weighted by its number of pixels; 0 for no pixel.
        Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
        """
        gap = np.abs(self.predicted - self.observed)[first:]
        return float((self.number[first:] * gap).sum() / max(self.number[first:].sum(), 1))


def calibration_figure(found: Reliability, note: str = "") -> Figure:
    """Return the reliability diagram: the share of tumour against the probability, above the pixels in each bin."""
    bins = len(found.number)
    centres, filled = (np.arange(bins) + 0.5) / bins, found.number > 0
    alt = f"Reliability diagram: the share of tumour against the predicted probability in {bins} bins"
    alt = f"{alt}; the expected calibration error is {found.error():.3f}"
    figure, (top, below) = new_chart(alt, 4.6, signed(note), 2, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], "-", color=GREY, label="calibrated")
    top.plot(found.predicted[filled], found.observed[filled], "o-", color=BLUE, label="this network")
    top.set(ylabel="share that is tumour", xlim=(0, 1), ylim=(0, 1))
    top.legend(frameon=False)
    below.bar(centres, found.number, width=0.9 / bins, color=GREY)
    below.set(xlabel="predicted probability of tumour", ylabel="pixels", yscale="log")
    return figure
