"""Every figure of `unetlib.metrics` beside what other packages give for the same masks of real patients.

Run from the repository's root: `python -m benchmarks.oracles DATA`. It writes `ORACLES.md`. For every patient of
DATA there are eight predictions (`predictions` in `tests/oracles.py`), on the native grid, all slices. Surfaces are
measured with the voxels of the file and as if they were 0.9 x 1.1 x 5 mm: equal sides would hide a mixed-up axis.

The official package of the BraTS challenge needs an older numpy, so it lives in an environment of its own:
`python3 -m venv brats && brats/bin/pip install brats-evaluation`, then `--brats brats/bin/brats-evaluate`.

Ends with status 1 when a figure differs from another's of the same definition by more than 1e-6.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import sklearn.metrics
import torch
from monai.metrics import DiceMetric
from scipy import sparse
from surface_distance import metrics as surface

from tests import oracles
from tests.oracles import Spacing
from unetlib import metrics
from unetlib.data.patients import Case, find_cases, read_case
from unetlib.evaluation.evaluate import TOLERANCE_MM
from unetlib.metrics import METRICS, Counts, count, surface_figures
from unetlib.runs.provenance import processor
from unetlib.support.command import BEGINS_ANEW, run_command
from unetlib.support.jobs import run_jobs

MOST = 1e-6
THICK: Spacing = (0.9, 1.1, 5.0)
PACKAGES = ("unetlib", "numpy", "scipy", "scikit-learn", "monai", "torch", "surface-distance")
RESULTS = Path(__file__).with_name("ORACLES.md")
VOXELS_MONAI, VOXELS_BRATS = "HD95 between voxel centres, larger direction", "HD95 in voxels, both directions at once"
NSD_BRATS = "surface Dice of voxels, each direction alike, at half a voxel"


class Gaps(dict[tuple[str, str, str], dict[str, list[float]]]):
    """By row of the table (figure, our way, the other), then by what is compared: how many, and how far apart."""

    def add(self, row: tuple[str, str, str], what: str, ours: Any, theirs: Any) -> None:
        """Compare figures; both NaN or both infinite are equal, one of them NaN is infinitely far away.

        Distances above 1 mm are compared by their ratio, since MONAI keeps them in float32.
        """
        a, b = (np.atleast_1d(np.asarray(x, np.float64)) for x in (ours, theirs))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.zeros(a.shape)
        gap[~same] = np.nan_to_num(np.abs(a - b)[~same] / np.maximum(1, np.abs(b[~same])), nan=np.inf)
        entry = self.setdefault(row, {}).setdefault(what, [0, 0.0])
        entry[0], entry[1] = entry[0] + a.size, max(entry[1], gap.max(initial=0.0))

    def table(self) -> str:
        """Return the table in Markdown."""
        lines = ["| figure | ours | other | compared | greatest difference | agrees |", "|---|---|---|---|---|---|"]
        for row, parts in self.items():
            compared = ", ".join(f"{number} {what}" for what, (number, _) in parts.items())
            gap = max(part[1] for part in parts.values())
            lines.append(f"| {' | '.join(row)} | {compared} | {gap:.1e} | {'yes' if gap <= MOST else '**no**'} |")
        return "\n".join(lines)

    @property
    def agree(self) -> bool:
        """Whether every row does."""
        return all(gap <= MOST for parts in self.values() for _, gap in parts.values())


@dataclass
class Pair:
    """What the packages say of one prediction for one patient."""

    prediction: str
    case: int
    counts: Counts  # of each slice, ours
    figures: dict[str, dict[str, dict[str, np.ndarray]]]  # other -> "slices" or "patients" -> figure -> values
    matrix: torch.Tensor  # MONAI's confusion matrices
    masks: list[sparse.csr_matrix]  # prediction and truth, a row a slice
    surfaces: dict[str, dict[str, tuple[float, float]]]  # "" or "thick" -> by whom -> HD95 and surface Dice


def score(job: tuple[int, Case]) -> list[Pair]:
    """Ask everybody about all predictions for one patient."""
    torch.set_num_threads(1)
    volume, truth, _ = read_case(job[1])
    pairs = []
    for name, prediction in oracles.predictions(volume.voxels, truth).items():
        slices = [mask.transpose(2, 0, 1).reshape(mask.shape[2], -1) for mask in (prediction, truth)]
        whole = [mask.reshape(1, -1) for mask in slices]
        by_monai, matrix = oracles.by_monai(*slices)
        figures = {
            "MONAI": {"slices": by_monai, "patients": oracles.from_monai(matrix.sum(0, keepdim=True))},
            "scikit-learn": {"slices": oracles.by_sklearn(*slices), "patients": oracles.by_sklearn(*whole)},
            "scipy": {"slices": oracles.by_scipy(*slices), "patients": oracles.by_scipy(*whole)},
        }
        surfaces = {}
        if prediction.any() and truth.any():
            surfaces = {"": surfaces_of(prediction, truth, volume.spacing)}
            surfaces["thick"] = surfaces_of(prediction, truth, THICK)
        masks = [sparse.csr_matrix(mask) for mask in slices]
        pairs.append(Pair(name, job[0], count(*slices), figures, matrix, masks, surfaces))
    return pairs


def surfaces_of(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> dict[str, tuple[float, float]]:
    """Return HD95 and surface Dice by everybody's own definition."""
    distances = surface.compute_surface_distances(truth, prediction, spacing)
    direct = surface.compute_robust_hausdorff(distances, 95)
    plain = oracles.between_voxels(prediction, truth, (1.0, 1.0, 1.0))
    return {
        "ours": surface_figures(prediction, truth, spacing, TOLERANCE_MM),
        "surface-distance": (direct, surface.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)),
        "scipy": oracles.surface_by_definition(prediction, truth, spacing, TOLERANCE_MM),
        "MONAI": oracles.surface_by_monai(prediction, truth, spacing, TOLERANCE_MM),
        VOXELS_MONAI: (oracles.hd95_between_voxels(prediction, truth, spacing), np.nan),
        VOXELS_BRATS: (
            float(np.percentile(np.concatenate(plain), 95)),
            float(np.mean([(part <= 0.5).mean() for part in plain])),
        ),
    }


def compare(pairs: list[Pair]) -> Gaps:
    """Return how far every figure of ours is from the others'."""
    gaps = Gaps()
    by_prediction = defaultdict(list)
    for pair in pairs:
        by_prediction[pair.prediction].append(pair)
    for name, metric in METRICS.items():
        for other in ("MONAI", "scikit-learn", "scipy"):
            if name not in pairs[0].figures[other]["slices"]:
                continue
            row = (name, f"`{name}(count(...))`", other)
            for some in by_prediction.values():
                counts = Counts.concatenate([pair.counts for pair in some])
                groups = np.repeat([pair.case for pair in some], [len(pair.counts.tp) for pair in some])
                cases = counts.grouped(groups)[1]
                for what, part in (("slices", counts), ("patients", cases)):
                    theirs = np.concatenate([pair.figures[other][what][name] for pair in some])
                    gaps.add(row, what, metric(part, np.nan), theirs)
                pooled = pool(other, some)
                if name in pooled:
                    gaps.add(row, "pooled", metric(counts.sum(), np.nan), pooled[name])
    for pair in pairs:
        for found in pair.surfaces.values():
            for i, (word, call) in enumerate((("HD95", "[0]"), ("surface Dice at 2 mm", "[1]"))):
                for other in ("surface-distance", "scipy", "MONAI"):
                    if (word, other) == ("HD95", "MONAI"):
                        row = (VOXELS_MONAI, "scipy, by this definition, percentile in float32", other)
                        gaps.add(row, "volumes", found[VOXELS_MONAI][0], found[other][0])
                    else:
                        title = {"scipy": "scipy (nearest neighbours, by the definition)"}.get(other, other)
                        gaps.add(
                            (word, f"`surface_figures(...){call}`", title), "volumes", found["ours"][i], found[other][i]
                        )
    return gaps


def pool(other: str, some: list[Pair]) -> dict[str, np.ndarray]:
    """Return the figures of all slices of all patients at once, those that a package computes so."""
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


# The official package of BraTS, by its command


def by_brats(command: str, exams: Iterable[tuple[np.ndarray, np.ndarray, Spacing]]) -> list[dict[str, float]]:
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


def compare_brats(gaps: Gaps, pairs: list[Pair], shapes: list[tuple[int, ...]], command: str) -> list[dict[str, float]]:
    """Add the rows of the BraTS package; return what it says of each pair."""

    def exams() -> Iterable[tuple[np.ndarray, np.ndarray, Spacing]]:
        for pair in pairs:
            x, y, z = shapes[pair.case]
            prediction, truth = (np.asarray(mask.todense()).reshape(z, x, y).transpose(1, 2, 0) for mask in pair.masks)
            yield prediction, truth, (1.0, 1.0, 1.0)

    found = by_brats(command, exams())
    for pair, theirs in zip(pairs, found, strict=True):
        gaps.add(
            ("dice", "`dice(count(...).sum())`", "brats-evaluation"),
            "patients",
            metrics.dice(pair.counts.sum(), np.nan),
            theirs["global_bin_dsc"],
        )
        if pair.surfaces:
            hd95, nsd = pair.surfaces[""][VOXELS_BRATS]
            row = "scipy, by this definition", "brats-evaluation"
            gaps.add((VOXELS_BRATS, *row), "volumes", hd95, theirs["global_bin_hd95"])
            gaps.add((NSD_BRATS, *row), "volumes", nsd, theirs["global_bin_nsd"])
    return found


# What differs by definition


def definitions(pairs: list[Pair], brats: list[dict[str, float]], command: str | None) -> str:
    """Return the table of the differences of definition, every number of it measured."""
    cube = np.zeros((24, 24, 24), bool)
    cube[4:12, 4:12, 4:12] = True
    none, thick = np.zeros_like(cube), (1.0, 2.0, 5.0)
    probes = [
        ("truth empty, prediction not", cube, none, (1.0, 1.0, 1.0)),
        ("prediction empty, truth not", none, cube, (1.0, 1.0, 1.0)),
        ("both empty", none, none, (1.0, 1.0, 1.0)),
        ("two voxels along x, of 1 x 2 x 5 mm", np.roll(cube, 2, 0), cube, thick),
        ("two voxels along z, of 1 x 2 x 5 mm", np.roll(cube, 2, 2), cube, thick),
    ]
    theirs: list[dict[str, float]] = by_brats(command, [probe[1:] for probe in probes]) if command else [{}] * 5
    head = "| question | unetlib | MONAI | scikit-learn | surface-distance | brats-evaluation | our reason |"
    lines = [head, "|---|---|---|---|---|---|---|"]

    def line(question: str, *cells: Any) -> None:
        words = [cell if isinstance(cell, str) else "-" if cell is None else f"{cell:.4g}" for cell in cells]
        lines.append(f"| {' | '.join([question, *words])} |")

    with warnings.catch_warnings(action="ignore"):
        reasons = ("tumour was invented", "tumour was missed", "there is no error: the best value")
        for (title, p, t, spacing), found, why in zip(probes[:3], theirs, reasons, strict=False):
            flat = [mask.reshape(1, -1) for mask in (p, t)]
            pair = [torch.from_numpy(mask)[None, None].float() for mask in (p, t)]
            c = count(*flat)
            by_default, kept = (DiceMetric(ignore_empty=ignore)(*pair).item() for ignore in (True, False))
            monai = f"{by_default:.4g}; with `ignore_empty=False` {kept:.4g}"
            sk = {
                word: getattr(sklearn.metrics, f"{word}_score")(flat[1][0], flat[0][0])
                for word in ("f1", "precision", "recall")
            }
            line(f"Dice, {title}", metrics.dice(c)[0], monai, sk["f1"], None, found.get("global_bin_dsc"), why)
            by_monai = oracles.by_monai(*flat)[0]
            for word in ("precision", "recall"):
                value = METRICS[word](c)[0]
                line(
                    f"{word}, {title}", value, by_monai[word][0], sk[word], None, None, "0/0 is 1 without error, else 0"
                )
            try:
                direct = surface.compute_surface_distances(t, p, spacing)
                sd = surface.compute_robust_hausdorff(direct, 95), surface.compute_surface_dice_at_tolerance(direct, 2)
            except AttributeError as error:  # np.Inf, which numpy 2 has not
                sd = (f"{type(error).__name__}: {str(error).partition(' was')[0]}",) * 2
            ours, by = surface_figures(p, t, spacing), oracles.surface_by_monai(p, t, spacing, 2)
            no_hd95 = "left out of the mean, counted and printed" if ours[0] else "no surface is wrong"
            line(f"HD95, {title}", ours[0], by[0], None, sd[0], found.get("global_bin_hd95"), no_hd95)
            line(f"surface Dice, {title}", ours[1], by[1], None, sd[1], found.get("global_bin_nsd"), why)
        for (title, p, t, spacing), found in zip(probes[3:], theirs[3:], strict=True):
            direct = surface.compute_robust_hausdorff(surface.compute_surface_distances(t, p, spacing), 95)
            both = f"{found['global_bin_hd95']:.4g}; of lesions {found['sq_hd95']:.4g}" if found else None
            values = (
                surface_figures(p, t, spacing)[0],
                oracles.surface_by_monai(p, t, spacing, 2)[0],
                None,
                direct,
                both,
            )
            line(f"HD95 of a cube moved by {title}", *values, "millimetres of the patient, along the right axis")
    with_surface = [
        (pair, found) for pair, found in zip(pairs, brats or [{}] * len(pairs), strict=True) if pair.surfaces
    ]

    def apart(key: str, i: int, spread: str, get: Any = None) -> str:
        values = [get(f) if get else pair.surfaces[spread][key][i] for pair, f in with_surface]
        own = [pair.surfaces[spread]["ours"][i] for pair, _ in with_surface]
        gap = np.abs(np.array(values) - own)
        return f"mean {np.mean(values):.4g}; from ours: median {np.median(gap):.2g}, greatest {gap.max():.3g}"

    for title, spread in (("voxels of the file", ""), ("as if of 0.9 x 1.1 x 5 mm", "thick")):
        mean = [float(np.mean([pair.surfaces[spread]["ours"][i] for pair, _ in with_surface])) for i in (0, 1)]
        given = brats and not spread
        line(
            f"HD95 of {len(with_surface)} volumes, {title}",
            f"mean {mean[0]:.4g}: larger of two directed percentiles, surface weighted by its area",
            f"{apart('MONAI', 0, spread)}: every voxel of the surface counts alike",
            None,
            apart("surface-distance", 0, spread),
            f"{apart('', 0, spread, lambda f: f['global_bin_hd95'])}: one percentile of both directions"
            if given
            else None,
            "published code; does not change with how a surface is cut into voxels",
        )
        line(
            f"surface Dice of these, {title}",
            f"mean {mean[1]:.4g} at {TOLERANCE_MM:g} mm",
            f"{apart('MONAI', 1, spread)} (`use_subvoxels=True`)",
            None,
            apart("surface-distance", 1, spread),
            f"{apart('', 1, spread, lambda f: f['global_bin_nsd'])}: at half a voxel" if given else None,
            "the tolerance is in millimetres and printed with the figure; half a voxel asks for identity",
        )
    c = Counts.concatenate([pair.counts for pair in pairs if pair.prediction == "eroded"])
    dice, slices = metrics.dice(c), [p for p in pairs if p.prediction == "eroded"]
    defined = metrics.dice(c, np.nan)
    line(
        f"mean Dice of the {len(dice)} slices of `eroded`, {int(np.isnan(defined).sum())} of them empty twice",
        f"{dice.mean():.4g} over all, {dice[c.tp + c.fn > 0].mean():.4g} over those with tumour; both are printed",
        f"{np.nanmean(np.concatenate([p.figures['MONAI']['slices']['dice'] for p in slices])):.4g} (0/0 is left out)",
        f"{np.nan_to_num(np.concatenate([p.figures['scikit-learn']['slices']['dice'] for p in slices])).mean():.4g} "
        "(0/0 is 0)",
        None,
        "slices are not averaged",
        "an average without its rule for empty slices says nothing",
    )
    if brats:
        whole = [float(metrics.dice(pair.counts.sum())) for pair, _ in with_surface]
        lesions = np.mean([found["sq_dsc"] for _, found in with_surface])
        line(
            "mean Dice of these volumes, whole or by lesion",
            f"{np.mean(whole):.4g}, of the whole volume",
            "whole volume",
            None,
            None,
            f"{np.mean([f['global_bin_dsc'] for _, f in with_surface]):.4g} whole; {lesions:.4g} the mean over lesions "
            "(connected components, matched one to one)",
            "the recipe reports whole tumour; lesions need a choice of connectivity and matching",
        )
    return "\n".join(lines)


def machine(brats: str | None) -> str:
    """Describe in one line where this ran."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {packages}, "
        f"{brats or 'brats-evaluation not found: its rows are missing'}"
    )


def version_of(command: str) -> str:
    """Return the name and version of the BraTS package behind its command."""
    code = "from importlib.metadata import version as v; "
    code += 'print(f\'brats-evaluation {v("brats-evaluation")}, panoptica {v("panoptica")}\')'
    python = Path(command).resolve().parent / ("python.exe" if os.name == "nt" else "python")
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Measure, print, record; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracles", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of patients")
    parser.add_argument(
        "--brats", default="brats-evaluate", metavar="COMMAND", help="default: %(default)s, if it is there"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one for each processor)")
    args = parser.parse_args()
    found = shutil.which(args.brats)
    command = str(Path(found).absolute()) if found else None
    print(f"BraTS: {command or 'brats-evaluate was not found; see the top of benchmarks/oracles.py'}")
    cases = find_cases(args.data).cases
    jobs = list(enumerate(cases))
    done = {job[0]: pairs for job, pairs in run_jobs(score, jobs, "oracles", "patient", args.workers)}
    pairs = [pair for index, _ in jobs for pair in done[index]]
    gaps = compare(pairs)
    shapes = [read_case(case)[1].shape for case in cases] if command else []
    brats = compare_brats(gaps, pairs, shapes, command) if command else []
    version = version_of(command) if command else None
    text = (
        "# Our figures beside those of others\n\n"
        f"`python -m benchmarks.oracles {args.data.name}`, {datetime.date.today()}: {machine(version)}.\n\n"
        f"Data: `{args.data.name}`, {len(cases)} patients, {sum(len(done[i][0].counts.tp) for i, _ in jobs)} slices on "
        f"the native grid, {len(done[0])} predictions for each ({', '.join(pair.prediction for pair in done[0])}). How "
        "each is made and compared: `benchmarks/oracles.py`, `tests/oracles.py`. 0/0 must be 0/0 for both.\n\n"
        f"## The same definition: at most {MOST:g} apart\n\n{gaps.table()}\n\n"
        "Distances above 1 mm are compared by their ratio, since MONAI keeps them in float32. Where another package "
        "defines a surface figure in another way, it is compared with scipy by that definition, so that what is left "
        "between it and ours is definition alone.\n\n"
        "## Differences of definition\n\nEvery number here is measured by the command, too. `nan`: the package leaves "
        "it undefined; -: it has no such figure.\n\n"
        f"{definitions(pairs, brats, command)}\n"
    )
    RESULTS.write_text(text, encoding="utf-8")
    print(text)
    return int(not gaps.agree)


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
