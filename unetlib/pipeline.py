"""From patients to scores in one call: prepare, train, tune, evaluate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.evaluation.evaluate import evaluate
from unetlib.loop import State
from unetlib.prediction.tuning import tune
from unetlib.recipe import Recipe
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.messages import first_process
from unetlib.support.paths import takes_paths


@dataclass(frozen=True)
class Outcome:
    """The result of a recipe: its slices, its run, the state of the training, and the scores (or `None`)."""

    prepared: Prepared
    run: Run
    state: State
    summary: dict[str, Any] | None


@takes_paths
def run_recipe(
    recipe: Recipe,
    prepared: Path,
    run: Run | Path | str,
    data: Path | None = None,
    part: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    **training: Any,
) -> Outcome:
    """Prepare, train, tune and evaluate a recipe; finished steps are reused, unfinished ones are resumed.

    `data`: the folder of patients; without it the slices in `prepared` are used as they are. `part`: the part of
    the split to score, such as `"val"`; without it nothing is scored. `training`: further arguments of `train`. A
    training that `max_steps` ends is neither tuned nor scored. Raises what those functions raise.
    """
    slices = prepare(data, prepared, recipe) if data else Prepared.open(prepared)
    run = Run.of(run)
    state = train(slices, run, recipe, device, threads=threads, **training)
    if state.epoch < recipe.epochs or not first_process():
        return Outcome(slices, run, state, None)
    tune(run, device, threads)
    summary = evaluate(run, split=part, device=device, threads=threads) if part else None
    return Outcome(slices, run, state, summary)
