"""A run of several members: each validates on other patients, and their mean is tuned on patients new to them."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import BEST, SMALL, write_patient
from unetlib.data.patients import find_cases, read_case
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.data.split import Split
from unetlib.evaluation.evaluate import evaluate
from unetlib.hooks import Hook
from unetlib.pipeline import run_recipe
from unetlib.prediction.decision import Decision, choose, dice_table
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Predictor
from unetlib.prediction.tuning import tune
from unetlib.runs import training
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.show.card import write_card
from unetlib.show.plots import make_figures
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv, read_json, sha256
from unetlib.support.jobs import progress

RECIPE = SMALL.but(members=2, tune=True, mirror=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    for index in range(10):
        write_patient(folder / "data", index)
    return prepare(folder / "data", folder / "prepared", SMALL.but(train_fraction=0.6))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("run") / "run")
    run_recipe(RECIPE, data.folder, run, part="test", device="cpu", threads=1)
    return run


def test_each_member_validates_on_patients_of_its_own_and_together_they_train_on_all(data):
    members = [data.split.of_member(place) for place in range(3)]
    assert members[0] == data.split
    validated = [name for split in members for name in split.val]
    assert len(validated) == len(set(validated)) == 3 * len(data.split.val)
    assert {name for split in members for name in split.train} == {*data.split.train, *data.split.val}
    assert {split.test for split in members} == {data.split.test}
    assert {len(split.train) for split in members} == {len(data.split.train)}


def test_more_members_than_patients_to_validate_on_is_a_sentence(data, tmp_path):
    with pytest.raises(UnetlibError, match="member 5 has no patients of its own to validate on"):
        train(data, tmp_path / "run", RECIPE.but(members=5), "cpu")
    assert not (tmp_path / "run" / "member-1").exists()


def test_a_member_is_what_the_same_training_alone_gives(data, run, tmp_path):
    alone, part = tmp_path / "alone", Prepared.of_member(data, 1)
    train(part, alone, SMALL.but(seed=1, mirror=True), "cpu", threads=1)
    for name, weight in torch.load(alone / BEST)["model"].items():
        assert torch.equal(weight, torch.load(run.member(1).best)["model"][name])


def test_stopped_in_any_member_it_goes_on_to_the_same_weights(data, run, tmp_path):
    again = Run(tmp_path / "again")
    for _ in range(20):
        state = train(data, again, RECIPE, "cpu", max_steps=5, threads=1)
        if all(one.latest.exists() for one in again.members) and state.epoch == RECIPE.epochs:
            break
    else:
        pytest.fail("it never ended")
    assert again.weights == run.weights
    assert again.provenance["cases"] == run.provenance["cases"]
    assert tune(again, "cpu") == tune(run, "cpu")


def test_a_run_may_start_from_one_of_several_members(data, run, tmp_path):
    train(data, tmp_path / "run", SMALL, "cpu", start_from=run, max_steps=1, threads=1)
    assert Run(tmp_path / "run").about()["start_from"] == sha256(run.member(0).best)


def test_its_probabilities_are_the_mean_of_its_members(data, run):
    voxels = read_case(find_cases(data.data).cases[0])[0].voxels
    members = [Predictor.open(one, "cpu", Decision(0.5)).volume(voxels) for one in run.members]
    found = Predictor.open(run, "cpu").volume(voxels)
    np.testing.assert_allclose(found, np.mean(members, axis=0), rtol=1e-5, atol=1e-7)
    assert np.abs(members[0] - members[1]).max() > 0.01


def test_the_decision_is_chosen_on_patients_whom_the_asked_member_has_not_trained_on(data, run):
    cases, tables = {case.patient: case for case in find_cases(data.data).cases}, []
    for place, member in enumerate(run.members):
        predictor = Predictor.open(member, "cpu", Decision(0.5))
        for patient in data.split.of_member(place).val:
            volume, truth, _ = read_case(cases[patient])
            tables.append(dice_table(predictor.volume(volume.voxels)[0], truth, volume.spacing))
    assert tune(run, "cpu") == choose(tables)
    assert read_json(run.decision_file)["validation_patients"] == len(tables) == 2 * len(data.split.val)


def test_the_test_patients_are_those_of_the_split_and_no_member_has_seen_them(data, run):
    summary = evaluate(run, device="cpu")
    assert {row["patient"] for row in read_csv(run.evaluation / "patients.csv")} == {*data.split.test}
    assert not summary["note"]
    for member in run.members:
        assert not {*Split.load(member.split_file).train} & {*data.split.test}


def test_predicting_gives_masks_of_the_ensemble_and_another_decision_other_files(data, run, tmp_path):
    image = find_cases(data.data).cases[0].images["flair"].paths[0]
    mask = nib.load(predict(run, [image], tmp_path, device="cpu")[0])
    volume = read_case(find_cases(data.data).cases[0])[0]
    predictor = Predictor.open(run, "cpu")
    expected = predictor.decision.mask(predictor.volume(volume.voxels), volume.spacing)[0]
    assert np.array_equal(volume.to_stored(expected), np.asarray(mask.dataobj) > 0)
    other = Predictor.open(run, "cpu", Decision(0.9, 3.0))
    assert other.key != predictor.key


def test_figures_and_card_are_made_of_the_run_as_a_whole(run):
    assert all(path.exists() for path in make_figures(run, device="cpu"))
    card = write_card(run, device="cpu").read_text(encoding="utf-8")
    assert "2 networks" in card
    rows, members = ([*read_csv(one.history_file)] for one in (run, run.member(0))), run.members
    assert [row["epoch"] for row in next(rows)] == [row["epoch"] for row in next(rows)]
    assert float(read_csv(run.history_file)[0]["val_dice"]) == pytest.approx(
        np.mean([float(read_csv(one.history_file)[0]["val_dice"]) for one in members])
    )


def test_a_missing_member_is_a_sentence(run, data, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    copy.member(1).best.unlink()
    with pytest.raises(UnetlibError, match="some of its 2 members are not trained yet"):
        Predictor.open(copy, "cpu")


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_run_of_one_network_does_not_become_one_of_members_nor_the_other_way_round(data, tmp_path, first, second):
    train(data, tmp_path / "run", SMALL.but(members=first), "cpu", max_steps=1)
    with pytest.raises(UnetlibError, match="was started with"):
        train(data, tmp_path / "run", SMALL.but(members=second), "cpu")


def test_max_steps_are_those_of_all_members_together(data, tmp_path):
    taken, again = [], Run(tmp_path / "again")

    class Count(Hook):
        def on_step_end(self, loop, loss):
            taken.append(1)

    numbers, epochs = [], 0
    while epochs < RECIPE.epochs:
        taken.clear()
        epochs = train(data, again, RECIPE, "cpu", max_steps=5, threads=1, hooks=[Count()]).epoch
        if not all(one.latest.exists() for one in again.members):
            epochs = 0
        numbers.append(len(taken))
    assert set(numbers[:-1]) == {5}
    assert sum(numbers) == 2 * 2 * 6  # members, epochs, steps


def test_all_members_share_one_bar(data, tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(training, "progress", lambda *given: bars.append(progress(*given)) or bars[-1])
    train(data, tmp_path / "run", RECIPE, "cpu", threads=1)
    (bar,) = bars
    assert bar.n == bar.total > 0
