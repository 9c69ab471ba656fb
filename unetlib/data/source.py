"""Where one volume lies."""

from dataclasses import dataclass
from pathlib import Path

from unetlib.support.errors import UnetlibError, brief, unlike
from unetlib.support.paths import home


@dataclass(frozen=True)
class Source:
    """Where one 3-D volume lies: a NIfTI file, one channel of a 4-D NIfTI, or TIFF slices in order.

    `channel` is the index in the last axis of a 4-D NIfTI or of a colour TIFF, `None` where there is none.
    `assume` says where the axes run to, such as "ras", in a file whose header does not; `None` refuses such a file.
    Texts do as paths. Raises `UnetlibError` where there is no path, or the channel is no number from 0 on.
    """

    paths: tuple[Path, ...]
    channel: int | None = None
    assume: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.paths, tuple | list) or not self.paths:
            raise UnetlibError(f"a Source has the paths {brief(self.paths)}; a tuple was expected: (path,).")
        paths = tuple(one if isinstance(one, Path) else home(one) for one in self.paths)
        object.__setattr__(self, "paths", paths)  # the way to set a field of a frozen dataclass
        require_channel(self.channel, str(self))

    def __str__(self) -> str:
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)


def require_channel(channel: int | None, name: str) -> None:
    """Raise `UnetlibError` for a channel below 0, which would count from the last one, or that is no number."""
    if unlike(channel, int | None) or (channel is not None and channel < 0):
        raise UnetlibError(f"{name}: the channel is {brief(channel)}; a whole number from 0 on was expected.")
