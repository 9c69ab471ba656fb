"""What each network costs on this machine, measured now: parameters, operations, and the time of a training step."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unetlib.engine.memory import SPARE, available_bytes, gigabytes, step_bytes
from unetlib.engine.threads import fixed_threads
from unetlib.losses import get_loss
from unetlib.networks import build_network
from unetlib.other_networks import OTHERS, parameter_count
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError
from unetlib.support.jobs import processor, watched

REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """What a network costs for one sample (a slice or volume) in training; without numbers, `note` says why."""

    network: str
    width: int
    depth: int
    parameters: int | None = None
    gflop: float | None = None  # 10^9 operations of forward and backward
    milliseconds: float | None = None  # of one core: forward, backward and step
    note: str = ""


def network_costs(image_size: int = 96, dims: int = 2) -> list[Cost]:
    """Return what each network of the library costs at its usual width, on samples of one channel and this size.

    `image_size`: side in pixels or, with `dims` 3, in voxels. The time is the median of some steps in fp32, with one
    thread: of a batch of 4 slices, divided by 4, or of one volume. A network that cannot be made has a `note` instead.
    """
    base = (Recipe.volume if dims == 3 else Recipe.published.but(dims=dims)).but(network="", image_size=image_size)
    costs = []
    for name in watched(("unet", *OTHERS), "networks", "network"):
        width, depth = (OTHERS[name].width, OTHERS[name].depth) if name in OTHERS else (base.width, base.depth)
        try:
            costs.append(measure(base.but(network=name, width=width, depth=depth), batch=4 if dims == 2 else 1))
        except UnetlibError as error:
            costs.append(Cost(name, width, depth, note=str(error)))
    return costs


def measure(recipe: Recipe, batch: int, repeats: int = REPEATS) -> Cost:
    """Return what the network of a recipe costs, on batches of so many samples; see `network_costs`.

    Raises `UnetlibError` when it cannot be made, or a step needs more memory than there is.
    """
    network = build_network(recipe)
    needed = step_bytes(network, (batch, 1, *[recipe.image_size] * recipe.dims))
    there = available_bytes(torch.device("cpu"))
    if needed and there and needed + SPARE > there:
        raise UnetlibError(
            f"a step needs about {gigabytes(needed + SPARE)} of memory, and {gigabytes(there)} are free."
        )
    number, flops = parameter_count(network), _gflop(recipe)
    seconds = _seconds(network, recipe, batch, repeats)
    return Cost(recipe.network, recipe.width, recipe.depth, number, flops, 1000 * seconds / batch)


def costs_table(image_size: int = 96, dims: int = 2) -> str:
    """Return the table of `network_costs`, with the machine, as text."""
    sample, batch = ("slice", "4 slices") if dims == 2 else ("volume", "1 volume")
    lines = [f"{'network':<15}{'width':>6}{'depth':>6}{'parameters':>13}{'GFLOP':>9}{'core-ms':>9}"]
    for row in network_costs(image_size, dims):
        numbers = f"{row.parameters or 0:>13,}{row.gflop or 0:>9.1f}{row.milliseconds or 0:>9.0f}"
        lines.append(f"{row.network:<15}{row.width:>6}{row.depth:>6}{'  ' + row.note if row.note else numbers}")
    size = " x ".join([str(image_size)] * dims)
    lines += [
        f"GFLOP: 10^9 operations, forward and backward, for one {sample} of {size} with one channel. core-ms: forward,",
        f"backward and Adam's step, measured now on one core ({processor()}) in fp32; median of",
        f"{REPEATS} steps of {batch}, divided by their number. Another load gives other times.",
    ]
    return "\n".join(lines)


def _gflop(recipe: Recipe) -> float:
    """Return the 10^9 operations of forward and backward for one sample; nothing is computed for it."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        # two samples: with one, some norms refuse a single value
        build_network(recipe)(torch.zeros(2, 1, *[recipe.image_size] * recipe.dims)).sum().backward()
    return counter.get_total_flops() / 2e9


def _seconds(network: nn.Module, recipe: Recipe, batch: int, repeats: int) -> float:
    """Return the median processor time of one step, with one thread, after one that is not counted."""
    shape = batch, 1, *[recipe.image_size] * recipe.dims
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.rand(shape, generator=generator), (torch.rand(shape, generator=generator) > 0.9).float()
    optimizer, loss = torch.optim.Adam(network.train().parameters()), get_loss(recipe.loss, recipe.deep_supervision)
    times = []
    with fixed_threads(1):
        for _ in range(1 + repeats):
            start = time.process_time()
            optimizer.zero_grad()
            loss(network(images), masks).backward()
            optimizer.step()
            times.append(time.process_time() - start)
    return median(times[1:])
