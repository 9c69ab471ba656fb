import numpy as np
import pytest
import torch
from scipy import ndimage

from unetlib.metrics import count, dice
from unetlib.recipe import Recipe
from unetlib.slices import choose_slices, image_to_slices, mask_to_slices, slices_to_volume


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
    back = slices_to_volume(small, truth.shape) >= 0.5
    assert abs(small.sum().item() * 2.5**2 / truth.sum() - 1) < bias
    assert dice(count(back.transpose(2, 0, 1), truth.transpose(2, 0, 1))).min() > worst_dice


def test_a_tumour_narrower_than_a_pixel_of_the_grid_vanishes_as_documented():
    truth = np.zeros((240, 240, 1), bool)
    truth[100, :, 0] = True
    assert mask_to_slices(truth, Recipe()).sum() == 0


@pytest.mark.parametrize("shape", [(240, 240, 3), (40, 61, 2), (61, 40, 2), (33, 32, 1)])
def test_the_way_back_ends_on_the_grid_it_came_from(shape):
    smooth = ndimage.gaussian_filter(np.random.default_rng(3).random(shape), (6, 6, 0))
    smooth = (smooth - smooth.min((0, 1))) / np.ptp(smooth, (0, 1))
    back = slices_to_volume(image_to_slices(smooth, Recipe()), shape)
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


@pytest.mark.parametrize("normalise", ["minmax-slice", "minmax-volume"])
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
