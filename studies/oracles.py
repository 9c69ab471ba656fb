"""Every metric of `unetlib.metrics` beside what other packages give for the same masks of real patients.

Run from the repository's root: `python -m studies.oracles DATA`. It renews the tables of `ORACLES.md`. For every
patient of DATA there are eight predictions (`predictions` in `tests/oracles.py`), on the native grid, all slices.
Surfaces are measured with the voxels of the file and as if they were 0.9 x 1.1 x 5 mm: equal sides would hide a
mixed-up axis.

The official package of the BraTS challenge needs an older numpy, so it lives in an environment of its own:
`python3 -m venv brats && brats/bin/pip install brats-evaluation`, then `--brats brats/bin/brats-evaluate`.

Ends with status 1 when a value differs from another's of the same definition by more than 1e-6.
"""

import json
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import sklearn.metrics
import torch
from monai.metrics import DiceMetric
from scipy import sparse
from surface_distance import metrics as surface

from benchmarks.common import machine, markdown_table, parser, record
from tests import oracles
from tests.oracles import Spacing
from unetlib import find_cases, metrics, read_case
from unetlib.data.patients import Case
from unetlib.evaluation.summary import TOLERANCE_MM
from unetlib.metrics import METRICS, Counts, surface_figures
from unetlib.support.command import BEGINS_ANEW, run_command
from unetlib.support.jobs import run_jobs

MOST = 1e-6
CUBES: Spacing = (1.0, 1.0, 1.0)
CUBE = np.pad(np.ones((8, 8, 8), bool), (4, 12))
THICK: Spacing = (0.9, 1.1, 5.0)
PAGE = Path(__file__).with_name("ORACLES.md")
PACKAGES = ("unetlib", "numpy", "scipy", "scikit-learn", "monai", "torch", "surface-distance")
VOXELS_MONAI, VOXELS_BRATS = "HD95 between voxel centres, larger direction", "HD95 in voxels, both directions at once"
NSD_BRATS = "surface Dice of voxels, each direction alike, at half a voxel"
COLUMNS = ("question", "unetlib", "MONAI", "scikit-learn", "surface-distance", "brats-evaluation", "our reason")
SURFACES = (  # question, key of the BraTS package, the definitions of ours, MONAI's and theirs, and our reason
    (
        "HD95 of {} volumes",
        "hd95",
        ": larger of two directed percentiles, surface weighted by its area",
        ": every voxel of the surface counts alike",
        ": one percentile of both directions",
        "published code; does not change with how a surface is cut into voxels",
    ),
    (
        "surface Dice of these",
        "nsd",
        f" at {TOLERANCE_MM:g} mm",
        " (`use_subvoxels=True`)",
        ": at half a voxel",
        "the tolerance is in millimetres and printed with the value; half a voxel asks for identity",
    ),
)
Row = tuple[str, str, str]  # of the first table: metric, our way, the other package
Brats = dict[str, float]  # what the BraTS package says of one prediction; empty without it


@dataclass
class Pair:
    """What the packages say of one prediction for one patient."""

    prediction: str
    case: int
    counts: Counts  # of each slice, ours
    values: dict[str, dict[str, dict[str, np.ndarray]]]  # other -> "slices" or "patients" -> metric -> values
    matrix: torch.Tensor  # MONAI's confusion matrices
    masks: list[sparse.csr_matrix]  # prediction and truth, a row a slice
    surfaces: dict[str, dict[str, tuple[float, float]]]  # "" or "thick" -> by whom -> HD95 and surface Dice


def score(job: tuple[int, Case]) -> list[Pair]:
    """Ask every package about all predictions for one patient."""
    torch.set_num_threads(1)
    volume, truth, _ = read_case(job[1])
    pairs = []
    for name, prediction in oracles.predictions(volume.voxels, truth).items():
        slices = [mask.transpose(2, 0, 1).reshape(mask.shape[2], -1) for mask in (prediction, truth)]
        whole = [mask.reshape(1, -1) for mask in slices]
        by_monai, matrix = oracles.by_monai(*slices)
        values = {
            "MONAI": {"slices": by_monai, "patients": oracles.from_monai(matrix.sum(0, keepdim=True))},
            "scikit-learn": {"slices": oracles.by_sklearn(*slices), "patients": oracles.by_sklearn(*whole)},
            "scipy": {"slices": oracles.by_scipy(*slices), "patients": oracles.by_scipy(*whole)},
        }
        spacings = {"": volume.spacing, "thick": THICK} if prediction.any() and truth.any() else {}
        surfaces = {key: surfaces_of(prediction, truth, spacing) for key, spacing in spacings.items()}
        masks = [sparse.csr_matrix(mask) for mask in slices]
        pairs.append(Pair(name, job[0], oracles.count_slices(*slices), values, matrix, masks, surfaces))
    return pairs


def by_surface_distance(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> tuple[float, float]:
    """Return HD95 and surface Dice by the package that we use, called directly."""
    distances = surface.compute_surface_distances(truth, prediction, spacing)
    hd95 = surface.compute_robust_hausdorff(distances, 95)
    return hd95, surface.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)


def surfaces_of(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> dict[str, tuple[float, float]]:
    """Return HD95 and surface Dice by every package's own definition."""
    plain = oracles.between_voxels(prediction, truth, CUBES)
    both_ways = float(np.percentile(np.concatenate(plain), 95))
    return {
        "ours": surface_figures(prediction, truth, spacing, TOLERANCE_MM),
        "surface-distance": by_surface_distance(prediction, truth, spacing),
        "scipy": oracles.surface_by_definition(prediction, truth, spacing, TOLERANCE_MM),
        "MONAI": oracles.surface_by_monai(prediction, truth, spacing, TOLERANCE_MM),
        VOXELS_MONAI: (oracles.hd95_between_voxels(prediction, truth, spacing), np.nan),
        VOXELS_BRATS: (both_ways, float(np.mean([(part <= 0.5).mean() for part in plain]))),
    }


# The same definition


def gap(ours: Any, theirs: Any) -> dict[str, float]:
    """Return how many values were compared, and the greatest difference.

    Two NaN or two infinities are equal, a single NaN is infinitely far away. Distances above 1 mm are compared by their
    ratio, since MONAI keeps them in float32.
    """
    a, b = (np.atleast_1d(np.asarray(x, np.float64)) for x in (ours, theirs))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    found = np.zeros(a.shape)
    found[~same] = np.nan_to_num(np.abs(a - b)[~same] / np.maximum(1, np.abs(b[~same])), nan=np.inf)
    return {"number": a.size, "gap": found.max(initial=0.0)}


def compare_counts(pairs: list[Pair]) -> Iterator[tuple[Row, str, Any, Any]]:
    """Yield row, what is compared, our values and the others', for every metric made from counts."""
    names = dict.fromkeys(pair.prediction for pair in pairs)
    by_prediction = [[pair for pair in pairs if pair.prediction == name] for name in names]
    for name, metric in METRICS.items():
        for other in ("MONAI", "scikit-learn", "scipy"):
            if name not in pairs[0].values[other]["slices"]:
                continue
            row = (name, f"`{name}(count(...))`", other)
            for some in by_prediction:
                counts = Counts.concatenate([pair.counts for pair in some])
                groups = np.repeat([pair.case for pair in some], [len(pair.counts.tp) for pair in some])
                for what, part in (("slices", counts), ("patients", counts.grouped(groups)[1])):
                    theirs = np.concatenate([pair.values[other][what][name] for pair in some])
                    yield row, what, metric(part, np.nan), theirs
                if name in (pooled := pool(other, some)):
                    yield row, "pooled", metric(counts.sum(), np.nan), pooled[name]


def compare_surfaces(pairs: list[Pair]) -> Iterator[tuple[Row, str, Any, Any]]:
    """Yield row, what is compared, our value and the other's, for HD95 and surface Dice."""
    for found in (found for pair in pairs for found in pair.surfaces.values()):
        for i, title in enumerate(("HD95", f"surface Dice at {TOLERANCE_MM:g} mm")):
            for other in ("surface-distance", "scipy", "MONAI"):
                row, ours = (title, f"`surface_figures(...)[{i}]`", other), found["ours"][i]
                if other == "scipy":
                    row = (*row[:2], "scipy (nearest neighbours, by the definition)")
                elif row[::2] == ("HD95", "MONAI"):
                    row = (VOXELS_MONAI, "scipy, by this definition, percentile in float32", other)
                    ours = found[VOXELS_MONAI][0]
                yield row, "volumes", ours, found[other][i]


def compare_brats(pairs: list[Pair], brats: list[Brats]) -> Iterator[tuple[Row, str, Any, Any]]:
    """Yield row, what is compared, our value and that of the BraTS package."""
    for pair, theirs in zip(pairs, brats, strict=True):
        row = ("dice", "`dice(count(...).sum())`", "brats-evaluation")
        yield row, "patients", metrics.dice(pair.counts.sum(), np.nan), theirs["global_bin_dsc"]
        for i, (title, key) in enumerate(((VOXELS_BRATS, "hd95"), (NSD_BRATS, "nsd")) if pair.surfaces else ()):
            row = (title, "scipy, by this definition", "brats-evaluation")
            yield row, "volumes", pair.surfaces[""][VOXELS_BRATS][i], theirs[f"global_bin_{key}"]


def pool(other: str, some: list[Pair]) -> dict[str, np.ndarray]:
    """Return the metrics of all slices of all patients at once, those that a package computes so."""
    if other == "MONAI":
        return oracles.from_monai(torch.cat([pair.matrix for pair in some]).sum(0, keepdim=True))
    if other == "scipy":
        return {}
    width = max(pair.masks[0].shape[1] for pair in some)
    stacked = []
    for which in (1, 0):
        masks = [pair.masks[which].copy() for pair in some]
        for mask in masks:
            mask.resize(mask.shape[0], width)
        stacked.append(sparse.vstack(masks, format="csr"))
    options: dict[str, Any] = {"average": "micro", "zero_division": np.nan}
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(*stacked, **options)
    iou = sklearn.metrics.jaccard_score(*stacked, average="micro", zero_division=0)
    return {"dice": f1, "iou": iou, "precision": precision, "recall": recall, "f1": f1}


def agreement(compared: Iterable[tuple[Row, str, Any, Any]]) -> tuple[str, bool]:
    """Return the table of what has the same definition, and whether all of it agrees."""
    gaps = pd.DataFrame([{"row": row, "what": what, **gap(ours, theirs)} for row, what, ours, theirs in compared])
    rows = []
    for row, own in gaps.groupby("row", sort=False):
        numbers = own.groupby("what", sort=False)["number"].sum()
        what = ", ".join(f"{number} {name}" for name, number in numbers.items())
        rows.append([*row, what, f"{own['gap'].max():.1e}", "yes" if own["gap"].max() <= MOST else "**no**"])
    columns = ("metric", "ours", "other", "compared", "greatest difference", "agrees")
    return markdown_table(columns, rows), bool((gaps["gap"] <= MOST).all())


# The official package of BraTS, by its command


def by_brats(command: str, exams: Iterable[tuple[np.ndarray, np.ndarray, Spacing]]) -> list[Brats]:
    """Return what `brats-evaluate` says of the whole tumour, for (prediction, truth, spacing)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ref").mkdir()
        (folder / "pred").mkdir()
        number = 0
        for number, (prediction, truth, spacing) in enumerate(exams, 1):
            for kind, mask in (("pred", prediction), ("ref", truth)):
                image = nib.Nifti1Image(mask.astype(np.uint8) * 2, np.diag([-spacing[0], -spacing[1], spacing[2], 1]))
                nib.save(image, folder / kind / f"{number:05d}.nii.gz")
        words = [command, "--config", "GoAT", "--ref_path", "ref", "--pred_path", "pred", "--summary_json", "out.json"]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
        found = json.loads((folder / "out.json").read_text())["metrics"]
    if len(found) != number or any("error" in one for one in found):
        raise RuntimeError(f"{command} scored {len(found)} of {number} exams, or with errors.")
    return [one["wt"] for one in sorted(found, key=lambda one: one["subject_name"])]


def exams(pairs: list[Pair], cases: Iterable[Case]) -> Iterator[tuple[np.ndarray, np.ndarray, Spacing]]:
    """Yield prediction and truth of every pair as volumes."""
    shapes = [read_case(case)[1].shape for case in cases]
    for pair in pairs:
        x, y, z = shapes[pair.case]
        prediction, truth = (mask.toarray().reshape(z, x, y).transpose(1, 2, 0) for mask in pair.masks)
        yield prediction, truth, CUBES


# What differs by definition: rows of question, an answer a package, and our reason


def empty_masks(ask: Callable[..., Brats]) -> Iterator[list[Any]]:
    """Yield what every package says where one mask or both are empty."""
    cube, none = CUBE, np.zeros_like(CUBE)
    for title, p, t, why in (
        ("truth empty, prediction not", cube, none, "tumour was invented"),
        ("prediction empty, truth not", none, cube, "tumour was missed"),
        ("both empty", none, none, "there is no error: the best value"),
    ):
        found, flat = ask(p, t, CUBES), [mask.reshape(1, -1) for mask in (p, t)]
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (p, t)]
        by_default, kept = (DiceMetric(ignore_empty=ignore)(*tensors).item() for ignore in (True, False))
        by_monai, counts = oracles.by_monai(*flat)[0], oracles.count_slices(*flat)
        sk = {
            word: getattr(sklearn.metrics, f"{word}_score")(flat[1][0], flat[0][0])
            for word in ("f1", "precision", "recall")
        }
        monai = f"{by_default:.4g}; with `ignore_empty=False` {kept:.4g}"
        yield [f"Dice, {title}", metrics.dice(counts)[0], monai, sk["f1"], None, found.get("global_bin_dsc"), why]
        for word in ("precision", "recall"):
            value, rule = METRICS[word](counts)[0], "0/0 is 1 without error, else 0"
            yield [f"{word}, {title}", value, by_monai[word][0], sk[word], None, None, rule]
        direct: tuple[Any, Any]
        try:
            direct = by_surface_distance(p, t, CUBES)
        except AttributeError as error:  # np.Inf, which numpy 2 lacks
            direct = (f"{type(error).__name__}: {str(error).partition(' was')[0]}",) * 2
        ours, monai_surface = surface_figures(p, t, CUBES), oracles.surface_by_monai(p, t, CUBES, 2)
        reasons = ("left out of the mean, counted and printed" if ours[0] else "no surface is wrong", why)
        for i, (word, key) in enumerate((("HD95", "hd95"), ("surface Dice", "nsd"))):
            theirs = found.get(f"global_bin_{key}")
            yield [f"{word}, {title}", ours[i], monai_surface[i], None, direct[i], theirs, reasons[i]]


def moved_cubes(ask: Callable[..., Brats]) -> Iterator[list[Any]]:
    """Yield what every package says of the HD95 of a cube moved along one axis, of voxels with unequal sides."""
    cube, spacing = CUBE, (1.0, 2.0, 5.0)
    for axis, name in ((0, "x"), (2, "z")):
        p = np.roll(cube, 2, axis)
        found = ask(p, cube, spacing)
        both = f"{found['global_bin_hd95']:.4g}; of lesions {found['sq_hd95']:.4g}" if found else None
        ours, monai = surface_figures(p, cube, spacing)[0], oracles.surface_by_monai(p, cube, spacing, 2)[0]
        question = f"HD95 of a cube moved by two voxels along {name}, of 1 x 2 x 5 mm"
        direct = by_surface_distance(p, cube, spacing)[0]
        yield [question, ours, monai, None, direct, both, "millimetres of the patient, along the right axis"]


def surfaces(pairs: list[Pair], brats: list[Brats]) -> Iterator[list[Any]]:
    """Yield the means of HD95 and surface Dice by every definition, and how far they are from ours."""

    def apart(own: list[float], values: list[float], how: str = "") -> str:
        gaps = np.abs(np.array(values) - own)
        return f"mean {np.mean(values):.4g}; from ours: median {np.median(gaps):.2g}, greatest {gaps.max():.3g}{how}"

    for title, key in (("voxels of the file", ""), ("as if of 0.9 x 1.1 x 5 mm", "thick")):
        for i, (metric, name, how, monai, official, why) in enumerate(SURFACES):
            by = {who: [pair.surfaces[key][who][i] for pair in pairs] for who in ("ours", "MONAI", "surface-distance")}
            theirs = [found[f"global_bin_{name}"] for found in brats if not key]  # it knows no thick slices
            yield [
                f"{metric.format(len(pairs))}, {title}",
                f"mean {np.mean(by['ours']):.4g}{how}",
                apart(by["ours"], by["MONAI"], monai),
                None,
                apart(by["ours"], by["surface-distance"]),
                apart(by["ours"], theirs, official) if theirs else None,
                why,
            ]


def averages(pairs: list[Pair]) -> list[Any]:
    """Return the row on the mean Dice of slices, many of which are empty in prediction and truth."""
    some = [pair for pair in pairs if pair.prediction == "eroded"]
    counts = Counts.concatenate([pair.counts for pair in some])
    dice, empty = metrics.dice(counts), int(np.isnan(metrics.dice(counts, np.nan)).sum())
    monai, sk = (
        np.concatenate([pair.values[who]["slices"]["dice"] for pair in some]) for who in ("MONAI", "scikit-learn")
    )
    with_tumour = dice[counts.tp + counts.fn > 0].mean()
    return [
        f"mean Dice of the {len(dice)} slices of `eroded`, {empty} of them empty twice",
        f"{dice.mean():.4g} over all, {with_tumour:.4g} over those with tumour; both are printed",
        f"{np.nanmean(monai):.4g} (0/0 is left out)",
        f"{np.nan_to_num(sk).mean():.4g} (0/0 is 0)",
        None,
        "slices are not averaged",
        "an average without its rule for empty slices says nothing",
    ]


def lesions(pairs: list[Pair], brats: list[Brats]) -> list[Any]:
    """Return the row on whole tumours against lesions."""
    whole = np.mean([float(metrics.dice(pair.counts.sum())) for pair in pairs])
    official, by_lesion = (np.mean([found[key] for found in brats]) for key in ("global_bin_dsc", "sq_dsc"))
    return [
        "mean Dice of these volumes, whole or by lesion",
        f"{whole:.4g}, of the whole volume",
        "whole volume",
        None,
        None,
        f"{official:.4g} whole; {by_lesion:.4g} the mean over lesions (connected components, matched one to one)",
        "volumetric; for our lesion-wise figures see below",
    ]


def definitions(pairs: list[Pair], brats: list[Brats], command: str | None) -> str:
    """Return the table of the differences of definition, every number of it measured."""

    def ask(*exam: Any) -> Brats:
        return by_brats(command, [exam])[0] if command else {}

    with_surface = [number for number, pair in enumerate(pairs) if pair.surfaces]
    own, theirs = [pairs[number] for number in with_surface], [brats[number] for number in with_surface if brats]
    with warnings.catch_warnings(action="ignore"):
        rows = [*empty_masks(ask), *moved_cubes(ask), *surfaces(own, theirs), averages(pairs)]
    rows += [lesions(own, theirs)] if brats else []
    return markdown_table(COLUMNS, [[_cell(value) for value in row] for row in rows])


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "-" if value is None else f"{value:.4g}"


def version_of(command: str) -> str:
    """Return the name and version of the BraTS package behind its command."""
    code = "from importlib.metadata import version as v; "
    code += 'print(f\'brats-evaluation {v("brats-evaluation")}, panoptica {v("panoptica")}\')'
    python = Path(command).resolve().parent / ("python.exe" if os.name == "nt" else "python")
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Measure, print, record; return the exit status."""
    options = parser("studies.oracles", __doc__, brats="brats-evaluate")
    options.add_argument("data", type=Path, help="folder of patients")
    options.add_argument("--workers", type=int, help="processes (default: one for each processor)")
    arguments = options.parse_args()
    command = shutil.which(arguments.brats)
    command = str(Path(command).absolute()) if command else None
    cases = find_cases(arguments.data).cases
    done = {
        job[0]: pairs for job, pairs in run_jobs(score, [*enumerate(cases)], "oracles", "patient", arguments.workers)
    }
    pairs = [pair for number in sorted(done) for pair in done[number]]
    brats = by_brats(command, exams(pairs, cases)) if command else []
    same, agree = agreement(
        [*compare_counts(pairs), *compare_surfaces(pairs), *compare_brats(pairs[: len(brats)], brats)]
    )
    slices = sum(len(own[0].counts.tp) for own in done.values())
    about = (
        f"`python -m studies.oracles {arguments.data.name}`, {machine(PACKAGES)}, "
        f"{version_of(command) if command else 'brats-evaluation not found: its rows are missing'}.\n\n"
        f"Data: `{arguments.data.name}`, {len(cases)} patients, {slices} slices on the native grid, {len(done[0])} "
        f"predictions for each ({', '.join(pair.prediction for pair in done[0])})."
    )
    record("made by", about, page=PAGE)
    record("the same definition", same, page=PAGE)
    record("differences of definition", definitions(pairs, brats, command), page=PAGE)
    return int(not agree)


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
