"""The figures of chapter 4: what is drawn is what was measured."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from unetlib import metrics, plots
from unetlib.data.patients import find_cases
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import read_patients
from unetlib.metrics import Counts
from unetlib.prediction.predictor import Predictor
from unetlib.show.plots.colours import INK
from unetlib.show.plots.overlays import three_of
from unetlib.support.errors import UnetlibError


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """An evaluated run, and its summary; do not change it."""
    folder = tmp_path_factory.mktemp("plots") / "run"
    shutil.copytree(trained, folder)
    return folder, evaluate(folder, device="cpu")


def counts(*entries):
    return Counts(*(np.array(part, np.int64) for part in zip(*entries, strict=True)))


def test_the_ranked_patients_carry_the_prediction_of_the_network(evaluated):
    run, _ = evaluated
    predictor = Predictor.open(run, "cpu")
    dices = {row["patient"]: float(row["dice"]) for row in read_patients(run / "evaluation")}
    for one in plots.best_median_worst(run, "cpu"):
        expected = predictor.volume(one.volume.voxels)[0] >= predictor.recipe.threshold
        np.testing.assert_array_equal(one.prediction, expected)
        found = metrics.dice(metrics.count(one.prediction[None, None], one.truth[None, None])).item()
        assert one.dice == pytest.approx(found) == dices[one.case.patient]


def test_of_many_patients_the_middle_one_is_shown_and_of_few_nobody_twice(evaluated, cohort, monkeypatch):
    run, _ = evaluated
    monkeypatch.setattr("unetlib.show.plots.overlays.own_cases", lambda *_: find_cases(cohort).cases)
    names = [f"BraTS2021_{index:05d}" for index in (4, 2, 5, 3, 1)]
    for number, expected in ((5, [4, 5, 1]), (2, [4, 2]), (1, [4])):
        rows = [{"patient": name, "dice": 0.9 - 0.1 * i} for i, name in enumerate(names[:number])]
        monkeypatch.setattr("unetlib.show.plots.overlays.read_patients", lambda _, rows=rows: rows)
        shown = plots.best_median_worst(run, "cpu")
        assert [one.case.id for one in shown] == [f"BraTS2021_{index:05d}" for index in expected]
        ranks = {5: ["best", "median", "worst"], 2: ["best", "worst"], 1: ["best"]}
        assert [one.rank for one in shown] == ranks[number]


def test_the_title_of_a_row_holds_both_dices(evaluated):
    one = plots.best_median_worst(evaluated[0], "cpu")[0]
    z = one.truth.sum((0, 1)).argmax()
    here = metrics.dice(metrics.count(one.prediction[None, None, :, :, z], one.truth[None, None, :, :, z])).item()
    dices = [f"Dice {one.dice:.2f} over all slices", f"{here:.2f} in this slice"]
    assert one.overlay().title.split("\n") == [one.rank, one.case.id, *dices]


def test_the_metrics_figure_shows_every_dice_once_with_its_interval(evaluated):
    figure = plots.metrics_figure(evaluated[1], "a note")
    axes = figure.axes[0]
    drawn = {line.get_gid(): line for line in axes.lines if " " in str(line.get_gid())}
    assert len(drawn) == 12
    written = sorted(text.get_text() for text in axes.texts)
    assert written == sorted(f"{entry['dice']:.3f}" for entry in evaluated[1]["figures"])
    intervals = {tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
    assert intervals == {tuple(e["dice_interval"]) for e in evaluated[1]["figures"] if e.get("dice_interval")}
    for entry in evaluated[1]["figures"]:
        line = drawn[f"{entry['aggregation']} {entry['slices']} {entry['grid']}"]
        assert line.get_xdata() == [entry["dice"]]
        assert line.get_color() == (plots.ORANGE if entry["slices"] == "tumour" else plots.BLUE)
        assert (line.get_markerfacecolor() == "none") == (entry["grid"] == "native")
        nearest = min(axes.get_yticks(), key=lambda tick, line=line: abs(tick - line.get_ydata()[0]))
        label = axes.get_yticklabels()[list(axes.get_yticks()).index(nearest)].get_text()
        assert label.startswith(f"{entry['aggregation']}, {entry['slices']} slices")
    assert "a note" in figure.get_supxlabel()
    assert plots.DISCLAIMER in figure.get_supxlabel()


@pytest.mark.parametrize("number", [1, 4, 10])
def test_an_interval_over_few_patients_is_called_too_narrow_and_one_patient_has_no_order(evaluated, number):
    dices = np.linspace(0.5, 0.7, number)
    figure = plots.patients_figure({"": dices}, {"": (0.5, 0.7)})
    assert ("in ascending order" in figure.get_label()) == (number > 1)
    for one in (figure, plots.metrics_figure({**evaluated[1], "patients": number})):
        texts = [text.get_text() for text in one.legends[0].get_texts()]
        assert any("too narrow" in text for text in texts) == (number == 4)


def test_the_volumes_figure_is_that_of_bland_and_altman():
    # Differences -2, 0, 5: mean 1, squares 9, 1, 16 around it, standard deviation sqrt(26 / 2) = 3.606.
    volumes = np.array([8.0, 20.0, 45.0]), np.array([10.0, 20.0, 40.0])
    figure = plots.volumes_figure({"": volumes}, "ml", "a note")
    (axes,) = figure.axes
    points = next(line for line in axes.lines if line.get_label() == "patient")
    np.testing.assert_array_equal(points.get_xydata(), [(9, -2), (20, 0), (42.5, 5)])
    drawn = {gid: [line.get_ydata()[0] for line in axes.lines if line.get_gid() == gid] for gid in ("bias", "limit")}
    assert drawn["bias"] == [1]
    assert drawn["limit"] == pytest.approx([1 - 1.96 * 13**0.5, 1 + 1.96 * 13**0.5])
    assert "mean difference is 1.0 ml" in figure.get_label()
    assert "-6.1 and 8.1 ml" in figure.get_label()
    alone = plots.volumes_figure({"": (np.array([8.0]), np.array([10.0]))}, "voxels").axes[0]
    assert not [line for line in alone.lines if line.get_gid() == "limit"]
    assert "voxels" in alone.get_ylabel()
    both = plots.volumes_figure({"whole": volumes, "core": (volumes[0] / 2, volumes[1])})
    assert [axes.get_title().split("\n")[0] for axes in both.axes] == ["whole", "core"]
    assert "mean difference of core" in both.get_label()


def test_a_cohort_with_tumour_in_every_slice_has_its_figure_too(evaluated):
    figures = [entry for entry in evaluated[1]["figures"] if entry["slices"] == "tumour"]
    axes = plots.metrics_figure({**evaluated[1], "figures": figures}).axes[0]
    assert len(axes.texts) == 6
    assert "6 Dice figures" in axes.get_title()


def test_the_disclaimer_stands_once_when_the_note_has_it(evaluated):
    figure = plots.metrics_figure(evaluated[1], f"synthetic images; {plots.DISCLAIMER}")
    assert figure.get_supxlabel().count(plots.DISCLAIMER) == 1


def test_found_missed_and_false_alarm_of_every_slice_are_stacked():
    rows = [
        {"case": case, "z": str(z), "tumour": str(int(z > 0)), "native_tp": tp, "native_fp": fp, "native_fn": fn}
        for case, factor in (("one", 1), ("two", 10))
        for z, (tp, fp, fn) in enumerate(((0, 5 * factor, 0), (3 * factor, 1 * factor, 2 * factor)))
    ]
    figure = plots.errors_figure(rows, {"two": "the second"})
    (axes,) = figure.axes
    assert axes.get_title("left") == "the second"
    stacks = {bars.get_label(): [(bar.get_y(), bar.get_height()) for bar in bars] for bars in axes.containers}
    assert stacks == {
        "found": [(0, 0), (0, 30)],
        "false alarm": [(0, 50), (30, 10)],
        "missed": [(50, 0), (40, 20)],
    }
    (band,) = [patch for patch in axes.patches if patch.get_label() == "tumour"]
    assert (band.get_x(), band.get_width()) == (0.5, 1)


def test_pairs_of_one_patient_are_joined_and_the_means_are_those_of_all():
    figure = plots.paired_figure(["a", "b", "c"], [0.2, 0.8, 0.5], [0.6, 0.7, 0.5], ("old", "new"), "a note")
    (axes,) = figure.axes
    lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    drawn = {name: list(line.get_ydata()) for name, line in lines.items()}
    assert drawn == {"a": [0.2, 0.6], "b": [0.8, 0.7], "c": [0.5, 0.5], "mean": pytest.approx([0.5, 0.6])}
    colours = {name: line.get_color() for name, line in lines.items()}
    assert colours == {"a": plots.BLUE, "b": plots.ORANGE, "c": plots.ORANGE, "mean": INK}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["old", "new"]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["0.500", "0.600"]
    assert sorted(texts[2:]) == ["a", "b", "c"]
    assert "a note" in figure.get_supxlabel()
    assert plots.DISCLAIMER in figure.get_supxlabel()


def test_names_of_patients_do_not_cover_each_other_and_many_are_left_out():
    few = plots.paired_figure(["a", "b"], [0.1, 0.9], [0.5, 0.501])
    heights = sorted(text.xy[1] for text in few.axes[0].texts if text.get_text() in "ab")
    assert heights[1] - heights[0] > 0.05
    many = [str(number) for number in range(30)]
    assert len(plots.paired_figure(many, [0.5] * 30, [0.6] * 30).axes[0].texts) == 2


def test_the_threshold_is_chosen_on_the_left_and_shown_on_the_right():
    thresholds = np.array([0.25, 0.5, 0.75])
    val = [counts((6, 6, 0, 9)).sum(), counts((5, 1, 1, 14)).sum(), counts((2, 0, 4, 15)).sum()]
    test = [counts((3, 3, 3, 12)).sum()] * 3
    figure = plots.threshold_figure(thresholds, val, test, 0.5)
    for axes, part, title in zip(figure.axes, (val, test), ("validation", "test"), strict=True):
        assert axes.get_title().startswith(title)
        lines = {line.get_label(): line for line in axes.lines}
        for name in ("dice", "precision", "recall"):
            np.testing.assert_array_equal(lines[name].get_xdata(), thresholds)
            np.testing.assert_allclose(lines[name].get_ydata(), [float(metrics.METRICS[name](at)) for at in part])
        assert set(lines["chosen: 0.50"].get_xdata()) == {0.5}


def test_reliability_sorts_pixels_into_bins():
    probabilities = np.array([[0.0, 0.1, 0.2], [0.6, 0.8, 1.0]], np.float32)
    truth = np.array([[0, 0, 1], [1, 0, 1]], np.uint8)
    found = plots.Reliability.of(probabilities, truth, bins=4)
    np.testing.assert_array_equal(found.number, [3, 0, 1, 2])
    np.testing.assert_allclose(found.predicted, [0.1, 0, 0.6, 0.9], rtol=1e-6)
    np.testing.assert_allclose(found.observed, [1 / 3, 0, 1, 1 / 2])
    assert found.error() == pytest.approx((3 * (1 / 3 - 0.1) + 0.4 + 2 * 0.4) / 6)
    assert found.error(first=1) == pytest.approx((0.4 + 2 * 0.4) / 3)
    assert found.error(first=4) == 0


def test_the_calibration_error_of_honest_probabilities_is_small_and_of_bold_ones_is_their_excess():
    rng = np.random.default_rng(0)
    honest = rng.random(200_000)
    truth = rng.random(200_000) < honest
    assert plots.Reliability.of(honest, truth).error() < 0.01
    always = np.full(1000, 0.9)
    assert plots.Reliability.of(always, np.arange(1000) < 600).error() == pytest.approx(0.3)


def test_the_calibration_figure_leaves_out_empty_bins():
    found = plots.Reliability(np.array([7, 0, 2]), np.array([0.1, 0, 0.9]), np.array([0.2, 0, 0.5]))
    top, below = plots.calibration_figure(found).axes
    (line,) = [line for line in top.lines if line.get_label() == "this network"]
    np.testing.assert_array_equal(line.get_xydata(), [[0.1, 0.2], [0.9, 0.5]])
    assert [bar.get_height() for bar in below.patches] == [7, 0, 2]
    np.testing.assert_allclose([bar.get_x() + bar.get_width() / 2 for bar in below.patches], [1 / 6, 1 / 2, 5 / 6])


def volume(slices=10):
    """A head that grows brighter from slice to slice, with tumour in all but the first and last two slices."""
    image = np.zeros((24, 30, slices))
    image[2:22, 2:28] = 50 + 10 * np.arange(slices)
    truth = np.zeros(image.shape, bool)
    truth[8:16, 8:16, 2:-2] = True
    return image, truth, np.roll(truth, 4, axis=0)


def frames(path):
    with Image.open(path) as picture:
        found = []
        for index in range(picture.n_frames):
            picture.seek(index)
            found.append(np.asarray(picture.convert("RGB"), dtype=float))
        return found, picture.info


@pytest.mark.parametrize(("asked", "expected"), [(24, 6), (3, 3)])
def test_the_animation_scrolls_up_through_the_tumour_slices(tmp_path, asked, expected):
    plots.scroll_animation(*volume(), tmp_path / "new" / "overlay.gif", frames=asked)
    found, info = frames(tmp_path / "new" / "overlay.gif")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["overlay.gif"]
    assert len(found) == expected
    assert info["loop"] == 0
    levels = [np.median(frame[100:150, 40:80]) for frame in found]
    assert levels == sorted(levels)  # one window for all: the brighter slice looks brighter
    assert levels[0] < levels[-1]


def test_the_animation_shows_the_truth_and_all_three_kinds_of_pixel_in_colour(tmp_path):
    plots.scroll_animation(*volume(), tmp_path / "overlay.gif", "a note")
    pixels = frames(tmp_path / "overlay.gif")[0][0].reshape(-1, 3)
    for colour in (plots.TRUE_POSITIVE, plots.FALSE_POSITIVE, plots.FALSE_NEGATIVE, plots.OUTLINE):
        solid = (np.abs(pixels - 255 * np.array(to_rgb(colour))).max(axis=1) <= 8).sum()
        assert solid > 10, colour
    greys = pixels[(np.ptp(pixels, axis=1) == 0) & (pixels[:, 0] > 0)][:, 0].astype(int)
    grey = int(np.bincount(greys).argmax())  # of the head: it has more pixels than the letters
    tinted = 0.65 * 255 * np.array(to_rgb(plots.TRUE_POSITIVE)) + 0.35 * grey
    assert (np.abs(pixels - tinted).max(axis=1) <= 12).sum() > 100


@pytest.mark.parametrize("shape", [(100, 160), (200, 160)])
def test_the_titles_of_an_animation_are_whole_and_apart(tmp_path, monkeypatch, shape):
    drawn = []
    monkeypatch.setattr(
        "unetlib.show.plots.overlays.to_png", lambda *a, **k: drawn.append(a[0]) or plots.to_png(*a, **k)
    )
    mask = np.ones((*shape, 1), bool)
    plots.scroll_animation(mask * 1.0, mask, mask, tmp_path / "overlay.gif")
    boxes = [axes.title.get_window_extent() for axes in drawn[0].axes]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
    assert boxes[-1].x1 <= drawn[0].bbox.width


def test_without_tumour_the_animation_scrolls_through_the_whole_volume(tmp_path):
    image, truth, _ = volume()
    plots.scroll_animation(image, truth & False, truth & False, tmp_path / "overlay.gif")
    assert len(frames(tmp_path / "overlay.gif")[0]) == 10


def test_all_figures_are_written_and_named(evaluated, tmp_path):
    paths = plots.make_figures(evaluated[0], tmp_path, "cpu")
    names = ["curves.png", "overlays.png", "metrics.png", "volumes.png", "architecture.png", "overlay.gif"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == path.suffix[1:].upper()
            assert min(picture.size) > 100
    (tmp_path / "of_mine.txt").touch()
    assert plots.make_figures(evaluated[0], tmp_path, "cpu") == paths
    paths[0].unlink()
    with pytest.raises(UnetlibError, match=r"holds .* and is not a folder of figures"):
        plots.make_figures(evaluated[0], tmp_path, "cpu")


def test_figures_that_were_stopped_go_on_in_their_folder(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("unetlib.show.plots.overlays.scroll_animation", None)  # stopped before the last one
    with pytest.raises(TypeError):
        plots.make_figures(evaluated[0], tmp_path / "out", "cpu")
    monkeypatch.undo()
    paths = plots.make_figures(evaluated[0], tmp_path / "out", "cpu")
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)


@pytest.mark.parametrize(
    ("dices", "expected"),
    [
        ((0.9,), {"a": "best"}),
        ((0.9, 0.2), {"a": "best", "b": "worst"}),
        ((0.9, 0.9, 0.9), {"a": "best", "b": "median", "c": "worst"}),
        ((0.9, 0.5, 0.4, 0.2), {"a": "best", "c": "median", "d": "worst"}),
    ],
)
def test_nobody_is_shown_twice_and_the_last_of_two_is_the_worst(dices, expected):
    rows = [{"patient": name, "dice": str(dice)} for name, dice in zip("abcd", dices, strict=False)]
    found = three_of(rows)
    assert [(name, rank) for name, (rank, _) in found.items()] == [*expected.items()]
