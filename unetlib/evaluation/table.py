"""The tables of an evaluation: its summary to print, its patients and their volumes to read."""

from pathlib import Path
from typing import Any

import numpy as np

from unetlib.evaluation.summary import DISTANCES, PATIENTS_FILE, SUMMARY_FILE, Row, interval_remark
from unetlib.metrics import METRICS
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by
from unetlib.support.files import read_csv
from unetlib.support.paths import takes_paths

UNKNOWN = "The tool that made the masks may have learned from these patients: if it has, the scores are too high."


def results_table(summary: dict[str, Any]) -> str:
    """Return the summary of `evaluate` as a table to print.

    Raises `UnetlibError` when the summary was edited or damaged.
    """
    try:
        return _table(summary)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UnetlibError(
            f"the {SUMMARY_FILE} of this evaluation was not written by unetlib ({brief(str(error))}). Delete it, then "
            "run the same command again."
        ) from error


def _table(summary: dict[str, Any]) -> str:
    scored = summary["split"] if "split" in summary else f"masks of {summary['masks']}"
    runs = _runs(summary)
    head = (
        f"{scored}: {counted(summary['patients'], 'patient')}, {counted(summary['cases'], 'case')}, "
        f"{counted(summary['slices'], 'slice')}, {summary['tumour_slices']} of them with tumour; "
        + (f"best model of {_epochs(runs[0])}; " if len(runs) == 1 else "")
        + f"scored by unetlib {made_by(summary)}"
    )
    lines = [head, *([_averaged(runs, summary["decision"])] if len(runs) > 1 else [])]
    lines += [summary["note"]] if summary["note"] else []
    lines += [UNKNOWN] if "masks" in summary else []
    if summary["left_out"]:
        lines.append(f"left out: {len(summary['left_out'])} ({first_of(sorted(summary['left_out']))})")
    lines.append("")
    width = {name: max(8, len(name) + 2) for name in METRICS}
    columns = "".join(f"{name:>{width[name]}}" for name in METRICS)
    regions = [str(entry["region"]) for entry in summary["figures"] if "region" in entry]
    several = max(8, *(len(name) + 2 for name in regions)) if regions else 0
    head = f"{'region':{several}}" if several else ""
    lines.append(f"{head}{'grid':7}{'slices':7}{'aggregation':12}{columns}  95 % interval of dice")
    for entry in summary["figures"]:
        measure = tuple(entry.get(name, "whole") for name in ("grid", "slices", "aggregation", "region"))
        published = measure == ("model", "tumour", "pooled", "whole")
        remark = "  <- the published number" if published else ""
        if interval := entry.get("dice_interval"):
            remark = f"  {interval[0]:.4f} to {interval[1]:.4f}"
        numbers = "".join(f"{entry[name]:>{width[name]}.4f}" for name in METRICS)
        region = f"{entry['region']!s:{several}}" if several else ""
        lines.append(f"{region}{entry['grid']:7}{entry['slices']:7}{entry['aggregation']:12}{numbers}{remark}")
    surfaces = summary["surface"] if isinstance(summary["surface"], list) else [summary["surface"]]
    decided = [
        f"{entry['zero_by_zero']['dice']} ({_label(entry)}{entry['grid']} grid, {entry['slices']} slices)"
        for entry in summary["figures"]
        if entry["aggregation"] == "per slice"
    ]
    remark = interval_remark(summary["patients"])
    lines += [
        "",
        *[f"The intervals are bootstrapped over patients{f', and {remark}' * bool(remark)}."]
        * (summary["patients"] > 1),
        "Surfaces (native grid, all slices, mean over patients):",
        *map(_surface_line, surfaces),
        *_lesion_lines(summary.get("lesions", [])),
        *_volume_lines(summary.get("volumes", [])),
        "0/0 counts as 1 where there is no error and as 0 otherwise. It decided the Dice of this many slices:",
        ", ".join(decided) + ".",
        "For research and education, never for clinical use.",
    ]
    return "\n".join(lines)


def _runs(summary: Row) -> list[Row]:
    """Return the runs that were scored, none for masks; a summary of an earlier version has their last epoch alone."""
    return summary.get("runs", [{"epochs": [summary["epoch"]]}] if "epoch" in summary else [])


def _averaged(runs: list[Row], decision: Row) -> str:
    each = ", ".join(f"{one['run']} ({_epochs(one)})" for one in runs)
    threshold, smallest = (_values(decision[name]) for name in ("threshold", "smallest_ml"))
    return f"mean of {len(runs)} runs: {each}; mean threshold {threshold}, mean smallest component {smallest} ml"


def _epochs(run: Row) -> str:
    return f"epoch{'s' * (len(run['epochs']) > 1)} {', '.join(map(str, run['epochs']))}"


def _values(found: float | dict[str, float]) -> str:
    """Return the number of one region, or of each by its name."""
    if isinstance(found, dict):
        return ", ".join(f"{name} {value:g}" for name, value in found.items())
    return f"{found:g}"


def distance_text(surface: Row) -> str:
    """Return the mean HD95 of an entry of `surface_summary` with its unit, such as "5.3 mm"."""
    found = {name.removeprefix("hd95_"): surface[name] for name in DISTANCES if surface.get(name) is not None}
    return " and ".join(f"{value:.1f} {unit}" for unit, value in found.items()) or "undefined"


def _surface_line(surface: Row) -> str:
    unit = surface.get("unit", "mm")  # of a summary before 0.5
    return (
        f"{_label(surface)}HD95 {distance_text(surface)} over {counted(surface['hd95_patients'], 'patient')}, "
        f"undefined for {surface['hd95_undefined']} (one mask empty); "
        f"surface Dice at {surface['tolerance_mm']:g} {unit} {surface['surface_dice']:.4f}."
    )


def _lesion_lines(entries: list[Row]) -> list[str]:
    lines = ["Lesion by lesion, as in BraTS since 2023 (mean over patients, interval):"] if entries else []
    for entry in entries:
        units = [unit for unit in ("mm", "voxels") if f"hd95_{unit}" in entry]
        distances = " and ".join(f"{_with_interval(entry, f'hd95_{unit}', 1)} {unit}" for unit in units)
        smallest = " or ".join({"mm": "50 mm3", "voxels": "50 voxels"}[unit] for unit in units)
        lines.append(
            f"{_label(entry)}Dice {_with_interval(entry, 'dice', 4)}; HD95 {distances}; "
            f"{counted(entry['lesions'], 'lesion')} above {smallest}, {entry['lesions_missed']} of them missed; "
            f"{counted(entry['lesion_false_alarms'], 'false alarm')}."
        )
    return lines


def _volume_lines(entries: list[Row]) -> list[str]:
    lines = ["Volumes (mean over patients, interval):"] if entries else []
    for entry in entries:
        limits, unit = entry["limits"], entry["unit"]
        about = f", 95 % limits of agreement {limits[0]:z.1f} to {limits[1]:z.1f} {unit}" if limits else ""
        lines.append(
            f"{_label(entry)}{_with_interval(entry, 'prediction', 1)} {unit} predicted, "
            f"{_with_interval(entry, 'truth', 1)} {unit} in the reference; difference "
            f"{_with_interval(entry, 'difference', 1)} {unit}{about}."
        )
    return lines


def _label(entry: Row) -> str:
    return f"region {entry['region']}: " if "region" in entry else ""


def _with_interval(entry: Row, name: str, digits: int) -> str:
    interval = entry[f"{name}_interval"]
    about = f" ({interval[0]:z.{digits}f} to {interval[1]:z.{digits}f})" if interval else ""
    return f"{entry[name]:z.{digits}f}{about}"  # z: no minus before 0.0


@takes_paths
def read_patients(folder: Path, grid: str = "native", slices: str = "all") -> list[dict[str, str]]:
    """Return the rows of `patients.csv` in an evaluation folder for one grid and choice of slices, best Dice first."""
    table = read_csv(path := folder / PATIENTS_FILE, numbers=("dice",))
    rows = [row for row in table if (row.get("grid"), row.get("slices")) == (grid, slices) and row.get("patient")]
    if not rows:
        raise UnetlibError(f"{path} lacks the {grid} grid and {slices} slices. Evaluate again.")
    return sorted(rows, key=lambda row: -float(row["dice"]))


@takes_paths
def read_volumes(folder: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str]:
    """Return the predicted and the true volumes (N,) of the patients in an evaluation folder, and their unit.

    They stand under the name of each of several regions, or under "". The unit is ml; voxels, if their size is unknown.
    """
    rows = read_patients(folder)
    unit = "ml" if any(row.get("truth_ml") for row in rows) else "voxels"
    rows, found = [row for row in rows if row.get(f"truth_{unit}")], {}
    try:
        for region in dict.fromkeys(row.get("region", "") for row in read_csv(folder / PATIENTS_FILE)):
            own = [row for row in rows if row.get("region", "") == region]
            names = f"prediction_{unit}", f"truth_{unit}"
            prediction, truth = (np.array([float(row[name]) for row in own]) for name in names)
            found[region] = prediction, truth
    except (KeyError, ValueError):
        found = {}
    if not found:
        raise UnetlibError(f"{folder / PATIENTS_FILE} lacks the volumes of its patients. Evaluate again.")
    return found, unit
