"""The long forms of the tests, whole or a part of them: `make test-long`, `make test-long PART=3/17`.

Parts 1 to 5 are the chapters, each with its solutions, at full length and from an empty folder of results. The other
parts share, in turn, the tests marked `long` and the properties with many new examples. As a plugin of pytest this
module takes every n-th test, and starts none after a point in time.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SHARES = 12  # of the tests: each takes less than three minutes on two cores
PARTS = len(CHAPTERS) + SHARES
TESTS = ["tests", "-m", "long or hypothesis", "--hypothesis-profile=long", "-n", "2", "--dist", "worksteal"]
NOT_REACHED = "not reached in time"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", help="K/N: every N-th test, from the K-th on")
    parser.addoption("--until", type=float, help="start no test after this time, in seconds since 1970")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if share := config.getoption("share"):
        first, number = map(int, share.split("/"))
        mine = items[first - 1 :: number]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    until = item.config.getoption("until")
    if until and time.time() > until:
        pytest.skip(NOT_REACHED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    for report in skipped:
        if NOT_REACHED in str(report.longrepr):
            terminalreporter.write_line(f"{NOT_REACHED}: {report.nodeid}")


def turn(commit: str) -> int:
    """Return the part, counted from 0, that the hash of a commit draws."""
    return int(commit, 16) % PARTS


def seed(commit: str) -> str:
    """Return the word that lets properties draw the examples of a commit: other ones than those of the last."""
    return f"--hypothesis-seed={int(commit[:8], 16)}"


def course(chapters: list[Path]) -> list[str]:
    """Empty the folder of results, and return the words that let nbval run chapters with their solutions."""
    shutil.rmtree(ROOT / "notebooks" / "work" / "synthetic", ignore_errors=True)
    solutions = [path.with_name("solutions") / path.name for path in chapters]
    return ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "900", *map(str, [*chapters, *solutions])]


def run_pytest(words: list[str], until: float | None) -> int:
    """Run pytest with this plugin, the chapters at full length, and return its status."""
    env = {name: value for name, value in os.environ.items() if name not in ("COURSE_SHORT", "COURSE_DATA")}
    limit = [f"--until={until}"] if until else []
    line = [sys.executable, "-m", "pytest", "-p", "tests.long", *words, *limit]
    return subprocess.run(line, cwd=ROOT, env=env, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", help=f'"3/{PARTS}", or "commit": what its hash draws (default: all)')
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="start no test and no cell later")
    args = parser.parse_args()
    until = time.time() + args.limit if args.limit else None
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tests = [*TESTS, seed(head)]
    if args.part is None:
        sys.exit(max(run_pytest(course(CHAPTERS), until), run_pytest(tests, until)))
    names = [f"{number}/{PARTS}" for number in range(1, PARTS + 1)]
    name = names[turn(head)] if args.part == "commit" else args.part
    if name not in names:
        parser.error(f"there is no part {name}, only {names[0]} to {names[-1]}")
    print(f"Part {name} of the long tests; at this commit, make test-long PART={name} repeats it", flush=True)
    number = names.index(name) - len(CHAPTERS)
    share = [*tests, f"--share={number + 1}/{SHARES}"]
    sys.exit(run_pytest(share if number >= 0 else course([CHAPTERS[number]]), until))


if __name__ == "__main__":
    main()
