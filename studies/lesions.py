"""Lesion-wise figures beside those of `brats-evaluation` (panoptica), which matches lesions in another way.

Run from the repository's root: `python -m studies.lesions DATA --brats brats/bin/brats-evaluate`, as `studies.oracles`.
It renews the section on lesions of `ORACLES.md`: five drawn cases, and the predictions of `tests/oracles.py` for every
patient of DATA. Ends with status 1 when a value differs by more than 1e-6 where both definitions are the same: every
part of the reference is a lesion of more than 50 voxels, every part of the prediction touches at most one lesion and
then overlaps it, and no lesion is touched by two.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.common import machine, markdown_table, parser, record
from studies.oracles import CUBES, MOST, PAGE, Brats, by_brats, gap, version_of
from tests import oracles
from unetlib import find_cases, read_case
from unetlib.evaluation.lesions import SMALLEST_MM3, STEP, TOUCHING, lesion_figures
from unetlib.support.command import BEGINS_ANEW, run_command
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.version import __version__

PACKAGES = ("numpy", "scipy", "surface-distance")
A = ((4, 4, 4), (6, 6, 6))
B = ((18, 4, 4), (6, 6, 6))
DRAWN = {  # question -> boxes of the prediction, of the reference, and our reason
    "one of two lesions missed": ([A], [A, B], "no difference"),
    "a false alarm": ([A, B], [A], "no difference"),
    "two parts 3 voxels apart, one found": ([A], [A, ((13, 4, 4), (6, 6, 6))], "parts that touch once dilated are one"),
    "one part over two lesions": ([((4, 4, 4), (20, 6, 6))], [A, B], "a part may serve two lesions"),
    "two parts for one lesion": (
        [((4, 4, 4), (3, 6, 6)), ((11, 4, 4), (2, 6, 6))],
        [A],
        "all parts that touch the dilated lesion are its match",
    ),
    "a lesion of 50 voxels missed": ([A], [A, ((20, 4, 4), (2, 5, 5))], "too small to be scored"),
    "both empty": ([], [], "there is no error: the best value"),
}


def same_definition(prediction: np.ndarray, truth: np.ndarray) -> bool:
    """Tell whether a matching one to one by overlap gives the same lesions and matches as ours."""
    grown, number = ndimage.label(ndimage.binary_dilation(truth, STEP, iterations=3), TOUCHING)
    (lesions, alone), (parts, _) = (ndimage.label(mask, TOUCHING) for mask in (truth, prediction))
    touched, overlapped = (
        {*map(tuple, np.unique(np.stack([grown[both], parts[both]]), axis=1).T.tolist())}
        for both in ((grown > 0) & prediction, truth & prediction)
    )
    sizes = np.bincount(lesions[truth])[1:]
    one_to_one = all(len({*labels}) == len(labels) for labels in zip(*touched, strict=True))
    return number == alone and (sizes > SMALLEST_MM3).all() and one_to_one and touched == overlapped


def dice_of(found: Brats) -> float:
    """Return the mean Dice over lesions and false alarms, from the mean over matched lesions of the BraTS package."""
    every = found["tp"] + found["fp"] + found["fn"]
    return found["sq_dsc"] * found["tp"] / every if found["tp"] else 0.0 if every else float("nan")


def drawn(command: str) -> Iterator[list[str]]:
    """Yield a row for each drawn case: ours, theirs, and the reason for a difference."""
    pairs = [[oracles.drawn(*boxes) for boxes in case[:2]] for case in DRAWN.values()]
    official = by_brats(command, [(*pair, CUBES) for pair in pairs])
    for (question, (*_, why)), pair, found in zip(DRAWN.items(), pairs, official, strict=True):
        ours = lesion_figures(*pair, CUBES)
        figures = (ours.dice, dice_of(found), ours.hd95, found["sq_hd95"])
        yield [question, *(f"{figure:.4g}" for figure in figures), why]


def measured(command: str, data: Path) -> tuple[list[str], bool]:
    """Return how far predictions for the patients of a folder are from the BraTS package, and whether they agree."""
    cases, pairs = find_cases(data).cases, []
    for case in cases:
        volume, truth, _ = read_case(case)
        pairs += [(prediction, truth, CUBES) for prediction in oracles.predictions(volume.voxels, truth).values()]
    ours = np.array([lesion_figures(*pair).dice for pair in pairs])
    theirs = np.array([dice_of(found) for found in by_brats(command, pairs)])
    same = np.array([same_definition(*pair[:2]) for pair in pairs])
    most = gap(ours[same], theirs[same])["gap"]
    lines = [
        f"{same.sum()} of {len(same)} predictions for {counted(len(cases), 'patient')} have the same lesions and "
        f"matches in both: the greatest difference of the lesion-wise Dice is {most:.1e}.",
        f"In the others its mean is {ours[~same].mean():.4f} here and {np.nanmean(theirs[~same]):.4f} there.",
    ]
    return lines, bool(most <= MOST)


def main() -> int:
    """Measure, print, record; return the exit status."""
    options = parser("studies.lesions", __doc__, brats="brats-evaluate")
    options.add_argument("data", type=Path, help="folder of patients")
    arguments = options.parse_args()
    if not (command := shutil.which(arguments.brats)):
        raise UnetlibError(f"{arguments.brats} was not found; name the command of brats-evaluation with --brats.")
    command = str(Path(command).absolute())
    columns = ("drawn case", "Dice, unetlib", "Dice, brats-evaluation", "HD95, unetlib", "HD95 of its matches")
    table, (lines, agree) = markdown_table((*columns, "our reason"), drawn(command)), measured(command, arguments.data)
    versions = f"unetlib {__version__}, {version_of(command)}"
    about = f"`python -m studies.lesions {arguments.data.name}`, {machine(PACKAGES)}, {versions}."
    record("lesion by lesion", "\n\n".join([about, table, *lines]), page=PAGE)
    return int(not agree)


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
