import copy
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.conftest import BEST, LATEST, SCANS, SMALL, STRONG, as_03, as_03_run, as_cases, write_patient
from unetlib import __version__, loop
from unetlib.augment import augment, change_intensity, warp
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.data.split import Split
from unetlib.evaluation.evaluate import evaluate
from unetlib.hooks import Hook, move_average
from unetlib.loop import Loop
from unetlib.metrics import count, dice
from unetlib.networks import build_network
from unetlib.recipe import Recipe
from unetlib.runs import resume, saving
from unetlib.runs.checkpoint import load_checkpoint, previous, save_checkpoint
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.schedule import learning_rate
from unetlib.support.chance import balanced, shuffled
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv, read_json, sha256

FLAGS = ["--width", "4", "--depth", "2", "--epochs", "2", "--precision", "fp32", "--device", "cpu"]


def same(a, b):
    """Tell whether two checkpoints' values are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_runs(one, other):
    for name in (LATEST, BEST):
        assert same(load_checkpoint(one / name), load_checkpoint(other / name))
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()


@pytest.mark.parametrize("stops", [(2,), (4, 1), (7,), (3, 2, 1)])
def test_stops_between_two_checkpoints_leave_the_predecessor_that_no_stop_leaves(prepared, tmp_path, stops):
    for steps in (*stops, None):
        train(prepared, tmp_path / "run", SMALL, device="cpu", checkpoint_every=3, max_steps=steps)
    train(prepared, tmp_path / "whole", SMALL, device="cpu", checkpoint_every=3)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")
    one, other = (load_checkpoint(previous(tmp_path / name / LATEST)) for name in ("run", "whole"))
    assert same(one, other)


@pytest.mark.parametrize("before_the_end", [0, 1])
def test_a_stop_near_the_end_leaves_that_predecessor_too(prepared, tmp_path, before_the_end):
    """Its checkpoint would be the last but one."""
    steps = SMALL.epochs * -(-len(Prepared.open(prepared).dataset().indices("train")) // SMALL.batch_size)
    train(prepared, tmp_path / "run", SMALL, "cpu", checkpoint_every=4, max_steps=steps - before_the_end)
    train(prepared, tmp_path / "run", SMALL, "cpu", checkpoint_every=4)
    train(prepared, tmp_path / "whole", SMALL, "cpu", checkpoint_every=4)
    one, other = (load_checkpoint(previous(tmp_path / name / LATEST)) for name in ("run", "whole"))
    assert same(one, other)


def test_a_run_leaves_what_is_promised(run):
    assert {path.name for path in run.iterdir()} >= {LATEST, BEST, "history.csv", "recipe.json", "split.json"}
    assert [row["epoch"] for row in read_csv(run / "history.csv")] == ["1", "2"]
    assert Recipe(**read_json(run / "recipe.json")["recipe"]) == SMALL


def test_the_loop_equals_the_recipe_written_out_in_plain_torch(prepared, run):
    """An independent loop: autograd, torch's own Adam, clipping and BCELoss after the sigmoid."""
    data, model = Prepared.open(prepared), build_network(SMALL)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(2):
        order, losses = shuffled(data.dataset().indices("train"), 0, epoch), []
        for step in range(math.ceil(len(order) / 4)):
            images, masks = data.dataset().batch(order[4 * step : 4 * step + 4])
            images, masks = augment(images, masks, 0, epoch, step)
            loss = torch.nn.BCELoss()(torch.sigmoid(model(images)), masks)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            losses += [loss.item()] * len(images)
        assert float(read_csv(run / "history.csv")[epoch]["train_loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    trained = load_checkpoint(run / LATEST)["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-2, atol=1e-3)


def test_validation_dice_is_the_pooled_dice_of_the_validation_slices(prepared, run):
    data, model = Prepared.open(prepared), build_network(SMALL)
    model.load_state_dict(load_checkpoint(run / LATEST)["model"])
    images, masks = data.dataset().batch(data.dataset().indices("val"))
    with torch.no_grad():
        prediction = model.eval().probabilities(images) >= 0.5
    expected = dice(count(prediction.numpy(), masks.bool().numpy()).sum())
    assert float(read_csv(run / "history.csv")[-1]["val_dice"]) == pytest.approx(expected.item(), abs=1e-6)


def test_the_best_model_is_that_of_the_highest_validation_dice(prepared, tmp_path, monkeypatch):
    dices = iter([0.2, 0.7, 0.5])
    monkeypatch.setattr(Loop, "validate", lambda _: {"val_loss": 0.0, "val_dice": next(dices)})
    train(prepared, tmp_path / "run", SMALL.but(epochs=3), device="cpu")
    best = load_checkpoint(tmp_path / "run" / BEST)
    assert (best["epoch"], best["val_dice"]) == (2, 0.7)


def test_training_learns(prepared, tmp_path):
    done = train(prepared, tmp_path / "run", SMALL.but(epochs=12, learning_rate=1e-2), device="cpu")
    assert done.best_dice > 0.8
    assert done.history[-1]["train_loss"] < done.history[0]["train_loss"] / 2


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(prepared, run, tmp_path):
    train(prepared, tmp_path / "again", SMALL, device="cpu")
    assert_same_runs(run, tmp_path / "again")
    train(prepared, tmp_path / "other", SMALL.but(seed=1), device="cpu")
    assert not same(load_checkpoint(run / BEST)["model"], load_checkpoint(tmp_path / "other" / BEST)["model"])


def test_training_leaves_the_global_generators_alone(prepared, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(prepared, tmp_path / "run", SMALL.but(epochs=1), device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [1, 4, 7, 8, 13])
def test_stopped_after_any_step_and_resumed_it_ends_with_the_same_bits(prepared, tmp_path, stop, precision):
    recipe, device = SMALL.but(precision=precision), os.environ.get("UNETLIB_DEVICE", "cpu")
    train(prepared, tmp_path / "whole", recipe, device)
    train(prepared, tmp_path / "resumed", recipe, device, max_steps=stop)
    train(prepared, tmp_path / "resumed", recipe, device)
    assert_same_runs(tmp_path / "whole", tmp_path / "resumed")


def test_on_epoch_is_given_the_history_after_every_epoch_and_at_a_resumed_start(prepared, tmp_path):
    seen = []
    train(prepared, tmp_path / "run", SMALL, device="cpu", max_steps=1, on_epoch=lambda rows: seen.append(len(rows)))
    assert seen == []
    train(prepared, tmp_path / "run", SMALL, device="cpu", on_epoch=lambda rows: seen.append(len(rows)))
    assert seen == [1, 2]
    train(prepared, tmp_path / "run", SMALL, device="cpu", on_epoch=lambda rows: seen.append(rows[-1]["epoch"]))
    assert seen == [1, 2, 2]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a POSIX signal")
def test_killed_in_mid_epoch_and_resumed_it_ends_with_the_same_bits(prepared, run, tmp_path):
    command = [sys.executable, "-m", "unetlib", "train", str(prepared), str(tmp_path / "run"), *FLAGS]
    # The child kills itself right after a checkpoint in mid-epoch: no handler, no clean-up, no luck needed.
    suicide = (
        "import os, signal, sys; from unetlib import cli; from unetlib.runs import saving\n"
        "save = saving.save_checkpoint\n"
        "def then_die(path, content, keep):\n"
        "    save(path, content, keep)\n"
        "    if content.get('progress', {}).get('step') == 4 and content['progress']['epoch'] == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "saving.save_checkpoint = then_die\n"
        "cli.main(sys.argv[1:])"
    )
    killed = subprocess.run([sys.executable, "-c", suicide, *command[3:], "--checkpoint-every", "2"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "run" / LATEST)["progress"]["step"] == 4
    resumed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "resumed at epoch 2, step 4" in resumed.stdout
    assert_same_runs(run, tmp_path / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows delivers no SIGINT to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_with_a_checkpoint_and_say_how_to_go_on(prepared, run, tmp_path, monkeypatch, number):
    step, taken = loop.change, []

    def interrupted(*args):
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), number)  # in the middle of a step
        return step(*args)

    monkeypatch.setattr(loop, "change", interrupted)
    with pytest.raises(KeyboardInterrupt, match="Stopped at epoch 1, step 3"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")
    monkeypatch.undo()
    train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert_same_runs(run, tmp_path / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows delivers no SIGINT to one process")
@pytest.mark.parametrize("when", ["in the last validation", "after the last epoch"])
def test_ctrl_c_near_the_end_stops_what_would_come_next(prepared, run, tmp_path, monkeypatch, when):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    validate = Loop.validate
    if when == "in the last validation":
        monkeypatch.setattr(Loop, "validate", lambda loop: (loop.state.epoch and interrupt()) or validate(loop))
    else:
        monkeypatch.setattr(saving, "write_history", lambda _, rows: len(rows) == 2 and interrupt())
    with pytest.raises(KeyboardInterrupt, match=r"Stopped after the last epoch of .*run, with a checkpoint"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")
    monkeypatch.undo()
    assert train(prepared, tmp_path / "run", SMALL, device="cpu").epoch == SMALL.epochs
    assert_same_runs(run, tmp_path / "run")


def test_a_hook_that_stops_before_the_first_step_leaves_no_checkpoint_and_none_is_named(prepared, tmp_path, capsys):
    class Never(Hook):
        def on_start(self, loop):
            loop.stopping = True

    train(prepared, tmp_path / "run", SMALL, device="cpu", hooks=[Never()])
    assert "Stopped at epoch 1, step 0 of" in (out := capsys.readouterr().out)
    assert out.endswith(", before the first checkpoint. The same command goes on there.\n")
    assert not (tmp_path / "run" / LATEST).exists()


def test_a_kill_between_checkpoint_and_history_loses_no_row(prepared, tmp_path, monkeypatch):
    write = resume.write_csv
    monkeypatch.setattr(resume, "write_csv", None)
    once = SMALL.but(epochs=1)
    with pytest.raises(TypeError):
        train(prepared, tmp_path / "run", once, device="cpu")
    assert load_checkpoint(tmp_path / "run" / LATEST)["progress"]["epoch"] == 1
    assert not (tmp_path / "run" / "history.csv").exists()
    monkeypatch.setattr(resume, "write_csv", write)
    train(prepared, tmp_path / "run", once, device="cpu")
    assert len(read_csv(tmp_path / "run" / "history.csv")) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows delivers no SIGINT to one process")
def test_a_second_signal_stops_at_once(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "change", lambda *_: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt, match="Stopped at once"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")


def test_in_a_thread_which_may_have_no_handlers_it_trains_too(prepared, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        state = pool.submit(train, prepared, tmp_path / "run", SMALL.but(epochs=1), device="cpu").result()
    assert state.epoch == 1


@pytest.mark.parametrize(
    ("every", "told"),
    [(1, "every step: a kill loses no more than that."), (3, "every 3 steps: a kill loses no more than those.")],
)
def test_it_says_how_much_a_kill_loses(prepared, tmp_path, caplog, every, told):
    with caplog.at_level("INFO", "unetlib"):
        train(prepared, tmp_path / "run", SMALL, "cpu", checkpoint_every=every, max_steps=1)
    assert f"A checkpoint {told}" in caplog.text


def test_more_epochs_extend_a_finished_run_as_if_it_had_been_longer_from_the_start(prepared, tmp_path):
    train(prepared, tmp_path / "extended", SMALL, device="cpu")
    train(prepared, tmp_path / "extended", SMALL.but(epochs=4), device="cpu")
    train(prepared, tmp_path / "long", SMALL.but(epochs=4), device="cpu")
    for name in (LATEST, BEST):
        one, other = (load_checkpoint(tmp_path / folder / name) for folder in ("extended", "long"))
        assert same({**one, "recipe": 0}, {**other, "recipe": 0})
    assert len(read_csv(tmp_path / "extended" / "history.csv")) == 4


def test_a_finished_run_does_nothing_more(prepared, run):
    before = (run / LATEST).read_bytes()
    assert train(prepared, run, SMALL, device="cpu").epoch == 2
    assert (run / LATEST).read_bytes() == before


@pytest.mark.parametrize("change", [{"width": 8}, {"depth": 1}, {"loss": "dice"}, {"seed": 3}, {"batch_size": 2}])
def test_a_run_refuses_to_go_on_with_another_recipe(prepared, run, change):
    name, value = next(iter(change.items()))
    with pytest.raises(UnetlibError, match=rf"another recipe \({name}: .* -> {value}\)"):
        train(prepared, run, SMALL.but(**change), device="cpu")


def test_a_run_refuses_to_go_on_with_other_slices(cohort, run, tmp_path):
    prepare(cohort, tmp_path / "p", SMALL.but(split_seed=1), workers=1)
    with pytest.raises(UnetlibError, match=r"other prepared slices \(split: .*split_seed: 0 -> 1"):
        train(tmp_path / "p", run, SMALL, device="cpu")


def test_a_folder_that_is_no_run_is_left_alone(prepared, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UnetlibError, match=r"holds thesis\.txt and is not a run folder"):
        train(prepared, tmp_path, SMALL, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_kill_before_the_first_checkpoint_leaves_a_folder_that_goes_on(prepared, run, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-recipe.json").touch()  # as a kill leaves it
    monkeypatch.setattr(Split, "save", None)  # killed after the first file
    with pytest.raises(TypeError):
        train(prepared, tmp_path / "run", SMALL, device="cpu")
    monkeypatch.undo()
    train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert_same_runs(run, tmp_path / "run")


def test_a_kill_between_the_first_best_weights_and_their_checkpoint_goes_on(prepared, run, tmp_path, monkeypatch):
    monkeypatch.setattr(saving.Checkpoints, "save", None)
    with pytest.raises(TypeError):
        train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert (tmp_path / "run" / BEST).exists()
    assert not (tmp_path / "run" / LATEST).exists()
    monkeypatch.undo()
    train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert_same_runs(run, tmp_path / "run")


def test_weights_without_their_latest_checkpoint_are_not_trained_over(prepared, trained, tmp_path):
    run = Run(shutil.copytree(trained, tmp_path / "run"))
    weights, recipe = run.weights, run.recipe
    for lost in (run.latest, run.history_file):  # the second time, recipe and weights alone are passed on
        lost.unlink()
        with pytest.raises(
            UnetlibError, match=rf"has weights but no latest checkpoint .*move {BEST} away to start over"
        ):
            train(prepared, run, recipe.but(threshold=0.3), device="cpu")
        assert run.weights == weights
    run.best.rename(tmp_path / BEST)
    assert train(prepared, run, recipe, device="cpu", max_steps=1).step == 1


@pytest.mark.parametrize("epochs", [2, 3])
@pytest.mark.parametrize(
    ("damage", "told"), [(b"", f"cannot be read.* delete {BEST} and {LATEST} in"), (None, "is missing")]
)
def test_best_weights_that_are_lost_are_named_with_a_way_to_start_over(prepared, run, tmp_path, damage, told, epochs):
    copy = Run(shutil.copytree(run, tmp_path / "run"))
    previous(copy.best).unlink(missing_ok=True)
    copy.best.unlink() if damage is None else copy.best.write_bytes(damage)
    with pytest.raises(UnetlibError, match=rf"{BEST}, the best weights so far, {told}"):
        train(prepared, copy, SMALL.but(epochs=epochs), device="cpu")
    copy.latest.unlink()
    copy.best.unlink(missing_ok=True)
    train(prepared, copy, SMALL, device="cpu")
    assert_same_runs(run, copy.folder)


def test_a_best_model_in_the_place_of_the_checkpoint_is_a_sentence(prepared, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run / BEST, tmp_path / "run" / LATEST)
    with pytest.raises(UnetlibError, match="lacks optimizer, progress"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_a_sentence(prepared, run, tmp_path, share):
    (tmp_path / "run").mkdir()
    whole = (run / LATEST).read_bytes()
    (tmp_path / "run" / LATEST).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnetlibError, match=rf"{LATEST} is damaged"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")


def test_a_malicious_checkpoint_is_not_executed(prepared, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "run").mkdir()
    torch.save({"model": Evil(), "recipe": {}}, tmp_path / "run" / LATEST)
    with pytest.raises(UnetlibError, match=r"not a checkpoint \(Weights only load failed\)\. Restore"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert not (tmp_path / "owned").exists()


def test_checkpoints_hold_tensors_and_plain_python_only(run):
    plain = (torch.Tensor, str, int, float, bool, type(None), dict, list, tuple)

    def walk(value):
        assert isinstance(value, plain), type(value)
        children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        for child in children:
            walk(child)

    walk(torch.load(run / LATEST, weights_only=True))


def test_a_full_disk_keeps_the_last_checkpoint(prepared, tmp_path, monkeypatch):
    train(prepared, tmp_path / "run", SMALL, device="cpu", max_steps=3)
    before = (tmp_path / "run" / LATEST).read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UnetlibError, match="No space left on device"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert (tmp_path / "run" / LATEST).read_bytes() == before
    assert not list((tmp_path / "run").glob(".tmp-*"))


def test_a_loss_that_is_no_longer_finite_is_a_sentence(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "get_loss", lambda *_: lambda logits, masks: logits.mean() * math.nan)
    with pytest.raises(UnetlibError, match="the loss is nan"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert not (tmp_path / "run" / LATEST).exists()


def test_the_gradient_is_clipped(prepared, tmp_path, monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, norm):
        parameters = list(parameters)
        before = clip(parameters, norm)
        norms.append(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters])).item())
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    train(prepared, tmp_path / "run", SMALL.but(epochs=1, clip_norm=0.01), device="cpu")
    assert norms
    assert max(norms) <= 0.01 + 1e-6


def test_the_recipe_of_a_run_is_found(run):
    assert Run.of(run).recipe == SMALL


def test_an_unknown_device_is_a_sentence(prepared, tmp_path):
    with pytest.raises(UnetlibError, match="there is no device 'tpu9'"):
        train(prepared, tmp_path / "run", SMALL, device="tpu9")


def test_seconds_are_counted_over_all_calls(prepared, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    train(prepared, tmp_path / "run", SMALL, device="cpu", max_steps=1)
    first = load_checkpoint(tmp_path / "run" / LATEST)["progress"]["seconds"]
    assert first > 0
    content = load_checkpoint(tmp_path / "run" / LATEST)
    content["progress"]["seconds"] = 1e6
    save_checkpoint(tmp_path / "run" / LATEST, content)
    assert train(prepared, tmp_path / "run", SMALL, device="cpu").seconds > 1e6


@pytest.fixture(scope="module")
def strong(strong_prepared, tmp_path_factory):
    """A finished run of two epochs of the small strong recipe."""
    folder = tmp_path_factory.mktemp("strong") / "run"
    train(strong_prepared, folder, STRONG, device="cpu")
    return folder


def test_the_loop_with_all_its_parts_equals_the_recipe_written_out_in_plain_torch(strong_prepared, tmp_path):
    """An independent loop: torch's own Adam and clipping, BCE and Dice written out, an average by hand."""
    recipe, run = STRONG.but(learning_rate=1e-3), tmp_path / "run"  # small steps: rounding must not grow
    train(strong_prepared, run, recipe, device="cpu")
    data, model = Prepared.open(strong_prepared), build_network(STRONG)
    average, adam = copy.deepcopy(model), torch.optim.Adam(model.parameters(), lr=1.0)
    indices = data.dataset().indices("train")
    order = balanced(indices, data.dataset().tumour[indices], 0, 0)
    assert len(order) < len(indices)
    steps, number = math.ceil(len(order) / 4), 0
    for epoch in range(2):
        order, losses = shuffled(balanced(indices, data.dataset().tumour[indices], 0, epoch), 0, epoch), []
        for step in range(steps):
            images, masks = data.dataset(1).batch(order[4 * step : 4 * step + 4])
            assert images.shape[1] == 3
            images, masks = augment(images, masks, 0, epoch, step, upright=True)
            images, masks = warp(images, masks, 0, epoch, step)
            images = change_intensity(images, 0, epoch, step)
            p = torch.sigmoid(model(images))
            dice_loss = 1 - (2 * (p * masks).sum() + 1) / (p.sum() + masks.sum() + 1)
            loss = torch.nn.BCELoss()(p, masks) + dice_loss
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.param_groups[0]["lr"] = learning_rate(recipe, number, 2 * steps)
            adam.step()
            move_average(average, model, 0.9, number)
            number += 1
            losses += [loss.item()] * len(images)
        assert float(read_csv(run / "history.csv")[epoch]["train_loss"]) == pytest.approx(np.mean(losses), rel=2e-4)
    left = load_checkpoint(run / LATEST)
    for name in model.state_dict():
        torch.testing.assert_close(left["model"][name], model.state_dict()[name], rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(left["average"][name], average.state_dict()[name], rtol=1e-2, atol=1e-3)


def test_the_best_model_holds_the_averaged_weights_and_their_validation_dice(strong_prepared, tmp_path):
    train(strong_prepared, run := tmp_path / "run", STRONG.but(epochs=1), device="cpu")
    best, latest = load_checkpoint(run / BEST), load_checkpoint(run / LATEST)
    assert same(best["model"], latest["average"])
    assert not same(best["model"], latest["model"])
    data, model = Prepared.open(strong_prepared), build_network(STRONG)
    model.load_state_dict(best["model"])
    images, masks = data.dataset(1).batch(data.dataset().indices("val"))
    with torch.no_grad():
        found = torch.sigmoid(model.eval()(images)) >= 0.5
    expected = dice(count(found.numpy(), masks.bool().numpy()).sum()).item()
    assert best["val_dice"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stop", [1, 9, 14, 15, 20])
def test_with_all_parts_it_ends_with_the_same_bits_wherever_it_is_stopped(strong_prepared, strong, tmp_path, stop):
    device = os.environ.get("UNETLIB_DEVICE", "cpu")
    whole = strong
    if device != "cpu":
        train(strong_prepared, whole := tmp_path / "whole", STRONG, device)
    train(strong_prepared, tmp_path / "run", STRONG, device, max_steps=stop)
    train(strong_prepared, tmp_path / "run", STRONG, device)
    assert_same_runs(whole, tmp_path / "run")


def test_a_cosine_refuses_another_end(strong_prepared, strong):
    with pytest.raises(UnetlibError, match=r"another recipe \(epochs: 2 -> 3\)"):
        train(strong_prepared, strong, STRONG.but(epochs=3), device="cpu")


@pytest.mark.parametrize("change", [{"neighbours": 0}, {"warp": False}, {"average": 0.5}, {"network": "other"}])
def test_a_run_refuses_to_go_on_with_other_parts(strong_prepared, strong, change):
    with pytest.raises(UnetlibError, match=rf"another recipe \({next(iter(change))}: "):
        train(strong_prepared, strong, STRONG.but(**change), device="cpu")


def test_a_checkpoint_without_its_average_is_a_sentence(strong_prepared, strong, tmp_path):
    shutil.copytree(strong, tmp_path / "run")
    content = torch.load(strong / LATEST, weights_only=True)
    del content["average"]
    torch.save(content, tmp_path / "run" / LATEST)
    with pytest.raises(UnetlibError, match=rf"{LATEST} holds the weights of another architecture"):
        train(strong_prepared, tmp_path / "run", STRONG, device="cpu")


def test_what_needs_all_slices_refuses_a_folder_that_lacks_some(prepared, tmp_path):
    with pytest.raises(UnetlibError, match="only the slices with tumour are kept"):
        train(prepared, tmp_path / "run", STRONG, device="cpu")
    assert not (tmp_path / "run" / LATEST).exists()


def test_balance_without_any_tumour_to_train_on_is_a_sentence(strong_prepared, tmp_path):
    shutil.copytree(strong_prepared, tmp_path / "p")
    masks = np.lib.format.open_memmap(tmp_path / "p" / "masks.npy", mode="r+")
    masks[:] = 0
    masks.flush()
    with pytest.raises(UnetlibError, match="no slice with tumour"):
        train(tmp_path / "p", tmp_path / "run", STRONG, device="cpu")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"recipe": {"width": 4}}, "train: recipe is .*; Recipe was expected"),
        ({"recipe": "strong"}, "train: recipe is 'strong'; Recipe was expected"),
        ({"max_steps": "3"}, "train: max_steps is '3'"),
        ({"max_steps": 2.5}, "train: max_steps is 2.5"),
        ({"checkpoint_every": None}, "train: checkpoint_every is None"),
        ({"on_epoch": 3}, "train: on_epoch is 3; Callable or None was expected"),
        ({"hooks": Hook()}, "train: hooks is .*; Sequence was expected"),
        ({"hooks": [lambda loop: 1]}, "train: hooks holds <function .*; objects of subclasses of Hook were expected"),
        ({"hooks": [Hook(), Hook]}, "train: hooks holds <class .*; objects of subclasses of Hook were expected"),
        ({"hooks": "abc"}, "train: hooks is 'abc'; Sequence was expected"),
        ({"threads": "2"}, "train: threads is '2'"),
        ({"device": 0}, "train: device is 0; str was expected"),
        ({"start_from": 3}, "train: start_from is 3"),
        ({"run": None}, "train: run is None"),
    ],
)
def test_an_argument_of_another_type_is_a_sentence(prepared, tmp_path, given, words):
    with pytest.raises(UnetlibError, match=words):
        train(**({"data": prepared, "run": tmp_path / "run", "recipe": SMALL, "device": "cpu"} | given))
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_will_do(prepared, tmp_path):
    steps = {"max_steps": np.int64(1), "checkpoint_every": np.int32(1)}
    assert train(prepared, tmp_path / "run", SMALL, device="cpu", **steps).step == 1


NEW = ("crop", "neighbours", "balance", "schedule", "average", "upright", "warp", "intensity", "mirror", "tune")


def test_a_run_from_before_the_strong_recipe_goes_on_as_if_nothing_had_changed(prepared, run, tmp_path):
    shutil.copytree(run, tmp_path / "old")
    for name in (LATEST, BEST):
        content = torch.load(run / name, weights_only=True)
        content["recipe"] = {key: value for key, value in content["recipe"].items() if key not in NEW}
        content["prepared"].pop("crop")
        content.pop("start_from")
        torch.save(content, tmp_path / "old" / name)
    about = read_json(run / "recipe.json")
    about["recipe"] = {key: value for key, value in about["recipe"].items() if key not in NEW}
    about["prepared"].pop("crop")
    about.pop("start_from")
    (tmp_path / "old" / "recipe.json").write_text(json.dumps(about))
    assert Run.of(tmp_path / "old").recipe == SMALL
    train(prepared, tmp_path / "old", SMALL.but(epochs=3), device="cpu")
    train(prepared, tmp_path / "new", SMALL.but(epochs=3), device="cpu")
    one, other = (load_checkpoint(tmp_path / folder / LATEST) for folder in ("old", "new"))
    assert same(one, other)
    assert (tmp_path / "old" / "history.csv").read_bytes() == (tmp_path / "new" / "history.csv").read_bytes()


def test_a_run_does_not_start_from_one_that_has_learned_from_its_test_patients(cohort, trained, tmp_path):
    other = prepare(cohort, tmp_path / "p", SMALL.but(split_seed=1), workers=1)
    learned = set(Split.load(trained / "split.json").patients("train", "val"))
    assert learned & set(other.split.patients("val", "test"))
    with pytest.raises(UnetlibError, match=r"was trained or validated on \d+ cases that .* keeps for"):
        train(tmp_path / "p", tmp_path / "run", SMALL, device="cpu", start_from=trained)
    assert not (tmp_path / "run" / LATEST).exists()


def test_what_the_runs_before_have_learned_is_not_forgotten(cohort, trained, tmp_path):
    """A began on patients that C tests with; B, trained on others, stands between the two."""
    learned = Split.load(trained / "split.json").patients("train", "val")
    others = tmp_path / "others"
    for index in range(20, 24):
        write_patient(others, index)
    prepare(others, tmp_path / "p", SMALL, workers=1)
    train(tmp_path / "p", tmp_path / "b", SMALL.but(epochs=1), device="cpu", start_from=trained)
    prepare(cohort, tmp_path / "c", SMALL.but(split_seed=1), workers=1)
    with pytest.raises(UnetlibError, match="keeps for validation or test"):
        train(tmp_path / "c", tmp_path / "run", SMALL, device="cpu", start_from=tmp_path / "b")
    scored = evaluate(tmp_path / "b", data=cohort, device="cpu")
    assert scored["patients"] == 10 - len(learned)
    assert "Left out" in scored["note"]


@pytest.mark.parametrize("old", [False, True])
def test_a_run_does_not_start_from_one_that_has_learned_from_the_same_scans_in_other_files(
    cohort, trained, tmp_path, old
):
    """Version 0.3 knew files alone, and goes on to know those."""
    first = shutil.copytree(trained, tmp_path / "first")
    names = [f"S{number}" for number in range(10)]
    data = as_cases(cohort, tmp_path / "data", names, lambda name, voxels: voxels.astype(np.float32))
    prepare(data, tmp_path / "p", SMALL, workers=1)
    if old:
        as_03_run(first)
        train(tmp_path / "p", tmp_path / "run", SMALL.but(epochs=1), device="cpu", start_from=first)
    else:
        with pytest.raises(UnetlibError, match=r"was trained or validated on \d+ cases that .* keeps for"):
            train(tmp_path / "p", tmp_path / "run", SMALL, device="cpu", start_from=first)


def test_a_run_does_not_start_from_one_that_has_learned_from_another_scan_of_its_test_patients(cohort, tmp_path):
    first = as_cases(cohort, tmp_path / "first", SCANS[::2])
    later = as_cases(cohort, tmp_path / "later", SCANS[1::2], lambda _, voxels: voxels + np.int16(1))
    for folder, split in ((first, ("01", "2", "34")), (later, ("34", "2", "01"))):
        names = [tuple(f"UPENN-GBM-0000{number}" for number in part) for part in split]
        Split(*names).save(folder.with_name(f"p-{folder.name}") / "split.json")
        prepare(folder, folder.with_name(f"p-{folder.name}"), SMALL, workers=1)
    train(tmp_path / "p-first", tmp_path / "a", SMALL.but(epochs=1), device="cpu")
    with pytest.raises(UnetlibError, match=r"validated on 2 cases .*\(UPENN-GBM-00000_21, UPENN-GBM-00001_21\)"):
        train(tmp_path / "p-later", tmp_path / "b", SMALL, device="cpu", start_from=tmp_path / "a")


def test_a_run_of_version_0_3_goes_on_with_its_data_prepared_by_either_version(prepared, tmp_path):
    old = as_03(shutil.copytree(prepared, tmp_path / "p"))
    for name in ("a", "b"):
        train(old, tmp_path / name, SMALL, device="cpu", max_steps=3)
        as_03_run(tmp_path / name)
    train(old, tmp_path / "a", SMALL, device="cpu")
    train(prepared, tmp_path / "b", SMALL, device="cpu")
    train(prepared, tmp_path / "c", SMALL, device="cpu")
    for name in ("a", "b"):
        one, other = (load_checkpoint(tmp_path / folder / BEST)["model"] for folder in (name, "c"))
        assert same(one, other)
        assert read_json(tmp_path / name / "recipe.json")["unetlib"] == "0.3 or older"
    assert read_json(tmp_path / "a" / "provenance.json")["prepared_by"] == "0.3 or older"
    assert read_json(tmp_path / "b" / "provenance.json")["prepared_by"] == __version__
    assert read_json(tmp_path / "c" / "recipe.json")["unetlib"] == __version__


def test_a_run_that_does_not_say_whom_it_has_seen_is_no_start(prepared, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "other")
    (tmp_path / "other" / "provenance.json").unlink()
    with pytest.raises(UnetlibError, match="does not say which patients it was trained on"):
        train(prepared, tmp_path / "run", SMALL, device="cpu", start_from=tmp_path / "other")


def test_first_weights_are_not_lost_when_it_is_killed_before_the_first_checkpoint(prepared, trained, tmp_path):
    train(prepared, tmp_path / "run", SMALL, device="cpu", max_steps=1, start_from=trained)
    for path in (tmp_path / "run").glob("*.pth"):
        path.unlink()
    with pytest.raises(UnetlibError, match="started from the weights of another run"):
        train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert train(prepared, tmp_path / "run", SMALL, device="cpu", start_from=trained).epoch == 2


def test_a_run_can_start_from_the_best_weights_of_another(prepared, trained, tmp_path):
    class Spy(Hook):
        def on_step_start(self, loop):
            first.append(copy.deepcopy((loop.network.module.state_dict(), loop.validated.module.state_dict())))

    first, recipe = [], SMALL.but(average=0.9)
    train(prepared, tmp_path / "run", recipe, device="cpu", max_steps=1, start_from=trained, hooks=(Spy(),))
    other = load_checkpoint(trained / BEST)["model"]
    assert same(dict(first[0][0]), other)
    assert same(dict(first[0][1]), other)
    assert read_json(tmp_path / "run" / "recipe.json")["start_from"] == sha256(trained / BEST)
    train(prepared, tmp_path / "run", recipe, device="cpu")  # resumed, it needs not be told again
    train(prepared, tmp_path / "whole", recipe, device="cpu", start_from=trained)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_run_refuses_to_go_on_from_other_first_weights(prepared, run, trained, tmp_path):
    with pytest.raises(UnetlibError, match="was started from other weights"):
        train(prepared, run, SMALL, device="cpu", start_from=trained)
    train(prepared, tmp_path / "r", SMALL, device="cpu", max_steps=1, start_from=trained)
    with pytest.raises(UnetlibError, match="was started from other weights"):
        train(prepared, tmp_path / "r", SMALL, device="cpu", start_from=run)
    train(prepared, tmp_path / "r", SMALL, device="cpu", start_from=trained)


@pytest.mark.parametrize("change", [{"width": 3}, {"depth": 1}])
def test_first_weights_of_another_architecture_are_a_sentence(prepared, trained, tmp_path, change):
    with pytest.raises(UnetlibError, match=rf"has another network or other slices \({next(iter(change))}"):
        train(prepared, tmp_path / "r", SMALL.but(**change), device="cpu", start_from=trained)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("gone", "does not exist"),
        ("empty", "is not a run folder"),
        ("a file", "is not a run folder"),
        ("no best model", "has no best weights yet"),
    ],
)
def test_first_weights_that_are_not_there_are_noticed_by_a_run_under_way_too(
    prepared, trained, tmp_path, begun, kind, told
):
    other = shutil.copytree(trained, tmp_path / "other")
    if begun:
        train(prepared, tmp_path / "r", SMALL, device="cpu", max_steps=1, start_from=other)
    if kind == "no best model":
        (other / BEST).unlink()
    else:
        shutil.rmtree(other)
    if kind == "empty":
        other.mkdir()
    if kind == "a file":
        other.touch()
    with pytest.raises(UnetlibError, match=re.escape(f"{other} {told}")) as caught:
        train(prepared, tmp_path / "r", SMALL, device="cpu", start_from=other)
    assert (f"leave --start-from out: {tmp_path / 'r'} has started" in str(caught.value)) == begun
    if begun:
        assert train(prepared, tmp_path / "r", SMALL, device="cpu").epoch == 2


@pytest.mark.parametrize("steps", [{"max_steps": 0}, {"checkpoint_every": 0}, {"max_steps": -3}])
def test_steps_below_1_are_a_sentence(prepared, tmp_path, steps):
    with pytest.raises(UnetlibError, match=f"{next(iter(steps))} is .*; a number of steps above 0 was expected"):
        train(prepared, tmp_path / "r", SMALL, device="cpu", **steps)


def test_with_max_steps_it_returns_how_far_the_run_is(prepared, tmp_path):
    steps = -(-len(Prepared.open(prepared).dataset().indices("train")) // SMALL.batch_size)
    found = [train(prepared, tmp_path / "r", SMALL, device="cpu", max_steps=5) for _ in range(2)]
    assert [(one.epoch, one.step) for one in found] == [divmod(5, steps), divmod(10, steps)]


def test_a_history_that_another_program_has_open_does_not_end_the_training(prepared, tmp_path, monkeypatch, caplog):
    def busy(run, history):
        raise UnetlibError("history.csv cannot be written.")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_history", busy)
        state = train(prepared, tmp_path / "r", SMALL, device="cpu")
    assert state.epoch == SMALL.epochs
    assert "history.csv cannot be written. The training goes on." in caplog.text
    train(prepared, tmp_path / "r", SMALL, device="cpu")
    assert len(read_csv(tmp_path / "r" / "history.csv")) == SMALL.epochs
