"""Hooks that save the training in its run: checkpoints, the best weights, the history; and live curves."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetlib.engine.threads import Threads
from unetlib.hooks import Hook
from unetlib.loop import Loop
from unetlib.runs.checkpoint import save_checkpoint
from unetlib.runs.resume import HISTORY_COLUMNS, PROGRESS, write_history
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError
from unetlib.support.messages import first_process, say, warn

Rows = list[dict[str, float]]


@dataclass
class Checkpoints(Hook):
    """Write the latest checkpoint after `every` steps, at a stop and after each epoch, and the best weights.

    `about` is added to every checkpoint. Predecessors are kept, except those that came from a stop (`unplanned`), so
    that a stopped run ends with the same files as an uninterrupted one.
    """

    run: Run
    about: dict[str, Any]
    threads: Threads
    every: int
    unplanned: bool = False
    clock: float = field(default_factory=lambda: time.monotonic())

    def on_start(self, loop: Loop) -> None:
        """Find out whether the latest checkpoint came from a stop."""
        self.unplanned = loop.state.step % self.every > 0

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """Write the latest checkpoint if it is due or the training stops."""
        planned = loop.state.step % self.every == 0
        if planned or loop.stopping:
            self.save(loop, unplanned=not planned)

    def on_epoch_end(self, loop: Loop) -> None:
        """Write the best weights if the Dice is the highest so far, then the latest checkpoint."""
        state, row = loop.state, loop.state.history[-1]
        if row["val_dice"] > state.best_dice:
            state.best_dice = row["val_dice"]
            best = {"model": loop.validated.state_dict(), "epoch": state.epoch, "val_dice": state.best_dice}
            self._write(self.run.best, best)
        self.save(loop)

    def save(self, loop: Loop, unplanned: bool = False) -> None:
        """Write everything that the next step depends on."""
        now = time.monotonic()
        loop.state.seconds, self.clock = loop.state.seconds + now - self.clock, now
        for group in loop.optimizer.param_groups:  # each step sets its own; the last value would differ after a resume
            group["lr"] = loop.recipe.learning_rate
        progress = {name: getattr(loop.state, name) for name in PROGRESS}
        content = {"optimizer": loop.optimizer.state_dict(), "progress": progress}
        if loop.validated is not loop.network:
            content["average"] = loop.validated.state_dict()
        self._write(self.run.latest, {"model": loop.network.state_dict(), **content}, keep=not self.unplanned)
        self.unplanned = unplanned

    def _write(self, path: Path, content: dict[str, Any], keep: bool = True) -> None:
        if first_process():
            save_checkpoint(path, {**self.about, "threads": self.threads.number, **content}, keep)


@dataclass
class History(Hook):
    """After each epoch, write `history.csv`, log its row, and call `on_epoch` with all rows, such as live curves."""

    run: Run
    on_epoch: Callable[[Rows], None] | None = None

    def on_start(self, loop: Loop) -> None:
        """Pass on the rows of earlier calls."""
        if self.on_epoch and loop.state.history:
            self.on_epoch(loop.state.history)

    def on_epoch_end(self, loop: Loop) -> None:
        """Write, log and pass on the rows."""
        history = loop.state.history
        if first_process():
            try:
                write_history(self.run, history)
            except UnetlibError as error:  # the checkpoint has these rows, too
                warn(f"{error} The training goes on.")
        say(", ".join(f"{name} {history[-1][name]:.4g}" for name in HISTORY_COLUMNS))
        if self.on_epoch:
            self.on_epoch(history)
