"""Records read from disk: which fields they must have, and one sentence where they do not.

A kind of value is a test and what the test expects, in words.
"""

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unetlib.support.errors import UnetlibError, brief


class Kind(NamedTuple):
    """What a field may hold; an `optional` field may be missing."""

    fits: Callable[[Any], bool]
    expected: str
    optional: bool = False


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


TEXT = Kind(lambda value: isinstance(value, str), "a text")
RECORD = Kind(lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value), "an object")
TEXTS = Kind(lambda value: RECORD.fits(value) and all(map(TEXT.fits, value.values())), "an object of texts")
LIST = Kind(lambda value: isinstance(value, list), "a list")
NAMES = Kind(lambda value: LIST.fits(value) and all(map(TEXT.fits, value)), "a list of texts")
NUMBER = Kind(_is_number, "a number")
COUNT = Kind(lambda value: type(value) is int and value >= 0, "a whole number of at least 0")


def one_of(*values: Any) -> Kind:
    """Return the kind of a field that holds one of these values."""
    return Kind(lambda value: value in values, f"one of {', '.join(map(str, values))}")


def optional(kind: Kind) -> Kind:
    """Return the same kind for a field that may be missing."""
    return kind._replace(optional=True)


def require(content: Any, where: str | Path, advice: str, /, **kinds: Kind) -> None:
    """Raise `UnetlibError`, with `advice`, unless the record `content` has fields of these kinds.

    `where` names the record in the message, such as its file.
    """
    if not isinstance(content, Mapping):
        raise UnetlibError(f"{where} holds {brief(content)}; an object was expected. {advice}")
    if missing := [name for name, kind in kinds.items() if name not in content and not kind.optional]:
        raise UnetlibError(f"{where} lacks {', '.join(sorted(missing))}: it was edited or damaged. {advice}")
    for name, (fits, expected, _) in kinds.items():
        if name in content and not fits(content[name]):
            raise UnetlibError(f"{where}: its {name} is {brief(content[name])}; {expected} was expected. {advice}")


def refuse_packed(path: Path) -> None:
    """Raise `ValueError` unless `path` is an uncompressed zip, which takes no more memory than disk space."""
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            raise ValueError("it is not a zip file")
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")
