"""How much faster two processes of torchrun train than one, on the same machine.

`python -m benchmarks.processes`. Steps of the published recipe through `unetlib train`, on a prepared cohort of
phantoms, with every processor used: one process with a thread for each, and two with half of them. One process with
half of the threads says what a processor is worth. Seconds are those of `latest_checkpoint.pth`, of a run less those of
another that ended after ten steps.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import in_turn, machine, patients, ratio, record, spread
from unetlib.data.prepare import prepare
from unetlib.runs.checkpoint import LATEST, load_checkpoint
from unetlib.support.command import BEGINS_ANEW, run_command
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
        taken.append(load_checkpoint(run / LATEST)["progress"]["seconds"])
    return steps * batch / (taken[1] - taken[0])


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    everything = cpu_count()
    half = max(1, everything // 2)
    ways = {
        f"1 process, {half} thread{'s' * (half > 1)}": (1, half),
        f"1 process, {everything} threads": (1, everything),
        f"2 processes, {half} thread{'s' * (half > 1)} each": (2, half),
    }
    lines = [
        "## Two processes",
        "",
        "Published recipe, width 32, 96 x 96. Everything defined at the top of `benchmarks/processes.py`.",
        "",
        "| batch | | slices/s | against the first row | against the second row |",
        "|---|---|---|---|---|",
    ]
    with patients(16) as data, tempfile.TemporaryDirectory() as temporary:
        prepare(data, Path(temporary, "prepared"))
        for batch in (4, 16):
            speed: dict[str, list[float]] = {name: [] for name in ways}
            for repeat in range(arguments.repeats):
                for name, (processes, threads) in in_turn(ways, repeat):
                    run = Path(temporary, f"{batch}-{repeat}-{processes}-{threads}")
                    speed[name].append(
                        run_steps(Path(temporary, "prepared"), run, processes, threads, batch, arguments.steps)
                    )
            first, second = list(speed.values())[:2]
            for name, values in speed.items():
                ratios = [f"{ratio(values, other):.2f}" for other in (first, second)]
                lines.append(f"| {batch} | {name} | {spread(values)} | {' | '.join(ratios)} |")
    about = machine(("torch", "lightning-fabric"))
    command = f"python -m benchmarks.processes --repeats {arguments.repeats} --steps {arguments.steps}"
    lines += ["", f"`{command}`, medians (quartiles); {about}."]
    record("processes", "\n".join(lines))


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
