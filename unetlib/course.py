"""The course: what every chapter starts with, and all chapters from beginning to end."""

import atexit
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import numpy
import torch
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from unetlib import __version__
from unetlib.chance import balanced_number
from unetlib.embedded import EMBED
from unetlib.errors import UnetlibError, counted
from unetlib.evaluation import evaluate, read_patients
from unetlib.files import atomic, digest, takes_paths
from unetlib.jobs import progress, say
from unetlib.pages import Pages, viewer_bytes
from unetlib.patients import Case, Cohort, find_cases
from unetlib.phantom import make_cohort
from unetlib.plots import DISCLAIMER, best_median_worst, case_figure, in_notebook, is_synthetic, make_figures, save
from unetlib.plots.screenshot import viewer_picture
from unetlib.prepare import Prepared, prepare
from unetlib.recipe import PREPARE, Recipe, changed
from unetlib.split import Split
from unetlib.training import train
from unetlib.tuning import tune
from unetlib.viewer import SliceViewer
from unetlib.volumes import ASSUME, read_volume

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
STUDY = NOTEBOOKS.with_name("benchmarks")
STUDY_STEPS = (
    "slices without tumour, too",
    "cut to the head",
    "Dice + cross-entropy",
    "averaged weights",
    "neighbouring slices",
    "again: turn, scale, bend",
)
WIDTH = 16  # of the U-Net; 32, as in the published recipe, takes four times as long
QUIET = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)


@dataclass(frozen=True)
class Length:
    """How much the chapters compute: everything that makes the course take minutes or seconds."""

    patients: int  # of the embedded cohort
    epochs: int  # of the network of chapter 3
    strong_epochs: int  # of the second network of chapter 4
    leak_steps: int  # of each network of chapter 2
    stair_slices: int  # shown to each network of chapter 5, in whole epochs


FULL = Length(patients=24, epochs=10, strong_epochs=5, leak_steps=240, stair_slices=4300)
SHORT = Length(patients=4, epochs=3, strong_epochs=1, leak_steps=8, stair_slices=1)  # 3 epochs: killed in the third


def is_short() -> bool:
    """Tell whether the environment variable `COURSE_SHORT` asks for a short course, to see that every cell runs."""
    return os.environ.get("COURSE_SHORT", "") not in ("", "0")


@dataclass(frozen=True)
class Course:
    """Where a chapter finds its patients and leaves its results; see `start`.

    `data` is the folder of patients, `cohort` what was found there. `prepared` and `run` are the folders
    of `prepare` and `train`, below `work`. `note` is a line to print under every figure. `length` holds
    what differs between the course at full length and a short one, whose numbers mean nothing.
    """

    data: Path
    work: Path
    cohort: Cohort
    synthetic: bool
    length: Length = FULL

    @property
    def recipe(self) -> Recipe:
        """The published recipe, with a smaller network."""
        return Recipe.published.but(width=WIDTH, epochs=self.length.epochs)

    @property
    def strong(self) -> Recipe:
        """The strong recipe of chapter 4, with a network of the same size and few epochs."""
        return Recipe.strong.but(width=WIDTH, epochs=self.length.strong_epochs)

    @property
    def prepared(self) -> Path:
        """Folder of the prepared slices."""
        return self.work / "prepared"

    @property
    def run(self) -> Path:
        """Folder of the training run."""
        return self.work / "run"

    @property
    def note(self) -> str:
        """What must stand under every figure."""
        return ("synthetic images; " if self.synthetic else "") + DISCLAIMER


@takes_paths
def start(data: str | Path | None = None, work: str | Path = "work") -> Course:
    """Open the data of the course, say which they are, and print the versions in use.

    `data`: a folder of patients (or its `.tar`) in any layout that `unetlib check` knows; `None` takes
    the one that the environment variable `COURSE_DATA` names and, without one, the embedded synthetic
    cohort, which is made in `work` on the first call. Results lie below `work`, apart for each data set,
    and those of a short course (see `is_short`) below `work/short`.
    `UNETLIB_ASSUME` set to ras or lps says the orientation of files that do not say theirs.

    Raises `UnetlibError` when the folder does not exist or holds no usable patient.
    """
    _set_up_notebook()
    work, length = (Path(work) / "short", SHORT) if is_short() else (Path(work), FULL)
    named = data or os.environ.get("COURSE_DATA")
    if named:
        root = Path(named).expanduser()
        folder = work / f"{root.resolve().name}-{digest(str(root.resolve()))[:6]}"
    else:
        folder = work / "synthetic"
        root = folder / "cohort"
        make_cohort(root, length.patients)
    cohort = find_cases(root)
    if not cohort.cases:
        raise UnetlibError(f"{root} holds no usable patient. See what is there with: unetlib check {root}")
    course = Course(root, folder, cohort, any(map(_is_synthetic, cohort.cases[:3])), length)
    _introduce(course)
    return course


@dataclass(frozen=True)
class Stair:
    """A recipe that was trained and validated: on what, where, and the Dice of each validation patient, by name."""

    name: str
    recipe: Recipe
    data: Prepared
    run: Path
    dices: dict[str, float]

    @property
    def dice(self) -> float:
        """The mean over the patients."""
        return float(numpy.mean(list(self.dices.values())))

    def gains(self, before: "Stair") -> numpy.ndarray:
        """Return what each patient gained over another stair, (patients,), in the order of their names."""
        return numpy.array([self.dices[name] - before.dices[name] for name in sorted(self.dices)])


def climb(course: Course, name: str, recipe: Recipe, slices: int, before: Stair | None = None) -> Stair:
    """Prepare, train and validate a recipe, and say what it changed and gained; test patients are not scored.

    It is trained for as many whole epochs as come nearest to showing `slices` slices, one at least. The split is that
    of `course.prepared`, where there is one. What is there from an earlier call with the same recipe is reused, and
    goes on where it was stopped. Dices are volumetric: all slices of a patient, on the native grid.
    """
    folder = course.work / "stairs"
    prepared = folder / f"prepared-{digest(recipe.stage(PREPARE))[:8]}"
    if (course.prepared / "split.json").exists() and not (prepared / "split.json").exists():
        Split.load(course.prepared / "split.json").save(prepared / "split.json")
    with redirect_stdout(StringIO()):  # what they say at length in chapters 3 and 4
        data = prepare(course.data, prepared, recipe)
        recipe = recipe.but(epochs=max(1, round(slices / max(1, _shown(data, recipe)))))
        run = folder / f"run-{digest(recipe.as_dict())[:8]}"
        seconds = train(prepared, run, recipe).seconds
        tune(run)
        evaluate(run, split="val")
    rows = read_patients(run / "evaluation" / "val")
    stair = Stair(name, recipe, data, run, {row["patient"]: float(row["dice"]) for row in rows})
    what = changed(before.recipe.as_dict(), recipe.as_dict()) if before else ""
    gain = f" ({stair.dice - before.dice:+.3f})" if before else ""
    print(f"{name}: {what or 'nothing changed'}" if before else name)
    print(f"validation Dice {stair.dice:.3f}{gain}, {counted(len(rows), 'patient')}; {seconds:.0f} s of training")
    return stair


def _shown(data: Prepared, recipe: Recipe) -> int:
    """Return how many slices an epoch shows."""
    indices = data.indices("train")
    return balanced_number(data.tumour[indices]) if recipe.balance else len(indices)


@takes_paths
def show_study(folder: Path = STUDY) -> None:
    """Show six steps of the study on real patients, one for each of sections 5.2 to 5.7, and a link to them all.

    `folder` holds `ABLATION.md`; without it, a sentence says how it is made.
    """
    page = folder / "ABLATION.md"
    if not page.exists():
        print("benchmarks/ABLATION.md is not there (yet): it is made by make study, on a folder of real patients.")
        return
    table = [line.split("|")[1:5] for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
    heading, rule, *rows = table  # step, changed, Dice, gain; the other columns are left to the page
    shown = [row for row in rows if row[0].strip() in STUDY_STEPS]
    lines = ["|" + "|".join(row) + "|" for row in (heading, rule, *shown)]
    link = (
        f"[benchmarks/ABLATION.md](../benchmarks/ABLATION.md) holds all {len(rows)} steps, each with its gain and time"
    )
    display(Markdown("\n".join([*lines, "", f"{link}."])))


def _is_synthetic(case: Case) -> bool:
    try:
        return is_synthetic(read_volume(case.images["flair"]))
    except UnetlibError:  # a damaged file is named by `check` and `prepare`
        return False


def _introduce(course: Course) -> None:
    """Say on top of a chapter what it shows."""
    patients = counted(len({case.patient for case in course.cohort.cases}), "patient")
    what = f"**real MRI**, {patients} in `{course.data.name}` ({course.cohort.cases[0].layout})"
    if course.synthetic:
        what = f"**synthetic images**, {patients}: real anatomy, invented tumours. No result here is a result on MRI"
    text = f"> Shown here: {what}. For research and education, never for clinical use."
    if course.length == SHORT:
        text += " **A short course** (`COURSE_SHORT`): it shows that every cell runs, and its numbers mean nothing."
    if get_ipython() is None:
        print(text)
    else:
        display(Markdown(text))
    versions = {"unetlib": __version__, "torch": torch.__version__, "numpy": numpy.__version__}
    print(", ".join(f"{name} {version}" for name, version in versions.items()), end=", ")
    print(f"matplotlib {matplotlib.__version__}")


def _set_up_notebook() -> None:
    """Have a notebook show figures in full width with alt texts, and an error or a stop as its sentence alone."""
    shell = get_ipython()
    if shell is not None:
        shell.run_line_magic("matplotlib", "inline")
        shell.display_formatter.formatters["image/png"].for_type(Figure, in_notebook)
        shell.set_custom_exc((UnetlibError, KeyboardInterrupt), _sentence)


def _sentence(shell: Any, kind: type[BaseException], error: BaseException, *_: object, **__: object) -> list[str]:
    lines = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, lines)  # the handler of a kind of error has to show it itself
    return lines


def open_lab(flags: Sequence[str] = ()) -> None:
    """Run JupyterLab on the notebooks until it is stopped; it asks no other machine for news, versions or extensions.

    Raises `UnetlibError` for the user root, whom JupyterLab refuses, unless `flags` allow it.
    """
    _chapters()
    if getattr(os, "geteuid", lambda: 1)() == 0 and not any(flag.startswith("--allow-root") for flag in flags):
        raise UnetlibError(
            "JupyterLab refuses to run as root, since whoever gets in could then do everything on this machine. Start "
            "it as another user; in a container, allow it with --allow-root (make lab LAB=--allow-root)."
        )
    from jupyterlab.labapp import LabApp

    LabApp.launch_instance([str(NOTEBOOKS), *QUIET, *flags])


@takes_paths
def run_course(out: Path, data: Path | None = None, assume: str | None = None) -> None:
    """Run all chapters on `data` (the embedded cohort by default) in `out`; leave each there as HTML, with an index.

    `assume` as in `find_cases`. What an earlier call has prepared and trained in `out/work` is reused. The pages
    open without a network, their viewers too; see `Pages`.

    Raises `UnetlibError` naming chapter and cell when one fails.
    """
    environment = {"COURSE_DATA": str(data.resolve())} if data else {}
    environment |= {ASSUME: assume} if assume else {}
    pages = Pages(out, _chapters())
    for path in pages.chapters:
        notebook = nbformat.read(path, as_version=4)
        notebook = _execute(path, out, {**environment, EMBED: str(viewer_bytes(notebook))})
        say(str(pages.write(path, notebook)))
    say(str(pages.index))


def refresh_notebooks() -> None:
    """Execute chapters and solutions where they lie, from an empty folder of results, and keep their outputs."""
    shutil.rmtree(NOTEBOOKS / "work" / ("short" if is_short() else "synthetic"), ignore_errors=True)
    for path in (*_chapters(), *sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))):
        notebook = _execute(path, path.parent)
        with atomic(path) as temporary:
            nbformat.write(notebook, temporary)


@takes_paths
def course_figures(out: Path | None = None, device: str = "auto") -> list[Path]:
    """Draw what the README shows, from the notebooks' own cohort and run, which are made where they are missing.

    They go to `figures/` of the repository unless `out` is given.
    """
    folder = out or NOTEBOOKS.with_name("figures")
    course = start(work=NOTEBOOKS / "work")
    prepare(course.data, course.prepared)
    train(course.prepared, course.run, course.recipe, device)
    evaluate(course.run, device=device)
    paths = make_figures(course.run, folder, device)
    save(case_figure(course.cohort.cases[:3]), folder / "cohort.png")
    shown = best_median_worst(course.run, device)[1]
    viewer = SliceViewer(shown.volume, truth=shown.truth, prediction=shown.prediction, title=shown.case.id)
    return [*paths, folder / "cohort.png", viewer_picture(viewer, folder / "viewer.png")]


def _chapters() -> list[Path]:
    """Return the notebooks in order; raises `UnetlibError` where there are none."""
    chapters = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if not chapters:
        raise UnetlibError(f"{NOTEBOOKS} holds no notebooks: the course runs from a clone of its repository.")
    return chapters


def _execute(path: Path, folder: Path, environment: dict[str, str] | None = None) -> Any:
    """Return the notebook at `path`, executed in `folder` with these variables added to the environment."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)
    with progress(cells, path.stem, "cell") as bar:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            store_widget_state=False,  # a page that holds widget state shows nothing without a network
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            on_cell_complete=lambda **_: bar.update(),
        )
        try:
            _run_cells(client, {**os.environ, **(environment or {})})
        except CellExecutionError as error:
            raise UnetlibError(
                f"{path.name} failed in cell {_failed(notebook)}: {error.ename}: {error.evalue}"
            ) from error
        except RuntimeError as error:  # of nbclient
            raise UnetlibError(
                f"the kernel of {path.name} died ({error}), perhaps for lack of memory. Close other programs, then "
                "give the same command again: what was prepared and trained is reused."
            ) from error
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _run_cells(client: NotebookClient, environment: dict[str, str]) -> None:
    """Execute a notebook; when this is stopped, end its kernel first.

    The client runs in a thread of its own, for in the main one it would take the signals, and answer with tracebacks.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.execute, env=environment)
        try:
            running.result()
        except KeyboardInterrupt:
            while not running.done():  # its kernel may be about to start
                _kill_kernel(client)
                wait([running], timeout=0.1)
            atexit.unregister(client._cleanup_kernel)  # which fails where the kernel was about to start
            raise


def _kill_kernel(client: NotebookClient) -> None:
    provisioner = getattr(client.km, "provisioner", None)
    process = getattr(provisioner, "process", None)
    if process is not None:
        process.kill()


def _failed(notebook: Any) -> int:
    errors = [
        index
        for index, cell in enumerate(notebook.cells)
        if any(output.output_type == "error" for output in cell.get("outputs", ()))
    ]
    return errors[0] + 1
