"""Divide patients into train, val and test, and store the split in a file."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from unetlib.data.naming import TABLE
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.files import digest, read_json, write_json
from unetlib.support.paths import takes_paths
from unetlib.support.records import NAMES, TEXT, require

SPLIT_FILE = "split.json"
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Ids of the patients in each part; no patient is in two of them.

    Raises `UnetlibError` when a patient is in two parts or a part is empty.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in PARTS:
            if not getattr(self, part):
                raise UnetlibError(f"the split has no {part} patient; every part needs at least one.")
        times = Counter([*self.train, *self.val, *self.test])
        if twice := sorted(patient for patient, number in times.items() if number > 1):
            raise UnetlibError(
                f"the split holds {', '.join(twice)} more than once: training and test would share patients, and the "
                "test scores would mean nothing. Make the split again."
            )

    @property
    def hash(self) -> str:
        """SHA-256 of the ids, part by part."""
        return digest(asdict(self))

    def patients(self, *parts: str) -> set[str]:
        """Return the ids in these parts, by default in all of them."""
        return {patient for part in parts or PARTS for patient in getattr(self, part)}

    def part_of(self, patient: str) -> str | None:
        """Return `"train"`, `"val"` or `"test"`, or `None` for a patient who is in no part."""
        return next((part for part in PARTS if patient in getattr(self, part)), None)

    @takes_paths
    def save(self, path: Path) -> None:
        """Write the ids and their hash as JSON."""
        write_json(path, {**asdict(self), "hash": self.hash})

    @classmethod
    @takes_paths
    def load(cls, path: Path) -> "Split":
        """Read a split file; raises `UnetlibError` when it is damaged, edited or not disjoint."""
        content = read_json(path)
        ids = NAMES._replace(expected="a list of patient ids")
        require(content, path, "Restore it.", **dict.fromkeys(PARTS, ids), hash=TEXT)
        try:
            split = cls(*(tuple(content[part]) for part in PARTS))
        except UnetlibError as error:
            raise UnetlibError(f"{path}: {error}") from error
        if content["hash"] != split.hash:
            raise UnetlibError(
                f"{path}: its ids do not match its hash, so it was edited or damaged. Restore it; for a split of "
                "your own, prepare into a new folder with another seed."
            )
        return split

    def of_member(self, member: int) -> "Split":
        """Return the split of one of several networks, counted from 0: it validates on other patients.

        The first keeps this split. Each further one validates on as many of the training patients, or on those left,
        none of them twice, and trains on all others but the test patients. Raises `UnetlibError` when none is left.
        """
        number = len(self.val)
        val = _shuffled(self.train, 0)[(member - 1) * number : member * number] if member else [*self.val]
        if not val:
            raise UnetlibError(
                f"member {member + 1} has no patients of its own to validate on: the split has {len(self.train)} "
                f"training and {number} validation patients. Ask for fewer members."
            )
        return Split(tuple(sorted({*self.train, *self.val} - {*val})), tuple(sorted(val)), self.test)


def make_split(patients: Iterable[str], seed: int = 0, train_fraction: float = 0.70) -> Split:
    """Return a random patient-level split: `train_fraction` of the patients, the rest halved into val and test.

    Patients are sorted by the SHA-256 of seed and id, so the split depends on nothing else, such as the order of the
    folder, the system or the version of a generator. Raises `UnetlibError` for fewer than three patients.
    """
    ids = sorted(set(patients))
    if len(ids) < 3:
        raise UnetlibError(
            f"{counted(len(ids), 'usable patient')} found; a split into train, val and test needs at least 3. "
            f"Add patients, or say in a table {TABLE} in the data folder who is one patient, where names mislead."
        )
    shuffled = _shuffled(ids, seed)
    train = max(1, min(round(train_fraction * len(ids)), len(ids) - 2))
    val = (len(ids) - train) // 2
    parts = shuffled[:train], shuffled[train : train + val], shuffled[train + val :]
    return Split(*(tuple(sorted(part)) for part in parts))


def _shuffled(ids: Iterable[str], seed: int) -> list[str]:
    return sorted(ids, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).digest())
