"""The loop and its seams: a data set of one's own, a network that is not ours, several channels and regions."""

import copy
import inspect
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import BEST, LATEST, SMALL
from unetlib import augment, dataset, loop, losses, metrics, networks, recipe, unet
from unetlib.data import layouts
from unetlib.dataset import SliceDataset, epoch_order
from unetlib.engine.steps import FiniteLoss
from unetlib.evaluation.evaluate import score
from unetlib.evaluation.summary import patient_rows, results, surface_summary
from unetlib.hooks import Hook
from unetlib.loop import Loop
from unetlib.metrics import count, dice
from unetlib.networks import build_network, register_network
from unetlib.prediction.decision import Decision
from unetlib.prediction.predictor import Ensemble, Mirrored, Predictor, Trained
from unetlib.prediction.segment import segment
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.provenance import find_own
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.errors import UnetlibError

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
    seen = Loop(network, data, TINY.but(learning_rate=0.01), [FiniteLoss()]).run()
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


def test_a_data_set_without_validation_samples_is_a_sentence(tmp_path):
    data = slices()
    data.parts["val"] = np.empty(0, int)
    with pytest.raises(UnetlibError, match="val part of the split has no slice"):
        train(Own(data), tmp_path / "run", TINY, device="cpu")


@pytest.mark.parametrize(
    ("images", "masks"),
    [(lambda x: x, lambda y: 255 * y), (lambda x: x[:, 0], lambda y: y), (lambda x: x, lambda y: y[..., :8])],
    ids=["0 and 255", "no channel", "another size"],
)
def test_samples_that_do_not_fit_are_a_sentence(tmp_path, images, masks):
    class Wrong(Own):
        def batch(self, indices):
            x, y = self.inner.batch(indices)
            return images(x), masks(y)

    with pytest.raises(UnetlibError, match=r"Wrong: a batch has images of shape .* with masks of 0 and 1"):
        train(Wrong(slices()), tmp_path / "run", TINY, device="cpu")


def test_what_a_hook_adds_to_a_row_stays_out_of_the_history_file(tmp_path):
    class More(Hook):
        def on_epoch_end(self, loop):
            loop.state.history[-1]["extra"] = 1.0

    train(slices(), tmp_path / "run", TINY, device="cpu", hooks=[More()])
    assert train(slices(), tmp_path / "run", TINY, device="cpu").history[0]["extra"] == 1
    assert "extra" not in Run(tmp_path / "run").history_file.read_text()


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
    with pytest.raises(UnetlibError, match=r"no network named 'other'; unet, foreign.*register_network"):
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
    rows, surfaces = score(predictor, voxels, truth, (1.0, 1.0, 2.0), {"case": "a", "patient": "a"}).values()
    mask = predictor.decision.mask(predictor.volume(voxels), (1.0, 1.0, 2.0))
    wanted = {"grid": "native", "slices": "all", "aggregation": "pooled"}
    entries = [one for one in results(rows) if wanted.items() <= one.items()]
    assert [one["region"] for one in entries] == [0, 1]
    for region, entry in enumerate(entries):
        tp, size = (mask[region] & truth[region]).sum(), mask[region].sum() + truth[region].sum()
        assert entry["dice"] == pytest.approx(2 * tp / size)
    assert surface_summary(patient_rows(rows, surfaces))["hd95_patients"] + 0 <= 2


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_of_several_regions_is_the_mean_over_them(name):
    generator = torch.Generator().manual_seed(0)
    logits, masks = (
        torch.randn(2, 3, 5, 5, generator=generator),
        (torch.rand(2, 3, 5, 5, generator=generator) > 0.7).float(),
    )
    alone = [losses.LOSSES[name](logits[:, [k]], masks[:, [k]]) for k in range(3)]
    torch.testing.assert_close(losses.LOSSES[name](logits, masks), torch.stack(alone).mean())


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
        self.decision, self.key, self.epoch = Decision(left, smallest), str(left), 1

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
    with pytest.raises(UnetlibError, match="grids differ \\(image_size: 16 -> 32\\)"):
        Ensemble([one, other])


def test_segment_does_no_input_and_no_output(tmp_path, monkeypatch, capsys):
    class Volume:
        voxels, spacing = np.random.default_rng(0).random((16, 16, 3)), (1.0, 2.0, 3.0)

    monkeypatch.setattr("builtins.open", None)
    found = segment(Constant(0.2, 0.6), Volume())
    assert found.mask.shape == found.probability.shape == (1, 16, 16, 3)
    assert found.millilitres == pytest.approx([found.mask.sum() * 6 / 1000])
    assert capsys.readouterr() == ("", "")


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

    with pytest.raises(UnetlibError, match="the network gives NaN"):
        Trained(OnCpu(), copy.deepcopy(network), TINY, Decision(0.5)).slices(torch.rand(1, 1, 16, 16))
