"""Begin a run with the weights of another one."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unetlib.data.prepared import Prepared
from unetlib.data.split import PARTS
from unetlib.dataset import Trainable
from unetlib.networks import build_network
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import load_weights
from unetlib.runs.provenance import learned, part_by_sign, signs
from unetlib.runs.run import SAME, SHIPPED, Run
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.fields import changed
from unetlib.support.files import sha256


def shipped_for(recipe: Recipe) -> Run:
    """Return the run that comes with the library for the sequences and regions of a recipe."""
    usual = (recipe.modalities, recipe.regions) == (Recipe.published.modalities, Recipe.published.regions)
    return Run(SHIPPED["phantoms" if usual else "phantoms-four"])


def chosen_start(recipe: Recipe, other: Run | None) -> Run | None:
    """Return the run whose weights a new training begins with: `other`, or one that comes with the library."""
    return other or (shipped_for(recipe) if recipe.phantoms else None)


def first_weights(run: Run, other: Run | None, content: dict[str, Any] | None) -> str | None:
    """Return the hash of the best weights of `other`, from which a run starts; `None` without `other`.

    Raises `UnetlibError` when these weights are missing, or when a run without checkpoint was started from others.
    """
    best = other.members[0].best if other else None  # of several members, the first
    first = sha256(best) if best and best.is_file() else None
    if other and first is None:
        there = other.folder.exists()
        what = "has no best weights yet" if other.exists else "is not a run folder"
        advice = f"leave --start-from out: {run} has started and no longer needs it"
        raise UnetlibError(
            f"--start-from {other} {what if there else 'does not exist'} ({other.best.name} was expected there). "
            + (f"Restore it, or {advice}." if content else "Name the folder of a finished training.")
        )
    if content is None and run.exists and run.about().get("start_from") not in (None, first):
        raise UnetlibError(
            f"{run} was started from the weights of another run and has no checkpoint yet. Name that run again with "
            "--start-from, or choose a new run folder."
        )
    return first


def begin_with(network: nn.Module, other: Run, recipe: Recipe, data: Prepared | Trainable) -> None:
    """Load the best weights of another run into a fresh network.

    The other network may see further sequences and find further regions: their weights are left out. Raises
    `UnetlibError` when that run has another network or other slices, lacks a sequence or region, or was trained on
    validation or test patients of this one.
    """
    _, theirs, content = other.load()
    _refuse_other_network(other, theirs, recipe)
    if isinstance(data, Prepared):
        refuse_leak(other, data)
    load_weights(network, {"model": _select(content["model"], network, theirs, recipe)}, other.best)


def require_start(run: Run, recipe: Recipe, other: Run | Path | str | None) -> None:
    """Raise `UnetlibError` if a run that has not begun names weights that are missing or of another network."""
    start = chosen_start(recipe, Run.to_read(other) if other else None)
    if start is not None and not any(one.latest.exists() for one in run.members):
        first_weights(run, start, None)
        _refuse_other_network(start, start.load()[1], recipe)


def _refuse_other_network(other: Run, theirs: Recipe, recipe: Recipe) -> None:
    """Raise `UnetlibError` if another run has another network, or lacks a sequence or region of the recipe."""
    before, now = theirs.as_dict(), recipe.as_dict()
    if differences := changed({name: before[name] for name in SAME}, {name: now[name] for name in SAME}):
        raise UnetlibError(
            f"{other} has another network or other slices ({differences}), so its weights do not fit. Start from a run "
            "with the same values, set these flags to its values, or begin with random weights (--no-phantoms)."
        )
    for name in ("modalities", "regions"):
        if lacking := set(now[name].split()) - set(before[name].split()):
            raise UnetlibError(
                f"{other} has no weights for {first_of(sorted(lacking))}: its {name} are {before[name]}. Start from a "
                "run that has them, or begin with random weights (--no-phantoms)."
            )


def _select(model: dict[str, Tensor], network: nn.Module, theirs: Recipe, ours: Recipe) -> dict[str, Tensor]:
    """Return weights of another network with the input channels and outputs of `network`, in its order."""
    if (theirs.modalities, theirs.regions) == (ours.modalities, ours.regions):
        return model
    inputs, outputs = (
        [getattr(theirs, name).split().index(word) for word in getattr(ours, name).split()]
        for name in ("modalities", "regions")
    )
    every, seen = len(theirs.modalities.split()), 1 + 2 * theirs.neighbours
    near = [group * every + channel for group in range(seen) for channel in inputs]
    found = dict(model)
    # With a channel and a region more, the first and last layers have other shapes.
    other = build_network(theirs, (every + 1) * seen, len(theirs.regions.split()) + 1).state_dict()
    for name in network.state_dict().keys() & found.keys() & other.keys():
        if other[name].shape[:1] != found[name].shape[:1]:
            found[name] = found[name][outputs]
        if other[name].shape[1:2] != model[name].shape[1:2]:
            found[name] = found[name][:, near]
    return found


def refuse_leak(other: Run, data: Prepared) -> None:
    """Raise `UnetlibError` when another run has learned from a case that this one validates or tests on."""
    if not other.provenance:
        raise UnetlibError(
            f"{other} does not say which patients it was trained on (it has no {other.provenance_file.name}): "
            "validation and test patients could be among them. Start from a run that says so."
        )
    rank = {sign: PARTS.index(part) for sign, part in part_by_sign(learned(other).values()).items()}
    leaked = [
        name
        for name, case in data.about["cases"].items()
        if min(rank.get(sign, len(PARTS)) for sign in signs(case, name))
        < PARTS.index(data.split.part_of(case["patient"]) or "test")
    ]
    if leaked:
        raise UnetlibError(
            f"{other} was trained or validated on {counted(len(leaked), 'case')} that {data.folder} keeps for "
            f"validation or test ({first_of(leaked, 5)}): the scores would be too high. Start from another run."
        )
