"""Train a U-Net so that it can be stopped at any moment and go on as if it had not been."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from unetlib import metrics
from unetlib.augment import augment
from unetlib.chance import shuffled
from unetlib.checkpoint import (
    BEST,
    LATEST,
    build_model,
    load_checkpoint,
    load_optimizer,
    load_weights,
    read_recipe,
    read_run,
    require_weights,
    restore,
    save_checkpoint,
)
from unetlib.engine import process_count, resolve_precision, start_engine
from unetlib.errors import UnetlibError, brief
from unetlib.files import locked, require_empty, write_csv, write_json
from unetlib.jobs import first_process, progress, say
from unetlib.losses import get_loss
from unetlib.parallel import any_of, gather, share, share_statistics
from unetlib.prepare import Prepared
from unetlib.provenance import write_provenance
from unetlib.recipe import Recipe, changed

HISTORY_COLUMNS = ("epoch", "train_loss", "val_loss", "val_dice")
VALIDATION_BATCH = 32


@dataclass
class Progress:
    """How far a run is. `epoch` and `step` are those to do next, counted from 0."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # over the slices of this epoch so far
    best_dice: float = -1.0
    seconds: float = 0.0  # of training, over all calls
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise `ValueError` for what no training leaves behind."""
        whole, numbers = (self.epoch, self.step), [self.loss_sum, self.best_dice, self.seconds]
        rows = [[row[name] for name in HISTORY_COLUMNS] for row in self.history]
        if any(type(one) is not int or one < 0 for one in whole) or len(rows) != self.epoch:
            raise ValueError("epoch and step")
        if not all(type(one) in (int, float) and math.isfinite(one) for row in [numbers, *rows] for one in row):
            raise ValueError("a figure")
        if not -1 <= self.best_dice <= 1 or self.seconds < 0:
            raise ValueError("best_dice or seconds")


def train(
    prepared: Path,
    run: Path,
    recipe: Recipe = Recipe.published,
    device: str = "auto",
    checkpoint_every: int = 100,
    max_steps: int | None = None,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
) -> Progress:
    """Train `recipe` on a prepared folder, in the run folder `run`, which is resumed when it exists.

    Writes `recipe.json`, `latest_checkpoint.pth` every `checkpoint_every` steps and after every
    epoch, `best_model.pth` (highest pooled Dice on the validation slices) and `history.csv`.
    Ctrl-C stops after the current step with a checkpoint; so does `max_steps`, counted in this
    call. The recipe's fields of the stage `prepare` are those of the prepared folder. `on_epoch` is
    given the rows of `history.csv` after every epoch, and at once when there are some already.

    Raises `UnetlibError` when the run was started with another recipe (its `epochs` may change) or
    on other slices, when another process is training it, when there is nothing to train on, or when the
    loss is no longer finite; `KeyboardInterrupt` when it was stopped.
    """
    data = Prepared.open(prepared)
    with locked(run) if first_process() else nullcontext():
        return _train(Trainer.open(data, run, recipe, device), checkpoint_every, max_steps, on_epoch)


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
        f"{run}: {len(trainer.training)} training slices, {steps} steps an epoch, {epochs} epochs, "
        f"{trainer.fabric.device}, {recipe.precision}. A checkpoint every "
        f"{min(checkpoint_every, steps)} steps: a kill loses no more than those."
    )
    before = done.epoch * steps + done.step
    with stop_on_signal() as stopped, progress(epochs * steps, "train", "step", before) as bar:
        while done.epoch < epochs:
            while done.step < steps:
                loss = trainer.step()
                taken += 1
                bar.update()
                bar.set_postfix_str(f"epoch {done.epoch + 1}/{epochs}, loss {loss:.3f}", refresh=False)
                if taken == max_steps or any_of(trainer.fabric, stopped()):
                    trainer.save()
                    where = f"epoch {done.epoch + 1}, step {done.step} of {steps}"
                    raise KeyboardInterrupt(f"Stopped at {where}, with a checkpoint. The same command goes on there.")
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
    order: np.ndarray | None = None  # of the training slices in this epoch
    clock: float = field(default_factory=lambda: time.monotonic())

    @classmethod
    def open(cls, data: Prepared, run: Path, recipe: Recipe, device: str) -> "Trainer":
        """Start a run, or resume it from its latest checkpoint; raises `UnetlibError` as `train` says."""
        fabric = start_engine(device, recipe.precision, process_count())
        recipe = recipe.but(**data.about["recipe"], precision=resolve_precision(recipe.precision, fabric.device))
        training, validation, _ = _slices_of(data, "train"), _slices_of(data, "val"), get_loss(recipe.loss)
        model, optimizer, done = _start_or_resume(fabric, data, run, recipe)
        if done.step > -(-len(training) // recipe.batch_size):
            raise UnetlibError(
                f"{run / LATEST} is at step {brief(done.step)}, which no epoch has. Delete it to start over."
            )
        net = fabric.setup_module(model)
        return cls(fabric, model, net, optimizer, data, training, validation, run, recipe, done)

    @property
    def steps(self) -> int:
        """Steps of one epoch; the last one may have fewer slices."""
        return -(-len(self.training) // self.recipe.batch_size)

    def step(self) -> float:
        """Adjust the weights once; return the loss before that."""
        recipe, done = self.recipe, self.done
        if self.order is None:
            self.order = shuffled(self.training, recipe.seed, done.epoch)
        batch = self.order[done.step * recipe.batch_size : (done.step + 1) * recipe.batch_size]
        images, masks = self.fabric.to_device(self.data.batch(batch))
        if recipe.augment:
            images, masks = augment(images, masks, recipe.seed, done.epoch, done.step)
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
        done.loss_sum += value * len(batch)
        done.step += 1
        return value

    def finish_epoch(self) -> dict[str, float]:
        """Validate, keep the best model, write checkpoint and history; return the epoch's row."""
        done = self.done
        val_loss, val_dice = self.validate()
        row = {"epoch": done.epoch + 1, "train_loss": done.loss_sum / len(self.training)}
        done.history.append({**row, "val_loss": val_loss, "val_dice": val_dice})
        if val_dice > done.best_dice:
            done.best_dice = val_dice
            self._write(BEST, {"epoch": done.epoch + 1, "val_dice": val_dice})
        done.epoch, done.step, done.loss_sum, self.order = done.epoch + 1, 0, 0.0, None
        self.save()
        if first_process():
            write_csv(self.run / "history.csv", done.history, HISTORY_COLUMNS)
        return done.history[-1]

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Return the mean loss and the pooled Dice over the validation slices."""
        self.net.eval()
        loss_sum, counts, loss = 0.0, [], get_loss(self.recipe.loss)
        for start in range(0, len(self.validation), VALIDATION_BATCH):
            images, masks = self.fabric.to_device(self.data.batch(self.validation[start : start + VALIDATION_BATCH]))
            logits = gather(self.fabric, self.net(share(self.fabric, images)), len(images))
            loss_sum += loss(logits, masks).item() * len(images)
            prediction = torch.sigmoid(logits) >= self.recipe.threshold
            counts.append(metrics.count(prediction.cpu().numpy(), masks.bool().cpu().numpy()))
        return loss_sum / len(self.validation), float(metrics.dice(metrics.Counts.concatenate(counts).sum()))

    def save(self) -> None:
        """Write `latest_checkpoint.pth`: all that the next step depends on."""
        now = time.monotonic()
        self.done.seconds, self.clock = self.done.seconds + now - self.clock, now
        self._write(LATEST, {"optimizer": self.optimizer.state_dict(), "progress": asdict(self.done)})

    def _write(self, name: str, state: dict[str, Any]) -> None:
        if first_process():
            about = {"recipe": self.recipe.as_dict(), "prepared": self.data.identity}
            save_checkpoint(self.run / name, {"model": self.model.state_dict(), **about, **state})


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


def _start_or_resume(
    fabric: Fabric, data: Prepared, run: Path, recipe: Recipe
) -> tuple[nn.Module, torch.optim.Optimizer, Progress]:
    """Return network, optimizer and progress: fresh ones, or those of the run's latest checkpoint."""
    path = run / LATEST
    for damaged in (path, run / BEST):
        if damaged.exists() and first_process():
            restore(damaged)
    fabric.barrier()
    content = load_checkpoint(path) if path.exists() else None
    if content is None and first_process() and not (run / "recipe.json").exists():
        require_empty(run, "a run folder")
    if content is not None:
        _refuse_changes(content, data, run, recipe)
        require_weights(recipe, content, path)
    model = build_model(recipe).to(fabric.device)
    if fabric.world_size > 1:
        share_statistics(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    done = Progress()
    if content is not None:
        load_weights(model, content, path)
        load_optimizer(optimizer, content, path)
        done = _progress(content["progress"], path)
        where = f"epoch {done.epoch + 1}, step {done.step}"
        say(f"{run}: resumed at {where}." if done.epoch < recipe.epochs else f"{run}: finished already.")
    if not first_process():
        return model, optimizer, done
    if done.history:  # a kill may have come between the checkpoint and this file
        write_csv(run / "history.csv", done.history, HISTORY_COLUMNS)
    about = {"recipe": recipe.as_dict(), "prepared": data.identity, "data": str(data.data)}
    write_json(run / "recipe.json", about)
    data.split.save(run / "split.json")
    write_provenance(run, data, recipe.as_dict(), fabric.device)
    return model, optimizer, done


def _progress(fields: Any, path: Path) -> Progress:
    try:
        if fields.keys() != asdict(Progress()).keys():
            raise ValueError("other fields")
        return Progress(**fields)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UnetlibError(
            f"{path}: its progress is not that of a training ({brief(error.args[0])}). Restore it from a copy, or "
            "delete it to start over."
        ) from error


def _refuse_changes(content: dict[str, Any], data: Prepared, run: Path, recipe: Recipe) -> None:
    """Raise `UnetlibError` unless a run goes on with the recipe and the slices that it was started with."""
    if missing := {"optimizer", "progress", "prepared"} - content.keys():
        raise UnetlibError(
            f"{run / LATEST} lacks {', '.join(sorted(missing))}: it is not the checkpoint of a training "
            f"(perhaps a copy of {BEST}?). Restore it from a copy, or delete it to start over."
        )
    advice = "Choose a new run folder, or go back to what it was started with."
    if not isinstance(content["prepared"], dict) or not all(isinstance(key, str) for key in content["prepared"]):
        raise UnetlibError(
            f"{run / LATEST} does not say what it was trained on. Restore it, or delete it to start over."
        )
    if differences := changed(content["prepared"], data.identity):
        raise UnetlibError(f"{run} was trained on other prepared slices ({differences}). {advice}")
    before, now = read_recipe(content["recipe"], run / LATEST).as_dict(), recipe.as_dict()
    if differences := changed({**before, "epochs": 0}, {**now, "epochs": 0}):
        raise UnetlibError(f"{run} was started with another recipe ({differences}). {advice}")


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
