"""The quality study: who is tested when, what a cell computes, and what it never computes again."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import ablation, folds, protocol
from benchmarks.folds import Cell, copy_training, figures_of, gain, joined, make_folds, mean, pooled_dice, values
from tests.conftest import SMALL, STRONG
from tests.test_training import same
from unetlib.data.patients import find_cases, read_case
from unetlib.data.split import Split
from unetlib.evaluation.evaluate import evaluate
from unetlib.prediction.inference import Predictor
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import BEST, LATEST, load_checkpoint
from unetlib.runs.training import train
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json, sha256

NAMES = [f"patient-{number:03}" for number in range(70)]
NAMES_OF_STEPS = [step.name for step in ablation.STEPS]


@pytest.fixture
def seventy(monkeypatch, tmp_path):
    """As many patients as the protocol's, in a folder of that many cases and more."""
    cases = [SimpleNamespace(patient=name) for name in [*NAMES[::-1], *NAMES[:5]]]
    monkeypatch.setattr(folds, "find_cases", lambda data: SimpleNamespace(cases=cases))
    return tmp_path


def test_patients_are_in_one_random_order_that_depends_on_their_names_alone(seventy):
    expected = np.random.default_rng([0, 0]).permutation(NAMES).tolist()
    assert folds.shuffled_patients(seventy) == expected
    assert expected != NAMES


def test_folds_are_those_of_the_protocol(seventy):
    patients = folds.shuffled_patients(seventy)
    splits = make_folds(patients)
    assert len(splits) == 5
    assert sorted(name for split in splits for name in split.test) == NAMES  # everybody once
    for number, split in enumerate(splits):
        parts = [set(split.test), set(split.val), set(split.train)]
        assert [len(part) for part in parts] == [14, 8, 48]
        assert set.union(*parts) == set(NAMES)
        assert parts[0] == {patients[place] for place in range(number, 70, 5)}  # dealt in turn
        dealt_next = [patients[place] for place in range((number + 1) % 5, 70, 5)]
        assert parts[1] == set(dealt_next[:8])


def test_the_ablation_leaves_the_test_patients_of_its_fold_alone(seventy):
    split, splits = ablation.ablation_split(seventy), make_folds(folds.shuffled_patients(seventy))
    assert split.test == splits[0].test
    assert set(split.val) == {*splits[0].val, *splits[1].val}
    assert [len(split.train), len(split.val), len(split.test)] == [40, 16, 14]
    assert split.patients() == set(NAMES)
    assert {cell.part for cell in ablation.cells(seventy)} == {"val"}


def test_a_step_of_the_ablation_changes_only_what_it_says(seventy):
    cells = ablation.cells(seventy)
    assert len(cells) == len(ablation.STEPS) == len({cell.name for cell in cells}) == len(set(NAMES_OF_STEPS))
    assert cells[0].recipe == Recipe.published
    for number, (cell, step) in enumerate(zip(cells, ablation.STEPS, strict=True)):
        place = NAMES_OF_STEPS.index(step.after) if step.after else max(0, number - 1)
        now, before = cell.recipe.as_dict(), cells[place].recipe.as_dict()
        differing = {name for name in now if now[name] != before[name]}
        assert differing == set(step.changes), number
        assert place < number or not number
        assert all(now[name] == value for name, value in step.changes.items())
        if cell.trained_as:  # then the network is the same, and only the way to predict differs
            assert differing <= {"mirror", "tune"}
            assert cell.trained_as is cells[place]
        else:
            assert not differing & {"mirror", "tune"}


def test_what_begins_on_phantoms_is_what_follows_them_in_its_walk(seventy):
    begun = {name for name, cell in zip(NAMES_OF_STEPS, ablation.cells(seventy), strict=True) if cell.phantoms}
    assert begun == {name for name in NAMES_OF_STEPS if "phantoms" in name or "epochs" in name}


def test_the_walks_of_the_ablation_end_at_the_two_strong_recipes(seventy):
    recipes = dict(zip(NAMES_OF_STEPS, (cell.recipe for cell in ablation.cells(seventy)), strict=True))
    assert recipes["20 epochs"] == folds.FIRST
    assert recipes["again: 40 epochs"] == Recipe.strong


def test_the_first_strong_recipe_is_the_one_that_was_scored_first():
    known = read_json(folds.MEASURED / "first-fold-0.json")["recipe"]
    assert Recipe(**known).but(precision="auto") == folds.FIRST


def test_a_recipe_begins_with_phantoms_that_were_shown_as_it_shows_patients():
    assert folds.on_phantoms(Recipe.strong.but(seed=1)) == Recipe.strong.but(epochs=10)
    assert folds.on_phantoms(folds.FIRST) == folds.FIRST.but(epochs=10)


def test_the_cells_of_the_protocol_test_every_fold_once(seventy):
    splits = make_folds(folds.shuffled_patients(seventy))
    for arm in protocol.ARMS:
        cells = protocol.cells(seventy, arm)
        assert [cell.split for cell in cells] == (splits[:1] if "seed" in arm else splits)
        assert {cell.part for cell in cells} == {"test"}
        assert {cell.recipe for cell in cells} == {protocol.ARMS[arm]}
        assert {cell.phantoms for cell in cells} == {"published" not in arm and "scratch" not in arm}
    names = [cell.name for arm in protocol.ARMS for cell in protocol.cells(seventy, arm)]
    assert len(set(names)) == len(names)
    for long, short in zip(*(protocol.cells(seventy, arm) for arm in ("published-long", "published")), strict=True):
        assert long.trained_as == short
        assert long.recipe.but(epochs=10) == short.recipe


@pytest.mark.parametrize(("status", "code", "refused"), [("", 0, 0), (" M unetlib/recipe.py", 0, 1), ("", 128, 1)])
def test_test_patients_are_not_scored_before_the_recipe_is_committed(monkeypatch, status, code, refused):
    answer = SimpleNamespace(returncode=code, stdout=status)
    monkeypatch.setattr(folds.subprocess, "run", lambda *_, **__: answer)
    if refused:
        with pytest.raises(SystemExit, match="not committed"):
            folds.require_committed()
    else:
        folds.require_committed()


def result(seed, number=12):
    """The figures of some patients, one of them without a distance."""
    rng = np.random.default_rng(seed)
    rows = {
        f"p{i}": {"dice": rng.random(), "hd95_mm": rng.random() if i else None}
        | {name: float(rng.integers(1, 99)) for name in ("tp", "fp", "fn")}
        for i in range(number)
    }
    return {"patients": rows}


def test_means_and_pooled_dice_equal_a_loop():
    one = result(0)
    rows = list(one["patients"].values())
    assert mean(one) == pytest.approx(sum(row["dice"] for row in rows) / 12)
    assert mean(one, "hd95_mm") == pytest.approx(sum(row["hd95_mm"] for row in rows[1:]) / 11)
    assert "p0" not in values(one, "hd95_mm")
    hits = errors = 0
    for row in rows:
        hits, errors = hits + 2 * row["tp"], errors + row["fp"] + row["fn"]
    assert pooled_dice(one) == pytest.approx(hits / (hits + errors))


def test_a_gain_is_paired_and_its_interval_a_bootstrap_over_patients():
    one, other = result(0), result(1)
    other["patients"] = dict(reversed(other["patients"].items()))  # patients are told by name, not by place
    pairs = [other["patients"][name]["dice"] - one["patients"][name]["dice"] for name in one["patients"]]
    by, interval = gain(one, other)
    assert by == pytest.approx(np.mean(pairs))
    rng, means = np.random.default_rng(5), []
    for _ in range(20_000):
        means.append(np.mean(rng.choice(pairs, len(pairs))))
    np.testing.assert_allclose(interval, np.percentile(means, [2.5, 97.5]), atol=0.015)
    assert gain(one, one)[0] == 0
    del other["patients"]["p3"]
    assert gain(one, other)[0] == pytest.approx((sum(pairs) - pairs[list(one["patients"]).index("p3")]) / 11)


def test_the_folds_of_an_arm_are_one_result():
    one, other = result(0), {"patients": {"q": result(1)["patients"]["p1"]}}
    assert joined([one, other])["patients"] == {**one["patients"], **other["patients"]}


def test_a_copied_training_goes_on_as_a_longer_one(prepared, run, tmp_path):
    longer = SMALL.but(epochs=3)
    copy_training(run, tmp_path / "copy", longer)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    train(prepared, tmp_path / "copy", longer, device="cpu")
    train(prepared, tmp_path / "whole", longer, device="cpu")
    one, other = (load_checkpoint(tmp_path / name / LATEST) for name in ("copy", "whole"))
    assert same(one, other)


def test_a_copied_training_differs_in_the_way_to_predict_alone(strong_prepared, untuned, tmp_path):
    plain = STRONG.but(epochs=4, mirror=False, tune=False)
    copy_training(untuned, tmp_path / "copy", plain)
    before = (tmp_path / "copy" / LATEST).read_bytes()
    assert train(strong_prepared, tmp_path / "copy", plain, device="cpu").epoch == 4
    assert (tmp_path / "copy" / LATEST).read_bytes() == before  # nothing was trained
    copied, original = load_checkpoint(tmp_path / "copy" / BEST), load_checkpoint(untuned / BEST)
    assert same(copied["model"], original["model"])
    assert Recipe(**copied["recipe"]) == plain
    assert not Predictor.open(tmp_path / "copy", "cpu").recipe.mirror


@pytest.fixture
def cell(tall_cohort, tmp_path, monkeypatch):
    """A small cell on the validation patients of a split, whose result lies in a folder of its own."""
    monkeypatch.setattr(folds, "MEASURED", tmp_path / "measured")
    names = sorted({case.patient for case in find_cases(tall_cohort).cases})
    split = Split(tuple(names[4:]), tuple(names[:2]), tuple(names[2:4]))
    return Cell("small", STRONG.but(epochs=1), split, "val")


def test_a_cell_is_measured_once_and_then_read(cell, tall_cohort, tmp_path, monkeypatch):
    work = tmp_path / "work"
    assert cell.progress(work) == "not begun"
    found = cell.measure(tall_cohort, work)
    assert set(found["patients"]) == set(cell.split.val)
    assert (found["part"], found["split"]) == ("val", cell.split.hash)
    assert Recipe(**found["recipe"]) == cell.recipe
    decision = read_json(cell.run(work) / "decision.json")
    assert found["decision"] == decision
    # On the validation patients the chosen decision has just the mean that it was chosen for.
    assert mean(found) == pytest.approx(decision["validation_dice"], abs=1e-9)
    monkeypatch.setattr(Cell, "fit", None)
    monkeypatch.setattr(folds, "evaluate", None)
    assert cell.measure(tall_cohort, work) == found
    assert cell.progress(work).startswith("done, mean Dice")
    edited = {**found, "patients": {}}
    cell.result.write_text(json.dumps(edited))
    assert cell.measure(tall_cohort, work) == edited  # whatever lies there is the result


def test_a_cell_that_predicts_otherwise_is_not_trained_again(cell, tall_cohort, tmp_path, monkeypatch):
    other = Cell("plain", cell.recipe.but(mirror=False, tune=False), cell.split, "val", cell)
    steps, step = [], folds.train
    monkeypatch.setattr(folds, "train", lambda *args, **more: steps.append(args[1].name) or step(*args, **more))
    run = other.fit(tall_cohort, tmp_path / "work")
    assert steps == ["small", "plain"]
    one, two = (load_checkpoint(cell.run(tmp_path / "work").with_name(name) / LATEST) for name in ("small", "plain"))
    assert same({**one, "recipe": 0}, {**two, "recipe": 0})
    assert one["progress"]["seconds"] == two["progress"]["seconds"]
    assert not (run / "decision.json").exists()
    assert "trained" in other.progress(tmp_path / "work")


def test_a_cell_begins_with_the_phantoms_weights_when_it_says_so(cell, tall_cohort, tmp_path, monkeypatch):
    first = cell.fit(tall_cohort, tmp_path / "work")
    assert not read_json(first / "recipe.json").get("start_from")
    monkeypatch.setattr(folds, "pretrained", lambda work, recipe: first)
    begun = replace(cell, name="begun", phantoms=True)
    plain = cell.recipe.but(mirror=False, tune=False)  # it predicts otherwise, and is not trained again
    for one in (begun, replace(begun, name="plain", recipe=plain, trained_as=begun)):
        run = one.fit(tall_cohort, tmp_path / "work")
        assert read_json(run / "recipe.json")["start_from"] == sha256(first / BEST)


def test_the_figures_of_a_patient_equal_a_loop_over_the_slices(trained, cohort, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    evaluate(run, split="val", device="cpu")
    found, predictor = figures_of(run / "evaluation" / "val", cohort), Predictor.open(run, "cpu")
    cases = [case for case in find_cases(cohort).cases if case.patient in Split.load(run / "split.json").val]
    assert set(found) == {case.patient for case in cases}
    for case in cases:
        volume, truth, _ = read_case(case)
        mask, row = predictor.volume(volume.voxels) >= 0.5, found[case.patient]
        dices, false = [], 0
        for z in range(truth.shape[2]):
            p, t = mask[:, :, z], truth[:, :, z]
            if t.any():
                dices.append(2 * (p & t).sum() / (p.sum() + t.sum()))
            else:
                false += int(p.sum())
        assert row["dice"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        assert row["dice_slices"] == pytest.approx(np.mean(dices))
        assert row["false_ml"] == pytest.approx(false * float(np.prod(volume.spacing)) / 1000)
        assert (row["tp"], row["fp"], row["fn"]) == ((mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum())


def test_figures_of_other_patients_and_too_few_patients_are_sentences(cell, tall_cohort, tmp_path, monkeypatch):
    cell.result.parent.mkdir()
    about = {"recipe": cell.recipe.but(precision="fp32").as_dict(), "split": cell.split.hash}
    for change, told in (
        ({"split": "x"}, "holds figures of other patients. Move that folder"),
        ({"recipe": {**about["recipe"], "epochs": 99}}, r"of another recipe \(.*epochs.*Move it away"),
    ):
        cell.result.write_text(json.dumps(about | change))
        with pytest.raises(UnetlibError, match=told):
            cell.read()
    few = find_cases(tall_cohort).cases[:9]
    monkeypatch.setattr(folds, "find_cases", lambda data: SimpleNamespace(cases=few))
    with pytest.raises(UnetlibError, match="holds 9 usable patients; 5 folds need 10"):
        folds.shuffled_patients(tall_cohort)
