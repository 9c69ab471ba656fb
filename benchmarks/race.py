"""How good a network is after 10, 20 and 40 minutes of one core: ours, and peers trained by what their tutorials show.

`python -m benchmarks.race DATA [--only strong basic ...]`. Fold 0 of the study of `studies.best`: 42 patients train, 14
validate. Every contender has one core, two run at a time, and the clock, the time of the processor, stops while they
are scored: mean volumetric Dice of the 14 over all slices, native grid, at a threshold of 0.5. Peers have one training
with a constant learning rate, scored on the way; ours has one training for each time, since its learning rate falls to
0. Everybody is scored with the last weights. Ours begins with the weights that come with the library, and once at
random (`scratch`). What is measured is kept in --work. What limits the comparison stands in `RACE.md`. `resnet` needs
an environment of its own: see CONTRIBUTING.md.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.common import machine, markdown_table, parser, record
from benchmarks.peers import PEERS, Peer, Volumes
from unetlib import Predictor, Recipe, Run, UnetlibError, find_cases, metrics, prepare, train
from unetlib.data.patients import read_case
from unetlib.data.split import SPLIT_FILE, Split
from unetlib.prediction.decision import Decision
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.show.plots import DISCLAIMER, save
from unetlib.support.command import run_command
from unetlib.support.errors import first_of
from unetlib.support.files import atomic, read_json, write_json
from unetlib.support.messages import say

MINUTES = (2.5, 5, 10, 20, 40)  # of peers
EPOCHS = {5: 12, 10: 25, 20: 50, 40: 100}  # of ours, 24 s of a core each
PAGE = Path(__file__).with_name("RACE.md")
Point = dict[str, Any]  # planned and measured minutes, and the Dice of each patient
NAMES = {
    "strong": "ours: Recipe.strong",
    "scratch": "ours, from random weights",
    "basic": "MONAI BasicUNet",
    "attention": "MONAI AttentionUnet",
    "brain-segmentation": "brain-segmentation-pytorch",
    "resnet": "segmentation_models U-Net, ResNet-18 of random weights",
}
OURS = {"strong": "-", "scratch": "--"}  # and their lines
Curves = dict[str, list[tuple[float, float]]]  # minutes of one core and mean Dice of each contender


def volumes(data: Path, patients: tuple[str, ...]) -> Volumes:
    """Return image and mask of each case of these patients."""
    cases = [case for case in find_cases(data).cases if case.patient in patients]
    return [(volume.voxels, truth) for volume, truth, _ in map(read_case, cases)]


def score(predict: Callable[[np.ndarray], np.ndarray], val: Volumes) -> list[float]:
    """Return the volumetric Dice of each patient at a threshold of 0.5; raises `UnetlibError` for NaN."""
    dices = []
    for image, truth in val:
        probabilities = predict(image)
        if not np.isfinite(probabilities).all():
            raise UnetlibError("the network gives probabilities that are not finite: its training has failed.")
        counts = metrics.count(probabilities[None, None] >= 0.5, truth[None, None])
        dices.append(metrics.dice(counts).item())
    return dices


def race_peer(peer: Peer, val: Volumes, kept: Path, done: int) -> Iterator[Point]:
    """Yield a point after each of `MINUTES`, without those that are `done`; the peer is kept once a minute."""
    spent = saved = peer.restore(torch.load(kept)) if kept.exists() else 0.0
    for minutes in MINUTES[done:]:
        while spent < 60 * minutes:
            start = time.process_time()
            peer.step()
            spent += time.process_time() - start
            if spent >= saved + 60 or spent >= 60 * minutes:
                with atomic(kept) as temporary:
                    torch.save(peer.state(spent), temporary)
                saved = spent
        yield {"planned": minutes, "minutes": spent / 60, "dice": score(peer.predict, val)}


def race_ours(name: str, data: Path, split: Split, work: Path, val: Volumes, done: int) -> Iterator[Point]:
    """Yield a point of one training for each of `EPOCHS`, without those that are `done`."""
    recipe, folder = Recipe.strong.but(tune=False, phantoms=name == "strong"), work / f"prepared-{name}"
    if not (folder / SPLIT_FILE).exists():
        split.save(folder / SPLIT_FILE)
    prepared = prepare(data, folder, recipe)
    for minutes, epochs in [*EPOCHS.items()][done:]:
        run = Run(work / f"{name}-{minutes}")
        shutil.rmtree(run.folder, ignore_errors=True)  # of a call that was stopped, whose time is not known
        start = time.process_time()
        train(prepared, run, recipe.but(epochs=epochs), "cpu", threads=1)
        spent = time.process_time() - start
        predictor = last(run)
        dices = score(lambda image, p=predictor: p.volume(image)[0], val)  # type: ignore[misc]
        yield {"planned": minutes, "minutes": spent / 60, "dice": dices}


def last(run: Run) -> Predictor:
    """Return the predictor of a run's last averaged weights, in the place of those that validation has chosen."""
    predictor = Predictor.open(run, "cpu", Decision(0.5), threads=1)
    inner = predictor.members[0]  # without the mirror image
    inner.network.load_state_dict(load_checkpoint(run.latest)["average"])
    return predictor


def measured(name: str, work: Path) -> list[Point]:
    """Return the points of a contender so far."""
    return read_json(work / f"{name}.json")["points"] if (work / f"{name}.json").exists() else []


def race(name: str, data: Path, work: Path) -> None:
    """Let one contender run, and write each point when it is measured."""
    from studies.best import folds_of

    torch.set_num_threads(1)
    split = folds_of(data)[0]
    val = volumes(data, split.val)
    points = measured(name, work)
    if name in OURS:
        made = race_ours(name, data, split, work, val, len(points))
    else:
        made = race_peer(PEERS[name](volumes(data, split.train)), val, work / f"{name}.pt", len(points))
    for point in made:
        say(f"{name}: {point['minutes']:.1f} minutes, Dice {np.mean(point['dice']):.3f}")
        points.append(point)
        write_json(work / f"{name}.json", {"points": points, "machine": machine(("torch",))})


def race_table(found: dict[str, list[Point]]) -> str:
    """Return the mean Dice at each of the planned minutes in Markdown."""
    columns = sorted({point["planned"] for points in found.values() for point in points})
    rows = []
    for name, points in found.items():
        own = {point["planned"]: f"{np.mean(point['dice']):.3f} ({point['minutes']:.1f})" for point in points}
        rows.append([NAMES[name], *(own.get(minutes, "") for minutes in columns)])
    return markdown_table(("contender", *(f"{minutes:g} min" for minutes in columns)), rows)


def race_curves(page: str) -> Curves:
    """Return what the table of the page holds."""
    found = {}
    for row in page.partition("<!-- race -->")[2].splitlines():
        if points := re.findall(r"(\d\.\d{3}) \((\d+\.\d)\)", row):
            found[row.split("|")[1].strip()] = [(float(minutes), float(dice)) for dice, minutes in points]
    return found


def race_figure(curves: Curves) -> Figure:
    """Return validation Dice over minutes."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = {NAMES[name]: {"lw": 2.5, "color": "black", "ls": line} for name, line in OURS.items()}
    for name, points in curves.items():
        minutes, dices = zip(*points, strict=True)
        axes.plot(minutes, dices, marker="o", ms=4, label=name, **lines.get(name, {"lw": 1.2}))
    axes.set(xscale="log", xlabel="minutes of one core", ylabel="mean Dice of 14 validation patients", ylim=(0, 1))
    ticks = [tick for tick in 2.5 * 2.0 ** np.arange(8) if tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{minutes:g}" for minutes in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=2)
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
    about = f"Mean Dice (measured minutes of one core). {machine(('torch', 'monai'))}."
    record("race", race_table(points), about, page=PAGE)
    save(race_figure(race_curves(PAGE.read_text(encoding="utf-8"))), PAGE.with_name("race.png"))


if __name__ == "__main__":
    run_command(main)
