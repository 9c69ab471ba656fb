import numpy as np
import pytest
from matplotlib.colors import to_rgb

from unetlib import plots


def disc(side: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    row, column = np.indices((side, side))
    return (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius**2


def test_a_sheet_shows_every_slice_under_its_title_with_its_own_outline():
    images = [np.arange(64.0).reshape(8, 8) + shift for shift in (0, 10, 20)]
    masks = [np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8), np.eye(8, dtype=np.uint8)]
    figure = plots.sheet_figure(images, masks, ["one", "two", "three"], columns=2, note="a note")
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["one", "two", "three"]
    assert len(figure.axes) == 4
    for axes, image in zip(shown, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert [len(axes.collections) for axes in shown] == [0, 1, 1], "an outline where there is a mask"
    assert "a note" in figure.get_supxlabel()


def test_a_sheet_refuses_slices_without_a_mask():
    with pytest.raises(ValueError, match="shorter"):
        plots.sheet_figure([np.eye(4)] * 2, [np.eye(4)], ["one", "two"])


def test_both_pictures_of_an_outlier_have_the_window_of_the_network():
    clean = np.linspace(0.05, 0.95, 100).reshape(10, 10)
    spoiled = clean / 4
    spoiled[2, 7] = 0.8
    left, middle, right = plots.outlier_figure(clean, spoiled).axes
    assert [axes.images[0].get_clim() for axes in (left, middle)] == [(0, 1), (0, 1)]
    np.testing.assert_array_equal(left.images[0].get_array(), clean)
    np.testing.assert_array_equal(middle.images[0].get_array(), spoiled)
    assert (middle.lines[0].get_xdata()[0], middle.lines[0].get_ydata()[0]) == (7, 2)
    ends = [patch.get_xy()[patch.get_xy()[:, 1] > 0, 0].max() for patch in right.patches]
    np.testing.assert_allclose(ends, [0.96, 0.24])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["as it is", "with one bright voxel"]


def test_the_histograms_leave_the_background_out():
    clean = np.zeros((10, 10))
    clean[:2] = 0.5
    right = plots.outlier_figure(clean, clean / 2).axes[2]
    assert [patch.get_xy()[:, 1].max() for patch in right.patches] == [20, 20]


@pytest.mark.parametrize("shape", [(48, 48), (48, 32), (32, 48)])
def test_the_grids_show_the_same_part_of_the_head(shape):
    mask = np.zeros(shape, bool)
    mask[10:20, 12:18] = True
    back = np.roll(mask, 1, axis=1)
    top, left = (48 - shape[0]) // 2, (48 - shape[1]) // 2
    small = np.zeros((24, 24), bool)
    small[(10 + top) // 2 : (20 + top) // 2, (12 + left) // 2 : (18 + left) // 2] = True
    figure = plots.grid_figure(np.random.default_rng(0).random(shape), mask, np.eye(24), small, back, "a note")
    native, model, errors = figure.axes
    for axes, scale, offset in ((native, 1, (0, 0)), (model, 0.5, (top, left)), (errors, 1, (0, 0))):
        low, high = np.array(axes.get_xlim()) + 0.5, np.array(axes.get_ylim()[::-1]) + 0.5
        np.testing.assert_allclose(low / scale - offset[1], np.array([15.5 - 6.5, 15.5 + 6.5]))
        np.testing.assert_allclose(high / scale - offset[0], np.array([15 - 6.5, 15 + 6.5]))
    assert native.get_title().endswith(f"{shape[0]} x {shape[1]}")
    assert model.get_title().endswith("24 x 24")


def test_what_the_way_there_and_back_changed_is_coloured():
    mask, back = disc(32, (16, 16), 6), disc(32, (16, 18), 6)
    errors = plots.grid_figure(np.eye(32), mask, np.eye(16), np.eye(16) > 0, back, "").axes[2]
    for layer, where, colour in zip(
        errors.images[1:],
        (mask & back, ~mask & back, mask & ~back),
        (plots.TRUE_POSITIVE, plots.FALSE_POSITIVE, plots.FALSE_NEGATIVE),
        strict=True,
    ):
        assert ((layer.get_array()[..., 3] > 0) == where).all()
        np.testing.assert_allclose(layer.get_array()[where][0][:3], to_rgb(colour))
    assert [line.get_label() for line in errors.lines] == ["kept", "added", "lost"]
    assert [line.get_color() for line in errors.lines] == [
        plots.TRUE_POSITIVE,
        plots.FALSE_POSITIVE,
        plots.FALSE_NEGATIVE,
    ]


def test_a_slice_without_tumour_is_shown_whole():
    empty = np.zeros((32, 32), bool)
    native = plots.grid_figure(np.eye(32), empty, np.eye(16), np.zeros((16, 16), bool), empty, "").axes[0]
    assert native.get_xlim()[0] <= -0.5
    assert native.get_xlim()[1] >= 31.5


def test_the_ceiling_shows_a_dot_for_every_patient_with_tumour():
    axes = plots.ceiling_figure([1000, 0, 50], [0.97, 1.0, 0.62], 96).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1000, 0.97], [50, 0.62]])
    assert axes.get_xscale() == "log"
    assert axes.get_ylim()[0] < 0.62
    assert "96 x 96" in axes.get_ylabel()
    plots.ceiling_figure([0], [1.0], 96).draw_without_rendering()


def test_the_leak_is_drawn_network_by_network_and_as_a_mean():
    figure = plots.leak_figure(["one", "two"], [0.8, 0.4], [0.5, 0.5], "a note")
    axes = figure.axes[0]
    points = {line.get_label(): line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 3}
    np.testing.assert_allclose(points["other slices of the training patients"], [0.8, 0.4, 0.6])
    np.testing.assert_allclose(points["patients never seen"], [0.5, 0.5, 0.5])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two", "mean"]
    assert [text.get_text() for text in axes.texts] == ["+0.30", "-0.10", "+0.10"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first network stands on top"
