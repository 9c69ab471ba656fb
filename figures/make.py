"""The images of the README, from the notebooks' cohort and run: `python -m figures.make`.

What is missing of cohort and run is made first. The screenshot of the viewer needs a browser.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from unetlib import SliceViewer, plots, start
from unetlib.pipeline import run_recipe
from unetlib.support.command import run_command
from unetlib.support.errors import UnetlibError
from unetlib.support.files import atomic
from unetlib.support.messages import say

FOLDER = Path(__file__).resolve().parent
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
        subprocess.run([browser, *OPTIONS, *own, page.as_uri()], capture_output=True, timeout=120)
        if not shot.exists():
            raise UnetlibError(f"{browser} made no screenshot of {page.name}. Try another browser.")
        with atomic(path) as temporary:
            Image.open(shot).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(temporary, optimize=True)
    return path


def main() -> None:
    """Draw all images."""
    course = start(work=FOLDER.parent / "notebooks" / "work")
    run_recipe(course.recipe, course.prepared, course.run, course.data, part="test")
    for path in plots.make_figures(course.run, FOLDER):
        say(str(path))
    plots.save(plots.case_figure(course.cohort.cases[:3]), FOLDER / "cohort.png")
    shown = plots.best_median_worst(course.run)[1]
    viewer = SliceViewer(shown.volume, truth=shown.truth, prediction=shown.prediction, title=shown.case.id)
    say(str(viewer_picture(viewer, FOLDER / "viewer.png")))


if __name__ == "__main__":
    run_command(main)
