"""Many trainings at once on a CUDA GPU, on a machine that holds nothing but PyTorch, NumPy and this repository.

1. `python -m studies.gpu pack DATA slices.npz` prepares the slices of the best recipe, as bytes, with five folds and
   several members of each: all that travels, under 60 MB.
2. `python studies/gpu.py train slices.npz OUT` there: trains as many as fit in --minutes, --at-once of them side by
   side, and first says how fast steps are in fp32 and bf16 and whether a resumed training ends with the same bits. The
   same command goes on where it stopped.
3. `python -m studies.gpu unpack slices.npz OUT RUNS DATA` makes run folders of the weights that came back, which
   `unetlib evaluate` scores.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if __name__ == "__main__":  # as a plain script, Python finds this folder only
    sys.path.insert(0, str(Path(__file__).parents[1]))

from unetlib.dataset import SliceDataset
from unetlib.hooks import AveragedWeights, Engine, Hook
from unetlib.loop import Loop, State
from unetlib.networks import build_network
from unetlib.recipe import Recipe
from unetlib.support.command import run_command

if TYPE_CHECKING:
    from unetlib.data.split import Split

LIMIT = 60e6  # bytes that may travel
TRIAL = 20  # steps of the trials of speed and of resuming


@dataclass(frozen=True)
class Job:
    """One training: its name, the seed of its weights, and the positions of its cases in each part."""

    name: str
    seed: int
    train: list[int]
    val: list[int]


@dataclass(frozen=True)
class Packed:
    """What travels: slices as bytes, the number of slices of each case, the recipe and the trainings."""

    images: np.ndarray
    masks: np.ndarray
    cases: np.ndarray
    recipe: Recipe
    jobs: list[Job]
    first: dict[str, Tensor]  # weights to begin with; empty: random ones

    @classmethod
    def load(cls, path: Path) -> "Packed":
        """Read a file that `pack` has written."""
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            masks = np.unpackbits(file["masks"], axis=-1, count=file["images"].shape[-1])
            first = {name[2:]: torch.from_numpy(file[name]) for name in file.files if name.startswith("w/")}
            jobs = [Job(**job) for job in about["jobs"]]
            return cls(file["images"], masks, file["cases"], Recipe(**about["recipe"]), jobs, first)

    def dataset(self, job: Job) -> SliceDataset:
        """Return the slices with the split of one training."""
        of_case = np.repeat(np.arange(len(self.cases)), self.cases)
        parts = {part: np.flatnonzero(np.isin(of_case, getattr(job, part))) for part in ("train", "val")}
        return Bytes(self.images, self.masks, parts, self.cases, self.recipe.neighbours)


class Bytes(SliceDataset):
    """A data set whose images are stored as bytes, 255 for 1."""

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return images in 0..1 and masks."""
        images, masks = super().batch(indices)
        return images / 255, masks


class DeviceEngine(Engine):
    """Computes on one device, convolutions in bfloat16 if the recipe says so."""

    def __init__(self, device: str, precision: str) -> None:
        self.device, self.bf16 = torch.device(device), precision == "bf16"

    def seed(self, number: int) -> None:
        """Seed the generators of random layers, on the CPU and on the device."""
        torch.manual_seed(number)

    def to_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return images and masks on the device."""
        images, masks = (one.to(self.device, non_blocking=True) for one in batch)
        return images, masks

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the logits of a batch in single precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return network(images).float()


@dataclass
class Keep(Hook):
    """Keep the best weights, and write them with the state of the training to `path` when it ends or `stop` says so."""

    path: Path
    stop: Callable[[], bool] = lambda: False
    best: dict[str, Any] | None = None

    def on_start(self, loop: Loop) -> None:
        """Go on from the state in the file, if there is one."""
        if not self.path.exists():
            return
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        self.best, loop.state = content["best"], State(**content["state"])
        loop.network.load_state_dict(content["model"])
        loop.optimizer.load_state_dict(content["optimizer"])
        if loop.validated is not loop.network:
            loop.validated.load_state_dict(content["average"])

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """Stop in time."""
        if self.stop():
            loop.stopping = True
            self.save(loop)

    def on_epoch_end(self, loop: Loop) -> None:
        """Keep the weights if they are the best, and write everything."""
        dice = loop.state.history[-1]["val_dice"]
        if dice > loop.state.best_dice:
            loop.state.best_dice, weights = dice, deepcopy(loop.validated.state_dict())
            self.best = {"model": {name: one.cpu() for name, one in weights.items()}, "epoch": loop.state.epoch}
        self.save(loop)

    def save(self, loop: Loop) -> None:
        """Replace the file as a whole."""
        content = {"model": loop.network.state_dict(), "average": loop.validated.state_dict()}
        progress: dict[str, Any] = {"state": asdict(loop.state), "best": self.best}
        content |= {"optimizer": loop.optimizer.state_dict(), **progress}
        temporary = self.path.with_suffix(".tmp")
        torch.save(content, temporary)
        temporary.replace(self.path)


def make_loop(packed: Packed, job: Job, device: str, keep: Keep | None = None) -> Loop:
    """Return the loop of one training, ready to run."""
    recipe = packed.recipe.but(seed=job.seed)
    network = build_network(recipe, packed.images.shape[1] * (1 + 2 * recipe.neighbours), packed.masks.shape[1])
    if packed.first:
        network.load_state_dict(packed.first)
    loop = Loop(network.to(device), packed.dataset(job), recipe, engine=DeviceEngine(device, recipe.precision))
    if recipe.average:
        loop.validated, loop.hooks = deepcopy(loop.network), [AveragedWeights()]
    loop.hooks += [keep] if keep else []
    return loop


def finished(path: Path, recipe: Recipe) -> bool:
    """Tell whether a training has reached its last epoch."""
    return path.exists() and torch.load(path, map_location="cpu", weights_only=True)["state"]["epoch"] >= recipe.epochs


def work(number: int, at_once: int, file: Path, out: Path, device: str, end: float) -> None:
    """Do every `at_once`-th training that is not finished, until the time is over."""
    torch.set_num_threads(1)
    packed = Packed.load(file)
    for job in packed.jobs[number::at_once]:
        path = out / f"{job.name}.pt"
        if time.time() < end and not finished(path, packed.recipe):
            loop = make_loop(packed, job, device, Keep(path, lambda: time.time() >= end))
            state = loop.run()
            print(f"{job.name}: epoch {state.epoch} of {packed.recipe.epochs}, Dice {state.best_dice:.4f}", flush=True)


def run_steps(loop: Loop, steps: int, first: int = 0) -> float:
    """Take steps of the first epoch from `first` on; return the seconds that they took."""
    order, size = loop.order(), loop.recipe.batch_size
    begun = time.perf_counter()
    for step in range(first, first + steps):
        loop.step(order[step * size : (step + 1) * size])
    return time.perf_counter() - begun  # each step has read its loss, so the device is done


def try_out(packed: Packed, device: str, out: Path) -> None:
    """Say how fast steps are in both precisions, and whether a resumed training ends with the same bits."""
    for precision in ("fp32", "bf16"):
        one = replace(packed, recipe=packed.recipe.but(precision=precision))
        loop = make_loop(one, packed.jobs[0], device)
        steps = min(TRIAL, loop.steps)
        run_steps(loop, min(3, steps))  # warm up
        seconds = run_steps(make_loop(one, packed.jobs[0], device), steps)
        print(f"{precision}: {steps * packed.recipe.batch_size / seconds:.0f} slices/s", flush=True)
        path = out / "trial.tmp.pt"
        path.unlink(missing_ok=True)
        whole, half, rest = (make_loop(one, packed.jobs[0], device, Keep(path)) for _ in range(3))
        run_steps(whole, steps)
        run_steps(half, steps // 2)
        half.hooks[-1].save(half)  # type: ignore[attr-defined]
        rest.call_hooks("on_start")
        run_steps(rest, steps - steps // 2, steps // 2)
        path.unlink()
        pairs = zip(whole.network.state_dict().values(), rest.network.state_dict().values(), strict=True)
        same = all(torch.equal(one, other) for one, other in pairs)
        print(f"{precision}: resumed, {'the same bits' if same else 'not the same bits'}", flush=True)


def train(file: Path, out: Path, minutes: float, at_once: int, device: str) -> None:
    """Try out the device, then train what is missing."""
    end = time.time() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    packed = Packed.load(file)
    try_out(packed, device, out)
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(number, at_once, file, out, device, end)) for number in range(at_once)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    done = sum(finished(out / f"{job.name}.pt", packed.recipe) for job in packed.jobs)
    print(f"{done} of {len(packed.jobs)} trainings are finished.")
    if any(process.exitcode for process in processes):
        sys.exit("error: a training failed, for the reason above. The same command goes on with the others.")


def splits(data: Path, members: int) -> "dict[str, Split]":
    """Return the split of each training by name: the members of a fold validate on different patients, each on some."""
    from studies.best import folds_of
    from studies.cells import make_fold

    found = {}
    for fold, split in enumerate(folds_of(data)):
        others = [*split.val, *split.train]
        for member in range(members):
            name = f"fold-{fold}-member-{member + 1}"
            found[name] = make_fold([*others, *split.test], split.test, others[member::members])
    return found


def pack(data: Path, file: Path, recipe: Recipe, members: int, folder: Path) -> None:
    """Write the slices of a recipe with the trainings of five folds."""
    from unetlib import UnetlibError, prepare
    from unetlib.runs.first_weights import shipped_for

    slices = prepare(data, folder, recipe)
    patients = [case["patient"] for case in slices.about["cases"].values()]
    jobs = []
    for number, (name, split) in enumerate(splits(data, members).items()):
        parts = {
            part: [i for i, patient in enumerate(patients) if patient in split.patients(part)]
            for part in ("train", "val")
        }
        jobs.append({"name": name, "seed": recipe.seed + number % members, **parts})
    first = shipped_for(recipe).load()[2]["model"] if recipe.phantoms else {}
    recipe = recipe.but(**slices.about["recipe"], precision="bf16", phantoms=False, members=1, tune=False)
    with open(file, "wb") as stream:
        np.savez_compressed(
            stream,
            images=np.round(slices.images[:].astype(np.float32) * 255).astype(np.uint8),
            masks=np.packbits(slices.masks, axis=-1),
            cases=np.array([case["slices"] for case in slices.about["cases"].values()]),
            **{f"w/{name}": one.numpy() for name, one in first.items()},
            about=np.array(json.dumps({"recipe": recipe.as_dict(), "jobs": jobs})),
        )
    if (size := file.stat().st_size) > LIMIT:
        raise UnetlibError(f"{file} has {size / 1e6:.0f} MB; {LIMIT / 1e6:.0f} may travel. Use fewer patients.")
    print(f"{file}: {len(slices.images)} slices, {len(jobs)} trainings, {size / 1e6:.1f} MB")


def unpack(file: Path, out: Path, runs: Path, data: Path, members: int, folder: Path) -> None:
    """Make a run folder of each finished training: its best weights, and what tells whom it was trained on."""
    from unetlib.data.prepare import prepare
    from unetlib.runs.run import Run
    from unetlib.runs.training import open_loop

    packed = Packed.load(file)
    slices = prepare(data, folder, packed.recipe)
    split_of = splits(data, members)
    for job in packed.jobs:
        content = torch.load(out / f"{job.name}.pt", map_location="cpu", weights_only=True)
        own = replace(slices, split=split_of[job.name])
        loop = open_loop(own, Run(runs / job.name), packed.recipe.but(seed=job.seed))
        loop.validated.load_state_dict(content["best"]["model"])
        history = content["state"]["history"]
        loop.state = State(**{**content["state"], "epoch": content["best"]["epoch"], "best_dice": -1.0})
        loop.state.history = history[: content["best"]["epoch"]]
        loop.call_hooks("on_epoch_end")  # writes the best weights
        loop.state.epoch, loop.state.history = content["state"]["epoch"], history
        loop.hooks[-1].save(loop)  # type: ignore[attr-defined]
        print(runs / job.name)


def main() -> None:
    """Do one of the three steps."""
    parser = argparse.ArgumentParser(
        prog="studies.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("pack")
    first.add_argument("data", type=Path)
    first.add_argument("file", type=Path)
    second = steps.add_parser("train")
    second.add_argument("file", type=Path)
    second.add_argument("out", type=Path)
    second.add_argument("--minutes", type=float, default=11)
    second.add_argument("--at-once", type=int, default=5)
    second.add_argument("--device", default="cuda")
    third = steps.add_parser("unpack")
    for name in ("file", "out", "runs", "data"):
        third.add_argument(name, type=Path)
    for one in (first, third):
        one.add_argument("--members", type=int, default=5)
        one.add_argument("--work", type=Path, default=Path("work/gpu"))
    args = parser.parse_args()
    if args.step == "pack":
        pack(args.data, args.file, Recipe.strong, args.members, args.work / "prepared")
    elif args.step == "train":
        train(args.file, args.out, args.minutes, args.at_once, args.device)
    else:
        unpack(args.file, args.out, args.runs, args.data, args.members, args.work / "prepared")


if __name__ == "__main__":
    run_command(main)
