"""The notebooks as they are committed: what a reader on GitHub sees. nbval runs them, see the Makefile."""

import base64
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from unetlib import metrics, plots
from unetlib.course.chapters import NOTEBOOKS

CHAPTERS = (
    "01_exploration",
    "02_preprocessing",
    "03_training",
    "04_evaluation",
    "05_stronger",
    "06_more_than_flair",
    "07_other_networks",
)
PATHS = [NOTEBOOKS / folder / f"{name}.ipynb" for folder in ("", "solutions") for name in CHAPTERS]
SCRATCH = {"work", ".ipynb_checkpoints"}
MACHINE = re.compile(r"(?<![\w./-])/(home|root|work|tmp|Users|usr|opt|var|mnt)/|[A-Z]:\\\\", re.MULTILINE)
DRAWN_BAR = re.compile(r"\d+%\|")


def problems(path: Path) -> list[str]:
    """Return what is wrong with a notebook as it lies on disk."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    outputs = [output for cell in cells for output in cell.outputs]
    text = path.read_text("utf-8")
    found = {
        "not executed": any(cell.execution_count is None for cell in cells),
        "not executed from top to bottom": [cell.execution_count for cell in cells] != [*range(1, len(cells) + 1)],
        "has no output": not outputs,
        "holds an error": any(output.output_type == "error" for output in outputs),
        "writes to standard error": any(output.get("name") == "stderr" for output in outputs),
        "is 1 MB or larger": path.stat().st_size >= 1_000_000,
        "holds widget state": "widgets" in notebook.metadata,
        "holds a path of a machine": any(MACHINE.search(_text(output)) for output in outputs),
        "is of a short course": any("COURSE_SHORT" in _text(output) for output in outputs),
        "holds a drawn progress bar": any(DRAWN_BAR.search(_text(output)) for output in outputs),
        "shows students a word to nbval": any("NBVAL" in cell.source for cell in cells),
        "has a cell of more than 25 lines": any(len(cell.source.splitlines()) > 25 for cell in cells),
        "has an image without alt text": any("image/png" in getattr(o, "data", {}) and not _alt(o) for o in outputs),
        "loads from the network": bool(re.search(r"!\[[^]]*\]\(http|<img[^>]*src=.{0,2}http", text)),
    }
    return [name for name, wrong in found.items() if wrong]


def _text(output) -> str:
    shown = output.get("data", {})
    return "\n".join([str(output.get("text", "")), *(shown[kind] for kind in shown if kind.startswith("text/"))])


def _alt(output) -> str:
    return output.metadata.get("image/png", {}).get("alt", "")


def markdown(path: Path) -> str:
    return "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_committed_notebook_is_executed_and_clean(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_some_outputs_are_checked_by_nbval(path):
    checked = [
        cell
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code" and "nbval-check-output" in cell.metadata.get("tags", ())
    ]
    assert checked
    assert all(cell.outputs for cell in checked), "a check of no output checks nothing"


CLOSING = ["What can go wrong", "Exercises", "Summary", "Next"]


@pytest.mark.parametrize("name", CHAPTERS)
def test_headings_questions_and_exercises_are_numbered_in_one_way(name):
    text, number = markdown(NOTEBOOKS / f"{name}.ipynb"), int(name[:2])
    title, *others = re.findall(r"^# (.+)$", text, re.MULTILINE)
    assert title.startswith(f"{number}. ")
    assert not others
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    closing = [section for section in sections if section in CLOSING]
    numbered = sections[: -len(closing)]
    assert closing == [part for part in CLOSING if part in closing], "at the end, in this order"
    assert {"What can go wrong", "Summary", "Next"} <= {*closing}
    assert [section.split()[0] for section in numbered] == [f"{number}.{place + 1}" for place in range(len(numbered))]
    assert not re.findall(r"^### \d", text, re.MULTILINE)
    for kind in ("Question", "Exercise"):
        told = re.findall(rf"^> \*\*{kind}(.*?)\*\*", text, re.MULTILINE)
        assert told == [f" {place + 1}." for place in range(len(told))]
        assert len(told) == text.count(f"**{kind}"), "each begins a box of its own"
        assert told


@pytest.mark.parametrize("name", CHAPTERS)
def test_each_exercise_is_solved_under_its_number_and_name(name):
    text, solved = (markdown(NOTEBOOKS / folder / f"{name}.ipynb") for folder in ("", "solutions"))
    named = re.findall(r"^> \*\*(Exercise \d\.)\*\* \*(.+?)\.?\* ", text, re.MULTILINE)
    assert len(named) == 3
    assert re.findall(r"^## (.+)$", solved, re.MULTILINE) == [" ".join(exercise) for exercise in named]
    assert solved.startswith(f"# {int(name[:2])}. ")


@pytest.mark.parametrize("name", CHAPTERS)
def test_references_to_sections_lead_to_sections(name):
    files = [NOTEBOOKS / folder / f"{name}.ipynb" for folder in ("", "solutions")]
    text = "\n".join(cell.source for path in files for cell in nbformat.read(path, 4).cells)
    sections = re.findall(r"^## (\d\.\d+) ", text, re.MULTILINE)
    named = re.findall(r"\bsections? (\d+(?:\.\d+)?)", text, re.IGNORECASE)
    assert [section for section in named if section not in sections] == []


def minutes(path: Path) -> tuple[float, int]:
    """Return the minutes that reading a chapter takes, and those that its questions and exercises take."""
    cells, text = nbformat.read(path, 4).cells, markdown(path)
    code = sum(cell.cell_type == "code" for cell in cells)
    return len(text.split()) / 200 + code / 2, 2 * text.count("> **Question") + 10 * text.count("> **Exercise")


def rounded_up(number: float) -> int:
    """Return minutes as the README states them, in steps of five."""
    return 5 * math.ceil(number / 5)


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_stated_minutes_are_those_of_the_readme_and_of_its_formula(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    found = re.search(r"\*\*Estimated time:\*\* (\d+) minutes to step through, (\d+) more with", markdown(path))
    through, more = int(found[1]), int(found[2])
    readme = NOTEBOOKS.with_name("README.md").read_text("utf-8")
    row = re.search(rf"^\| \[.*\]\(notebooks/{name}.ipynb\) \|.*\| (\d+) min \| ([\d.]+) min \|$", readme, re.MULTILINE)
    assert int(row[1]) == through
    reading, answering = minutes(path)
    assert through == rounded_up(reading + float(row[2])), f"{reading:.1f} minutes of reading, {row[2]} of waiting"
    assert more == rounded_up(answering)


@pytest.mark.parametrize("name", CHAPTERS)
def test_links_lead_to_files_that_exist(name):
    text = markdown(NOTEBOOKS / f"{name}.ipynb")
    links = [
        link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith(("http", "mailto", "attachment:"))
    ]
    assert links
    assert [link for link in links if not (NOTEBOOKS / link).exists()] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_images_of_the_text_are_inside_the_notebook_and_those_of_the_studies(path):
    """A page is read without the repository, and nbconvert embeds no file outside the notebook's folder."""
    for cell in nbformat.read(path, 4).cells:
        images = re.findall(r"!\[[^]]+\]\((.+?)\)", cell.source) if cell.cell_type == "markdown" else []
        assert all(image.startswith("attachment:") for image in images)
        for name, kinds in cell.get("attachments", {}).items():
            assert f"attachment:{name}" in images
            assert base64.b64decode(kinds["image/png"]) == (NOTEBOOKS.parent / "studies" / name).read_bytes()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_how_long_is_trained_is_left_to_the_course(path):
    code = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert not [source for source in code if re.search(r"\bepochs=\d|\bSLICES = \d|\bSTEPS = \d", source)]


def code_of(chapter: str, start: str) -> str:
    """Return the one cell of a chapter that starts so."""
    cells = nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", 4).cells
    (source,) = (cell.source for cell in cells if cell.source.startswith(start))
    return source


@pytest.mark.parametrize(
    ("tp", "fp", "told"),
    [(6, 1, "ahead by +0.0500"), (1, 9, "ahead (below 0: behind) by -0.0800"), (0, 0, "ahead by +0")],
)
def test_chapter_4_says_when_nothing_is_better_than_the_network(tp, fp, told, capsys):
    truth = np.arange(100) < 10
    network, nothing = (metrics.Counts(*map(np.array, one)) for one in ((tp, fp, 10 - tp, 90 - fp), (0, 0, 10, 90)))
    known = {"truth": truth, "METRICS": metrics.METRICS, "rivals": {"network": network, "constant": nothing}}
    exec(code_of("04_evaluation", "share = truth.mean()"), known)
    assert f"The network is {told}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ([0.5, 0.6, 0.7], "0.7000 at 0.75: do not report that."),
        ([0.5, 0.7, 0.6], "0.7000 at 0.50: here, no more than the scores above."),
        ([0.7, 0.6, 0.5], "0.7000 at 0.25: here, no more than the scores above."),
    ],
)
def test_chapter_4_warns_of_a_threshold_chosen_on_test_only_where_it_claims_more(test, told, capsys):
    curve = {"val": np.array([0.6, 0.5, 0.4]), "test": np.array(test)}
    known = {"thresholds": np.array([0.25, 0.5, 0.75]), "curve": curve, "chosen": 0.25}
    exec(code_of("04_evaluation", "half, best = "), known)
    assert capsys.readouterr().out.splitlines()[-1] == f"Choosing on test would have claimed {told}"


@pytest.mark.parametrize(
    ("probability", "told"),
    [
        (0.9, "Of the 100 pixels above 0.5, the network is on the whole too sure, by 0.800."),
        (0.2, "The network gives no pixel more than 0.5."),
    ],
)
def test_chapter_4_judges_no_pixels_where_there_are_none(probability, told, capsys):
    reliability = plots.Reliability.of(np.full(100, probability), np.arange(100) < 10)
    exec(code_of("04_evaluation", "first = reliability"), {"reliability": reliability})
    assert capsys.readouterr().out.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("gained", "alarms", "told"),
    [
        ((0.1, 0.3), (7, 0), ("is ahead.", "fell.", "Both figures speak")),
        ((-0.1, -0.3), (7, 0), ("is not ahead.", "fell.", "better where there is no tumour, and no better over all")),
        ((0.1, 0.3), (7, 7), ("is ahead.", "did not fall.", "better over all slices, and no better where")),
        ((-0.1, 0.1), (0, 7), ("is not ahead.", "did not fall.", "Neither figure")),
    ],
)
@pytest.mark.parametrize(
    ("interval", "patients", "sure"),
    [((-0.1, 0.1), 8, False), ((0.1, 0.2), 8, True), ((0.1, 0.2), 4, False), (None, 1, False)],
)
def test_chapter_4_tells_both_figures_of_two_recipes_whatever_they_are(
    gained, alarms, told, interval, patients, sure, capsys
):
    source = code_of("04_evaluation", "gained = ")
    before, difference, runs = np.array([0.5, 0.5]), np.array(gained), ("published", "strong")
    false = {name: {"anna": ml, "berta": ml} for name, ml in zip(runs, alarms, strict=True)}
    known = {"np": np, "runs": runs, "false": false, "interval": interval, "before": before}
    known |= {"by_luck": 0.5**patients}
    exec(source, known | {"difference": difference, "after": before + difference})
    lines = capsys.readouterr().out.splitlines()
    dice, false_alarms, verdict, *unsure = lines
    assert dice == f"Dice: 0.500 published, {0.5 + np.mean(gained):.3f} strong. The strong recipe {told[0]}"
    assert bool(unsure) != sure
    assert false_alarms == f"False alarms: {alarms[0]:.1f} ml published, {alarms[1]:.1f} ml strong. They {told[1]}"
    assert told[2] in verdict


def test_nothing_else_lies_among_the_notebooks():
    committed = {path for path in NOTEBOOKS.rglob("*.ipynb") if not SCRATCH & {*path.relative_to(NOTEBOOKS).parts}}
    assert committed == set(PATHS)


def broken(change):
    """Return a good notebook after `change`, to see that what is wrong is noticed."""
    cells = [nbformat.v4.new_code_cell(f"print({number})", execution_count=number) for number in (1, 2)]
    for cell in cells:
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=cell.source[6])]
    notebook = nbformat.v4.new_notebook(cells=cells)
    change(notebook)
    return notebook


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda n: n.cells[0].update(execution_count=None), "not executed"),
        (lambda n: n.cells[0].update(execution_count=5), "not executed from top to bottom"),
        (lambda n: [cell.update(outputs=[]) for cell in n.cells], "has no output"),
        (
            lambda n: n.cells[0].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])),
            "holds an error",
        ),
        (lambda n: n.cells[0].outputs[0].update(name="stderr"), "writes to standard error"),
        (lambda n: n.cells[0].outputs[0].update(text="x" * 1_000_000), "is 1 MB or larger"),
        (lambda n: n.metadata.update(widgets={}), "holds widget state"),
        (lambda n: n.cells[0].outputs[0].update(text="saved in /home/anna/run"), "holds a path of a machine"),
        (lambda n: n.cells[0].outputs[0].update(text="A short course (`COURSE_SHORT`)"), "is of a short course"),
        (lambda n: n.cells[0].outputs[0].update(text="45%|####   | 7/20"), "holds a drawn progress bar"),
        (lambda n: n.cells[0].update(source="# NBVAL_CHECK_OUTPUT\n1"), "shows students a word to nbval"),
        (lambda n: n.cells[0].update(source="1\n" * 26), "has a cell of more than 25 lines"),
        (
            lambda n: n.cells[0].outputs.append(nbformat.v4.new_output("display_data", {"image/png": "AAAA"})),
            "has an image without alt text",
        ),
        (lambda n: n.cells.append(nbformat.v4.new_markdown_cell("![x](https://a.b/c.png)")), "loads from the network"),
    ],
)
def test_what_is_wrong_is_noticed(tmp_path, change, problem):
    nbformat.write(broken(lambda _: None), tmp_path / "good.ipynb")
    assert problems(tmp_path / "good.ipynb") == []
    nbformat.write(broken(change), tmp_path / "bad.ipynb")
    assert problem in problems(tmp_path / "bad.ipynb")
