"""Open NIfTI files by what they hold, whatever their names, and say what is wrong with one that cannot be used.

A fault gets advice of its own: `OTHER_FILES` for files of another kind, `_faults` for headers.
"""

import gzip
import io
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from unetlib.support.errors import UnetlibError
from unetlib.support.files import fold

MAX_HEADER = 2**20  # bytes of a NIfTI header with its extensions
MAX_TAIL = 2**20  # bytes behind the voxels
ENDINGS = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
AGAIN = "Copy or download it again."
EXPECTED = "A NIfTI file, .nii or .nii.gz, was expected."
EXPORT = "Export it again from the original images."
UNPACK = "Unpack it, and give what it holds."
ANALYZE = "Analyze does not tell left from right: convert the original images to NIfTI."
PARTNER = {".hdr": ".img", ".img": ".hdr"}

Stream = gzip.GzipFile | io.BufferedReader
HEADERS = (nib.Nifti1Header, nib.Nifti2Header, nib.nifti1.Nifti1PairHeader, nib.nifti2.Nifti2PairHeader)

# What a file that is not NIfTI begins with: at which byte, what, its name, and what to do.
OTHER_FILES: tuple[tuple[int, bytes, str, str], ...] = (
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
    (0, b"\x89PNG", "a PNG picture", EXPORT),
    (0, b"\xff\xd8\xff", "a JPEG picture", EXPORT),
    (0, b"II*\0", "a TIFF picture", EXPORT),
    (0, b"MM\0*", "a TIFF picture", EXPORT),
    (0, b"NRRD", "NRRD", "Convert it to NIfTI, for example with 3D Slicer or SimpleITK."),
    (0, b"ObjectType", "MetaImage", "Convert it to NIfTI, for example with 3D Slicer or SimpleITK."),
    (0, b"\x89HDF", "HDF5 (or MINC 2)", "Convert it to NIfTI."),
    (0, b"CDF", "netCDF (or MINC 1)", "Convert it to NIfTI."),
    (0, b"\x93NUMPY", "a NumPy array", "Save it with nibabel, as nib.Nifti1Image(array, affine)."),
    (0, b"\x5c\1\0\0", "Analyze 7.5 or damaged, without the mark of NIfTI", ANALYZE),
    (0, b"\0\0\1\x5c", "Analyze 7.5 or damaged, without the mark of NIfTI", ANALYZE),
    (0, b"\0\0\0\1\0\0", "MGH of FreeSurfer", "Convert it to NIfTI with mri_convert."),
)
SIZES = {b"\x5c\1\0\0": 348, b"\0\0\1\x5c": 348, b"\x1c\2\0\0": 540, b"\0\0\2\x1c": 540}  # of a header
PAGE = "Download it again in a browser, logged in where its publisher asks for it."


class _FaultError(Exception):
    """What is wrong with a file, and what to do about it."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


def is_nifti(name: str) -> bool:
    """Tell whether a file is named like NIfTI: one file, or one of a pair."""
    return name.lower().endswith(ENDINGS)


def stem(name: str) -> str:
    """Return a file's name without the ending of NIfTI."""
    ending = next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that make up an image: `path` itself, or header and voxels of a pair."""
    other = _partner(path)
    return tuple(sorted((path, other), key=_ending)) if other else (path,)  # .hdr goes before .img


def _ending(path: Path) -> str:
    """Return ".hdr" or ".img" for a file of a pair, compressed or not."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _partner(path: Path) -> Path | None:
    """Return the other file of a pair, in whatever case and compressed or not; `None` where there is none."""
    if _ending(path) not in PARTNER:
        return None
    wanted = {fold(f"{stem(path.name)}{PARTNER[_ending(path)]}{packed}") for packed in ("", ".gz")}
    found = [file for file in path.parent.iterdir() if fold(file.name) in wanted] if path.parent.is_dir() else []
    return min(found, default=None)


@contextmanager
def open_nifti(path: Path) -> Iterator[Any]:
    """Yield the nibabel image in a file or a pair: its header is read and checked, its voxels are not yet.

    Raises `UnetlibError` with the file, what is wrong with it and what to do.
    """
    header, voxels = _two_files(path)
    with _open(header) as stream, _open(voxels) if voxels else stream as body:
        try:
            yield _read(stream, body, header)
        except _FaultError as fault:
            raise UnetlibError(f"{path} cannot be read as NIfTI: {fault}. {fault.advice}") from fault


def _two_files(path: Path) -> tuple[Path, Path | None]:
    """Return the file of the header and, of a pair, that of the voxels; raises `UnetlibError` where one is missing."""
    require_file(path, EXPECTED)
    if _ending(path) not in PARTNER:
        return path, None
    files = files_of(path)
    if len(files) < 2:
        kind = "header" if _ending(path) == ".hdr" else "voxels"
        raise UnetlibError(
            f"{path} holds only the {kind} of an image. Put {stem(path.name)}{PARTNER[_ending(path)]} beside it."
        )
    return files[0], files[1]


def require_file(path: Path, expected: str) -> None:
    """Raise `UnetlibError` unless there is a plain file at `path`."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UnetlibError(
            f"{path} cannot be reached ({error.strerror}). See that its name is right and that you may read it."
        ) from error
    if is_folder:
        raise UnetlibError(f"{path} is a folder. {expected} Give the file that lies in it.")
    if path.is_symlink() and not path.exists():
        raise UnetlibError(f"{path} does not exist: it is a link to {path.readlink()}, which is gone. Put that back.")
    if not is_file:
        raise UnetlibError(f"{path} does not exist or is not a file. {expected}")


def require_name(path: Path) -> None:
    """Raise `UnetlibError` unless an image is named like NIfTI; what to do depends on what it holds."""
    if is_nifti(path.name):
        return
    require_file(path, EXPECTED)
    with _open(path) as stream:
        try:
            head = stream.read(540)
        except Exception as error:
            raise UnetlibError(f"{path} is damaged ({reason(error)}). {AGAIN}") from error
    told = what_it_is(head, "NIfTI")
    advice = "Convert it to NIfTI first." if AGAIN in told else f"It is {told}"
    if any(_is(kind, head) for kind in HEADERS):
        advice = "It begins like NIfTI: rename it, once its copy or download is complete."
    raise UnetlibError(f"{path} is not named .nii or .nii.gz. {advice}")


def _open(path: Path) -> Stream:
    """Return an open file, unpacked where it is gzip: by its first bytes, not its name."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return igzip.open(path) if packed else open(path, "rb")  # 2.7 x faster than gzip
    except OSError as error:
        raise UnetlibError(f"{path} cannot be read ({reason(error)}). See that you may read it.") from error


def _read(stream: Stream, body: Stream, path: Path) -> Any:
    """Return the image whose header is in one stream and whose voxels are in another, perhaps the same."""
    try:
        head = stream.read(540)
    except Exception as error:
        raise UnetlibError(f"{path} is damaged ({reason(error)}). {AGAIN}") from error
    kind: Any = next((kind for kind in HEADERS if _is(kind, head)), None)
    if kind is None:
        raise UnetlibError(f"{path} cannot be read as NIfTI: it is {what_it_is(head, 'NIfTI')}")
    single = kind in HEADERS[:2]
    raw = kind(head[: kind.sizeof_hdr], check=False)
    _require_sane(raw, single, stream is body)
    try:
        end = int(raw["vox_offset"]) if single else MAX_HEADER  # of the header with its extensions
        head += stream.read(max(0, end - len(head)))
        header = kind.from_fileobj(io.BytesIO(head))  # what is damaged here, nibabel would look for without end
        return _image(kind)(ArrayProxy(body, header), None, header)  # the affine is that of the header
    except EOFError as error:
        raise UnetlibError(f"{path} is damaged ({reason(error)}). {AGAIN}") from error
    except (HeaderDataError, ImageFileError, ValueError, OSError, OverflowError) as error:
        raise _FaultError(reason(error), _advice(str(error))) from error
    except Exception as error:
        raise _FaultError(reason(error), EXPORT) from error


def _is(kind: Any, head: bytes) -> bool:
    magic = kind(head[: kind.sizeof_hdr], check=False)["magic"] if len(head) >= kind.sizeof_hdr else b""
    return bool(magic == (kind.single_magic if kind in HEADERS[:2] else kind.pair_magic))


def _image(kind: Any) -> Any:
    return {nib.Nifti1Header: nib.Nifti1Image, nib.Nifti2Header: nib.Nifti2Image,
            nib.nifti1.Nifti1PairHeader: nib.Nifti1Pair}.get(kind, nib.nifti2.Nifti2Pair)  # fmt: skip


def what_it_is(head: bytes, kind: str) -> str:
    """Return what a file is that does not begin like one of its kind, "NIfTI" or "TIFF", and what to do about it."""
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not head:
        return f"empty. {AGAIN}"
    if not any(head):
        return f"nothing but zeros, as an interrupted copy leaves it. {AGAIN}"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return f"a web page, as a failed download leaves it. {PAGE}"
    if kind == "NIfTI" and len(head) < SIZES.get(head[:4], 0):
        return f"cut off: it ends within its header, after {len(head)} bytes. {AGAIN}"
    for at, magic, name, advice in OTHER_FILES:
        if head[at:].startswith(magic) and f"a {kind}" not in name:
            return f"{name}. {advice}"
    if all(byte in string.printable.encode() for byte in head):
        return f"a text. If it stands for the image, give that. {AGAIN}"
    return f"a file that does not begin like {kind}. {AGAIN}"


def _require_sane(raw: Any, single: bool, alone: bool) -> None:
    """Raise `_FaultError` for what nibabel would take in silence, or announce in other words."""
    for wrong, told, advice in _faults(raw, single, alone):
        if wrong:
            raise _FaultError(told, advice)


def _faults(raw: Any, single: bool, alone: bool) -> Iterator[tuple[bool, str, str]]:
    """Yield whether a header has a fault, its description, and advice, for each fault."""
    yield not 1 <= raw["dim"][0] <= 7, "it does not say how many axes it has", EXPORT
    yield not single and alone, "its voxels are announced in another file, .img", "Put the .img beside its .hdr."
    sizes = raw["pixdim"][1:4]
    yield (
        raw["sform_code"] <= 0 and not (abs(sizes) > 0).all(),
        f"its voxels are {' x '.join(f'{size:g}' for size in sizes)} wide",
        EXPORT,
    )
    codes = [int(raw["sform_code"]), int(raw["qform_code"])]
    known = nib.nifti1.xform_codes.value_set("code")
    yield (
        not set(codes) <= known,
        f"its sform and qform have the codes {codes}; 0 to 5 were expected",
        (f"If its affine is right, set the code to 1 (nibabel: image.set_sform(affine, 1)). Otherwise: {EXPORT}"),
    )
    qfac = float(raw["pixdim"][0])
    yield (
        codes[0] <= 0 < codes[1] and qfac not in (-1, 0, 1),
        (f"its qfac is {qfac}, so an axis may be mirrored; 1 or -1 was expected"),
        EXPORT,
    )
    unit = _unit(raw)
    yield (
        unit not in ("mm", "unknown"),
        f"its unit is {unit}; millimetres were expected",
        ("Save it with voxel size and affine in millimetres (nibabel: image.header.set_xyzt_units('mm'))."),
    )
    start, first = float(raw["vox_offset"]), raw.single_vox_offset if single else 0
    yield (
        not first <= start <= MAX_HEADER,
        f"its voxels are announced {start:g} bytes behind its begin",
        (
            f"A single file has them {first} bytes behind it or more: correct vox_offset, or save it with nibabel."
            if single
            else "A pair has them at 0: correct vox_offset, or save it with nibabel."
        ),
    )


def _unit(raw: Any) -> str:
    try:
        return str(raw.get_xyzt_units()[0])
    except KeyError:
        return f"{int(raw['xyzt_units'])}, which no unit has"


def _advice(text: str) -> str:
    """Return what to do about an error of nibabel."""
    if "data code" in text or "datatype" in text.lower():
        return "Save its voxels as int16 or float32."
    if "slope" in text or "intercept" in text or "inter" in text:
        return "Save it again without a scale (scl_slope 1, scl_inter 0)."
    if "dim" in text or "sizeof_hdr" in text or "bitpix" in text:
        return f"Its header is damaged or of another program. {EXPORT}"
    return f"Its header is damaged. {AGAIN}"


def require_voxels(image: Any, path: Path) -> None:
    """Read a compressed file to its end: only there stands the checksum that tells damage."""
    body = image.dataobj.file_like
    if not isinstance(body, gzip.GzipFile):
        return
    try:
        body.seek(image.dataobj.offset + int(np.prod(image.shape)) * image.get_data_dtype().itemsize)
        if len(body.read(MAX_TAIL + 1)) > MAX_TAIL:
            raise ValueError("it goes on behind the last voxel")
    except Exception as error:
        raise UnetlibError(f"{path} is damaged ({reason(error)}). {AGAIN}") from error


def single_header(header: Any) -> Any:
    """Return the header of an image as that of a single file, with the same content."""
    kinds = {nib.nifti1.Nifti1PairHeader: nib.Nifti1Header, nib.nifti2.Nifti2PairHeader: nib.Nifti2Header}
    if type(header) not in kinds:
        return header
    single = kinds[type(header)](endianness=header.endianness)
    for name in header.keys():  # noqa: SIM118 (a header is no dictionary)
        if name not in ("magic", "vox_offset"):
            single[name] = header[name]
    return single


def reason(error: BaseException) -> str:
    """Return the text of an error on one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
