"""The first part of NETWORKS.md: networks by name on patients of BraTS, at equal time and with equal care.

`python -m studies.networks BRATS [--arms unet ...] [--folds 0 1 ...] [--rates] [--status]` scores each test patient
once. `--rates` only chooses each arm's learning rate, on fold 0. `--time` measures the seconds of an epoch of each arm,
from which the numbers of epochs follow.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import endless, markdown_table, record
from studies.cells import STRONG, Cell, study_parser
from studies.regions import FOLDS, folds_of, mean_text
from studies.results import DICE, Result, gain_text, measured_on, seconds_of_training
from unetlib import Recipe, UnetlibError, prepare
from unetlib.data.split import SPLIT_FILE
from unetlib.runs.run import Run
from unetlib.runs.training import open_loop
from unetlib.support.command import run_command
from unetlib.support.messages import say

PAGE = Path(__file__).with_name("NETWORKS.md")
RATES = (2e-3, 5e-4)
MINUTES, RATE_MINUTES = 15, 5
ARMS = {
    "unet": STRONG,
    "attention-unet": STRONG.but(network="attention-unet"),
    "dynunet": STRONG.but(network="dynunet", deep_supervision=True),
    "swin-unetr": STRONG.but(network="swin-unetr", width=12, depth=5),
    "unet-3d": Recipe.volume,
}
# Seconds of an epoch, measured by --time on one core of a Xeon with AMX; never changed after that.
SECONDS = {"unet": 43.0, "attention-unet": 48.6, "dynunet": 46.6, "swin-unetr": 108.4, "unet-3d": 21.3}
AGAIN = {"unet-seed-1": "unet"}  # the noise


def epochs_in(arm: str, minutes: float) -> int:
    """Return how many epochs an arm has in some minutes of one core; raises `UnetlibError` before that is known."""
    if not SECONDS[arm]:
        raise UnetlibError(f"the seconds of an epoch of {arm} are not measured yet: give --time, and write SECONDS.")
    return max(1, round(60 * minutes / SECONDS[arm]))


def rate_cell(arm: str, rate: float, data: Path) -> Cell:
    """Return the short training of an arm with a learning rate, scored on the validation patients of fold 0."""
    recipe = ARMS[arm].but(learning_rate=rate, epochs=epochs_in(arm, RATE_MINUTES), tune=False)
    return Cell(f"networks-{arm}-rate-{rate:g}", recipe, folds_of(data)[0], "val")


def chosen_rate(arm: str, data: Path) -> float:
    """Return the learning rate with the higher mean Dice; raises `UnetlibError` before both are measured."""
    found = {rate: rate_cell(arm, rate, data).result() for rate in RATES}
    if missing := [rate for rate, result in found.items() if result is None]:
        raise UnetlibError(f"the learning rate {missing[0]:g} of {arm} is not measured yet: give --rates first.")
    return max(found, key=lambda rate: float(found[rate][DICE].mean()))  # type: ignore[index]


def cell(name: str, fold: int, data: Path) -> Cell:
    """Return an arm on a fold."""
    arm = AGAIN.get(name, name)
    recipe = ARMS[arm].but(learning_rate=chosen_rate(arm, data), epochs=epochs_in(arm, MINUTES), seed=int(name != arm))
    return Cell(f"networks-{name}-fold-{fold}", recipe, folds_of(data)[fold], "test")


def seconds_of_epoch(arm: str, data: Path, work: Path, steps: int = 12) -> float:
    """Return the processor seconds of an epoch of an arm on fold 0 and one thread, from some steps and a validation."""
    recipe, folder = ARMS[arm], work / f"prepared-{arm if ARMS[arm].dims == 3 else 'slices'}"
    if not (folder / SPLIT_FILE).exists():
        folds_of(data)[0].save(folder / SPLIT_FILE)
    loop = open_loop(prepare(data, folder, recipe), Run(work / f"time-{arm}"), recipe, threads=1)
    torch.set_num_threads(1)
    training = endless(loop)
    next(training), next(training)  # the first two are slower
    begun = time.process_time()
    for _ in range(steps):
        next(training)
    step = (time.process_time() - begun) / steps
    begun = time.process_time()
    loop.validate()
    return step * loop.steps + time.process_time() - begun


def compared(found: dict[str, Result]) -> str:
    """Return the arms in Markdown, each against `unet` on the patients that both have tested."""
    rows = []
    for name, own in found.items():
        shared = own.index.intersection(found["unet"].index)
        against = "" if name == "unet" else gain_text(found["unet"].loc[shared], own.loc[shared])
        rate, epochs = float(own["recipe.learning_rate"].iloc[0]), int(own["recipe.epochs"].iloc[0])
        minutes = np.median([seconds_of_training(run) for _, run in own.groupby("run")]) / 60  # one was halted
        words = [f"{rate:g}", epochs, f"{epochs * SECONDS[AGAIN.get(name, name)] / 60:.0f}", f"{minutes:.1f}"]
        rows.append([name, len(own), mean_text(own[DICE]), f"{own[DICE].median():.3f}", against, *words])
    columns = ("arm", "patients", "Dice", "median", "against unet, 95 % interval")
    return markdown_table((*columns, "rate", "epochs", "minutes", "measured"), rows)


def write(data: Path) -> None:
    """Renew the tables of the page from what is measured."""
    rates, found = [], dict[str, Result]()
    for arm in (arm for arm in ARMS if SECONDS[arm]):
        pairs = {rate: rate_cell(arm, rate, data).result() for rate in RATES}
        rates.append([arm, *(f"{own[DICE].mean():.3f}" if own is not None else "" for own in pairs.values())])
        if any(own is None for own in pairs.values()):
            continue
        for name in (arm, *(other for other, of in AGAIN.items() if of == arm)):
            folds = [cell(name, fold, data).result() for fold in range(FOLDS)]
            if any(own is not None for own in folds):
                found[name] = pd.concat(folds)  # without those that are None
    blocks = [] if found else ["Nothing is measured yet."]
    if any(any(row[1:]) for row in rates):
        blocks += [
            "Mean Dice of the validation patients of fold 0 after 5 planned minutes, by learning rate:",
            markdown_table(("arm", *(f"{rate:g}" for rate in RATES)), rates),
        ]
    if "unet" in found:
        seen = folds_of(data)[0].val  # their rates were chosen on them
        others = {name: own.loc[~own.index.isin(seen)] for name, own in found.items()}
        others = {name: own for name, own in others.items() if len(own)}
        blocks.append(compared(found))
        if "unet" in others:
            blocks += ["Without the three patients on whom the rates were chosen:", compared(others)]
    record("networks", *blocks, f"{data.name}; {measured_on('networks-')}", page=PAGE)


def main() -> None:
    """Do what is missing, then renew the tables."""
    parser = study_parser("networks", __doc__)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *AGAIN], default=[*ARMS, *AGAIN])
    parser.add_argument("--folds", type=int, nargs="*", choices=range(FOLDS), default=list(range(FOLDS)))
    parser.add_argument("--rates", action="store_true", help="only choose the learning rates")
    parser.add_argument("--time", action="store_true", help="only measure the seconds of an epoch")
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    arms = [arm for arm in arguments.arms if arm in ARMS]
    if arguments.time:
        for arm in arms:
            say(f"{arm}: {seconds_of_epoch(arm, data, work):.1f} s an epoch")
        return
    todo = [rate_cell(arm, rate, data) for arm in arms for rate in RATES] if arguments.rates else []
    for one in todo:
        progress(one, data, work, arguments.status)
    for fold in arguments.folds if not arguments.rates else ():
        for name in arguments.arms:
            if arguments.status and not SECONDS[AGAIN.get(name, name)]:
                say(f"{name}: give --time first")
                continue
            progress(cell(name, fold, data), data, work, arguments.status)
    write(data)


def progress(one: Cell, data: Path, work: Path, only_say: bool) -> None:
    """Measure a cell, unless only its progress is asked for."""
    if not only_say:
        one.measure(data, work)
    say(f"{one.name:32} {one.progress(work)}")


if __name__ == "__main__":
    run_command(main)
