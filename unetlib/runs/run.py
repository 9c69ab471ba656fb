"""The folder of a training run; no other code knows the names of its files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unetlib.data.split import PARTS, SPLIT_FILE, Split
from unetlib.data.volumes import ASSUMABLE
from unetlib.networks import build_network
from unetlib.recipe import PREDICT, Recipe
from unetlib.runs.checkpoint import load_checkpoint, load_weights, require_weights
from unetlib.support.errors import UnetlibError, counted, quoted
from unetlib.support.fields import changed
from unetlib.support.files import digest, read_json, sha256
from unetlib.support.messages import warn
from unetlib.support.paths import home
from unetlib.support.records import COUNT, LIST, NAMES, RECORD, TEXT, Kind, one_of, optional, require

_HOME = Path(__file__).parents[1] / "phantom"
# The runs that come with the library, trained on synthetic patients alone: on FLAIR for the whole tumour, and on four
# sequences for three regions.
SHIPPED = {"phantoms": _HOME / "run", "phantoms-four": _HOME / "run-four"}
PACKED = ".safetensors"  # how their weights are stored
# What weights depend on.
SAME = ("dims", "network", "width", "depth", "deep_supervision", "neighbours", "image_size", "normalise", "crop")

_CASE = {"patient": TEXT, "part": one_of(*PARTS), "files": LIST, "sha256": TEXT, "image": optional(TEXT)}
_CASE |= {"images": optional(NAMES)}
_SESSION = dict.fromkeys(("unetlib", "python", "processor", "device", "precision"), TEXT) | {"threads": COUNT}


class _File:
    """The path of a file or folder in a run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "Run", _: type) -> Path:
        return run.folder / self.name


@dataclass(frozen=True)
class Run:
    """The folder that `train` makes: recipe, data, progress and results.

    Every function that takes a run also takes its path.
    """

    folder: Path
    latest = _File("latest_checkpoint.pth")  # checkpoint to resume from
    recipe_file = _File("recipe.json")  # recipe, prepared slices and data
    split_file = _File(SPLIT_FILE)  # patients for training, validation and testing
    history_file = _File("history.csv")  # one row for each epoch
    provenance_file = _File("provenance.json")  # cases, software and machines
    decision_file = _File("decision.json")  # threshold and smallest component, as chosen on validation patients
    figures = _File("figures")  # folder
    card = _File("card")  # folder of the model card

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", home(self.folder))  # a text will do, and `~`

    @classmethod
    def of(cls, run: "Run | Path | str") -> "Run":
        """Return the run in a folder, which need not exist yet."""
        return run if isinstance(run, Run) else cls(home(run))

    @classmethod
    def to_read(cls, run: "Run | Path | str") -> "Run":
        """Return the run in a folder, or one that comes with the library (see `SHIPPED`).

        The latter has its name there, unless the working directory has a run of this name.
        """
        found = cls.of(run)
        return found if found.exists else cls(SHIPPED.get(str(found), found.folder))

    @classmethod
    def several(cls, runs: "Run | Path | str | Sequence[Run | Path | str]") -> "list[Run]":
        """Return one run to read, or each of several; raises `UnetlibError` if there are none, or one comes twice."""
        found = [*map(cls.to_read, runs)] if isinstance(runs, list | tuple) else [cls.to_read(runs)]  # type: ignore[arg-type]
        if not found or len({one.folder.resolve() for one in found}) < len(found):
            raise UnetlibError("no run was given, or one twice; the folder of a run was expected, or of several.")
        return found

    @property
    def shipped(self) -> str:
        """Its name if it comes with the library, else an empty text."""
        return next((name for name, folder in SHIPPED.items() if folder == self.folder), "")

    def __str__(self) -> str:
        return self.shipped or str(self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def evaluation(self) -> Path:
        """Folder of the scores of the run's own test patients; subfolders hold others.

        Scores of a run that comes with the library lie in the working directory.
        """
        return Path(f"{self.shipped}-evaluation") if self.shipped else self.folder / "evaluation"

    @property
    def best(self) -> Path:
        """Weights of the epoch with the highest validation Dice."""
        packed = self.folder / f"best_model{PACKED}"  # of the run that comes with the library
        return packed if packed.exists() else self.folder / "best_model.pth"

    @property
    def members(self) -> "tuple[Run, ...]":
        """The runs whose probabilities are averaged: this one, or those in its folder if its recipe has `members`."""
        number = self.recipe.members if self.exists else 1
        return tuple(self.member(place) for place in range(number)) if number > 1 else (self,)

    def member(self, place: int) -> "Run":
        """Return the run of one of several members, counted from 0."""
        return Run(self.folder / f"member-{place + 1}")

    @property
    def weights(self) -> str:
        """A hash of the best weights, of all members; empty if some are missing."""
        files = [member.best for member in self.members]
        if not all(file.exists() for file in files):
            return ""
        return sha256(files[0]) if len(files) == 1 else digest([sha256(file) for file in files])

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.recipe_file.exists()

    def about(self) -> dict[str, Any]:
        """Return the content of `recipe.json`; raises `UnetlibError` when it is missing, damaged or invalid."""
        path = self.recipe_file
        if not path.is_file():
            train = f"Train first: unetlib train PREPARED {quoted(self)}"
            how = "Copy it from the original run." if self.best.exists() else train
            raise UnetlibError(f"{self} is not a run folder (it has no {path.name}). {how}")
        kinds = {"recipe": RECORD, "prepared": RECORD, "data": TEXT, "assume": optional(one_of(None, *ASSUMABLE))}
        about = self._read(path, **kinds)
        read_recipe(about["recipe"], path, f" {self._remake}")
        return about

    @property
    def _remake(self) -> str:
        """How to get a damaged file again that `train` writes whenever a run goes on."""
        if not (self.latest.exists() or self.member(0).latest.exists()):
            return "The run has no latest checkpoint to go on from, so restore it from a copy."
        return "To make it again, delete it, then give `unetlib train` with all flags of the start."

    def _read(self, path: Path, **kinds: Kind) -> dict[str, Any]:
        try:
            content = read_json(path)
        except UnetlibError as error:
            raise UnetlibError(f"{error} {self._remake}") from error
        require(content, path, self._remake, **kinds)
        return content

    @property
    def data(self) -> Path:
        """The folder of patients that it was prepared from; raises `UnetlibError` if it was trained on other data."""
        if data := self.about()["data"]:
            return Path(data)
        raise UnetlibError(
            f"{self} was trained on your own data set, so it has no patients to tune, test or draw. To score it, name "
            f"a folder of patients: unetlib evaluate {quoted(self)} --data DATA"
        )

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run, with the latest values of the fields of the stage `predict`."""
        return Recipe(**self.about()["recipe"])

    @property
    def reading(self) -> dict[str, str]:
        """What `find_cases` needs to know to find the images that the network sees.

        A network that was trained with sequences hidden can do without them.
        """
        recipe = self.recipe if self.exists else read_recipe(load_checkpoint(self.best)["recipe"], self.best)
        return {"modalities": recipe.modalities, "missing": "zero" if recipe.takes_gaps else recipe.missing}

    @property
    def split(self) -> Split:
        """The split of the run."""
        return Split.load(self.split_file)

    @property
    def provenance(self) -> dict[str, Any]:
        """The content of `provenance.json`; empty if a version before 0.3 made the run.

        Raises `UnetlibError` when it is damaged or was edited.
        """
        path = self.provenance_file
        if not path.exists():
            return {}
        kinds = {"cases": optional(RECORD), "earlier": optional(RECORD), "sessions": optional(LIST)}
        content = self._read(path, **kinds, left_out=optional(LIST))
        cases = [case for kind in ("cases", "earlier") for case in content.get(kind, {}).values()]
        for records, kinds in ((cases, _CASE), (content.get("sessions", []), _SESSION)):
            for record in records:
                require(record, path, self._remake, **kinds)
        return content

    def load(self) -> tuple[nn.Module, Recipe, dict[str, Any]]:
        """Return the network with the best weights (in evaluation mode), its recipe and the checkpoint.

        Of several members it is the first. Raises `UnetlibError` when the file is missing, damaged, of another network
        or run, or not a `best_model.pth`.
        """
        path = self.members[0].best
        content = load_checkpoint(path)
        require(content, path, "Restore it from a copy.", prepared=optional(RECORD))
        if not isinstance(content.get("epoch"), int) or content["epoch"] < 1:
            raise UnetlibError(
                f"{path} does not say its epoch: it is not a {self.best.name} of unetlib. Restore it from a copy."
            )
        recipe = read_recipe(content["recipe"], path)
        channels = channels_of(content, path, recipe)
        require_weights(recipe, channels, content, path)
        network = build_network(recipe, *channels)
        load_weights(network, content, path)
        if self.exists:
            own = self.recipe
            require_own({**self.members[0].about(), "recipe": own.as_dict()}, content, path, self.recipe_file)
            return network.eval(), recipe.but(**own.stage(PREDICT), members=own.members, seed=own.seed), content
        note = f"The run has no {self.recipe_file.name}: threshold and mirror are those of the training."
        warn(f"{self}: {note}")
        return network.eval(), recipe, {**content, "note": " ".join(filter(None, (content.get("note"), note)))}

    def caveats(self, best: dict[str, Any] | None = None) -> str:
        """Return warnings if the weights `best`, by default its own, are not those of a finished training; else ""."""
        if len(self.members) > 1:
            return " ".join(filter(None, dict.fromkeys(member.caveats() for member in self.members)))
        best = load_checkpoint(self.best) if best is None else best
        try:
            latest = load_checkpoint(self.latest)
            of_parent = [Run(self.folder.parent)] if self.folder.name.startswith("member-") else []
            asked = [run.recipe.epochs for run in (self, *of_parent) if run.exists and self in run.members]
            epochs, progress = max([Recipe(**latest["recipe"]).epochs, *asked]), latest["progress"]
            epoch, dice = progress["epoch"], progress["best_dice"]
        except (UnetlibError, KeyError, TypeError):  # only the weights were passed on
            return ""
        warnings = [f"The training is not finished: {epoch} of {counted(epochs, 'epoch')}."] if epoch < epochs else []
        if best.get("val_dice", dice) < dice:
            warnings.append(
                f"The weights of the best epoch, with a validation Dice of {dice:.4f}, are lost: these are of epoch "
                f"{best['epoch']}, with {best['val_dice']:.4f}."
            )
        return " ".join(warnings)


def require_own(
    about: dict[str, Any], content: dict[str, Any], path: Path, file: Path, names: Iterable[str] = SAME
) -> None:
    """Raise `UnetlibError` if a checkpoint, the `content` of `path`, is of another run than `about`, that of `file`.

    `names`: the fields of the recipe that are compared.
    """
    own, theirs = read_recipe(about["recipe"], file), read_recipe(content["recipe"], path)
    before, after = ({name: getattr(one, name) for name in names} for one in (own, theirs))
    if differences := changed(before, after) or changed(*_origin(about, content)):
        raise UnetlibError(
            f"{path} holds the weights of another run than {file} ({differences}). Restore both from copies of one run."
        )


def _origin(about: dict[str, Any], content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the recipe of a run and a checkpoint say of slices, split and first weights, where both say it.

    Without the hash of patients' data: versions differ in it, and a run that went on has the new one in its recipe.
    """
    both = [{**one, **one.get("prepared", {})} for one in (about, content)]
    names = both[0].keys() & both[1].keys() & {"start_from", *about["prepared"]}
    return [{name: one[name] for name in names - ({"data"} if "split" in names else set())} for one in both]


CHANNELS = Kind(lambda value: LIST.fits(value) and len(value) == 2 and all(map(COUNT.fits, value)), "two numbers")


def channels_of(content: dict[str, Any], path: Path, recipe: Recipe) -> tuple[int, int]:
    """Return the input and output channels of a checkpoint's network; before 0.5, one sequence and one region."""
    require(content, path, "Restore it from a copy.", channels=optional(CHANNELS))
    before, after = content.get("channels", (1 + 2 * recipe.neighbours, 1))
    return before, after


def read_recipe(fields: Any, path: Path, advice: str = "") -> Recipe:
    """Return the recipe stored in a file; raises `UnetlibError` when it is not valid."""
    try:
        return Recipe(**fields)
    except (TypeError, UnetlibError) as error:
        raise UnetlibError(f"{path}: this version of unetlib cannot read its recipe ({error}).{advice}") from error
