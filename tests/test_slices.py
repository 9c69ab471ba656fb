import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from tests.oracles import count_slices
from unetlib.data.slices import (
    Window,
    choose_slices,
    foreground,
    image_to_slices,
    mask_to_slices,
    slices_to_volume,
)
from unetlib.dataset import with_neighbours
from unetlib.metrics import dice
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError

CROP = Recipe(crop=True, depth=1)
MEDIAN = Recipe(image_size=32, normalise="median-volume")


def disc(side, radius, planes=1):
    x, y = np.mgrid[:side, :side] - (side - 1) / 2
    return np.repeat((np.hypot(x, y) < radius)[:, :, None], planes, axis=2)


@pytest.mark.parametrize("shape", [(240, 240, 2), (96, 96, 1), (50, 31, 3), (7, 200, 2)])
def test_slices_have_the_stated_shape_type_and_range(shape):
    images = image_to_slices(np.random.default_rng(0).normal(500, 300, shape), Recipe())
    masks = mask_to_slices(np.random.default_rng(0).random(shape) > 0.5, Recipe())
    assert images.shape == masks.shape == (shape[2], 1, 96, 96)
    assert images.dtype == torch.float32
    assert masks.dtype == torch.uint8
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(masks.unique().tolist()) <= {0, 1}


def test_min_max_equals_its_formula_slice_by_slice_and_over_the_volume():
    voxels = np.random.default_rng(1).integers(-50, 900, (32, 32, 3)).astype(np.int16)
    same = Recipe(image_size=32)  # no resampling: the formula alone
    by_slice = image_to_slices(voxels, same)[:, 0].numpy()
    by_volume = image_to_slices(voxels, same.but(normalise="minmax-volume"))[:, 0].numpy()
    for z in range(3):
        plane = voxels[:, :, z].T.astype(float)
        np.testing.assert_allclose(by_slice[z], (plane - plane.min()) / np.ptp(plane), atol=1e-6)
        np.testing.assert_allclose(by_volume[z], (plane - voxels.min()) / np.ptp(voxels), atol=1e-6)


def test_a_constant_slice_becomes_zero_not_nan():
    voxels = np.zeros((32, 32, 2), np.int16)
    voxels[:, :, 1] = np.arange(32)
    images = image_to_slices(voxels, Recipe(image_size=32))
    assert images[0].abs().max() == 0
    assert images[1].max() == 1


@pytest.mark.parametrize("shape", [(1, 6, 4), (6, 1, 4), (6, 6, 1)])
def test_a_mirrored_axis_of_one_voxel_is_no_obstacle(shape):
    voxels = np.random.default_rng(0).random(shape)
    mirrored = np.flip(voxels, shape.index(1))  # the same numbers, but numpy keeps the stride negative
    assert torch.equal(image_to_slices(mirrored, Recipe()), image_to_slices(voxels, Recipe()))


def test_resampling_the_image_equals_a_triangle_filter_written_by_hand():
    line = np.random.default_rng(2).random(240)
    voxels = np.repeat(line[:, None, None], 240, axis=1)  # varies along x, so along the columns
    found = image_to_slices(voxels, Recipe())[0, 0, 48].numpy()
    scaled = (line - line.min()) / np.ptp(line)
    centres = (np.arange(96) + 0.5) * 2.5 - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(240)[None] - centres[:, None]) / 2.5)
    expected = (weights * scaled).sum(1) / weights.sum(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_image_and_mask_stay_aligned_through_the_resampling():
    truth = disc(240, 60)
    image = image_to_slices(truth.astype(np.float32), Recipe())[0, 0].numpy()
    mask = mask_to_slices(truth, Recipe())[0, 0].numpy()
    assert (mask == (image >= 0.5)).all()
    np.testing.assert_allclose(ndimage.center_of_mass(mask), (47.5, 47.5), atol=0.01)


@pytest.mark.parametrize(("radius", "bias", "worst_dice"), [(8, 0.02, 0.91), (20, 0.005, 0.96), (60, 0.002, 0.985)])
def test_the_masks_shrinking_error_is_small(radius, bias, worst_dice):
    """What 96 x 96 costs a round tumour of a 240 x 240 slice, over 25 places within a pixel of the small grid."""
    x, y = np.mgrid[:240, :240]
    places = [(120 + i / 2, 120 + j / 2) for i in range(5) for j in range(5)]
    truth = np.stack([np.hypot(x - a, y - b) < radius for a, b in places], axis=2)
    small = mask_to_slices(truth, Recipe())
    back = slices_to_volume(small, truth.shape)[0] >= 0.5
    assert abs(small.sum().item() * 2.5**2 / truth.sum() - 1) < bias
    assert dice(count_slices(back.transpose(2, 0, 1), truth.transpose(2, 0, 1))).min() > worst_dice


def test_a_tumour_narrower_than_a_pixel_of_the_grid_vanishes_as_documented():
    truth = np.zeros((240, 240, 1), bool)
    truth[100, :, 0] = True
    assert mask_to_slices(truth, Recipe()).sum() == 0


@pytest.mark.parametrize("shape", [(240, 240, 3), (40, 61, 2), (61, 40, 2), (33, 32, 1)])
def test_the_way_back_ends_on_the_grid_it_came_from(shape):
    smooth = ndimage.gaussian_filter(np.random.default_rng(3).random(shape), (6, 6, 0))
    smooth = (smooth - smooth.min((0, 1))) / np.ptp(smooth, (0, 1))
    back = slices_to_volume(image_to_slices(smooth, Recipe()), shape)[0]
    assert back.shape == shape
    inner = (slice(4, -4), slice(4, -4))  # at the border of a padded volume 0 is mixed in
    assert np.abs(back - smooth)[inner].mean() < 0.05
    assert np.corrcoef(back[inner].ravel(), smooth[inner].ravel())[0, 1] > 0.97


def test_padding_keeps_the_shape_of_things():
    wide = np.zeros((120, 60, 1), bool)
    wide[40:80, 10:50] = True  # a square
    mask = mask_to_slices(wide, Recipe())[0, 0].numpy()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert len(rows) == len(columns) == 32


def test_slice_policies_keep_what_they_say():
    voxels = np.zeros((20, 20, 5))
    voxels[5:15, 5:15, 1:4] = 100
    mask = np.zeros(voxels.shape, bool)
    mask[6, 6, 2] = True
    assert choose_slices(voxels, mask, "tumour").tolist() == [2]
    assert choose_slices(voxels, mask, "brain").tolist() == [1, 2, 3]
    assert choose_slices(voxels, mask, "all").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("normalise", ["minmax-slice", "minmax-volume", "median-volume"])
def test_the_volume_itself_is_never_changed(normalise: str) -> None:
    voxels = np.asfortranarray(np.random.default_rng(0).random((8, 8, 3), np.float32))
    before = voxels.copy()
    image_to_slices(voxels, Recipe(image_size=32, normalise=normalise))
    assert np.array_equal(voxels, before)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_of_no_slice_there_are_no_slices(dtype: type) -> None:
    voxels = np.arange(8 * 8 * 3, dtype=dtype).reshape(8, 8, 3)
    found = image_to_slices(voxels, Recipe(image_size=32), np.empty(0, int))
    assert found.shape == (0, 1, 32, 32)


@st.composite
def heads(draw):
    """A volume with a bright box in air, and where it lies: ((x, x), (y, y)); it may touch the borders."""
    shape, spans = [draw(st.integers(8, 40)), draw(st.integers(8, 40)), draw(st.integers(2, 6))], []
    for side in shape[:2]:
        begin = draw(st.integers(0, side - 4))
        spans.append((begin, draw(st.integers(begin + 4, side))))
    voxels = np.zeros(shape, np.int16)
    voxels[slice(*spans[0]), slice(*spans[1]), 1:] = 100
    return voxels, spans


@given(heads())
def test_the_window_holds_the_head_with_its_margin_in_the_middle(head):
    voxels, spans = head
    window = Window.of(voxels, CROP)
    longest = max(end - begin for begin, end in spans)
    assert window.side == longest + 2 * round(0.04 * longest)
    for corner, (begin, end) in zip((window.left, window.top), spans, strict=True):
        assert corner <= begin
        assert corner + window.side >= end
        assert abs((begin - corner) - (corner + window.side - end)) <= 1


def test_columns_with_fewer_than_one_percent_of_head_are_no_head():
    voxels = np.zeros((100, 100, 4))
    voxels[20:60, 30:80] = 100
    voxels[90, :3, 0] = 100  # 3 of 400 voxels: a speck
    assert Window.of(voxels, CROP) == Window(left=13, top=28, side=54)
    voxels[90, :4, 0] = 100  # 4 of 400: 1 %
    assert Window.of(voxels, CROP).side == 71 + 2 * 3


@given(heads(), st.integers(0, 2))
def test_the_window_of_a_mirrored_volume_is_the_mirrored_window_but_for_half_a_pixel(head, axis):
    voxels, _ = head
    window, mirrored = Window.of(voxels, CROP), Window.of(np.flip(voxels, axis), CROP)
    expected = [window.left, window.top, 0]
    expected[axis] = (*voxels.shape[:2], window.side)[axis] - window.side - expected[axis]
    assert mirrored.side == window.side
    assert abs(mirrored.left - expected[0]) <= (axis == 0)
    assert abs(mirrored.top - expected[1]) <= (axis == 1)


@given(heads(), st.integers(0, 2))
def test_how_a_volume_lies_in_memory_changes_nothing(head, axis):
    flipped = np.flip(head[0], axis)
    recipe = CROP.but(image_size=16, normalise="median-volume")
    assert torch.equal(image_to_slices(flipped, recipe), image_to_slices(flipped.copy(), recipe))
    assert Window.of(flipped, recipe) == Window.of(np.asfortranarray(flipped), recipe)


@given(heads(), st.booleans(), st.integers(0, 1000))
def test_slices_cut_to_the_window_go_back_to_their_place(head, crop, seed):
    """On a grid of the window's own size nothing is resampled: what the window shows comes back to the voxel."""
    voxels, _ = head
    window = Window.of(voxels, CROP.but(crop=crop))
    recipe = CROP.but(crop=crop, image_size=window.side, normalise="minmax-volume")
    seen = np.zeros(voxels.shape, bool)
    for x in range(window.left, window.left + window.side):
        for y in range(window.top, window.top + window.side):
            if 0 <= x < voxels.shape[0] and 0 <= y < voxels.shape[1]:
                seen[x, y] = True
    mask = np.random.default_rng(seed).random(voxels.shape) < 0.5
    back = slices_to_volume(mask_to_slices(mask, recipe, window=window), voxels.shape, window)[0]
    np.testing.assert_array_equal(back >= 0.5, mask & seen)
    back = slices_to_volume(image_to_slices(voxels, recipe), voxels.shape, window)[0]
    np.testing.assert_allclose(back, voxels / 100 * seen, atol=1e-5)


def test_without_crop_the_window_is_the_centred_square_padded_by_numpy():
    for shape in ((240, 240, 2), (50, 31, 3), (31, 50, 3), (7, 20, 1)):
        voxels = np.random.default_rng(0).random(shape)
        side = max(shape[:2])
        before = [(side - width) // 2 for width in shape[:2]]
        pads = [(low, side - width - low) for low, width in zip(before, shape[:2], strict=True)]
        padded = np.pad(voxels, [*pads, (0, 0)])
        assert Window.of(voxels, Recipe()) == Window.whole(shape) == Window(-before[0], -before[1], side)
        found = image_to_slices(voxels, Recipe(image_size=side, depth=1, normalise="minmax-volume"))[:, 0].numpy()
        inner = (padded - voxels.min()) / np.ptp(voxels) * np.pad(np.ones(shape), [*pads, (0, 0)])
        np.testing.assert_allclose(found, inner.transpose(2, 1, 0), atol=1e-5)


def test_image_and_mask_cut_to_the_head_stay_aligned():
    truth = np.zeros((120, 100, 3))
    truth[10:70, 40:95] = disc(60, 25)[:, :55]
    recipe = Recipe(crop=True, normalise="minmax-volume")
    image = image_to_slices(truth, recipe).numpy()
    mask = mask_to_slices(truth > 0, recipe, window=Window.of(truth, recipe)).numpy()
    assert mask.any()
    assert (mask == (image >= 0.5)).all()


def test_cut_to_the_head_a_smaller_head_fills_the_slice():
    truth = np.zeros((100, 100, 2))
    truth[10:50, 20:60] = 1
    assert image_to_slices(truth, Recipe(crop=True)).mean() > 0.8
    assert image_to_slices(truth, Recipe()).mean() < 0.2


def test_a_mask_without_the_window_of_its_image_is_refused_where_slices_are_cut():
    with pytest.raises(UnetlibError, match=r"needs the window of the image"):
        mask_to_slices(np.ones((8, 8, 1), bool), CROP)


@pytest.mark.parametrize("normalise", ["minmax-slice", "minmax-volume", "median-volume"])
def test_a_constant_volume_has_no_head_and_becomes_zero(normalise):
    voxels, recipe = np.full((9, 12, 3), 7, np.int16), Recipe(image_size=32, crop=True, normalise=normalise)
    assert Window.of(voxels, recipe) == Window.whole(voxels.shape)
    assert not image_to_slices(voxels, recipe).any()


def volume(seed=0, shape=(32, 32, 3)):
    """A head of many intensities in dark, noisy air that is not 0."""
    rng = np.random.default_rng(seed)
    voxels = rng.uniform(30, 50, shape).astype(np.float32)
    voxels[6:26, 6:26] = rng.gamma(4, 60, (20, 20, shape[2])) + 100
    return voxels


def test_the_median_of_the_head_becomes_a_third():
    voxels = volume()
    bright = np.sort(voxels[voxels > voxels.mean()])
    low, median = voxels.min(), bright[(len(bright) - 1) // 2]
    expected = ((voxels - low) / (3 * (median - low))).clip(0, 1)
    np.testing.assert_allclose(image_to_slices(voxels, MEDIAN)[:, 0], expected.transpose(2, 1, 0), atol=1e-5)


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_the_scale_of_a_scanner_is_taken_out(seed, factor, shift):
    voxels = volume(seed)
    found = image_to_slices(factor * voxels + shift, MEDIAN)
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(found, image_to_slices(voxels, MEDIAN), atol=1e-3, rtol=0)


def test_a_spike_moves_the_least_and_greatest_value_but_not_the_median():
    voxels = volume()
    spoiled = voxels.copy()
    spoiled[16, 16, 1] = 10 * voxels.max()
    apart = {}
    for normalise in ("minmax-volume", "median-volume"):
        recipe = MEDIAN.but(normalise=normalise)
        before, after = (image_to_slices(one, recipe)[:, 0] for one in (voxels, spoiled))
        apart[normalise] = (before - after).abs().mean().item()
    assert apart["median-volume"] < 0.01 < 0.1 < apart["minmax-volume"]


@pytest.mark.parametrize("normalise", ["minmax-slice", "minmax-volume", "median-volume"])
@pytest.mark.parametrize("z", [[2, 0], [1], []])
def test_some_slices_are_those_of_all(normalise, z):
    recipe = Recipe(image_size=24, crop=True, depth=2, normalise=normalise)
    found = image_to_slices(volume(), recipe, np.array(z, int))
    torch.testing.assert_close(found, image_to_slices(volume(), recipe)[z], rtol=0, atol=1e-6)


@given(st.integers(1, 7), st.integers(0, 8))
def test_every_slice_stands_between_its_neighbours(number, neighbours):
    slices = torch.arange(number * 4.0).reshape(number, 1, 2, 2)
    found = torch.from_numpy(with_neighbours(slices.numpy(), np.arange(number), neighbours, 0, number - 1))
    assert found.shape == (number, 2 * neighbours + 1, 2, 2)
    for z in range(number):
        for channel in range(2 * neighbours + 1):
            near = min(max(z + channel - neighbours, 0), number - 1)
            assert torch.equal(found[z, channel], slices[near, 0])


@pytest.mark.parametrize("seed", range(5))
def test_the_head_of_an_image_scaled_to_mean_0_is_all_but_its_air(seed):
    """As skull-stripped images often are: the mean of the head is that of the whole image, but for rounding."""
    rng, head = np.random.default_rng(seed), np.zeros((20, 22, 8), bool)
    head[4:16, 5:18, 1:7] = True
    voxels = np.where(head, rng.normal(3, 1, head.shape), 0).astype(np.float32)
    voxels[head] = (voxels[head] - voxels[head].mean()) / voxels[head].std()
    assert abs(voxels.mean()) < 1e-6
    np.testing.assert_array_equal(foreground(voxels), head)
    recipe = Recipe(image_size=16, depth=2, normalise="median-volume", crop=True, slices="all")
    images = image_to_slices(voxels, recipe)
    scaled = image_to_slices(np.where(head, voxels + 9, 0), recipe)
    assert 0.1 < images[3].median() < 0.6, "the head is not black, nor white"
    assert images.shape == scaled.shape
    torch.testing.assert_close(image_to_slices(voxels.astype(np.float64), recipe), images, rtol=0, atol=1e-6)


def test_where_air_is_darkest_the_head_is_brighter_than_the_mean():
    voxels = np.random.default_rng(0).normal(100, 20, (12, 12, 6))
    voxels[:3] = 0
    np.testing.assert_array_equal(foreground(voxels), voxels > voxels.mean())
    assert not foreground(np.zeros((4, 4, 4))).any()


def test_half_precision_shows_the_same_head():
    voxels = np.full((8, 8, 8), 10.0)
    voxels[0, 0, 0], voxels[3:5, 3:5, 3:5] = 0, 3000
    np.testing.assert_array_equal(foreground(voxels.astype(np.float16)), foreground(voxels))
