"""The study of nnU-Net: its plan, what is run and when, and the scores of its masks."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import race
from studies import nnunet, results
from studies.best import folds_of
from tests.conftest import write_patient
from unetlib.support.files import read_json, write_json

PLAN = {  # as nnU-Net 2.8 writes it for TCGA-LGG, where it matters here
    "configurations": {
        "2d": {
            "batch_size": 49,
            "patch_size": [256, 256],
            "architecture": {
                "arch_kwargs": {
                    "n_stages": 7,
                    "features_per_stage": [32, 64, 128, 256, 512, 512, 512],
                    "kernel_sizes": [[3, 3]] * 7,
                    "strides": [[1, 1]] + [[2, 2]] * 6,
                    "n_conv_per_stage": [2] * 7,
                    "n_conv_per_stage_decoder": [2] * 6,
                }
            },
        }
    }
}


@pytest.fixture
def data(tmp_path):
    """Ten patients: the least for five folds."""
    for index in range(10):
        write_patient(tmp_path / "data", index)
    return tmp_path / "data"


@pytest.fixture
def ran(monkeypatch, tmp_path, data):
    """An nnU-Net that writes the references as its masks; yields it, and the commands that were run."""
    monkeypatch.setattr(results, "TABLE", tmp_path / "results.csv")
    found, calls = nnunet.NnUnet(tmp_path / "env", tmp_path / "work"), []

    def run(words, env, check):
        assert check
        assert Path(env["nnUNet_raw"]).is_absolute()
        calls.append([Path(words[0]).name, *words[1:]])
        if "--no_pp" in words:
            write_json(found.preprocessed / "nnUNetPlans.json", PLAN)
        if calls[-1][0] == "nnUNetv2_train":
            out = Path(env["nnUNet_results"]) / nnunet.NAME / "ShortTrainer__nnUNetPlans__2d" / "fold_0"
            (out / "validation").mkdir(parents=True)
            (out / "seconds.csv").write_text("1,60.5\n2,59.5\n")
            for case in folds_of(data)[0].val:
                reference = data / case / f"{case}_seg.nii.gz"
                shutil.copy(reference, out / "validation" / f"{case}.nii.gz")
            (out / "validation" / "summary.json").write_text("{}")

    monkeypatch.setattr(nnunet, "subprocess", SimpleNamespace(run=run))
    return found, calls


def test_a_plan_is_changed_in_the_size_of_its_slices_alone():
    plan = nnunet.edited(PLAN)["configurations"]["2d"]
    network = plan["architecture"]["arch_kwargs"]
    assert (plan["patch_size"], plan["batch_size"]) == ([128, 128], 8)
    levels = network["n_stages"]
    assert 128 // 2 ** (levels - 1) == 4, "nnU-Net stops at 4 x 4"
    assert {len(network[name]) for name in nnunet.LEVELS} == {levels}
    assert network["features_per_stage"] == [32, 64, 128, 256, 512, 512]
    assert len(network["n_conv_per_stage_decoder"]) == levels - 1
    assert PLAN["configurations"]["2d"]["batch_size"] == 49, "a copy"


def test_it_is_planned_trained_and_scored_once(ran, data):
    found, calls = ran
    nnunet.measure(found, data, 1)
    assert [call[0] for call in calls] == ["nnUNetv2_plan_and_preprocess", "nnUNetv2_preprocess", "nnUNetv2_train"]
    assert read_json(found.preprocessed / "nnUNetPlans.json") == nnunet.edited(PLAN)
    assert (found.preprocessed / "splits_final.json").read_bytes() == (found.raw / "splits_final.json").read_bytes()
    rows = results.read(nnunet.run_name(1))
    assert {*rows.index} == {*folds_of(data)[0].val}
    assert (rows["dice"] == 1).all()
    assert (rows["seconds"] == 120).all()
    nnunet.measure(found, data, 1)
    assert len(calls) == 3
    nnunet.measure(found, data, 3)  # planned already
    assert [call[0] for call in calls[3:]] == ["nnUNetv2_train"]


def test_its_curve_stands_beside_those_of_the_race(ran, data, monkeypatch, tmp_path):
    nnunet.measure(ran[0], data, 3)
    (tmp_path / "page.md").write_text("<!-- nnunet -->\n<!-- end of nnunet -->\n", "utf-8")
    drawn = []
    monkeypatch.setattr(nnunet, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(nnunet, "save", lambda figure, path: drawn.append((figure, path)))
    nnunet.write()
    [(figure, path)] = drawn
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines.pop("nnU-Net 2.8 itself") == [[2.0, 1.0]]
    assert [*lines] == [*race.NAMES.values()]
    assert path == tmp_path / "nnunet.png"
    assert "| 75 | 2 | 9 | 2250 | 1.000 | 1.000 | 1.000 | 0.0 |" in (tmp_path / "page.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [((), []), (("latest",), ["--c"]), (("latest", "final"), ["--val"])],
)
def test_a_training_goes_on_where_it_stopped(ran, data, checkpoints, expected):
    found, calls = ran
    found.results(10).mkdir(parents=True)
    for name in checkpoints:
        (found.results(10) / f"checkpoint_{name}.pth").touch()
    found.train(10)
    assert [word for word in calls[-1] if word.startswith("--")] == expected


def test_a_preparation_that_was_stopped_is_begun_again(ran, data, monkeypatch):
    """nnU-Net's planner copies the splits before it plans."""
    found, calls = ran
    found.preprocessed.mkdir(parents=True)
    (found.preprocessed / "splits_final.json").write_text("[]")
    found.prepare(data)
    assert [call[0] for call in calls] == ["nnUNetv2_plan_and_preprocess", "nnUNetv2_preprocess"]
    found.prepare(data)
    assert len(calls) == 2
