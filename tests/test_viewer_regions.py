"""Several regions in the viewer, on the side of Python: masks of labels, stacks of masks, and the still."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from tests.test_viewer import AFFINE, SHAPE, VOLUME, image, message, received
from unetlib import SliceViewer
from unetlib.show.layers import Layers
from unetlib.show.plots.colours import LABELS, REGIONS
from unetlib.support.errors import UnetlibError

SEG = np.zeros(SHAPE, np.uint8)
SEG[2:10, 4:12, 2:8] = 2
SEG[3:8, 5:10, 3:7] = 1
SEG[4:6, 6:8, 4:6] = 4
BRATS = {"whole": None, "core": (1, 4), "enhancing": 4}
PARTS = {"necrotic core": 1, "oedema": 2, "enhancing": 4}
STACK = np.stack([SEG > 0, np.isin(SEG, (1, 4)), SEG == 4])
SEQUENCES = {name: VOLUME + k for k, name in enumerate(("flair", "t1", "t1ce", "t2"))}


def shown(viewer):
    """The colours of the still, without its legend and letters below."""
    return np.asarray(Image.open(BytesIO(viewer.to_png())).convert("RGB")).astype(int)[:-60]


def count(pixels, colour, tolerance=45):
    return int((np.abs(pixels - 255 * np.array(to_rgb(colour))).max(2) <= tolerance).sum())


@pytest.mark.parametrize(
    "given", [SEG, image(SEG), STACK, STACK.astype(np.uint8)], ids=["labels", "nifti", "stack", "uint8"]
)
def test_labels_and_stacks_travel_as_one_bit_a_region(given):
    mask = received(SliceViewer(image(), given, regions=BRATS))[1]
    for k, region in enumerate(STACK):
        np.testing.assert_array_equal(mask >> k & 1, region)


def test_a_stack_needs_only_names():
    viewer = SliceViewer(VOLUME, STACK, regions=("a", "b", "c"))
    assert message(viewer)[0]["regions"] == ["a", "b", "c"]
    np.testing.assert_array_equal(received(viewer)[1] >> 2, STACK[2])


def test_four_sequences_share_the_masks_of_their_regions():
    content, buffers = message(SliceViewer(SEQUENCES, SEG, STACK, regions=BRATS, affine=AFFINE))
    assert [panel["name"] for panel in content["panels"]] == [*SEQUENCES]
    assert len(buffers) == 4 + 2
    assert content["choices"]["show"][:4] == ["none", "truth", "prediction", "both"]
    assert content["choices"]["show"][4:] == [f"errors: {name}" for name in BRATS]


@pytest.mark.parametrize(
    ("regions", "truth", "prediction", "show", "style"),
    [
        (None, SEG, STACK[0], "errors", "fill"),
        (BRATS, SEG, STACK, "both", "outline"),
        (BRATS, SEG, None, "truth", "outline"),
        (PARTS, SEG, None, "truth", "fill"),
        (PARTS, None, SEG, "prediction", "fill"),
        ([*BRATS], STACK, None, "truth", "outline"),
    ],
)
def test_what_is_seen_first_fits_the_regions(regions, truth, prediction, show, style):
    viewer = SliceViewer(VOLUME, truth, prediction, regions=regions)
    assert (viewer.show, viewer.style) == (show, style)
    viewer = SliceViewer(VOLUME, truth, prediction, regions=regions, show="none", style="fill")
    assert (viewer.show, viewer.style) == ("none", "fill")


def test_a_label_has_the_colour_that_it_has_in_the_figures():
    assert Layers.of(PARTS).colours == [LABELS[1], LABELS[2], LABELS[4]]
    assert Layers.of({"oedema": 2, "solid": (1, 4)}).colours == [LABELS[2], LABELS[4]]
    assert Layers.of(BRATS).colours == Layers.of([*BRATS]).colours == list(REGIONS[:3])
    assert len(set(REGIONS)) == len(REGIONS) == 8
    assert Layers.of({str(label): label for label in range(1, 9)}).colours == list(REGIONS)


def test_the_classes_of_a_slice_tell_reference_and_prediction_of_each_region_apart():
    moved = np.roll(STACK, 1, axis=1)
    panel = SliceViewer(VOLUME, SEG, moved, regions=BRATS).panels[0]
    classes = panel.slices("axial", 4)[1]
    for k in range(3):
        np.testing.assert_array_equal(classes >> k & 1, STACK[k, :, :, 4].T)
        np.testing.assert_array_equal(classes >> 3 + k & 1, moved[k, :, :, 4].T)
    for layer, meant in zip(panel.layers("errors: core"), (STACK & moved, STACK & ~moved, ~STACK & moved), strict=True):
        np.testing.assert_array_equal(classes & layer.mask == layer.value, meant[1, :, :, 4].T)


def test_where_one_mask_is_missing_errors_of_a_region_are_its_other_mask():
    panels = SliceViewer([VOLUME, VOLUME], SEG, [None, SEG], regions=PARTS).panels
    assert [(layer.name, layer.of) for layer in panels[0].layers("errors: oedema")] == [("oedema", "truth")]
    assert [layer.of for layer in panels[1].layers("errors: oedema")] == ["errors"] * 3


def test_the_still_fills_each_label_in_its_colour():
    pixels = shown(SliceViewer(VOLUME, SEG, regions=PARTS, opacity=1, position=(4, 6, 4)))
    areas = [count(pixels, LABELS[label], 12) for label in (1, 2, 4)]
    assert min(areas) > 200
    assert areas[1] > areas[0] > areas[2]


def test_the_still_outlines_every_region_and_dashes_the_prediction():
    viewer = SliceViewer(VOLUME, SEG, STACK, regions=BRATS, opacity=1, position=(4, 6, 4), show="truth")
    lines = [count(shown(viewer), colour) for colour in REGIONS[:3]]
    viewer.show = "prediction"
    dashes = [count(shown(viewer), colour) for colour in REGIONS[:3]]
    assert min(dashes) > 20
    assert all(dashed < 0.85 * whole for dashed, whole in zip(dashes, lines, strict=True)), (dashes, lines)


def test_an_inner_region_is_filled_above_the_outer_one():
    pixels = shown(SliceViewer(VOLUME, SEG, regions=BRATS, style="fill", opacity=1, position=(4, 6, 4)))
    assert min(count(pixels, colour, 12) for colour in REGIONS[:3]) > 200


def test_of_two_masks_only_the_prediction_is_filled():
    viewer = SliceViewer(VOLUME, SEG, SEG * 0, regions=PARTS, opacity=1, position=(4, 6, 4))
    filled = [layer.of for layer in viewer.regions.parts(viewer.regions.by_choice["both"], "both", "fill")[0]]
    assert filled == ["prediction"] * 3
    viewer.show = "truth"
    whole = count(shown(viewer), LABELS[2], 12)
    viewer.show = "both"
    assert 0 < count(shown(viewer), LABELS[2], 60) < whole / 2, "lines only: nothing was predicted"


def test_a_label_that_no_region_has_is_told():
    notes = message(SliceViewer({"t2": VOLUME}, SEG, regions={"core": (1, 4)}))[0]["notes"]
    assert notes[0] == "Not shown of the reference of t2: label 2, which no region has"
    assert "Not shown" not in message(SliceViewer(VOLUME, SEG, regions=PARTS))[0]["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"regions": "whole core"}, "regions is 'whole core'; 1 to 8 different names were expected"),
        ({"regions": []}, r"regions is \[\]; 1 to 8 different names"),
        ({"regions": ("a", "a")}, "1 to 8 different names"),
        ({"regions": list("abcdefghi")}, "1 to 8 different names"),
        ({"regions": {"core": ()}}, r"the region core has the labels \(\); whole numbers from 1 to 255 were expected"),
        ({"regions": {"core": "1+4"}}, "the region core has the labels '1\\+4'"),
        ({"regions": {"core": (1, 0)}}, "the region core has the labels"),
        ({"regions": {"core": 1.5}}, "the region core has the labels 1.5"),
        (
            {"regions": ("whole", "core"), "truth": SEG},
            "the reference of volume 1 is one mask, and regions does not say",
        ),
        ({"regions": ("whole", "core"), "truth": STACK}, r"has masks of 3 regions; 2 are named \(whole, core\)"),
        ({"prediction": STACK}, "the prediction of volume 1 has masks of 3 regions. Name them"),
        (
            {"regions": BRATS, "prediction": STACK * 0.5},
            "a region in the prediction of volume 1 holds values from 0 to 0.5",
        ),
        ({"regions": BRATS, "truth": STACK[:, 1:]}, r"the reference of volume 1 has shape \(3, 11, 16, 10\)"),
        (
            {"regions": BRATS, "truth": SEG, "prediction": SEG, "show": "errors"},
            "show is 'errors'; this viewer has none",
        ),
    ],
)
def test_bad_regions_are_told_in_a_sentence(arguments, sentence):
    with pytest.raises(UnetlibError, match=sentence):
        SliceViewer(**{"volume": VOLUME, **arguments})
