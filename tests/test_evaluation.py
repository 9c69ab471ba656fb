import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from tests.conftest import BEST, LATEST, SMALL, write_patient
from unetlib import __version__
from unetlib.data.patients import find_cases, read_case
from unetlib.data.prepared import Prepared
from unetlib.data.slices import image_to_slices, mask_to_slices, slices_to_volume
from unetlib.data.split import Split
from unetlib.evaluation import evaluate as evaluation
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import read_patients, results_table
from unetlib.metrics import METRICS
from unetlib.runs.checkpoint import load_checkpoint, save_checkpoint
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv, read_json


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, folder)
    return folder, evaluate(folder, device="cpu")


def figure(summary, grid, slices, aggregation):
    wanted = {"grid": grid, "slices": slices, "aggregation": aggregation}
    (entry,) = [entry for entry in summary["figures"] if wanted.items() <= entry.items()]
    return entry


def brute_force_dice(prediction, truth):
    both = sum(bool(p and t) for p, t in zip(prediction.ravel(), truth.ravel(), strict=True))
    size = int(prediction.sum()) + int(truth.sum())
    return 1.0 if size == 0 else 2 * both / size


def test_every_aggregation_on_both_grids_equals_a_brute_force_loop(cohort, evaluated):
    run, summary = evaluated
    model, recipe, _ = Run.of(run).load()
    split = Split.load(run / "split.json")
    masks = {"model": [], "native": []}
    for case in find_cases(cohort).cases:
        if case.patient not in split.test:
            continue
        volume, truth, _ = read_case(case)
        with torch.no_grad():
            found = model.probabilities(image_to_slices(volume.voxels, recipe))
        native = slices_to_volume(found, truth.shape)[0] >= 0.5
        small = mask_to_slices(truth, recipe).bool().numpy()[:, 0]
        tumour = truth.any((0, 1))
        masks["model"].append((found[:, 0].numpy() >= 0.5, small, tumour))
        masks["native"].append((native.transpose(2, 0, 1), truth.transpose(2, 0, 1), tumour))
    for grid, patients in masks.items():
        for slices in ("tumour", "all"):
            chosen = [(p[keep], t[keep]) for p, t, k in patients for keep in [k if slices == "tumour" else k | True]]
            pooled = brute_force_dice(*(np.concatenate([pair[i] for pair in chosen]) for i in (0, 1)))
            per_slice = [brute_force_dice(p[i], t[i]) for p, t in chosen for i in range(len(p))]
            per_patient = [brute_force_dice(p, t) for p, t in chosen]
            expected = {"pooled": pooled, "per slice": np.mean(per_slice), "per patient": np.mean(per_patient)}
            for aggregation, value in expected.items():
                assert figure(summary, grid, slices, aggregation)["dice"] == pytest.approx(value, abs=1e-12)


def test_the_interval_is_a_bootstrap_over_patients(evaluated):
    run, summary = evaluated
    dices = np.array([float(row["dice"]) for row in read_patients(run / "evaluation")])
    expected = bootstrap((dices,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    found = figure(summary, "native", "all", "per patient")["dice_interval"]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_dice_equals_f1_in_every_line(evaluated):
    for entry in evaluated[1]["figures"]:
        assert entry["dice"] == pytest.approx(entry["f1"], abs=1e-12)


def test_only_test_patients_are_scored(evaluated):
    run, summary = evaluated
    split = Split.load(run / "split.json")
    assert {row["patient"] for row in read_csv(run / "evaluation" / "slices.csv")} == set(split.test)
    assert summary["patients"] == len(split.test)


def test_all_slices_are_written_and_tumour_slices_marked(cohort, evaluated):
    run, summary = evaluated
    rows = read_csv(run / "evaluation" / "slices.csv")
    assert len(rows) == summary["slices"] == 6 * summary["cases"]
    for row in rows:
        mask = np.asarray(nib.load(cohort / row["case"] / f"{row['case']}_seg.nii.gz").dataobj)
        assert int(row["tumour"]) == mask[:, :, int(row["z"])].any()
        assert sum(int(row[f"native_{n}"]) for n in ("tp", "fp", "fn", "tn")) == 40 * 48
        assert sum(int(row[f"model_{n}"]) for n in ("tp", "fp", "fn", "tn")) == 32 * 32


def test_the_table_names_every_figure(evaluated):
    table = results_table(evaluated[1])
    for word in ("model", "native", "tumour", "all", "pooled", "per slice", "per patient", *METRICS):
        assert word in table
    assert table.count("<- the published number") == 1
    assert "never for clinical use" in table


def test_done_it_is_reused_and_retrained_weights_are_scored_anew(evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated[0], tmp_path / "run")
    score = evaluation.score_prediction
    monkeypatch.setattr(evaluation, "score_prediction", None)
    assert evaluate(tmp_path / "run", device="cpu") == evaluated[1]
    monkeypatch.setattr(evaluation, "score_prediction", score)
    content = torch.load(tmp_path / "run" / BEST, weights_only=True)
    content["model"]["head.bias"] += 100  # now everything is tumour
    torch.save(content, tmp_path / "run" / BEST)
    assert figure(evaluate(tmp_path / "run", device="cpu"), "model", "all", "pooled")["recall"] == 1


def test_done_it_is_read_where_nothing_can_be_written(evaluated, tmp_path, monkeypatch):
    run = shutil.copytree(evaluated[0], tmp_path / "run")

    def refuse(*_, **__):
        raise UnetlibError("cannot be written")

    monkeypatch.setattr(evaluation, "locked", refuse)
    assert evaluate(run, device="cpu") == evaluated[1]
    (run / "evaluation" / "summary.json").unlink()
    with pytest.raises(UnetlibError, match="cannot be written"):
        evaluate(run, device="cpu")


@pytest.mark.parametrize("name", ["summary.json", "slices.csv", "patients.csv"])
@pytest.mark.parametrize("how", ["lost", "cut", "edited"])
def test_files_that_are_not_of_one_evaluation_are_made_anew(evaluated, tmp_path, name, how):
    run = shutil.copytree(evaluated[0], tmp_path / "run")
    path = run / "evaluation" / name
    before = path.read_bytes()
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(before[: len(before) // 2] if how == "cut" else before.replace(b"1", b"2", 1))
    assert evaluate(run, device="cpu") == evaluated[1]
    assert path.read_bytes() == before


def test_what_the_weights_are_not_is_told(evaluated, tmp_path):
    run = shutil.copytree(evaluated[0], tmp_path / "run")
    assert evaluated[1]["note"] == ""
    content = load_checkpoint(run / LATEST)
    for change, told in (
        ({"epoch": 1}, f"The training is not finished: 1 of {content['recipe']['epochs']} epochs."),
        ({"best_dice": 0.99}, "The weights of the best epoch, with a validation Dice of 0.9900, are lost"),
    ):
        save_checkpoint(run / LATEST, {**content, "progress": {**content["progress"], **change}})
        assert told in evaluate(run, device="cpu")["note"]
    save_checkpoint(run / LATEST, {**content, "recipe": {**content["recipe"], "epochs": 99}})  # it goes on for longer
    assert "not finished" in evaluate(run, device="cpu")["note"]
    save_checkpoint(run / LATEST, content)
    (run / "provenance.json").unlink()
    assert "whether its patients' files have changed was not checked" in evaluate(run, device="cpu")["note"]


def test_stopped_it_goes_on_with_the_cases_that_are_left(evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    score, scored = evaluation.score_prediction, []

    def stop_at_the_second(*given):
        scored.append(given[4]["case"])
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score(*given)

    monkeypatch.setattr(evaluation, "score_prediction", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "run", device="cpu")
    assert evaluate(tmp_path / "run", device="cpu") == evaluated[1]
    assert len(scored) == evaluated[1]["cases"] + 1
    for name in ("slices.csv", "patients.csv", "summary.json"):
        one, other = (folder / "evaluation" / name for folder in (tmp_path / "run", evaluated[0]))
        assert one.read_bytes() == other.read_bytes()


def test_other_parts_and_other_data_go_to_folders_of_their_own(evaluated, cohort, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "run")
    before = (tmp_path / "run" / "evaluation" / "summary.json").read_bytes()
    val = evaluate(tmp_path / "run", split="val", device="cpu")
    assert val["split"] == "val"
    assert "too high" in val["note"]
    for index in (100, 101):
        write_patient(tmp_path / "hospital", index)
    other = evaluate(tmp_path / "run", data=tmp_path / "hospital", device="cpu")
    assert (other["split"], other["patients"]) == ("unseen", 2)
    assert read_json(tmp_path / "run" / "evaluation" / "data-hospital" / "summary.json") == other
    assert (tmp_path / "run" / "evaluation" / "summary.json").read_bytes() == before
    everyone = evaluate(tmp_path / "run", split="all", device="cpu")
    assert everyone["patients"] == 10


def test_patients_of_the_training_are_left_out_of_other_data_unless_asked_for(evaluated, cohort, tmp_path):
    run, _ = evaluated
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(cohort, tmp_path / "copy")
    split = Split.load(run / "split.json")
    summary = evaluate(tmp_path / "run", data=tmp_path / "copy", device="cpu")
    assert summary["patients"] == len(split.test)
    assert f"Left out: {len(split.train) + len(split.val)} cases" in summary["note"]
    asked = evaluate(tmp_path / "run", data=tmp_path / "copy", split="train", device="cpu")
    assert asked["patients"] == len(split.train)


def test_a_test_patient_who_is_gone_is_an_error_not_a_smaller_test_set(evaluated, cohort, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "run")
    shutil.copytree(cohort, tmp_path / "data")
    gone = Split.load(tmp_path / "run" / "split.json").test[0]
    shutil.rmtree(tmp_path / "data" / gone)
    about = read_json(tmp_path / "run" / "recipe.json")
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(about | {"data": str(tmp_path / "data")}))
    with pytest.raises(UnetlibError, match=rf"lacks 1 patient that .*{gone}.*: unetlib evaluate .*run --data .*data$"):
        evaluate(tmp_path / "run", device="cpu")


def test_unusable_cases_of_other_data_are_named_and_left_out(evaluated, tmp_path, capsys):
    shutil.copytree(evaluated[0], tmp_path / "run")
    for index in (100, 101, 102):
        write_patient(tmp_path / "hospital", index)
    (tmp_path / "hospital" / "BraTS2021_00101" / "BraTS2021_00101_seg.nii.gz").unlink()
    image = tmp_path / "hospital" / "BraTS2021_00102" / "BraTS2021_00102_flair.nii.gz"
    image.write_bytes(image.read_bytes()[:-500])
    summary = evaluate(tmp_path / "run", data=tmp_path / "hospital", device="cpu")
    told = capsys.readouterr().out
    assert summary["patients"] == 1
    assert set(summary["left_out"]) == {"BraTS2021_00101", "BraTS2021_00102"}
    for name in summary["left_out"]:
        assert f"left out {name}: " in told
        assert name in results_table(summary)


def test_two_folders_of_one_name_do_not_overwrite_one_another(evaluated, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "run")
    for town in ("a", "b"):
        write_patient(tmp_path / town / "hospital", 100)
    evaluate(tmp_path / "run", data=tmp_path / "a" / "hospital", device="cpu")
    with pytest.raises(UnetlibError, match="another folder of that name"):
        evaluate(tmp_path / "run", data=tmp_path / "b" / "hospital", device="cpu")


def copy_as(cohort, patient, folder, name):
    """Copy a patient's files under another name, in the layout of BraTS 2023."""
    (folder / name).mkdir(parents=True)
    for kind, new in (("flair", "t2f"), ("seg", "seg")):
        shutil.copy(cohort / patient / f"{patient}_{kind}.nii.gz", folder / name / f"{name}-{new}.nii.gz")


def test_a_renamed_copy_of_a_training_patient_is_known_with_all_cases_of_the_patient(evaluated, cohort, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "run")
    split, other = Split.load(tmp_path / "run" / "split.json"), tmp_path / "other"
    copy_as(cohort, split.train[0], other, "BraTS-GLI-00001-000")
    copy_as(cohort, split.test[0], other, "BraTS-GLI-00001-001")  # of the same patient
    copy_as(cohort, split.val[0], other, "BraTS-GLI-00002-000")
    copy_as(cohort, split.test[0], other, "BraTS-GLI-00003-000")
    summary = evaluate(tmp_path / "run", data=other, device="cpu")
    assert summary["cases"] == 1
    assert "Left out: 3 cases of patients whom the run was trained or validated on" in summary["note"]
    everything = evaluate(tmp_path / "run", data=other, split="all", device="cpu")
    assert everything["cases"] == 4
    assert "trained or validated on 3 of these cases: the scores are too high" in everything["note"]


def test_a_folder_of_known_patients_only_is_refused(evaluated, cohort, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "run")
    for patient in Split.load(tmp_path / "run" / "split.json").train:
        shutil.copytree(cohort / patient, tmp_path / "known" / patient)
    with pytest.raises(UnetlibError, match=r"trained or validated on.*--split"):
        evaluate(tmp_path / "run", data=tmp_path / "known", device="cpu")


def test_files_that_changed_since_the_run_was_prepared_are_refused(evaluated, cohort, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    shutil.copytree(cohort, tmp_path / "data")
    about = read_json(tmp_path / "run" / "recipe.json")
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(about | {"data": str(tmp_path / "data")}))
    test = Split.load(tmp_path / "run" / "split.json").test[0]
    mask = tmp_path / "data" / test / f"{test}_seg.nii.gz"
    os.utime(mask, ns=(1, 1))  # another time alone means nothing
    evaluate(tmp_path / "run", device="cpu")
    image = nib.load(mask)
    array = np.asarray(image.dataobj).copy()
    array[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(array, image.affine), mask)
    with pytest.raises(
        UnetlibError, match=rf"1 case \({test}\) have changed since.*: unetlib evaluate .*run --data .*data$"
    ):
        evaluate(tmp_path / "run", device="cpu")
    assert evaluate(tmp_path / "run", data=tmp_path / "data", device="cpu")["cases"] == len(
        Split.load(tmp_path / "run" / "split.json").test
    )


@pytest.mark.parametrize("content", [{}, {"recipe": {"width": 0}, "prepared": {}, "data": "x"}])
def test_a_damaged_recipe_of_a_run_is_a_sentence(evaluated, tmp_path, content):
    shutil.copytree(evaluated[0], tmp_path / "run")
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(content))
    with pytest.raises(UnetlibError, match=r"recipe\.json"):
        evaluate(tmp_path / "run", device="cpu")


def test_an_empty_prediction_is_counted_not_averaged_into_hd95(evaluated, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "run")
    content = torch.load(tmp_path / "run" / BEST, weights_only=True)
    content["model"]["head.bias"] -= 100  # nothing is tumour
    torch.save(content, tmp_path / "run" / BEST)
    summary = evaluate(tmp_path / "run", device="cpu")
    assert summary["surface"]["hd95_mm"] is None
    assert summary["surface"]["hd95_undefined"] == summary["patients"]
    assert figure(summary, "native", "tumour", "per slice")["dice"] == 0
    empty = figure(summary, "native", "all", "per slice")
    assert empty["zero_by_zero"]["dice"] == summary["slices"] - summary["tumour_slices"]
    assert empty["dice"] == pytest.approx(1 - summary["tumour_slices"] / summary["slices"])
    json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())  # no NaN, no Infinity
    assert "undefined" in results_table(summary)


def test_missing_data_and_missing_runs_are_sentences(evaluated, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    about = read_json(tmp_path / "run" / "recipe.json")
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(about | {"data": str(tmp_path / "gone")}))
    with pytest.raises(UnetlibError, match=r"gone, where the patients were.*: unetlib evaluate .* --data FOLDER$"):
        evaluate(tmp_path / "run", device="cpu")
    with pytest.raises(UnetlibError, match=r"recipe\.json"):
        evaluate(tmp_path / "nothing", device="cpu")


def test_the_prepared_grid_and_the_evaluated_model_grid_are_the_same(prepared, evaluated):
    """Validation in training and evaluation must count the same pixels."""
    data = Prepared.open(prepared)
    rows = [row for row in read_csv(evaluated[0] / "evaluation" / "slices.csv") if row["tumour"] == "1"]
    assert (
        sum(int(row["model_tp"]) + int(row["model_fn"]) for row in rows)
        == data.masks[data.dataset().indices("test")].sum()
    )
    assert SMALL.threshold == 0.5


def test_a_patient_without_a_mask_is_named_where_nobody_is_left(evaluated, cohort, tmp_path):
    """Alone, and beside one whom the run has learned from."""
    train, test = (Split.load(evaluated[0] / "split.json").patients(part) for part in ("train", "test"))
    unmasked, known = min(test), min(train)
    shutil.copytree(cohort / unmasked, tmp_path / "data" / unmasked)
    (tmp_path / "data" / unmasked / f"{unmasked}_seg.nii.gz").unlink()
    for split in (None, "all"):
        with pytest.raises(UnetlibError, match=f"{unmasked}: it has no tumour mask") as found:
            evaluate(evaluated[0], tmp_path / "data", split, device="cpu")
        assert "too high" not in str(found.value)
    shutil.copytree(cohort / known, tmp_path / "data" / known)
    with pytest.raises(UnetlibError, match=rf"validated on \(1 case\).*{unmasked}: it has no tumour mask"):
        evaluate(evaluated[0], tmp_path / "data", device="cpu")


def test_the_version_is_told(evaluated):
    assert evaluated[1]["unetlib"] == __version__
    assert f"scored by unetlib {__version__}" in results_table(evaluated[1])
    older = {name: value for name, value in evaluated[1].items() if name != "unetlib"}
    assert "scored by unetlib 0.3 or older" in results_table(older)


def test_other_data_are_the_same_folder_however_its_path_is_written(trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained, tmp_path / "run")
    for place in ("one", "two"):
        for index in range(20, 22):
            write_patient(tmp_path / place / "other", index)
    monkeypatch.chdir(tmp_path / "one")
    summary = evaluate(run, data="other", device="cpu")
    assert evaluate(run, data=tmp_path / "one" / "other", device="cpu") == summary
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(UnetlibError, match="holds the result of another folder of that name"):
        evaluate(run, data="other", device="cpu")
    (run / "evaluation" / "data-other" / "summary.json").write_text("{")
    assert evaluate(run, data=tmp_path / "one" / "other", device="cpu") == summary
