"""Chapter 7: networks at equal time, where gates are open, and volumes. No test measures time: clocks are given."""

import sys
from dataclasses import replace
from itertools import product

import nbformat
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import LPS, SMALL, write_patient
from tests.test_notebooks import NOTEBOOKS, code_of
from unetlib.course import networks
from unetlib.course import start as course
from unetlib.course.networks import against_seeds, gates, learn, open_samples, rivals, separation, thinned
from unetlib.dataset import SliceDataset
from unetlib.networks import build_network
from unetlib.recipe import Recipe
from unetlib.runs.training import train

RECIPE = SMALL.but(learning_rate=1e-2, train_fraction=0.5)
CUBES = Recipe.volume.but(image_size=32, width=2, depth=2, mirror=False, tune=False, precision="fp32")


@pytest.fixture
def opened(data, tmp_path):
    """A course of three small patients."""
    length = replace(course.FULL, network_seconds=6.0, network_slices=4)
    return replace(course.start(data, tmp_path / "work"), length=length)


def test_every_network_gets_the_epochs_that_fit_and_a_step_is_measured_once_for_all_seeds(opened, monkeypatch, capsys):
    _, data = open_samples(opened, RECIPE)
    asked = []

    def measured(samples, recipe):
        asked.append(recipe.width)
        return 0.25 * recipe.width

    monkeypatch.setattr(networks, "step_seconds", measured)
    narrow, wide = RECIPE.but(width=4, batch_size=2), RECIPE.but(width=8, batch_size=2)
    runs = [learn(opened, data, recipe) for recipe in (narrow, narrow.but(seed=1), wide, wide.but(epochs=9))]
    assert asked == [4, 8]
    steps = -(-len(thinned(data.dataset(), 4).indices("train")) // 2)
    assert steps == 2
    assert [run.recipe.epochs for run in runs] == [3, 3, 2, 2]  # 6 s of 1 and of 2 s a step
    assert runs[2] == runs[3]
    assert len({run.folder for run in runs}) == 3
    assert "unet of depth 2, seed 1: 1000 ms a step, 3 epochs of 2 steps; " in capsys.readouterr().out


def test_a_network_too_slow_for_its_time_is_trained_for_one_epoch_and_an_earlier_run_is_reused(opened, monkeypatch):
    monkeypatch.setattr(networks, "step_seconds", lambda *_: 1000.0)
    _, data = open_samples(opened, RECIPE)
    run = learn(opened, data, RECIPE)
    before = run.best.stat().st_mtime_ns
    assert run.recipe.epochs == 1
    assert learn(opened, data, RECIPE) == run
    assert run.best.stat().st_mtime_ns == before


def test_a_step_takes_the_median_of_some_after_the_first_and_changes_no_random_number(opened, monkeypatch):
    _, data = open_samples(opened, RECIPE)
    times = iter([0, 100, 100, 103, 103, 110, 110, 112, 112, 115, 115, 120])  # 100 first, then 3 7 2 3 5
    monkeypatch.setattr(networks.time, "process_time", lambda: next(times))
    state = torch.random.get_rng_state()
    few = thinned(data.dataset(), 1)  # fewer steps an epoch than are timed
    assert networks.step_seconds(few, RECIPE.but(epochs=1, schedule="cosine")) == 3
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("number", "most", "left"), [(10, 4, [0, 3, 6, 9]), (4, 4, [0, 1, 2, 3]), (0, 4, [])])
def test_parts_are_thinned_evenly(number, most, left):
    parts = {"train": np.arange(number) + 5, "val": np.arange(2)}
    samples = thinned(SliceDataset(np.zeros((20, 1, 4, 4)), np.zeros((20, 1, 4, 4)), parts, np.array([20])), most)
    assert (samples.indices("train") - 5).tolist() == left
    assert samples.indices("val").tolist() == [0, 1]


def test_the_difference_of_two_networks_stands_beside_the_largest_of_two_seeds():
    plain, other = np.array([[0.5, 0.7], [0.6, 0.8]]), np.array([[0.9, 0.9], [0.4, 0.8]])
    difference, by_seed = against_seeds(plain, other)
    assert difference == pytest.approx(0.75 - 0.65)
    assert by_seed == pytest.approx(0.3)


def test_gates_are_what_each_skip_is_multiplied_by_the_finest_first():
    network = build_network(RECIPE.but(network="attention-unet", depth=3))
    images, seen = torch.rand(2, 1, 32, 32), []
    for module in network.modules():
        if type(module).__name__ == "AttentionBlock":
            module.register_forward_hook(lambda _, __, out: seen.append(out))
            module.register_forward_pre_hook(lambda _, __, told: seen.append(told["x"]), with_kwargs=True)
    found, before = gates(network, images), len(seen)
    assert [gate.shape for gate in found] == [(2, 1, side, side) for side in (32, 16, 8)]
    skips = sorted(zip(seen[::2], seen[1::2], strict=True), key=lambda pair: -pair[0].shape[-1])
    for gate, (skip, gated) in zip(found, skips, strict=True):
        torch.testing.assert_close(skip * gate, gated)
        assert 0 <= gate.min() <= gate.max() <= 1
    network(images)
    assert (before, len(found)) == (6, 3), "and no hook is left"


def test_a_network_without_gates_has_none():
    assert gates(build_network(RECIPE), torch.rand(1, 1, 32, 32)) == []


def test_the_separation_is_how_often_a_tumour_pixel_is_higher():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 4, (2, 1, 6, 6), generator=generator).float()  # with equal ones
    masks = (torch.rand(2, 1, 6, 6, generator=generator) > 0.7).float()
    head = torch.rand(2, 1, 6, 6, generator=generator) > 0.3
    inside, outside = values[masks > 0].tolist(), values[head & (masks == 0)].tolist()
    wins = [(one > other) + (one == other) / 2 for one, other in product(inside, outside)]
    assert separation(values, masks, head) == pytest.approx(np.mean(wins))
    assert separation(masks, masks, head) == 1
    assert separation(-masks, masks, head) == 0
    assert separation(torch.ones(2, 1, 3, 3), masks, head) == 0.5, "a coarse level is enlarged"
    assert np.isnan(separation(values, masks * 0, head))


def test_the_two_networks_differ_in_the_gates_alone():
    first, second = rivals(RECIPE).values()
    assert first == RECIPE
    assert second == RECIPE.but(network="attention-unet")


def test_without_monai_the_chapter_goes_on_with_ours_and_says_how_to_install_it(monkeypatch, capsys):
    for module in [one for one in sys.modules if one.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "monai", None)
    found = rivals(RECIPE)
    assert [recipe.network for recipe in found.values()] == ["unet", "unet"]
    assert [recipe.depth for recipe in found.values()] == [2, 1]
    assert "pip install" in capsys.readouterr().out


def test_volumes_without_a_true_size_give_way_to_the_embedded_cohort_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "make_cohort", lambda folder, _: [write_patient(folder, index) for index in range(3)])
    for index in range(3):
        write_patient(tmp_path / "mine", index, affine=LPS @ np.diag([1, 1, 60, 1]))
    mine = course.start(tmp_path / "mine", tmp_path / "work")
    same, slices = open_samples(mine, RECIPE)
    assert same is mine
    assert slices.images.ndim == 4
    other, volumes = open_samples(mine, CUBES)
    assert other.data == tmp_path / "work" / "synthetic" / "cohort"
    assert other.length == mine.length
    assert volumes.images.shape[1:] == (1, 32, 32, 32)
    assert "goes on with the embedded synthetic cohort" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "told"),
    [(0.65, "That may be noise."), (0.9, "perhaps a gain."), (0.1, "perhaps a loss."), (0.6, "That may be noise.")],
)
def test_the_chapter_calls_a_difference_noise_unless_it_is_larger_than_that_of_a_seed(other, told, capsys):
    dices = {"unet": np.array([[0.5, 0.6], [0.6, 0.7]]), "attention-unet": np.full((2, 2), other)}
    known = {"dices": dices, "networks": dict.fromkeys(dices), "against_seeds": against_seeds}
    exec(code_of("07_other_networks", "ours, other = networks"), known)
    said = capsys.readouterr().out
    assert said.splitlines()[-1].endswith(told)
    assert f"attention-unet over unet: {other - 0.6:+.3f}; another seed alone changes up to 0.100" in said


@pytest.fixture
def solved():
    """What the cells of the solutions define."""
    known = {"torch": torch, "nn": torch.nn, "F": F}
    exec("from unetlib import UNet, register_network", known)
    cells = nbformat.read(NOTEBOOKS / "solutions" / "07_other_networks.ipynb", 4).cells
    for cell in cells:
        if cell.cell_type == "code" and cell.source.startswith(("def shuffle", "class ", "def with_attention")):
            exec(cell.source, known)
    return known


@torch.no_grad()
def test_the_block_of_the_solutions_is_shuffle_attention_by_its_definition(solved):
    block, x = solved["ShuffleAttention"](16, groups=2), torch.rand(3, 16, 5, 6)
    for weight in block.parameters():
        weight.uniform_(-2, 2)
    gated, scale, shift = x.clone(), block.scale[..., 0, 0], block.shift[..., 0, 0]
    for sample, group, place in product(range(3), range(2), range(8)):
        channel = x[sample, 8 * group + place]
        half, own = divmod(place, 4)
        value = (channel - channel.mean()) / (channel.var(correction=0) + 1e-5).sqrt() if half else channel.mean()
        gated[sample, 8 * group + place] *= torch.sigmoid(scale[half, own] * value + shift[half, own])
    torch.testing.assert_close(block(x), F.channel_shuffle(gated, 2), rtol=1e-4, atol=1e-5)


def test_the_network_of_the_solutions_has_a_block_on_each_level_and_is_trained_by_name(solved, prepared, tmp_path):
    recipe = RECIPE.but(network="unet-with-attention", width=8, epochs=1)
    network = build_network(recipe)
    blocks = [module for module in network.modules() if isinstance(module, solved["ShuffleAttention"])]
    assert [2 * block.groups * block.scale.shape[1] for block in blocks] == [8, 16, 32]
    assert [type(block[-1]) for block in network.down] == [type(block) for block in blocks]
    assert train(prepared, tmp_path / "run", recipe).history[0]["train_loss"] > 0
