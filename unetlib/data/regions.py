"""Regions of a tumour: from the labels of a mask file to one boolean mask a region, and back to labels.

`whole` is every label above 0; `core` is what a surgeon removes: necrosis and the enhancing part; `enhancing` takes up
contrast agent (Baid et al. 2021, arXiv:2107.02314). They overlap, so each has a mask of its own. What a label means
depends on the data set; `SCHEMES` holds the three numberings in use. A region of one's own, `name=1+4`, names labels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from unetlib.data.layouts import BY_NAME, KAGGLE
from unetlib.recipe import REGIONS, Recipe
from unetlib.support.errors import UnetlibError, first_of

# The labels of necrosis (with other tissue of the core), oedema and enhancing tumour. In `brats2023`, 4 is the cavity.
SCHEMES = {"brats2021": (1, 2, 4), "brats2023": (1, 2, 3), "decathlon": (2, 1, 3)}
KNOWN = {"brats2021": (1, 2, 4), "brats2023": (1, 2, 3, 4), "decathlon": (1, 2, 3)}  # all that a mask may hold


def region_names(recipe: Recipe) -> list[str]:
    """Return the names of a recipe's regions, in its order."""
    return [word.partition("=")[0] for word in recipe.regions.split()]


def absent_regions(recipe: Recipe, present: Iterable[Iterable[bool]]) -> list[str]:
    """Return the regions that no case has; `present`: for each case, whether it has each region of the recipe."""
    return [name for name, *there in zip(region_names(recipe), *present, strict=True) if not any(there)]


@dataclass(frozen=True)
class Regions:
    """The regions of a recipe, in its order: names, and the labels of each in a scheme (`None`: all above 0)."""

    names: tuple[str, ...]
    labels: tuple[tuple[int, ...] | None, ...]
    scheme: str = ""

    @classmethod
    def of(cls, recipe: Recipe, layout: str = "") -> "Regions":
        """Return the regions of a recipe in files of a layout, or in the scheme of the recipe.

        Raises `UnetlibError` when nothing says what the labels mean.
        """
        words = [word.partition("=")[::2] for word in recipe.regions.split()]
        stored = {label: value for value, label in BY_NAME[layout].labels.items()} if layout else {}
        scheme = _scheme(recipe, layout) if {name for name, own in words if not own} - {"whole"} else ""
        return cls(
            tuple(name for name, _ in words),
            tuple(
                tuple(stored.get(int(one), int(one)) for one in own.split("+")) if own else _labels(name, scheme)
                for name, own in words
            ),
            scheme,
        )

    def masks(self, labels: np.ndarray) -> np.ndarray:
        """Return one boolean mask for each region, (K, X, Y, Z), from the labels of a mask file (X, Y, Z).

        Raises `UnetlibError` for a label that the scheme does not have: it would be tumour outside every region.
        """
        known = KNOWN.get(self.scheme, ())
        if known and (strange := np.setdiff1d(labels[labels > 0], known)).size:
            raise UnetlibError(
                f"its mask holds the label {strange[0]:g}; {self.scheme} has {', '.join(map(str, known))} "
                "only. Say with --labels what the labels are, or map them to these."
            )
        return np.stack([labels > 0 if own is None else np.isin(labels, own) for own in self.labels])

    def label_map(self, masks: np.ndarray) -> np.ndarray | None:
        """Return the labels, uint8 (X, Y, Z), that masks (K, X, Y, Z) mean; `None` unless they are BraTS's regions.

        Oedema is written where the whole tumour is, then the core over it, then the enhancing part over both.
        """
        if len(self.names) == 1 or not set(self.names) <= set(REGIONS):
            return None
        core, oedema, enhancing = SCHEMES[self.scheme]
        found = np.zeros(masks.shape[1:], np.uint8)
        for name, label in zip(REGIONS, (oedema, core, enhancing), strict=True):
            if name in self.names:
                found[masks[self.names.index(name)]] = label
        return found


def _labels(name: str, scheme: str) -> tuple[int, ...] | None:
    if name == "whole":
        return None
    core, _, enhancing = SCHEMES[scheme]
    return (core, enhancing) if name == "core" else (enhancing,)


def _scheme(recipe: Recipe, layout: str) -> str:
    """Return the scheme of a layout, else that of the recipe."""
    scheme = BY_NAME[layout].scheme if layout else ""
    if layout == KAGGLE:
        raise UnetlibError(f"{layout} outlines the whole tumour only. Leave out the regions core and enhancing.")
    if scheme or recipe.labels != "auto":
        return scheme or recipe.labels
    raise UnetlibError(
        f"the names of the files ({layout or 'unknown'}) do not show which labels are core and enhancing tumour. Say "
        "so: --labels brats2021 (1 core, 2 oedema, 4 enhancing), brats2023 (3 enhancing) or decathlon (1 oedema, 2 "
        "core, 3 enhancing), or name labels: --regions whole solid=1+4."
    )


def with_scheme(recipe: Recipe, layouts: Iterable[str]) -> Recipe:
    """Return a recipe with the scheme of its patients' labels, if its regions need one.

    Raises `UnetlibError` as `Regions.of` does, and where data sets, or files and `recipe.labels`, are of two schemes.
    """
    if recipe.regions == "whole":
        return recipe
    needed = {Regions.of(recipe, layout).scheme for layout in set(layouts)} - {""}
    shown = {BY_NAME[layout].scheme: layout for layout in sorted(layouts)}
    if recipe.labels != "auto" and (other := next((one for one in shown if one not in ("", recipe.labels)), "")):
        raise UnetlibError(
            f"--labels {recipe.labels} was given, but the names of the files ({shown[other]}) show the labels of "
            f"{other}. Leave --labels out, or give the files other names."
        )
    if len(schemes := sorted({*shown, *needed} - {""})) > 1:
        raise UnetlibError(
            f"the patients have labels of several schemes ({first_of(schemes)}), in which one number means different "
            "tissues. Take one data set at a time."
        )
    return recipe.but(labels=schemes[0]) if needed else recipe
