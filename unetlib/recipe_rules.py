"""What the fields of a recipe cannot be together."""

from typing import Any

# In three dimensions each sample is the cube around a whole head, which has no neighbours and always shows the tumour.
IN_3D = {
    "slices": "all",
    "normalise": "median-volume",
    "crop": True,
    "neighbours": 0,
    "balance": False,
    "phantoms": False,
}


def contradiction(recipe: Any) -> str:
    """Return a sentence about two fields that contradict each other; empty if none do. `recipe`: a `Recipe`."""
    for name in ("neighbours", "balance"):
        if getattr(recipe, name) and recipe.slices != "all":
            return (
                f"{name} is {getattr(recipe, name)}, but only the slices with {recipe.slices} are kept; all were "
                "expected (unetlib prepare --slices all; for the strong recipe --recipe strong)."
            )
    for name, value in IN_3D.items() if recipe.dims == 3 else ():
        if getattr(recipe, name) != value:
            return (
                f"{name} is {getattr(recipe, name)}; {value} was expected for whole volumes (dims 3), as in --recipe "
                "volume."
            )
    if recipe.dims == 3 and recipe.image_size % 32:
        least = max(recipe.image_size // 32, 1) * 32
        return (
            f"image_size is {recipe.image_size}; the sides of a cube (dims 3) must be a multiple of 32, such as "
            f"{least} or {least + 32}."
        )
    if recipe.drop_modalities and len(recipe.modalities.split()) == 1:
        return (
            f"drop_modalities is {recipe.drop_modalities}, but {recipe.modalities} is the only sequence; several were "
            "expected (unetlib prepare --modalities flair t1 t1ce t2)."
        )
    sample, unit = ("slices", "pixels") if recipe.dims == 2 else ("cubes", "voxels")
    if recipe.network == "unet" and recipe.image_size <= 2**recipe.depth:  # batch norm needs more than one pixel
        return (
            f"a depth of {recipe.depth} leaves nothing of {sample} of {recipe.image_size} {unit}; an image_size above "
            f"{2**recipe.depth} or a smaller depth was expected."
        )
    return ""
