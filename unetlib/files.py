"""Files that are either whole or absent: atomic writes, JSON, CSV, checksums."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unetlib.errors import UnetlibError, first_of

PARTIAL = ".unetlib-parts"  # folder of what is done of an unfinished job: hidden, and removed at the end


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it only when the block succeeds.

    The temporary file is flushed to disk before the rename, so that after a crash `path` holds
    either its old content or the new one, never half of it. Missing parent folders are made.

    Raises `UnetlibError` when the disk is full or the folder cannot be written; the temporary
    file is removed.
    """
    temporary = path.with_name(f".tmp-{path.name}")  # keeps the suffix: writers go by it; a kill leaves one at most
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UnetlibError(
            f"{path} cannot be written ({error.strerror or error}). Free some space or choose a "
            "folder that you may write to, then give the same command again; nothing half-written is left."
        ) from error
    finally:
        with suppress(OSError):  # where the folder cannot be had, there is no temporary file either
            temporary.unlink(missing_ok=True)


def require_empty(folder: Path, what: str) -> None:
    """Raise `UnetlibError` when `folder` is a file or holds anything but hidden files: it is not `what`."""
    if folder.exists() and not folder.is_dir():
        raise UnetlibError(f"{folder} is a file; {what} was expected. Choose another name.")
    if folder.exists() and (found := [path.name for path in folder.iterdir() if not path.name.startswith(".")]):
        raise UnetlibError(
            f"{folder} holds {first_of(sorted(found), 3)} and is not {what}. "
            "Choose a new folder, so that nothing is lost."
        )


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raises `UnetlibError` when it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnetlibError(f"{path} cannot be read as JSON ({error}). Make it again or restore it.") from error
    if not isinstance(content, dict):
        raise UnetlibError(f"{path} holds a JSON {type(content).__name__} where an object was expected.")
    return content


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Write one line of `columns` for each of `rows`, atomically; a missing value is left empty."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as dictionaries of strings; raises `UnetlibError` when it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnetlibError(f"{path} cannot be read as CSV ({error}). Make it again or restore it.") from error


def sha256(*paths: Path) -> str:
    """Return the SHA-256 of the files' bytes, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def digest(content: Any) -> str:
    """Return the SHA-256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
