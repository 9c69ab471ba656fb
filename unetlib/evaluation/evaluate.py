"""Evaluate a trained network on patients it has not seen.

Each score depends on four choices, and all of them are reported: the grid (the model's 96 x 96, or the native one of
the MRI), the slices (only those with tumour, as published, or all, as in real use), the aggregation (see
`unetlib.metrics`), and the metric.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unetlib import metrics
from unetlib.data.cases import has_nominal_spacing, require_spacing
from unetlib.data.patients import Case, read_regions
from unetlib.data.regions import region_names
from unetlib.data.slices import Window, mask_to_slices, slices_to_volume
from unetlib.data.split import PARTS
from unetlib.evaluation.scores import ScoreFolder, Scores, compare
from unetlib.evaluation.summary import SUMMARY_FILE, read_earlier
from unetlib.evaluation.unseen import choose, told
from unetlib.prediction.predictor import Predictor
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.files import digest, locked, refuse_link, write_json
from unetlib.support.messages import say, warn
from unetlib.support.paths import takes_paths


@takes_paths
def evaluate(
    run: Run | Path | str | Sequence[Run | Path | str],
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
    assume: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Score `best_model.pth` of a run; return the summary, and write it with its details.

    `run` may be several runs, whose probabilities are averaged; patients and folder are those of the first. Without
    `data`, the patients are those of one part of the run's own split (`test` by default; `val`, `train`, `all`). With
    `data`, they come from another folder: all from whom the run has not learned (compared by names and by the voxels of
    the images), unless `split` is given; `assume` is the orientation of files that do not state one. Writes
    `slices.csv` (counts of every slice), `patients.csv` and `summary.json`, in `RUN/evaluation/` for the run's own test
    patients and in a subfolder otherwise; for a run that comes with the library, in `phantoms-evaluation/` of the
    working directory. A stopped call is resumed, a finished one reused, also where nothing can be written (unless cases
    were left out). `threads`: CPU threads, by default one for each idle processor. Raises
    `UnetlibError` when the run or the patients cannot be read, the files of the run's own patients have changed, or
    another process is scoring the same patients.
    """
    if assume and not data:
        raise UnetlibError(
            "an orientation can only be assumed with --data; the run's own patients are read as they were prepared."
        )
    if split not in (None, *PARTS, "all"):
        raise UnetlibError(f"there is no part {split!r}; {', '.join(PARTS)} or all was expected.")
    runs = Run.several(run)
    folder = _folder(runs, data, split)
    stored = None if runs[0].shipped and not folder.exists() else folder  # a refused call leaves no folder here
    cohort, cases, notes = choose(runs, data, split, stored, assume)
    predictor = Predictor.open(runs, device, threads=threads)
    cases = [replace(case, fill=case.fill and predictor.takes_gaps) for case in cases]  # each run has its own rule
    assumed = [cohort.assume] if cohort.assume else []
    made_from = {case.id: [predictor.key, case.stamp(cohort.root), case.patient, *assumed] for case in cases}
    each = predictor.members if len(runs) > 1 else [predictor]
    note = told([*notes, *((one, member.note) for one, member in zip(runs, each, strict=True))], len(runs) > 1)
    without = cohort.left_out if data else {}
    for about_data in cohort.notes if data else ():
        warn(about_data)
    scored = ScoreFolder.open(folder, made_from | {id: [reason] for id, reason in without.items()}, note)
    begun = scored.parts.left  # perhaps by a call that runs now
    done = None if begun else scored.done()
    with nullcontext() if done and not done["left_out"] else locked(folder, belongs_to=runs[0].folder):
        if begun:
            done = scored.done()
        if done:
            again = [case for case in cases if case.id in done["left_out"]]  # perhaps they can be read now
            if len(_score_missing(predictor, again, scored, strict=False)) == len(again):
                for name, reason in done["left_out"].items():
                    warn(f"left out {name}: {reason}")
                say(f"{folder} is done already, for these weights and patients: reused.")
                return done
        left_out = without | _score_missing(predictor, cases, scored, strict=data is None)
        for name, reason in left_out.items():
            warn(f"left out {name}: {reason}")
        cases = [case for case in cases if case.id not in left_out]
        if not cases:
            reasons = {*left_out.values()}
            why = f". {reasons.pop()}" if len(reasons) == 1 else ", for the reasons above."
            raise UnetlibError(f"{cohort.root}: no case can be scored{why}")
        about = {
            "split": split or ("unseen" if data else "test"),
            "data": str(data.resolve() if data else cohort.root),
            "left_out": left_out,
            **({"epoch": predictor.epochs[0]} if len(predictor.epochs) == 1 else {}),
            "runs": [
                {"weights": one.weights, "epochs": member.epochs} | ({"run": str(one)} if len(runs) > 1 else {})
                for one, member in zip(runs, each, strict=True)
            ],
            "decision": predictor.decision.as_dict(),
        }
        return scored.write(cases, about)


def _score_missing(predictor: Predictor, cases: list[Case], scored: ScoreFolder, strict: bool) -> dict[str, str]:
    """Score every case that has no scores yet; return the cases that cannot be read, with the reason.

    With `strict` such a case is an error, since leaving out a test patient would change the scores.
    """
    left_out = {}
    for case in scored.missing(cases, "evaluate"):
        try:
            volume, truth = read_regions(case, predictor.recipe)
            require_spacing(case.id, volume.spacing, predictor.dims)
            given = {"case": case.id, "patient": case.patient}, has_nominal_spacing(case.id, volume.spacing)
            scores = score_prediction(predictor, volume.voxels, truth, volume.spacing, *given)
        except UnetlibError as error:
            reason = str(error).removeprefix(f"{case.id}: ")
            if strict:
                raise UnetlibError(f"{case.id}: {reason}") from error
            left_out[case.id] = reason
        else:
            write_json(scored.part(case), scores)
    return left_out


def _folder(runs: list[Run], data: Path | None, part: str | None) -> Path:
    """Return the folder of the result; raises `UnetlibError` if it holds the result of other data."""
    folder = runs[0].evaluation
    refuse_link(folder)
    if len(runs) > 1:
        folder = folder / f"ensemble-{digest([run.weights for run in runs])[:8]}"
    if data is None:
        return folder if part in (None, "test") else folder / str(part)
    folder = folder / "-".join(filter(None, ("data", data.resolve().name, part)))
    known = read_earlier(folder / SUMMARY_FILE)
    if known is not None and Path(str(known.get("data", ""))).resolve() != data.resolve():
        raise UnetlibError(f"{folder} holds the result of another folder of that name. Rename it first.")
    return folder


def score_prediction(
    predictor: Predictor,
    voxels: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, float, float],
    names: dict[str, str],
    nominal: bool = False,
) -> Scores:
    """Return the scores of what a predictor finds in a volume, with the counts on both grids.

    `voxels`: (X, Y, Z) or (C, X, Y, Z) in LPS order. `truth`: (K, X, Y, Z) booleans. `spacing`, `names` and `nominal`
    as in `compare`. Raises `UnetlibError` unless truth and prediction have the same regions.
    """
    if len(truth) != predictor.channels[1]:
        raise UnetlibError(
            f"its masks are of {counted(len(truth), 'region')}, and the predictor finds {predictor.channels[1]}. Use "
            "`score_prediction` with a reference for each of them."
        )
    found, window = predictor.all_slices(voxels, spacing), Window.of(voxels, predictor.recipe, spacing)
    prediction = predictor.decision.mask(slices_to_volume(found, truth.shape[1:], window), spacing)
    small = mask_to_slices(truth, predictor.recipe, window=window).numpy()
    counts = {"model": metrics.count(found.numpy() >= predictor.decision.threshold, small)}
    return compare(prediction, truth, spacing, names, counts, nominal, region_names(predictor.recipe))
