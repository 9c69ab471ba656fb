"""The decision is chosen on the validation patients, by every mask that is tried, and used wherever masks are made."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import f1_score

from tests.conftest import BEST
from unetlib.data.patients import find_cases, read_case, read_regions
from unetlib.data.split import Split
from unetlib.data.volumes import Source
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import read_patients
from unetlib.prediction import tuning
from unetlib.prediction.decision import SIZES_ML, THRESHOLDS, Decision
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Predictor
from unetlib.prediction.tuning import tune
from unetlib.show.plots import best_median_worst
from unetlib.support.errors import UnetlibError
from unetlib.support.files import PARTIAL, read_json, sha256

OTHER = {"threshold": 0.1, "smallest_ml": 3.0}


@pytest.fixture(scope="module")
def tuned(untuned, tmp_path_factory):
    """A finished run with its decision; do not change it."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(untuned, folder)
    tune(folder, "cpu")
    return folder


@pytest.fixture
def run(untuned, tmp_path):
    """A finished run without its decision, to be changed."""
    return shutil.copytree(untuned, tmp_path / "run")


def cases_of(cohort, run, part):
    patients = getattr(Split.load(run / "split.json"), part)
    return [case for case in find_cases(cohort).cases if case.patient in patients]


def decide(run, **changes):
    """Put another decision in the place of a run's own."""
    (run / "decision.json").write_text(json.dumps(read_json(run / "decision.json") | changes))


def test_the_decision_has_the_highest_mean_dice_of_all_on_the_validation_patients(tuned, tall_cohort):
    predictor, dices = Predictor.open(tuned, "cpu", decision=Decision(0.5)), {}
    for case in cases_of(tall_cohort, tuned, "val"):
        volume, truth, _ = read_case(case)
        found = predictor.volume(volume.voxels)[0]
        for threshold in THRESHOLDS:
            for smallest in SIZES_ML:
                mask = Decision(threshold, smallest).mask(found, volume.spacing)
                one = f1_score(truth.ravel(), mask.ravel(), zero_division=0)
                dices.setdefault(Decision(threshold, smallest), []).append(one)
    means = {decision: np.mean(ones) for decision, ones in dices.items()}
    assert max(means.values()) - min(means.values()) > 0.1  # there is something to choose
    content = read_json(tuned / "decision.json")
    chosen = Decision(content["threshold"], content["smallest_ml"])
    assert means[chosen] == pytest.approx(max(means.values()), abs=1e-9)
    assert content["validation_dice"] == pytest.approx(means[chosen], abs=1e-9)
    assert content["validation_patients"] == len(Split.load(tuned / "split.json").val)
    assert content["weights"] == sha256(tuned / BEST)


def test_validation_patients_without_tumour_choose_nothing(run, monkeypatch):
    def without(*of):
        volume, truth = read_regions(*of)
        return volume, truth & False

    monkeypatch.setattr(tuning, "read_regions", without)
    for _ in range(2):  # the second call finds all predictions done
        with pytest.raises(UnetlibError, match=r"no validation patient has a tumour.*another seed or more patients"):
            tune(run, "cpu")
    assert not (run / "decision.json").exists()


def test_only_validation_patients_are_read(run, tall_cohort, monkeypatch):
    asked = []
    read = tuning.read_regions
    monkeypatch.setattr(tuning, "read_regions", lambda case, recipe: asked.append(case.patient) or read(case, recipe))
    tune(run, "cpu")
    assert sorted(asked) == sorted(Split.load(run / "split.json").val)


def test_done_it_is_reused_and_for_other_weights_chosen_anew(tuned, untuned, tmp_path, monkeypatch):
    shutil.copytree(tuned, tmp_path / "run")
    read = tuning.read_regions
    monkeypatch.setattr(tuning, "read_regions", None)  # calling it would fail
    before = read_json(tuned / "decision.json")
    assert tune(tmp_path / "run", "cpu") == Decision(before["threshold"], before["smallest_ml"])
    decide(tmp_path / "run", weights="of another epoch", **OTHER)
    monkeypatch.setattr(tuning, "read_regions", read)
    tune(tmp_path / "run", "cpu")
    assert (tmp_path / "run" / "decision.json").read_bytes() == (tuned / "decision.json").read_bytes()


def test_stopped_it_goes_on_with_the_patients_that_are_left(tuned, run, monkeypatch):
    table, calls = tuning.dice_table, []

    def stop_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return table(*args)

    monkeypatch.setattr(tuning, "dice_table", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        tune(run, "cpu")
    assert not (run / "decision.json").exists()
    tune(run, "cpu")
    assert (run / "decision.json").read_bytes() == (tuned / "decision.json").read_bytes()
    assert len(calls) == len(Split.load(run / "split.json").val) + 1
    assert not (run / PARTIAL).exists()


def test_a_kill_between_the_decision_and_the_cleaning_up_leaves_nothing_behind(tuned, run, monkeypatch):
    monkeypatch.setattr(tuning.Parts, "remove", None)
    with pytest.raises(TypeError):
        tune(run, "cpu")
    monkeypatch.undo()
    assert (run / PARTIAL).exists()
    tune(run, "cpu")
    assert {path.name for path in run.iterdir()} == {path.name for path in tuned.iterdir()}


def test_a_missing_validation_patient_is_a_sentence(run, tall_cohort, tmp_path):
    shutil.copytree(tall_cohort, tmp_path / "data")
    gone = Split.load(run / "split.json").val[0]
    shutil.rmtree(tmp_path / "data" / gone)
    about = read_json(run / "recipe.json")
    (run / "recipe.json").write_text(json.dumps(about | {"data": str(tmp_path / "data")}))
    with pytest.raises(UnetlibError, match=rf"lacks 1 patient that the run was made with.*{gone}.*Put back"):
        tune(run, "cpu")
    assert not (run / "decision.json").exists()


def test_a_run_that_does_not_tune_keeps_its_threshold_and_reads_nobody(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(tuning, "read_regions", None)
    assert tune(tmp_path / "run", "cpu") == Decision(0.5, 0.0)
    assert not (tmp_path / "run" / "decision.json").exists()


def test_before_the_decision_nothing_can_be_evaluated_or_predicted(run, tall_cohort, tmp_path):
    image = next(tall_cohort.glob("*/*_flair.nii.gz"))
    for command in (lambda: evaluate(run, device="cpu"), lambda: predict(run, [image], tmp_path / "o", device="cpu")):
        with pytest.raises(UnetlibError, match=r"have not been chosen for these weights yet.*unetlib train"):
            command()
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("change", [{}, OTHER])
def test_evaluation_and_figures_judge_the_masks_of_the_decision(tuned, tall_cohort, tmp_path, change):
    run = shutil.copytree(tuned, tmp_path / "run")
    decide(run, **change)
    content, predictor = read_json(run / "decision.json"), Predictor.open(run, "cpu")
    decision = Decision(content["threshold"], content["smallest_ml"])
    evaluate(run, device="cpu")
    dices = {row["patient"]: float(row["dice"]) for row in read_patients(run / "evaluation")}
    masks = {ranked.case.id: ranked.prediction for ranked in best_median_worst(run, "cpu")}
    assert masks
    cases = cases_of(tall_cohort, run, "test")
    assert len(cases) == len(dices)
    for case in cases:
        volume, truth, _ = read_case(case)
        mask = decision.mask(predictor.volume(volume.voxels)[0], volume.spacing)
        assert dices[case.patient] == pytest.approx(f1_score(truth.ravel(), mask.ravel(), zero_division=0), abs=1e-9)
        if case.id in masks:
            np.testing.assert_array_equal(masks[case.id], mask)


def test_after_another_decision_the_old_result_is_not_reused(tuned, tmp_path, capsys):
    run = shutil.copytree(tuned, tmp_path / "run")
    before = evaluate(run, device="cpu")
    assert evaluate(run, device="cpu") == before
    assert "reused" in capsys.readouterr().out
    decide(run, **OTHER)
    after = evaluate(run, device="cpu")
    assert "reused" not in capsys.readouterr().out
    assert after["figures"] != before["figures"]


def test_predicted_masks_are_those_of_the_decision_and_not_taken_for_those_of_another(tuned, tall_cohort, tmp_path):
    run = shutil.copytree(tuned, tmp_path / "run")
    decide(run, threshold=0.3, smallest_ml=0.1)
    case = cases_of(tall_cohort, run, "test")[0]
    image = case.files()[0]
    written, probability = predict(run, [image], tmp_path / "out", probabilities=True, device="cpu")
    p = np.asarray(nib.load(probability).dataobj)
    expected = Decision(0.3, 0.1).mask(p, (1.0, 1.0, 1.0))
    mask = np.asarray(nib.load(written).dataobj)
    assert mask.any()
    np.testing.assert_array_equal(mask == 1, expected)
    decide(run, **OTHER)
    with pytest.raises(UnetlibError, match="exists already, from other weights"):
        predict(run, [image], tmp_path / "out", device="cpu")


def test_a_validation_file_that_has_changed_since_is_a_sentence(run, tall_cohort, tmp_path):
    shutil.copytree(tall_cohort, tmp_path / "data")
    about = read_json(run / "recipe.json") | {"data": str(tmp_path / "data")}
    (run / "recipe.json").write_text(json.dumps(about))
    case = cases_of(tmp_path / "data", run, "val")[0]
    image = nib.load(case.seg.paths[0])
    emptier = np.asarray(image.dataobj).copy()
    emptier[:, :, 0] = 0
    nib.save(nib.Nifti1Image(emptier, image.affine), case.seg.paths[0])
    with pytest.raises(UnetlibError, match=rf"the files of 1 case \({case.id}\) have changed"):
        tune(run, "cpu")
    assert not (run / "decision.json").exists()


def test_a_case_that_could_not_be_prepared_is_not_tuned_on(tuned, run, tall_cohort, tmp_path, monkeypatch):
    """A second time point of a validation patient, damaged: `prepare` had left it out by name."""
    cohort, first = find_cases(tall_cohort), cases_of(tall_cohort, run, "val")[0]
    (tmp_path / "damaged.nii.gz").write_bytes(b"damaged")
    later = replace(first, id="later", images={"flair": Source((tmp_path / "damaged.nii.gz",))})
    monkeypatch.setattr(tuning, "find_own", lambda _: replace(cohort, cases=[*cohort.cases, later]))
    tune(run, "cpu")
    assert read_json(run / "decision.json") == read_json(tuned / "decision.json")
