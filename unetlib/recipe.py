"""Every choice that changes a result, in one frozen dataclass with the published values as defaults."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from unetlib.recipe_rules import contradiction
from unetlib.support.errors import UnetlibError, brief
from unetlib.support.fields import choice, unlike

PREPARE, TRAIN, PREDICT = STAGES = "prepare", "train", "predict"

SEQUENCES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}  # as a reader knows them
MODALITIES = tuple(SEQUENCES)
REGIONS = ("whole", "core", "enhancing")
# The fields of the stage `prepare` that say which patients are used and what of them, not how slices are made.
OF_PATIENTS = ("modalities", "regions", "labels", "missing", "train_fraction", "split_seed")
# One of BraTS's, or one's own under another name, as name=label+label; label 0 is no tumour.
REGION = rf"(?:{'|'.join(REGIONS)})|(?!(?:{'|'.join(REGIONS)})=)[a-z][a-z0-9_-]*=[1-9]\d*(?:\+[1-9]\d*)*"
SAMPLE_NAMES = {2: "slice", 3: "volume"}  # what a network sees at a time


@dataclass(frozen=True)
class Recipe:
    """The choices of a recipe; the defaults are those of the published one.

    The fields of the stage `prepare` set the content of the prepared slices, those of `train` the network and its
    training, and those of `predict` how probabilities become masks; these may be changed on a finished run. The upper
    limits only catch typing errors. Raises `UnetlibError` for a value out of range.
    """

    published: ClassVar["Recipe"]
    strong: ClassVar["Recipe"]
    best: ClassVar["Recipe"]
    volume: ClassVar["Recipe"]

    modalities: str = choice(
        "flair", PREPARE, "sequences to see: of flair, t1, t1ce and t2", words="|".join(MODALITIES)
    )
    regions: str = choice(
        "whole", PREPARE, "regions to find: of whole, core and enhancing, or of your own, as solid=1+4", words=REGION
    )
    labels: str = choice(
        "auto",
        PREPARE,
        "what the labels of core and enhancing are, where the names of the files do not show it",
        ("auto", "brats2021", "brats2023", "decathlon"),
    )
    missing: str = choice(
        "leave-out", PREPARE, "leave out a case without one of the sequences, or see 0 there", ("leave-out", "zero")
    )
    dims: int = choice(2, PREPARE, "2: slices; 3: whole volumes, for 3-D networks", (2, 3))
    image_size: int = choice(
        96, PREPARE, "side of the square slices in pixels, or of the cubes in voxels", above=0, most=1024
    )
    slices: str = choice("tumour", PREPARE, "which axial slices to keep", ("tumour", "brain", "all"))
    normalise: str = choice(
        "minmax-slice",
        PREPARE,
        "to 0..1, by the minimum and maximum of each slice or each volume, or by the median of the head",
        ("minmax-slice", "minmax-volume", "median-volume"),
    )
    crop: bool = choice(False, PREPARE, "use the square around the head, not the whole slice")
    train_fraction: float = choice(
        0.70, PREPARE, "fraction of patients to train on; the rest is halved into val and test", above=0, below=1
    )
    split_seed: int = choice(0, PREPARE, "seed of the patient-level split", least=0, below=2**32)

    neighbours: int = choice(0, TRAIN, "slices above and below each slice to add as channels", least=0, most=8)
    network: str = choice(
        "unet", TRAIN, "unet, attention-unet, segresnet, dynunet, unetr, swin-unetr, or one that you registered"
    )
    width: int = choice(
        32, TRAIN, "channels of the first level; each level down doubles them (64 in the paper)", above=0, most=512
    )
    depth: int = choice(4, TRAIN, "how many times the image is halved", above=0, most=8)
    deep_supervision: bool = choice(
        False, TRAIN, "compute the loss on the lower levels of the network, too; for networks that have such outputs"
    )
    phantoms: bool = choice(
        False, TRAIN, "begin with the weights that come with the library, trained on synthetic patients alone"
    )
    balance: bool = choice(False, TRAIN, "use as many slices without tumour as with it, drawn anew in each epoch")
    loss: str = choice("bce", TRAIN, "loss, or a sum of losses: bce, dice, focal, dice+bce, ...")
    learning_rate: float = choice(1e-3, TRAIN, "step size of Adam", above=0, most=100)
    schedule: str = choice(
        "constant",
        TRAIN,
        "of the learning rate; cosine rises over the first twentieth of all steps, then falls to 0",
        ("constant", "cosine"),
    )
    average: float = choice(
        0.0, TRAIN, "decay of the running average of the weights at each step; 0: no average", least=0, below=1
    )
    batch_size: int = choice(4, TRAIN, "slices or volumes per step", above=0, most=1024)
    epochs: int = choice(10, TRAIN, "passes over the training slices or volumes", above=0, most=100_000)
    clip_norm: float = choice(1.0, TRAIN, "largest norm of the gradient", above=0, most=10**9)
    augment: bool = choice(True, TRAIN, "flips and 90-degree rotations, the same on image and mask")
    upright: bool = choice(
        False, TRAIN, "of the flips and rotations, only the flip that swaps left and right: the nose stays up"
    )
    warp: bool = choice(False, TRAIN, "rotate, scale, shift and bend, the same on image and mask")
    intensity: bool = choice(False, TRAIN, "change gamma, brightness, noise and the bias field of the images")
    drop_modalities: float = choice(
        0.0, TRAIN, "probability with which each sequence of a slice is hidden, but never all", least=0, below=1
    )
    members: int = choice(
        1,
        TRAIN,
        "networks to average, each validated on different patients; together they learn from all",
        least=1,
        most=20,
    )
    precision: str = choice(
        "auto", TRAIN, "bf16 is faster where the hardware supports it; auto then uses it", ("auto", "fp32", "bf16")
    )
    seed: int = choice(0, TRAIN, "seed of the weights, the order of slices and the augmentation", least=0, below=2**32)

    threshold: float = choice(0.5, PREDICT, "probability from which a pixel counts as tumour", above=0, below=1)
    mirror: bool = choice(False, PREDICT, "predict a slice and its mirror image, and average the two")
    tune: bool = choice(
        False, PREDICT, "choose threshold and smallest component to keep, on the validation patients after training"
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            if expected := unlike(getattr(self, spec.name), spec):
                raise UnetlibError(
                    f"recipe: {spec.name} is {brief(getattr(self, spec.name))}; {expected} was expected "
                    f"({spec.metadata['help']})."
                )
        if sentence := contradiction(self):
            raise UnetlibError(f"recipe: {sentence}")

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
Recipe.best = Recipe.strong.but(epochs=62, members=3)
Recipe.volume = Recipe.strong.but(
    dims=3, width=8, phantoms=False, balance=False, batch_size=1, epochs=100, learning_rate=1e-3
)
