"""The figure of what helped in both studies: what is drawn is what was measured."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from studies import ablation, best, gains
from studies.results import DICE
from tests.test_studies import seventy  # noqa: F401
from unetlib import plots


def test_each_gain_is_a_dot_and_its_colour_says_whether_it_could_be_chance():
    first = {"helped": (0.1, (0.05, 0.15)), "noise": (0.1, (-0.05, 0.25))}
    above, below = gains.gains_figure(first, {"harmed": (-0.1, (-0.2, -0.05)), "one patient": (0.0, None)}).axes
    assert [label.get_text() for label in above.get_yticklabels()] == ["helped", "noise"]
    dots = [line for axes in (above, below) for line in axes.lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [0.1, 0.1, -0.1, 0.0]
    assert [dot.get_color() for dot in dots] == [plots.BLUE, plots.GREY, plots.ORANGE, plots.GREY]
    (interval,) = [line for line in above.lines if list(line.get_ydata()) == [1, 1]]
    assert list(interval.get_xdata()) == [-0.05, 0.25]
    assert above.yaxis_inverted(), "the first change stands on top"


def test_the_gains_are_those_of_the_first_walk_and_of_the_arms_that_were_trained(seventy, monkeypatch):  # noqa: F811
    def result(cell):
        if cell.name in ("ablation-02", "screen-size-fold-0", "screen-size-fold-1"):
            return None
        number = int(cell.name[-2:]) / 100 if cell.name.startswith("ablation") else 0.3 * ("twice" in cell.name)
        return pd.DataFrame({DICE: number}, [*cell.split.val])

    monkeypatch.setattr("studies.cells.Cell.result", result)
    steps = gains.of_ablation(seventy)
    assert "20 epochs instead of 10" in steps
    assert not [name for name in steps if name.startswith("again")]
    names = [step.name for step in ablation.STEPS]
    assert names[2] not in steps
    assert names[3] not in steps, "there is nothing to compare it with"
    assert [by for by, _ in steps.values()] == [pytest.approx(0.01)] * len(steps)
    arms = gains.of_screening(seventy)
    assert gains.ARMS["size"] not in arms
    assert arms[gains.ARMS["twice"]][0] == pytest.approx(0.3)
    assert set(gains.ARMS) == {*best.ARMS} - {"base"}


def test_the_command_draws_the_figure(seventy, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(gains, "PICTURE", tmp_path / "gains.png")
    monkeypatch.setattr(gains, "gains_figure", lambda *_: Figure())
    for function in ("of_ablation", "of_screening"):
        monkeypatch.setattr(gains, function, lambda data: {})
    monkeypatch.setattr("sys.argv", ["gains", str(seventy)])
    gains.main()
    assert gains.PICTURE.stat().st_size
