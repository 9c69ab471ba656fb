"""Tune how probabilities become masks, on the validation patients of a run."""

from pathlib import Path

import numpy as np

from unetlib.data.patients import read_case
from unetlib.prediction.decision import Decision, choose, dice_table, read_decision, write_decision
from unetlib.prediction.predictor import Predictor
from unetlib.runs.provenance import find_own, own_cases
from unetlib.runs.run import Run
from unetlib.support.errors import counted
from unetlib.support.files import locked, read_json, takes_paths, write_json
from unetlib.support.jobs import progress
from unetlib.support.messages import say
from unetlib.support.parts import Parts


@takes_paths
def tune(run: Run | Path | str, device: str = "auto", threads: int | None = None) -> Decision:
    """Choose threshold and smallest component for `best_model.pth` of a run, and write them to `decision.json`.

    The pair with the highest mean Dice over the validation patients (all slices, native grid) is chosen; test
    patients are never read. If the recipe does not `tune`, the run keeps its threshold. A stopped call is resumed, a
    finished one reused. `threads` is the number of CPU threads, by default one for each idle processor. Raises
    `UnetlibError` when the run or its validation patients cannot be read.
    """
    run = Run.of(run)
    recipe = run.recipe
    if (known := read_decision(run, recipe)) is not None:
        if (parts := Parts(run.folder)).left:  # left by a kill before the last line below
            with locked(run.folder):
                parts.remove()
        return known
    cohort = find_own(run)
    asked = [(member, case) for member in run.members for case in own_cases(member, cohort, "val")]
    cases, patients = [case for _, case in asked], {case.patient for _, case in asked}
    with locked(run.folder):
        parts, weights = Parts.open(run.folder), {member: member.weights for member in run.members}
        paths = {
            case.id: parts.path(case.id, weights[member], case.stamp(cohort.root), recipe.mirror)
            for member, case in asked
        }
        todo = [(member, case) for member, case in asked if not paths[case.id].exists()]
        threshold = Decision(recipe.threshold)
        predictors = {member: Predictor.open(member, device, threshold, threads) for member in run.members}
        with progress(len(cases), "tune", "case", len(cases) - len(todo)) as bar:
            for member, case in todo:
                volume, truth, _ = read_case(case)
                table = dice_table(predictors[member].volume(volume.voxels)[0], truth, volume.spacing)
                write_json(paths[case.id], {"dice": table})
                bar.update()
        by_patient: dict[str, list[list[list[float]]]] = {}
        for case in cases:  # a patient with two time points counts once
            by_patient.setdefault(case.patient, []).append(read_json(paths[case.id])["dice"])
        tables = [np.mean(own, axis=0).tolist() for own in by_patient.values()]
        decision, mean = choose(tables), float(np.max(np.mean(tables, axis=0)))
        write_decision(run, decision, mean, len(patients), recipe.mirror)
        parts.remove()
    say(
        f"{run}: threshold {decision.threshold:g} and components from {decision.smallest_ml:g} ml on, chosen on "
        f"{counted(len(patients), 'validation patient')}: mean Dice {mean:.4f} (per patient, all slices, native grid)."
    )
    return decision
