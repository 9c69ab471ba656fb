"""The engine for training: device, precision and processes, with Lightning Fabric."""

import torch
from torch import Tensor, nn

from unetlib.engine.device import start_engine
from unetlib.engine.parallel import SharedBatchNorm, gather, own_rows
from unetlib.hooks import Engine
from unetlib.support.messages import process_count


class FabricEngine(Engine):
    """Computes on any device, in fp32 or bf16; several processes share every batch.

    Any number of processes gives the result of one, apart from rounding. `unused`: a step may leave out some weights.
    """

    def __init__(self, device: str, precision: str, unused: bool = False) -> None:
        self.fabric = start_engine(device, precision, process_count(), unused)
        self.device = self.fabric.device

    def seed(self, number: int) -> None:
        """Seed the generators of random layers, on the CPU and on the device."""
        super().seed(number)
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).manual_seed(number)

    def to_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return images and masks on the device."""
        return self.fabric.to_device(batch)

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the logits of the whole batch; this process computes its own rows.

        One without rows computes one, which counts for nothing: not every layer takes an empty batch.
        """
        rows = own_rows(self.fabric, images)
        spare = not len(rows) and not any(isinstance(module, SharedBatchNorm) for module in network.modules())
        logits = network(images[:1])[:0] if spare else network(rows)
        return gather(self.fabric, logits, len(images))

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the whole batch."""
        self.fabric.backward(loss)
