"""What all figures share: they suit any page, are cut to the head, hide no curve, and have an alt text."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tests.test_plots_exploration import portraits  # noqa: F401 - a fixture
from unetlib import plots
from unetlib.data.patients import find_cases
from unetlib.data.slices import Window
from unetlib.engine.costs import Cost
from unetlib.evaluation.summary import AGGREGATIONS, SLICES
from unetlib.metrics import Counts
from unetlib.prediction.decision import SIZES_ML, THRESHOLDS, Decision
from unetlib.show.plots import colours
from unetlib.unet import UNet

IMAGE = np.zeros((40, 30))
IMAGE[10:30, 8:24] = 100 + np.arange(16)
IMAGE[28:30, 10:14] = 400  # the brightest: all else is shown in greys
MASK = np.zeros(IMAGE.shape, bool)
MASK[15:20, 12:16] = True
HISTORY = [{"epoch": epoch, "train_loss": 0.5, "val_loss": 0.6, "val_dice": 0.1 * epoch} for epoch in (1, 2)]
COUNTS = [Counts(*np.array([5, 1, 2, 9]))] * 3
SUMMARY = {
    "figures": [{"aggregation": a, "slices": s, "grid": "native", "dice": 0.5} for a in AGGREGATIONS for s in SLICES],
    **{"patients": 2, "slices": 9, "tumour_slices": 4},
}
RECORD = {"case": "a", "z": 1, "native_tp": 2, "native_fp": 1, "native_fn": 1, "tumour": 1}
DRAWN = {
    "architecture_figure": lambda _: plots.architecture_figure(UNet(width=4, depth=2)),
    "batch_figure": lambda _: plots.batch_figure(IMAGE[None], MASK[None], MASK[None]),
    "by_region_figure": lambda _: plots.by_region_figure({"": {"flair": np.array([[0.5], [0.7]])}}, ["whole"]),
    "calibration_figure": lambda _: plots.calibration_figure(plots.Reliability.of(np.arange(9) / 9, np.arange(9) > 4)),
    "case_figure": lambda given: plots.case_figure(given[1]),
    "ceiling_figure": lambda _: plots.ceiling_figure([10, 90], [0.8, 0.9], 64),
    "costs_figure": lambda _: plots.costs_figure([Cost("unet", 8, 4, 2_000_000, 1.0, 50.0)]),
    "curves_figure": lambda _: plots.curves_figure(HISTORY),
    "decision_figure": lambda _: plots.decision_figure(np.ones((len(THRESHOLDS), len(SIZES_ML))), Decision(0.5)),
    "errors_figure": lambda _: plots.errors_figure([RECORD, RECORD | {"z": 2}], {"a": "the worst\npatient"}),
    "gates_figure": lambda _: plots.gates_figure(IMAGE, MASK, {"trained": [MASK[::2, ::2]]}),
    "grid_figure": lambda _: plots.grid_figure(IMAGE, MASK, IMAGE[:20, :20], MASK[:20, :20], MASK, ""),
    "histograms_figure": lambda _: plots.histograms_figure({"one": np.arange(9.0)}, "intensity"),
    "intensities_figure": lambda given: plots.intensities_figure(given[0]),
    "labels_figure": lambda _: plots.labels_figure(IMAGE, 2 * MASK),
    "leak_figure": lambda _: plots.leak_figure(["seed 0"], [0.8], [0.6]),
    "loss_figure": lambda _: plots.loss_figure(),
    "metrics_figure": lambda _: plots.metrics_figure(SUMMARY),
    "outlier_figure": lambda _: plots.outlier_figure(IMAGE / 400, IMAGE / 1600),
    "overlay_figure": lambda _: plots.overlay_figure([plots.Overlay("best\nDice 0.80", IMAGE, MASK, MASK)]),
    "paired_figure": lambda _: plots.paired_figure(["a", "b"], [0.2, 0.4], [0.5, 0.3]),
    "patients_figure": lambda _: plots.patients_figure({"": [0.2, 0.4]}, {}),
    "pictures_figure": lambda _: plots.pictures_figure({"above\nbelow": IMAGE}),
    "positions_figure": lambda given: plots.positions_figure(given[0]),
    "probability_figure": lambda _: plots.probability_figure(IMAGE, MASK, MASK * 0.7),
    "profiles_figure": lambda given: plots.profiles_figure(given[0]),
    "rates_figure": lambda _: plots.rates_figure({"constant": [1, 1]}),
    "sequences_figure": lambda _: plots.sequences_figure({"flair": IMAGE, "t1": IMAGE}, MASK[None], ["whole"]),
    "sheet_figure": lambda _: plots.sheet_figure([IMAGE], [MASK], ["a"]),
    "sizes_figure": lambda given: plots.sizes_figure(given[0]),
    "staircase_figure": lambda _: plots.staircase_figure(["a", "b"], [0.1, 0.2], [None, None]),
    "threshold_figure": lambda _: plots.threshold_figure(np.array([0.2, 0.5, 0.8]), COUNTS, COUNTS, 0.2),
    "volumes_figure": lambda _: plots.volumes_figure({"": (np.array([8.0, 20.0]), np.array([10.0, 21.0]))}),
    "voxels_figure": lambda _: plots.voxels_figure(IMAGE, (15, 12)),
    "window_figure": lambda _: plots.window_figure(IMAGE, Window(0, 0, 40), {"cut": IMAGE / 400}),
}


@pytest.fixture
def given(portraits, cohort):  # noqa: F811
    return portraits, find_cases(cohort).cases[:1]


def decoded(png):
    return Image.open(BytesIO(png))


def contrast(one, other):
    """The ratio of WCAG 2.1 between two colours of matplotlib."""
    linear = [
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)] for colour in (one, other)
    ]
    low, high = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (high + 0.05) / (low + 0.05)


def test_every_figure_is_tried_here():
    assert set(DRAWN) == {name for name in vars(plots) if name.endswith("_figure") and name != "new_figure"}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_has_an_alt_text_twice_the_pixels_and_suits_a_dark_page(name, given):
    png, about = plots.in_notebook(DRAWN[name](given))
    picture = decoded(png)
    assert len(about["alt"]) > 25
    assert "\n" not in about["alt"]
    assert picture.width == 2 * about["width"] == 1800
    pixels = np.asarray(picture.convert("RGBA")).astype(int)
    assert (pixels[0, :, 3] == 0).all(), "the page shows through"
    white = (pixels[..., :3] > 240).all(-1) & (pixels[..., 3] > 128)
    assert white.mean() < 0.03, "no white slab"


@pytest.mark.parametrize("page", ["white", "#111111"])
def test_letters_and_curves_are_seen_on_light_and_dark_pages(page):
    assert contrast(colours.INK, page) > 4.3
    assert all(contrast(colour, page) > 3 for colour in colours.CURVES)


def test_letters_axes_and_ticks_are_drawn_in_ink():
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.set(title="a title", xlabel="x")
    axes.text(0.1, 0.5, "chosen", color="#000000", fontsize=20, transform=axes.transAxes)
    axes.plot([], [], label="a curve")
    axes.legend()
    pixels = np.asarray(decoded(plots.to_png(figure)).convert("RGBA")).astype(int)
    solid = pixels[(pixels[..., 3] == 255)][:, :3]
    ink, chosen = (np.abs(solid - 255 * np.array(to_rgb(colour))).max(axis=1) <= 8 for colour in (colours.INK, "black"))
    assert ink.sum() > 300
    assert 50 < chosen.sum() < 500, "a colour that was asked for stays"


def test_a_figure_with_a_colour_of_its_own_stays_opaque():
    picture = decoded(plots.to_png(Figure(figsize=(1, 1), facecolor="black")))
    assert np.asarray(picture.convert("RGBA"))[0, 0].tolist() == [0, 0, 0, 255]


def test_what_is_half_transparent_stays_so():
    figure = Figure(figsize=(1, 1))
    figure.add_axes((0, 0, 1, 1)).axhspan(0, 1, color=(1, 0, 0, 0.5))
    red, _, _, alpha = np.asarray(decoded(plots.to_png(figure)).convert("RGBA"))[50, 50]
    assert red > 240
    assert 120 < alpha < 136


@pytest.mark.parametrize("air", [0, 12])
def test_a_slice_is_cut_to_the_head_with_or_without_skull(air):
    """Air is 0 where the skull was stripped, and noise where it was not; dark ventricles do not matter."""
    image = air * np.random.default_rng(0).random((100, 120))
    image[20:80, 30:100] = 100
    image[40:60, 50:70] = 0
    axes = Figure().subplots()
    plots.show_slice(axes, image)
    assert plots.cut_to_head([(axes, image)]) == pytest.approx(66 / 76)
    assert axes.get_xlim() == (26.5, 102.5)
    assert axes.get_ylim() == (82.5, 16.5)


def test_a_false_alarm_in_the_air_is_not_cut_off_and_a_head_at_the_edge_has_no_more_than_the_slice():
    alarm = np.zeros(IMAGE.shape, bool)
    alarm[38, 1] = True
    image = IMAGE.copy()
    image[:12, 8:24] = 100
    figure = plots.overlay_figure([plots.Overlay("a", image, MASK, alarm)])
    for axes in figure.axes:
        assert axes.get_xlim() == (-0.5, 25.5)
        assert axes.get_ylim() == (39.5, -0.5)


def test_all_panels_of_one_shape_are_cut_alike():
    low, other = np.roll(IMAGE, 8, axis=0), np.pad(IMAGE, 4)
    rows = [
        plots.Overlay(name, image, image > 200, image > 200) for name, image in (("a", IMAGE), ("b", low), ("c", other))
    ]
    limits = [(axes.get_xlim(), axes.get_ylim()) for axes in plots.overlay_figure(rows).axes]
    assert len(set(limits[:6])) == 1
    assert limits[0][1] == (38.5, 8.5), "from the upper head's first row to the lower one's last, and a margin"
    assert len(set(limits[6:])) == 1


@pytest.mark.parametrize("image", [np.zeros((8, 9)), np.ones((8, 9))])
def test_a_slice_without_a_head_is_shown_whole(image):
    axes = Figure().subplots()
    plots.show_slice(axes, image)
    plots.cut_to_head([(axes, image)])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 8.5), (7.5, -0.5))


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.decision_figure(np.full((len(THRESHOLDS), len(SIZES_ML)), 0.5), Decision(0.55)),
        lambda: plots.rates_figure({name: [1.0, 1.0] for name in "abcde"}),
    ],
)
def test_curves_that_are_equal_are_all_seen(figure):
    drawn = figure()
    for legend in (*drawn.legends, *(axes.get_legend() for axes in drawn.axes if axes.get_legend())):
        legend.remove()
    pixels = np.asarray(decoded(plots.to_png(drawn)).convert("RGBA")).astype(int)
    lines = drawn.axes[0].lines
    assert len(lines) == 5
    for line in lines:
        near = np.abs(pixels[..., :3] - 255 * np.array(to_rgb(line.get_color()))).max(axis=-1) <= 12
        assert (near & (pixels[..., 3] == 255)).sum() > 300, line.get_label()


def test_no_histogram_is_left_out():
    (axes,) = plots.histograms_figure({name: np.arange(9.0) for name in "abcdef"}, "intensity").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("abcdef")
