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
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.lab import FRAME, READY, Lab, Notebook, open_lab

SHAPE, SPACING = (24, 32, 20), (1, 1, 2)  # of the volume in DATA: no two sides alike
DATA = """
import ipywidgets as widgets
import nibabel as nib
import numpy as np
from unetlib import SliceViewer

volume = np.random.default_rng(0).integers(100, 200, (24, 32, 20)).astype(np.int16)
volume[2:6, 3:8, 14:18] = 1000  # a bright block to the patient's right, in front, near the top
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
        ((3, 6, 16), ["value 1000", "truth 0", "prediction 0", "R 7.0", "A 14.0", "S 2.0"]),
        ((13, 14, 8), ["truth 1", "prediction 1", "L 3.0", "A 6.0", "I 14.0"]),
        ((15, 25, 8), ["truth 0", "prediction 0", "L 5.0", "P 5.0", "I 14.0"]),
    ],
)
def test_readout_tells_the_voxel_under_the_mouse(view: View, notebook: Notebook, voxel: Any, words: list[str]) -> None:
    notebook.python(f"viewer.position = (11, 12, {voxel[2]})")
    view.is_at(11, 12, voxel[2])
    view.canvas("axial").hover(position=view.spot("axial", voxel))
    value = notebook.value(f"int(volume[{voxel}])")
    for word in [f"value {value}", *words]:
        expect(view.root.locator(".uv-readout")).to_contain_text(re.compile(rf"\b{word}\b"))


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
        assert min(view.colour(plane, (3, 7, 17), number)) > 250, "the block is in the same place in all"
    assert (view.pixels(plane, 0) == view.pixels(plane, 1)).all()
    before = view.pixels(plane, 1)
    for _ in range(2):
        view.press("End")
    assert (view.pixels(plane, 0) == view.pixels(plane, 1)).all()
    assert (view.pixels(plane, 1) != before).any()


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
    assert len(saved.path.read_bytes()) < 200_000
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[1].outputs)


def test_viewer_comes_back_when_the_page_is_loaded_again(saved: Notebook) -> None:
    saved.page.reload()
    view = _view(saved, 0)
    view.is_at(30, 36, 20)
    view.press("ArrowUp")
    view.is_at(30, 36, 21)


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


def test_controls_have_names_and_keep_their_keys(view: View) -> None:
    expect(view.root).to_have_attribute("role", "group")
    expect(view.root).to_have_attribute("aria-label", re.compile("A patient"))
    expect(view.root).to_have_attribute("tabindex", "0")
    for control in view.root.locator("input, select, canvas").all():
        expect(control).to_have_accessible_name(re.compile(r"\w"))
    for control in view.root.locator("input, select").all():  # some versions of JupyterLab ask for it on each
        expect(control).to_have_attribute("data-lm-suppress-shortcuts", "true")
    expect(view.root.locator(".uv-readout")).to_have_attribute("aria-live", "polite")
    expect(view.root.locator("input.uv-slice")).to_have_attribute("aria-valuetext", re.compile("8"))


def test_nothing_asks_the_network(lab: Lab, view: View) -> None:
    assert lab.refused == []
