"""The course as pages that open anywhere, without Python and without a network: one a notebook, and their index."""

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
ROOM = 2_500_000  # of them for text, style, figures and stills
TEMPLATE = Path(__file__).with_name("page.html.j2")
TITLE = "Brain tumour segmentation on MRI with a U-Net"
MISSING = "Not there yet: `unetlib course` runs the chapters in their order, and writes each page when it is done."
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
    """The pages of some chapters and their solutions in a folder; the index there is right at every moment.

    A page is named like its notebook, and lies likewise: `01_one.html`, `solutions/01_one.html`. Until a chapter has
    been run, its text lies there without results, so that no link leads nowhere. Solutions are shown as they are
    committed. `folder` may be moved or zipped: its pages need nothing outside of it.
    """

    def __init__(self, folder: Path, chapters: Sequence[Path]) -> None:
        self.folder, self.chapters = folder, list(chapters)
        self.root = self.chapters[0].parent
        self.solutions = [path for path in map(self.solution, chapters) if path.exists()]
        for path in self.solutions:
            self._write(path, nbformat.read(path, as_version=4))
        for path in self.chapters:
            if not self.page(path).exists():
                self._write(path, _to_come(path))
        self._write_index()

    def solution(self, path: Path) -> Path:
        """Return where the solutions of a chapter's exercises lie, or would."""
        return self.root / "solutions" / path.name

    @property
    def index(self) -> Path:
        """Return where the index lies."""
        return self.folder / "index.html"

    def page(self, path: Path) -> Path:
        """Return where the page of a notebook lies."""
        return self.folder / path.relative_to(self.root).with_suffix(".html")

    def write(self, path: Path, notebook: Any) -> Path:
        """Write the page of an executed notebook, renew the index, and return where the page lies."""
        self._write(path, notebook)
        self._write_index()
        return self.page(path)

    def _write_index(self) -> None:
        lines = [f"# {TITLE}", f"A course, chapter by chapter. **{DISCLAIMER.capitalize()}: not a medical device.**"]
        for path in self.chapters:
            notebook, shown = nbformat.read(path, as_version=4), _shown_in(self.page(path))
            name = path.relative_to(self.root).as_posix()
            lines.append(f"## [{_title(notebook)}]({name})" if shown else f"## {_title(notebook)}")
            lines += ["Afterwards you can", "\n".join(_aims(notebook)), shown or f"*{MISSING}*"]
            if self.solution(path) in self.solutions:
                lines.append(f"[Solutions of the exercises](solutions/{path.name}), on the synthetic cohort")
        lines.append(f"Made by unetlib {__version__}.")
        self._write(self.root / "index.ipynb", _markdown("\n\n".join(lines)))

    def _write(self, path: Path, notebook: Any) -> None:
        title = _title(notebook)
        about = {"made_by": f"unetlib {__version__}", "shown": _shown(notebook)}
        exporter = HTMLExporter(raw_template=TEMPLATE.read_text(encoding="utf-8"), embed_images=True)
        resources = {**about, "metadata": {"path": str(path.parent), "name": title}}
        page, _ = exporter.from_notebook_node(notebook, resources)
        page = LINK.sub(lambda link: self._link(link, path), page)
        page = page.replace("<!-- contents -->", _contents(page)).replace("<!-- places -->", self._places(path))
        with atomic(self.page(path)) as temporary:
            temporary.write_text(_within(page, LIMIT), encoding="utf-8")

    def _places(self, path: Path) -> str:
        """Return links from a page to the index, its neighbours, and between a chapter and its solutions."""
        places = {"Index": self.root / "index.ipynb"}
        if path in self.chapters:
            at = self.chapters.index(path)
            places |= {"Previous chapter": self.chapters[at - 1]} if at else {}
            places |= {"Next chapter": self.chapters[at + 1]} if at + 1 < len(self.chapters) else {}
            places |= {"Solutions": self.solution(path)} if self.solution(path) in self.solutions else {}
        elif path in self.solutions:
            places["The chapter"] = self.root / path.name
        links = [f'<a href="{_relative(to, path)}">{name}</a>' for name, to in places.items() if to != path]
        return f"<p>{' '.join(links)}</p>" if links else ""

    def _link(self, link: re.Match[str], path: Path) -> str:
        """Return a link as a page has it: to another page, or as text where it leads to a file of the repository."""
        address, text = html.unescape(link[1]), link[2]
        if ELSEWHERE.match(address):
            return link[0]
        name, mark, anchor = address.partition("#")
        target = Path(os.path.normpath(path.parent / name))
        if target in (*self.chapters, *self.solutions):
            return f'<a href="{html.escape(_relative(target, path) + mark + anchor)}">{text}</a>'
        name = Path(os.path.relpath(target, self.root.parent)).as_posix()
        return f"{text} (<code>{html.escape(name)}</code> in the repository)"


def _relative(to: Path, path: Path) -> str:
    """Return the address of a notebook's page, seen from the page of another one."""
    return Path(os.path.relpath(to.with_suffix(".html"), path.parent)).as_posix()


def _markdown(text: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def _to_come(path: Path) -> Any:
    """Return a notebook without its outputs, which may be those of other data, and with a note on top."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.update({"outputs": []} if cell.cell_type == "code" else {})
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f"> **{MISSING}**"))
    return notebook


def _first(notebook: Any) -> list[str]:
    """Return the lines of the first cell: the title of a chapter, and what it is for."""
    return str(notebook.cells[0].source).splitlines() if notebook.cells else []


def _title(notebook: Any) -> str:
    return next((line.lstrip("# ") for line in _first(notebook) if line.startswith("#")), "A chapter")


def _aims(notebook: Any) -> list[str]:
    """Return the first list of the first cell, line by line: what somebody can do after the chapter."""
    text = "\n".join(_first(notebook))
    found = re.search(r"^(?:[-*] .*(?:\n(?:  .*|[-*] .*))*)", text, re.MULTILINE)
    return found[0].splitlines() if found else []


def _shown(notebook: Any) -> str:
    """Return the sentence of `course.start` on whose data a notebook shows, "" where it has not been run."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    told = (re.sub(r"[>*`]", "", text).strip() for text in texts if "Shown here:" in text)
    return next(told, "Executed." if outputs else "")


def _shown_in(page: Path) -> str:
    """Return what `_shown` has left in a page, "" where the chapter has not been run."""
    with open(page, encoding="utf-8") as file:
        found = SHOWN.search(file.read(4000))
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
    """Return a page of at most `limit` bytes, if it need be with its largest viewers as stills."""
    for viewer in sorted(VIEWER.finditer(page), key=lambda found: len(found[0]), reverse=True):
        if len(page.encode()) > limit:
            still = f"<figure>{viewer[1]}<figcaption>This viewer is too large for a page.</figcaption></figure>"
            page = page.replace(viewer[0], still)
    return page
