"""The figures of chapter 7: every cost where it belongs, and every gate in its row and column."""

import numpy as np
import pytest

from unetlib import plots
from unetlib.engine.costs import Cost

COSTS = [Cost("unet", 8, 4, 2_000_000, 1.0, 50.0), Cost("none", 8, 4, note="missing"), Cost("b", 8, 4, 500_000, 1, 70)]


def test_each_network_that_was_measured_stands_at_its_parameters_and_time():
    figure = plots.costs_figure(COSTS, "a note")
    (axes,) = figure.axes
    found = {line.get_label(): line.get_xydata()[0].tolist() for line in axes.lines}
    assert found == {"unet": [2.0, 50.0], "b": [0.5, 70.0]}
    assert [text.get_text() for text in figure.legends[0].texts] == ["unet", "b"]
    assert axes.get_ylim()[0] == 0
    assert "unet 2.0 million, 50 ms" in figure.get_label()
    assert "missing" not in figure.get_label()
    assert figure.get_supxlabel() == "a note"


def test_without_any_cost_the_figure_is_empty():
    assert not plots.costs_figure([COSTS[1]]).axes[0].lines


def test_gates_stand_in_the_row_of_their_network_on_one_scale_over_the_whole_slice():
    image = np.random.default_rng(0).normal(100, 9, (16, 24))
    mask = np.zeros((16, 24), bool)
    mask[4:9, 5:12] = True
    rows = {name: [np.full((8, 12), start), np.full((4, 6), start + 0.1)] for name, start in (("a", 0.2), ("b", 0.6))}
    figure = plots.gates_figure(image, mask, rows, "a note")
    panels = np.array(figure.axes[:6]).reshape(2, 3)
    for line, (name, gates) in zip(panels, rows.items(), strict=True):
        assert line[0].get_ylabel() == name
        np.testing.assert_array_equal(line[0].images[0].get_array(), image)
        for level, (axes, gate) in enumerate(zip(line[1:], gates, strict=True)):
            shown = axes.images[0]
            np.testing.assert_array_equal(shown.get_array(), gate)
            assert (shown.norm.vmin, shown.norm.vmax) == (0, 1)
            assert tuple(shown.get_extent()) == (-0.5, 23.5, 15.5, -0.5)
            assert axes.get_title() == f"level {level}"
            assert axes.collections, "with the tumour outlined"
            assert axes.get_xlim() == line[0].get_xlim()
    assert "in rows: a, b" in figure.get_label()
    assert figure.get_supxlabel() == "a note"


@pytest.mark.parametrize("note", ["", "a note"])
def test_a_figure_of_gates_has_the_disclaimer_where_no_note_is_given(note):
    figure = plots.gates_figure(np.ones((4, 4)), np.zeros((4, 4)), {"a": [np.ones((2, 2))]}, note)
    assert figure.get_supxlabel() == (note or plots.DISCLAIMER)
