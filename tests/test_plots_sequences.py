"""The figures of chapter 6: every sequence with every region, and every Dice where it belongs."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from unetlib import plots
from unetlib.show.plots.colours import CURVES, REGIONS

NAMES = ("whole", "core", "enhancing")
MASKS = np.zeros((3, 24, 30), bool)
MASKS[0, 4:20, 4:26] = MASKS[1, 8:16, 8:20] = True
DICES = {"flair": np.array([[0.5, 0.3, 0.0], [0.7, 0.5, 0.4]]), "all": np.array([[0.9, 0.8, 0.7], [0.9, 0.6, 0.9]])}


def test_each_sequence_is_shown_plain_and_with_the_regions_that_are_there():
    images = {name: np.random.default_rng(place).normal(100, 9, (24, 30)) for place, name in enumerate(("t1ce", "own"))}
    figure = plots.sequences_figure(images, MASKS, NAMES, "a note")
    above, below = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title() for axes in figure.axes] == ["T1ce", "own", "", ""]
    for line in (above, below):
        for axes, image in zip(line, images.values(), strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), image)
    for axes in below:
        assert [tuple(one.get_edgecolor()[0][:3]) for one in axes.collections] == list(map(to_rgb, REGIONS[:2]))
    assert not any(len(axes.collections) for axes in above)
    assert [text.get_text() for text in figure.legends[0].texts] == [*NAMES]
    assert "t1ce, own" in figure.get_label()


def test_every_patient_and_every_mean_stands_in_the_row_and_panel_of_its_name():
    figure = plots.by_region_figure({"": DICES}, NAMES, "a note")
    assert [axes.get_title() for axes in figure.axes] == [*NAMES]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["flair", "all"]
    for k, (axes, region) in enumerate(zip(figure.axes, NAMES, strict=True)):
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        for line, (place, dices) in zip(dots, enumerate(DICES.values()), strict=True):
            np.testing.assert_allclose(line.get_xydata(), [[value, place] for value in dices[:, k]])
        (mean,) = [line for line in axes.lines if line.get_gid() == region]
        np.testing.assert_allclose(mean.get_xdata(), [dices[:, k].mean() for dices in DICES.values()])
    assert "all 0.90, 0.70, 0.80" in figure.get_label()
    assert not figure.legends


def test_two_series_have_colours_and_a_legend_and_do_not_hide_each_other():
    figure = plots.by_region_figure({"before": DICES, "after": DICES}, NAMES)
    means = [line for line in figure.axes[1].lines if line.get_gid() == "core"]
    assert [line.get_color() for line in means] == [*CURVES[:2]]
    assert [line.get_label() for line in means] == ["before", "after"]
    assert means[0].get_ydata() == pytest.approx(means[1].get_ydata() - 0.3)
    assert [text.get_text() for text in figure.legends[0].texts] == ["before", "after"]
    assert "after flair 0.60" in figure.get_label()
