"""What every benchmark shares: the machine in words, its floors, fair timing, and the file of results."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from unetlib.provenance import processor

RESULTS = Path(__file__).with_name("RESULTS.md")


def machine(packages: tuple[str, ...]) -> str:
    """Describe in one line the day, where this runs, and with what."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    load = f", load average {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores{load}, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}"
    )


def record(name: str, section: str) -> None:
    """Print a section, and put it between its markers in RESULTS.md; what stands outside them stays."""
    print(section)
    start, stop = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Benchmark results\n"
    before, _, rest = text.partition(start)
    after = rest.partition(stop)[2] or "\n"
    RESULTS.write_text(f"{before.rstrip()}\n\n{start}\n{section}\n{stop}{after}", encoding="utf-8")


def seconds(functions: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, list[float]]:
    """Return how long each function takes, `repeats` times, in turns, so that all meet the same machine."""
    for function in functions.values():
        function()  # to warm up
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def matmul_floor(dtype: torch.dtype, side: int = 2048) -> float:
    """Return the GFLOP/s that this machine reaches in a product of two square matrices, the median of 15."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    times = seconds({"matmul": lambda: a @ b}, 15)["matmul"]
    return 2 * side**3 / statistics.median(times) / 1e9


def spread(values: list[float], digits: int = 3) -> str:
    """Return the median of some values with the quarter and three-quarter marks."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"
