"""From files to a trained network, cold: `unetlib` against the usual script and against MONAI's `CacheDataset`.

`python -m benchmarks.pipeline`. The same phantoms of BraTS's size (FLAIR and mask, .nii.gz), the same number of steps
of the same batch, each as a process of its own from `import` to saved weights, in turns:

- unetlib: `prepare`, then `train` (checkpoints included, the first validation not reached); as it comes, in bf16 where
  the processor has it, and in fp32 like the others;
- naive: the script of most public notebooks. `__getitem__` opens the NIfTI files of its slice by `get_fdata`, resizes,
  normalises, augments; `DataLoader`; the same U-Net in fp32;
- MONAI: a `CacheDataset` of the volumes, loaded, resized and scaled; their tumour slices with random flips and
  rotations; its `DataLoader`; BasicUNet in fp32, once of as many multiply-accumulates as our U-Net (see
  `benchmarks.train_step`), and once in its default width, which has a third of them.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import in_turn, markdown_table, parser, patients, ratio, report, spread
from unetlib.support.command import BEGINS_ANEW, run_command

BATCH = 4


def unetlib(data: Path, steps: int, out: Path, precision: str) -> None:
    """Train by the library."""
    from unetlib.data.prepare import prepare
    from unetlib.recipe import Recipe
    from unetlib.runs.training import train

    prepare(data, out / "prepared")
    if train(out / "prepared", out / "run", Recipe(precision=precision), "cpu", max_steps=steps).epoch:
        raise SystemExit("An epoch has ended: more patients are needed.")


def naive(data: Path, steps: int, out: Path) -> None:
    """Train by the usual script."""
    import nibabel as nib
    import numpy as np
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, Dataset

    from benchmarks.contenders import fit
    from unetlib.unet import UNet

    flairs = sorted(data.glob("*/*_flair.nii.gz"))
    masks = [path.with_name(path.name.replace("_flair", "_seg")) for path in flairs]
    index = [(i, z) for i, path in enumerate(masks) for z in np.flatnonzero(nib.load(path).get_fdata().any((0, 1)))]

    class Slices(Dataset[Any]):
        def __len__(self) -> int:
            return len(index)

        def __getitem__(self, number: int) -> Any:
            i, z = index[number]
            image, mask = nib.load(flairs[i]).get_fdata()[:, :, z], nib.load(masks[i]).get_fdata()[:, :, z] > 0
            image = (image - image.min()) / max(image.max() - image.min(), 1e-8)
            pair = torch.from_numpy(np.stack([image, mask]).astype(np.float32))
            pair = F.interpolate(pair[None], (96, 96), mode="bilinear", antialias=True)[0]
            pair = torch.rot90(pair, random.randrange(4), (1, 2))
            pair = pair.flip(2) if random.random() < 0.5 else pair
            return pair[:1], (pair[1:] >= 0.5).float()

    fit(UNet(), DataLoader(Slices(), BATCH, shuffle=True), steps, out)


def monai(data: Path, steps: int, out: Path, width: int) -> None:
    """Train by MONAI's parts; `width` channels on BasicUNet's first level."""
    from monai.data import CacheDataset, DataLoader, Dataset
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        EnsureTyped,
        LoadImaged,
        RandFlipd,
        RandRotate90d,
        Resized,
        ScaleIntensityd,
    )

    from benchmarks.contenders import basic_unet, fit
    from unetlib.support.jobs import cpu_count

    keys = ("image", "mask")
    flairs = sorted(data.glob("*/*_flair.nii.gz"))
    files = [{"image": path, "mask": path.with_name(path.name.replace("_flair", "_seg"))} for path in flairs]
    once = [LoadImaged(keys), EnsureChannelFirstd(keys), Resized(keys, (96, 96, -1), mode=("trilinear", "nearest"))]
    once += [ScaleIntensityd("image"), EnsureTyped(keys, track_meta=False)]
    volumes = CacheDataset(files, Compose(once), num_workers=cpu_count(), progress=False)
    slices = [
        {key: volume[key][..., z] for key in keys}
        for volume in volumes
        for z in volume["mask"].amax((0, 1, 2)).nonzero()[:, 0].tolist()
    ]
    for_each = Compose([RandFlipd(keys, 0.5, 0), RandFlipd(keys, 0.5, 1), RandRotate90d(keys, 0.5)])

    def pairs(batch: list[dict[str, Any]]) -> list[Any]:
        import torch

        image, mask = (torch.stack([item[key] for item in batch]) for key in keys)
        return [image, (mask > 0).float()]

    loader = DataLoader(Dataset(slices, for_each), batch_size=BATCH, shuffle=True, collate_fn=pairs)
    fit(basic_unet(width), loader, steps, out)


def run(call: str, data: Path, steps: int) -> float:
    """Return the seconds of a contender's `call`, as a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        code = (
            "from pathlib import Path; from benchmarks.pipeline import monai, naive, unetlib\n"
            f"if __name__ == '__main__': data, out, steps = Path({str(data)!r}), Path({out!r}), {steps}; {call}"
        )
        script = Path(out, "script.py")  # a file, for the workers of `prepare` import it
        script.write_text(code, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        start = time.perf_counter()
        subprocess.run([sys.executable, script], check=True, capture_output=True, env=environment)
        return time.perf_counter() - start


def main() -> None:
    """Measure, print, record."""
    arguments = parser("benchmarks.pipeline", __doc__, patients=20, steps=150, repeats=2).parse_args()
    from benchmarks.contenders import basic_unet, fitting_width, gflop
    from unetlib.unet import UNet

    ours = gflop(UNet)
    width = fitting_width(basic_unet, ours)
    ways = {
        "unetlib": ("unetlib(data, steps, out, 'auto')", ours),
        "unetlib, fp32": ("unetlib(data, steps, out, 'fp32')", ours),
        "naive script": ("naive(data, steps, out)", ours),
        f"MONAI, BasicUNet of width {width}": (f"monai(data, steps, out, {width})", gflop(partial(basic_unet, width))),
        "MONAI, BasicUNet of width 32 (default)": ("monai(data, steps, out, 32)", gflop(partial(basic_unet, 32))),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with patients(arguments.patients) as data:
        for repeat in range(arguments.repeats):
            for name, (call, _) in in_turn(ways, repeat):
                taken[name].append(run(call, data, arguments.steps))
    us = taken["unetlib"]
    rows = [[name, f"{ways[name][1]:.1f}", spread(own), f"{ratio(own, us):.2f}"] for name, own in taken.items()]
    about = (
        f"{arguments.patients} patients of 240 x 240 x 155, {arguments.steps} steps of {BATCH} slices of 96 x 96, cold "
        "start, the process included."
    )
    table = markdown_table(("", "GFLOP a slice", "seconds", "unetlib is faster by"), rows)
    packages = ("torch", "monai", "nibabel", "numpy")
    report("pipeline", "From files to a trained network", about, table, options=arguments, packages=packages)


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
