"""Try many points of the kill matrix and write its table: `python -m tests.faults --points 20 --seed 0`."""

import argparse
import errno
import platform
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from tests.faults.matrix import COMMANDS, FAILURES, KILLS, SIGNALS, Matrix, Trial
from unetlib.support.jobs import cpu_count, progress
from unetlib.support.messages import say

RESULTS = Path(__file__).with_name("RESULTS.md")
KINDS = (  # title, what happens, when, and the share of the points
    ("SIGKILL", (signal.SIGKILL,), KILLS, 1.0),
    ("SIGINT, SIGTERM", SIGNALS, KILLS[:1], 0.5),
    ("disk full, read-only", (errno.ENOSPC, errno.EROFS), FAILURES, 0.5),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=24, help="SIGKILLs for each command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        jobs = [
            (title, command, fault)
            for title, whats, kinds, share in KINDS
            for command in COMMANDS
            for what in whats
            for fault in matrix.points(command, what, kinds, int(args.points * share / len(whats)), args.seed)
        ]
        trials: dict[str, list[Trial]] = {}
        with ThreadPoolExecutor(cpu_count()) as pool, progress(len(jobs), "faults", "point") as bar:
            numbered = [(f"trial-{i}", *job) for i, job in enumerate(jobs)]
            for title, trial in pool.map(lambda job: (job[1], matrix.trial(job[2], job[3], job[0])), numbered):
                trials.setdefault(title, []).append(trial)
                for problem in trial.problems:
                    say(f"{trial.command}, {trial.fault}: {problem}")
                bar.update()
    RESULTS.write_text(table(trials, args), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))
    sys.exit(any(trial.problems for row in trials.values() for trial in row))


def table(trials: dict[str, list[Trial]], args: argparse.Namespace) -> str:
    """Return the table, as Markdown."""
    lines = [
        "# Commands stopped at many points, then given again",
        "",
        f"`python -m tests.faults --points {args.points} --seed {args.seed}`, {date.today()}, {platform.platform()}, "
        f"{cpu_count()} processors.",
        "",
        "Lost: the same command, given again, did not finish. Different: it left other files, or other bytes in them,",
        "than an undisturbed one. Ended wrongly: without a sentence, or with more training steps lost than promised.",
        "",
        "| what happened | command | points | lost | different | ended wrongly | training steps lost at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, row in trials.items():
        for command in COMMANDS:
            own = [trial for trial in row if trial.command == command]
            lost, different = sum(trial.again.code != 0 for trial in own), sum(bool(trial.different) for trial in own)
            other = sum(bool(trial.problems) for trial in own if trial.again.code == 0 and not trial.different)
            steps = max(trial.lost for trial in own) if command.startswith("train") else ""
            lines.append(f"| {title} | {command} | {len(own)} | {lost} | {different} | {other} | {steps} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
