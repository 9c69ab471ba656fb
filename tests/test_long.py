"""The long tests in parts: nothing is lost between two shares, and what was not reached is told."""

import subprocess
import sys

import pytest

from tests import long

pytest_plugins = ["pytester"]


@pytest.fixture
def seven(pytester, monkeypatch):
    """A folder with seven tests, the last of which fails."""
    monkeypatch.syspath_prepend(long.ROOT)
    monkeypatch.setenv("PYTHONPATH", str(long.ROOT))  # for the processes
    pytester.makepyfile("import pytest\n@pytest.mark.parametrize('n', range(7))\ndef test_it(n):\n    assert n < 6\n")
    return pytester


def run(seven, *words):
    """Run them with the plugin, in this process or, where workers are asked for, in processes of its own."""
    return (seven.runpytest_subprocess if "-n" in words else seven.runpytest_inprocess)("-p", "tests.long", *words)


def test_the_shares_are_disjoint_and_make_the_whole_and_a_failure_is_one(seven):
    done = [run(seven, "-v", f"--share={number}/3") for number in (1, 2, 3)]
    shares = [[number for number in range(7) if f"::test_it[{number}] " in one.stdout.str()] for one in done]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert [one.ret for one in done] == [1, 0, 0]


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_what_was_not_reached_is_told_by_name(seven, workers):
    done = run(seven, "--limit=0", *workers)
    done.assert_outcomes(skipped=7)
    done.stdout.fnmatch_lines_random([f"not reached in time: *::test_it?{number}?" for number in range(7)])


def test_a_share_begins_where_it_is_told_and_goes_round(seven):
    lines = [line for line in run(seven, "-v", "--share=1/3", "--begin=5").outlines if "::test_it[" in line]
    assert [line.partition("[")[2][0] for line in lines[:3]] == ["6", "0", "3"]


def test_before_its_time_is_over_everything_is_run(seven):
    done = run(seven, "--limit=1000")
    done.assert_outcomes(passed=6, failed=1)
    done.stdout.no_fnmatch_line("*not reached*")


def test_every_part_comes_round_and_no_other():
    assert {long.turn(f"{commit:040x}") for commit in range(5000, 5500)} == set(range(long.PARTS))
    assert len(long.CHAPTERS) == len(list((long.ROOT / "notebooks" / "solutions").glob("*.ipynb")))


def test_a_part_that_is_not_there_is_refused():
    done = subprocess.run([sys.executable, "-m", "tests.long", "0/19"], cwd=long.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no part 0/19" in done.stderr
