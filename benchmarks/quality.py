"""How long the recipe takes to reach its own quality, and whether bf16 costs any of it.

`python -m benchmarks.quality [DATA]`. Every seed trains the published recipe once in each number format that the
machine computes in, on DATA or, without it, on the synthetic cohort. The quality of a run is the pooled Dice on its
validation slices (never the test split); it is reached by the first epoch that is no worse than the last one.
Runs are kept in --work: a stopped benchmark resumes. Seconds are those of training with all processors, from
`latest_checkpoint.pth`; every epoch is taken to last equally long.
"""

import statistics
from pathlib import Path

import torch

from benchmarks.common import markdown_table, parser, report
from unetlib import Recipe, make_cohort, prepare, train
from unetlib.engine.device import resolve_precision
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.support.command import run_command


def reached(history: list[dict[str, float]]) -> int:
    """Return the first epoch whose validation Dice is no worse than that of the last."""
    return next(int(row["epoch"]) for row in history if row["val_dice"] >= history[-1]["val_dice"])


def mean_and_deviation(values: list[float]) -> str:
    """Return the mean with the standard deviation, where there is more than one value."""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    """Train what is missing, print, record."""
    options = parser("benchmarks.quality", __doc__)
    options.add_argument("data", nargs="?", type=Path)
    options.add_argument("--work", type=Path, default=Path("work/quality"))
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    arguments = options.parse_args()
    data, name = arguments.data or arguments.work / "phantom", arguments.data.name if arguments.data else "synthetic"
    if not arguments.data:
        make_cohort(data)
    prepared = prepare(data, arguments.work / f"{name}-prepared")
    rows, final = [], dict[str, list[float]]()
    for precision in arguments.precisions:
        for seed in arguments.seeds:
            run = arguments.work / f"{name}-{precision}-{seed}"
            train(prepared.folder, run, Recipe.published.but(precision=precision, seed=seed), "cpu")
            progress = load_checkpoint(Run(run).latest)["progress"]
            history, taken = progress["history"], progress["seconds"]
            epoch, dice = reached(history), history[-1]["val_dice"]
            final.setdefault(precision, []).append(dice)
            seconds = taken * epoch / len(history)
            rows.append([precision, seed, f"{dice:.3f}", epoch, f"{seconds:.0f}", f"{taken:.0f}"])
    columns = ("precision", "seed", "final validation Dice", "reached in epoch", "seconds to it")
    means = [f"{precision} {mean_and_deviation(values)}" for precision, values in final.items()]
    arguments.data = arguments.work = None  # paths of this machine
    report(
        "quality",
        f"Time to quality, and precision: {name}",
        f"Published recipe, {len(prepared.indices('train'))} training and {len(prepared.indices('val'))} validation "
        f"slices. `auto` takes {resolve_precision('auto', torch.device('cpu'))} here.",
        markdown_table((*columns, "seconds of 10 epochs"), rows),
        f"Final validation Dice: {', '.join(means)}.",
        options=arguments,
        packages=("torch", "lightning-fabric", "numpy"),
        statistic="one run each",
        section=f"quality {name}",
    )


if __name__ == "__main__":
    run_command(main)
