"""Open NIfTI files by what they hold, whatever their names, and say what is wrong with one that cannot be used."""

import gzip
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.arrayproxy import ArrayProxy

from unetlib.data.contents import EXPORT, damage_in, first_bytes, reason, require_file, what_it_is
from unetlib.support.errors import UnetlibError
from unetlib.support.paths import fold

MAX_HEADER = 2**20  # bytes of a NIfTI header with its extensions
MAX_TAIL = 2**20  # bytes after the voxels
ENDINGS = (".nii.gz", ".hdr.gz", ".img.gz", ".nii", ".hdr", ".img")
PARTNER = {".hdr": ".img", ".img": ".hdr"}
IMAGES = (nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.nifti2.Nifti2Pair)
OURS = "unetlib, not for clinical use"  # how the description of a predicted mask begins
WEIGHTS = "; weights {}"  # how it goes on
CODES = nib.nifti1.xform_codes.value_set("code")


def stem(name: str) -> str:
    """Return a file's name without the ending of NIfTI."""
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that make up an image: `path` itself, or header and voxels of a pair.

    The names of a pair may differ in letter case, and in whether they are compressed.
    """
    if (ending := _ending(path)) not in PARTNER or not path.parent.is_dir():
        return (path,)
    wanted = {fold(f"{stem(path.name)}{PARTNER[ending]}{packed}") for packed in ("", ".gz")}
    other = min((file for file in path.parent.iterdir() if fold(file.name) in wanted), default=None)
    return tuple(sorted((path, other), key=_ending)) if other else (path,)  # .hdr goes before .img


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextmanager
def open_nifti(path: Path) -> Iterator[Any]:
    """Yield the nibabel image in a file or a pair: its header is read and checked, its voxels are not yet.

    Raises `UnetlibError` with the file, what is wrong with it and what to do.
    """
    require_file(path, "A NIfTI file, .nii or .nii.gz, was expected.")
    ending, files = _ending(path), files_of(path)
    if ending in PARTNER and len(files) < 2:
        kind = "header" if ending == ".hdr" else "voxels"
        raise UnetlibError(
            f"{path} holds only the {kind} of an image. Put {stem(path.name)}{PARTNER[ending]} beside it."
        )
    with ExitStack() as stack:
        streams = [stack.enter_context(_open(file)) for file in files]
        yield _read(streams[0], streams[-1], path)


def require_name(path: Path) -> None:
    """Raise `UnetlibError` unless an image is named like NIfTI; what to do depends on what it holds."""
    if not path.name.lower().endswith(ENDINGS):
        with open_nifti(path):  # raises where it is something else
            advice = "It begins like NIfTI: rename it, once its copy or download is complete."
            raise UnetlibError(f"{path} is not named .nii or .nii.gz. {advice}")


def _open(path: Path) -> io.BufferedIOBase:
    """Return an open file, unpacked if it is gzip: by its first bytes, not its name."""
    packed = first_bytes(path).startswith(b"\x1f\x8b")
    return igzip.open(path) if packed else open(path, "rb")  # 2.7 x faster than gzip


def _read(stream: io.BufferedIOBase, voxels: io.BufferedIOBase, path: Path) -> Any:
    """Return the image whose header is in one stream and whose voxels are in another, perhaps the same."""
    with damage_in(path):
        head = stream.read(540)
    kind = next((kind for kind in IMAGES if _begins_like(kind.header_class, head)), None)
    if kind is None:
        raise UnetlibError(f"{path} cannot be read as NIfTI: it is {what_it_is(head, 'NIfTI')}")
    raw = kind.header_class(head[: kind.header_class.sizeof_hdr], check=False)
    for is_wrong, what, advice in _faults(raw, stream is voxels):
        if is_wrong:
            raise UnetlibError(f"{path} cannot be read as NIfTI: {what}. {advice}")
    try:
        end = int(raw["vox_offset"]) if raw.is_single else MAX_HEADER  # of the header with its extensions
        head += stream.read(max(0, end - len(head)))
        header = kind.header_class.from_fileobj(io.BytesIO(head))  # in a damaged file, nibabel would search without end
        return kind(ArrayProxy(voxels, header), None, header)  # the affine is that of the header
    except Exception as error:
        what = f"{path} cannot be read as NIfTI: {reason(error)}"
        raise UnetlibError(f"{what}. Its header is damaged or of another program. {EXPORT}") from error


def _begins_like(header: Any, head: bytes) -> bool:
    magic = header(head[: header.sizeof_hdr], check=False)["magic"] if len(head) >= header.sizeof_hdr else b""
    return bool(magic == (header.single_magic if header.is_single else header.pair_magic))


def _faults(raw: Any, alone: bool) -> list[tuple[bool, str, str]]:
    """Return the faults that nibabel would not see or name: whether a header has each, what it is, and advice."""
    codes, sizes, qfac = [int(raw["sform_code"]), int(raw["qform_code"])], raw["pixdim"][1:4], float(raw["pixdim"][0])
    try:
        unit = str(raw.get_xyzt_units()[0])
    except KeyError:
        unit = f"{int(raw['xyzt_units'])}, which no unit has"
    single, start = raw.is_single, float(raw["vox_offset"])
    first = raw.single_vox_offset if single else 0
    set_code = f"If its affine is right, set the code to 1 (nibabel: image.set_sform(affine, 1)). Otherwise: {EXPORT}"
    set_unit = "Save it with voxel size and affine in millimetres (nibabel: image.header.set_xyzt_units('mm'))."
    set_start = f"{'A single file' if single else 'A pair'} has them at byte {first} or later: correct vox_offset, or "
    return [
        (not 1 <= raw["dim"][0] <= 7, "it does not say how many axes it has", EXPORT),
        (not single and alone, "its voxels are announced in another file, .img", "Put the .img beside its .hdr."),
        (codes[0] <= 0 and not (abs(sizes) > 0).all(), f"its voxels are {' x '.join(map('{:g}'.format, sizes))} wide",
         EXPORT),
        (not set(codes) <= CODES, f"its sform and qform have the codes {codes}; 0 to 5 were expected", set_code),
        (codes[0] <= 0 < codes[1] and qfac not in (-1, 0, 1),
         f"its qfac is {qfac}, so an axis may be mirrored; 1 or -1 was expected", EXPORT),
        (unit not in ("mm", "unknown"), f"its unit is {unit}; millimetres were expected", set_unit),
        (not first <= start <= MAX_HEADER, f"its voxels are announced at byte {start:g}",
         f"{set_start}save it with nibabel."),
    ]  # fmt: skip


def require_voxels(image: Any, path: Path) -> None:
    """Read a compressed file to its end, where its checksum is; raises `UnetlibError` when it is damaged."""
    voxels = image.dataobj.file_like
    if isinstance(voxels, gzip.GzipFile):
        with damage_in(path):
            voxels.seek(image.dataobj.offset + int(np.prod(image.shape)) * image.get_data_dtype().itemsize)
            if len(voxels.read(MAX_TAIL + 1)) > MAX_TAIL:
                raise ValueError("it goes on after the last voxel")


def single_header(header: Any) -> Any:
    """Return the header of an image as that of a single file, with the same content."""
    if getattr(header, "is_single", True):
        return header
    kind = nib.Nifti2Header if isinstance(header, nib.nifti2.Nifti2PairHeader) else nib.Nifti1Header
    single = kind(header.binaryblock, header.endianness, check=False)
    single["magic"], single["vox_offset"] = kind.single_magic, 0
    return single


def read_description(path: Path) -> str:
    """Return the description in the header of a NIfTI file, at most 80 letters; empty when it cannot be read."""
    try:
        with open_nifti(path) as image:
            return str(image.header["descrip"].item().decode("latin-1"))
    except UnetlibError:
        return ""
