"""Every choice that changes a result, in one frozen dataclass with the published values as defaults."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, get_type_hints

from unetlib.support.errors import UnetlibError, brief

PREPARE, TRAIN = "prepare", "train"
LARGEST = {  # beyond these a value is a slip of the hand, and would end in a failed allocation
    "image_size": 1024,
    "width": 512,
    "depth": 8,
    "learning_rate": 100,
    "batch_size": 1024,
    "epochs": 100_000,
    "clip_norm": 1e9,
}


def _choice(default: Any, stage: str, text: str, choices: tuple[str, ...] | None = None) -> Any:
    """Declare a field: its published value, the command that it belongs to, and what it means."""
    return field(default=default, metadata={"stage": stage, "help": text, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """The published recipe, and room to leave it one field at a time.

    Fields of the stage `prepare` decide what the prepared slices hold; fields of the stage `train`
    decide how the network is trained on them. Raises `UnetlibError` for a value out of range.
    """

    published: ClassVar["Recipe"]
    strong: ClassVar["Recipe"]

    image_size: int = _choice(96, PREPARE, "side of the square slices in pixels")
    slices: str = _choice("tumour", PREPARE, "which axial slices to keep", ("tumour", "brain", "all"))
    normalise: str = _choice(
        "minmax-slice",
        PREPARE,
        "to 0..1, by the least and greatest value of each slice or each volume, or by the median of the head",
        ("minmax-slice", "minmax-volume", "median-volume"),
    )
    crop: bool = _choice(False, PREPARE, "show the square around the head, not the whole slice")
    train_fraction: float = _choice(
        0.70, PREPARE, "share of patients to train on; the rest is halved into val and test"
    )
    split_seed: int = _choice(0, PREPARE, "seed of the patient-level split")

    neighbours: int = _choice(0, TRAIN, "slices above and below a slice that are shown with it, as channels")
    width: int = _choice(32, TRAIN, "channels of the first level; each level down doubles them (64 in the paper)")
    depth: int = _choice(4, TRAIN, "how often the picture is halved")
    balance: bool = _choice(False, TRAIN, "an epoch shows as many slices without tumour as with it, others each time")
    loss: str = _choice("bce", TRAIN, "loss, or a sum of losses: bce, dice, focal, dice+bce, ...")
    learning_rate: float = _choice(1e-3, TRAIN, "step size of Adam")
    schedule: str = _choice(
        "constant",
        TRAIN,
        "of the learning rate; cosine rises over the first twentieth of all steps and then falls to 0",
        ("constant", "cosine"),
    )
    average: float = _choice(0.0, TRAIN, "share that an average of the weights keeps at each step; 0 averages nothing")
    batch_size: int = _choice(4, TRAIN, "slices a step")
    epochs: int = _choice(10, TRAIN, "passes over the training slices")
    clip_norm: float = _choice(1.0, TRAIN, "largest norm of the gradient")
    augment: bool = _choice(True, TRAIN, "flips and 90-degree rotations, alike on image and mask")
    upright: bool = _choice(False, TRAIN, "of those only the flip that changes left and right: the nose stays up")
    warp: bool = _choice(False, TRAIN, "turn, scale, shift and bend, alike on image and mask")
    intensity: bool = _choice(False, TRAIN, "change gamma, brightness, noise and the bias field of the images")
    precision: str = _choice(
        "auto", TRAIN, "bf16 is faster where the hardware has it; auto takes it there", ("auto", "fp32", "bf16")
    )
    seed: int = _choice(0, TRAIN, "seed of the weights, the order of slices and the augmentation")
    threshold: float = _choice(0.5, TRAIN, "probability from which a pixel counts as tumour")
    mirror: bool = _choice(False, TRAIN, "predict a slice and its mirror image, and average the two")
    tune: bool = _choice(
        False, TRAIN, "choose threshold and smallest component kept on the validation patients, after training"
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            choices = spec.metadata["choices"]
            if not isinstance(value, TYPES[spec.name]) or (isinstance(value, bool) and TYPES[spec.name] != (bool,)):
                expected = TYPES[spec.name][-1].__name__
                raise UnetlibError(
                    f"recipe: {spec.name} is {brief(value)}; {expected} was expected ({spec.metadata['help']})."
                )
            if choices and value not in choices:
                raise UnetlibError(f"recipe: {spec.name} is {brief(value)}; one of {', '.join(choices)} was expected.")
            if spec.name in LARGEST and not 0 < value <= LARGEST[spec.name]:
                raise UnetlibError(
                    f"recipe: {spec.name} is {brief(value)}; a number above 0, up to {LARGEST[spec.name]}, was "
                    "expected."
                )
            if spec.name in ("train_fraction", "threshold") and not 0 < value < 1:
                raise UnetlibError(f"recipe: {spec.name} is {value}; a number between 0 and 1 was expected.")
            if spec.name in ("seed", "split_seed") and not 0 <= value < 2**32:
                raise UnetlibError(f"recipe: {spec.name} is {brief(value)}; a whole number below 2**32 was expected.")
        if not 0 <= self.neighbours <= 8:
            raise UnetlibError(
                f"recipe: neighbours is {brief(self.neighbours)}; a whole number from 0 to 8 was expected."
            )
        if not 0 <= self.average < 1:
            raise UnetlibError(f"recipe: average is {self.average}; a number from 0 to below 1 was expected.")
        for name in ("neighbours", "balance"):
            if getattr(self, name) and self.slices != "all":
                raise UnetlibError(
                    f"recipe: {name} is {getattr(self, name)}, but only the slices with {self.slices} are kept; all "
                    "were expected (unetlib prepare --slices all; for the strong recipe --recipe strong)."
                )
        if self.image_size <= 2**self.depth:  # batch norm needs more than one pixel at the bottom
            raise UnetlibError(
                f"recipe: {self.depth} halvings leave nothing of slices of {self.image_size} pixels; "
                f"an image_size above {2**self.depth} or a smaller depth was expected."
            )

    def stage(self, stage: str) -> dict[str, Any]:
        """Return the fields of one stage, `"prepare"` or `"train"`, as a dictionary."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.metadata["stage"] == stage}

    def but(self, **changes: Any) -> "Recipe":
        """Return a copy with some fields changed; raises `UnetlibError` for a field that does not exist."""
        if unknown := set(changes) - {spec.name for spec in fields(self)}:
            raise UnetlibError(f"recipe: there is no field named {', '.join(sorted(unknown))}.")
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain Python values, as written to `recipe.json`."""
        return asdict(self)


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
PRESETS = {"published": Recipe.published, "strong": Recipe.strong}


def mixed_presets(recipe: Recipe) -> str:
    """Return a hint where most of what makes a preset is in the slices but not in the training, or the other way round.

    The hint is empty where both are alike. Who mixes them on purpose may ignore it.
    """
    for name, preset in PRESETS.items():
        follows = {stage: _follows(recipe, preset, stage) for stage in (PREPARE, TRAIN)}
        if follows[PREPARE] != follows[TRAIN]:
            one, other = sorted(follows, key=follows.__getitem__, reverse=True)
            done = {PREPARE: "the slices were prepared", TRAIN: "the training is set up"}
            return (
                f"{done[one]} by the {name} recipe and {done[other]} by another one. If that is not meant, give "
                f"`unetlib {other}` the flag --recipe {name}, too (in Python Recipe.{name}), and a new folder."
            )
    return ""


def _follows(recipe: Recipe, preset: Recipe, stage: str) -> bool:
    """Tell whether a recipe has more than half of the values that set a preset apart from the published recipe."""
    published, own = Recipe.published.stage(stage), recipe.stage(stage)
    apart = {name: value for name, value in preset.stage(stage).items() if value != published[name]}
    return 2 * sum(own[name] == value for name, value in apart.items()) > len(apart)


def with_defaults(fields: dict[str, Any], stage: str) -> dict[str, Any]:
    """Return the fields of a stage as an older version wrote them, and the published value of those it did not know.

    Raises `ValueError` for fields that do not belong to the stage.
    """
    known = Recipe.published.stage(stage)
    if unknown := fields.keys() - known.keys():
        raise ValueError(f"a recipe with the field {min(unknown)}")
    return {**known, **fields}


def flag(name: str) -> str:
    """Return a field's flag on the command line."""
    return "--" + name.removeprefix("split_").replace("_", "-")


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Name the keys whose values differ, as `width: 32 -> 16`; empty when nothing does."""
    keys = sorted(before.keys() | after.keys())
    return ", ".join(
        f"{key}: {_text(before.get(key))} -> {_text(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    )


def _text(value: Any) -> str:
    return brief(value).strip("'")
