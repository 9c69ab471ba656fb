"""Hooks that act in each step and write no files: averaged weights, a progress bar, a clean stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from unetlib.engine.device import process_count
from unetlib.engine.parallel import any_of
from unetlib.hooks import Hook
from unetlib.loop import Loop


class AveragedWeights(Hook):
    """Keep a running average of the weights over the steps, in the network that is validated."""

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """Move the average towards the weights."""
        number = loop.state.epoch * loop.steps + loop.state.step - 1
        move_average(loop.validated, loop.network, loop.recipe.average, number)


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the `average` of weights and batch norm statistics towards those of `network` after `step`.

    The old average is weighted by `decay`, and by less in the first steps, so that the random initial weights are soon
    forgotten. Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2.
    """
    keep = min(decay, (step + 1) / (step + 10))
    for kept, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - keep)
        else:
            kept.copy_(now)


@dataclass
class Bar(Hook):
    """Move a progress bar (of tqdm) with each step."""

    bar: Any

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """Show epoch and loss."""
        state = loop.state
        self.bar.update()
        self.bar.set_postfix_str(f"epoch {state.epoch + 1}/{loop.recipe.epochs}, loss {loss:.3f}", refresh=False)


@dataclass
class Stop(Hook):
    """End the training after `max_steps` of this call, or after the step in which any process got a signal."""

    asked: Callable[[], bool]
    fabric: Fabric
    max_steps: int | None = None
    taken: int = 0
    by_signal: bool = False

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """Set `loop.stopping`, in all processes; another hook may have set it."""
        self.taken += 1
        self.by_signal = any_of(self.fabric, self.asked())
        loop.stopping = any_of(self.fabric, loop.stopping) or self.by_signal or self.taken == self.max_steps


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (SIGINT) or SIGTERM into a request to stop, which the yielded function reports.

    The current step is finished, so weights and optimizer are never half updated. The second signal stops at once.
    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set() and process_count() == 1:  # torchrun repeats a Ctrl-C that every process already got
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
