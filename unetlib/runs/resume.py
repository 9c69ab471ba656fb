"""Start or resume a run: what its latest checkpoint must hold, and what must not have changed since."""

from contextlib import suppress
from typing import Any

from torch import nn

from unetlib.checks import get_batch, samples
from unetlib.data.prepared import Prepared
from unetlib.dataset import Trainable
from unetlib.loop import Loop, State
from unetlib.recipe import PREDICT, PREPARE, SAMPLE_NAMES, Recipe
from unetlib.runs.checkpoint import RESTORE, load_checkpoint, load_optimizer, load_weights, require_weights
from unetlib.runs.run import Run, read_recipe, require_own
from unetlib.support.errors import UnetlibError, brief, counted, made_by
from unetlib.support.fields import changed
from unetlib.support.files import digest, read_csv, require_empty, write_csv, write_json
from unetlib.support.messages import say
from unetlib.support.records import COUNT, LIST, NUMBER, RECORD, Kind, require
from unetlib.support.version import __version__

HISTORY_COLUMNS = ("epoch", "train_loss", "val_loss", "val_dice")


def _is_history(rows: Any) -> bool:
    return LIST.fits(rows) and all(
        RECORD.fits(row) and all(NUMBER.fits(row.get(name)) for name in HISTORY_COLUMNS) for row in rows
    )


# What a run never changes.
FIXED = Recipe.published.as_dict().keys() - Recipe.published.stage(PREDICT).keys() - {"epochs"}
ADVICE = "Choose a new run folder, or use what the run was started with."
PROGRESS = {  # what a checkpoint must hold of a `State`
    "epoch": COUNT,
    "step": COUNT,
    "loss_sum": NUMBER,
    "best_dice": Kind(lambda value: NUMBER.fits(value) and -1 <= value <= 1, "a number from -1 to 1"),
    "seconds": Kind(lambda value: NUMBER.fits(value) and value >= 0, "a number of at least 0"),
    "history": Kind(_is_history, f"a list of rows of {', '.join(HISTORY_COLUMNS)}"),
}


def write_history(run: Run, history: list[dict[str, float]]) -> None:
    """Write `history.csv`; what hooks have added to the rows stays in the checkpoint alone."""
    write_csv(run.history_file, ({name: row[name] for name in HISTORY_COLUMNS} for row in history), HISTORY_COLUMNS)


def write_recipe(
    run: Run, data: Prepared | Trainable, recipe: Recipe, prepared: dict[str, str], start_from: str | None
) -> None:
    """Write the recipe and the split of a run, and what it is trained on."""
    about = {
        "unetlib": made_by(recorded(run)),
        "recipe": recipe.as_dict(),
        "prepared": prepared,
        "start_from": start_from,
    }
    about["data"] = str(data.data) if isinstance(data, Prepared) else ""
    if isinstance(data, Prepared) and data.assume:
        about["assume"] = data.assume
    write_json(run.recipe_file, about)  # first: it makes the folder that of a run
    if isinstance(data, Prepared):
        data.split.save(run.split_file)


def describe_members(run: Run) -> None:
    """Write the provenance of a run of several members, which is that of the first, and their mean history."""
    write_json(run.provenance_file, {**run.members[0].provenance, "recipe": run.about()["recipe"]})
    rows = zip(*(read_csv(one.history_file, numbers=HISTORY_COLUMNS) for one in run.members), strict=True)
    means = [{name: sum(float(row[name]) for row in same) / len(same) for name in HISTORY_COLUMNS} for same in rows]
    write_history(run, [{**row, "epoch": int(row["epoch"])} for row in means])


def contents_of(data: Prepared | Trainable) -> dict[str, str]:
    """Return what a run is tied to: the contents of prepared slices, or a hash of some samples of another data set."""
    if isinstance(data, Prepared):
        return data.contents
    positions = [samples(data, part) for part in ("train", "val")]
    arrays = [array for some in positions for array in get_batch(data, some[:4])]
    sums = (array.double().sum((*range(1, array.dim()),)).tolist() for array in arrays)
    return {"data": digest([[some.tolist() for some in positions], *sums])}


def recorded(run: Run) -> dict[str, Any]:
    """Return the content of `recipe.json`; that of a new run if it is missing or damaged."""
    with suppress(UnetlibError):
        return run.about()
    return {"unetlib": __version__}


def resume(run: Run, content: dict[str, Any], network: nn.Module, average: nn.Module | None, loop: Loop) -> None:
    """Load a checkpoint into network, average and loop, and say so; raises `UnetlibError` if it is beyond its end."""
    load_weights(network, content, run.latest)
    load_optimizer(loop.optimizer, content, run.latest)
    if average is not None:
        load_weights(average, {"model": content.get("average")}, run.latest)
    require(content["progress"], f"{run.latest}, progress", RESTORE, **PROGRESS)
    state = loop.state = State(**{name: content["progress"][name] for name in PROGRESS})
    if len(state.history) != state.epoch:
        raise UnetlibError(f"{run.latest}: {len(state.history)} rows of history after {state.epoch} epochs. {RESTORE}")
    if state.step > loop.steps:
        raise UnetlibError(f"{run.latest} is at step {brief(state.step)}, which no epoch has. Delete it to start over.")
    if state.epoch > loop.recipe.epochs:
        raise UnetlibError(
            f"{run} has been trained for {counted(state.epoch, 'epoch')}; {loop.recipe.epochs} were asked for. Ask for "
            "as many at least, or choose a new run folder."
        )
    now = loop.recipe.as_dict()
    news = changed({**now, **recorded(run).get("recipe", {})}, now)
    finished = state.epoch == loop.recipe.epochs
    where = "finished already" if finished else f"resumed at epoch {state.epoch + 1}, step {state.step}"
    say(f"{run}: {where}." + (f" Changed: {news}." if news else ""))


def require_folder(run: Run) -> None:
    """Raise `UnetlibError` unless a run has begun in its folder, or that is new or empty."""
    if not (run.exists or run.latest.exists() or run.member(0).folder.exists()):
        require_empty(run.folder, "a run folder")


def refuse_lost_checkpoint(run: Run) -> None:
    """Raise `UnetlibError` if a run without a latest checkpoint has weights, which a training would replace.

    Those of a first epoch without history are no loss: a kill came before the checkpoint, and it is trained again.
    """
    if run.latest.exists() or not run.best.exists():
        return
    if run.history_file.exists() or load_checkpoint(run.best).get("epoch") != 1:
        raise UnetlibError(
            f"{run} has weights but no latest checkpoint ({run.latest.name}), so its training cannot go on. Restore "
            f"that file, or move {run.best.name} away to start over."
        )


def refuse_lost_weights(run: Run, progress: dict[str, Any]) -> None:
    """Raise `UnetlibError` if a run has finished an epoch, and its best weights are gone or cannot be read."""
    if not progress.get("epoch"):
        return
    try:
        load_checkpoint(run.best)
    except UnetlibError as error:
        what = "cannot be read" if run.best.exists() else "is missing"
        left = " and ".join(path.name for path in (run.best, run.latest) if path.exists())
        raise UnetlibError(
            f"{run.best}, the best weights so far, {what}. Restore it from a copy. To start over, delete {left} in "
            f"{run.folder}, then give the same command again."
        ) from error


def refuse_other_recipe(run: Run, theirs: dict[str, Any], recipe: Recipe) -> None:
    """Raise `UnetlibError` if a run was started with fields that the recipe does not have and that may not change."""
    fixed = FIXED if recipe.schedule == "constant" else FIXED | {"epochs"}  # on which a cosine schedule depends
    if differences := changed(*({name: one[name] for name in fixed} for one in (theirs, recipe.as_dict()))):
        raise UnetlibError(f"{run} was started with another recipe ({differences}). {ADVICE}")


def refuse_changes(
    content: dict[str, Any],
    run: Run,
    data: Prepared | Trainable,
    now: dict[str, str],
    recipe: Recipe,
    channels: tuple[int, int],
    first: str | None,
) -> None:
    """Raise `UnetlibError` if a run would resume with another recipe, other slices or other first weights.

    `now`: the contents of `data`. The fields of the stage `predict` may change.
    """
    hint = f"It is not a training checkpoint (perhaps a copy of {run.best.name}?). {RESTORE}"
    require(content, run.latest, hint, optimizer=RECORD, progress=RECORD, prepared=RECORD)
    if "recipe" in (about := recorded(run)):  # else it is made again
        require_own(about, content, run.latest, run.recipe_file, FIXED)
    before = content["prepared"]
    if isinstance(data, Prepared):
        before = {**Recipe.published.stage(PREPARE), **before}
        if before.get("data") == data.digest("sha256"):  # the hash that version 0.3 stored
            before["data"] = now["data"]
    if differences := changed(before, now):
        raise UnetlibError(
            f"{run} was trained on other prepared {SAMPLE_NAMES[recipe.dims]}s ({differences}). {ADVICE}"
        )
    refuse_other_recipe(run, read_recipe(content["recipe"], run.latest).as_dict(), recipe)
    if first and content.get("start_from") != first:
        raise UnetlibError(f"{run} was started from other weights. {ADVICE}")
    require_weights(recipe, channels, content, run.latest)
