"""The course: what every chapter starts with."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import torch
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from unetlib.data.patients import Case, Cohort, find_cases, read_case
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.data.split import SPLIT_FILE, Split
from unetlib.data.volumes import Volume, read_volume
from unetlib.dataset import SliceDataset, epoch_order
from unetlib.engine.threads import use_idle_processors
from unetlib.evaluation.table import read_patients
from unetlib.phantom.cohort import make_cohort
from unetlib.pipeline import run_recipe
from unetlib.recipe import PREPARE, Recipe
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.show.plots import DISCLAIMER, in_notebook, is_synthetic
from unetlib.support.errors import UnetlibError, counted, first_of, quoted
from unetlib.support.fields import changed
from unetlib.support.files import digest
from unetlib.support.messages import quiet, show_messages
from unetlib.support.paths import home, takes_paths
from unetlib.support.version import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH = 16  # of the U-Net; 32, as in the published recipe, takes four times as long


@dataclass(frozen=True)
class Length:
    """How much the chapters compute: everything that decides whether the course takes minutes or seconds."""

    patients: int = 24  # of the embedded cohort
    epochs: int = 10  # of the network of chapter 3
    strong_epochs: int = 5  # of the second network of chapter 4
    leak_steps: int = 240  # of each network of chapter 2
    stair_slices: int = 4300  # shown to each network of chapter 5, in whole epochs
    sequence_slices: int = 2200  # the same of chapter 6
    network_slices: int = 256  # in an epoch of each network of chapter 7
    network_seconds: float = 20  # of one core, of its training


FULL = Length()
SHORT = Length(
    patients=4,
    epochs=3,  # killed in the third
    strong_epochs=1,
    leak_steps=8,
    stair_slices=1,
    sequence_slices=1,
    network_slices=8,
    network_seconds=0,
)


def is_short() -> bool:
    """Tell whether the environment variable `COURSE_SHORT` asks for a short course, to see that every cell runs."""
    return os.environ.get("COURSE_SHORT", "") not in ("", "0")


@dataclass(frozen=True)
class Course:
    """Where a chapter finds its patients and leaves its results; see `start`.

    `data` is the folder of patients, `cohort` what was found there, and results go below `work`. `length` holds what
    differs between the course at full length and a short one, whose numbers mean nothing.
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
        return Recipe.strong.but(width=WIDTH, phantoms=False, epochs=self.length.strong_epochs)

    @property
    def prepared(self) -> Path:
        """Folder of the prepared slices."""
        return self.work / "prepared"

    def prepared_by(self, recipe: Recipe, name: str) -> Path:
        """Return the folder of the slices, or volumes, that a recipe prepares in the folder `name` of the results."""
        return self.work / name / f"prepared-{digest(recipe.stage(PREPARE))[:8]}"

    @property
    def run(self) -> Run:
        """The training run of chapter 3."""
        return Run(self.work / "run")

    @property
    def note(self) -> str:
        """The line to print under every figure."""
        return ("synthetic images; " if self.synthetic else "") + DISCLAIMER


@takes_paths
def start(data: str | Path | None = None, work: str | Path = "work") -> Course:
    """Open the data of the course, say which they are, and print the versions in use.

    `data`: a folder of patients (or its `.tar`) in any layout that `unetlib check` knows; `None` takes the one that the
    environment variable `COURSE_DATA` names or else the embedded synthetic cohort, which is made in `work` on the first
    call. Results are below `work`, in one folder per data set, and those of a short course (see `is_short`) below
    `work/short`. `UNETLIB_ASSUME` set to ras or lps gives the orientation of files that do not state theirs.

    Raises `UnetlibError` when the folder does not exist or holds no usable patient.
    """
    show_messages()
    _set_up_notebook()
    work, length = (Path(work) / "short", SHORT) if is_short() else (Path(work), FULL)
    named = data or os.environ.get("COURSE_DATA")
    if named:
        root = home(named)
        folder = work / f"{root.resolve().name}-{digest(str(root.resolve()))[:6]}"
        course = _open(root, folder, length)
    else:
        course = embedded(work, length)
    introduce(course)
    return course


def embedded(work: Path, length: Length) -> Course:
    """Return the course on the embedded synthetic cohort, which is made in `work` where it is not there yet."""
    folder = work / "synthetic"
    make_cohort(folder / "cohort", length.patients)
    return _open(folder / "cohort", folder, length)


def prepare_or_embedded(course: Course, make: Callable[[Course], Prepared]) -> tuple[Course, Prepared]:
    """Return a course and what `make` prepares of it, without messages.

    Where it cannot be made, a sentence says why, and the course of the embedded cohort is returned with what is
    prepared of that.
    """
    try:
        with quiet():
            return course, make(course)
    except UnetlibError as error:
        other = embedded(course.work.parent, course.length)
        if course.data == other.data:
            raise
        print(f"{error}\nSo this chapter goes on with the embedded synthetic cohort.")
    introduce(other)
    with quiet():
        return other, make(other)


def train_beside(data: Prepared, samples: SliceDataset, recipe: Recipe, **how: Any) -> tuple[Run, float]:
    """Train on samples of prepared data, without messages; return the run, beside the data, and its seconds.

    `how`: further arguments of `train`. An earlier run is reused.
    """
    run = Run(data.folder.parent / f"run-{digest([recipe.as_dict(), data.folder.name])[:8]}")
    with quiet():  # what chapter 3 has shown
        return run, train(samples, run, recipe, **how).seconds


def _open(root: Path, folder: Path, length: Length) -> Course:
    cohort = find_cases(root)
    if not cohort.cases:
        raise UnetlibError(f"{root} holds no usable patient. See what is there with: unetlib check {quoted(root)}")
    return Course(root, folder, cohort, any(map(_is_synthetic, cohort.cases[:3])), length)


def readable(cases: Iterable[Case]) -> Iterator[tuple[Case, Volume, numpy.ndarray, frozenset[int]]]:
    """Yield those cases that can be read, each with its image, mask and labels as `read_case` returns them."""
    for case in cases:
        with suppress(UnetlibError):  # `check` and `prepare` say why
            found = read_case(case)
            yield case, *found


def with_tumour_in_each_part(data: Prepared) -> Prepared:
    """Return prepared slices if each part of the split has some; raises `UnetlibError` otherwise."""
    if empty := [part for part, own in data.dataset().parts.items() if not len(own)]:
        raise UnetlibError(
            f"{data.folder}: no patient of the part {first_of(empty)} has a slice with tumour, so there is nothing to "
            "learn or to score. Give the course more patients."
        )
    return data


@dataclass(frozen=True)
class Step:
    """A step of chapter 5: a recipe that was trained and validated, and the Dice of each validation patient by name."""

    name: str
    recipe: Recipe
    data: Prepared
    run: Run
    dices: dict[str, float]

    @property
    def dice(self) -> float:
        """The mean over the patients."""
        return float(numpy.mean(list(self.dices.values())))

    def gains(self, before: "Step") -> numpy.ndarray:
        """Return what each patient gained over another step, (patients,), in the order of their names."""
        return numpy.array([self.dices[name] - before.dices[name] for name in sorted(self.dices)])


def climb(course: Course, name: str, recipe: Recipe, slices: int, before: Step | None = None) -> Step:
    """Prepare, train and validate a recipe, and say what it changed and gained; test patients are not scored.

    It is trained for the number of whole epochs (at least one) that comes nearest to showing `slices` slices. The split
    is that of `course.prepared`, where there is one. An earlier call with the same recipe is reused or resumed. Dice is
    volumetric: all slices of a patient, on the native grid.
    """
    prepared = course.prepared_by(recipe, "stairs")
    own, taken = course.prepared / SPLIT_FILE, prepared / SPLIT_FILE
    if own.exists() and not taken.exists():
        Split.load(own).save(taken)
    with quiet():  # what chapters 3 and 4 have shown
        data = prepare(course.data, prepared, recipe)
        shown = len(epoch_order(data.dataset(), recipe.balance, recipe.seed, epoch=0))
        recipe = recipe.but(epochs=max(1, round(slices / max(1, shown))))
        run = Run(prepared.parent / f"run-{digest(recipe.as_dict())[:8]}")
        seconds = run_recipe(recipe, prepared, run, part="val").state.seconds
    rows = read_patients(run.evaluation / "val")
    step, what, gain = Step(name, recipe, data, run, {row["patient"]: float(row["dice"]) for row in rows}), name, ""
    if before:
        what = f"{name}: {changed(before.recipe.as_dict(), recipe.as_dict()) or 'nothing changed'}"
        gain = f" ({step.dice - before.dice:+.3f})"
    print(what)
    work = f"{counted(recipe.epochs, 'epoch')} of {counted(shown, 'slice')}, {seconds:.0f} s of training"
    print(f"validation Dice {step.dice:.3f}{gain}, {counted(len(rows), 'patient')}; {work}")
    return step


def _is_synthetic(case: Case) -> bool:
    try:
        return is_synthetic(read_volume(case.images["flair"]))
    except UnetlibError:  # `check` and `prepare` name a damaged file
        return False


def introduce(course: Course) -> None:
    """Say which data a course shows, and print the versions in use."""
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
    modules = (torch, numpy, matplotlib)
    print(", ".join([f"unetlib {__version__}", *(f"{module.__name__} {module.__version__}" for module in modules)]))


def _set_up_notebook() -> None:
    """Have a notebook show full-width figures with alt texts, adapt to the load, and print an error as a sentence."""
    shell = get_ipython()
    if shell is not None:
        shell.run_line_magic("matplotlib", "inline")
        shell.display_formatter.formatters["image/png"].for_type(Figure, in_notebook)
        shell.events.register("pre_run_cell", use_idle_processors)
        shell.set_custom_exc((UnetlibError, KeyboardInterrupt), _sentence)


def _sentence(shell: Any, kind: type[BaseException], error: BaseException, *_: object, **__: object) -> list[str]:
    lines = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, lines)  # a custom handler has to show the error itself
    return lines
