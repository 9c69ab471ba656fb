"""`unetlib export`: patients in the raw layout of nnU-Net, with our split."""

import json
import os
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import unetlib
from tests.conftest import LPS, SMALL, as_cases, write_patient
from tests.test_cli import fails, run_cli
from tests.test_sequences import write
from unetlib.data import export as module
from unetlib.data.export import export_nnunet
from unetlib.data.patients import find_cases
from unetlib.data.prepare import prepare
from unetlib.data.split import make_split
from unetlib.evaluation.table import read_patients
from unetlib.recipe import REGIONS, Recipe
from unetlib.support.errors import UnetlibError, quoted
from unetlib.support.files import read_json

THREE = Recipe.published.but(modalities="t2 flair", regions="whole core enhancing")


def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def names(folder, kind):
    return sorted(path.name for path in (folder / kind).iterdir())


def splits(folder):
    return json.loads((folder / "splits_final.json").read_text())


def refused(*given):
    with pytest.raises(UnetlibError) as error:
        export_nnunet(*given, workers=1)
    return str(error.value)


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patients")
    for index in range(5):
        write(folder, index)
    return folder


def test_images_and_labels_keep_their_voxels_and_grid(cohort, tmp_path):
    folder = tmp_path / "Dataset501_Small"
    about = export_nnunet(cohort, folder, workers=1)
    split = make_split([path.name for path in cohort.iterdir()])
    for kind, ids in (("Tr", {*split.train, *split.val}), ("Ts", {*split.test})):
        assert names(folder, f"images{kind}") == sorted(f"{id}_0000.nii.gz" for id in ids)
        assert names(folder, f"labels{kind}") == sorted(f"{id}.nii.gz" for id in ids)
        for id in ids:
            image, affine = load(folder / f"images{kind}" / f"{id}_0000.nii.gz")
            stored, own = load(cohort / id / f"{id}_flair.nii.gz")
            np.testing.assert_array_equal(image, stored)
            np.testing.assert_array_equal(affine, own)
            labels, affine = load(folder / f"labels{kind}" / f"{id}.nii.gz")
            np.testing.assert_array_equal(labels, load(cohort / id / f"{id}_seg.nii.gz")[0] > 0)
            np.testing.assert_array_equal(affine, own)
            assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
    assert splits(folder) == [{"train": [*split.train], "val": [*split.val]}]
    stored = json.loads((folder / "dataset.json").read_text())
    assert stored == about
    assert {name: stored[name] for name in ("channel_names", "labels", "numTraining", "file_ending")} == {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "whole": 1},
        "numTraining": 8,
        "file_ending": ".nii.gz",
    }
    assert not list(folder.glob(".unetlib-parts"))


def test_sequences_are_numbered_and_labels_have_no_gap(patients, tmp_path):
    folder = tmp_path / "Dataset007_x"
    about = export_nnunet(patients, folder, THREE, workers=1)
    assert about["channel_names"] == {"0": "T2", "1": "FLAIR"}
    # each region: its labels; and what stands where it alone is found, from the outermost to the innermost
    assert about["labels"] == {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}
    assert about["regions_class_order"] == [2, 1, 3]
    assert [*about["labels"]] == ["background", "whole", "core", "enhancing"]  # nnU-Net relies on the order
    for path in [*(folder / "labelsTr").iterdir(), *(folder / "labelsTs").iterdir()]:
        id, kind = path.name.removesuffix(".nii.gz"), path.parent.name[-2:]
        seg = load(patients / id / f"{id}_seg.nii.gz")[0]
        np.testing.assert_array_equal(load(path)[0], np.where(seg == 4, 3, seg))
        for number, sequence in enumerate(("t2", "flair")):
            image = load(folder / f"images{kind}" / f"{id}_{number:04d}.nii.gz")[0]
            np.testing.assert_array_equal(image, load(patients / id / f"{id}_{sequence}.nii.gz")[0])


def test_its_label_maps_are_scored_as_perfect(patients, tmp_path):
    folder = tmp_path / "Dataset007_x"
    export_nnunet(patients, folder, THREE, workers=1)
    unetlib.score(folder / "labelsTr", patients, tmp_path / "scores", regions=THREE.regions)
    rows = read_patients(tmp_path / "scores")
    found = sorted((row["region"], float(row["dice"])) for row in rows)
    assert found == sorted([(name, 1.0) for name in REGIONS] * 4)


def test_a_prepared_folder_hands_on_its_own_split(patients, tmp_path):
    recipe = SMALL.but(split_seed=5, train_fraction=0.5, modalities="t1", slices="all")
    split = prepare(patients, tmp_path / "prepared", recipe, workers=1).split
    assert split != make_split([path.name for path in patients.iterdir()])
    about = export_nnunet(tmp_path / "prepared", tmp_path / "Dataset501_Own", workers=1)
    assert splits(tmp_path / "Dataset501_Own") == [{"train": [*split.train], "val": [*split.val]}]
    assert about["channel_names"] == {"0": "T1"}


def test_time_points_of_one_patient_stay_in_one_part_and_copies_are_left_out(cohort, tmp_path, caplog):
    ids = [f"UPENN-GBM-{number:05d}_{scan}" for number in range(4) for scan in (11, 21)]
    data = as_cases(cohort, tmp_path / "data", ids)
    copy = data / "UPENN-GBM-00009_11"
    shutil.copytree(data / ids[0], copy)
    for path in copy.iterdir():
        path.rename(copy / path.name.replace(ids[0], copy.name))
    folder = tmp_path / "Dataset501_x"
    export_nnunet(data, folder, workers=1)
    fold = splits(folder)[0]
    parts = [*fold.values(), [name.removesuffix(".nii.gz") for name in names(folder, "labelsTs")]]
    assert sorted(id for part in parts for id in part) == sorted(ids)
    assert all(id.replace("_21", "_11") in part for part in parts for id in part)
    assert "left out UPENN-GBM-00009_11" in caplog.text


def test_it_goes_on_after_a_stop_and_a_finished_folder_is_reused(cohort, tmp_path, monkeypatch):
    folder, whole, written = tmp_path / "a" / "Dataset501_x", tmp_path / "b" / "Dataset501_x", []
    export_nnunet(cohort, whole, workers=1)
    write_one = module._write

    def stops(job):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(job.case.id)
        return write_one(job)

    monkeypatch.setattr(module, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        export_nnunet(cohort, folder, workers=1)
    assert not (folder / "dataset.json").exists()
    moved, move = [], module._move

    def stops_moving(path, goal, other):
        move(path, goal, other)
        moved.append(goal)
        if len(moved) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write", lambda job: written.append(job.case.id) or write_one(job))
    monkeypatch.setattr(module, "_move", stops_moving)
    with pytest.raises(KeyboardInterrupt):
        export_nnunet(cohort, folder, workers=1)
    monkeypatch.setattr(module, "_move", move)
    export_nnunet(cohort, folder, workers=1)
    assert sorted(written) == sorted(path.name for path in cohort.iterdir())  # each once
    files = [sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file()) for one in (folder, whole)]
    assert files[0] == files[1]
    for name in files[0]:
        if name.suffix == ".gz":
            np.testing.assert_array_equal(load(folder / name)[0], load(whole / name)[0])
    monkeypatch.setattr(module, "_write", write_one)
    before = (folder / "dataset.json").stat().st_mtime_ns
    export_nnunet(cohort, folder, workers=1)
    assert (folder / "dataset.json").stat().st_mtime_ns == before


def test_an_image_in_another_orientation_keeps_it_and_its_mask_is_scored(tmp_path):
    for index in range(3):
        write_patient(tmp_path / "data", index, affine=np.eye(4) if index else LPS)
    folder = tmp_path / "Dataset501_x"
    export_nnunet(tmp_path / "data", folder, workers=1)
    for id in ("BraTS2021_00000", "BraTS2021_00001"):
        found = next(folder.glob(f"images*/{id}_0000.nii.gz"))
        for one, other in zip(load(found), load(tmp_path / "data" / id / f"{id}_flair.nii.gz"), strict=True):
            np.testing.assert_array_equal(one, other)
    assert unetlib.score(folder / "labelsTs", tmp_path / "data", tmp_path / "scores")["cases"] == 1


@pytest.mark.parametrize(("shear", "reader"), [(0.0, None), (0.002, "NibabelIO")])
def test_axes_that_are_not_at_right_angles_get_the_reader_that_takes_them(tmp_path, shear, reader):
    """SimpleITK, which nnU-Net uses otherwise, refuses an affine that is sheared by a hundredth of a degree."""
    affine = np.eye(4)
    affine[0, 1] = shear
    for index in range(3):
        write_patient(tmp_path / "data", index, affine=affine if index == 1 else np.eye(4))
    about = export_nnunet(tmp_path / "data", tmp_path / "Dataset501_x", workers=1)
    assert about.get("overwrite_image_reader_writer") == reader


def test_a_patient_who_could_not_be_read_before_a_stop_is_in_the_part_that_the_split_names(
    cohort, tmp_path, monkeypatch
):
    read, write = module.read_regions, module.files.write_json

    def stops(path, content):
        if path.name == "splits_final.json":  # all files have been moved
            raise KeyboardInterrupt
        write(path, content)

    for number, lacking in enumerate(path.name for path in sorted(cohort.iterdir())[:4]):
        folder = tmp_path / str(number) / "Dataset501_x"

        def lacks(case, recipe, lacking=lacking):
            if case.id == lacking:
                raise UnetlibError(f"{case.id}: there is not enough memory.")
            return read(case, recipe)

        with monkeypatch.context() as patch:
            patch.setattr(module, "read_regions", lacks)
            patch.setattr(module.files, "write_json", stops)
            with pytest.raises(KeyboardInterrupt):
                export_nnunet(cohort, folder, workers=1)
        export_nnunet(cohort, folder, workers=1)
        (fold,) = json.loads((folder / "splits_final.json").read_text())
        for kind, end in (("labels", ""), ("images", "_0000")):
            there = {path.name.removesuffix(f"{end}.nii.gz") for path in (folder / f"{kind}Tr").iterdir()}
            assert there == {*fold["train"], *fold["val"]}
            assert len([*(folder / f"{kind}Ts").iterdir()]) == len([*cohort.iterdir()]) - len(there)


def test_data_without_a_usable_case_are_refused_with_the_reasons(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*_seg.nii.gz"):
        path.unlink()
    for recipe in (Recipe.published, THREE.but(modalities="flair")):
        told = refused(tmp_path / "data", tmp_path / "Dataset501_x", recipe)
        assert f"none of {len([*cohort.iterdir()])} cases can be used" in told
        assert "it has no tumour mask" in told
    with pytest.raises(UnetlibError) as error:
        prepare(tmp_path / "data", tmp_path / "volumes", Recipe.volume)
    assert "nominal" not in str(error.value)


def test_a_case_named_like_the_image_of_another_keeps_its_files(tmp_path):
    """Image 1 of P1 and the mask of P1_0001 have one name, in two folders of nnU-Net."""
    data, folder = tmp_path / "data", tmp_path / "Dataset501_x"
    for index, id in enumerate(["P1", "P1_0000", "P1_0001", "P2", "P3"]):
        write(tmp_path, index)
        (data / id).mkdir(parents=True)
        for path in (tmp_path / f"BraTS2021_{index:05d}").iterdir():
            path.rename(data / id / path.name.replace(path.parent.name, id))
    export_nnunet(data, folder, Recipe.published.but(modalities="flair t1"), workers=1)
    for id in (path.name for path in data.iterdir()):
        for kind, end, source in (("images", "_0000", "flair"), ("images", "_0001", "t1"), ("labels", "", "seg")):
            (path,) = folder.glob(f"{kind}T?/{id}{end}.nii.gz")
            voxels = load(data / id / f"{id}_{source}.nii.gz")[0]
            np.testing.assert_array_equal(load(path)[0], voxels > 0 if source == "seg" else voxels)


@pytest.mark.parametrize("lost", ["imagesTr", "labelsTs", "splits_final.json"])
def test_files_that_are_gone_are_named(cohort, tmp_path, monkeypatch, lost):
    folder = tmp_path / "Dataset501_x"
    about = export_nnunet(cohort, folder, workers=1)
    kept = tmp_path / "kept"
    (folder / lost).rename(kept)
    first = {"imagesTr": "_0000.nii.gz", "labelsTs": ".nii.gz"}.get(lost, lost)
    assert f"lacks {lost}" in (told := refused(cohort, folder))
    assert first in told
    kept.rename(folder / lost)
    assert export_nnunet(cohort, folder, workers=1) == about


def test_a_file_that_was_moved_before_a_stop_and_is_gone_is_named(cohort, tmp_path, monkeypatch):
    folder, write = tmp_path / "Dataset501_x", module.files.write_json

    def stops(path, content):
        if path.name == "splits_final.json":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module.files, "write_json", stops)
        with pytest.raises(KeyboardInterrupt):
            export_nnunet(cohort, folder, workers=1)
    shutil.rmtree(folder / "imagesTr")
    assert "was written before the last stop, and is gone" in refused(cohort, folder)


def test_an_export_that_failed_may_be_begun_anew_with_other_choices(cohort, tmp_path):
    folder, about = tmp_path / "Dataset501_x", None
    assert "no case has a voxel of solid" in refused(cohort, folder, Recipe.published.but(regions="solid=7"))
    about = export_nnunet(cohort, folder, Recipe.published.but(regions="solid=1+2+4"), workers=1)
    assert about["numTraining"] == len(names(folder, "imagesTr"))


@pytest.mark.parametrize("name", ["background", "ignore"])
def test_names_that_nnu_net_uses_itself_are_refused(cohort, tmp_path, name):
    told = refused(cohort, tmp_path / "Dataset501_x", Recipe.published.but(regions=f"{name}=1"))
    assert f"the region '{name}' has a name that nnU-Net uses itself" in told


def test_notes_on_the_data_and_resampled_sequences_are_said_as_by_prepare(patients, tmp_path, caplog):
    data, recipe = shutil.copytree(patients, tmp_path / "data"), Recipe.published.but(modalities="flair t1")
    for number, path in enumerate(sorted(data.iterdir())):
        for file in path.iterdir():
            file.rename(path / file.name.replace(path.name, f"{17 + number // 2}_{number}"))
        path.rename(data / f"{17 + number // 2}_{number}")
    t1 = data / "17_0" / "17_0_t1.nii.gz"
    image = nib.load(t1)
    fine = np.repeat(np.asarray(image.dataobj), 2, axis=0)
    nib.save(nib.Nifti1Image(fine, image.affine @ np.diag([0.5, 1.0, 1.0, 1.0])), t1)
    said = []
    for make in (
        lambda: prepare(data, tmp_path / "prepared", recipe.but(image_size=32), workers=1),
        lambda: export_nnunet(data, tmp_path / "Dataset501_x", recipe, workers=1),
    ):
        caplog.clear()
        make()
        said.append([line for line in caplog.messages if "Resampled" in line or "could be scans" in line])
    assert said[0] == said[1]
    assert len(said[0]) == 2


def test_a_copy_of_the_data_is_known_and_a_changed_one_refused(cohort, tmp_path, capsys):
    data, folder = shutil.copytree(cohort, tmp_path / "data"), tmp_path / "Dataset501_x"
    about = export_nnunet(data, folder, workers=1)
    assert "hash:" not in capsys.readouterr().err  # while they are written, not before
    for number, path in enumerate(sorted(data.rglob("*.nii.gz"))):
        os.utime(path, (number, number))
    assert export_nnunet(data, folder, workers=1) == about
    assert "hash:" in capsys.readouterr().err
    assert "from other data or with other choices" in refused(data, folder, Recipe.published.but(split_seed=1))
    voxels, affine = load(path)
    nib.save(nib.Nifti1Image(np.flip(voxels, 0), affine), path)
    assert "from other data or with other choices" in refused(data, folder)


def test_what_cannot_be_exported_is_said(patients, cohort, tmp_path):
    good = tmp_path / "Dataset501_x"
    assert "Dataset501_Tumours was expected" in refused(cohort, tmp_path / "Dataset51_x")
    assert "one region, or whole core enhancing in this order" in refused(
        patients, good, THREE.but(regions="whole core")
    )
    assert "no case has a t1 image" in refused(cohort, good, Recipe.published.but(modalities="flair t1"))
    export_nnunet(cohort, good, workers=1)
    assert "from other data or with other choices" in refused(cohort, good, THREE.but(modalities="flair"))
    assert "from other data or with other choices" in refused(patients, good)
    other = tmp_path / "Dataset502_x"
    other.mkdir()
    (other / "thesis.doc").write_text("")
    assert "thesis.doc" in refused(cohort, other)
    assert [path.name for path in other.iterdir() if not path.name.startswith(".")] == ["thesis.doc"]


def test_a_patient_who_was_removed_after_preparing_is_named(patients, tmp_path):
    data = shutil.copytree(patients, tmp_path / "data")
    prepare(data, tmp_path / "prepared", SMALL.but(modalities="t1"), workers=1)
    shutil.rmtree(data / "BraTS2021_00002")
    assert "has changed since it was prepared: BraTS2021_00002" in refused(
        tmp_path / "prepared", tmp_path / "Dataset501_x"
    )


def test_a_prepared_folder_without_some_cases_is_exported_without_them(cohort, tmp_path, caplog):
    """A case that is no volume for 3-D networks would do for nnU-Net, but has no place in the split."""
    data = shutil.copytree(cohort, tmp_path / "data")
    ids = sorted(path.name for path in data.iterdir())
    for path in (data / ids[3]).iterdir():
        voxels, _ = load(path)
        nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 50.0, 1.0])), path)
    recipe = Recipe.volume.but(image_size=32)
    split = prepare(data, tmp_path / "prepared", recipe, workers=1).split
    assert split.patients() == {*ids} - {ids[3]}
    folder = tmp_path / "Dataset501_x"
    export_nnunet(tmp_path / "prepared", folder, workers=1)
    assert splits(folder) == [{"train": [*split.train], "val": [*split.val]}]
    assert names(folder, "labelsTs") == [f"{id}.nii.gz" for id in split.test]
    assert f"left out {ids[3]}: " in caplog.text
    shutil.copytree(cohort / ids[3], data / ids[3], dirs_exist_ok=True)  # it can be used now, in a new split
    assert f"has changed since it was prepared: {ids[3]}" in refused(tmp_path / "prepared", tmp_path / "Dataset502_x")


def test_data_that_have_moved_or_changed_since_preparing_are_refused(patients, tmp_path):
    data = shutil.copytree(patients, tmp_path / "data")
    folder, good = tmp_path / "prepared", tmp_path / "Dataset501_x"
    prepare(data, folder, SMALL.but(modalities="t1"), workers=1)
    data.rename(tmp_path / "elsewhere")
    assert f"{folder} was prepared from {data}, which no longer exists" in refused(folder, good)
    shutil.copytree(patients, data)  # the same voxels in other files
    export_nnunet(folder, good, workers=1)
    seg, affine = load(path := data / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz")
    nib.save(nib.Nifti1Image(np.where(seg == 2, 0, seg).astype(np.uint8), affine), path)
    other = tmp_path / "Dataset502_x"
    assert "has changed since it was prepared: BraTS2021_00001" in refused(folder, other)
    shutil.copy(patients / path.parent.name / path.name, path)
    write(data, 7)
    assert "has changed since it was prepared: BraTS2021_00007" in refused(folder, other)


def test_a_stopped_export_is_not_mixed_with_one_of_other_choices(cohort, tmp_path, monkeypatch):
    """Otherwise the images of one remained in imagesTr, where they are test patients of the other."""
    folder, move = tmp_path / "Dataset501_x", module._move
    moved = []

    def stops_moving(path, goal, other):
        move(path, goal, other)
        moved.append(goal)
        if len(moved) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_move", stops_moving)
    with pytest.raises(KeyboardInterrupt):
        export_nnunet(cohort, folder, workers=1)
    monkeypatch.setattr(module, "_move", move)
    assert "begun, from other data or with other choices" in refused(cohort, folder, Recipe.published.but(split_seed=1))
    about = export_nnunet(cohort, folder, workers=1)
    assert about["numTraining"] == len(names(folder, "imagesTr")) == len(names(folder, "labelsTr"))


def test_the_folder_may_be_the_current_one_but_not_in_the_data_nor_another_data_set(cohort, tmp_path, monkeypatch):
    data = shutil.copytree(cohort, tmp_path / "data")
    inside = data / "Dataset501_x"
    assert f"{inside} lies in {data}" in refused(data, inside)
    assert not inside.exists()
    foreign = tmp_path / "Dataset502_x"
    foreign.mkdir()
    (foreign / "dataset.json").write_text('{"numTraining": 3}')
    assert "holds a data set that unetlib has not written" in refused(cohort, foreign)
    own = tmp_path / "Dataset503_x"
    own.mkdir()
    monkeypatch.chdir(own)
    export_nnunet(data, Path(), workers=1)
    assert (own / "splits_final.json").exists()


def test_a_region_that_no_case_has_is_named(patients, tmp_path):
    data = shutil.copytree(patients, tmp_path / "data")
    for path in data.glob("*/*_seg.nii.gz"):
        seg, affine = load(path)
        nib.save(nib.Nifti1Image(np.where(seg == 4, 1, seg).astype(np.uint8), affine), path)
    assert "no case has a voxel of enhancing" in refused(data, tmp_path / "Dataset501_x", THREE)


def test_the_command_line(patients, tmp_path, capsys):
    out = tmp_path / "Dataset501_x"
    run_cli("export", patients, out, "--nnunet", "--modalities", "t1ce", "--seed", 3)
    assert f"unetlib score MASKS {quoted(patients)}\n" in capsys.readouterr().out
    assert not any("No layout knows" in note for note in find_cases(out, "t1ce").notes)
    split = make_split([path.name for path in patients.iterdir()], 3)
    assert splits(out) == [{"train": [*split.train], "val": [*split.val]}]
    run_cli("prepare", patients, tmp_path / "prepared", "--image-size", 32)
    given = ("export", tmp_path / "prepared", tmp_path / "Dataset502_x", "--nnunet")
    assert "is prepared, and says itself what --seed is" in fails(capsys, *given, "--seed", 3)
    run_cli(*given)
    with pytest.raises(SystemExit):
        run_cli("export", patients, tmp_path / "Dataset503_x")
    assert "--nnunet" in capsys.readouterr().err


def test_the_command_that_scores_has_the_patients_and_regions_of_a_prepared_folder(patients, tmp_path, capsys):
    data, prepared, out = (tmp_path / name for name in ("my patients", "prepared", "Dataset501_x"))
    shutil.copytree(patients, data)
    run_cli("prepare", data, prepared, "--image-size", 32, "--regions", "whole", "core", "enhancing")
    run_cli("export", prepared, out, "--nnunet")
    _, _, command = capsys.readouterr().out.partition("predicts with: unetlib score MASKS ")
    words = shlex.split(command)
    assert words[:5] == [str(data), "--regions", "whole", "core", "enhancing"]
    run_cli("score", out / "labelsTs", *words, "--out", tmp_path / "scores")
    assert all(entry["dice"] == 1 for entry in read_json(tmp_path / "scores" / "summary.json")["figures"])
