"""Train a U-Net so that it can be stopped at any moment and go on as if it had not been."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unetlib import metrics
from unetlib.augment import augment, change_intensity, warp
from unetlib.data.prepare import Prepared
from unetlib.engine.device import process_count, resolve_precision, start_engine
from unetlib.engine.parallel import any_of, gather, share
from unetlib.engine.schedule import learning_rate, move_average
from unetlib.engine.threads import Threads
from unetlib.losses import get_loss
from unetlib.recipe import Recipe, mixed_presets
from unetlib.runs.checkpoint import BEST, LATEST, read_run, save_checkpoint
from unetlib.runs.resume import HISTORY_COLUMNS, Progress, start_or_resume
from unetlib.support.chance import balanced, balanced_number, shuffled
from unetlib.support.errors import UnetlibError, brief, counted
from unetlib.support.files import locked, takes_paths, write_csv
from unetlib.support.jobs import first_process, progress, say

VALIDATION_BATCH = 32


@takes_paths
def train(
    prepared: Path,
    run: Path,
    recipe: Recipe = Recipe.published,
    device: str = "auto",
    checkpoint_every: int = 100,
    max_steps: int | None = None,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
    start_from: Path | None = None,
    threads: int | None = None,
) -> Progress:
    """Train `recipe` on a prepared folder, in the run folder `run`, which is resumed when it exists.

    Writes `recipe.json`, `latest_checkpoint.pth` every `checkpoint_every` steps and after every
    epoch, `best_model.pth` (highest pooled Dice on the validation slices) and `history.csv`.
    Ctrl-C stops after the current step with a checkpoint; so does `max_steps`, counted in this
    call, which then returns how far the run is. The recipe's fields of the stage `prepare` are those of the prepared
    folder. `on_epoch` is given the rows of `history.csv` after every epoch, and at once when there are some already.
    `start_from` is another run, whose best weights are the first ones of this (pre-training). `threads` is how many a
    CPU computes with; without it the run keeps its number, or measures which is fastest. Where the recipe says
    `tune`, call `unetlib.prediction.tuning.tune` afterwards.

    Raises `UnetlibError` when the run was started with another recipe (its `epochs` may change where the
    schedule is constant), from other weights or on other slices, when another process is training it, when
    there is nothing to train on, or when the loss is no longer finite; `KeyboardInterrupt` when Ctrl-C or SIGTERM
    stopped it.
    """
    for name, steps in (("checkpoint_every", checkpoint_every), ("max_steps", max_steps)):
        if steps is not None and steps < 1:
            raise UnetlibError(f"{name} is {steps}; a number of steps above 0 was expected.")
    data = Prepared.open(prepared)
    with locked(run) if first_process() else nullcontext():
        trainer = Trainer.open(data, run, recipe, device, start_from, threads)
        return _train(trainer, checkpoint_every, max_steps, on_epoch)


def _train(
    trainer: "Trainer",
    checkpoint_every: int,
    max_steps: int | None,
    on_epoch: Callable[[list[dict[str, float]]], None] | None,
) -> Progress:
    run, recipe = trainer.run, trainer.recipe
    done, epochs, steps, taken = trainer.done, recipe.epochs, trainer.steps, 0
    if on_epoch and done.history:
        on_epoch(done.history)
    if done.epoch >= epochs:
        return done
    say(
        f"{run}: {trainer.shown} training slices, {steps} steps an epoch, {counted(epochs, 'epoch')}, "
        f"{trainer.fabric.device}, {recipe.precision}. A checkpoint every "
        f"{min(checkpoint_every, steps)} steps: a kill loses no more than those."
    )
    before, trainer.between = done.epoch * steps + done.step, done.step % checkpoint_every > 0
    if not before and (hint := mixed_presets(recipe)):
        say(f"{run}: {hint}")
    with stop_on_signal() as stopped, progress(epochs * steps, "train", "step", before) as bar:
        while done.epoch < epochs:
            while done.step < steps:
                loss = trainer.threads.timed(trainer.step)
                taken += 1
                bar.update()
                bar.set_postfix_str(f"epoch {done.epoch + 1}/{epochs}, loss {loss:.3f}", refresh=False)
                asked = any_of(trainer.fabric, stopped())
                if asked or taken == max_steps:
                    trainer.save(between=done.step % checkpoint_every > 0)
                    where = f"epoch {done.epoch + 1}, step {done.step} of {steps}"
                    told = f"Stopped at {where}, with a checkpoint. The same command goes on there."
                    if asked:
                        raise KeyboardInterrupt(told)
                    say(told)
                    return done
                if done.step % checkpoint_every == 0:
                    trainer.save()
            row = trainer.finish_epoch()
            say(", ".join(f"{name} {row[name]:.4g}" for name in HISTORY_COLUMNS))
            if on_epoch:
                on_epoch(done.history)
    return done


@dataclass
class Trainer:
    """A run under way: what is trained, on what, and how far it is."""

    fabric: Fabric
    model: nn.Module
    net: nn.Module  # the same weights, with device and precision seen to
    optimizer: torch.optim.Optimizer
    data: Prepared
    training: np.ndarray  # positions of the slices
    validation: np.ndarray
    run: Path
    recipe: Recipe
    done: Progress
    average: nn.Module | None = None  # of the weights, over the steps
    start_from: str | None = None  # SHA-256 of the weights that it started from
    threads: Threads = field(default_factory=Threads)
    order: np.ndarray | None = None  # of the training slices in this epoch
    between: bool = False  # the latest checkpoint is of a stop, between two of those that come without one
    clock: float = field(default_factory=lambda: time.monotonic())

    @classmethod
    def open(
        cls,
        data: Prepared,
        run: Path,
        recipe: Recipe,
        device: str,
        start_from: Path | None = None,
        threads: int | None = None,
    ) -> "Trainer":
        """Start a run, or resume it from its latest checkpoint; raises `UnetlibError` as `train` says."""
        fabric = start_engine(device, recipe.precision, process_count())
        recipe = recipe.but(**data.about["recipe"], precision=resolve_precision(recipe.precision, fabric.device))
        training, validation, _ = _slices_of(data, "train"), _slices_of(data, "val"), get_loss(recipe.loss)
        model, average, optimizer, done, first, many = start_or_resume(fabric, data, run, recipe, start_from, threads)
        net = fabric.setup_module(model)
        known = data, training, validation, run, recipe, done, average, first, many
        trainer = cls(fabric, model, net, optimizer, *known)
        if done.step > trainer.steps:
            raise UnetlibError(
                f"{run / LATEST} is at step {brief(done.step)}, which no epoch has. Delete it to start over."
            )
        if not trainer.shown:
            raise UnetlibError(
                f"{data.folder}: the train part of the split has no slice with tumour, which balance needs. Prepare "
                "again with another seed or more patients, or train without balance."
            )
        return trainer

    @property
    def steps(self) -> int:
        """Steps of one epoch; the last one may have fewer slices."""
        return -(-self.shown // self.recipe.batch_size)

    @property
    def shown(self) -> int:
        """Slices that one epoch shows; not cached, since chapter 2 hands a trainer other slices."""
        if not self.recipe.balance:
            return len(self.training)
        return balanced_number(self.data.tumour[self.training])

    def choose(self, epoch: int) -> np.ndarray:
        """Return the positions of the training slices that an epoch shows."""
        if not self.recipe.balance:
            return self.training
        return balanced(self.training, self.data.tumour[self.training], self.recipe.seed, epoch)

    def step(self) -> float:
        """Adjust the weights once; return the loss before that."""
        recipe, done = self.recipe, self.done
        if self.order is None:
            self.order = shuffled(self.choose(done.epoch), recipe.seed, done.epoch)
        batch = self.order[done.step * recipe.batch_size : (done.step + 1) * recipe.batch_size]
        images, masks = self._change(*self.fabric.to_device(self.data.batch(batch, recipe.neighbours)))
        steps = self.steps
        number = done.epoch * steps + done.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, number, recipe.epochs * steps)
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        logits = gather(self.fabric, self.net(share(self.fabric, images)), len(images))
        loss = get_loss(recipe.loss)(logits, masks)
        self.fabric.backward(loss)
        nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip_norm)
        if not np.isfinite(value := loss.item()):
            raise UnetlibError(
                f"the loss is {value}: training has diverged, or {self.data.folder} holds slices that are not finite. "
                "The last checkpoint is kept; start a new run folder with a learning rate below "
                f"{recipe.learning_rate}."
            )
        self.optimizer.step()
        if self.average is not None:
            move_average(self.average, self.model, recipe.average, number)
        done.loss_sum += value * len(batch)
        done.step += 1
        return value

    def _change(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch with the random changes of this step."""
        recipe, place = self.recipe, (self.recipe.seed, self.done.epoch, self.done.step)
        if recipe.augment:
            images, masks = augment(images, masks, *place, recipe.upright)
        if recipe.warp:
            images, masks = warp(images, masks, *place)
        return (change_intensity(images, *place) if recipe.intensity else images), masks

    def finish_epoch(self) -> dict[str, float]:
        """Validate, keep the best model, write checkpoint and history; return the epoch's row."""
        done = self.done
        val_loss, val_dice = self.validate()
        row = {"epoch": done.epoch + 1, "train_loss": done.loss_sum / self.shown}
        done.history.append({**row, "val_loss": val_loss, "val_dice": val_dice})
        if val_dice > done.best_dice:
            done.best_dice = val_dice
            best = self.model if self.average is None else self.average
            self._write(BEST, {"model": best.state_dict(), "epoch": done.epoch + 1, "val_dice": val_dice})
        done.epoch, done.step, done.loss_sum, self.order = done.epoch + 1, 0, 0.0, None
        self.save()
        if first_process():
            write_csv(self.run / "history.csv", done.history, HISTORY_COLUMNS)
        return done.history[-1]

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Return the mean loss and the pooled Dice over the validation slices."""
        net = self.net.eval() if self.average is None else self._average_net.eval()
        loss_sum, counts, loss = 0.0, [], get_loss(self.recipe.loss)
        for start in range(0, len(self.validation), VALIDATION_BATCH):
            batch = self.validation[start : start + VALIDATION_BATCH]
            images, masks = self.fabric.to_device(self.data.batch(batch, self.recipe.neighbours))
            logits = gather(self.fabric, net(share(self.fabric, images)), len(images))
            loss_sum += loss(logits, masks).item() * len(images)
            prediction = torch.sigmoid(logits) >= self.recipe.threshold
            counts.append(metrics.count(prediction.cpu().numpy(), masks.bool().cpu().numpy()))
        return loss_sum / len(self.validation), float(metrics.dice(metrics.Counts.concatenate(counts).sum()))

    def save(self, between: bool = False) -> None:
        """Write `latest_checkpoint.pth`: all that the next step depends on.

        Its predecessor is kept, but for one that is `between`: a run that was stopped then ends with the same files.
        """
        now = time.monotonic()
        self.done.seconds, self.clock = self.done.seconds + now - self.clock, now
        for group in self.optimizer.param_groups:  # each step sets its own; the last one's would differ after a resume
            group["lr"] = self.recipe.learning_rate
        state = {"optimizer": self.optimizer.state_dict(), "progress": asdict(self.done)}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        self._write(LATEST, {"model": self.model.state_dict(), **state}, keep=not self.between)
        self.between = between

    def _write(self, name: str, state: dict[str, Any], keep: bool = True) -> None:
        if first_process():
            about = {"recipe": self.recipe.as_dict(), "prepared": self.data.identity, "start_from": self.start_from}
            save_checkpoint(self.run / name, {**about, "threads": self.threads.number, **state}, keep)

    @cached_property
    def _average_net(self) -> nn.Module:
        assert self.average is not None
        return self.fabric.setup_module(self.average)


@takes_paths
def recipe_of(run: Path) -> Recipe:
    """Return the recipe that a run was started with, or the published one where there is no run yet."""
    return Recipe(**read_run(run)["recipe"]) if (run / "recipe.json").exists() else Recipe.published


def _slices_of(data: Prepared, part: str) -> np.ndarray:
    indices = data.indices(part)
    if not len(indices):
        raise UnetlibError(
            f"{data.folder}: the {part} part of the split has no slice (a patient without tumour?). "
            "Prepare again with another seed, more patients, or --slices all."
        )
    return indices


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (SIGINT) or SIGTERM into a wish to stop, which the yielded function tells.

    The step under way is finished, so weights and optimizer are never half adjusted. The second
    signal stops at once. Outside the main thread, where Python allows no handlers, nothing changes.
    """
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set() and process_count() == 1:  # torchrun passes on a Ctrl-C that has reached all already
            raise KeyboardInterrupt("Stopped at once. The same command goes on from the last checkpoint.")
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
