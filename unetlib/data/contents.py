"""What a file is by its first bytes, and what to do about one that is damaged or of another kind."""

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unetlib.support.errors import UnetlibError

AGAIN = "Copy or download it again."
EXPORT = "Export it again from the original images."
UNPACK = "Unpack it, and give what it holds."
SLICER = "Convert it to NIfTI, for example with 3D Slicer or SimpleITK."
ANALYZE = "Analyze does not tell left from right: convert the original images to NIfTI."
TIFF = (b"II*\0", b"MM\0*")
HEADER_SIZES = {b"\x5c\1\0\0": 348, b"\0\0\1\x5c": 348, b"\x1c\2\0\0": 540, b"\0\0\2\x1c": 540}  # of NIfTI

# What a file of another kind begins with: at which byte, what, its name, and what to do.
OTHER_FILES: tuple[tuple[int, bytes | tuple[bytes, ...], str, str], ...] = (
    (128, b"DICM", "DICOM", "Convert the whole series to NIfTI, for example with dcm2niix."),
    (0, b"PK\3\4", "a zip archive", UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (0, b"Rar!", "a rar archive", UNPACK),
    (0, b"BZh", "compressed with bzip2", UNPACK),
    (0, b"\xfd7zXZ", "compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (257, b"ustar", "a tar archive", "Unpack it, or name it .tar and give it as the data folder."),
    (0, b"\x1f\x8b", "compressed twice with gzip", "Unpack it once, for example with gunzip."),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "Fetch the file itself with: git lfs pull"),
    (0, b"/annex/objects", "a pointer of git-annex", "Fetch the file itself with: git annex get (or datalad get)"),
    (0, b"L\0\0\0\1\x14\2\0", "a Windows shortcut", "Give the file that it points to."),
    (0, b"\0\5\x16\7", "a side file of macOS", "Give the file of that name without the leading '._'."),
    (0, b"\x89PNG", "a PNG image", EXPORT),
    (0, b"\xff\xd8\xff", "a JPEG image", EXPORT),
    (0, TIFF, "a TIFF image", EXPORT),
    (0, b"NRRD", "NRRD", SLICER),
    (0, b"ObjectType", "MetaImage", SLICER),
    (0, b"\x89HDF", "HDF5 (or MINC 2)", "Convert it to NIfTI."),
    (0, b"CDF", "netCDF (or MINC 1)", "Convert it to NIfTI."),
    (0, b"\x93NUMPY", "a NumPy array", "Save it with nibabel, as nib.Nifti1Image(array, affine)."),
    (0, (b"\x5c\1\0\0", b"\0\0\1\x5c"), "Analyze 7.5, or NIfTI with a damaged header", ANALYZE),
    (0, b"\0\0\0\1\0\0", "MGH of FreeSurfer", "Convert it to NIfTI with mri_convert."),
)


def what_it_is(head: bytes, kind: str) -> str:
    """Return what a file is that does not begin like one of its `kind`, such as "NIfTI", and what to do about it."""
    if not head:
        return f"empty. {AGAIN}"
    if not any(head):
        return f"nothing but zeros, as an interrupted copy leaves it. {AGAIN}"
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        page = "Download it again in a browser, logged in where its publisher asks for it."
        return f"a web page, as a failed download leaves it. {page}"
    if kind == "NIfTI" and len(head) < HEADER_SIZES.get(head[:4], 0):
        return f"cut off: it ends within its header, after {len(head)} bytes. {AGAIN}"
    for at, begin, name, advice in OTHER_FILES:
        if head[at:].startswith(begin) and f"a {kind}" not in name:
            return f"{name}. {advice}"
    if all(byte in string.printable.encode() for byte in head):
        return f"a text file. If it says where the image is, give that. {AGAIN}"
    return f"a file that does not begin like {kind}. Convert it, or copy or download it again."


def first_bytes(path: Path) -> bytes:
    """Return the first 540 bytes of a file; raises `UnetlibError` when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(540)
    except OSError as error:
        raise UnetlibError(f"{path} cannot be read ({reason(error)}). Check that you may read it.") from error


def reason(error: BaseException) -> str:
    """Return the text of an error on one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def damage_in(path: object) -> Iterator[None]:
    """Turn any error in the block into an `UnetlibError` that calls the file damaged: decoders raise a dozen kinds."""
    try:
        yield
    except (UnetlibError, MemoryError):
        raise
    except Exception as error:
        raise UnetlibError(f"{path} is damaged ({reason(error)}). {AGAIN}") from error


def require_file(path: Path, expected: str) -> None:
    """Raise `UnetlibError` unless there is a plain file at `path`; `expected` is a sentence."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        what = f"cannot be reached ({error.strerror}). Check its name and that you may read it."
        raise UnetlibError(f"{path} {what}") from error
    if is_folder:
        raise UnetlibError(f"{path} is a folder. {expected} Give the file that lies in it.")
    if path.is_symlink() and not path.exists():
        raise UnetlibError(f"{path} does not exist: it is a link to {path.readlink()}, which is gone. Put that back.")
    if not is_file:
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise UnetlibError(f"{path} {what}. {expected}")
