"""The number of threads: measured, kept and watched. No test measures time: clocks, loads and speeds are given."""

import copy
import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

from tests.conftest import LATEST, SMALL, some
from tests.test_training import assert_same_runs, same
from unetlib import cli
from unetlib.engine import threads
from unetlib.engine.device import start_engine
from unetlib.engine.threads import (
    Threads,
    numbers,
    pick,
    prediction_threads,
    trial_times,
    typical_times,
    use_idle_processors,
)
from unetlib.hooks import Hook
from unetlib.networks import build_network
from unetlib.prediction.predictor import Predictor
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv

QUIET, BUSY = {1: 1 / 43, 2: 1 / 61}, {1: 1 / 28, 2: 1 / 5}  # seconds a slice, as measured on two processors
SHAPE = (4, 1, 32, 32)


class Machine:
    """Two processors, what a trial step takes on them, and how many are idle; `measured` counts.

    `threads` is what PyTorch is told; it really computes with one, which is fast whatever the load.
    """

    def __init__(self):
        self.times, self.idle, self.measured, self.threads = QUIET, 2, 0, 2

    def measure(self, *_):
        self.measured += 1
        return dict(self.times)

    def set(self, threads):
        self.threads = threads


@pytest.fixture
def machine(monkeypatch):
    """A machine on which the number is free to choose, in a process that has chosen none yet."""
    machine = Machine()
    monkeypatch.setattr(torch, "set_num_threads", machine.set)
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.threads)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_measured", {})
    monkeypatch.setattr(threads, "_lately", threads._Lately())
    monkeypatch.setattr(threads, "_found", 2)
    monkeypatch.setattr(threads, "_ours", 2)
    monkeypatch.setattr(threads, "trial_times", machine.measure)
    monkeypatch.setattr(threads, "idle_processors", lambda: machine.idle)
    return machine


def kept(run):
    return load_checkpoint(run / LATEST)["threads"]


@pytest.mark.parametrize(("idle", "picked"), [(0, 1), (1, 1), (2, 2), (16, 2)])
def test_where_two_threads_hardly_differ_from_one_the_idle_processors_decide(machine, tmp_path, idle, picked):
    """Beside two busy programs, what two threads measure varies by a factor of five."""
    machine.times, machine.idle = {1: 1.0, 2: 0.95}, idle
    fabric = start_engine("cpu", "fp32")
    assert Threads.settle(tmp_path, fabric, build_network(SMALL), SHAPE, None, None).number == picked


@pytest.mark.parametrize(
    ("most", "tried"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_few_numbers_are_tried_and_always_one_and_all(most, tried):
    assert numbers(most) == tried


@pytest.mark.parametrize(
    ("times", "now", "picked"),
    [
        ({1: 1.0, 2: 0.7}, 2, 2),
        ({1: 1.0, 2: 0.7}, 1, 2),
        ({1: 1.0, 2: 4.0}, 2, 1),
        ({1: 1.0, 2: 1.09}, 2, 2),
        ({1: 1.0, 2: 1.2}, 2, 1),
        ({1: 3.0, 2: 2.0, 4: 1.0, 8: 1.5}, 8, 4),
    ],
)
def test_the_fastest_is_picked_unless_it_hardly_differs(times, now, picked):
    assert pick(times, now) == picked


def test_all_take_turns_and_the_first_round_is_not_counted():
    asked, steps = [], iter([9, 9, 1, 3, 2, 5, 3, 4])

    def trial(number, limit):
        asked.append(number)
        return next(steps)

    clock = iter([0, 0.4, 0.8, 1.2])
    assert typical_times(trial, [1, 2], lambda: next(clock)) == {1: 2, 2: 4}
    assert asked == [1, 2] * 4


def test_a_slow_number_is_given_up_and_costs_little():
    """Beside other programs one step with two threads may take six seconds."""
    now, limits = [0.0], {1: [], 2: []}

    def trial(number, limit):
        limits[number].append(limit)
        taken = min(limit, {1: 0.3, 2: 6.0}[number])
        now[0] += taken
        return taken

    times = typical_times(trial, [1, 2], lambda: now[0])
    assert pick(times, 2) == 1
    assert max(limits[2]) == pytest.approx(0.6)
    assert now[0] < 3


def test_the_rounds_end_on_a_fast_machine_too():
    asked = []
    typical_times(lambda number, _: asked.append(number) or 1e-6, [1, 2], lambda: 0.0)
    assert len(asked) == 2 * (1 + threads.ROUNDS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trial_touches_neither_network_nor_statistics_nor_generators_nor_the_number(machine, precision):
    fabric, model, state = start_engine("cpu", precision), build_network(SMALL), torch.get_rng_state()
    before, number = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    times = trial_times(fabric, model, SHAPE, [1, 2])
    assert list(times) == [1, 2]
    assert all(0 < time < torch.inf for time in times.values())
    assert same(dict(before), dict(model.state_dict()))
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == number


@pytest.mark.parametrize("late", [1, 12, 50])
def test_a_trial_step_ends_at_its_limit_on_the_way_forth_and_back(monkeypatch, late):
    """The clock jumps at the given look: at once, within the forward pass and within the backward pass."""
    trial, looks = threads._Trial(start_engine("cpu", "fp32"), build_network(SMALL), SHAPE), []

    def clock():
        looks.append(1)
        return 100.0 * (len(looks) > late)

    monkeypatch.setattr(threads.time, "perf_counter", clock)
    assert trial(1, 10.0) == 100
    assert len(looks) == late + 2
    assert trial.adam.state_dict()["state"] == {}, "the step was not finished"


def test_training_measures_tells_keeps_and_notes_the_number(prepared, tmp_path, machine, capsys):
    machine.times = BUSY
    train(prepared, tmp_path / "run", SMALL, "cpu")
    assert "Measured 28 slices/s with 1 thread, 5 slices/s with 2 threads. Training uses 1." in capsys.readouterr().out
    assert machine.measured == kept(tmp_path / "run") == torch.get_num_threads() == 1
    assert [one["threads"] for one in Run.of(tmp_path / "run").provenance["sessions"]] == [1]


def test_alone_the_number_is_pytorchs_own(prepared, tmp_path, machine):
    train(prepared, tmp_path / "run", SMALL.but(epochs=1), "cpu")
    assert kept(tmp_path / "run") == torch.get_num_threads() == 2


def test_one_process_measures_the_same_work_once(prepared, tmp_path, machine):
    for name in ("a", "b"):
        train(prepared, tmp_path / name, SMALL.but(epochs=1), "cpu")
    assert machine.measured == 1


def test_a_resumed_run_keeps_its_number_and_ends_with_the_bits_of_that_number(prepared, tmp_path, machine, capsys):
    machine.times = BUSY
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=5)
    threads._measured.clear()  # as another process finds it
    torch.set_num_threads(2)
    machine.times = QUIET
    train(prepared, tmp_path / "run", SMALL, "cpu")
    assert machine.measured == 1
    assert kept(tmp_path / "run") == 1
    assert "last digits" not in capsys.readouterr().out
    train(prepared, tmp_path / "whole", SMALL, "cpu", threads=1)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_measures_nothing_and_its_provenance_stays(prepared, tmp_path, machine):
    machine.times = BUSY
    train(prepared, tmp_path / "run", SMALL, "cpu")
    before = (tmp_path / "run" / "provenance.json").read_bytes()
    threads._measured.clear()
    torch.set_num_threads(2)
    train(prepared, tmp_path / "run", SMALL, "cpu")
    assert machine.measured == 1
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
def test_a_run_that_kept_no_number_measures(prepared, tmp_path, machine, change):
    """Version 0.3 kept none."""
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=5, threads=1)
    edited(tmp_path / "run", change)
    train(prepared, tmp_path / "run", SMALL, "cpu")
    assert machine.measured == 1
    assert kept(tmp_path / "run") == 2


def test_a_number_kept_on_a_larger_machine_is_measured_again_and_said(prepared, tmp_path, machine, capsys):
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=5, threads=1)
    edited(tmp_path / "run", lambda content: content.update(threads=8))
    train(prepared, tmp_path / "run", SMALL, "cpu")
    told = capsys.readouterr().out
    assert "trained with 8 threads before; here 2 threads can be used." in told
    assert "Training uses 2. The last digits may now differ." in told
    assert (machine.measured, kept(tmp_path / "run")) == (1, 2)


@pytest.mark.parametrize("how", ["argument", "variable", "torch"])
def test_where_the_number_is_given_nothing_is_measured(prepared, tmp_path, machine, monkeypatch, how, capsys):
    if how == "variable":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if how == "torch":
        torch.set_num_threads(1)
    train(prepared, tmp_path / "run", SMALL, "cpu", threads=2 if how == "argument" else None)
    assert machine.measured == 0
    assert kept(tmp_path / "run") == (1 if how == "torch" else 2)
    assert "Measured" not in capsys.readouterr().out


@pytest.mark.parametrize("given", ["", "0", "-1", "many"])
def test_a_variable_that_gives_no_number_is_none(prepared, tmp_path, machine, monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=1)
    assert machine.measured == 1


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


def test_on_another_device_and_under_torchrun_nothing_is_measured(tmp_path, machine):
    class Elsewhere:
        device, world_size = torch.device("cuda"), 1

    class Shared:
        device, world_size = torch.device("cpu"), 2

    for fabric in (Elsewhere, Shared):
        settled = Threads.settle(tmp_path, fabric, build_network(SMALL), SHAPE, None, None)
        assert settled.number is None
        settled.on_step_start(None)
        settled.on_step_end(None, 0.0)
    assert machine.measured == 0


class Watched:
    """A run under way on a machine, with a clock that only its steps and its looks at the load move."""

    def __init__(self, machine, number, monkeypatch, run):
        self.machine, self.now, self.noted = machine, 0.0, []
        monkeypatch.setattr(threads, "idle_processors", self.look)
        self.threads = Threads(number, run, self.measure, machine.idle, lambda: self.now, note=self.note)

    def note(self, number):
        self.noted.append(number)

    def look(self):
        self.now += 0.05
        return self.machine.idle

    def measure(self):
        self.now += 2.0
        return self.machine.measure()

    def steps(self, seconds, number):
        for _ in range(number):
            self.threads.on_step_start(None)
            self.now += seconds
            self.threads.on_step_end(None, 0.0)


@pytest.fixture
def watched(machine, monkeypatch, tmp_path):
    return lambda number: Watched(machine, number, monkeypatch, tmp_path)


def test_steps_that_become_far_slower_are_measured_again_and_the_change_is_told(watched, machine, capsys):
    run = watched(2)
    run.steps(0.07, 1000)
    assert machine.measured == 0
    machine.times = BUSY
    run.steps(0.28, 100)
    assert (machine.measured, run.threads.number, torch.get_num_threads(), run.noted) == (1, 1, 1, [1])
    told = capsys.readouterr().out
    assert "steps take 4.0 times as long as before" in told
    assert "28 slices/s with 1 thread, 5 slices/s with 2 threads" in told
    assert "goes on with 1; the last digits may now differ." in told


def test_steps_that_are_a_little_slower_or_seldom_slow_change_nothing(watched, machine):
    run = watched(2)
    machine.times = BUSY
    run.steps(0.07, 200)
    run.steps(0.13, 200)
    for _ in range(20):
        run.steps(0.07, 50)
        run.steps(3.0, 1)  # the disk was busy
    assert machine.measured == 0


def test_when_the_load_is_gone_the_threads_come_back(watched, machine, capsys):
    """A single thread beside one busy program is no slower than alone: only the idle processor tells."""
    machine.times, machine.idle = BUSY, 1
    run = watched(1)
    run.steps(0.1, 200)
    assert machine.measured == 0
    machine.times, machine.idle = QUIET, 2
    run.steps(0.1, 100)
    assert (machine.measured, run.threads.number) == (1, 2)
    assert "the load has changed. Measured 43 slices/s with 1 thread, 61" in capsys.readouterr().out


def test_a_run_resumed_beside_another_program_measures_though_its_steps_were_never_faster(watched, machine):
    run = watched(2)
    machine.times, machine.idle = BUSY, 1
    run.steps(0.4, 20)
    assert (machine.measured, run.threads.number) == (1, 1)


def test_a_load_that_comes_and_goes_costs_two_percent_at_most(watched, machine):
    run, training = watched(2), 0.0
    for turn in range(4000):
        machine.idle = 1 + turn % 2
        run.steps(0.1, 60)
        training += 6.0
    assert 3 < machine.measured < 0.02 * training / 2.0
    assert run.now < 1.02 * training


def test_a_measurement_that_changes_nothing_is_not_told(watched, machine, capsys):
    run = watched(2)
    machine.idle = 1
    run.steps(0.07, 1000)
    assert machine.measured == 1
    assert (run.threads.number, capsys.readouterr().out) == (2, "")


def test_a_changed_number_is_kept_in_the_next_checkpoint_and_noted(prepared, tmp_path, machine, monkeypatch, capsys):
    monkeypatch.setattr(threads, "WINDOW", 0.0)  # a look after every step

    class BusyFromTheSixth(Hook):
        def on_step_end(self, loop, loss):
            if loop.state.step == 5:
                machine.times, machine.idle = BUSY, 1

    train(prepared, tmp_path / "run", SMALL, "cpu", max_steps=6, hooks=(BusyFromTheSixth(),))
    assert kept(tmp_path / "run") == 1
    assert [one["threads"] for one in Run.of(tmp_path / "run").provenance["sessions"]] == [2, 1]
    assert "goes on with 1; the last digits may now differ." in capsys.readouterr().out


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
    threads._lately.until, machine.idle = 0.0, idle
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
    assert (kept(run), machine.measured) == (1, 0)
    assert len(read_csv(run / "history.csv")) == 1
