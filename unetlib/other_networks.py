"""Networks of MONAI by name, made for the recipe, and what is known of any network that is not ours.

MONAI is the extra `unetlib[networks]`, imported only when one of these networks is made.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError
from unetlib.support.fields import flag

INSTALL = 'python -m pip install --constraint constraints.txt --editable ".[networks]"'


@dataclass(frozen=True)
class Other:
    """A class of `monai.networks.nets`, its arguments for a recipe, and the recipes that it can be made for."""

    kind: str
    arguments: Callable[[Recipe], dict[str, Any]]
    source: str
    width: int  # for `unetlib networks`
    depth: int
    unit: int = 1  # the width must be a multiple of it
    depths: range = range(1, 9)
    deep_supervision: bool = False  # whether it has outputs on its lower levels


def _channels(recipe: Recipe) -> list[int]:
    return [recipe.width * 2**level for level in range(recipe.depth + 1)]


def _attention_unet(recipe: Recipe) -> dict[str, Any]:
    return {"channels": _channels(recipe), "strides": [2] * recipe.depth}


def _segresnet(recipe: Recipe) -> dict[str, Any]:
    return {
        "init_filters": recipe.width,
        "blocks_down": [1, *[2] * (recipe.depth - 1), 4],  # of depth 3: those of the paper
        "blocks_up": [1] * recipe.depth,
    }


def _dynunet(recipe: Recipe) -> dict[str, Any]:
    """As nnU-Net plans it; deep supervision leaves out the two lowest levels, of depth 2 only the lowest."""
    return {
        "kernel_size": [3] * (recipe.depth + 1),
        "strides": [1] + [2] * recipe.depth,
        "upsample_kernel_size": [2] * recipe.depth,
        "filters": [min(channels, 512 if recipe.dims == 2 else 320) for channels in _channels(recipe)],
        "deep_supervision": recipe.deep_supervision,
        "deep_supr_num": max(recipe.depth - 2, 1),
    }


def _unetr(recipe: Recipe) -> dict[str, Any]:
    """With the transformer of the paper (768 wide, 12 heads) at width 32."""
    hidden = 24 * recipe.width
    return {
        "img_size": padded(recipe.image_size, 2**recipe.depth),
        "feature_size": recipe.width,
        "hidden_size": hidden,
        "mlp_dim": 4 * hidden,
    }


OTHERS = {
    "attention-unet": Other(
        "AttentionUnet", _attention_unet, "Oktay et al., 'Attention U-Net', MIDL 2018", width=16, depth=4, unit=2
    ),
    "segresnet": Other(
        "SegResNet",
        _segresnet,
        "Myronenko, '3D MRI brain tumor segmentation', BrainLes 2018",
        width=16,
        depth=3,
        unit=8,
    ),
    "dynunet": Other(
        "DynUNet",
        _dynunet,
        "Isensee et al., 'nnU-Net', Nature Methods 18, 2021",
        width=32,
        depth=4,
        depths=range(2, 9),
        deep_supervision=True,
    ),
    "unetr": Other("UNETR", _unetr, "Hatamizadeh et al., 'UNETR', WACV 2022", width=16, depth=4, depths=range(4, 5)),
    "swin-unetr": Other(
        "SwinUNETR",
        lambda recipe: {"feature_size": recipe.width},
        "Hatamizadeh et al., 'Swin UNETR', BrainLes 2021",
        width=24,
        depth=5,
        unit=12,
        depths=range(5, 6),
    ),
}


class Padded(nn.Module):
    """A network that halves its images several times, with images of any size: padded for it, cropped afterwards.

    `made` says of which class and library the `network` is, and with which arguments it was made. A network with the
    argument `img_size` takes only images that are padded to that size; others raise `UnetlibError`.
    """

    def __init__(self, network: nn.Module, multiple: int, made: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.multiple, self.made = network, multiple, made

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K, ...) of images `x` (N, C, ...); those of several levels are (N, levels, K, ...)."""
        size = x.shape[2:]
        wanted = [padded(side, self.multiple) for side in size]
        only = self.made["arguments"].get("img_size")
        if only and set(wanted) != {only}:
            raise UnetlibError(
                f"the network {self.made['class']} was made for images of {only} pixels or voxels a side, and "
                f"{' x '.join(map(str, size))} were given. Build one with the image_size of these."
            )
        ends = [end for side, goal in zip(size, wanted, strict=True) for end in (goal - side, 0)]
        logits = self.network(F.pad(x, ends[::-1]))
        return logits[(..., *(slice(side) for side in size))]


def padded(side: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `side`."""
    return -(-side // multiple) * multiple


def build_other(name: str, recipe: Recipe, in_channels: int, out_channels: int) -> nn.Module:
    """Return a network of `OTHERS` for a recipe: images (N, C, H, W) or (N, C, D, H, W) to logits (N, K, ...).

    Raises `UnetlibError` when MONAI is not installed, or the network cannot be made for the recipe.
    """
    other = OTHERS[name]
    _refuse(name, other, recipe)
    arguments = {
        "spatial_dims": recipe.dims,
        "in_channels": in_channels,
        "out_channels": out_channels,
        **other.arguments(recipe),
    }
    try:
        import einops  # noqa: F401 - MONAI imports it when it makes a transformer
        from monai.networks import nets
    except ImportError as error:
        raise UnetlibError(
            f"the network {name!r} comes from MONAI, and {error.name or 'monai'} is not installed. Install both in the "
            f"folder of unetlib: {INSTALL}"
        ) from error
    with _NumbersOnCPU():
        network = getattr(nets, other.kind)(**arguments)
    return Padded(network, 2**recipe.depth, {**_origin(network), "arguments": arguments, "source": other.source})


def _refuse(name: str, other: Other, recipe: Recipe) -> None:
    """Raise `UnetlibError` with all that a network cannot take of a recipe."""
    wanted, depths = {}, other.depths
    if recipe.width % other.unit:
        below = recipe.width - recipe.width % other.unit
        wanted["width"] = f"a multiple of {other.unit}, such as {max(below, other.unit)}"
    if recipe.depth not in depths:
        wanted["depth"] = str(depths[0]) if len(depths) == 1 else f"{depths[0]} to {depths[-1]}"
    least = 2 ** (recipe.depth if recipe.depth in depths else depths[0])
    if recipe.image_size <= least:  # normalisation needs more than one pixel at the bottom
        fits = [depth for depth in depths if 2**depth < recipe.image_size]
        shallower = f"; or a {flag('depth')} of at most {fits[-1]}" if fits and recipe.depth in depths else ""
        wanted["image_size"] = f"more than {least}, set by unetlib prepare {flag('image_size')}{shallower}"
    if recipe.deep_supervision and not other.deep_supervision:
        wanted["deep_supervision"] = "False, as it has no outputs on its lower levels"
    if wanted:
        asked = "; ".join(f"{field} is {getattr(recipe, field)} (expected: {text})" for field, text in wanted.items())
        raise UnetlibError(f"the network {name!r} cannot be made for this recipe: {asked}.")


class _NumbersOnCPU(TorchFunctionMode):
    """Computes `torch.linspace`, from which MONAI reads its numbers, on the meta device, too, which holds none."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return function(*args, **({"device": "cpu"} if function is torch.linspace else {}), **(kwargs or {}))


# The networks of which every step uses all weights; MONAI's ViT has norms that only another of its networks uses.
ALL_USED = {"unet", *OTHERS} - {"unetr"}
FACTORIES = {name: partial(build_other, name) for name in OTHERS}


def how_made(network: nn.Module) -> dict[str, Any]:
    """Return the class of a network, its library with the version, and, of one of `OTHERS`, its arguments."""
    return network.made if isinstance(network, Padded) else _origin(network)


def _origin(network: nn.Module) -> dict[str, Any]:
    kind = type(network)
    origin = {"class": f"{kind.__module__}.{kind.__qualname__}", "library": kind.__module__.partition(".")[0]}
    with suppress(PackageNotFoundError):  # of a notebook or a script
        origin["version"] = version(origin["library"])
    return origin


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@torch.no_grad()
def level_shapes(network: nn.Module, side: int = 96) -> list[tuple[str, tuple[int, ...]]]:
    """Return the size of the feature maps on every level of any network, each with the most channels found there.

    The shapes are (channels, height, width) or (channels, depth, height, width), as the convolutions give them for one
    image of that `side`, in pixels, the largest first; the last one is that of the logits. Empty where the network has
    no convolution, or its first one does not take the image.
    """
    convolutions = [module for module in network.modules() if isinstance(module, _ConvNd)]
    if not convolutions:
        return []
    most: dict[tuple[int, ...], int] = {}

    def note(_: nn.Module, __: Any, out: Tensor) -> None:
        most[tuple(out.shape[2:])] = max(most.get(tuple(out.shape[2:]), 0), out.shape[1])

    first = convolutions[0]
    image = first.weight.new_zeros(1, first.in_channels, *[side] * (first.weight.dim() - 2))
    hooks, training = [one.register_forward_hook(note) for one in convolutions], network.training
    try:
        logits = network.eval()(image)
    except RuntimeError:
        return []
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    levels = [(most[size], *size) for size in sorted(most, reverse=True)]
    return [*((f"level {number}", shape) for number, shape in enumerate(levels)), ("logits", tuple(logits.shape[1:]))]
