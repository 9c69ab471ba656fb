"""The long forms of the tests, whole or a part of them: `make test-long`, `make test-long PART=3/19`.

Parts 1 to 7 are the chapters, each with its solutions, at full length and from an empty folder of results. The other
parts share, in turn, the tests marked `long` and the properties with many more examples. As a plugin of pytest this
module takes every n-th test, and starts none after a limit of time.
"""

import argparse
import math
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
START = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", help="K/N: every N-th test, from the K-th on")
    parser.addoption("--begin", type=int, default=0, help="which one comes first; the others follow in turn")
    parser.addoption("--limit", type=float, default=math.inf, help="start no test after so many seconds of testing")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if share := config.getoption("share"):
        first, number = map(int, share.split("/"))
        mine = items[first - 1 :: number]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        begin = config.getoption("begin") % max(1, len(mine))
        items[:] = mine[begin:] + mine[:begin]


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[START] = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - item.config.stash[START] > item.config.getoption("limit"):
        pytest.skip(NOT_REACHED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("skipped", []):
        if NOT_REACHED in str(report.longrepr):
            terminalreporter.write_line(f"{NOT_REACHED}: {report.nodeid}")


def turn(commit: str) -> int:
    """Return the part, counted from 0, that the hash of a commit draws."""
    return int(commit, 16) % PARTS


def first_test(commit: str) -> str:
    """Return the word by which the hash of a commit draws the test that a part begins with."""
    return f"--begin={int(commit[8:16], 16)}"


def course(chapters: list[Path]) -> list[str]:
    """Empty the folder of results, and return the words that let nbval run chapters with their solutions."""
    shutil.rmtree(ROOT / "notebooks" / "work" / "synthetic", ignore_errors=True)
    solutions = [path.with_name("solutions") / path.name for path in chapters]
    return ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "900", *map(str, [*chapters, *solutions])]


def run_pytest(words: list[str], limit: float) -> int:
    """Run pytest with this plugin, the chapters at full length, and return its status."""
    env = {name: value for name, value in os.environ.items() if name not in ("COURSE_SHORT", "COURSE_DATA")}
    line = [sys.executable, "-m", "pytest", "-p", "tests.long", *words, f"--limit={limit}"]
    return subprocess.run(line, cwd=ROOT, env=env, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", help=f'"3/{PARTS}", or "commit": what its hash draws (default: all)')
    parser.add_argument(
        "--limit", type=float, default=math.inf, metavar="SECONDS", help="start no test and no cell later"
    )
    args = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tests = [*TESTS, first_test(head)]
    if args.part is None:
        sys.exit(max(run_pytest(course(CHAPTERS), args.limit), run_pytest(tests, args.limit)))
    names = [f"{number}/{PARTS}" for number in range(1, PARTS + 1)]
    name = names[turn(head)] if args.part == "commit" else args.part
    if name not in names:
        parser.error(f"there is no part {name}, only {names[0]} to {names[-1]}")
    print(f"Part {name} of the long tests; at this commit, make test-long PART={name} repeats it", flush=True)
    number = names.index(name) - len(CHAPTERS)
    share = [*tests, f"--share={number + 1}/{SHARES}"]
    sys.exit(run_pytest(share if number >= 0 else course([CHAPTERS[number]]), args.limit))


if __name__ == "__main__":
    main()
