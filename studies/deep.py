"""Our U-Net with two habits of nnU-Net: instance norm, and a loss on every level of the way up (deep supervision).

`register()` adds the network under the name "deep" and the loss "deep:dice+bce". In training the loss sees
the logits of all levels but the lowest two, in evaluation those of full size alone.

Sources: Isensee et al., "nnU-Net", Nature Methods 2021, supplementary note 2; Ulyanov et al., arXiv:1607.08022.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetlib import register_network
from unetlib.losses import LOSSES, get_loss
from unetlib.unet import UNet

LOSS = "deep"
LEVELS: list[Tensor] = []  # logits of the lower levels in the latest training step: the loop takes those of full size


class DeepUNet(UNet):
    """A U-Net with instance norm, and a 1x1 convolution to logits on each level of the way up."""

    def __init__(self, in_channels: int, out_channels: int, width: int, depth: int) -> None:
        super().__init__(in_channels, out_channels, width, depth)
        for block in (*self.down, *self.up):
            for place, layer in enumerate(block):
                if isinstance(layer, nn.BatchNorm2d):
                    block[place] = nn.InstanceNorm2d(layer.num_features, affine=True)
        levels = range(1, max(depth - 1, 1))  # 1/2, 1/4, ... of the image
        self.heads = nn.ModuleList(nn.Conv2d(width * 2**level, out_channels, kernel_size=1) for level in levels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; in training, put those of the lower levels into `LEVELS`, the largest first."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, kernel_size=2, ceil_mode=True))
            skips.append(x)
        skips.pop()
        found = []
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([skip, F.interpolate(x, size=skip.shape[-2:], mode="bilinear")], dim=1))
            found.append(x)
        own = self.head(found.pop())
        lower = zip(self.heads, reversed(found), strict=False) if self.training else ()
        LEVELS[:] = [head(x).float() for head, x in lower]
        return own


def deep_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the Dice loss and the cross-entropy, summed over the levels; a level counts half as much as that above."""
    total, levels = get_loss("dice+bce"), [logits, *LEVELS]
    weights = [2.0**-level for level in range(len(levels))]
    losses = [
        weight * total(one, F.interpolate(masks, size=one.shape[-2:], mode="nearest"))
        for weight, one in zip(weights, levels, strict=True)
    ]
    return torch.stack(losses).sum() / sum(weights)


def register() -> None:
    """Make network and loss known as "deep"."""
    register_network("deep", lambda recipe, before, after: DeepUNet(before, after, recipe.width, recipe.depth))
    LOSSES[LOSS] = deep_loss
