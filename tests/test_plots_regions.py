"""Figures of several regions: each region by its name, in its own colour or panel, never pooled with another."""

from dataclasses import replace
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from unetlib import metrics, plots
from unetlib.data.cases import Case
from unetlib.data.volumes import Source, array_to_volume
from unetlib.metrics import Counts
from unetlib.recipe import Recipe
from unetlib.show.plots.colours import REGIONS
from unetlib.show.plots.common import named_regions
from unetlib.show.plots.drawing import first_sequence, largest_slice
from unetlib.show.plots.overlays import ranked

NAMES = ("whole", "core", "enhancing")
TRUTH = np.zeros((3, 24, 30, 6), bool)
TRUTH[0, 4:20, 4:26, 1:5] = TRUTH[1, 8:16, 8:20, 2:5] = TRUTH[2, 10:14, 10:14, 3] = True
FOUND = np.roll(TRUTH, 2, axis=1)
VOLUME = array_to_volume(np.random.default_rng(0).normal(100, 9, TRUTH.shape[1:]), np.diag([-1.0, -1, 1, 1]), "flair")
CASE = Case("a", "a", "", {"flair": Source(("a.nii",))}, None)
RANKED = plots.Ranked("best", 0.9, CASE, VOLUME, TRUTH, FOUND, NAMES)


def colours(axes):
    """The colours of the contours of axes, in order."""
    return [tuple(one.get_edgecolor()[0][:3]) for one in axes.collections]


def test_a_row_has_a_contour_a_region_in_reference_and_prediction():
    figure = plots.overlay_figure([RANKED.overlay(3)])
    plain, reference, prediction = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["FLAIR", "reference", "prediction"]
    assert colours(plain) == []
    assert colours(reference) == colours(prediction) == [to_rgb(colour) for colour in REGIONS[:3]]
    (path,) = reference.collections[2].get_paths()
    assert path.vertices.min(0).tolist() == [9.5, 9.5]
    (path,) = prediction.collections[2].get_paths()
    assert path.vertices.min(0).tolist() == [11.5, 9.5]
    assert [text.get_text() for text in figure.legends[0].texts] == [*NAMES]
    assert all(name in figure.get_label() for name in NAMES)


def test_the_title_of_a_row_holds_the_dice_of_every_region():
    overlay = RANKED.overlay()
    for k, line in enumerate(overlay.title.splitlines()[-3:]):
        every, here = (
            metrics.dice(metrics.count(found[None, None], true[None, None])).item()
            for found, true in ((FOUND[k], TRUTH[k]), (FOUND[k, :, :, 1], TRUTH[k, :, :, 1]))
        )
        assert line == f"{NAMES[k]} {every:.2f}, {here:.2f}"


def test_a_patient_without_the_first_sequence_is_shown_in_another_by_its_name():
    case = replace(CASE, modalities=("flair", "t1"))
    pairs = [
        (np.stack(pair), name)
        for pair, name in (((VOLUME.voxels, VOLUME.voxels + 1), "FLAIR"), ((0 * VOLUME.voxels, VOLUME.voxels), "T1"))
    ]
    rows = []
    for voxels, name in pairs:
        read = replace(VOLUME, voxels=voxels), TRUTH, FOUND
        (row,) = ranked({"a": ("best", 0.9)}, [case], lambda _, read=read: read, NAMES)
        assert row.sequence == name
        rows.append(row.overlay(3))
    figure = plots.overlay_figure(rows)
    assert [axes.get_title() for axes in figure.axes[::3]] == ["FLAIR", "T1"]
    assert figure.get_label().startswith("FLAIR or T1, ")


def test_a_region_that_is_not_there_has_no_contour():
    overlay = replace(RANKED, prediction=TRUTH & np.array([True, False, True])[:, None, None, None]).overlay(3)
    assert colours(plots.overlay_figure([overlay]).axes[2]) == [to_rgb(REGIONS[0]), to_rgb(REGIONS[2])]


def test_the_slice_with_most_tumour_is_that_of_all_regions_together():
    masks = np.zeros((2, 4, 4, 3), bool)
    masks[0, :2, :, 1] = masks[:, 0, 0:3, 2] = True
    assert largest_slice(masks) == 1
    assert largest_slice(masks[1]) == 2


def test_of_several_sequences_the_first_that_is_not_empty_is_shown():
    several = replace(VOLUME, voxels=np.stack([VOLUME.voxels, VOLUME.voxels + 1]))
    np.testing.assert_array_equal(first_sequence(several).voxels, VOLUME.voxels)
    without = replace(VOLUME, voxels=np.stack([0 * VOLUME.voxels, VOLUME.voxels]))
    np.testing.assert_array_equal(first_sequence(without).voxels, VOLUME.voxels)
    np.testing.assert_array_equal(first_sequence(VOLUME).voxels, VOLUME.voxels)


def test_the_animation_outlines_every_region(tmp_path):
    plots.scroll_animation(VOLUME.voxels, TRUTH, FOUND, tmp_path / "a.gif", regions=NAMES)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 4
        image.seek(2)  # z = 3
        shown = np.asarray(image.convert("RGB")).astype(int)
    for colour in REGIONS[:3]:
        assert (np.abs(shown - 255 * np.array(to_rgb(colour))).max(-1) <= 8).sum() > 10, colour


def test_a_batch_has_lines_for_the_reference_and_dashes_for_the_prediction():
    masks, found = (np.moveaxis(one, 3, 0)[3:4] for one in (TRUTH, FOUND))
    figure = plots.batch_figure(np.moveaxis(VOLUME.voxels, 2, 0)[3:4], masks, found, regions=NAMES)
    assert colours(figure.axes[0]) == 2 * [to_rgb(colour) for colour in REGIONS[:3]]
    dashed = [one.get_linestyle()[0][1] is not None for one in figure.axes[0].collections]
    assert dashed == [False] * 3 + [True] * 3
    assert [text.get_text() for text in figure.legends[0].texts] == [*NAMES, "reference", "prediction"]


def entry(region, dice, slices="all"):
    return {"aggregation": "pooled", "slices": slices, "grid": "native", "region": region, "dice": dice}


@pytest.mark.parametrize("keys", [(0, 1, 2), NAMES], ids=["numbers", "names"])
def test_the_metrics_of_each_region_have_a_column_of_their_own(keys):
    figures = [
        entry(key, dice, slices)
        for key, dice in zip(keys, (0.9, 0.8, 0.7), strict=True)
        for slices in ("all", "tumour")
    ]
    summary = {"figures": figures, "patients": 2, "slices": 9, "tumour_slices": 4}
    figure = plots.metrics_figure(summary, "a note", NAMES)
    assert [axes.get_title() for axes in figure.axes] == [*NAMES]
    for axes, dice in zip(figure.axes, (0.9, 0.8, 0.7), strict=True):
        assert [text.get_text() for text in axes.texts] == [f"{dice:.3f}"] * 2
    assert "core: pooled, all slices, native grid 0.800" in figure.get_label()
    assert "6 Dice figures" in figure.get_supxlabel()
    assert "a note" in figure.get_supxlabel()


def test_the_patients_of_each_region_have_a_column_with_its_mean():
    dices = {"whole": [0.9, 0.7], "core": [0.2, 0.4]}
    figure = plots.patients_figure(dices, {"core": (0.25, 0.35)})
    assert [axes.get_title() for axes in figure.axes] == ["whole: mean 0.800", "core: mean 0.300"]
    assert [axes.lines[0].get_ydata().tolist() for axes in figure.axes] == [[0.7, 0.9], [0.2, 0.4]]
    assert [len(axes.patches) for axes in figure.axes] == [0, 1]


def test_the_errors_of_each_region_have_a_row_of_their_own():
    rows = [
        {"case": "a", "region": str(k), "z": z, "tumour": 1, "native_tp": 10 * (k + 1), "native_fp": 1, "native_fn": 2}
        for z in range(3)
        for k in range(2)
    ]
    figure = plots.errors_figure(rows, {"a": "the worst"}, regions=NAMES[:2])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["the worst, whole", "the worst, core"]
    assert [axes.patches[0].get_height() for axes in figure.axes] == [10, 20]


def test_the_threshold_of_each_region_has_a_row_of_its_own():
    counts = [Counts(*np.array([[5, 1], [1, 2], [2, 3], [9, 9]]))] * 3
    figure = plots.threshold_figure(np.array([0.2, 0.5, 0.8]), counts, counts, (0.5, 0.2), regions=NAMES[:2])
    assert [axes.get_title().split(",")[0] for axes in figure.axes] == ["whole", "whole", "core", "core"]
    for k, axes in enumerate(figure.axes[::2]):
        assert axes.lines[0].get_ydata().tolist() == pytest.approx([metrics.dice(counts[0])[k]] * 3)
        assert axes.lines[3].get_xdata()[0] == (0.5, 0.2)[k]


def test_one_region_needs_no_name():
    assert named_regions(Recipe.published) == ()


def test_regions_with_one_border_are_all_seen():
    same = replace(RANKED, truth=np.stack([TRUTH[1]] * 3)).overlay(3)
    widths = [one.get_linewidth()[0] for one in plots.overlay_figure([same]).axes[1].collections]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3
    x, y = np.mgrid[-50:50, -50:50]
    disc, none = np.stack([x**2 + y**2 < 400] * 3), np.zeros((3, 100, 100), bool)
    figure = plots.overlay_figure([plots.Overlay("a", x**2.0 + y**2, disc, none, NAMES)])
    image = Image.open(BytesIO(plots.to_png(figure))).convert("RGBA")
    pixels = np.asarray(image).astype(int)[image.height // 4 :, :, :3]  # above it, the legend has these colours, too
    for colour in REGIONS[:3]:
        assert (np.abs(pixels - 255 * np.array(to_rgb(colour))).max(-1) <= 8).sum() > 100, colour


def test_the_volumes_of_each_region_have_a_panel_whose_labels_do_not_overlap():
    some = np.array([10.0, 120.0, 90.0]), np.array([110.0, 20.0, 70.0])
    figure = plots.volumes_figure(dict.fromkeys(NAMES, some))
    figure.draw_without_rendering()
    width = figure.bbox.width
    for part in ("xaxis", "title"):
        boxes = [(axes.title if part == "title" else axes.xaxis.label).get_window_extent() for axes in figure.axes]
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
        assert boxes[0].x0 >= 0
        assert boxes[-1].x1 <= width
