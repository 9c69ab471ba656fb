"""How much faster two processes of torchrun train than one, on the same machine.

`python -m benchmarks.processes`. Steps of the published recipe through `unetlib train`, on a prepared cohort of
phantoms, with every processor used: one process with a thread for each, and two with half of them. One process with
half of the threads says what a processor is worth. Seconds are those of `latest_checkpoint.pth`, of a run less those of
another that ended after ten steps.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import in_turn, markdown_table, parser, patients, ratio, report, spread
from unetlib import prepare
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.support.command import BEGINS_ANEW, run_command
from unetlib.support.errors import counted
from unetlib.support.jobs import cpu_count


def run_steps(prepared: Path, run: Path, processes: int, threads: int, batch: int, steps: int) -> float:
    """Train in processes of its own, ten steps and then, anew, so many more; return the slices a second of these."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "unetlib", "train", str(prepared), str(run), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    taken = []
    for number in (10, 10 + steps):
        shutil.rmtree(run, ignore_errors=True)
        arguments = ["--batch-size", str(batch), "--max-steps", str(number)]
        done = subprocess.run(command + arguments, env=environment, capture_output=True, text=True)
        if done.returncode or (run / "history.csv").exists():
            raise SystemExit(done.stderr or "An epoch has ended: more patients are needed.")
        taken.append(load_checkpoint(Run(run).latest)["progress"]["seconds"])
    return steps * batch / (taken[1] - taken[0])


def main() -> None:
    """Measure, print, record."""
    arguments = parser("benchmarks.processes", __doc__, repeats=2, steps=20).parse_args()
    everything = cpu_count()
    half = max(1, everything // 2)
    ways = {
        f"1 process, {counted(half, 'thread')}": (1, half),
        f"1 process, {everything} threads": (1, everything),
        f"2 processes, {counted(half, 'thread')} each": (2, half),
    }
    rows = []
    with patients(16) as data, tempfile.TemporaryDirectory() as temporary:
        prepared = prepare(data, Path(temporary, "prepared")).folder
        for batch in (4, 16):
            speed: dict[str, list[float]] = {name: [] for name in ways}
            for repeat in range(arguments.repeats):
                for name, way in in_turn(ways, repeat):
                    run = Path(temporary, f"{batch}-{repeat}-{way[0]}-{way[1]}")
                    speed[name].append(run_steps(prepared, run, *way, batch, arguments.steps))
            first, second = list(speed.values())[:2]
            for name, values in speed.items():
                ratios = [f"{ratio(values, other):.2f}" for other in (first, second)]
                rows.append([batch, name, spread(values), *ratios])
    about = "Published recipe, width 32, 96 x 96."
    table = markdown_table(("batch", "", "slices/s", "against the first row", "against the second row"), rows)
    report("processes", "Two processes", about, table, options=arguments, packages=("torch", "lightning-fabric"))


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
