"""Hooks that act in each step and write no files: a progress bar, a clean stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unetlib.engine.parallel import any_of
from unetlib.hooks import Hook
from unetlib.loop import Loop
from unetlib.support.jobs import progress
from unetlib.support.messages import process_count


@dataclass
class Bar(Hook):
    """The progress bar of one call, over the steps of all `members` of a run."""

    members: int = 1
    bar: Any = None

    def begin(self, place: int, done: int, total: int) -> None:
        """Show the bar when a member begins with `done` of its `total` steps; `place`: its number, from 0."""
        total, done = self.members * total, place * total + done
        if self.bar is None:
            self.bar = progress(total, "train", "step", done)
        else:
            self.bar.total, self.bar.n = total, done

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """Show epoch and loss."""
        state = loop.state
        self.bar.update()
        self.bar.set_postfix_str(f"epoch {state.epoch + 1}/{loop.recipe.epochs}, loss {loss:.3f}", refresh=False)

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


@dataclass
class Stop(Hook):
    """End the training of a `FabricEngine` after `max_steps` of a call, or the step in which a process got a signal."""

    max_steps: int | None
    asked: Callable[[], bool] = lambda: False  # whether this process got a signal
    taken: int = 0

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """Set `loop.stopping`, in all processes; another hook may have set it."""
        fabric = loop.engine.fabric  # type: ignore[attr-defined]
        self.taken += 1
        loop.stopping = any_of(fabric, loop.stopping or self.asked()) or self.taken == self.max_steps


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

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
