"""Long work: several processes, a progress bar with the time left, a clean stop."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from hashlib import sha256
from io import StringIO
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any, TypeVar

from tqdm import tqdm

from unetlib.support.errors import UnetlibError, counted, printable

tqdm.set_lock(threading.RLock())  # it would make one at its first line, and a stop just then would be a traceback

Item = TypeVar("Item")
Result = TypeVar("Result")


def progress(total: int, what: str, unit: str, done: int = 0) -> "tqdm[Any]":
    """Return a progress bar on standard error that shows the share done, the speed and the time left.

    `done` of the `total` units are finished already (a resumed job). In a log file it writes a
    line now and then instead of redrawing itself ten times a second; in a notebook it redraws one
    output, and leaves one short line there.
    """
    if not first_process():
        return tqdm(disable=True)
    if _in_notebook():
        return _NotebookBar(
            total=total, initial=done, desc=what, unit=unit, mininterval=0.2, ncols=90, file=StringIO(), ascii=False
        )
    interval = 0.1 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, initial=done, desc=what, unit=unit, mininterval=interval, dynamic_ncols=True)


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class _NotebookBar(tqdm):
    """A bar that is text in a display of its own: no widget to lose, and nothing of it in a saved notebook."""

    shown: Any = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.total:
            self._show(str(self))

    def clear(self, nolock: bool = False) -> None:
        pass

    def close(self) -> None:
        open_still = not self.disable
        super().close()
        if self.total and open_still:
            done = "" if self.n == self.total else f"stopped at {self.n} of "
            elapsed = self.format_interval(self.format_dict["elapsed"])
            self._show(f"{self.desc}: {done}{counted(self.total, self.unit)} in {elapsed}")

    def _show(self, text: str) -> None:
        if self.shown is None:
            self.shown = sys.modules["IPython"].display.display({"text/plain": text}, raw=True, display_id=True)
        else:
            self.shown.update({"text/plain": text}, raw=True)


def say(text: str) -> None:
    """Print text without tearing a progress bar apart; of several processes the first one speaks."""
    if first_process():
        tqdm.write(printable(text))


def first_process() -> bool:
    """Tell whether this process writes and speaks: all but one started by torchrun do not."""
    return os.environ.get("RANK", "0") == "0"


def cpu_count() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_share(
    clock: Callable[[], float] = time.perf_counter, used: Callable[[], float] = time.thread_time
) -> float:
    """Return the share of a processor, 0..1, that a busy loop in this thread is given for a twentieth of a second."""
    work = bytes(1 << 18)  # long enough to be hashed without Python's lock, which the other threads want
    start, before = clock(), used()
    while (passed := clock() - start) < 0.05:
        sha256(work).digest()
    return (used() - before) / passed


def idle_processors(share: Callable[[], float] = processor_share) -> int:
    """Return how many processors have nothing else to do, at least 1: a busy loop on each measures its `share`.

    Beside m other busy programs, n loops on n processors have n / (n + m) of one each.
    """
    number = cpu_count()
    with ThreadPoolExecutor(number) as pool:
        shares = [loop.result() for loop in [pool.submit(share) for _ in range(number)]]
    others = number * (number / max(sum(shares), 0.1) - 1)
    return min(number, max(1, round(number - others)))


def run_jobs(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    what: str,
    unit: str,
    workers: int | None = None,
    share: int = 1,
) -> Iterator[tuple[Item, Result]]:
    """Yield `(item, function(item))` as the results come, computed in `workers` processes.

    `workers` is by default the number of idle processors, or 1 where two would not have `share` items each; 1 stays in
    this process. When there are several, `function` must be importable from a module (no lambda, nothing of the script
    itself). An exception in `function` ends the work. Raises `UnetlibError` when a worker process dies.
    """
    if not items:
        return
    workers = min(workers or (idle_processors() if len(items) >= 2 * share else 1), len(items))
    with progress(len(items), what, unit) as bar:
        if workers <= 1:
            for item in items:
                yield item, function(item)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")  # the same on every system, and safe beside threads
        pool = ProcessPoolExecutor(workers, context, _start_worker)
        started = pool._processes  # the pool itself forgets them when it breaks
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
    """Start processes that neither hear a Ctrl-C nor run the caller's script.

    Python would have each of them import the main module, which a script from standard input has not, and which starts
    all work anew in a script without `if __name__ == "__main__":`. A worker needs nothing of it.
    """
    main, mask = sys.modules["__main__"], getattr(signal, "pthread_sigmask", None)  # Windows has none
    if mask:
        resource_tracker.ensure_running()  # at its start it would lift the mask
        before = mask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        sys.modules["__main__"] = ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = main
        if mask:
            mask(signal.SIG_SETMASK, before)


def _why_dead(codes: list[int | None]) -> str:
    """Say what ended the first worker; the pool ends the others by SIGTERM."""
    others = 0 if 0 in codes else -signal.SIGTERM
    code = next((code for code in codes if code not in (0, None, -signal.SIGTERM)), others)
    if code == -getattr(signal, "SIGKILL", 0):
        return (
            "a worker process was killed (signal 9), as a system does that runs out of memory. Close other programs, "
            "or give the same command again with fewer --workers (in Python: workers=1)."
        )
    how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with status {code}"
    return (
        f"a worker process ended {how} before its work was done. Give the same command again with --workers 1 (in "
        "Python: workers=1): what goes wrong is then said by this process."
    )


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, keep to one thread, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
