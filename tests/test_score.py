"""`unetlib score`: the masks of any tool against the references of a data folder."""

import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

import unetlib
from tests.conftest import LPS, SMALL, as_cases, write_patient
from tests.test_cli import fails, run_cli
from unetlib.data.export import export_nnunet
from unetlib.data.patients import find_cases
from unetlib.data.prepare import prepare_shard
from unetlib.evaluation import masks as masks_module
from unetlib.evaluation import matching
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.masks import Masks
from unetlib.evaluation.table import read_patients
from unetlib.prediction.predict import predict
from unetlib.recipe import Recipe
from unetlib.support.errors import UnetlibError
from unetlib.support.files import PARTIAL, read_csv, read_json

CASES = [f"BraTS2021_{index:05d}" for index in range(3)]


@pytest.fixture
def data(tmp_path):
    """Three patients of 40 x 48 x 6."""
    for index in range(3):
        write_patient(tmp_path / "data", index)
    return tmp_path / "data"


def reference(data, case):
    return nib.load(data / case / f"{case}_seg.nii.gz")


def write(path, voxels, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def masks(data, tmp_path):
    """Masks of the three: as the reference, with other labels, moved by one voxel, and empty."""
    for case, change in zip(CASES, (lambda v: (v > 0) * 7, lambda v: np.roll(v, 1, 0), lambda v: v * 0), strict=True):
        write(tmp_path / "masks" / f"{case}.nii.gz", change(np.asarray(reference(data, case).dataobj)).astype(np.uint8))
    return tmp_path / "masks"


def refused(*given, **named):
    with pytest.raises(UnetlibError) as error:
        unetlib.score(*given, **named)
    return str(error.value)


def test_it_gives_the_dice_of_every_case_and_the_same_files_as_evaluate(masks, data):
    summary = unetlib.score(masks, data)
    folder = masks.with_name("masks-scores")
    rows = {row["patient"]: row for row in read_patients(folder)}
    one, other = (
        np.asarray(nib.load(path).dataobj) > 0
        for path in (masks / f"{CASES[1]}.nii.gz", data / CASES[1] / f"{CASES[1]}_seg.nii.gz")
    )
    expected = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert [float(rows[case]["dice"]) for case in CASES] == pytest.approx([1, expected, 0])
    assert [float(rows[case]["lesion_dice"]) for case in CASES] == pytest.approx([1, expected, 0])
    assert {entry["grid"] for entry in summary["figures"]} == {"native"}
    assert len(summary["figures"]) == 6
    assert "model_tp" not in read_csv(folder / "slices.csv")[0]
    assert {path.name for path in folder.iterdir()} == {
        *("slices.csv", "patients.csv", "summary.json"),
        *("overlays.png", "volumes.png"),
    }
    assert read_json(folder / "summary.json") == summary


def test_masks_of_predict_have_the_scores_of_evaluate(trained, cohort, tmp_path):
    """Through files, names and all: what `predict` writes fits, its probabilities beside it are left out and named."""
    run = shutil.copytree(trained, tmp_path / "run")
    expected = evaluate(run, data=cohort, split="all", device="cpu")
    images = sorted(cohort.glob("*/*_flair.nii.gz"))
    predict(run, images, tmp_path / "out", probabilities=True, device="cpu")
    found = unetlib.score(tmp_path / "out", cohort)
    native = [entry for entry in expected["figures"] if entry["grid"] == "native"]
    assert found["figures"] == native
    assert [found[name] for name in ("surface", "lesions", "volumes")] == [
        expected[name] for name in ("surface", "lesions", "volumes")
    ]
    assert "named as probability maps: BraTS2021_00000_flair_probability.nii.gz" in found["note"]
    assert f"by `unetlib predict`, with the weights {expected['runs'][0]['weights'][:16]}: " in found["note"]


@pytest.mark.parametrize(
    "name",
    [
        *("{}.nii.gz", "{}.nii", "{}_mask.nii.gz", "{}_seg.nii", "{}-pred_mask.nii.gz", "{}_flair.nii.gz"),
        *("{}_flair_mask.nii.gz", "{}/mask.nii.gz", "deep/{}/anything.nii", "{}.img"),
    ],
)
def test_names_that_fit(name, masks, data):
    path = masks / name.format(CASES[0].lower() if name == "{}.nii" else CASES[0])
    image = nib.load(masks / f"{CASES[0]}.nii.gz")
    voxels = np.asarray(image.dataobj).copy()
    shutil.rmtree(masks)
    path.parent.mkdir(parents=True)
    nib.save((nib.Nifti1Pair if name == "{}.img" else nib.Nifti1Image)(voxels, image.affine), path)
    assert [case.id for case in Masks.find(masks, data).cases] == [CASES[0]]


def test_a_case_of_nested_folders_is_matched_by_its_folders(data, tmp_path):
    nested = tmp_path / "nested" / "site" / "anna"
    nested.mkdir(parents=True)
    for kind in ("flair", "seg"):
        shutil.copy(data / CASES[0] / f"{CASES[0]}_{kind}.nii.gz", nested / f"{kind}.nii.gz")
    out = tmp_path / "out" / "site" / "anna"
    out.mkdir(parents=True)
    shutil.copy(nested / "seg.nii.gz", out / "result.nii.gz")
    assert unetlib.score(tmp_path / "out", tmp_path / "nested")["figures"][0]["dice"] == 1


def test_a_single_mask_will_do_and_the_others_are_said_to_have_none(masks, data):
    summary = unetlib.score(masks / f"{CASES[0]}.nii.gz", data)
    assert summary["patients"] == 1
    assert "they have no mask: 2 of 3 cases" in summary["note"]
    assert (masks / f"{CASES[0]}-scores" / "summary.json").exists()


def test_a_mask_that_fits_no_case_is_named(masks, data):
    write(masks / "stranger_mask.nii.gz", np.zeros((40, 48, 6), np.uint8))
    told = refused(masks, data)
    assert f"1 mask fits no case of {data}: stranger_mask.nii.gz" in told
    assert "such as BraTS2021_00000.nii.gz or BraTS2021_00000_mask.nii.gz" in told


@pytest.mark.parametrize("name", ["{}_t1x", "{}_1", "{}0", "x{}"])
def test_a_name_that_only_looks_like_a_case_fits_none(name, masks, data):
    (masks / f"{CASES[0]}.nii.gz").rename(masks / f"{name.format(CASES[0])}.nii.gz")
    assert "fits no case" in refused(masks, data)


def test_a_mask_of_a_case_that_cannot_be_used_says_why(masks, data):
    (data / CASES[0] / f"{CASES[0]}_seg.nii.gz").unlink()
    assert f"The case {CASES[0]} cannot be used: it has no tumour mask" in refused(masks, data)


def test_a_mask_that_fits_two_cases_is_named(cohort, tmp_path):
    as_cases(cohort, tmp_path / "data", ["anna", "anna_seg"])
    path = write(tmp_path / "masks" / "anna_seg_mask.nii.gz", np.zeros((40, 48, 6), np.uint8))
    told = refused(tmp_path / "masks", tmp_path / "data")
    assert f"{path} fits 2 cases: anna, anna_seg" in told


def test_a_folder_and_a_name_of_two_cases_fit_two(masks, data):
    (masks / CASES[1]).mkdir()
    (masks / f"{CASES[0]}.nii.gz").rename(masks / CASES[1] / f"{CASES[0]}.nii.gz")
    assert f"fits 2 cases: {CASES[0]}, {CASES[1]}" in refused(masks, data)


def test_two_masks_of_one_case_are_named(masks, data):
    shutil.copy(masks / f"{CASES[0]}.nii.gz", masks / f"{CASES[0]}_seg.nii.gz")
    told = refused(masks, data)
    assert f"2 masks fit the case {CASES[0]}" in told
    assert f"{CASES[0]}_seg.nii.gz" in told


def other_grid(voxels):
    return voxels[:, :, :5].astype(np.uint8), LPS


def other_place(voxels):
    moved = LPS.copy()
    moved[0, 3] = 3
    return voxels.astype(np.uint8), moved


def probabilities(voxels):
    return ((voxels > 0) * 0.7).astype(np.float32), LPS


def percentages(voxels):
    return (voxels.astype(np.int16) + np.arange(voxels.size).reshape(voxels.shape) % 101).astype(np.uint8), LPS


def negative(voxels):
    return voxels.astype(np.int16) - 1, LPS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_grid, r"has shape \(40, 48, 5\) and the reference of BraTS2021_00001 has \(40, 48, 6\)"),
        (other_place, "has the affine .* Resample or export the mask on the grid of the image"),
        (probabilities, "holds 0.7, so it is no mask of labels but a probability map"),
        (percentages, "different values from 0 to 10"),
        (negative, "from -1 to"),
    ],
)
def test_a_mask_that_cannot_be_scored_is_named_after_all_others_are_scored(change, told, masks, data):
    path = masks / f"{CASES[1]}.nii.gz"
    good = path.read_bytes()
    write(path, *change(np.asarray(reference(data, CASES[1]).dataobj)))
    with pytest.raises(UnetlibError, match=rf"1 of 3 masks cannot be scored: {re.escape(str(path))}.*{told}"):
        unetlib.score(masks, data)
    parts = list(masks.with_name("masks-scores").glob(".unetlib-parts/*"))
    assert len(parts) == 2
    path.write_bytes(good)
    assert unetlib.score(masks, data)["cases"] == 3


def test_a_damaged_mask_and_a_wrong_folder_are_sentences(masks, data, tmp_path):
    path = masks / f"{CASES[1]}.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    assert str(path) in refused(masks, data)
    assert "does not exist" in refused(tmp_path / "nothing", data)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    assert "1 other file" in refused(tmp_path / "empty", data)
    assert "holds no patient" in refused(masks, tmp_path / "empty")


def test_a_mask_stored_in_another_orientation_is_the_same_mask(masks, data):
    before = unetlib.score(masks, data)
    image = nib.load(masks / f"{CASES[1]}.nii.gz")
    voxels, affine = np.asarray(image.dataobj)[::-1], image.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = (image.affine @ [39, 0, 0, 1])[:3]
    write(masks / f"{CASES[1]}.nii.gz", np.ascontiguousarray(voxels), affine)
    after = unetlib.score(masks, data)
    assert after["figures"] == before["figures"]
    assert after["key"] != before["key"]


def test_stopped_it_goes_on_and_done_it_is_reused(masks, data, monkeypatch, capsys):
    compare, scored = masks_module.compare, []

    def stop_at_the_second(*given, **named):
        scored.append(given[3]["case"])
        if len(scored) == 2:
            raise KeyboardInterrupt
        return compare(*given, **named)

    monkeypatch.setattr(masks_module, "compare", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        unetlib.score(masks, data)
    summary = unetlib.score(masks, data)
    assert scored == [CASES[0], CASES[1], CASES[1], CASES[2]]
    folder = masks.with_name("masks-scores")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(masks_module, "compare", None)
    assert unetlib.score(masks, data) == summary
    assert "reused" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_changed_mask_is_scored_again(masks, data):
    assert unetlib.score(masks, data)["lesions"][0]["lesions_missed"] == 1
    shutil.copy(data / CASES[2] / f"{CASES[2]}_seg.nii.gz", masks / f"{CASES[2]}.nii.gz")
    assert unetlib.score(masks, data)["lesions"][0]["lesions_missed"] == 0


def test_another_mask_of_the_same_size_and_time_is_scored_again(masks, data):
    voxels, dices = np.asarray(nib.load(masks / f"{CASES[0]}.nii.gz").dataobj), []
    (masks / f"{CASES[0]}.nii.gz").unlink()
    for shift in (0, 9):
        path = write(masks / f"{CASES[0]}.nii", np.roll(voxels, shift, 0))
        os.utime(path, ns=(0, 0))
        unetlib.score(masks, data)
        dices.append({row["patient"]: row["dice"] for row in read_patients(masks.with_name("masks-scores"))})
    assert dices[0][CASES[0]] != dices[1][CASES[0]]


def test_a_mask_of_255_that_is_scaled_to_1_is_one_of_0_and_1(data, tmp_path):
    (tmp_path / "masks").mkdir()
    for case in CASES:
        image = nib.Nifti1Image(255 * (np.asarray(reference(data, case).dataobj) == 4).astype(np.uint8), LPS)
        image.header.set_slope_inter(1 / 255, 0)
        nib.save(image, tmp_path / "masks" / f"{case}.nii.gz")
    assert not np.isin(nib.load(tmp_path / "masks" / f"{CASES[0]}.nii.gz").get_fdata(), [0, 1]).all()
    unetlib.score(tmp_path / "masks", data, regions="enhancing")
    assert {float(row["dice"]) for row in read_patients(tmp_path / "masks-scores")} == {1.0}


def test_a_mask_of_a_case_that_is_left_out_is_not_that_of_a_shorter_name(masks, data):
    other = f"{CASES[0]}_final"
    shutil.copytree(data / CASES[1], data / other)
    for path in (data / other).iterdir():
        path.rename(data / other / path.name.replace(CASES[1], other))
    (data / other / f"{other}_seg.nii.gz").unlink()
    (masks / f"{CASES[0]}.nii.gz").rename(masks / f"{other}.nii.gz")
    assert f"The case {other} cannot be used: it has no tumour mask" in refused(masks, data)


def test_masks_in_a_linked_folder_are_found(masks, data, tmp_path):
    (masks / CASES[0]).mkdir()
    (masks / f"{CASES[0]}.nii.gz").rename(masks / CASES[0] / "mask.nii.gz")
    (masks / CASES[0]).rename(tmp_path / "elsewhere")
    (masks / CASES[0]).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert unetlib.score(masks, data)["cases"] == 3


def test_a_case_whose_name_says_prob_is_scored(tmp_path):
    (tmp_path / "masks").mkdir()
    for index, name in enumerate(("study_prob_00", "study_prob_01", "other")):
        case = write_patient(tmp_path / "old", index)
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in (tmp_path / "old" / case).iterdir():
            path.rename(tmp_path / "data" / name / path.name.replace(case, name))
        shutil.copy(tmp_path / "data" / name / f"{name}_seg.nii.gz", tmp_path / "masks" / f"{name}.nii.gz")
    assert unetlib.score(tmp_path / "masks", tmp_path / "data")["cases"] == 3


def test_scores_that_were_stopped_among_the_patients_are_no_table_of_patients(masks, data, monkeypatch):
    inside = shutil.copytree(masks, data / "masks")
    (data / "masks-scores").mkdir()
    unetlib.score(inside, data)
    (data / "masks-scores" / "summary.json").unlink()  # written last
    (data / "masks-scores" / PARTIAL).mkdir()
    assert len(find_cases(data).cases) == 3
    assert unetlib.score(inside, data)["cases"] == 3


def test_the_unfinished_work_of_others_and_what_other_programs_wrote_stay(masks, data, tmp_path):
    prepare_shard(data, tmp_path / "shard", "1/2", SMALL, workers=1)
    before = {path.name for path in (tmp_path / "shard" / PARTIAL).iterdir()}
    told = "holds what another program or command has written"
    assert told in refused(masks, data, out=tmp_path / "shard")
    assert {path.name for path in (tmp_path / "shard" / PARTIAL).iterdir()} == before
    (masks / "summary.json").write_text('{"foreground_mean": {"Dice": NaN}}')  # as nnU-Net writes it
    assert told in refused(masks, data, out=masks)
    assert "foreground_mean" in (masks / "summary.json").read_text()


def test_nothing_of_others_is_overwritten(masks, data, trained, tmp_path):
    (data / "patients.csv").write_text(f"case,patient\n{CASES[0]},anna\n")
    assert "is not a folder of scores" in refused(masks, data, out=data)
    shutil.copytree(trained, tmp_path / "run")
    evaluate(tmp_path / "run", device="cpu")
    assert "holds the scores of a run" in refused(masks, data, out=tmp_path / "run" / "evaluation")
    others = shutil.copytree(masks, tmp_path / "others")
    unetlib.score(masks, data, out=tmp_path / "out")
    assert f"holds the scores of {masks}" in refused(others, data, out=tmp_path / "out")
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    assert f"holds scores against {data}" in refused(masks, elsewhere, out=tmp_path / "out")


def test_files_without_an_orientation_need_the_same_assumption(masks, data):
    path = masks / f"{CASES[0]}.nii.gz"
    image = nib.load(path)
    silent = nib.Nifti1Image(np.asarray(image.dataobj), None)
    silent.header["sform_code"] = silent.header["qform_code"] = 0
    nib.save(silent, path)
    assert "--assume" in refused(masks, data)
    assert unetlib.score(masks, data, assume="lps")["cases"] == 3
    assert "has the affine" in refused(masks, data, assume="ras")


def test_the_command_prints_the_table_and_fails_with_a_sentence(masks, data, capsys):
    run_cli("score", masks, data)
    told = capsys.readouterr().out
    for words in (
        f"masks of {masks}: 3 patients",
        "Lesion by lesion",
        "Volumes",
        "may have learned from these",
        "clinical use",
    ):
        assert words in told
    assert "epoch" not in told
    assert "unetlib predict" not in told
    assert "published number" not in told
    assert "does not exist" in fails(capsys, "score", masks / "nothing", data)


def test_masks_of_0_and_1_are_those_of_the_one_region_that_is_scored(data, tmp_path):
    """The boxes have the label 4: a mask of the enhancing tumour alone, as `predict` and `export` write it, has 1."""
    for case in CASES:
        write(tmp_path / "masks" / f"{case}.nii.gz", (np.asarray(reference(data, case).dataobj) == 4).astype(np.uint8))
    summary = unetlib.score(tmp_path / "masks", data, regions="enhancing")
    assert summary["figures"][0]["dice"] == 1
    assert "The masks hold 0 and 1 only: 1 is taken for enhancing." in summary["note"]
    export_nnunet(data, tmp_path / "out" / "Dataset501_A", Recipe.published.but(regions="enhancing"))
    labels = tmp_path / "out" / "Dataset501_A" / "labelsTr"
    assert unetlib.score(labels, data, regions="enhancing")["figures"][0]["dice"] == 1


def test_one_mask_with_another_label_makes_all_of_them_label_maps(data, tmp_path):
    for case in CASES:
        labels = np.asarray(reference(data, case).dataobj)
        one = labels if case == CASES[0] else (labels == 4).astype(np.uint8)
        write(tmp_path / "masks" / f"{case}.nii.gz", one)
    unetlib.score(tmp_path / "masks", data, regions="enhancing")
    rows = read_patients(tmp_path / "masks-scores")
    assert [float(row["dice"]) for row in rows] == [1, 0, 0]


def test_patients_without_flair_are_scored_and_checked(masks, data, tmp_path, capsys):
    for path in [*data.rglob("*_flair.nii.gz")]:
        path.rename(path.with_name(path.name.replace("flair", "t1ce")))
    summary = unetlib.score(masks, data)
    assert (summary["cases"], summary["figures"][0]["dice"] > 0) == (3, True)
    run_cli("check", data, "--modalities", "t1ce")
    assert "t1ce 3, mask 3" in (told := capsys.readouterr().out)
    assert "3 of 3 cases usable" in told
    assert "0 of 3 cases usable" in str(unetlib.check(data))


def as_2023(data, folder, labels):
    """Copy patients into the layout of BraTS 2023, with other labels in their references."""
    for index, case in enumerate(CASES):
        name = f"BraTS-GLI-{index:05d}-000"
        (folder / name).mkdir(parents=True)
        shutil.copy(data / case / f"{case}_flair.nii.gz", folder / name / f"{name}-t2f.nii.gz")
        write(folder / name / f"{name}-seg.nii.gz", labels(np.asarray(reference(data, case).dataobj)))
        write(folder.with_name("old-masks") / f"{name}.nii.gz", np.asarray(reference(data, case).dataobj))
    return folder


def test_labels_of_brats_2021_are_known_in_masks_of_patients_from_later_years(data, tmp_path):
    new = as_2023(data, tmp_path / "new", lambda voxels: np.where(voxels == 4, 3, voxels).astype(np.uint8))
    summary = unetlib.score(tmp_path / "old-masks", new, regions="whole enhancing")
    rows = read_patients(tmp_path / "old-masks-scores")
    found = sorted((row["region"], float(row["dice"])) for row in rows)
    assert found == 3 * [("enhancing", 1.0)] + 3 * [("whole", 1.0)]
    assert "4 is taken for enhancing tumour, as in BraTS 2021" in summary["note"]


def test_label_4_of_masks_is_not_taken_for_enhancing_tumour_where_it_is_the_cavity(data, tmp_path):
    new = as_2023(data, tmp_path / "new", lambda voxels: voxels)
    told = refused(tmp_path / "old-masks", new, regions="whole enhancing")
    assert "no mask holds label 3, and label 4 is enhancing tumour in BraTS 2021, but the resection cavity" in told


def test_a_table_of_patients_added_later_is_heeded(tmp_path):
    for index, name in enumerate(("17_1", "17_2", "18_1")):
        source = tmp_path / "raw" / write_patient(tmp_path / "raw", index)
        for kind in ("flair", "seg"):
            (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / f"{source.name}_{kind}.nii.gz", tmp_path / "mine" / name / f"{name}_{kind}.nii.gz")
        (tmp_path / "masks").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "mine" / name / f"{name}_seg.nii.gz", tmp_path / "masks" / f"{name}.nii.gz")
    assert unetlib.score(tmp_path / "masks", tmp_path / "mine")["patients"] == 3
    (tmp_path / "mine" / "patients.csv").write_text("case,patient\n17_1,17\n17_2,17\n18_1,18\n")
    assert unetlib.score(tmp_path / "masks", tmp_path / "mine")["patients"] == 2


def test_a_folder_of_masks_that_cannot_be_read_is_said(masks, data, monkeypatch, caplog):
    walk = matching.walk
    monkeypatch.setattr(matching, "walk", lambda root, notes: notes.append("x cannot be read") or walk(root, notes))
    unetlib.score(masks, data, out=masks.parent / "scores")
    assert "x cannot be read" in caplog.text
