"""What every benchmark shares: its options, the machine in words, its floors, fair timing, and the page of results."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from unetlib.loop import Loop
from unetlib.support.files import atomic
from unetlib.support.jobs import processor

RESULTS = Path(__file__).with_name("RESULTS.md")


def machine(packages: Iterable[str]) -> str:
    """Return one line with the day, the machine, its load, and the versions of `packages`."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    load = f", load average {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores{load}, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}"
    )


def parser(module: str, doc: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return the parser of `python -m MODULE`, with an option of the same type for each default."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=doc.partition("\n")[0])
    for name, default in defaults.items():
        made.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    return made


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (columns, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(columns)}", *lines[1:]])


def record(name: str, *blocks: str, page: Path = RESULTS) -> None:
    """Print some blocks, and put them between the markers of their section in `page`; what is outside them stays."""
    section = "\n\n".join(blocks)
    print(section)
    start, stop = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
    before, _, rest = text.partition(start)
    after = rest.partition(stop)[2] or "\n"
    with atomic(page) as temporary:
        temporary.write_text(f"{before.rstrip()}\n\n{start}\n{section}\n{stop}{after}", encoding="utf-8")


def report(
    module: str,
    title: str,
    about: str,
    *blocks: str,
    options: argparse.Namespace,
    packages: Sequence[str],
    statistic: str = "medians (quartiles)",
    section: str = "",
) -> None:
    """Record what `benchmarks.MODULE` has measured: title, definitions, `blocks`, and the command and the machine."""
    words = [f"python -m benchmarks.{module}"]
    for name, value in vars(options).items():
        given = value if isinstance(value, list) else [] if value is True else [value]
        words += [] if value is None or value is False else [f"--{name}", *map(str, given)]
    signature = f"`{' '.join(words)}`, {statistic}; {machine(packages)}."
    about = f"{about} Everything is defined at the top of `benchmarks/{module}.py`."
    record(section or module.replace("_", " "), f"## {title}", about, *blocks, signature)


def seconds(functions: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, list[float]]:
    """Return how long each function takes, `repeats` times after one to warm up.

    They take turns, and each round begins with the next, so that all meet the same machine.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        for name, function in in_turn(functions, repeat):
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def in_turn(things: Mapping[str, Any], turn: int) -> list[tuple[str, Any]]:
    """Return names and things in their order, beginning at number `turn` modulo their number."""
    listed = list(things.items())
    return listed[turn % len(listed) :] + listed[: turn % len(listed)]


def matmul_floor(dtype: torch.dtype, device: str = "cpu", side: int = 2048) -> float:
    """Return the GFLOP/s that a device reaches in a product of two square matrices, the median of 15."""
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    times = seconds({"matmul": lambda: (a @ b)[0, 0].item()}, 15)["matmul"]
    return 2 * side**3 / statistics.median(times) / 1e9


def spread(values: list[float], digits: int = 3) -> str:
    """Return the median of some values with their quartiles; of fewer than four, with the least and the most."""
    low, middle, high = min(values), statistics.median(values), max(values)
    if len(values) >= 4:
        low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"


def ratio(values: list[float], others: list[float]) -> float:
    """Return the median of the ratios of values that were measured in the same rounds."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def peak_memory() -> tuple[float, float]:
    """Return this process's peak memory in GB, and what it holds now without the pages of mapped files.

    The second is NaN where the system does not say.
    """
    try:
        rows = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    except OSError:
        import resource  # missing on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, float("nan")
    held = {row[0]: int(row[1]) * 1024 / 1e9 for row in rows if row[0] in ("VmHWM:", "RssAnon:")}
    return held["VmHWM:"], held["RssAnon:"]


@contextmanager
def patients(number: int, distinct: int = 8) -> Iterator[Path]:
    """Yield a folder of `number` BraTS-sized patients, copies of `distinct` phantoms; it is deleted afterwards."""
    from unetlib.phantom.cohort import make_cohort

    with tempfile.TemporaryDirectory() as temporary:
        made, folder = Path(temporary, "made"), Path(temporary, "patients")
        make_cohort(made, min(number, distinct))
        link(sorted(path for path in made.iterdir() if path.is_dir()), folder, number)
        yield folder


def link(cases: list[Path], folder: Path, number: int) -> Path:
    """Make `number` BraTS 2021 patients in `folder` from `cases`; return the folder.

    Files are hard links, except the images of copies: one voxel of them differs, since a scan counts once.
    """
    for index in range(number):
        case, name = cases[index % len(cases)], f"BraTS2021_{index:05}"
        (folder / name).mkdir(parents=True)
        for kind in ("flair", "seg"):
            source, target = case / f"{case.name}_{kind}.nii.gz", folder / name / f"{name}_{kind}.nii.gz"
            if kind == "flair" and index >= len(cases):
                image = nib.load(source)
                voxels = np.array(image.dataobj)
                voxels[tuple(size // 2 for size in voxels.shape)] += index // len(cases)
                nib.save(nib.Nifti1Image(voxels, image.affine, image.header), target)
                continue
            try:
                target.hardlink_to(source)
            except OSError:
                shutil.copy(source, target)
    return folder


def endless(loop: Loop) -> Iterator[None]:
    """Train step after step, epoch after epoch, without validation; yield after each."""
    size, state = loop.recipe.batch_size, loop.state
    while True:
        order = loop.order()
        for state.step in range(loop.steps):
            loop.step(order[state.step * size : (state.step + 1) * size])
            yield
        state.epoch, state.step = state.epoch + 1, 0
