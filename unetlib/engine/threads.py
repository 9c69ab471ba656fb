"""The number of CPU threads.

The threads of a layer wait for the slowest one. If another program is busy, two threads on two processors can therefore
be slower than one. The number is measured before training, and again when the load has changed or the steps have become
much slower. Predictions and notebook cells use one thread for each idle processor.
"""

import copy
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from statistics import median
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unetlib.hooks import Hook
from unetlib.loop import Loop
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.jobs import cpu_count, idle_processors
from unetlib.support.messages import say

Trial = Callable[[int, float], float]  # (threads, limit) -> seconds of a step, which is aborted at the limit

SLICES = 8  # most slices of a trial step
ROUNDS, SECONDS = 9, 1.0  # of trial steps: no further round starts after this many, or this long
PATIENCE = 2.0  # a trial step is aborted when it takes this many times as long as the fastest
GAIN = 0.1  # fraction of time that a step must save to change the number, since the last digits then change
WINDOW = 5.0  # seconds of training between two checks
SLOWER = 2.0  # a step is much slower if it takes this many times as long as before
PAUSE = 60  # times the length of a check until the next one: training loses at most 2 %

_found = _ours = torch.get_num_threads()  # set by PyTorch or the user; set by this module
_measured: dict[Any, tuple[dict[int, float], int]] = {}  # in this process: seconds of a step, idle processors


@dataclass
class Threads(Hook):
    """The number of threads of a training: given, stored in the run, or, with `measure`, measured and monitored."""

    number: int | None = None
    name: str = ""  # of the run, for messages
    measure: Callable[[], dict[int, float]] | None = None  # seconds per slice by number of threads
    idle: int = 0  # idle processors when the number was chosen
    clock: Callable[[], float] = time.perf_counter
    recent: list[float] = field(default_factory=list)  # seconds of steps since the last check
    usual: float = inf  # seconds of a step, in the best window since the number was chosen
    pause_until: float = 0.0
    note: Callable[[int], None] | None = None  # stores a changed number in the run
    started: float = 0.0  # time at which the current step started

    @classmethod
    def settle(
        cls,
        name: str,
        fabric: Fabric,
        model: nn.Module,
        shape: tuple[int, ...],
        asked: int | None,
        kept: int | None,
        note: Callable[[int], None] | None = None,
    ) -> "Threads":
        """Set and return the number of threads of a run: `asked`, else `kept` from the run, else measured.

        It is measured on a CPU only, with steps of a copy of `model` on random batches of `shape` (N, C, S, S), once
        per process for the same work. OMP_NUM_THREADS and `torch.set_num_threads(1)` count as `asked`. If the number
        changes later, `note` is called with it. Raises `UnetlibError` when `asked` is out of range.
        """
        if fabric.device.type != "cpu" or fabric.world_size > 1:
            _use(_checked(asked) or torch.get_num_threads())
            return cls()
        most = _limit()
        if given := _checked(asked) or _given():
            if kept not in (None, given):
                say(f"{name}: {counted(given, 'thread')} from here on, {kept} before: the last digits may now differ.")
            _use(given)
            return cls(given)
        measure = partial(trial_times, fabric, model, (min(SLICES, shape[0]), *shape[1:]), numbers(most))
        if kept and kept <= most:
            _use(kept)
            return cls(kept, name, measure, idle=kept, note=note)
        if kept:
            say(f"{name}: trained with {counted(kept, 'thread')} before; here {counted(most, 'thread')} can be used.")
        work = shape, most, sum(weight.numel() for weight in model.parameters())
        if work not in _measured:
            _measured[work] = measure(), idle_processors()
        times, idle = _measured[work]
        number = pick(times, max(number for number in times if number <= max(1, idle)))
        say(f"{name}: {speeds(times)}. Training uses {number}." + (" The last digits may now differ." if kept else ""))
        _use(number)
        return cls(number, name, measure, idle, note=note)

    def on_step_start(self, loop: Loop) -> None:
        """Note the time."""
        self.started = self.clock()

    def on_step_end(self, loop: Loop, loss: float) -> None:
        """Check from time to time whether the number of threads is still best."""
        self.recent.append(self.clock() - self.started)
        if self.measure and sum(self.recent) >= WINDOW:
            self._check()

    def _check(self) -> None:
        """Measure again if steps have become much slower or the number of idle processors has changed."""
        now, start = median(self.recent), self.clock()
        self.recent, self.usual = [], min(self.usual, now)
        if start < self.pause_until:
            return
        idle, slower = idle_processors(), now / self.usual
        if idle != self.idle or slower > SLOWER:
            steps = f"steps take {slower:.1f} times as long as before" if slower > SLOWER else "the load has changed"
            self._choose_again(steps)
            self.idle, self.usual = idle, inf
        end = self.clock()
        self.pause_until = end + PAUSE * (end - start)

    def _choose_again(self, why: str) -> None:
        assert self.measure is not None
        assert self.number is not None
        times = self.measure()
        number = pick(times, self.number)
        _use(number)
        if number != self.number:
            say(f"{self.name}: {why}. {speeds(times)}. Training goes on with {number}; the last digits may now differ.")
            if self.note:
                self.note(number)
            self.number = number


def numbers(most: int) -> list[int]:
    """Return the numbers of threads to try: 1, 2, 4 and so on, and `most`."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


def pick(times: dict[int, float], now: int) -> int:
    """Return the fastest number of threads, or `now` unless a step saves `GAIN` of its time."""
    best = min(times, key=times.__getitem__)
    return best if times[best] < (1 - GAIN) * times[now] else now


def speeds(times: dict[int, float]) -> str:
    """Return the measured slices per second as a sentence without its full stop."""
    return "Measured " + ", ".join(f"{1 / time:.3g} slices/s with {counted(n, 'thread')}" for n, time in times.items())


def typical_times(trial: Trial, tried: list[int], clock: Callable[[], float] = time.perf_counter) -> dict[int, float]:
    """Return the median seconds of a trial step with each number of threads, in turns, since the load may vary.

    The first round only warms up. An aborted step counts with its time so far.
    """
    times: dict[int, list[float]] = {number: [] for number in tried}
    best, start = inf, inf
    for done in range(1 + ROUNDS):
        for number in tried:
            times[number].append(trial(number, PATIENCE * best))
            best = min(best, times[number][-1])
        if done == 0:
            start = clock()
        elif clock() - start >= SECONDS:
            break
    return {number: median(taken[1:]) for number, taken in times.items()}


def trial_times(fabric: Fabric, model: nn.Module, shape: tuple[int, ...], tried: list[int]) -> dict[int, float]:
    """Return the training seconds per slice with each number of threads.

    The steps use a copy and noise: network, statistics and global generators do not change.
    """
    before = torch.get_num_threads()
    try:
        times = typical_times(_Trial(fabric, model, shape), tried)
    finally:
        torch.set_num_threads(before)
    return {number: taken / shape[0] for number, taken in times.items()}


class _Late(Exception):
    """A trial step takes too long."""


class _Trial:
    """Forward, backward and Adam on a copy of a network; checks the time after each layer, in both directions."""

    def __init__(self, fabric: Fabric, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.fabric, self.net, self.end = fabric, copy.deepcopy(model).train(), inf
        self.adam = torch.optim.Adam(self.net.parameters(), lr=1e-6)
        self.images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        for layer in self.net.modules():
            layer.register_forward_hook(self._watch)

    def __call__(self, threads: int, limit: float) -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        self.end = start + limit
        with suppress(_Late):
            self.adam.zero_grad()
            with self.fabric.autocast():
                loss = self.net(self.images).float().square().mean()
            loss.backward()
            self.adam.step()
        return time.perf_counter() - start

    def _watch(self, _: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:  # a frozen layer gives one without
            output.register_hook(self._check)
        self._check()

    def _check(self, _: Tensor | None = None) -> None:
        if time.perf_counter() > self.end:
            raise _Late


@contextmanager
def prediction_threads(fabric: Fabric, asked: int | None = None) -> Iterator[None]:
    """Compute with `asked` threads, else on a CPU with one for each idle processor; then restore the number.

    OMP_NUM_THREADS and `torch.set_num_threads(1)` count as `asked`.
    """
    before, most = torch.get_num_threads(), _limit()
    number = _checked(asked) or _given()
    if fabric.device.type == "cpu" and number is None:
        number = min(most, _idle_lately())
    torch.set_num_threads(number or before)
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


@dataclass
class _Lately:
    """The result of the last look at the load, and until when it holds."""

    idle: int = 1
    until: float = -inf


_lately = _Lately()


def _idle_lately() -> int:
    """Return how many processors are idle; the answer is reused for some seconds."""
    if time.perf_counter() > _lately.until:
        _lately.idle, _lately.until = idle_processors(), time.perf_counter() + WINDOW
    return _lately.idle


def _given() -> int | None:
    """Return the number of threads if the user has set it; OpenMP ignores values that are not above 0."""
    given = re.match(r"\s*\+?0*[1-9]", os.environ.get("OMP_NUM_THREADS", ""))
    return _limit() if given or _limit() == 1 else None


def _checked(asked: int | None) -> int | None:
    """Return the number asked for; raises `UnetlibError` when it is out of range."""
    most = max(256, cpu_count())
    if asked is not None and not 1 <= asked <= most:
        raise UnetlibError(f"threads is {asked}; 1 to {most} were expected. Leave it out to have it measured.")
    return asked


def _limit() -> int:
    """Return the number of threads that PyTorch or the user has set; no more are tried."""
    global _found
    if torch.get_num_threads() != _ours:
        _found = torch.get_num_threads()
    return _found


def _use(number: int) -> None:
    global _ours
    torch.set_num_threads(number)
    _ours = number
