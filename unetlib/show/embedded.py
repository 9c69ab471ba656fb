"""The viewer in a page without Python: what `SliceViewer.to_html`, `to_fragment` and the pages of the course hold."""

import base64
import gzip
import os
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment

from unetlib.support.errors import UnetlibError

SCRIPT, STYLE, ELEMENT, HTML = (
    Path(__file__).with_name(name) for name in ("viewer.js", "viewer.css", "viewer_page.js", "viewer.html.j2")
)
EMBED = "UNETLIB_EMBED_BYTES"  # set for a kernel: its viewers go into the outputs whole, each in so many bytes
SHARED = "UNETLIB_EMBED_VIEWERS"  # set besides: the bytes are those of a page, which so many viewers share
_taken: list[int] = []  # by the viewers of this kernel so far


def embed(to_fragment: Callable[[int], str]) -> str | None:
    """Return a viewer as it goes into the outputs of this kernel, or `None` where none is embedded.

    `to_fragment` makes it, of so many bytes at most. Where viewers share the bytes, the next one may take up to twice
    its part of what is left: some hold one volume, others four, and what one does not need is left to those behind it.

    Raises `UnetlibError` when one of the environment variables is no whole number above 0.
    """
    room, viewers = _whole_number(EMBED, "bytes"), _whole_number(SHARED, "viewers")
    if room is None:
        return None
    if viewers is not None:
        room = max(1, 2 * (room - sum(_taken)) // (max(1, viewers - len(_taken)) + 1))
    fragment = to_fragment(room)
    _taken.append(len(fragment))
    return fragment


def _whole_number(variable: str, what: str) -> int | None:
    given = os.environ.get(variable, "")
    if not given:
        return None
    if not given.isascii() or not given.isdigit() or int(given) == 0:
        raise UnetlibError(f"the environment variable {variable} is {given!r}; a whole number of {what} was expected.")
    return int(given)


def write_html(part: str, *values: object) -> str:
    """Return a part of `viewer.html.j2`, one of its macros; bytes among the values are written in base64."""
    environment = Environment(autoescape=True, trim_blocks=True)
    macro = getattr(environment.from_string(HTML.read_text(encoding="utf-8")).module, part)
    return str(macro(*(base64.b64encode(one).decode() if isinstance(one, bytes) else one for one in values)))


def runtime() -> str:
    """Return the style and the script that bring every `<unetlib-viewer>` of a page to life; twice does no harm."""
    style, script, element = (path.read_text(encoding="utf-8") for path in (STYLE, SCRIPT, ELEMENT))
    return write_html("runtime", style, script.replace("export default", "const makeWidget ="), element)


def pack(buffers: list[bytes]) -> list[str]:
    """Return buffers as base64 of their gzip; the same input gives the same text.

    Bytes at even places come before those at odd ones: int16 voxels take a fifth less so.
    """
    return [base64.b64encode(gzip.compress(buffer[::2] + buffer[1::2], 6, mtime=0)).decode() for buffer in buffers]
