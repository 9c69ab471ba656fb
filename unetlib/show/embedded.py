"""The viewer in a page without Python: what `SliceViewer.to_html`, `to_fragment` and the pages of the course hold."""

import base64
import gzip
import html
import json
import os
from pathlib import Path
from typing import Any

from unetlib.support.errors import UnetlibError

SCRIPT, STYLE, ELEMENT = (Path(__file__).with_name(name) for name in ("viewer.js", "viewer.css", "viewer_page.js"))
EMBED = "UNETLIB_EMBED_BYTES"  # set for a kernel: its viewers go into the outputs whole, each in so many bytes
SHARED = "UNETLIB_EMBED_VIEWERS"  # set besides: the bytes are those of a page, which so many viewers share
_taken: list[int] = []  # by the viewers of this kernel so far


def embed_bytes() -> int | None:
    """Return how many bytes each viewer may take in the outputs of this kernel, or `None` where none is embedded.

    Where viewers share the bytes, the next one may take up to twice its part of what is left: some hold one volume,
    others four, and what one does not need is left to those behind it.

    Raises `UnetlibError` when one of the environment variables is no whole number above 0.
    """
    given, viewers = _whole_number(EMBED, "bytes"), _whole_number(SHARED, "viewers")
    if given is None or viewers is None:
        return given
    to_come = max(1, viewers - len(_taken))
    return max(1, 2 * (given - sum(_taken)) // (to_come + 1))


def take(html: str) -> str:
    """Return a viewer as it goes into the outputs of this kernel, whose size is noted for those behind it."""
    _taken.append(len(html))
    return html


def _whole_number(variable: str, what: str) -> int | None:
    given = os.environ.get(variable, "")
    if not given:
        return None
    if not given.isascii() or not given.isdigit() or int(given) == 0:
        raise UnetlibError(f"the environment variable {variable} is {given!r}; a whole number of {what} was expected.")
    return int(given)


def runtime() -> str:
    """Return the style and the script that bring every `<unetlib-viewer>` of a page to life; twice does no harm."""
    script = SCRIPT.read_text(encoding="utf-8").replace("export default", "const makeWidget =")
    element = ELEMENT.read_text(encoding="utf-8")
    return f'<style>{STYLE.read_text(encoding="utf-8")}</style>\n<script type="module">\n{script}\n{element}</script>'


def pack(buffers: list[bytes]) -> list[str]:
    """Return buffers as base64 of their gzip; the same input gives the same text.

    Bytes at even places come before those at odd ones: int16 voxels take a fifth less so.
    """
    return [base64.b64encode(gzip.compress(buffer[::2] + buffer[1::2], 6, mtime=0)).decode() for buffer in buffers]


def element(title: str, still: bytes, content: dict[str, Any], state: dict[str, Any], packed: list[str]) -> str:
    """Return `<unetlib-viewer>` with everything that it shows: its still until the script runs, traits, and voxels."""
    about = json.dumps({"content": content, "state": state}).replace("<", "\\u003c")
    data = "\n".join(f'<script type="text/plain" class="uv-data">{text}</script>' for text in packed)
    return (
        f"<unetlib-viewer>\n{_image(title, still)}\n"
        f'<script type="application/json" class="uv-about">{about}</script>\n{data}\n</unetlib-viewer>'
    )


def still_only(title: str, still: bytes) -> str:
    """Return what stands in a page for a viewer that is too large for it."""
    return f"<figure>{_image(title, still)}<figcaption>This viewer is too large for the page.</figcaption></figure>"


def _image(title: str, still: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(still).decode()}"
    return f'<img class="uv-still" alt="{html.escape(title)}" src="{source}">'


def page(title: str, body: str) -> str:
    """Return a whole page around an element and its runtime."""
    return PAGE % {"title": html.escape(title), "body": body}


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%(title)s</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0; padding: 12px; background: Canvas; overflow-y: scroll; }
</style>
</head>
<body>
%(body)s
</body>
</html>
"""
