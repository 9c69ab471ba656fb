"""Training that can be stopped at any moment and resumes as if it had not been stopped."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from unetlib.checks import get_batch, name_of, samples
from unetlib.data.prepared import Prepared
from unetlib.dataset import Trainable
from unetlib.engine.device import resolve_precision
from unetlib.engine.fabric import FabricEngine
from unetlib.engine.parallel import share_statistics
from unetlib.engine.steps import AveragedWeights, Bar, Stop, stop_on_signal
from unetlib.engine.threads import Threads
from unetlib.hooks import Hook
from unetlib.loop import Loop, State
from unetlib.networks import build_network
from unetlib.recipe import Recipe, mixed_presets
from unetlib.runs.provenance import note_threads, write_provenance
from unetlib.runs.resume import (
    begin_with,
    contents_of,
    first_weights,
    latest_checkpoint,
    recorded,
    refuse_changes,
    restore_checkpoints,
    resume,
    write_history,
)
from unetlib.runs.run import Run
from unetlib.runs.saving import Checkpoints, History, Rows
from unetlib.support.errors import UnetlibError, counted, made_by
from unetlib.support.files import home, locked, takes_paths, write_json
from unetlib.support.jobs import progress
from unetlib.support.messages import first_process, say


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
    another run, whose best weights are the first ones here (pre-training). `threads`: CPU threads; by default the run
    keeps its number, or measures which is fastest. If the recipe has `tune`, call `tune` afterwards.

    Raises `UnetlibError` when the run was started from other weights, on other slices or with another recipe (`epochs`
    may grow where the schedule is constant, and the fields of the stage `predict` may change), when another process
    trains it, or when data, network or loss cannot be used; `KeyboardInterrupt` when Ctrl-C or SIGTERM stopped it.
    """
    for name, steps in (("checkpoint_every", checkpoint_every), ("max_steps", max_steps)):
        if steps is not None and steps < 1:
            raise UnetlibError(f"{name} is {steps}; a number of steps above 0 was expected.")
    data = Prepared.open(home(data)) if isinstance(data, str | Path) else data
    run, other = Run.of(run), Run.of(start_from) if start_from else None
    with locked(run.folder) if first_process() else nullcontext(), torch.random.fork_rng(devices=[]):
        loop = open_loop(data, run, recipe, device, other, threads, checkpoint_every)
        return _run(loop, run, checkpoint_every, max_steps, History(run, on_epoch), hooks)


def _run(
    loop: Loop, run: Run, checkpoint_every: int, max_steps: int | None, history: History, hooks: Sequence[Hook]
) -> State:
    state, recipe, steps = loop.state, loop.recipe, loop.steps
    if state.epoch >= recipe.epochs:
        history.on_start(loop)
        return state
    assert isinstance(loop.engine, FabricEngine)
    say(
        f"{run}: {loop.shown} training slices, {steps} steps an epoch, {counted(recipe.epochs, 'epoch')}, "
        f"{loop.engine.device}, {recipe.precision}. A checkpoint every {min(checkpoint_every, steps)} steps: a kill "
        "loses no more than those."
    )
    done = state.epoch * steps + state.step
    if not done and (hint := mixed_presets(recipe)):
        say(f"{run}: {hint}")
    with stop_on_signal() as asked, progress(recipe.epochs * steps, "train", "step", done) as bar:
        stop = Stop(asked, loop.engine.fabric, max_steps)
        # Own hooks come before the stop and the checkpoint of a step, which so heed what they set.
        always, checkpoints = loop.hooks[:-1], loop.hooks[-1]
        loop.hooks = [*always, Bar(bar), *hooks, stop, checkpoints, history]
        loop.run()
    if loop.stopping and state.epoch < recipe.epochs:
        text = f"Stopped at epoch {state.epoch + 1}, step {state.step} of {steps}, with a checkpoint. "
        text += "The same command goes on there."
        if stop.by_signal:
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
    engine = FabricEngine(device, recipe.precision)
    own = data.about["recipe"] if isinstance(data, Prepared) else {}
    recipe = recipe.but(**own, precision=resolve_precision(recipe.precision, engine.device))
    dataset: Trainable = data.dataset(recipe.neighbours) if isinstance(data, Prepared) else data
    shape, regions = _shape(dataset, recipe)
    channels, contents = (shape[0], regions), contents_of(data)
    if recipe.tune and not own:
        raise UnetlibError(
            "recipe: tune needs the patients of a prepared folder; for your own data set, set it to False."
        )
    if first_process():
        restore_checkpoints(run)
    engine.fabric.barrier()
    content = latest_checkpoint(run)
    first = first_weights(run, start_from, content)
    if content is not None:
        refuse_changes(content, run, data, contents, recipe, channels, first)
        first = content.get("start_from")
    network = build_network(recipe, *channels).to(engine.device)
    if content is None and start_from is not None:
        begin_with(network, start_from, recipe, data)
    average = copy.deepcopy(network) if recipe.average else None
    if engine.fabric.world_size > 1:
        share_statistics(network)
    loop = Loop(engine.fabric.setup_module(network), dataset, recipe, engine=engine)
    if content is not None:
        resume(run, content, network, average, loop)
    if average is not None:
        loop.validated = engine.fabric.setup_module(average)
    watched = _threads(run, loop, network, (recipe.batch_size, *shape), threads, content)
    about = {"recipe": recipe.as_dict(), "prepared": contents, "start_from": first, "channels": list(channels)}
    if first_process():
        _describe(run, data, recipe, engine, about, start_from if content is None else None, watched.number)
        if loop.state.history:  # after a kill between the checkpoint and this file
            write_history(run, loop.state.history)
    averaging = [AveragedWeights()] if recipe.average else []
    loop.hooks = [watched, *averaging, Checkpoints(run, about, watched, checkpoint_every)]
    return loop


def _shape(dataset: Trainable, recipe: Recipe) -> tuple[tuple[int, int, int], int]:
    """Return the shape (C, S, S) of an image, and the regions; raises `UnetlibError` unless they fit the recipe."""
    images, masks = get_batch(dataset, samples(dataset, "train")[:1])
    channels, *size = images.shape[1:]
    near, side = getattr(dataset, "neighbours", recipe.neighbours), recipe.image_size
    if size != [side, side] or near != recipe.neighbours or channels % (1 + 2 * near):
        raise UnetlibError(
            f"{name_of(dataset)}: its images are {channels} x {size[0]} x {size[1]} with {near} neighbours; the recipe "
            f"has image_size {side} and neighbours {recipe.neighbours}. Change one of them."
        )
    return (channels, side, side), masks.shape[1]


def _threads(
    run: Run,
    loop: Loop,
    network: torch.nn.Module,
    shape: tuple[int, ...],
    asked: int | None,
    content: dict[str, Any] | None,
) -> Threads:
    """Return the number of threads for training: requested, stored in the run, or measured."""
    kept = content.get("threads") if content else None
    kept = kept if type(kept) is int and kept > 0 else None  # version 0.3 stores none
    if loop.state.epoch >= loop.recipe.epochs:
        return Threads(kept)
    fabric = loop.engine.fabric  # type: ignore[attr-defined]
    return Threads.settle(str(run), fabric, network, shape, asked, kept, lambda number: note_threads(run, number))


def _describe(
    run: Run,
    data: Prepared | Trainable,
    recipe: Recipe,
    engine: FabricEngine,
    about: dict[str, Any],
    start_from: Run | None,
    threads: int | None,
) -> None:
    """Write the recipe, the split and the provenance of a run."""
    prepared = data if isinstance(data, Prepared) else None
    origin = {name: about[name] for name in ("recipe", "prepared", "start_from")}
    origin["data"] = str(prepared.data) if prepared else ""
    if prepared and prepared.assume:
        origin["assume"] = prepared.assume
    write_json(run.recipe_file, {"unetlib": made_by(recorded(run)), **origin})
    if prepared:
        prepared.split.save(run.split_file)
    write_provenance(run, prepared, recipe, engine.device, start_from, threads)
