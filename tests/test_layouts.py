"""How public data sets name their files, each as a tiny tree of folders."""

import json
import shutil
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.test_patients import IMAGE, LPS, brats, kaggle, labels, nifti, only, style, why_left_out
from unetlib.cli import build_parser, main
from unetlib.course.start import start
from unetlib.data import layouts
from unetlib.data.archive import open_data
from unetlib.data.check import check
from unetlib.data.patients import find_cases, find_images, read_case
from unetlib.prediction.predict import ORIGIN
from unetlib.show.viewer import SliceViewer
from unetlib.support.errors import UnetlibError

FOUR = ("flair", "t1", "t1ce", "t2")


def tree(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


TREES = {  # layout: (id, {modality or mask: file}, files that must not be taken)
    "BraTS 2021": (
        "BraTS2021_00714",
        {kind: f"BraTS2021_00714/BraTS2021_00714_{kind}.nii/00000377_{'final' if kind == 'seg' else 'brain'}_{kind}.nii"
         for kind in (*FOUR, "seg")},
        (),
    ),
    "BraTS 2023/2024": (
        "BraTS-GLI-00005-100",
        {kind: f"BraTS-GLI-00005-100/BraTS-GLI-00005-100-{word}.nii/00000012_{word}.nii"
         for kind, word in zip((*FOUR, "seg"), ("t2f", "t1n", "t1c", "t2w", "seg"), strict=True)},
        (),
    ),
    "BraTS 2023/2024 with old words": (
        "BraTS-GLI-00005-001",
        {kind: f"BraTS-GLI-00005-001/BraTS-GLI-00005-001_{kind}.nii.gz" for kind in (*FOUR, "seg")},
        (),
    ),
    "FeTS": (
        "Site1_007",
        {**{kind: f"Site1_007/Site1_007_brain_{kind}.nii.gz" for kind in FOUR},
         "seg": "Site1_007/Site1_007_final_seg.nii.gz"},
        ("Site1_007/Site1_007_raw.nii.gz",),
    ),
    "FeTS (MU-Glioma-Post)": (
        "PatientID_0003_Timepoint_1",
        {kind: f"PatientID_0003/Timepoint_1/PatientID_0003_Timepoint_1_{word}.nii.gz" for kind, word in
         zip((*FOUR, "seg"), ("brain_t2f", "brain_t1n", "brain_t1c", "brain_t2w", "tumorMask"), strict=True)},
        (),
    ),
    "UPENN-GBM": (
        "UPENN-GBM-00006_11",
        {**{kind: f"images_structural/UPENN-GBM-00006_11/UPENN-GBM-00006_11_{word}.nii.gz"
            for kind, word in zip(FOUR, ("FLAIR", "T1", "T1GD", "T2"), strict=True)},
         "seg": "images_segm/UPENN-GBM-00006_11_segm.nii.gz"},
        ("automated_segm/UPENN-GBM-00006_11_automated_approx_segm.nii.gz",
         "images_structural_unstripped/UPENN-GBM-00006_11/UPENN-GBM-00006_11_FLAIR_unstripped.nii.gz"),
    ),
    "UCSF-PDGM": (
        "UCSF-PDGM-0429_FU003d",
        {kind: f"UCSF-PDGM-0429_FU003d_nifti/UCSF-PDGM-0429_FU003d_{word}.nii.gz" for kind, word in
         zip((*FOUR, "seg"), ("FLAIR", "T1", "T1c", "T2", "tumor_segmentation"), strict=True)},
        tuple(f"UCSF-PDGM-0429_FU003d_nifti/UCSF-PDGM-0429_FU003d_{word}.nii.gz" for word in
              ("FLAIR_bias", "brain_segmentation", "brain_parenchyma_segmentation", "T1c_bias", "ADC")),
    ),
    "UCSD-PTGBM": (
        "UCSD-PTGBM-0002_01",
        {kind: f"UCSD-PTGBM-0002_01/UCSD-PTGBM-0002_01_{word}.nii.gz" for kind, word in
         zip((*FOUR, "seg"), ("FLAIR", "T1pre", "T1post", "T2", "BraTS_tumor_seg"), strict=True)},
        ("UCSD-PTGBM-0002_01/UCSD-PTGBM-0002_01_total_cellular_tumor_seg.nii.gz",),
    ),
    "TCGA-GBM/LGG (TCIA)": (
        "TCGA-02-0006_1996.08.23",
        {kind: f"TCGA-02-0006/TCGA-02-0006_1996.08.23_{word}.nii.gz" for kind, word in
         zip((*FOUR, "seg"), ("flair", "t1", "t1Gd", "t2", "GlistrBoost_ManuallyCorrected"), strict=True)},
        ("TCGA-02-0006/TCGA-02-0006_1996.08.23_GlistrBoost.nii.gz",),
    ),
    "EGD": (
        "EGD-0001",
        {kind: f"EGD-0001/{word}.nii.gz" for kind, word in
         zip((*FOUR, "seg"), ("FLAIR", "T1", "T1GD", "T2", "MASK"), strict=True)},
        (),
    ),
    "EGD as XNAT unpacks it": (
        "EGD-0002",
        {kind: f"EGD-0002/{number}_{word}/NIFTI/{word}.nii.gz" for number, (kind, word) in enumerate(
         zip((*FOUR, "seg"), ("FLAIR", "T1", "T1GD", "T2", "MASK"), strict=True))},
        (),
    ),
    "LUMIERE": (
        "Patient-001_week-000-1",
        {**{kind: f"Imaging/Patient-001/week-000-1/{word}.nii.gz" for kind, word in
            zip(FOUR, ("FLAIR", "T1", "CT1", "T2"), strict=True)},
         "seg": "Imaging/Patient-001/week-000-1/DeepBraTumIA-segmentation/native/segmentation/flair_seg_mask.nii.gz"},
        ("Imaging/Patient-001/week-000-1/DeepBraTumIA-segmentation/atlas/segmentation/seg_mask.nii.gz",
         "Imaging/Patient-001/week-000-1/DeepBraTumIA-segmentation/native/segmentation/t1_seg_mask.nii.gz"),
    ),
    "BIDS": (
        "sub-01_ses-1",
        {"flair": "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
         "t1": "sub-01/ses-1/anat/sub-01_ses-1_acq-mprage_T1w.nii.gz",
         "t1ce": "sub-01/ses-1/anat/sub-01_ses-1_ce-gadolinium_run-1_T1w.nii.gz",
         "t2": "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
         "seg": "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_space-orig_label-tumor_mask.nii.gz"},
        ("derivatives/fmriprep/sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii.gz",),
    ),
    "BraTS-style names (RHUH-GBM)": (
        "RHUH-0001_0",
        {kind: f"RHUH-0001/0/RHUH-0001_0_{word}.nii.gz" for kind, word in
         zip((*FOUR, "seg"), (*FOUR, "segmentations"), strict=True)},
        ("RHUH-0001/0/RHUH-0001_0_adc.nii.gz",),
    ),
    "BraTS-style names (UCSF-ALPTDG)": (
        "100001_time1",
        {kind: f"100001/100001_time1_{kind}.nii.gz" for kind in (*FOUR, "seg")},
        ("100001/100001_time1_t1ce-t1.nii.gz",),
    ),
    "BraTS-style names, upper case": (
        "A",
        {"flair": "A_T2-FLAIR.nii.gz", "t1": "A_T1w.nii.gz", "t1ce": "A_T1Gd.nii.gz", "t2": "A_T2w.nii.gz",
         "seg": "A_SEGM.nii.gz"},
        (),
    ),
    "BraTS-style names (FeTS 2022)": (
        "FeTS2022_00000",
        {kind: f"FeTS2022_00000/FeTS2022_00000_{kind}.nii.gz" for kind in (*FOUR, "seg")},
        (),
    ),
    "A folder per case": (
        "P1_baseline",
        {kind: f"P1/baseline/{word}.nii.gz" for kind, word in
         zip((*FOUR, "seg"), ("FLAIR", "T1", "T1CE", "T2", "segmentation"), strict=True)},
        (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_public_data_set_is_recognised(tmp_path, name):
    id, files, others = TREES[name]
    case = only(tree(tmp_path, *files.values(), *others))
    assert case.id == id
    found = {**{kind: source.paths for kind, source in case.images.items()}, "seg": case.seg.paths}
    assert found == {kind: (tmp_path / path,) for kind, path in files.items()}


@pytest.mark.parametrize(
    ("expert", "automatic", "image"),
    [
        ("images_segm/UPENN-GBM-00006_11_segm", "automated_segm/UPENN-GBM-00006_11_automated_approx_segm",
         "images_structural/UPENN-GBM-00006_11_FLAIR"),
        ("TCGA-02-0006_1996.08.23_GlistrBoost_ManuallyCorrected", "TCGA-02-0006_1996.08.23_GlistrBoost",
         "TCGA-02-0006_1996.08.23_flair"),
    ],
)  # fmt: skip
def test_the_mask_by_an_expert_goes_before_the_automatic_one(tmp_path, expert, automatic, image):
    tree(tmp_path, f"{image}.nii.gz", f"{automatic}.nii.gz")
    cohort = find_cases(tmp_path)
    assert cohort.cases[0].seg.paths == (tmp_path / f"{automatic}.nii.gz",)
    assert any("1 case without a mask by an expert; the automatic one is used" in note for note in cohort.notes)
    tree(tmp_path, f"{expert}.nii.gz")
    cohort = find_cases(tmp_path)
    assert cohort.cases[0].seg.paths == (tmp_path / f"{expert}.nii.gz",)
    assert any("the expert's is used" in note for note in cohort.notes)


# Task folders: nnU-Net and the Decathlon


def task(root, about, *paths):
    (root / "dataset.json").parent.mkdir(parents=True, exist_ok=True)
    if about:
        (root / "dataset.json").write_text(json.dumps(about))
    return tree(root, *paths)


@pytest.mark.parametrize(
    "about",
    [
        {"channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}},
        {"modality": {"0": "T1w", "1": "T1-Gd", "2": "T2w", "3": "T2-FLAIR"}},
    ],
)
@pytest.mark.parametrize("id", ["BRATS_001", "BraTS2021_00000", "glioma_17_0001"])
def test_nnunet_channels_are_those_of_dataset_json(tmp_path, about, id):
    files = [f"imagesTr/{id}_{number:04d}.nii.gz" for number in range(4)]
    task(tmp_path / "Dataset042", about, *files, f"labelsTr/{id}.nii.gz", "imagesTs/other_0000.nii.gz")
    case = only(tmp_path)
    assert (case.id, case.layout) == (id, "nnU-Net")
    assert case.images["flair"].paths == (tmp_path / "Dataset042" / files[3],)
    assert case.images["t1"].paths == (tmp_path / "Dataset042" / files[0],)
    assert case.images["t2"].paths == (tmp_path / "Dataset042" / files[2],)
    assert case.seg.paths == (tmp_path / "Dataset042" / "labelsTr" / f"{id}.nii.gz",)
    assert any("1 image in imagesTs" in note for note in find_cases(tmp_path).notes)


def test_nnunet_without_dataset_json_says_what_is_missing(tmp_path):
    task(tmp_path, None, "imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz")
    cohort = find_cases(tmp_path)
    assert not cohort.cases
    assert any("no dataset.json that says which channel is FLAIR" in note for note in cohort.notes)


def test_decathlon_channels_are_those_of_dataset_json(tmp_path):
    about = {"modality": {"0": "T1w", "1": "FLAIR"}}
    task(tmp_path, about, "imagesTr/any_name.nii.gz", "imagesTr/._any_name.nii.gz", "labelsTr/any_name.nii.gz")
    case = only(tmp_path)
    assert (case.id, case.layout) == ("any_name", "Medical Segmentation Decathlon")
    assert {kind: source.channel for kind, source in case.images.items()} == {"t1": 0, "flair": 1}


# Labels


@pytest.mark.parametrize("id", ["BraTS-GLI-00005-000", "Case_1"])
def test_the_catch_all_takes_the_labels_of_every_edition(tmp_path, id):
    nifti(tmp_path / f"{id}_flair.nii.gz")
    nifti(tmp_path / f"{id}_seg.nii.gz", labels(1, 2, 3, 4))
    _, mask, found = read_case(only(tmp_path))
    assert found == {0, 1, 2, 3, 4}
    assert mask.sum() == 4


@pytest.mark.parametrize("off", [0.99999994, 1.0000153, 0.9991, 1.0009])
def test_a_mask_that_was_scaled_holds_the_labels_it_means(tmp_path, off):
    mask = np.where(labels(1, 2) > 0, labels(1, 2) + off - 1, off - 1).astype(np.float32)
    mask[0, 0, 0] = 0
    style(tmp_path, mask=mask)
    _, found, seen = read_case(only(tmp_path))
    np.testing.assert_array_equal(found, labels(1, 2) > 0)
    assert seen == {0, 1, 2}
    assert check(tmp_path, 1).labels == {"Case_1": {0, 1, 2}}
    content, buffers = SliceViewer(IMAGE, mask, affine=LPS)._data()
    shown = np.frombuffer(buffers[content["panels"][0]["truth"]], np.uint8).reshape(IMAGE.shape, order="F")
    np.testing.assert_array_equal(shown, labels(1, 2))


def test_a_value_that_is_refused_is_shown_with_enough_digits(tmp_path):
    style(tmp_path, mask=labels(1, 1.0025))
    with pytest.raises(UnetlibError, match=r"labels 1\.0025"):
        read_case(only(tmp_path))
    with pytest.raises(UnetlibError, match=r"whole labels .* \(1\.0025"):
        SliceViewer(IMAGE, labels(1, 1.0025), affine=LPS)


# What is there twice


def test_kaggle_that_holds_its_data_twice_counts_once(tmp_path):
    kaggle(tmp_path / "kaggle_3m")
    shutil.copytree(tmp_path / "kaggle_3m", tmp_path / "lgg-mri-segmentation" / "kaggle_3m")
    cohort = find_cases(tmp_path)
    assert len(cohort.cases) == 1
    assert read_case(cohort.cases[0])[0].voxels.shape == (8, 9, 11)
    assert sum("counted once: 1 case," in note for note in cohort.notes) == 1


@pytest.mark.parametrize("how", ["compressed", "other type", "other folder"])
def test_the_same_voxels_in_another_file_count_once(tmp_path, how):
    style(tmp_path / "a")
    target = tmp_path / ("b" if how == "other folder" else "a")
    for kind in ("flair", "seg"):
        voxels = np.asarray(nib.load(tmp_path / "a" / f"Case_1_{kind}.nii.gz").dataobj)
        name = f"Case_1_{kind}.nii" + ".gz" * (how == "other folder")
        nifti(target / name, voxels.astype(np.float32) if how == "other type" else voxels)
    cohort = find_cases(tmp_path)
    assert len(cohort.cases) == 1
    assert any("twice with the same voxels" in note for note in cohort.notes)


@pytest.mark.parametrize("what", ["voxels", "place", "damage"])
def test_other_voxels_under_one_name_are_an_error_by_name(tmp_path, what):
    style(tmp_path / "a")
    style(tmp_path / "b", **{"voxels": {"image": IMAGE + 1}, "place": {"affine": LPS + np.eye(4, k=3)}}.get(what, {}))
    if what == "damage":
        (tmp_path / "b" / "Case_1_flair.nii.gz").write_bytes(b"damaged")
    assert "two files claim this case" in why_left_out(tmp_path)


# What looks like the file that is missing


@pytest.mark.parametrize(
    "name",
    ["x_tumor_seg.nii.gz", "x_mask.nii.gz", "x-label.nii", "masks/x_truth.nii.gz", "ground_truth.nii.gz",
     "tumor_mask.nii.gz", "x_WT.nii.gz", "x_core.nii.gz", "GTV.nii.gz", "x_edema.nii.gz", "outline.nii.gz"],
)  # fmt: skip
def test_a_file_that_looks_like_the_mask_is_named(tmp_path, name):
    tree(tmp_path, "x_flair.nii.gz", name)
    why = why_left_out(tmp_path)
    assert f"{Path(name).name} looks like its mask: if it is, rename it x_seg.nii.gz" in why
    assert "Add it" not in why


@pytest.mark.parametrize("name", ["x_brain_mask.nii.gz", "xy_tumor_mask.nii.gz", "x_adc.nii.gz", "x_seg.txt"])
def test_a_file_of_another_kind_or_case_does_not_look_like_the_mask(tmp_path, name):
    tree(tmp_path, "x_flair.nii.gz", "y_flair.nii.gz", name)
    cohort = find_cases(tmp_path)
    assert not cohort.cases
    assert {"x", "y"} <= cohort.left_out.keys()
    assert all("Add it" in why for why in cohort.left_out.values())


@pytest.mark.parametrize("name", ["x_mask.nii.gz", "x_flair_mask.nii.gz", "masks/x_flair_core_mask.nii.gz"])
def test_a_mask_that_predict_wrote_is_not_taken_for_the_reference(tmp_path, name):
    tree(tmp_path, "x_flair.nii.gz")
    image = nib.load(nifti(tmp_path / name, labels(1)))
    image.header["descrip"] = ORIGIN.format("0" * 12, "1" * 12, 0, "")
    nib.save(nib.Nifti1Image(labels(1), None, image.header), tmp_path / name)
    why = why_left_out(tmp_path)
    assert "looks like" not in why
    assert "Add it" in why


@pytest.mark.parametrize(
    "name",
    [
        "x_flair_n4.nii.gz",
        "x-FLAIR.nii.gz",
        "x_T2_FLAIR_reg.nii",
        "flair_registered.nii",
        "x_tirm.nii.gz",
        "x_t2_tirm_tra_dark-fluid.nii.gz",
        "x_DarkFluid.nii",
        "x_t2fl.nii.gz",
    ],
)
def test_a_file_that_looks_like_the_image_is_named(tmp_path, name):
    tree(tmp_path, "x_t1.nii.gz", "x_seg.nii.gz", name)
    why = why_left_out(tmp_path)
    assert f"{name} looks like its flair image" in why
    assert "Add it" not in why


@pytest.mark.parametrize(
    ("name", "told"),
    [("VSD.Brain.XX.O.MR_Flair.54512.mha", "BraTS 2012 to 2016 come as .mha"), ("IM0001.dcm", "dcm2niix"),
     ("volume_1_slice_0.h5", "HDF5"), ("a.zip", "unpack")],
)  # fmt: skip
def test_data_of_another_kind_are_named(tmp_path, name, told):
    tree(tmp_path, f"HGG/{name}")
    with pytest.raises(UnetlibError, match=told):
        find_cases(tmp_path)


# Names as file systems compare them


def test_a_mask_of_another_case_is_neither_taken_nor_suggested(tmp_path):
    tree(tmp_path, "A_FLAIR.nii.gz", "B_segm.nii.gz")
    left_out = find_cases(tmp_path).left_out
    assert "Add it" in left_out["A"]
    assert "no flair image" in left_out["B"]


def test_a_mask_under_the_shorter_id_is_named(tmp_path):
    tree(tmp_path, "x_reg_flair.nii.gz", "x_seg.nii.gz")
    assert "x_seg.nii.gz looks like its mask: if it is, rename it x_reg_seg.nii.gz" in why_left_out(tmp_path)


def test_a_mask_under_the_shorter_id_stays_a_case_where_another_file_looks_like_the_mask(tmp_path):
    tree(tmp_path, "17_seg.nii.gz", "17_1_flair.nii.gz", "17_1_roi.nii.gz")
    left_out = find_cases(tmp_path).left_out
    assert "17_1_roi.nii.gz looks like its mask" in left_out["17_1"]
    assert "no flair image" in left_out["17"]


def test_a_mask_under_the_shorter_id_is_told_of_in_a_note_where_no_mask_is_needed(tmp_path):
    cohort = find_images(tree(tmp_path, "x_reg_flair.nii.gz", "x_seg.nii.gz"), "flair")
    assert [case.id for case in cohort.cases] == ["x_reg"]
    assert any("x_seg.nii.gz" in note for note in cohort.notes)


@pytest.mark.parametrize(
    ("whole", "lone"),
    [
        ("17/17", "17_1/17_1"),
        ("17/17", "17_b/17_b"),
        ("17", "17_1"),
        ("P07", "P07_2019-03-01"),
        ("UCSF-PDGM-0429_nifti/UCSF-PDGM-0429", "UCSF-PDGM-0429_FU003d_nifti/UCSF-PDGM-0429_FU003d"),
        ("UCSF-PDGM-0429", "UCSF-PDGM-0429_FU003d"),
    ],
)
def test_a_mask_without_image_under_a_longer_id_is_left_out_by_name(tmp_path, whole, lone):
    tree(tmp_path, f"{whole}_flair.nii.gz", f"{whole}_seg.nii.gz", f"{lone}_seg.nii.gz")
    cohort = find_cases(tmp_path)
    assert [case.id for case in cohort.cases] == [Path(whole).name]
    assert "no flair image" in cohort.left_out[Path(lone).name]


@pytest.mark.parametrize("further", ["17_brain", "17_1_brain"])
def test_a_further_mask_beside_the_images_of_a_case_is_no_case(tmp_path, further):
    tree(tmp_path, "17_flair.nii.gz", "17_seg.nii.gz", f"{further}_seg.nii.gz")
    assert only(tmp_path).seg.paths[0].name == "17_seg.nii.gz"
    assert any(f"{further}_seg.nii.gz" in note for note in find_cases(tmp_path).notes)


def test_names_are_compared_without_case_and_ways_to_write_accents(tmp_path):
    for form, kind in (("NFC", "flair"), ("NFD", "seg")):
        tree(
            tmp_path,
            unicodedata.normalize("NFC", f"a/Zoë_{kind}.nii.gz").replace("ë", unicodedata.normalize(form, "ë")),
        )
    case = only(tmp_path)
    assert case.id == unicodedata.normalize("NFC", "Zoë")
    tree(tmp_path, "b/ZOË_1_flair.nii.gz", "b/zoë_1_SEG.nii.gz")
    assert len(find_cases(tmp_path).cases) == 2


def test_paths_may_begin_with_the_users_folder_and_be_text(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    style(tmp_path / "data")
    assert [case.id for case in find_cases("~/data").cases] == ["Case_1"]
    assert open_data(Path("~/data")) == tmp_path / "data"
    assert len(check("~/data", 1).findings) == 1
    assert SliceViewer("~/data/Case_1_flair.nii.gz", "~/data/Case_1_seg.nii.gz").title == "Case_1_flair"
    with pytest.raises(UnetlibError, match="no user of that name"):
        find_cases("~nobody-of-that-name/data")


def test_the_command_line_and_a_variable_may_name_the_users_folder(tmp_path, monkeypatch, capsys):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    style(tmp_path / "data")
    main(["check", "~/data", "--workers", "1"])
    assert "1 of 1 cases usable" in capsys.readouterr().out
    assert build_parser().parse_args(["predict", "~/run", "~/a.nii", "--out=~/masks"]).out == tmp_path / "masks"
    monkeypatch.setenv("COURSE_DATA", "~/data")
    assert start(work="~/work").work.parent == tmp_path / "work"


def test_a_volume_and_a_mask_named_in_two_ways_are_of_one_case(tmp_path):
    case = only(tree(tmp_path, "UPENN-GBM-00006_11_FLAIR.nii.gz", "UPENN-GBM-00006_11_seg.nii.gz"))
    assert case.seg.paths[0].name == "UPENN-GBM-00006_11_seg.nii.gz"


def test_a_folder_named_like_a_file_names_the_case_whoever_it_is(tmp_path):
    for id in ("HGG_004", "HGG_005"):
        nifti(tmp_path / f"{id}_flair.nii/00000377_brain_flair.nii")
        nifti(tmp_path / f"{id}_seg.nii/00000377_final_seg.nii", labels(1))
    assert [case.id for case in find_cases(tmp_path).cases] == ["HGG_004", "HGG_005"]


@pytest.mark.parametrize("id", ["UPENN-GBM-00006_11", "UCSF-PDGM-0004", "TCGA-02-0006_1996.08.23", "RHUH-0001_1"])
def test_a_mask_renamed_as_in_brats_is_the_mask_in_every_data_set(tmp_path, id):
    brats(tmp_path, id)
    assert [(case.id, len(case.images)) for case in find_cases(tmp_path).cases] == [(id, 4)]


@pytest.mark.parametrize("name", ["T2 FLAIR", "MR FLAIR", "MRI_FLAIR", "flair mri"])
def test_nnunet_channels_as_they_are_written(tmp_path, name):
    nifti(tmp_path / "imagesTr/a_0000.nii.gz")
    nifti(tmp_path / "imagesTr/a_0001.nii.gz")
    nifti(tmp_path / "labelsTr/a.nii.gz", labels(1))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1 weighted", "1": name}}))
    (case,) = find_cases(tmp_path).cases
    assert case.images["flair"].paths[0].name == "a_0001.nii.gz"


def test_nnunet_without_a_name_for_flair_is_told_to_name_it_not_to_add_it(tmp_path):
    nifti(tmp_path / "imagesTr/a_0000.nii.gz")
    nifti(tmp_path / "labelsTr/a.nii.gz", labels(1))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "x"}}))
    (why,) = find_cases(tmp_path).left_out.values()
    assert "Let dataset.json beside imagesTr name the channels" in why
    assert "Add it" not in why


@pytest.mark.parametrize("name", ["x_FLAIR_reg", "x-FLAIR", "x.flair", "x_flair_n4"])
def test_an_image_under_an_unknown_name_beside_its_mask_is_named(tmp_path, name):
    nifti(tmp_path / f"{name}.nii.gz")
    nifti(tmp_path / "x_seg.nii.gz", labels(1))
    (why,) = find_cases(tmp_path).left_out.values()
    assert f"{tmp_path / name}.nii.gz looks like its flair image" in why
    assert "Add it" not in why


def test_a_second_table_of_patients_deeper_down_is_not_skipped_in_silence(tmp_path):
    for folder in (tmp_path, tmp_path / "sub"):
        style(folder, f"case{folder.name}")
        (folder / "patients.csv").write_text(f"case,patient\ncase{folder.name},p\n")
    told = " ".join(find_cases(tmp_path).notes)
    assert f"Ignored, because it lies deeper: {tmp_path / 'sub' / 'patients.csv'}" in told


def test_the_layout_in_the_words_of_the_module_is_all_that_a_new_data_set_needs(tmp_path, monkeypatch):
    tree(tmp_path, "p001/P001_FLAIR.nii.gz", "p001/P001_T1.nii.gz", "p001/P001_tumour.nii.gz")
    assert not find_cases(tmp_path).cases
    (line,) = (line for line in layouts.__doc__.splitlines() if line.lstrip().startswith("Layout("))
    layout = eval(line, vars(layouts))
    monkeypatch.setattr(layouts, "LAYOUTS", (layout, *layouts.LAYOUTS))
    monkeypatch.setattr(layouts, "BY_NAME", layouts.BY_NAME | {layout.name: layout})
    case = only(tmp_path)
    assert (case.id, case.layout, list(case.images)) == ("P001", "My data", ["flair", "t1"])
    assert case.seg.paths == (tmp_path / "p001" / "P001_tumour.nii.gz",)
    (tmp_path / "p001" / "P001_tumour.nii.gz").unlink()
    assert "no tumour mask" in why_left_out(tmp_path)
