import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import SMALL, write_patient
from unetlib.course import start as course
from unetlib.data.patients import find_cases
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.data.split import Split, make_split
from unetlib.evaluation.table import read_patients
from unetlib.phantom.cohort import make_cohort
from unetlib.runs.training import open_loop
from unetlib.support.errors import UnetlibError


def test_the_chapters_start_with_the_folder_that_is_named(data, tmp_path, capsys):
    opened = course.start(data, tmp_path / "work")
    assert len(opened.cohort.cases) == 3
    assert not opened.synthetic
    assert opened.prepared.parent.parent == tmp_path / "work"
    assert opened.prepared.parent.name.startswith("mine-"), "and another folder of that name has another place"
    assert opened.recipe.width == course.WIDTH
    assert "synthetic" not in opened.note
    assert "torch" in capsys.readouterr().out


def test_the_environment_variable_names_the_folder_too(data, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(data))
    assert course.start(None, tmp_path / "work").data == data


@pytest.mark.parametrize("named", [None, ""])
def test_an_empty_variable_is_none(tmp_path, monkeypatch, named):
    monkeypatch.setenv("COURSE_DATA", "")
    monkeypatch.setattr(course, "FULL", replace(course.FULL, patients=1))
    assert course.start(named, tmp_path).synthetic


def test_a_chapter_that_finds_its_cohort_does_not_load_the_atlas():
    code = "import sys, unetlib.course.start\n"
    code += "assert not [name for name in sys.modules if name.partition('.')[0] == 'nilearn']"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_folders_of_one_name_are_kept_apart(data, tmp_path):
    write_patient(tmp_path / "other" / "mine", 5)
    places = {course.start(folder, tmp_path / "work").work for folder in (data, tmp_path / "other" / "mine")}
    assert len(places) == 2
    assert course.start(data, tmp_path / "work").work in places


def test_a_damaged_first_file_does_not_stop_the_course(data, tmp_path):
    first = sorted(data.glob("*/*_flair.nii.gz"))[0]
    first.write_bytes(first.read_bytes()[:50])
    assert len(course.start(data, tmp_path / "work").cohort.cases) == 3


@pytest.fixture
def asked(monkeypatch):
    """The calls that make a cohort, which has one patient here whatever is asked for."""
    calls = []
    monkeypatch.setattr(course, "make_cohort", lambda *call: calls.append(call) or make_cohort(call[0], 1, workers=1))
    return calls


def test_without_data_the_embedded_cohort_is_made_once(tmp_path, asked):
    opened = course.start(work=tmp_path)
    assert asked == [(tmp_path / "synthetic" / "cohort", 24)]
    assert opened.synthetic
    assert opened.note.startswith("synthetic images")


def test_a_short_course_computes_less_in_a_folder_of_its_own_and_says_so(data, tmp_path, monkeypatch, asked, capsys):
    full = course.start(data, tmp_path)
    assert "short" not in capsys.readouterr().out
    monkeypatch.setenv("COURSE_SHORT", "1")
    short = course.start(data, tmp_path)
    assert short.work == tmp_path / "short" / full.work.name
    assert "**A short course**" in capsys.readouterr().out
    assert course.start(work=tmp_path).work == tmp_path / "short" / "synthetic"
    assert asked == [(tmp_path / "short" / "synthetic" / "cohort", short.length.patients)]
    assert all(getattr(short.length, name) < value for name, value in vars(full.length).items())
    assert (short.recipe.epochs, short.strong.epochs) == (short.length.epochs, short.length.strong_epochs)
    assert (full.recipe.epochs, full.strong.epochs) == (full.length.epochs, full.length.strong_epochs)
    assert short.recipe.but(epochs=full.recipe.epochs) == full.recipe, "and differs in nothing else"


@pytest.mark.parametrize(("value", "short"), [("1", True), ("0", False), ("", False), (None, False)])
def test_the_variable_asks_for_a_short_course(monkeypatch, value, short):
    if value is not None:
        monkeypatch.setenv("COURSE_SHORT", value)
    assert course.is_short() == short


def test_what_is_shown_stands_on_top(data, tmp_path, capsys):
    opened = course.start(data, tmp_path / "work")
    course.introduce(course.Course(opened.data, opened.work, opened.cohort, synthetic=True))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(">")]
    assert "real MRI**, 3 patients in `mine`" in told[0]
    assert "synthetic images**, 3 patients" in told[1]
    assert all("never for clinical use" in text for text in told)
    assert not any(str(tmp_path) in text for text in told)


@pytest.fixture
def climber(data, tmp_path):
    """A course of six small patients and the recipe to begin with."""
    for index in range(3, 6):
        write_patient(data, index)
    opened = course.start(data, tmp_path / "work")
    prepare(opened.data, opened.prepared, SMALL.but(split_seed=3), workers=1)
    return opened, SMALL.but(learning_rate=1e-2)


def test_a_step_is_trained_and_validated_on_the_split_of_the_course(climber, capsys):
    opened, recipe = climber
    step = course.climb(opened, "published", recipe, slices=200)
    split = Split.load(opened.prepared / "split.json")
    assert split != make_split(split.patients()), "or the test shows nothing"
    assert Split.load(step.run.folder / "split.json") == split
    rows = {row["patient"]: float(row["dice"]) for row in read_patients(step.run.folder / "evaluation" / "val")}
    assert step.dices == rows
    assert step.dices.keys() == set(split.val)
    assert step.dice == pytest.approx(np.mean(list(rows.values())))
    assert not (step.run.folder / "evaluation" / "summary.json").exists(), "test patients are not scored"
    assert f"validation Dice {step.dice:.3f}" in capsys.readouterr().out


def test_every_step_shows_the_same_number_of_slices(climber, capsys):
    opened, recipe = climber
    first = course.climb(opened, "first", recipe, slices=64)
    second = course.climb(opened, "all", recipe.but(slices="all", balance=True), 64, first)
    shown = [step.recipe.epochs * open_loop(step.data, step.run, step.recipe).shown for step in (first, second)]
    assert shown == [64, 72]  # 4 patients: 16 slices with tumour, 8 without
    told = capsys.readouterr().out
    assert "all: balance: False -> True, epochs: 4 -> 3, slices: tumour -> all" in told
    assert f"({second.dice - first.dice:+.3f})" in told
    np.testing.assert_allclose(second.gains(first).mean(), second.dice - first.dice)


def test_a_step_is_trained_once_and_stays_where_it_was_when_the_recipe_changes(climber, monkeypatch, capsys):
    opened, recipe = climber
    first = course.climb(opened, "first", recipe, slices=1)
    assert first.recipe.epochs == 1, "one at least"
    before = (first.run.folder / "best_model.pth").stat().st_mtime_ns
    again = course.climb(opened, "again", recipe, 1, first)
    assert again.run == first.run
    assert (first.run.folder / "best_model.pth").stat().st_mtime_ns == before
    assert "again: nothing changed" in capsys.readouterr().out
    assert course.climb(opened, "other", recipe.but(seed=1), 1, first).run != first.run


def test_a_folder_without_usable_patients_is_a_sentence(tmp_path):
    write_patient(tmp_path / "mine", 0)
    next((tmp_path / "mine").glob("*/*_seg.nii.gz")).unlink()
    with pytest.raises(UnetlibError, match="unetlib check"):
        course.start(tmp_path / "mine", tmp_path / "work")


def test_cases_that_cannot_be_read_are_passed_over(data):
    cases = find_cases(data).cases
    cases[1].seg.paths[0].write_bytes(b"damaged")
    assert [case.id for case, *_ in course.readable(cases)] == [cases[0].id, cases[2].id]
    _, volume, mask, labels = next(course.readable(cases))
    assert (volume.voxels.shape, mask.any(), labels) == (mask.shape, True, {0, 4})


def test_a_part_without_tumour_is_a_sentence(prepared):
    data = Prepared.open(prepared)
    assert course.with_tumour_in_each_part(data) is data
    bare = replace(data, split=replace(data.split, test=("nobody",)))
    with pytest.raises(UnetlibError, match="no patient of the part test has a slice with tumour"):
        course.with_tumour_in_each_part(bare)
