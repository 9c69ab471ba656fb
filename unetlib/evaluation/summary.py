"""From the counts of every slice to tables of named metrics."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unetlib.metrics import COUNTS, METRICS, Counts, bootstrap_interval, dice
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by
from unetlib.support.files import read_csv, takes_paths

SUMMARY_FILE, SLICES_FILE, PATIENTS_FILE = "summary.json", "slices.csv", "patients.csv"
GRIDS, SLICES, AGGREGATIONS = ("model", "native"), ("tumour", "all"), ("pooled", "per slice", "per patient")
TOLERANCE_MM = 2.0  # of the surface Dice
SLICE_COLUMNS = ("case", "patient", "z", "tumour", *(f"{grid}_{name}" for grid in GRIDS for name in COUNTS))
PATIENT_COLUMNS = ("patient", "grid", "slices", "number", *COUNTS, *METRICS, "hd95_mm", "surface_dice")
Row = dict[str, Any]


def _selections(rows: list[Row]) -> Iterator[tuple[Row, list[Row], Counts]]:
    """Yield each region (labelled if there are several), grid and choice of slices, with its rows and their counts."""
    for region in dict.fromkeys(row.get("region") for row in rows):
        for grid in GRIDS:
            for slices in SLICES:
                chosen = [row for row in rows if row.get("region") == region and (slices == "all" or row["tumour"])]
                label = {"grid": grid, "slices": slices} | ({} if region is None else {"region": region})
                yield (
                    label,
                    chosen,
                    Counts(*(np.array([row[f"{grid}_{n}"] for row in chosen], np.int64) for n in COUNTS)),
                )


def results(rows: list[Row]) -> list[Row]:
    """Return one entry for each region, grid, choice of slices and aggregation, from the counts of every slice."""
    entries = []
    for label, chosen, counts in _selections(rows):
        if not chosen:
            continue
        patients = counts.grouped(np.array([row["patient"] for row in chosen]))[1]
        for aggregation, some in zip(AGGREGATIONS, (counts.sum(), counts, patients), strict=True):
            entry = {**label, "aggregation": aggregation}
            entry |= {name: float(metric(some).mean()) for name, metric in METRICS.items()}
            if aggregation == "per patient":
                entry["dice_interval"] = bootstrap_interval(dice(some))
            undefined = {name: int(np.isnan(metric(some, np.nan)).sum()) for name, metric in METRICS.items()}
            entries.append({**entry, "zero_by_zero": undefined})
    return entries


def patient_rows(rows: list[Row], surfaces: list[Row]) -> list[Row]:
    """Return one row for each patient, region, grid and choice of slices; with HD95 and surface Dice for whole volumes.

    `surfaces`: a row for each case and region.
    """
    table = []
    for label, chosen, counts in _selections(rows):
        names, counts = counts.grouped(np.array([row["patient"] for row in chosen], dtype=str))
        numbers = Counter(row["patient"] for row in chosen)
        values = {name: metric(counts) for name, metric in METRICS.items()}
        for i, patient in enumerate(map(str, names)):
            row = {"patient": patient, **label, "number": numbers[patient]}
            row |= {name: int(getattr(counts, name)[i]) for name in COUNTS}
            row |= {name: float(value[i]) for name, value in values.items()}
            if (label["grid"], label["slices"]) == ("native", "all"):
                own = [one for one in surfaces if (one["patient"], one.get("region")) == (patient, row.get("region"))]
                row |= _mean_surface(own)
            table.append(row)
    return table


def _mean_surface(rows: list[Row]) -> Row:
    """Return the mean over the cases (time points) of a patient; no HD95 if one of them has none."""
    distances = [row["hd95_mm"] for row in rows]
    return {
        "hd95_mm": None if None in distances else float(np.mean(distances)),
        "surface_dice": float(np.mean([row["surface_dice"] for row in rows])),
    }


def surface_summary(patients: list[Row]) -> Row:
    """Return the means of HD95 and surface Dice over the patients, and the number of patients with a defined HD95."""
    rows = [row for row in patients if "hd95_mm" in row]
    distances = [row["hd95_mm"] for row in rows if row["hd95_mm"] is not None]
    return {
        "hd95_mm": float(np.mean(distances)) if distances else None,
        "hd95_patients": len(distances),
        "hd95_undefined": len(rows) - len(distances),
        "surface_dice": float(np.mean([row["surface_dice"] for row in rows])),
        "tolerance_mm": TOLERANCE_MM,
    }


def results_table(summary: dict[str, Any]) -> str:
    """Return the summary of `evaluate` as a table to print.

    Raises `UnetlibError` when the summary was edited or damaged.
    """
    try:
        return _table(summary)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnetlibError(
            f"the {SUMMARY_FILE} of this evaluation was not written by unetlib ({brief(str(error))}). Delete it, then "
            "run the same command again."
        ) from error


def _table(summary: dict[str, Any]) -> str:
    head = (
        f"{summary['split']}: {counted(summary['patients'], 'patient')}, {counted(summary['cases'], 'case')}, "
        f"{counted(summary['slices'], 'slice')}, {summary['tumour_slices']} of them with tumour; "
        f"best model of epoch {summary['epoch']}; scored by unetlib {made_by(summary)}"
    )
    lines = [head, *([summary["note"]] if summary["note"] else [])]
    if summary["left_out"]:
        lines.append(f"left out: {len(summary['left_out'])} ({first_of(sorted(summary['left_out']))})")
    lines.append("")
    width = {name: max(8, len(name) + 2) for name in METRICS}
    columns = "".join(f"{name:>{width[name]}}" for name in METRICS)
    lines.append(f"{'grid':7}{'slices':7}{'aggregation':12}{columns}  95 % interval of dice")
    for entry in summary["figures"]:
        published = (entry["grid"], entry["slices"], entry["aggregation"]) == ("model", "tumour", "pooled")
        remark = "  <- the published number" if published else ""
        if interval := entry.get("dice_interval"):
            remark = f"  {interval[0]:.4f} to {interval[1]:.4f}"
        numbers = "".join(f"{entry[name]:>{width[name]}.4f}" for name in METRICS)
        lines.append(f"{entry['grid']:7}{entry['slices']:7}{entry['aggregation']:12}{numbers}{remark}")
    surface = summary["surface"]
    distance = "undefined" if surface["hd95_mm"] is None else f"{surface['hd95_mm']:.1f} mm"
    decided = [
        f"{entry['zero_by_zero']['dice']} ({entry['grid']} grid, {entry['slices']} slices)"
        for entry in summary["figures"]
        if entry["aggregation"] == "per slice"
    ]
    lines += [
        "",
        "The intervals are bootstrapped over patients. Surfaces (native grid, all slices, mean over patients):",
        f"HD95 {distance} over {counted(surface['hd95_patients'], 'patient')}, undefined for "
        f"{surface['hd95_undefined']} (one mask empty); "
        f"surface Dice at {surface['tolerance_mm']:g} mm {surface['surface_dice']:.4f}.",
        "0/0 counts as 1 where there is no error and as 0 otherwise. It decided the Dice of this many slices:",
        ", ".join(decided) + ".",
        "For research and education, never for clinical use.",
    ]
    return "\n".join(lines)


@takes_paths
def read_patients(folder: Path, grid: str = "native", slices: str = "all") -> list[dict[str, str]]:
    """Return the rows of `patients.csv` in an evaluation folder for one grid and choice of slices, best Dice first."""
    table = read_csv(path := folder / PATIENTS_FILE, numbers=("dice",))
    rows = [row for row in table if (row.get("grid"), row.get("slices")) == (grid, slices) and row.get("patient")]
    if not rows:
        raise UnetlibError(f"{path} lacks the {grid} grid and {slices} slices. Evaluate again.")
    return sorted(rows, key=lambda row: -float(row["dice"]))
