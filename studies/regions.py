"""The study of REGIONS.md: what further sequences give to each region of the tumour, on patients of BraTS.

`python -m studies.regions BRATS [--arms four ...] [--folds 0 1 ...] [--status]` scores each test patient once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import markdown_table, record
from studies.cells import (
    STRONG,
    Cell,
    Scores,
    make_folds,
    pretrained,
    scores_of_regions,
    shuffled_patients,
    study_parser,
)
from studies.phantoms import FOUR
from studies.results import Result, measured_on
from unetlib import Recipe
from unetlib.data.split import Split
from unetlib.metrics import COUNTS, METRICS, Counts, bootstrap_interval
from unetlib.runs.run import Run
from unetlib.support.command import run_command

PAGE = Path(__file__).with_name("REGIONS.md")
FOLDS = 6
REGIONS = {"whole": "", "core": "core.", "enhancing": "enhancing."}  # and how their columns begin
FLAIR = STRONG.but(regions=FOUR["regions"], labels="brats2021")
SHOWN = (  # columns, their names in the table, and digits
    ("dice", "Dice", 3),
    ("lesion_dice", "lesion-wise Dice", 3),
    ("lesion_hd95_mm", "lesion-wise HD95, mm (less is better)", 1),
)
POOLED = ("dice", "accuracy", "precision", "recall", "specificity")
ARMS = {"flair": FLAIR, "four": FLAIR.but(modalities=FOUR["modalities"]), "published": Recipe.published}
AGAIN = {"flair-seed-1": FLAIR.but(seed=1), "four-seed-1": ARMS["four"].but(seed=1)}  # fold 0 alone: the noise


@dataclass(frozen=True)
class RegionsCell(Cell):
    """A cell of this study: every region is scored, and four sequences begin with the weights that are shipped."""

    def start_from(self, work: Path) -> Run | None:
        """Return the run on phantoms that it begins with; with four sequences some were hidden there."""
        dropped = FOUR["drop_modalities"] if " " in self.recipe.modalities else 0.0
        return pretrained(work, self.recipe.but(drop_modalities=dropped)) if self.phantoms else None

    def scores(self, folder: Path, data: Path) -> Scores:
        """Return the scores of every region."""
        return scores_of_regions(folder)


def folds_of(data: Path) -> list[Split]:
    """Return six splits: each tests a sixth, validates on the next sixth and trains on the others."""
    return make_folds(shuffled_patients(data), FOLDS, most=None)


def cell(arm: str, fold: int, data: Path) -> RegionsCell:
    """Return an arm on a fold."""
    recipe = {**ARMS, **AGAIN}[arm]
    return RegionsCell(f"regions-{arm}-fold-{fold}", recipe, folds_of(data)[fold], "test", None, arm != "published")


def mean_text(values: pd.Series, digits: int = 3, sign: str = "") -> str:
    """Return a mean over patients with its interval as text."""
    known = values.astype(float).dropna().to_numpy()
    interval, form = bootstrap_interval(known), f"{sign}.{digits}f"
    return f"{known.mean():{form}}" + (f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else "")


def compared(found: dict[str, Result]) -> str:
    """Return, for each region, the scores of both arms and their paired difference, in Markdown."""
    rows = []
    for score, label, digits in SHOWN:
        for region, begin in REGIONS.items():
            flair, four = (found[arm][begin + score].astype(float) for arm in ("flair", "four"))
            gains = (four - flair).dropna()
            means = mean_text(flair, digits), mean_text(four, digits), mean_text(gains, digits, "+")
            rows.append([label, region, *means, len(gains)])
    names = ("score", "region", "FLAIR", "four sequences", "four - FLAIR, paired", "patients")
    return markdown_table(names, rows)


def as_published(result: Result) -> list[str]:
    """Return the scores of the whole tumour as the recipe's author measures, and per patient on the native grid."""
    counts = Counts(*(result[f"model.{name}"].astype(float).sum() for name in COUNTS))
    return [*(f"{METRICS[name](counts):.4f}" for name in POOLED), mean_text(result["dice"])]


def write(data: Path) -> None:
    """Renew the tables of the page from what is measured."""
    results = {arm: [cell(arm, fold, data).result() for fold in range(FOLDS)] for arm in ARMS}
    found = {arm: pd.concat(own) for arm, some in results.items() if (own := [one for one in some if one is not None])}
    blocks = [f"Measured so far: {', '.join(f'{arm} {len(own)} patients' for arm, own in found.items()) or 'nothing'}."]
    if {"flair", "four"} <= found.keys():
        shared = found["flair"].index.intersection(found["four"].index)
        blocks.append(compared({arm: found[arm].loc[shared] for arm in ("flair", "four")}))
    for arm in AGAIN:
        one, other = (cell(name, 0, data).result() for name in (arm, arm.partition("-")[0]))
        if one is not None and other is not None:
            noise = [
                f"{region} {np.mean(one[begin + 'dice'].astype(float) - other[begin + 'dice'].astype(float)):+.3f}"
                for region, begin in REGIONS.items()
            ]
            blocks.append(f"Another seed on fold 0, {arm}: mean Dice {', '.join(noise)}.")
    if found:
        columns = ("arm", "pooled Dice", *POOLED[1:], "per patient, native")
        table = markdown_table(columns, [[arm, *as_published(own)] for arm, own in found.items()])
        blocks += ["Whole tumour; pooled over slices with tumour on the model's grid:", table]
    record("regions", *blocks, f"{data.name}; {measured_on('regions-')}", page=PAGE)


def main() -> None:
    """Do what is missing, then renew the tables."""
    parser = study_parser("regions", __doc__)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *AGAIN], default=[*ARMS, *AGAIN])
    parser.add_argument("--folds", type=int, nargs="*", choices=range(FOLDS), default=list(range(FOLDS)))
    arguments = parser.parse_args()
    data, work = arguments.data, arguments.work
    for fold in arguments.folds:
        for arm in arguments.arms:
            if arm in AGAIN and fold:
                continue
            one = cell(arm, fold, data)
            if not arguments.status:
                one.measure(data, work)
            print(f"{one.name:28} {one.progress(work)}", flush=True)
    write(data)


if __name__ == "__main__":
    run_command(main)
