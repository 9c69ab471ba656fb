"""The fields of a dataclass of choices: what each means, its stage, and the values that it may have."""

import operator
import re
from collections.abc import Callable
from dataclasses import Field, field
from typing import Any

from unetlib.support.errors import brief

HASH = re.compile("[0-9a-f]{64}")
LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "below": (operator.lt, "below"),
    "most": (operator.le, "at most"),
}


def choice(
    default: Any, stage: str, text: str, choices: tuple[Any, ...] | None = None, words: str = "", **limits: float
) -> Any:
    """Declare a field: its published value, its stage, what it means, and its `choices`, limits or `words`."""
    about = {"stage": stage, "help": text, "choices": choices, "words": words, "limits": limits}
    return field(default=default, metadata=about)


def unlike(value: Any, spec: Field) -> str:
    """Return what was expected instead of a field's value; empty if the value is valid."""
    kind: Any = spec.type
    choices, limits = spec.metadata["choices"], spec.metadata["limits"]
    if not isinstance(value, (int, float) if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
        return str(kind.__name__)
    if choices and value not in choices:
        return f"one of {', '.join(map(str, choices))}"
    if (pattern := spec.metadata["words"]) and not _are_words(str(value), pattern):
        return f"a text of 1 to 8 different words in small letters, such as {spec.default!r},"
    if not all(LIMITS[name][0](value, limit) for name, limit in limits.items()):
        return "a number " + " and ".join(f"{LIMITS[name][1]} {limit:,}" for name, limit in limits.items())
    return ""


def _are_words(text: str, pattern: str) -> bool:
    """Tell whether a text is 1 to 8 words of a pattern, separated by spaces; the names before `=` differ."""
    words = text.split(" ")
    names = {word.partition("=")[0] for word in words}
    return 1 <= len(names) == len(words) <= 8 and all(re.fullmatch(pattern, word) for word in words)


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
    if isinstance(value, str) and HASH.fullmatch(value):
        return f"{value[:12]}…"
    return brief(value).strip("'")
