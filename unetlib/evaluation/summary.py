"""From the counts of every slice to tables of named metrics."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from unetlib.data.naming import SLICE_TABLE, SUMMARY
from unetlib.metrics import COUNTS, METRICS, Counts, bootstrap_interval, dice
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json

SUMMARY_FILE, SLICES_FILE, PATIENTS_FILE = SUMMARY, SLICE_TABLE, "patients.csv"
GRIDS, SLICES, AGGREGATIONS = ("model", "native"), ("tumour", "all"), ("pooled", "per slice", "per patient")
TOLERANCE_MM = 2.0  # of the surface Dice
SLICE_COLUMNS = ("case", "patient", "z", "tumour", *(f"{grid}_{name}" for grid in GRIDS for name in COUNTS))
PATIENT_COLUMNS = ("patient", "grid", "slices", "number", *COUNTS, *METRICS)
DISTANCES = ("hd95_mm", "hd95_voxels")  # in voxels where their true size is lost
MEANS = ("surface_dice", "lesion_dice", *(f"lesion_{name}" for name in DISTANCES))  # over a patient's cases
MEANS += tuple(f"{which}_{unit}" for which in ("truth", "prediction") for unit in ("ml", "voxels"))
SUMS = ("lesions", "lesions_missed", "lesion_false_alarms")  # of a patient's cases
# How often, in %, a 95 % interval of `bootstrap_interval` holds the true mean of so few values.
COVERAGE = {2: 50, 3: 75, 4: 80, 5: 84, 6: 85, 7: 87, 8: 89, 9: 90}
Row = dict[str, Any]


def read_earlier(path: Path) -> Row | None:
    """Return what an earlier call wrote to a JSON file; `None` if it is not there, or damaged: it is made anew."""
    with suppress(UnetlibError):
        return read_json(path)
    return None


def columns(rows: Iterable[Row], first: Iterable[str] = PATIENT_COLUMNS) -> list[str]:
    """Return the columns of a table: those that come `first`, then what else the rows hold."""
    return list(dict.fromkeys([*first, *(name for row in rows for name in row)]))


def _selections(rows: list[Row]) -> Iterator[tuple[Row, list[Row], Counts]]:
    """Yield each region (labelled if there are several), grid and choice of slices, with its rows and their counts."""
    for region in dict.fromkeys(row.get("region") for row in rows):
        for grid in (grid for grid in GRIDS if f"{grid}_tp" in rows[0]):
            for slices in SLICES:
                chosen = [row for row in rows if row.get("region") == region and (slices == "all" or row["tumour"])]
                label = {"grid": grid, "slices": slices} | ({} if region is None else {"region": region})
                counts = (np.array([row[f"{grid}_{name}"] for row in chosen], np.int64) for name in COUNTS)
                yield label, chosen, Counts(*counts)


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


def patient_rows(rows: list[Row], volumes: list[Row]) -> list[Row]:
    """Return one row for each patient, region, grid and choice of slices; for whole volumes with their own figures.

    `volumes`: a row of surfaces, lesions and sizes for each case and region.
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
                own = [one for one in volumes if (one["patient"], one.get("region")) == (patient, row.get("region"))]
                row |= _of_patient(own)
            table.append(row)
    return table


def _of_patient(rows: list[Row]) -> Row:
    """Return means and sums over the cases (time points) of a patient; no HD95 if one of them has none."""
    distances = {name: _values(rows, name) for name in DISTANCES}
    found = {name: None if None in own else float(np.mean(own)) for name, own in distances.items() if own}
    found |= {name: float(np.mean(values)) for name in MEANS if (values := _values(rows, name))}
    return found | {name: sum(values) for name in SUMS if (values := _values(rows, name))}


def _values(rows: list[Row], name: str) -> list[Any]:
    return [row[name] for row in rows if name in row]


def _regions(patients: list[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Yield each region (labelled if there are several), with its rows of whole volumes."""
    rows = [row for row in patients if "lesion_dice" in row]
    for region in dict.fromkeys(row.get("region") for row in rows):
        yield {} if region is None else {"region": region}, [row for row in rows if row.get("region") == region]


def _mean(name: str, values: list[float] | np.ndarray) -> Row:
    """Return a mean over patients and its interval, under a name; nothing where there is no value."""
    found = np.array(values)
    return {name: float(found.mean()), f"{name}_interval": bootstrap_interval(found)} if len(found) else {}


def lesion_summary(patients: list[Row]) -> list[Row]:
    """Return, for each region, the means of the lesion-wise figures over the patients, and what was counted."""
    return [
        {**label, "patients": len(rows)}
        | _mean("dice", _values(rows, "lesion_dice"))
        | {key: mean for name in DISTANCES for key, mean in _mean(name, _values(rows, f"lesion_{name}")).items()}
        | {name: sum(_values(rows, name)) for name in SUMS}
        for label, rows in _regions(patients)
    ]


def volume_summary(patients: list[Row]) -> list[Row]:
    """Return, for each region and unit, the mean volumes, their difference (prediction - truth) and its limits."""
    entries = []
    for label, rows in _regions(patients):
        for unit in ("ml", "voxels"):
            truth, prediction = (np.array(_values(rows, f"{which}_{unit}")) for which in ("truth", "prediction"))
            if len(truth):
                entry = {**label, "unit": unit, "patients": len(truth)}
                entry |= _mean("truth", truth) | _mean("prediction", prediction)
                entry |= _mean("difference", prediction - truth)
                entries.append(entry | {"limits": limits_of_agreement(prediction - truth)})
    return entries


def interval_remark(patients: int) -> str:
    """Return what is to stand beside a 95 % interval over fewer than 10 patients; "" if there are more, or only one."""
    share = COVERAGE.get(patients)
    return f"too narrow with {patients} patients: about {share} % of such intervals hold the true mean" if share else ""


def limits_of_agreement(differences: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % limits of agreement of two measurements: the mean difference -+ 1.96 standard deviations.

    `differences`: (N,), one for each patient. `None` for fewer than two.
    Source: Bland and Altman, "Statistical methods for assessing agreement between two methods of clinical measurement",
    Lancet 1986.
    """
    if len(differences) < 2:
        return None
    bias, spread = float(np.mean(differences)), 1.96 * float(np.std(differences, ddof=1))
    return bias - spread, bias + spread


def surface_summary(patients: list[Row]) -> Row | list[Row]:
    """Return the means of HD95 and surface Dice over the patients, and the number of patients with a defined HD95.

    Of several regions, it is a list of one entry for each. `hd95_mm` and `hd95_voxels` are there if some patient has
    that unit, and `None` if it is defined for none of them.
    """
    entries = []
    for label, rows in _regions(patients):
        distances = {name: own for name in DISTANCES if (own := _values(rows, name))}
        defined = {name: [one for one in own if one is not None] for name, own in distances.items()}
        number = sum(any(row.get(name) is not None for name in DISTANCES) for row in rows)
        surface = {
            **{name: float(np.mean(own)) if own else None for name, own in defined.items()},
            "hd95_patients": number,
            "hd95_undefined": len(rows) - number,
            "surface_dice": float(np.mean(_values(rows, "surface_dice"))),
            "tolerance_mm": TOLERANCE_MM,
            "unit": " or ".join(name.removeprefix("hd95_") for name in distances),
        }
        entries.append({**label, **surface})
    return entries[0] if len(entries) == 1 else entries
