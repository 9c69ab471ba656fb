"""Whole volumes for 3-D networks: along z, in training, in prediction, and how much memory they need."""

import re
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from tests.conftest import BEST, LATEST, LPS, as_cases, write_patient
from tests.test_parallel import command
from unetlib.augment import change
from unetlib.cli import main
from unetlib.data.depth import Cube
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.data.slices import Window, image_to_slices, mask_shares
from unetlib.engine import memory
from unetlib.engine.device import precision_of, resolve_precision
from unetlib.engine.memory import step_bytes
from unetlib.evaluation.evaluate import evaluate
from unetlib.networks import build_network, register_network
from unetlib.pipeline import run_recipe
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Predictor
from unetlib.recipe import Recipe
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.show.card import write_card
from unetlib.show.plots import make_figures
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv, read_json
from unetlib.unet import UNet

SMALL = Recipe.volume.but(
    image_size=32, width=2, depth=2, epochs=2, train_fraction=0.6, mirror=False, tune=False, precision="fp32"
)
SPACINGS = [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0), (1.0, 2.0, 3.0), (2.0, 1.0, 0.7)]


def head(spacing, size=160.0, tall=140.0, radius=25.0, centre=(20.0, -15.0, 10.0)):
    """Return an ellipsoid head, and a ball in it as the tumour: (X, Y, Z) each, in 200 mm of air."""
    sides = [round(200 / one) for one in spacing]
    x, y, z = np.meshgrid(*((np.arange(n) + 0.5) * s - 100 for n, s in zip(sides, spacing, strict=True)), indexing="ij")
    inside = (x / size) ** 2 + (y / size) ** 2 + (z / tall) ** 2 <= 0.25
    ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= radius**2
    return np.where(inside, 100.0, 0.0) + 60.0 * ball, ball


def to_cube(voxels, mask, spacing, recipe):
    cube = Cube.of(voxels, recipe, spacing)
    return cube, cube.planes(mask_shares(mask, recipe, window=cube.window))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_ball_stays_a_ball_of_its_volume_whatever_the_voxels(spacing):
    voxels, ball = head(spacing)
    recipe = SMALL.but(image_size=96)
    cube, shares = to_cube(voxels, ball, spacing, recipe)
    small = shares[0].numpy() >= 0.5
    width = cube.window.side * spacing[0] / 96
    assert small.sum() * width**3 == pytest.approx(ball.sum() * np.prod(spacing), rel=0.04)
    spans = [np.ptp(at) + 1 for at in np.nonzero(small)]  # along z, y, x
    assert max(spans) - min(spans) <= max(2, np.ceil(2 * max(spacing) / width))  # the ball has edges of whole voxels
    spread = [np.std(at) for at in np.nonzero(small)]
    assert max(spread) / min(spread) < 1.04
    assert spread[0] * width == pytest.approx(25 / 5**0.5, rel=0.05)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_there_and_back_a_smooth_volume_and_the_volume_of_a_mask_are_kept(spacing):
    voxels, ball = head(spacing)
    smooth = ndimage.gaussian_filter(voxels, [8 / one for one in spacing])
    recipe = SMALL.but(image_size=96)
    cube = Cube.of(voxels, recipe, spacing)
    slices = image_to_slices(smooth, recipe, window=cube.window)
    back = cube.back(cube.planes(slices))
    assert back.shape == slices.shape
    inner = slice(max(cube.bottom, 0) + 2, min(cube.bottom + cube.height, cube.slices) - 2)
    assert (back - slices)[inner].abs().max() < 0.05
    shares = mask_shares(ball, recipe, window=cube.window)
    assert (cube.back(cube.planes(shares)) >= 0.5).sum() == pytest.approx(int((shares >= 0.5).sum()), rel=0.03)


@pytest.mark.parametrize(("number", "side"), [(20, 32), (64, 32), (155, 96), (33, 32)])
def test_along_z_each_plane_is_a_weighted_mean_of_its_slices(number, side):
    """Against the definition: weights fall linearly with the distance, to 0 at one plane or one slice."""
    slices = torch.from_numpy(np.random.default_rng(0).random((number, 1, side, side)).astype(np.float32))
    cube = Cube(Window(0, 0, side), 0, number, number)
    step = number / side
    centres = (np.arange(side)[:, None] + 0.5) * step - 0.5
    weights = (1 - abs(centres - np.arange(number)) / max(step, 1)).clip(0)
    expected = np.einsum("pz,zcyx->cpyx", weights / weights.sum(1, keepdims=True), slices.numpy())
    np.testing.assert_allclose(cube.planes(slices), expected, atol=1e-5)
    zoomed = ndimage.zoom(slices.numpy()[:, 0], (side / number, 1, 1), order=1, grid_mode=True, mode="nearest")
    if number <= side:  # without a filter both are the same
        np.testing.assert_allclose(cube.planes(slices)[0], zoomed, atol=1e-5)


def test_a_head_is_centred_and_one_with_its_neck_ends_with_its_top():
    voxels, _ = head((1.0, 1.0, 2.0), size=160, tall=120)
    cube = Cube.of(voxels, SMALL, (1.0, 1.0, 2.0))
    inside = np.flatnonzero((voxels > voxels.mean()).mean((0, 1)) >= 0.01)
    below, above = inside[0] - cube.bottom, cube.bottom + cube.height - (inside[-1] + 1)
    assert cube.height * 2 == pytest.approx(cube.window.side, abs=2)
    assert abs(below - above) <= 1
    assert below > 0
    with_neck = voxels.copy()
    with_neck[60:140, 60:140, : len(inside) // 2] = 100  # down to the feet
    taller = Cube.of(np.pad(with_neck, ((0, 0), (0, 0), (40, 0)), mode="edge"), SMALL, (1.0, 1.0, 2.0))
    top = np.flatnonzero((with_neck > with_neck.mean()).mean((0, 1)) >= 0.01)[-1] + 1 + 40
    assert taller.bottom + taller.height == top
    assert taller.height == cube.height


def test_beyond_the_volume_the_cube_is_0_and_so_is_the_way_back():
    voxels, _ = head((1.0, 1.0, 1.0), tall=160)
    voxels = voxels[:, :, 80:120]  # a thin slab
    cube = Cube.of(voxels, SMALL, (1.0, 1.0, 1.0))
    planes = cube.planes(image_to_slices(voxels, SMALL, window=cube.window))
    seen = planes[0].flatten(1).any(1)
    assert 0 < seen.sum() < 32 * 60 / cube.height
    assert not seen[0]
    assert not seen[-1]
    long = Cube(cube.window, 10, 20, 40)
    assert not long.back(torch.ones(1, 32, 32, 32))[:10].any()
    assert long.back(torch.ones(1, 32, 32, 32))[10:30].all()
    assert not long.back(torch.ones(1, 32, 32, 32))[30:].any()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    for index in range(6):
        write_patient(folder / "data", index)
    return prepare(folder / "data", folder / "prepared", SMALL)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("run") / "run")
    run_recipe(SMALL.but(tune=True, mirror=True), data.folder, run, part="test", device="cpu", threads=1)
    return run


def test_a_prepared_folder_holds_one_cube_of_each_case(data):
    assert data.images.shape == data.masks.shape == (6, 1, 32, 32, 32)
    assert (data.images.dtype, data.masks.dtype) == (np.float16, np.uint8)
    assert "6 volumes of 6 cases (32 x 32 x 32 voxels)" in str(data)
    assert "(1 volume)" in str(data)
    rows = read_csv(data.folder / "slices.csv")
    assert [row["z"] for row in rows] == ["-1"] * 6
    assert all(int(row["tumour_pixels"]) == mask.sum() for row, mask in zip(rows, data.masks, strict=True))
    images, masks = data.dataset().batch(np.array([0, 3]))
    assert images.shape == masks.shape == (2, 1, 32, 32, 32)


def test_killed_and_resumed_it_ends_with_the_same_bits(data, run, tmp_path, capsys):
    recipe, again = SMALL.but(tune=True, mirror=True), tmp_path / "again"
    for steps in (1, 3, None):
        train(data, again, recipe, "cpu", threads=1, max_steps=steps)
    for name in (BEST, LATEST):
        one, other = (torch.load(folder / name)["model"] for folder in (again, run.folder))
        assert all(torch.equal(one[key], other[key]) for key in one)
    said = capsys.readouterr().out.splitlines()
    assert f"{again}: a step on 1 volume (1 x 32 x 32 x 32) needs about" in said[0]
    assert f"{again}: 4 training volumes, 4 steps an epoch" in said[1]


def test_evaluated_predicted_and_shown_as_a_2d_run_is(data, run, tmp_path):
    summary = read_json(run.evaluation / "summary.json")
    assert summary["slices"] == 6
    assert {entry["grid"] for entry in summary["figures"]} == {"model", "native"}
    image = next((data.data).glob("*/*flair.nii.gz"))
    (mask,) = predict(run, [image], tmp_path / "out", device="cpu", threads=1)
    assert nib.load(mask).shape == (40, 48, 6)
    assert {path.name for path in make_figures(run, device="cpu")} >= {"architecture.png", "overlays.png"}
    page = write_card(run, device="cpu").read_text()
    assert "A 3D U-Net" in page
    assert "32 x\n32 x 32 voxels" in page
    assert "prepared volumes" in page
    assert "unetlib prepare DATA PREPARED --recipe published --dims 3" in page


def test_a_prediction_is_the_networks_on_the_cube_taken_back(data, run):
    predictor = Predictor.open(run, "cpu", threads=1)
    voxels = np.random.default_rng(0).random((20, 24, 9))
    network, recipe, _ = run.load()
    cube = Cube.of(voxels, recipe, (1.0, 1.0, 2.0))
    planes = cube.planes(image_to_slices(voxels, recipe, window=cube.window))[None]
    with torch.inference_mode():
        one, other = (torch.sigmoid(network(images)) for images in (planes, planes.flip(-1)))
    expected = cube.back(((one + other.flip(-1)) / 2)[0])
    torch.testing.assert_close(predictor.all_slices(voxels, (1.0, 1.0, 2.0)), expected, atol=1e-5, rtol=0)
    assert predictor.volume(voxels, (1.0, 1.0, 2.0)).shape == (1, 20, 24, 9)
    with pytest.raises(UnetlibError, match="needs the size of the voxels in millimetres"):
        predictor.volume(voxels)
    for spacing in [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 1.0, 1e-3)]:
        with pytest.raises(UnetlibError, match="three sizes, the longest at most 32 times the shortest"):
            predictor.volume(voxels, spacing)


def test_several_sequences_regions_and_members(tmp_path):
    for index in range(6):
        write_patient(tmp_path / "data", index)
    for folder in (tmp_path / "data").iterdir():
        image, seg = (nib.load(folder / f"{folder.name}_{kind}.nii.gz") for kind in ("flair", "seg"))
        labels = np.asarray(seg.dataobj).copy()
        labels[:, :24][labels[:, :24] > 0] = 1
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), LPS), folder / f"{folder.name}_t1.nii.gz")
        nib.save(nib.Nifti1Image(labels, LPS), folder / f"{folder.name}_seg.nii.gz")
    recipe = SMALL.but(
        modalities="flair t1", regions="whole enhancing", labels="brats2021", drop_modalities=0.5, members=2, epochs=1
    )
    found = run_recipe(recipe, tmp_path / "p", tmp_path / "run", tmp_path / "data", "test", "cpu", 1)
    images, masks = found.prepared.dataset().batch(np.arange(6))
    assert images.shape == masks.shape == (6, 2, 32, 32, 32)
    assert (masks[:, 1] <= masks[:, 0]).all()
    assert masks[:, 1].any()
    assert {entry["region"] for entry in found.summary["figures"]} == {"whole", "enhancing"}


def test_runs_of_both_kinds_are_averaged_where_they_see_the_same_pixels(data, run, tmp_path):
    flat = SMALL.but(dims=2, epochs=1)
    train(prepare(data.data, tmp_path / "flat", flat), tmp_path / "run", flat, "cpu", threads=1)
    both, voxels = (
        Predictor.open([tmp_path / "run", run], "cpu", threads=1),
        np.random.default_rng(0).random((20, 24, 9)),
    )
    single = [one.volume(voxels, (1.0, 1.0, 3.0)) for one in both.members]
    np.testing.assert_allclose(both.volume(voxels, (1.0, 1.0, 3.0)), np.mean(single, axis=0), atol=1e-6)
    with pytest.raises(UnetlibError, match="no square pixels, so 2-D and 3-D networks see different"):
        both.volume(voxels, (1.0, 2.0, 3.0))
    evaluate([tmp_path / "run", run], device="cpu", threads=1)
    wide = SMALL.but(image_size=64, dims=2, epochs=1)
    train(prepare(data.data, tmp_path / "wide", wide), tmp_path / "other", wide, "cpu", threads=1)
    with pytest.raises(UnetlibError, match="image_size: 32 -> 64"):
        Predictor.open([run, tmp_path / "other"], "cpu")


def test_all_planes_of_a_volume_change_alike():
    rng = np.random.default_rng(0)
    plane = torch.from_numpy(rng.random((3, 1, 1, 32, 32)).astype(np.float32))
    mask = (plane > 0.5).float()
    images, masks = plane.repeat(1, 2, 8, 1, 1), mask.repeat(1, 1, 8, 1, 1)
    recipe = SMALL.but(intensity=False)
    for step in range(6):
        found, marks = change(images, masks, recipe, 0, step)
        assert found.shape == images.shape
        assert marks.shape == masks.shape
        assert (found == found[:, :1, :1]).all()
        assert (marks == marks[:, :, :1]).all()
        flat, marked = change(plane[:, 0], mask[:, 0], recipe, 0, step)
        assert torch.equal(found[:, 0, 3], flat[:, 0])
        assert torch.equal(marks[:, 0, 5], marked[:, 0])
    z = torch.arange(8.0)[:, None, None].expand(3, 1, 8, 32, 32) / 8
    (found, _), plain = change(z, masks, SMALL.but(intensity=False, warp=False), 0, 0), z
    assert torch.equal(found, plain), "planes stay in order"


def test_a_hidden_sequence_is_hidden_in_the_whole_volume():
    recipe = SMALL.but(modalities="flair t1", drop_modalities=0.9)
    found, _ = change(torch.ones(4, 2, 8, 16, 16), torch.zeros(4, 1, 8, 16, 16), recipe, 0, 0)
    seen = (found != 0).flatten(2).float().mean(2)
    assert set(torch.unique(seen == 0, dim=1).flatten().tolist()) == {True, False}
    assert ((seen == 0).sum(1) == 1).any()
    assert (seen > 0).any(1).all()


def test_the_memory_of_a_step_is_that_of_the_tensors_it_keeps():
    network, numbers = nn.Conv3d(2, 3, 3, padding=1, bias=False), 8 * 9 * 10
    weights = 4 * 2 * 3 * 27
    image = 4 * 2 * numbers  # all that a convolution keeps besides its weights
    assert step_bytes(network, (1, 2, 8, 9, 10)) == 4 * weights + image + 3 * image
    assert step_bytes(network, (2, 2, 8, 9, 10), 5) == 5 * weights + 2 * image + 3 * 2 * image
    twice = nn.Sequential(network, nn.ReLU(inplace=True), nn.Conv3d(3, 1, 1))
    hidden = 4 * 3 * numbers  # kept once, by ReLU and by the second convolution
    assert step_bytes(twice, (1, 2, 8, 9, 10)) == 4 * (weights + 16) + image + hidden + 3 * hidden
    assert network.weight.device.type == "cpu"
    assert network.weight.grad is None


class Numbers(nn.Module):
    """Does what needs numbers, so that its memory cannot be told."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale if x.sum().item() else x


def test_a_network_that_needs_numbers_does_not_tell_its_memory():
    assert step_bytes(Numbers(), (1, 1, 8, 8, 8)) is None


def test_memory_that_a_step_cannot_have_is_said_before_it_starts(data, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**8)
    with pytest.raises(UnetlibError, match=r"needs about 0\.\d GB of memory, and cpu has 0.1 GB. Choose a smaller --w"):
        train(data, tmp_path / "run", SMALL, "cpu", threads=1)
    assert not (tmp_path / "run" / "recipe.json").exists()


@pytest.mark.parametrize(
    ("side", "depth", "safe"), [(32, 4, "fp32"), (32, 3, "bf16"), (64, 5, "fp32"), (96, 4, "bf16")]
)
def test_the_smallest_maps_of_volumes_are_computed_in_fp32(monkeypatch, side, depth, safe):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    recipe = Recipe.volume.but(image_size=side, depth=depth)
    assert precision_of(recipe, torch.device("cpu")) == safe
    assert precision_of(recipe.but(precision="fp32"), torch.device("cpu")) == "fp32"
    assert precision_of(recipe.but(precision="bf16"), torch.device("cuda")) == "bf16"
    if safe == "fp32":
        with pytest.raises(UnetlibError, match=r"wrong gradients in bf16 on a CPU\. Choose --precision fp32"):
            precision_of(recipe.but(precision="bf16"), torch.device("cpu"))


def test_a_training_on_the_smallest_maps_is_one_in_fp32(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    train(data, tmp_path / "run", SMALL.but(depth=4, epochs=1, precision="auto"), "cpu", threads=1)
    assert Run(tmp_path / "run").recipe.precision == "fp32"
    assert Run(tmp_path / "run").provenance["sessions"][0]["precision"] == "fp32"


@pytest.mark.skipif(resolve_precision("auto", torch.device("cpu")) != "bf16", reason="this processor has no bf16")
@pytest.mark.parametrize(("dims", "side"), [(2, 4), (2, 6), (3, 4), (3, 6)])
def test_gradients_in_bf16_are_near_those_in_fp32(dims, side):
    """Also where freed memory holds large numbers, which a faulty kernel would read."""
    torch.manual_seed(0)
    layer, shape = (nn.Conv2d, nn.Conv3d)[dims - 2](16, 32, 3, padding=1), dims * [side]
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    image, slope = torch.randn(2, 16, *shape).to(memory_format=layout), torch.randn(2, 32, *shape)
    layer.to(memory_format=layout)
    (expected,) = torch.autograd.grad(layer(image), layer.weight, slope)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(image)
    for size in range(10, 22):
        torch.full((2**size,), 1e30)
    (found,) = torch.autograd.grad(out, layer.weight, slope.to(out.dtype))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_only_what_can_be_smaller_is_said_to_need_less_memory(data, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**8)
    with pytest.raises(UnetlibError, match=r"has 0.1 GB. Choose a smaller --width \(now 2\) or a machine with more"):
        train(data, tmp_path / "run", SMALL.but(batch_size=1), "cpu", threads=1)
    needed = partial(
        memory.require_memory, "run", SMALL.but(batch_size=9, image_size=64), (1, 64, 64, 64), 1, 2, torch.device("cpu")
    )
    with pytest.raises(UnetlibError, match=r"--batch-size \(now 2\) or .* or smaller volumes .*, now 64\) or a"):
        needed()
    least = SMALL.but(batch_size=1, network="segresnet", width=8)
    with pytest.raises(UnetlibError, match=r"has 0.1 GB. Choose a machine with more memory\.$"):
        memory.require_memory("run", least, (1, 32, 32, 32), 1, 2, torch.device("cpu"))


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    needed = partial(memory.require_memory, "run", SMALL.but(batch_size=2), (1, 32, 32, 32), 1, 9)
    alone = memory.step_bytes(UNet(width=SMALL.width, depth=SMALL.depth, dims=3), (1, 1, 32, 32, 32)) + memory.SPARE
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(1.5 * alone))
    monkeypatch.setattr(memory, "process_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # each on a machine of its own
    assert "of memory; cpu has" in needed(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UnetlibError, match=r"GB of memory in each of 2 processes, .*\(now 2\) in fewer processes or"):
        needed(torch.device("cpu"))
    assert "processes" not in needed(torch.device("meta"))  # as a GPU: each has its own


def test_a_finished_training_needs_no_memory(data, run, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**8)
    kept = Run(run).recipe
    train(data, run, kept.but(mirror=True), "cpu")
    train(data, run, kept, "cpu")


def test_memory_that_pytorch_keeps_for_reuse_is_free(monkeypatch):
    for name, number in (("mem_get_info", (10, 100)), ("memory_reserved", 70), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, number=number: number)
    assert memory.available_bytes(torch.device("cuda")) == 10 + 50


def test_weights_too_large_for_the_memory_are_refused_before_they_are_made(data, tmp_path, monkeypatch):
    monkeypatch.setattr("unetlib.runs.training.build_network", lambda *_: pytest.fail("made"))
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**10)
    with pytest.raises(UnetlibError, match=r"a step on 1 volume .* needs about \d\d\.\d GB of memory"):
        train(data, tmp_path / "run", SMALL.but(width=512, depth=3), "cpu", threads=1)


def test_a_batch_needs_the_memory_of_the_volumes_that_there_are(data, tmp_path, capsys):
    train(data, tmp_path / "run", SMALL.but(batch_size=1024, epochs=1), "cpu", threads=1)
    assert "a step on 4 volumes (1 x 32 x 32 x 32) needs" in capsys.readouterr().out


def test_files_that_were_read_do_not_count_as_taken_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    for name, content in (("max", "4000000\n"), ("current", "3900000\n"), ("stat", "anon 1\ninactive_file 3000000\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert memory.available_bytes(torch.device("cpu")) == 3_100_000
    (tmp_path / "memory.stat").unlink()
    assert memory.available_bytes(torch.device("cpu")) == 100_000


def test_available_memory_is_what_the_system_says_in_kb(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 2000 kB\n")
    assert memory.available_bytes(torch.device("cpu")) == 2_048_000


def test_cases_without_a_true_voxel_size_are_refused_with_the_reason(data, run, tmp_path, capsys):
    kaggle = [f"TCGA_CS_{number}_19960909" for number in (4941, 4942)]
    mixed = as_cases(data.data, tmp_path / "mixed", [*kaggle, *(f"BraTS2021_{n:05d}" for n in range(4))])
    found = prepare(mixed, tmp_path / "prepared", SMALL)
    assert {*found.about["left_out"]} == set(kaggle)
    assert len(found.images) == 4
    assert "1 mm is only the nominal voxel size" in found.about["left_out"][kaggle[0]]
    alone = as_cases(data.data, tmp_path / "alone", [f"TCGA_CS_{number}_19960909" for number in range(4941, 4945)])
    with pytest.raises(UnetlibError, match="nominal voxel size of TCGA-LGG"):
        prepare(alone, tmp_path / "none", SMALL)
    with pytest.raises(UnetlibError, match="nominal voxel size of TCGA-LGG"):
        predict(run, [alone], tmp_path / "out", device="cpu")
    flair = next(alone.rglob("*_flair.nii.gz"))
    for image in (flair, {"flair": flair}):
        with pytest.raises(UnetlibError, match="nominal voxel size of TCGA-LGG"):
            predict(run, [image], tmp_path / "out", device="cpu")
    assert not [*(tmp_path / "out").glob("*.nii.gz")]
    with pytest.raises(UnetlibError, match="no case can be scored"):
        evaluate(run, alone, "all", device="cpu")
    assert "nominal voxel size of TCGA-LGG" in capsys.readouterr().out
    assert len(prepare(alone, tmp_path / "slices", SMALL.but(dims=2)).about["cases"]) == 4


def test_large_volumes_are_said_before_they_fill_the_disk(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unetlib.data.prepare._run", lambda *_: dict.fromkeys(data.about["cases"], "not read"))
    for side in (32, 512):
        with pytest.raises(UnetlibError, match="no case can be used"):
            prepare(data.data, tmp_path / f"{side}", SMALL.but(image_size=side))
    told = [line for line in capsys.readouterr().out.splitlines() if " GB " in line]
    size = "2.4 GB on the disk, twice that while they are made"  # 6 x 512^3 x 3 bytes
    assert told == [f"{tmp_path / '512'}: the volumes of 6 cases will take {size}."]


def test_a_tumour_outside_the_cube_is_said(tmp_path, capsys):
    for index in range(4):
        name, folder = f"BraTS2021_{index:05d}", tmp_path / "data" / f"BraTS2021_{index:05d}"
        folder.mkdir(parents=True)
        voxels = np.zeros((20, 20, 60), np.int16)
        voxels[4:16, 4:16, :] = 100 + np.random.default_rng(index).integers(0, 9, (12, 12, 60))
        mask = np.zeros(voxels.shape, np.uint8)
        mask[6:10, 6:10, 50:54] = 4
        mask[6:10, 6:10, 2:6] = 4 * (index == 1)
        mask[:, :, 50:] *= index != 2
        mask[6:10, 6:10, 0] = 4 * (index == 2)
        for kind, array in (("flair", voxels), ("seg", mask)):
            nib.save(nib.Nifti1Image(array, LPS), folder / f"{name}_{kind}.nii.gz")
    prepare(tmp_path / "data", tmp_path / "prepared", SMALL)
    said = capsys.readouterr().out
    assert "the tumour of 2 cases lies partly or wholly outside the cube" in said
    assert "BraTS2021_00001 50.0 %, BraTS2021_00002 100.0 %" in said


def test_on_the_command_line_dims_3_is_enough(data, tmp_path):
    main(["prepare", str(data.data), str(tmp_path / "p"), "--dims", "3", "--image-size", "32"])
    fields = Prepared.open(tmp_path / "p").about["recipe"]
    assert fields == Recipe.volume.but(image_size=32).stage("prepare")
    small = ["--depth", "2", "--width", "2", "--max-steps", "1", "--device", "cpu"]
    main(["train", str(tmp_path / "p"), str(tmp_path / "run"), *small])
    expected = Recipe.volume.but(image_size=32, width=2, depth=2, precision=Run(tmp_path / "run").recipe.precision)
    assert Run(tmp_path / "run").recipe == expected
    with pytest.raises(SystemExit, match=r"was expected for whole volumes .dims 3., as in --recipe volume"):
        main(["train", str(tmp_path / "p"), str(tmp_path / "strong"), "--recipe", "strong", *small])


def test_a_run_or_checkpoint_of_another_number_of_dimensions_is_refused(data, run, tmp_path):
    flat = SMALL.but(dims=2, epochs=1)
    slices = prepare(data.data, tmp_path / "flat", flat)
    with pytest.raises(UnetlibError, match=r"was trained on other prepared slices .*dims: 3 -> 2"):
        train(slices, run, flat.but(tune=True, mirror=True), "cpu")
    with pytest.raises(UnetlibError, match=r"has another network or other slices .*dims: 3 -> 2"):
        train(slices, tmp_path / "new", flat, "cpu", start_from=run)
    with pytest.raises(UnetlibError, match="dims: 2 -> 3"):
        train(data, tmp_path / "phantoms", SMALL, "cpu", start_from="phantoms")
    path, content = tmp_path / "odd", torch.load(run.best)
    path.mkdir()
    torch.save({**content, "recipe": {**content["recipe"], "dims": 2}}, path / BEST)
    with pytest.raises(UnetlibError, match="weights of another architecture"):
        Run(path).load()


def test_ones_own_volumes_of_another_shape_are_refused(data, tmp_path):
    class Own:
        name = "Own"

        def indices(self, part):
            return np.arange(2)

        def batch(self, indices):
            return torch.rand(len(indices), 1, 16, 32, 32), torch.zeros(len(indices), 1, 16, 32, 32)

    with pytest.raises(
        UnetlibError, match=r"its images are 1 x 16 x 32 x 32 .*image_size 32 and neighbours 0 .dims 3."
    ):
        train(Own(), tmp_path / "run", SMALL, "cpu")


def test_the_network_has_instance_norm_and_gives_every_voxel_a_logit():
    network = build_network(SMALL, 1, 2)
    kinds = {type(one) for one in network.modules()}
    assert nn.InstanceNorm3d in kinds
    assert not {nn.BatchNorm2d, nn.BatchNorm3d, nn.Conv2d} & kinds
    assert network(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)
    assert network.level_shapes(32, 16, 24)[1] == ("down 1", (4, 16, 8, 12))
    assert "x  96 x  96 x  96" in network.describe()
    alone = network(one := torch.rand(1, 1, 32, 32, 32))
    together = network(torch.cat([one, torch.rand(1, 1, 32, 32, 32)]))
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=0)


def test_two_processes_share_volumes_and_compute_what_one_does(data, tmp_path):
    """4 volumes in batches of 3: the last one, and each to validate on, leaves a process without any."""
    small = ["--recipe", "volume", "--width", 2, "--depth", 2, "--no-tune", "--epochs", 1, "--batch-size", 3]
    for processes in (1, 2):
        run = tmp_path / str(processes)
        done = command(processes, "train", data.folder, run, *small, "--precision", "fp32", "--device", "cpu")
        assert done.returncode == 0, done.stderr
    one, two = (read_csv(tmp_path / name / "history.csv", numbers=("train_loss", "val_loss")) for name in "12")
    for name in ("train_loss", "val_loss"):
        assert float(one[0][name]) == pytest.approx(float(two[0][name]), abs=1e-4)


def test_slices_and_volumes_are_not_confused_on_the_command_line(data, run, tmp_path):
    """Each end of training on the wrong one is refused before anything is written, with both kinds named."""
    flat, strong = tmp_path / "flat", Recipe.strong.but(image_size=32, width=2, depth=2, phantoms=False)
    slices = prepare(data.data, flat, strong)
    with pytest.raises(SystemExit, match=rf"one for whole volumes .dims 3., and {flat} holds slices"):
        main(["train", str(flat), str(tmp_path / "new"), "--recipe", "volume"])
    with pytest.raises(UnetlibError, match="one for whole volumes"):
        train(slices, tmp_path / "new", SMALL, "cpu")
    assert not (tmp_path / "new" / "recipe.json").exists()
    train(slices, tmp_path / "run", strong, "cpu", max_steps=1)
    with pytest.raises(SystemExit, match=rf"run sees slices, and {data.folder} holds volumes .dims 3.. Choose a new"):
        main(["train", str(data.folder), str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=re.escape(f"{run} sees volumes, and {flat} holds slices")):
        main(["train", str(flat), str(run)])


@pytest.mark.parametrize("given", [[5.0, 5.0, 6.0], np.array([5, 5, 6]), np.float32([5, 5, 6])])
def test_a_spacing_may_be_any_three_numbers(run, given):
    predictor, voxels = Predictor.open(run, "cpu"), np.random.default_rng(0).random((30, 40, 9))
    np.testing.assert_array_equal(predictor.volume(voxels, given), predictor.volume(voxels, (5.0, 5.0, 6.0)))


@pytest.mark.parametrize("given", ["abc", 1.0, (1, None, 1), (1, 1), (1, 1, 0), (1, float("nan"), 1), [[1, 1, 1]] * 3])
def test_another_spacing_is_refused(run, given):
    with pytest.raises(UnetlibError, match="three sizes, the longest at most 32 times the shortest, were expected"):
        Predictor.open(run, "cpu").volume(np.ones((30, 40, 9)), given)


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 4, 0), (2, 4, 4, 4)])
def test_a_volume_without_voxels_is_refused(run, shape):
    with pytest.raises(UnetlibError, match=r"a volume of shape .* was given"):
        Predictor.open(run, "cpu").volume(np.ones(shape), (1, 1, 1))


def test_planes_are_not_taken_for_volumes(run):
    with pytest.raises(UnetlibError, match=r"\(2, 1, 32, 32\) was given to a network for volumes; \(N, C, S, S, S\)"):
        Predictor.open(run, "cpu").slices(torch.rand(2, 1, 32, 32))


def test_a_case_that_only_this_network_cannot_use_is_named_and_does_not_stop_the_others(data, run, tmp_path, capsys):
    """Thick slices for a 3-D network; pixels that are not square for one of each kind together."""
    train(
        prepare(data.data, tmp_path / "flat", SMALL.but(dims=2)), tmp_path / "run", SMALL.but(dims=2, epochs=1), "cpu"
    )
    for index, sizes in enumerate([(1, 1, 50), (1, 3, 1), (5, 5, 6)]):
        write_patient(tmp_path / "odd", index + 7, affine=np.diag([-sizes[0], -sizes[1], sizes[2], 1.0]))
    thick, oblong, good = (tmp_path / "odd" / f"BraTS2021_{index:05d}" for index in (7, 8, 9))
    for runs, refused in (([run], [thick]), ([tmp_path / "run", run], [thick, oblong])):
        with pytest.raises(UnetlibError, match=f"{len(refused)} of 3 images got no mask") as error:
            predict(runs, [thick, oblong, good], tmp_path / str(len(runs)), device="cpu")
        assert all(one.name in str(error.value) for one in refused)
        masks = {path.name for path in (tmp_path / str(len(runs))).iterdir()}
        assert masks == {f"{one.name}_mask.nii.gz" for one in {thick, oblong, good} - {*refused}}
        left_out = evaluate(runs, tmp_path / "odd", "all", device="cpu")["left_out"]
        assert {*left_out} == {one.name for one in refused}


class Planes(nn.Module):
    """Sees each plane of a volume alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


class Bias(nn.Module):
    """Keeps nothing for the backward pass."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.bias


@pytest.mark.parametrize("kind", [Planes, Bias])
def test_ones_own_network_of_any_layers_sees_volumes(data, tmp_path, kind):
    register_network(kind.__name__, lambda recipe, before, after: kind())
    state = train(data, tmp_path / "run", SMALL.but(network=kind.__name__, epochs=1, loss="bce"), "cpu", threads=1)
    assert state.epoch == 1


def test_weights_lie_as_convolutions_read_them_fastest():
    for recipe, kind in ((SMALL, torch.channels_last_3d), (SMALL.but(dims=2), torch.channels_last)):
        weights = [one for one in build_network(recipe, 2).parameters() if one.dim() == recipe.dims + 2]
        assert len(weights) > 8
        assert all(one.is_contiguous(memory_format=kind) for one in weights)
