"""An opened prepared folder."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from unetlib.data.cases import HASHES
from unetlib.data.split import PARTS, SPLIT_FILE, Split
from unetlib.data.volumes import ASSUMABLE
from unetlib.dataset import SliceDataset
from unetlib.recipe import OF_PATIENTS, PREPARE, SAMPLE_NAMES, Recipe
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by, quoted
from unetlib.support.files import digest, read_json
from unetlib.support.paths import takes_paths
from unetlib.support.records import COUNT, LIST, RECORD, TEXT, TEXTS, one_of, optional, require

PREPARED_FILE = "prepared.json"  # written last: if it exists, the folder is complete


@dataclass(frozen=True)
class Prepared:
    """An opened prepared folder: memory-mapped slices, the split, and their origin.

    `images`: (N, C, S, S) float16 in 0..1, of C sequences. `masks`: (N, 1, S, S) uint8, 0 or 1; of several regions,
    bit k of a pixel is its value in region k. Volumes have one more axis of S. `about`: the content of `prepared.json`.
    """

    folder: Path
    about: dict[str, Any]
    split: Split
    images: np.ndarray
    masks: np.ndarray

    @classmethod
    @takes_paths
    def open(cls, folder: Path) -> "Prepared":
        """Open a folder made by `prepare`; raises `UnetlibError` when it is missing, unfinished or damaged."""
        if not folder.exists():
            raise UnetlibError(
                f"{folder} does not exist. Give a prepared folder (`unetlib prepare DATA {quoted(folder)}` makes one); "
                "`unetlib train` also takes a folder of patients, or its .tar."
            )
        if not (folder / PREPARED_FILE).is_file():
            raise UnetlibError(
                f"{folder} is not a finished prepared folder (it has no {PREPARED_FILE}). "
                f"Make it, or finish it, with: unetlib prepare DATA {quoted(folder)}"
            )
        about = read_json(folder / PREPARED_FILE)
        try:
            images, masks = _map(folder / "images.npy", np.float16), _map(folder / "masks.npy", np.uint8)
            slices, recipe = _require_types(about)
        except Exception as error:  # numpy raises many types of exception on damaged headers
            reason = brief(error.args[0]) if error.args else type(error).__name__
            raise UnetlibError(
                f"{folder} is damaged ({reason}). Make it again with: unetlib prepare DATA {quoted(folder)} --rebuild"
            ) from error
        size = recipe.dims * (recipe.image_size,)
        shapes = [(slices, channels, *size) for channels in (len(recipe.modalities.split()), 1)]
        if [images.shape, masks.shape] != shapes:
            raise UnetlibError(
                f"{folder}: images {images.shape} and masks {masks.shape} were found, {shapes[0]} and {shapes[1]} were "
                f"expected. Make it again with: unetlib prepare DATA {quoted(folder)} --rebuild"
            )
        try:
            split = Split.load(folder / SPLIT_FILE)
            if apart := split.patients() ^ {case["patient"] for case in about["cases"].values()}:
                raise UnetlibError(
                    f"{folder}: only one of {SPLIT_FILE} and {PREPARED_FILE} names {first_of(sorted(apart), 5)}. "
                    "Restore them."
                )
            return cls(folder, about, split, images, masks)
        except UnetlibError as error:
            raise UnetlibError(f"{error} Or prepare again: unetlib prepare DATA {quoted(folder)} --rebuild") from error

    @property
    def reading(self) -> Recipe:
        """The published recipe with the fields by which these patients were read."""
        return Recipe.published.but(**{name: self.about["recipe"][name] for name in OF_PATIENTS})

    @property
    def data(self) -> Path:
        """The folder of patients from which it was made."""
        return Path(self.about["data"])

    @property
    def assume(self) -> str | None:
        """The orientation that was assumed for files that do not state one, as in `find_cases`."""
        return self.about.get("assume")

    @cached_property
    def contents(self) -> dict[str, str]:
        """What a run is tied to: the recipe's fields of the stage `prepare`, and hashes of data and split."""
        known = all("content" in case for case in self.about["cases"].values())
        data = self.digest("content") if known else self.digest("sha256")
        assume = {"assume": self.assume} if self.assume else {}
        return {"data": data, "split": self.split.hash, **self.about["recipe"], **assume}

    @property
    def version(self) -> str:
        """The version of the library that made it."""
        return made_by(self.about)

    def digest(self, kind: str) -> str:
        """Return one hash for all cases: of their files (`"sha256"`, as in version 0.3) or of their `"content"`."""
        return digest({name: case[kind] for name, case in self.about["cases"].items()})

    def fit(self, recipe: Recipe, **changes: Any) -> Recipe:
        """Return a recipe with the fields of the stage `prepare` that these slices have, and other `changes`.

        Raises `UnetlibError` if it is a recipe for volumes and these are slices, or they contradict each other.
        """
        if recipe.dims > self.about["recipe"]["dims"]:
            raise UnetlibError(
                f"the recipe is one for whole volumes (dims 3), and {self.folder} holds slices. Prepare volumes "
                "(unetlib prepare DATA FOLDER --dims 3), or choose another recipe."
            )
        return recipe.but(**{**self.about["recipe"], **changes})

    def of_member(self, member: int) -> "Prepared":
        """Return the same slices with the split of one of several networks; see `Split.of_member`."""
        return replace(self, split=self.split.of_member(member))

    def dataset(self, neighbours: int = 0) -> SliceDataset:
        """Return the slices as a data set; `neighbours` as in the recipe."""
        cases = self.about["cases"].values()
        numbers = np.array([case["slices"] for case in cases])
        parts = {}
        for part in PARTS:
            patients = self.split.patients(part)
            mine = np.array([case["patient"] in patients for case in cases])
            parts[part] = np.flatnonzero(np.repeat(mine, numbers))
        regions = len(self.about["recipe"]["regions"].split())
        return SliceDataset(self.images, self.masks, parts, numbers, neighbours, str(self.folder), regions)

    def __str__(self) -> str:
        recipe, published = self.about["recipe"], Recipe.published
        size, dims = " x ".join(map(str, self.images.shape[2:])), self.images.ndim - 2
        unit = SAMPLE_NAMES[dims]
        kinds = f"{size} voxels" if dims == 3 else f"{recipe['slices']} slices, {size} pixels"
        beyond = f"; sequences {recipe['modalities']}; regions {recipe['regions']}"
        if (recipe["modalities"], recipe["regions"]) == (published.modalities, published.regions):
            beyond = ""
        parts = [
            f"{part} {len(self.split.patients(part))} ({counted(len(found), unit)})"
            for part, found in self.dataset().parts.items()
        ]
        lines = [
            f"{self.folder}: {len(self.images)} {unit}s of {len(self.about['cases'])} cases ({kinds}){beyond}",
            f"split by patient: {', '.join(parts)}; made by unetlib {self.version}",
        ]
        if left_out := self.about["left_out"]:
            lines.append(f"left out: {len(left_out)} ({', '.join(sorted(left_out))})")
        return "\n".join(lines)


def _map(path: Path, dtype: type) -> np.ndarray:
    """Return an array on disk; raises `ValueError` or `OSError` when it is not a plain .npy file of that type."""
    if not path.is_file():
        raise OSError(f"{path.name} is missing")
    array = open_memmap(path, mode="r")  # unlike np.load, it takes neither pickles nor zip files
    if array.dtype.newbyteorder("=") != dtype:
        raise ValueError(f"{path.name} holds {array.dtype}")
    return array


def _require_types(about: dict[str, Any]) -> tuple[int, Recipe]:
    """Return the number of slices in a `prepared.json`, and their recipe; raises `UnetlibError` for wrong types."""
    where, assume = PREPARED_FILE, optional(one_of(None, *ASSUMABLE))
    kinds = {"data": TEXT, "cases": RECORD, "recipe": RECORD, "left_out": TEXTS, "unusable": RECORD}
    require(about, where, "", **kinds, assume=assume, patients_csv=optional(TEXTS))
    require(about["left_out"], f"{where}, left_out", "", **dict.fromkeys(about["unusable"], TEXT))
    # Before 0.4 a case had the hash of its files only.
    hashes = {kind: optional(TEXT) for kind in HASHES} | {"sha256": TEXT, "images": optional(LIST)}
    for name, case in about["cases"].items():
        require(case, f"{where}, {brief(name)}", "", patient=TEXT, slices=COUNT, stamp=LIST, **hashes)
    published = Recipe.published.stage(PREPARE)
    if unknown := about["recipe"].keys() - published.keys():
        raise ValueError(f"a recipe with the field {min(unknown)}")
    about["recipe"] = {**published, **about["recipe"]}  # older versions did not know all fields
    recipe = Recipe.published.but(depth=1, **about["recipe"])
    return sum(case["slices"] for case in about["cases"].values()), recipe
