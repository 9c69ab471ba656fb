"""The viewer as people meet it: in a real JupyterLab, in a real browser, with mouse and keys."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.lab import FRAME, READY, Lab, Notebook, open_lab
from unetlib import SliceViewer

STILL = 'img[src*="AHVuZXRsaWI6IHN0aWxsIG9mIGEgdmlld2Vy"]'  # as in viewer.css
SHAPE, SPACING = (24, 32, 20), (1, 1, 2)  # of the volume in DATA: no two sides alike
DATA = """
import ipywidgets as widgets
import nibabel as nib
import numpy as np
from unetlib import SliceViewer

volume = np.random.default_rng(0).integers(100, 200, (24, 32, 20)).astype(np.int16)
volume[2:5, 3:8, 14:18] = 1000  # a bright block to the patient's right, in front, near the top
truth, prediction = np.zeros((2, 24, 32, 20), np.uint8)
truth[8:14, 10:16, 6:12] = 1
prediction[10:16, 10:16, 6:12] = 1
affine = np.array([[-1, 0, 0, 10], [0, -1, 0, 20], [0, 0, 2, -30], [0, 0, 0, 1.0]])
"""
VIEWER = 'viewer = SliceViewer(volume, truth=truth, prediction=prediction, affine=affine, title="A patient")\nviewer'
LINKED = """
first, second = SliceViewer(volume, truth=truth), SliceViewer(volume)
slider = widgets.FloatSlider(0.5, min=0, max=1)
links = widgets.jslink((first, "position"), (second, "position")), widgets.jslink((slider, "value"), (first, "opacity"))
widgets.VBox([slider, first, second])
"""
SEVERAL = """
coarse = nib.Nifti1Image(volume[::2, ::2], affine @ np.diag([2, 2, 1, 1]))
backwards = [[-1, 0, 0, 23], [0, -1, 0, 31], [0, 0, -1, 19], [0, 0, 0, 1]]
turned = nib.Nifti1Image(volume[::-1, ::-1, ::-1], affine @ backwards)
several = SliceViewer({"as it is": volume, "turned": turned, "coarse": coarse}, affine=affine)
several
"""
REGIONS = """
labels = np.zeros((24, 32, 20), np.uint8)
labels[6:19, 8:24, 4:16] = 2
labels[8:17, 10:20, 6:14] = 1
labels[10:13, 12:16, 8:12] = 4
stack = np.stack([labels > 0, (labels == 1) | (labels == 4), labels == 4])
sequences = {name: volume + k for k, name in enumerate(("flair", "t1", "t1ce", "t2"))}
whole_core_enhancing = {"whole": (1, 2, 4), "core": (1, 4), "enhancing": 4}
named = SliceViewer(sequences, labels, np.roll(stack, 1, axis=1), regions=whole_core_enhancing, affine=affine)
named
"""
LABELS = """
parts = {"necrotic core": 1, "oedema": 2, "enhancing": 4}
SliceViewer(volume, labels, regions=parts, opacity=1, position=(3, 3, 10))
"""
START = {
    "position": [11, 12, 8],
    "window": [100, 400],
    "opacity": 0.5,
    "plane": "axial",
    "show": "errors",
    "style": "fill",
}
AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # of the volume: across, down, through
YELLOW, GREEN, ORANGE, BLUE = (240, 228, 66), (0, 158, 115), (213, 94, 0), (86, 180, 233)
COLOUR = """(canvas, [across, down]) => {
  const [x, y] = [Math.floor(across * canvas.width), Math.floor(down * canvas.height)];
  return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
}"""
# Keys as the window's next listener finds them: kept from others, and from the browser? None goes further.
SPY = """() => {
  window.spied = [];
  window.spy = new AbortController();
  window.addEventListener("keydown", event => {
    if (["Shift", "Control", "Alt", "Meta"].includes(event.key)) return;
    spied.push([event.key, event.cancelBubble, event.defaultPrevented]);
    event.stopPropagation();
  }, {capture: true, signal: spy.signal});
}"""
CONTRASTS = """(root) => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const painted = (colours) => {
    for (const colour of ["white", ...colours]) {
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
    }
    const linear = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const written = [...root.querySelectorAll("*")].filter(element => element.checkVisibility() &&
    (element.tagName === "SELECT" || [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim())));
  return written.filter(element => element.tagName !== "OPTION").map(element => {
    const behind = [];
    for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const pair = [painted(behind), painted([...behind, getComputedStyle(element).color])].sort((a, b) => b - a);
    return [`${element.className} ${element.textContent}`, (pair[0] + 0.05) / (pair[1] + 0.05)];
  });
}"""


@dataclass
class View:
    """A viewer on a page: what people see of it and do to it."""

    page: Page
    root: Locator

    def canvas(self, plane: str, volume: int = 0) -> Locator:
        return self.root.locator(f'canvas.uv-plane[data-plane="{plane}"][data-volume="{volume}"]')

    def pixels(self, plane: str, volume: int = 0) -> np.ndarray:
        """The colours (H, W, 3) of a picture."""
        return _pixels(self.canvas(plane, volume))[..., :3]

    def colour(self, plane: str, voxel: tuple[int, int, int], volume: int = 0) -> tuple[int, ...]:
        """The colour in the middle of a voxel."""
        return tuple(self.canvas(plane, volume).evaluate(COLOUR, _place(plane, voxel)))

    def spot(self, plane: str, voxel: tuple[int, int, int]) -> dict[str, float]:
        """Where a voxel lies on the canvas of a plane, in CSS pixels."""
        box, (across, down) = self.canvas(plane).bounding_box(), _place(plane, voxel)
        return {"x": across * box["width"], "y": down * box["height"]}

    def is_at(self, *position: int) -> None:
        expect(self.root).to_have_attribute("data-position", ",".join(map(str, position)))

    def frames(self) -> int:
        return int(self.root.get_attribute("data-frames"))

    def press(self, key: str, where: str = "") -> None:
        (self.root.locator(where) if where else self.root).focus()
        self.page.keyboard.press(key)


def _pixels(canvas: Locator) -> np.ndarray:
    """The red, green, blue and alpha (H, W, 4) of a canvas."""
    encoded = canvas.evaluate("canvas => canvas.toDataURL()").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))


def _place(plane: str, voxel: tuple[int, int, int]) -> tuple[float, float]:
    """Where the middle of a voxel lies in a picture, as shares of its width and height."""
    across, down, _ = AXES[plane]
    share = (voxel[down] + 0.5) / SHAPE[down]
    return (voxel[across] + 0.5) / SHAPE[across], share if plane == "axial" else 1 - share


@pytest.fixture(scope="session")
def lab(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session")
def notebook(lab: Lab) -> Iterator[Notebook]:
    with lab.notebook("viewers", [DATA, VIEWER, LINKED, SEVERAL, "viewer"], viewers=5) as notebook:
        yield notebook


@pytest.fixture
def view(notebook: Notebook) -> View:
    """The viewer called `viewer` in the kernel, as at the start."""
    view = _view(notebook, 0)
    notebook.page.mouse.move(0, 0)
    notebook.comes_to("[*viewer.position]", [int(i) for i in view.root.get_attribute("data-position").split(",")])
    notebook.python(f"for name, value in {START}.items(): setattr(viewer, name, value)")
    view.is_at(*START["position"])
    for name in ("show", "style", "plane-select"):
        expect(view.root.locator(f"select.uv-{name}")).to_have_value(START[name.removesuffix("-select")])
    expect(view.root.locator("input.uv-opacity")).to_have_value("0.5")
    view.root.press("0")
    view.page.evaluate("document.activeElement.blur()")
    expect(view.root).to_have_attribute("data-zoom", "1")
    return view


def _view(notebook: Notebook, number: int) -> View:
    return View(notebook.page, notebook.page.locator(READY).nth(number))


def _cells(notebook: Notebook) -> Any:
    """The cells as JupyterLab holds them: a key that it takes for itself would change them."""
    model = notebook.page.evaluate("jupyterapp.shell.currentWidget.model.toJSON()")
    return [(cell["cell_type"], cell["source"], cell["metadata"]) for cell in model["cells"]]


# What is shown


@pytest.mark.parametrize("plane", AXES)
def test_each_plane_is_a_picture_in_its_true_proportions(view: View, plane: str) -> None:
    across, down, _ = AXES[plane]
    box = view.canvas(plane).bounding_box()
    ratio = SHAPE[across] * SPACING[across] / (SHAPE[down] * SPACING[down])
    assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.02)
    assert len(np.unique(view.pixels(plane).reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(("plane", "letters"), [("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI")])
def test_letters_tell_how_the_patient_lies(view: View, notebook: Notebook, plane: str, letters: str) -> None:
    frame = view.canvas(plane).locator("..")
    shown = [
        frame.locator(f'.uv-letter[data-side="{side}"]').inner_text() for side in ("left", "right", "top", "bottom")
    ]
    assert "".join(shown) == letters
    notebook.python("viewer.position = (4, 5, 16); viewer.show = 'none'")
    view.is_at(4, 5, 16)
    expect(view.root.locator("select.uv-show")).to_have_value("none")
    bright, corners = view.colour(plane, (3, 7, 17)), [(3, 7, 2), (3, 24, 17), (20, 7, 17), (20, 24, 2)]
    in_plane = [c for c in corners if _place(plane, c) != _place(plane, (3, 7, 17))]
    assert min(bright) > 250
    assert max(max(view.colour(plane, corner)) for corner in in_plane) < 150


def test_errors_have_their_colours_where_they_belong(view: View, notebook: Notebook) -> None:
    notebook.python("viewer.opacity = 1")
    expect(view.root.locator("input.uv-opacity")).to_have_value("1")
    for plane, other in (("axial", (0, 2, 0)), ("coronal", (0, 0, 2))):
        places = {x: tuple(np.add((x, 12, 8), other)) for x in (9, 12, 15)}
        assert view.colour(plane, places[9]) == BLUE, "in the truth only: missed"
        assert view.colour(plane, places[12]) == GREEN, "in both: found"
        assert view.colour(plane, places[15]) == ORANGE, "in the prediction only: a false alarm"
        outside = view.colour(plane, (6, 14, 10))
        assert len(set(outside)) == 1, "neither: grey"
    assert re.findall(r"TP|FP|FN", view.root.locator(".uv-legend").inner_text()) == ["TP", "FN", "FP"]


def test_overlay_can_be_chosen_dimmed_and_outlined(view: View) -> None:
    inside, edge = (12, 14, 8), view.root.locator("select.uv-style")
    show, opacity = view.root.locator("select.uv-show"), view.root.locator("input.uv-opacity")
    show.select_option("none")
    grey = view.colour("axial", inside)
    assert len(set(grey)) == 1
    show.select_option("truth")
    mixed = np.add(grey, YELLOW) / 2
    np.testing.assert_allclose(view.colour("axial", inside), mixed, atol=1)
    opacity.fill("1")
    assert view.colour("axial", inside) == YELLOW
    filled = (view.pixels("axial") == YELLOW).all(2).sum()
    edge.select_option("outline")
    assert view.colour("axial", inside) == grey
    assert 0 < (view.pixels("axial") == YELLOW).all(2).sum() < filled / 2
    opacity.fill("0")
    assert not (np.ptp(view.pixels("axial"), axis=2) > 0).any()


def test_strip_shows_where_there_is_tumour(view: View) -> None:
    picture = _pixels(view.root.locator("canvas.uv-strip"))
    marked = [picture[:, int((z + 0.5) / SHAPE[2] * picture.shape[1]), 3].any() for z in range(SHAPE[2])]
    assert np.flatnonzero(marked).tolist() == list(range(6, 12))
    assert {BLUE, GREEN, ORANGE} <= {tuple(colour) for colour in picture[..., :3].reshape(-1, 3)}


@pytest.mark.parametrize(
    ("voxel", "words"),
    [
        ((3, 6, 16), ["value 1000", "reference 0", "prediction 0", "x +7.0 y +14.0 z +2.0 mm"]),
        ((13, 14, 8), ["reference 1", "prediction 1", "x -3.0 y +6.0 z -14.0 mm"]),
        ((15, 25, 8), ["reference 0", "prediction 0", "x -5.0 y -5.0 z -14.0 mm"]),
    ],
)
def test_readout_tells_the_voxel_under_the_mouse(view: View, notebook: Notebook, voxel: Any, words: list[str]) -> None:
    notebook.python(f"viewer.position = (11, 12, {voxel[2]})")
    view.is_at(11, 12, voxel[2])
    view.canvas("axial").hover(position=view.spot("axial", voxel))
    value = notebook.value(f"int(volume[{voxel}])")
    for word in [f"value {value}", *words]:
        expect(view.root.locator(".uv-readout")).to_contain_text(re.compile(rf"\b{re.escape(word)}\b"))


# Mouse and keys


def test_slider_moves_through_the_plane(view: View, notebook: Notebook) -> None:
    before = view.pixels("axial")
    slider = view.root.locator("input.uv-slice")
    slider.fill("15")
    view.is_at(11, 12, 15)
    assert (view.pixels("axial") != before).any()
    box = slider.bounding_box()
    slider.click(position={"x": 2, "y": box["height"] / 2})
    view.is_at(11, 12, 0)
    notebook.comes_to("[*viewer.position]", [11, 12, 0])


@pytest.mark.parametrize("plane", AXES)
def test_wheel_moves_the_plane_under_it_and_not_the_page(view: View, plane: str) -> None:
    view.root.focus()
    view.canvas(plane).hover(position=view.spot(plane, (5, 5, 5)))
    top, through = view.root.bounding_box()["y"], AXES[plane][2]
    positions = [START["position"]]
    for turn in (100, 100, -100):
        view.page.mouse.wheel(0, turn)
        expect(view.root).not_to_have_attribute("data-position", ",".join(map(str, positions[-1])))
        positions.append([int(i) for i in view.root.get_attribute("data-position").split(",")])
    steps = np.diff(positions, axis=0)
    assert steps[:, through].tolist() in ([1, 1, -1], [-1, -1, 1])
    assert not np.delete(steps, through, axis=1).any()
    view.page.evaluate(FRAME)
    assert view.root.bounding_box()["y"] == top


@pytest.mark.parametrize("place", ["canvas.uv-plane", "input.uv-slice", "canvas.uv-strip"])
def test_wheel_scrolls_the_page_until_the_viewer_has_the_focus(view: View, place: str) -> None:
    here = view.root.locator(place).first
    here.hover()
    top = "root => new Promise(requestAnimationFrame).then(() => root.getBoundingClientRect().y)"
    before = view.root.evaluate(top)
    view.page.mouse.wheel(0, 30)
    view.page.wait_for_function(
        f"([root, before]) => ({top})(root).then(y => y < before)", arg=[view.root.element_handle(), before]
    )
    view.is_at(*START["position"])
    view.page.mouse.wheel(0, -30)
    view.page.wait_for_function(
        f"([root, before]) => ({top})(root).then(y => y === before)", arg=[view.root.element_handle(), before]
    )
    view.page.keyboard.down("Shift")
    view.page.mouse.wheel(0, -100)
    view.page.keyboard.up("Shift")
    view.is_at(11, 12, 9)
    assert view.root.evaluate(top) == before
    expect(view.root.locator(".uv-hint")).to_contain_text("Click an image")


@pytest.mark.parametrize("where", ["", "input.uv-slice"])
def test_keys_move_slice_by_slice_and_jupyterlab_leaves_them_alone(view: View, notebook: Notebook, where: str) -> None:
    cells, active = _cells(notebook), "jupyterapp.shell.currentWidget.content.activeCellIndex"
    for key, z in (
        ("ArrowUp", 9),
        ("ArrowRight", 10),
        ("ArrowDown", 9),
        ("ArrowLeft", 8),
        ("PageUp", 18),
        ("PageUp", 19),
        ("PageDown", 9),
        ("End", 19),
        ("Home", 0),
        ("ArrowDown", 0),
    ):
        view.press(key, where)
        view.is_at(11, 12, z)
        assert notebook.page.evaluate(active) == 1, "the cell of the viewer"
    notebook.comes_to("[*viewer.position]", [11, 12, 0])
    assert _cells(notebook) == cells


def test_arrow_keys_of_the_other_controls_are_left_to_them(view: View, notebook: Notebook) -> None:
    view.press("ArrowUp", "input.uv-opacity")
    notebook.comes_to("viewer.opacity", 0.55)
    view.press("ArrowLeft", "input.uv-opacity")
    notebook.comes_to("viewer.opacity", 0.5)
    view.press("ArrowDown", "select.uv-style")
    notebook.comes_to("viewer.style", "outline")
    view.is_at(*START["position"])


def test_letters_and_digits_choose_and_jupyterlab_leaves_them_alone(view: View, notebook: Notebook) -> None:
    cells = _cells(notebook)
    for key, trait, wanted in (
        ("2", "plane", "coronal"),
        ("3", "plane", "sagittal"),
        ("1", "plane", "axial"),
        ("o", "style", "outline"),
        ("o", "style", "fill"),
    ):
        view.press(key)
        notebook.comes_to(f"viewer.{trait}", wanted)
    shown = []
    for _ in range(5):
        shown.append(view.root.locator("select.uv-show").input_value())
        view.press("e")
        expect(view.root.locator("select.uv-show")).not_to_have_value(shown[-1])
    assert sorted(shown) == ["both", "errors", "none", "prediction", "truth"]
    view.press("r")
    notebook.comes_to("[*viewer.window] == np.percentile(volume, (0.5, 99.5)).tolist()", True)
    assert _cells(notebook) == cells


PLACES = ["", "input.uv-slice", "input.uv-opacity", "button.uv-in"]


@pytest.mark.parametrize("where", PLACES)
def test_keys_that_the_viewer_does_not_use_go_to_jupyterlab(view: View, notebook: Notebook, where: str) -> None:
    panel, cells = "jupyterapp.shell.currentWidget", _cells(notebook)
    view.canvas("axial").click(position=view.spot("axial", (11, 12, 8)))
    notebook.page.evaluate(f"{panel}.context.model.dirty = true")
    view.press("Control+s", where)
    notebook.page.wait_for_function(f"!{panel}.context.model.dirty")
    view.press("b", where)
    notebook.page.wait_for_function(f"{panel}.model.cells.length === {len(cells) + 1}")
    notebook.page.keyboard.press("d")
    notebook.page.keyboard.press("d")
    notebook.page.wait_for_function(f"{panel}.model.cells.length === {len(cells)}")
    assert _cells(notebook) == cells
    view.is_at(*START["position"])


@pytest.mark.parametrize("keys", ["Shift+ArrowUp", "Control+ArrowUp", "Alt+1", "Meta+e", "Shift+O", "Escape", "j", "x"])
def test_no_key_of_others_does_anything_in_the_viewer(view: View, keys: str) -> None:
    view.page.evaluate(SPY)
    before = view.frames()
    view.press(keys)
    assert view.page.evaluate("spy.abort() ?? spied") == [[keys.rpartition("+")[2], False, False]]
    assert view.frames() == before


@pytest.mark.parametrize(
    ("key", "where", "used"),
    [("ArrowUp", "input.uv-opacity", False), ("s", "select.uv-show", False), (" ", "button.uv-reset", False)]
    + [(key, "", True) for key in ("ArrowUp", "End", "2", "o", "+", "0", "r", "?", "?")],
)
def test_keys_of_the_viewer_and_its_controls_stay_there(view: View, key: str, where: str, used: bool) -> None:
    view.page.evaluate(SPY)
    view.press(key, where)
    assert view.page.evaluate("spy.abort() ?? spied") == [[key, True, used]]


@pytest.mark.parametrize("key", ["2", "0", "=", "+", "?"])
def test_keys_that_some_keyboards_have_with_shift_only_work_there(view: View, key: str) -> None:
    view.page.evaluate(SPY)
    view.root.focus()
    view.page.keyboard.down("Shift")
    view.page.keyboard.press(key)
    view.page.keyboard.up("Shift")
    assert view.page.evaluate("spy.abort() ?? spied") == [[key, True, True]]
    if key == "?":
        view.press("Escape")


def test_digits_turn_the_slider_to_another_plane(view: View) -> None:
    view.press("3")
    view.press("ArrowUp", "input.uv-slice")
    view.is_at(12, 12, 8)
    view.press("2")
    view.press("ArrowUp")
    view.is_at(12, 13, 8)


@pytest.mark.parametrize("plane", AXES)
def test_click_moves_the_other_planes(view: View, notebook: Notebook, plane: str) -> None:
    others = [other for other in AXES if other != plane]
    before = {other: view.pixels(other) for other in others}
    wanted = [4, 25, 3]
    view.canvas(plane).click(position=view.spot(plane, tuple(wanted)))
    wanted[AXES[plane][2]] = START["position"][AXES[plane][2]]
    view.is_at(*wanted)
    notebook.comes_to("[*viewer.position]", wanted)
    assert all((view.pixels(other) != before[other]).any() for other in others)
    view.page.keyboard.press("ArrowUp")  # the keys follow the click
    view.is_at(wanted[0], wanted[1], wanted[2] + 1)


@pytest.mark.parametrize(("across", "down"), [(60, 0), (0, 60)])
def test_drag_changes_width_or_level(view: View, notebook: Notebook, across: int, down: int) -> None:
    before = view.pixels("axial")
    box = view.canvas("axial").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    view.page.mouse.move(x, y)
    view.page.mouse.down()
    view.page.mouse.move(x + across, y + down, steps=5)
    view.page.mouse.up()
    notebook.comes_to("viewer.window != (100, 400)", True)
    low, high = notebook.value("viewer.window")
    assert ((high - low != pytest.approx(300)), (high + low != pytest.approx(500))) == (across > 0, down > 0)
    assert (view.pixels("axial") != before).any()
    view.is_at(*START["position"])


def test_click_on_the_strip_jumps(view: View, notebook: Notebook) -> None:
    strip = view.root.locator("canvas.uv-strip")
    box = strip.bounding_box()
    strip.click(position={"x": 10.5 / SHAPE[2] * box["width"], "y": box["height"] / 2})
    view.is_at(11, 12, 10)
    notebook.comes_to("[*viewer.position]", [11, 12, 10])


def test_every_key_of_a_burst_gives_its_own_picture(view: View, notebook: Notebook) -> None:
    notebook.python("viewer.plane = 'coronal'; viewer.position = (11, 0, 8)")
    view.is_at(11, 0, 8)
    expect(view.root.locator("select.uv-plane-select")).to_have_value("coronal")
    view.root.evaluate(
        """(root) => {
          window.burst = [];
          const canvas = root.querySelector('[data-plane="coronal"]');
          new MutationObserver(() => burst.push(root.dataset.position + canvas.toDataURL()))
            .observe(root, {attributeFilter: ["data-frames"]});
        }"""
    )
    before = view.frames()
    view.root.locator("input.uv-slice").focus()
    for _ in range(30):
        view.page.keyboard.press("ArrowUp")
    view.is_at(11, 30, 8)
    notebook.comes_to("[*viewer.position]", [11, 30, 8])
    seen = view.page.evaluate("burst")
    assert len(set(seen)) == 30
    assert [int(picture.split(",")[1]) for picture in seen] == list(range(1, 31)), (
        "a picture came twice, or out of turn"
    )
    assert view.frames() == before + 30


# Python and the other widgets


def test_python_moves_the_viewer(view: View, notebook: Notebook) -> None:
    before, frames = view.pixels("axial"), view.frames()
    notebook.python("viewer.position = (11, 12, 3)")
    view.is_at(11, 12, 3)
    expect(view.root.locator("input.uv-slice")).to_have_value("3")
    assert (view.pixels("axial") != before).any()
    notebook.python("viewer.window = (0, 5000)")
    expect(view.root).to_have_attribute("data-frames", str(frames + 2))
    assert view.pixels("axial").mean() < before.mean()


def test_python_hears_of_keys(view: View, notebook: Notebook) -> None:
    notebook.python("heard = []; viewer.observe(lambda change: heard.append([*change.new]), 'position')")
    view.press("ArrowUp")
    notebook.comes_to("heard", [[11, 12, 9]])
    notebook.python("viewer.unobserve_all('position')")


def test_two_views_of_one_viewer_stay_together(view: View, notebook: Notebook) -> None:
    again = _view(notebook, 4)
    view.press("ArrowUp")
    again.is_at(11, 12, 9)
    again.press("o")
    expect(view.root.locator("select.uv-style")).to_have_value("outline")
    assert (view.pixels("axial") == again.pixels("axial")).all()


def test_jslink_ties_viewers_and_sliders(notebook: Notebook) -> None:
    first, second = _view(notebook, 1), _view(notebook, 2)
    notebook.python("first.position = (11, 12, 8)")
    second.is_at(11, 12, 8)
    first.press("ArrowUp")
    second.is_at(11, 12, 9)
    second.press("Home")
    first.is_at(11, 12, 0)
    notebook.comes_to("[[*first.position], [*second.position]]", [[11, 12, 0]] * 2)
    notebook.python("first.position = (11, 12, 8)")
    first.is_at(11, 12, 8)
    before = first.colour("axial", (12, 14, 8))
    handle = notebook.page.locator(".widget-slider [role=slider]")
    handle.focus()
    for _ in range(3):
        notebook.page.keyboard.press("ArrowUp")
    notebook.comes_to("slider.value > 0.5 and slider.value == first.opacity", True)
    assert np.ptp(first.colour("axial", (12, 14, 8))) > np.ptp(before), "more of the colour"


@pytest.mark.parametrize("plane", AXES)
def test_several_volumes_are_linked_in_space(notebook: Notebook, plane: str) -> None:
    view = _view(notebook, 3)
    notebook.python(f"several.position = (4, 5, 15); several.plane = {plane!r}; several.window = (100, 1000)")
    view.is_at(4, 5, 15)
    expect(view.root.locator("canvas.uv-plane")).to_have_count(3)
    expect(view.canvas(plane, 2)).to_be_visible()
    for number in (0, 1, 2):
        assert min(view.colour(plane, (3, 6, 17), number)) > 250, "the block is in the same place in all"
    assert (view.pixels(plane, 0) == view.pixels(plane, 1)).all()
    before = view.pixels(plane, 1)
    for _ in range(2):
        view.press("End")
    assert (view.pixels(plane, 0) == view.pixels(plane, 1)).all()
    assert (view.pixels(plane, 1) != before).any()


# Zoom, fingers, full screen: in a page of its own

HEAD = np.s_[20:50, 10:60, 6:34]  # in (60, 72, 40) voxels


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright head in noisy air, as a page."""
    rng = np.random.default_rng(0)
    volume, truth = rng.normal(10, 3, (60, 72, 40)), np.zeros((60, 72, 40), np.uint8)
    volume[HEAD] = rng.normal(500, 100, volume[HEAD].shape)
    truth[30:36, 30:36, 15:21] = 1
    affine = np.array([[-1, 0, 0, 30], [0, -1, 0, 40], [0, 0, 2, -20], [0, 0, 0, 1.0]])
    viewer = SliceViewer(volume, truth=truth, affine=affine, title="A head")
    return viewer.to_html(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def desk(lab: Lab) -> Iterator[Page]:
    with lab.context(offline=True) as context:
        yield context.new_page()


@pytest.fixture
def head(desk: Page, page_file: Path) -> View:
    desk.goto(page_file.as_uri())
    view = View(desk, desk.locator(READY))
    view.is_at(32, 32, 15)
    return view


def _voxel_at(view: View, plane: str, across: float, down: float) -> list[int]:
    """The voxel that the readout tells when the mouse is at these shares of a picture's width and height."""
    box = view.canvas(plane).bounding_box()
    view.page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    return [int(i) for i in view.root.locator(".uv-voxel").inner_text().removeprefix("voxel ").split(", ")]


def _zoom(view: View, plane: str, across: float, down: float, turn: int = -200) -> list[int]:
    """Zoom with the wheel at a place; return the voxel there."""
    voxel = _voxel_at(view, plane, across, down)
    view.page.keyboard.down("Control")
    view.page.mouse.wheel(0, turn)
    view.page.keyboard.up("Control")
    expect(view.root).not_to_have_attribute("data-zoom", "1")
    return voxel


def test_first_view_is_cut_to_the_head(head: View) -> None:
    for plane, (across, down, _) in AXES.items():
        low = [(axis.start - 4, axis.stop + 3) for axis in HEAD]
        first, last = _voxel_at(head, plane, 0.002, 0.002), _voxel_at(head, plane, 0.998, 0.998)
        for axis in (across, down):
            ends = sorted((first[axis], last[axis]))
            assert low[axis][0] <= ends[0] <= HEAD[axis].start, "a margin, no more"
            assert HEAD[axis].stop - 1 <= ends[1] <= low[axis][1]
        assert (head.pixels(plane).min(2) > 60).mean() > 0.6
    ratio = head.canvas("coronal").bounding_box()
    assert ratio["width"] / ratio["height"] == pytest.approx(36 / (2 * 34), rel=0.02), "in its true proportions"


@pytest.mark.parametrize("plane", AXES)
def test_wheel_with_a_modifier_zooms_where_the_mouse_is_in_all_planes(head: View, plane: str) -> None:
    before = {other: head.pixels(other) for other in AXES}
    voxel = _zoom(head, plane, 0.3, 0.7)  # the mouse stays where it was, and the image grows under it
    expect(head.root.locator(".uv-voxel")).to_have_text(f"voxel {', '.join(map(str, voxel))}")
    assert float(head.root.get_attribute("data-zoom")) > 1.2
    assert not any(np.array_equal(head.pixels(other), before[other]) for other in AXES)
    edges = [_voxel_at(head, other, *spot)[0] for other, spot in (("axial", (0.01, 0.5)), ("coronal", (0.01, 0.5)))]
    assert edges[0] == edges[1], "planes show the same box"
    head.is_at(32, 32, 15)


@pytest.mark.parametrize("how", ["buttons", "keys"])
def test_zoom_in_and_out_and_back(head: View, how: str) -> None:
    def do(button: str, key: str) -> float:
        head.root.locator(f"button.uv-{button}").click() if how == "buttons" else head.press(key)
        return float(head.root.get_attribute("data-zoom"))

    first = head.pixels("axial")
    assert [do("in", "+"), do("in", "=")] == [1.5, 2.25]
    assert [do("out", "-"), do("out", "-")] == [1.5, 1]
    assert (head.pixels("axial") == first).all()
    assert do("out", "-") < 1
    do("out", "-")
    corners = [_voxel_at(head, "axial", 0.001, 0.001), _voxel_at(head, "axial", 0.999, 0.999)]
    assert [corner[:2] for corner in corners] == [[0, 0], [59, 71]], "the whole volume is seen"
    do("reset", "0")
    assert (head.pixels("axial") == first).all()


def test_double_click_resets_the_zoom(head: View) -> None:
    first = head.root.get_attribute("data-centre")
    _zoom(head, "coronal", 0.2, 0.2)
    head.canvas("axial").dblclick()
    expect(head.root).to_have_attribute("data-zoom", "1")
    expect(head.root).to_have_attribute("data-centre", first)


@pytest.mark.parametrize(("button", "shift"), [("left", False), ("middle", False), ("left", True)])
def test_drag_moves_an_enlarged_image_and_with_shift_changes_the_window(head: View, button: Any, shift: bool) -> None:
    _zoom(head, "axial", 0.5, 0.5, -300)
    voxel, before = _voxel_at(head, "axial", 0.4, 0.4), head.frames()
    if shift:
        head.page.keyboard.down("Shift")
    head.page.mouse.down(button=button)
    seen = _voxel_at(head, "axial", 0.6, 0.55)
    head.page.mouse.up(button=button)
    head.page.keyboard.up("Shift")
    assert (seen == voxel) == (not shift)
    assert (head.frames() == before) == (not shift), "no trait has changed, the window neither"
    head.is_at(32, 32, 15)


def test_enlarged_view_follows_the_position(head: View) -> None:
    for _ in range(3):
        head.press("+")
    head.press("End")
    head.is_at(32, 32, 39)
    box = head.canvas("coronal").bounding_box()
    rows = [_voxel_at(head, "coronal", 0.5, share)[2] for share in (0.01, 0.99)]
    assert rows[1] < 39 <= rows[0], box


def test_reset_button_brings_everything_back(head: View) -> None:
    traits = ("plane-select", "show", "style", "opacity")
    controls = {name: head.root.locator(f".uv-{name}").input_value() for name in traits}
    first = [head.pixels(plane) for plane in AXES]
    for key in ("2", "PageUp", "o", "e", "+"):
        head.press(key)
    head.root.locator("input.uv-opacity").fill("0.9")
    head.page.keyboard.down("Shift")
    head.canvas("axial").drag_to(
        head.canvas("axial"), source_position={"x": 9, "y": 9}, target_position={"x": 60, "y": 50}
    )
    head.page.keyboard.up("Shift")
    assert not any(np.array_equal(head.pixels(plane), before) for plane, before in zip(AXES, first, strict=True))
    head.root.locator("button.uv-reset").click()
    head.is_at(32, 32, 15)
    assert {name: head.root.locator(f".uv-{name}").input_value() for name in traits} == controls
    head.page.mouse.move(0, 0)
    assert all(np.array_equal(head.pixels(plane), before) for plane, before in zip(AXES, first, strict=True))


def test_question_mark_shows_the_keys(head: View) -> None:
    keys = head.root.locator(".uv-help")
    expect(keys).to_be_hidden()
    head.press("?")
    expect(keys).to_be_visible()
    for word in ("Wheel", "Ctrl", "Double click", "Drag", "Touch", "Arrow keys", "Home", "E, O", "full screen"):
        expect(keys).to_contain_text(word)
    head.press("Escape")
    expect(keys).to_be_hidden()
    head.root.locator("button.uv-keys").click()
    expect(keys).to_be_visible()


def test_origin_of_the_millimetres_is_told(head: View) -> None:
    assert _voxel_at(head, "axial", 0.5, 0.5)[2] == 15
    expect(head.root.locator(".uv-mm")).to_have_text(re.compile(r"x [+-]\d+\.0 y [+-]\d+\.0 z \+10\.0 mm"))
    expect(head.root.locator(".uv-notes")).to_contain_text("grow to the patient's right, front and top")
    expect(head.root.locator(".uv-notes")).to_contain_text("the origin is voxel 30, 40, 10")


@pytest.mark.parametrize(("value", "told"), [(0.0, "0"), (123.4567, "123.5"), (900.0, "900")])
def test_a_value_has_no_more_digits_than_the_steps_of_its_volume(
    desk: Page, tmp_path: Path, value: float, told: str
) -> None:
    volume = np.linspace(-0.3, 900.2, 1000, dtype=np.float32).reshape(10, 10, 10)  # a step is 0.014
    volume[5, 5, 5] = value
    desk.goto(SliceViewer(volume, position=(5, 5, 5)).to_html(tmp_path / "page.html").as_uri())
    expect(desk.locator(".uv-value")).to_have_text(f"value {told}")


def test_a_volume_of_one_broken_number_shows_it(desk: Page, tmp_path: Path) -> None:
    viewer = SliceViewer(np.full((3, 3, 3), 0.25, np.float32), position=(1, 1, 1))
    desk.goto(viewer.to_html(tmp_path / "page.html").as_uri())
    expect(desk.locator(".uv-value")).to_have_text("value 0.25")


@pytest.mark.parametrize(
    ("x", "told"), [(-0.05, "-0.1"), (-0.04, "+0.0"), (0.0, "+0.0"), (-0.25, "-0.3"), (7.0, "+7.0")]
)
def test_millimetres_have_the_sign_of_what_is_shown(desk: Page, tmp_path: Path, x: float, told: str) -> None:
    affine = np.array([[-1, 0, 0, x], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    viewer = SliceViewer(np.zeros((3, 3, 3), np.int16), affine=affine, position=(0, 0, 0))
    desk.goto(viewer.to_html(tmp_path / "page.html").as_uri())
    expect(desk.locator(".uv-mm")).to_have_text(f"x {told} y +0.0 z +0.0 mm")


def test_full_screen_is_larger_and_escape_leaves_it(head: View) -> None:
    _assert_full_screen(head)


def test_full_screen_works_in_jupyterlab(view: View) -> None:
    _assert_full_screen(view)


def _assert_full_screen(view: View) -> None:
    full = "root => document.fullscreenElement === root"
    before = view.canvas("axial").bounding_box()
    view.root.locator("button.uv-full").click()
    view.page.wait_for_function(full, arg=view.root.element_handle())
    larger = "([canvas, area]) => canvas.clientWidth * canvas.clientHeight > area"
    area = before["width"] * before["height"]
    view.page.wait_for_function(larger, arg=[view.canvas("axial").element_handle(), area])
    height = view.page.viewport_size["height"]
    for part in (".uv-bar", ".uv-slice", ".uv-notes"):
        box = view.root.locator(part).bounding_box()
        assert 0 <= box["y"] <= box["y"] + box["height"] <= height, f"{part} is on the screen"
    view.press("ArrowUp")
    view.page.keyboard.press("Escape")
    view.page.wait_for_function(f"root => !({full})(root)", arg=view.root.element_handle())
    view.page.wait_for_function(
        "([canvas, area]) => canvas.clientWidth * canvas.clientHeight === area",
        arg=[view.canvas("axial").element_handle(), area],
    )


@pytest.fixture(scope="module")
def phone(lab: Lab, page_file: Path) -> Iterator[Page]:
    size = {"width": 390, "height": 844}
    with lab.context(offline=True, has_touch=True, is_mobile=True, device_scale_factor=2, viewport=size) as context:
        yield context.new_page()


@pytest.fixture
def held(phone: Page, page_file: Path) -> View:
    phone.goto(page_file.as_uri())
    view = View(phone, phone.locator(READY))
    view.is_at(32, 32, 15)
    return view


def _touch(view: View, *fingers: list[tuple[float, float]]) -> None:
    """Move fingers over the axial picture, each through places as shares of its width and height."""
    box, session = view.canvas("axial").bounding_box(), view.page.context.new_cdp_session(view.page)

    def send(kind: str, places: list[tuple[float, float]]) -> None:
        points = [
            {"x": box["x"] + across * box["width"], "y": box["y"] + down * box["height"], "id": number}
            for number, (across, down) in enumerate(places)
        ]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    first, *others = zip(*fingers, strict=True)
    send("touchStart", [*first])
    for places in others:
        send("touchMove", [*places])
    send("touchEnd", [])


def test_phone_shows_the_viewer_in_its_width(held: View) -> None:
    assert held.page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in ("canvas.uv-plane", "select", "button", "input"):
        for one in held.root.locator(part).all():
            box = one.bounding_box()
            assert 0 <= box["x"] <= box["x"] + box["width"] <= 390


@pytest.mark.parametrize(("down", "direction"), [(0.2, 1), (0.8, -1)])
def test_one_finger_up_and_down_moves_slices(held: View, down: float, direction: int) -> None:
    shares = np.linspace(0.5, down, 6)
    _touch(held, [(0.5, share) for share in shares])
    expect(held.root).not_to_have_attribute("data-position", "32,32,15")
    x, y, z = map(int, held.root.get_attribute("data-position").split(","))
    assert (x, y) == (32, 32)
    assert 5 < (z - 15) * direction < 15
    expect(held.root).to_have_attribute("data-zoom", "1")


def test_finger_changes_no_window_and_a_tap_goes_there(held: View) -> None:
    before, frames = held.pixels("axial"), held.frames()
    _touch(held, [(share, 0.5) for share in np.linspace(0.2, 0.8, 6)])
    held.page.evaluate(FRAME)
    assert (held.pixels("axial") == before).all()
    assert held.frames() == frames
    _touch(held, [(0.5, 0.5)])
    held.is_at(35, 35, 15)


def test_pinch_zooms_and_moves_nothing_else(held: View) -> None:
    _touch(held, [(0.5 - d, 0.5) for d in (0.1, 0.2, 0.3)], [(0.5 + d, 0.5) for d in (0.1, 0.2, 0.3)])
    expect(held.root).not_to_have_attribute("data-zoom", "1")
    assert float(held.root.get_attribute("data-zoom")) == pytest.approx(3, rel=0.1)
    held.is_at(32, 32, 15)


@pytest.mark.parametrize("size", [(1000, 700), (375, 700)])
def test_a_long_name_leaves_the_letter_of_the_side_readable(desk: Page, tmp_path: Path, size: tuple[int, int]) -> None:
    volume = np.zeros((24, 32, 20), np.int16)
    viewer = SliceViewer({f"A_patient_with_a_long_name_{i}, 24 ml": volume for i in range(4)})
    desk.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    desk.goto(viewer.to_html(tmp_path / "page.html").as_uri())
    expect(desk.locator(READY)).to_have_count(1)
    for figure in desk.locator("figure").all():
        caption, letter = (figure.locator(part).bounding_box() for part in ("figcaption", '[data-side="top"]'))
        assert caption["x"] + caption["width"] <= letter["x"]
    desk.set_viewport_size({"width": 1280, "height": 1000})


def test_several_viewers_live_in_one_page(desk: Page, tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 200, (2, 12, 16, 10)).astype(np.int16)
    viewers = [SliceViewer(volume, title=f"number {i}") for i, volume in enumerate(volumes)]
    fragments = [viewers[0].to_fragment(), viewers[1].to_fragment(), viewers[0].to_fragment(runtime=False)]
    (tmp_path / "page.html").write_text(f"<!doctype html><title>Three</title>{'<p>text</p>'.join(fragments)}")
    desk.goto((tmp_path / "page.html").as_uri())
    expect(desk.locator(READY)).to_have_count(3)
    expect(desk.locator("img")).to_have_count(0)
    views = [View(desk, desk.locator(READY).nth(number)) for number in range(3)]
    views[1].press("ArrowUp")
    for view, z in zip(views, (4, 5, 4), strict=True):
        view.is_at(6, 8, z)
    assert (views[0].pixels("axial") == views[2].pixels("axial")).all()
    assert (views[0].pixels("axial") != views[1].pixels("axial")).any()


# Several regions


@pytest.fixture(scope="module")
def regions(lab: Lab) -> Iterator[Notebook]:
    with lab.notebook("regions", [DATA, REGIONS, LABELS], viewers=2) as notebook:
        yield notebook


@pytest.fixture
def named(regions: Notebook) -> View:
    """Four sequences with three regions of reference and prediction: the viewer called `named`, as at the start."""
    regions.python("named.show, named.style, named.plane, named.position = 'both', 'outline', 'axial', (11, 13, 10)")
    view = _view(regions, 0)
    view.is_at(11, 13, 10)
    expect(view.root.locator("select.uv-show")).to_have_value("both")
    expect(view.root.locator("select.uv-style")).to_have_value("outline")
    view.root.press("0")
    return view


def _count(picture: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) <= 3).sum())


def test_every_region_has_a_contour_in_its_colour_on_each_sequence(named: View) -> None:
    pictures = [named.pixels("axial", volume) for volume in range(4)]
    assert all(_count(picture, colour) > 20 for picture in pictures for colour in (YELLOW, BLUE, ORANGE))
    legend = named.root.locator(".uv-legend")
    assert legend.inner_text().split() == ["whole", "core", "enhancing", "reference", "prediction"]
    assert legend.locator("i").evaluate_all("all => all.slice(3).map(i => getComputedStyle(i).borderTopStyle)") == [
        "solid",
        "dashed",
    ]


def test_the_reference_is_a_whole_line_and_the_prediction_a_dashed_one(named: View, regions: Notebook) -> None:
    regions.python("named.show = 'truth'")
    expect(named.root.locator("select.uv-show")).to_have_value("truth")
    whole = [_count(named.pixels("axial"), colour) for colour in (YELLOW, BLUE, ORANGE)]
    regions.python("named.show = 'prediction'")
    expect(named.root.locator("select.uv-show")).to_have_value("prediction")
    dashed = [_count(named.pixels("axial"), colour) for colour in (YELLOW, BLUE, ORANGE)]
    assert all(0.2 < part / line < 0.85 for part, line in zip(dashed, whole, strict=True)), (dashed, whole)


def test_of_two_masks_in_a_fill_the_prediction_is_filled_and_the_reference_a_line(named: View) -> None:
    named.press("o")
    named.press("e")  # errors of the first region
    expect(named.root.locator("select.uv-show")).to_have_value("errors: whole")
    named.root.locator("select.uv-show").select_option("both")
    named.root.locator("input.uv-opacity").fill("1")
    # The prediction is the reference, moved one voxel to the left of the patient.
    assert named.colour("axial", (12, 14, 10)) == ORANGE
    assert named.colour("axial", (17, 18, 10)) == BLUE
    assert named.colour("axial", (19, 14, 10)) == YELLOW
    legend = named.root.locator(".uv-legend i").evaluate_all("all => all.map(i => i.className)")
    assert legend == ["", "", "", "uv-line-truth", "uv-filled"]
    named.root.locator("input.uv-opacity").fill("0.5")


@pytest.mark.parametrize("region", ["whole", "core", "enhancing"])
def test_errors_are_those_of_one_region(named: View, region: str) -> None:
    named.root.locator("select.uv-show").select_option(f"errors: {region}")
    named.root.locator("select.uv-style").select_option("fill")
    named.root.locator("input.uv-opacity").fill("1")
    first, last = {"whole": (6, 19), "core": (8, 17), "enhancing": (10, 13)}[region]
    assert named.colour("axial", (last, 14, 10)) == ORANGE, "a false alarm"
    assert named.colour("axial", (last - 1, 14, 10)) == GREEN
    assert named.colour("axial", (first, 14, 10)) == BLUE, "missed"
    named.root.locator("input.uv-opacity").fill("0.5")


def test_four_sequences_move_and_zoom_together(named: View) -> None:
    captions = named.root.locator("figcaption")
    named.press("ArrowUp")
    expect(captions).to_have_text([f"{name} · z 11" for name in ("flair", "t1", "t1ce", "t2")])
    named.press("3")
    expect(captions).to_have_text([f"{name} · x 11" for name in ("flair", "t1", "t1ce", "t2")])
    named.press("1")
    named.canvas("axial", 2).click(position=named.spot("axial", (7, 20, 11)))
    named.is_at(7, 20, 11)
    named.press("+")
    expect(named.root).to_have_attribute("data-zoom", "1.5")
    named.root.locator("select.uv-show").select_option("none")
    pictures = [named.pixels("axial", volume) for volume in range(4)]
    assert all(np.abs(picture.astype(int) - pictures[0]).max() <= 1 for picture in pictures[1:]), "alike but for 1 grey"


def test_readout_and_strip_know_the_regions(named: View) -> None:
    at = named.spot("axial", (17, 18, 10))
    named.canvas("axial").hover(position=at)
    expect(named.root.locator(".uv-truth")).to_have_text("reference whole")
    expect(named.root.locator(".uv-prediction")).to_have_text("prediction whole, core")
    named.canvas("axial").hover(position=named.spot("axial", (2, 2, 10)))
    expect(named.root.locator(".uv-truth")).to_have_text("reference none")
    strip = _pixels(named.root.locator("canvas.uv-strip"))
    marked = [strip[:, int((z + 0.5) / SHAPE[2] * strip.shape[1]), 3].any() for z in range(SHAPE[2])]
    assert marked == [4 <= z < 16 for z in range(SHAPE[2])]
    assert {YELLOW, BLUE, ORANGE} <= {tuple(colour) for colour in strip[..., :3].reshape(-1, 3).tolist()}


def test_each_label_has_its_colour_and_its_name(regions: Notebook) -> None:
    view = _view(regions, 1)
    assert view.root.locator(".uv-legend").inner_text().splitlines() == ["necrotic core", "oedema", "enhancing"]
    shown = [view.colour("axial", voxel) for voxel in ((9, 13, 10), (6, 9, 10), (12, 13, 10), (2, 2, 10))]
    assert shown[:3] == [BLUE, GREEN, ORANGE]
    assert len(set(shown[3])) == 1, "grey: in no mask"


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_the_legend_of_the_regions_is_readable(named: View, regions: Notebook, theme: str) -> None:
    regions.theme(theme)
    _assert_readable(named, dark="Dark" in theme)


# Notebook, page, readers


@pytest.fixture(scope="module")
def saved(lab: Lab) -> Iterator[Notebook]:
    """A notebook with one viewer of 345,600 bytes of noise, saved with the state of its widgets."""
    big = "volume = np.random.default_rng(1).integers(0, 30000, (60, 72, 40)).astype(np.int16)\nSliceViewer(volume)"
    with lab.notebook("saved", [DATA, big]) as notebook:
        notebook.save()
        yield notebook


def test_saved_notebook_is_small_and_holds_a_picture_but_no_voxels(saved: Notebook) -> None:
    notebook = nbformat.read(saved.path, 4)
    assert "AnyModel" in str(notebook.metadata["widgets"]), "without the widgets' state the size says little"
    assert len(saved.path.read_bytes()) < 220_000
    assert [*notebook.cells[1].outputs[-1]["data"]] == ["image/png", "text/plain"]


def test_still_is_hidden_while_the_viewer_lives(view: View) -> None:
    stills = view.page.locator(f"{STILL} >> visible=true")
    expect(view.page.locator(STILL)).not_to_have_count(0)
    expect(stills).to_have_count(0)


def test_exported_notebook_shows_the_still_without_network(lab: Lab, saved: Notebook, tmp_path: Path) -> None:
    page, path = HTMLExporter().from_filename(saved.path)[0], tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    with lab.browser.new_context(offline=True) as context:  # it asks for the script of all widgets, in vain
        view = context.new_page()
        view.goto(path.as_uri())
        expect(view.locator(STILL)).to_be_visible()
        assert view.locator(STILL).bounding_box()["height"] > 150


def test_viewer_comes_back_when_the_page_is_loaded_again(saved: Notebook) -> None:
    saved.page.reload()
    view = _view(saved, 0)
    view.is_at(30, 36, 20)
    view.press("ArrowUp")
    view.is_at(30, 36, 21)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
def test_still_stays_when_the_kernel_is_gone(saved: Notebook, trusted: bool, state: bool) -> None:
    content = nbformat.read(saved.path, 4)
    assert "widgets" in content.metadata
    if not state:
        del content.metadata["widgets"]
    panel = saved.reopen(f"again-{trusted}-{state}", content, trusted)
    expect(panel.locator(STILL)).to_be_visible()
    expect(panel.locator(READY)).to_have_count(0)
    height = panel.locator(STILL).bounding_box()["height"]
    assert height > 150
    is_trusted = "jupyterapp.shell.currentWidget.model.cells.get(1).trusted"
    assert saved.page.evaluate(is_trusted) == trusted, "the test tests what it says"
    saved.shut_down()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_exported_page_works_from_a_file_without_network(
    lab: Lab, notebook: Notebook, tmp_path: Path, scheme: Any
) -> None:
    path = tmp_path / "page.html"
    notebook.python(f"viewer.position = (11, 12, 8); viewer.to_html({str(path)!r})")
    with lab.context(offline=True, color_scheme=scheme) as context:
        page, asked = context.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        view = View(page, page.locator(READY))
        view.is_at(11, 12, 8)
        view.press("ArrowUp")
        view.is_at(11, 12, 9)
        for plane in AXES:
            assert len(np.unique(view.pixels(plane).reshape(-1, 3), axis=0)) > 50
        view.canvas("axial").click(position=view.spot("axial", (4, 25, 9)))
        view.is_at(4, 25, 9)
        _assert_readable(view, dark=scheme == "dark")
        assert "never for clinical use" in page.locator("body").inner_text()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_theme_of_jupyterlab_is_readable(view: View, notebook: Notebook, theme: str) -> None:
    notebook.theme(theme)
    _assert_readable(view, dark="Dark" in theme)


def _assert_readable(view: View, dark: bool) -> None:
    """Text against what lies behind it: a contrast of 4.5, as WCAG 2.2, 1.4.3, asks."""
    painted = f"root => ({CONTRASTS})(root).length > 20"  # JupyterLab hides its cells while it lays them out anew
    view.page.wait_for_function(painted, arg=view.root.element_handle())
    contrasts = view.root.evaluate(CONTRASTS)
    assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == []
    paper = view.root.evaluate("root => getComputedStyle(root).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper)[:3])) < 100) == dark


def test_controls_have_names(view: View) -> None:
    expect(view.root).to_have_attribute("role", "group")
    expect(view.root).to_have_attribute("aria-label", re.compile("A patient"))
    expect(view.root).to_have_attribute("tabindex", "0")
    for control in view.root.locator("input, select, canvas, button").all():
        expect(control).to_have_accessible_name(re.compile(r"\w"))
    expect(view.root.locator(".uv-readout")).to_have_attribute("aria-live", "polite")
    expect(view.root.locator("input.uv-slice")).to_have_attribute("aria-valuetext", re.compile("8"))


def test_nothing_asks_the_network(lab: Lab, view: View) -> None:
    assert lab.refused == []
