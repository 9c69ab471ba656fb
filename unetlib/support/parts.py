"""Finished parts of an unfinished job: atomic files from which the next call resumes."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetlib.support.files import PARTIAL, digest, refuse_link

LONGEST = 160  # bytes of a name; a letter has up to 4


@dataclass(frozen=True)
class Parts:
    """The parts of a job that writes to `folder`: one file each, in a hidden folder that is removed at the end.

    The name of a part depends on everything it is made from, so that a stale one is never used. The job's result is
    written last; the parts stay until then.
    """

    folder: Path
    suffix: str = ".json"

    @classmethod
    def open(cls, folder: Path, suffix: str = ".json") -> "Parts":
        """Return the parts in a folder; raises `UnetlibError` if the folder is a link."""
        refuse_link(folder / PARTIAL)
        return cls(folder, suffix)

    def path(self, name: str, *made_from: Any) -> Path:
        """Return the path of the part of that name, made from these JSON-serialisable values."""
        if len(name.encode()) > LONGEST:  # the whole would be too long for a file system
            name, made_from = name[: LONGEST // 4], (name, *made_from)
        return self.folder / PARTIAL / f"{name}-{digest([*made_from])[:16]}{self.suffix}"

    @property
    def left(self) -> bool:
        """Whether there are parts, and none of another kind of job."""
        return (self.folder / PARTIAL).is_dir() and not self.foreign

    @property
    def foreign(self) -> bool:
        """Whether another kind of job, whose parts end otherwise, has left some."""
        return any(part.suffix != self.suffix for part in (self.folder / PARTIAL).glob("*"))

    def remove(self) -> None:
        """Remove all parts; call this only after the result is written."""
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)
