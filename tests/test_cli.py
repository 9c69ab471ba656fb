"""What a person sees: the commands, from end to end, and a sentence for every bad input."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import BEST, LATEST, LPS, write_patient
from unetlib.cli import main
from unetlib.data.prepared import Prepared
from unetlib.recipe import PREDICT, STAGES, Recipe
from unetlib.recipe import PREPARE as PREPARE_STAGE
from unetlib.recipe import TRAIN as TRAIN_STAGE
from unetlib.runs import plan
from unetlib.runs.checkpoint import load_checkpoint, previous, save_checkpoint
from unetlib.support.errors import quoted
from unetlib.support.files import read_json, sha256

PREPARE = ["--image-size", "32", "--workers", "1"]
TRAIN = ["--width", "4", "--depth", "2", "--epochs", "2", "--device", "cpu", "--precision", "fp32"]


def fails(capsys, *command):
    """Run a command that must fail; return its one sentence."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in command])
    assert isinstance(stop.value.code, str), "a sentence was expected"  # sys.exit prints it and exits with 1
    assert stop.value.code.startswith("error: ")
    assert "Traceback" not in capsys.readouterr().err
    return stop.value.code


def run_cli(*command):
    main([str(word) for word in command])


def test_an_empty_text_is_not_the_working_directory(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check", ""])
    assert stop.value.code == 2
    assert "an empty text was given where a path was expected" in capsys.readouterr().err


@pytest.fixture
def data(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "data")
    return tmp_path / "data"


def replace(data, index, kind, array, affine=LPS):
    name = f"BraTS2021_{index:05d}"
    nib.save(nib.Nifti1Image(array, affine), data / name / f"{name}_{kind}.nii.gz")


def test_the_main_job_from_check_to_predict(data, tmp_path, capsys):
    run_cli("check", data, "--workers", 1)
    assert "10 of 10 cases usable" in capsys.readouterr().out
    run_cli("prepare", data, tmp_path / "p", *PREPARE)
    assert "split by patient: train 7" in capsys.readouterr().out
    run_cli("train", tmp_path / "p", tmp_path / "r", *TRAIN)
    assert "best validation Dice" in capsys.readouterr().out
    run_cli("evaluate", tmp_path / "r", "--device", "cpu")
    assert "<- the published number" in capsys.readouterr().out
    image = data / "BraTS2021_00000" / "BraTS2021_00000_flair.nii.gz"
    run_cli("predict", tmp_path / "r", image, "--out", tmp_path / "masks", "--device", "cpu", "--probabilities")
    assert len(list((tmp_path / "masks").iterdir())) == 2
    run_cli("figures", tmp_path / "r", "--device", "cpu")
    for name in ("curves.png", "overlays.png", "metrics.png", "architecture.png"):
        assert (tmp_path / "r" / "figures" / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "r" / "figures" / "overlay.gif").read_bytes().startswith(b"GIF89a")


def test_of_several_regions_and_members_the_best_dice_is_called_their_mean(data, tmp_path, capsys):
    run_cli("prepare", data, tmp_path / "p", *PREPARE, "--regions", "whole", "enhancing", "--train-fraction", 0.6)
    run_cli("train", tmp_path / "p", tmp_path / "r", *TRAIN, "--epochs", 1, "--members", 2)
    assert "best validation Dice (mean of 2 members and 2 regions, pooled, prepared" in capsys.readouterr().out


def test_a_resumed_run_needs_no_flags_again_and_takes_more_epochs(prepared, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "r")
    run_cli("train", prepared, tmp_path / "r", "--device", "cpu")
    assert "trained for 2 epochs" in capsys.readouterr().out
    run_cli("train", prepared, tmp_path / "r", "--device", "cpu", "--epochs", 3)
    assert "trained for 3 epochs" in capsys.readouterr().out
    assert read_json(tmp_path / "r" / "recipe.json")["recipe"]["width"] == 4


def test_train_prepares_a_folder_of_patients_first_by_the_recipe_and_resumes_both(tall_cohort, tmp_path, capsys):
    words = ["train", tall_cohort, tmp_path / "r", *TRAIN, "--recipe", "strong", "--no-phantoms", "--epochs", 1]
    run_cli(*words, "--max-steps", 2)
    prepared = Prepared.open(tmp_path / "r-prepared")
    assert prepared.about["recipe"] == Recipe.strong.stage(PREPARE_STAGE)
    assert "Stopped at epoch 1, step 2 of " in capsys.readouterr().out
    run_cli("train", tall_cohort, tmp_path / "r", "--device", "cpu")
    told = capsys.readouterr().out
    assert "trained for 1 epoch" in told
    assert "chosen on" in told
    assert read_json(tmp_path / "r" / "recipe.json")["data"] == str(tall_cohort)


def test_a_network_that_cannot_be_made_is_refused_before_the_patients_are_prepared(tall_cohort, tmp_path, capsys):
    words = ["--network", "segresnet", "--width", 12, "--depth", 3, "--device", "cpu"]
    told = fails(capsys, "train", tall_cohort, tmp_path / "r", *words)
    assert "width is 12 (expected: a multiple of 8, such as 8)" in told
    assert not (tmp_path / "r-prepared").exists()


def test_memory_that_is_not_there_is_said_before_the_patients_are_prepared(tall_cohort, tmp_path, capsys, monkeypatch):
    """The weights alone may be too large, so they are not made."""
    build, made = plan.build_network, []
    monkeypatch.setattr(plan, "build_network", lambda *given: made.append(build(*given)))
    monkeypatch.setattr("unetlib.engine.memory.available_bytes", lambda device: 10**8)
    words = ["--recipe", "volume", "--width", 64, "--device", "cpu"]
    assert "r: a step on 1 volume (1 x 96 x 96 x 96) needs about" in fails(
        capsys, "train", tall_cohort, tmp_path / "r", *words
    )
    assert {weight.device.type for network in made for weight in network.parameters()} == {"meta"}
    assert not (tmp_path / "r-prepared").exists()


@pytest.mark.parametrize(("words", "expected"), [(["--recipe", "volume"], "dims: 2 -> 3"), (["--width", 8], "4 -> 8")])
def test_a_run_of_another_recipe_is_refused_before_the_patients_are_prepared(
    tall_cohort, run, tmp_path, capsys, words, expected
):
    shutil.copytree(run, tmp_path / "r")
    told = fails(capsys, "train", tall_cohort, tmp_path / "r", *words, "--device", "cpu")
    assert "was started with another recipe" in told
    assert expected in told
    assert not (tmp_path / "r-prepared").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--start-from", "nowhere"], "--start-from nowhere does not exist"),
        (["--recipe", "strong", "--width", 8], "phantoms has another network or other slices (width: 16 -> 8)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_the_patients_are_prepared(
    tall_cohort, tmp_path, capsys, words, expected
):
    assert expected in fails(capsys, "train", tall_cohort, tmp_path / "r", *words, "--device", "cpu")
    assert not (tmp_path / "r-prepared").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--loss", "foo"], "there is no loss named"),
        (["--device", "tpu"], "there is no device 'tpu' here"),
        (["--threads", 9999], "threads is 9999"),
        (["--tune", "--threshold", 0.3], "a threshold was given, but tune chooses it"),
        (["--members", 9], "member 9 has no patients of its own to validate on"),
        (["--members", 2], "is not a run folder"),
        ([], "is not a run folder"),
    ],
)
def test_what_needs_no_data_is_refused_before_the_patients_are_prepared(cohort, tmp_path, capsys, words, expected):
    if expected == "is not a run folder":
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "mine.txt").touch()
    assert expected in fails(capsys, "train", cohort, tmp_path / "r", *words)
    assert not (tmp_path / "r-prepared").exists()


@pytest.mark.parametrize("name", [".", "../run"])
def test_the_run_may_be_the_working_directory(tall_cohort, tmp_path, monkeypatch, name):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    run_cli("train", tall_cohort, name, *TRAIN, "--max-steps", 1)
    assert (tmp_path / "run" / "latest_checkpoint.pth").exists()
    assert (tmp_path / "run-prepared" / "prepared.json").exists()


@pytest.mark.parametrize("name", ["nowhere", "empty", "unfinished"])
def test_train_on_what_is_no_folder_of_patients_asks_for_a_prepared_one(tmp_path, capsys, name):
    if name != "nowhere":
        (tmp_path / name).mkdir()
    if name == "unfinished":
        (tmp_path / name / "split.json").write_text("{}")
    told = fails(capsys, "train", tmp_path / name, tmp_path / "r", *TRAIN)
    assert ("nowhere does not exist. Give a prepared folder" in told) == (name == "nowhere")
    assert f"unetlib prepare DATA {tmp_path / name}" in told
    assert not (tmp_path / "r-prepared").exists()


def test_with_max_steps_it_ends_well_says_where_it_stopped_and_claims_no_training(strong_prepared, tmp_path, capsys):
    strong = ["--recipe", "strong", "--no-phantoms", *TRAIN]
    run_cli("train", strong_prepared, tmp_path / "r", *strong, "--max-steps", 2)
    out = capsys.readouterr().out
    assert "Stopped at epoch 1, step 2 of " in out
    assert out.endswith("with a checkpoint. The same command goes on there.\n")
    assert "trained for" not in out
    assert not (tmp_path / "r" / "decision.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows delivers no SIGINT to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_with_status_130_and_says_how_to_go_on(prepared, tmp_path, capsys, monkeypatch, number):
    monkeypatch.setattr("unetlib.engine.steps.Bar.on_gradients", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run_cli("train", prepared, tmp_path / "r", *TRAIN, "--max-steps", 1)
    assert stop.value.code == 130
    assert "The same command goes on there" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_predict_makes_the_others_and_ends_with_the_name_of_a_bad_one(trained, data, tmp_path, capsys):
    first, last = (data / f"BraTS2021_0000{i}" / f"BraTS2021_0000{i}_flair.nii.gz" for i in (0, 1))
    (tmp_path / "BAD.nii").touch()
    told = fails(capsys, "predict", trained, first, tmp_path / "BAD.nii", last, "--out", tmp_path / "masks")
    assert "1 of 3 images got no mask" in told
    assert f"{tmp_path / 'BAD.nii'}" in told
    assert len(list((tmp_path / "masks").iterdir())) == 2


HINT = "the slices were prepared by the strong recipe and the training is set up by another one"
OTHER_WAY = "the training is set up by the strong recipe and the slices were prepared by another one"


@pytest.mark.parametrize(
    ("prepared_by", "trained_by", "hint"),
    [
        (["--recipe", "strong"], [], HINT),
        (["--recipe", "strong"], ["--batch-size", "8", "--balance"], HINT),
        (["--recipe", "strong"], ["--recipe", "strong", "--no-phantoms", "--no-tune"], ""),
        (["--recipe", "strong", "--image-size", "64"], ["--recipe", "strong", "--no-phantoms"], ""),
        (["--slices", "all"], ["--balance"], ""),
        (["--slices", "all"], ["--recipe", "strong", "--no-phantoms"], OTHER_WAY),
        ([], [], ""),
    ],
)
def test_slices_of_one_recipe_and_a_training_of_the_other_give_a_hint_once(
    tall_cohort, tmp_path, capsys, prepared_by, trained_by, hint
):
    run_cli("prepare", tall_cohort, tmp_path / "p", *PREPARE, *prepared_by)
    words = ["train", tmp_path / "p", tmp_path / "r", *TRAIN, *trained_by, "--max-steps", 1]
    capsys.readouterr()
    run_cli(*words)
    told = capsys.readouterr().out
    assert ("If this is not intended" in told) == bool(hint)
    assert hint in told
    run_cli(*words)
    assert "If this is not intended" not in capsys.readouterr().out, "a run under way has been told"


def test_the_installed_module_ends_with_a_sentence_and_status_1(tmp_path):
    command = [sys.executable, "-m", "unetlib", "check", str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["check", "prepare"])
def test_an_empty_and_a_wrong_folder(tmp_path, capsys, command):
    more = [tmp_path / "p"] if command == "prepare" else []
    (tmp_path / "empty").mkdir()
    assert "no file at all" in fails(capsys, command, tmp_path / "empty", *more)
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "holiday.jpg").touch()
    assert "holiday.jpg" in fails(capsys, command, tmp_path / "wrong", *more)
    assert not (tmp_path / "p").exists()


def broken_images():
    image = np.random.default_rng(0).normal(100, 10, (40, 48, 6)).astype(np.float32)
    mask = np.zeros((40, 48, 6), np.uint8)
    mask[5:20, 5:20, 2:4] = 1
    nan = image.copy()
    nan[3, 3, 3] = np.nan
    infinite = image.copy()
    infinite[3, 3, 3] = np.inf
    shifted = LPS.copy()
    shifted[0, 3] = 7
    yield "nan", ("flair", nan), "1 NaN or infinite"
    yield "inf", ("flair", infinite), "1 NaN or infinite"
    yield "constant", ("flair", np.full_like(image, 5)), "constant"
    yield "4-D", ("flair", np.stack([image] * 2, 3)), "4-D"
    yield "shape", ("seg", mask[:, :, :5]), "shape (40, 48, 5)"
    yield "affine", ("seg", mask, shifted), "affine"
    yield "label 7", ("seg", mask * 7), "labels 7"
    yield "0/255", ("seg", mask * 255), "divide it by 255"


BROKEN = list(broken_images())


@pytest.mark.parametrize(("bad", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_one_bad_patient_is_named_and_left_out_by_check_and_prepare(data, tmp_path, capsys, bad, words):
    replace(data, 6, *bad)
    run_cli("check", data, "--workers", 1)
    report = " ".join(capsys.readouterr().out.split())
    assert "9 of 10 cases usable" in report
    assert "Left out BraTS2021_00006" in report
    assert words in report
    run_cli("prepare", data, tmp_path / "p", *PREPARE)
    told = capsys.readouterr().out
    assert "left out BraTS2021_00006" in told
    assert words in told
    assert "left out: 1 (BraTS2021_00006)" in told
    assert "BraTS2021_00006" in fails(capsys, "prepare", data, tmp_path / "q", *PREPARE, "--strict")
    assert "--strict" in fails(capsys, "check", data, "--strict", "--workers", "1")


def test_a_missing_mask_and_a_truncated_file(data, tmp_path, capsys):
    (data / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz").unlink()
    victim = data / "BraTS2021_00002" / "BraTS2021_00002_flair.nii.gz"
    victim.write_bytes(victim.read_bytes()[:-500])
    run_cli("check", data, "--workers", 1)
    report = " ".join(capsys.readouterr().out.split())
    assert "8 of 10 cases usable" in report
    assert "BraTS2021_00001: it has no tumour mask" in report
    assert "BraTS2021_00002: " in report


def test_a_folder_in_which_nothing_can_be_used_fails(data, capsys):
    for path in data.glob("*/*_seg.nii.gz"):
        path.unlink()
    assert "10 cases" in fails(capsys, "check", data, "--workers", 1)
    assert "0 usable patient" in fails(capsys, "prepare", data, data / "p")


def test_too_few_patients_and_no_tumour(tmp_path, capsys):
    for index in range(2):
        write_patient(tmp_path / "two", index)
    assert "at least 3" in fails(capsys, "prepare", tmp_path / "two", tmp_path / "p", *PREPARE)
    for index in range(4):
        write_patient(tmp_path / "four", index)
        replace(tmp_path / "four", index, "seg", np.zeros((40, 48, 6), np.uint8))
    assert "no tumour anywhere" in fails(capsys, "prepare", tmp_path / "four", tmp_path / "q", *PREPARE)


def test_bad_checkpoints(prepared, run, tmp_path, capsys, data):
    shutil.copytree(run, tmp_path / "r", ignore=shutil.ignore_patterns("previous_*"))
    image = data / "BraTS2021_00000" / "BraTS2021_00000_flair.nii.gz"
    weights = tmp_path / "r" / BEST
    weights.write_bytes(weights.read_bytes()[:5000])
    for command in (["evaluate", tmp_path / "r"], ["predict", tmp_path / "r", image, "--out", tmp_path / "o"]):
        assert f"{BEST} is damaged" in fails(capsys, *command)
    assert "width: 4 -> 8" in fails(capsys, "train", prepared, tmp_path / "r", "--width", 8)
    (tmp_path / "r" / LATEST).write_bytes(b"")
    assert f"{LATEST} is damaged" in fails(capsys, "train", prepared, tmp_path / "r")


def test_weights_of_another_architecture(run, tmp_path, capsys):
    import torch

    shutil.copytree(run, tmp_path / "r")
    content = torch.load(run / BEST, weights_only=True)
    content["recipe"]["width"] = 8  # the recipe of one network, the weights of another
    torch.save(content, tmp_path / "r" / BEST)
    assert "another architecture" in fails(capsys, "evaluate", tmp_path / "r")


def test_a_full_disk_while_preparing(data, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in fails(capsys, "prepare", data, tmp_path / "p", *PREPARE)
    assert not [path for path in (tmp_path / "p").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--width", "0"], "width is 0"),
        (["--width", "100000"], "at most 512"),
        (["--loss", "hinge"], "no loss named 'hinge'"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--depth", "7"], "a depth of 7 leaves nothing"),
    ],
)
def test_flags_out_of_range(prepared, tmp_path, capsys, flags, words):
    assert words in fails(capsys, "train", prepared, tmp_path / "r", *flags)
    assert not (tmp_path / "r").exists()


def test_every_field_of_the_recipe_is_a_flag(capsys):
    told = ""
    for command in ("prepare", "train"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told += capsys.readouterr().out
    for stage in STAGES:
        for name in Recipe.published.stage(stage):
            assert f"--{name.removeprefix('split_').replace('_', '-')}" in told


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ([], {}),
        (["--recipe", "strong"], Recipe.strong.stage(PREPARE_STAGE)),
        (["--recipe", "published"], {}),
        (["--recipe", "strong", "--no-crop"], {**Recipe.strong.stage(PREPARE_STAGE), "crop": False}),
        (["--slices", "brain", "--recipe", "strong"], {**Recipe.strong.stage(PREPARE_STAGE), "slices": "brain"}),
    ],
)
def test_prepare_takes_a_recipe_by_name_and_single_flags_over_it(cohort, tmp_path, flags, changes):
    run_cli("prepare", cohort, tmp_path / "p", *PREPARE, *flags)
    expected = {**Recipe.published.stage(PREPARE_STAGE), **changes, "image_size": 32}
    assert Prepared.open(tmp_path / "p").about["recipe"] == expected


@pytest.mark.parametrize(
    ("flags", "base", "changes"),
    [
        (["--recipe", "strong", "--no-phantoms"], Recipe.strong, {"phantoms": False}),
        (
            ["--recipe", "strong", "--no-phantoms", "--no-mirror", "--average", "0.5"],
            Recipe.strong,
            {"phantoms": False, "mirror": False, "average": 0.5},
        ),
        (["--recipe", "best", "--no-phantoms"], Recipe.best, {"phantoms": False}),
        (["--recipe", "published"], Recipe.published, {}),
        (["--neighbours", "1", "--balance"], Recipe.published, {"neighbours": 1, "balance": True}),
    ],
)
def test_train_takes_a_recipe_by_name_and_single_flags_over_it(strong_prepared, tmp_path, flags, base, changes):
    run_cli("train", strong_prepared, tmp_path / "r", *TRAIN, *flags, "--max-steps", 1)
    small = {"width": 4, "depth": 2, "epochs": 2, "precision": "fp32"}
    found = read_json(tmp_path / "r" / "recipe.json")["recipe"]
    names = base.stage(TRAIN_STAGE) | base.stage(PREDICT)
    assert {name: found[name] for name in names} == names | small | changes
    assert {name: found[name] for name in base.stage(PREPARE_STAGE)} == Prepared.open(strong_prepared).about["recipe"]


def test_the_strong_recipe_on_slices_of_the_published_one_is_a_sentence(prepared, tmp_path, capsys):
    told = fails(capsys, "train", prepared, tmp_path / "r", "--recipe", "strong", *TRAIN)
    assert "only the slices with tumour are kept" in told
    assert "--slices all" in told


def test_train_with_the_strong_recipe_ends_with_a_decision_that_evaluate_and_predict_use(
    strong_prepared, tall_cohort, tmp_path, capsys
):
    strong = [*TRAIN, "--recipe", "strong", "--no-phantoms", "--epochs", 1]
    run_cli("train", strong_prepared, tmp_path / "r", *strong, "--max-steps", 3)
    assert not (tmp_path / "r" / BEST).exists()
    assert "Train first" in fails(capsys, "evaluate", tmp_path / "r")
    run_cli("train", strong_prepared, tmp_path / "r", "--device", "cpu")  # resumed, it needs no flags again
    told = capsys.readouterr().out
    assert "chosen on" in told
    assert "trained for 1 epoch" in told
    before = (tmp_path / "r" / "decision.json").read_bytes()
    run_cli("train", strong_prepared, tmp_path / "r", *strong)
    assert (tmp_path / "r" / "decision.json").read_bytes() == before
    run_cli("evaluate", tmp_path / "r", "--device", "cpu")
    assert "<- the published number" in capsys.readouterr().out
    image = sorted(tall_cohort.glob("*/*_flair.nii.gz"))[0]
    run_cli("predict", tmp_path / "r", image, "--out", tmp_path / "masks", "--device", "cpu")
    assert len(list((tmp_path / "masks").iterdir())) == 1


def test_train_starts_from_the_weights_of_another_run(prepared, trained, tmp_path, capsys):
    run_cli("train", prepared, tmp_path / "r", *TRAIN, "--start-from", trained, "--max-steps", 1)
    assert read_json(tmp_path / "r" / "recipe.json")["start_from"] == sha256(trained / BEST)
    told = fails(capsys, "train", prepared, tmp_path / "q", *TRAIN, "--start-from", tmp_path / "nothing")
    assert "does not exist" in told


def test_a_flag_of_the_other_command_is_told_where_it_belongs(capsys):
    for words, told in (
        (["train", "p", "r", "--slices", "tumour"], "--slices is a flag of `unetlib prepare`"),
        (["prepare", "d", "p", "--epochs", "3", "--nonsense"], "--epochs is a flag of `unetlib train`"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert told in capsys.readouterr().err


def test_a_threshold_beside_its_tuning_is_refused(prepared, tmp_path):
    with pytest.raises(SystemExit, match="chooses it on the validation patients"):
        main(["train", str(prepared), str(tmp_path / "run"), "--tune", "--threshold", "0.9"])
    assert not (tmp_path / "run").exists()


def test_a_lost_best_model_is_replaced_by_the_one_before_and_the_user_is_told(prepared, run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / BEST).rename(previous(folder / BEST))
    content = load_checkpoint(folder / LATEST)
    content["progress"]["best_dice"] = 0.99  # of weights that are gone
    save_checkpoint(folder / LATEST, content)
    main(["train", str(prepared), str(folder), "--device", "cpu"])
    out = capsys.readouterr().out
    assert "best_model.pth is missing. previous_best_model.pth, the checkpoint before it, is used." in out
    assert "with a validation Dice of 0.9900, are lost" in out
    assert (folder / BEST).exists()


@pytest.mark.parametrize(("system", "expected"), [("posix", "'my runs/one'"), ("nt", '"my runs/one"')])
def test_a_path_with_a_space_is_quoted_as_the_shell_of_the_system_knows_it(monkeypatch, system, expected):
    with monkeypatch.context() as patched:
        patched.setattr(os, "name", system)
        found = quoted("my runs/one"), quoted("runs/one")
    assert found == (expected, "runs/one")


def test_every_command_that_a_message_suggests_quotes_its_paths():
    for path in (Path(__file__).parents[1] / "unetlib").rglob("*.py"):
        suggested = r"(?:unetlib [a-z]+(?: [A-Z]+)*|--data) \{(?!quoted\(|flag\()[^}]*"
        assert re.findall(suggested, path.read_text(encoding="utf-8")) == [], path
