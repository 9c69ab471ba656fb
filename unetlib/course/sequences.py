"""Chapter 6: the same network on one sequence or on several, and what a missing sequence costs."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from unetlib.course.start import Course, prepare_or_embedded, train_beside
from unetlib.data.patients import MODALITIES, Case, find_cases
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.dataset import SliceDataset
from unetlib.metrics import count, dice
from unetlib.prediction.predictor import Predictor
from unetlib.recipe import REGIONS, Recipe
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError

PARTS = "oedema", "core, not enhancing", "enhancing"  # of a tumour, without overlap


def open_sequences(course: Course, recipe: Recipe) -> tuple[Course, Prepared]:
    """Prepare the sequences that most cases have, in BraTS's three regions; return what `prepare_or_embedded` does."""
    return prepare_or_embedded(course, lambda one: _prepare(one, recipe))


def _prepare(course: Course, recipe: Recipe) -> Prepared:
    cases = course.cohort.cases
    found = [name for name in MODALITIES if 2 * sum(name in case.images for case in cases) > len(cases)]
    if len(found) < 2:
        raise UnetlibError(
            f"The patients in {course.data.name} have {' and '.join(found)} only, not several sequences."
        )
    recipe = recipe.but(modalities=" ".join(found), regions=" ".join(REGIONS))
    return prepare(course.data, course.prepared_by(recipe, "sequences"), recipe)


def choose_sequences(data: Prepared, modalities: str) -> SliceDataset:
    """Return the slices with these sequences alone, in this order: images (N, C, S, S) of C words."""
    known, slices = data.about["recipe"]["modalities"].split(), data.dataset()
    places = [known.index(name) for name in modalities.split()]
    beside = [*range(places[0], places[0] + len(places))] == places  # then nothing is copied from the disk
    return replace(slices, images=slices.images[:, places[0] : places[-1] + 1] if beside else slices.images[:, places])


def validation_cases(course: Course, data: Prepared) -> list[Case]:
    """Return the cases of the validation patients, that with most of the last region first, to be read as prepared."""
    about, last = data.about["cases"], len(data.about["recipe"]["regions"].split()) - 1
    pixels = (data.masks >> last & 1).sum((1, 2, 3))
    ends = np.cumsum([case["slices"] for case in about.values()])
    sizes = {name: part.sum() for name, part in zip(about, np.split(pixels, ends[:-1]), strict=True)}
    cases = find_cases(course.data, data.about["recipe"]["modalities"]).cases
    mine = [case for case in cases if case.patient in data.split.val and case.id in sizes]
    return sorted(mine, key=lambda case: sizes[case.id], reverse=True)


def learn(course: Course, data: Prepared, recipe: Recipe, modalities: str, drop: float = 0.0) -> Run:
    """Train a network that sees these sequences, say how long it took, and return its run; an earlier one is reused.

    It is trained for the number of whole epochs (at least one) that comes nearest to `course.length.sequence_slices`
    slices. `drop` hides each sequence with this probability (`drop_modalities` of the recipe).
    """
    slices, about = choose_sequences(data, modalities), data.about["recipe"]
    epochs = max(1, round(course.length.sequence_slices / max(1, len(slices.indices("train")))))
    recipe = Recipe(**recipe.as_dict() | about | {"modalities": modalities, "drop_modalities": drop, "epochs": epochs})
    run, seconds = train_beside(data, slices, recipe)
    print(f"{modalities}{f', each hidden in {drop:.0%} of slices' if drop else ''}: {seconds:.0f} s of training")
    return run


def validate(run: Run, data: Prepared, hidden: str = "") -> np.ndarray:
    """Return the Dice (P, K) of every validation patient, by name, in every region, over the prepared slices.

    `hidden`: a sequence that is 0 in all images, as if it had not been recorded.
    """
    modalities = run.recipe.modalities
    slices = choose_sequences(data, modalities)
    images, masks = slices.batch(at := slices.indices("val"))
    if hidden:
        images[:, modalities.split().index(hidden)] = 0
    found = Predictor.open(run).slices(images) >= 0.5
    cases = data.about["cases"].values()
    patients = np.repeat([case["patient"] for case in cases], [case["slices"] for case in cases])[at]
    return dice(count(found.numpy(), masks.numpy()).grouped(patients)[1])


def contrasts(images: Tensor, masks: Tensor) -> np.ndarray:
    """Return how much brighter each of the `PARTS` is than what it is to be told from, in its deviations, (C, 3).

    Oedema is told from the head around the tumour, the core from oedema, the enhancing part from the rest of the
    tumour. `images`: (N, C, S, S). `masks`: (N, 3, S, S), whole tumour, core, enhancing. NaN where one is empty.
    """
    whole, core, enhancing = (masks.numpy() > 0).swapaxes(0, 1)
    rows = []
    for one in images.numpy().swapaxes(0, 1):
        head, oedema = (one > one.mean()) & ~whole, whole & ~core
        pairs = ((oedema, head), (core & ~enhancing, oedema), (enhancing, whole & ~enhancing))
        rows.append([_contrast(one[part], one[other]) for part, other in pairs])
    return np.array(rows)


def _contrast(part: np.ndarray, other: np.ndarray) -> float:
    return float((part.mean() - other.mean()) / other.std()) if part.size and other.size else np.nan
