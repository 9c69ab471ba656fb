"""Score the masks of any tool: the tables of `evaluate`, and pictures of the best, median and worst patient."""

from pathlib import Path
from typing import Any

from unetlib.data.nifti import stem
from unetlib.evaluation.masks import Masks, score_masks
from unetlib.evaluation.table import read_patients, read_volumes
from unetlib.show.plots.common import named_regions, save
from unetlib.show.plots.drawing import is_synthetic
from unetlib.show.plots.overlays import note_on_ranks, of_first, overlay_figure, ranked, three_of
from unetlib.show.plots.volumes import volumes_figure
from unetlib.support.messages import say, warn
from unetlib.support.paths import takes_paths


@takes_paths
def score(
    masks: Path,
    data: Path,
    out: Path | None = None,
    assume: str | None = None,
    regions: str = "whole",
    labels: str = "auto",
) -> dict[str, Any]:
    """Score masks made by any tool against the references in `data`, on the native grid; return the summary.

    `masks` is a folder of NIfTI masks, one for each case, or a single mask; any label above 0 is tumour. `regions` and
    `labels` as in the recipe: the masks then have the labels of the data. How masks are matched to the cases:
    `Masks.find`. `assume` ("ras" or "lps") is the orientation of files that do not state one.
    Writes the tables of `evaluate` (`slices.csv`, `patients.csv`, `summary.json`), `overlays.png` (best, median and
    worst patient) and `volumes.png` (predicted against true) to `out`, by default `MASKS-scores` beside the masks. A
    stopped call is resumed. Raises `UnetlibError` when a mask fits no case or several, several fit one case, one is on
    another grid than its reference or holds probabilities, or a file cannot be read.
    """
    given = Masks.find(masks, data, assume, regions, labels)
    for note in given.cohort.notes:
        warn(note)
    names = named_regions(given.recipe)
    beside = masks.resolve()
    folder = out or beside.with_name(f"{stem(beside.name) or beside.name}-scores")
    summary = score_masks(given, folder)
    shown = ranked(three_of(of_first(read_patients(folder), names)), given.cases, given.read, names)
    source = "synthetic images" if any(is_synthetic(one.volume) for one in shown) else ""
    note = note_on_ranks(summary, "patient", source)
    save(overlay_figure([one.overlay() for one in shown], note), folder / "overlays.png")
    save(volumes_figure(*read_volumes(folder), note=source), folder / "volumes.png")
    say(f"{folder} holds the tables and pictures.")
    return summary
