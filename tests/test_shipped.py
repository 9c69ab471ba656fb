"""The run that comes with the library, trained on synthetic patients alone."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from studies.phantoms import FOUR
from tests.conftest import LPS, SMALL, write_patient
from tests.test_sequences import write
from unetlib import Recipe
from unetlib.data.prepare import prepare
from unetlib.evaluation.evaluate import evaluate
from unetlib.networks import build_network
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Predictor
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.first_weights import begin_with
from unetlib.runs.run import SHIPPED, Run
from unetlib.runs.training import open_loop, train
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json, sha256

ROOT = Path(__file__).parents[1]
FITTING = Recipe.strong.but(epochs=1, batch_size=2, precision="fp32", tune=False)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    for index in range(4):
        write_patient(folder / "data", index)
    return prepare(folder / "data", folder / "prepared", Recipe.strong.but(train_fraction=0.5))


def test_its_weights_are_those_that_the_page_of_the_study_names():
    page = (ROOT / "studies" / "PHANTOMS.md").read_text(encoding="utf-8")
    assert re.search(r"SHA-256 `(\w+)`", page).group(1) == sha256(Run(SHIPPED["phantoms"]).best)


def test_it_is_the_strong_recipe_on_phantoms_alone_and_names_no_place_of_the_machine_that_made_it():
    own = {**Recipe.strong.but(epochs=10).as_dict(), "phantoms": False}
    assert Run(SHIPPED["phantoms"]).recipe.as_dict() == own
    assert {case["patient"][:8] for case in Run(SHIPPED["phantoms"]).provenance["cases"].values()} == {"Phantom_"}
    for name in ("recipe_file", "provenance_file"):
        assert read_json(getattr(Run(SHIPPED["phantoms"]), name))["data"] == ""


def test_predict_takes_it_by_name_and_says_what_it_is(there, capsys):
    name = write_patient(there, 0)
    image = there / name / f"{name}_flair.nii.gz"
    (mask,) = predict("phantoms", [image], there / "out", device="cpu")
    assert np.asarray(nib.load(mask).dataobj).shape == nib.load(image).shape
    assert "phantoms: These weights have seen synthetic patients alone" in capsys.readouterr().out


def test_it_finds_a_bright_ball_in_a_head_that_it_has_never_seen(there):
    x, y, z = np.indices((120, 140, 20)) - np.array([60, 70, 10])[:, None, None, None]
    head, ball = (x / 50) ** 2 + (y / 62) ** 2 < 1, (x - 20) ** 2 + y**2 + (6 * z) ** 2 < 16**2
    voxels = (300 * head + 300 * (ball & head) + np.random.default_rng(0).normal(0, 10, head.shape) * head).clip(0)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), LPS @ np.diag([1.2, 1.2, 5, 1])), there / "head.nii.gz")
    (mask,) = predict("phantoms", [there / "head.nii.gz"], there / "out", device="cpu")
    found = np.asarray(nib.load(mask).dataobj) > 0
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.7


def test_scores_of_it_lie_in_the_working_directory_and_change_no_folder_of_its_name(there):
    data = there / "phantoms"
    names = {write_patient(data, index) for index in range(2)}
    summary = evaluate("phantoms", data, device="cpu")
    assert summary["patients"] == 2
    assert (there / "phantoms-evaluation" / "data-phantoms" / "summary.json").exists()
    assert {path.name for path in data.iterdir()} == names
    assert not (SHIPPED["phantoms"] / "evaluation").exists()
    assert evaluate("phantoms", data, device="cpu") == summary


def test_a_copy_of_it_says_what_it_is_and_as_a_further_run_it_leaves_no_folder(there, capsys):
    write_patient(there / "data", 0)
    copy = shutil.copytree(SHIPPED["phantoms"], there / "copy")
    summary = evaluate([copy, "phantoms"], there / "data", device="cpu")
    told = "These weights have seen synthetic patients alone"
    assert f"{copy}: {told}" in capsys.readouterr().out
    assert summary["note"].startswith(f"{copy}, phantoms: {told}")
    assert {path.name for path in there.iterdir()} == {"data", "copy"}


def test_a_refused_evaluation_leaves_no_folder(there):
    name, known = write_patient(there / "one", 0), Run(SHIPPED["phantoms"]).split.train[0]
    for path in (there / "one" / name).iterdir():
        (there / "known").mkdir(exist_ok=True)
        shutil.copy(path, there / "known" / path.name.replace(name, known))
    before = {*there.iterdir()}
    refused = {"no patients": [], "missing": [there / "missing"], "only patients whom phantoms": [there / "known"]}
    for told, data in refused.items():
        with pytest.raises(UnetlibError, match=told):
            evaluate("phantoms", *data, device="cpu")
    assert {*there.iterdir()} == before


def test_a_run_of_that_name_in_the_working_directory_comes_first(there, run):
    shutil.copytree(run, there / "phantoms")
    assert Run.to_read("phantoms").folder == Path("phantoms")
    assert Predictor.open("phantoms", "cpu").recipe.width == SMALL.width


@pytest.mark.parametrize("begin", ["by its name", "by the recipe"])
def test_a_training_begins_with_its_weights(data, tmp_path, begin):
    recipe = FITTING.but(phantoms=begin == "by the recipe")
    start = Run.to_read("phantoms") if begin == "by its name" else None
    loop = open_loop(data, Run(tmp_path / "run"), recipe, start_from=start)
    expected = load_checkpoint(Run(SHIPPED["phantoms"]).best)["model"]
    for name, weight in loop.network.module.state_dict().items():
        assert torch.equal(weight, expected[name])
    about = Run(tmp_path / "run").about()
    assert about["start_from"] == sha256(Run(SHIPPED["phantoms"]).best)
    assert len(Run(tmp_path / "run").provenance["earlier"]) == 109


def test_without_them_it_begins_at_random(data, tmp_path):
    loop = open_loop(data, Run(tmp_path / "run"), FITTING.but(phantoms=False))
    name, weight = next(iter(loop.network.module.state_dict().items()))
    assert not torch.equal(weight, load_checkpoint(Run(SHIPPED["phantoms"]).best)["model"][name])
    assert Run(tmp_path / "run").about()["start_from"] is None


def test_a_stopped_training_goes_on_without_reading_them_again(data, tmp_path):
    train(data, tmp_path / "whole", FITTING, "cpu", threads=1, max_steps=3)
    for _ in range(3):
        train(data, tmp_path / "parts", FITTING, "cpu", threads=1, max_steps=1)
    whole, parts = (load_checkpoint(tmp_path / name / "latest_checkpoint.pth")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_network_that_they_do_not_fit_is_a_sentence(data, tmp_path):
    with pytest.raises(UnetlibError, match=r"^phantoms has another network .*width: 16 -> 8.*--no-phantoms"):
        train(data, tmp_path / "run", FITTING.but(width=8), "cpu")


def test_the_weights_for_four_sequences_are_those_of_their_page_and_recipe():
    page = (ROOT / "studies" / "PHANTOMS.md").read_text(encoding="utf-8")
    run = Run(SHIPPED["phantoms-four"])
    assert f"SHA-256 `{sha256(run.best)}`" in page
    fields = {"phantoms": False, "labels": "brats2021", "precision": "auto"}
    assert run.recipe == Recipe.strong.but(epochs=10, **FOUR, **fields)
    assert {case["patient"][:8] for case in run.provenance["cases"].values()} == {"Phantom_"}
    assert read_json(run.recipe_file)["data"] == read_json(run.provenance_file)["data"] == ""
    network, _, _ = run.load()
    assert network(torch.zeros(1, 4, 96, 96)).shape == (1, 3, 96, 96)


@pytest.mark.parametrize("sequences", ["flair t1 t1ce t2", "t1ce"])
def test_a_training_with_other_sequences_and_regions_begins_with_them(there, sequences):
    for index in range(4):
        write(there / "data", index)
    recipe = FITTING.but(modalities=sequences, regions=FOUR["regions"], train_fraction=0.5)
    slices = prepare(there / "data", there / "prepared", recipe, workers=1)
    loop = open_loop(slices, Run(there / "run"), recipe)
    expected = load_checkpoint(Run(SHIPPED["phantoms-four"]).best)["model"]
    places = [FOUR["modalities"].split().index(name) for name in sequences.split()]
    for name, weight in loop.network.module.state_dict().items():
        assert torch.equal(weight, expected[name][:, places] if name == "down.0.0.weight" else expected[name])


def test_a_patient_with_four_sequences_is_predicted_by_their_name(there):
    id = write(there / "data", 1)
    (mask,) = predict("phantoms-four", [there / "data"], there / "out", device="cpu")
    assert mask.name == f"{id}_mask.nii.gz"
    found = np.asarray(nib.load(mask).dataobj)
    assert found.shape == nib.load(there / "data" / id / f"{id}_flair.nii.gz").shape
    assert set(np.unique(found)) <= {0, 1, 2, 4}


def test_weights_go_to_the_sequences_and_regions_that_they_are_for_in_any_order(there):
    changes = {"modalities": "t1 t1ce t2 flair", "regions": "enhancing core whole", "labels": "brats2021"}
    recipe, four = FITTING.but(**changes), Run(SHIPPED["phantoms-four"])
    network = build_network(recipe, 4, 3)
    begin_with(network, four, recipe, None)
    images = torch.rand(2, 4, 96, 96)
    with torch.inference_mode():
        found, expected = network.eval()(images), four.load()[0](images[:, [3, 0, 1, 2]])
    torch.testing.assert_close(found, expected[:, [2, 1, 0]])
