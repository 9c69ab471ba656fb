"""The number of threads: chosen, kept and watched. No test measures time: clocks and loads are given."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from math import inf

import pytest
import torch

from tests.conftest import LATEST, SMALL, some
from tests.test_training import assert_same_runs
from unetlib import cli
from unetlib.engine import threads
from unetlib.engine.device import start_engine
from unetlib.engine.threads import Threads, prediction_threads, use_idle_processors
from unetlib.hooks import Hook
from unetlib.prediction.predictor import Predictor
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv


class Machine:
    """Two processors, and how many of them are idle; `looks` counts.

    `threads` is what PyTorch is told; it really computes with one, which is fast whatever the load.
    """

    def __init__(self):
        self.idle, self.looks, self.threads, self.now = 2, 0, 2, 0.0

    def look(self):
        self.looks += 1
        self.now += 0.05
        return self.idle

    def set(self, threads):
        self.threads = threads


@pytest.fixture
def machine(monkeypatch):
    """A machine on which the number is free to choose, in a process that has chosen none yet."""
    machine = Machine()
    monkeypatch.setattr(torch, "set_num_threads", machine.set)
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.threads)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_idle_at_first", cache(machine.look))
    monkeypatch.setattr(threads, "_holds_until", -inf)
    monkeypatch.setattr(threads, "_found", 2)
    monkeypatch.setattr(threads, "_ours", 2)
    monkeypatch.setattr(threads, "idle_processors", machine.look)
    return machine


def kept(run):
    return load_checkpoint(run / LATEST)["threads"]


@pytest.mark.parametrize(("idle", "used"), [(1, 1), (2, 2), (16, 2)])
def test_training_takes_the_idle_processors_but_no_more_threads_than_pytorch(machine, tmp_path, idle, used):
    machine.idle = idle
    assert Threads.settle(tmp_path, start_engine("cpu", "fp32"), None, None).number == used


def test_training_looks_tells_keeps_and_notes_the_number(prepared, tmp_path, machine, capsys):
    machine.idle = 1
    train(prepared, tmp_path / "run", SMALL, "cpu")
    assert "training uses 1 thread, one for each idle processor." in capsys.readouterr().out
    assert machine.looks == kept(tmp_path / "run") == torch.get_num_threads() == 1
    assert [one["threads"] for one in Run.of(tmp_path / "run").provenance["sessions"]] == [1]


def test_alone_the_number_is_pytorchs_own(prepared, tmp_path, machine):
    train(prepared, tmp_path / "run", SMALL.but(epochs=1), "cpu")
    assert kept(tmp_path / "run") == torch.get_num_threads() == 2


def test_the_runs_of_one_process_begin_with_one_number(prepared, tmp_path, machine):
    for name, machine.idle in (("a", 1), ("b", 2)):
        train(prepared, tmp_path / name, SMALL.but(epochs=1), "cpu")
    assert kept(tmp_path / "a") == kept(tmp_path / "b") == machine.looks == 1


def test_a_resumed_run_keeps_its_number_and_ends_with_the_bits_of_that_number(prepared, tmp_path, machine, capsys):
    machine.idle = 1
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=5)
    threads._idle_at_first.cache_clear()  # as another process finds it
    torch.set_num_threads(2)
    machine.idle = 2
    train(prepared, tmp_path / "run", SMALL, "cpu")
    assert machine.looks == 1
    assert kept(tmp_path / "run") == 1
    assert "last digits" not in capsys.readouterr().out
    train(prepared, tmp_path / "whole", SMALL, "cpu", threads=1)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_looks_at_nothing_and_its_provenance_stays(prepared, tmp_path, machine):
    machine.idle = 1
    train(prepared, tmp_path / "run", SMALL, "cpu")
    before = (tmp_path / "run" / "provenance.json").read_bytes()
    threads._idle_at_first.cache_clear()
    torch.set_num_threads(2)
    train(prepared, tmp_path / "run", SMALL, "cpu")
    assert machine.looks == 1
    assert torch.get_num_threads() == 2
    assert (tmp_path / "run" / "provenance.json").read_bytes() == before


def edited(run, change):
    """Change the latest checkpoint of a run."""
    content = torch.load(run / LATEST, weights_only=True)
    change(content)
    torch.save(content, run / LATEST)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("threads"),
        *(lambda content, value=value: content.update(threads=value) for value in (None, "two", 0, -1, True, [1])),
    ],
)
def test_a_run_that_kept_no_number_looks_at_the_load(prepared, tmp_path, machine, change):
    """Version 0.3 kept none."""
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=5, threads=1)
    edited(tmp_path / "run", change)
    train(prepared, tmp_path / "run", SMALL, "cpu")
    assert machine.looks == 1
    assert kept(tmp_path / "run") == 2


def test_a_number_kept_on_a_larger_machine_is_chosen_again_and_said(prepared, tmp_path, machine, capsys):
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=5, threads=1)
    edited(tmp_path / "run", lambda content: content.update(threads=8))
    train(prepared, tmp_path / "run", SMALL, "cpu")
    told = capsys.readouterr().out
    assert "2 threads from here on, 8 before: the last digits may now differ." in told
    assert (machine.looks, kept(tmp_path / "run")) == (1, 2)


@pytest.mark.parametrize("how", ["argument", "variable", "torch"])
def test_where_the_number_is_given_nobody_looks_at_the_load(prepared, tmp_path, machine, monkeypatch, how, capsys):
    if how == "variable":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if how == "torch":
        torch.set_num_threads(1)
    train(prepared, tmp_path / "run", SMALL, "cpu", threads=2 if how == "argument" else None)
    assert machine.looks == 0
    assert kept(tmp_path / "run") == (1 if how == "torch" else 2)
    assert "idle processor" not in capsys.readouterr().out


@pytest.mark.parametrize("given", ["", "0", "-1", "many"])
def test_a_variable_that_gives_no_number_is_none(prepared, tmp_path, machine, monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=1)
    assert machine.looks == 1


def test_a_given_number_wins_over_the_one_kept_and_says_so(prepared, tmp_path, machine, capsys):
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=5, threads=1)
    train(prepared, tmp_path / "run", SMALL, "cpu", threads=2)
    assert "2 threads from here on, 1 before: the last digits may now differ." in capsys.readouterr().out
    assert kept(tmp_path / "run") == 2


@pytest.mark.parametrize("number", [0, -3, 10**6])
def test_a_number_that_no_system_starts_is_a_sentence(prepared, tmp_path, number):
    with pytest.raises(UnetlibError, match=rf"threads is {number}; 1 to \d+ were expected"):
        train(prepared, tmp_path / "run", SMALL, "cpu", threads=number)


def test_a_number_given_to_one_run_is_not_the_limit_of_the_next(prepared, tmp_path, machine):
    train(prepared, tmp_path / "a", SMALL.but(epochs=1), "cpu", threads=1)
    train(prepared, tmp_path / "b", SMALL.but(epochs=1), "cpu")
    assert (kept(tmp_path / "a"), kept(tmp_path / "b")) == (1, 2)


def test_on_another_device_and_under_torchrun_nobody_looks_at_the_load(tmp_path, machine):
    class Elsewhere:
        device, world_size = torch.device("cuda"), 1

    class Shared:
        device, world_size = torch.device("cpu"), 2

    for fabric in (Elsewhere, Shared):
        settled = Threads.settle(tmp_path, fabric, None, None)
        assert settled.number is None
        settled.on_step_end(None, 0.0)
    assert machine.looks == 0


@pytest.fixture
def watched(machine, monkeypatch):
    """A training under way on a machine whose clock only its steps and its looks at the load move."""
    monkeypatch.setattr(threads.time, "perf_counter", lambda: machine.now)
    noted = []
    hook = Threads.settle("the run", start_engine("cpu", "fp32"), None, machine.idle, noted.append)

    def steps(seconds, number):
        for _ in range(number):
            machine.now += seconds
            hook.on_step_end(None, 0.0)
        return hook.number, noted

    return steps


def test_when_a_load_comes_and_when_it_goes_the_number_follows_and_is_told(watched, machine, capsys):
    assert watched(0.1, 200) == (2, [])
    machine.idle = 1
    assert watched(0.1, 200) == (1, [1])
    assert torch.get_num_threads() == 1
    told = "the run: the load has changed. Training goes on with {}; the last digits may now differ."
    assert told.format("1 thread") in capsys.readouterr().out
    machine.idle = 16
    assert watched(0.1, 200) == (2, [1, 2])
    assert told.format("2 threads") in capsys.readouterr().out


def test_a_load_of_a_moment_changes_nothing(watched, machine, capsys):
    for machine.idle in [1, 2] * 20:
        assert watched(0.1, 50) == (2, [])
    assert capsys.readouterr().out == ""


def test_looking_at_the_load_costs_one_percent(watched, machine):
    watched(0.01, 10_000)
    assert machine.now < 1.01 * 100
    assert machine.looks > 15


def test_a_changed_number_is_kept_in_the_next_checkpoint_and_noted(prepared, tmp_path, machine, monkeypatch, capsys):
    monkeypatch.setattr(threads, "WINDOW", 0.0)  # a look after every step

    class BusyFromTheSixth(Hook):
        def on_step_end(self, loop, loss):
            if loop.state.step == 4:
                machine.idle = 1

    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=7, hooks=(BusyFromTheSixth(),))
    assert kept(tmp_path / "run") == 1
    assert [one["threads"] for one in Run.of(tmp_path / "run").provenance["sessions"]] == [2, 1]
    assert "goes on with 1 thread; the last digits may now differ." in capsys.readouterr().out


CHANGING = """
import json, sys, torch
from pathlib import Path
from tests.conftest import SMALL
from unetlib.data.prepared import Prepared
from unetlib.runs.run import Run
from unetlib.runs.training import open_loop
before, number = json.loads(sys.argv[3])
loop = open_loop(Prepared.open(Path(sys.argv[1])), Run.of(sys.argv[2]), SMALL)
weights = {name: value.clone() for name, value in loop.network.state_dict().items()}
for other in before:
    torch.set_num_threads(other)
    loop.validate()
    loop.network.train()(torch.rand(4, 1, 32, 32)).sum().backward()
loop.network.load_state_dict(weights)
torch.set_num_threads(number)
for step in range(3):
    loop.step(loop.order()[4 * step : 4 * step + 4])
print(b"".join(value.numpy().tobytes() for value in loop.network.state_dict().values()).hex())
"""


@pytest.mark.parametrize("number", some([1, 2], [1]))
def test_a_number_set_between_steps_gives_the_bits_of_a_process_that_began_with_it(prepared, tmp_path, number):
    found = set()
    for before, first in (([], number), ([2, 1], 2)):
        words = [sys.executable, "-c", CHANGING, prepared, tmp_path / str(before), json.dumps([before, number])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(first)}
        found.add(subprocess.run(words, env=environment, check=True, capture_output=True).stdout.splitlines()[-1])
    assert len(found) == 1


@pytest.mark.parametrize(("idle", "used"), [(1, 1), (2, 2), (16, 2)])
def test_a_prediction_takes_the_idle_processors_and_leaves_the_number_as_it_was(machine, idle, used):
    machine.idle = idle
    with prediction_threads(start_engine("cpu", "fp32")):
        assert torch.get_num_threads() == used
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    machine.idle = 2
    with prediction_threads(start_engine("cpu", "fp32")):
        assert torch.get_num_threads() == 1, "so the user has set it"


def test_a_prediction_in_mid_training_leaves_the_number_to_the_training(machine):
    threads._use(1)
    with suppress(KeyboardInterrupt), prediction_threads(start_engine("cpu", "fp32")):
        assert torch.get_num_threads() == 2
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 1
    assert threads._limit() == 2


@pytest.mark.parametrize(("idle", "used"), [(1, 1), (2, 2), (16, 2)])
def test_a_cell_takes_the_idle_processors_and_the_number_grows_again_with_them(machine, idle, used):
    machine.idle = 1
    use_idle_processors()
    assert torch.get_num_threads() == 1
    threads._holds_until, machine.idle = -inf, idle
    use_idle_processors()
    assert torch.get_num_threads() == used


def test_a_cell_leaves_a_number_that_is_given(machine, monkeypatch):
    machine.idle = 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    use_idle_processors()
    assert torch.get_num_threads() == 2


def test_a_look_at_the_load_holds_for_some_predictions(machine, monkeypatch):
    looks, now = [], [0.0]
    monkeypatch.setattr(threads, "idle_processors", lambda: looks.append(1) or 2)
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    for seconds in (0.0, 1.0, 2.0, threads.WINDOW):
        now[0] += seconds
        with prediction_threads(start_engine("cpu", "fp32")):
            pass
    assert len(looks) == 2


@pytest.mark.parametrize(("asked", "given", "used"), [(1, None, 1), (3, "2", 3), (None, "2", 2), (None, None, 1)])
def test_a_predictor_uses_the_number_that_is_given(run, machine, monkeypatch, asked, given, used):
    machine.idle, seen = 1, []
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    predictor = Predictor.open(run, "cpu", threads=asked)
    predictor.network.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    predictor.slices(torch.rand(3, 1, 32, 32))
    assert seen == [used]


def test_the_flag_reaches_training_tuning_evaluation_and_prediction(prepared, cohort, tmp_path, machine, monkeypatch):
    asked = []

    def spy(fabric, number=None):
        asked.append(number)
        return prediction_threads(fabric, number)

    monkeypatch.setattr("unetlib.prediction.predictor.prediction_threads", spy)
    run, image = tmp_path / "run", next(cohort.glob("*/*_flair.nii.gz"))
    flags = ["--device", "cpu", "--threads", "1"]
    small = ["--width", "4", "--depth", "2", "--epochs", "1", "--tune"]
    cli.main(["prepare", str(cohort), str(tmp_path / "p"), "--image-size", "32", "--slices", "all", "--workers", "1"])
    cli.main(["train", str(tmp_path / "p"), str(run), *small, *flags])
    tuned = len(asked)
    cli.main(["evaluate", str(run), *flags])
    scored = len(asked)
    cli.main(["predict", str(run), str(image), "--out", str(tmp_path / "masks"), *flags])
    assert 0 < tuned < scored < len(asked)
    assert set(asked) == {1}
    assert (kept(run), machine.looks) == (1, 0)
    assert len(read_csv(run / "history.csv")) == 1
