"""Long work: several processes, a progress bar with the time left, a clean stop."""

import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from hashlib import sha256
from io import StringIO
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tqdm import tqdm

from unetlib.support.errors import UnetlibError, counted
from unetlib.support.messages import first_process

tqdm.set_lock(threading.RLock())  # a stop while tqdm makes its own would give a traceback

MOST_WORKERS = 61 if sys.platform == "win32" else sys.maxsize  # Windows waits for no more at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def progress(total: int, what: str, unit: str, done: int = 0) -> "tqdm[Any]":
    """Return a progress bar on standard error, with the percentage done, the speed and the time left.

    `done` of the `total` units are already finished (a resumed job). In a log file the bar writes an occasional line
    instead of redrawing itself ten times a second. In a notebook it redraws one output and leaves one short line there.
    Where nothing is to be done, there is no bar.
    """
    if done == total or not first_process():
        return tqdm(disable=True)
    about: dict[str, Any] = {"total": total, "initial": done, "desc": what, "unit": unit}
    if _in_notebook():
        return _NotebookBar(**about, mininterval=0.2, ncols=90, file=StringIO(), ascii=False)
    return tqdm(**about, mininterval=0.1 if sys.stderr.isatty() else 15.0, dynamic_ncols=True)


def watched(items: Collection[Item], what: str, unit: str, done: int = 0) -> Iterator[Item]:
    """Yield items under a progress bar, which counts `done` others that are already finished."""
    with progress(done + len(items), what, unit, done) as bar:
        for item in items:
            yield item
            bar.update()


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class _NotebookBar(tqdm):
    """A progress bar as text in its own display, without a widget that a saved notebook could lose."""

    shown: Any = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.total:
            self._show(str(self))

    def clear(self, nolock: bool = False) -> None:
        pass

    def close(self) -> None:
        was_open = not self.disable
        super().close()
        if self.total and was_open:
            done = "" if self.n == self.total else f"stopped at {self.n} of "
            elapsed = self.format_interval(self.format_dict["elapsed"])
            self._show(f"{self.desc}: {done}{counted(self.total, self.unit)} in {elapsed}")

    def _show(self, text: str) -> None:
        if self.shown is None:
            self.shown = sys.modules["IPython"].display.display({"text/plain": text}, raw=True, display_id=True)
        else:
            self.shown.update({"text/plain": text}, raw=True)


def processor() -> str:
    """Return the name of the processor as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def cpu_count() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_share(
    clock: Callable[[], float] = time.perf_counter, used: Callable[[], float] = time.thread_time
) -> float:
    """Return the fraction of a processor, 0..1, that a busy loop in this thread gets during a twentieth of a second."""
    work = bytes(1 << 18)  # long enough to be hashed without Python's lock, which the other threads need
    start, before = clock(), used()
    while (passed := clock() - start) < 0.05:
        sha256(work).digest()
    return (used() - before) / passed


def idle_processors(measure: Callable[[], float] = processor_share) -> int:
    """Return the number of idle processors, at least 1, from the share that a busy loop on each can `measure`.

    Beside m other busy programs, each of n loops on n processors gets n / (n + m) of a processor.
    """
    number = cpu_count()
    with ThreadPoolExecutor(number) as pool:
        shares = [loop.result() for loop in [pool.submit(measure) for _ in range(number)]]
    others = number * (number / max(sum(shares), 0.1) - 1)
    return min(number, max(1, round(number - others)))


def run_jobs(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    what: str,
    unit: str,
    workers: int | None = None,
    per_worker: int = 1,
) -> Iterator[tuple[Item, Result]]:
    """Yield `(item, function(item))` in order of completion, computed in `workers` processes.

    `workers` is by default the number of idle processors, or 1 if two would not get `per_worker` items each; 1 means
    this process. For several workers, `function` must be importable from a module (no lambda, nothing from the script
    itself). An exception in `function` ends the work. Raises `UnetlibError` when a worker process dies.
    """
    if not items:
        return
    workers = min(workers or (idle_processors() if len(items) >= 2 * per_worker else 1), len(items), MOST_WORKERS)
    with progress(len(items), what, unit) as bar:
        if workers <= 1:
            for item in items:
                yield item, function(item)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")  # the same on every system, and safe with threads
        pool = ProcessPoolExecutor(workers, context, _start_worker)
        started = pool._processes  # a broken pool forgets them
        try:
            with _alone():
                futures = {pool.submit(function, item): item for item in items}
            for future in as_completed(futures):
                yield futures[future], future.result()
                bar.update()
        except BrokenProcessPool as error:
            pool.shutdown()
            raise UnetlibError(_why_dead([process.exitcode for process in started.values()])) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _alone() -> Iterator[None]:
    """Start processes that ignore Ctrl-C and do not run the caller's script.

    Otherwise Python imports the main module in each of them. A script from standard input has none, and a script
    without `if __name__ == "__main__":` would start all its work again. A worker needs nothing from it.
    """
    main, mask = sys.modules["__main__"], getattr(signal, "pthread_sigmask", None)  # Windows has none
    if mask:
        resource_tracker.ensure_running()  # starting it later would unblock the signals
        before = mask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        sys.modules["__main__"] = ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = main
        if mask:
            mask(signal.SIG_SETMASK, before)


def _why_dead(codes: list[int | None]) -> str:
    """Return an explanation of how the first worker ended; the pool ends the others with SIGTERM."""
    others = 0 if 0 in codes else -signal.SIGTERM
    code = next((code for code in codes if code not in (0, None, -signal.SIGTERM)), others)
    if code == -getattr(signal, "SIGKILL", 0):
        return (
            "a worker process was killed (signal 9), probably because the system ran out of memory. Close other "
            "programs, or run the same command again with fewer --workers (in Python: workers=1)."
        )
    how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with status {code}"
    return (
        f"a worker process ended {how} before its work was done. Run the same command again with --workers 1 (in "
        "Python: workers=1) to see the error."
    )


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, use one thread, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
