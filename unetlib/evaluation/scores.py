"""From a prediction and a reference to scores: of one case, and the files of a folder of scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetlib import metrics
from unetlib.data.cases import Case
from unetlib.evaluation.lesions import lesion_figures
from unetlib.evaluation.summary import (
    PATIENTS_FILE,
    SLICE_COLUMNS,
    SLICES_FILE,
    SUMMARY_FILE,
    TOLERANCE_MM,
    Row,
    columns,
    lesion_summary,
    patient_rows,
    results,
    surface_summary,
    volume_summary,
)
from unetlib.support.errors import UnetlibError
from unetlib.support.files import digest, read_json, sha256, write_csv, write_json
from unetlib.support.jobs import watched
from unetlib.support.messages import say
from unetlib.support.parts import Parts
from unetlib.support.version import __version__

FORMAT = 3  # of what is written; older scores are made anew
Scores = dict[str, list[Row]]  # of one case: "slices", a row for each region and slice; "volumes", one for each region


def compare(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, float, float],
    names: dict[str, str],
    counts: dict[str, metrics.Counts] | None = None,
    nominal: bool = False,
    regions: Sequence[str] = (),
) -> Scores:
    """Return the counts of every slice, and the figures of whole volumes, of every region.

    `prediction`, `truth`: (K, X, Y, Z) booleans. `spacing`: mm per voxel; figures in its unit are named as voxels where
    it is `nominal`. `names` are added to every row, and the name of the region, of `regions`, if there are several.
    `counts`: those on other grids by name, (Z, K) each.
    """
    counts = {**(counts or {}), "native": metrics.count(np.moveaxis(prediction, 3, 0), np.moveaxis(truth, 3, 0))}
    rows, volumes = [], []
    for region in range(len(truth)):
        label = {"region": regions[region] if len(regions) == len(truth) else region} if len(truth) > 1 else {}
        volumes.append({**names, **label, **volume_figures(prediction[region], truth[region], spacing, nominal)})
        for z in range(truth.shape[3]):
            row: Row = {**names, **label, "z": z, "tumour": int(truth[region, :, :, z].any())}
            for grid, own in counts.items():
                row |= {f"{grid}_{name}": int(getattr(own, name)[z, region]) for name in metrics.COUNTS}
            rows.append(row)
    return {"slices": rows, "volumes": volumes}


def volume_figures(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float], nominal: bool
) -> Row:
    """Return the figures of two boolean volumes (X, Y, Z): of their surfaces, of their lesions, and their sizes."""
    hd95, surface_dice = metrics.surface_figures(prediction, truth, spacing, TOLERANCE_MM)
    lesions = lesion_figures(prediction, truth, spacing)
    voxels = {"truth": int(truth.sum()), "prediction": int(prediction.sum())}
    sizes: Row = {f"{name}_ml": float(metrics.millilitres(number, spacing)) for name, number in voxels.items()}
    if nominal:
        sizes = {f"{name}_voxels": number for name, number in voxels.items()}
    unit = "voxels" if nominal else "mm"
    return {
        f"hd95_{unit}": hd95 if np.isfinite(hd95) else None,
        "surface_dice": surface_dice,
        "lesion_dice": lesions.dice,
        f"lesion_hd95_{unit}": lesions.hd95,
        "lesions": lesions.lesions,
        "lesions_missed": lesions.missed,
        "lesion_false_alarms": lesions.false_alarms,
        **sizes,
    }


@dataclass(frozen=True)
class ScoreFolder:
    """A folder of scores, and the unfinished scores in it: a file for each case.

    `made_from`: what the scores of each case depend on, JSON-serialisable. `note`: what the readers of the table should
    know. The folder is to be `locked` while something is written.
    """

    folder: Path
    made_from: dict[str, list[Any]]
    note: str
    parts: Parts

    @classmethod
    def open(cls, folder: Path, made_from: dict[str, list[Any]], note: str) -> "ScoreFolder":
        """Return the folder; raises `UnetlibError` if its parts are a link."""
        return cls(folder, made_from, note, Parts.open(folder))

    @property
    def key(self) -> str:
        """A hash of everything that the scores depend on."""
        return digest([{id: digest(values)[:16] for id, values in self.made_from.items()}, self.note, FORMAT])

    def part(self, case: Case) -> Path:
        """Return the path of the unfinished scores of a case."""
        return self.parts.path(case.id, *self.made_from[case.id], FORMAT)

    def missing(self, cases: Sequence[Case], what: str) -> Iterator[Case]:
        """Yield the cases that have no scores yet, under a progress bar."""
        todo = [case for case in cases if not self.part(case).exists()]
        return watched(todo, what, "case", len(cases) - len(todo))

    def done(self) -> Row | None:
        """Return the summary if the scores are finished and undamaged, and of the same key; `None` otherwise."""
        try:
            summary = read_json(self.folder / SUMMARY_FILE)
            if (summary["key"], summary["check"]) == (self.key, _check(self.folder, summary)):
                self.parts.remove()  # left by a kill before the last line of `write`
                return summary
            if "lesions" not in summary:
                say(f"{self.folder} was scored by an older version, without lesions and volumes: it is scored again.")
        except (UnetlibError, OSError, KeyError):
            pass
        return None

    def write(self, cases: Sequence[Case], about: Row) -> Row:
        """Write the tables and the summary, `about` first, of cases whose parts are all there; return the summary."""
        scores = [read_json(self.part(case)) for case in cases]
        rows, volumes = ([row for score in scores for row in score[name]] for name in ("slices", "volumes"))
        patients, slices = patient_rows(rows, volumes), {(row["case"], row["z"]) for row in rows}
        with_tumour = {(row["case"], row["z"]) for row in rows if row["tumour"]}  # of any region
        summary = {
            "key": self.key,
            "unetlib": __version__,
            **about,
            "note": self.note,
            "patients": len({case.patient for case in cases}),
            "cases": len(cases),
            "slices": len(slices),
            "tumour_slices": len(with_tumour),
            "figures": results(rows),
            "surface": surface_summary(patients),
            "lesions": lesion_summary(patients),
            "volumes": volume_summary(patients),
        }
        write_csv(self.folder / SLICES_FILE, rows, [name for name in columns(rows, SLICE_COLUMNS) if name in rows[0]])
        write_csv(self.folder / PATIENTS_FILE, patients, columns(patients))
        write_json(self.folder / SUMMARY_FILE, {**summary, "check": _check(self.folder, summary)})
        self.parts.remove()
        return read_json(self.folder / SUMMARY_FILE)


def _check(folder: Path, summary: Row) -> str:
    """Return a hash that shows whether a summary and the tables beside it belong together."""
    others = {name: value for name, value in summary.items() if name != "check"}
    return digest([others, sha256(folder / SLICES_FILE, folder / PATIENTS_FILE)])
