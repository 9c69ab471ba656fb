"""The loop and its seams: a data set of one's own, a network that is not ours, several channels and regions."""

import copy
import inspect
import json
import math
import re
import sys
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Lock

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import BEST, LATEST, SMALL
from unetlib import augment, dataset, loop, losses, metrics, networks, plots, recipe, unet
from unetlib.data import layouts
from unetlib.data.volumes import Source, Volume, read_volume
from unetlib.dataset import SliceDataset, epoch_order
from unetlib.evaluation.evaluate import evaluate, score_prediction
from unetlib.evaluation.summary import patient_rows, results, surface_summary
from unetlib.hooks import Hook
from unetlib.loop import Loop
from unetlib.metrics import count, dice
from unetlib.networks import build_network, register_network
from unetlib.prediction.decision import Decision
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Ensemble, Mirrored, Predictor, Trained
from unetlib.prediction.segment import segment
from unetlib.prediction.tuning import tune
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.provenance import find_own
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.show.card import write_card
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json

TINY = SMALL.but(image_size=16, width=2, depth=1, epochs=2)


def slices(channels=1, regions=1, cases=4, each=6, side=16):
    """Noisy squares, a brightness for each region; two cases to train on, one to validate, one to test."""
    rng, number = np.random.default_rng(0), cases * each
    masks = np.zeros((number, regions, side, side), np.uint8)
    for index in range(number):
        for region in range(regions):
            x, y = rng.integers(0, side - 8, 2)
            masks[index, region, x : x + 8 - 2 * region, y : y + 8 - 2 * region] = 1
    signal = np.concatenate([masks[:, :1]] * channels, 1) * np.linspace(0.5, 1, channels)[:, None, None]
    images = np.clip(signal + rng.normal(0.1, 0.05, signal.shape), 0, 1).astype(np.float16)
    positions = np.arange(number).reshape(cases, each)
    parts = {"train": positions[:2].ravel(), "val": positions[2], "test": positions[3]}
    return SliceDataset(images, masks, parts, np.full(cases, each))


class Own:
    """A data set with nothing but the two methods that training asks for."""

    def __init__(self, inner):
        self.inner = inner

    def indices(self, part):
        return self.inner.indices(part)

    def batch(self, indices):
        return self.inner.batch(indices)


class Foreign(nn.Module):
    """A network that is not ours: dropout, a parameter without a gradient, one that is never used."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.drop = nn.Dropout2d(0.5)
        self.last = nn.Conv2d(4, out_channels, 1)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.drop(self.first(x).relu())) * self.frozen


def foreign(recipe, in_channels, out_channels):
    return Foreign(in_channels, out_channels)


register_network("foreign", foreign)


def weights(run, name=LATEST):
    return load_checkpoint(run / name)["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_taught_core_reads_in_half_an_hour():
    core = [recipe, dataset, augment, unet, networks, losses, metrics, loop]
    lines = {module.__name__: len(inspect.getsource(module).splitlines()) for module in core}
    assert sum(lines.values()) < 1000, lines
    assert lines["unetlib.loop"] < 110


def test_alone_without_files_it_learns_and_equals_a_run(tmp_path):
    data, network = slices(), build_network(TINY)
    seen = Loop(network, data, TINY.but(learning_rate=0.01)).run()
    assert [row["epoch"] for row in seen.history] == [1, 2]
    assert seen.history[1]["train_loss"] < seen.history[0]["train_loss"]
    train(data, tmp_path / "run", TINY.but(learning_rate=0.01), device="cpu", threads=torch.get_num_threads())
    assert same(weights(tmp_path / "run"), network.state_dict())


def test_hooks_are_told_of_every_moment_in_order():
    told = []

    class Spy(Hook):
        def on_start(self, loop):
            told.append("start")

        def on_step_start(self, loop):
            told.append("step")

        def on_gradients(self, loop, loss):
            told.append(loop.state.step)

        def on_step_end(self, loop, loss):
            assert math.isfinite(loss)
            loop.stopping = len(told) == 12

        def on_epoch_end(self, loop):
            told.append("epoch")

    assert Loop(build_network(TINY), slices(), TINY, [Spy()]).run().step == 2
    assert told == ["start", "step", 0, "step", 1, "step", 2, "epoch", "step", 0, "step", 1]


def test_a_hook_of_ones_own_may_stop_a_run_and_sees_every_step(tmp_path):
    class StopAtTwo(Hook):
        def __init__(self):
            self.steps, self.norms = [], []

        def on_gradients(self, loop, loss):
            self.norms.append(float(loop.gradient_norm))

        def on_step_end(self, loop, loss):
            self.steps.append(loop.state.step)
            loop.stopping = loop.state.step == 2

    hook, recipe = StopAtTwo(), TINY.but(clip_norm=1e-3)
    assert train(slices(), tmp_path / "run", recipe, device="cpu", hooks=[hook], threads=1).step == 2
    assert hook.steps == [1, 2]
    assert min(hook.norms) > 1e-3  # before they are clipped
    assert load_checkpoint(tmp_path / "run" / LATEST)["progress"]["step"] == 2
    train(slices(), tmp_path / "run", recipe, device="cpu", threads=1)
    train(slices(), tmp_path / "whole", recipe, device="cpu", threads=1)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_what_contributing_shows_works_as_it_stands(tmp_path, monkeypatch):
    page = Path(__file__).with_name("..").resolve() / "CONTRIBUTING.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
    names = {"LOSSES": losses.LOSSES, "torch": torch, "nn": nn, "register_network": register_network}
    names |= {"train": partial(train, device="cpu"), "Recipe": Recipe, "prepared": slices(), "run": tmp_path / "run"}
    names |= {"Layout": layouts.Layout, "WORDS": layouts.WORDS, "MASK": layouts.MASK}
    monkeypatch.setattr(Recipe, "published", TINY)
    exec(code, names)
    assert Run(tmp_path / "run").load()[0].weight.shape == (1, 1, 3, 3)
    train(slices(), tmp_path / "other", TINY.but(loss="squared", epochs=1), device="cpu")


def test_a_data_set_of_ones_own_is_trained_on_resumed_and_refused_when_it_has_changed(tmp_path):
    data = Own(slices())
    train(data, tmp_path / "run", TINY, device="cpu", max_steps=2, threads=1)
    train(data, tmp_path / "run", TINY, device="cpu", threads=1)
    train(data, tmp_path / "whole", TINY, device="cpu", threads=1)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    changed = slices()
    changed.images[0] = 0
    with pytest.raises(UnetlibError, match="other prepared slices"):
        train(Own(changed), tmp_path / "run", TINY.but(epochs=3), device="cpu")
    with pytest.raises(UnetlibError, match=r"your own data set.*--data"):
        find_own(Run.of(tmp_path / "run"))


def test_it_validates_on_the_data_set_that_it_has_now():
    """As chapter 2 measures the leak: one network, scored on slices of its own patients and on those of others."""
    one = slices()
    other = replace(one, parts={**one.parts, "val": one.parts["test"]})
    network = build_network(TINY)
    loop = Loop(network, one, TINY)
    found = loop.validate()
    loop.dataset = other
    assert loop.validate() == Loop(network, other, TINY).validate() != found


def test_a_data_set_without_validation_samples_is_a_sentence(tmp_path):
    data = slices()
    data.parts["val"] = np.empty(0, int)
    with pytest.raises(UnetlibError, match="val part of the split has no slice"):
        train(Own(data), tmp_path / "run", TINY, device="cpu")


def test_a_region_that_no_validation_sample_shows_is_said(caplog):
    data, own = slices(regions=2), TINY.but(regions="whole core")
    Loop(build_network(own, 1, 2), data, own)
    assert not caplog.messages
    data.masks[data.parts["val"], 1] = 0
    Loop(build_network(own, 1, 2), data, own)
    assert "no slice of the val part shows region 2 of 2" in caplog.text


@pytest.mark.parametrize("kind", [Own, lambda data: data])
def test_a_data_set_without_tumour_to_validate_on_is_a_sentence(tmp_path, kind):
    data = slices()
    data.masks[data.parts["val"][:-1]] = 0
    train(kind(data), tmp_path / "one", TINY, device="cpu", max_steps=1)
    data.masks[data.parts["val"]] = 0
    with pytest.raises(UnetlibError, match=r"val part of the split has no slice with tumour.* another seed or more"):
        train(kind(data), tmp_path / "run", TINY, device="cpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UnetlibError, match="val part of the split has no slice with tumour"):
        Loop(build_network(TINY), kind(data), TINY)


WRONG = {  # what a batch of one's own may be: how it comes from a right one, and what is said
    "0 and 255": (lambda x, y: (x, 255 * y), "or masks of other values than 0 and 1"),
    "half a mask": (lambda x, y: (x, y / 2), "or masks of other values than 0 and 1"),
    "NaN": (lambda x, y: (x / 0, y), "sample [0-9]+ has images that are not finite"),
    "NaN in a mask": (lambda x, y: (x, y / 0), "masks of other values"),
    "no channel": (lambda x, y: (x[:, 0], y), r"is Tensor \(\d, 16, 16\)"),
    "another size": (lambda x, y: (x, y[..., :8]), r"and Tensor \(\d, 1, 16, 8\)"),
    "too few": (lambda x, y: (x[1:], y[1:]), r"is Tensor \(\d, 1, 16, 16\)"),
    "numpy": (lambda x, y: (x.numpy(), y.numpy()), r"is ndarray \(\d, 1, 16, 16\) of float32"),
    "uint8": (lambda x, y: (x, y.to(torch.uint8)), r"of torch\.uint8; .* float32 tensors"),
    "float64": (lambda x, y: (x.double(), y), r"of torch\.float64"),
    "bool": (lambda x, y: (x, y > 0), r"of torch\.bool"),
    "None": (lambda x, y: None, "TypeError"),
    "images alone": (lambda x, y: x[:1], "ValueError"),
    "three": (lambda x, y: (x, y, y), "ValueError"),
    "lists": (lambda x, y: (x.tolist(), y.tolist()), "AttributeError"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("late", [False, True])
def test_samples_that_do_not_fit_are_a_sentence(tmp_path, kind, late):
    change, words = WRONG[kind]

    class Wrong(Own):
        calls = 0

        def batch(self, indices):
            self.calls += 1
            batch = self.inner.batch(indices)
            return change(*batch) if self.calls > 3 * late else batch

    with pytest.raises(UnetlibError, match=f"^Wrong: .*{words}"):
        train(Wrong(slices()), tmp_path / "run", TINY, device="cpu", threads=1)
    with pytest.raises(UnetlibError, match=f"^Wrong: .*{words}"):
        Loop(build_network(TINY), Wrong(slices()), TINY).run()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([0, 99], r"Own: the batch of the samples .*99.* is IndexError"),
        ([0, -1], "gave array.*positions"),
        ([0.5, 1.0], "gave array.*positions"),
        ([[0, 1]], "gave array.*positions"),
        (None, "gave array.*positions"),
        ("train", "gave array.*positions"),
        ([], "the (train|val) part of the split has no slice"),
    ],
)
@pytest.mark.parametrize("part", ["train", "val"])
def test_positions_that_do_not_fit_are_a_sentence(tmp_path, found, words, part):
    data = Own(slices())
    data.indices = lambda asked: found if asked == part else data.inner.indices(asked)
    with pytest.raises(UnetlibError, match=words):
        train(data, tmp_path / "run", TINY, device="cpu", threads=1)
    with pytest.raises(UnetlibError, match=words):
        Loop(build_network(TINY), data, TINY).run()


def test_a_list_of_positions_will_do_and_a_part_that_is_unknown_is_a_sentence(tmp_path):
    data = slices()
    train(data, tmp_path / "run", TINY, device="cpu", threads=1)
    listed = Own(data)
    listed.indices = lambda part: data.indices(part).tolist()
    train(listed, tmp_path / "other", TINY, device="cpu", threads=1)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "other"))
    del data.parts["val"]
    with pytest.raises(UnetlibError, match="SliceDataset: the val part of the split has no slice"):
        Loop(build_network(TINY), data, TINY)


@pytest.mark.parametrize("data", [None, 3, {}, [1, 2], torch.ones(3)])
def test_what_is_no_data_set_is_a_sentence(tmp_path, data):
    with pytest.raises(UnetlibError, match=r"train: data is .*; Path or Prepared or Trainable or str was expected"):
        train(data, tmp_path / "run", TINY, device="cpu")
    with pytest.raises(UnetlibError, match="is no data set to train on"):
        Loop(build_network(TINY), data, TINY)


@pytest.mark.parametrize("tumour", [None, np.ones(5, bool), np.zeros(24, bool)])
def test_balance_without_tumour_is_a_sentence(tmp_path, tumour):
    data, recipe = Own(slices()), TINY.but(slices="all", balance=True)
    if tumour is not None:
        data.tumour = tumour
    with pytest.raises(UnetlibError, match=r"Own: .*which balance needs.*`tumour`"):
        train(data, tmp_path / "run", recipe, device="cpu")
    data.tumour = np.arange(24) % 2 == 0
    assert len(Loop(build_network(TINY), data, recipe).order()) == 12


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (slices(side=32), {}),
        (slices(), {"image_size": 32}),
        (slices(), {"neighbours": 1}),
        (slices(channels=2), {"neighbours": 1}),
        (replace(slices(), neighbours=1), {}),
        (replace(slices(channels=3), neighbours=1), {"neighbours": 2}),
    ],
)
def test_a_data_set_that_does_not_fit_its_recipe_is_a_sentence(tmp_path, data, changes):
    with pytest.raises(UnetlibError, match=r"its images are .*; the recipe has image_size \d+ and neighbours \d"):
        train(data, tmp_path / "run", TINY.but(slices="all", **changes), device="cpu")
    near = replace(slices(channels=2), neighbours=1)
    train(near, tmp_path / "near", TINY.but(slices="all", neighbours=1, epochs=1), device="cpu", threads=1)
    predictor = Predictor.open(tmp_path / "near", "cpu")
    assert predictor.channels == (2, 1)
    assert predictor.volume(np.random.default_rng(0).random((2, 20, 18, 5))).shape == (1, 20, 18, 5)


def test_a_run_on_data_of_ones_own_gets_advice_that_leads_somewhere(tmp_path, data):
    with pytest.raises(UnetlibError, match=r"tune needs the patients of a prepared folder.*False"):
        train(slices(), tmp_path / "tuned", TINY.but(tune=True), device="cpu")
    assert not (tmp_path / "tuned" / LATEST).exists()
    run = tmp_path / "run"
    train(slices(), run, TINY, device="cpu", threads=1)
    recipe = read_json(run / "recipe.json")
    (run / "recipe.json").write_text(json.dumps(recipe | {"recipe": recipe["recipe"] | {"tune": True}}))
    with pytest.raises(UnetlibError, match=rf"your own data set.* unetlib evaluate {re.escape(str(run))} --data DATA"):
        tune(run, device="cpu")
    (run / "recipe.json").write_text(json.dumps(recipe))
    for ask in (evaluate, write_card, plots.make_figures, plots.best_median_worst):
        with pytest.raises(
            UnetlibError, match=rf"your own data set.* unetlib evaluate {re.escape(str(run))} --data DATA"
        ):
            ask(run, device="cpu")
    summary = evaluate(run, data, device="cpu")
    assert summary["cases"] == 3
    assert "does not say which scans it was trained on" in summary["note"]


@pytest.mark.parametrize(("channels", "regions"), [(1, 2), (2, 1)])
def test_files_of_one_sequence_meet_a_run_of_several_or_of_several_regions(tmp_path, data, channels, regions):
    run, image = tmp_path / "run", next(data.glob("*/*_flair.nii.gz"))
    train(slices(channels, regions), run, TINY, device="cpu", threads=1)
    with pytest.raises(UnetlibError, match=r"2 sequences|finds 2"):
        evaluate(run, data, device="cpu")
    if channels == 2:
        with pytest.raises(
            UnetlibError, match=r"a volume of shape \(40, 48, 6\) was given to a network for 2 sequences"
        ):
            predict(run, [image], tmp_path / "masks", device="cpu")
        assert not (tmp_path / "masks").exists()
        return
    files = predict(run, [image], tmp_path / "masks", probabilities=True, device="cpu")
    name = image.name.removesuffix(".nii.gz")
    kinds = ("mask_0", "mask_1", "probability_0", "probability_1")
    assert [path.name for path in files] == [f"{name}_{kind}.nii.gz" for kind in kinds]
    found = segment(Predictor.open(run, "cpu"), volume := read_volume(Source((image,))))
    for region in range(2):
        for path, array in zip(files[region::2], (found.mask, found.probability), strict=True):
            np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), volume.to_stored(array[region]))
    assert predict(run, [image], tmp_path / "masks", probabilities=True, device="cpu") == files


def test_runs_of_other_sequences_or_regions_are_not_averaged(tmp_path):
    runs = {}
    for channels, regions in ((1, 1), (2, 1), (1, 2)):
        runs[channels, regions] = tmp_path / f"{channels}{regions}"
        train(slices(channels, regions), runs[channels, regions], TINY.but(epochs=1), device="cpu", threads=1)
    for other, words in (((2, 1), "sequences: 1 -> 2"), ((1, 2), "regions: 1 -> 2")):
        with pytest.raises(UnetlibError, match=rf"cannot be averaged: they differ \({words}\)"):
            Predictor.open([runs[1, 1], runs[other]], "cpu")
    near = replace(slices(), neighbours=1)
    train(near, tmp_path / "near", TINY.but(slices="all", neighbours=1, epochs=1), device="cpu", threads=1)
    assert Predictor.open([runs[1, 1], tmp_path / "near"], "cpu").channels == (1, 1)


@pytest.mark.parametrize("loss", ["bce", "dice", "focal"])
@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda x: (x, x), "gave a tuple"),
        (lambda x: [x], "gave a list"),
        (lambda x: {"out": x}, "gave a dict"),
        (lambda x: x[:, 0], r"gave \(\d, 16, 16\)"),
        (lambda x: torch.cat([x, x], 1), r"gave \(\d, 2, 16, 16\)"),
        (lambda x: x[..., ::2], r"gave \(\d, 1, 16, 8\)"),
        (lambda x: x[:1, :, :1, :1], r"gave \(1, 1, 1, 1\)"),
        (lambda x: x > 0, r"gave \(\d, 1, 16, 16\) of torch\.bool"),
    ],
)
def test_a_network_whose_logits_do_not_fit_is_a_sentence(tmp_path, output, words, loss):
    class Wrong(nn.Conv2d):
        def forward(self, x):
            return output(super().forward(x))

    network, recipe = Wrong(1, 1, 3, padding=1), TINY.but(loss=loss, network="wrong")
    register_network("wrong", lambda *_: Wrong(1, 1, 3, padding=1))
    for ask in (
        lambda: Loop(network, slices(), recipe).run(),
        lambda: train(slices(), tmp_path / "run", recipe, device="cpu"),  # with trial steps
        lambda: build_network(recipe)(torch.ones(2, 1, 16, 16)),
    ):
        with pytest.raises(UnetlibError, match=f"the network {words}.*; one tensor of logits"):
            ask()


@pytest.mark.parametrize("made", [None, 3, nn.Conv2d, nn.Identity(), nn.Conv2d(1, 1, 1).requires_grad_(False), [1]])
def test_a_factory_that_makes_no_network_to_train_is_a_sentence(tmp_path, made):
    register_network("none", lambda *_: made)
    with pytest.raises(UnetlibError, match=r"the factory of the network 'none' returned .*; a module with weights"):
        train(slices(), tmp_path / "run", TINY.but(network="none"), device="cpu")


@pytest.mark.parametrize("lazy", [nn.LazyConv2d(1, 1), nn.Sequential(nn.Conv2d(1, 1, 1), nn.LazyBatchNorm2d())])
def test_a_factory_that_makes_lazy_layers_is_a_sentence(lazy):
    register_network("lazy", lambda *_: lazy)
    with pytest.raises(UnetlibError, match=r"the network 'lazy' returned a module with lazy layers"):
        build_network(TINY.but(network="lazy"))


def test_a_factory_that_takes_other_arguments_is_a_sentence():
    register_network("none", lambda recipe: nn.Conv2d(1, 1, 1))
    with pytest.raises(UnetlibError, match=r"the factory of the network 'none' fails: .* takes 1 positional argument"):
        build_network(TINY.but(network="none"))


@pytest.mark.parametrize("words", [(3, foreign), ("mine", None), ("mine", nn.Identity), (None, None)])
def test_a_network_is_registered_by_a_name_and_a_function(words):
    if words[1] is nn.Identity:
        register_network(*words)  # a class is a function, too
        return
    with pytest.raises(UnetlibError, match=r"register_network got .*; a name and a function were expected"):
        register_network(*words)


def test_a_network_may_have_frozen_layers_others_with_two_outputs_and_count_while_it_is_made(tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Conv2d(1, 2, 3, padding=1).requires_grad_(False)
            self.two, self.last = Two(), nn.Conv2d(2, 1, 1)
            self.scale = torch.linspace(1, 2, 2)[1].item()  # fails on the meta device

        def forward(self, x):
            return self.last(self.two(self.frozen(x))[0]) * self.scale

    register_network("odd", lambda *_: Odd())
    recipe, frozen = TINY.but(network="odd"), build_network(TINY.but(network="odd")).frozen.weight
    train(slices(), tmp_path / "run", recipe, device="cpu", max_steps=2)
    train(slices(), tmp_path / "run", recipe, device="cpu")
    assert torch.equal(weights(tmp_path / "run")["frozen.weight"], frozen)
    assert Predictor.open(tmp_path / "run", "cpu").volume(np.random.default_rng(0).random((16, 16, 2))).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_loop_before_the_weights_change(monkeypatch, value):
    network = build_network(TINY)
    before = copy.deepcopy(network.state_dict())
    monkeypatch.setitem(losses.LOSSES, "bce", lambda logits, masks: logits.mean() * value)
    with pytest.raises(UnetlibError, match=f"the loss is .*{value}: training has diverged"):
        Loop(network, slices(), TINY).run()
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())


def test_what_a_hook_adds_to_a_row_stays_out_of_the_history_file(tmp_path):
    class More(Hook):
        def on_epoch_end(self, loop):
            loop.state.history[-1]["extra"] = 1.0

    train(slices(), tmp_path / "run", TINY, device="cpu", hooks=[More()])
    assert train(slices(), tmp_path / "run", TINY, device="cpu").history[0]["extra"] == 1
    assert "extra" not in Run(tmp_path / "run").history_file.read_text()


def test_a_gradient_that_is_not_finite_ends_the_loop_before_the_weights_change(monkeypatch):
    network = build_network(TINY)
    before = copy.deepcopy(network.state_dict())
    root = lambda logits, masks: torch.sqrt((logits * 0).sum()) + logits.mean() ** 2  # noqa: E731
    monkeypatch.setitem(losses.LOSSES, "bce", root)
    with pytest.raises(UnetlibError, match=r"the loss is [0-9.e-]+, but the norm of its gradient is nan: a function"):
        Loop(network, slices(), TINY).run()
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())


class Adds(Hook):
    def __init__(self, value):
        self.value = value

    def on_epoch_end(self, loop):
        loop.state.history[-1]["extra"] = self.value


@pytest.mark.parametrize("value", [np.mean([1, 2]), np.float32(1), np.bool_(True), np.str_("a"), {"a": [np.int64(3)]}])
def test_numbers_of_numpy_that_a_hook_adds_are_read_again(tmp_path, value):
    train(slices(), tmp_path / "run", TINY, device="cpu", hooks=[Adds(value)])
    found = load_checkpoint(tmp_path / "run" / LATEST)["progress"]["history"][0]["extra"]
    assert found == value
    assert type(found).__module__ == "builtins"


@pytest.mark.parametrize("value", [np.arange(3), datetime(2026, 1, 1), Path("x"), Lock(), np.longdouble(1)])
def test_what_could_not_be_read_again_is_refused_before_the_checkpoint_is_replaced(tmp_path, value):
    run = tmp_path / "run"
    train(slices(), run, TINY, device="cpu", max_steps=1)
    before = (run / LATEST).read_bytes()
    with pytest.raises(UnetlibError, match=f"{LATEST} cannot hold .* field progress, history, 0, extra; numbers"):
        train(slices(), run, TINY, device="cpu", hooks=[Adds(value)])
    assert (run / LATEST).read_bytes() == before


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_network_that_is_not_ours_ends_with_the_same_bits_wherever_it_is_stopped(tmp_path, stop):
    recipe = TINY.but(network="foreign", average=0.9)
    state = torch.get_rng_state()
    train(slices(), tmp_path / "whole", recipe, device="cpu", threads=1)
    assert torch.equal(torch.get_rng_state(), state)  # the user's generator is left alone
    train(slices(), tmp_path / "run", recipe, device="cpu", max_steps=stop, threads=1)
    torch.manual_seed(7)
    train(slices(), tmp_path / "run", recipe, device="cpu", threads=1)
    for name in (LATEST, BEST):
        assert same(weights(tmp_path / "run", name), weights(tmp_path / "whole", name))
    fresh = build_network(recipe).state_dict()
    assert torch.equal(weights(tmp_path / "run")["unused.weight"], fresh["unused.weight"])
    assert not torch.equal(weights(tmp_path / "run")["first.weight"], fresh["first.weight"])


def test_dropout_draws_anew_in_each_step_of_each_seed(tmp_path):
    runs = {seed: tmp_path / str(seed) for seed in (0, 1)}
    masks = []

    def note(layer, _, output):
        if layer.training:
            masks.append((output == 0).all(3).all(2).flatten().tolist())

    class Dropped(Hook):
        def on_start(self, loop):
            loop.network.module.drop.register_forward_hook(note)

    for seed, run in runs.items():
        train(slices(), run, TINY.but(network="foreign", seed=seed), device="cpu", max_steps=6, hooks=(Dropped(),))
    assert len(masks) == len({tuple(mask) for mask in masks}) == 12


def test_a_network_of_an_unknown_name_is_a_sentence_and_a_name_is_taken_once():
    with pytest.raises(
        UnetlibError, match=r"no network named 'other'; unet, attention-unet, .*, foreign.*register_network"
    ):
        build_network(TINY.but(network="other"))
    with pytest.raises(UnetlibError, match="there is a network named 'unet' already"):
        register_network("unet", foreign)
    register_network("foreign", lambda *_: foreign(*_))  # a notebook's cell may run twice
    register_network("foreign", foreign)
    build_network(TINY.but(network="foreign", image_size=8, depth=8))  # it has no levels that halve an image


def test_several_channels_and_regions_go_from_batch_to_table(tmp_path):
    data, recipe = slices(channels=3, regions=2), TINY.but(loss="dice+bce", learning_rate=0.01, epochs=4)
    images, masks = data[5]
    assert (images.shape, masks.shape) == ((3, 16, 16), (2, 16, 16))
    state = train(data, tmp_path / "run", recipe, device="cpu")
    network, _, content = Run(tmp_path / "run").load()
    assert content["channels"] == [3, 2]
    assert (network.down[0][0].in_channels, network.head.out_channels) == (3, 2)

    positions = data.indices("val")
    with torch.no_grad():
        found = torch.sigmoid(network(data.batch(positions)[0])) >= 0.5
    each = dice(count(found.numpy(), data.masks[positions]).sum())
    assert each.shape == (2,)
    assert state.best_dice == pytest.approx(each.mean(), abs=1e-6)

    rng = np.random.default_rng(0)
    voxels, truth = rng.random((3, 20, 18, 5)).astype(np.float32), rng.random((2, 20, 18, 5)) < 0.3
    predictor = Predictor.open(tmp_path / "run", "cpu")
    assert predictor.volume(voxels).shape == truth.shape
    given = predictor, voxels, truth, (1.0, 1.0, 2.0), {"case": "a", "patient": "a"}
    rows, volumes = score_prediction(*given).values()
    mask = predictor.decision.mask(predictor.volume(voxels), (1.0, 1.0, 2.0))
    wanted = {"grid": "native", "slices": "all", "aggregation": "pooled"}
    entries = [one for one in results(rows) if wanted.items() <= one.items()]
    assert [one["region"] for one in entries] == [0, 1]
    for region, entry in enumerate(entries):
        tp, size = (mask[region] & truth[region]).sum(), mask[region].sum() + truth[region].sum()
        assert entry["dice"] == pytest.approx(2 * tp / size)
    surfaces = surface_summary(patient_rows(rows, volumes))
    assert [(one["region"], one["hd95_patients"] + one["hd95_undefined"]) for one in surfaces] == [(0, 1), (1, 1)]


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_of_several_regions_is_the_mean_over_them(name):
    generator = torch.Generator().manual_seed(0)
    logits, masks = (
        torch.randn(2, 3, 5, 5, generator=generator),
        (torch.rand(2, 3, 5, 5, generator=generator) > 0.7).float(),
    )
    alone = [losses.LOSSES[name](logits[:, [k]], masks[:, [k]]) for k in range(3)]
    torch.testing.assert_close(losses.LOSSES[name](logits, masks), torch.stack(alone).mean())


def test_validation_is_pooled_over_all_batches(monkeypatch):
    network, data = build_network(TINY), slices()
    monkeypatch.setitem(loop.VALIDATION_BATCH, 2, 4)
    found = Loop(network, data, TINY).validate()
    images, masks = data.batch(data.indices("val"))
    assert 4 < len(images) < 8
    with torch.no_grad():
        logits = network.eval()(images)
    assert found["val_loss"] == pytest.approx(nn.BCEWithLogitsLoss()(logits, masks).item(), rel=1e-5)
    pooled = count((logits >= 0).numpy(), masks.bool().numpy()).sum()
    assert found["val_dice"] == pytest.approx(dice(pooled).item())


def test_a_new_loss_is_one_entry(tmp_path, monkeypatch):
    squared = lambda logits, masks: (torch.sigmoid(logits) - masks).square().mean()  # noqa: E731
    monkeypatch.setitem(losses.LOSSES, "squared", squared)
    state = train(slices(), tmp_path / "run", TINY.but(loss="squared", epochs=1), device="cpu")
    assert 0 < state.history[0]["val_loss"] < 1
    assert Run(tmp_path / "run").recipe.loss == "squared"


def test_neighbours_of_several_sequences_stay_in_their_case():
    data = slices(channels=2)
    near = SliceDataset(data.images, data.masks, data.parts, data.cases, neighbours=1)
    images, _ = near.batch(np.array([0, 7]))
    expected = [np.concatenate(data.images[[0, 0, 1]]), np.concatenate(data.images[[6, 7, 8]])]
    np.testing.assert_array_equal(images.numpy(), np.stack(expected).astype(np.float32))
    with pytest.raises(IndexError):
        near[len(near)]


class Constant(Predictor):
    """Gives one probability everywhere, and another one in the left half."""

    def __init__(self, left, right, smallest=0.0):
        self.recipe, self.left, self.right = TINY, left, right
        self.decision, self.key = Decision(left, smallest), str(left)

    def slices(self, slices):
        found = torch.full((len(slices), 1, *slices.shape[-2:]), self.right)
        found[..., : slices.shape[-1] // 2] = self.left
        return found


def test_what_wraps_predictors_is_a_predictor():
    voxels = np.random.default_rng(0).random((16, 16, 3))
    one, other = Constant(0.2, 0.6, smallest=1.0), Constant(0.4, 0.8)
    assert np.unique(Mirrored(one).volume(voxels)) == pytest.approx([0.4])
    both = Ensemble([one, Mirrored(other)])
    assert both.volume(voxels) == pytest.approx((one.volume(voxels) + Mirrored(other).volume(voxels)) / 2)
    assert both.decision == Decision(pytest.approx(0.3), 0.5)
    assert both.key not in (one.key, other.key)
    other.recipe = TINY.but(image_size=32)
    with pytest.raises(UnetlibError, match="they differ \\(image_size: 16 -> 32\\)"):
        Ensemble([one, other])


def test_segment_does_no_input_and_no_output(tmp_path, capsys):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    volume = Volume(np.random.default_rng(0).random((16, 16, 3)), affine, affine, nib.Nifti1Header())
    segment(Constant(0.2, 0.6), volume)  # imports what it needs
    watching, opened = [True], []
    sys.addaudithook(lambda event, given: opened.append(given[0]) if watching and event == "open" else None)
    found = segment(Constant(0.2, 0.6), volume)
    watching.clear()
    assert opened == []
    assert found.mask.shape == found.probability.shape == (1, 16, 16, 3)
    assert found.millilitres == pytest.approx([found.mask.sum() * 6 / 1000])
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UnetlibError, match=r"segment: volume is .*; Volume was expected"):
        segment(Constant(0.2, 0.6), volume.voxels)
    with pytest.raises(UnetlibError, match="segment: predictor is 'run'; Predictor was expected"):
        segment("run", volume)
    with pytest.raises(UnetlibError, match="open: threads is '2'; None or int was expected"):
        Predictor.open(tmp_path, "cpu", threads="2")


def test_the_order_of_an_epoch_is_a_pure_function():
    data = slices()
    data.masks[3:] = 0
    orders = [epoch_order(data, True, 0, epoch) for epoch in (0, 0, 1)]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    assert set(orders[0]) >= {0, 1, 2}
    assert len(orders[0]) == 6


def test_trained_refuses_weights_that_give_nan():
    network = build_network(TINY)
    network.head.bias.data[:] = math.nan

    class OnCpu:
        device = torch.device("cpu")

        def to_device(self, batch):
            return batch

    with pytest.raises(UnetlibError, match="the volume holds NaN or infinite values"):
        Trained(OnCpu(), build_network(TINY), TINY, Decision(0.5)).volume(np.full((16, 16, 2), np.nan))
    for shape in ((16, 16), (2, 16, 16, 3), (1, 1, 16, 16, 3)):
        with pytest.raises(UnetlibError, match=r"a volume of shape .* was given to a network for 1 sequence;"):
            Constant(0.2, 0.6).volume(np.ones(shape))
    with pytest.raises(UnetlibError, match="the network gives NaN: its weights are damaged"):
        Trained(OnCpu(), copy.deepcopy(network), TINY, Decision(0.5)).slices(torch.rand(1, 1, 16, 16))
