"""Atomic writes, folder locks, JSON, CSV and checksums."""

import csv
import errno
import glob
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from unetlib.support.errors import UnetlibError, first_of

MAX_TEXT = 2**25  # largest JSON or CSV file in bytes: five times what 12,000 patients need
PARTIAL = ".unetlib-parts"  # hidden folder with the results of an unfinished job; removed at the end
LOCK = ".unetlib-lock"
WINDOWS = os.name == "nt"
_FULL = "Free some space there, then give the same command again."
CURES = {  # advice for each error that prevents writing, apart from missing permission
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "The file would be larger than this disk or your limits allow; name a folder on another disk.",
    errno.EIO: "The disk reports a fault. Save what is on it, and name a folder on another disk.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOTDIR: "A file stands where a folder was expected. Rename it, or choose another name.",
    errno.EEXIST: "A file stands where a folder was expected. Rename it, or choose another name.",
    errno.EISDIR: "A folder stands where a file was expected. Rename it.",
}


@contextmanager
def atomic(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` only when the block succeeds.

    The temporary file is flushed to disk before the rename, so that after a crash `path` holds
    either the old or the new content, never half of it. Missing parent folders are made. The old
    content is moved to `keep`, if given; there is always a file at `path`.

    Raises `UnetlibError` when the disk is full or the folder cannot be written; the temporary file is removed.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # left by a kill, or a link to a file elsewhere
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if keep and path.exists():
            keep_as(path, keep)
        _replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    except ValueError as error:
        _raise_stop_behind(error)
        raise
    finally:
        with suppress(OSError):  # if the folder cannot be used, there is no temporary file
            temporary.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    """Rename a file to one that may exist; where another program has that open, as on Windows, wait for up to 2 s."""
    for wait in (0.1, 0.2, 0.3, 0.4, 1.0, None):
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if wait is None or not WINDOWS:
                raise
            time.sleep(wait)


def _raise_stop_behind(error: BaseException | None) -> None:
    """Raise the Ctrl-C that caused an error: `zipfile`, when interrupted, cannot close its file."""
    while error := error.__context__ if error else None:
        if isinstance(error, KeyboardInterrupt):
            raise error from None


def _temporary(path: Path) -> Path:
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")  # keeps the suffix, since writers choose the format by it


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Remove the temporary files that killed processes left in `folder`, or only those for files of that `name`.

    The latter needs no lock, so files of a process that still runs are left alone.
    """
    for path in folder.glob(f".tmp-*-{name if name == '*' else glob.escape(name)}"):
        if name == "*" or not _is_running(path.name.split("-")[1]):
            with suppress(OSError):  # Windows cannot remove open files
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(pid: str) -> bool:
    """Tell whether another process of this number runs here; on Windows, its open files cannot be removed anyway."""
    if WINDOWS or not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)  # sends nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # that of another user
        pass
    return True


def keep_as(path: Path, keep: Path) -> None:
    """Copy the content of `path` to `keep`; both are complete at every moment."""
    temporary = _temporary(keep)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    _replace(temporary, keep)
    temporary.unlink(missing_ok=True)  # POSIX does not remove it if `keep` was a link to the same content


def _unwritable(path: Path, error: OSError, belongs_to: Path | None = None) -> UnetlibError:
    """Return an error with advice that depends on the fault, and on whether another folder can be named."""
    may_not = "Name a folder in which you may write."
    if WINDOWS and path.is_file():
        may_not = "Another program may have it open, such as Excel: close it there, then give the same command again."
    elif belongs_to:
        may_not = f"It belongs in {belongs_to}: copy that folder to a place where you may write, and name the copy."
    return UnetlibError(
        f"{path} cannot be written ({error.strerror or error}). {CURES.get(error.errno or 0, may_not)} "
        "Nothing half-written is left."
    )


@contextmanager
def locked(folder: Path, belongs_to: Path | None = None) -> Iterator[None]:
    """Reserve `folder` for this process while the block runs; it is created if necessary.

    The operating system releases the lock when the process ends in any way; its unfinished files are then removed.
    `belongs_to` is the folder that the user names, if `folder` itself cannot be chosen.

    Raises `UnetlibError` when another process (or thread) uses the folder, or it cannot be written.
    """
    missing = not folder.exists()
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        for place in (folder, folder / PARTIAL):
            remove_temporary(place)
    except Timeout:
        raise UnetlibError(
            f"{folder} is in use: another process is writing to it. Wait for its end"
            f"{'' if belongs_to else ', or choose another folder'}."
        ) from None
    except OSError as error:
        raise _unwritable(folder, error, belongs_to) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove an open file
            Path(lock.lock_file).unlink()
        lock.release()
        if missing:
            with suppress(OSError):  # not empty: the usual case
                folder.rmdir()


def visible(folder: Path) -> list[Path]:
    """Return what a folder holds, without hidden files; nothing where there is no folder."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def require_empty(folder: Path, what: str) -> None:
    """Raise `UnetlibError` when `folder` is a file or holds anything but hidden files: it is not `what`."""
    if folder.exists() and not folder.is_dir():
        raise UnetlibError(f"{folder} is a file; {what} was expected. Choose another name.")
    if found := [path.name for path in visible(folder)]:
        shown = first_of(sorted(found), 3)
        raise UnetlibError(f"{folder} holds {shown} and is not {what}. Choose a new folder, so that nothing is lost.")


def refuse_link(folder: Path) -> None:
    """Raise `UnetlibError` when a folder of the library is a link, since files would be written elsewhere."""
    if folder.is_symlink():
        raise UnetlibError(
            f"{folder} is a link; a folder was expected, since files are written there. Remove the link."
        )


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raises `UnetlibError` when it is missing or damaged."""
    try:
        _require_text(path)
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
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


def read_csv(path: Path, numbers: Iterable[str] = ()) -> list[dict[str, str]]:
    """Return the rows of a CSV file, in UTF-8 with or without a byte order mark, as dictionaries of strings.

    Raises `UnetlibError` when it cannot be read, or a row lacks a finite number in one of the columns `numbers`.
    """
    try:
        _require_text(path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
        for column in numbers:
            if not rows or not all(math.isfinite(float(row[column])) for row in rows):
                raise ValueError(f"a finite number was expected in every row of the column {column}")
    except KeyError as error:
        raise UnetlibError(f"{path} has no column {error}. Make it again or restore it.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UnetlibError(f"{path} cannot be read as CSV ({error}). Make it again or restore it.") from error
    return rows


def _require_text(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise OSError("it is not a plain file")  # reading a pipe or a device might never end
    if path.stat().st_size > MAX_TEXT:
        raise ValueError(f"it has {path.stat().st_size >> 20} MB; no more than {MAX_TEXT >> 20} were expected")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is not a JSON number")


def sha256(*paths: Path) -> str:
    """Return the SHA-256 of the files' concatenated bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def digest(content: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
