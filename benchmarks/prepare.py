"""How fast patients are prepared, against the time that mere decompression takes and against `get_fdata`.

`python -m benchmarks.prepare`. The patients are phantoms of BraTS's size (240 x 240 x 155, FLAIR and mask). On one
core, in turns: decompression alone (isal, the floor), our `prepare` of the same files, and the usual way: `get_fdata`,
then the slices with tumour through MONAI's transforms, with no check, no hash and nothing written. Then `unetlib
prepare` as a whole with one worker and with as many as there are processors, on more patients: with its start in it,
and without (the rate between the eighth patient and the last). Files are in the page cache.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from isal import isal_zlib
from monai.transforms import Compose, EnsureChannelFirst, Resize, ScaleIntensity, SpatialPad

from benchmarks.common import link, markdown_table, parser, patients, ratio, report, seconds, spread
from unetlib import Recipe, find_cases, read_case
from unetlib.data.part import prepare_case
from unetlib.data.patients import Case
from unetlib.data.prepare import _plan
from unetlib.data.slices import choose_slices, image_to_slices, mask_to_slices
from unetlib.data.volumes import Source, read_volume
from unetlib.support.command import BEGINS_ANEW, run_command
from unetlib.support.files import sha256
from unetlib.support.jobs import cpu_count


def decompress(case: Case) -> None:
    """Inflate a case's files in memory, and no more."""
    for path in case.files():
        isal_zlib.decompress(path.read_bytes(), 31)


def usual(case: Case) -> None:
    """Prepare a case as most scripts do."""
    image, mask = (np.asarray(nib.load(path).get_fdata()) for path in case.files())
    steps = Compose([EnsureChannelFirst(channel_dim="no_channel"), SpatialPad((240, 240)), Resize((96, 96))])
    scale = ScaleIntensity()
    for z in np.flatnonzero((mask > 0).any((0, 1))):
        scale(steps(image[:, :, z])), steps((mask[:, :, z] > 0).astype(np.float32))


def stages(cases: tuple[Case, ...], repeats: int) -> dict[str, float]:
    """Return the seconds that the steps of preparing a case take, one after the other."""
    recipe, read = Recipe.published, [read_case(case)[:2] for case in cases]
    kept = [(volume.voxels, mask, choose_slices(volume.voxels, mask, "tumour")) for volume, mask in read]
    files = [Source((path,)) for case in cases for path in case.files()]
    times = seconds(
        {
            "reading: decompression, header, voxels": lambda: [read_volume(source) for source in files],
            "reading, and checks of every voxel": lambda: [read_case(case) for case in cases],
            "resampling the kept slices": lambda: [image_to_slices(voxels, recipe, z) for voxels, _, z in kept],
            "resampling their masks": lambda: [mask_to_slices(mask, recipe, z) for _, mask, z in kept],
            "hash of the files": lambda: [sha256(*case.files()) for case in cases],
        },
        repeats,
    )
    found = {name: statistics.median(values) / len(cases) for name, values in times.items()}
    reading, both, *rest = found
    checks = found.pop(both) - found[reading]
    return {reading: found[reading], "checks of every voxel": checks, **{name: found[name] for name in rest}}


def time_of(data: Path, folder: Path, workers: int) -> float:
    """Return the seconds of `unetlib prepare`, a process of its own, to a new folder."""
    command = [sys.executable, "-m", "unetlib", "prepare", data, folder / f"{data.name}-{workers}"]
    start = time.perf_counter()
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process, a core
    subprocess.run([*command, "--workers", str(workers)], check=True, capture_output=True, env=one_thread)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, record."""
    arguments = parser("benchmarks.prepare", __doc__, patients=400, repeats=7).parse_args()
    number = arguments.patients
    torch.set_num_threads(1)
    with patients(number) as data, tempfile.TemporaryDirectory() as temporary:
        cohort = find_cases(data)
        cases = cohort.cases[:8]
        jobs = _plan(cohort, cases, Recipe.published, Path(temporary))
        ways = {
            "decompression alone (the floor)": lambda: [decompress(case) for case in cases],
            "unetlib": lambda: [prepare_case(job) for job in jobs],
            "get_fdata and MONAI's transforms": lambda: [usual(case) for case in cases],
        }
        times = {name: [t / len(cases) for t in values] for name, values in seconds(ways, arguments.repeats).items()}
        parts = stages(cases, arguments.repeats)
        few = link([case.files()[0].parent for case in cases], Path(temporary, "few"), len(cases))
        whole, rate = {}, {}
        for workers in dict.fromkeys((1, cpu_count())):
            start, whole[workers] = (time_of(cohort, Path(temporary), workers) for cohort in (few, data))
            rate[workers] = (number - len(cases)) / (whole[workers] - start)
    floor, us = (times[name] for name in list(ways)[:2])
    parts["the rest: writing, fsync"] = statistics.median(us) - sum(parts.values())
    per_patient = [
        [name, spread([1000 * t for t in values]), f"{ratio(floor, values):.0%}", f"{ratio(values, us):.2f}"]
        for name, values in times.items()
    ]
    most = cpu_count()
    rates = [[str(n), f"{number / t:.1f}", f"{rate[n]:.1f}"] for n, t in whole.items()]
    rates.append([f"{most} against 1", f"{whole[1] / whole[most]:.2f} x", f"{rate[most] / rate[1]:.2f} x"])
    report(
        "prepare",
        "Preparing patients",
        "One core, a patient of 240 x 240 x 155.",
        markdown_table(("", "ms a patient", "share of the floor", "ours is faster by"), per_patient),
        "Where the time of `unetlib` goes:",
        markdown_table(("stage", "ms a patient"), [[name, f"{1000 * t:.1f}"] for name, t in parts.items()]),
        "`unetlib prepare` as a whole:",
        markdown_table(("workers", "patients/s", "without the start"), rates),
        options=arguments,
        packages=("torch", "isal", "nibabel", "monai", "numpy"),
    )


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
