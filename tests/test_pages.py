"""The course as pages: what people who have no Python open from a stick or a zip."""

import base64
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import expect, sync_playwright

from tests.lab import FLAGS
from unetlib import SliceViewer, __version__, plots
from unetlib.course import pages
from unetlib.course.chapters import NOTEBOOKS
from unetlib.course.pages import Pages, room_for_viewers
from unetlib.show import embedded
from unetlib.support.errors import UnetlibError

FIRST = """# 1. One: *first* things

You can

- say `a`, which is
  long;
- do *b*.

[The next](02_two.ipynb), [a place there](02_two.ipynb#2.1-A-place), [above](#1.1-Here), [ours](../README.md#start),
[gone](03_gone.ipynb), [the web](https://example.org/a.ipynb), [solved](solutions/01_one.ipynb)."""
BANNER = "> Shown here: **real MRI**, 3 patients in `a & b`. For research and education."


@pytest.fixture
def chapters(tmp_path):
    """Two chapters that have not been run, and the solution of the first, which has."""
    folder = tmp_path / "clone" / "notebooks"
    (folder / "solutions").mkdir(parents=True)
    cells = {
        "01_one": [new_markdown_cell(FIRST), new_markdown_cell("## 1.1 Here"), new_code_cell("start()")],
        "02_two": [new_markdown_cell("# 2. Two"), new_markdown_cell("## 2.1 A place\n\n### Deeper\n\n#### Deepest")],
        "solutions/01_one": [new_markdown_cell("# Solved\n\n[back](../01_one.ipynb)"), executed("42")],
    }
    for name, own in cells.items():
        nbformat.write(new_notebook(cells=own), folder / f"{name}.ipynb")
    return [folder / "01_one.ipynb", folder / "02_two.ipynb"]


def executed(*outputs):
    """A cell with outputs: Markdown, or a bundle and its metadata."""
    bundles = [({"text/markdown": one}, {}) if isinstance(one, str) else one for one in outputs]
    return new_code_cell("x", outputs=[new_output("display_data", data, metadata=about) for data, about in bundles])


def with_outputs(path, *outputs):
    notebook = nbformat.read(path, 4)
    notebook.cells.append(executed(*outputs))
    return notebook


class Seen(HTMLParser):
    """The links, the anchors, the images and what is loaded, of a page."""

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.anchors, self.images, self.loaded = [], set(), [], []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        about = dict(attributes)
        self.anchors |= {about["id"]} if "id" in about else set()
        if tag == "a":
            self.links.append(about["href"])
        if tag == "img":
            self.images.append(about)
        self.loaded += [about[name] for name in ("src",) if name in about]
        self.loaded += [about["href"]] if tag == "link" else []


def dead_links(folder: Path) -> list[str]:
    """Return every link of a folder's pages that leads nowhere, or out of the folder."""
    seen = {page: Seen(page) for page in folder.rglob("*.html")}
    dead = []
    for page, own in seen.items():
        for link in own.links:
            parts = urlsplit(link)
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = seen[target].anchors if target in seen else None
            if not parts.scheme and (known is None or not {parts.fragment, unquote(parts.fragment)} & {*known, ""}):
                dead.append(f"{page.name}: {link}")
    return dead


def index_of(folder):
    text = re.sub(
        r"<style.*?</style>|<script.*?</script>|<nav.*?</nav>",
        "",
        (folder / "index.html").read_text("utf-8"),
        flags=re.DOTALL,
    )
    return re.sub(r"<[^>]*>", "", text)


def test_no_link_is_dead_at_any_moment_and_none_leads_out_of_the_folder(chapters, tmp_path):
    made = Pages(tmp_path / "out", chapters)
    assert dead_links(tmp_path / "out") == []
    assert "Not there yet" in (tmp_path / "out" / "02_two.html").read_text("utf-8")
    for path in chapters:
        made.write(path, with_outputs(path, BANNER))
        assert dead_links(tmp_path / "out") == []
    links = Seen(tmp_path / "out" / "01_one.html").links
    assert {"02_two.html", "02_two.html#2.1-A-place", "#1.1-Here", "solutions/01_one.html", "index.html"} <= {*links}
    assert "https://example.org/a.ipynb" in links
    assert not [link for link in links if "README" in link or "gone" in link]
    text = (tmp_path / "out" / "01_one.html").read_text("utf-8")
    assert "ours (<code>README.md</code> in the repository)" in text
    assert "gone (<code>notebooks/03_gone.ipynb</code> in the repository)" in text
    assert "../01_one.html" in Seen(tmp_path / "out" / "solutions" / "01_one.html").links
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert dead_links(tmp_path / "elsewhere") == []


def test_the_real_notebooks_have_no_dead_link_nor_formula(tmp_path):
    """Without MathJax, which is fetched, a page would show the source of a formula."""
    paths = sorted(NOTEBOOKS.glob("0*.ipynb"))
    made = Pages(tmp_path, paths)
    for path in paths:
        made.write(path, nbformat.read(path, 4))
    assert len(made.solutions) == len(paths)
    assert dead_links(tmp_path) == []
    for path in (*paths, *made.solutions):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        assert not [cell for cell in cells if re.search(r"\$|\\\(|\\\[|\\begin", re.sub(r"`[^`]*`", "", cell))], path
    for path in paths:
        assert len(pages._aims(nbformat.read(path, 4))) >= 4, "the index tells what a chapter is for"


def test_the_index_is_right_at_every_moment(chapters, tmp_path):
    made = Pages(tmp_path / "out", chapters)
    assert Seen(tmp_path / "out" / "index.html").links.count("01_one.html") == 0
    text = index_of(tmp_path / "out")
    assert text.count("Not there yet") == 2
    assert "never for clinical use" in text
    assert __version__ in text
    assert "1. One: first things" in text
    assert "say a, which is\nlong;" in text
    assert "do b." in text
    made.write(chapters[0], with_outputs(chapters[0], BANNER))
    text = index_of(tmp_path / "out")
    assert "Shown here: real MRI, 3 patients in a &amp; b." in text
    assert text.count("Not there yet") == 1
    links = Seen(tmp_path / "out" / "index.html").links
    assert "01_one.html" in links
    assert "solutions/01_one.html" in links
    assert "02_two.html" not in links


def test_a_chapter_that_went_on_with_other_data_shows_those(chapters, tmp_path):
    other = "> Shown here: **synthetic images**, 4 patients."
    Pages(tmp_path, chapters).write(chapters[0], with_outputs(chapters[0], BANNER, other))
    assert "Shown here: synthetic images, 4 patients." in index_of(tmp_path)
    assert "real MRI" not in index_of(tmp_path)


def test_pages_of_an_earlier_call_stay_and_are_known(chapters, tmp_path):
    page = Pages(tmp_path, chapters).write(chapters[0], with_outputs(chapters[0], BANNER))
    before = page.read_bytes()
    Pages(tmp_path, chapters)
    assert page.read_bytes() == before
    assert "Shown here: real MRI" in index_of(tmp_path)


def test_the_page_of_a_chapter_to_come_has_no_outputs_of_other_data(chapters, tmp_path):
    nbformat.write(with_outputs(chapters[0], BANNER), chapters[0])
    Pages(tmp_path, chapters)
    assert "real MRI" not in (tmp_path / "01_one.html").read_text("utf-8")
    assert "Not there yet" in index_of(tmp_path)


def test_a_page_has_its_headings_as_contents_and_leads_on(chapters, tmp_path):
    made = Pages(tmp_path, chapters)
    page = made.write(chapters[1], with_outputs(chapters[1], BANNER)).read_text("utf-8")
    contents = re.search(r"<details><summary>On this page</summary>(.*?)</details>", page, re.DOTALL)[1]
    assert re.findall(r'href="#([^"]*)">([^<]*)<', contents) == [("2.1-A-place", "2.1 A place"), ("Deeper", "Deeper")]
    assert re.findall(r'href="(0[^"]*)">(\w+ chapter)<', page) == [("01_one.html", "Previous chapter")] * 2
    assert "<title>2. Two</title>" in page


def test_a_figure_has_its_alt_text_and_its_width(chapters, tmp_path):
    png, about = plots.in_notebook(plots.loss_figure())
    bundle = {"image/png": base64.b64encode(png).decode(), "text/plain": "<Figure>"}
    notebook = with_outputs(chapters[0], (bundle, {"image/png": {**about, "alt": 'Loss & "gradient"'}}), (bundle, {}))
    told, untold = Seen(Pages(tmp_path, chapters).write(chapters[0], notebook)).images
    assert told["alt"] == 'Loss & "gradient"'
    assert told["width"] == "900"
    assert untold["alt"] == "<Figure>"


def test_a_viewer_of_many_volumes_takes_what_a_small_one_leaves(monkeypatch):
    rng = np.random.default_rng(0)
    many = SliceViewer([*rng.normal(500, 100, (4, 24, 24, 24)).astype(np.int16)])
    small = SliceViewer(np.zeros((24, 24, 24), np.int16))
    needed = len(many.to_fragment())
    monkeypatch.setattr(embedded, "_taken", [])
    monkeypatch.setenv(embedded.EMBED, str(2 * needed))
    monkeypatch.setenv(embedded.SHARED, "3")
    shown = [viewer._repr_mimebundle_()[0]["text/html"] for viewer in (many, small, many)]
    assert shown == [viewer.to_fragment() for viewer in (many, small, many)], "a third each would be too little"
    monkeypatch.setenv(embedded.SHARED, "0")
    with pytest.raises(UnetlibError, match="a whole number of viewers was expected"):
        small._repr_mimebundle_()


def test_viewers_share_a_page_and_the_largest_becomes_a_still_where_they_do_not_fit():
    notebook = new_notebook(
        cells=[new_code_cell("SliceViewer(a)\nSliceViewer(b)"), new_markdown_cell("SliceViewer(c)")]
    )
    room = str(pages.LIMIT - pages.ROOM)
    assert room_for_viewers(notebook) == {embedded.EMBED: room, embedded.SHARED: "2"}
    assert room_for_viewers(new_notebook()) == {embedded.EMBED: room, embedded.SHARED: "1"}
    still = '<img class="uv-still" alt="{}" src="data:,">'
    small, large, middle = (
        f"<unetlib-viewer>\n{still.format(name)}<script>{'x' * size}</script></unetlib-viewer>"
        for name, size in (("small", 10), ("large", 1000), ("middle", 500))
    )
    page = f"é{small}{large}{middle}"
    assert pages._within(page, len(page.encode())) == page
    cut = pages._within(page, 900)
    assert small in cut
    assert middle in cut
    assert 'alt="large"' in cut
    assert "too large for a page" in cut
    assert len(cut.encode()) <= 900


@pytest.fixture
def live(chapters, tmp_path):
    """The page of a chapter with a figure and a live viewer, and the index."""
    volume = np.random.default_rng(0).integers(0, 99, (24, 32, 20)).astype(np.int16)
    viewer = SliceViewer(volume, truth=volume > 90, title="A patient")
    png, about = plots.in_notebook(plots.loss_figure())
    bundle = {"image/png": base64.b64encode(png).decode()}
    html = {"text/html": viewer.to_fragment(100_000)}
    notebook = with_outputs(chapters[0], BANNER, (html, {}), (bundle, {"image/png": about}))
    notebook.cells[2].source = "a = " + " + ".join(["a_long_name"] * 40)
    return Pages(tmp_path / "out", chapters).write(chapters[0], notebook)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_live_in_a_browser_from_a_file_on_a_phone_too(browser, live, scheme):
    with ThreadPoolExecutor(1) as thread:  # of its own: in this one, another test may have a browser open
        thread.submit(look_at, browser, live, scheme).result()


def look_at(browser, live, scheme):
    """Open a page and use it, small and large."""
    asked, failed = [], []
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=browser, args=FLAGS) as chromium:
        page = chromium.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto((live.parent / "index.html").as_uri())
        page.get_by_role("link", name="1. One: first things").first.click()
        expect(page.locator('.unetlib-viewer[data-ready="1"]')).to_have_count(1)
        page.locator(".unetlib-viewer").focus()
        before = page.locator(".unetlib-viewer").get_attribute("data-position")
        page.keyboard.press("ArrowUp")
        expect(page.locator(".unetlib-viewer")).not_to_have_attribute("data-position", before)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        code = page.locator(".highlight pre").filter(has_text="a_long_name")
        assert code.evaluate("pre => { pre.scrollLeft = 9999; return pre.scrollLeft; }") > 500, "long lines can be read"
        contents = page.get_by_role("link", name="1.1 Here")
        expect(contents).to_be_hidden()
        page.set_viewport_size({"width": 1280, "height": 800})
        page.reload()
        expect(contents).to_be_visible()
        red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert int(red) == {"light": 255, "dark": 17}[scheme]
    assert not failed
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
