"""The engine for training: device, precision and processes, with Lightning Fabric."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unetlib.engine.device import process_count, start_engine
from unetlib.engine.parallel import any_of, gather, own_rows, share_statistics
from unetlib.hooks import Engine


class FabricEngine(Engine):
    """Computes on any device, in fp32 or bf16; several processes share every batch.

    Any number of processes gives the result of one, apart from rounding.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.device = fabric, fabric.device

    @classmethod
    def start(cls, device: str = "auto", precision: str = "auto") -> "FabricEngine":
        """Return the engine on a device, for all processes that torchrun has started."""
        return cls(start_engine(device, precision, process_count()))

    def setup(self, network: nn.Module) -> nn.Module:
        """Return the network, with the same weights, set up for device, precision and processes."""
        return self.fabric.setup_module(network)

    def share_statistics(self, network: nn.Module) -> None:
        """Let batch norm use the statistics of the whole batch when processes share it."""
        if self.fabric.world_size > 1:
            share_statistics(network)

    def seed(self, number: int) -> None:
        """Seed the generators of random layers, on the CPU and on the device."""
        super().seed(number)
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).manual_seed(number)

    def to_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return images and masks on the device."""
        return self.fabric.to_device(batch)

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the logits of the whole batch; this process computes its own rows."""
        return gather(self.fabric, network(own_rows(self.fabric, images)), len(images))

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the whole batch."""
        self.fabric.backward(loss)

    def any_of(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process; all of them get the same answer."""
        return any_of(self.fabric, flag)
