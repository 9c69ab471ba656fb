"""Judge a trained network on patients it has not seen, and name every figure.

A figure depends on four choices, and all of them are reported: the grid (the model's 96 x 96, or
the native one of the MRI), the slices (only those with tumour, as published, or all, as a user
meets them), the aggregation (see `unetlib.metrics`), and the metric.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from unetlib import metrics
from unetlib.data.patients import Case, read_case
from unetlib.data.slices import Window, mask_to_slices, slices_to_volume
from unetlib.evaluation.unseen import choose_others, choose_own
from unetlib.metrics import METRICS, Counts
from unetlib.prediction.inference import Predictor, identity
from unetlib.runs.checkpoint import caveats, read_run
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by
from unetlib.support.files import (
    PARTIAL,
    digest,
    locked,
    read_csv,
    read_json,
    refuse_link,
    sha256,
    takes_paths,
    write_csv,
    write_json,
)
from unetlib.support.jobs import progress, say
from unetlib.support.version import __version__

GRIDS, SLICES, AGGREGATIONS = ("model", "native"), ("tumour", "all"), ("pooled", "per slice", "per patient")
TOLERANCE_MM = 2.0  # of the surface Dice
COUNTS = ("tp", "fp", "fn", "tn")
SLICE_COLUMNS = ("case", "patient", "z", "tumour", *(f"{grid}_{name}" for grid in GRIDS for name in COUNTS))
PATIENT_COLUMNS = ("patient", "grid", "slices", "number", *COUNTS, *METRICS, "hd95_mm", "surface_dice")


@takes_paths
def evaluate(
    run: Path,
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
    assume: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Score `best_model.pth` of a run and return the summary, also written with its details.

    Without `data`, the patients are those of one part of the run's own split (`test` by default;
    `val`, `train`, `all`). With `data`, another folder of patients: all whom the run has neither
    trained nor validated on (told by their names, and by the voxels of their images), unless `split` is
    given; `assume` is the orientation of its files that do not say theirs. The result lies in `RUN/evaluation/`
    for the run's own test patients and in a folder of its own below it otherwise: `slices.csv` (counts of every
    slice), `patients.csv` and `summary.json`. Stopped, it goes on where it was; done, it is reused. `threads` is how
    many a CPU computes with; without it, one for each idle processor.

    Raises `UnetlibError` when the run or the patients cannot be found or read, when the files of the
    run's own patients have changed, and when another process is scoring the same.
    """
    if assume and not data:
        raise UnetlibError("an orientation to assume belongs to --data; the run's own patients are read as prepared.")
    root, folder = data or Path(read_run(run)["data"]), _folder(run, data, split)
    cohort, cases, notes = choose_others(data, run, split, folder, assume) if data else choose_own(run, split)
    predictor = Predictor.open(run, device, threads=threads)
    weights = identity(run)
    assumed = [cohort.assume] if cohort.assume else []
    keys = {case.id: digest([weights, case.stamp(cohort.root), *assumed])[:16] for case in cases}
    note = " ".join(filter(None, (*notes, predictor.checkpoint.get("note"), caveats(run, predictor.checkpoint))))
    with locked(folder, belongs_to=run):
        if done := _done(folder, digest([keys, note])):
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)  # where a kill came before the last line below
            say(f"{folder} is done already, for these weights and patients: reused.")
            return done
        refuse_link(folder / PARTIAL)
        parts = {case.id: folder / PARTIAL / f"{case.id}-{keys[case.id]}.json" for case in cases}
        left_out = (cohort.left_out if data else {}) | _score_missing(predictor, cases, parts, strict=data is None)
        for name, reason in left_out.items():
            say(f"left out {name}: {reason}")
        cases = [case for case in cases if case.id not in left_out]
        if not cases:
            raise UnetlibError(f"{root}: no case can be scored, for the reasons above.")
        scores = [read_json(parts[case.id]) for case in cases]
        rows = [row for score in scores for row in score["slices"]]
        patients = _patient_rows(rows, scores)
        summary = {
            "key": digest([keys, note]),
            "unetlib": __version__,
            "split": split or ("unseen" if data else "test"),
            "data": str(root),
            "note": note,
            "left_out": left_out,
            "epoch": predictor.checkpoint["epoch"],
            "patients": len({case.patient for case in cases}),
            "cases": len(cases),
            "slices": len(rows),
            "tumour_slices": sum(row["tumour"] for row in rows),
            "figures": _figures(rows),
            "surface": _surface_summary(patients),
        }
        write_csv(folder / "slices.csv", rows, SLICE_COLUMNS)
        write_csv(folder / "patients.csv", patients, PATIENT_COLUMNS)
        write_json(folder / "summary.json", {**summary, "check": _check(folder, summary)})
        shutil.rmtree(folder / PARTIAL)
        return read_json(folder / "summary.json")


def _done(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the summary of an evaluation that is done, unless one of its files is of another, damaged or edited."""
    try:
        summary = read_json(folder / "summary.json")
        told = {name: value for name, value in summary.items() if name != "check"}
        return summary if (summary["key"], summary["check"]) == (key, _check(folder, told)) else None
    except (UnetlibError, OSError, KeyError):
        return None


def _check(folder: Path, summary: dict[str, Any]) -> str:
    """Return what tells whether a summary and the tables beside it are of one evaluation."""
    return digest([summary, sha256(folder / "slices.csv", folder / "patients.csv")])


def _score_missing(predictor: Predictor, cases: list[Case], parts: dict[str, Path], strict: bool) -> dict[str, str]:
    """Write the part of every case that has none; return the cases that cannot be read, with the reason.

    With `strict` such a case is an error: without one of a run's own test patients the figures are others.
    """
    todo, left_out = [case for case in cases if not parts[case.id].exists()], {}
    with progress(len(cases), "evaluate", "case", len(cases) - len(todo)) as bar:
        for case in todo:
            try:
                score = _score_case(predictor, case)
            except UnetlibError as error:
                if strict:
                    raise
                left_out[case.id] = str(error).removeprefix(f"{case.id}: ")
            else:
                write_json(parts[case.id], score)
            bar.update()
    return left_out


def _folder(run: Path, data: Path | None, part: str | None) -> Path:
    """Return where the result goes; raises `UnetlibError` when the result of other data lies there."""
    folder = run / "evaluation"
    refuse_link(folder)
    if data is None:
        return folder if part in (None, "test") else folder / str(part)
    folder = folder / "-".join(filter(None, ("data", data.resolve().name, part)))
    if (folder / "summary.json").exists() and read_json(folder / "summary.json").get("data") != str(data):
        raise UnetlibError(f"{folder} holds the result of another folder of that name. Rename it first.")
    return folder


def _score_case(predictor: Predictor, case: Case) -> dict[str, Any]:
    """Return the counts of every slice on both grids, and the surface figures of the volume."""
    volume, truth, _ = read_case(case)
    found, window = predictor.all_slices(volume.voxels), Window.of(volume.voxels, predictor.recipe)
    prediction = predictor.decision.mask(slices_to_volume(found, truth.shape, window), volume.spacing)
    small = mask_to_slices(truth, predictor.recipe, window=window).numpy()
    counts = {
        "model": metrics.count(found.numpy() >= predictor.decision.threshold, small),
        "native": metrics.count(prediction.transpose(2, 0, 1), truth.transpose(2, 0, 1)),
    }
    hd95, surface_dice = metrics.surface_figures(prediction, truth, volume.spacing, TOLERANCE_MM)
    rows = [
        {"case": case.id, "patient": case.patient, "z": z, "tumour": int(truth[:, :, z].any())}
        | {f"{grid}_{name}": int(getattr(counts[grid], name)[z]) for grid in GRIDS for name in COUNTS}
        for z in range(truth.shape[2])
    ]
    defined = np.isfinite(hd95)
    return {"slices": rows, "hd95_mm": hd95 if defined else None, "surface_dice": surface_dice}


def _counts(rows: list[dict[str, Any]], grid: str) -> Counts:
    return Counts(*(np.array([int(row[f"{grid}_{name}"]) for row in rows], np.int64) for name in COUNTS))


def _select(rows: list[dict[str, Any]], slices: str) -> list[dict[str, Any]]:
    return [row for row in rows if slices == "all" or int(row["tumour"])]


def _figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each grid, choice of slices and aggregation."""
    figures = []
    for grid in GRIDS:
        for slices in SLICES:
            chosen = _select(rows, slices)
            if not chosen:
                continue
            counts = _counts(chosen, grid)
            patients = counts.grouped(np.array([row["patient"] for row in chosen]))[1]
            for aggregation, part in zip(AGGREGATIONS, (counts.sum(), counts, patients), strict=True):
                entry: dict[str, Any] = {"grid": grid, "slices": slices, "aggregation": aggregation}
                for name, metric in METRICS.items():
                    entry[name] = float(metric(part).mean())
                if aggregation == "per patient":
                    entry["dice_interval"] = metrics.bootstrap_interval(metrics.dice(part))
                undefined = {name: int(np.isnan(metric(part, np.nan)).sum()) for name, metric in METRICS.items()}
                figures.append({**entry, "zero_by_zero": undefined})
    return figures


def _patient_rows(rows: list[dict[str, Any]], scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each patient, grid and choice of slices; surface figures where they are defined."""
    table = []
    for grid in GRIDS:
        for slices in SLICES:
            chosen = _select(rows, slices)
            names, counts = _counts(chosen, grid).grouped(np.array([row["patient"] for row in chosen], dtype=str))
            numbers = Counter(row["patient"] for row in chosen)
            values = {name: metric(counts) for name, metric in METRICS.items()}
            for i, patient in enumerate(names):
                row = {"patient": str(patient), "grid": grid, "slices": slices, "number": numbers[patient]}
                row |= {name: int(getattr(counts, name)[i]) for name in COUNTS}
                row |= {name: float(value[i]) for name, value in values.items()}
                if (grid, slices) == ("native", "all"):
                    row |= _surface_of(patient, scores)
                table.append(row)
    return table


def _surface_of(patient: str, scores: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean over the patient's cases (time points); `None` where one of them has no HD95."""
    own = [score for score in scores if score["slices"][0]["patient"] == patient]
    distances = [score["hd95_mm"] for score in own]
    return {
        "hd95_mm": None if None in distances else float(np.mean(distances)),
        "surface_dice": float(np.mean([score["surface_dice"] for score in own])),
    }


def _surface_summary(patients: list[dict[str, Any]]) -> dict[str, Any]:
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
    """Return the summary of `evaluate` as a table to print, in which every figure is named.

    Raises `UnetlibError` when the summary has been changed since.
    """
    try:
        return _table(summary)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnetlibError(
            f"the summary.json of this evaluation is not one that unetlib wrote ({brief(str(error))}). Delete it, then "
            "give the same command again."
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
        remark = "  <- the published figure" if published else ""
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
    table = read_csv(folder / "patients.csv", numbers=("dice",))
    rows = [row for row in table if (row.get("grid"), row.get("slices")) == (grid, slices) and row.get("patient")]
    if not rows:
        raise UnetlibError(f"{folder / 'patients.csv'} lacks the {grid} grid and {slices} slices. Evaluate again.")
    return sorted(rows, key=lambda row: -float(row["dice"]))
