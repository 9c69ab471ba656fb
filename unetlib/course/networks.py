"""Chapter 7: networks at equal time, where gates are open, and volumes instead of slices."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from unetlib.course.start import Course, prepare_or_embedded, train_beside
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.dataset import SliceDataset
from unetlib.engine.device import pick_device, precision_of
from unetlib.engine.fabric import FabricEngine
from unetlib.engine.threads import fixed_threads
from unetlib.loop import Loop
from unetlib.networks import build_network
from unetlib.recipe import Recipe
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.files import digest, read_json, write_json

STEPS = 5  # timed, after one that is not


def open_samples(course: Course, recipe: Recipe) -> tuple[Course, Prepared]:
    """Prepare slices or volumes for a recipe; return course and samples as `prepare_or_embedded` does."""
    return prepare_or_embedded(course, lambda one: prepare(one.data, one.prepared_by(recipe, "networks"), recipe))


def rivals(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipes of two networks by name: ours, and that with attention gates.

    Without MONAI a sentence says how to install it, and the second is ours with one level less.
    """
    try:
        build_network(other := recipe.but(network="attention-unet"))
    except UnetlibError as error:
        print(f"{error}\nSo this chapter compares our network with one that has a level less.")
        return {"unet": recipe, "unet, a level less": recipe.but(depth=recipe.depth - 1)}
    return {"unet": recipe, "attention-unet": other}


def learn(course: Course, data: Prepared, recipe: Recipe) -> Run:
    """Train a network on one core for about `course.length.network_seconds`, say so, and return its run.

    The seconds of a step, measured once for all seeds, give the number of whole epochs (at least one). An epoch shows
    `course.length.network_slices` slices, evenly spaced, or an eighth as many volumes. An earlier run is reused.
    """
    recipe = data.fit(recipe, epochs=1)
    most = course.length.network_slices // (8 if recipe.dims == 3 else 1)
    samples = thinned(data.dataset(), max(1, most))
    seconds = _measured(data.folder.parent / "seconds.json", samples, recipe)
    steps = -(-len(samples.indices("train")) // recipe.batch_size)
    recipe = recipe.but(epochs=max(1, round(course.length.network_seconds / (seconds * steps))))
    run, taken = train_beside(data, samples, recipe, threads=1)
    print(
        f"{recipe.network} of depth {recipe.depth}, seed {recipe.seed}: {1000 * seconds:.0f} ms a step, "
        f"{counted(recipe.epochs, 'epoch')} of {counted(steps, 'step')}; {taken:.0f} s of training"
    )
    return run


def against_seeds(plain: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return by how much a network's mean Dice is above that of another, and the most that the seed alone changes.

    `plain`, `other`: the Dice of both, (seeds, patients).
    """
    before, after = plain.mean(1), other.mean(1)
    return float(after.mean() - before.mean()), float(max(np.ptp(before), np.ptp(after)))


def thinned(samples: SliceDataset, most: int) -> SliceDataset:
    """Return the same samples with parts of at most so many positions, evenly spaced."""
    parts = {part: own[:: -(-len(own) // most) or 1] for part, own in samples.parts.items()}
    return replace(samples, parts=parts)


def _measured(path: Path, samples: SliceDataset, recipe: Recipe) -> float:
    """Return the seconds of a step of a recipe, with any seed; measured once and kept in the file at `path`."""
    known = read_json(path) if path.exists() else {}
    key = digest(recipe.but(seed=0).as_dict())[:8]
    if key not in known:
        known[key] = step_seconds(samples, recipe)
        write_json(path, known)
    return float(known[key])


def step_seconds(samples: SliceDataset, recipe: Recipe) -> float:
    """Return the median time of a training step, in seconds of one core or, on another device, of the clock."""
    # the schedule of the learning rate must not end before the last step
    recipe = recipe.but(precision=precision_of(recipe, pick_device("auto")), epochs=1 + STEPS)
    engine = FabricEngine("auto", recipe.precision)
    channels = samples.images.shape[1] * (1 + 2 * samples.neighbours)
    network = build_network(recipe, channels, samples.regions).to(engine.device)
    loop = Loop(engine.fabric.setup_module(network), samples, recipe, engine=engine)
    clock, times = time.process_time if engine.device.type == "cpu" else time.perf_counter, list[float]()
    with fixed_threads(1), torch.random.fork_rng(devices=[]):
        for _ in range(1 + STEPS):
            begin = clock()
            loop.step(loop.order()[: recipe.batch_size])
            times.append(clock() - begin)
    return float(np.median(times[1:]))


@torch.no_grad()
def gates(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the coefficients of each attention gate, (N, 1, h, w) in 0..1, the finest level first.

    `network`: an `attention-unet`, used in evaluation mode; others have none. `images`: (N, C, S, S).
    """
    found = list[Tensor]()
    blocks = [module for module in network.modules() if type(module).__name__ == "AttentionBlock"]
    hooks = [block.psi.register_forward_hook(lambda _, __, out: found.append(out)) for block in blocks]  # type: ignore
    try:
        network.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(found, key=lambda gate: gate.shape[-1], reverse=True)


def separation(values: Tensor, masks: Tensor, head: Tensor) -> float:
    """Return how often a pixel of the tumour has a higher value than another one of the head: the area under the ROC.

    0.5 means that values say nothing of the tumour, 1 that they are highest there, 0 lowest; equal values count half.
    `values`: (N, 1, h, w), enlarged to the size of `masks` and `head`, (N, 1, S, S). NaN where one of both is empty.
    """
    large = F.interpolate(values, size=masks.shape[2:], mode="bilinear", align_corners=False).numpy()
    tumour = masks.numpy() > 0
    other = (head.numpy() > 0) & ~tumour
    inside, outside = int(tumour.sum()), int(other.sum())
    if not inside or not outside:
        return float("nan")
    ranks = rankdata(np.concatenate([large[tumour], large[other]]))
    return float((ranks[:inside].sum() - inside * (inside + 1) / 2) / (inside * outside))
