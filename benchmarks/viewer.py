"""How long a key press on the slice slider takes to show its slice: `SliceViewer` against `interact` + matplotlib.

Run from the repository's root: `python -m benchmarks.viewer`. Both sit in one notebook of one JupyterLab in headless
Chromium, both show the same volume with the same two masks, and both are measured by the same code in the page:

- a key press counts from the `timeStamp` of its `keydown` event;
- a picture counts at the first animation frame at which it is there: other pixels on the axial canvas of the viewer
  (whose `data-frames` changed), another image of `interact`, loaded;
- single presses: 30 of them, 150 to 250 ms apart and after the picture of the one before;
- burst: 30 keys, one an animation frame (some 60 a second, twice as fast as a held key); the lag is the time from
  the last key to the last picture.

Ends with status 1 when the viewer's median is over 16 ms or one of its 30 pictures was not shown.
"""

import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, Page

from benchmarks.common import markdown_table, parser, report
from tests.lab import READY, open_lab
from unetlib.support.command import BEGINS_ANEW, run_command

PRESSES, MOST_MS = 30, 16
PROBE = Path(__file__).with_name("viewer_probe.js").read_text(encoding="utf-8")
PACKAGES = ("jupyterlab", "ipywidgets", "anywidget", "matplotlib", "numpy", "playwright")

DATA = """
%matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
from ipywidgets import IntSlider, interact

x, y, z = np.ogrid[-1:1:240j, -1:1:240j, -1:1:155j]
noise = np.random.default_rng(0).normal(0, 40, (240, 240, 155))
volume = np.where(x**2 + y**2 + z**2 < 0.8, 400 + noise, 0).astype(np.int16)
truth, prediction = ((x - d) ** 2 + y**2 + z**2 < 0.2 for d in (0.2, 0.3))
"""
OURS = """
from unetlib import SliceViewer
SliceViewer(volume, truth=truth, prediction=prediction, position=(120, 120, 40))
"""
THEIRS = """
colours = np.array([[0, 0, 0, 0], [86, 180, 233, 128], [213, 94, 0, 128], [0, 158, 115, 128]], np.uint8)
low, high = np.percentile(volume[volume != 0], (0.5, 99.5))

@interact(z=IntSlider(40, 0, 154))
def show(z):
    figure, axes = plt.subplots()
    axes.imshow(volume[:, :, z].T, cmap="gray", vmin=low, vmax=high)
    axes.imshow(colours[truth[:, :, z].T + 2 * prediction[:, :, z].T])
    axes.set_axis_off()
    plt.show()
"""


@dataclass(frozen=True)
class Result:
    """What one way to show slices reached; times in milliseconds."""

    median: float
    p90: float
    shown: int
    lag: float
    rate: float


def measure(page: Page, cell: Locator, slider: str) -> Result:
    """Press keys on the slider of a cell and read the clock in the page."""
    cell.locator(f"{READY}, .jp-OutputArea-output img").first.wait_for()
    cell.scroll_into_view_if_needed()
    cell.evaluate(PROBE)
    cell.locator(slider).first.focus()
    chance = random.Random(0)
    for number in range(PRESSES):
        page.wait_for_timeout(chance.uniform(150, 250))  # a person's pace, at no fixed moment within a frame
        page.keyboard.press("ArrowUp")
        page.wait_for_function(f"probe.pictures.length > {number}")
    keys, pictures = page.evaluate("[probe.keys, probe.pictures]")
    times = [shown - pressed for pressed, shown in zip(keys, pictures, strict=True)]
    for _ in range(PRESSES):
        page.keyboard.press("ArrowUp")
        page.evaluate("() => new Promise(requestAnimationFrame)")
    page.wait_for_timeout(5000)
    keys, pictures = (clock[PRESSES:] for clock in page.evaluate("[probe.keys, probe.pictures]"))
    seconds = (keys[-1] - keys[0]) / 1000
    deciles = statistics.quantiles(times, n=10)
    return Result(
        statistics.median(times), deciles[-1], len(pictures), pictures[-1] - keys[-1], (PRESSES - 1) / seconds
    )


def table(ours: Result, theirs: Result) -> str:
    """Return both results as a Markdown table, with the ratios."""

    def times(title: str, mine: float, other: float) -> tuple[str, ...]:
        return title, f"{mine:.1f} ms", f"{other:.0f} ms", f"{other / mine:.1f}"

    rows = [
        times("single press, median", ours.median, theirs.median),
        times("single press, p90", ours.p90, theirs.p90),
        (f"burst: images shown of {PRESSES}", ours.shown, theirs.shown, f"{theirs.shown / ours.shown:.2f}"),
        times("burst: lag after the last key", ours.lag, theirs.lag),
        ("burst: keys a second", f"{ours.rate:.0f}", f"{theirs.rate:.0f}", ""),
    ]
    return markdown_table(("", "SliceViewer", "interact + matplotlib", "ratio"), rows)


def main() -> int:
    """Measure, print, record; return the exit status."""
    arguments = parser("benchmarks.viewer", __doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, open_lab(Path(folder)) as lab:
        chromium = lab.browser.version
        with lab.notebook("viewer", [DATA, OURS, THEIRS]) as notebook:
            cells = notebook.page.locator(".jp-CodeCell")
            ours = measure(notebook.page, cells.nth(1), "input.uv-slice")
            theirs = measure(notebook.page, cells.nth(2), "[role=slider]")
    about = f"A volume of 240 x 240 x 155 int16 with two masks, in JupyterLab in headless Chromium {chromium}."
    title, statistic = "Slice viewer: key press to image", "one run"
    report("viewer", title, about, table(ours, theirs), options=arguments, packages=PACKAGES, statistic=statistic)
    failed = ours.median > MOST_MS or ours.shown < PRESSES
    if failed:
        print(f"FAILED: a median of at most {MOST_MS} ms and {PRESSES} images were expected.", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
