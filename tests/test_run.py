"""A run as an object, what may be changed on a finished one, several runs together, messages, kill-safe parts."""

import logging
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import BEST, SMALL, write_patient
from unetlib.data.prepare import prepare
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import results_table
from unetlib.pipeline import run_recipe
from unetlib.prediction.decision import Decision
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Predictor, Trained, prediction_key
from unetlib.prediction.tuning import tune
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.errors import UnetlibError
from unetlib.support.files import PARTIAL, sha256
from unetlib.support.messages import LOG, quiet, say, show_messages, warn
from unetlib.support.parts import Parts


@pytest.fixture
def copy(trained, tmp_path):
    """A finished run of its own."""
    return Run(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_is_the_same_from_a_path_a_text_or_itself(trained):
    run = Run.of(trained)
    assert run == Run.of(str(trained)) == Run.of(run) == Run(str(trained))
    assert os.fspath(run) == str(run) == str(trained)
    assert run.recipe.image_size == SMALL.image_size
    assert {path.name for path in trained.iterdir()} >= {run.latest.name, run.best.name, run.history_file.name}


def test_a_threshold_that_is_changed_on_a_finished_run_changes_masks_and_scores_and_no_weight(prepared, copy, tmp_path):
    before, weights = evaluate(copy, device="cpu"), sha256(copy.best)
    image = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((32, 32, 4)).astype(np.float32), np.eye(4)), image)
    predict(copy, [image], tmp_path / "masks", device="cpu")
    plain = copy.recipe
    recipe = plain.but(threshold=0.05, mirror=True)
    assert train(prepared, copy, recipe, device="cpu").epoch == recipe.epochs
    assert sha256(copy.best) == weights
    assert copy.recipe == recipe
    after = evaluate(copy, device="cpu")
    assert after["key"] != before["key"]
    assert after["figures"] != before["figures"]
    with pytest.raises(UnetlibError, match="another decision"):
        predict(copy, [image], tmp_path / "masks", device="cpu")
    train(prepared, copy, plain, device="cpu")  # and back again
    assert evaluate(copy, device="cpu")["figures"] == before["figures"]
    assert len(predict(copy, [image], tmp_path / "masks", device="cpu")) == 1


def test_a_finished_run_says_what_has_changed_and_refuses_fewer_epochs(prepared, trained, copy, capsys):
    recipe, files = copy.recipe, {path: path.read_bytes() for path in copy.folder.iterdir()}
    for fewer in (1, recipe.epochs - 1):
        with pytest.raises(UnetlibError, match=f"has been trained for {recipe.epochs} epochs; {fewer} were asked for"):
            train(prepared, copy, recipe.but(epochs=fewer), device="cpu")
    for change in ({"width": 8}, {"learning_rate": 0.1}, {"seed": 3}, {"batch_size": 2}):
        with pytest.raises(UnetlibError, match="started with another recipe"):
            train(prepared, copy, recipe.but(**change), device="cpu")
    assert {path: path.read_bytes() for path in copy.folder.iterdir()} == files
    train(prepared, copy, recipe, device="cpu")
    assert capsys.readouterr().out.endswith("finished already.\n")
    train(prepared, copy, recipe.but(threshold=0.7), device="cpu")
    assert capsys.readouterr().out.endswith("finished already. Changed: threshold: 0.5 -> 0.7.\n")
    train(prepared, copy, recipe.but(epochs=recipe.epochs + 1), device="cpu", max_steps=1)
    assert f"step 0. Changed: epochs: {recipe.epochs} -> {recipe.epochs + 1}, threshold" in capsys.readouterr().out
    train(prepared, copy, recipe, device="cpu")  # its last whole epoch
    assert copy.recipe == recipe


def test_fewer_epochs_than_are_done_are_refused_in_mid_training(prepared, tmp_path):
    run = Run(tmp_path / "run")
    train(prepared, run, SMALL.but(epochs=5), device="cpu", max_steps=15)
    with pytest.raises(UnetlibError, match="has been trained for 2 epochs; 1 were asked for"):
        train(prepared, run, SMALL.but(epochs=1), device="cpu")
    assert run.recipe.epochs == 5


def test_weights_alone_predict_by_the_fields_of_their_training_and_say_so(prepared, copy, tmp_path, capsys, cohort):
    train(prepared, copy, copy.recipe.but(threshold=0.7), device="cpu")
    (alone := Run(tmp_path / "alone")).folder.mkdir()
    shutil.copy(copy.best, alone.best)
    image = next(cohort.glob("*/*_flair.nii.gz"))
    for run, told in ((copy, ""), (alone, "has no recipe.json: threshold and mirror are those of")):
        capsys.readouterr()
        predict(run, [image], tmp_path / "masks" / run.folder.name, device="cpu")
        out = capsys.readouterr().out
        assert out.count("recipe.json") == out.count(told or "recipe.json") == bool(told)
        assert told in Predictor.open(run, "cpu").note
    assert Predictor.open(alone, "cpu").decision == Decision(0.5)
    assert told in evaluate(alone, cohort, split="all", device="cpu")["note"]


def test_weights_of_another_run_are_refused(prepared, copy, tmp_path):
    other = Run(tmp_path / "other")
    train(prepared, other, SMALL.but(width=2, epochs=1), device="cpu")
    shutil.copy(other.best, copy.best)
    with pytest.raises(UnetlibError, match=r"best_model.pth holds the weights of another run than .*width: 4 -> 2"):
        copy.load()


@pytest.mark.parametrize("field", [{"width": 2}, {"learning_rate": 0.005}, {"seed": 7}, {"batch_size": 3}])
def test_a_checkpoint_of_another_run_is_refused_whatever_recipe_is_asked_for(prepared, copy, tmp_path, field):
    """It names the file, and no training goes on that would mix two runs."""
    other, theirs = Run(tmp_path / "other"), copy.recipe.but(**field)
    train(prepared, other, theirs.but(epochs=1), device="cpu")
    shutil.copy(other.latest, copy.latest)
    before = {path: path.read_bytes() for path in copy.folder.rglob("*") if path.is_file()}
    (name, value), *_ = field.items()
    told = (
        rf"latest_checkpoint.pth holds the weights of another run .*\({name}: {getattr(copy.recipe, name)} -> {value}\)"
    )
    for recipe in (copy.recipe, theirs):
        with pytest.raises(UnetlibError, match=told):
            train(prepared, copy, recipe.but(epochs=9), device="cpu")
    assert {path: path.read_bytes() for path in before} == before


def test_a_network_that_cannot_be_made_is_that_of_a_file(copy):
    content = torch.load(copy.best)
    content["recipe"] |= {"network": "unetr", "depth": 3}
    torch.save(content, copy.best)
    with pytest.raises(UnetlibError, match=r"best_model.pth: the network 'unetr' cannot be made .* depth is 3"):
        copy.load()


def test_weights_of_a_run_on_another_split_or_from_other_first_weights_are_refused(cohort, prepared, trained, tmp_path):
    other = prepare(cohort, tmp_path / "p", SMALL.but(split_seed=5), workers=1)
    train(other, tmp_path / "split", SMALL.but(epochs=1), device="cpu")
    train(prepared, tmp_path / "start", SMALL.but(epochs=1), device="cpu", start_from=trained)
    for name in ("split", "start"):
        copy = Run(shutil.copytree(trained, tmp_path / f"copy-{name}"))
        shutil.copy(tmp_path / name / BEST, copy.best)
        with pytest.raises(UnetlibError, match=rf"{BEST} holds the weights of another run than .*\({name}"):
            evaluate(copy, device="cpu")
        copy.recipe_file.unlink()  # the weights alone say what they are
        copy.load()


def test_weights_of_before_the_origin_was_written_down_are_those_of_their_run(copy):
    content = torch.load(copy.best, weights_only=True)
    content["prepared"]["data"] = "as version 0.3 hashed it"
    for lost in ("regions", "prepared", "start_from"):
        torch.save(content, copy.best)
        copy.load()
        (content["prepared"] if lost == "regions" else content).pop(lost)
    torch.save(content, copy.best)
    copy.load()


@pytest.mark.parametrize("text", ["{", '{"recipe": {}}', '{"recipe": {"width": "x"}, "prepared": {}, "data": ""}'])
def test_a_damaged_recipe_is_a_sentence_and_deleted_it_is_made_again(prepared, copy, tmp_path, text):
    before, recipe = copy.about(), copy.recipe
    copy.recipe_file.write_text(text)
    with pytest.raises(UnetlibError, match=r"recipe\.json.* delete it, then give `unetlib train` with all flags"):
        copy.about()
    copy.recipe_file.unlink()
    train(prepared, copy, recipe, device="cpu")
    assert copy.about() == before
    copy.recipe_file.write_text(text)
    copy.latest.unlink()
    with pytest.raises(UnetlibError, match="has no latest checkpoint to go on from, so restore it"):
        copy.about()


def test_weights_of_a_tuned_run_without_its_decision_get_advice_that_keeps_them(untuned, tmp_path, cohort):
    (alone := Run(tmp_path / "alone")).folder.mkdir()
    shutil.copy(Run(untuned).best, alone.best)
    image = next(cohort.glob("*/*_flair.nii.gz"))
    for file in (alone.best, alone.recipe_file):  # each time one file more
        shutil.copy(Run(untuned).folder / file.name, file)
        with pytest.raises(UnetlibError, match=r"Copy recipe\.json and decision\.json from the original run") as caught:
            predict(alone, [image], tmp_path / "masks", device="cpu")
        assert "unetlib train" not in str(caught.value)
    alone.recipe_file.unlink()
    for ask in (tune, evaluate):
        with pytest.raises(UnetlibError, match=r"no recipe\.json\)\. Copy it from the original run"):
            ask(alone, device="cpu")


@pytest.mark.parametrize("none", [[], (), ["phantoms", "phantoms"]])
def test_no_run_or_one_twice_is_a_sentence(none, tmp_path):
    for ask in (
        lambda: evaluate(none),
        lambda: predict(none, [tmp_path / "a.nii"], tmp_path),
        lambda: Predictor.open(none),
    ):
        with pytest.raises(UnetlibError, match="no run was given, or one twice"):
            ask()


def test_the_best_epoch_does_not_depend_on_the_threshold(prepared, trained, tmp_path):
    train(prepared, tmp_path / "run", Run.of(trained).recipe.but(threshold=0.9), device="cpu")
    one, other = (load_checkpoint(folder / BEST) for folder in (trained, tmp_path / "run"))
    assert (one["epoch"], one["val_dice"]) == (other["epoch"], other["val_dice"])


def test_a_decision_is_made_anew_when_the_prediction_is_mirrored_otherwise(untuned, strong_prepared, tmp_path):
    run = Run(shutil.copytree(untuned, tmp_path / "run"))
    tune(run, "cpu")
    Predictor.open(run, "cpu")
    train(strong_prepared, run, run.recipe.but(mirror=False), device="cpu")
    with pytest.raises(UnetlibError, match="have not been chosen"):
        Predictor.open(run, "cpu")
    tune(run, "cpu")
    assert isinstance(Predictor.open(run, "cpu"), Trained)


def test_the_key_of_a_run_that_was_not_changed_is_the_hash_of_its_weights(copy):
    recipe = copy.recipe
    assert prediction_key(copy, recipe, recipe, Decision(0.5)) == sha256(copy.best)
    assert prediction_key(copy, recipe.but(mirror=True), recipe, Decision(0.5)) != sha256(copy.best)


def test_several_runs_are_evaluated_and_predict_as_the_mean_of_their_probabilities(prepared, trained, copy, tmp_path):
    train(prepared, other := Run(tmp_path / "other"), SMALL.but(seed=1, threshold=0.4), device="cpu")
    image = tmp_path / "a.nii.gz"
    voxels = np.random.default_rng(0).random((32, 32, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), image)
    found = []
    for number, runs in enumerate(([copy], [other], [copy, other])):
        predict(runs, [image], tmp_path / str(number), probabilities=True, device="cpu")
        found.append(nib.load(tmp_path / str(number) / "a_probability.nii.gz").get_fdata())
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3

    alone, both = evaluate(copy, device="cpu"), evaluate([copy, other], device="cpu")
    assert (both["patients"], both["slices"]) == (alone["patients"], alone["slices"])
    assert both["figures"] != alone["figures"]
    epochs = {run: load_checkpoint(run.best)["epoch"] for run in (copy, other)}
    assert both["runs"] == [
        {"run": str(run), "weights": run.weights, "epochs": [epoch]} for run, epoch in epochs.items()
    ]
    assert both["decision"] == {"threshold": 0.45, "smallest_ml": 0.0}
    assert alone["runs"] == [{"weights": copy.weights, "epochs": [epochs[copy]]}]  # the same wherever the run lies
    first, second = (f"{run} (epoch {epoch})" for run, epoch in epochs.items())
    means = "mean threshold 0.45, mean smallest component 0 ml"
    assert results_table(both).splitlines()[1] == f"mean of 2 runs: {first}, {second}; {means}"
    assert evaluate(copy, device="cpu") == alone  # each lies in a folder of its own
    assert evaluate([copy, other], device="cpu") == both


def test_runs_of_other_splits_are_not_averaged_on_the_test_patients_of_the_first(cohort, copy, tmp_path):
    run_recipe(SMALL.but(split_seed=5), tmp_path / "p", tmp_path / "other", cohort, device="cpu")
    with pytest.raises(UnetlibError, match=r"was trained or validated on \d cases? that .* is tested on"):
        evaluate([copy, tmp_path / "other"], device="cpu")


def test_the_pipeline_is_prepare_train_tune_and_evaluate(tmp_path):
    for index in range(6):
        write_patient(tmp_path / "data", index)
    recipe = SMALL.but(slices="all", tune=True, epochs=1)
    words = recipe, tmp_path / "p", tmp_path / "run", tmp_path / "data"
    stopped = run_recipe(*words, part="val", device="cpu", max_steps=1)
    assert stopped.summary is None
    assert not stopped.run.decision_file.exists()
    done = run_recipe(*words, part="val", device="cpu")
    assert done.state.epoch == 1
    assert done.run.decision_file.exists()
    assert done.summary["split"] == "val"
    assert not (done.run.evaluation / "summary.json").exists()  # test patients are left alone
    assert run_recipe(*words, part="val", device="cpu").summary == done.summary


def test_messages_go_through_logging_and_a_program_may_silence_them(caplog, capsys):
    with caplog.at_level(logging.INFO, "unetlib"):
        say("done")
        warn("left out")
    assert [(one.levelname, one.message) for one in caplog.records] == [("INFO", "done"), ("WARNING", "left out")]
    assert capsys.readouterr().out == "done\nleft out\n"
    with quiet():
        say("not this")
        warn("but this")
    assert capsys.readouterr().out == "but this\n"
    show_messages()
    show_messages()  # twice is once
    say("again")
    assert capsys.readouterr().out == "again\n"
    assert LOG.name == "unetlib"


@pytest.mark.parametrize("show", ["", "show_messages(); "])
def test_beside_a_handler_of_the_root_logger_a_message_appears_once(show):
    code = "import logging; logging.basicConfig(level='INFO', format='%(message)s'); "
    code += f"from unetlib.support.messages import say, show_messages; {show}say('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout + done.stderr).splitlines() == ["done"]


def test_without_any_setting_a_script_sees_warnings_alone():
    code = "from unetlib.support.messages import say, warn; say('done'); warn('left out')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "left out\n")


def test_a_part_has_another_name_when_it_is_made_from_something_else(tmp_path):
    parts = Parts.open(tmp_path)
    assert not parts.left
    path = parts.path("case", {"a": 1}, [2])
    assert path == Parts(tmp_path).path("case", {"a": 1}, [2]) != parts.path("case", {"a": 1}, [3])
    assert path.parent == tmp_path / PARTIAL
    long = {parts.path("n" * length + end, 1).name for length in (150, 300) for end in "ab"}
    assert len(long) == 4
    assert max(map(len, long)) < 200
    path.parent.mkdir()
    assert parts.left
    parts.remove()
    parts.remove()
    assert not path.parent.exists()


def test_a_recipe_says_which_stage_a_field_belongs_to():
    assert Recipe.published.stage("predict") == {"threshold": 0.5, "mirror": False, "tune": False}
