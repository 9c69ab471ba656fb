"""What unetlib is timed against: training as it is written everywhere, and MONAI's networks of as much work as ours.

Nothing is imported here that a contender does not need: some are timed from their start.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader


def plain(network: nn.Module, loader: DataLoader[Any], device: str = "cpu") -> Callable[[], object]:
    """Return a function that does one step as it is written everywhere: fp32, NCHW."""
    network.to(device)
    adam, loss = torch.optim.Adam(network.parameters(), lr=1e-3), nn.BCEWithLogitsLoss()
    batches = (pair for _ in iter(int, 1) for pair in loader)

    def step() -> None:
        images, masks = (tensor.to(device) for tensor in next(batches))
        network.train()
        adam.zero_grad()
        value = loss(network(images), masks)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        value.item()  # every script prints it
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return step


def fit(network: nn.Module, loader: DataLoader[Any], steps: int, out: Path) -> None:
    """Do so many plain steps, and save the weights."""
    step = plain(network, loader)
    for _ in range(steps):
        step()
    torch.save(network.state_dict(), out / "weights.pth")


def gflop(make: Callable[[], nn.Module], backward: bool = True) -> float:
    """Return the 10^9 operations of forward (and backward) for a slice of 96 x 96; nothing is computed for it."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        total = make()(torch.zeros(2, 1, 96, 96)).sum()
        if backward:
            total.backward()
    return counter.get_total_flops() / 2e9


def basic_unet(width: int) -> nn.Module:
    """MONAI's BasicUNet with `width` channels on the first level, in its own proportions."""
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, 1, 1, features=(width, width, 2 * width, 4 * width, 8 * width, width))


def monai_unet(width: int) -> nn.Module:
    """MONAI's UNet of five levels, strided convolutions, two residual units a level."""
    from monai.networks.nets import UNet

    channels = [width * 2**level for level in range(5)]
    return UNet(2, 1, 1, channels=channels, strides=(2, 2, 2, 2), num_res_units=2)


def fitting_width(make: Callable[[int], nn.Module], wanted: float) -> int:
    """Return the width at which a network of that kind has nearest to `wanted` operations, in 10^9 a slice."""
    return min(range(16, 80, 2), key=lambda width: abs(gflop(partial(make, width)) - wanted))
