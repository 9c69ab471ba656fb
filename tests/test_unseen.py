"""Whom a run may be judged on: seen under another name, in other files, in another session; runs of version 0.3."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import SCANS, SMALL, as_03, as_03_run, as_cases, write_patient
from tests.test_evaluation import copy_as
from tests.test_prepare import unreadable
from unetlib import plots
from unetlib.data.prepare import prepare
from unetlib.data.split import Split
from unetlib.evaluation import unseen
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import read_patients
from unetlib.runs.training import train
from unetlib.show.card import write_card
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json, write_json


@pytest.fixture
def run(trained, tmp_path):
    """A run that may be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def as_brats_2023(cohort, folder, change=lambda voxels: voxels, end=".nii"):
    """The small patients as BraTS 2023 gives those of 2021: renamed, label 4 as 3; `change` alters the images."""
    for number, source in enumerate(sorted(cohort.iterdir())):
        name = f"BraTS-GLI-{90 - number:05d}-000"
        (folder / name).mkdir(parents=True)
        for kind, word in (("flair", "t2f"), ("seg", "seg")):
            image = nib.load(source / f"{source.name}_{kind}.nii.gz")
            voxels = np.asarray(image.dataobj)
            voxels = change(voxels) if kind == "flair" else np.where(voxels == 4, 3, voxels)
            nib.save(nib.Nifti1Image(voxels, image.affine), folder / name / f"{name}-{word}{end}")
    return folder


@pytest.mark.parametrize("change", [lambda voxels: voxels, lambda voxels: voxels.astype(np.float32)])
def test_the_same_scans_renamed_relabelled_and_stored_anew_are_known(run, cohort, tmp_path, change):
    other, split = as_brats_2023(cohort, tmp_path / "other", change), Split.load(run / "split.json")
    summary = evaluate(run, data=other, device="cpu")
    assert summary["cases"] == len(split.test)
    assert f"Left out: {10 - len(split.test)} cases" in summary["note"]
    assert evaluate(run, data=other, split="test", device="cpu")["cases"] == len(split.test)
    assert "trained or validated on 8 of these cases" in evaluate(run, data=other, split="all", device="cpu")["note"]


def test_a_further_run_that_does_not_say_whom_it_has_learned_from_is_noted(prepared, run, cohort, tmp_path):
    train(prepared, tmp_path / "with", SMALL.but(epochs=1), device="cpu")
    note = "The run does not say which scans it was trained on: the scores may be too high."
    other = as_brats_2023(cohort, tmp_path / "other")
    for data in (None, other):
        assert note not in evaluate([run, tmp_path / "with"], data, device="cpu")["note"]
    (tmp_path / "with" / "provenance.json").unlink()
    for data in (None, other):
        summary = evaluate([run, tmp_path / "with"], data, device="cpu")
        assert summary["note"].count(note) == summary["note"].count(f"{tmp_path / 'with'}: {note}") == 1
        assert (f"{run}: Left out: " in summary["note"]) == bool(data)
        assert evaluate([run, tmp_path / "with"], data, device="cpu") == summary
    assert note in evaluate(tmp_path / "with", other, device="cpu")["note"]


def test_a_rescaled_scan_is_not_recognised(run, cohort, tmp_path):
    """As the README says."""
    other = as_brats_2023(cohort, tmp_path / "other", lambda voxels: voxels.astype(np.float32) * 2)
    assert evaluate(run, data=other, device="cpu")["cases"] == 10


def test_a_run_of_version_0_3_knows_files_alone(run, cohort, tmp_path):
    split = Split.load(as_03_run(run) / "split.json")
    copy_as(cohort, split.train[0], tmp_path / "other", "BraTS-GLI-00001-000")
    copy_as(cohort, split.test[0], tmp_path / "other", "BraTS-GLI-00002-000")
    assert evaluate(run, data=tmp_path / "other", device="cpu")["cases"] == 1
    assert evaluate(run, data=as_brats_2023(cohort, tmp_path / "anew"), device="cpu")["cases"] == 10


def test_a_scan_that_is_there_twice_is_scored_once(run, tmp_path, capsys):
    name = write_patient(tmp_path / "other", 100)
    copy_as(tmp_path / "other", name, tmp_path / "other", "BraTS-GLI-00001-000")
    summary = evaluate(run, data=tmp_path / "other", device="cpu")
    assert summary["cases"] == 1
    assert "has the same voxels as that of" in capsys.readouterr().out
    assert list(summary["left_out"]) == [name]  # the second in the order of the names


def test_images_of_other_data_are_hashed_once(run, cohort, tmp_path, monkeypatch):
    other = as_brats_2023(cohort, tmp_path / "other")
    read, asked = unseen.read_images, []

    def stop_at_the_sixth(case):
        asked.append(case)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return read(case)

    monkeypatch.setattr(unseen, "read_images", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, data=other, device="cpu")
    one = evaluate(run, data=other, device="cpu")
    assert len(asked) == 6 + 5
    assert evaluate(run, data=other, device="cpu") == one
    assert len(asked) == 6 + 5
    (run / "evaluation" / "data-other" / "images.json").write_text('{"a": [')
    assert evaluate(run, data=other, device="cpu") == one


def test_own_files_stored_anew_are_the_same_and_a_case_that_is_gone_is_an_error(scans, tmp_path):
    run, data = shutil.copytree(scans[1], tmp_path / "run"), shutil.copytree(scans[0], tmp_path / "data")
    write_json(run / "recipe.json", read_json(run / "recipe.json") | {"data": str(data)})
    for path in data.glob("*/*.nii.gz"):
        nib.save(nib.load(path), path.with_name(path.name.removesuffix(".gz")))
        path.unlink()
    summary = evaluate(run, device="cpu")
    assert summary["note"] == ""
    assert (summary["patients"], summary["cases"]) == (1, 2)
    patient = Split.load(run / "split.json").test[0]
    shutil.rmtree(data / f"{patient}_21")
    with pytest.raises(UnetlibError, match=rf"lacks 1 case that the run was made with \({patient}_21\)"):
        evaluate(run, device="cpu")


@pytest.fixture(scope="module")
def scans(cohort, tmp_path_factory):
    """Data of five patients with two scans each, and a run on them."""
    folder = tmp_path_factory.mktemp("scans")
    prepare(as_cases(cohort, folder / "data", SCANS), folder / "prepared", SMALL, workers=1)
    train(folder / "prepared", folder / "run", SMALL, device="cpu")
    return folder / "data", folder / "run"


@pytest.fixture
def divided(scans, tmp_path):
    """A run as version 0.3 made it: every scan is a patient, and the two of one person are in training and in test."""
    split = Split(tuple(SCANS[1:8]), (SCANS[8],), (SCANS[0], SCANS[9]))
    prepared = shutil.copytree(scans[1].parent / "prepared", tmp_path / "prepared")
    as_03(prepared, {name: name for name in SCANS})
    split.save(prepared / "split.json")
    train(prepared, tmp_path / "run", SMALL, device="cpu")
    return as_03_run(tmp_path / "run")


def test_a_run_of_version_0_3_keeps_its_patients_and_says_whom_it_divides(divided):
    summary = evaluate(divided, device="cpu")
    assert (summary["patients"], summary["cases"]) == (2, 2)
    assert {row["patient"] for row in read_patients(divided / "evaluation")} == {SCANS[0], SCANS[9]}
    assert "scans of 2 patients (UPENN-GBM-00000, UPENN-GBM-00004) are in two of its parts" in summary["note"]
    for part, cases in (("val", 1), ("train", 7), ("all", 10)):
        assert evaluate(divided, split=part, device="cpu")["cases"] == cases
    figures = plots.make_figures(divided, device="cpu")
    assert all(path.exists() for path in figures)
    card = " ".join(write_card(divided, device="cpu").read_text(encoding="utf-8").split())
    assert "no patient is in two parts" not in card
    assert "UPENN-GBM-00000, UPENN-GBM-00004" in card
    assert "prepared by unetlib 0.3 or older, the run was started by unetlib 0.3 or older" in card


def test_a_later_scan_of_somebody_a_run_of_version_0_3_has_learned_from_is_known(divided, tmp_path):
    for index, name in enumerate(("UPENN-GBM-00001_31", "upenn-gbm-00004_31", "UPENN-GBM-00009_11")):
        source = tmp_path / "source" / write_patient(tmp_path / "source", 100 + index)
        (tmp_path / "other" / name).mkdir(parents=True)
        for path in source.iterdir():
            shutil.copy(path, tmp_path / "other" / name / path.name.replace(source.name, name))
    summary = evaluate(divided, data=tmp_path / "other", device="cpu")
    assert "Left out: 2 cases" in summary["note"]
    assert summary["cases"] == 1


def test_a_table_that_came_after_the_run_tells_whom_it_divides(run, cohort, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data")
    write_json(run / "recipe.json", read_json(run / "recipe.json") | {"data": str(data)})
    split = Split.load(run / "split.json")
    (data / "patients.csv").write_text(f"case,patient\n{split.train[0]},Zoe\n{split.test[0]},Zoe\n")
    summary = evaluate(run, device="cpu")
    assert summary["cases"] == len(split.test)
    assert "scans of 1 patient (Zoe) are in two of its parts" in summary["note"]


def test_a_table_of_other_data_makes_scans_those_of_one_patient(run, cohort, tmp_path):
    copy_as(cohort, Split.load(run / "split.json").train[0], tmp_path / "other", "BraTS-GLI-00001-000")
    for index in (100, 101):
        write_patient(tmp_path / "other", index)
    (tmp_path / "other" / "patients.csv").write_text("case,patient\nBraTS-GLI-00001-000,A\nBraTS2021_00100,a\n")
    summary = evaluate(run, data=tmp_path / "other", device="cpu")
    assert (summary["cases"], "Left out: 2 cases" in summary["note"]) == (1, True)


def test_a_scan_that_could_not_be_read_is_known_when_it_can_be(run, cohort, tmp_path):
    split = Split.load(run / "split.json")
    copy_as(cohort, split.train[0], tmp_path / "one", "BraTS-GLI-00001-000")
    data, name, repair = unreadable(tmp_path / "one", tmp_path / "other", 0)
    write_patient(data, 100)
    assert list(evaluate(run, data=data, device="cpu")["left_out"]) == [name]
    repair()
    write_patient(data, 101)
    summary = evaluate(run, data=data, device="cpu")
    assert (summary["cases"], summary["left_out"]) == (2, {})
    assert "Left out: 1 case of patients whom the run was trained or validated on." in summary["note"]


def test_a_patient_who_could_not_be_read_is_scored_when_it_can_be(run, tmp_path, caplog):
    for number in (100, 101):
        write_patient(tmp_path / "some", number)
    data, name, repair = unreadable(tmp_path / "some", tmp_path / "other", 0)
    first = evaluate(run, data=data, device="cpu")
    caplog.clear()
    assert evaluate(run, data=data, device="cpu") == first
    assert f"left out {name}" in caplog.text
    repair()
    assert evaluate(run, data=data, device="cpu")["cases"] == 2


def test_a_patient_who_cannot_be_used_and_came_later_is_named(run, tmp_path, caplog):
    write_patient(tmp_path / "other", 100)
    evaluate(run, data=tmp_path / "other", device="cpu")
    name = write_patient(tmp_path / "other", 101)
    (tmp_path / "other" / name / f"{name}_seg.nii.gz").unlink()
    caplog.clear()
    assert list(evaluate(run, data=tmp_path / "other", device="cpu")["left_out"]) == [name]
    assert f"left out {name}" in caplog.text


def test_patients_who_are_known_by_name_alone_are_named(cohort, tmp_path):
    names = [f"sub-{number:02}" for number in range(10)]
    data = as_cases(cohort, tmp_path / "data", names)
    train(prepare(data, tmp_path / "p", SMALL, workers=1), tmp_path / "r", SMALL.but(epochs=1), device="cpu")
    others = as_cases(cohort, tmp_path / "others", names, lambda name, voxels: voxels.astype(np.float32) * 2)
    write_patient(others, 100)
    note = evaluate(tmp_path / "r", data=others, device="cpu")["note"]
    assert "known by name alone. If these are other people, give them other names" in note
    write_patient(data, 101)
    assert "by name alone" not in evaluate(tmp_path / "r", data=data, device="cpu")["note"]
