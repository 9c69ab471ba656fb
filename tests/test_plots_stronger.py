"""The figures of chapter 5: what is drawn is what was measured."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from unetlib import plots
from unetlib.data.slices import Window
from unetlib.prediction.decision import SIZES_ML, THRESHOLDS, Decision


def test_the_staircase_shows_every_dice_and_what_each_step_gained():
    names, dices = ["published", "balance", "crop"], [0.5, 0.7, 0.6]
    figure = plots.staircase_figure(names, dices, [None, (0.1, 0.3), None], "a note")
    stairs, gains = figure.axes
    (dots,) = [line for line in stairs.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(dots.get_xydata(), [[0.5, 0], [0.7, 1], [0.6, 2]])
    assert [text.get_text() for text in stairs.texts] == ["0.500", "0.700", "0.600"]
    assert [label.get_text() for label in stairs.get_yticklabels()] == names
    drawn = {line.get_gid(): line for line in gains.lines if line.get_gid() in names}
    assert {name: float(line.get_xdata()[0]) for name, line in drawn.items()} == pytest.approx(
        {"balance": 0.2, "crop": -0.1}
    )
    assert [drawn[name].get_color() for name in ("balance", "crop")] == [plots.BLUE, plots.ORANGE]
    (interval,) = [line for line in gains.lines if list(line.get_ydata()) == [1, 1]]
    assert tuple(interval.get_xdata()) == (0.1, 0.3)
    assert stairs.yaxis_inverted(), "the first step stands on top"
    assert gains.yaxis_inverted()
    assert "a note" in figure.get_supxlabel()
    assert plots.DISCLAIMER in figure.get_supxlabel()


@pytest.mark.parametrize("after", [None, [None, 0, 0], [None, 0, 1], [None, 0, None]])
def test_a_stair_begins_where_the_step_that_it_follows_has_ended(after):
    """And changes half way between two steps; where that step is not shown, nothing was gained over it."""
    stairs, gains = plots.staircase_figure(["a", "b", "c"], [0.5, 0.7, 0.4], [None] * 3, after=after).axes
    first, second, third = (line.get_xydata().tolist() for line in stairs.lines if line.get_marker() != "o")
    begin = {0: 0.5, 1: 0.7, None: 0.4}[after[2] if after else 1]
    assert first == [[0.5, -0.5], [0.5, -0.5], [0.5, 0.5]]
    assert second == [[0.5, 0.5], [0.7, 0.5], [0.7, 1.5]]
    assert third == [[begin, 1.5], [0.4, 1.5], [0.4, 2.5]]
    drawn = {line.get_gid(): float(line.get_xdata()[0]) for line in gains.lines if line.get_gid() in ("a", "b", "c")}
    assert drawn == pytest.approx({"b": 0.2} | ({} if begin == 0.4 else {"c": 0.4 - begin}))


@pytest.mark.parametrize("dices", [[0.5], [0.5, 0.5]])
def test_one_step_and_no_gain_are_stairs_too(dices):
    stairs, gains = plots.staircase_figure(["a", "b"][: len(dices)], dices, [None] * len(dices)).axes
    assert len(stairs.texts) == len(dices)
    assert "interval" not in gains.get_xlabel()
    assert np.ptp(stairs.get_xlim()) > 0


def test_the_window_is_drawn_where_the_recipe_sees():
    image, small = np.arange(20.0 * 30).reshape(20, 30), np.zeros((8, 8))
    figure = plots.window_figure(image, Window(5, -2, 24), {"whole": small, "head": small + 1}, "a note")
    native, whole, head = figure.axes
    (square,) = [patch for patch in native.patches if isinstance(patch, Rectangle)]
    assert (square.get_x(), square.get_y(), square.get_width(), square.get_height()) == (4.5, -2.5, 24, 24)
    assert native.get_title() == "as scanned, 20 x 30"
    assert [axes.get_title() for axes in (whole, head)] == ["whole, 8 x 8", "head, 8 x 8"]
    assert head.images[0].get_array().min() == 1
    assert head.images[0].get_clim() == (0, 1), "the same grey means the same value in both"
    assert figure.get_supxlabel() == "a note"


def test_every_schedule_has_its_curve():
    (axes,) = plots.rates_figure({"constant": [1, 1, 1], "cosine": [0.5, 1, 0]}).axes
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert curves == {"constant": [1, 1, 1], "cosine": [0.5, 1, 0]}


def test_the_chosen_pair_is_marked_among_all_that_were_tried():
    dices = np.random.default_rng(0).random((len(THRESHOLDS), len(SIZES_ML)))
    (axes,) = plots.decision_figure(dices, Decision(THRESHOLDS[2], SIZES_ML[3])).axes
    curves = [line for line in axes.lines if line.get_label() != "chosen"]
    np.testing.assert_array_equal([line.get_ydata() for line in curves], dices.T)
    assert [line.get_label() for line in curves][:2] == ["all components", f"components of {SIZES_ML[1]:g} ml or more"]
    (chosen,) = [line for line in axes.lines if line.get_label() == "chosen"]
    assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (THRESHOLDS[2], dices[2, 3])
    assert not chosen.get_clip_on(), "the ring is seen whole, though the best pair lies at the top"


def test_a_threshold_that_was_not_tried_is_not_marked():
    dices = np.zeros((len(THRESHOLDS), len(SIZES_ML)))
    (axes,) = plots.decision_figure(dices, Decision(0.55)).axes
    assert "chosen" not in [line.get_label() for line in axes.lines]
