"""The Python side of the viewer: what goes in, what travels to the browser, what stays where none is."""

import base64
import gzip
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import nbclient
import nbformat
import nibabel as nib
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from unetlib import SliceViewer
from unetlib.data.patients import find_cases
from unetlib.data.volumes import Source, array_to_volume, read_volume
from unetlib.show.embedded import STYLE
from unetlib.support.errors import UnetlibError

SHAPE = (12, 16, 10)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = np.array([[-1, 0, 0, 30], [0, -1.5, 0, 20], [0, 0, 2, -10], [0, 0, 0, 1.0]])  # LPS order
VOLUME = np.arange(1, np.prod(SHAPE) + 1, dtype=np.int16).reshape(SHAPE)
TRUTH, PREDICTION = np.zeros((2, *SHAPE), np.uint8)
TRUTH[2:6, 4:9, 3:6] = 4
TRUTH[2:5, 4:9, 6] = 1  # smaller than in slices 3 to 5
PREDICTION[4:8, 4:9, 3:6] = 1
COLOURS = {"found": (0, 158, 115), "missed": (86, 180, 233), "alarm": (213, 94, 0), "truth": (240, 228, 66)}


def image(array=VOLUME, affine=AFFINE):
    return nib.Nifti1Image(array, affine)


def turned(array, affine=AFFINE, axes="RAS"):
    """The same image stored in another order, as most tools do."""
    ornt = nib.orientations.ornt_transform(*(nib.orientations.axcodes2ornt(code) for code in ("LPS", axes)))
    return image(array, affine).as_reoriented(ornt)


def saved(path, array=VOLUME, affine=AFFINE):
    nib.save(image(array, affine), path)
    return path


def message(viewer):
    """What the browser gets when it asks: the description, and its buffers."""
    sent = []
    viewer.send = lambda content, buffers=None: sent.append((content, buffers))
    viewer._handle_custom_msg({"kind": "ready"}, [])
    ((content, buffers),) = sent
    return content, buffers


def received(viewer, number=0):
    """The values, the truth and the prediction of one panel, (X, Y, Z), put together as the browser does."""
    content, buffers = message(viewer)
    panel = content["panels"][number]
    stored = np.frombuffer(buffers[panel["voxels"]], "<i2").reshape(panel["shape"], order="F")
    masks = [
        None
        if panel[kind] is None
        else np.frombuffer(buffers[panel[kind]], np.uint8).reshape(panel["shape"], order="F")
        for kind in ("truth", "prediction")
    ]
    return panel["slope"] * stored + panel["intercept"], *masks


# Inputs


@pytest.mark.parametrize("kind", ["path", "text", "source", "image", "volume", "array"])
def test_every_kind_of_input_shows_the_same_voxels(tmp_path, kind):
    def given(array, name):
        path = saved(tmp_path / f"{name}.nii.gz", array)
        return {
            "path": path,
            "text": str(path),
            "source": Source((path,)),
            "image": nib.load(path),
            "volume": read_volume(Source((path,))),
            "array": array,
        }[kind]

    viewer = SliceViewer(given(VOLUME, "flair"), given(TRUTH, "truth"), given(PREDICTION, "prediction"), affine=AFFINE)
    for shown, meant in zip(received(viewer), (VOLUME, TRUTH, PREDICTION), strict=True):
        np.testing.assert_array_equal(shown, meant)
    np.testing.assert_allclose(message(viewer)[0]["panels"][0]["affine"], AFFINE)


def test_images_are_turned_to_lps_with_their_masks():
    viewer = SliceViewer(turned(VOLUME), turned(TRUTH, axes="PIR"), PREDICTION)
    for shown, meant in zip(received(viewer), (VOLUME, TRUTH, PREDICTION), strict=True):
        np.testing.assert_array_equal(shown, meant)
    panel = message(viewer)[0]["panels"][0]
    np.testing.assert_allclose(panel["affine"], AFFINE)
    np.testing.assert_allclose(panel["spacing"], (1, 1.5, 2))


def test_modalities_of_a_case_share_one_mask(cohort):
    case = find_cases(cohort).cases[0]
    viewer = SliceViewer({"flair": case.images["flair"], "again": case.images["flair"]}, truth=case.seg)
    content, buffers = message(viewer)
    assert [panel["name"] for panel in content["panels"]] == ["flair", "again"]
    assert content["panels"][0]["truth"] == content["panels"][1]["truth"]
    assert len(buffers) == 3


def test_patients_have_their_own_masks_or_none():
    for truth in ([TRUTH, None], {"volume 1": TRUTH}):
        viewer = SliceViewer([VOLUME, VOLUME + 1], truth)
        assert received(viewer, 0)[1].any()
        assert received(viewer, 1)[1] is None


def test_volumes_on_other_grids_are_linked_by_millimetres():
    coarse = image(VOLUME[::2, ::2], AFFINE @ np.diag([2, 2, 1, 1]))
    content, _ = message(SliceViewer([VOLUME, coarse], affine=AFFINE))
    first, second = content["panels"]
    np.testing.assert_allclose(first["link"], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(second["link"] @ np.array([6, 8, 3, 1]), [3, 4, 3, 1])
    np.testing.assert_allclose(second["back"] @ np.array([3, 4, 3, 1]), [6, 8, 3, 1])


def test_volumes_that_lie_apart_are_linked_in_proportion_and_say_so():
    far = AFFINE.copy()
    far[0, 3] += 5000
    content, _ = message(SliceViewer({"near": VOLUME, "far": image(VOLUME[:6], far)}, affine=AFFINE))
    link = np.array(content["panels"][1]["link"])
    np.testing.assert_allclose(link @ [0, 0, 0, 1], [0, 0, 0, 1])
    np.testing.assert_allclose(link @ [11, 15, 9, 1], [5, 15, 9, 1])
    assert "far lies elsewhere in space than near" in content["notes"][0]


def test_mask_on_another_grid_is_resampled_and_says_so():
    fine = np.repeat(np.repeat(TRUTH, 2, axis=0), 2, axis=1)
    halves = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    halves[:3, 3] = AFFINE[:3, 3] - AFFINE[:3, :3] @ (0.25, 0.25, 0)  # the corners of the two grids are one
    viewer = SliceViewer(image(), image(fine, halves))
    np.testing.assert_array_equal(received(viewer)[1], TRUTH)
    note = message(viewer)[0]["notes"][0]
    assert note.startswith("The reference of volume 1 was resampled from 24 x 32 x 10 voxels (0.2 ml)"), note


def test_mask_on_a_part_of_the_volume_is_empty_elsewhere():
    start = AFFINE.copy()
    start[:3, 3] = AFFINE[:3] @ (2, 4, 3, 1)
    shown = received(SliceViewer(image(), image(TRUTH[2:6, 4:9, 3:7], start)))[1]
    np.testing.assert_array_equal(shown, TRUTH)


def test_mask_reaches_to_the_border():
    """A voxel belongs to the mask's voxel that it lies in, half a voxel beyond the outermost centres too."""
    whole = image(
        np.ones((1, 1, 1), np.uint8),
        AFFINE @ np.array([[12, 0, 0, 5.5], [0, 16, 0, 7.5], [0, 0, 10, 4.5], [0, 0, 0, 1]]),
    )
    assert received(SliceViewer(image(), whole))[1].all()


@pytest.mark.parametrize(
    ("voxels", "step"),
    [
        (VOLUME, 0),
        (VOLUME.astype(np.uint16) + 60_000, 0),
        (VOLUME.astype(np.float64) - 900, 0),
        (np.where(VOLUME == 7, -32768, 32767).astype(np.int16), 0),
        (VOLUME > 900, 0),
        (VOLUME.astype(np.int32) * 26 + 9, 0),
        (VOLUME.astype(np.int32) * 1000, 1000 * VOLUME.size / 65535),
        (VOLUME / VOLUME.max(), 1 / 65535),
        (np.full(SHAPE, 0.3), 1e-11),
        (np.zeros(SHAPE), 0),
    ],
)
def test_values_travel_exactly_or_in_fine_steps(voxels, step):
    shown = received(SliceViewer(voxels))[0]
    assert np.abs(shown - voxels).max() <= step


# Traits


def test_position_starts_in_the_largest_slice_of_the_truth():
    assert SliceViewer(VOLUME, TRUTH, PREDICTION).position == (4, 6, 3)
    assert SliceViewer(VOLUME, None, PREDICTION).position == (6, 6, 3)
    assert SliceViewer(VOLUME, np.zeros(SHAPE), PREDICTION).position == (6, 6, 3)
    assert SliceViewer(VOLUME).position == (6, 8, 4)


def test_position_starts_where_the_mask_of_a_later_volume_lies():
    fine = image(np.repeat(VOLUME, 2, axis=0), AFFINE @ np.diag([0.5, 1, 1, 1]))
    mask = np.zeros((24, 16, 10), np.uint8)
    mask[8, 5, 7] = 1
    assert SliceViewer([VOLUME, fine], [None, mask], affine=AFFINE).position == (4, 5, 7)


def test_position_is_clipped_rounded_and_heard():
    viewer, heard = SliceViewer(VOLUME), []
    viewer.observe(lambda change: heard.append(change.new), "position")
    for given, kept in (((3, 4, 5), (3, 4, 5)), ((-7, 99, 4.6), (0, 15, 5)), (np.array([11, 0, 9]), (11, 0, 9))):
        viewer.position = given
        assert viewer.position == kept
        assert all(type(number) is int for number in viewer.position), "JSON knows no numpy integers"
    assert heard == [(3, 4, 5), (0, 15, 5), (11, 0, 9)]


def test_what_the_browser_sends_is_checked_too():
    viewer = SliceViewer(VOLUME)
    viewer.set_state({"position": [2, 3, 400], "window": [5, 9.5], "opacity": 1})
    assert (viewer.position, viewer.window, viewer.opacity) == ((2, 3, 9), (5.0, 9.5), 1.0)


def test_window_is_that_of_the_voxels_that_are_not_zero():
    inside = np.arange(1, 1001)
    voxels = np.concatenate([inside, np.zeros(1000, int)]).reshape(10, 10, 20)
    assert SliceViewer(voxels).window == tuple(np.percentile(inside, (0.5, 99.5)))
    assert SliceViewer(np.zeros(SHAPE)).window == (0, 1)
    assert SliceViewer(TRUTH > 0).window == (0, 1)


def test_show_starts_with_the_most_that_there_is():
    assert SliceViewer(VOLUME, TRUTH, PREDICTION).show == "errors"
    assert SliceViewer(VOLUME, TRUTH).show == "truth"
    assert SliceViewer(VOLUME, prediction=PREDICTION).show == "prediction"
    assert SliceViewer(VOLUME).show == "none"
    assert message(SliceViewer(VOLUME, TRUTH))[0]["choices"]["show"] == ["none", "truth"]


# What travels


def test_nothing_is_sent_that_nobody_asks_for():
    viewer, sent = SliceViewer(VOLUME, TRUTH), []
    viewer.send = lambda *message: sent.append(message)
    viewer.position = (1, 1, 1)
    viewer._handle_custom_msg({"kind": "something else"}, [])
    assert sent == []
    viewer._handle_custom_msg({"kind": "ready"}, [])
    assert len(sent) == 1


def test_state_holds_no_voxels_and_message_is_json():
    big = np.zeros((60, 60, 60), np.int16)
    viewer = SliceViewer(big, truth=big)
    state = {name: value for name, value in viewer.get_state().items() if name not in ("_esm", "_css")}
    assert len(json.dumps(state)) < 3000
    content, buffers = message(viewer)
    assert len(json.dumps(content)) < 5000
    assert [len(buffer) for buffer in buffers] == [60**3, 2 * 60**3]


# Where no browser answers


def picture(viewer):
    return np.asarray(Image.open(BytesIO(viewer.to_png())).convert("RGB")).astype(int)


def painted(shown, colour, tolerance=12):
    """How many pixels have a colour of the overlay."""
    return int((np.abs(shown - COLOURS[colour]).max(2) <= tolerance).sum())


def test_static_picture_shows_the_slice_with_its_overlay():
    viewer = SliceViewer(VOLUME, TRUTH, PREDICTION, opacity=1)
    shown = picture(viewer)
    found, missed, alarm = (painted(shown, name) for name in ("found", "missed", "alarm"))
    assert min(found, missed, alarm) > 400, "in three planes, not in the legend alone"
    viewer.position = (0, 0, 0)
    assert max(painted(picture(viewer), name) for name in ("found", "missed", "alarm")) < 100, "the legend alone"
    viewer.show = "none"
    assert painted(picture(viewer), "found") == 0


def test_static_picture_is_radiological():
    voxels = np.zeros(SHAPE, np.int16)
    voxels[0:4, 0:4, 6:10] = 100  # right, front, top
    viewer = SliceViewer(voxels, position=(1, 1, 8), window=(0, 100))
    shown = picture(viewer)
    bright = shown.min(2) > 240
    third = shown.shape[1] // 3
    for plane, cell in enumerate((bright[:, :third], bright[:, third : 2 * third], bright[:, 2 * third :])):
        rows, columns = np.nonzero(cell[40:-50])
        assert len(rows) > 500, plane
        assert np.median(rows) < 0.45 * (len(cell) - 90), "front and top are up"
        assert np.median(columns) < 0.45 * third, "right and front are on the left"


def test_static_picture_follows_style_and_opacity():
    viewer = SliceViewer(VOLUME, TRUTH, opacity=1)
    filled = painted(picture(viewer), "truth")
    viewer.style = "outline"
    outlined = painted(picture(viewer), "truth", 60)
    viewer.opacity = 0
    assert 0 < outlined < filled / 2
    assert painted(picture(viewer), "truth", 60) < 100, "the legend alone"


def test_static_picture_stays_inside_a_smaller_volume():
    small = np.zeros((6, 16, 10), np.int16)
    small[5] = 100
    viewer = SliceViewer([VOLUME, image(small)], affine=AFFINE, plane="sagittal", position=(11, 8, 5), window=(0, 1921))
    shown = picture(viewer)
    right = shown[40:-50, shown.shape[1] // 2 :]
    assert (right.min(2) > 240).mean() > 0.3, "its last slice is the nearest"


def test_patient_without_prediction_has_no_errors():
    empty = np.zeros(SHAPE, np.uint8)
    viewer = SliceViewer([VOLUME, VOLUME], [empty, TRUTH], [empty, None], show="errors", opacity=1)
    shown = picture(viewer)
    assert painted(shown, "truth") > 400
    assert painted(shown, "missed") < 100, "the legend alone"


def test_window_of_the_other_volumes_follows_in_proportion():
    viewer = SliceViewer([VOLUME, VOLUME * 10.0])
    low, high = viewer.window
    viewer.window = (low + (high - low) / 4, high)
    own = viewer.window_of(viewer.panels[1])
    np.testing.assert_allclose(own, np.multiply(viewer.window, 10))


def test_still_of_noise_is_small_and_known_to_the_style():
    noise = np.random.default_rng(0).normal(100, 30, (120, 120, 80))
    png = SliceViewer([noise] * 4, truth=noise > 130, title="Noise").to_png()
    assert len(png) < 46_000
    (mark,) = re.findall(r'img\[src\*="(.+?)"\]', STYLE.read_text(encoding="utf-8"))
    assert mark in base64.b64encode(png).decode()
    assert Image.open(BytesIO(png)).info["Comment"] == "unetlib: still of a viewer"


NOTEBOOK = """
import ipywidgets as widgets
import numpy as np
from IPython.display import display
from unetlib import SliceViewer
viewer, other = (SliceViewer(np.arange(60.0).reshape(3, 4, 5), title=title) for title in ("one", "other"))
"""
SHOWN = {
    "last expression": ("viewer", ["widget", "still"]),
    "display": ("display(viewer); display(viewer); print()", ["widget", "widget", "text", "still"]),
    "two": ("display(viewer)\nother", ["widget", "widget", "still", "still"]),
    "box": ("widgets.VBox([widgets.Label('a'), widgets.HBox([viewer, other])])", ["widget", "still", "still"]),
    "output": ("out = widgets.Output()\nwith out: display(viewer)\nout", ["widget", "still"]),
    "appended": ("out = widgets.Output()\nout.append_display_data(viewer)\nout", ["widget", "still"]),
    "not shown": ("viewer.position", ["text"]),
    "hidden": ("viewer;", []),
    "embedded": ("import os; os.environ['UNETLIB_EMBED_BYTES'] = '3000'\nviewer", ["html"]),
    "embedded, in a box": ("widgets.VBox([viewer])", ["widget", "html"]),
}


def kinds(outputs):
    """What a page without Python makes of a cell's outputs."""
    names = {"application/vnd.jupyter.widget-view+json": "widget", "text/html": "html", "image/png": "still"}
    return [next((names[kind] for kind in names if kind in output.get("data", ())), "text") for output in outputs]


@pytest.fixture(scope="module")
def executed():
    """Run a notebook with one cell for each way to show a viewer; return the outputs by way."""
    cells = [nbformat.v4.new_code_cell(code) for code in (NOTEBOOK, *(code for code, _ in SHOWN.values()))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    return notebook


@pytest.mark.parametrize("way", SHOWN)
def test_notebook_keeps_a_still_of_what_it_shows_in_an_output_of_its_own(executed, way):
    outputs = executed.cells[1 + list(SHOWN).index(way)].outputs
    assert kinds(outputs) == SHOWN[way][1]
    for output in outputs:
        if "image/png" in output.get("data", {}):
            assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG")
            assert re.search("'(one|other)' at voxel .1, 2, 2.", output["metadata"]["image/png"]["alt"])
    assert len(json.dumps(outputs)) < 100_000


def test_exported_notebook_shows_the_still_with_and_without_widget_state(executed):
    assert "widgets" in executed.metadata, "nbconvert keeps the state by default"
    mark = re.search(r'img\[src\*="(.+?)"\]', STYLE.read_text(encoding="utf-8"))[1]
    for notebook in (executed, {**executed, "metadata": {}}):
        page, _ = HTMLExporter().from_notebook_node(nbformat.from_dict(notebook))
        assert len(re.findall(f'<img [^>]*src="data:image/png;base64,[^"]*{mark}', page)) == 10
        assert page.count("<unetlib-viewer>") == 2


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "²"])
def test_embedding_asks_for_bytes(monkeypatch, value):
    monkeypatch.setenv("UNETLIB_EMBED_BYTES", value)
    with pytest.raises(UnetlibError, match="a whole number of bytes was expected"):
        SliceViewer(VOLUME)._repr_mimebundle_()


def unpacked(text):
    """The bytes of a buffer in a page: those of even places come first there."""
    packed = gzip.decompress(base64.b64decode(text))
    whole, half = bytearray(len(packed)), (len(packed) + 1) // 2
    whole[::2], whole[1::2] = packed[:half], packed[half:]
    return bytes(whole)


def embedded(fragment):
    """The description and the voxels of the first volume in a fragment."""
    about = json.loads(re.search(r'class="uv-about">(.+?)</script>', fragment)[1])
    packed = re.findall(r'class="uv-data">([^<]+)<', fragment)
    panel = about["content"]["panels"][0]
    stored = np.frombuffer(unpacked(packed[panel["voxels"]]), "<i2")
    values = panel["slope"] * stored.reshape(panel["shape"], order="F") + panel["intercept"]
    return about["content"], values, sum(map(len, packed))


def test_fragment_is_exact_where_there_is_room_and_rounded_where_not():
    voxels = np.random.default_rng(0).normal(1000, 100, (30, 30, 30)).astype(np.int16)
    voxels[:, :5] = 0
    viewer = SliceViewer(voxels)
    step = (viewer.window[1] - viewer.window[0]) / 32
    content, values, exact = embedded(viewer.to_fragment())
    np.testing.assert_array_equal(values, voxels)
    assert not any("rounded" in note for note in content["notes"])
    content, values, size = embedded(viewer.to_fragment(max_bytes=exact - 1))
    assert size < exact
    assert 0 < np.abs(values - voxels).max() <= step / 2
    assert not values[:, :5].any()
    assert any("rounded" in note for note in content["notes"])
    tiny = viewer.to_fragment(max_bytes=100)
    assert "too large for the page" in tiny
    assert "<img" in tiny
    assert "<unetlib-viewer>" not in tiny


def test_page_holds_everything_and_asks_for_nothing(tmp_path):
    named = {"</script><i>": VOLUME}
    viewer = SliceViewer(named, TRUTH, PREDICTION, title="</script><b>A & B", position=(1, 2, 3))
    path = viewer.to_html(tmp_path / "new" / "page.html")
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=(?!\"data:)|href=|@import|\bimport\b", page)
    assert "<title>&lt;/script&gt;&lt;b&gt;A &amp; B</title>" in page
    assert page.count("</script>") == page.count("<script") == 5
    assert "never for clinical use" in page
    assert '"position": [1, 2, 3]' in page
    packed = re.findall(r'class="uv-data">([^<]+)<', page)
    sent = message(viewer)[1]
    assert [unpacked(text) for text in packed] == sent
    assert [path.name for path in path.parent.iterdir()] == ["page.html"]


def test_page_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnetlibError, match="cannot be written"):
        SliceViewer(VOLUME).to_html(tmp_path / "file" / "page.html")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "an empty text was given where a path was"),
        (".", ". is a folder; a file was"),
        (None, "path is None; Path was"),
        (3, "3 was given where a path was"),
    ],
)
def test_a_page_without_a_name_is_a_sentence(path, words):
    with pytest.raises(UnetlibError, match=f"{words} expected"):
        SliceViewer(VOLUME).to_html(path)


def test_a_size_of_a_fragment_that_is_no_number_is_a_sentence():
    with pytest.raises(UnetlibError, match="max_bytes is '1'; None or int was expected"):
        SliceViewer(VOLUME).to_fragment("1")


def test_synthetic_images_say_so():
    made = image()
    made.header["descrip"] = b"SYNTHETIC"
    assert message(SliceViewer(made))[0]["notes"] == [
        "Synthetic images",
        "For research and education, never for clinical use",
    ]


def test_unetlib_alone_loads_neither_torch_nor_anywidget():
    code = "import sys, unetlib; assert not {'torch', 'anywidget', 'unetlib.show.viewer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from unetlib import Nothing  # noqa: F401


# Bad input

BAD = image(np.where(VOLUME == 5, np.nan, VOLUME))
FAR = LPS + np.array([[0, 0, 0, 9000.0]] + 3 * [[0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"volume": "no/such/file.nii.gz"}, "no/such/file.nii.gz does not exist"),
        ({"volume": []}, "there is no volume to show"),
        ({"volume": None}, "volume 1 is a NoneType; a path, a NIfTI image or a 3-D array was expected"),
        ({"volume": {"a": 3}}, "a is a int; a path"),
        ({"volume": np.zeros((4, 4))}, r"volume 1 has shape \(4, 4\); a 3-D array"),
        ({"volume": np.zeros((4, 4, 4, 2))}, r"volume 1 has shape \(4, 4, 4, 2\); a 3-D array"),
        ({"volume": image(np.zeros((4, 4, 4, 2)))}, r"volume 1 is 4-D, of shape \(4, 4, 4, 2\)"),
        ({"volume": np.zeros((4, 0, 4))}, "a 3-D array"),
        ({"volume": np.where(VOLUME == 5, np.nan, VOLUME)}, "volume 1 holds 1 NaN or infinite voxel;"),
        ({"volume": {"T1": BAD}}, "T1 holds 1 NaN or infinite voxel;"),
        ({"volume": VOLUME.astype(complex)}, "volume 1 holds voxels of type complex128"),
        ({"volume": VOLUME.astype(str)}, "volume 1 holds voxels of type <U"),
        ({"volume": VOLUME, "affine": np.eye(4)}, "the affine of volume 1 .* an array in LPS order was expected"),
        ({"volume": VOLUME, "affine": np.eye(3)}, "the affine of volume 1"),
        ({"volume": VOLUME, "affine": "1 mm"}, "the affine is '1 mm'"),
        ({"volume": VOLUME, "affine": np.full((4, 4), np.nan)}, "does not map voxels to millimetres"),
        ({"truth": TRUTH[1:]}, r"the reference of volume 1 has shape \(11, 16, 10\) and the volume \(12, 16, 10\)"),
        ({"prediction": TRUTH / 3}, "the prediction of volume 1 holds values from 0 to 1.33333; whole labels"),
        ({"prediction": -TRUTH.astype(int)}, "holds values from -4 to 0"),
        ({"truth": TRUTH.astype(int) * 100}, "holds values from 0 to 400"),
        ({"truth": image(TRUTH, FAR)}, "the reference of volume 1 and the volume do not overlap in space"),
        ({"truth": [TRUTH, TRUTH]}, "truth is a list of 2 masks for 1 volumes"),
        ({"truth": {"T1": TRUTH}}, "truth names T1; the volumes are volume 1"),
        ({"truth": "mask.nii"}, "mask.nii does not exist"),
        ({"position": (1, 2)}, r"position is \(1, 2\); a voxel \(x, y, z\) was expected"),
        ({"position": (1, 2, np.nan)}, "position is"),
        ({"position": "here"}, "position is 'here'"),
        ({"window": (5, 5)}, r"window is \(5, 5\); \(low, high\), low below high, was expected"),
        ({"window": 7}, "window is 7"),
        ({"opacity": 1.5}, "opacity is 1.5; a number from 0 to 1 was expected"),
        ({"opacity": None}, "opacity is None"),
        ({"plane": "oblique"}, "plane is 'oblique'; this viewer has axial, coronal, sagittal"),
        ({"style": ["fill"]}, r"style is \['fill'\]; this viewer has fill, outline"),
        ({"show": "errors", "truth": TRUTH}, "show is 'errors'; this viewer has none, truth"),
    ],
)
def test_bad_input_is_told_in_a_sentence(arguments, sentence):
    with pytest.raises(UnetlibError, match=sentence):
        SliceViewer(**{"volume": VOLUME, **arguments})


@pytest.mark.parametrize(
    ("name", "value"), [("position", "here"), ("window", (9, 1)), ("opacity", 2), ("plane", "x"), ("show", "truth")]
)
def test_a_trait_refuses_a_bad_value_and_keeps_its_own(name, value):
    viewer = SliceViewer(VOLUME)
    before = getattr(viewer, name)
    with pytest.raises(UnetlibError, match=f"{name} is {re.escape(repr(value))}"):
        setattr(viewer, name, value)
    assert getattr(viewer, name) == before


def test_damaged_file_is_told_in_a_sentence(tmp_path):
    path = saved(tmp_path / "flair.nii.gz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UnetlibError, match="damaged"):
        SliceViewer(path)


def test_names_come_from_files_and_stay_distinct(tmp_path):
    one, other = (saved(tmp_path / name / "flair.nii.gz") for name in ("a", "b") if (tmp_path / name).mkdir() is None)
    assert SliceViewer(one).title == "flair"
    assert SliceViewer([one, nib.load(other)]).title == "1: flair, 2: flair"
    assert SliceViewer({"before": one, "after": other}).title == "before, after"
    assert SliceViewer(one, title="Mine").title == "Mine"


def test_names_are_compared_as_text():
    viewer = SliceViewer({0: VOLUME, "1": VOLUME}, truth={"0": TRUTH, 1: TRUTH})
    assert [(panel.name, panel.truth is None) for panel in viewer.panels] == [("0", False), ("1", False)]
    for given in ({"volume": {1: VOLUME, "1": VOLUME}}, {"volume": {1: VOLUME}, "truth": {1: TRUTH, "1": TRUTH}}):
        with pytest.raises(UnetlibError, match="names 1, 1; names that differ as text were expected"):
            SliceViewer(**given)


def test_array_is_a_volume_as_it_is():
    volume = array_to_volume(VOLUME, AFFINE, "one")
    assert volume.voxels is VOLUME
    assert volume.spacing == (1, 1.5, 2)


def test_files_beside_the_modules_are_part_of_their_packages():
    root = Path(__file__).parents[1]
    told = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    found = {
        path for room, patterns in told.items() for p in patterns for path in (root / room.replace(".", "/")).glob(p)
    }
    files = {path for path in (root / "unetlib").rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {path.name for path in files} >= {"viewer.js", "viewer.css"}
    assert found >= {path for path in files if path.name != "README.md"}


@pytest.mark.parametrize("name", ["position", "window", "opacity", "plane", "show", "style"])
def test_none_is_refused_like_any_bad_value(name):
    viewer = SliceViewer(np.arange(60.0).reshape(3, 4, 5))
    before = getattr(viewer, name)
    with pytest.raises(UnetlibError, match=f"{name} is None"):
        setattr(viewer, name, None)
    assert getattr(viewer, name) == before


def test_a_dollar_in_a_name_is_a_dollar():
    volumes = {"$x_{$": np.arange(60.0).reshape(3, 4, 5), "b": np.arange(60.0).reshape(3, 4, 5)}
    assert SliceViewer(volumes, title="$y_{$").to_png().startswith(b"\x89PNG")


def test_a_volume_of_several_sequences_is_a_sentence():
    volume = array_to_volume(VOLUME, AFFINE, "v")
    several = replace(volume, voxels=np.stack([VOLUME, VOLUME]))
    with pytest.raises(UnetlibError, match=r"holds 2 sequences; one 3-D volume was expected. Show one of them: plots"):
        SliceViewer(several)


def test_a_volume_of_one_slice_is_outlined(tmp_path):
    viewer = SliceViewer(image(VOLUME[:, :, 4:5]), truth=image(TRUTH[:, :, 4:5]), style="outline")
    assert "data:image/png" in str(viewer.to_html(tmp_path / "one.html").read_text(encoding="utf-8"))
