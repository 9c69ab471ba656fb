"""Training that can be stopped at any moment and resumes as if it had not been stopped."""

import copy
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unetlib.checks import get_batch, name_of, samples, unseen_region
from unetlib.data.prepared import Prepared
from unetlib.dataset import Trainable
from unetlib.engine.device import pick_device, precision_of
from unetlib.engine.fabric import FabricEngine
from unetlib.engine.memory import require_memory
from unetlib.engine.parallel import any_of, share_statistics
from unetlib.engine.steps import Bar, Stop, stop_on_signal
from unetlib.engine.threads import Threads
from unetlib.hooks import AveragedWeights, Hook
from unetlib.loop import Loop, State
from unetlib.networks import build_network
from unetlib.other_networks import ALL_USED, how_made
from unetlib.presets import mixed_presets
from unetlib.recipe import SAMPLE_NAMES, Recipe
from unetlib.runs.checkpoint import load_checkpoint, restore
from unetlib.runs.first_weights import begin_with, chosen_start, first_weights, refuse_leak
from unetlib.runs.provenance import note_threads, write_provenance
from unetlib.runs.resume import (
    contents_of,
    describe_members,
    recorded,
    refuse_changes,
    refuse_lost_checkpoint,
    refuse_lost_weights,
    require_folder,
    resume,
    write_history,
    write_recipe,
)
from unetlib.runs.run import Run
from unetlib.runs.saving import Checkpoints, History, Rows
from unetlib.support.errors import UnetlibError, brief, counted
from unetlib.support.files import locked
from unetlib.support.messages import first_process, say
from unetlib.support.paths import home, takes_paths


@takes_paths
def train(
    data: Prepared | Trainable | Path | str,
    run: Run | Path | str,
    recipe: Recipe = Recipe.published,
    device: str = "auto",
    checkpoint_every: int = 100,
    max_steps: int | None = None,
    on_epoch: Callable[[Rows], None] | None = None,
    start_from: Run | Path | str | None = None,
    threads: int | None = None,
    hooks: Sequence[Hook] = (),
) -> State:
    """Train `recipe` on prepared slices, in the run folder `run`, which is resumed if it exists; return the state.

    `data` is a prepared folder, whose fields of the stage `prepare` replace those of the recipe, or your own data set
    with the two methods of `Trainable`. Writes `recipe.json`, `latest_checkpoint.pth` every `checkpoint_every` steps
    and after every epoch, `best_model.pth` (highest pooled Dice on the validation slices) and `history.csv`. Ctrl-C
    stops after the current step with a checkpoint, as does the end of `max_steps` steps. `on_epoch` is called with the
    rows of `history.csv` after every epoch, and at the start if there are any; `hooks` are your own. `start_from` is
    another run, whose best weights are the first ones here (pre-training), or "phantoms", the weights that come with
    the library. `threads`: CPU threads; by default the run keeps its number, or takes one for each idle processor. If
    the recipe has `tune`, call `tune` afterwards.

    Raises `UnetlibError` when the run was started from other weights, on other slices or with another recipe (`epochs`
    may grow where the schedule is constant, and the fields of the stage `predict` may change), when another process
    trains it, or when data, network or loss cannot be used; `KeyboardInterrupt` when Ctrl-C or SIGTERM stopped it.
    """
    for name, steps in (("checkpoint_every", checkpoint_every), ("max_steps", max_steps)):
        if steps is not None and steps < 1:
            raise UnetlibError(f"{name} is {steps}; a number of steps above 0 was expected.")
    if wrong := [one for one in hooks if not isinstance(one, Hook)]:
        raise UnetlibError(f"train: hooks holds {brief(wrong[0])}; objects of subclasses of Hook were expected.")
    data = Prepared.open(home(data)) if isinstance(data, str | Path) else data
    run, other = Run.of(run), Run.to_read(start_from) if start_from else None
    options = _Options(device, checkpoint_every, Stop(max_steps), on_epoch, other, threads, tuple(hooks))
    with locked(run.folder) if first_process() else nullcontext(), torch.random.fork_rng(devices=[]):
        _refuse_other_kind(run, recipe)
        if recipe.members > 1:
            return _train_members(data, run, recipe, options)
        with closing(Bar()) as bar:
            return _take(_open(data, run, recipe, options), run, options, bar)


@dataclass(frozen=True)
class _Options:
    """Arguments of `train` that change no result, and the run whose weights are the first; `stop` counts the steps."""

    device: str
    checkpoint_every: int
    stop: Stop
    on_epoch: Callable[[Rows], None] | None
    start_from: Run | None
    threads: int | None
    hooks: tuple[Hook, ...]


def _refuse_other_kind(run: Run, recipe: Recipe) -> None:
    """Raise `UnetlibError` if a run has begun with another number of members."""
    before = recipe.members
    if run.member(0).folder.exists():
        before = recorded(run).get("recipe", {}).get("members") or max(recipe.members, 2)
    elif run.latest.exists():
        before = 1
    if before != recipe.members:
        networks = "one network" if before == 1 else f"{before} members"
        raise UnetlibError(
            f"{run} was started with {networks}, now members is {recipe.members}. Choose a new run folder, or use what "
            "the run was started with."
        )


def _train_members(data: Prepared | Trainable, run: Run, recipe: Recipe, options: _Options) -> State:
    """Train the members of a run one after another, each in its own folder; return the state of all together."""
    if not isinstance(data, Prepared):
        raise UnetlibError(f"{recipe.members} members divide patients among them; a prepared folder was expected.")
    require_folder(run)
    recipe, states = data.fit(recipe), list[State]()
    parts = [data.of_member(place) for place in range(recipe.members)]
    _look_ahead(parts, run, recipe, options.start_from)
    with closing(Bar(recipe.members)) as bar:
        for place, part in enumerate(parts):
            own, single = run.member(place), recipe.but(members=1, tune=False, seed=(recipe.seed + place) % 2**32)
            with locked(own.folder, run.folder) if first_process() else nullcontext():
                loop = _open(part, own, single, options)
                if first_process() and not place:  # only now: the first member has refused what may not change
                    kept = recipe.but(precision=loop.recipe.precision)
                    write_recipe(run, data, kept, data.contents, own.about()["start_from"])
                states.append(_take(loop, own, options, bar, place))
            if states[-1].epoch < recipe.epochs:
                return states[-1]
    if first_process():
        describe_members(run)
    dices, seconds = [state.best_dice for state in states], sum(state.seconds for state in states)
    return replace(states[0], best_dice=sum(dices) / len(dices), seconds=seconds)


def _look_ahead(parts: list[Prepared], run: Run, recipe: Recipe, other: Run | None) -> None:
    """Raise `UnetlibError` for what would stop a later member: slices that it lacks, weights that it may not have."""
    begun, start = run.member(0).latest.exists(), chosen_start(recipe, other)
    for place, part in enumerate(parts[1:], 1):
        own = run.member(place)
        if own.latest.exists():
            continue
        refuse_lost_checkpoint(own)
        slices = part.dataset(recipe.neighbours)
        samples(slices, "train")
        unseen_region(slices)  # its warning comes when the member is trained
        if begun and first_weights(own, start, None) != run.member(0).about().get("start_from"):
            raise UnetlibError(
                f"{run}: member 1 was started from other weights than member {place + 1} would be. Name those weights "
                "with --start-from, or choose a new run folder."
            )
        if start is not None:
            refuse_leak(start, part)


def _open(data: Prepared | Trainable, run: Run, recipe: Recipe, options: _Options) -> Loop:
    return open_loop(data, run, recipe, options.device, options.start_from, options.threads, options.checkpoint_every)


def _take(loop: Loop, run: Run, options: _Options, bar: Bar, place: int = 0) -> State:
    """Take the steps of one network; `place` is its number among several members, which share `bar` and `stop`."""
    state, recipe, steps, stop = loop.state, loop.recipe, loop.steps, options.stop
    history = History(run, options.on_epoch)
    if state.epoch >= recipe.epochs or stop.taken == stop.max_steps:
        history.on_start(loop)
        return state
    assert isinstance(loop.engine, FabricEngine)
    every = min(options.checkpoint_every, steps)
    kill = "step: a kill loses no more than that." if every == 1 else f"{every} steps: a kill loses no more than those."
    say(
        f"{run}: {counted(loop.shown, f'training {SAMPLE_NAMES[recipe.dims]}')}, {counted(steps, 'step')} an epoch, "
        f"{counted(recipe.epochs, 'epoch')}, "
        f"{loop.engine.device}, {recipe.precision}. A checkpoint every {kill}"
    )
    done = state.epoch * steps + state.step
    if not (done or place) and (hint := mixed_presets(recipe)):
        say(f"{run}: {hint}")
    with stop_on_signal() as stop.asked:
        # Own hooks come before the stop and the checkpoint of a step, which so heed what they set.
        *always, checkpoints = loop.hooks
        bar.begin(place, done, recipe.epochs * steps)
        loop.hooks = [*always, bar, *options.hooks, stop, checkpoints, history]
        loop.run()
    # A signal may also have come in the last validation or after it: then no step has heeded it.
    by_signal, finished = any_of(loop.engine.fabric, stop.asked()), state.epoch >= recipe.epochs
    if by_signal or (loop.stopping and not finished):
        where = f"at epoch {state.epoch + 1}, step {state.step} of {steps}"
        where = f"after the last epoch of {run}" if finished else where
        saved = "with a checkpoint" if run.latest.exists() else "before the first checkpoint"
        text = f"Stopped {where}, {saved}. The same command goes on there."
        if by_signal:
            raise KeyboardInterrupt(text)
        say(text)
    return state


def open_loop(
    data: Prepared | Trainable,
    run: Run,
    recipe: Recipe,
    device: str = "cpu",
    start_from: Run | None = None,
    threads: int | None = None,
    checkpoint_every: int = 100,
) -> Loop:
    """Start a run, or resume it from its latest checkpoint, with the hooks that it always has; see `train`."""
    recipe = data.fit(recipe) if isinstance(data, Prepared) else recipe
    recipe = recipe.but(precision=precision_of(recipe, pick_device(device)))
    engine = FabricEngine(device, recipe.precision, unused=recipe.network not in ALL_USED)
    dataset: Trainable = data.dataset(recipe.neighbours) if isinstance(data, Prepared) else data
    shape, regions = _shape(dataset, recipe)
    channels, contents = (shape[0], regions), contents_of(data)
    if recipe.tune and not isinstance(data, Prepared):
        raise UnetlibError(
            "recipe: tune needs the patients of a prepared folder; for your own data set, set it to False."
        )
    if first_process() and run.latest.exists():  # without it, the run starts over
        restore(run.latest)
        restore(run.best)
    engine.fabric.barrier()
    require_folder(run)
    refuse_lost_checkpoint(run)
    content = load_checkpoint(run.latest) if run.latest.exists() else None
    if content is None:
        start_from = chosen_start(recipe, start_from)
    first = first_weights(run, start_from, content)
    if content is not None:
        refuse_changes(content, run, data, contents, recipe, channels, first)
        refuse_lost_weights(run, content["progress"])
        first = content.get("start_from")  # it no longer needs that run
    if recipe.dims == 3 and (content is None or content["progress"].get("epoch") != recipe.epochs):
        number = len(samples(dataset, "train"))
        if needed := require_memory(str(run), recipe, shape, regions, number, engine.device):
            say(needed)
    network = build_network(recipe, *channels).to(engine.device)
    if start_from is not None and content is None:
        begin_with(network, start_from, recipe, data)
    average = copy.deepcopy(network) if recipe.average else None
    if engine.fabric.world_size > 1:
        share_statistics(network)
    loop = Loop(engine.fabric.setup_module(network), dataset, recipe, engine=engine)
    if content is not None:
        resume(run, content, network, average, loop)
    if average is not None:
        loop.validated = engine.fabric.setup_module(average)
    watched = _threads(run, loop, threads, content)
    about = {"recipe": recipe.as_dict(), "prepared": contents, "start_from": first, "channels": list(channels)}
    if first_process():
        write_recipe(run, data, recipe, contents, first)
        write_provenance(run, data, recipe, engine.device, start_from, watched.number, how_made(network))
        if loop.state.history:  # after a kill between the checkpoint and this file
            write_history(run, loop.state.history)
    averaging = [AveragedWeights()] if recipe.average else []
    loop.hooks = [watched, *averaging, Checkpoints(run, about, watched, checkpoint_every)]
    return loop


def _shape(dataset: Trainable, recipe: Recipe) -> tuple[tuple[int, ...], int]:
    """Return the shape of an image, (C, S, S) or (C, S, S, S), and the number of regions.

    Raises `UnetlibError` unless they fit the recipe.
    """
    images, masks = get_batch(dataset, samples(dataset, "train")[:1])
    channels, *size = images.shape[1:]
    near, side = getattr(dataset, "neighbours", recipe.neighbours), recipe.image_size
    if size != [side] * recipe.dims or near != recipe.neighbours or channels % (1 + 2 * near):
        raise UnetlibError(
            f"{name_of(dataset)}: its images are {' x '.join(map(str, [channels, *size]))} with {near} neighbours; the "
            f"recipe has image_size {side} and neighbours {recipe.neighbours} (dims {recipe.dims}). Change one of them."
        )
    return (channels, *size), masks.shape[1]


def _threads(run: Run, loop: Loop, asked: int | None, content: dict[str, Any] | None) -> Threads:
    """Return the number of threads for training: requested, stored in the run, or one for each idle processor."""
    kept = content.get("threads") if content else None
    kept = kept if type(kept) is int and kept > 0 else None  # version 0.3 stores none
    if loop.state.epoch >= loop.recipe.epochs:
        return Threads(kept)
    fabric = loop.engine.fabric  # type: ignore[attr-defined]
    return Threads.settle(str(run), fabric, asked, kept, lambda number: note_threads(run, number))
