"""The results of the study, `results.csv`: one row for each scored patient of each run, and what is computed from them.

The columns are the run and the patient; the patient's scores; how the run was trained, tuned and timed, and where; and
the fields of its recipe. `hd95` is in mm, and in voxels on TCGA-LGG, whose voxel size is lost; an ml there is 1000
voxels. Hashes are cut to 12 digits. All results are in this one table, which is committed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from unetlib.metrics import bootstrap_interval
from unetlib.support.files import read_csv, write_csv

TABLE = Path(__file__).with_name("results.csv")
DICE = "dice"  # volumetric, all slices, native grid
SCORES = (DICE, "precision", "recall", "dice_slices", "hd95", "false_ml", "tp", "fp", "fn")
NUMBERS = [*SCORES, "seconds", "threads", "seconds_to_predict"]
Result = pd.DataFrame  # the rows of one run or more, the patients as index; NaN where a score is undefined


def read(run: str) -> Result | None:
    """Return the rows of a run; `None` where it has none."""
    rows = [row for row in read_csv(TABLE) if row["run"] == run] if TABLE.exists() else []
    if not rows:
        return None
    found = pd.DataFrame(rows).set_index("patient")
    found[NUMBERS] = found[NUMBERS].replace("", "nan").astype(float)
    return found


def append(run: str, patients: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Add the scores of a run's patients, each with what is said `about` the run; a run that is there stays as it is.

    Several processes may do so at the same time. The table is replaced as a whole, so a kill loses no row.
    """
    with FileLock(TABLE.with_name(".results.lock")):
        rows: list[dict[str, Any]] = [*read_csv(TABLE)] if TABLE.exists() else []
        if all(row["run"] != run for row in rows):
            rows += [{"run": run, "patient": name, **scores, **about} for name, scores in patients.items()]
            write_csv(TABLE, rows, dict.fromkeys(column for row in rows for column in row))


def measured_on(*beginnings: str) -> str:
    """Return where the runs with names of these beginnings were measured, with the first and the last day of each."""
    days: dict[str, list[str]] = {}
    for row in read_csv(TABLE) if TABLE.exists() else ():
        if row["run"].startswith(beginnings):
            day, _, place = re.sub(r", load average [\d.]+", "", row["machine"]).partition(", ")
            days.setdefault(place, []).append(day)
    return "; ".join(f"{' to '.join(sorted({min(own), max(own)}))}, {place}" for place, own in days.items())


def pooled_dice(result: Result) -> float:
    """Return the Dice of all voxels of all patients together."""
    tp, fp, fn = result[["tp", "fp", "fn"]].sum()
    return float(2 * tp / (2 * tp + fp + fn))


def seconds_of_training(*runs: Result) -> float:
    """Return the core seconds that the training of a run took, on average over these."""
    return float(np.mean([run["seconds"].iloc[0] * run["threads"].iloc[0] for run in runs]))


def gain(before: Result, after: Result) -> tuple[float, tuple[float, float] | None]:
    """Return the mean paired difference of the patients' Dice, and its bootstrapped 95 % interval."""
    differences = (after[DICE] - before[DICE]).dropna().sort_index().to_numpy()
    return float(differences.mean()), bootstrap_interval(differences)


def gain_text(before: Result, after: Result) -> str:
    """Return a gain with its interval as text."""
    by, interval = gain(before, after)
    return f"{by:+.3f}" + (f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else "")
