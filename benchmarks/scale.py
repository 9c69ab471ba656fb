"""Whether ten times the patients cost more than ten times the files: 10, 100, 1,251 (BraTS 2021) and 12,510 of them.

`python -m benchmarks.scale`. The patients are small (96 x 96 x 12, six slices with tumour), for the disk's sake; the
prepared slices have the size of the recipe. Of each cohort: `prepare` with all processors; then in a
process of its own the seconds from its start to the end of the first training step, the steps a second after that,
and its memory: the most while it trained, its own after every slice of the cohort was read once, and with it the
mapped pages of the slices, which the system takes back when it needs them. The curves go to `benchmarks/scale.png`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.common import endless, link, markdown_table, parser, peak_memory, report
from unetlib import Prepared, Recipe, prepare
from unetlib.runs.run import Run
from unetlib.runs.training import open_loop
from unetlib.support.command import BEGINS_ANEW, run_command
from unetlib.support.jobs import cpu_count

FIGURE = Path(__file__).with_name("scale.png")
STEPS, READ = 30, 256
COLUMNS = {  # of the table: what is measured, and with how many digits
    "prepare, patients/s": ("prepare", 1),
    "disk, GB": ("disk", 3),
    "start to first step, s": ("first", 2),
    "steps/s": ("steps", 2),
    "memory while training, GB": ("training", 2),
    "own memory after every slice, GB": ("own", 2),
    "with mapped pages, GB": ("total", 2),
}


def small_patients(folder: Path, number: int = 8) -> list[Path]:
    """Write small synthetic patients, noise with a bright ball, and return their folders."""
    x, y, z = np.ogrid[:96, :96, :12]
    folders = []
    for index in range(number):
        rng = np.random.default_rng(index)
        a, b = rng.integers(25, 70, 2)
        ball = (x - a) ** 2 + (y - b) ** 2 + 16 * (z - 5.5) ** 2 < 12**2
        case = folder / f"case{index}"
        case.mkdir(parents=True)
        for kind, voxels in (("flair", 300 * rng.random(ball.shape) + 400 * ball), ("seg", ball)):
            image = nib.Nifti1Image(voxels.astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
            nib.save(image, case / f"{case.name}_{kind}.nii.gz")
        folders.append(case)
    return folders


def measure(prepared: Path, run: Path, start: float) -> dict[str, float]:
    """Train some steps in this process, which was started at `start`, then read every slice."""
    data = Prepared.open(prepared)
    loop = open_loop(data, Run(run), Recipe.published)
    loop.hooks, steps = [], endless(loop)
    next(steps)
    first = time.time() - start
    times = []
    for _ in range(min(STEPS, loop.steps - 1)):
        begin = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - begin)
    training, _ = peak_memory()
    for begin in range(0, len(data.images), READ):
        data.dataset().batch(np.arange(begin, min(begin + READ, len(data.images))))
    total, own = peak_memory()
    return {"first": first, "steps": 1 / statistics.median(times), "training": training, "own": own, "total": total}


def draw(counts: list[int], found: list[dict[str, float]]) -> None:
    """Save the memory curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for key, style, label in (
        ("training", "o-", "most while training"),
        ("own", "s--", "its own, after every slice was read once"),
        ("total", "^:", "with mapped pages of the slices, which the system takes back"),
    ):
        axes.plot(counts, [row[key] for row in found], style, label=label)
    axes.axhline(2, color="0.6", linewidth=1)
    axes.set(xscale="log", xlabel="patients", ylabel="memory, GB", ylim=(0, None), xticks=counts)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(FIGURE, dpi=120)


def of_cohort(number: int) -> dict[str, float]:
    """Return what a cohort of `number` patients costs; the medians of three processes that train on it."""
    with tempfile.TemporaryDirectory() as temporary:
        data, prepared = Path(temporary, "patients"), Path(temporary, "prepared")
        link(small_patients(Path(temporary, "made")), data, number)
        begin = time.perf_counter()
        prepare(data, prepared, workers=cpu_count())
        rate = number / (time.perf_counter() - begin)
        disk = sum(path.stat().st_size for path in prepared.rglob("*") if path.is_file()) / 1e9
        rows = []
        for repeat in range(3):
            command = [sys.executable, "-m", "benchmarks.scale", "--measure", prepared, f"{temporary}/run{repeat}"]
            done = subprocess.run([*command, str(time.time())], check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {"prepare": rate, "disk": disk, **{key: statistics.median(row[key] for row in rows) for key in rows[0]}}


def main() -> None:
    """Measure, print, draw, record."""
    options = parser("benchmarks.scale", __doc__)
    options.add_argument("--patients", type=int, nargs="+", default=[10, 100, 1251, 12510])
    options.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.measure:
        prepared, run, start = arguments.measure
        print(json.dumps(measure(Path(prepared), Path(run), float(start))))
        return
    found = [of_cohort(number) for number in arguments.patients]
    draw(arguments.patients, found)
    rows = [
        [f"{number:,}", *(f"{row[key]:.{digits}f}" for key, digits in COLUMNS.values())]
        for number, row in zip(arguments.patients, found, strict=True)
    ]
    report(
        "scale",
        "Scale",
        "Small patients of six slices with tumour.",
        markdown_table(("patients", *COLUMNS), rows),
        "![Memory by the number of patients](scale.png)",
        options=arguments,
        packages=("torch", "lightning-fabric", "numpy"),
        statistic="medians of 3 processes",
    )


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
