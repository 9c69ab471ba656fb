"""Damaged NIfTI files, a thousand at a time: each is read rightly or refused in a sentence.

What is right comes from a parser of this file, written after the NIfTI-1 standard (nifti1.h, 2007). `make test-long`
tries 20 thousand files.
"""

import gzip
import re
import struct
from itertools import product

import numpy as np
import pytest

from tests.conftest import SMALL, rounds
from unetlib.data.check import check
from unetlib.data.patients import find_cases, read_case
from unetlib.data.prepare import prepare
from unetlib.data.slices import image_to_slices, mask_to_slices

MUTANTS = 1000  # of a round
SHAPE = (12, 10, 4)
RECIPE = SMALL.but(slices="all")
FIELDS = {  # name -> place, type and number of values in the header (nifti1.h)
    "sizeof_hdr": (0, "i", 1),
    "dim_info": (39, "B", 1),
    "dim": (40, "h", 8),
    "intent_code": (68, "h", 1),
    "datatype": (70, "h", 1),
    "bitpix": (72, "h", 1),
    "pixdim": (76, "f", 8),
    "vox_offset": (108, "f", 1),
    "scl_slope": (112, "f", 1),
    "scl_inter": (116, "f", 1),
    "xyzt_units": (123, "B", 1),
    "cal_max": (124, "f", 1),
    "descrip": (148, "80s", 1),
    "qform_code": (252, "h", 1),
    "sform_code": (254, "h", 1),
    "quatern": (256, "f", 3),
    "qoffset": (268, "f", 3),
    "srow": (280, "f", 12),
    "intent_name": (328, "16s", 1),
    "magic": (344, "4s", 1),
    "extension": (348, "B", 4),
}
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
HARMLESS = ("dim_info", "intent_code", "cal_max", "descrip", "intent_name")
EXTREME = {
    "i": [0, 1, -1, 347, 349, 540, 2**31 - 1, -(2**31)],
    "h": [0, 1, 2, 3, 4, 5, 7, 8, 10, 12, 16, -1, -4, 32, 64, 128, 255, 512, 768, 1024, 1536, 2304, 32767, -32768],
    "f": [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 352.0, 368.0, 400.5, 1e-40, 1e-20, 1e6, 1e20, 3e38, -3e38,
          float("nan"), float("inf"), float("-inf")],
    "B": [0, 1, 2, 3, 4, 10, 127, 128, 255],
    "80s": [b"", b"\xff" * 80, b"\x1b[2J"],
    "16s": [b"", b"\xff" * 16],
    "4s": [b"n+1\0", b"ni1\0", b"n+2\0", b"\0\0\0\0", b"N+1\0", b"n+1 "],
}  # fmt: skip


# The oracle


def parse(content):
    """Return the voxels and the affine of a NIfTI-1 file, after the standard; raise `ValueError` where it has none."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except Exception as error:
            raise ValueError("gzip") from error
    if len(content) < 352 or content[344:348] != b"n+1\0":
        raise ValueError("magic")
    order = "<" if 1 <= struct.unpack_from("<h", content, 40)[0] <= 7 else ">"  # so the standard tells the byte order
    field = {key: struct.unpack_from(order + n * kind, content, at) for key, (at, kind, n) in FIELDS.items()}
    dimensions, code = field["dim"][0], field["datatype"][0]
    if not 1 <= dimensions <= 7 or code not in TYPES or min(field["dim"][1 : dimensions + 1]) < 1:
        raise ValueError("dim or datatype")
    if field["xyzt_units"][0] & 7 not in (0, 2):
        raise ValueError("not millimetres")
    shape = field["dim"][1 : dimensions + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    start, type_ = field["vox_offset"][0], np.dtype(order + TYPES[code])
    if len(shape) != 3 or not 352 <= start < len(content):
        raise ValueError("shape or vox_offset")
    count = int(np.prod(shape, dtype=np.float64))
    if len(content) < int(start) + count * type_.itemsize:
        raise ValueError("truncated")
    voxels = np.frombuffer(content, type_, count, int(start)).reshape(shape, order="F")
    slope, inter = field["scl_slope"][0], field["scl_inter"][0]
    if slope != 0 and np.isfinite(slope):
        with np.errstate(all="ignore"):
            voxels = voxels.astype(np.float64) * slope + inter
    return voxels, affine_of(field)


def affine_of(field):
    affine = np.eye(4)
    spacing = np.abs(field["pixdim"][1:4])
    if field["sform_code"][0] > 0:
        affine[:3] = np.reshape(field["srow"], (3, 4))
    elif field["qform_code"][0] > 0:
        b, c, d = field["quatern"]
        a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        rotation = np.array([
            [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
            [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
            [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
        ])  # fmt: skip
        affine[:3, :3] = rotation * spacing * [1, 1, -1 if field["pixdim"][0] < 0 else 1]
        affine[:3, 3] = field["qoffset"]
    else:
        raise ValueError("no orientation at all")
    return affine


def turn(voxels, affine):
    """Return voxels and affine with axes towards left, back and head, for an affine that is nearly a permutation."""
    axes = [int(np.argmax(np.abs(affine[row, :3]))) for row in range(3)]
    voxels, affine = voxels.transpose(axes), affine[:, [*axes, 3]].copy()
    for axis, sign in enumerate((-1, -1, 1)):
        if affine[axis, axis] * sign < 0:
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
    return voxels, affine


# The mutants


def build(voxels, code=4, **fields):
    """Return the bytes of a NIfTI-1 file."""
    content = bytearray(352)
    values = {
        "sizeof_hdr": [348],
        "dim": [3, *voxels.shape, 1, 1, 1, 1],
        "datatype": [code],
        "bitpix": [8 * np.dtype(TYPES[code]).itemsize],
        "pixdim": [1, 1, 1, 2, 1, 1, 1, 1],
        "vox_offset": [352],
        "scl_slope": [1],
        "xyzt_units": [2],
        "qform_code": [1],
        "sform_code": [1],
        "quatern": [0, 0, 1],
        "srow": [-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 2, 0],
        "magic": [b"n+1\0"],
        **fields,
    }
    for name, numbers in values.items():
        put(content, name, numbers)
    return bytes(content) + voxels.astype(TYPES[code]).tobytes(order="F")


def put(content, name, values, order="<"):
    at, kind, number = FIELDS[name]
    struct.pack_into(order + number * kind, content, at, *values)


def flip(rng, content, start, stop):
    content = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(start, min(stop, len(content)))] ^= 1 << rng.integers(8)
    return bytes(content)


def set_field(rng, content, names=tuple(FIELDS)):
    """Return the content with one value of one field set to an extreme, and what was done."""
    name = str(rng.choice(names))
    at, kind, number = FIELDS[name]
    value, size = EXTREME[kind][rng.integers(len(EXTREME[kind]))], struct.calcsize(kind)
    place = at + size * int(rng.integers(number))
    content = bytearray(content)
    struct.pack_into("<" + kind, content, place, value)
    return bytes(content), f"{name} at {place} = {value}"


def swapped(content, body=True):
    """Return the same file in the other byte order; without `body`, a header that lies about the voxels."""
    header = bytearray(content[:352])
    for at, kind, number in FIELDS.values():
        if kind in "ihf":
            struct.pack_into(">" + number * kind, header, at, *struct.unpack_from("<" + number * kind, content, at))
    return bytes(header) + (np.frombuffer(content[352:], "<i2").astype(">i2").tobytes() if body else content[352:])


def reshape(rng, content):
    shapes = [(10, 12, 4), (12, 10, 2), (480,), (12, 40), (12, 10, 4, 1), (12, 10, 4, 1, 1), (12, 10, 2, 2),
              (12, 10, 1, 1, 4), (1, 1, 480), (12, 10, 0), (12, 10, -4), (12, 10, 5), (12, 10, 4, 1, 2)]  # fmt: skip
    shape = shapes[rng.integers(len(shapes))]
    content = bytearray(content)
    put(content, "dim", [len(shape), *shape, *[1] * (7 - len(shape))])
    return bytes(content), f"shape {shape}"


def retype(rng, image):
    """Return the image in another number type, now and then with values that none has."""
    code = int(rng.choice([code for code in TYPES if code != 4]))
    values = image.astype(np.float64)
    odd = rng.choice([np.nan, np.inf, 1e39, 1e300, 100.0, 1e9])
    if TYPES[code][0] == "f" and rng.random() < 0.5:
        with np.errstate(over="ignore"):
            values[1, 1, 1] = np.dtype(TYPES[code]).type(odd)
    shift = rng.choice([0, 2**24, 2**30]) if TYPES[code] in ("i4", "u4", "i8", "u8", "f8") else 0
    values = np.clip(values + shift, 0, 127 if TYPES[code] == "i1" else 255 if TYPES[code] == "u1" else None)
    return build(values, code), f"type {TYPES[code]}, {odd}, + {shift}"


def grid(rng):
    """Return fields of an affine that image and mask share: turned, and of odd sizes."""
    axes, signs = rng.permutation(3), rng.choice([-1, 1], 3)
    matrix = np.zeros((3, 4))
    for row in range(3):
        matrix[row, axes[row]] = signs[row] * rng.choice([0.3, 1.0, 5.0, 1e-6, 1e5])
    matrix[:, 3] = rng.normal(0, 50, 3)
    return matrix.ravel().tolist()


def pack(rng, content):
    """Return the content compressed, damaged on the way."""
    packed = bytearray(gzip.compress(content, 6, mtime=0))
    kind = rng.integers(6)
    if kind == 0:
        packed[rng.integers(10, len(packed))] ^= 1 << rng.integers(8)
    elif kind == 1:
        packed = packed[: rng.integers(len(packed))]
    elif kind == 2:
        packed[-rng.integers(1, 9)] ^= 255  # the checksum and the length
    elif kind == 3:
        packed = packed[: -rng.integers(1, 9)]
    elif kind == 4:
        packed += rng.bytes(20)
    else:
        half = len(content) // 2
        packed = gzip.compress(content[:half]) + gzip.compress(content[half:])  # two members: a valid file
    return bytes(packed), f"gzip, kind {kind}"


def mutate(rng, image, mask):
    """Return what was done and the two files: (text, (image, end of its name), (mask, end of its name))."""
    files, ends = [build(image), build(mask, 2)], [".nii.gz" if rng.random() < 0.3 else ".nii"] * 2
    one, kind, done = int(rng.random() < 0.3), int(rng.integers(16)), ""
    if kind == 0:
        files[one] = flip(rng, files[one], 0, 352)
    elif kind == 1:
        files[one] = flip(rng, files[one], 352, 10**6)
    elif kind in (2, 3, 4):
        files[one], done = set_field(rng, files[one])
    elif kind == 5:
        files[one] = files[one][: rng.integers(len(files[one]))]
    elif kind == 6:
        files[one] += rng.bytes(rng.integers(1, 2000))
    elif kind == 7:
        files[one] = [files[one][352:] + files[one][:352], rng.bytes(900), b"", bytes(2000)][rng.integers(4)]
    elif kind == 8:
        files[0] = swapped(files[0], body=rng.random() < 0.7)
    elif kind == 9:
        files[one], done = reshape(rng, files[one])
    elif kind == 10:
        files[0], done = retype(rng, image)
    elif kind == 11:  # the same lie in both files
        state = rng.bit_generator.state
        files[0], done = set_field(rng, files[0])
        rng.bit_generator.state = state
        files[1], _ = set_field(rng, files[1])
    elif kind == 12:
        srow = grid(rng)
        files, done = [build(image, srow=srow), build(mask, 2, srow=srow)], f"srow {srow}"
    elif kind == 13:
        code = rng.choice([0, 1], 2)
        both = {"sform_code": [0], "qform_code": [code[0]], "pixdim": [rng.choice([-1, 0, 1, -3]), 1, 2, 3, 1, 1, 1, 1]}
        quaternion = rng.choice([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0.7071068]])
        files = [build(array, code, **both, quatern=quaternion) for array, code in ((image, 4), (mask, 2))]
        done = f"{both}, {quaternion}"
    elif kind == 14:
        files[one], done = set_field(rng, files[one], HARMLESS)
    if kind == 15:
        files[one], done = pack(rng, files[one])
        ends[one] = ".nii.gz"
    packed = [file if (kind == 15 and i == one) or end == ".nii" else gzip.compress(file, 1, mtime=0)
              for i, (file, end) in enumerate(zip(files, ends, strict=True))]  # fmt: skip
    if rng.random() < 0.02:  # a name that lies
        ends[one] = {".nii": ".nii.gz", ".nii.gz": ".nii"}[ends[one]]
        done += ", wrong name"
    if kind == 15 and one == 0 and ends[1] == ".nii" and packed[1][:2] == b"\x1f\x8b":
        ends[1] = ".nii.gz"
    return f"kind {kind} of {('image', 'mask')[one]}: {done}", *zip(packed, ends, strict=True)


def write_round(folder, seed):
    """Write three good patients and the mutants; return what was done to each, by id."""
    folder.mkdir()
    done = {}
    for number in range(-3, MUTANTS):
        rng = np.random.default_rng([seed, number + 3])
        image = rng.integers(0, 200, SHAPE)
        mask = np.zeros(SHAPE, int)
        mask[2:6, 3:7, 1:3] = 4
        name = f"M{number}" if number >= 0 else f"Good{-number}"
        text, *files = ("nothing", (build(image), ".nii"), (build(mask, 2), ".nii")) if number < 0 else mutate(
            rng, image, mask
        )  # fmt: skip
        done[name] = f"{name} of round {seed}: {text}"
        for kind, (content, end) in zip(("flair", "seg"), files, strict=True):
            (folder / f"{name}_{kind}{end}").write_bytes(content)
    return done


def expected(case):
    """Return the voxels, the mask and the affine of a case after the standard; raise `ValueError` where it has none."""
    (image, affine), (mask, other) = (
        turn(*parse(path.read_bytes())) for path in (case.images["flair"].paths[0], case.seg.paths[0])
    )
    mask = np.where(abs(mask - np.rint(mask)) <= 1e-3, np.rint(mask), mask)
    if not set(np.unique(mask)) <= {0, 1, 2, 3, 4}:
        raise ValueError("labels")
    corners = np.array([[*corner, 1] for corner in product(*((0, side - 1) for side in image.shape))])
    apart, spacing = corners @ (affine - other).T, np.linalg.norm(affine[:3, :3], axis=0)
    if image.shape != mask.shape or not np.linalg.norm(apart, axis=1).max() <= 0.1 * spacing.min():
        raise ValueError("image and mask are on different grids")
    if not np.isfinite(image).all() or not np.isfinite(affine).all():
        raise ValueError("not finite")
    return image, mask > 0, affine


def slices_by_formula(image):
    """Return min-max normalised slices, rows from front to back, in double precision, before any resampling."""
    planes = np.asarray(image, np.float64).transpose(2, 1, 0)
    low, high = planes.min((1, 2), keepdims=True), planes.max((1, 2), keepdims=True)
    return (planes - low) / np.where(high > low, high - low, 1)


def what_is_wrong(case, images, masks):
    """Return in which respect a case was not read as the standard says, or nothing."""
    try:
        image, mask, affine = expected(case)
    except ValueError as error:
        return f"passed, though: {error}"
    volume, found, _ = read_case(case)
    rows = image_to_slices(slices_by_formula(image).transpose(2, 1, 0), RECIPE).numpy()
    same = {
        "voxels": np.array_equal(volume.voxels, image),
        "mask": np.array_equal(found, mask),
        "affine": np.allclose(volume.affine, affine, rtol=1e-5, atol=1e-3),
        "slices": images.shape == rows.shape and np.allclose(images.astype(np.float32), rows, rtol=0, atol=2e-3),
        "slices of the mask": np.array_equal(masks, mask_to_slices(mask, RECIPE).numpy()),
    }
    return "other " + " and ".join(name for name, equal in same.items() if not equal) if not all(same.values()) else ""


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
@pytest.mark.parametrize("seed", rounds(20))
def test_a_thousand_mutants_are_read_rightly_or_refused_in_a_sentence(tmp_path, seed):
    done = write_round(tmp_path / "data", seed)
    report = check(tmp_path / "data", workers=1)
    prepared = prepare(tmp_path / "data", tmp_path / "prepared", RECIPE, workers=1)
    used, left_out = set(report.findings), report.left_out
    assert used | set(left_out) == set(done), "a mutant without an outcome"
    assert not used & set(left_out)
    assert len(done) == MUTANTS + 3
    assert set(prepared.about["cases"]) == used, "check and prepare disagree"
    assert set(prepared.about["left_out"]) == set(left_out)
    for name, reason in left_out.items():
        assert not re.search(r"it cannot be read \(\w+: ", reason), f"{done[name]}: unforeseen: {reason}"
        assert reason.endswith("."), f"{done[name]}: {reason}"
        assert len(reason) < 1500, f"{done[name]}: {reason}"
        assert not re.match(r"(M\d+ of round \d+: kind 14|Good)", done[name]), (
            f"{done[name]}: refused without need: {reason}"
        )
    start, wrong = 0, []
    for case in find_cases(tmp_path / "data").cases:
        if case.id in used:
            stop = start + report.findings[case.id].shape[2]
            if problem := what_is_wrong(case, prepared.images[start:stop], prepared.masks[start:stop]):
                wrong.append(f"{done[case.id]}: {problem}")
            start = stop
    assert not wrong, "\n".join(wrong)
    assert start == len(prepared.images)
    assert MUTANTS * 0.2 < len(used) < MUTANTS * 0.6, "the mutations are too tame or too wild"


def test_the_oracle_reads_what_it_built():
    voxels = np.arange(480).reshape(SHAPE)
    found, affine = parse(build(voxels))
    assert np.array_equal(found, voxels)
    assert np.array_equal(turn(found, affine)[0], voxels)
    for broken in (build(voxels)[:-1], build(voxels, magic=[b"ni1\0"]), build(voxels, dim=[9] * 8), b""):
        with pytest.raises(ValueError, match=r"\w"):
            parse(broken)
