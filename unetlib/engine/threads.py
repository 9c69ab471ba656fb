"""The number of CPU threads: one for each idle processor, unless it is given.

The threads of a layer wait for the slowest one. If another program is busy, two threads on two processors can therefore
be many times slower than one. Training stores its number in the run and looks at the load again from time to time.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import inf

import torch
from lightning_fabric import Fabric

from unetlib.hooks import Hook
from unetlib.loop import Loop
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.jobs import cpu_count, idle_processors
from unetlib.support.messages import say

WINDOW = 5.0  # seconds for which a look at the load holds: a look takes a hundredth of that

_found = _ours = torch.get_num_threads()  # set by PyTorch or the user; set by this module


def _next_look() -> float:
    return time.perf_counter() + WINDOW


@dataclass
class Threads(Hook):
    """The number of threads of a training; `watched`: it follows the number of idle processors."""

    number: int | None = None
    name: str = ""  # of the run, for messages
    note: Callable[[int], None] | None = None  # stores a changed number in the run
    watched: bool = False
    seen: int = 0  # idle processors at the last look
    until: float = field(default_factory=_next_look)  # when to look again

    @classmethod
    def settle(
        cls, name: str, fabric: Fabric, asked: int | None, kept: int | None, note: Callable[[int], None] | None = None
    ) -> "Threads":
        """Set and return the number of threads of a run: `asked`, else `kept` from the run, else the idle processors.

        Runs that one process starts begin with the same number, so that their bits can be compared. OMP_NUM_THREADS and
        `torch.set_num_threads(1)` count as `asked`. If the number changes later, `note` is called with it. Raises
        `UnetlibError` when `asked` is out of range.
        """
        if fabric.device.type != "cpu" or fabric.world_size > 1:
            _use(checked(asked) or torch.get_num_threads())
            return cls()
        given = checked(asked) or _given()
        number = given or (kept if kept and kept <= _limit() else min(_limit(), _idle_at_first()))
        if kept not in (None, number):
            say(f"{name}: {counted(number, 'thread')} from here on, {kept} before: the last digits may now differ.")
        elif not (given or kept):
            say(f"{name}: training uses {counted(number, 'thread')}, one for each idle processor.")
        _use(number)
        return cls(number, name, note, watched=given is None)

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """From time to time, look at the load; change the number when two looks in a row show another one."""
        if not self.watched or time.perf_counter() < self.until:
            return
        before, self.seen = self.seen, min(_limit(), idle_processors())
        self.until = _next_look()
        if self.seen == before != self.number:
            self.number = self.seen
            _use(self.seen)
            more = f"goes on with {counted(self.seen, 'thread')}; the last digits may now differ."
            say(f"{self.name}: the load has changed. Training {more}")
            if self.note:
                self.note(self.seen)


@contextmanager
def prediction_threads(fabric: Fabric, asked: int | None = None) -> Iterator[None]:
    """Compute with `asked` threads, else on a CPU with one for each idle processor; then restore the number.

    OMP_NUM_THREADS and `torch.set_num_threads(1)` count as `asked`.
    """
    number = checked(asked) or _given()
    if fabric.device.type == "cpu" and number is None:
        number = min(_limit(), _idle_lately())
    with fixed_threads(number or torch.get_num_threads()):
        yield


@contextmanager
def fixed_threads(number: int) -> Iterator[None]:
    """Compute on a CPU with this number of threads; then restore the one before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_idle_processors(*_: object) -> None:
    """Compute on a CPU with one thread for each idle processor from now on; IPython may call it before each cell.

    OMP_NUM_THREADS and `torch.set_num_threads(1)` take precedence.
    """
    if _given() is None:
        _use(min(_limit(), _idle_lately()))


_idle_at_first = cache(idle_processors)  # when this process began to train
_idle, _holds_until = 1, -inf  # the idle processors at the last look, and until when this holds


def _idle_lately() -> int:
    """Return how many processors are idle; the answer is reused for some seconds."""
    global _idle, _holds_until
    if time.perf_counter() > _holds_until:
        _idle, _holds_until = idle_processors(), _next_look()
    return _idle


def _given() -> int | None:
    """Return the number of threads if the user has set it; OpenMP ignores values that are not above 0."""
    given = re.match(r"\s*\+?0*[1-9]", os.environ.get("OMP_NUM_THREADS", ""))
    return _limit() if given or _limit() == 1 else None


def checked(asked: int | None) -> int | None:
    """Return the number asked for; raises `UnetlibError` when it is out of range."""
    most = max(256, cpu_count())
    if asked is not None and not 1 <= asked <= most:
        raise UnetlibError(f"threads is {asked}; 1 to {most} were expected. Leave it out for one per idle processor.")
    return asked


def _limit() -> int:
    """Return the number of threads that PyTorch or the user has set; no more are used."""
    global _found
    if torch.get_num_threads() != _ours:
        _found = torch.get_num_threads()
    return _found


def _use(number: int) -> None:
    global _ours
    torch.set_num_threads(number)
    _ours = number
