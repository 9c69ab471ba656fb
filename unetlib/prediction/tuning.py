"""Choose how probabilities become masks, on the validation patients of a run."""

import shutil
from pathlib import Path

import numpy as np

from unetlib.data.patients import read_case
from unetlib.data.split import Split
from unetlib.prediction.decision import Decision, choose, dice_table, read_decision, write_decision
from unetlib.prediction.inference import Predictor
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import BEST, read_run
from unetlib.runs.provenance import own_cohort, read_provenance, require_unchanged
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.files import PARTIAL, digest, locked, read_json, refuse_link, sha256, takes_paths, write_json
from unetlib.support.jobs import progress, say


@takes_paths
def tune(run: Path, device: str = "auto", threads: int | None = None) -> Decision:
    """Choose threshold and smallest component for `best_model.pth` of a run, and keep them in `decision.json`.

    The pair with the highest mean Dice over the validation patients (all slices, native grid) wins; a test patient
    is never read. A run whose recipe does not `tune` keeps its threshold. Stopped, it goes on where it was; done,
    it is reused. `threads` is how many a CPU computes with; without it, one for each idle processor. Raises
    `UnetlibError` when the run or its validation patients cannot be read.
    """
    recipe = Recipe(**read_run(run)["recipe"])
    if (known := read_decision(run, recipe)) is not None:
        if (run / PARTIAL).is_dir():  # where a kill came before the last line below
            with locked(run):
                shutil.rmtree(run / PARTIAL, ignore_errors=True)
        return known
    predictor = Predictor.open(run, device, decision=Decision(recipe.threshold), threads=threads)
    patients = set(Split.load(run / "split.json").val)
    cohort, prepared = own_cohort(run), read_provenance(run).get("cases", {})
    cases = [case for case in cohort.cases if case.patient in patients and (not prepared or case.id in prepared)]
    require_unchanged(prepared, cases, cohort)
    if missing := sorted(patients - {case.patient for case in cases}):
        raise UnetlibError(
            f"{cohort.root} lacks the validation patients {', '.join(missing)}, on whom threshold and smallest "
            f"component are chosen. Put them back; if the data moved, change `data` in {run / 'recipe.json'}."
        )
    with locked(run):
        weights = sha256(run / BEST)
        refuse_link(run / PARTIAL)
        parts = {
            case.id: run / PARTIAL / f"{case.id}-{digest([weights, case.stamp(cohort.root)])[:16]}.json"
            for case in cases
        }
        todo = [case for case in cases if not parts[case.id].exists()]
        with progress(len(cases), "tune", "case", len(cases) - len(todo)) as bar:
            for case in todo:
                volume, truth, _ = read_case(case)
                table = dice_table(predictor.volume(volume.voxels), truth, volume.spacing)
                write_json(parts[case.id], {"dice": table})
                bar.update()
        by_patient: dict[str, list[list[list[float]]]] = {}
        for case in cases:  # a patient with two time points counts once
            by_patient.setdefault(case.patient, []).append(read_json(parts[case.id])["dice"])
        tables = [np.mean(own, axis=0).tolist() for own in by_patient.values()]
        decision = choose(tables)
        mean = float(np.max(np.mean(tables, axis=0)))
        write_decision(run, decision, mean, len(patients))
        shutil.rmtree(run / PARTIAL)
    say(
        f"{run}: threshold {decision.threshold:g} and components from {decision.smallest_ml:g} ml on, chosen on "
        f"{counted(len(patients), 'validation patient')}: mean Dice {mean:.4f} (per patient, all slices, native grid)."
    )
    return decision
