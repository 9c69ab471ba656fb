"""Tune how probabilities become masks, on the validation patients of a run."""

from pathlib import Path
from typing import Any

import numpy as np

from unetlib.data.patients import read_regions
from unetlib.data.regions import region_names
from unetlib.prediction.decision import (
    SIZES_ML,
    THRESHOLDS,
    Decision,
    Decisions,
    choose,
    dice_table,
    joined,
    keeps_largest,
    read_decision,
    write_decision,
)
from unetlib.prediction.predictor import Predictor, require_members
from unetlib.runs.provenance import find_own, own_cases
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.files import locked, read_json, write_json
from unetlib.support.jobs import watched
from unetlib.support.messages import say, warn
from unetlib.support.parts import Parts
from unetlib.support.paths import takes_paths

UNTUNED = 0.5  # the threshold of a region that no validation patient has


@takes_paths
def tune(run: Run | Path | str, device: str = "auto", threads: int | None = None) -> Decision | Decisions:
    """Choose threshold and smallest component for `best_model.pth` of a run, and write them to `decision.json`.

    For each region, the pair with the highest mean Dice over the validation patients (all slices, native grid) is
    chosen; test patients are never read. If the recipe does not `tune`, the run keeps its threshold. A stopped call is
    resumed, a finished one reused. `threads` is the number of CPU threads, by default one for each idle processor.
    Raises `UnetlibError` when the run or its validation patients cannot be read, or none of these has a tumour.
    """
    run = Run.of(run)
    recipe = run.recipe
    names = region_names(recipe)
    if (known := read_decision(run, recipe)) is not None:
        if (parts := Parts(run.folder)).left:  # left by a kill before the last line below
            with locked(run.folder):
                parts.remove()
        return known
    require_members(run)
    cohort = find_own(run)
    asked = [(member, case) for member in run.members for case in own_cases(member, cohort, "val")]
    with locked(run.folder):
        parts, weights = Parts.open(run.folder), {member: member.weights for member in run.members}
        paths = {
            case.id: parts.path(case.id, weights[member], case.stamp(cohort.root), recipe.mirror)
            for member, case in asked
        }
        todo = [(member, case) for member, case in asked if not paths[case.id].exists()]
        threshold = Decision(recipe.threshold)
        predictors = {member: Predictor.open(member, device, threshold, threads) for member in run.members}
        for member, case in watched(todo, "tune", "case", len(asked) - len(todo)):
            volume, truth = read_regions(case, recipe)
            found = predictors[member].volume(volume.voxels, volume.spacing)
            tables = [
                dice_table(found[k], truth[k], volume.spacing, keeps_largest(name)) for k, name in enumerate(names)
            ]
            dice = tables if len(names) > 1 else tables[0]
            write_json(paths[case.id], {"dice": dice, "tumour": truth.any((1, 2, 3)).tolist()})
        by_patient, tumour = dict[str, list[Any]](), np.zeros(len(names), bool)
        for _, case in asked:  # a patient with two time points counts once
            part = read_json(paths[case.id])
            by_patient.setdefault(case.patient, []).append(part["dice"])
            tumour |= np.array(part.get("tumour", True))  # one value, or none, of an older version
        if not tumour.any():
            raise UnetlibError(
                f"{run}: no validation patient has a tumour, so what marks least would be chosen. Prepare again with "
                "another seed or more patients, and train a new run."
            )
        of_patients = np.array([np.mean(own, axis=0) for own in by_patient.values()])
        of_patients = of_patients.reshape(len(by_patient), len(names), len(THRESHOLDS), len(SIZES_ML))
        regions, dices = {}, {}
        for k, name in enumerate(names):
            mean = np.mean(of_patients[:, k], axis=0)
            if tumour[k]:
                regions[name], dices[name] = choose(of_patients[:, k].tolist(), keeps_largest(name)), float(mean.max())
                continue
            regions[name] = Decision(UNTUNED, keep_largest=keeps_largest(name))
            dices[name] = float(mean[THRESHOLDS.index(UNTUNED), SIZES_ML.index(0.0)])
            warn(
                f"{run}: no validation patient shows {name}, so what marks least of it would be chosen: the threshold "
                f"stays {UNTUNED}, and components of any size are kept."
            )
        decision, several = joined(regions), len(names) > 1
        write_decision(run, decision, dices if several else dices[names[0]], len(by_patient), recipe.mirror)
        parts.remove()
    for name, one in (item for item, there in zip(regions.items(), tumour, strict=True) if there):
        say(
            f"{run}{f', {name}' if several else ''}: threshold {one.threshold:g} and components from "
            f"{one.smallest_ml:g} ml on, chosen on {counted(len(by_patient), 'validation patient')}: mean Dice "
            f"{dices[name]:.4f} (per patient, all slices, native grid)."
        )
    return decision
