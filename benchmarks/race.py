"""How good a network is after 10, 20 and 40 minutes of one core: ours, and peers trained as their tutorials show.

`python -m benchmarks.race DATA [--only strong basic ...]`. Fold 0 of the study of `studies.best`: 42 patients train, 14
validate. Every contender has one core, two run at a time on a quiet machine, and the clock stops while they are scored:
mean volumetric Dice of the 14 over all slices, native grid, at a threshold of 0.5. Peers have one training with a
constant learning rate, scored on the way; ours has one training for each time, since its learning rate falls to 0.
Everybody is scored with the last weights, so none is chosen on the 14. Ours begins with the weights that come with the
library, and once at random (`scratch`). What is measured is kept in --work. `resnet` needs an environment of its own:
see CONTRIBUTING.md.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.common import machine, markdown_table, parser, record
from benchmarks.peers import PEERS, Peer, Volumes
from unetlib import Predictor, Recipe, Run, UnetlibError, find_cases, metrics, prepare, train
from unetlib.data.patients import read_case
from unetlib.data.split import Split
from unetlib.prediction.decision import Decision
from unetlib.prediction.predictor import Trained
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.show.plots import DISCLAIMER, save
from unetlib.support.command import run_command
from unetlib.support.errors import first_of
from unetlib.support.files import read_json, write_json
from unetlib.support.messages import say

MINUTES = (2.5, 5, 10, 20, 40)  # of peers
EPOCHS = {5: 12, 10: 25, 20: 50, 40: 100}  # of ours, 24 s of a core each
PAGE = Path(__file__).with_name("RACE.md")
Predict = Callable[[np.ndarray], np.ndarray]  # image to probabilities, both (X, Y, Z)


NAMES = {
    "strong": "ours: Recipe.strong",
    "scratch": "ours, from random weights",
    "basic": "MONAI BasicUNet",
    "attention": "MONAI AttentionUnet",
    "brain-segmentation": "brain-segmentation-pytorch",
    "resnet": "segmentation_models ResNet-18 U-Net",
}


OURS = {"strong": "-", "scratch": "--"}  # and their lines


def volumes(data: Path, patients: tuple[str, ...]) -> Volumes:
    """Return image and mask of each case of these patients."""
    cases = [case for case in find_cases(data).cases if case.patient in patients]
    return [(volume.voxels, truth) for volume, truth, _ in map(read_case, cases)]


def score(predict: Predict, val: Volumes) -> float:
    """Return the mean volumetric Dice at a threshold of 0.5."""
    dices = []
    for image, truth in val:
        found = predict(image) >= 0.5
        tp, fp, fn = (found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum()
        dices.append(float(metrics.dice(metrics.Counts(tp, fp, fn, truth.size - tp - fp - fn))))
    return float(np.mean(dices))


def race_peer(peer: Peer, val: Volumes) -> Iterator[tuple[float, float]]:
    """Yield minutes of this core and Dice, after each of `MINUTES`."""
    spent = 0.0
    for minutes in MINUTES:
        while spent < 60 * minutes:
            start = time.process_time()
            peer.step()
            spent += time.process_time() - start
        yield spent / 60, score(peer.predict, val)


def race_ours(
    name: str, data: Path, split: Split, work: Path, val: Volumes, done: int
) -> Iterator[tuple[float, float]]:
    """Yield minutes of this core and Dice of one training for each of `EPOCHS`, without those that are `done`."""
    recipe, folder = Recipe.strong.but(tune=False, phantoms=name == "strong"), work / f"prepared-{name}"
    if not (folder / "split.json").exists():
        split.save(folder / "split.json")
    prepared = prepare(data, folder, recipe)
    for minutes, epochs in [*EPOCHS.items()][done:]:
        run = Run(work / f"{name}-{minutes}")
        shutil.rmtree(run.folder, ignore_errors=True)  # of a call that was stopped, whose time is not known
        start = time.process_time()
        train(prepared, run, recipe.but(epochs=epochs), "cpu", threads=1)
        spent = time.process_time() - start
        predictor = last(run)
        yield spent / 60, score(lambda image, p=predictor: p.volume(image)[0], val)  # type: ignore[misc]


def last(run: Run) -> Predictor:
    """Return the predictor of a run's last averaged weights, in the place of those that validation has chosen."""
    predictor = Predictor.open(run, "cpu", Decision(0.5), threads=1)
    trained = predictor.members[0] if predictor.members else predictor
    assert isinstance(trained, Trained)
    trained.network.load_state_dict(load_checkpoint(run.latest)["average"])
    return predictor


def measured(name: str, work: Path) -> list[tuple[float, float]]:
    """Return the points of a contender so far."""
    return read_json(work / f"{name}.json")["points"] if (work / f"{name}.json").exists() else []


def race(name: str, data: Path, work: Path) -> None:
    """Let one contender run, and write each point when it is measured."""
    from studies.best import folds_of

    torch.set_num_threads(1)
    split = folds_of(data)[0]
    val = volumes(data, split.val)
    if name in OURS:
        points = measured(name, work)
        made = race_ours(name, data, split, work, val, len(points))
    else:  # a peer keeps no checkpoint, and begins anew
        points, made = [], race_peer(PEERS[name](volumes(data, split.train)), val)
    for minutes, dice in made:
        say(f"{name}: {minutes:.1f} minutes, Dice {dice:.3f}")
        points.append((minutes, dice))
        write_json(work / f"{name}.json", {"points": points, "machine": machine(("torch",))})


def race_figure(found: dict[str, list[tuple[float, float]]]) -> Figure:
    """Return validation Dice over minutes."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in found.items():
        style = {"lw": 2.5, "color": "black", "ls": OURS[name]} if name in OURS else {"lw": 1.2}
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, label=NAMES[name], **style)
    axes.set(xscale="log", xlabel="minutes of one core", ylabel="mean Dice of 14 validation patients", ylim=(0, 1))
    axes.set_xticks(MINUTES, [f"{minutes:g}" for minutes in MINUTES])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.supxlabel(DISCLAIMER, fontsize=8)
    return figure


def main() -> None:
    """Let the contenders run that have not yet, two at a time, and write table and figure."""
    options = parser("benchmarks.race", __doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--work", type=Path, default=Path("work/race"))
    options.add_argument("--only", nargs="+", choices=NAMES, default=[*NAMES])
    options.add_argument("--alone", choices=NAMES, help="let one run in this process")
    arguments = options.parse_args()
    if arguments.alone:
        race(arguments.alone, arguments.data, arguments.work)
        return
    if "resnet" in arguments.only and find_spec("segmentation_models_pytorch") is None:
        say("resnet is left out: segmentation-models-pytorch is not installed here (see CONTRIBUTING.md).")
        arguments.only.remove("resnet")
    ends = {name: len(EPOCHS if name in OURS else MINUTES) for name in NAMES}
    todo = [name for name in arguments.only if len(measured(name, arguments.work)) < ends[name]]
    command = [sys.executable, "-m", "benchmarks.race", str(arguments.data), "--work", str(arguments.work), "--alone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor(2) as two:
        codes = list(two.map(lambda name: subprocess.run([*command, name], env=environment).returncode, todo))
    if failed := [name for name, code in zip(todo, codes, strict=True) if code]:
        raise UnetlibError(f"{first_of(failed)} did not finish, for the reasons above. The same command goes on.")
    points = {name: own for name in NAMES if (own := measured(name, arguments.work))}
    rows = [[NAMES[name], *(f"{dice:.3f} ({minutes:.1f})" for minutes, dice in own)] for name, own in points.items()]
    longest = max(map(len, rows))
    table = markdown_table(("contender", *(f"point {place}" for place in range(1, longest))), rows)
    save(race_figure(points), PAGE.with_name("race.png"))
    record("race", table, "Dice (minutes of one core).", machine(("torch", "monai")), page=PAGE)


if __name__ == "__main__":
    run_command(main)
