"""The course as pages that open anywhere, without Python and without a network: one per notebook, and an index."""

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter

from unetlib.show.embedded import EMBED, SHARED
from unetlib.show.plots import DISCLAIMER
from unetlib.support.files import atomic
from unetlib.support.version import __version__

LIMIT = 15_000_000  # bytes of a page
ROOM = 2_500_000  # of these, for text, style, figures and stills
TEMPLATE = Path(__file__).with_name("page.html.j2")
TITLE = "Brain tumour segmentation on MRI with a U-Net"
MISSING = "Not there yet: `unetlib course` runs the chapters in order and writes each page when it is done."
HEADING = re.compile(r'<h([1-3]) id="([^"]*)">(.*?)<a class="anchor-link"', re.DOTALL)
LINK = re.compile(r'<a\s[^>]*?href="([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
ELSEWHERE = re.compile(r"#|//|[a-z][a-z0-9+.-]*:", re.IGNORECASE)  # within the page, or another machine
VIEWER = re.compile(r'<unetlib-viewer>\s*(<img class="uv-still"[^>]*>).*?</unetlib-viewer>', re.DOTALL)
SHOWN = re.compile(r'<meta name="description" content="([^"]+)"|<meta content="([^"]+)" name="description"')


def room_for_viewers(notebook: Any) -> dict[str, str]:
    """Return the environment in which the viewers of a notebook share the room of its page."""
    viewers = sum(cell.source.count("SliceViewer(") for cell in notebook.cells if cell.cell_type == "code")
    return {EMBED: str(LIMIT - ROOM), SHARED: str(max(1, viewers))}


class Pages:
    """The pages of some chapters and their solutions in `folder`, and an index that is right at every moment.

    A page has the path of its notebook: `01_one.html`, `solutions/01_one.html`. Until a chapter has been run, its page
    shows the text without results, so that no link is dead. Solutions are shown as they are committed. The folder may
    be moved or zipped: its pages need nothing outside of it.
    """

    def __init__(self, folder: Path, chapters: Sequence[Path]) -> None:
        self.folder, self.chapters, self.root = folder, list(chapters), chapters[0].parent
        self.index = folder / "index.html"
        self.solutions = [path for path in map(self.solution, chapters) if path.exists()]
        for path in self.solutions:
            self._write(path, nbformat.read(path, as_version=4))
        for path in self.chapters:
            if not self.page(path).exists():
                self._write(path, _to_come(path))
        self._write_index()

    def solution(self, path: Path) -> Path:
        """Return the path of a chapter's solutions, whether they exist or not."""
        return self.root / "solutions" / path.name

    def page(self, path: Path) -> Path:
        """Return the path of a notebook's page."""
        return self.folder / path.relative_to(self.root).with_suffix(".html")

    def write(self, path: Path, notebook: Any) -> Path:
        """Write the page of an executed notebook, renew the index, and return the path of the page."""
        self._write(path, notebook)
        self._write_index()
        return self.page(path)

    def _write_index(self) -> None:
        lines = [f"# {TITLE}", f"A course, chapter by chapter. **{DISCLAIMER.capitalize()}: not a medical device.**"]
        for path in self.chapters:
            notebook, shown = nbformat.read(path, as_version=4), _shown_in(self.page(path))
            title = f"[{_title(notebook)}]({path.name})" if shown else _title(notebook)
            lines += [f"## {title}", "Afterwards you can", _aims(notebook), shown or f"*{MISSING}*"]
            if self.solution(path) in self.solutions:
                lines.append(f"[Solutions of the exercises](solutions/{path.name}), on the synthetic cohort")
        text = "\n\n".join([*lines, f"Made by unetlib {__version__}."])
        index = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
        self._write(self.root / "index.ipynb", index)

    def _write(self, path: Path, notebook: Any) -> None:
        exporter = HTMLExporter(raw_template=TEMPLATE.read_text(encoding="utf-8"), embed_images=True)
        resources = {
            "made_by": f"unetlib {__version__}",
            "shown": _shown(notebook),
            "places": self._places(path),
            "metadata": {"path": str(path.parent), "name": _title(notebook)},
        }
        page, _ = exporter.from_notebook_node(notebook, resources)
        page = LINK.sub(lambda link: self._link(link, path), page)
        with atomic(self.page(path)) as temporary:
            temporary.write_text(_within(page.replace("<!-- contents -->", _contents(page)), LIMIT), encoding="utf-8")

    def _places(self, path: Path) -> list[tuple[str, str]]:
        """Return notebook and name of what a page leads to: the index, its neighbours, its solutions or its chapter."""
        places = {"Index": self.root / "index.ipynb"}
        if path in self.chapters:
            at = self.chapters.index(path)
            places |= {"Previous chapter": self.chapters[at - 1]} if at else {}
            places |= {"Next chapter": self.chapters[at + 1]} if at + 1 < len(self.chapters) else {}
            places |= {"Solutions": self.solution(path)} if self.solution(path) in self.solutions else {}
        elif path in self.solutions:
            places["The chapter"] = self.root / path.name
        # `_link` turns them into pages
        return [(_relative(to, path), name) for name, to in places.items() if to != path]

    def _link(self, link: re.Match[str], path: Path) -> str:
        """Return a link as it is in a page: to another page, or as text where it leads to a file of the repository."""
        address, text = html.unescape(link[1]), link[2]
        if ELSEWHERE.match(address):
            return link[0]
        name, mark, anchor = address.partition("#")
        target = Path(os.path.normpath(path.parent / name))
        if target in (*self.chapters, *self.solutions, self.root / "index.ipynb"):
            return f'<a href="{html.escape(_relative(target.with_suffix(".html"), path) + mark + anchor)}">{text}</a>'
        name = Path(os.path.relpath(target, self.root.parent)).as_posix()
        return f"{text} (<code>{html.escape(name)}</code> in the repository)"


def _relative(to: Path, path: Path) -> str:
    return Path(os.path.relpath(to, path.parent)).as_posix()


def _to_come(path: Path) -> Any:
    """Return a notebook without its outputs, which may be those of other data, and with a note on top."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.update({"outputs": []} if cell.cell_type == "code" else {})
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f"> **{MISSING}**"))
    return notebook


def _title(notebook: Any) -> str:
    found = re.search(r"^#+ *(.+)", notebook.cells[0].source if notebook.cells else "", re.MULTILINE)
    return found[1] if found else "A chapter"


def _aims(notebook: Any) -> str:
    """Return the first list of the first cell: what a reader can do after the chapter."""
    text = notebook.cells[0].source if notebook.cells else ""
    found = re.search(r"^(?:[-*] .*(?:\n(?:  .*|[-*] .*))*)", text, re.MULTILINE)
    return found[0] if found else ""


def _shown(notebook: Any) -> str:
    """Return the last sentence of the course on the data that a notebook shows, "" where it has not been run."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    banners = [re.sub(r"[>*`]", "", text).strip() for text in texts if "Shown here:" in text]
    return banners[-1] if banners else "Executed." if outputs else ""


def _shown_in(page: Path) -> str:
    """Return what `_shown` wrote into a page, "" where the chapter has not been run."""
    found = SHOWN.search(page.read_text(encoding="utf-8"), 0, 4000)
    return html.unescape(found[1] or found[2]) if found else ""


def _contents(page: str) -> str:
    """Return the headings of a page below its title as a list of links."""
    items = [
        f'<li{" class=deeper" * (level == "3")}><a href="#{name}">{re.sub("<[^>]*>", "", text).strip()}</a></li>'
        for level, name, text in HEADING.findall(page)
        if level != "1"
    ]
    return f"<ul>{''.join(items)}</ul>"


def _within(page: str, limit: int) -> str:
    for viewer in sorted(VIEWER.finditer(page), key=lambda found: len(found[0]), reverse=True):
        if len(page.encode()) > limit:
            still = f"<figure>{viewer[1]}<figcaption>This viewer is too large for a page.</figcaption></figure>"
            page = page.replace(viewer[0], still)
    return page
