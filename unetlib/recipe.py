"""Every choice that changes a result, in one frozen dataclass with the published values as defaults."""

import operator
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, get_type_hints

from unetlib.support.errors import UnetlibError, brief

PREPARE, TRAIN, PREDICT = STAGES = "prepare", "train", "predict"
LIMITS = {"least": operator.ge, "above": operator.gt, "below": operator.lt, "most": operator.le}
WORDS = {"least": "at least", "above": "above", "below": "below", "most": "at most"}


MODALITIES = ("flair", "t1", "t1ce", "t2")
REGIONS = ("whole", "core", "enhancing")
# One of BraTS's, or one's own under another name, as name=label+label; label 0 is no tumour.
REGION = rf"(?:{'|'.join(REGIONS)})|(?!(?:{'|'.join(REGIONS)})=)[a-z][a-z0-9_-]*=[1-9]\d*(?:\+[1-9]\d*)*"


def _choice(
    default: Any, stage: str, text: str, choices: tuple[str, ...] | None = None, words: str = "", **limits: float
) -> Any:
    """Declare a field: its published value, its stage, what it means, and its `choices`, limits or `words`."""
    about = {"stage": stage, "help": text, "choices": choices, "words": words, "limits": limits}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Recipe:
    """The choices of a recipe; the defaults are those of the published one.

    The fields of the stage `prepare` set the content of the prepared slices, those of `train` the network and its
    training, and those of `predict` how probabilities become masks; these may be changed on a finished run. The upper
    limits only catch typing errors. Raises `UnetlibError` for a value out of range.
    """

    published: ClassVar["Recipe"]
    strong: ClassVar["Recipe"]

    modalities: str = _choice(
        "flair", PREPARE, "sequences to see: of flair, t1, t1ce and t2", words="|".join(MODALITIES)
    )
    regions: str = _choice(
        "whole", PREPARE, "regions to find: of whole, core and enhancing, or of your own, as solid=1+4", words=REGION
    )
    labels: str = _choice(
        "auto",
        PREPARE,
        "what the labels of core and enhancing are, where the names of the files do not show it",
        ("auto", "brats2021", "brats2023", "decathlon"),
    )
    missing: str = _choice(
        "leave-out", PREPARE, "leave out a case without one of the sequences, or see 0 there", ("leave-out", "zero")
    )
    image_size: int = _choice(96, PREPARE, "side of the square slices in pixels", above=0, most=1024)
    slices: str = _choice("tumour", PREPARE, "which axial slices to keep", ("tumour", "brain", "all"))
    normalise: str = _choice(
        "minmax-slice",
        PREPARE,
        "to 0..1, by the minimum and maximum of each slice or each volume, or by the median of the head",
        ("minmax-slice", "minmax-volume", "median-volume"),
    )
    crop: bool = _choice(False, PREPARE, "use the square around the head, not the whole slice")
    train_fraction: float = _choice(
        0.70, PREPARE, "fraction of patients to train on; the rest is halved into val and test", above=0, below=1
    )
    split_seed: int = _choice(0, PREPARE, "seed of the patient-level split", least=0, below=2**32)

    neighbours: int = _choice(0, TRAIN, "slices above and below each slice to add as channels", least=0, most=8)
    network: str = _choice("unet", TRAIN, "name of the network: unet, or one that you registered")
    width: int = _choice(
        32, TRAIN, "channels of the first level; each level down doubles them (64 in the paper)", above=0, most=512
    )
    depth: int = _choice(4, TRAIN, "how many times the image is halved", above=0, most=8)
    phantoms: bool = _choice(
        False, TRAIN, "begin with the weights that come with the library, trained on synthetic patients alone"
    )
    balance: bool = _choice(False, TRAIN, "use as many slices without tumour as with it, drawn anew in each epoch")
    loss: str = _choice("bce", TRAIN, "loss, or a sum of losses: bce, dice, focal, dice+bce, ...")
    learning_rate: float = _choice(1e-3, TRAIN, "step size of Adam", above=0, most=100)
    schedule: str = _choice(
        "constant",
        TRAIN,
        "of the learning rate; cosine rises over the first twentieth of all steps, then falls to 0",
        ("constant", "cosine"),
    )
    average: float = _choice(
        0.0, TRAIN, "decay of the running average of the weights at each step; 0: no average", least=0, below=1
    )
    batch_size: int = _choice(4, TRAIN, "slices per step", above=0, most=1024)
    epochs: int = _choice(10, TRAIN, "passes over the training slices", above=0, most=100_000)
    clip_norm: float = _choice(1.0, TRAIN, "largest norm of the gradient", above=0, most=10**9)
    augment: bool = _choice(True, TRAIN, "flips and 90-degree rotations, the same on image and mask")
    upright: bool = _choice(False, TRAIN, "of these, only the flip that swaps left and right: the nose stays up")
    warp: bool = _choice(False, TRAIN, "rotate, scale, shift and bend, the same on image and mask")
    intensity: bool = _choice(False, TRAIN, "change gamma, brightness, noise and the bias field of the images")
    drop_modalities: float = _choice(
        0.0, TRAIN, "probability with which each sequence of a slice is hidden, but never all", least=0, below=1
    )
    members: int = _choice(
        1,
        TRAIN,
        "networks to average, each validated on other patients; together they learn from all",
        least=1,
        most=20,
    )
    precision: str = _choice(
        "auto", TRAIN, "bf16 is faster where the hardware supports it; auto then uses it", ("auto", "fp32", "bf16")
    )
    seed: int = _choice(0, TRAIN, "seed of the weights, the order of slices and the augmentation", least=0, below=2**32)

    threshold: float = _choice(0.5, PREDICT, "probability from which a pixel counts as tumour", above=0, below=1)
    mirror: bool = _choice(False, PREDICT, "predict a slice and its mirror image, and average the two")
    tune: bool = _choice(
        False, PREDICT, "choose threshold and smallest component to keep, on the validation patients after training"
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            if expected := _unlike(getattr(self, spec.name), spec):
                raise UnetlibError(
                    f"recipe: {spec.name} is {brief(getattr(self, spec.name))}; {expected} was expected "
                    f"({spec.metadata['help']})."
                )
        for name in ("neighbours", "balance"):
            if getattr(self, name) and self.slices != "all":
                raise UnetlibError(
                    f"recipe: {name} is {getattr(self, name)}, but only the slices with {self.slices} are kept; all "
                    "were expected (unetlib prepare --slices all; for the strong recipe --recipe strong)."
                )
        if self.drop_modalities and len(self.modalities.split()) == 1:
            raise UnetlibError(
                f"recipe: drop_modalities is {self.drop_modalities}, but {self.modalities} is the only sequence; "
                "several were expected (unetlib prepare --modalities flair t1 t1ce t2)."
            )
        if (
            self.network == "unet" and self.image_size <= 2**self.depth
        ):  # batch norm needs more than one pixel at the bottom
            raise UnetlibError(
                f"recipe: {self.depth} halvings leave nothing of slices of {self.image_size} pixels; "
                f"an image_size above {2**self.depth} or a smaller depth was expected."
            )

    @property
    def takes_gaps(self) -> bool:
        """Whether a network learns to do without a sequence: from cases that lack one, or as one is hidden."""
        return self.missing == "zero" or self.drop_modalities > 0

    def stage(self, stage: str) -> dict[str, Any]:
        """Return the fields of one stage, `"prepare"`, `"train"` or `"predict"`, as a dictionary."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.metadata["stage"] == stage}

    def but(self, **changes: Any) -> "Recipe":
        """Return a copy with some fields changed; raises `UnetlibError` for a field that does not exist."""
        if unknown := set(changes) - {spec.name for spec in fields(self)}:
            raise UnetlibError(f"recipe: there is no field named {', '.join(sorted(unknown))}.")
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain Python values, as written to `recipe.json`."""
        return asdict(self)


def _unlike(value: Any, spec: Any) -> str:
    """Return what was expected instead of a field's value; empty if the value is valid."""
    kinds, choices, limits = TYPES[spec.name], spec.metadata["choices"], spec.metadata["limits"]
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds != (bool,)):
        return kinds[-1].__name__
    if choices and value not in choices:
        return f"one of {', '.join(choices)}"
    if (pattern := spec.metadata["words"]) and not _are_words(str(value), pattern):
        return f"a text of 1 to 8 different words in small letters, such as {spec.default!r},"
    if not all(LIMITS[name](value, limit) for name, limit in limits.items()):
        return "a number " + " and ".join(f"{WORDS[name]} {limit:,}" for name, limit in limits.items())
    return ""


def _are_words(text: str, pattern: str) -> bool:
    """Tell whether a text is 1 to 8 words of a pattern, separated by spaces; the names before `=` differ."""
    words = text.split(" ")
    names = {word.partition("=")[0] for word in words}
    return 1 <= len(names) == len(words) <= 8 and all(re.fullmatch(pattern, word) for word in words)


TYPES = {
    name: (int, float) if kind is float else (kind,)
    for name, kind in get_type_hints(Recipe).items()
    if name not in ("published", "strong")
}
Recipe.published = Recipe()
Recipe.strong = Recipe(
    slices="all",
    normalise="median-volume",
    crop=True,
    width=16,
    phantoms=True,
    balance=True,
    loss="dice+bce",
    learning_rate=2e-3,
    schedule="cosine",
    average=0.99,
    batch_size=8,
    epochs=40,
    warp=True,
    intensity=True,
    mirror=True,
    tune=True,
)


def flag(name: str) -> str:
    """Return a field's flag on the command line."""
    return "--" + name.removeprefix("split_").replace("_", "-")


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Name the keys whose values differ, as `width: 32 -> 16`; empty if none do."""
    keys = sorted(before.keys() | after.keys())
    return ", ".join(
        f"{key}: {_text(before.get(key))} -> {_text(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    )


def _text(value: Any) -> str:
    return brief(value).strip("'")
