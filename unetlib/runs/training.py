"""Training that can be stopped at any moment and resumes as if it had not been stopped."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from unetlib.data.prepared import Prepared
from unetlib.dataset import Trainable
from unetlib.engine.device import resolve_precision
from unetlib.engine.fabric import FabricEngine
from unetlib.engine.hooks import AveragedWeights, Bar, FiniteLoss, Stop, stop_on_signal
from unetlib.engine.threads import Threads
from unetlib.hooks import Hook
from unetlib.loop import Loop, State
from unetlib.networks import build_network
from unetlib.recipe import Recipe, mixed_presets
from unetlib.runs.hooks import Checkpoints, Farewell, History, Rows
from unetlib.runs.provenance import note_threads, write_provenance
from unetlib.runs.resume import (
    begin_with,
    begun_by,
    contents_of,
    first_weights,
    latest_checkpoint,
    refuse_changes,
    restore_checkpoints,
    resume,
    write_history,
)
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError, brief, counted
from unetlib.support.files import home, locked, write_json
from unetlib.support.jobs import progress
from unetlib.support.messages import first_process, say


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
    """Train `recipe` on prepared slices, in the run folder `run`, which is resumed if it exists.

    `data` is a prepared folder, or your own data set with the two methods of `Trainable`. Writes `recipe.json`,
    `latest_checkpoint.pth` every `checkpoint_every` steps and after every epoch, `best_model.pth` (highest pooled Dice
    on the validation slices) and `history.csv`. Ctrl-C stops after the current step with a checkpoint; so do
    `max_steps` steps in this call, which then returns the state. The recipe's fields of the stage `prepare` are taken
    from the prepared folder. `on_epoch` is called with the rows of `history.csv` after every epoch, and at the start if
    there are any; `hooks` are your own hooks. `start_from` is another run, whose best weights are the first ones here
    (pre-training). `threads` is the number of CPU threads; by default the run keeps its number, or takes one for
    each idle processor. If the recipe has `tune`, call `tune` afterwards.

    Raises `UnetlibError` when the run was started with another recipe (its `epochs` may change where the
    schedule is constant, and the fields of the stage `predict` always), from other weights or on other slices, when
    another process is training it, when there is nothing to train on, or when the loss is no longer finite;
    `KeyboardInterrupt` when Ctrl-C or SIGTERM stopped it.
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
        stop = Stop(asked, loop.engine, max_steps)
        # Own hooks come before the stop and the checkpoint of a step, which so heed what they set.
        always, checkpoints = loop.hooks[:-1], loop.hooks[-1]
        loop.hooks = [*always, Bar(bar), *hooks, stop, checkpoints, Farewell(stop), history]
        return loop.run()


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
    engine = FabricEngine.start(device, recipe.precision)
    own = data.about["recipe"] if isinstance(data, Prepared) else {}
    recipe = recipe.but(**own, precision=resolve_precision(recipe.precision, engine.device))
    dataset: Trainable = data.dataset(recipe.neighbours) if isinstance(data, Prepared) else data
    channels = _require_samples(data, dataset)
    if first_process():
        restore_checkpoints(run)
    engine.fabric.barrier()
    content = latest_checkpoint(run)
    first = first_weights(run, start_from, content)
    if content is not None:
        refuse_changes(content, run, data, recipe, channels, first)
        first = content.get("start_from")
    network = build_network(recipe, *channels).to(engine.device)
    if content is None and start_from is not None:
        begin_with(network, start_from, recipe, data)
    average = copy.deepcopy(network) if recipe.average else None
    engine.share_statistics(network)
    loop = Loop(engine.setup(network), dataset, recipe, engine=engine)
    if content is not None:
        loop.state = resume(run, content, network, average, loop.optimizer)
    averaging = []
    if average is not None:
        loop.validated, averaging = engine.setup(average), [AveragedWeights(network, average)]
    _require_steps(loop, data, run)
    watched = _threads(run, engine, threads, content, loop)
    about = {"recipe": recipe.as_dict(), "prepared": contents_of(data), "start_from": first, "channels": list(channels)}
    if first_process():
        _describe(run, data, recipe, engine, about, start_from if content is None else None, watched.number)
        if loop.state.history:  # after a kill between the checkpoint and this file
            write_history(run, loop.state.history)
    loop.hooks = [
        watched,
        FiniteLoss(),
        *averaging,
        Checkpoints(run, about, watched, network, average or network, checkpoint_every),
    ]
    return loop


def _require_samples(data: Prepared | Trainable, dataset: Trainable) -> tuple[int, int]:
    """Return the input and output channels of a data set; raises `UnetlibError` if it is empty."""
    where = data.folder if isinstance(data, Prepared) else type(data).__name__
    for part in ("train", "val"):
        if not len(dataset.indices(part)):
            raise UnetlibError(
                f"{where}: the {part} part of the split has no slice (a patient without tumour?). "
                "Prepare again with another seed, more patients, or --slices all."
            )
    images, masks = dataset.batch(dataset.indices("train")[:1])
    shapes = [tuple(getattr(one, "shape", ())) for one in (images, masks)]
    fits = min(map(len, shapes)) >= 4 and shapes[0][2:] == shapes[1][2:]
    if not fits or not ((masks == 0) | (masks == 1)).all():
        raise UnetlibError(
            f"{where}: a batch has images of shape {shapes[0]} and masks of shape {shapes[1]}; tensors (N, C, H, W) "
            "and (N, K, H, W) of one height and width were expected, with masks of 0 and 1."
        )
    return images.shape[1], masks.shape[1]


def _require_steps(loop: Loop, data: Prepared | Trainable, run: Run) -> None:
    """Raise `UnetlibError` if an epoch has no samples, or a checkpoint is beyond its end."""
    if loop.state.step > loop.steps:
        raise UnetlibError(
            f"{run.latest} is at step {brief(loop.state.step)}, which no epoch has. Delete it to start over."
        )
    if not loop.shown:
        where = data.folder if isinstance(data, Prepared) else type(data).__name__
        raise UnetlibError(
            f"{where}: the train part of the split has no slice with tumour, which balance needs. Prepare "
            "again with another seed or more patients, or train without balance."
        )


def _threads(run: Run, engine: FabricEngine, asked: int | None, content: dict[str, Any] | None, loop: Loop) -> Threads:
    """Return the number of threads for training: requested, stored in the run, or one for each idle processor."""
    kept = content.get("threads") if content else None
    kept = kept if type(kept) is int and kept > 0 else None  # version 0.3 stores none
    if content:
        where = f"epoch {loop.state.epoch + 1}, step {loop.state.step}"
        finished = loop.state.epoch >= loop.recipe.epochs
        say(f"{run}: finished already." if finished else f"{run}: resumed at {where}.")
        if finished:
            return Threads(kept)
    return Threads.settle(str(run), engine.fabric, asked, kept, lambda number: note_threads(run, number))


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
    write_json(run.recipe_file, {"unetlib": begun_by(run), **origin})
    if prepared:
        prepared.split.save(run.split_file)
    write_provenance(run, prepared, recipe, engine.device, start_from, threads)
