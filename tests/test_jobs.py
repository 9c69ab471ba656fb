"""Jobs: the same results from any number of processes, and no way to hang."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import some
from unetlib.support import jobs
from unetlib.support.errors import UnetlibError
from unetlib.support.jobs import cpu_count, progress, run_jobs, watched
from unetlib.support.messages import say

ROOT = Path(__file__).parents[1]
ITEMS = list(range(-3, 7))

SEGFAULT = re.escape(str(signal.strsignal(11)))  # as the system calls it


def square(number):
    return number * number


def process(_):
    return os.getpid()


def fail_at_3(number):
    if number == 3:
        raise UnetlibError("patient 3 is bad.")
    return number


def end_at_1(number):
    """End the worker as some libraries do."""
    if number == 1:
        os._exit(0)
    return number


def end_with_3_at_1(number):
    if number == 1:
        os._exit(3)
    return number


def kill_at_1(number):
    """End the worker as a system without memory does."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def crash_at_1(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def handler_of_ctrl_c(_):
    return signal.getsignal(signal.SIGINT)


def blocked_signals(_):
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def kill_or_wait(process):
    """End the process of that number without a warning, if one is given; then wait for ever."""
    if process:
        os.kill(process, signal.SIGKILL)
    signal.pause()


def run(function, items, workers):
    return list(run_jobs(function, items, "test", "item", workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_computed_once_by_any_number_of_workers(workers):
    assert sorted(run(square, ITEMS, workers)) == [(number, number * number) for number in ITEMS]


def test_one_worker_keeps_the_order_and_stays_in_this_process():
    assert run(process, ITEMS, 1) == [(item, os.getpid()) for item in ITEMS]


def test_one_worker_takes_a_function_that_cannot_be_imported():
    assert run(lambda number: number + 1, [1, 2], 1) == [(1, 2), (2, 3)]


def test_two_workers_are_other_processes_and_no_more_than_two():
    processes = {number for _, number in run(process, ITEMS, 2)}
    assert os.getpid() not in processes
    assert len(processes) <= 2


@pytest.mark.parametrize("workers", [1, 2, None])
def test_nothing_to_do_ends_at_once(workers):
    assert run(square, [], workers) == []


def test_a_single_item_stays_in_this_process_whatever_the_workers():
    assert run(process, [5], 8) == [(5, os.getpid())]


@pytest.mark.parametrize(
    ("asked", "items", "share", "started"),
    [
        (8, 3, 1, 3),
        (2, 3, 1, 2),
        (None, 3, 1, 3),
        (None, 50, 1, 16),
        (None, 20, 10, 16),
        (2, 3, 10, 2),
    ],
)
def test_no_more_workers_are_started_than_asked_for_and_than_there_are_items(monkeypatch, asked, items, share, started):
    class Started(Exception):
        """Stands for the pool: tells how many workers it was to have."""

    def pool(workers, *_):
        raise Started(workers)

    monkeypatch.setattr(jobs, "idle_processors", lambda: 16)
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", pool)
    with pytest.raises(Started) as caught:
        list(run_jobs(square, range(items), "test", "item", asked, share))
    assert caught.value.args == (started,)


def test_little_work_stays_in_this_process_unless_workers_are_asked_for():
    assert {pid for _, pid in run_jobs(process, range(19), "test", "item", None, 10)} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in run_jobs(process, [1, 2, 3], "test", "item", 2, 50)}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that can pin a process")
def test_the_processors_counted_are_those_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        alone = cpu_count()
    finally:
        os.sched_setaffinity(0, before)
    assert alone == 1
    assert cpu_count() == len(before)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_in_the_function_reaches_the_caller(workers):
    with pytest.raises(UnetlibError, match=r"^patient 3 is bad\.$"):
        run(fail_at_3, ITEMS, workers)


def test_results_come_before_the_exception_that_ends_the_work():
    results = run_jobs(fail_at_3, [1, 2, 3, 4], "test", "item", 1)
    assert [next(results), next(results)] == [(1, 1), (2, 2)]
    with pytest.raises(UnetlibError, match="patient 3"):
        next(results)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (kill_at_1, r"was killed \(signal 9\), probably because the system ran out of memory.* fewer --workers"),
        (
            crash_at_1,
            rf"ended by signal 11 \({SEGFAULT}\) before its work was done.* --workers 1 ",
        ),
        (end_with_3_at_1, r"ended with status 3 before its work was done.* --workers 1 "),
        (end_at_1, r"ended with status 0 before its work was done.* --workers 1 "),
    ],
)
def test_a_worker_that_dies_ends_in_a_sentence_that_tells_how_and_not_in_a_hang(function, told):
    with pytest.raises(UnetlibError, match=told):
        run(function, ITEMS, 2)


SCRIPT = """
from pathlib import Path
from unetlib.data.check import check
from unetlib.data.prepare import prepare
from unetlib.recipe import Recipe
print("the script runs", flush=True)
prepare(Path({data!r}), Path({out!r}), Recipe(image_size=32), workers=2)
print(check(Path({data!r}), workers=2), __name__)
"""


@pytest.mark.parametrize("way", some(["file", "module", "standard input", "-c"], ["file", "standard input"]))
def test_a_script_without_a_guard_of_its_main_module_runs_once_and_does_its_work(cohort, tmp_path, way):
    """Python's own workers import it, so that it would start itself anew; there is none on standard input."""
    code = SCRIPT.format(data=str(cohort), out=str(tmp_path / "prepared"))
    (tmp_path / "script.py").write_text(code)
    words = {"file": ["script.py"], "module": ["-m", "script"], "standard input": [], "-c": ["-c", code]}[way]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=environment,
        input="" if words else code,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("the script runs") == 1
    assert "10 of 10 cases usable. __main__" in done.stdout


def test_workers_leave_ctrl_c_to_the_parent():
    assert {handler for _, handler in run(handler_of_ctrl_c, [1, 2], 2)} == {signal.SIG_IGN}


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system blocks no signals")
def test_workers_do_not_hear_ctrl_c_while_they_start_either():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert all(signal.SIGINT in blocked for _, blocked in run(blocked_signals, [1, 2], 2))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_workers_end_when_their_parent_is_killed():
    code = "import os; from tests.test_jobs import kill_or_wait, run; run(kill_or_wait, [os.getpid(), None], 2)"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        parent.communicate(timeout=60)  # the output ends when the last worker, which holds it open too, has ended
    except subprocess.TimeoutExpired:
        os.killpg(parent.pid, signal.SIGKILL)
        raise
    assert parent.returncode == -signal.SIGKILL


def test_leaving_early_ends_the_work():
    done = []
    for item, _ in run_jobs(done.append, ITEMS, "test", "item", 1):
        if item == 0:
            break
    assert done == [-3, -2, -1, 0]


def test_an_exception_takes_back_the_items_that_wait(monkeypatch):
    ends = []

    class Pool(ProcessPoolExecutor):
        def shutdown(self, **options):
            ends.append(options)
            super().shutdown(**options)

    monkeypatch.setattr(jobs, "ProcessPoolExecutor", Pool)
    with pytest.raises(UnetlibError, match="patient 3"):
        run(fail_at_3, ITEMS, 2)
    assert ends == [{"cancel_futures": True}]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_progress_bar_arrives_at_the_end(capsys, workers):
    run(square, ITEMS, workers)
    (last,) = capsys.readouterr().err.splitlines()[-1:]
    assert "test: 100%" in last
    assert f" {len(ITEMS)}/{len(ITEMS)} " in last


def test_the_bar_of_a_resumed_job_starts_where_it_was(capsys):
    with progress(10, "train", "step", done=4):
        pass
    assert "train:  40%" in capsys.readouterr().err


def test_items_are_watched_beside_those_that_are_finished(capsys):
    assert list(watched("ab", "score", "case", done=2)) == ["a", "b"]
    assert "4/4" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("done", [0, 2])
def test_nothing_to_do_has_no_bar(capsys, done):
    assert list(watched([], "score", "case", done)) == []
    assert capsys.readouterr().err == ""


def test_say_prints_a_line(capsys):
    say("Ready.")
    assert capsys.readouterr().out == "Ready.\n"


@pytest.mark.parametrize(
    ("processors", "others", "idle"),
    [(2, 0, 2), (2, 1, 1), (2, 2, 1), (2, 6, 1), (4, 0, 4), (4, 1, 3), (4, 2, 2), (16, 1, 15), (16, 5, 11), (1, 0, 1)],
)
def test_a_processor_is_idle_that_no_other_program_uses(monkeypatch, processors, others, idle):
    monkeypatch.setattr(jobs, "cpu_count", lambda: processors)
    fair = processors / (processors + others)
    assert jobs.idle_processors(lambda: fair) == idle
    assert jobs.idle_processors(lambda: 0.985 * fair) == idle, "something always runs beside"


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_one_processor_is_used_however_busy_all_are(share):
    assert jobs.idle_processors(lambda: share) == 1


@pytest.mark.parametrize(("used", "share"), [([3.0, 3.05], 1.0), ([3.0, 3.025], 0.5), ([3.0, 3.0], 0.0)])
def test_the_share_of_a_processor_is_the_time_used_of_the_time_passed(used, share):
    passed, spent = iter([10, 10.01, 10.03, 10.05]), iter(used)
    assert jobs.processor_share(lambda: next(passed), lambda: next(spent)) == pytest.approx(share, abs=1e-6)


def test_windows_starts_no_more_processes_than_it_can_wait_for(monkeypatch):
    class Started(Exception):
        """Stands for the pool."""

    def pool(workers, *_):
        raise Started(workers)

    monkeypatch.setattr(jobs, "MOST_WORKERS", 61)
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", pool)
    with pytest.raises(Started, match="61"):
        list(run_jobs(square, range(200), "test", "item", 64))
