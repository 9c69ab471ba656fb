"""Laws that hold for whatever is put in: figures, surfaces, symmetries, resampling, orientations, patients.

The laws of losses, files, recipes and chance, and the simpler ones of figures and splits, stand beside the
examples of those modules. `make test-long` tries 1000 examples of each.
"""

import os
import random
import tempfile
from collections import defaultdict
from fractions import Fraction
from itertools import product
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import assume, given, note
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lightning_fabric import Fabric
from monai.metrics import compute_confusion_matrix_metric, get_confusion_matrix
from scipy import ndimage
from scipy.spatial.transform import Rotation
from surface_distance import metrics as surface

from tests.oracles import count_slices as count
from tests.test_metrics import MONAI, NAMES, counts, masks
from unetlib.augment import apply_symmetries, augment
from unetlib.data.patients import find_cases
from unetlib.data.slices import image_to_slices, mask_to_slices, slices_to_volume
from unetlib.data.split import PARTS, make_split
from unetlib.data.volumes import MAX_VALUE, Source, read_volume
from unetlib.metrics import METRICS, Counts, bootstrap_interval, surface_figures
from unetlib.prediction.decision import Decision
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Predictor, Trained
from unetlib.recipe import Recipe

seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
sizes = st.integers(3, 48)
signs = st.tuples(*[st.sampled_from([-1, 1])] * 3)


def small(size):
    """The published recipe on another grid."""
    return Recipe(image_size=size, depth=1)


def values(c):
    return [getattr(c, name).tolist() for name in NAMES]


# Figures


@pytest.mark.parametrize("name", METRICS)
@given(pair=masks())
def test_a_figure_is_that_of_the_sets_of_pixels_and_of_the_rule_for_0_by_0(name, pair):
    p, t = (set(map(tuple, np.argwhere(mask))) for mask in pair)
    healthy = set(np.ndindex(pair[0].shape)) - t
    above, below = {
        "dice": (2 * len(p & t), len(p) + len(t)),
        "iou": (len(p & t), len(p | t)),
        "accuracy": (len(p & t) + len(healthy - p), pair[0].size),
        "precision": (len(p & t), len(p)),
        "recall": (len(p & t), len(t)),
        "specificity": (len(healthy - p), len(healthy)),
        "f1": (2 * len(p & t), len(p) + len(t)),
    }[name]
    expected = Fraction(above, below) if below else int(p == t)
    assert float(METRICS[name](count(*pair).sum())) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.filterwarnings("ignore:monai:FutureWarning")
@pytest.mark.parametrize("name", METRICS)
@given(pair=masks())
def test_a_figure_of_any_masks_is_that_of_monai_and_undefined_where_that_is(name, pair):
    tensors = (torch.from_numpy(mask[:, None].astype(np.float32)) for mask in pair)
    oracle = compute_confusion_matrix_metric(MONAI[name], get_confusion_matrix(*tensors))[:, 0].numpy()
    assert METRICS[name](count(*pair), float("nan")) == pytest.approx(oracle, rel=1e-6, nan_ok=True)


@given(masks(), st.randoms(use_true_random=False))
def test_slices_in_another_order_have_their_counts_in_that_order(pair, random):
    order = random.sample(range(len(pair[0])), len(pair[0]))
    moved, c = count(*(mask[order] for mask in pair)), count(*pair)
    assert values(moved) == [[part[i] for i in order] for part in values(c)]


@given(counts(), st.data())
def test_the_pooled_counts_are_the_same_in_any_grouping_and_order(c, data):
    number = len(c.tp)
    keys = np.array(data.draw(st.lists(st.integers(0, 3), min_size=number, max_size=number)))
    order = data.draw(st.permutations(range(number)))
    cut = data.draw(st.integers(0, number))
    names, groups = c.grouped(keys)
    moved = Counts(*(getattr(c, name)[order] for name in NAMES))
    pieces = [Counts(*(getattr(c, name)[part] for name in NAMES)) for part in (slice(cut), slice(cut, None))]
    assert values(groups.sum()) == values(Counts.concatenate(pieces).sum()) == values(c.sum())
    moved_names, moved_groups = moved.grouped(keys[order])
    assert moved_names.tolist() == names.tolist()
    assert values(moved_groups) == values(groups)


@given(
    hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(0, 1)),
    seeds,
    st.floats(0.1, 10),
    st.floats(-5, 5),
)
def test_the_interval_of_figures_in_other_units_is_the_interval_in_those_units(figures, seed, factor, offset):
    low, high = bootstrap_interval(figures, seed, draws=200)
    expected = (factor * low + offset, factor * high + offset)
    assert bootstrap_interval(factor * figures + offset, seed, draws=200) == pytest.approx(expected, abs=1e-9)
    expected = (offset - high, offset - low)
    assert bootstrap_interval(offset - figures, seed, draws=200) == pytest.approx(expected, abs=1e-9)


# Surfaces


@st.composite
def bodies(draw):
    """A prediction and a truth, neither empty, and a spacing in millimetres."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    rng, share = np.random.default_rng(draw(seeds)), draw(st.sampled_from([0.1, 0.5, 0.9]))
    pair = [rng.random(shape) < share for _ in range(2)]
    assume(pair[0].any() and pair[1].any())
    return *pair, tuple(draw(st.floats(0.3, 5)) for _ in range(3))


def alike(found, expected, prediction, truth, spacing):
    """Whether two pairs of HD95 and surface Dice differ by rounding at the most.

    Where exactly 95 % of the surface ends at a distance, or a distance is exactly the tolerance, rounding
    decides on which side it falls; then the figures on both sides will do.
    """
    if found == pytest.approx(expected, rel=1e-6):
        return True
    distances = surface.compute_surface_distances(truth, prediction, spacing)
    hd95s = [surface.compute_robust_hausdorff(distances, percent) for percent in (95 - 1e-6, 95 + 1e-6)]
    dices = [surface.compute_surface_dice_at_tolerance(distances, mm) for mm in (2 - 1e-9, 2 + 1e-9)]
    return all(
        min(abs(one - side) for side in sides) <= 1e-6 * max(1, one)
        for one, sides in zip(found, (hd95s, dices), strict=True)
    )


@given(bodies())
def test_surface_figures_are_bounded_and_do_not_care_which_mask_is_the_truth(body):
    prediction, truth, spacing = body
    hd95, dice = surface_figures(prediction, truth, spacing)
    diagonal = np.linalg.norm(np.multiply(prediction.shape, spacing))
    assert 0 <= hd95 <= diagonal
    assert 0 <= dice <= 1
    assert alike(surface_figures(truth, prediction, spacing), (hd95, dice), *body)
    assert surface_figures(truth, truth, spacing) == (0, 1)


@given(bodies(), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_surface_figures_of_turned_and_mirrored_masks_are_the_same(body, axes, flips):
    prediction, truth, spacing = body
    turned = [np.flip(mask, np.flatnonzero(flips)).transpose(axes) for mask in (prediction, truth)]
    found = surface_figures(*turned, tuple(spacing[axis] for axis in axes))
    assert alike(found, surface_figures(*body), *body)


@given(bodies(), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=3))
def test_surface_figures_of_shifted_masks_are_the_same(body, margins):
    prediction, truth, spacing = body
    moved = [np.pad(mask, margins) for mask in (prediction, truth)]
    assert alike(surface_figures(*moved, spacing), surface_figures(*body), *body)


@given(bodies(), st.floats(0.1, 10))
def test_hd95_grows_with_the_spacing_and_surface_dice_with_the_tolerance(body, factor):
    prediction, truth, spacing = body
    hd95, dice = surface_figures(*body, tolerance=2.0)
    scaled = surface_figures(prediction, truth, tuple(factor * mm for mm in spacing), 2.0 * factor)
    assert alike((scaled[0] / factor, scaled[1]), (hd95, dice), *body)
    dices = [surface_figures(*body, tolerance=mm)[1] for mm in (0.0, 0.5, 1.0, 2.0, 4.0, 100.0)]
    assert dices == sorted(dices)
    assert dices[-1] == 1


# Symmetries


@given(st.integers(2, 6))
def test_two_symmetries_in_a_row_are_one_and_each_can_be_undone(size):
    tosses = [torch.tensor(toss).reshape(3, 1) for toss in product([False, True], repeat=3)]
    places = torch.arange(size * size).reshape(1, 1, size, size)
    images = {tuple(apply_symmetries(places, toss).ravel().tolist()) for toss in tosses}
    assert len(images) == 8
    for first in tosses:
        twice = {tuple(apply_symmetries(apply_symmetries(places, first), then).ravel().tolist()) for then in tosses}
        assert twice == images  # which hold the places as they were, too


@given(seeds, st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_a_pixel_of_the_mask_goes_where_the_pixel_of_the_image_goes(seed, epoch, step, slices, size):
    places = torch.arange(slices * size * size).reshape(slices, 1, size, size)
    masks = torch.rand(places.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    moved, moved_masks = augment(places.double(), masks, seed, epoch, step)
    assert torch.equal(moved_masks, masks.ravel()[moved.long()])
    assert torch.equal(moved.long() // size**2, places // size**2)  # and no pixel leaves its slice


# Resampling


def reach(shape, size):
    """How far a voxel's value can travel to the model's grid and back, in voxels."""
    return int(np.ceil(2 * max(1.0, max(shape[:2]) / size))) + 1


@given(shapes, sizes, seeds, st.sampled_from([0.05, 0.5, 0.95]))
def test_a_mask_comes_back_as_it_was_except_near_its_border(shape, size, seed, share):
    rng = np.random.default_rng(seed)
    corners = rng.random((3, 3, shape[2])) < share  # patches, so that there is an inside
    mask = corners[np.arange(shape[0]) * 3 // shape[0]][:, np.arange(shape[1]) * 3 // shape[1]]
    back = slices_to_volume(mask_to_slices(mask, small(size)), shape)[0] >= 0.5
    assert back.shape == shape
    padding = [((max(shape[:2]) - n) // 2, (max(shape[:2]) - n + 1) // 2) for n in shape[:2]]
    before, after = (np.pad(voxels, [*padding, (0, 0)]) for voxels in (mask, back))
    window = (*[2 * reach(shape, size) + 1] * 2, 1)
    assert after[ndimage.minimum_filter(before, window, mode="nearest")].all()
    assert not after[~ndimage.maximum_filter(before, window, mode="nearest")].any()


@given(shapes)
def test_the_padding_lies_half_on_either_side_and_is_cut_off_again(shape):
    side = max(shape[:2])
    assume(side >= 3)  # the model's grid is then that of the volume, and nothing is resampled
    padded = mask_to_slices(np.ones(shape, bool), small(side))
    for axis, n in ((0, shape[1]), (1, shape[0])):
        (found,) = np.nonzero(padded[0, 0].numpy().any(1 - axis))
        assert len(found) == n
        assert side - 1 - found[-1] - found[0] in (0, 1)
    assert slices_to_volume(padded, shape).min() == 1


@given(st.integers(2, 40), sizes, st.sampled_from([0, 1]))
def test_a_ramp_is_sampled_at_the_centres_of_the_pixels_and_comes_back_in_its_place(side, size, axis):
    ramp = np.moveaxis(np.broadcast_to(np.arange(side)[:, None, None], (side, side, 1)), 0, axis)
    slices, near = image_to_slices(ramp, small(size)), 0.1 * max(1, side / size)
    line = slices[0, 0].T.select(1 - axis, 0).numpy() * (side - 1)
    centres = (np.arange(size) + 0.5) * side / size - 0.5
    inner = np.minimum(centres, side - 1 - centres) >= max(1, side / size)
    np.testing.assert_allclose(line[inner], centres[inner], rtol=0, atol=near)
    back, edge = slices_to_volume(slices, ramp.shape)[0] * (side - 1), reach(ramp.shape, size)
    inner = (slice(edge, side - edge),) * 2
    np.testing.assert_allclose(back[inner], ramp[inner], rtol=0, atol=near)


@given(shapes, sizes, seeds)
def test_a_mask_is_cut_at_half_of_what_an_image_of_it_becomes(shape, size, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    assume((mask.any((0, 1)) & ~mask.all((0, 1))).all())  # else min-max has nothing to scale
    assert torch.equal(mask_to_slices(mask, small(size)).bool(), image_to_slices(mask, small(size)) >= 0.5)


@given(shapes, sizes, seeds)
def test_a_slice_is_prepared_alike_in_whatever_company(shape, size, seed):
    voxels = np.random.default_rng(seed).integers(-100, 900, shape)
    together = image_to_slices(voxels, small(size))
    alone = [image_to_slices(voxels[:, :, z : z + 1], small(size)) for z in range(shape[2])]
    assert torch.equal(together, torch.cat(alone))


@given(shapes, sizes, seeds, st.sampled_from([(0,), (1,), (0, 1)]))
def test_a_mirrored_volume_gives_mirrored_slices(shape, size, seed, axes):
    assume((shape[0] - shape[1]) % 2 == 0)  # else one side is padded by a pixel more
    voxels = np.random.default_rng(seed).integers(-100, 900, shape)
    there, back = (image_to_slices(v, small(size)) for v in (voxels, np.flip(voxels, axes)))
    np.testing.assert_allclose(back.flip([{0: 3, 1: 2}[axis] for axis in axes]), there, atol=1e-5)


LARGEST = {
    np.bool_: 1,
    np.uint8: 255,
    np.int16: 2**15 - 1,
    np.int32: 2**31 - 1,
    np.float32: MAX_VALUE,
    np.float64: MAX_VALUE,
}


@st.composite
def any_voxels(draw):
    """Finite voxels of any type and magnitude, around any value, (X, Y, Z)."""
    dtype = draw(st.sampled_from(sorted(LARGEST, key=str)))
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)))
    spread, centre = (draw(st.sampled_from([0, 1e-30, 1e-3, 1, 1e3, 1e9, MAX_VALUE])) for _ in range(2))
    low = 0 if dtype in (np.bool_, np.uint8) else -LARGEST[dtype]
    voxels = centre + spread * np.random.default_rng(draw(seeds)).uniform(-1, 1, shape)
    return voxels.clip(low, LARGEST[dtype]).astype(dtype)


@pytest.mark.parametrize("normalise", ["minmax-slice", "minmax-volume"])
@given(voxels=any_voxels())
def test_min_max_is_its_formula_for_numbers_of_any_type_and_size(normalise, voxels):
    side = max(voxels.shape[:2])
    recipe = Recipe(image_size=max(side, 3), depth=1, normalise=normalise)
    found = image_to_slices(voxels, recipe)
    assert torch.isfinite(found).all()
    assert 0 <= found.min() <= found.max() <= 1
    if side == recipe.image_size:  # no resampling
        exact = np.vectorize(Fraction, otypes=[object])(voxels.astype(float))
        for z in range(voxels.shape[2]):
            over = exact if normalise == "minmax-volume" else exact[:, :, z]
            low, span = over.min(), (over.max() - over.min()) or 1
            expected = ((exact[:, :, z] - low) / span).astype(float)
            back = slices_to_volume(found, voxels.shape)[0, :, :, z]
            np.testing.assert_allclose(back, expected, atol=1e-6)


# Orientation


class Threshold(torch.nn.Module):
    """A network that finds the bright half of each slice."""

    def forward(self, slices):
        return (slices - 0.5) * 100


@st.composite
def affines(draw):
    """Any of the 48 orientations, any spacing, turned by up to 40 degrees around any line."""
    axes = np.eye(3)[draw(st.permutations(range(3)))] * draw(signs)
    line = np.array(draw(st.tuples(*[st.integers(-3, 3)] * 3)), float)
    turn = Rotation.from_rotvec(np.radians(draw(st.integers(0, 40))) * line / (np.linalg.norm(line) or 1)).as_matrix()
    spacing = [draw(st.floats(0.2, 6)) for _ in range(3)]
    return nib.affines.from_matvec(turn @ axes @ np.diag(spacing), draw(st.tuples(*[st.floats(-200, 200)] * 3)))


@st.composite
def images(draw):
    """A NIfTI image of any shape and orientation, not constant."""
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.float32, np.float64]))
    voxels = np.random.default_rng(draw(seeds)).integers(0, 20, shape).astype(dtype)
    assume(voxels.min() < voxels.max())
    affine = draw(affines())
    note(f"voxels {voxels.tolist()}, affine {affine.tolist()}")
    return nib.Nifti1Image(voxels, affine)


def predict_images(size, *images, normalise="minmax-slice", channel=None):
    """The masks that `predict` writes for images, by a network that finds what is bright."""
    recipe = Recipe(image_size=size, depth=1, normalise=normalise)
    predictor = Trained(Fabric(accelerator="cpu", precision="32-true"), Threshold(), recipe, Decision(recipe.threshold))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Predictor, "open", return_value=predictor):
        paths = [Path(folder) / f"{index}.nii" for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            nib.save(image, path)
        written = predict(Path(folder), paths, Path(folder) / "masks", channel=channel, device="cpu")
        masks = [nib.load(path) for path in written]
        return [nib.Nifti1Image(np.asarray(mask.dataobj).copy(), mask.affine, mask.header) for mask in masks]


@given(images(), st.sampled_from(["minmax-slice", "minmax-volume"]))
def test_predict_marks_the_voxels_of_the_file_whatever_its_shape_and_orientation(image, normalise):
    voxels = np.asarray(image.dataobj, float)
    up = int(np.argmax(np.abs(image.affine[2, :3] / nib.affines.voxel_sizes(image.affine))))
    over = tuple(axis for axis in range(3) if axis != up or normalise == "minmax-volume")
    low, high = voxels.min(over, keepdims=True), voxels.max(over, keepdims=True)
    expected = (2 * (voxels - low) >= high - low) & (high > low)
    side = max(n for axis, n in enumerate(image.shape) if axis != up)
    assume(side >= 3)  # the model's grid is then that of the file, and nothing is resampled
    (mask,) = predict_images(side, image, normalise=normalise)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, rtol=1e-6, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


@given(images(), sizes, st.permutations(range(3)), signs)
def test_a_volume_stored_in_any_orientation_gets_the_same_mask(image, size, axes, flips):
    turn = np.column_stack([axes, flips])
    straight, turned = predict_images(size, image, image.as_reoriented(turn))
    np.testing.assert_array_equal(np.asarray(straight.as_reoriented(turn).dataobj), np.asarray(turned.dataobj))
    np.testing.assert_allclose(straight.as_reoriented(turn).affine, turned.affine, atol=1e-3)


@given(images(), sizes, st.integers(1, 3), st.data())
def test_a_channel_of_a_4d_file_gets_the_mask_that_it_gets_alone(image, size, channels, data):
    channel = data.draw(st.integers(0, channels - 1))
    voxels = np.asarray(image.dataobj)
    stack = np.stack([voxels if index == channel else (index + 2) % 7 - voxels for index in range(channels)], axis=3)
    (alone,) = predict_images(size, image)
    (of_stack,) = predict_images(size, nib.Nifti1Image(stack, image.affine), channel=channel)
    np.testing.assert_array_equal(np.asarray(alone.dataobj), np.asarray(of_stack.dataobj))


@given(images())
def test_every_voxel_keeps_its_place_in_the_scanner_and_finds_back_to_the_file(image):
    numbered = np.arange(image.dataobj.size, dtype=np.int16).reshape(image.shape)
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(numbered, image.affine), Path(folder) / "a.nii")
        volume = read_volume(Source((Path(folder) / "a.nii",)))
        voxels = np.array(volume.voxels)
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    np.testing.assert_array_equal(volume.to_stored(voxels), numbered)
    ours = np.argwhere(np.ones(voxels.shape, bool))
    theirs = np.column_stack(np.unravel_index(voxels.ravel(), numbered.shape))
    places = [nib.affines.apply_affine(a, at) for a, at in ((volume.affine, ours), (image.affine, theirs))]
    np.testing.assert_allclose(*places, atol=1e-3)


# Patients


@given(st.integers(3, 3000), st.floats(0, 1, exclude_min=True, exclude_max=True), seeds)
def test_the_sizes_of_the_parts_are_those_of_the_recipe(number, fraction, seed):
    split = make_split(map(str, range(number)), seed, fraction)
    train, val, test = (len(getattr(split, part)) for part in PARTS)
    if 1 <= fraction * number <= number - 2:
        assert abs(train - fraction * number) <= 0.5
    else:
        assert train == (1 if fraction * number < 1 else number - 2)
    assert test - val in (0, 1)
    assert train + val + test == number


@given(st.integers(3, 60), st.floats(0.1, 0.9), seeds)
def test_one_patient_more_moves_two_others_at_the_most(number, fraction, seed):
    cohort = [str(index) for index in range(number + 1)]
    before, after = make_split(cohort[:-1], seed, fraction), make_split(cohort, seed, fraction)
    assert sum(before.part_of(one) != after.part_of(one) for one in cohort[:-1]) <= 2


SCANS = {  # layout: the files of one scan of a patient
    "BraTS 2023": lambda who, when: [f"BraTS-GLI-{who:05d}-{when:03d}-{word}.nii.gz" for word in ("t2f", "seg")],
    "BraTS 2018": lambda who, when: [f"Brats18_TCIA02_{who}_{when}_{word}.nii.gz" for word in ("flair", "seg")],
    "TCGA-LGG": lambda who, when: [f"TCGA_CS_{who:04d}_{20000101 + when}_1{word}.tif" for word in ("", "_mask")],
}
scans = st.sets(st.tuples(st.sampled_from(sorted(SCANS)), st.integers(0, 12), st.integers(0, 9)), min_size=1)


@given(scans, seeds)
def test_scans_are_grouped_by_patient_in_whatever_order_the_folder_is_listed(scans, seed):
    walk, shuffle = os.walk, random.Random(seed).shuffle

    def shuffled_walk(*arguments, **options):
        for folder, folders, names in walk(*arguments, **options):
            shuffle(folders)
            shuffle(names)
            yield folder, folders, names

    with tempfile.TemporaryDirectory() as root:
        for index, (layout, who, when) in enumerate(sorted(scans)):
            folder = Path(root) / f"{index * 7919 % 101}"
            folder.mkdir(exist_ok=True)
            for name in SCANS[layout](who, when):
                (folder / name).touch()
        cohort = find_cases(Path(root))
        with mock.patch.object(os, "walk", shuffled_walk):
            again = find_cases(Path(root))
    assert again.cases == cohort.cases
    assert not cohort.left_out
    found = defaultdict(set)
    for case in cohort.cases:
        found[case.patient].add(case.id)
    people = defaultdict(int)
    for layout, who, _ in scans:
        people[layout, who] += 1
    assert sorted(map(len, found.values())) == sorted(people.values())
    if len(found) >= 3:
        split = make_split([case.patient for case in cohort.cases], seed)
        assert split == make_split([case.patient for case in reversed(again.cases)], seed)
        assert split.patients() == found.keys()
