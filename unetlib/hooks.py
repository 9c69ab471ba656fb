"""Extension points of the training loop: hooks, of which averaged weights are one, and the engine that computes."""

from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from unetlib.loop import Loop


class Hook:
    """Actions during training: a subclass overrides the methods that it needs."""

    def on_start(self, loop: "Loop") -> None:
        """Called before the first step of `Loop.run`."""

    def on_step_start(self, loop: "Loop") -> None:
        """Called before each step."""

    def on_gradients(self, loop: "Loop", loss: float) -> None:
        """Called before the weights change, with gradients clipped; `loop.gradient_norm` is their norm before that."""

    def on_step_end(self, loop: "Loop", loss: float) -> None:
        """Called after each step; setting `loop.stopping` in any method ends the training here."""

    def on_epoch_end(self, loop: "Loop") -> None:
        """Called after each epoch; its row is the last one of `loop.state.history`."""


class AveragedWeights(Hook):
    """Keep a running average of the weights over the steps, in the network that is validated."""

    def on_step_end(self, loop: "Loop", loss: float) -> None:
        """Move the average towards the weights."""
        number = loop.state.epoch * loop.steps + loop.state.step - 1
        move_average(loop.validated, loop.network, loop.recipe.average, number)


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the `average` of weights and batch norm statistics towards those of `network` after `step`.

    The old average is weighted by `decay`, and by less in the first steps, so that the random initial weights are soon
    forgotten. Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2.
    """
    keep = min(decay, (step + 1) / (step + 10))
    own, new = (chain(one.parameters(), one.buffers()) for one in (average, network))  # each once, even if it is shared
    for kept, now in zip(own, new, strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - keep)
        else:
            kept.copy_(now)


class Engine:
    """Computes batches: this one in one process on the CPU, in single precision."""

    def seed(self, number: int) -> None:
        """Seed the generator of random layers, such as dropout."""
        torch.default_generator.manual_seed(number)

    def to_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return images and masks on the device of the network."""
        return batch

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the logits of a batch."""
        return network(images)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients."""
        loss.backward()
