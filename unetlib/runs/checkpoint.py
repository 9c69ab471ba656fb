"""Checkpoints: tensors and plain Python values, written atomically and loaded without executing anything.

The predecessor of each checkpoint is kept beside it and replaces it when the disk has damaged the newer one.
"""

import copy
import io
import json
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from unetlib.networks import build_network
from unetlib.other_networks import OTHERS
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError, brief, quoted
from unetlib.support.files import atomic, keep_as
from unetlib.support.messages import say
from unetlib.support.paths import takes_paths
from unetlib.support.records import refuse_packed

RESTORE = "Restore it from a copy, or delete it to start over."
PLAIN = (bool, int, float, str, type(None), torch.Tensor, nn.Parameter)  # what needs no trial


def previous(path: Path) -> Path:
    """Return the path of a checkpoint's predecessor, `previous_<name>`."""
    return path.with_name(f"previous_{path.name}")


def save_checkpoint(path: Path, content: dict[str, Any], keep: bool = True) -> None:
    """Write a dictionary of tensors and plain Python values atomically; with `keep`, keep the predecessor.

    NumPy's numbers become Python's. Raises `UnetlibError` for any other value that `load_checkpoint` would refuse.
    """
    buffer = io.BytesIO()  # torch.save reports a full disk as a RuntimeError; writing bytes does not
    torch.save(_plain(content, path), buffer)
    if path.exists() and path.read_bytes() == buffer.getbuffer():
        return  # a resumed run may write the same again: keep the older predecessor
    with atomic(path, keep=previous(path) if keep else None) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _plain(value: Any, path: Path, *field: Any) -> Any:
    """Return what is stored for the value of a field; raises `UnetlibError` if it could not be read again."""
    if type(value) in (list, tuple):
        return type(value)(_plain(one, path, *field, place) for place, one in enumerate(value))
    if type(value) in (dict, OrderedDict):
        items = [(_plain(key, path, *field, key), _plain(one, path, *field, key)) for key, one in value.items()]
        plain = copy.copy(value)  # with what PyTorch notes beside weights
        plain.clear()
        plain.update(items)
        return plain
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) not in PLAIN:
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception as error:  # of any type: it may be any object
            raise UnetlibError(
                f"{path} cannot hold {brief(value)} in its field {', '.join(map(str, field))}; numbers, texts, "
                "tensors, lists and dictionaries were expected. Change the hook or the network that gives it (an array "
                "has .tolist()), then give the same command again. What was saved before is kept."
            ) from error
    return value


@takes_paths
def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint, with tensors on the CPU; if it is damaged, return its predecessor with a `note`.

    Raises `UnetlibError` when the file is missing, or both are damaged or not checkpoints of this library.
    """
    if not path.exists():
        raise UnetlibError(f"{path} does not exist. Train first: unetlib train PREPARED {quoted(path.parent)}")
    try:
        return _load(path)
    except UnetlibError as error:
        try:
            content = _load(previous(path))
        except UnetlibError:
            raise UnetlibError(f"{error} {RESTORE}") from None
        note = f"{error} {previous(path).name}, the checkpoint before it, is used."
    say(note)
    return {**content, "note": note}


def restore(path: Path) -> None:
    """Replace a damaged or missing checkpoint by its predecessor; a damaged file is kept as `damaged_<name>`."""
    try:
        _load(path)
    except UnetlibError as error:
        try:
            _load(previous(path))
        except UnetlibError:
            return  # `load_checkpoint` will report it
        damaged, problem = path.with_name(f"damaged_{path.name}"), f"{path} is missing."
        if path.exists():
            keep_as(path, damaged)
            problem = f"{error} It is kept as {damaged.name}."
        os.replace(previous(path), path)
        say(f"{problem} {previous(path).name}, the checkpoint before it, is used.")


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return _load_packed(path)
        refuse_packed(path)
        with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums
            if (member := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad checksum of {member}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of exception on damaged files
        reason = re.split(r"\. |\n|\x1b", str(error))[0][:100] or type(error).__name__  # then come colours and advice
        raise UnetlibError(f"{path} is damaged or not a checkpoint ({reason}).") from error
    if not isinstance(content, dict) or not {"model", "recipe"} <= content.keys():
        raise UnetlibError(f"{path} is not a checkpoint of unetlib: weights with their recipe were expected.")
    return content


def _load_packed(path: Path) -> dict[str, Any]:
    """Return weights that are stored in half precision, in single precision, with what the header says of them."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["checkpoint"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    return {**about, "model": {name: one.float() if one.is_floating_point() else one for name, one in weights.items()}}


def load_weights(model: nn.Module, content: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint into `model`; raises `UnetlibError` if they are of another architecture."""
    weights, expected = content["model"], {name: weight.shape for name, weight in model.state_dict().items()}
    if not isinstance(weights, dict) or not all(map(is_plain, weights.values())):
        reason = "not all of them are plain tensors"
    elif wrong := [name for name in {**expected, **weights} if _shape(weights, name) != _shape(expected, name)]:
        reason = f"{brief(wrong[0])}: {_shape(weights, wrong[0])} instead of {_shape(expected, wrong[0])}"
    else:
        reason = ""
    if reason:
        raise UnetlibError(
            f"{path} holds the weights of another architecture ({reason}). Use the checkpoint with the library "
            "version that made it, or train again."
        )
    if not any(weight.is_meta for weight in model.parameters()):
        model.load_state_dict(weights)


def _shape(weights: dict[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(getattr(weights[name], "shape", weights[name])) if name in weights else None


def load_optimizer(optimizer: torch.optim.Optimizer, content: dict[str, Any], path: Path) -> None:
    """Load the moments of a checkpoint into `optimizer`; raises `UnetlibError` if they are of other parameters."""
    parameters, state = optimizer.param_groups[0]["params"], content["optimizer"]
    try:
        moments = state["state"]
        if not moments.keys() <= set(range(len(parameters))):
            raise TypeError
        for number, found in moments.items():  # a parameter without a gradient has none
            shape = parameters[number].shape
            shapes = {"step": torch.Size(()), "exp_avg": shape, "exp_avg_sq": shape}
            if found.keys() != shapes.keys() or not all(
                is_plain(found[key]) and found[key].shape == shape for key, shape in shapes.items()
            ):
                raise TypeError
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UnetlibError(f"{path} holds the optimizer's state of another network. {RESTORE}") from error


def is_plain(value: object) -> bool:
    """Tell whether a value is a dense tensor as large as its storage; others could take far more memory."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def require_weights(recipe: Recipe, channels: tuple[int, int], content: dict[str, Any], path: Path) -> None:
    """Raise `UnetlibError` unless a checkpoint holds the weights of its recipe, before memory is allocated for them."""
    if recipe.network not in ("unet", *OTHERS):  # a factory of your own need not work without memory
        return
    with torch.device("meta"):
        try:
            network = build_network(recipe, *channels)
        except UnetlibError as error:
            raise UnetlibError(f"{path}: {error}") from error
        load_weights(network, content, path)
