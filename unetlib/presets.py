"""Recipes by name, and a hint if slices and training follow different ones."""

from unetlib.recipe import PREPARE, TRAIN, Recipe

PRESETS = {"published": Recipe.published, "strong": Recipe.strong, "best": Recipe.best, "volume": Recipe.volume}
USUAL = {2: "published", 3: "volume"}  # without --recipe, by the number of dimensions


def mixed_presets(recipe: Recipe) -> str:
    """Return a hint if the slices mostly follow a preset but the training does not, or the reverse; else empty."""
    for name, preset in PRESETS.items():
        if preset.dims != recipe.dims:
            continue
        follows = {stage: _follows(recipe, preset, stage) for stage in (PREPARE, TRAIN)}
        if follows[PREPARE] != follows[TRAIN]:
            one, other = sorted(follows, key=follows.__getitem__, reverse=True)
            done = {PREPARE: "the slices were prepared", TRAIN: "the training is set up"}
            return (
                f"{done[one]} by the {name} recipe and {done[other]} by another one. If this is not intended, give "
                f"`unetlib {other}` the flag --recipe {name} (in Python Recipe.{name}) and a new folder."
            )
    return ""


def _follows(recipe: Recipe, preset: Recipe, stage: str) -> bool:
    """Tell whether a recipe has more than half of the values in which a preset differs from the published recipe."""
    published, own = Recipe.published.stage(stage), recipe.stage(stage)
    apart = {name: value for name, value in preset.stage(stage).items() if value != published[name]}
    return 2 * sum(own[name] == value for name, value in apart.items()) > len(apart)
