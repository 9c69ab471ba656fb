"""The networks of MONAI by name: trained, stopped, resumed, evaluated, predicted; deep supervision; every refusal."""

import copy
import importlib
import re
import subprocess
import sys
import tomllib
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import pytest
import torch
from torch import nn

from tests.conftest import BEST, LATEST, SMALL, some, write_patient
from tests.test_loop import same, weights
from tests.test_parallel import command
from unetlib import plots
from unetlib.cli import main
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.engine.costs import costs_table, measure, network_costs
from unetlib.engine.fabric import FabricEngine
from unetlib.engine.parallel import SharedBatchNorm, share_statistics
from unetlib.evaluation.evaluate import evaluate
from unetlib.hooks import move_average
from unetlib.losses import get_loss
from unetlib.networks import build_network, register_network
from unetlib.other_networks import OTHERS, how_made, level_shapes, parameter_count
from unetlib.prediction.predict import predict
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.show.card import write_card
from unetlib.support.errors import UnetlibError
from unetlib.support.fields import flag
from unetlib.support.files import read_json

SIDE = 40  # no multiple of what any of them needs
TINY = SMALL.but(image_size=SIDE, batch_size=8)
SMALLEST = {  # the recipe of the smallest network of each kind that sees slices of this side
    "attention-unet": TINY.but(network="attention-unet", width=2, depth=3),
    "segresnet": TINY.but(network="segresnet", width=8, depth=2),
    "dynunet": TINY.but(network="dynunet", width=4, depth=3, deep_supervision=True),
    "unetr": TINY.but(network="unetr", width=1, depth=4),
    "swin-unetr": TINY.but(network="swin-unetr", width=12, depth=5),
}
VOLUMES = {
    name: Recipe.volume.but(
        network=name, image_size=64 if name == "swin-unetr" else 32, width=one.width, depth=one.depth
    )
    for name, one in SMALLEST.items()
}
EVERY = {f"{one.network}, {one.dims}-D": one for one in (*SMALLEST.values(), *VOLUMES.values())}


def refused(function, *words, **options):
    with pytest.raises(UnetlibError) as error:
        function(*words, **options)
    return str(error.value)


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Five small patients."""
    folder = tmp_path_factory.mktemp("few")
    for index in range(5):
        write_patient(folder, index)
    return folder


@pytest.fixture(scope="module")
def slices(few, tmp_path_factory):
    """The five patients, on slices of this side."""
    folder = tmp_path_factory.mktemp("slices") / "prepared"
    prepare(few, folder, TINY, workers=1)
    return folder


@pytest.fixture
def without(monkeypatch):
    """A function that hides a package, as if it were not installed."""

    def hide(package):
        for module in [one for one in sys.modules if one.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)

    return hide


@pytest.fixture(scope="module")
def runs(slices, tmp_path_factory):
    """A function that returns a finished run of a network, trained in one go; do not change it."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name):
        if not (folder / name).exists():
            train(slices, folder / name, SMALLEST[name].but(average=0.9), device="cpu", threads=1)
        return folder / name

    return run


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_is_trained_stopped_resumed_to_the_same_bits_evaluated_and_predicts(
    runs, slices, few, tmp_path, name
):
    recipe, whole, run = SMALLEST[name].but(average=0.9), runs(name), tmp_path / "run"
    train(slices, run, recipe, device="cpu", max_steps=2, threads=1)
    torch.manual_seed(7)
    assert train(slices, run, recipe, device="cpu", threads=1).epoch == 2
    for file in (LATEST, BEST):
        assert same(weights(run, file), weights(whole, file))
    assert same(load_checkpoint(run / LATEST)["average"], load_checkpoint(whole / LATEST)["average"])
    fresh = build_network(recipe).state_dict()
    moved = [
        key for key, value in weights(run).items() if value.is_floating_point() and not torch.equal(value, fresh[key])
    ]
    assert len(moved) > 0.8 * sum("norm_cross_attn" not in key for key in fresh)
    summary = evaluate(run, device="cpu")
    assert 0 <= summary["figures"][0]["dice"] <= 1
    (image,) = few.glob("*_00000/*flair.nii.gz")
    predict(run, [image], tmp_path / "masks", device="cpu")
    (mask,) = (tmp_path / "masks").glob("*_mask.nii.gz")
    assert nib.load(mask).shape == nib.load(image).shape


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_says_how_its_network_was_made(runs, name):
    from monai.networks import nets

    made = read_json(runs(name) / "provenance.json")["network"]
    assert (made["name"], made["library"]) == (name, "monai")
    assert made["version"] == read_json(runs(name) / "provenance.json")["sessions"][-1]["monai"]
    kind = getattr(nets, made["class"].rpartition(".")[2])
    again = kind(**made["arguments"])  # a reader can make it from this record alone
    network, _, _ = Run(runs(name)).load()
    assert {f"network.{key}": value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }
    assert parameter_count(network) == sum(one.numel() for one in again.parameters())


def test_networks_that_are_not_monais_say_how_they_were_made_too():
    register_network("flat", lambda recipe, before, after: nn.Conv2d(before, after, 3, padding=1))
    made = how_made(build_network(SMALL.but(network="flat")))
    assert made["class"] == "torch.nn.modules.conv.Conv2d"
    assert made["library"] == "torch"
    assert made["version"] == torch.__version__.partition("+")[0] or made["version"] == torch.__version__
    assert how_made(build_network(SMALL))["class"] == "unetlib.unet.UNet"


@pytest.mark.parametrize("name", some(EVERY, [name for name in EVERY if name != "swin-unetr, 3-D"]))
def test_logits_have_the_size_of_the_images_and_padding_changes_nothing_where_there_is_none(name):
    recipe = EVERY[name]
    network = build_network(recipe, 2, 3).eval()
    shape = [recipe.image_size] * recipe.dims
    with torch.no_grad():
        assert network(torch.rand(1, 2, *shape)).shape == (1, 3, *shape)
        multiple = 2**recipe.depth
        whole = torch.rand(1, 2, *[-(-recipe.image_size // multiple) * multiple] * recipe.dims)
        assert torch.equal(network(whole), network.network(whole))
        cut = (..., *[slice(recipe.image_size)] * recipe.dims)
        border = torch.zeros_like(whole)
        border[cut] = whole[cut]
        assert torch.equal(network(whole[cut]), network.network(border)[cut])


def test_a_network_of_fixed_size_names_it():
    network = build_network(SMALLEST["unetr"])
    assert "images of 48 pixels or voxels a side, and 64 x 48 were given" in refused(network, torch.rand(1, 1, 64, 48))


def digests():
    """Return the hash of the fresh weights of each of the smallest networks."""
    weights = {name: build_network(recipe).state_dict().values() for name, recipe in SMALLEST.items()}
    return [sha256(b"".join(one.numpy().tobytes() for one in own)).hexdigest() for own in weights.values()]


def test_the_same_seed_gives_the_same_weights_in_every_process_and_another_seed_others():
    """MONAI is imported by the first of them, after the seed is set."""
    fresh = python("import torch; torch.manual_seed(5); from tests import test_other_networks as t; print(t.digests())")
    assert fresh == str(digests())
    for recipe in SMALLEST.values():
        one, other = (build_network(recipe.but(seed=seed)).state_dict() for seed in (0, 1))
        assert not all(torch.equal(one[key], other[key]) for key in one)


# Deep supervision


def test_the_loss_of_several_levels_is_their_weighted_mean():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 5, 4, generator=generator, dtype=torch.float64)
    masks = (torch.rand(2, 2, 5, 4, generator=generator) > 0.5).double()
    for name in ("bce", "dice", "dice+focal"):
        plain, deep = get_loss(name), get_loss(name, deep_supervision=True)
        one, two, three = (plain(logits[:, level], masks).item() for level in range(3))
        assert deep(logits, masks).item() == pytest.approx((4 * one + 2 * two + three) / 7, rel=1e-12)
        assert torch.equal(deep(logits[:, 0], masks), plain(logits[:, 0], masks))
        assert "the network gave" in refused(plain, logits, masks)  # without the field it is no output of a network
        assert "the network gave" in refused(deep, (logits,), masks)


def test_deep_supervision_adds_heads_in_training_and_leaves_evaluation_alone():
    recipe = TINY.but(network="dynunet", width=4, depth=4)
    plain, deep = (build_network(recipe.but(deep_supervision=on), 1, 2) for on in (False, True))
    images = torch.rand(2, 1, SIDE, SIDE)
    assert plain.train()(images).shape == (2, 2, SIDE, SIDE)
    assert deep.train()(images).shape == (2, 3, 2, SIDE, SIDE)  # all levels but the two lowest of five
    own = {key: value for key, value in deep.state_dict().items() if key in plain.state_dict()}
    plain.load_state_dict(own)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), deep.eval()(images))
        assert torch.equal(deep.train()(images)[:, 0], plain.train()(images))  # the finest is the first


@pytest.mark.parametrize("name", ["unet", *(name for name in OTHERS if name != "dynunet")])
def test_a_network_without_further_outputs_refuses_deep_supervision(name):
    recipe = SMALLEST.get(name, TINY).but(deep_supervision=True)
    assert re.search("no outputs on its lower levels", refused(build_network, recipe))


def test_a_network_of_ones_own_that_ignores_deep_supervision_is_told_what_was_expected():
    register_network("flat", lambda recipe, before, after: nn.Conv2d(before, after, 3, padding=1))
    network = build_network(SMALL.but(network="flat", deep_supervision=True))
    assert "one tensor of logits, (2, 1, 1, 32, 32), was expected" in refused(network.train(), torch.rand(2, 1, 32, 32))
    assert network.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 1, 32, 32)


def test_weights_that_stand_under_several_names_are_averaged_once():
    network, average = (build_network(SMALLEST["dynunet"].but(seed=seed)) for seed in (0, 1))
    before = {name: one.clone() for name, one in average.named_parameters()}
    assert len(network.state_dict()) > len(list(network.parameters()))  # MONAI lists them twice
    move_average(average, network, 0.9, 1000)
    for name, one in network.named_parameters():
        torch.testing.assert_close(average.get_parameter(name), 0.9 * before[name] + 0.1 * one)


# What is refused


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("swin-unetr", {"width": 16}, "width is 16 (expected: a multiple of 12, such as 12)"),
        ("swin-unetr", {"width": 40}, "width is 40 (expected: a multiple of 12, such as 36)"),
        ("swin-unetr", {"depth": 4}, "depth is 4 (expected: 5)"),
        (
            "swin-unetr",
            {"image_size": 32},
            "image_size is 32 (expected: more than 32, set by unetlib prepare --image-size)",
        ),
        ("swin-unetr", {"width": 7, "depth": 2}, "such as 12); depth is 2 (expected: 5)"),
        ("unetr", {"depth": 3}, "depth is 3 (expected: 4)"),
        ("unetr", {"image_size": 16}, "image_size is 16 (expected: more than 16"),
        ("dynunet", {"depth": 1}, "depth is 1 (expected: 2 to 8)"),
        (
            "dynunet",
            {"depth": 6},
            "image_size is 40 (expected: more than 64, set by unetlib prepare --image-size; or a --depth of at most 5)",
        ),
        ("segresnet", {"width": 12}, "width is 12 (expected: a multiple of 8, such as 8)"),
        ("attention-unet", {"width": 1}, "width is 1 (expected: a multiple of 2, such as 2)"),
    ],
)
def test_a_recipe_that_a_network_cannot_take_is_refused_with_what_it_needs(name, change, words):
    said = refused(build_network, SMALLEST[name].but(**change))
    assert said.startswith(f"the network '{name}' cannot be made for this recipe: ")
    assert words in said


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("missing", ["monai", "einops"])
def test_without_monai_the_sentence_says_how_to_install_it(without, name, missing):
    without(missing)
    said = refused(build_network, SMALLEST[name])
    assert f"the network '{name}' comes from MONAI, and {missing}" in said
    assert 'python -m pip install --constraint constraints.txt --editable ".[networks]"' in said


def test_the_install_command_names_an_extra_that_holds_both():
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {re.match(r"\w+", line).group() for line in extras["networks"]} == {"monai", "einops"}
    assert "unetlib[networks]" in extras["test"]


def test_a_checkpoint_of_another_network_is_refused(runs, slices, tmp_path):
    said = refused(train, slices, runs("dynunet"), SMALLEST["segresnet"].but(average=0.9), device="cpu")
    assert "was started with another recipe (" in said
    assert "network: dynunet -> segresnet" in said
    content = load_checkpoint(runs("dynunet") / BEST)
    for change in (
        SMALLEST["segresnet"],
        SMALLEST["dynunet"].but(deep_supervision=False),
        SMALLEST["dynunet"].but(dims=3, image_size=64, **{"slices": "all", "normalise": "median-volume", "crop": True}),
    ):
        torch.save({**content, "recipe": change.as_dict()}, tmp_path / BEST)
        assert "holds the weights of another architecture" in refused(Run(tmp_path).load)


def test_a_recipe_of_a_giant_network_takes_no_memory(runs, tmp_path):
    """512 channels, doubled 8 times, are 600 GB of weights: whoever makes them before reading the file is killed."""
    content = load_checkpoint(runs("swin-unetr") / BEST)
    for name, change in (("swin-unetr", {"width": 504}), ("attention-unet", {"width": 512, "depth": 8})):
        content["recipe"] = SMALLEST[name].but(image_size=1024, **change).as_dict()
        torch.save(content, tmp_path / BEST)
        assert "another architecture" in refused(Run(tmp_path).load)


def test_to_start_from_another_network_is_refused_and_from_the_same_one_begins_with_its_weights(runs, slices, tmp_path):
    for change, words in (
        ({"network": "segresnet", "width": 8, "depth": 2, "deep_supervision": False}, "network: "),
        ({"deep_supervision": False}, "deep_supervision: True -> False"),
    ):
        said = refused(
            train, slices, tmp_path / "run", SMALLEST["dynunet"].but(**change), device="cpu", start_from=runs("dynunet")
        )
        assert "has another network or other slices (" in said
        assert words in said
    recipe = SMALLEST["dynunet"].but(seed=3, epochs=1, learning_rate=1e-9)
    train(slices, tmp_path / "more", recipe, device="cpu", start_from=runs("dynunet"), max_steps=1)
    for key, value in weights(runs("dynunet"), BEST).items():
        torch.testing.assert_close(weights(tmp_path / "more")[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["attention-unet", "dynunet"])
def test_two_members_in_bfloat16_are_trained_and_resumed_to_the_same_bits(slices, tmp_path, name):
    recipe = SMALLEST[name].but(members=2, precision="bf16", epochs=1)
    for run, steps in (("whole", [None]), ("run", [1, 2, None])):
        for most in steps:
            train(slices, tmp_path / run, recipe, device="cpu", threads=1, max_steps=most)
    for member in ("member-1", "member-2"):
        assert same(weights(tmp_path / "run" / member), weights(tmp_path / "whole" / member))


@pytest.mark.parametrize("name", some(VOLUMES, ["dynunet", "segresnet"]))
def test_on_volumes_a_network_is_trained_stopped_resumed_to_the_same_bits_evaluated_and_predicts(few, tmp_path, name):
    recipe = VOLUMES[name].but(epochs=2, average=0.9, tune=False, precision="fp32", deep_supervision=name == "dynunet")
    folder = prepare(few, tmp_path / "prepared", recipe, workers=1).folder
    train(folder, tmp_path / "whole", recipe, device="cpu", threads=1)
    for most in (2, None):
        train(folder, tmp_path / "run", recipe, device="cpu", threads=1, max_steps=most)
    for file in (LATEST, BEST):
        assert same(weights(tmp_path / "run", file), weights(tmp_path / "whole", file))
    assert 0 <= evaluate(tmp_path / "run", device="cpu")["figures"][0]["dice"] <= 1
    (image,) = few.glob("*_00000/*flair.nii.gz")
    (mask,) = predict(tmp_path / "run", [image], tmp_path / "masks", device="cpu")
    assert nib.load(mask).shape == nib.load(image).shape


# Nothing is imported that is not asked for


def test_the_library_and_its_command_line_import_monai_only_to_make_one_of_its_networks():
    code = """
import sys, unetlib
from importlib import import_module
from pkgutil import walk_packages
for module in walk_packages(unetlib.__path__, "unetlib."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
from unetlib import Recipe, build_network
build_network(Recipe())
print(sorted({"monai", "einops"} & set(sys.modules)))
"""
    assert python(code) == "[]"


@pytest.mark.parametrize("name", ["os.system", "monai.networks.nets:UNet", "monai.networks.nets.DynUNet", "DynUNet"])
def test_what_a_file_names_is_looked_up_and_never_imported(runs, tmp_path, monkeypatch, name):
    content = load_checkpoint(runs("dynunet") / BEST)
    content["recipe"] |= {"network": name}
    torch.save(content, tmp_path / BEST)
    refused(Run(tmp_path).load)  # imports what it needs
    monkeypatch.setattr(importlib, "import_module", lambda *given: pytest.fail(f"imported {given}"))
    assert f"there is no network named '{name}'" in refused(Run(tmp_path).load)


# Several processes


class Team:
    """Stands in for the engine of one of two processes that has no rows."""

    world_size, global_rank = 2, 1


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_takes_part_in_torchrun_and_a_process_without_rows_too(monkeypatch, name):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    network = build_network(SMALLEST[name]).train()
    share_statistics(network)
    engine = FabricEngine("cpu", "fp32")
    engine.fabric = Team()
    before = copy.deepcopy(network.state_dict()) if name != "attention-unet" else {}
    images = torch.rand(1, 1, SIDE, SIDE)
    logits = engine.forward(network, images)  # the first process has the only row
    assert torch.equal(logits, torch.zeros_like(logits))
    logits.sum().backward()
    assert all(one.grad is None or not one.grad.any() for one in network.parameters())
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("dims", [2, 3])
def test_batch_norm_of_slices_and_of_volumes_is_shared(monkeypatch, dims):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    kind = (nn.BatchNorm2d, nn.BatchNorm3d)[dims - 2]
    theirs, ours = kind(3), nn.Sequential(kind(3))
    share_statistics(ours)
    assert type(ours[0]) is SharedBatchNorm
    x = torch.randn(4, 3, *[5] * dims, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    pull = torch.randn_like(x)
    (theirs(x) * pull).sum().backward()
    (ours(y) * pull).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[0].weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm3d(4, track_running_stats=False),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.SyncBatchNorm(4),
        nn.LazyBatchNorm2d(),
        type("Own", (nn.BatchNorm2d,), {})(4),
    ],
    ids=str,
)
def test_a_norm_that_cannot_be_shared_is_refused_by_name(layer):
    said = refused(share_statistics, nn.Sequential(nn.Conv2d(1, 4, 1), layer))
    assert said.startswith(f"the network's layer 1, {layer}, computes its statistics from the samples of one process")


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True)], ids=str)
def test_a_norm_over_each_sample_needs_no_sharing(layer):
    network = nn.Sequential(layer)
    share_statistics(network)
    assert network[0] is layer


@pytest.mark.parametrize("name", some(OTHERS, ["unetr"]))
def test_two_processes_train_as_one(slices, tmp_path, name):
    """In the last step the second process has no slice; UNETR has weights that no step uses."""
    number = len(Prepared.open(slices).dataset().indices("train"))
    size = next(size for size in range(3, number) if number % size == 1)
    recipe = SMALLEST[name].but(epochs=1, batch_size=size)
    train(slices, tmp_path / "one", recipe, device="cpu", threads=1)
    own = {key: value for key, value in recipe.stage("train").items() if value != Recipe.published.stage("train")[key]}
    words = [part for key, value in own.items() for part in ([flag(key)] if value is True else [flag(key), value])]
    done = command(2, "train", slices, tmp_path / "two", "--device", "cpu", *words)
    assert done.returncode == 0, done.stderr
    one, two = (load_checkpoint(tmp_path / run / LATEST)["progress"]["history"][0] for run in ("one", "two"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-2)


# What is shown


def test_the_levels_of_any_network_are_the_sizes_of_its_maps():
    network = build_network(TINY.but(network="dynunet", width=4, depth=3, image_size=48)).train()
    expected = [(f"level {level}", (4 * 2**level, 48 >> level, 48 >> level)) for level in range(4)]
    assert level_shapes(network, 48) == [*expected, ("logits", (1, 48, 48))]
    assert network.training
    assert level_shapes(nn.Linear(3, 3)) == []


@pytest.mark.parametrize(
    "recipe", [*SMALLEST.values(), VOLUMES["dynunet"]], ids=lambda one: f"{one.network} {one.dims}"
)
def test_the_architecture_of_another_network_is_drawn_by_its_levels(recipe):
    network = build_network(recipe)
    figure = plots.architecture_figure(network, recipe.image_size)
    title, *_ = figure.get_suptitle().split(";")  # then how it pads
    assert title == f"{OTHERS[recipe.network].kind}: {parameter_count(network):,} parameters"
    shown = [text.get_text() for text in figure.axes[0].texts]
    for name, (channels, *sides) in level_shapes(network, recipe.image_size):
        assert str(channels) in shown
        assert f"{name}\n{' x '.join(map(str, sides))}" in shown


def test_the_architecture_of_a_network_that_pads_keeps_its_boxes_off_their_names():
    network = build_network(SMALLEST["swin-unetr"])
    figure = plots.architecture_figure(network, 50)
    assert figure.get_suptitle().endswith("parameters; 50 padded to 64")
    (axes,) = figure.axes
    names = [text.get_position()[1] for text in axes.texts if "\n" in text.get_text()]
    assert names
    assert max(names) < min(box.get_y() for box in axes.patches)


def test_the_card_and_figures_of_a_run_name_its_network(runs, tmp_path):
    text = write_card(runs("dynunet"), tmp_path / "card", device="cpu").read_text(encoding="utf-8")
    line = " ".join(text.split())
    network, _, _ = Run(runs("dynunet")).load()
    assert line.startswith("# Model card: the network dynunet that outlines brain tumours")
    assert (
        "The 2D network `dynunet` (`monai.networks.nets.dynunet.DynUNet` of monai 1.6.1) of width 4 and depth 3" in line
    )
    assert f"{parameter_count(network):,} parameters" in line
    assert OTHERS["dynunet"].source in line
    assert "--network dynunet" in line
    assert "--deep-supervision" in line
    names = [path.name for path in plots.make_figures(runs("dynunet"), tmp_path / "figures", "cpu")]
    assert "architecture.png" in names


def test_the_command_lists_every_network_with_what_it_costs_here(capsys):
    main(["networks", "--image-size", "33"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:-3]}
    assert set(rows) == {"unet", *OTHERS}
    for name, (width, depth, parameters, gflop, milliseconds) in rows.items():
        network = build_network(Recipe(network=name, width=int(width), depth=int(depth), image_size=33))
        assert int(parameters.replace(",", "")) == parameter_count(network)
        assert float(gflop) > 0
        assert float(milliseconds) > 0
    assert "measured now on one core" in " ".join(lines)


def test_operations_are_those_of_the_convolutions():
    """Forward, and twice as many backward but for the first layer, whose input needs no gradient."""
    register_network(
        "flat", lambda recipe, before, after: nn.Sequential(nn.Conv2d(before, 5, 3, padding=1), nn.Conv2d(5, after, 1))
    )
    row = measure(SMALL.but(network="flat"), batch=4, repeats=1)
    first, last = 2 * 32 * 32 * 9 * 5, 2 * 32 * 32 * 5
    assert row.gflop == pytest.approx((2 * first + 3 * last) / 1e9)
    assert row.parameters == 5 * 9 + 5 + 5 + 1


def test_the_list_names_what_cannot_be_made_with_the_reason(without):
    without("monai")
    rows = {row.network: row for row in network_costs(32)}
    assert rows["unet"].parameters == 7_849_025
    assert all("pip install" in rows[name].note for name in set(OTHERS) - {"swin-unetr"})
    assert "more than 32" in rows["swin-unetr"].note
    assert "pip install" in costs_table(32)


@pytest.mark.parametrize(("words", "told"), [(["--dims", "3"], "about 3 minutes"), ([], None)])
def test_what_takes_minutes_says_so_before_it_begins(monkeypatch, capsys, words, told):
    monkeypatch.setattr("unetlib.engine.costs.costs_table", lambda *_: "the table")
    main(["networks", *words])
    *before, table = capsys.readouterr().out.splitlines()
    assert table == "the table"
    assert [told in line for line in before] == [True] * bool(told)


def test_the_help_of_the_command_names_every_network(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    assert all(name in said for name in OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_the_name_of_a_network_of_the_library_is_not_given_away(name):
    assert f"there is a network named '{name}' already" in refused(register_network, name, lambda *_: None)


def test_a_network_for_which_there_is_too_little_memory_is_not_measured(monkeypatch):
    monkeypatch.setattr("unetlib.engine.costs.available_bytes", lambda device: 10**8)
    for row in network_costs(64, 3):
        assert re.fullmatch(r"a step needs about \d+\.\d GB of memory, and 0\.1 GB are free\.", row.note)
        assert row.milliseconds is None
