import base64
import os
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests.conftest import SMALL, write_patient
from unetlib import course
from unetlib.errors import UnetlibError
from unetlib.evaluation import read_patients
from unetlib.phantom import make_cohort
from unetlib.prepare import prepare
from unetlib.split import Split, make_split
from unetlib.training import Trainer


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("COURSE_DATA", "COURSE_SHORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data(tmp_path):
    for index in range(3):
        write_patient(tmp_path / "mine", index)
    return tmp_path / "mine"


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A course of two small chapters and a solution, in place of the real one."""
    folder = tmp_path / "notebooks"
    (folder / "solutions").mkdir(parents=True)
    monkeypatch.setattr(course, "NOTEBOOKS", folder)
    write_notebook(folder / "01_one.ipynb", "# One", "import os\nprint('data is', os.environ.get('COURSE_DATA'))")
    write_notebook(
        folder / "02_two.ipynb", "# Two", "from pathlib import Path\nprint(sorted(Path('.').glob('*.html')))"
    )
    write_notebook(folder / "solutions" / "01_one.ipynb", "# Solved", "6 * 7")
    return folder


def write_notebook(path, text, *code):
    cells = [nbformat.v4.new_markdown_cell(text), *map(nbformat.v4.new_code_cell, code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


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
    code = (
        "import sys, unetlib.course; assert not [name for name in sys.modules if name.partition('.')[0] == 'nilearn']"
    )
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
    course._introduce(course.Course(opened.data, opened.work, opened.cohort, synthetic=True))
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


def test_a_stair_is_trained_and_validated_on_the_split_of_the_course(climber, capsys):
    opened, recipe = climber
    stair = course.climb(opened, "published", recipe, slices=200)
    split = Split.load(opened.prepared / "split.json")
    assert split != make_split(split.patients()), "or the test shows nothing"
    assert Split.load(stair.run / "split.json") == split
    rows = {row["patient"]: float(row["dice"]) for row in read_patients(stair.run / "evaluation" / "val")}
    assert stair.dices == rows
    assert stair.dices.keys() == set(split.val)
    assert stair.dice == pytest.approx(np.mean(list(rows.values())))
    assert not (stair.run / "evaluation" / "summary.json").exists(), "test patients are not scored"
    assert f"validation Dice {stair.dice:.3f}" in capsys.readouterr().out


def test_every_stair_shows_the_same_number_of_slices(climber, capsys):
    opened, recipe = climber
    first = course.climb(opened, "first", recipe, slices=64)
    second = course.climb(opened, "all", recipe.but(slices="all", balance=True), 64, first)
    shown = [
        stair.recipe.epochs * len(Trainer.open(stair.data, stair.run, stair.recipe, "cpu").choose(0))
        for stair in (first, second)
    ]
    assert shown == [64, 72]  # 4 patients: 16 slices with tumour, 8 without
    told = capsys.readouterr().out
    assert "all: balance: False -> True, epochs: 4 -> 3, slices: tumour -> all" in told
    assert f"({second.dice - first.dice:+.3f})" in told
    np.testing.assert_allclose(second.gains(first).mean(), second.dice - first.dice)


def test_a_stair_is_trained_once_and_stays_where_it_was_when_the_recipe_changes(climber, monkeypatch, capsys):
    opened, recipe = climber
    first = course.climb(opened, "first", recipe, slices=1)
    assert first.recipe.epochs == 1, "one at least"
    before = (first.run / "best_model.pth").stat().st_mtime_ns
    again = course.climb(opened, "again", recipe, 1, first)
    assert again.run == first.run
    assert (first.run / "best_model.pth").stat().st_mtime_ns == before
    assert "again: nothing changed" in capsys.readouterr().out
    assert course.climb(opened, "other", recipe.but(seed=1), 1, first).run != first.run


def test_of_the_study_six_steps_are_shown_and_a_link_or_it_is_missed_in_a_sentence(tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(course, "display", shown.append)
    course.show_study(tmp_path)
    assert "make study" in capsys.readouterr().out
    assert not shown
    (tmp_path / "ABLATION.md").write_text(
        "# Study\n\n| step | changed | Dice | gain | pooled |\n|---|---|---|---|---|\n"
        "| published | - | 0.1 | | 0.2 |\n| cut to the head | crop True | 0.3 | +0.2 | 0.4 |\n"
        "\n![stairs](ablation.png)\n"
    )
    course.show_study(tmp_path)
    assert shown[0].data.splitlines()[:4] == [
        "| step | changed | Dice | gain |",
        "|---|---|---|---|",
        "| cut to the head | crop True | 0.3 | +0.2 |",
        "",
    ]
    assert "holds all 2 steps" in shown[0].data


def test_the_steps_of_the_committed_study_are_found(monkeypatch):
    shown = []
    monkeypatch.setattr(course, "display", shown.append)
    course.show_study()
    (page,) = shown
    rows = [line.split("|")[1].strip() for line in page.data.splitlines() if line.startswith("|")][2:]
    assert rows == list(course.STUDY_STEPS)
    assert len(rows) == 6
    for link in re.findall(r"\]\(([^)]+)\)", page.data):
        assert (course.NOTEBOOKS / link).exists()


def test_a_folder_without_usable_patients_is_a_sentence(tmp_path):
    write_patient(tmp_path / "mine", 0)
    next((tmp_path / "mine").glob("*/*_seg.nii.gz")).unlink()
    with pytest.raises(UnetlibError, match="unetlib check"):
        course.start(tmp_path / "mine", tmp_path / "work")


def test_in_a_notebook_pictures_are_small_bars_one_line_and_errors_sentences(tmp_path, data):
    write_notebook(
        tmp_path / "some.ipynb",
        "# Some",
        f"from unetlib.course import start\nstart({str(data)!r})",
        "from matplotlib.figure import Figure\nfigure = Figure()\nfigure.subplots().plot([0, 1])\nfigure",
        "from unetlib.jobs import progress\nwith progress(3, 'count', 'lamb') as bar:\n    bar.update(3)",
        "with progress(1, 'count', 'lamb') as bar:\n    pass\nwith progress(0, 'count', 'lamb'):\n    pass",
        "from unetlib.errors import UnetlibError\nraise UnetlibError('the sentence')",
    )
    broken = nbformat.read(tmp_path / "some.ipynb", 4)
    broken.cells[-1].metadata.tags = ["raises-exception"]
    nbformat.write(broken, tmp_path / "some.ipynb")
    banner, figure, whole, stopped, error = (
        cell.outputs for cell in course._execute(tmp_path / "some.ipynb", tmp_path).cells[1:]
    )
    assert "3 patients in `mine`" in banner[0].data["text/markdown"]
    picture = Image.open(BytesIO(base64.b64decode(figure[0].data["image/png"])))
    assert picture.mode == "P", "of 256 colours at most"
    assert re.fullmatch(r"count: 3 lambs in \d\d:\d\d", whole[0].data["text/plain"])
    assert re.fullmatch(r"count: stopped at 0 of 1 lamb in \d\d:\d\d", stopped[0].data["text/plain"])
    assert len(stopped) == 1, "nothing to do shows nothing"
    assert error[0].traceback == ["UnetlibError: the sentence"]


def test_every_chapter_becomes_a_page_that_needs_no_network(notebooks, data, tmp_path, capsys):
    course.run_course(tmp_path / "out", data)
    told = [tmp_path / "out" / f"{name}.html" for name in ("01_one", "02_two", "index")]
    pages = told[:2]
    for page in pages:
        loaded = re.findall(
            r"""(?:<script[^>]*\ssrc|<link[^>]*\shref|<img[^>]*\ssrc)=["']?([^"'\s>]+)""", page.read_text("utf-8")
        )
        assert not [address for address in loaded if not address.startswith("data:")]
    assert f"data is {data.resolve()}" in pages[0].read_text("utf-8")
    assert "01_one.html" in pages[1].read_text("utf-8"), "the second chapter runs after the first, in the same folder"
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(".html")] == list(map(str, told))
    assert not nbformat.read(notebooks / "01_one.ipynb", 4).cells[1].outputs, "the notebooks themselves are not touched"


def test_a_short_refreshing_starts_from_an_empty_folder_too_and_leaves_the_long_results(notebooks, monkeypatch):
    monkeypatch.setenv("COURSE_SHORT", "1")
    for folder in ("synthetic", "short/synthetic"):
        (notebooks / "work" / folder).mkdir(parents=True)
    course.refresh_notebooks()
    assert [path.name for path in (notebooks / "work").iterdir()] == ["synthetic"]


def test_refreshing_writes_outputs_into_chapters_and_solutions(notebooks):
    (notebooks / "work" / "synthetic" / "old").mkdir(parents=True)
    (notebooks / "work" / "mine").mkdir()
    course.refresh_notebooks()
    assert not (notebooks / "work" / "synthetic").exists()
    assert (notebooks / "work" / "mine").exists()
    solved = nbformat.read(notebooks / "solutions" / "01_one.ipynb", 4)
    assert solved.cells[1].outputs[0].data["text/plain"] == "42"
    assert solved.cells[1].execution_count == 1
    assert set(solved.metadata) == {"kernelspec", "language_info"}
    assert "data is None" in nbformat.read(notebooks / "01_one.ipynb", 4).cells[1].outputs[0].text


def test_a_chapter_that_fails_is_named_with_its_cell(notebooks, tmp_path):
    write_notebook(notebooks / "02_two.ipynb", "# Two", "1", "raise ValueError('broken')")
    with pytest.raises(UnetlibError, match=r"02_two.ipynb failed in cell 3: ValueError: broken"):
        course.run_course(tmp_path / "out")
    index = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert 'href="01_one.html"' in index, "what is done is left, and known"
    assert 'href="02_two.html"' not in index


def test_without_notebooks_the_sentence_says_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "NOTEBOOKS", tmp_path / "nowhere")
    with pytest.raises(UnetlibError, match="nowhere holds no notebooks"):
        course.run_course(tmp_path / "out")


COURSE = """
import sys
from pathlib import Path
from unetlib import cli, course
from unetlib.command import begin
begin()
course.NOTEBOOKS = Path(sys.argv[1])
cli.main(["course", "--out", sys.argv[2]])
"""
STOP = "import os, signal; print(open('pid', 'w').write(str(os.getpid())), flush=True); os.kill(os.getppid(), {})"


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [2, 15])
@pytest.mark.parametrize("moment", ["cell", "start of the kernel"])
def test_a_stopped_course_ends_with_a_sentence_and_without_its_kernel(notebooks, tmp_path, number, moment):
    stop, environment = STOP.format(number), {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    if moment == "cell":
        write_notebook(notebooks / "01_one.ipynb", "# One", f"{stop}\nimport signal; signal.pause()")
    else:
        (tmp_path / "path").mkdir()
        condition = "import sys\nif any('ipykernel_launcher' in word for word in sys.orig_argv):\n    "
        (tmp_path / "path" / "sitecustomize.py").write_text(condition + stop)
        environment["PYTHONPATH"] += os.pathsep + str(tmp_path / "path")
    words = [sys.executable, "-c", COURSE, str(notebooks), str(tmp_path / "out")]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "Stopped. The same command goes on where it was."
    assert "Traceback" not in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(next(tmp_path.rglob("pid")).read_text()), 0)


def test_a_kernel_that_dies_is_a_sentence(notebooks, tmp_path):
    write_notebook(notebooks / "01_one.ipynb", "# One", "import os\nos._exit(1)")
    with pytest.raises(UnetlibError, match=r"the kernel of 01_one.ipynb died"):
        course.run_course(tmp_path / "out")


def test_jupyterlab_as_root_is_refused_with_what_to_do_unless_it_is_allowed(notebooks, monkeypatch):
    started = []
    monkeypatch.setattr("os.geteuid", lambda: 0, raising=False)
    monkeypatch.setattr("jupyterlab.labapp.LabApp.launch_instance", started.append)
    with pytest.raises(UnetlibError, match=r"refuses to run as root.*make lab LAB=--allow-root"):
        course.open_lab(["--no-browser"])
    assert not started
    course.open_lab(["--allow-root", "--no-browser"])
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    course.open_lab()
    assert [words[-2:] for words in started] == [["--allow-root", "--no-browser"], list(course.QUIET[-2:])]
