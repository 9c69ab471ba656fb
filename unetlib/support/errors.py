"""The exception for user errors, and helpers for its messages."""

import os
import reprlib
import shlex
import unicodedata
from collections.abc import Mapping
from numbers import Integral, Real
from types import UnionType
from typing import Any, get_args, get_origin

_NUMBERS: dict[type, type] = {int: Integral, float: Real, bool: Integral}  # numpy's, too
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 100
_REVERSING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # marks of the direction of writing


class UnetlibError(Exception):
    """Bad input or a refused action.

    The message names the file or patient, what was found, what was expected and what to do. The
    command line prints it without a traceback and exits with status 1.
    """


def counted(number: int, unit: str) -> str:
    """Return a number with its noun, such as "1 case" or "3 cases"."""
    return f"{number} {unit}{'s' * (number != 1)}"


def made_by(about: Mapping[str, Any]) -> str:
    """Return which version of the library wrote a description such as `prepared.json`."""
    return str(about.get("unetlib", "0.3 or older"))


def brief(value: object) -> str:
    """Return a value from an untrusted file as text of limited length."""
    try:
        return _BRIEF.repr(value)
    except Exception:  # Python refuses to write out an integer of 5,000 digits
        return f"a {type(value).__name__}"


def unlike(value: Any, annotation: Any) -> str:
    """Return which type of an annotation was expected instead of a value's; empty if it fits, or cannot be told."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    kinds = {get_origin(one) or one for one in members}
    if Any in kinds or not all(isinstance(kind, type) for kind in kinds):
        return ""
    allowed = tuple(_NUMBERS.get(kind, kind) for kind in kinds if kind is str or type(value) is not str)
    if isinstance(value, allowed):
        return ""
    return " or ".join(sorted(kind.__name__.removesuffix("Type") for kind in kinds))


def is_text(name: str) -> bool:
    """Tell whether a name can be written to any table and shown: no bytes that are no text, no control codes.

    Spaces and joiners of any script are text; marks that reverse the order of what follows are not.
    """
    return not any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or one in _REVERSING for one in name)


def printable(text: str) -> str:
    """Return text without terminal control codes, such as those in untrusted file names."""
    return "".join(one if is_text(one) or one == "\n" else ascii(one)[1:-1] for one in text)


def quoted(word: object) -> str:
    """Return a word, such as a path, as it is typed in a command: in quotes where spaces or other signs need them.

    On Windows in double quotes, the only ones that cmd knows; PowerShell takes them, too.
    """
    text = str(word)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


def first_of(names: list[str], most: int = 20) -> str:
    """Return the first `most` names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
