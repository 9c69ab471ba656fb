"""What a viewer draws of its masks: the tumour as a whole, or several regions, each with a name and a colour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from unetlib.show.plots.colours import FALSE_NEGATIVE, FALSE_POSITIVE, LABELS, OUTLINE, REGIONS, TRUE_POSITIVE
from unetlib.support.errors import UnetlibError, first_of

MOST = 8  # regions: their bits share one byte
Given = Mapping[str, int | Sequence[int] | None] | Sequence[str] | None


class Layer(NamedTuple):
    """What has one colour: the voxels of which the class, and `mask`, is `value`; `of`: truth, prediction or errors.

    The class of a voxel has one bit for each region of the reference, then one for each region of the prediction.
    """

    name: str
    colour: str
    mask: int
    value: int
    of: str


@dataclass(frozen=True)
class Layers:
    """The layers of several regions: the labels of each by its name. Without any, the tumour is one region, unnamed.

    A region without labels is one of a stack of masks (K, X, Y, Z). Regions may overlap.
    """

    labels: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, given: Given) -> "Layers":
        """Return those of the regions in a mapping (name: label, labels, or `None` for all) or a sequence of names.

        Raises `UnetlibError` when there are none or more than 8, a name comes twice, or a label is not 1 to 255.
        """
        if given is None:
            return cls({})
        names = [str(name) for name in given] if isinstance(given, Mapping | list | tuple) else []
        if not 0 < len(set(names)) == len(names) <= MOST:
            raise UnetlibError(
                f"regions is {given!r}; 1 to {MOST} different names were expected, or a dict of each name and its "
                'labels, such as {"core": (1, 4)}.'
            )
        if not isinstance(given, Mapping):
            return cls(dict.fromkeys(names, ()))
        return cls({name: _labels(name, own) for name, own in zip(names, given.values(), strict=True)})

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bits(self) -> int:
        """How many bits of a voxel's class each mask has."""
        return max(1, len(self))

    @property
    def overlap(self) -> bool:
        """Whether a voxel may lie in two regions."""
        every = [label for own in self.labels.values() for label in own]
        return not all(self.labels.values()) or len(set(every)) < len(every)

    @property
    def colours(self) -> list[str]:
        """The colour of each region: that of its highest label where no voxel lies in two."""
        highest = [max(own, default=0) for own in self.labels.values()]
        if not self.overlap and all(label in LABELS for label in highest):
            return [LABELS[label] for label in highest]
        return list(REGIONS[: len(self)])

    @property
    def by_choice(self) -> dict[str, list[Layer]]:
        """What each choice of `show` draws; where layers overlap, the last one is seen."""
        if not self.labels:
            truth = [Layer("reference", OUTLINE, 1, 1, "truth")]
            prediction = [Layer("prediction", "#CC79A7", 2, 2, "prediction")]
            errors = {"errors": _errors(1, 2)}
        else:
            named, bits = [*enumerate(zip(self.labels, self.colours, strict=True))], self.bits
            truth = [Layer(*one, 1 << k, 1 << k, "truth") for k, one in named]
            prediction = [Layer(*one, 1 << k + bits, 1 << k + bits, "prediction") for k, one in named]
            errors = {f"errors: {name}": _errors(1 << k, 1 << k + bits) for k, (name, _) in named}
        return {"none": [], "truth": truth, "prediction": prediction, "both": truth + prediction, **errors}

    def choices(self, masks: Sequence[str]) -> list[str]:
        """Return the choices of `show` for the masks that there are, "truth" and "prediction"."""
        return [show for show in self.by_choice if show in ("none", *masks) or len(masks) == 2]

    def parts(self, layers: list[Layer], show: str, style: str) -> tuple[list[Layer], list[Layer]]:
        """Return the layers that are filled and those that are outlined.

        Of two masks of named regions only the prediction is filled: the reference is seen as lines above it.
        """
        lines = [one for one in layers if style == "outline" or (self.labels and show == "both" and one.of == "truth")]
        return [one for one in layers if one not in lines], lines

    def colour(self, layers: list[Layer], number: int) -> list[str]:
        """Return the colours that a class has in layers: all of them are mixed, but of named regions the last one."""
        own = [one.colour for one in layers if number & one.mask == one.value]
        return own[-1:] if self.labels else own

    def from_labels(self, mask: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
        """Return uint8 labels (X, Y, Z) as one bit a region; a note says which labels lie in none."""
        if not all(self.labels.values()):
            raise UnetlibError(
                f"{name} is one mask, and regions does not say which labels its regions have. Give them, such as "
                '{"core": (1, 4)}, or a mask of each region: (regions, X, Y, Z).'
            )
        table = np.zeros(256, np.uint8)
        for k, own in enumerate(self.labels.values()):
            table[list(own)] |= np.uint8(1 << k)
        if left := [str(label) for label in np.unique(mask) if label and not table[label]]:
            notes.append(f"Not shown of {name}: label {first_of(left, 5)}, which no region has")
        return table[mask]

    def from_stack(self, masks: Sequence[np.ndarray], name: str) -> np.ndarray:
        """Return masks of each region (X, Y, Z), 0 outside, as one bit a region."""
        if len(masks) != len(self):
            raise UnetlibError(
                f"{name} has masks of {len(masks)} regions; {len(self)} are named ({first_of([*self.labels], MOST)}). "
                "Name every region once."
            )
        return np.packbits([mask > 0 for mask in masks], axis=0, bitorder="little")[0]


def _labels(name: str, given: Any) -> tuple[int, ...]:
    if given is None:
        return tuple(range(1, 256))
    own = [given] if isinstance(given, int | np.integer) else list(given) if isinstance(given, list | tuple) else []
    if not own or not all(isinstance(label, int | np.integer) and 0 < label < 256 for label in own):
        raise UnetlibError(f"the region {name} has the labels {given!r}; whole numbers from 1 to 255 were expected.")
    return tuple(map(int, own))


def _errors(true: int, found: int) -> list[Layer]:
    """Return the layers of what is right and wrong in a region; `true`, `found`: its bits."""
    both = true | found
    return [
        Layer("found (TP)", TRUE_POSITIVE, both, both, "errors"),
        Layer("missed (FN)", FALSE_NEGATIVE, both, true, "errors"),
        Layer("false alarm (FP)", FALSE_POSITIVE, both, found, "errors"),
    ]
