"""The learning rate of each step."""

import math

from unetlib.recipe import Recipe

WARM_UP = 1 / 20  # of all steps


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of `step`, counted from 0, of a training of `steps` steps.

    `cosine` rises linearly to `recipe.learning_rate` over the first twentieth of the steps, then falls
    to 0 along half a cosine. Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    rise = math.ceil(WARM_UP * steps)
    if step < rise:
        return recipe.learning_rate * (step + 1) / rise
    return recipe.learning_rate * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
