"""What an evaluation says beside the Dice: lesions and volumes, their intervals and units, and older evaluations."""

import json
import shutil

import numpy as np
import pytest

from tests import oracles
from tests.conftest import as_cases, write_patient
from unetlib.data.cases import has_nominal_spacing
from unetlib.data.patients import find_cases, read_case
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.lesions import lesion_figures
from unetlib.evaluation.scores import ScoreFolder, _check, compare
from unetlib.evaluation.summary import (
    TOLERANCE_MM,
    lesion_summary,
    limits_of_agreement,
    patient_rows,
    results,
    surface_summary,
    volume_summary,
)
from unetlib.evaluation.table import read_patients, read_volumes, results_table
from unetlib.metrics import bootstrap_interval
from unetlib.prediction.predictor import Predictor
from unetlib.support.files import digest, read_csv, read_json, write_json

KAGGLE = [f"TCGA_CS_{number}_19960909" for number in (4941, 4942, 4943)]


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "run"
    shutil.copytree(trained, folder)
    return folder, evaluate(folder, device="cpu")


def volume(*boxes):
    found = np.zeros((30, 20, 10), bool)
    for x, y, z in boxes:
        found[x : x + 5, y : y + 5, z : z + 4] = True  # 100 voxels
    return found


def scored(cases, nominal=False, spacing=(1.0, 2.0, 5.0)):
    """Return rows and patients of cases: (patient, prediction, truth), each with K regions or one."""
    rows, volumes = [], []
    for number, (patient, prediction, truth) in enumerate(cases):
        p, t = (np.reshape(mask, (-1, 30, 20, 10)) for mask in (prediction, truth))
        one = compare(p, t, spacing, {"case": f"c{number}", "patient": patient}, nominal=nominal)
        rows, volumes = rows + one["slices"], volumes + one["volumes"]
    return rows, patient_rows(rows, volumes)


def whole(patients):
    return [row for row in patients if "lesion_dice" in row]


def test_patients_csv_holds_the_lesions_and_volumes_of_the_prediction(evaluated, cohort):
    run, summary = evaluated
    predictor, rows = Predictor.open(run, "cpu"), {row["patient"]: row for row in read_patients(run / "evaluation")}
    assert rows
    for case in (case for case in find_cases(cohort).cases if case.patient in rows):
        image, truth, _ = read_case(case)
        prediction, row = predictor.volume(image.voxels)[0] >= predictor.recipe.threshold, rows[case.patient]
        expected = lesion_figures(prediction, truth, image.spacing)
        assert float(row["lesion_dice"]) == pytest.approx(expected.dice)
        assert float(row["lesion_hd95_mm"]) == pytest.approx(expected.hd95)
        numbers = [int(row[name]) for name in ("lesions", "lesions_missed", "lesion_false_alarms")]
        assert numbers == [expected.lesions, expected.missed, expected.false_alarms]
        assert float(row["truth_ml"]) == pytest.approx(truth.sum() / 1000)
        assert float(row["prediction_ml"]) == pytest.approx(prediction.sum() / 1000)
    (entry,) = summary["lesions"]
    dices = [float(row["lesion_dice"]) for row in read_patients(run / "evaluation")]
    assert entry["dice"] == pytest.approx(np.mean(dices))
    assert entry["dice_interval"] is not None
    for line in read_csv(run / "evaluation" / "patients.csv"):
        assert bool(line["lesion_dice"]) == ((line["grid"], line["slices"]) == ("native", "all"))


def test_figures_follow_the_size_of_the_voxels(trained, tmp_path):
    mm, prediction, truth = (1.0, 2.0, 5.0), volume((3, 4, 3)), volume((2, 2, 2))
    (row,) = whole(scored([("a", prediction, truth)], spacing=mm)[1])
    expected = oracles.surface_by_definition(prediction, truth, mm, TOLERANCE_MM)
    assert (row["hd95_mm"], row["surface_dice"]) == pytest.approx(expected)
    assert (row["lesion_dice"], row["lesion_hd95_mm"]) == pytest.approx(
        oracles.lesions_by_definition(prediction, truth, mm)[:2]
    )
    for index in range(2):
        write_patient(tmp_path / "others", 200 + index, affine=np.diag([-1.0, -2.0, 3.0, 1.0]))
    run = shutil.copytree(trained, tmp_path / "run")
    evaluate(run, tmp_path / "others", device="cpu")
    predictor = Predictor.open(run, "cpu")
    rows = {row["patient"]: row for row in read_patients(run / "evaluation" / "data-others")}
    for case in find_cases(tmp_path / "others").cases:
        image, truth, _ = read_case(case)
        prediction, row = predictor.volume(image.voxels)[0] >= predictor.recipe.threshold, rows[case.patient]
        distance, share = oracles.surface_by_definition(prediction, truth, (1.0, 2.0, 3.0), TOLERANCE_MM)
        assert (float(row["hd95_mm"]), float(row["surface_dice"])) == pytest.approx((distance, share))
        assert float(row["truth_ml"]) == pytest.approx(truth.sum() * 6 / 1000)


def test_the_means_are_over_patients_with_their_intervals_and_the_table_says_them():
    perfect, missed = ("a", volume((2, 2, 2)), volume((2, 2, 2))), ("b", volume(), volume((2, 2, 2)))
    shifted = ("c", volume((4, 2, 2), (20, 2, 2)), volume((4, 2, 2)))
    _, patients = scored([perfect, missed, shifted])
    (entry,), (sizes,) = lesion_summary(patients), volume_summary(patients)
    assert (entry["dice"], entry["hd95_mm"]) == (0.5, pytest.approx((0 + 374 + 187) / 3))  # of 1, 0 and 1 / 2
    assert (entry["lesions"], entry["lesions_missed"], entry["lesion_false_alarms"]) == (3, 1, 1)
    assert entry["dice_interval"] == bootstrap_interval(np.array([1.0, 0.0, 0.5]))
    assert entry["hd95_mm_interval"] == bootstrap_interval(np.array([0.0, 374.0, 187.0]))
    # 100 voxels of 10 mm3 are 1 ml: 1, 0, 2 ml predicted, 1 ml true, so 0, -1 and 1 apart: standard deviation 1.
    assert (sizes["prediction"], sizes["truth"], sizes["difference"]) == (1.0, 1.0, 0.0)
    assert sizes["limits"] == pytest.approx((-1.96, 1.96))
    assert sizes["difference_interval"] == bootstrap_interval(np.array([0.0, -1.0, 1.0]))
    assert limits_of_agreement(np.array([3.0])) is None


def table(rows, patients, number=3):
    known = {"split": "test", "patients": number, "cases": 3, "slices": 3, "tumour_slices": 3, "epoch": 1, "note": ""}
    known |= {"left_out": {}, "figures": results(rows), "surface": surface_summary(patients)}
    return results_table({**known, "lesions": lesion_summary(patients), "volumes": volume_summary(patients)})


def test_the_table_has_mm_and_ml_or_voxels():
    cases = [("a", volume((2, 2, 2)), volume((2, 2, 2))), ("b", volume((3, 2, 2)), volume((2, 2, 2)))]
    in_mm, in_voxels = (table(*scored(cases, nominal)) for nominal in (False, True))
    for words in ("HD95 0.5 mm", "above 50 mm3", "1.0 ml in the reference", "limits of agreement 0.0 to 0.0 ml"):
        assert words in in_mm.replace("(0.0 to 1.0) ", "").replace("(1.0 to 1.0) ", "")
    assert "voxels" not in in_mm
    for unit in (" mm", "mm3", " ml"):
        assert unit not in in_voxels
    for words in ("above 50 voxels", "100.0 (100.0 to 100.0) voxels in the reference"):
        assert words in in_voxels


@pytest.mark.parametrize(("number", "expected"), [(1, (False, False)), (4, (True, True)), (10, (True, False))])
def test_the_table_says_which_intervals_are_too_narrow(number, expected):
    text = table(*scored([("a", volume((2, 2, 2)), volume((2, 2, 2)))]), number)
    assert tuple(words in text for words in ("bootstrapped over patients", "too narrow with")) == expected


def test_several_scans_of_a_patient_are_averaged_and_their_lesions_added_up():
    first, second = ("a", volume((2, 2, 2)), volume((2, 2, 2))), ("a", volume(), volume((2, 2, 2)))
    (row,) = whole(scored([first, second])[1])
    assert (row["lesion_dice"], row["lesion_hd95_mm"], row["truth_ml"], row["prediction_ml"]) == (0.5, 187.0, 1.0, 0.5)
    assert (row["lesions"], row["lesions_missed"]) == (2, 1)
    assert row["hd95_mm"] is None  # the second scan has no distance


def test_every_region_has_figures_of_its_own():
    prediction = np.stack([volume((2, 2, 2)), volume()])
    patients = scored([("a", prediction, np.stack([volume((2, 2, 2))] * 2)), ("b", prediction, prediction)])[1]
    lesions, sizes = lesion_summary(patients), volume_summary(patients)
    assert [(one["region"], one["dice"]) for one in lesions] == [(0, 1.0), (1, 0.5)]
    assert [(one["region"], one["truth"]) for one in sizes] == [(0, 1.0), (1, 0.5)]


def test_where_the_voxel_size_is_lost_nothing_is_in_millimetres(evaluated, cohort, tmp_path):
    run = shutil.copytree(evaluated[0], tmp_path / "run")
    as_cases(cohort, tmp_path / "lgg", KAGGLE, lambda name, voxels: voxels + KAGGLE.index(name) + 1)
    summary = evaluate(run, tmp_path / "lgg", "all", device="cpu")
    (row, *_) = rows = read_patients(run / "evaluation" / "data-lgg-all")
    assert len(rows) == 3
    assert int(float(row["truth_voxels"])) == int(row["tp"]) + int(row["fn"])
    assert int(float(row["prediction_voxels"])) == int(row["tp"]) + int(row["fp"])
    assert not {"hd95_mm", "lesion_hd95_mm", "truth_ml", "prediction_ml"} & row.keys()
    surface = summary["surface"]
    assert surface["hd95_voxels"] == pytest.approx(np.mean([float(row["hd95_voxels"]) for row in rows]))
    assert "hd95_mm" not in surface
    assert f"HD95 {surface['hd95_voxels']:.1f} voxels over 3 patients" in results_table(summary)
    assert summary["volumes"][0]["unit"] == read_volumes(run / "evaluation" / "data-lgg-all")[1] == "voxels"
    assert " mm" not in results_table(summary)


def test_the_spacing_of_tcga_from_the_archive_is_its_own(cohort, tmp_path):
    as_cases(cohort, tmp_path / "tcia", ["TCGA-02-0006_1996.08.23", KAGGLE[0]])
    tcia, kaggle = sorted(find_cases(tmp_path / "tcia").cases, key=lambda case: case.id)
    assert not has_nominal_spacing(tcia.id, (1.0, 1.0, 1.0))
    assert has_nominal_spacing(kaggle.id, (1.0, 1.0, 1.0))
    assert not has_nominal_spacing(kaggle.id, (0.9, 0.9, 5.0)), "resampled with the header of the archive"


def as_old(run):
    """Write a finished evaluation as version 0.4 left it: without lesions and volumes."""
    folder = run / "evaluation"
    summary = read_json(folder / "summary.json")
    for new in ("lesions", "volumes"):
        del summary[new]
    del summary["surface"]["unit"]
    summary["check"] = _check(folder, summary)
    write_json(folder / "summary.json", summary)
    return summary


def key_before(scored):
    return digest([{id: digest(values)[:16] for id, values in scored.made_from.items()}, scored.note])


def test_an_older_evaluation_is_read_and_scored_again_with_a_sentence(evaluated, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(evaluated[0], tmp_path / "run")
    with monkeypatch.context() as before:
        before.setattr(ScoreFolder, "key", property(key_before))
        evaluate(run, device="cpu")
    old = as_old(run)
    assert "HD95" in results_table(old)
    assert "Lesion" not in results_table(old)
    assert evaluate(run, device="cpu") == evaluated[1]
    assert "scored by an older version, without lesions and volumes: it is scored again" in capsys.readouterr().out
    evaluate(run, device="cpu")
    assert "older version" not in capsys.readouterr().out


def test_the_summary_is_json_without_nan(evaluated):
    text = (evaluated[0] / "evaluation" / "summary.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
