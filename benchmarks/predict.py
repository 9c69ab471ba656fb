"""How long one BraTS-sized volume takes from file to mask: `unetlib predict` against MONAI with the same weights.

`python -m benchmarks.predict`. The volume is a phantom of 240 x 240 x 155. MONAI's side is what its tutorials write:
`LoadImage`, min-max per slice, `Resize` to 96 x 96, `SliceInferer` over the 155 slices, `Resize` back, threshold,
`SaveImage`; in fp32, with 1 and with 32 slices at a time; its weights are loaded beforehand, ours every time. Resizing
is not quite the same (MONAI's takes means over areas), so the masks are compared by their Dice. All processors, in
turns.
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.transforms import LoadImage, Orientation, Resize, SaveImage

from benchmarks.common import markdown_table, parser, patients, ratio, report, seconds, spread
from benchmarks.contenders import gflop
from unetlib import Predictor, Recipe, UNet, find_cases, predict, prepare, train
from unetlib.data.slices import image_to_slices, slices_to_volume
from unetlib.data.volumes import Source, read_volume
from unetlib.metrics import count, dice
from unetlib.runs.run import Run
from unetlib.support.command import BEGINS_ANEW, run_command


def with_monai(network: UNet, image: Path, out: Path, batch: int) -> Callable[[], object]:
    """Return a function that predicts a file with MONAI's parts."""
    inferer = SliceInferer(roi_size=(96, 96), sw_batch_size=batch, spatial_dim=2)
    load, turn = LoadImage(image_only=True, ensure_channel_first=True), Orientation("LPS", labels=None)
    save = SaveImage(out, output_postfix="monai", output_dtype=np.uint8, print_log=False, separate_folder=False)

    @torch.inference_mode()
    def run() -> None:
        volume = turn(load(image))
        low, high = volume.amin((1, 2), keepdim=True), volume.amax((1, 2), keepdim=True)
        scaled = (volume - low) / torch.where(high > low, high - low, 1.0)
        size = volume.shape[1:]
        small = Resize((96, 96, size[2]))(scaled)
        found = torch.sigmoid(inferer(small[None].transpose(2, 3), network)).transpose(2, 3)[0]
        large = Resize(size, mode="trilinear")(found)
        mask = MetaTensor((large >= 0.5).to(torch.uint8), meta=volume.meta)
        save(mask)

    return run


def quiet(work: Callable[[], object]) -> Callable[[], object]:
    """Return the same work without what it prints."""

    def run() -> None:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            work()

    return run


def stages(run: Path, image: Path, repeats: int) -> dict[str, float]:
    """Return the seconds of what `unetlib predict` does with a volume; the rest is the start and the written file."""
    predictor, voxels = Predictor.open(run, "cpu"), read_volume(Source((image,))).voxels
    slices = image_to_slices(voxels, predictor.recipe)
    found = predictor.slices(slices)
    work = {
        "opening the network": lambda: Predictor.open(run, "cpu"),
        "reading": lambda: read_volume(Source((image,))),
        "to slices": lambda: image_to_slices(voxels, predictor.recipe),
        "the network": lambda: predictor.slices(slices),
        "back to the volume": lambda: slices_to_volume(found, voxels.shape),
    }
    return {name: statistics.median(values) for name, values in seconds(work, repeats).items()}


def main() -> None:
    """Measure, print, record."""
    arguments = parser("benchmarks.predict", __doc__, repeats=7).parse_args()
    with patients(8) as data, tempfile.TemporaryDirectory() as temporary:
        prepared, run, out = (Path(temporary, name) for name in ("prepared", "run", "out"))
        prepare(data, prepared)
        train(prepared, run, Recipe.published.but(epochs=1), "cpu")
        image = find_cases(data).cases[0].files()[0]
        network, recipe, _ = Run.of(run).load()
        network, precision = network.to(memory_format=torch.contiguous_format), recipe.precision  # type: ignore[call-overload]
        ways = {
            "unetlib predict": quiet(lambda: predict(run, [image], out, overwrite=True, device="cpu")),
            "MONAI, 1 slice at a time": quiet(with_monai(network, image, out, 1)),
            "MONAI, 32 slices at a time": quiet(with_monai(network, image, out, 32)),
        }
        times = seconds(ways, arguments.repeats)
        ours, theirs = (
            np.asarray(nib.load(next(out.glob(f"*{kind}.nii.gz"))).dataobj) > 0 for kind in ("_mask", "_monai")
        )
        parts = stages(run, image, arguments.repeats)
    agreement = dice(count(ours[None, None], theirs[None, None])).item()
    us = times["unetlib predict"]
    parts["the rest: hashes, writing"] = statistics.median(us) - sum(parts.values())
    rows = [[name, spread(values), f"{ratio(values, us):.2f}"] for name, values in times.items()]
    work = 155 * gflop(UNet, backward=False)
    report(
        "predict",
        "Predicting a volume",
        "240 x 240 x 155, file to file, published recipe.",
        markdown_table(("", "seconds a volume", "unetlib is faster by"), rows),
        f"unetlib in {precision}, MONAI in fp32. Dice of the two masks: {agreement:.4f}.",
        markdown_table(("stage of unetlib", "seconds"), [[name, f"{value:.2f}"] for name, value in parts.items()]),
        f"The network is {work:.0f} GFLOP a volume: {work / parts['the network']:.0f} GFLOP/s.",
        options=arguments,
        packages=("torch", "monai", "nibabel", "numpy"),
    )


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
