"""Extract a tar archive of MRI safely: nothing is executed, nothing lands outside of its folder."""

import re
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from unetlib.errors import UnetlibError
from unetlib.files import read_json, write_json
from unetlib.jobs import progress

MARKER = ".unetlib-archive.json"  # in an extracted folder: which archive it was made from


def open_data(path: Path) -> Path:
    """Return the folder of the data: `path` itself, or what a tar archive holds, extracted beside it.

    The images of `<stem>.tar` (.tar.gz, .tgz) go to `<stem>.extracted`, which appears when it is complete
    and is used again as long as the archive keeps its size and time. Raises `UnetlibError` when `path`
    is neither, the archive is damaged, or it holds anything but plain files and folders inside itself.
    """
    if path.is_dir():
        return path
    if not path.exists():
        raise UnetlibError(f"{path} does not exist. Give the folder, or the .tar archive, that the patients lie in.")
    target = path.with_name(
        re.sub(r"(\.tar\.gz|\.tgz|\.tar|\.[^.]*)$", "", path.name, flags=re.IGNORECASE) + ".extracted"
    )
    origin = {"archive": path.name, "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
    if _origin(target) == origin:
        return target
    if target.exists() and not (target / MARKER).exists():
        raise UnetlibError(f"{target} stands where {path} would be extracted. Rename it, or give it instead.")
    temporary = target.with_name(f".tmp-{target.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a kill
        _extract(path, temporary)
        write_json(temporary / MARKER, origin)
        if _origin(target) != origin:  # unless another process was quicker
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise UnetlibError(
            f"{path} cannot be extracted ({error}). If it is a .tar archive, copy or download it again and see "
            f"that {path.parent} can be written and has room; otherwise give the folder that the patients lie in."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _origin(folder: Path) -> dict[str, object]:
    try:
        return read_json(folder / MARKER)
    except UnetlibError:
        return {}


def _extract(archive: Path, folder: Path) -> None:
    """Extract the images of a tar archive into a new folder, refusing what could reach outside of it."""
    if not tarfile.is_tarfile(archive):
        if archive.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            raise tarfile.ReadError("it is damaged")
        raise UnetlibError(
            f"{archive} is neither a folder nor a .tar archive. Unpack a .zip first; give the folder that the patients "
            "lie in; for a single image use `unetlib predict`."
        )
    folder.mkdir()
    seen = set()
    total = archive.stat().st_size >> 20
    with open(archive, "rb") as raw, tarfile.open(fileobj=raw) as tar, progress(total, "extracting", "MB") as bar:
        for member in tar:
            _refuse_hostile(archive, member)
            name = str(PurePosixPath(member.name)).lower()  # ./a is a, and A is a on Windows and macOS
            if member.isfile() and name.endswith((".nii", ".nii.gz", ".tif", ".tiff")):
                if name in seen:  # the second would overwrite the first
                    raise UnetlibError(f"{archive} holds {member.name!r} twice. Make the archive again.")
                seen.add(name)
                tar.extract(member, folder, filter="data")
            bar.update((raw.tell() >> 20) - bar.n)
        _require_end(tar)


def _require_end(tar: tarfile.TarFile) -> None:
    """Raise when an archive just stops: `tarfile` takes that for its end, and never reads gzip's last checksum."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
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
