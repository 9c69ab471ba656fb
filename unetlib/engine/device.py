"""Device, precision and processes, handled by Lightning Fabric."""

import atexit
import gc
import logging
import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment

from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


def pick_device(name: str) -> torch.device:
    """Return the device of that name: `auto` (CUDA, else MPS, else CPU), `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises `UnetlibError` when there is no such device on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [kind for kind, there in available.items() if there]
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in here:
        raise UnetlibError(f"there is no device {name!r} here; auto or one of {', '.join(here)} was expected.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnetlibError(f"there is no device {name!r} here; there are {torch.cuda.device_count()} CUDA devices.")
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`: `auto` gives bf16 where the hardware supports it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return "bf16" if fast else "fp32"


def precision_of(recipe: Recipe, device: torch.device) -> str:
    """Return the precision that a recipe is trained in, as `resolve_precision` does.

    On CPUs in bf16, PyTorch 2.13 gives wrong gradients for the weights of 3-D convolutions on maps of 2 x 2 x 2 voxels:
    up to 1e36 times the right ones. Maps of 3 x 3 x 3 and more, and all maps in 2-D, are right (measured on an AMD EPYC
    with AVX-512 BF16). For such maps `auto` gives fp32, and `bf16` raises `UnetlibError`.
    """
    found = resolve_precision(recipe.precision, device)
    tiny = recipe.dims == 3 and recipe.image_size <= 2 * 2**recipe.depth
    if found == "fp32" or device.type != "cpu" or not tiny:
        return found
    if recipe.precision == "auto":
        return "fp32"
    raise UnetlibError(
        f"volumes of {recipe.image_size} voxels a side leave maps of 2 x 2 x 2 at a depth of {recipe.depth}, for which "
        "PyTorch computes wrong gradients in bf16 on a CPU. Choose --precision fp32."
    )


def start_engine(device: str, precision: str, processes: int = 1, unused: bool = False) -> Fabric:
    """Return the engine on that device, in `fp32`, `bf16` or the precision that `auto` resolves to.

    In bf16 the weights stay in fp32; convolutions compute in bfloat16 (automatic mixed precision). `processes`: how
    many torchrun has started; they connect to each other here. `unused`: a step may leave out some of the weights.
    """
    chosen = pick_device(device)
    devices = [chosen.index or 0] if chosen.type == "cuda" else 1
    numbers = "bf16-mixed" if resolve_precision(precision, chosen) == "bf16" else "32-true"
    if processes == 1:  # also within a job of Slurm or MPI, whose variables Fabric would follow
        alone = LightningEnvironment()
        return Fabric(accelerator=chosen.type, devices=devices, precision=numbers, plugins=alone)  # type: ignore[arg-type]
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=chosen.type,
        strategy="ddp_find_unused_parameters_true" if unused else "ddp",
        devices=here,
        num_nodes=processes // here,
        precision=numbers,  # type: ignore[arg-type]
    )
    fabric.launch()
    atexit.register(leave_group)
    return fabric


def leave_group() -> None:
    """End the process group and its threads while Python still runs; later they would abort the process."""
    gc.collect()  # a network that is not deleted yet keeps the group alive
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
