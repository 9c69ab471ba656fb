"""The fields of a recipe as flags of the command line."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from unetlib.presets import PRESETS
from unetlib.recipe import Recipe
from unetlib.support import flags
from unetlib.support.fields import flag


def add_recipe_flags(parser: argparse.ArgumentParser, *stages: str) -> None:
    """Add a flag for each field of these stages, and `--recipe`."""
    group = parser.add_argument_group("recipe (the defaults are the published one, at width 32)")
    text = "published (the default), strong (small cohorts), best (three strong ones), volume (default with --dims 3)"
    group.add_argument("--recipe", choices=PRESETS, help=text)
    add_field_flags(group, [name for stage in stages for name in Recipe.published.stage(stage)])


def add_field_flags(group: Any, names: Iterable[str]) -> None:
    """Add a flag for each field of these names to a parser or a group of it."""
    for spec in fields(Recipe):
        if spec.name not in names:
            continue
        text = f"{spec.metadata['help']} (default: {spec.default})".replace("%", "%%")
        kind: Any = spec.type
        choices = spec.metadata["choices"]
        if kind is bool:
            how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        elif spec.metadata["words"]:
            how = {"nargs": "+", "action": flags.Words, "metavar": "NAME"}
        else:
            how = {"type": kind, "choices": choices, "metavar": None if choices else kind.__name__.upper()}
        group.add_argument(flag(spec.name), dest=spec.name, help=text, **how)


def given(args: argparse.Namespace, *stages: str) -> dict[str, Any]:
    """Return the recipe's fields of these stages that were named on the command line."""
    names = [name for stage in stages for name in Recipe.published.stage(stage)]
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
