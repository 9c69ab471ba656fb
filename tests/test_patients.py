"""Patients: every layout, every reason to leave a case out, archives that mean harm."""

import gzip
import io
import os
import pickle
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.conftest import write_patient
from unetlib import SliceViewer
from unetlib.course.start import start
from unetlib.data import archive as archives
from unetlib.data import cases, folder
from unetlib.data.archive import open_data
from unetlib.data.check import check
from unetlib.data.patients import LAYOUTS, find_cases, find_images, read_case, read_regions
from unetlib.data.prepare import prepare
from unetlib.data.volumes import Volume, read_volume
from unetlib.prediction.predict import predict
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError

SHAPE = (8, 9, 5)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
IMAGE = np.arange(360, dtype=np.int16).reshape(SHAPE)


def labels(*values):
    """A mask that holds the values, each in one voxel, and 0 elsewhere."""
    mask = np.zeros(SHAPE, np.float32 if any(value % 1 for value in values) else np.uint8)
    mask[3, 2, 1 : 1 + len(values)] = values
    return mask


def nifti(path, voxels=IMAGE, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def style(folder, id="Case_1", image=IMAGE, mask=None, end=".nii.gz", **options):
    """One case with BraTS-style names: a FLAIR image and a mask."""
    nifti(folder / f"{id}_flair{end}", image, **options)
    nifti(folder / f"{id}_seg{end}", labels(1) if mask is None else mask)
    return folder


def brats(folder, id, modalities=("flair", "t1", "t1ce", "t2", "seg"), between="_", end=".nii.gz"):
    """Empty files with the names of a BraTS case: enough for what goes by names."""
    folder.mkdir(parents=True, exist_ok=True)
    for modality in modalities:
        (folder / f"{id}{between}{modality}{end}").touch()
    return folder


def kaggle(folder, id="TCGA_CS_5395_19981004", numbers=range(1, 12), mask=255):
    """TIFF slices with (slice, 100 + slice, 200 + slice) as their three channels, and masks with one tumour pixel."""
    folder = folder / id
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        plane = np.zeros((9, 8, 3), np.uint8) + np.array([number, 100 + number, 200 + number], np.uint8)
        Image.fromarray(plane).save(folder / f"{id}_{number}.tif")
        tumour = np.zeros((9, 8), np.uint8)
        tumour[number % 9, 2] = mask
        Image.fromarray(tumour).save(folder / f"{id}_{number}_mask.tif")
    return folder


def msd(folder, id="BRATS_001"):
    stack = np.stack([IMAGE, IMAGE + 1000, IMAGE + 2000, IMAGE + 3000], axis=3)
    nifti(folder / "imagesTr" / f"{id}.nii.gz", stack)
    nifti(folder / "labelsTr" / f"{id}.nii.gz", labels(1, 2, 3))
    return folder


def tar(path, members, mode="w"):
    """An archive of `members`: name -> bytes, or a TarInfo for something else."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def style_tar(path, mode="w", **extra):
    folder = style(path.parent / "for-tar")
    members = {f"data/{file.name}": file.read_bytes() for file in sorted(folder.iterdir())}
    shutil.rmtree(folder)
    return tar(path, {**members, **extra}, mode)


def only(data, **options):
    """The one case of a folder."""
    cohort = find_cases(data, **options)
    assert cohort.left_out == {}
    (case,) = cohort.cases
    return case


def why_left_out(data):
    """The sentence for the one case that is left out by name, none being usable."""
    cohort = find_cases(data)
    assert cohort.cases == ()
    ((_, why),) = cohort.left_out.items()
    return why


def refusal(data):
    """The message of `read_case` for the one case of a folder, which names the case."""
    case = only(data)
    with pytest.raises(UnetlibError) as caught:
        read_case(case)
    assert str(caught.value).startswith(f"{case.id}: ")
    return str(caught.value)


# Layouts


@pytest.mark.parametrize(
    ("folder", "id", "between", "words", "end", "layout", "patient"),
    [
        ("HGG/x", "Brats18_TCIA02_151_1", "_", None, ".nii.gz", "BraTS 2018", "Brats18_TCIA02_151"),
        ("LGG/x", "Brats17_CBICA_AAB_1", "_", None, ".nii.gz", "BraTS 2017", "Brats17_CBICA_AAB"),
        ("HGG/x", "BraTS19_2013_10_1", "_", None, ".nii", "BraTS 2019", "BraTS19_2013_10"),
        ("a/b/c/d", "BraTS20_Training_001", "_", None, ".nii", "BraTS 2020", "BraTS20_Training_001"),
        (".", "BraTS2021_00000", "_", None, ".nii.gz", "BraTS 2021", "BraTS2021_00000"),
        (".", "BRATS2021_00000", "_", None, ".NII.GZ", "BraTS 2021", "BRATS2021_00000"),
        ("x", "BraTS-GLI-00000-101", "-", "new", ".nii.gz", "BraTS 2023/2024", "BraTS-GLI-00000"),
        ("x", "BraTS-SSA-00002-000", "-", "new", ".nii.gz", "BraTS 2023/2024", "BraTS-SSA-00002"),
        ("x", "BraTS-PED-00003-000", "-", "new", ".nii", "BraTS-PED", "BraTS-PED-00003"),
        ("x", "BraTS-GoAT-00004", "-", "new", ".nii", "BraTS 2023/2024", "BraTS-GoAT-00004"),
        ("x", "Phantom_00003", "_", None, ".nii.gz", "Phantoms", "Phantom_00003"),
        ("x", "TCGA_CS_4943_20000902", "_", None, ".nii.gz", "BraTS-style names", "TCGA_CS_4943"),
    ],
)
def test_names_tell_layout_modalities_and_patient(tmp_path, folder, id, between, words, end, layout, patient):
    words = ("t2f", "t1n", "t1c", "t2w", "seg") if words else ("flair", "t1", "t1ce", "t2", "seg")
    at = brats(tmp_path / folder, id, words, between, end)
    case = only(tmp_path)
    assert (case.id, case.patient, case.layout) == (id, patient, layout)
    for modality, word in zip(("flair", "t1", "t1ce", "t2"), words, strict=False):
        assert case.images[modality].paths == (at / f"{id}{between}{word}{end}",)
    assert case.seg.paths == (at / f"{id}{between}seg{end}",)


def test_layout_names_are_unique_and_examples_match():
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
    for layout in LAYOUTS[3:]:
        subject = layout.example if "/" in layout.example else f"folder/{layout.example}"
        assert next(one for one in LAYOUTS if one.names.fullmatch(subject)) is layout


def test_time_points_and_spellings_of_one_patient_share_it(tmp_path):
    for id in ("BraTS-GLI-00001-100", "BraTS-GLI-00001-101", "brats-gli-00001-102"):
        brats(tmp_path / id, id, ("t2f", "t1n", "t1c", "t2w", "seg"), "-")
    assert {case.patient for case in find_cases(tmp_path).cases} == {"BraTS-GLI-00001"}


def test_msd_channels(tmp_path):
    msd(tmp_path / "Task01_BrainTumour")
    nifti(tmp_path / "Task01_BrainTumour" / "imagesTs" / "BRATS_002.nii.gz")
    cohort = find_cases(tmp_path)
    (case,) = cohort.cases
    assert (case.layout, case.patient) == ("Medical Segmentation Decathlon", "BRATS_001")
    assert any("1 image in imagesTs" in note for note in cohort.notes)
    for channel, modality in enumerate(("flair", "t1", "t1ce", "t2")):
        volume, mask, found = read_case(case, modality)
        assert np.array_equal(volume.voxels, IMAGE + 1000 * channel)
        assert np.array_equal(mask, labels(1, 2, 3) > 0)
        assert found == {0, 1, 2, 3}


def test_kaggle_slices_by_number_and_channels(tmp_path):
    kaggle(tmp_path / "kaggle_3m")
    case = only(tmp_path)
    assert (case.layout, case.patient) == ("TCGA-LGG (Kaggle)", "TCGA_CS_5395")
    for modality, base in (("t1", 0), ("flair", 100), ("t1ce", 200)):
        volume, mask, found = read_case(case, modality)
        assert volume.voxels[0, 0].tolist() == [base + number for number in range(1, 12)]  # 10 after 9, not after 1
        assert volume.voxels.shape == mask.shape == (8, 9, 11)
        assert found == {0, 1}
        assert np.argwhere(mask).tolist() == sorted([2, number % 9, number - 1] for number in range(1, 12))
    assert "t2" not in case.images


def test_several_layouts_and_editions_are_noted(tmp_path):
    brats(tmp_path, "Brats17_CBICA_AAB_1")
    brats(tmp_path, "Brats18_CBICA_AAB_1")
    assert any("mixes BraTS 2017, BraTS 2018" in note for note in find_cases(tmp_path).notes)
    assert not find_cases(brats(tmp_path / "one", "Brats17_CBICA_AAB_1")).notes


def test_case_355_of_brats_2020(tmp_path):
    folder = brats(tmp_path / "BraTS20_Training_355", "BraTS20_Training_355", ("flair", "t1"), end=".nii")
    (folder / "W39_1998.09.19_Segm.nii").touch()
    brats(tmp_path / "BraTS20_Training_356", "BraTS20_Training_356", ("flair", "t1", "seg"), end=".nii")
    cohort = find_cases(tmp_path)
    assert cohort.cases[0].seg.paths == (folder / "W39_1998.09.19_Segm.nii",)
    assert len(cohort.cases) == 2
    assert any("BraTS20_Training_355" in note and "W39_1998.09.19_Segm.nii" in note for note in cohort.notes)


def test_segm_file_between_two_cases_is_given_to_none(tmp_path):
    for id in ("BraTS20_Training_355", "BraTS20_Training_356"):
        brats(tmp_path, id, ("flair",), end=".nii")
    (tmp_path / "W39_1998.09.19_Segm.nii").touch()
    cohort = find_cases(tmp_path)
    assert set(cohort.left_out) == {"BraTS20_Training_355", "BraTS20_Training_356"}
    assert any("W39_1998.09.19_Segm.nii" in note for note in cohort.notes)


def test_segm_file_beside_a_mask_is_not_taken(tmp_path):
    brats(tmp_path, "BraTS20_Training_355", ("flair", "seg"), end=".nii")
    (tmp_path / "W39_1998.09.19_Segm.nii").touch()
    assert only(tmp_path).seg.paths[0].name == "BraTS20_Training_355_seg.nii"


@pytest.mark.parametrize("name", ["B_segm.nii.gz", "B_Segm.nii", "W39_1998.09.19_Segm.nii", "B_mask.nii.gz"])
@pytest.mark.parametrize("folder", [".", "A"])
def test_a_mask_that_names_another_case_is_not_married_to_the_one_that_is_left(tmp_path, folder, name):
    brats(tmp_path / folder, "A", ("flair",))
    (tmp_path / folder / name).touch()
    cohort = find_cases(tmp_path)
    assert cohort.cases == ()
    assert "no tumour mask" in cohort.left_out["A"]


def test_masks_that_are_swapped_between_two_folders_stay_with_the_names_they_bear(tmp_path):
    for case, other in ("AB", "BA"):
        brats(tmp_path / case, case, ("flair",))
        brats(tmp_path / case, other, ("seg",))
    found = {case.id: case.seg.paths[0].name for case in find_cases(tmp_path).cases}
    assert found == {"A": "A_seg.nii.gz", "B": "B_seg.nii.gz"}


@pytest.mark.parametrize("name", ["seg.nii.gz", "Mask.nii", "segmentation.nii.gz"])
def test_a_mask_without_a_name_of_its_own_belongs_to_the_one_case_of_its_folder(tmp_path, name):
    for id in "AB":
        (brats(tmp_path / id, id, ("flair",)) / name).touch()
    cohort = find_cases(tmp_path)
    assert {case.id: case.seg.paths[0].parent.name for case in cohort.cases} == {"A": "A", "B": "B"}
    assert [name in note for note in cohort.notes] == [True, True]


@pytest.mark.parametrize("extra", ["B_flair.nii.gz", "mask.nii.gz", "A_seg.nii.gz"])
def test_a_nameless_mask_is_given_to_none_where_it_could_be_anothers(tmp_path, extra):
    for name in ("A_flair.nii.gz", "seg.nii.gz", extra):
        (tmp_path / name).touch()
    found = {case.id: case.seg.paths[0].name for case in find_cases(tmp_path).cases}
    assert found == ({"A": "A_seg.nii.gz"} if extra == "A_seg.nii.gz" else {})


# Left out by name


def test_hidden_files_and_folders_are_ignored(tmp_path):
    brats(tmp_path / "data", "A")
    brats(tmp_path / "data", "A", ("flair",), end=".nii.gz.part")
    brats(tmp_path / "data", "._A")
    brats(tmp_path / "data" / ".copy", "A")
    assert only(tmp_path / "data").id == "A"


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (lambda d: (brats(d / "a", "X"), brats(d / "b", "X")), "a/X_flair.nii.gz", "b/X_flair.nii.gz"),
        (lambda d: (brats(d, "X"), brats(d, "X", ("flair",), end=".nii")), "X_flair.nii", "X_flair.nii.gz"),
        (lambda d: (brats(d / "a", "X_1"), brats(d / "b", "x_1")), "a/X_1_flair.nii.gz", "b/x_1_flair.nii.gz"),
        (
            lambda d: (kaggle(d / "a", "TCGA_A_B_20000101", [1]), brats(d / "b", "TCGA_A_B_20000101")),
            "TCGA_A_B_20000101_1.tif",
            "TCGA_A_B_20000101_flair.nii.gz",
        ),
        (
            lambda d: (msd(d / "a"), nifti(msd(d / "b") / "labelsTr" / "BRATS_001.nii.gz", labels(1))),
            "a/labelsTr/BRATS_001.nii.gz",
            "b/labelsTr/BRATS_001.nii.gz",
        ),
    ],
    ids=["two folders", "nii beside nii.gz", "upper and lower case", "two layouts", "msd"],
)
def test_two_files_that_claim_one_case_leave_it_out(tmp_path, make, one, other):
    make(tmp_path)
    brats(tmp_path / "z", "Fine")
    cohort = find_cases(tmp_path)
    assert [case.id for case in cohort.cases] == ["Fine"]
    ((_, why),) = cohort.left_out.items()
    assert str(Path(one)) in why
    assert str(Path(other)) in why


def test_a_second_copy_that_links_to_nothing_leaves_out_its_case_alone(data, tmp_path):
    name = "BraTS2021_00000_flair.nii.gz"
    (data / "copy").mkdir()
    (data / "copy" / name).symlink_to(tmp_path / "not-there")
    cohort = find_cases(data)
    assert [case.id for case in cohort.cases] == ["BraTS2021_00001", "BraTS2021_00002"]
    assert f"{data / 'copy' / name}" in cohort.left_out["BraTS2021_00000"]
    assert len(find_images(data, "flair").cases) == 2


@pytest.mark.parametrize("folders", [("a/b_c", "a_b/c"), ("x/Case", "x/case")])
def test_two_folders_whose_paths_give_one_name_do_not_become_one_case(tmp_path, folders):
    for place, words in zip(folders, (("flair", "seg"), ("t1", "t2")), strict=True):
        for word in words:
            nifti(tmp_path / place / f"{word}.nii.gz")
    if len(list(tmp_path.glob("*/*"))) == 1:
        pytest.skip("this file system does not tell upper from lower case")
    why = why_left_out(tmp_path)
    assert "two folders claim this case" in why
    assert all(str(tmp_path / place) in why for place in folders)


def test_one_case_in_two_folders_by_kind_is_one_case(tmp_path):
    brats(tmp_path / "images", "X", ("flair",))
    brats(tmp_path / "masks", "X", ("seg",))
    assert only(tmp_path).seg.paths[0].parent.name == "masks"


def test_a_linked_folder_is_found_once(tmp_path):
    brats(tmp_path / "elsewhere" / "X", "X")
    (tmp_path / "data").mkdir()
    try:
        for name in ("one", "two"):
            (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets no one make links")
    assert only(tmp_path / "data").id == "X"


def test_without_mask_or_modality(tmp_path):
    brats(tmp_path, "NoMask", ("flair", "t1"))
    brats(tmp_path, "NoFlair", ("t1", "t2", "seg"))
    brats(tmp_path, "MaskOnly", ("seg",))
    brats(tmp_path, "Fine", ("flair", "seg"))
    cohort = find_cases(tmp_path)
    assert [case.id for case in cohort.cases] == ["Fine"]
    assert "no tumour mask" in cohort.left_out["NoMask"]
    assert "no flair image" in cohort.left_out["NoFlair"]
    assert "t1, t2" in cohort.left_out["NoFlair"]
    assert "a mask only" in cohort.left_out["MaskOnly"]
    assert [case.id for case in find_cases(tmp_path, "t1").cases] == ["NoFlair"]


def test_lacking_another_modality_is_noted_only(tmp_path):
    for id in "ABC":
        brats(tmp_path, f"BraTS2021_0000{id.replace('A', '0').replace('B', '1').replace('C', '2')}")
    (tmp_path / "BraTS2021_00001_t2.nii.gz").unlink()
    cohort = find_cases(tmp_path)
    assert len(cohort.cases) == 3
    (note,) = cohort.notes
    assert "t2" in note
    assert "usable" in note
    assert "BraTS2021_00001" in note
    assert "BraTS2021_00000" not in note


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["7_mask"], "slice 7 in"),
        (["7"], "slice 7 in"),
        (["7", "7_mask"], "slice 7 is missing"),
        ([f"{number}_mask" for number in range(1, 12)], "no tumour mask"),
    ],
)
def test_kaggle_incomplete_slices_leave_the_case_out(tmp_path, lost, said):
    folder = kaggle(tmp_path)
    for name in lost:
        (folder / f"{folder.name}_{name}.tif").unlink()
    assert said in why_left_out(tmp_path)


def test_a_wrong_folder_is_told_what_was_found_and_expected(tmp_path):
    with pytest.raises(UnetlibError, match=r"no file at all.*BraTS2021_00000_flair\.nii\.gz"):
        find_cases(tmp_path)
    (tmp_path / "holiday.jpg").touch()
    (tmp_path / "brain.nii.gz").touch()
    with pytest.raises(UnetlibError, match=r"2 other files, for example brain\.nii\.gz\. Names"):
        find_cases(tmp_path)
    (tmp_path / "BraTS.tar").touch()
    with pytest.raises(UnetlibError, match=r"Give the archive itself, .*BraTS\.tar"):
        find_cases(tmp_path)
    with pytest.raises(UnetlibError, match="nowhere does not exist"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(UnetlibError, match="'T2' is not a modality"):
        find_cases(tmp_path, "T2")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_what_is_neither_a_folder_nor_a_file_is_said_to_be_so(trained, tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(UnetlibError, match=r"pipe\.nii is neither a folder nor a file"):
        find_cases(tmp_path / "pipe.nii")
    with pytest.raises(UnetlibError, match=r"pipe\.nii is neither a file nor a folder"):
        predict(trained, [tmp_path / "pipe.nii"], tmp_path / "out", device="cpu")


def test_a_folder_that_was_made_from_patients_is_named_as_what_it_is(prepared, trained, tmp_path):
    for made, what in ((trained, "a run"), (prepared, "prepared slices or volumes")):
        with pytest.raises(UnetlibError, match=rf"is the folder of {what}\. Give the folder that the patients lie in"):
            find_cases(made)
    for name in ("a.json", "b.json", "c.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnetlibError, match=r"3 other files, for example c\.png \(PNG or JPEG"):
        find_cases(tmp_path)
    for name in ("recipe.json", "brain.nii.gz", "d.dcm", "e.dcm"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnetlibError, match=r"7 other files, for example d\.dcm \(DICOM"):
        find_cases(tmp_path)


def test_msd_test_images_alone_are_no_patients(tmp_path):
    nifti(tmp_path / "imagesTs" / "BRATS_002.nii.gz")
    with pytest.raises(UnetlibError, match="1 image in imagesTs, which is for testing, and"):
        find_cases(tmp_path)


def test_twelve_thousand_patients_are_found(tmp_path, monkeypatch):
    names = [f"BraTS2021_{i:05d}_{kind}.nii.gz" for i in range(12_510) for kind in ("flair", "t1", "t1ce", "t2", "seg")]
    names += [f"W{i}_Segm.nii" for i in range(1000)] + ["seg.nii.gz"]
    monkeypatch.setattr(folder, "walk", lambda root, notes: iter([(root, names)]))
    assert len(find_cases(tmp_path).cases) == 12_510


def test_cases_are_sorted_and_pickle(tmp_path):
    for id in ("B", "C", "A"):
        brats(tmp_path / f"folder of {id} ümlaut", id)
    cases = find_cases(tmp_path).cases
    assert [case.id for case in cases] == ["A", "B", "C"]
    assert pickle.loads(pickle.dumps(cases)) == cases


# Reading


def test_read_case_turns_image_and_mask_to_lps(tmp_path):
    style(tmp_path, mask=labels(1, 2, 4))
    expected, mask, found = read_case(only(tmp_path))
    assert found == {0, 1, 2, 4}
    assert mask.dtype == bool
    assert np.array_equal(mask, labels(1, 2, 4) > 0)
    assert expected.voxels.dtype == np.int16
    flipped = IMAGE[::-1, ::-1]  # the same anatomy, stored RAS
    nifti(
        tmp_path / "Case_1_flair.nii.gz", flipped, np.array([[1, 0, 0, -7], [0, 1, 0, -8], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    turned, _, _ = read_case(only(tmp_path))
    assert np.array_equal(turned.voxels, IMAGE)
    assert np.allclose(turned.affine, expected.affine)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: style(d, mask=np.ones((8, 9, 4), np.uint8)), ["(8, 9, 4)", "(8, 9, 5)", "must be the same"]),
        (lambda d: style(d, affine=np.diag([-1.0, -1.0, 1.05, 1.0])), ["affine", "1.05", "must be the same"]),
        (lambda d: style(d, image=np.full(SHAPE, 7, np.int16)), ["constant: its voxels are 7 to 7"]),
        (lambda d: style(d, mask=labels(1, 3, 9)), ["labels 9", "0, 1, 2, 3, 4 only"]),
        (lambda d: style(d, mask=labels(1, 1.5)), ["labels 1.5"]),
        (lambda d: style(d, mask=labels(255)), ["labels 255", "It is an 8-bit mask: divide it by 255"]),
        (lambda d: style(d, mask=IMAGE), ["labels 5, 6, 7, 8, 9 and"]),
        (lambda d: kaggle(d, mask=200), ["labels 200", "0, 255 only"]),
        (lambda d: style(d, image=np.zeros((8, 9, 5, 2), np.int16)), ["4-D"]),
        (lambda d: nifti(msd(d) / "labelsTr" / "BRATS_001.nii.gz", labels(4)), ["labels 4", "0, 1, 2, 3 only"]),
    ],
    ids=["shape", "affine", "constant", "label", "fraction", "8-bit", "an image", "kaggle", "4-D", "msd"],
)
def test_a_bad_case_is_refused_in_a_sentence(tmp_path, make, words):
    make(tmp_path)
    message = refusal(tmp_path)
    for word in words:
        assert word in message


def test_voxels_that_are_no_numbers_are_counted(tmp_path):
    image = IMAGE.astype(np.float32)
    image[1, 1, 1:4] = np.nan, np.inf, -np.inf
    assert "3 NaN" in refusal(style(tmp_path, image=image))
    assert "NaN" in refusal(style(tmp_path, mask=np.where(labels(1) > 0, np.nan, 0).astype(np.float32)))


def test_affines_that_differ_by_rounding_are_the_same(tmp_path):
    style(tmp_path, affine=LPS + np.array([[0, 0, 0, 0.009]] * 3 + [[0, 0, 0, 0]]))
    read_case(only(tmp_path))


@pytest.mark.parametrize("mm", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("degrees", [0.01, 0.1, 0.3, 1.0])
def test_images_share_a_grid_if_no_voxel_lies_elsewhere(mm, axis, degrees):
    shape = 60, 50, 40
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    one, other = (Volume(np.zeros(shape), affine, affine, None) for affine in (mm * LPS, turn @ (mm * LPS)))
    places = np.indices(shape).reshape(3, -1).T
    apart = np.linalg.norm(apply_affine(one.affine, places) - apply_affine(other.affine, places), axis=1).max()
    assert one.shares_grid(other) == other.shares_grid(one) == (apart <= 0.1 * mm)
    assert not one.shares_grid(replace(one, voxels=np.zeros((60, 50, 41))))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_an_affine_that_is_none_is_refused(tmp_path, value):
    folder = style(tmp_path, end=".nii")
    with open(folder / "Case_1_flair.nii", "r+b") as file:
        file.seek(280)  # srow_x, srow_y, srow_z of the NIfTI header
        file.write(np.full(12, value, "<f4").tobytes())
    assert "does not map voxels to millimetres" in refusal(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    path = style(tmp_path) / "Case_1_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    assert "damaged" in refusal(tmp_path)


@pytest.mark.parametrize("size", [0, 60, 150])
def test_a_truncated_tiff_is_refused(tmp_path, size):
    path = kaggle(tmp_path) / "TCGA_CS_5395_19981004_4.tif"
    path.write_bytes(path.read_bytes()[:size])
    assert path.name in refusal(tmp_path)


def test_a_modality_or_mask_that_is_not_there_is_refused(tmp_path):
    case = only(style(tmp_path))
    with pytest.raises(UnetlibError, match=r"Case_1: it has no t2 image\. Choose one of flair"):
        read_case(case, "t2")
    with pytest.raises(UnetlibError, match="Case_1: it has no tumour mask"):
        read_case(cases.replace(case, seg=None))


def test_label_4_of_2024_is_tumour(tmp_path):
    nifti(tmp_path / "BraTS-GLI-00005-100-t2f.nii.gz")
    nifti(tmp_path / "BraTS-GLI-00005-100-seg.nii.gz", labels(1, 3, 4))
    _, mask, found = read_case(only(tmp_path))
    assert found == {0, 1, 3, 4}
    assert mask.sum() == 3
    assert any("resection cavity" in note for note in check(tmp_path, workers=1).notes)


# Archives


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("A.TAR", "w")])
def test_a_tar_is_extracted_once_and_again_when_it_changes(tmp_path, monkeypatch, name, mode):
    archive = style_tar(tmp_path / name, mode, **{"data/readme.txt": b"text"})
    cohort = find_cases(archive)
    assert cohort.root == tmp_path / f"{name[0]}.extracted"
    assert np.array_equal(read_case(cohort.cases[0])[0].voxels, IMAGE)
    assert not (cohort.root / "data" / "readme.txt").exists()
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_extract", None)  # whoever calls it fails
        assert open_data(archive) == cohort.root
    tar(archive, {"data/New_flair.nii": b"", "data/New_seg.nii": b""}, mode)
    os.utime(archive, (1, 1))
    assert only(archive).id == "New"
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name[0]}.extracted"}


def link(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("../evil_flair.nii", b"x", "a path with '..'"),
        ("data/../../evil_flair.nii", b"x", "a path with '..'"),
        ("data\\..\\..\\evil_flair.nii", b"x", "a path with '..'"),
        ("/tmp/evil_flair.nii", b"x", "an absolute path"),
        ("C:\\evil_flair.nii", b"x", "an absolute path"),
        ("data/evil_flair.nii", link("data/evil_flair.nii", tarfile.SYMTYPE, "/etc/passwd"), "a link or a device"),
        ("data/evil", link("data/evil", tarfile.SYMTYPE, ".."), "a link or a device"),
        ("data/evil_t1.nii", link("data/evil_t1.nii", tarfile.LNKTYPE, "data/Case_1_seg.nii.gz"), "a link or a device"),
        ("data/evil", link("data/evil", tarfile.CHRTYPE), "a link or a device"),
        ("data/evil", link("data/evil", tarfile.FIFOTYPE), "a link or a device"),
        ("data/CASE_1_flair.nii.gz", b"x", "twice"),
        ("./data/Case_1_flair.nii.gz", b"x", "twice"),
    ],
)
def test_a_hostile_tar_is_refused_by_member_and_leaves_nothing(tmp_path, name, content, said):
    inner = tmp_path / "deep" / "er"
    inner.mkdir(parents=True)
    archive = style_tar(inner / "a.tar", **{name: content})
    with pytest.raises(UnetlibError) as caught:
        open_data(archive)
    assert said in str(caught.value)
    assert repr(name) in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
    assert not (inner / "a.extracted").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_tar_is_refused_wherever_it_ends(tmp_path, mode):
    archive = style_tar(tmp_path / "a.tar", mode)
    content = archive.read_bytes()
    end = 512 * -(-len(content.rstrip(b"\0")) // 512) + 1 if mode == "w" else len(content)
    for size in {0, 1, 300, 512, end // 2, end - 513, end - 40, end - 9, end - 1} - {end}:
        archive.write_bytes(content[:size])
        with pytest.raises(UnetlibError, match=r"a\.tar cannot be extracted"):
            open_data(archive)
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_failed_extraction_keeps_the_earlier_one(tmp_path):
    archive = style_tar(tmp_path / "a.tar")
    folder = open_data(archive)
    archive.write_bytes(archive.read_bytes()[:900])
    with pytest.raises(UnetlibError):
        open_data(archive)
    assert only(folder).id == "Case_1"


def test_files_of_the_users_in_an_extracted_folder_are_not_lost(tmp_path, monkeypatch):
    archive = style_tar(tmp_path / "a.tar")
    folder = open_data(archive)
    own = next(folder.rglob("*_flair*")).with_name("own_seg.nii.gz")
    own.write_bytes(b"days of work")
    (folder / ".DS_Store").touch()
    os.utime(archive, (1, 1))
    with pytest.raises(UnetlibError, match=r"has changed, and so has .*own_seg.nii.gz. Move your own files elsewhere"):
        open_data(archive)
    assert own.read_bytes() == b"days of work"
    own.unlink()
    (folder / "patients.csv").write_text("case,patient\n")
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda path, goal: 1 / 0 if path.name == "images" else rename(path, goal))
        with pytest.raises(ZeroDivisionError):
            open_data(archive)
    assert (folder / "patients.csv").read_text() == "case,patient\n"
    assert (open_data(archive) / "patients.csv").read_text() == "case,patient\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "a.extracted"}


def test_a_folder_of_someone_else_is_not_replaced(tmp_path):
    archive = style_tar(tmp_path / "a.tar")
    (tmp_path / "a.extracted").mkdir()
    (tmp_path / "a.extracted" / "precious.txt").touch()
    with pytest.raises(UnetlibError, match="stands where"):
        open_data(archive)
    assert (tmp_path / "a.extracted" / "precious.txt").exists()


@pytest.mark.parametrize(("name", "content"), [("x.nii.gz", gzip.compress(b"no tar" * 99, mtime=0)), ("x", b"")])
def test_a_file_that_is_no_archive_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnetlibError, match=r"neither a folder nor a \.tar archive"):
        find_cases(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.zip", b"PK\3\4", "it is a zip archive. Unpack it"),
        ("a.tar", b"PK\3\4", "it is a zip archive. Unpack it"),
        ("a.tar.xz", b"\xfd7zXZ", "it is compressed with xz. Unpack it"),
        ("a.tar.bz2", b"BZh", "it is compressed with bzip2. Unpack it"),
        ("a.tar", b"<!DOCTYPE html>", "it is a web page, as a failed download leaves it."),
    ],
)
def test_another_archive_or_a_failed_download_gets_advice_of_its_own(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content + bytes(600))
    with pytest.raises(UnetlibError) as caught:
        open_data(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} is no .tar archive: {told}")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_home_of_nobody_is_a_sentence_wherever_a_path_is_given(monkeypatch):
    monkeypatch.setenv("COURSE_DATA", "~nobody-of-that-name/x")
    for ask in (lambda: SliceViewer("~nobody-of-that-name/x.nii"), start):
        with pytest.raises(UnetlibError, match=r"~nobody-of-that-name/x.*: there is no user"):
            ask()


def test_a_home_of_nobody_to_extract_into_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("UNETLIB_EXTRACTED", "~nobody-of-that-name/x")
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    with pytest.raises(UnetlibError, match="~nobody-of-that-name/x: there is no user"):
        open_data(tmp_path / "a.tar")


# The report


def test_check_lists_one_bad_among_many(tmp_path):
    for number in range(6):
        style(tmp_path / "data", f"Case_{number}", IMAGE + number, labels(*((1, 4) if number else ())))
    (tmp_path / "data" / "Case_3_flair.nii.gz").write_bytes(b"\x1f\x8b rubbish")
    (tmp_path / "data" / "Case_5_seg.nii.gz").unlink()
    report = check(tmp_path / "data", workers=2)
    assert set(report.left_out) == {"Case_3", "Case_5"}
    assert [case.id for case in report.usable] == ["Case_0", "Case_1", "Case_2", "Case_4"]
    assert report.labels == {"Case_0": {0}, "Case_1": {0, 1, 4}, "Case_2": {0, 1, 4}, "Case_4": {0, 1, 4}}
    text, flat = str(report), " ".join(str(report).split())
    for part in (
        "BraTS-style names: 4 cases of 4 patients",
        "flair 4, mask 4",
        "8 x 9 x 5 voxels",
        "1 x 1 x 1 mm",
        "1 (3 cases), 4 (3 cases)",
        "0.42 % of the voxels of a case (0.00 to 0.56 %)",
        "1 case: Case_0",
        "Case_3: ",
        "Case_5: it has no tumour mask",
    ):
        assert part in flat
    assert text.splitlines()[-1] == "4 of 6 cases usable."
    assert flat.count("Case_3:") == 1
    assert all(len(line) <= 100 or str(tmp_path) in line for line in text.splitlines())


def test_check_names_ranges_patients_and_layouts(tmp_path):
    style(tmp_path / "data", "TCGA_A_B_20000101")
    style(tmp_path / "data", "TCGA_A_B_20010101", IMAGE + 1)
    kaggle(tmp_path / "data", "TCGA_C_D_20010101")
    text = str(check(tmp_path / "data", workers=1))
    assert "BraTS-style names: 2 cases of 1 patient\n" in text
    assert "TCGA-LGG (Kaggle): 1 case of 1 patient\n" in text
    assert "8 x 9 x 5-11 voxels" in text
    assert "flair 3, t1 1, t1ce 1, mask 3" in text
    assert "nominal 1 mm" in text


def test_check_knows_by_the_names_that_a_voxel_size_is_nominal_and_one_case_has_no_range(tmp_path):
    style(tmp_path, "TCGA_CS_4941_19960909")
    text = " ".join(str(check(tmp_path, workers=1)).split())
    assert "BraTS-style names: 1 case" in text
    assert " mm (nominal in 1 case)" in text
    assert text.count(cases.NO_SIZE) == 1
    assert re.search(r"Tumour \S+ % of the voxels of a case No", text)


def test_check_reads_the_headers_of_the_other_modalities(tmp_path):
    style(tmp_path, "A")
    style(tmp_path, "B", IMAGE + 1)
    nifti(tmp_path / "A_t1.nii.gz")
    (tmp_path / "A_t2.nii.gz").write_bytes(b"rubbish")
    nifti(tmp_path / "B_t1.nii.gz", np.zeros((4, 4, 4), np.int16))
    nifti(tmp_path / "B_t2.nii.gz", np.zeros((5, 9, 8), np.int16))  # its axes in another order
    report = check(tmp_path, workers=1)
    assert len(report.usable) == 2
    assert any("A_t2.nii.gz" in note and "usable without t2" in note for note in report.notes)
    (note,) = (note for note in report.notes if "B: t1 has shape (4, 4, 4), flair (8, 9, 5)" in note)
    assert "interpolates" in note
    assert "usable without" not in note
    assert not any("A_t1" in note or "A: t1 " in note or "B: t2" in note for note in report.notes)


def test_check_counts_a_scan_under_two_names_once_as_prepare_does(tmp_path):
    style(tmp_path / "data", "A", IMAGE + 1)
    for id, image in (("B", IMAGE), ("C", IMAGE.astype(np.float64)), ("D", IMAGE + 2)):
        style(tmp_path / "data", id, image)
    report = check(tmp_path / "data", workers=1)
    assert [case.id for case in report.usable] == ["A", "B", "D"]
    assert report.left_out == {"C": "its image has the same voxels as that of B: a scan counts once."}
    prepared = prepare(tmp_path / "data", tmp_path / "prepared", Recipe(image_size=32), workers=1)
    assert prepared.about["left_out"] == report.left_out


def test_check_survives_what_nobody_expected(tmp_path, monkeypatch):
    style(tmp_path, "A")
    style(tmp_path, "B")

    def strange(source):
        if source.paths[0].name.startswith("A"):
            raise ZeroDivisionError("from deep inside")
        return read_volume(source)

    monkeypatch.setattr(cases, "read_volume", strange)
    report = check(tmp_path, workers=1)
    assert "from deep inside" in report.left_out["A"]
    assert str(report).endswith("1 of 2 cases usable.")


def test_check_of_cases_that_are_all_left_out(tmp_path):
    report = check(brats(tmp_path, "A", ("flair",)), workers=1)
    assert str(report).endswith("0 of 1 cases usable.")


# Real MRI


@pytest.mark.real
def test_all_real_patients_are_usable(real_data):
    report = check(real_data / "lgg")
    assert len(report.usable) == 70
    assert len({case.patient for case in report.usable}) == 70
    assert report.left_out == {}
    assert all(found == {0, 1} for found in report.labels.values())


@pytest.mark.real
def test_real_tiff_slices_equal_the_nifti_volumes(real_data):
    nifti_cases = {case.id: case for case in find_cases(real_data / "lgg").cases}
    tiff_cases = find_cases(real_data / "kaggle_3m").cases
    assert len(tiff_cases) == 3
    for case in tiff_cases:
        volume, mask, found = read_case(case)
        same_volume, same_mask, same_found = read_case(nifti_cases[case.id])
        assert np.array_equal(volume.voxels, same_volume.voxels)
        assert np.array_equal(mask, same_mask)
        assert np.allclose(volume.affine, same_volume.affine)
        assert found == same_found


def test_two_archives_of_one_name_do_not_replace_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("UNETLIB_EXTRACTED", str(tmp_path / "room"))
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    first = style_tar(tmp_path / "x" / "a.tar")
    second = tar(tmp_path / "y" / "a.tar", {"data/New_flair.nii": b"", "data/New_seg.nii": b""}, "w")
    root = open_data(first)
    with pytest.raises(UnetlibError, match=r"another archive of that name\. Rename one of the two"):
        open_data(second)
    assert open_data(first) == root
    first.unlink()  # then nobody needs it any more
    open_data(second)
    assert only(second).id == "New"


def test_scores_that_lie_among_the_patients_are_no_table_of_patients(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "data")
    scores = tmp_path / "data" / "run" / "evaluation"
    scores.mkdir(parents=True)
    (scores / "patients.csv").write_text("patient,grid,dice\na,native,0.5\n")
    with pytest.raises(UnetlibError, match="a first line with the columns case and patient"):
        find_cases(tmp_path / "data")
    (scores / "summary.json").write_text("{}")
    assert not find_cases(tmp_path / "data").table


@pytest.mark.parametrize("name", ["山田\u3000太郎", "Anna\u00a0B", "क्\u200dष", "soft\u00adhyphen"])
def test_a_name_in_any_script_is_a_name(tmp_path, name):
    folder = tmp_path / "data" / name
    write_patient(tmp_path / "data", 0)
    (tmp_path / "data" / "BraTS2021_00000").rename(folder)
    for path in [*folder.iterdir()]:
        path.rename(folder / path.name.replace("BraTS2021_00000", name))
    (case,) = find_cases(tmp_path / "data").cases
    assert case.id == name
    (tmp_path / "data" / "patients.csv").write_text(f"case,patient\n{name},{name}\n", encoding="utf-8")
    assert find_cases(tmp_path / "data").table == {name: name}


def test_folders_are_told_apart_on_drives_that_number_no_files(cohort, monkeypatch):
    stat = Path.stat

    def unnumbered(self, **given):
        found = stat(self, **given)
        return os.stat_result((found[0], 0, *found[2:10]))

    monkeypatch.setattr(Path, "stat", unnumbered)
    assert len(find_cases(cohort).cases) == len([*cohort.iterdir()])


def test_too_little_memory_does_not_make_a_file_a_damaged_one(cohort, monkeypatch):
    def too_little(self, *_, **__):
        raise MemoryError

    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, "__array__", too_little)
    with pytest.raises(UnetlibError, match="there is not enough memory"):
        read_case(find_cases(cohort).cases[0])


def test_a_table_that_the_user_has_added_outlives_another_extraction(cohort, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(cohort, "a")
    (first, *others) = find_cases(tmp_path / "a.tar").cases
    (tmp_path / "a.extracted" / "patients.csv").write_text(f"case,patient\n{first.id},anna\n{others[0].id},anna\n")
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    assert find_cases(tmp_path / "a.tar").table == {first.id: "anna", others[0].id: "anna"}


def test_a_region_of_ones_own_has_the_label_that_check_shows(tmp_path):
    (case,) = find_cases(kaggle(tmp_path / "kaggle").parent).cases
    _, masks = read_regions(case, Recipe.published.but(regions="whole lesion=1"))
    np.testing.assert_array_equal(*masks)
    assert masks.any()


def test_the_working_directory_has_a_name(cohort, tmp_path, monkeypatch):
    folder = shutil.copytree(sorted(cohort.iterdir())[0], tmp_path / "anna")
    for path in [*folder.iterdir()]:
        path.rename(folder / path.name.rpartition("_")[2])  # flair.nii.gz and seg.nii.gz
    assert [case.id for case in find_cases(folder).cases] == ["anna"]
    monkeypatch.chdir(folder)
    assert [case.id for case in find_cases(".").cases] == ["anna"]
