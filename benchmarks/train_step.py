"""One step of training: ours, the same network written naively, and MONAI's networks of as many multiply-accumulates.

`python -m benchmarks.train_step`. A step is: get a batch of 96 x 96 slices, augment it, forward, backward, clip, Adam.
Everybody steps on the same slices with all processors, in turns. Multiply-accumulates are counted by PyTorch's
`FlopCounterMode` (convolutions and products of matrices, forward and backward, two operations each), and MONAI's
networks are widened until theirs are those of ours. "Share of the floor" is of the GFLOP/s that a 2048 x 2048 matrix
product reaches here, in the same run and number format. Peak memory is that of a process which does only this.
"""

import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import endless, markdown_table, matmul_floor, parser, ratio, report, seconds, spread
from benchmarks.contenders import basic_unet, fitting_width, gflop, monai_unet, plain
from unetlib import Recipe, UNet
from unetlib.dataset import SliceDataset
from unetlib.engine.device import resolve_precision
from unetlib.engine.fabric import FabricEngine
from unetlib.loop import Loop
from unetlib.networks import build_network
from unetlib.support.command import BEGINS_ANEW, run_command

SLICES = 64
KINDS = {  # of work, and what the profiler calls it
    "Adam": ("optimizer.step",),
    "convolutions": ("convolution",),
    "batch norm": ("batch_norm", "batchnorm"),
    "bilinear upsampling": ("upsample",),
    "max-pooling": ("max_pool", "maxpool"),
    "ReLU": ("relu", "threshold_backward", "clamp_min"),
    "concatenation": ("cat", "slicebackward"),
    "number formats": ("aten::to", "tocopy"),
    "clipping": ("vector_norm", "foreach"),
}


def noisy_discs(number: int = SLICES, side: int = 96) -> SliceDataset:
    """Return noise with a bright disc in each slice, in the place of prepared slices."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:side, :side]
    discs = [(x - a) ** 2 + (y - b) ** 2 < 150 for a, b in rng.integers(20, side - 20, (number, 2))]
    masks = np.array(discs, np.uint8)[:, None]
    images = (0.3 * rng.random(masks.shape) + 0.4 * masks).astype(np.float16)
    return SliceDataset(images, masks, dict.fromkeys(("train", "val"), np.arange(number)), np.array([number]))


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """The same slices one by one, each augmented by itself, as most scripts do."""

    def __init__(self, slices: SliceDataset) -> None:
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = (torch.from_numpy(a[index].astype(np.float32)) for a in (self.slices.images, self.slices.masks))
        turns, flip = random.randrange(4), random.randrange(2)
        image, mask = torch.rot90(image, turns, (1, 2)), torch.rot90(mask, turns, (1, 2))
        return (image.flip(2), mask.flip(2)) if flip else (image, mask)


def ours(slices: SliceDataset, batch: int, precision: str, device: str, compiled: bool) -> Callable[[], object]:
    """Return a function that does one step of `unetlib.runs.training`."""
    recipe = Recipe(batch_size=batch, precision=precision)
    engine = FabricEngine(device, precision)
    network = build_network(recipe).to(engine.device)
    network = engine.fabric.setup_module(torch.compile(network) if compiled else network)
    steps = endless(Loop(network, slices, recipe, engine=engine))

    def step() -> None:
        next(steps)
        if engine.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def build(name: str, batch: int, device: str) -> tuple[Callable[[], object], float]:
    """Return the step of a contender, and its 10^9 operations a slice."""
    slices, wanted = noisy_discs(), gflop(UNet)
    if name.startswith("ours"):
        return ours(slices, batch, name.split()[1], device, name.endswith("compiled")), wanted
    makers = {"the same U-Net, naive": lambda _: UNet(), "MONAI BasicUNet": basic_unet, "MONAI UNet": monai_unet}
    make = partial(makers[name], fitting_width(makers[name], wanted))
    return plain(make(), DataLoader(Samples(slices), batch, shuffle=True), device), gflop(make)


def profile(step: Callable[[], object], steps: int = 8) -> dict[str, float]:
    """Return the share of the time of some steps that each kind of work takes."""
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    taken = dict.fromkeys([*KINDS, "all else"], 0.0)
    for event in profiler.events():
        names, above = [], event
        while above is not None:
            names.append(above.name.lower())
            above = above.cpu_parent
        kind = next((k for k, marks in KINDS.items() if any(m in name for m in marks for name in names)), "all else")
        taken[kind] += event.self_cpu_time_total
    return {kind: time / sum(taken.values()) for kind, time in taken.items()}


def memory_of(name: str, batch: int, device: str) -> float:
    """Return the GB, of the GPU where there is one, that a process takes which does three steps and nothing else."""
    used = "torch.cuda.max_memory_allocated() / 1e9" if device.startswith("cuda") else "peak_memory()[0]"
    code = (
        "import torch; from benchmarks.common import peak_memory; from benchmarks.train_step import build\n"
        f"step, _ = build({name!r}, {batch}, {device!r})\n"
        f"step(), step(), step(), print({used})"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, print, record."""
    options = parser("benchmarks.train_step", __doc__, repeats=9, device="cpu")
    options.add_argument("--compile", action="store_true", help="ours by torch.compile, too")
    arguments = options.parse_args()
    device = arguments.device
    precisions = ["fp32", "bf16"] if resolve_precision("auto", torch.device(device)) == "bf16" else ["fp32"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # the floor by the rule of convolutions
    mine = [f"ours {precision}" for precision in precisions]
    best = mine[-1]
    mine += [f"{best} compiled"] if arguments.compile else []
    names = [*mine, "the same U-Net, naive", "MONAI BasicUNet", "MONAI UNet"]
    floors = {name: matmul_floor(getattr(torch, name), device) for name in ("float32", "bfloat16")}
    rows = []
    for batch in (4, 16):
        built = {name: build(name, batch, device) for name in names}
        times = seconds({name: step for name, (step, _) in built.items()}, arguments.repeats)
        speed = {name: [batch / t for t in times[name]] for name in names}
        for name in names:
            rate = statistics.median(speed[name]) * built[name][1]  # GFLOP/s
            floor = floors["bfloat16" if "bf16" in name else "float32"]
            ratios = [f"{ratio(speed[us], speed[name]):.2f} ({us[5:]})" for us in mine if not name.startswith("ours")]
            row = [batch, name, f"{built[name][1]:.2f}", spread(speed[name]), f"{rate:.0f}", f"{rate / floor:.0%}"]
            rows.append([*row, ", ".join(ratios), f"{memory_of(name, batch, device):.2f} GB"])
    columns = ("batch", "step", "GFLOP a slice", "slices/s", "GFLOP/s", "share of the floor", "ours is faster by")
    shares = {batch: profile(build(best, batch, device)[0]) for batch in (4, 16)}
    work = [[kind, f"{shares[4][kind]:.1%}", f"{shares[16][kind]:.1%}"] for kind in shares[4]]
    report(
        "train_step",
        "One step of training",
        f"Width 32, 96 x 96. Floors: matrix product of 2048 x 2048, {floors['float32']:.0f} GFLOP/s in fp32 and "
        f"{floors['bfloat16']:.0f} in bf16.",
        markdown_table((*columns, "peak memory"), rows),
        f"Where the processor's time in a step of `{best}` goes (PyTorch's profiler):",
        markdown_table(("work", "batch 4", "batch 16"), work),
        options=arguments,
        packages=("torch", "monai", "numpy"),
        statistic="medians of the steps, taken in turns (quartiles)",
        section=f"train step {device}",
    )


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
