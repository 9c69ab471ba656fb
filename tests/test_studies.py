"""The study of the recipes: who is tested when, what a cell computes, and what it never computes again."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from studies import ablation, cells, networks, phantoms, protocol, regions, results, zero_shot
from studies.cells import Cell, copy_training, make_folds, scores_of
from studies.results import DICE, SCORES, gain, pooled_dice
from tests.conftest import BEST, LATEST, SMALL, STRONG
from tests.test_training import same
from unetlib.data.patients import find_cases, read_case
from unetlib.data.split import Split
from unetlib.evaluation.evaluate import evaluate
from unetlib.prediction.predictor import Predictor
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv, read_json, sha256, write_csv

ROOT = Path(__file__).parents[1]
NAMES = [f"patient-{number:03}" for number in range(70)]
NAMES_OF_STEPS = [step.name for step in ablation.STEPS]


def pretend(monkeypatch, folder, patients):
    """Let the study find a case of each of these patients in a folder."""
    found = SimpleNamespace(cases=[SimpleNamespace(patient=name) for name in patients])
    monkeypatch.setattr(cells, "find_cases", lambda data: found)
    return folder


@pytest.fixture
def seventy(monkeypatch, tmp_path):
    """As many patients as the protocol's, in a folder of that many cases and more."""
    return pretend(monkeypatch, tmp_path, [*NAMES[::-1], *NAMES[:5]])


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("target", ["study", "oracles"])
def test_make_says_in_one_line_which_folder_is_missing_before_it_does_anything(target):
    # An outer make names itself in these, and an inner one then prints the folders that it enters and leaves.
    outer = {"DATA", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(["make", "-n", target], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"make {target} DATA=folder" in done.stderr


def test_patients_are_in_one_random_order_that_depends_on_their_names_alone(seventy):
    expected = np.random.default_rng([0, 0]).permutation(NAMES).tolist()
    assert cells.shuffled_patients(seventy) == expected
    assert expected != NAMES


def test_folds_are_those_of_the_protocol(seventy):
    patients = cells.shuffled_patients(seventy)
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
    split, splits = ablation.ablation_split(seventy), make_folds(cells.shuffled_patients(seventy))
    assert split.test == splits[0].test
    assert set(split.val) == {*splits[0].val, *splits[1].val}
    assert [len(split.train), len(split.val), len(split.test)] == [40, 16, 14]
    assert split.patients() == set(NAMES)
    assert {cell.part for cell in ablation.cells(seventy)} == {"val"}


def test_a_step_of_the_ablation_changes_only_what_it_says(seventy):
    own = ablation.cells(seventy)
    assert len(own) == len(ablation.STEPS) == len({cell.name for cell in own}) == len(set(NAMES_OF_STEPS))
    assert own[0].recipe == Recipe.published
    for number, (cell, step) in enumerate(zip(own, ablation.STEPS, strict=True)):
        place = NAMES_OF_STEPS.index(step.after) if step.after else max(0, number - 1)
        now, before = cell.recipe.as_dict(), own[place].recipe.as_dict()
        differing = {name for name in now if now[name] != before[name]}
        assert differing == set(step.changes), number
        assert place < number or not number
        assert all(now[name] == value for name, value in step.changes.items())
        if cell.trained_as:  # then the network is the same, and only the way to predict differs
            assert differing <= {"mirror", "tune"}
            assert cell.trained_as is own[place]
        else:
            assert not differing & {"mirror", "tune"}


def test_what_begins_on_phantoms_is_what_follows_them_in_its_walk(seventy):
    begun = {name for name, cell in zip(NAMES_OF_STEPS, ablation.cells(seventy), strict=True) if cell.phantoms}
    assert begun == {name for name in NAMES_OF_STEPS if "phantoms" in name or "epochs" in name}


def test_the_walks_of_the_ablation_end_at_the_two_strong_recipes(seventy):
    recipes = dict(zip(NAMES_OF_STEPS, (cell.recipe for cell in ablation.cells(seventy)), strict=True))
    assert recipes["20 epochs"] == cells.FIRST
    assert recipes["again: 40 epochs"] == cells.STRONG


def test_the_first_strong_recipe_is_the_one_that_was_scored_first():
    row = results.read("first-fold-0").iloc[0]
    newer = {name: str(value) for name, value in Recipe().as_dict().items()}  # for fields that its row lacks
    theirs = {name: row.get(f"recipe.{name}") or newer[name] for name in cells.FIRST.as_dict()} | {"precision": "auto"}
    assert theirs == {name: str(value) for name, value in cells.FIRST.as_dict().items()}


def test_a_recipe_begins_with_phantoms_that_were_shown_as_it_shows_patients():
    assert cells.on_phantoms(cells.STRONG.but(seed=1)) == cells.STRONG.but(epochs=10)
    assert cells.on_phantoms(cells.FIRST) == cells.FIRST.but(epochs=10)


@pytest.fixture
def made(seventy, monkeypatch):
    """What `pretrained` makes and trains, in the order of the calls."""
    made = []
    monkeypatch.setattr(cells, "make_cohort", lambda folder, *_, **more: made.append((folder.name, more)))
    monkeypatch.setattr(Cell, "fit", lambda cell, data, work: made.append((cell.name, cell.recipe, data.name)))
    return made


def test_the_shipped_weights_learn_from_flair_phantoms(made, seventy):
    cells.pretrained(seventy, cells.STRONG)
    cells.pretrained(seventy, cells.STRONG.but(width=8, seed=3))
    cohort = ("phantoms", {"varied": True, "modalities": "flair"})
    trained = cells.STRONG.but(epochs=10)
    assert made == [
        cohort,
        ("phantoms", trained, "phantoms"),
        cohort,
        ("phantoms-8", trained.but(width=8), "phantoms"),
    ]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (phantoms.FOUR, "phantoms-flair-t1-t1ce-t2-whole-core-enhancing-0.25"),
        ({"regions": "whole core enhancing"}, "phantoms-whole-core-enhancing"),
        ({"modalities": "t1ce"}, "phantoms-t1ce"),
    ],
)
def test_other_sequences_and_regions_learn_from_phantoms_that_have_them(made, seventy, fields, name):
    cells.pretrained(seventy, cells.STRONG.but(**fields, seed=3))
    cohort = ("phantoms-four", {"varied": True, "modalities": "flair t1 t1ce t2"})
    labels = {"labels": "brats2021"} if "regions" in fields else {}
    assert made == [cohort, (name, cells.STRONG.but(**fields, **labels, epochs=10), "phantoms-four")]


def test_the_cells_of_the_protocol_test_every_fold_once(seventy):
    splits = make_folds(cells.shuffled_patients(seventy))
    for arm in protocol.ARMS:
        own = protocol.cells(seventy, arm)
        assert [cell.split for cell in own] == (splits[:1] if "seed" in arm else splits)
        assert {cell.part for cell in own} == {"test"}
        assert {cell.recipe for cell in own} == {protocol.ARMS[arm]}
        assert {cell.phantoms for cell in own} == {"published" not in arm and "scratch" not in arm}
    names = [cell.name for arm in protocol.ARMS for cell in protocol.cells(seventy, arm)]
    assert len(set(names)) == len(names)
    for long, short in zip(*(protocol.cells(seventy, arm) for arm in ("published-long", "published")), strict=True):
        assert long.trained_as == short
        assert long.recipe.but(epochs=10) == short.recipe


@pytest.fixture
def seventy_of_lgg(monkeypatch, tmp_path):
    """The 70 patients whom the committed study tested, by their names alone."""
    rows = read_csv(results.TABLE)
    return pretend(monkeypatch, tmp_path, {row["patient"] for row in rows if row["run"].startswith("strong-fold")})


@pytest.mark.parametrize(("status", "code", "refused"), [("", 0, 0), (" M unetlib/recipe.py", 0, 1), ("", 128, 1)])
def test_test_patients_are_not_scored_before_the_recipe_is_committed(monkeypatch, status, code, refused):
    answer = SimpleNamespace(returncode=code, stdout=status)
    monkeypatch.setattr(cells.subprocess, "run", lambda *_, **__: answer)
    if refused:
        with pytest.raises(SystemExit, match="not committed"):
            cells.require_committed()
    else:
        cells.require_committed()


def scores(seed, number=12):
    """The scores of some patients, one of them without a distance, as an evaluation gives them."""
    rng = np.random.default_rng(seed)
    return {
        f"p{i}": {name: rng.random() for name in SCORES}
        | {"hd95": rng.random() if i else None}
        | {name: int(rng.integers(1, 99)) for name in ("tp", "fp", "fn")}
        for i in range(number)
    }


ABOUT = {"seconds": 1.5, "threads": 2, "seconds_to_predict": 0.1}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of results that is not there yet."""
    monkeypatch.setattr(results, "TABLE", tmp_path / "results.csv")
    return results.TABLE


def written(*many):
    for number, patients in enumerate(many):
        results.append(f"run-{number}", patients, ABOUT)
    return [results.read(f"run-{number}") for number in range(len(many))]


def test_the_table_gives_back_what_was_written_to_the_last_digit(table):
    assert results.read("run-0") is None
    one, other = scores(0), scores(1, 3)
    for expected, found in zip((one, other), written(one, other), strict=True):
        assert list(found.index) == list(expected)
        for name, row in expected.items():
            assert {key: None if np.isnan(found.loc[name, key]) else found.loc[name, key] for key in SCORES} == row
        assert results.seconds_of_training(found) == 3.0


def test_a_run_is_recorded_once_and_a_new_column_leaves_the_old_rows_as_they_are(table):
    before = written(scores(0))[0]
    results.append("run-0", scores(1), ABOUT)
    results.append("run-1", scores(1), {**ABOUT, "recipe.new": True})
    pd.testing.assert_frame_equal(results.read("run-0").drop(columns="recipe.new"), before)
    assert set(results.read("run-0")["recipe.new"]) == {""}
    assert set(results.read("run-1")["recipe.new"]) == {"True"}


def test_a_table_names_each_machine_on_which_its_runs_were_measured_with_its_days(table):
    for name, day, load in (("a-0", 29, 0.1), ("a-1", 28, 2.0), ("b-0", 27, 3.0)):
        results.append(name, scores(0), {**ABOUT, "machine": f"2026-11-{day}, Xeon, load average {load}, Linux"})
    results.append("a-2", scores(0), {**ABOUT, "machine": "2026-11-30, EPYC, Linux"})
    assert results.measured_on("a-") == "2026-11-28 to 2026-11-29, Xeon, Linux; 2026-11-30, EPYC, Linux"


def test_a_patient_who_fails_is_named_with_what_went_wrong(table):
    low = {"dice": 0.1, "precision": 0.9, "recall": 0.05, "tp": 1000, "fn": 3000}
    rows = {"fine": dict.fromkeys(SCORES, 0.9), "failing": dict.fromkeys(SCORES, 0.9) | low}
    results.append("run", rows, {**ABOUT, "decision.smallest_ml": 0.3})
    assert protocol.failures(results.read("run"), "strong").splitlines()[2:] == [
        "- failing: Dice 0.10, missed (precision 0.90, recall 0.05); 4 thousand voxels; "
        "components below 0.3 ml were dropped."
    ]


def test_many_may_record_at_the_same_time(table):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: results.append(f"run-{number}", scores(number, 3), ABOUT), range(16)))
    assert [len(results.read(f"run-{number}")) for number in range(16)] == [3] * 16


def test_means_and_pooled_dice_equal_a_loop(table):
    rows = scores(0)
    (one,) = written(rows)
    assert one[DICE].mean() == pytest.approx(sum(row["dice"] for row in rows.values()) / 12)
    assert one["hd95"].mean() == pytest.approx(sum(rows[f"p{i}"]["hd95"] for i in range(1, 12)) / 11)
    hits = errors = 0
    for row in rows.values():
        hits, errors = hits + 2 * row["tp"], errors + row["fp"] + row["fn"]
    assert pooled_dice(one) == pytest.approx(hits / (hits + errors))


def test_a_gain_is_paired_and_its_interval_a_bootstrap_over_patients(table):
    one, other = written(scores(0), dict(reversed(scores(1).items())))  # patients are matched by name, not by place
    pairs = [other.loc[name, "dice"] - one.loc[name, "dice"] for name in one.index]
    by, interval = gain(one, other)
    assert by == pytest.approx(np.mean(pairs))
    rng, means = np.random.default_rng(5), []
    for _ in range(20_000):
        means.append(np.mean(rng.choice(pairs, len(pairs))))
    np.testing.assert_allclose(interval, np.percentile(means, [2.5, 97.5]), atol=0.015)
    assert gain(one, one)[0] == 0
    assert gain(one, other.drop("p3"))[0] == pytest.approx((sum(pairs) - pairs[3]) / 11)


def test_the_committed_tables_are_those_of_the_committed_results(seventy_of_lgg):
    """What `make study` prints of `results.csv` stands in the pages; no real patient is needed for it."""
    steps = ablation.cells(seventy_of_lgg)
    assert ablation.table([step.result() for step in steps]) in ablation.PAGE.read_text("utf-8")
    page, done = cells.PAGE.read_text("utf-8"), protocol.finished(seventy_of_lgg)
    assert [arm for arm in protocol.ARMS if arm not in done] == ["strong-scratch"]
    for block in protocol.tables(done, protocol.untouched(seventy_of_lgg)):
        assert block in page
    assert protocol.failures(pd.concat(done["strong"]), "strong") in page
    measured = {(number, cell.phantoms): cell.result() for number, cell in zero_shot.curve(seventy_of_lgg)}
    assert zero_shot.curve_table(measured) in page
    zeros = {name: results.read(f"zero-shot-{name.replace(' ', '-')}") for name in ("looked at", "others")}
    assert zero_shot.zero_table(zeros) in page
    arms = [name for arm in networks.ARMS for name in (arm, *(one for one, of in networks.AGAIN.items() if of == arm))]
    folds = {arm: [results.read(f"networks-{arm}-fold-{fold}") for fold in range(regions.FOLDS)] for arm in arms}
    everyone = {arm: pd.concat(own) for arm, own in folds.items()}
    seen = ("Brats18_2013_23", "Brats18_CBICA_AQO", "Brats18_CBICA_AQP")  # on whom the rates were chosen
    page, readme = (path.read_text("utf-8") for path in (networks.PAGE, results.TABLE.parents[1] / "README.md"))
    for some in (everyone, {arm: own.drop(index=list(seen)) for arm, own in everyone.items()}):
        assert networks.compared(some) in page
    for arm, own in everyone.items():
        against = results.gain_text(everyone["unet"], own) if arm != "unet" else ""
        assert f"| {regions.mean_text(own[DICE])} | {f'{against} ' if against else ''}|" in readme
    for name, pages in (("ablation-", ablation), ("networks-", networks), ("nnunet-", networks), ("regions-", regions)):
        assert f"; {results.measured_on(name)}" in pages.PAGE.read_text("utf-8")


def test_a_copied_training_goes_on_as_a_longer_one(prepared, run, tmp_path):
    longer = SMALL.but(epochs=3)
    copy_training(Run(run), Run(tmp_path / "copy"), longer)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    train(prepared, tmp_path / "copy", longer, device="cpu")
    train(prepared, tmp_path / "whole", longer, device="cpu")
    one, other = (load_checkpoint(tmp_path / name / LATEST) for name in ("copy", "whole"))
    assert same(one, other)


def test_a_copied_training_differs_in_the_way_to_predict_alone(strong_prepared, untuned, tmp_path):
    plain = STRONG.but(epochs=4, mirror=False, tune=False)
    copy_training(Run(untuned), Run(tmp_path / "copy"), plain)
    before = (tmp_path / "copy" / LATEST).read_bytes()
    assert train(strong_prepared, tmp_path / "copy", plain, device="cpu").epoch == 4
    assert (tmp_path / "copy" / LATEST).read_bytes() == before  # nothing was trained
    copied, original = load_checkpoint(tmp_path / "copy" / BEST), load_checkpoint(untuned / BEST)
    assert same(copied["model"], original["model"])
    assert Recipe(**copied["recipe"]) == plain
    assert not Predictor.open(tmp_path / "copy", "cpu").recipe.mirror


@pytest.fixture
def cell(tall_cohort, table):
    """A small cell on the validation patients of a split, whose result goes to a table of its own."""
    names = sorted({case.patient for case in find_cases(tall_cohort).cases})
    split = Split(tuple(names[4:]), tuple(names[:2]), tuple(names[2:4]))
    return Cell("small", STRONG.but(epochs=1), split, "val")


def test_a_cell_is_measured_once_and_then_read(cell, tall_cohort, tmp_path, monkeypatch):
    work = tmp_path / "work"
    assert cell.progress(work) == "not begun"
    found = cell.measure(tall_cohort, work)
    assert set(found.index) == set(cell.split.val)
    first = found.iloc[0]
    assert (first["part"], first["split"]) == ("val", cell.split.hash[:12])
    assert {name: first[f"recipe.{name}"] for name in ("epochs", "loss", "mirror")} == {
        "epochs": "1",
        "loss": "dice+bce",
        "mirror": "True",
    }
    decision = read_json(cell.run(work).decision_file)
    for name in ("threshold", "smallest_ml", "validation_dice"):
        assert float(first[f"decision.{name}"]) == decision[name]
    # On the validation patients the chosen decision has just the mean that it was chosen for.
    assert found[DICE].mean() == pytest.approx(decision["validation_dice"], abs=1e-9)
    monkeypatch.setattr(Cell, "fit", None)
    monkeypatch.setattr(cells, "evaluate", None)
    pd.testing.assert_frame_equal(cell.measure(tall_cohort, work), found)
    assert cell.progress(work).startswith("done, mean Dice")
    rows = read_csv(results.TABLE)
    write_csv(results.TABLE, rows[:1], rows[0])
    assert len(cell.measure(tall_cohort, work)) == 1  # whatever lies there is the result


def test_a_cell_of_several_members_is_measured_and_tells_how_far_it_is(cell, tall_cohort, tmp_path):
    one = Cell("members", cell.recipe.but(members=2), cell.split, "val")
    train_one = replace(one, recipe=one.recipe.but(epochs=1))
    found = train_one.measure(tall_cohort, tmp_path)
    run = one.run(tmp_path)
    epochs = [load_checkpoint(member.best)["epoch"] for member in run.members]
    assert found.iloc[0]["epoch"] == " ".join(map(str, epochs))
    spent = sum(load_checkpoint(member.latest)["progress"]["seconds"] for member in run.members)
    assert float(found.iloc[0]["seconds"]) == pytest.approx(spent, abs=0.06)
    assert one.result() is not None
    results.TABLE.unlink()
    assert one.progress(tmp_path) == "trained"
    shutil.rmtree(run.member(1).folder)
    assert one.progress(tmp_path) == "member 1 of 2, epoch 1 of 1"


def test_a_cell_of_volumes_is_measured(cell, tall_cohort, tmp_path):
    recipe = Recipe.volume.but(image_size=32, width=2, depth=2, epochs=1, tune=False, precision="fp32")
    found = Cell("volumes", recipe, cell.split, "val").measure(tall_cohort, tmp_path)
    assert (found["seconds_to_predict"].astype(float) > 0).all()


def test_a_cell_that_predicts_otherwise_is_not_trained_again(cell, tall_cohort, tmp_path, monkeypatch):
    other = Cell("plain", cell.recipe.but(mirror=False, tune=False), cell.split, "val", cell)
    steps, step = [], cells.run_recipe
    spy = lambda *args, **more: steps.append(args[2].folder.name) or step(*args, **more)  # noqa: E731
    monkeypatch.setattr(cells, "run_recipe", spy)
    run = other.fit(tall_cohort, tmp_path / "work").folder
    assert steps == ["small", "plain"]
    one, two = (
        load_checkpoint(cell.run(tmp_path / "work").folder.with_name(name) / LATEST) for name in ("small", "plain")
    )
    assert same({**one, "recipe": 0}, {**two, "recipe": 0})
    assert one["progress"]["seconds"] == two["progress"]["seconds"]
    assert not (run / "decision.json").exists()
    assert "trained" in other.progress(tmp_path / "work")


def test_a_cell_begins_with_the_phantoms_weights_when_it_says_so(cell, tall_cohort, tmp_path, monkeypatch):
    first = cell.fit(tall_cohort, tmp_path / "work")
    assert not read_json(first.recipe_file).get("start_from")
    monkeypatch.setattr(cells, "pretrained", lambda work, recipe: first)
    begun = replace(cell, name="begun", phantoms=True)
    plain = cell.recipe.but(mirror=False, tune=False)  # it predicts otherwise, and is not trained again
    for one in (begun, replace(begun, name="plain", recipe=plain, trained_as=begun)):
        run = one.fit(tall_cohort, tmp_path / "work").folder
        assert read_json(run / "recipe.json")["start_from"] == sha256(first.best)


def test_the_scores_of_a_patient_equal_a_loop_over_the_slices(trained, cohort, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    evaluate(run, split="val", device="cpu")
    found, predictor = scores_of(run / "evaluation" / "val", cohort), Predictor.open(run, "cpu")
    cases = [case for case in find_cases(cohort).cases if case.patient in Split.load(run / "split.json").val]
    assert set(found) == {case.patient for case in cases}
    for case in cases:
        volume, truth, _ = read_case(case)
        mask, row = predictor.volume(volume.voxels)[0] >= 0.5, found[case.patient]
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


def test_results_of_other_patients_or_recipes_and_too_few_patients_are_sentences(cell, tall_cohort, monkeypatch):
    own = {f"recipe.{name}": str(value) for name, value in cell.recipe.but(precision="bf16").as_dict().items()}
    for change, told in (
        ({"split": "x"}, "holds other patients. Move it away"),
        (
            {"recipe.epochs": "99"},
            r"small of another recipe \(recipe.epochs: 99 -> 1\). Delete its rows to measure anew",
        ),
        ({"recipe.epochs": ""}, r"\(recipe.epochs: 10 -> 1\)"),  # a field that the row lacks has its published value
    ):
        results.TABLE.unlink(missing_ok=True)
        results.append("small", scores(0, 2), {**ABOUT, "split": cell.split.hash[:12], **own, **change})
        with pytest.raises(UnetlibError, match=told):
            cell.result()
    pretend(monkeypatch, tall_cohort, NAMES[:9])
    with pytest.raises(UnetlibError, match="holds 9 usable patients; 5 folds need 10"):
        cells.shuffled_patients(tall_cohort)
