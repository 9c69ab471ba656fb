"""Start a run, or go on with it: what its latest checkpoint must hold, and what may not have changed since."""

import copy
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from unetlib.data.prepare import Prepared
from unetlib.data.split import PARTS
from unetlib.engine.parallel import share_statistics
from unetlib.engine.threads import Threads
from unetlib.recipe import PREPARE, Recipe, changed
from unetlib.runs.checkpoint import (
    BEST,
    LATEST,
    build_model,
    load_checkpoint,
    load_model,
    load_optimizer,
    load_weights,
    read_recipe,
    read_run,
    require_weights,
    restore,
)
from unetlib.runs.provenance import learned, note_threads, part_by_sign, read_provenance, signs, write_provenance
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by
from unetlib.support.files import read_json, require_empty, sha256, write_csv, write_json
from unetlib.support.jobs import first_process, say
from unetlib.support.version import __version__

SAME = ("width", "depth", "neighbours", "image_size", "normalise", "crop")  # what first weights depend on
HISTORY_COLUMNS = ("epoch", "train_loss", "val_loss", "val_dice")


@dataclass
class Progress:
    """How far a run is. `epoch` and `step` are those to do next, counted from 0."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # over the slices of this epoch so far
    best_dice: float = -1.0
    seconds: float = 0.0  # of training, over all calls
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise `ValueError` for what no training leaves behind."""
        whole, numbers = (self.epoch, self.step), [self.loss_sum, self.best_dice, self.seconds]
        rows = [[row[name] for name in HISTORY_COLUMNS] for row in self.history]
        if any(type(one) is not int or one < 0 for one in whole) or len(rows) != self.epoch:
            raise ValueError("epoch and step")
        if not all(type(one) in (int, float) and math.isfinite(one) for row in [numbers, *rows] for one in row):
            raise ValueError("a figure")
        if not -1 <= self.best_dice <= 1 or self.seconds < 0:
            raise ValueError("best_dice or seconds")


def start_or_resume(
    fabric: Fabric, data: Prepared, run: Path, recipe: Recipe, start_from: Path | None, asked: int | None = None
) -> tuple[nn.Module, nn.Module | None, torch.optim.Optimizer, Progress, str | None, Threads]:
    """Return network, average, optimizer and progress, fresh or resumed, the hash of the first weights, the threads.

    `asked`: the number of threads, where it was given.
    """
    path, first = run / LATEST, first_weights(start_from, run)
    for file in (path, run / BEST):  # without a latest checkpoint a run begins anew
        if path.exists() and first_process():
            restore(file)
    fabric.barrier()
    content = load_checkpoint(path) if path.exists() else None
    if content is None and first_process() and not (run / "recipe.json").exists():
        require_empty(run, "a run folder")
    if content is None and (run / "recipe.json").exists() and read_run(run).get("start_from") not in (None, first):
        raise UnetlibError(
            f"{run} was begun from the weights of another run, and has no checkpoint yet. Name that run again with "
            "--start-from, or choose a new run folder."
        )
    if content is not None:
        _refuse_changes(content, data, run, recipe, first)
        require_weights(recipe, content, path)
        first = content.get("start_from")
    model = build_model(recipe).to(fabric.device)
    if content is None and start_from is not None:
        begin_with(model, start_from, recipe, data)
    average = copy.deepcopy(model) if recipe.average else None
    if fabric.world_size > 1:
        share_statistics(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    done = Progress()
    if content is not None:
        load_weights(model, content, path)
        load_optimizer(optimizer, content, path)
        if average is not None:
            load_weights(average, {"model": content.get("average")}, path)
        done = _progress(content["progress"], path)
        where = f"epoch {done.epoch + 1}, step {done.step}"
        say(f"{run}: resumed at {where}." if done.epoch < recipe.epochs else f"{run}: finished already.")
    kept = content.get("threads") if content is not None else None
    kept = kept if type(kept) is int and kept > 0 else None  # 0.3 keeps none
    if done.epoch < recipe.epochs:
        shape = (recipe.batch_size, 2 * recipe.neighbours + 1, recipe.image_size, recipe.image_size)
        threads = Threads.settle(run, fabric, model, shape, asked, kept, note_threads)
    else:
        threads = Threads(kept)
    if not first_process():
        return model, average, optimizer, done, first, threads
    if done.history:  # a kill may have come between the checkpoint and this file
        write_csv(run / "history.csv", done.history, HISTORY_COLUMNS)
    about = {"recipe": recipe.as_dict(), "prepared": data.identity, "start_from": first, "data": str(data.data)}
    if data.assume:
        about["assume"] = data.assume
    write_json(run / "recipe.json", {"unetlib": _begun_by(run), **about})
    data.split.save(run / "split.json")
    write_provenance(
        run, data, recipe.as_dict(), fabric.device, start_from if content is None else None, threads.number
    )
    return model, average, optimizer, done, first, threads


def first_weights(other: Path | None, run: Path) -> str | None:
    """Return the hash of the best weights of another run, `None` without one; raises `UnetlibError` without weights."""
    if other is None:
        return None
    if (other / BEST).is_file():
        return sha256(other / BEST)
    what = "is a run without best weights yet" if (other / "recipe.json").exists() else "is not a run folder"
    advice = f"leave --start-from out: {run} has begun, and needs it no more"
    raise UnetlibError(
        f"--start-from {other} {what if other.exists() else 'does not exist'} ({BEST} was expected there). "
        + (f"Restore it, or {advice}." if (run / LATEST).exists() else "Name the folder of a finished training.")
    )


def _begun_by(run: Path) -> str:
    """Return the version of the library that began a run: this one where there is no recipe yet, or a damaged one."""
    try:
        return made_by(read_json(run / "recipe.json")) if (run / "recipe.json").exists() else __version__
    except UnetlibError:
        return __version__


def begin_with(model: nn.Module, other: Path, recipe: Recipe, data: Prepared) -> None:
    """Put the best weights of another run into a fresh network.

    Raises `UnetlibError` when that run has another network or other slices, or has seen whom this one tests with.
    """
    _, theirs, content = load_model(other)
    before, now = theirs.as_dict(), recipe.as_dict()
    if differences := changed({name: before[name] for name in SAME}, {name: now[name] for name in SAME}):
        raise UnetlibError(
            f"{other} has another network or other slices ({differences}), so its weights cannot be the first ones "
            "here. Start from a run with the same, or set these flags to its values."
        )
    _refuse_leak(other, data)
    load_weights(model, content, other / BEST)


def _refuse_leak(other: Path, data: Prepared) -> None:
    """Raise `UnetlibError` when another run has learned from a case that this one keeps to validate or to test."""
    if not read_provenance(other):
        raise UnetlibError(
            f"{other} does not say whom it was trained on (it has no provenance.json): validation and test could be "
            "among them. Start from a run that says so."
        )
    rank = {sign: PARTS.index(part) for sign, part in part_by_sign(learned(other).values()).items()}
    leaked = [
        name
        for name, case in data.about["cases"].items()
        if min(rank.get(sign, len(PARTS)) for sign in signs(case, name))
        < PARTS.index(data.split.part_of(case["patient"]))
    ]
    if leaked:
        raise UnetlibError(
            f"{other} was trained or validated on {counted(len(leaked), 'case')} that {data.folder} keeps for "
            f"validation or test ({first_of(leaked, 5)}): the figures would flatter. Start from another run."
        )


def _progress(fields: Any, path: Path) -> Progress:
    try:
        if fields.keys() != asdict(Progress()).keys():
            raise ValueError("other fields")
        return Progress(**fields)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UnetlibError(
            f"{path}: its progress is not that of a training ({brief(error.args[0])}). Restore it from a copy, or "
            "delete it to start over."
        ) from error


def _refuse_changes(content: dict[str, Any], data: Prepared, run: Path, recipe: Recipe, first: str | None) -> None:
    """Raise `UnetlibError` unless a run goes on with the recipe and the slices that it was started with."""
    if missing := {"optimizer", "progress", "prepared"} - content.keys():
        raise UnetlibError(
            f"{run / LATEST} lacks {', '.join(sorted(missing))}: it is not the checkpoint of a training "
            f"(perhaps a copy of {BEST}?). Restore it from a copy, or delete it to start over."
        )
    advice = "Choose a new run folder, or go back to what it was started with."
    if not isinstance(content["prepared"], dict) or not all(isinstance(key, str) for key in content["prepared"]):
        raise UnetlibError(
            f"{run / LATEST} does not say what it was trained on. Restore it, or delete it to start over."
        )
    before = {**Recipe.published.stage(PREPARE), **content["prepared"]}
    if before.get("data") == data.digest("sha256"):  # as version 0.3 tells which data they were
        before["data"] = data.identity["data"]
    if differences := changed(before, data.identity):
        raise UnetlibError(f"{run} was trained on other prepared slices ({differences}). {advice}")
    before, now = read_recipe(content["recipe"], run / LATEST).as_dict(), recipe.as_dict()
    longer = {"epochs": 0} if recipe.schedule == "constant" else {}  # a cosine has to know its end
    if differences := changed({**before, **longer}, {**now, **longer}):
        raise UnetlibError(f"{run} was started with another recipe ({differences}). {advice}")
    if first and content.get("start_from") != first:
        raise UnetlibError(f"{run} was started from other weights. {advice}")
