import base64
import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from tests.conftest import some
from unetlib.course import chapters
from unetlib.support.errors import UnetlibError


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A course of two small chapters and a solution, in place of the real one."""
    folder = tmp_path / "notebooks"
    (folder / "solutions").mkdir(parents=True)
    monkeypatch.setattr(chapters, "NOTEBOOKS", folder)
    write_notebook(folder / "01_one.ipynb", "# One", "import os\nprint('data is', os.environ.get('COURSE_DATA'))")
    write_notebook(
        folder / "02_two.ipynb", "# Two", "from pathlib import Path\nprint(sorted(Path('.').glob('*.html')))"
    )
    write_notebook(folder / "solutions" / "01_one.ipynb", "# Solved", "6 * 7")
    return folder


def write_notebook(path, text, *code):
    cells = [nbformat.v4.new_markdown_cell(text), *map(nbformat.v4.new_code_cell, code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_in_a_notebook_pictures_are_small_bars_one_line_and_errors_sentences(tmp_path, data):
    write_notebook(
        tmp_path / "some.ipynb",
        "# Some",
        f"from unetlib.course.start import start\nstart({str(data)!r})",
        "from matplotlib.figure import Figure\nfigure = Figure()\nfigure.subplots().plot([0, 1])\nfigure",
        "from unetlib.support.jobs import progress\nwith progress(3, 'count', 'lamb') as bar:\n    bar.update(3)",
        "with progress(1, 'count', 'lamb') as bar:\n    pass\nwith progress(0, 'count', 'lamb'):\n    pass",
        "import os, torch, unetlib.engine.threads\ndel os.environ['OMP_NUM_THREADS']\ntorch.set_num_threads(2)\n"
        "unetlib.engine.threads.idle_processors = lambda: 1",
        "torch.get_num_threads()",
        "from unetlib.support.errors import UnetlibError\nraise UnetlibError('the sentence')",
    )
    broken = nbformat.read(tmp_path / "some.ipynb", 4)
    broken.cells[-1].metadata.tags = ["raises-exception"]
    nbformat.write(broken, tmp_path / "some.ipynb")
    banner, figure, whole, stopped, _, number, error = (
        cell.outputs for cell in chapters._execute(tmp_path / "some.ipynb", tmp_path).cells[1:]
    )
    assert "3 patients in `mine`" in banner[0].data["text/markdown"]
    picture = Image.open(BytesIO(base64.b64decode(figure[0].data["image/png"])))
    assert picture.mode == "P", "of 256 colours at most"
    assert re.fullmatch(r"count: 3 lambs in \d\d:\d\d", whole[0].data["text/plain"])
    assert re.fullmatch(r"count: stopped at 0 of 1 lamb in \d\d:\d\d", stopped[0].data["text/plain"])
    assert len(stopped) == 1, "nothing to do shows nothing"
    assert number[0].data["text/plain"] == "1", "of two processors, one is idle"
    assert error[0].traceback == ["UnetlibError: the sentence"]


def test_data_without_patients_are_refused_before_a_chapter_runs(notebooks, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnetlibError, match="empty holds no patient"):
        chapters.run_course(tmp_path / "out", tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_every_chapter_becomes_a_page_that_needs_no_network(notebooks, data, tmp_path, capsys):
    chapters.run_course(tmp_path / "out", data)
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
    chapters.refresh_notebooks()
    assert [path.name for path in (notebooks / "work").iterdir()] == ["synthetic"]


def test_refreshing_writes_outputs_into_chapters_and_solutions(notebooks, capfd):
    (notebooks / "work" / "synthetic" / "old").mkdir(parents=True)
    (notebooks / "work" / "mine").mkdir()
    chapters.refresh_notebooks()
    assert not (notebooks / "work" / "synthetic").exists()
    assert (notebooks / "work" / "mine").exists()
    solved = nbformat.read(notebooks / "solutions" / "01_one.ipynb", 4)
    assert solved.cells[1].outputs[0].data["text/plain"] == "42"
    assert solved.cells[1].execution_count == 1
    assert set(solved.metadata) == {"kernelspec", "language_info"}
    assert "data is None" in nbformat.read(notebooks / "01_one.ipynb", 4).cells[1].outputs[0].text
    assert "WARNING" not in capfd.readouterr().err, "a kernel's word on encryption within this machine frightens"


def test_a_chapter_that_fails_is_named_with_its_cell(notebooks, tmp_path):
    write_notebook(notebooks / "02_two.ipynb", "# Two", "1", "raise ValueError('broken')")
    with pytest.raises(UnetlibError, match=r"02_two.ipynb failed in cell 3: ValueError: broken"):
        chapters.run_course(tmp_path / "out")
    index = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert 'href="01_one.html"' in index, "what is done is left, and known"
    assert 'href="02_two.html"' not in index


def test_without_notebooks_the_sentence_says_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "NOTEBOOKS", tmp_path / "nowhere")
    with pytest.raises(UnetlibError, match="nowhere holds no notebooks"):
        chapters.run_course(tmp_path / "out")


COURSE = """
import sys
from pathlib import Path
from unetlib import cli
from unetlib.course import chapters
from unetlib.support.command import begin
begin()
chapters.NOTEBOOKS = Path(sys.argv[1])
cli.main(["course", "--out", sys.argv[2]])
"""
STOP = "import os, signal; print(open('pid', 'w').write(str(os.getpid())), flush=True); os.kill(os.getppid(), {})"


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(
    "way", some([(n, moment) for n in (2, 15) for moment in ("cell", "start")], [(2, "cell"), (15, "start")]), ids=str
)
def test_a_stopped_course_ends_with_a_sentence_and_without_its_kernel(notebooks, tmp_path, way):
    number, moment = way
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
        chapters.run_course(tmp_path / "out")


def test_jupyterlab_as_root_is_refused_with_what_to_do_unless_it_is_allowed(notebooks, monkeypatch):
    started = []
    monkeypatch.setattr("os.geteuid", lambda: 0, raising=False)
    monkeypatch.setattr("jupyterlab.labapp.LabApp.launch_instance", started.append)
    with pytest.raises(UnetlibError, match=r"refuses to run as root.*make lab LAB=--allow-root"):
        chapters.open_lab(["--no-browser"])
    assert not started
    chapters.open_lab(["--allow-root", "--no-browser"])
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    chapters.open_lab()
    assert [words[-2:] for words in started] == [["--allow-root", "--no-browser"], list(chapters.QUIET[-2:])]
