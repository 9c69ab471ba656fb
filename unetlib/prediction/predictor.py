"""Predictors: from a volume to the probability of tumour in every voxel. Wrapped predictors are predictors."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unetlib.data.depth import Cube
from unetlib.data.slices import Window, image_to_slices, slices_to_volume
from unetlib.data.volumes import MAX_VALUE, require_real
from unetlib.dataset import with_neighbours
from unetlib.engine.device import start_engine
from unetlib.engine.threads import checked, prediction_threads
from unetlib.loop import VALIDATION_BATCH
from unetlib.prediction.decision import Decision, Decisions, how_to_decide, mean_decision, read_decision
from unetlib.recipe import OF_PATIENTS, PREDICT, PREPARE, SAMPLE_NAMES, Recipe
from unetlib.runs.run import PACKED, Run, channels_of
from unetlib.support.errors import UnetlibError, counted, first_of, quoted
from unetlib.support.fields import changed
from unetlib.support.files import digest
from unetlib.support.messages import say
from unetlib.support.paths import takes_paths

GRID = ("image_size", "crop")  # these fields determine the grid, which all members of an ensemble share


class Predictor(ABC):
    """Predicts probabilities; `recipe` says how its input is made, `decision` how its output becomes a mask.

    `key` is a hash of everything that its masks depend on, `channels` how many sequences it takes and regions it gives,
    `note` a warning for the readers of its results, `members` what it wraps.
    """

    recipe: Recipe
    decision: Decision | Decisions
    key: str
    channels: tuple[int, int] = 1, 1
    members: "Sequence[Predictor]" = ()

    @property
    def note(self) -> str:
        """Those of the members, each once; read when asked for, since a prediction needs no latest checkpoint."""
        return " ".join(filter(None, dict.fromkeys(one.note for one in self.members)))

    @property
    def epochs(self) -> list[int]:
        """The epoch of the weights of each of its networks."""
        return [epoch for one in self.members for epoch in one.epochs]

    @property
    def takes_gaps(self) -> bool:
        """Whether a patient may lack a sequence, which is then 0: whether it has learned from such patients."""
        return all(one.takes_gaps for one in self.members) if self.members else self.recipe.takes_gaps

    @property
    def dims(self) -> int:
        """3 if one of its networks sees whole volumes, which needs a spacing; else 2."""
        return max((one.dims for one in self.members), default=self.recipe.dims)

    @abstractmethod
    def slices(self, slices: Tensor) -> Tensor:
        """Return the probability of each region, float32 (N, K, S, S) in 0..1, for prepared slices (N, C, S, S).

        Of a 3-D network, both are volumes, with one more axis of S.
        """

    def all_slices(self, voxels: np.ndarray, spacing: tuple[float, float, float] | None = None) -> Tensor:
        """Return the probabilities, float32 (Z, K, S, S), on the model's grid of a volume (X, Y, Z) or (C, X, Y, Z).

        `spacing`: mm per voxel, which only a 3-D network needs. Raises `UnetlibError` for a volume of another shape or
        number of sequences, of other than finite real numbers, or without a usable spacing.
        """
        voxels = np.asarray(voxels)
        shape = voxels.shape if voxels.ndim == 4 else (1, *voxels.shape)  # (C, X, Y, Z)
        if not voxels.size or len(shape) != 4 or shape[0] != self.channels[0]:
            raise UnetlibError(
                f"a volume of shape {voxels.shape} was given to a network for {counted(self.channels[0], 'sequence')}; "
                "(X, Y, Z) or (C, X, Y, Z) was expected. Files hold one sequence: give several to `Predictor.volume`."
            )
        require_real(voxels.dtype, "the volume")
        largest = max(abs(float(voxels.min())), abs(float(voxels.max())))
        if MAX_VALUE < largest < math.inf:  # single precision ends soon after
            what = f"the volume holds values as large as {largest:g}"
            raise UnetlibError(f"{what}; numbers of up to {MAX_VALUE:g} were expected. Repair it.")
        if self.recipe.dims == 3:
            cube = Cube.of(voxels, self.recipe, spacing)
            planes = cube.planes(image_to_slices(voxels, self.recipe, window=cube.window))
            return cube.back(self.slices(planes[None])[0])
        small = image_to_slices(voxels, self.recipe).numpy()
        near = with_neighbours(small, np.arange(len(small)), self.recipe.neighbours, 0, len(small) - 1)
        return self.slices(torch.from_numpy(near))

    def volume(self, voxels: np.ndarray, spacing: tuple[float, float, float] | None = None) -> np.ndarray:
        """Return the probabilities, float32 (K, X, Y, Z), of every voxel of a volume (X, Y, Z) or (C, X, Y, Z).

        Its axes are in LPS order; `spacing` as in `all_slices`.
        """
        voxels, found = np.asarray(voxels), self.all_slices(voxels, spacing)
        return slices_to_volume(found, voxels.shape[-3:], Window.of(voxels, self.recipe, spacing))

    @staticmethod
    @takes_paths
    def open(
        run: "Run | Path | str | Sequence[Run | Path | str]",
        device: str = "auto",
        decision: Decision | Decisions | None = None,
        threads: int | None = None,
    ) -> "Predictor":
        """Return the predictor of a run's best weights, or the ensemble of several runs.

        `decision` replaces the run's own. `threads`: number of CPU threads, by default one for each idle processor.
        Raises `UnetlibError` when a run cannot be used, or its decision has not been made yet.
        """
        checked(threads)
        run, *others = Run.several(run)
        if others:
            return Ensemble([Predictor.open(one, device, decision, threads) for one in (run, *others)])
        require_members(run)
        network, recipe, content = run.load()
        decision = decision or read_decision(run, recipe)
        if decision is None:
            raise UnetlibError(
                f"{run}: threshold and smallest component have not been chosen for these weights yet. "
                f"{how_to_decide(run)}"
            )
        if recipe.members > 1:
            return Ensemble([Predictor.open(one, device, decision, threads) for one in run.members], decision)
        if run.best.suffix == PACKED and content.get("note"):  # of synthetic patients alone; a copy has it, too
            say(f"{run}: {content['note']}")
        fabric = start_engine(device, recipe.precision)
        key = prediction_key(run, recipe, Recipe(**content["recipe"]), decision)
        best: dict[str, Any] = {name: content[name] for name in ("epoch", "val_dice", "note") if name in content}
        channels = _channels(run, recipe, content)
        own = Trained(fabric, fabric.setup_module(network), recipe, decision, key, best, run, threads, channels)
        return Mirrored(own) if recipe.mirror else own


def require_members(run: Run) -> None:
    """Raise `UnetlibError` if a run of several members lacks the weights of one."""
    if len(run.members) > 1 and not run.weights:
        lacking = first_of(
            [one.best.relative_to(run.folder).as_posix() for one in run.members if not one.best.exists()]
        )
        raise UnetlibError(
            f"{run}: some of its {len(run.members)} members are not trained yet, or have lost their weights: it lacks "
            f"{lacking}. Let the training finish, or restore what is lost: unetlib train PREPARED {quoted(run)}"
        )


@dataclass
class Trained(Predictor):
    """A trained network on its device."""

    fabric: Fabric
    network: nn.Module
    recipe: Recipe
    decision: Decision | Decisions
    key: str = ""
    best: dict[str, Any] = field(default_factory=dict)  # what the checkpoint says of its weights
    run: Run | None = None
    threads: int | None = None  # None: one for each idle processor
    channels: tuple[int, int] = 1, 1

    @property
    def epochs(self) -> list[int]:
        """The epoch of its weights."""
        return [self.best.get("epoch", 0)]

    @property
    def note(self) -> str:
        """What is wrong with the checkpoint, and how its weights fall short of the whole training."""
        return " ".join(filter(None, (self.best.get("note"), self.run.caveats(self.best) if self.run else "")))

    @torch.inference_mode()
    def slices(self, slices: Tensor) -> Tensor:
        """Return the sigmoid of the network's logits; raises `UnetlibError` if they or the images are not finite.

        Or if the images are no tensor of the axes and channels that it takes.
        """
        if not isinstance(slices, Tensor):
            raise UnetlibError(f"slices are a {type(slices).__name__}; a torch tensor was expected: torch.from_numpy.")
        if slices.dim() != self.recipe.dims + 2:
            axes, kind = ", ".join("NCSSS"[: self.recipe.dims + 2]), SAMPLE_NAMES[self.recipe.dims]
            raise UnetlibError(f"{tuple(slices.shape)} was given to a network for {kind}s; ({axes}) was expected.")
        if slices.shape[1] != (channels := self.channels[0] * (1 + 2 * self.recipe.neighbours)):
            what = f"a network for {counted(channels, 'input channel')}"
            raise UnetlibError(f"{tuple(slices.shape)} was given to {what}; (N, {channels}, ...) was expected.")
        self.network.eval()
        found = []
        with prediction_threads(self.fabric, self.threads):
            for batch in slices.split(VALIDATION_BATCH[self.recipe.dims]):
                found.append(torch.sigmoid(self.network(self.fabric.to_device(batch.float()))).float().cpu())
        if not torch.isfinite(probabilities := torch.cat(found)).all():
            if not slices.isfinite().all():
                raise UnetlibError("the volume holds NaN or infinite values; finite numbers were expected. Repair it.")
            raise UnetlibError(
                "the network gives NaN: its weights are damaged. Restore the checkpoint, or train again."
            )
        return probabilities


class Mirrored(Predictor):
    """The mean of a predictor's probabilities for a slice and for its mirror image."""

    def __init__(self, inner: Predictor) -> None:
        self.inner, self.members, self.recipe, self.decision = inner, [inner], inner.recipe, inner.decision
        self.key, self.channels = inner.key, inner.channels

    def slices(self, slices: Tensor) -> Tensor:
        """Return the mean of both, after flipping the second one back."""
        return (self.inner.slices(slices) + self.inner.slices(slices.flip(-1)).flip(-1)) / 2


class Ensemble(Predictor):
    """The mean of the probabilities of several predictors, each with input made by its own recipe.

    Its decision is the mean of theirs, unless one is given. Raises `UnetlibError` when their grids, sequences or
    regions differ.
    """

    def __init__(self, members: Sequence[Predictor], decision: Decision | Decisions | None = None) -> None:
        self.members, self.recipe, self.channels = members, members[0].recipe, members[0].channels
        forms = [
            {name: getattr(one.recipe, name) for name in GRID}
            | {"modalities": one.recipe.modalities, "names of regions": one.recipe.regions}
            | dict(zip(("sequences", "regions"), one.channels, strict=True))
            for one in members
        ]
        if differences := "; ".join(filter(None, (changed(forms[0], form) for form in forms))):
            raise UnetlibError(f"the runs cannot be averaged: they differ ({differences}). Name others.")
        self.decision = decision or mean_decision([one.decision for one in members])
        self.key = digest([*(one.key for one in members), *self.decision.as_dict().values()])

    def slices(self, slices: Tensor) -> Tensor:
        """Return the mean of the members' probabilities; raises `UnetlibError` if their input differs."""
        made_by = [name for name in self.recipe.stage(PREPARE) if name not in OF_PATIENTS]  # an image, not who is in
        if any(getattr(one.recipe, name) != getattr(self.recipe, name) for one in self.members for name in made_by):
            raise UnetlibError("the members of this ensemble prepare their slices differently. Give it whole volumes.")
        return torch.stack([one.slices(slices) for one in self.members]).mean(0)

    def all_slices(self, voxels: np.ndarray, spacing: tuple[float, float, float] | None = None) -> Tensor:
        """Return the mean of the members' probabilities on the common grid; raises `UnetlibError` if there is none."""
        found = torch.stack([one.all_slices(voxels, spacing) for one in self.members])
        kinds = {one.recipe.dims: one.recipe for one in self.members}
        if len(kinds) > 1 and len({Window.of(voxels, recipe, spacing) for recipe in kinds.values()}) > 1:
            raise UnetlibError(
                f"the voxels are {spacing} mm wide: their slices have no square pixels, so 2-D and 3-D networks see "
                "different parts of them and cannot be averaged. Give runs of one kind."
            )
        return found.mean(0)


def _channels(run: Run, recipe: Recipe, content: dict[str, Any]) -> tuple[int, int]:
    """Return how many sequences a run's network takes and regions it gives.

    Raises `UnetlibError` unless they are those of the recipe in the checkpoint and in the run. The recipe of a run on
    one's own data set need not name them.
    """
    before, regions = channels_of(content, run.best, recipe)
    sequences, rest = divmod(before, 1 + 2 * recipe.neighbours)
    of_patients = run.exists and bool(run.about()["data"])
    for name, found in (("modalities", sequences), ("regions", regions)):
        named, published = getattr(recipe, name), getattr(Recipe.published, name)
        own = getattr(run.recipe, name) if run.exists else named
        fits = found == len(named.split()) or (named == published and not of_patients)
        if rest or not fits or own != named:
            raise UnetlibError(
                f"{run.best} holds a network with {counted(before, 'input channel')} for {counted(regions, 'region')}, "
                f"trained with {name} {named}, and the recipe of {run} has {name} {own}. Restore {run.best.name} and "
                f"{run.recipe_file.name} from the original run."
            )
    return sequences, regions


def prediction_key(run: Run, recipe: Recipe, trained: Recipe, decision: Decision | Decisions) -> str:
    """Return a hash of everything that a run's masks depend on: best weights, decision, and fields of `predict`.

    These fields only count if they were changed after the training.
    """
    weights = run.weights
    chosen = [*decision.as_dict().values()] if recipe.tune else []
    changes = [recipe.stage(PREDICT)] if recipe.stage(PREDICT) != trained.stage(PREDICT) else []
    return digest([weights, *chosen, *changes]) if chosen or changes else weights
