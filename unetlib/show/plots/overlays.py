"""Predictions over the images: of test patients chosen by rank, and all figures of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from unetlib import metrics
from unetlib.data.patients import Case, read_regions
from unetlib.data.slices import first_seen
from unetlib.data.volumes import Volume
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import read_patients, read_volumes
from unetlib.prediction.predictor import Predictor
from unetlib.prediction.segment import segment
from unetlib.recipe import SEQUENCES
from unetlib.runs.provenance import find_own, own_cases
from unetlib.runs.run import Run
from unetlib.show.plots.colours import ERRORS, OUTLINE, REGIONS
from unetlib.show.plots.common import legend_above, named_regions, new_figure, save, signed, to_png
from unetlib.show.plots.drawing import (
    cut_to_head,
    displayed,
    draw_errors,
    draw_outline,
    draw_regions,
    first_sequence,
    fit_height,
    is_synthetic,
    label_errors,
    label_regions,
    largest_slice,
    show_slice,
)
from unetlib.show.plots.evaluation import metrics_figure
from unetlib.show.plots.training import architecture_figure, curves_figure
from unetlib.show.plots.volumes import volumes_figure
from unetlib.support.errors import counted
from unetlib.support.files import atomic, read_csv, require_empty, write_json
from unetlib.support.jobs import watched
from unetlib.support.messages import quiet
from unetlib.support.paths import takes_paths

FIGURES = ("curves.png", "overlays.png", "metrics.png", "volumes.png", "architecture.png", "overlay.gif")
BEGUN = ".unetlib-figures"  # lies in their folder until all are there


@dataclass(frozen=True)
class Overlay:
    """One row of an overlay figure: a slice with two masks, all of them (H, W) and ready for display.

    With the names of `regions`, each mask is a stack (K, H, W). `sequence`: what the slice shows.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    regions: Sequence[str] = ()
    sequence: str = "FLAIR"


@dataclass(frozen=True)
class Ranked:
    """A test patient with a place in the ranking: `truth` and `prediction` are boolean (X, Y, Z), as the volume.

    `rank` is "best", "median" or "worst", or a place such as "4 of 4"; `dice` is the patient's, native grid, all
    slices. With the names of several `regions`, the masks are (K, X, Y, Z), and `dice` is that of the first region.
    """

    rank: str
    dice: float
    case: Case
    volume: Volume
    truth: np.ndarray
    prediction: np.ndarray
    regions: Sequence[str] = ()
    sequence: str = "FLAIR"

    def overlay(self, z: int | None = None) -> Overlay:
        """Return an axial slice, by default the one with most tumour, as a row of an overlay figure."""
        z = largest_slice(self.truth) if z is None else z
        truth, prediction = displayed(self.truth, z), displayed(self.prediction, z)
        title = f"{self.rank}\n{self.case.id}\n{self._dices(prediction, truth)}"
        return Overlay(title, displayed(self.volume.voxels, z), truth, prediction, self.regions, self.sequence)

    def _dices(self, prediction: np.ndarray, truth: np.ndarray) -> str:
        """Return the Dice of each region over all slices and in one, given with its masks."""
        if not self.regions:
            here = metrics.dice(metrics.count(prediction[None, None], truth[None, None])).item()
            return f"Dice {self.dice:.2f} over all slices\n{here:.2f} in this slice"
        every, here = (
            metrics.dice(metrics.count(found[None], true[None]))[0]
            for found, true in ((self.prediction, self.truth), (prediction, truth))
        )
        lines = [f"{name} {a:.2f}, {b:.2f}" for name, a, b in zip(self.regions, every, here, strict=True)]
        return "\n".join(["Dice: all slices, this one", *lines])


@takes_paths
def best_median_worst(run: Run | Path | str, device: str = "auto") -> list[Ranked]:
    """Return the best, median and worst test patient of an evaluated run, each predicted anew; nobody twice.

    Ranked by Dice on the native grid over all slices. Raises `UnetlibError` when the run cannot be evaluated.
    """
    ranking = _ranking(run := Run.of(run), device)
    return _predicted(run, three_of(ranking), device)


def three_of(ranking: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, float]]:
    """Return rank and Dice of the best, median and worst of the rows of `read_patients`, by patient; nobody twice."""
    chosen = {"median": ranking[len(ranking) // 2], "worst": ranking[-1], "best": ranking[0]}
    ranks = {row["patient"]: (rank, float(row["dice"])) for rank, row in chosen.items()}
    return dict(sorted(ranks.items(), key=lambda item: item[1][0]))  # best, median, worst, as in the alphabet


@takes_paths
def worst(run: Run | Path | str, number: int, device: str = "auto") -> list[Ranked]:
    """Return the `number` worst test patients of an evaluated run (all where there are fewer), the worst one first.

    Each is predicted anew, and its rank is its place, such as "4 of 4". Ranked, and raises, as `best_median_worst`.
    """
    ranking = _ranking(run := Run.of(run), device)
    places = {
        row["patient"]: (f"{place} of {len(ranking)}", float(row["dice"])) for place, row in enumerate(ranking, 1)
    }
    return _predicted(run, dict(list(reversed(places.items()))[:number]), device)


def _predicted(run: Run, ranks: Mapping[str, tuple[str, float]], device: str) -> list[Ranked]:
    """Return these patients, given with rank and Dice, with the prediction of the network, in the order given."""
    cases, predictor, recipe = own_cases(run, find_own(run), "test"), Predictor.open(run, device), run.recipe

    def read(case: Case) -> tuple[Volume, np.ndarray, np.ndarray]:
        volume, truth = read_regions(case, recipe)
        return volume, truth, segment(predictor, volume).mask

    return ranked(ranks, cases, read, named_regions(recipe))


def ranked(
    ranks: Mapping[str, tuple[str, float]],
    cases: Sequence[Case],
    read: Callable[[Case], tuple[Volume, np.ndarray, np.ndarray]],
    regions: tuple[str, ...] = (),
) -> list[Ranked]:
    """Return these patients, given with rank and Dice, in the order given; of several scans the first.

    `read` gives the volume of a case, its reference and its prediction, boolean (K, X, Y, Z). `regions`: their names if
    there are several.
    """
    found = []
    for patient, (rank, dice) in watched(ranks.items(), "overlays", "patient"):
        case = next(case for case in cases if case.patient == patient)
        volume, *masks = read(case)
        truth, prediction = (mask if regions else mask[0] for mask in masks)
        sequence = SEQUENCES[case.modalities[first_seen(volume.voxels)]]
        found.append(Ranked(rank, dice, case, first_sequence(volume), truth, prediction, regions, sequence))
    return found


def _ranking(run: Run, device: str) -> list[dict[str, str]]:
    """Return the rows of the test patients, the best first; of several regions, those of the first."""
    with quiet():  # it is reused, unless the weights or the decision have changed since
        evaluate(run, device=device)
    return of_first(read_patients(run.evaluation), named_regions(run.recipe))


def of_first(rows: list[dict[str, str]], regions: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of the first of several `regions`, or all rows if there is one."""
    return [row for row in rows if row["region"] == regions[0]] if regions else rows


def note_on_ranks(summary: Mapping[str, Any], unit: str, source: str) -> str:
    """Return the note below ranked patients: the source of the images, if it is not "", and how they are ranked."""
    order = f"{counted(summary['patients'], unit)} ranked by the Dice over all slices"
    return "; ".join(filter(None, (source, order, "each in its slice with most tumour")))


def overlay_figure(rows: Sequence[Overlay], note: str = "") -> Figure:
    """Return one row a patient: the slice, the reference outlined, and where prediction and reference differ.

    Of several regions: the slice, and each region outlined in its colour in the reference and in the prediction.
    """
    names, regions = "; ".join(row.title.replace("\n", ", ") for row in rows), rows[0].regions
    what = f"each region outlined in the reference and in the prediction ({', '.join(regions)})"
    what = what if regions else "the reference outlined, and where the prediction is right and wrong"
    sequences = list(dict.fromkeys(row.sequence for row in rows))
    figure = new_figure(f"{' or '.join(sequences)}, {what}. {names}", note=signed(note))
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for row, (plain, outlined, compared) in zip(rows, panels, strict=True):
        show_slice(plain, row.image, row.sequence if row is rows[0] or len(sequences) > 1 else "")
        show_slice(outlined, row.image)
        show_slice(compared, row.image)
        plain.set_ylabel(row.title, fontsize=10, rotation=0, ha="right", va="center", labelpad=8)
        if regions:
            draw_regions(outlined, row.truth)
            draw_regions(compared, row.prediction)
        else:
            draw_outline(outlined, row.truth)
            draw_errors(compared, row.truth, row.prediction)
    panels[0, 1].set_title("reference", fontsize=10)
    panels[0, 2].set_title("prediction", fontsize=10)  # short: the panels of an animation are narrow
    shown = [(axes, row.image) for row, line in zip(rows, panels, strict=True) for axes in line]
    stacks = [masks for row in rows for masks in (row.truth, row.prediction)]
    marks = [mask for masks in stacks for mask in masks.reshape(-1, *masks.shape[-2:])]
    fit_height(figure, cut_to_head(shown, marks), 4, len(rows), 1)  # the fourth column: the titles
    if regions:
        label_regions(panels[0, 2], regions)
    else:
        label_errors(panels[0, 2])
    legend_above(figure, panels[0, 2])
    return figure


def scroll_animation(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    path: Path,
    note: str = "",
    frames: int = 24,
    regions: Sequence[str] = (),
) -> None:
    """Write an animated GIF that scrolls through the tumour slices of one patient, from the neck up.

    `image`, `truth` and `prediction`: (X, Y, Z), LPS order, the masks boolean; with the names of several `regions`,
    the masks are (K, X, Y, Z). At most `frames` slices are shown, evenly spaced; without any tumour, they are taken
    from the whole volume.
    """
    slices = np.flatnonzero(truth.any((*range(truth.ndim - 1),))) if truth.any() else np.arange(truth.shape[-1])
    bright = image > image.mean() if np.ptp(image) else np.ones_like(image, bool)
    x, y = (slice(at[0], at[-1] + 1) for at in (np.flatnonzero(bright.any((1, 2))), np.flatnonzero(bright.any((0, 2)))))
    window = np.percentile(image[x, y], (0.5, 99.5))  # one for all frames, lest they flicker
    pictures = []
    for z in slices[np.linspace(0, len(slices) - 1, min(frames, len(slices))).round().astype(int)]:
        plane, true, found = (displayed(volume[..., x, y, :], z) for volume in (image, truth, prediction))
        figure = overlay_figure([Overlay(f"slice {z:3d}", plane, true, found, regions)], note)
        height, width = plane.shape
        figure.set_size_inches(6.6 * width / height + 1, 3.1)
        for axes in figure.axes:
            axes.images[0].set_clim(*window)
            axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # alike in all frames
        picture = Image.open(BytesIO(to_png(figure, dpi=80))).convert("RGBA")
        pictures.append(Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB"))
    # One palette of few greys, each plain and under every colour.
    greys = np.linspace(0, 255, 24)[:, None].repeat(3, axis=1)
    tinted = [0.65 * 255 * np.array(to_rgb(colour)) + 0.35 * greys[::2] for colour, _ in ERRORS]
    drawn = REGIONS[: len(regions)] if regions else (OUTLINE, *(colour for colour, _ in ERRORS))
    solid = [255 * np.array([to_rgb(colour)]) for colour in drawn]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([greys, *tinted, *solid]).round().astype(np.uint8).tobytes())
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    with atomic(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=150, loop=0, optimize=True)


@takes_paths
def make_figures(run: Run | Path | str, out: Path | None = None, device: str = "auto") -> list[Path]:
    """Draw a run, evaluated first if necessary; return the files written, in `RUN/figures` unless `out` is given.

    `curves.png`, `overlays.png` (best, median and worst test patient), `metrics.png` (every Dice), `volumes.png`
    (predicted against true, after Bland and Altman), `architecture.png` and `overlay.gif` (through the tumour of the
    median patient). Raises `UnetlibError` when the run cannot be evaluated, or `out` has files but lacks some of these.
    """
    run = Run.of(run)
    folder = out or run.figures
    paths, begun = [folder / name for name in FIGURES], folder / BEGUN
    if folder != run.figures and not (begun.exists() or all(path.exists() for path in paths)):
        require_empty(folder, "a folder of figures")  # pictures of these names may be those of others
    summary, three = evaluate(run, device=device), best_median_worst(run, device)
    net, recipe, _ = run.load()
    source = "synthetic images" if any(is_synthetic(one.volume) for one in three) else ""
    ranks = note_on_ranks(summary, "test patient", source)
    history = read_csv(run.history_file, numbers=("epoch", "train_loss", "val_loss", "val_dice"))
    figures = (
        curves_figure(history, "synthetic cohort" if source else "", regions=named_regions(recipe)),
        overlay_figure([one.overlay() for one in three], ranks),
        metrics_figure(summary, source, named_regions(recipe)),
        volumes_figure(*read_volumes(run.evaluation), note=source),
        architecture_figure(net, recipe.image_size),
    )
    write_json(begun, {})
    for figure, path in zip(figures, paths[:-1], strict=True):
        save(figure, path)
    middle = three[len(three) // 2]
    masks = middle.truth, middle.prediction
    scroll_animation(middle.volume.voxels, *masks, paths[-1], source, regions=middle.regions)
    begun.unlink()
    return paths
