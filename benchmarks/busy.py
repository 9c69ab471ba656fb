"""Training beside busy programs: with one thread and with all, with PyTorch's own, and with the chosen one.

`python -m benchmarks.busy`. Steps of the notebooks' recipe (width 16, 96 x 96, batch 4, bf16 where the processor has
it) on prepared phantoms, alone and beside one and two processes that each keep a processor busy. All ways train for
some seconds in turns, and the number is chosen anew each time. "0.3" is what version 0.3 does: PyTorch's own
number. Slices a second leave out the choice, whose seconds are given below the table.

Then a load begins in mid-run, and ends: the slices a second in the last seconds of each stretch include the
looks at the load.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.common import endless, in_turn, markdown_table, parser, patients, report, spread
from unetlib import Recipe, prepare
from unetlib.engine import threads
from unetlib.engine.threads import Threads
from unetlib.loop import Loop
from unetlib.runs.run import Run
from unetlib.runs.training import open_loop
from unetlib.support.command import BEGINS_ANEW, run_command

RECIPE = Recipe.published.but(width=16)
LOADS = {"alone": 0, "beside one": 1, "beside two": 2}
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
STRETCHES = {"alone": (0, 20.0), "beside one": (1, 40.0), "alone again": (0, 160.0)}  # busy processes, seconds
LAST = 10.0  # seconds of a stretch that count
MOST = torch.get_num_threads()  # PyTorch's own number


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep so many processors busy."""
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    time.sleep(0.5 * bool(number))  # until they have started
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def train_for(steps: Iterator[None], seconds: float, last: float) -> float:
    """Train for so many seconds; return the slices a second in the last ones."""
    start, ends = time.perf_counter(), []
    while not ends or ends[-1] < start + seconds:
        next(steps)
        ends.append(time.perf_counter())
    counted = [end for end in ends if end > ends[-1] - last]
    begin = ends[-len(counted) - 1] if len(counted) < len(ends) else start
    return RECIPE.batch_size * len(counted) / (ends[-1] - begin)


def fixed(number: int) -> Callable[[Loop], Threads]:
    """Return what sets a number of threads."""

    def choose(_: Loop) -> Threads:
        torch.set_num_threads(number)
        return Threads(number)

    return choose


def chosen(loop: Loop) -> Threads:
    """Choose the number of threads as a run does that begins in a new process."""
    threads._use(MOST)
    threads._idle_at_first.cache_clear()
    return Threads.settle("", loop.engine.fabric, None, None)


def compare(loop: Loop, repeats: int, seconds: float) -> tuple[str, str]:
    """Return a table, slices a second of all ways beside all loads, and what the choice took."""
    ways = {f"{number} thread{'s' * (number > 1)}": fixed(number) for number in sorted({1, MOST})}
    ways = {**ways, f"0.3: {MOST}": fixed(MOST), "chosen": chosen}
    speed: dict[tuple[str, str], list[float]] = {(way, load): [] for way in ways for load in LOADS}
    costs, steps = [], endless(loop)
    for repeat in range(repeats):
        for load, number in LOADS.items():
            with busy(number):
                for way, choose in in_turn(ways, repeat):
                    start = time.perf_counter()
                    choose(loop)  # the choice alone; the watch is shown below
                    if choose is chosen:
                        costs.append(time.perf_counter() - start)
                    train_for(steps, 0.2, 1.0)  # to warm up
                    speed[way, load].append(train_for(steps, seconds, seconds))
    best = {load: max(statistics.median(speed[way, load]) for way in ways if "thread" in way) for load in LOADS}
    rows = [[way, *(spread(speed[way, load]) for load in LOADS)] for way in ways]
    ratios = [statistics.median(speed["chosen", load]) / best[load] for load in LOADS]
    rows.append(["chosen, of the best fixed", *(f"{ratio:.0%}" for ratio in ratios)])
    return markdown_table(["slices/s", *LOADS], rows), f"The choice took {spread(costs)} s."


def in_mid_run(loop: Loop) -> str:
    """Return a table: slices a second at the end of stretches with and without a load, the number before and after."""
    rows, steps, others = [], endless(loop), loop.hooks
    for way, choose in {"0.3": fixed(MOST), "chosen and watched": chosen}.items():
        watched, cells = choose(loop), []
        loop.hooks = [watched, *others]
        for number, seconds in STRETCHES.values():
            with busy(number):
                speed = train_for(steps, seconds if choose is chosen else 2 * LAST, LAST)
            cells.append(f"{speed:.3g} ({watched.number})")
        rows.append([way, *cells])
    return markdown_table(["slices/s, a load in mid-run", *STRETCHES], rows)


def main() -> None:
    """Measure, print, record."""
    arguments = parser("benchmarks.busy", __doc__, repeats=5, seconds=4.0).parse_args()
    if MOST == 1 or "OMP_NUM_THREADS" in os.environ:
        raise SystemExit("There is nothing to choose: one thread, or OMP_NUM_THREADS is set. Unset it.")
    with patients(8) as data, tempfile.TemporaryDirectory() as temporary:
        prepared = prepare(data, Path(temporary, "prepared"))
        loop = open_loop(prepared, Run(Path(temporary, "run")), RECIPE)
        loop.hooks = []
        blocks = [*compare(loop, arguments.repeats, arguments.seconds), in_mid_run(loop)]
    about = f"Width 16, 96 x 96, batch 4, {loop.recipe.precision}."
    note = "In brackets: the number of threads at the end of the stretch."
    packages = ("torch", "lightning-fabric")
    report("busy", "A busy machine", about, *blocks, note, options=arguments, packages=packages)


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
