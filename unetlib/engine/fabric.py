"""The engine for training: device, precision and processes, with Lightning Fabric."""

import torch
from torch import Tensor, nn

from unetlib.engine.device import process_count, start_engine
from unetlib.engine.parallel import gather, own_rows
from unetlib.hooks import Engine


class FabricEngine(Engine):
    """Computes on any device, in fp32 or bf16; several processes share every batch.

    Any number of processes gives the result of one, apart from rounding.
    """

    def __init__(self, device: str = "auto", precision: str = "auto") -> None:
        self.fabric = start_engine(device, precision, process_count())
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
        """Return the logits of the whole batch; this process computes its own rows."""
        rows = own_rows(self.fabric, images)
        idle = images.dim() == 5 and not len(rows)  # instance norm takes no empty batch: compute a volume, keep none
        logits = network(images[:1])[:0] if idle else network(rows)
        return gather(self.fabric, logits, len(images))

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the whole batch."""
        self.fabric.backward(loss)
