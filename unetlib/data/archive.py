"""Extract a tar archive of MRI safely: nothing is executed, nothing is written outside its folder."""

import gzip
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from unetlib.data.contents import what_it_is
from unetlib.data.layouts import IMAGES
from unetlib.data.naming import TABLE
from unetlib.support.errors import UnetlibError, first_of
from unetlib.support.files import locked, read_json, refuse_link, write_json
from unetlib.support.jobs import progress
from unetlib.support.paths import fold, home, takes_paths

PLACE = "UNETLIB_EXTRACTED"  # the environment variable that names a folder to extract into
TAR = (".tar.gz", ".tgz", ".tar")
WANTED = (*IMAGES, "dataset.json")
OTHERS = ("a zip", "a 7z", "a rar", "compressed", "a web page", "a pointer")  # whose advice fits archives, too
MAX_FILE = 2**31  # bytes of an image; a larger one could not be read anyway (see `volumes.MAX_VOXELS`)
MAX_MEMBERS = 1_000_000
MAX_HEADER = 2**20  # bytes that describe one member
ROOM = 2**28  # bytes of the disk that stay free
MARKER = ".unetlib-archive.json"  # in an extracted folder: which archive it was made from
ELSEWHERE = (
    f"Name a folder with room in the environment variable {PLACE}, or extract the archive yourself (tar -xf ARCHIVE -C "
    "FOLDER) and give that folder."
)


@takes_paths
def open_data(path: Path) -> Path:
    """Return the folder of the data: `path` itself, or what a tar archive holds, extracted beside it.

    The images of `<stem>.tar` (.tar.gz, .tgz), and its `patients.csv`, go to `<stem>.extracted` beside it, or in the
    folder that the variable `UNETLIB_EXTRACTED` names. It appears when it is complete and is used again as long as
    the archive keeps its size and time. Raises `UnetlibError` when `path` is neither, nothing can be written there,
    the archive is damaged, or it holds anything but plain files and folders inside itself.
    """
    if path.is_dir():
        return path if path.name.strip(".") else path.resolve()  # `.` has no name
    if not path.is_file():
        what = "is neither a folder nor a file" if path.exists() else "does not exist"
        raise UnetlibError(f"{path} {what}. Give the folder, or the .tar archive, that the patients lie in.")
    end = next((end for end in TAR if path.name.lower().endswith(end)), path.suffix)
    target = home(os.environ.get(PLACE) or path.parent) / f"{path.name[: len(path.name) - len(end)]}.extracted"
    stat, where = path.stat(), str(path.resolve().parent)
    origin = {"archive": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "folder": where}
    before: dict[str, Any] = {}
    with suppress(UnetlibError):
        before = read_json(target / MARKER)
    if {**before, "folder": where} == origin:  # older versions did not store the folder
        return target
    other = Path(before.get("folder", where)) / before.get("archive", path.name)
    if other != path.resolve() and other.is_file():
        raise UnetlibError(
            f"{target} holds what was extracted from {other}, another archive of that name. Rename one of the two, or "
            f"name another folder in the environment variable {PLACE}."
        )
    if target.exists() and not (target / MARKER).exists():
        raise UnetlibError(f"{target} stands where {path} would be extracted. Rename it, or give it instead.")
    try:
        _make(target, path, origin)
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UnetlibError(
            f"{path} cannot be extracted: it is damaged or no .tar archive ({error}). Copy or download it again, "
            "or give the folder that the patients lie in."
        ) from error
    except OSError as error:
        what = f"{path} cannot be extracted into {target.parent} ({error.strerror or error})"
        raise UnetlibError(f"{what}. {ELSEWHERE}") from error
    return target


def _make(target: Path, archive: Path, origin: dict[str, Any]) -> None:
    temporary = target.with_name(f".tmp-{target.name}")
    for folder in (target, temporary):
        refuse_link(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=target.parent):  # raises where nothing can be written
        pass
    images, old = temporary / "images", temporary / "old"
    with locked(temporary):
        try:
            if old.exists() and not target.exists():
                old.rename(target)  # a kill came between the last two lines of this block
            _refuse_own(target, archive)
            for left in (images, old):
                shutil.rmtree(left, ignore_errors=True)
            _extract(archive, images)
            write_json(images / MARKER, origin)
            if (target / TABLE).is_file() and not (images / TABLE).exists():
                shutil.copy2(target / TABLE, images)  # the user's own
            if target.exists():
                target.rename(old)
            images.rename(target)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            shutil.rmtree(temporary, ignore_errors=True)


def _refuse_own(folder: Path, archive: Path) -> None:
    """Raise `UnetlibError` if an extracted folder holds files of the user's, which would be lost."""
    if not folder.exists():
        return
    made = (folder / MARKER).stat().st_mtime_ns
    later = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mtime_ns > made]
    names = [path.relative_to(folder).as_posix() for path in later if not path.name.startswith(".")]
    if own := sorted({*names} - {TABLE}):
        raise UnetlibError(
            f"{archive} has changed, and so has {folder}, which was made from it: {first_of(own)}. Move your own files "
            f"elsewhere and delete {folder}, then give the same command again."
        )


class _Metered:
    """A stream that gives at most `left` bytes, so that no header of an archive can fill the memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.left = stream, MAX_HEADER
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError("a member is longer than it may be")
        return self.stream.read(size)


def _extract(archive: Path, folder: Path) -> None:
    """Extract the images of a tar archive into a new folder, refusing what could reach outside of it."""
    _require_tar(archive)
    folder.mkdir()
    seen: set[str] = set()
    with open(archive, "rb") as raw, progress(archive.stat().st_size >> 20, "extracting", "MB") as bar:
        stream = _Metered(_unpacked(raw))
        tar = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]
        for number in range(MAX_MEMBERS + 1):
            stream.left = MAX_HEADER
            if (member := tar.next()) is None:
                break
            tar.members = []  # type: ignore[attr-defined]  # which would grow with the archive
            tar.pax_headers = {}
            name = fold(str(PurePosixPath(member.name)))  # ./a is a, and A is a on Windows and macOS
            wanted = member.isfile() and (name.endswith(WANTED) or name.rpartition("/")[2] == TABLE)
            _refuse_hostile(archive, member, wanted, name in seen, shutil.disk_usage(folder).free)
            if number == MAX_MEMBERS:
                raise UnetlibError(f"{archive} holds more than {MAX_MEMBERS} members. Extract what you need yourself.")
            if wanted:
                seen.add(name)
                stream.left = member.size
                tar.extract(member, folder, filter="data")
            bar.update((raw.tell() >> 20) - bar.n)
        # `tarfile` takes an archive that just stops for its end, and never reads gzip's last checksum.
        stream.stream.seek(tar.offset)
        if stream.stream.read(512) != bytes(512):
            raise tarfile.ReadError("its end is missing")
        while stream.stream.read(1 << 20):
            pass


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[return-value]


def _require_tar(archive: Path) -> None:
    """Raise unless the first block, unpacked, is the header of a member, or the end of an empty archive."""
    head = b""
    with open(archive, "rb") as raw, suppress(EOFError, zlib.error, OSError):
        head = _unpacked(raw).read(512)
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return
    except tarfile.TarError as error:
        if (what := what_it_is(head, "tar")).startswith(OTHERS):
            raise UnetlibError(f"{archive} is no .tar archive: it is {what}") from error
        if archive.name.lower().endswith(TAR):
            raise
        raise UnetlibError(
            f"{archive} is neither a folder nor a .tar archive. Unpack a .zip first; give the folder that the patients "
            "lie in; for a single image use `unetlib predict`."
        ) from error


def _refuse_hostile(archive: Path, member: tarfile.TarInfo, wanted: bool, seen: bool, free: int) -> None:
    """Raise `UnetlibError` for a member that would reach outside of the folder or overwrite another, or is too large.

    `wanted`: it would be extracted, to a disk with so many bytes `free`. `seen`: there is another of that name.
    """
    absolute = member.name.startswith(("/", "\\")) or PureWindowsPath(member.name).drive
    full = f"needs {member.size} bytes and the disk has room for {free}, of which {ROOM} stay free"
    get = "Get the archive from its publisher, or extract it yourself and give the folder."
    for is_hostile, why, advice in (
        (not (member.isfile() or member.isdir()), "is a link or a device, which could lead out of the folder", get),
        (absolute, "is an absolute path, which could reach outside of the folder", get),
        (".." in re.split(r"[\\/]", member.name), "is a path with '..', which could reach outside of the folder", get),
        (wanted and seen, "is there twice", get),
        (wanted and member.size > MAX_FILE, f"announces {member.size} bytes, which no image of an MRI has", get),
        (wanted and member.issparse(), f"leaves out most of its {member.size} bytes, as no image of an MRI does", get),
        (wanted and member.size + ROOM > free, full, ELSEWHERE),
    ):
        if is_hostile:
            raise UnetlibError(f"{archive} was refused: its member {member.name!r} {why}. {advice}")
