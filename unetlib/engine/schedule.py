"""What changes from step to step beside the weights: the learning rate, and a running average of the weights."""

import math

import torch
from torch import nn

from unetlib.recipe import Recipe

WARM_UP = 1 / 20  # of all steps


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of `step`, counted from 0, of the `steps` of a whole training.

    `cosine` rises in a straight line to `recipe.learning_rate` over the first twentieth of the steps, then falls
    to 0 along half a cosine. Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    rise = math.ceil(WARM_UP * steps)
    if step < rise:
        return recipe.learning_rate * (step + 1) / rise
    return recipe.learning_rate * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, share: float, step: int) -> None:
    """Move the `average` of the weights and of batch norm's statistics towards those of `model` after `step`.

    It keeps `share` of itself, and less in the first steps, so that the random weights of the start are soon
    forgotten. Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2.
    """
    keep = min(share, (step + 1) / (step + 10))
    for kept, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - keep)
        else:
            kept.copy_(now)
