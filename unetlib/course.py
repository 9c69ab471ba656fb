"""The main job from beginning to end on the embedded synthetic cohort."""

import subprocess
import sys
import time
from pathlib import Path

from unetlib.checkpoint import LATEST
from unetlib.errors import UnetlibError
from unetlib.evaluation import evaluate, results_table
from unetlib.jobs import say
from unetlib.patients import find_cases
from unetlib.phantom import make_cohort
from unetlib.plots import case_figure, make_figures, save
from unetlib.prepare import prepare
from unetlib.training import recipe_of, train

PATIENTS, WIDTH, EPOCHS = 24, 16, 10  # width 32 as in the recipe would take four times as long


def run_course(out: Path) -> None:
    """Make a cohort in `out`, prepare it, train, kill and resume, evaluate and draw; reuse what is done.

    The training process is really killed once, as soon as it has written a checkpoint, and the same
    command then goes on. Raises `UnetlibError` when a step fails.
    """
    data, prepared, run = out / "cohort", out / "prepared", out / "run"
    _title(1, f"A synthetic cohort of {PATIENTS} patients: real anatomy, invented tumours")
    make_cohort(data, PATIENTS)
    _title(2, "Prepare: volumes to slices, split by patient")
    say(str(prepare(data, prepared)))
    _title(3, f"Train a U-Net of width {WIDTH} for {EPOCHS} epochs; killed once, and resumed")
    if not (run / LATEST).exists():
        _train_until_killed(prepared, run)
    train(prepared, run, recipe_of(run).but(width=WIDTH, epochs=EPOCHS))
    _title(4, "Evaluate on test patients, whom the network has never seen")
    summary = evaluate(run)
    _title(5, "Figures")
    figures = make_figures(run, out / "figures")
    figures.append(out / "figures" / "cohort.png")
    save(case_figure(find_cases(data).cases[:3]), figures[-1])
    say("\n".join(map(str, figures)))
    _title(6, "Results")
    say(results_table(summary))
    say(
        f"\nWhere to look next: the figures above; {run / 'evaluation' / 'patients.csv'}, patient by patient;\n"
        f"`unetlib predict {run} IMAGE --out FOLDER` for an image of your own; `unetlib --help` for the rest."
    )


def _train_until_killed(prepared: Path, run: Path) -> None:
    """Start the training in a process of its own and kill it when it has a checkpoint in mid-epoch."""
    choices = ["--width", str(WIDTH), "--epochs", str(EPOCHS), "--checkpoint-every", "20"]
    process = subprocess.Popen([sys.executable, "-m", "unetlib", "train", str(prepared), str(run), *choices])
    try:
        while not (run / LATEST).exists() and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    if not (run / LATEST).exists():
        raise UnetlibError(f"the training of {run} ended before its first checkpoint; its message stands above.")
    say("\n--- the training process was killed; the same command goes on from its last checkpoint ---")


def _title(number: int, text: str) -> None:
    say(f"\n== {number}. {text}")
