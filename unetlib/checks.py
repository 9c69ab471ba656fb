"""What the training loop refuses: data sets, batches, logits and losses that it cannot use, each in one sentence."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unetlib.support.errors import UnetlibError, brief
from unetlib.support.messages import warn


def name_of(dataset: Any) -> str:
    """Return what messages call a data set."""
    return str(getattr(dataset, "name", type(dataset).__name__))


def samples(dataset: Any, part: str) -> np.ndarray:
    """Return the positions (M,) of the samples of a part; raises `UnetlibError` if there are none."""
    if not all(callable(getattr(dataset, method, None)) for method in ("indices", "batch")):
        raise UnetlibError(
            f"{name_of(dataset)} is no data set to train on; `Prepared.open(folder).dataset()`, or your own class with "
            "the methods of `Trainable`, was expected."
        )
    found = np.empty(0, int)
    with suppress(LookupError):  # it has no such part
        found = np.asarray(dataset.indices(part))
    if not found.size:
        raise UnetlibError(
            f"{name_of(dataset)}: the {part} part of the split has no slice (a patient without tumour?). Prepare again "
            "with another seed or more patients."
        )
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0:
        raise UnetlibError(f"{name_of(dataset)}: indices({part!r}) gave {brief(found)}; positions (M,) were expected.")
    return found


def require_tumour(dataset: Any) -> None:
    """Raise `UnetlibError` if no validation sample shows tumour, and warn of a region that none shows."""
    if unseen := unseen_region(dataset):
        warn(unseen)


def unseen_region(dataset: Any) -> str:
    """Return a warning if no validation sample shows one of several regions, else an empty text.

    Raises `UnetlibError` if none shows any tumour: the less a network marks, the better is its Dice.
    """
    shown: Any = False
    for one in samples(dataset, "val")[:, None]:
        shown = shown | get_batch(dataset, one)[1].flatten(2).any(2)[0].cpu()
        if shown.all():
            return ""
    name = name_of(dataset)
    advice = "Prepare again with another seed or more patients, or give your own data set samples with tumour."
    if not shown.any():
        raise UnetlibError(
            f"{name}: the val part of the split has no slice with tumour, so a network that marks nothing would be the "
            f"best. {advice}"
        )
    region = f"region {int(shown.int().argmin()) + 1} of {len(shown)}"
    return f"{name}: no slice of the val part shows {region}; an epoch that marks little of it seems better. {advice}"


def get_batch(dataset: Any, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the batch at these positions; raises `UnetlibError` unless it is as `Trainable` describes."""
    try:
        images, masks = batch = dataset.batch(indices)
        found = " and ".join(f"{type(one).__name__} {tuple(one.shape)} of {one.dtype}" for one in batch)
        fits = all(isinstance(one, Tensor) and one.dtype == torch.float32 and one.dim() in (4, 5) for one in batch)
        fits = fits and len(images) == len(masks) == len(indices) and images.shape[2:] == masks.shape[2:]
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # such as a position out of range
        fits, found = False, f"{type(error).__name__}: {error}"
    if not fits:
        raise UnetlibError(
            f"{name_of(dataset)}: the batch of the samples {brief(indices.tolist())} is {found}; images (N, C, H, W) "
            "and masks (N, K, H, W), or with D before H, were expected, both float32 tensors."
        )
    pixels, marks = images.numpy(force=True), masks.numpy(force=True)  # seven times as fast as in PyTorch
    usable = np.isfinite(pixels), (marks == 0) | (marks == 1)
    if not (usable[0].all() and usable[1].all()):
        sample = np.logical_and(*(one.all(tuple(range(1, one.ndim))) for one in usable)).argmin()
        raise UnetlibError(
            f"{name_of(dataset)}: sample {indices[sample]} has images that are not finite, or masks of other values "
            "than 0 and 1."
        )
    return images, masks


def require_shape(logits: object, shape: tuple[int, ...]) -> None:
    """Raise `UnetlibError` unless the output of a network is one tensor of numbers of this shape."""
    if not (isinstance(logits, Tensor) and logits.is_floating_point() and logits.shape == shape):
        found = (
            f"{tuple(logits.shape)} of {logits.dtype}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        )
        raise UnetlibError(f"the network gave {found}; one tensor of logits, {tuple(shape)}, was expected.")


def finite(loss: float, learning_rate: float, gradient: float = 0.0) -> float:
    """Return a loss; raises `UnetlibError` unless it and the norm of its gradient are finite."""
    lower = f"in a new folder, with a learning rate below {learning_rate}. Earlier checkpoints are kept."
    if not math.isfinite(loss):
        raise UnetlibError(f"the loss is {loss}: training has diverged. Start anew, {lower}")
    if not math.isfinite(gradient):
        raise UnetlibError(
            f"the loss is {loss:g}, but the norm of its gradient is {gradient}: a function in the loss or the network "
            "has no slope at some value, as the root has none at 0, or training has diverged. Change a function of "
            f"your own; otherwise start anew, {lower}"
        )
    return loss
