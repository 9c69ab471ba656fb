"""A run of several members: each validates on other patients, and their mean is tuned on patients new to them."""

import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import BEST, LATEST, SMALL, write_patient
from unetlib.data.patients import find_cases, read_case
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.data.split import Split
from unetlib.engine import steps
from unetlib.evaluation.evaluate import evaluate
from unetlib.hooks import Hook
from unetlib.pipeline import run_recipe
from unetlib.prediction.decision import Decision, choose, dice_table
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Predictor
from unetlib.prediction.tuning import tune
from unetlib.recipe import OF_PATIENTS
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
    made = make_figures(run, device="cpu")
    assert all(path.exists() for path in made)
    assert {"curves.png", "overlays.png"} <= {path.name for path in made}
    card = write_card(run, device="cpu").read_text(encoding="utf-8")
    assert "2 networks" in card
    dices = [max(float(row["val_dice"]) for row in read_csv(one.history_file)) for one in run.members]
    assert dices[0] != dices[1]
    assert f"each on its own validation patients, is {np.mean(dices):.3f}:" in card
    for place, (one, dice) in enumerate(zip(run.members, dices, strict=True), 1):
        assert re.search(rf"`member-{place}/{BEST}` \| `{sha256(one.best)}` \| \d+ \| {dice:.3f} \|", card)
    rows, members = ([*read_csv(one.history_file)] for one in (run, run.member(0))), run.members
    assert [row["epoch"] for row in next(rows)] == [row["epoch"] for row in next(rows)]
    assert float(read_csv(run.history_file)[0]["val_dice"]) == pytest.approx(
        np.mean([float(read_csv(one.history_file)[0]["val_dice"]) for one in members])
    )


def test_an_extension_that_was_killed_before_the_second_member_is_not_taken_for_finished(data, run, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))

    class Kill(Hook):
        def on_start(self, loop):
            if loop.dataset.parts["val"].tolist() == data.of_member(1).dataset().parts["val"].tolist():
                raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        train(data, copy, RECIPE.but(epochs=3), "cpu", threads=1, hooks=[Kill()])
    caveat = "The training is not finished: 2 of 3 epochs."
    assert Predictor.open(copy, "cpu", Decision(0.5)).note == copy.caveats() == caveat
    shutil.copy(run.member(1).recipe_file, copy.member(1).recipe_file)  # killed a moment earlier
    assert Predictor.open(copy, "cpu", Decision(0.5)).note == copy.caveats() == caveat


def test_each_member_warns_once_of_a_region_and_the_hint_on_presets_comes_once(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("unetlib.checks.unseen_region", lambda dataset: "no slice shows region 2")
    monkeypatch.setattr("unetlib.runs.training.unseen_region", lambda dataset: "no slice shows region 2")
    monkeypatch.setattr("unetlib.runs.training.mixed_presets", lambda recipe: "two presets are mixed")
    with caplog.at_level("INFO", "unetlib"):
        train(data, tmp_path / "run", RECIPE.but(epochs=1), "cpu", threads=1)
    assert caplog.text.count("no slice shows region 2") == RECIPE.members
    assert caplog.text.count("two presets are mixed") == 1


def test_an_unfinished_run_is_not_tuned(data, tmp_path):
    train(data, tmp_path / "run", RECIPE, "cpu", max_steps=1)
    with pytest.raises(UnetlibError, match="some of its 2 members are not trained yet"):
        tune(tmp_path / "run", "cpu")


def test_a_missing_member_is_a_sentence(run, data, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    copy.member(1).best.unlink()
    with pytest.raises(UnetlibError, match=rf"or have lost their weights: it lacks member-2/{BEST}"):
        Predictor.open(copy, "cpu")
    with pytest.raises(UnetlibError, match=rf"is missing.* delete {LATEST} in .*member-2, then give the same"):
        train(data, copy, RECIPE, "cpu")
    copy.member(1).latest.unlink()
    train(data, copy, RECIPE, "cpu", threads=1)
    assert copy.weights == run.weights


def test_a_folder_that_is_no_run_is_left_alone(data, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "split.json").touch()
    for folder, name in (
        (tmp_path / "docs", "split.json"),
        (data.data, "BraTS2021_00000"),
        (data.folder, "images.npy"),
    ):
        files = sorted(folder.rglob("*"))
        with pytest.raises(UnetlibError, match=f"holds .*{name}.* and is not a run folder"):
            train(data, folder, RECIPE, "cpu")
        assert sorted(folder.rglob("*")) == files


@pytest.mark.parametrize("place", [0, 1])
def test_a_member_that_has_lost_its_latest_checkpoint_is_not_trained_over(run, data, tmp_path, place):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    copy.member(place).latest.unlink()
    with pytest.raises(UnetlibError, match=rf"member-{place + 1} has weights but no latest checkpoint"):
        train(data, copy, RECIPE.but(epochs=3), "cpu")
    assert copy.weights == run.weights


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_run_of_one_network_does_not_become_one_of_members_nor_the_other_way_round(data, tmp_path, first, second):
    train(data, tmp_path / "run", SMALL.but(members=first), "cpu", max_steps=1)
    with pytest.raises(UnetlibError, match="was started with"):
        train(data, tmp_path / "run", SMALL.but(members=second), "cpu")


@pytest.mark.parametrize("change", [{"width": 8}, {"members": 3}, {"members": 4}])
def test_a_refused_call_leaves_the_run_as_it_was(data, run, tmp_path, change):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    before = copy.recipe_file.read_bytes(), copy.split_file.read_bytes(), copy.weights
    with pytest.raises(UnetlibError, match=r"another recipe \(width: 4 -> 8\)|started with 2 members, now members is"):
        train(data, copy, RECIPE.but(**change), "cpu")
    other = prepare(data.data, tmp_path / "other", SMALL.but(train_fraction=0.6, split_seed=5))
    with pytest.raises(UnetlibError, match="other prepared slices"):
        train(other, copy, RECIPE, "cpu")
    assert (copy.recipe_file.read_bytes(), copy.split_file.read_bytes(), copy.weights) == before


def test_threshold_and_mirror_of_a_finished_run_may_change(data, run, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    train(data, copy, RECIPE.but(mirror=False), "cpu")
    assert (copy.recipe.mirror, copy.weights) == (False, run.weights)


def test_the_run_has_the_recipe_of_its_slices_and_the_precision_of_its_machine(tmp_path):
    for index in range(10):
        name = write_patient(tmp_path / "data", index)
        flair = nib.load(tmp_path / "data" / name / f"{name}_flair.nii.gz")
        other = np.sqrt(np.asarray(flair.dataobj)).astype(np.float32)
        nib.save(nib.Nifti1Image(other, flair.affine), tmp_path / "data" / name / f"{name}_t1ce.nii.gz")
    slices = SMALL.but(train_fraction=0.6, modalities="flair t1ce", regions="whole enhancing")
    run, data = Run(tmp_path / "run"), prepare(tmp_path / "data", tmp_path / "prepared", slices)
    train(data, run, RECIPE.but(epochs=1, precision="auto"), "cpu", threads=1)
    assert {name: data.about["recipe"][name] for name in OF_PATIENTS} == {
        name: getattr(run.recipe, name) for name in OF_PATIENTS
    }
    assert run.recipe.precision == run.member(1).recipe.precision != "auto"
    assert len(tune(run, "cpu").regions) == 2


@pytest.mark.parametrize("first", ["run", "member"])
def test_a_member_that_is_trained_is_in_use_for_a_run_and_for_itself(data, tmp_path, first):
    run, refused = Run(tmp_path / "run"), list[str]()
    train(data, run, RECIPE, "cpu", max_steps=1, threads=1)
    calls = {"run": (data, run, RECIPE), "member": (data.of_member(0), run.member(0), SMALL.but(mirror=True))}
    second = calls[({*calls} - {first}).pop()]

    class Second(Hook):
        def on_step_end(self, loop, loss):
            with pytest.raises(UnetlibError, match="is in use") as error:
                train(*second, "cpu", threads=1)
            refused.append(str(error.value))

    train(*calls[first], "cpu", max_steps=1, threads=1, hooks=[Second()])
    assert len(refused) == 1
    assert str(run.member(0).folder) in refused[0]


def test_all_members_start_from_the_same_weights(data, tmp_path):
    for index in range(50, 56):
        write_patient(tmp_path / "others", index)
    others, run = prepare(tmp_path / "others", tmp_path / "slices", SMALL), Run(tmp_path / "run")
    for folder, seed in (("one", 1), ("two", 2)):
        train(others, tmp_path / folder, SMALL.but(epochs=1, seed=seed), "cpu", threads=1)
    train(data, run, RECIPE, "cpu", start_from=tmp_path / "one", max_steps=1, threads=1)
    for start in (None, tmp_path / "two"):
        with pytest.raises(UnetlibError, match="member 1 was started from other weights than member 2 would be"):
            train(data, run, RECIPE, "cpu", start_from=start, threads=1)
    train(data, run, RECIPE, "cpu", start_from=tmp_path / "one", threads=1)
    assert {one.about()["start_from"] for one in (run, *run.members)} == {sha256(Run(tmp_path / "one").best)}
    train(data, run, RECIPE, "cpu")  # none of them needs it any more


def test_weights_that_a_later_member_may_not_have_are_refused_before_the_first_step(data, tmp_path):
    train(data, tmp_path / "one", SMALL.but(epochs=1), "cpu", threads=1)
    with pytest.raises(UnetlibError, match="keeps for validation or test"):
        train(data, tmp_path / "run", RECIPE, "cpu", start_from=tmp_path / "one")
    assert not (tmp_path / "run" / "member-1").exists()


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
    monkeypatch.setattr(steps, "progress", lambda *given: bars.append(progress(*given)) or bars[-1])
    train(data, tmp_path / "run", RECIPE, "cpu", threads=1)
    (bar,) = bars
    assert bar.n == bar.total > 0
