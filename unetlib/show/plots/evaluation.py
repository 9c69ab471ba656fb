"""Figures of chapter 4: how good the network is, and where it fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from unetlib import metrics
from unetlib.data.patients import Case, read_case
from unetlib.data.volumes import Volume
from unetlib.evaluation.evaluate import AGGREGATIONS, SLICES, read_patients
from unetlib.metrics import Counts
from unetlib.prediction.inference import Predictor
from unetlib.runs.checkpoint import load_model
from unetlib.runs.provenance import own_cohort
from unetlib.show.plots.common import (
    BLUE,
    DISCLAIMER,
    FAINT,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    GREY,
    INK,
    ORANGE,
    OUTLINE,
    TRUE_POSITIVE,
    cut_to_head,
    draw_errors,
    draw_outline,
    fit_height,
    is_synthetic,
    largest_slice,
    new_figure,
    save,
    show_slice,
    to_png,
)
from unetlib.show.plots.training import architecture_figure, curves_figure
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.files import atomic, read_csv, read_json, takes_paths
from unetlib.support.jobs import progress

ERRORS = ((TRUE_POSITIVE, "found"), (FALSE_POSITIVE, "false alarm"), (FALSE_NEGATIVE, "missed"))


@dataclass(frozen=True)
class Overlay:
    """One row of an overlay figure: a slice with two masks, all of them (H, W) and ready for display."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


@dataclass(frozen=True)
class Ranked:
    """A test patient with a place in the ranking: `truth` and `prediction` are boolean (X, Y, Z), as the volume.

    `rank` is "best", "median" or "worst", or a place such as "4 of 4"; `dice` is the patient's, native grid, all
    slices.
    """

    rank: str
    dice: float
    case: Case
    volume: Volume
    truth: np.ndarray
    prediction: np.ndarray

    def overlay(self, z: int | None = None) -> Overlay:
        """Return an axial slice, by default the one with most tumour, as a row of an overlay figure."""
        z = largest_slice(self.truth) if z is None else z
        truth, prediction = self.truth[:, :, z].T, self.prediction[:, :, z].T
        here = float(metrics.dice(metrics.count(prediction[None], truth[None]))[0])
        title = f"{self.rank}\n{self.case.id}\nDice {self.dice:.2f} over all slices\n{here:.2f} in this slice"
        return Overlay(title, self.volume.voxels[:, :, z].T, truth, prediction)


@takes_paths
def best_median_worst(run: Path, device: str = "auto") -> list[Ranked]:
    """Return the best, median and worst test patient of an evaluated run, each predicted anew; nobody twice.

    Ranked by Dice on the native grid over all slices. Raises `UnetlibError` when the run has not been
    evaluated or one of the patients is gone.
    """
    ranked = _ranking(run)
    chosen = {"worst": ranked[-1], "median": ranked[len(ranked) // 2], "best": ranked[0]}
    ranks = {row["patient"]: (rank, float(row["dice"])) for rank, row in chosen.items()}  # few patients: nobody twice
    return _predicted(run, dict(reversed(ranks.items())), device)


@takes_paths
def worst(run: Path, number: int, device: str = "auto") -> list[Ranked]:
    """Return the `number` worst test patients of an evaluated run (all where there are fewer), the worst one first.

    Each is predicted anew, and its rank is its place, such as "4 of 4". Ranked, and raises, as `best_median_worst`.
    """
    ranked = _ranking(run)
    places = {row["patient"]: (f"{place} of {len(ranked)}", float(row["dice"])) for place, row in enumerate(ranked, 1)}
    return _predicted(run, dict(list(reversed(places.items()))[:number]), device)


def _predicted(run: Path, ranks: dict[str, tuple[str, float]], device: str) -> list[Ranked]:
    """Return these patients, given with rank and Dice, with the prediction of the network, in the order given."""
    cohort, predictor, found = own_cohort(run), Predictor.open(run, device), []
    with progress(len(ranks), "overlays", "patient") as bar:
        for patient, (rank, dice) in ranks.items():
            case = next((case for case in cohort.cases if case.patient == patient), None)
            if case is None:
                raise UnetlibError(f"{patient} is no longer in {cohort.root}. Put the patient back, or evaluate again.")
            volume, truth, _ = read_case(case)
            prediction = predictor.decision.mask(predictor.volume(volume.voxels), volume.spacing)
            found.append(Ranked(rank, dice, case, volume, truth, prediction))
            bar.update()
    return found


def _ranking(run: Path) -> list[dict[str, str]]:
    if not (run / "evaluation" / "patients.csv").exists():
        raise UnetlibError(f"{run} has not been evaluated. Do so first: unetlib evaluate {run}")
    return read_patients(run / "evaluation")


def overlay_figure(rows: Sequence[Overlay], note: str = "") -> Figure:
    """Return one row a patient: the slice, the truth outlined, and where prediction and truth agree or differ."""
    names = "; ".join(row.title.replace("\n", ", ") for row in rows)
    figure = new_figure(f"FLAIR, the truth outlined, and where the prediction is right and wrong. {names}")
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for row, (plain, outlined, compared) in zip(rows, panels, strict=True):
        for axes in (plain, outlined, compared):
            show_slice(axes, row.image)
        plain.set_ylabel(row.title, fontsize=10, rotation=0, ha="right", va="center", labelpad=8)
        draw_outline(outlined, row.truth)
        draw_errors(compared, row.truth, row.prediction)
    for axes, text in zip(panels[0], ("FLAIR", "truth", "prediction against truth"), strict=True):
        axes.set_title(text, fontsize=10)
    shown = [(axes, row.image) for row, line in zip(rows, panels, strict=True) for axes in line]
    ratio = cut_to_head(shown, [mask for row in rows for mask in (row.truth, row.prediction)])
    fit_height(figure, ratio, 4, len(rows), 1)  # the fourth column: the titles
    handles = [panels[0, 2].plot([], [], "s", color=colour, label=text)[0] for colour, text in ERRORS]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    _sign(figure, note)
    return figure


def _sign(figure: Figure, note: str) -> None:
    """Put the note and what must stand under every figure below it."""
    figure.supxlabel("\n".join(filter(None, [note, "" if DISCLAIMER in note else DISCLAIMER])), fontsize=9)


def scroll_animation(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, path: Path, note: str = "", frames: int = 24
) -> None:
    """Write an animated GIF that scrolls through the tumour slices of one patient, from the neck up.

    `image`, `truth` and `prediction`: (X, Y, Z), LPS order, the masks boolean. At most `frames` slices are
    shown, evenly spaced; without any tumour, they are taken from the whole volume.
    """
    slices = np.flatnonzero(truth.any((0, 1))) if truth.any() else np.arange(truth.shape[2])
    bright = image > image.mean()
    x, y = (slice(at[0], at[-1] + 1) for at in (np.flatnonzero(bright.any((1, 2))), np.flatnonzero(bright.any((0, 2)))))
    window = np.percentile(image[x, y], (0.5, 99.5))  # one for all frames, lest they flicker
    pictures = []
    for z in slices[np.linspace(0, len(slices) - 1, min(frames, len(slices))).round().astype(int)]:
        row = Overlay(f"slice {z:3d}", *(volume[x, y, z].T for volume in (image, truth, prediction)))
        figure = overlay_figure([row], note)
        figure.set_size_inches(6.6 * row.image.shape[1] / row.image.shape[0] + 1, 3.1)
        height, width = row.image.shape
        for axes in figure.axes:
            axes.images[0].set_clim(*window)
            axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # alike in all frames
        picture = Image.open(BytesIO(to_png(figure, dpi=80))).convert("RGBA")
        pictures.append(Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB"))
    _save_gif(pictures, path)


def _save_gif(pictures: Sequence[Image.Image], path: Path) -> None:
    """Write pictures as a looping GIF with one palette, atomically: few greys, each plain and under every colour."""
    greys = np.linspace(0, 255, 24)[:, None].repeat(3, axis=1)
    tinted = [0.65 * 255 * np.array(to_rgb(colour)) + 0.35 * greys[::2] for colour, _ in ERRORS]
    solid = [255 * np.array([to_rgb(colour)]) for colour in (OUTLINE, *(colour for colour, _ in ERRORS))]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([greys, *tinted, *solid]).round().astype(np.uint8).tobytes())
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    with atomic(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=150, loop=0, optimize=True)


def metrics_figure(summary: Mapping[str, Any], note: str = "") -> Figure:
    """Return every Dice in a summary of `evaluate`, named by aggregation, slices and grid, with its interval if any."""
    rows = [(aggregation, slices) for aggregation in AGGREGATIONS for slices in SLICES]
    figure = new_figure("", 4.8)
    axes = figure.subplots()
    shown = {(entry["aggregation"], entry["slices"], entry["grid"]): entry for entry in summary["figures"]}
    for place, (aggregation, slices) in enumerate(rows):
        for grid, shift, face in (("model", -0.18, None), ("native", 0.18, "none")):
            if (entry := shown.get((aggregation, slices, grid))) is None:
                continue
            y, colour = place + 0.5 * (place // 2) + shift, ORANGE if slices == "tumour" else BLUE
            if entry.get("dice_interval"):
                axes.plot(entry["dice_interval"], [y, y], "-", color=colour, lw=1.5)
            axes.plot(
                entry["dice"], y, "o", color=colour, mfc=face or colour, ms=8, gid=f"{aggregation} {slices} {grid}"
            )
            axes.text(1.03, y, f"{entry['dice']:.3f}", va="center", fontsize=9, color=colour)
    figure.set_label("Dice by aggregation, slices and grid: " + ", ".join(_named(entry) for entry in shown.values()))
    _label_rows(axes, rows)
    for face, text in ((GREY, "model grid"), ("none", "native grid")):
        axes.plot([], [], "o", color=GREY, mfc=face, label=text)
    axes.plot([], [], "-", color=GREY, label="95 % interval (bootstrap over patients)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    numbers = f"{counted(summary['patients'], 'patient')}, {summary['slices']} slices"
    axes.set_title(
        f"One network, {len(shown)} Dice figures ({numbers}, {summary['tumour_slices']} with tumour)", pad=10
    )
    _sign(figure, note)
    return figure


def _named(entry: Mapping[str, Any]) -> str:
    return f"{entry['aggregation']}, {entry['slices']} slices, {entry['grid']} grid {entry['dice']:.3f}"


def _label_rows(axes: Axes, rows: Sequence[tuple[str, str]]) -> None:
    """Name the rows of `metrics_figure` and mark the one that papers give."""
    names = [f"{aggregation}, {slices} slices" for aggregation, slices in rows]
    names[0] += "\n(published: model grid)"
    axes.set_yticks([place + 0.5 * (place // 2) for place in range(len(rows))], names)
    axes.set(xlim=(0, 1.12), ylim=(len(rows) + 0.5, -0.6), xlabel="Dice", xticks=np.linspace(0, 1, 6))
    axes.grid(axis="x", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def patients_figure(dices: Sequence[float], interval: Sequence[float] | None, note: str = "") -> Figure:
    """Return the Dice of every patient in ascending order, their mean, and the interval of the mean if there is one."""
    alt = f"Dice of {counted(len(dices), 'test patient')} in ascending order, from {min(dices):.2f} to {max(dices):.2f}"
    figure = new_figure(f"{alt}; the mean is {np.mean(dices):.3f}", 3.4)
    axes = figure.subplots()
    axes.plot(
        range(1, len(dices) + 1), sorted(dices), "o", color=BLUE, ms=8 if len(dices) <= 50 else 3, label="patient"
    )
    axes.axhline(float(np.mean(dices)), color=ORANGE, lw=1.5, label=f"mean {np.mean(dices):.3f}")
    if interval:
        axes.axhspan(*interval, color=ORANGE, alpha=0.15, lw=0, label="95 % interval of the mean (bootstrap)")
    axes.set(xlabel="test patient, from worst to best", ylabel="Dice", xlim=(0.5, len(dices) + 0.5), ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    _sign(figure, note)
    return figure


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
    figure = new_figure(f"{alt}, {means[1]:.3f} {labels[1]}", 3.8)
    axes = figure.subplots()
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
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _sign(figure, note)
    return figure


def _apart(labels: Sequence[tuple[float, str]], gap: float) -> list[tuple[float, str]]:
    """Return labels from low to high, moved up where they would stand closer than `gap`."""
    placed: list[tuple[float, str]] = []
    for y, text in sorted(labels):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, text))
    return placed


def errors_figure(rows: Sequence[Mapping[str, Any]], cases: Mapping[str, str], note: str = "") -> Figure:
    """Return, for each case, what was found, missed and falsely marked in every slice, from the rows of `slices.csv`.

    `cases` maps the id of a case to its title.
    """
    alt = f"Pixels found, missed and falsely marked in every axial slice of {', '.join(cases.values())}"
    figure = new_figure(alt.replace("\n", " "), 1.7 * len(cases) + 0.9)
    panels = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    for (case, title), axes in zip(cases.items(), panels, strict=True):
        own = [row for row in rows if row["case"] == case]
        z, base = [int(row["z"]) for row in own], np.zeros(len(own))
        for (colour, text), name in zip(ERRORS, ("tp", "fp", "fn"), strict=True):
            values = np.array([int(row[f"native_{name}"]) for row in own])
            axes.bar(z, values, bottom=base, width=1.0, color=colour, label=text)
            base = base + values
        inside = [int(row["z"]) for row in own if int(row["tumour"])]
        if inside:
            axes.axvspan(min(inside) - 0.5, max(inside) + 0.5, color=FAINT, lw=0, zorder=0, label="tumour")
        axes.set_title(title, fontsize=9, loc="left")
        axes.set(ylabel="pixels", xlim=(min(z) - 0.5, max(z) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("axial slice z, from neck to crown")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    _sign(figure, note)
    return figure


def threshold_figure(
    thresholds: np.ndarray, val: Sequence[Counts], test: Sequence[Counts], chosen: float, note: str = ""
) -> Figure:
    """Return Dice, precision and recall against the threshold: chosen on validation patients, shown on test patients.

    `val` and `test` hold the pooled counts at each of `thresholds` (T,).
    """
    alt = "Dice, precision and recall against the threshold, on validation patients and on test patients"
    figure = new_figure(f"{alt}; chosen: {chosen:.2f}", 3.4)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, counts, title in zip(panels, (val, test), ("validation: choose here", "test: look once"), strict=True):
        for name, style, colour in (("dice", "o-", BLUE), ("precision", "--", GREY), ("recall", ":", GREY)):
            values = [float(metrics.METRICS[name](at)) for at in counts]
            axes.plot(thresholds, values, style, color=colour, ms=3, label=name)
        axes.axvline(chosen, color=ORANGE, lw=1.5, label=f"chosen: {chosen:.2f}")
        axes.axvline(0.5, color=FAINT, lw=1, zorder=0)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("pooled over the tumour slices")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    _sign(figure, note)
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
    figure = new_figure(f"{alt}; the expected calibration error is {found.error():.3f}", 4.6)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], "-", color=GREY, label="calibrated")
    top.plot(found.predicted[filled], found.observed[filled], "o-", color=BLUE, label="this network")
    top.set(ylabel="share that is tumour", xlim=(0, 1), ylim=(0, 1))
    top.legend(frameon=False)
    below.bar(centres, found.number, width=0.9 / bins, color=GREY)
    below.set(xlabel="predicted probability of tumour", ylabel="pixels", yscale="log")
    for axes in (top, below):
        axes.spines[["top", "right"]].set_visible(False)
    _sign(figure, note)
    return figure


@takes_paths
def make_figures(run: Path, out: Path | None = None, device: str = "auto") -> list[Path]:
    """Draw an evaluated run, and return the files written, in `RUN/figures` unless `out` is given.

    `curves.png`, `overlays.png` (best, median and worst test patient), `metrics.png` (every Dice),
    `architecture.png` and `overlay.gif` (through the tumour of the median patient). Raises
    `UnetlibError` when the run has not been evaluated or a patient is gone.
    """
    folder, patients, ranked = out or run / "figures", len(_ranking(run)), best_median_worst(run, device)
    net, recipe, _ = load_model(run)
    synthetic = any(is_synthetic(one.volume) for one in ranked)
    source = "synthetic images" if synthetic else ""
    order = f"{patients} test patients ranked by the Dice over all slices; each in its slice with most tumour"
    note = f"{source}; {order}" if synthetic else order
    history = read_csv(run / "history.csv", numbers=("epoch", "train_loss", "val_loss", "val_dice"))
    figures = {
        "curves.png": curves_figure(history, "synthetic cohort" if synthetic else ""),
        "overlays.png": overlay_figure([one.overlay() for one in ranked], note),
        "metrics.png": metrics_figure(read_json(run / "evaluation" / "summary.json"), source),
        "architecture.png": architecture_figure(net, recipe.image_size),
    }
    for name, figure in figures.items():
        save(figure, folder / name)
    middle = ranked[len(ranked) // 2]
    scroll_animation(middle.volume.voxels, middle.truth, middle.prediction, folder / "overlay.gif", source)
    return [folder / name for name in (*figures, "overlay.gif")]
