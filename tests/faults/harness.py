"""Run a command of unetlib in a process of its own, and let something happen to it at a chosen moment.

A profile function sees every call that the command makes, from the reading of its arguments on. It counts them,
and at a chosen one it kills or interrupts the process, lets the call fail, or holds the process there. Moments are
counted in calls, not in seconds: so they are spread evenly over the work, and found again.
"""

import io
import multiprocessing
import os
import posix
import resource
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from unetlib.cli import main
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.support.command import begin

ANY_CALL, WITHIN_WRITE = "any call", "within write"
FILE_CALLS = {"mkdir", "fsync", "replace", "link", "unlink", "rmdir"}
HOLD = "hold"

context: Any = multiprocessing.get_context("forkserver")  # imports torch once; every command is a fork of that
context.set_forkserver_preload(
    ["unetlib.runs.training", "unetlib.evaluation.evaluate", "unetlib.data.check", "unetlib.phantom.cohort"]
)


@dataclass(frozen=True)
class Fault:
    """What happens, and when.

    `what` is a signal, an error number that the call fails with, or `HOLD`. `at` counts, from 1, the events of
    `where`: all calls and returns (`ANY_CALL`), or those of one kind, as "before write" and "after replace". With
    `WITHIN_WRITE`, `at` is the size in bytes at which no file grows any more: the kernel cuts that write short.
    """

    what: signal.Signals | int | str
    where: str
    at: int


@dataclass(frozen=True)
class Outcome:
    """How a command ended: the code as in `Process.exitcode`, what it printed, what it did, training steps done."""

    code: int
    output: str
    events: Counter[str]
    steps: int


class _Spy:
    """The profile function; `steps` is shared with the parent, which reads it after a kill."""

    def __init__(self, fault: Fault | None, steps: Any, held: Any, go_on: Any) -> None:
        self.fault, self.steps, self.held, self.go_on = fault, steps, held, go_on
        self.events: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if not self.events and not (event == "c_return" and arg.__name__ == "signal"):
            return  # until the handler of signals is in place
        self._count(ANY_CALL)
        if event in ("c_call", "c_return") and _touches_files(arg):
            self._count(f"{'before' if event == 'c_call' else 'after'} {arg.__name__}")
        elif event == "return" and frame.f_code.co_qualname == "Loop.step":
            self.steps.value += 1

    def _count(self, where: str) -> None:
        self.events[where] += 1
        fault = self.fault
        if fault is None or (fault.where, fault.at) != (where, self.events[where]):
            return
        if fault.what == HOLD:
            self.held.set()
            self.go_on.wait()
        elif isinstance(fault.what, signal.Signals):
            os.kill(os.getpid(), fault.what)
        else:
            raise OSError(fault.what, os.strerror(int(fault.what)))


def _touches_files(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    if function.__name__ == "write":
        return isinstance(owner, io.IOBase) and isinstance(getattr(owner, "name", 2), str) and owner.name[0] != "<"
    return function.__name__ in FILE_CALLS and owner is posix


def _child(command: list[str], fault: Fault | None, log: Path, sender: Any, *shared: Any) -> None:
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    begin()
    torch.set_num_threads(1)
    spy = _Spy(fault, *shared)
    if fault and fault.where == WITHIN_WRITE:
        if fault.what == signal.SIGKILL:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, resource.RLIM_INFINITY))
    code: object = 1
    sys.setprofile(spy)
    try:
        main(command)
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        sys.setprofile(None)
        sender.send((spy.events, 1 if isinstance(code, str) else code))


def run(command: list[Any], log: Path, fault: Fault | None = None) -> Outcome:
    """Run a command to its end, however that comes."""
    return Running(command, log, fault).end()


class Running:
    """A command under way. `held` is set when it has come to a fault of the kind `HOLD`; `go_on` lets it continue."""

    def __init__(self, command: list[Any], log: Path, fault: Fault | None = None) -> None:
        self.log, self.held, self.go_on = log, context.Event(), context.Event()
        self.steps = context.Value("q", 0, lock=False)
        self.receiver, sender = context.Pipe(duplex=False)
        arguments = ([str(word) for word in command], fault, log, sender, self.steps, self.held, self.go_on)
        self.process = context.Process(target=_child, args=arguments)
        self.process.start()
        sender.close()

    def end(self) -> Outcome:
        """Wait for the end of the command."""
        self.process.join()
        try:
            events, code = self.receiver.recv()  # the fork server may lose a code, and gives 255 then
        except EOFError:  # killed
            events, code = Counter(), self.process.exitcode
        return Outcome(code, self.log.read_text(errors="replace"), events, self.steps.value)


def content(folder: Path) -> dict[str, Any]:
    """Return all files below a folder, hidden ones too, by name: their bytes, or the values of a checkpoint.

    The seconds that a training took are left out: they are not the same twice.
    """
    return {path.relative_to(folder).as_posix(): _read(path) for path in folder.rglob("*") if path.is_file()}


def _read(path: Path) -> Any:
    if path.suffix != ".pth":
        return path.read_bytes()
    checkpoint = load_checkpoint(path)
    checkpoint.get("progress", {}).pop("seconds", None)
    return checkpoint


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal to the last bit, tensors in dictionaries and lists included."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
