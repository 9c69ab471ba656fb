"""The memory that a training step needs, known before it starts: volumes need a hundred times that of slices."""

import copy
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from unetlib.networks import build_network
from unetlib.other_networks import OTHERS
from unetlib.recipe import SAMPLE_NAMES, Recipe
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.messages import process_count

SPARE = 0.3e9  # bytes: PyTorch's code, and what convolutions take besides
SYSTEM = Path("/proc/meminfo")  # of Linux
GROUP = Path("/sys/fs/cgroup")  # of a container


def step_bytes(network: nn.Module, shape: tuple[int, ...], copies: int = 4) -> int | None:
    """Return the bytes that a training step on a batch of that shape needs; `None` if the network cannot tell.

    They are the `copies` of the weights (with gradients and Adam's two moments: 4), all that is kept for the backward
    pass, and three of the largest of these tensors, for the gradients that flow back. The network is run without
    memory, on PyTorch's meta device, in single precision. With `SPARE`, the estimate was 0.9 to 1.3 times the peak that
    was measured in fp32 (widths 8 and 16, sides of 64 and 96, batches of 1 to 4), and 1.5 times that in bf16.
    """
    tensors = [*network.parameters(), *network.buffers()]
    twin = copy.deepcopy(network, {id(one): _on_meta(one) for one in tensors}).train()
    weights, kept = {_storage(one) for one in (*twin.parameters(), *twin.buffers())}, list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # alive, so that no other storage takes its place
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            twin(torch.empty(shape, device="meta"))
    except Exception:  # a network of users may do what needs numbers
        return None
    sizes = {_storage(one): one.untyped_storage().nbytes() for one in kept if _storage(one) not in weights}
    held = copies * sum(one.nbytes for one in network.parameters())
    return held + sum(sizes.values()) + 3 * max(sizes.values(), default=0)


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device, for the CPU within the limits of a container; `None` where nothing tells."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for reuse
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    found = list[int]()
    with suppress(OSError, ValueError, LookupError):
        lines = dict(line.split(":") for line in SYSTEM.read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    with suppress(OSError, ValueError):  # without a limit, it is "max"
        most, now = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        with suppress(OSError, ValueError):  # files that were read take memory, but make room for anything else
            stats = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
            now -= int(stats.get("inactive_file", 0))
        found.append(most - now)
    with suppress(AttributeError, OSError, ValueError):  # macOS says only how much there is in all
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def require_memory(
    name: str, recipe: Recipe, shape: tuple[int, ...], regions: int, number: int, device: torch.device
) -> str:
    """Return how much memory a step of a run needs, in words, or ""; raises `UnetlibError` when the device has less.

    `shape`: of one image, (C, S, S, S). `number`: of training samples, if they are fewer than a batch. The network is
    made on PyTorch's meta device, since its weights alone may be too large.
    """
    rows = -(-min(recipe.batch_size, number) // process_count())
    try:
        with torch.device("meta"):
            network = build_network(recipe, shape[0], regions)
    except UnetlibError:
        raise
    except Exception:  # a network of users may be made from numbers
        return ""
    needed, there = step_bytes(network, (rows, *shape), 5 if recipe.average else 4), available_bytes(device)
    if needed is None:
        return ""
    volumes = f"{counted(rows, SAMPLE_NAMES[recipe.dims])} ({' x '.join(map(str, shape))})"
    about = f"a step on {volumes} needs about {gigabytes(needed + SPARE)}"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1  # that share this memory
    about += " of memory" + (f" in each of {processes} processes" if processes > 1 else "")
    if there is not None and processes * (needed + SPARE) > there:
        batch, least = min(recipe.batch_size, number), OTHERS[recipe.network].unit if recipe.network in OTHERS else 1
        smaller = {
            f"a smaller --batch-size (now {batch}){' in fewer processes' if processes > 1 else ''}": batch > 1,
            f"a smaller --width (now {recipe.width})": recipe.width > least,
            f"smaller volumes (unetlib prepare --image-size, now {recipe.image_size})": recipe.image_size > 32,
            "a machine with more memory": True,
        }
        advice = " or ".join(what for what, possible in smaller.items() if possible)
        raise UnetlibError(f"{name}: {about}, and {device} has {gigabytes(there)}. Choose {advice}.")
    return f"{name}: {about}" + (f"; {device} has {gigabytes(there)}." if there else ".")


def gigabytes(number: float) -> str:
    """Return a number of bytes in words."""
    return f"{number / 1e9:.1f} GB"


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
