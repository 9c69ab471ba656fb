"""The U-Net of the recipe, for slices or for volumes."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetlib.support.errors import UnetlibError

# Convolution, norm, pooling and interpolation. Batch norm needs more samples than the one or two volumes of a step.
LAYERS: dict[int, tuple[Any, Any, Any, str]] = {
    2: (nn.Conv2d, nn.BatchNorm2d, F.max_pool2d, "bilinear"),
    3: (nn.Conv3d, nn.InstanceNorm3d, F.max_pool3d, "trilinear"),
}


class DoubleConv(nn.Sequential):
    """3x3 convolution, norm and ReLU, twice: (N, in_channels, H, W) to (N, out_channels, H, W); or 3x3x3, with D."""

    def __init__(self, in_channels: int, out_channels: int, dims: int = 2) -> None:
        conv, norm, *_ = LAYERS[dims]
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                conv(channels, out_channels, kernel_size=3, padding=1, bias=False),  # the norm adds the bias
                norm(out_channels, affine=True),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """A U-Net with max-pooling down, bilinear upsampling up and concatenated skips.

    It has `width` channels on the first level, doubled on each of `depth` levels down. Any height and
    width are accepted: pooling rounds up, and upsampling restores the size of the skip. With `dims` 3 it is a
    3-D U-Net, of images (N, C, D, H, W), with instance norm (Ulyanov et al. 2016) and trilinear upsampling.

    Raises `UnetlibError` when width, depth or a channel count is below 1.

    Source: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation", MICCAI 2015, figure 1 (width 64, depth 4); here with padded convolutions, batch
    norm (Ioffe and Szegedy 2015) and bilinear upsampling instead of the up-convolution. In 3-D: Çiçek et
    al., "3D U-Net", MICCAI 2016.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, width: int = 32, depth: int = 4, dims: int = 2
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, width, depth) < 1:
            raise UnetlibError(
                f"U-Net: in_channels={in_channels}, out_channels={out_channels}, width={width}, depth={depth}; "
                "each must be at least 1."
            )
        self.dims, channels = dims, [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(DoubleConv(above, own, dims) for above, own in pairwise([in_channels, *channels]))
        self.up = nn.ModuleList(DoubleConv(below + own, own, dims) for below, own in pairwise(channels[::-1]))
        self.head = LAYERS[dims][0](width, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, out_channels, H, W) of images `x` (N, in_channels, H, W); or with D before H."""
        _, _, pool, mode = LAYERS[self.dims]
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else pool(x, kernel_size=2, ceil_mode=True))
            skips.append(x)
        skips.pop()  # the bottom has no skip: it is `x` itself
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[2:], mode=mode, align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        return self.head(x)

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the sigmoid of the logits: the probability of tumour for every pixel, in 0..1."""
        return torch.sigmoid(self(x))

    def parameter_count(self) -> int:
        """Return the number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def level_shapes(self, *size: int) -> list[tuple[str, tuple[int, ...]]]:
        """Return the output shape (channels, *size) of every level for one image of that size, by default 96."""
        size = size or (96,) * self.dims
        shapes: list[tuple[str, tuple[int, ...]]] = []
        stages = [*(f"down {i}" for i in range(len(self.down))), *(f"up {i}" for i in reversed(range(len(self.up))))]
        blocks: list[nn.Module] = [*self.down, *self.up, self.head]
        hooks = [
            block.register_forward_hook(lambda _, __, out, name=name: shapes.append((name, tuple(out.shape[1:]))))
            for name, block in zip([*stages, "logits"], blocks, strict=True)
        ]
        training = self.training
        parameter = next(self.parameters())
        try:
            self.eval()(torch.zeros(1, self.down[0][0].in_channels, *size, device=parameter.device))  # type: ignore[index]
        finally:
            self.train(training)
            for hook in hooks:
                hook.remove()
        return shapes

    def describe(self, *size: int) -> str:
        """Return the parameter count and the shape at every level, as text to print; `size` as in `level_shapes`."""
        shapes = self.level_shapes(*size)
        lines = [" x ".join([f"{name:>8}  {c:>5}", *(f"{side:>3}" for side in sides)]) for name, (c, *sides) in shapes]
        return "\n".join([f"U-Net with {self.parameter_count():,} parameters", *lines])
