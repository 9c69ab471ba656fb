"""The box that a viewer shows at first: the head and the masks, the same place in space for all volumes."""

import numpy as np
import pytest

from unetlib.data.volumes import array_to_volume
from unetlib.show.framing import MARGIN, frames
from unetlib.show.layers import Layers
from unetlib.show.panels import read_panels

SHAPE = (40, 50, 30)
SHIFTED = np.array([[-1.0, 0, 0, -10], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # 10 mm to the left


def boxes(*arrays, affines=(), truth=None, prediction=None):
    """Return the box of each array; `affines`: one for each, 1 mm in LPS order where not given."""
    affines = affines or [np.diag([-1.0, -1, 1, 1])] * len(arrays)
    volumes = {
        str(n): array_to_volume(array, affine, str(n))
        for n, (array, affine) in enumerate(zip(arrays, affines, strict=True))
    }
    panels, _ = read_panels(volumes, truth, prediction, None, Layers({}))
    return frames(panels)


def head(value=100.0, background=0.0):
    voxels = np.full(SHAPE, background)
    voxels[10:30, 15:35, 8:22] = value
    return voxels


def around(low, high):
    """Return the box of the voxels `low` to before `high` with the margin, voxels reaching half beyond their index."""
    return np.array([np.array(low) - MARGIN - 0.5, np.array(high) + MARGIN - 0.5])


@pytest.mark.parametrize(("value", "background"), [(100.0, 0.0), (0.0, 100.0)])
def test_the_box_is_the_head_with_a_margin_on_black_and_on_white(value, background):
    (box,) = boxes(head(value, background))
    np.testing.assert_allclose(box, around((10, 15, 8), (30, 35, 22)))


def test_a_neck_that_reaches_the_lowest_slice_is_not_the_background():
    voxels = head(0.0, 100.0)
    voxels[15:25, 20:30, :8] = 0
    (box,) = boxes(voxels)
    np.testing.assert_allclose(box, [[6.5, 11.5, -0.5], [32.5, 37.5, 24.5]])


def test_noise_and_specks_in_the_air_are_not_the_head():
    voxels = head()
    voxels[:, :5] = 5  # below 15 % of the window
    voxels[2, 2, 2] = 90
    (box,) = boxes(voxels)
    np.testing.assert_allclose(box, around((10, 15, 8), (30, 35, 22)))


@pytest.mark.parametrize("kind", ["truth", "prediction"])
def test_a_single_voxel_of_a_mask_is_in_the_box(kind):
    mask = np.zeros(SHAPE, np.uint8)
    mask[5, 40, 25] = 1
    (box,) = boxes(head(), **{kind: mask})
    np.testing.assert_allclose(box, around((5, 15, 8), (30, 41, 26)))


def test_the_box_ends_where_the_volume_does():
    (box,) = boxes(np.arange(np.prod(SHAPE), dtype=float).reshape(SHAPE))
    assert (box[0] >= -0.5).all()
    assert (box[1] <= np.array(SHAPE) - 0.5).all()
    (box,) = boxes(np.ones(SHAPE))  # nothing differs from the background: all is shown
    np.testing.assert_allclose(box, [[-0.5] * 3, np.array(SHAPE) - 0.5])


def test_volumes_show_the_same_box_in_space_the_union_of_their_heads():
    double = np.zeros((20, 25, 15))
    double[7:17, 8:18, 4:11] = 100  # of 2 mm: ends at x = 33.5 of the first volume
    affine = np.diag([-2.0, -2, 2, 1])
    affine[:3, 3] = (-0.5, -0.5, 0.5)  # the corners of both volumes lie together
    first, second = boxes(head(), double, affines=[np.diag([-1.0, -1, 1, 1]), affine])
    np.testing.assert_allclose(second, (first + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(first[1, 0], (17 + MARGIN) * 2 - 0.5)


def test_the_margin_of_a_head_ends_where_its_volume_does():
    narrow = head()
    narrow[:14] = narrow[26:] = 0
    first, _ = boxes(narrow, head()[10:30], affines=[np.diag([-1.0, -1, 1, 1]), SHIFTED])
    np.testing.assert_allclose(first[:, 0], (9.5, 29.5))


def test_one_slice_is_cut_to_the_head_in_any_orientation():
    for angle in np.linspace(0, 0.7, 50):  # links of a volume to itself that differ from 1 by rounding
        affine = np.diag([-1.0, -1, 1, 1])
        affine[:2, :2] = [[-np.cos(angle), np.sin(angle)], [-np.sin(angle), -np.cos(angle)]]
        affine[2, :2] = 0.1, 0.3
        affine[:3, 3] = -31.7, 12.9, 7.3
        (box,) = boxes(head()[..., 10:11], affines=[affine])
        np.testing.assert_allclose(box, [[6.5, 11.5, -0.5], [32.5, 37.5, 0.5]])
