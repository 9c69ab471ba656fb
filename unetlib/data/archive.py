"""Extract a tar archive of MRI safely: nothing is executed, nothing lands outside of its folder."""

import gzip
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from unetlib.data.naming import TABLE
from unetlib.data.nifti import ENDINGS, what_it_is
from unetlib.support.errors import UnetlibError
from unetlib.support.files import fold, locked, read_json, refuse_link, takes_paths, write_json
from unetlib.support.jobs import progress

WANTED = (*ENDINGS, ".tif", ".tiff", "dataset.json")
PLACE = "UNETLIB_EXTRACTED"  # the environment variable that names a folder to extract into
OTHERS = ("a zip", "a 7z", "a rar", "compressed", "a web page", "a pointer")  # with advice that is true of archives
MAX_FILE = 2**31  # bytes of an image; a larger one could not be read anyway (see `volumes.MAX_VOXELS`)
MAX_MEMBERS = 1_000_000
MAX_HEADER = 2**20  # bytes that describe one member
ROOM = 2**28  # bytes of the disk that stay free
ELSEWHERE = (
    f"Name a folder with room in the environment variable {PLACE}, or extract the archive yourself (tar -xf ARCHIVE -C "
    "FOLDER) and give that folder."
)
MARKER = ".unetlib-archive.json"  # in an extracted folder: which archive it was made from


@takes_paths
def open_data(path: Path) -> Path:
    """Return the folder of the data: `path` itself, or what a tar archive holds, extracted beside it.

    The images of `<stem>.tar` (.tar.gz, .tgz), and its `patients.csv`, go to `<stem>.extracted` beside it, or in the
    folder that the variable `UNETLIB_EXTRACTED` names. It appears when it is complete and is used again as long as
    the archive keeps its size and time. Raises `UnetlibError` when `path` is neither, nothing can be written there,
    the archive is damaged, or it holds anything but plain files and folders inside itself.
    """
    if path.is_dir():
        return path
    if not path.is_file():
        raise UnetlibError(
            f"{path} does not exist or is not a file. Give the folder, or the .tar archive, that the patients lie in."
        )
    place = _place() or path.parent
    stem = re.sub(r"(\.tar\.gz|\.tgz|\.tar|\.[^.]*)$", "", path.name, flags=re.IGNORECASE)
    target = place / f"{stem}.extracted"
    origin = {"archive": path.name, "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
    if _origin(target) == origin:
        return target
    if target.exists() and not (target / MARKER).exists():
        raise UnetlibError(f"{target} stands where {path} would be extracted. Rename it, or give it instead.")
    temporary = target.with_name(f".tmp-{target.name}")
    for folder in (target, temporary):
        refuse_link(folder)
    _require_writable(place, path)
    with locked(temporary):
        try:
            shutil.rmtree(temporary / "images", ignore_errors=True)  # left by a kill
            _extract(path, temporary / "images")
            write_json(temporary / "images" / MARKER, origin)
            shutil.rmtree(target, ignore_errors=True)
            (temporary / "images").rename(target)
        except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error, ValueError, RecursionError) as error:
            raise UnetlibError(
                f"{path} cannot be extracted: it is damaged or no .tar archive ({error}). Copy or download it again, "
                "or give the folder that the patients lie in."
            ) from error
        except OSError as error:
            raise UnetlibError(f"{path} cannot be extracted into {place} ({error}). {ELSEWHERE}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _place() -> Path | None:
    """Return the folder that the environment names to extract into; raises `UnetlibError` for `~` of nobody."""
    try:
        return Path(os.environ[PLACE]).expanduser() if os.environ.get(PLACE) else None
    except RuntimeError as error:
        raise UnetlibError(f"{PLACE} is {os.environ[PLACE]!r}: there is no user of that name.") from error


def _require_writable(place: Path, archive: Path) -> None:
    """Raise `UnetlibError` where nothing can be written to the folder that an archive would be extracted into."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UnetlibError(
            f"{archive} cannot be extracted into {place} ({error.strerror or error}). {ELSEWHERE}"
        ) from error


def _origin(folder: Path) -> dict[str, object]:
    try:
        return read_json(folder / MARKER)
    except UnetlibError:
        return {}


class _Metered:
    """A stream that gives out `left` bytes at the most, so that no header of an archive can fill the memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.left = stream, 0
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError("a member is longer than it may be")
        return self.stream.read(size)


def _extract(archive: Path, folder: Path) -> None:
    """Extract the images of a tar archive into a new folder, refusing what could reach outside of it."""
    if not _looks_like_tar(archive):
        if (told := what_it_is(_head(archive), "tar")).startswith(OTHERS):
            raise UnetlibError(f"{archive} is no .tar archive: it is {told}")
        if archive.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            raise tarfile.ReadError("it is damaged")
        raise UnetlibError(
            f"{archive} is neither a folder nor a .tar archive. Unpack a .zip first; give the folder that the patients "
            "lie in; for a single image use `unetlib predict`."
        )
    folder.mkdir()
    seen = set()
    total = archive.stat().st_size >> 20
    with open(archive, "rb") as raw, progress(total, "extracting", "MB") as bar:
        stream = _Metered(gzip.GzipFile(fileobj=raw) if _is_gzip(raw) else raw)  # type: ignore[arg-type]
        stream.left = MAX_HEADER
        tar = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]
        for number in range(MAX_MEMBERS + 1):
            stream.left = MAX_HEADER
            if (member := tar.next()) is None:
                break
            tar.members = []  # type: ignore[attr-defined]  # which would grow with the archive
            tar.pax_headers = {}
            _refuse_hostile(archive, member)
            if number == MAX_MEMBERS:
                raise UnetlibError(f"{archive} holds more than {MAX_MEMBERS} members. Extract what you need yourself.")
            name = fold(str(PurePosixPath(member.name)))  # ./a is a, and A is a on Windows and macOS
            if member.isfile() and (name.endswith(WANTED) or name.rpartition("/")[2] == TABLE):
                if name in seen:  # the second would overwrite the first
                    raise UnetlibError(f"{archive} holds {member.name!r} twice. Make the archive again.")
                seen.add(name)
                _require_room(archive, member, folder)
                stream.left = member.size
                tar.extract(member, folder, filter="data")
            bar.update((raw.tell() >> 20) - bar.n)
        _require_end(stream.stream, tar.offset)


def _is_gzip(raw: IO[bytes]) -> bool:
    magic = raw.read(2)
    raw.seek(0)
    return magic == b"\x1f\x8b"


def _head(archive: Path) -> bytes:
    """Return the first block, unpacked; nothing where it is damaged."""
    with open(archive, "rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if _is_gzip(raw) else raw
        try:
            return stream.read(512)
        except (EOFError, zlib.error, OSError):
            return b""


def _looks_like_tar(archive: Path) -> bool:
    """Tell whether the first block, unpacked, is the header of a member, or the end of an empty archive."""
    try:
        tarfile.TarInfo.frombuf(_head(archive), tarfile.ENCODING, "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return True
    except tarfile.TarError:
        return False
    return True


def _require_room(archive: Path, member: tarfile.TarInfo, folder: Path) -> None:
    """Raise `UnetlibError` before a member is extracted that is no image or does not fit the disk."""
    if member.size > MAX_FILE or member.issparse():
        raise UnetlibError(
            f"{archive} was refused: its member {member.name!r} announces {member.size} bytes"
            f"{', most of them left out' * member.issparse()}, which no image of an MRI has. Get it from its publisher."
        )
    if member.size + ROOM > (free := shutil.disk_usage(folder).free):
        raise UnetlibError(
            f"{archive} cannot be extracted: {member.name!r} needs {member.size} bytes and the disk has room for "
            f"{free}, of which {ROOM} stay free. {ELSEWHERE}"
        )


def _require_end(stream: IO[bytes], offset: int) -> None:
    """Raise when an archive just stops: `tarfile` takes that for its end, and never reads gzip's last checksum."""
    stream.seek(offset)
    if stream.read(512) != bytes(512):
        raise tarfile.ReadError("its end is missing")
    while stream.read(1 << 20):
        pass


def _refuse_hostile(archive: Path, member: tarfile.TarInfo) -> None:
    what = ""
    if not (member.isfile() or member.isdir()):
        what = "a link or a device"
    elif member.name.startswith(("/", "\\")) or PureWindowsPath(member.name).drive:
        what = "an absolute path"
    elif ".." in re.split(r"[\\/]", member.name):
        what = "a path with '..'"
    if what:
        raise UnetlibError(
            f"{archive} was refused: its member {member.name!r} is {what}, which could write or read outside of the "
            "data folder. Get the archive from its publisher, or extract it yourself and give the folder."
        )
