"""The second part of NETWORKS.md: nnU-Net itself, on our split, at 1, 3 and 10 times 25 core minutes; its figure.

`python -m studies.nnunet LGG --nnunet ENV [--times 1 3 10] [--status]` exports the patients, plans and prepares,
trains, and scores its masks of the validation patients; what is done is not done again, and a training goes on
after its last epoch. ENV is an environment of its own: `python -m venv ENV`, then `ENV/bin/pip install torch==2.13.0
nnunetv2==2.8.*`. One core; start it with `nice`.
"""

import os
import shutil
import subprocess
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import race
from benchmarks.common import machine, markdown_table, record
from studies import results
from studies.best import folds_of
from studies.cells import scores_of, study_parser
from studies.results import DICE, measured_on
from unetlib import score
from unetlib.data.export import export_nnunet
from unetlib.show.plots import save
from unetlib.support.command import run_command
from unetlib.support.files import read_json, write_json
from unetlib.support.messages import say

PAGE = Path(__file__).with_name("NETWORKS.md")
OWN = Path(__file__).with_name("nnunet_trainer")
NAME = "Dataset501_Lgg"
MINUTES = 25  # of a core
EPOCHS = {1: 3, 3: 9, 10: 30}  # of 250 iterations, for each multiple of these minutes
PREPARED = "prepared-for-study"  # a file in the folder of what it has prepared, written last
SIDE, BATCH, SMALLEST = 128, 8, 4  # of the slices in training; nnU-Net halves them down to 4 x 4
LEVELS = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage")  # of a network: one value for each


@dataclass(frozen=True)
class NnUnet:
    """nnU-Net in an environment `env`, with its folders below `work`."""

    env: Path
    work: Path

    @property
    def raw(self) -> Path:
        """Its data set, as exported."""
        return self.work / "nnUNet_raw" / NAME

    @property
    def preprocessed(self) -> Path:
        """What it makes of the data set."""
        return self.work / "nnUNet_preprocessed" / NAME

    def run(self, command: str, *words: str, times: int = 1, **variables: str) -> None:
        """Run one of its commands; raises `CalledProcessError` when it fails."""
        folders = {
            "nnUNet_raw": self.raw.parent,
            "nnUNet_preprocessed": self.preprocessed.parent,
            "nnUNet_results": self.results(times).parents[2],
            "nnUNet_extTrainer": OWN,
            "PYTHONPATH": OWN,
        }
        own = {name: str(folder.resolve()) for name, folder in folders.items()}
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}
        place = self.env.resolve() / ("Scripts" if os.name == "nt" else "bin") / command
        subprocess.run([place, *words], env={**os.environ, **own, **threads, **variables}, check=True)

    def results(self, times: int) -> Path:
        """The folder of the training at some multiple of the minutes."""
        return self.work / f"nnUNet_results-{times}" / NAME / "ShortTrainer__nnUNetPlans__2d" / "fold_0"

    def prepare(self, data: Path) -> None:
        """Export the patients, and let it plan and prepare them."""
        split = folds_of(data)[0]
        export_nnunet(data, self.raw, split=split)
        if (self.preprocessed / PREPARED).exists():
            return
        words = ["-d", "501", "-c", "2d", "--no_pp", "--verify_dataset_integrity", "-npfp", "1"]
        self.run("nnUNetv2_plan_and_preprocess", *words)
        plan = self.preprocessed / "nnUNetPlans.json"
        write_json(plan, edited(read_json(plan)))
        self.run("nnUNetv2_preprocess", "-d", "501", "-c", "2d", "-np", "1")
        shutil.copy(self.raw / "splits_final.json", self.preprocessed)
        (self.preprocessed / PREPARED).touch()  # the planner copies the splits, too, so they do not show it

    def train(self, times: int) -> Path:
        """Train, or go on after the last epoch; return the folder of its masks of the validation patients."""
        folder, words = self.results(times), ["501", "2d", "0", "-tr", "ShortTrainer", "-device", "cpu"]
        if not (folder / "validation" / "summary.json").exists():
            begun, ended = ((folder / f"checkpoint_{name}.pth").exists() for name in ("latest", "final"))
            words += ["--val"] if ended else ["--c"] if begun else []
            self.run("nnUNetv2_train", *words, times=times, EPOCHS=str(EPOCHS[times]), nnUNet_n_proc_DA="0")
        return folder / "validation"

    def seconds(self, times: int) -> dict[int, float]:
        """Return the seconds of the processor that each epoch of a training took."""
        path = self.results(times) / "seconds.csv"
        rows = path.read_text(encoding="utf-8").split() if path.exists() else []
        return {int(epoch): float(own) for epoch, own in (row.split(",") for row in rows)}


def edited(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan for slices of `SIDE` x `SIDE`, with the levels that nnU-Net gives these, in batches of `BATCH`."""
    plan = deepcopy(plan)
    own = plan["configurations"]["2d"]
    own["patch_size"], own["batch_size"] = [SIDE, SIDE], BATCH
    network, levels = own["architecture"]["arch_kwargs"], int(np.log2(SIDE // SMALLEST)) + 1
    own["architecture"]["arch_kwargs"] = {
        **network,
        "n_stages": levels,
        **{name: network[name][:levels] for name in LEVELS},
        "n_conv_per_stage_decoder": network["n_conv_per_stage_decoder"][: levels - 1],
    }
    return plan


def run_name(times: int) -> str:
    """Return the name of a training in the table of results."""
    return f"nnunet-{times}x-fold-0"


def measure(nnunet: NnUnet, data: Path, times: int) -> None:
    """Train, predict and score, unless the table has the scores."""
    if results.read(run_name(times)) is not None:
        return
    nnunet.prepare(data)
    folder = nnunet.work / f"scores-{times}"
    score(nnunet.train(times), data, folder)
    seconds = round(sum(nnunet.seconds(times).values()))
    about = {"part": "val", "seconds": seconds, "seconds_to_predict": "", "threads": 1, "epoch": EPOCHS[times]}
    results.append(run_name(times), scores_of(folder, data), {**about, "machine": machine(("torch",))})


def status(nnunet: NnUnet, times: int) -> str:
    """Say how far a training is."""
    if (found := results.read(run_name(times))) is not None:
        return f"done, mean Dice {found[DICE].mean():.3f}"
    return f"epoch {len(nnunet.seconds(times))} of {EPOCHS[times]}"


def write() -> None:
    """Renew the table of the page and the figure, beside the race's curves, from what is measured."""
    rows, curve = [], []
    for times, epochs in EPOCHS.items():
        if (found := results.read(run_name(times))) is not None:
            minutes = float(found["seconds"].iloc[0]) / 60
            curve.append((minutes, float(found[DICE].mean())))
            scores = (f"{found[name].mean():.3f}" for name in (DICE, "precision", "recall"))
            rows.append(
                [times * MINUTES, f"{minutes:.0f}", epochs, 250 * epochs, *scores, f"{found['hd95'].mean():.1f}"]
            )
    columns = ("planned core minutes", "measured", "epochs", "iterations", "Dice", "precision", "recall")
    table = markdown_table((*columns, "HD95, voxels"), rows) if rows else "Measured so far: nothing."
    record("nnunet", table, f"nnU-Net 2.8, 14 validation patients; {measured_on('nnunet-')}", page=PAGE)
    if curve:
        curves = race.race_curves(race.PAGE.read_text(encoding="utf-8"))
        save(race.race_figure({**curves, "nnU-Net 2.8 itself": curve}), PAGE.with_name("nnunet.png"))


def main() -> None:
    """Do what is missing, then renew the table."""
    parser = study_parser("nnunet", __doc__)
    parser.add_argument("--nnunet", type=Path, default=Path(".venv/nnunet"), help="its environment")
    parser.add_argument("--times", type=int, nargs="+", choices=EPOCHS, default=[*EPOCHS])
    arguments = parser.parse_args()
    nnunet = NnUnet(arguments.nnunet, arguments.work)
    for times in arguments.times:
        if not arguments.status:
            measure(nnunet, arguments.data, times)
        say(f"{run_name(times)}: {status(nnunet, times)}")
    write()


if __name__ == "__main__":
    run_command(main)
