"""Arguments that are paths: texts and `~` for them, arguments of other types, names as file systems compare them."""

import inspect
import os
import unicodedata
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from unetlib.support.errors import UnetlibError, brief, unlike

P = ParamSpec("P")
R = TypeVar("R")
_IMAGES = list[Path | dict[str, Path]]  # a dictionary holds the images of one patient
_PATHS = (Path, Path | None, _IMAGES, str | Path, str | Path | None)


def fold(name: str) -> str:
    """Return a name as Windows and macOS compare it, ignoring letter case and the encoding of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def takes_paths(function: Callable[P, R]) -> Callable[P, R]:
    """Let parameters annotated as `Path` also take strings, and refuse arguments of other types than annotated.

    `~` becomes the user's folder; where a list is expected, one path (or dictionary of paths) will do.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            if parameter.annotation in _PATHS and value is not None:
                if parameter.annotation == _IMAGES:
                    value = [*map(_home_of_each, value if isinstance(value, list | tuple) else [value])]
                else:
                    value = None if value == "" and parameter.default is None else home(value)
            if parameter.annotation is not parameter.empty and (expected := unlike(value, parameter.annotation)):
                raise UnetlibError(f"{function.__name__}: {name} is {brief(value)}; {expected} was expected.")
            given.arguments[name] = value
        return function(*given.args, **given.kwargs)

    return wrapped


def home(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` expanded; raises `UnetlibError` for what is no path, or an unknown user."""
    if path == "":  # `Path` would take it as the working directory
        raise UnetlibError("an empty text was given where a path was expected. Name a file or folder.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UnetlibError(f"{path}: there is no user of that name. Give the folder itself.") from error
    except TypeError as error:
        raise UnetlibError(f"{brief(path)} was given where a path was expected. Name a file or folder.") from error


def _home_of_each(paths: Any) -> Path | dict[str, Path]:
    return {name: home(path) for name, path in paths.items()} if isinstance(paths, dict) else home(paths)
