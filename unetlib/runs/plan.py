"""What `train` would refuse, found before the data are prepared for it."""

from pathlib import Path

import torch

from unetlib.data.regions import region_names
from unetlib.engine.device import pick_device, precision_of
from unetlib.engine.memory import require_memory
from unetlib.engine.threads import checked
from unetlib.losses import get_loss
from unetlib.networks import build_network
from unetlib.recipe import TRAIN, Recipe
from unetlib.runs.first_weights import require_start
from unetlib.runs.resume import refuse_lost_checkpoint, refuse_other_recipe, require_folder
from unetlib.runs.run import Run


def require_plan(
    run: Run, recipe: Recipe, device: str, start_from: Run | Path | str | None, threads: int | None
) -> None:
    """Raise `UnetlibError` for what `train` would refuse whatever the data hold.

    Such as another recipe than that of the run, or a network, first weights, memory, device or number of threads that
    will not do. The network is made on PyTorch's meta device, since its weights alone may be too large.
    """
    require_folder(run)
    for one in run.members:
        refuse_lost_checkpoint(one)
    get_loss(recipe.loss, recipe.deep_supervision)
    checked(threads)
    where = pick_device(device)
    if run.exists:
        known = run.recipe
        theirs = {**recipe.as_dict(), **known.stage(TRAIN), "dims": known.dims}
        if recipe.precision == "auto":
            theirs["precision"] = "auto"
        refuse_other_recipe(run, theirs, recipe)
    precision_of(recipe, where)
    channels, regions = len(recipe.modalities.split()) * (1 + 2 * recipe.neighbours), len(region_names(recipe))
    with torch.device("meta"):
        build_network(recipe, channels, regions)
    require_start(run, recipe, start_from)
    if recipe.dims == 3 and not run.latest.exists():
        shape = (channels, *3 * [recipe.image_size])
        require_memory(str(run), recipe, shape, regions, recipe.batch_size, where)
