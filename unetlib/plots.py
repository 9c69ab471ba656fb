"""The figures: a case with its mask, the curves of a run, overlays of its best, median and worst patient.

Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from unetlib import metrics
from unetlib.checkpoint import read_run
from unetlib.errors import UnetlibError
from unetlib.evaluation import read_patients
from unetlib.files import atomic, read_csv
from unetlib.inference import Predictor
from unetlib.jobs import progress
from unetlib.patients import MODALITIES, Case, find_cases, read_case
from unetlib.volumes import Volume, read_volume

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE = "#009E73", "#D55E00", "#56B4E9", "#F0E442"
DISCLAIMER = "for research and education, never for clinical use"


@dataclass(frozen=True)
class Overlay:
    """One row of an overlay figure: a slice with two masks, all of them (H, W) and ready for display."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def curves_figure(history: Sequence[dict[str, str]], title: str = "") -> Figure:
    """Return loss and validation Dice against the epoch, from the rows of `history.csv`."""
    epochs = [int(row["epoch"]) for row in history]
    column = {name: [float(row[name]) for row in history] for name in ("train_loss", "val_loss", "val_dice")}
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, dices = figure.subplots(1, 2)
    losses.plot(epochs, column["train_loss"], "o-", color="#0072B2", label="training")
    losses.plot(epochs, column["val_loss"], "s-", color="#D55E00", label="validation")
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, 1.08 * max(column["train_loss"] + column["val_loss"])))
    losses.legend(frameon=False)
    best = int(np.argmax(column["val_dice"]))
    dices.plot(epochs, column["val_dice"], "s-", color="#D55E00")
    dices.plot(epochs[best], column["val_dice"][best], "o", ms=14, mfc="none", mec="black")
    dices.annotate(
        f"best: {column['val_dice'][best]:.3f} in epoch {epochs[best]}",
        (epochs[best], column["val_dice"][best]),
        xytext=(0.95, 0.08),
        textcoords="axes fraction",
        ha="right",
    )
    dices.set(xlabel="epoch", ylabel="validation Dice, pooled", ylim=(-0.04, 1.04))
    for axes in (losses, dices):
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def overlay_figure(rows: Sequence[Overlay], note: str = "") -> Figure:
    """Return one row a patient: the slice, the truth outlined, and where prediction and truth agree or differ."""
    figure = Figure(figsize=(7.5, 2.55 * len(rows) + 0.6), layout="constrained")
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for row, (plain, outlined, compared) in zip(rows, panels, strict=True):
        for axes in (plain, outlined, compared):
            show_slice(axes, row.image)
        plain.set_ylabel(row.title, fontsize=9)
        draw_outline(outlined, row.truth)
        for mask, colour in (
            (row.truth & row.prediction, TRUE_POSITIVE),
            (~row.truth & row.prediction, FALSE_POSITIVE),
            (row.truth & ~row.prediction, FALSE_NEGATIVE),
        ):
            compared.imshow(mask[..., None] * np.array(to_rgba(colour, 0.65)), interpolation="nearest")
    for axes, text in zip(panels[0], ("FLAIR", "truth", "prediction against truth"), strict=True):
        axes.set_title(text, fontsize=10)
    handles = [
        panels[0, 2].plot([], [], "s", color=colour, label=text)[0]
        for colour, text in ((TRUE_POSITIVE, "found"), (FALSE_POSITIVE, "false alarm"), (FALSE_NEGATIVE, "missed"))
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel("\n".join(filter(None, [note, DISCLAIMER])), fontsize=8)
    return figure


def case_figure(cases: Sequence[Case]) -> Figure:
    """Return one row a case: all its modalities in the slice with most tumour, the whole tumour outlined."""
    figure = Figure(figsize=(10, 2.6 * len(cases) + 0.3), layout="constrained")
    panels = figure.subplots(len(cases), len(MODALITIES), squeeze=False)
    synthetic = False
    for case, line in zip(cases, panels, strict=True):
        flair, mask, _ = read_case(case)
        synthetic |= is_synthetic(flair)
        z = largest_slice(mask)
        for axes, modality in zip(line, MODALITIES, strict=True):
            axes.set_axis_off()
            if modality in case.images:
                show_slice(axes, read_volume(case.images[modality]).voxels[:, :, z].T)
                draw_outline(axes, mask[:, :, z].T)
                axes.set_title(f"{modality}, slice {z}", fontsize=9)
        line[0].set_title(f"{case.id}: flair, slice {z}", fontsize=9)
    figure.supxlabel(("synthetic images; " if synthetic else "") + DISCLAIMER, fontsize=8)
    return figure


def show_slice(axes: Axes, image: np.ndarray) -> None:
    """Show a slice (H, W) in grey, windowed to its 0.5 and 99.5 percentiles, without ticks."""
    low, high = np.percentile(image, (0.5, 99.5))
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    axes.set(xticks=[], yticks=[])


def draw_outline(axes: Axes, mask: np.ndarray) -> None:
    """Draw the border of a boolean mask (H, W); nothing where it is empty."""
    if mask.any():
        axes.contour(mask, levels=[0.5], colors=OUTLINE, linewidths=1.2)


def largest_slice(mask: np.ndarray) -> int:
    """Return the z of the axial slice of a mask (X, Y, Z) that holds most tumour."""
    return int(mask.sum((0, 1)).argmax())


def is_synthetic(volume: Volume) -> bool:
    """Tell whether a volume's header marks it as made by `unetlib phantom`."""
    return b"SYNTHETIC" in volume.header["descrip"].tobytes()


def make_figures(run: Path, out: Path | None = None, device: str = "auto") -> list[Path]:
    """Write `curves.png` and `overlays.png` (best, median and worst test patient) of an evaluated run.

    They go to `RUN/figures` unless `out` is given. Raises `UnetlibError` when the run has not been evaluated.
    """
    folder = out or run / "figures"
    about = read_run(run)
    if not (run / "evaluation" / "patients.csv").exists():
        raise UnetlibError(f"{run} has not been evaluated. Do so first: unetlib evaluate {run}")
    ranked = read_patients(run / "evaluation")
    chosen = {"worst": ranked[-1], "median": ranked[len(ranked) // 2], "best": ranked[0]}
    ranks = {row["patient"]: (rank, row) for rank, row in chosen.items()}  # few patients: nobody twice
    cohort, predictor, rows = find_cases(Path(about["data"])), Predictor.open(run, device), []
    synthetic = False
    with progress(len(ranks), "overlays", "patient") as bar:
        for patient, (rank, row) in reversed(ranks.items()):
            case = next((case for case in cohort.cases if case.patient == patient), None)
            if case is None:
                raise UnetlibError(f"{patient} is no longer in {cohort.root}. Put the patient back, or evaluate again.")
            volume, truth, _ = read_case(case)
            synthetic |= is_synthetic(volume)
            z = largest_slice(truth)
            prediction = predictor.volume(volume.voxels)[:, :, z] >= predictor.recipe.threshold
            one = float(metrics.dice(metrics.count(prediction[None], truth[None, :, :, z]))[0])
            title = f"{rank}: {case.id}\nDice {float(row['dice']):.2f} over all slices, {one:.2f} here"
            rows.append(Overlay(title, volume.voxels[:, :, z].T, truth[:, :, z].T, prediction.T))
            bar.update()
    note = "synthetic images; " if synthetic else ""
    note += f"{len(ranked)} test patients ranked by the Dice over all slices; each in its slice with most tumour"
    paths = [folder / "curves.png", folder / "overlays.png"]
    save(curves_figure(read_csv(run / "history.csv"), "synthetic cohort" if synthetic else ""), paths[0])
    save(overlay_figure(rows, note), paths[1])
    return paths
