"""A screenshot of the viewer as a browser draws it, for the README."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from unetlib.show.viewer import SliceViewer
from unetlib.support.errors import UnetlibError
from unetlib.support.files import atomic

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000")
SIZE = (1200, 585)


def find_browser() -> str | None:
    """Return the path of a Chromium-like browser of this machine, or `None`."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def viewer_picture(viewer: SliceViewer, path: Path) -> Path:
    """Write what a browser shows of `viewer`, as PNG; raises `UnetlibError` where there is no browser."""
    browser = find_browser()
    if browser is None:
        raise UnetlibError(f"{path} needs a browser: install one of {', '.join(BROWSERS)}.")
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        viewer.to_html(page)
        own = [f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        subprocess.run([browser, *OPTIONS, *own, page.as_uri()], capture_output=True, timeout=120)  # noqa: S603 - our own arguments, no shell
        if not shot.exists():
            raise UnetlibError(f"{browser} made no screenshot of {page.name}. Try another browser.")
        with atomic(path) as temporary:
            Image.open(shot).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(temporary, optimize=True)
    return path
