"""NIfTI as it comes: by content whatever the name, in pairs, and advice of its own for each fault."""

import gzip
import shutil
import struct
import unicodedata
import zipfile

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import LPS
from tests.test_patients import IMAGE, labels, nifti, only, style, tar
from unetlib.data import archive as archives
from unetlib.data.archive import PLACE, open_data
from unetlib.data.check import check
from unetlib.data.patients import find_cases, read_case
from unetlib.data.volumes import Source, image_to_volume, read_shape, read_volume
from unetlib.prediction.predict import predict
from unetlib.show.viewer import SliceViewer
from unetlib.support.errors import UnetlibError
from unetlib.support.files import sha256


def saved(path, kind=nib.Nifti1Image, voxels=IMAGE, affine=LPS, **header):
    """A file with some fields of its header set afterwards, which nibabel itself would not write."""
    image = kind(voxels, affine)
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    for name, value in header.items():
        at, code = {"qform_code": (252, "<h"), "quatern_b": (256, "<f"), "pixdim1": (80, "<f"),
                    "xyzt_units": (123, "B"), "vox_offset": (108, "<f"), "datatype": (70, "<h"), "magic": (344, "4s"),
                    "sform_code": (254, "<h"), "scl_slope": (112, "<f"), "scl_inter": (116, "<f"),
                    "dim0": (40, "<h"), "dim1": (42, "<h"), "sizeof_hdr": (0, "<i")}[name]  # fmt: skip
        struct.pack_into(code, content, at, value)
    path.write_bytes(content)
    return path


def advice(path):
    with pytest.raises(UnetlibError) as caught:
        read_volume(Source((path,)))
    assert str(path) in str(caught.value)
    return str(caught.value)


# By content


@pytest.mark.parametrize(("name", "packed"), [("a.nii.gz", False), ("a.nii", True), ("a.NII", True)])
def test_a_name_that_lies_is_read_by_content_everywhere(tmp_path, trained, name, packed):
    saved(tmp_path / "plain.nii")
    content = (tmp_path / "plain.nii").read_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if packed else content)
    np.testing.assert_array_equal(read_volume(Source((path,))).voxels, IMAGE)
    assert read_shape(Source((path,))) == IMAGE.shape
    assert SliceViewer(path).title == "a"
    (mask,) = predict(trained, [path], tmp_path / "out", device="cpu")
    assert (mask.name, nib.load(mask).shape) == ("a_mask.nii.gz", IMAGE.shape)


@pytest.mark.parametrize("end", [".hdr", ".img"])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.nifti2.Nifti2Pair])
@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_is_read_by_either_name(tmp_path, trained, end, kind, packed):
    nib.save(kind(IMAGE, LPS), tmp_path / "a.img")
    if packed:
        for path in (tmp_path / "a.hdr", tmp_path / "a.img"):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    path = tmp_path / f"a{end}{'.gz' * packed}"
    volume = read_volume(Source((path,)))
    np.testing.assert_array_equal(volume.voxels, IMAGE)
    np.testing.assert_array_equal(volume.affine, LPS)
    assert read_shape(Source((path,))) == IMAGE.shape
    assert SliceViewer(path).title == "a"
    (mask,) = predict(trained, [path], tmp_path / "out", device="cpu")
    found = nib.load(mask)
    assert found.shape == IMAGE.shape
    np.testing.assert_array_equal(found.affine, LPS)
    assert predict(trained, [path], tmp_path / "out", device="cpu") == [mask]


def test_a_source_is_a_tuple_of_paths_or_texts_and_a_channel_from_0_on(tmp_path):
    path = saved(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(Source((str(path),))).voxels, IMAGE)
    for paths in (path, str(path), ()):
        with pytest.raises(UnetlibError, match=r"a Source has the paths .*; a tuple was expected: \(path,\)"):
            Source(paths)
    for channel in (-1, "0"):
        with pytest.raises(UnetlibError, match=rf"a\.nii: the channel is {channel!r}; a whole number from 0 on"):
            Source((path,), channel)
    with pytest.raises(UnetlibError, match="the channel is -1; a whole number from 0 on"):
        image_to_volume(nib.Nifti1Image(np.stack([IMAGE, IMAGE], 3), LPS), "a", channel=-1)


def test_a_pair_in_memory_is_shown():
    viewer = SliceViewer(nib.Nifti1Pair(IMAGE, LPS), nib.Nifti1Pair(labels(1), LPS))
    np.testing.assert_array_equal(viewer.panels[0].volume.voxels, IMAGE)
    np.testing.assert_array_equal(viewer.panels[0].truth, labels(1))


@pytest.mark.parametrize("packed", ["hdr", "img", "hdr img"])
def test_a_compressed_pair_is_not_there_twice(tmp_path, packed):
    for kind, voxels in (("flair", IMAGE), ("seg", labels(1))):
        nib.save(nib.Nifti1Pair(voxels, LPS), tmp_path / f"A_{kind}.img")
        for path in [tmp_path / f"A_{kind}.{end}" for end in packed.split()]:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    assert find_cases(tmp_path).notes == ()
    assert len(only(tmp_path).files()) == 4


def test_cases_of_pairs_are_found_once_and_change_with_their_voxels(tmp_path):
    for kind, voxels in (("flair", IMAGE), ("seg", labels(1))):
        nib.save(nib.Nifti1Pair(voxels, LPS), tmp_path / f"A_{kind}.img")
    case = only(tmp_path)
    assert find_cases(tmp_path).notes == ()
    np.testing.assert_array_equal(read_case(case)[1], labels(1) > 0)
    assert [path.name for path in case.files()] == ["A_flair.hdr", "A_flair.img", "A_seg.hdr", "A_seg.img"]
    before = sha256(*case.files())
    nib.save(nib.Nifti1Pair(IMAGE + 1, LPS), tmp_path / "A_flair.img")
    assert sha256(*only(tmp_path).files()) != before


@pytest.mark.parametrize(("lost", "said"), [("img", "holds only the header"), ("hdr", "holds only the voxels")])
def test_half_a_pair_says_which_file_is_missing(tmp_path, lost, said):
    nib.save(nib.Nifti1Pair(IMAGE, LPS), tmp_path / "a.img")
    (tmp_path / f"a.{lost}").unlink()
    (path,) = tmp_path.iterdir()
    assert f"{said} of an image. Put a.{lost} beside it" in advice(path).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("shape", [(*IMAGE.shape, 1), (*IMAGE.shape, 1, 1)])
def test_a_4d_file_with_one_volume_is_3d_everywhere(tmp_path, trained, shape):
    style(tmp_path)
    for name in ("Case_1_flair", "Case_1_t1"):
        nifti(tmp_path / f"{name}.nii.gz", IMAGE.reshape(shape))
    nifti(tmp_path / "Case_1_seg.nii.gz", labels(1).reshape(shape))
    nifti(tmp_path / "Case_1_t2.nii.gz")
    report = check(tmp_path, 1)
    assert len(report.findings) == 1
    assert report.notes == ()
    assert read_shape(Source((tmp_path / "Case_1_t1.nii.gz",))) == IMAGE.shape
    viewer = SliceViewer(IMAGE.reshape(shape), labels(1).reshape(shape), tmp_path / "Case_1_seg.nii.gz", affine=LPS)
    np.testing.assert_array_equal(viewer.panels[0].truth, viewer.panels[0].prediction)
    for channel in (None, 0):
        out = tmp_path / f"out-{channel}"
        (mask,) = predict(trained, [tmp_path / "Case_1_flair.nii.gz"], out, channel=channel, device="cpu")
        assert nib.load(mask).shape == IMAGE.shape


# Advice of its own

DICOM = bytes(128) + b"DICM" + bytes(400)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (bytes(900), "nothing but zeros"),
        (DICOM, "DICOM. Convert the whole series"),
        (b"PK\3\4" + bytes(600), "a zip archive. Unpack it"),
        (b"<!DOCTYPE html><html>please log in</html>", "a web page, as a failed download leaves it. Download it again"),
        (b"\n<html lang='en'>" + b" " * 600, "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS. Fetch"),
        (b"/annex/objects/MD5E-s8--0.nii.gz\n", "a pointer of git-annex. Fetch"),
        (b"L\0\0\0\1\x14\2\0" + bytes(70), "a Windows shortcut"),
        (b"\0\5\x16\7" + bytes(70), "a side file of macOS"),
        (b"Not found\n", "a text"),
        (b"\x89PNG\r\n" + bytes(70), "a PNG image. Export it again"),
        (b"NRRD0004\n", "NRRD. Convert it"),
        (b"ObjectType = Image\nNDims = 3\n", "MetaImage. Convert it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(70), "HDF5"),
        (b"\x93NUMPY\1\0", "a NumPy array. Save it with nibabel"),
        (struct.pack("<i", 348) + bytes(344), "Analyze does not tell left from right"),
        (struct.pack(">i", 348) + bytes(344), "Analyze does not tell left from right"),
        (bytes(range(1, 200)), "does not begin like NIfTI. Convert it, or copy or download it again"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_another_kind_is_told_which(tmp_path, content, words, packed):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert words in advice(path)


def test_archives_under_the_name_of_an_image_are_told(tmp_path):
    saved(tmp_path / "b.nii")
    tar(tmp_path / "a.tar", {"b.nii": (tmp_path / "b.nii").read_bytes()})
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert "a tar archive. Unpack it" in advice(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(gzip.compress((tmp_path / "b.nii").read_bytes())))
    assert "compressed twice" in advice(tmp_path / "a.nii.gz")
    with zipfile.ZipFile(tmp_path / "c.nii", "w") as file:
        file.write(tmp_path / "b.nii")
    assert "a zip archive" in advice(tmp_path / "c.nii")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"xyzt_units": 1}, "its unit is meter; millimetres were expected. Save it with voxel size and affine"),
        ({"xyzt_units": 3}, "its unit is micron"),
        ({"vox_offset": 12}, "announced at byte 12. A single file has them at byte 352 or later: correct vox_offset"),
        ({"vox_offset": float("nan")}, "correct vox_offset"),
        ({"vox_offset": 3e6}, "correct vox_offset"),
        ({"magic": b"ni1\0"}, "its voxels are announced in another file, .img. Put the .img beside"),
        ({"sform_code": 17}, r"have the codes [17, 0]; 0 to 5 were expected. If its affine is right, set the code"),
        ({"datatype": 3}, "data code 3 not recognized. Its header is damaged or of another program. Export it again"),
        ({"scl_slope": 1, "scl_inter": float("inf")}, "Its header is damaged or of another program. Export it again"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 3.0}, "its qform is no rotation"),
        ({"sform_code": 0, "qform_code": 1, "pixdim1": 0}, "its voxels are 0 x 1 x 1 wide. Export it again"),
        ({"sform_code": 0, "qform_code": 1, "pixdim1": float("nan")}, "its voxels are nan x 1 x 1 wide"),
        ({"dim0": 9}, "it does not say how many axes it has. Export it again"),
        ({"dim1": -8}, "no MRI volume has. It is damaged or no image. Export it again"),
    ],
)
def test_a_fault_of_a_header_gets_advice_of_its_own(tmp_path, fields, words):
    told = advice(saved(tmp_path / "a.nii", **fields))
    assert words in told
    assert "Copy or download it again" not in told


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (np.zeros(IMAGE.shape, np.complex64), "complex64; real numbers of up to 8 bytes were expected. Save their"),
        (np.zeros(IMAGE.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "They are colours"),
        (np.zeros((*IMAGE.shape, 1, 3), np.float32), "a field of vectors"),
        (np.zeros((8, 9), np.int16), "a single slice: give the whole volume"),
        (np.zeros((*IMAGE.shape, 2), np.int16), "--channel 0"),
    ],
)  # fmt: skip
def test_voxels_that_are_no_image_get_advice_of_their_own(tmp_path, voxels, words):
    nib.save(nib.Nifti1Image(voxels, LPS), tmp_path / "a.nii")
    assert words in advice(tmp_path / "a.nii")


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_a_file_that_ends_too_soon_is_to_be_copied_again(tmp_path, end):
    path = nifti(tmp_path / f"a{end}", np.random.default_rng(0).integers(0, 999, IMAGE.shape).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-60])
    assert "Copy or download it again" in advice(path)


def test_a_file_cut_off_within_its_header_is_not_called_analyze(tmp_path):
    path = saved(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:200])
    assert "cut off: it ends within its header, after 200 bytes. Copy or download it again" in advice(path)


def test_an_offset_that_is_wrong_is_named_where_voxels_lack(tmp_path):
    assert "Or its vox_offset is wrong: 368 where 352 is usual" in advice(saved(tmp_path / "a.nii", vox_offset=368))


def test_a_folder_and_a_link_to_nowhere_are_told_apart(tmp_path):
    (tmp_path / "a.nii.gz").mkdir()
    assert "is a folder" in advice(tmp_path / "a.nii.gz")
    try:
        (tmp_path / "b.nii.gz").symlink_to(tmp_path / "gone")
    except OSError:
        pytest.skip("this system lets no one make links")
    assert "it is a link to" in advice(tmp_path / "b.nii.gz")


# Archives


def members(folder):
    style(folder)
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    shutil.rmtree(folder)
    return found


def test_a_tar_where_nothing_can_be_written_is_extracted_elsewhere(tmp_path, monkeypatch):
    archive = tar(tmp_path / "a.tar", members(tmp_path / "x"))

    def read_only(*arguments, dir=None, **options):
        if dir == tmp_path:
            raise OSError(30, "Read-only file system")
        return temporary(*arguments, dir=dir, **options)

    temporary = archives.tempfile.TemporaryFile
    monkeypatch.setattr(archives.tempfile, "TemporaryFile", read_only)
    with pytest.raises(UnetlibError, match=rf"Read-only file system.*{PLACE}.*tar -xf"):
        open_data(archive)
    monkeypatch.setenv(PLACE, str(tmp_path / "room"))
    assert open_data(archive) == tmp_path / "room" / "a.extracted"
    assert only(archive).id == "Case_1"


def test_members_of_a_tar_are_compared_as_file_systems_do(tmp_path):
    names = [unicodedata.normalize(form, "é_flair.nii") for form in ("NFC", "NFD")]
    with pytest.raises(UnetlibError, match="twice"):
        open_data(tar(tmp_path / "a.tar", dict.fromkeys(names, b"x")))


def test_a_task_in_a_tar_keeps_its_dataset_json(tmp_path):
    names = ("T/imagesTr/A_0000.nii.gz", "T/labelsTr/A.nii.gz")
    archive = tar(tmp_path / "a.tar", {**dict.fromkeys(names, b"x"), "T/dataset.json": b'{"modality": {"0": "FLAIR"}}'})
    assert only(archive).layout == "nnU-Net"
