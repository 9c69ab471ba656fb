"""Networks by name: `unet`, those of MONAI, and those that users register."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unetlib.checks import require_shape
from unetlib.other_networks import FACTORIES
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError, brief
from unetlib.unet import UNet

Factory = Callable[[Recipe, int, int], nn.Module]
_FACTORIES: dict[str, Factory] = {
    "unet": lambda recipe, before, after: UNet(before, after, recipe.width, recipe.depth, recipe.dims),
    **FACTORIES,
}


def register_network(name: str, factory: Factory) -> None:
    """Add your own network under a name for `Recipe.network`.

    `factory(recipe, in_channels, out_channels)` returns a module with fresh weights that turns images
    (N, in_channels, H, W) into logits (N, out_channels, H, W); with `recipe.dims` 3, both have the depth before the
    height. With `recipe.deep_supervision` it returns in training the logits of several levels, (N, levels,
    out_channels, H, W), the finest first. A run stores only the name, so register the network again before you resume
    the run in another process. A name may be registered again, as when the cell of a notebook is run twice. Raises
    `UnetlibError` for the name of a network of the library, or what is not a name and a function.
    """
    if name in ("unet", *FACTORIES):
        raise UnetlibError(f"there is a network named {name!r} already. Choose another name.")
    if not isinstance(name, str) or not callable(factory):
        raise UnetlibError(
            f"register_network got {brief(name)} and {brief(factory)}; a name and a function were expected."
        )
    _FACTORIES[name] = factory


def build_network(recipe: Recipe, in_channels: int | None = None, out_channels: int = 1) -> nn.Module:
    """Return the network of a recipe, with fresh weights that depend on `recipe.seed` alone.

    `in_channels`: by default the channels of one sequence, a slice and its neighbours. Raises `UnetlibError` when no
    network of that name is registered, its factory returns none or one with lazy layers, or it cannot be made for this
    recipe, and later when its logits have a wrong shape.
    """
    if recipe.network not in _FACTORIES:
        raise UnetlibError(
            f"there is no network named {brief(recipe.network)}; {', '.join(_FACTORIES)} was expected. Register it "
            "first: register_network(name, factory)."
        )
    if recipe.network == "unet" and recipe.deep_supervision:
        raise UnetlibError("the U-Net has no outputs on its lower levels for deep_supervision; dynunet has them.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            network = _FACTORIES[recipe.network](recipe, in_channels or 1 + 2 * recipe.neighbours, out_channels)
        except TypeError as error:  # it takes other arguments
            raise UnetlibError(f"the factory of the network {recipe.network!r} fails: {error}") from error
    if not isinstance(network, nn.Module) or not any(weight.requires_grad for weight in network.parameters()):
        raise UnetlibError(
            f"the factory of the network {recipe.network!r} returned {brief(network)}; a module with weights to train "
            "was expected."
        )

    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        raise UnetlibError(
            f"the factory of the network {recipe.network!r} returned a module with lazy layers, whose weights do not "
            "exist yet. Use layers that are given their channels, such as nn.Conv2d instead of nn.LazyConv2d."
        )

    def check(module: nn.Module, inputs: tuple[Tensor, ...], logits: Any) -> None:
        for images in inputs[:1]:
            levels = getattr(logits, "shape", ())[1:2] if recipe.deep_supervision and module.training else ()
            require_shape(logits, (len(images), *levels, out_channels, *images.shape[2:]))

    network.register_forward_hook(check)
    # 1.1 x faster in fp32 and 1.2 x in bf16, on two cores; in 3-D 1.3 x in fp32, on one
    faster = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() in faster:  # a network of volumes may have weights for planes
            tensor.data = tensor.data.to(memory_format=faster[tensor.dim()])
    return network
