"""From the probability of every voxel to a mask: a threshold, and the smallest component to keep, for each region.

Both come from the recipe, or are chosen after training on the validation patients, never on test patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from unetlib import metrics
from unetlib.data.regions import region_names
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.support.errors import quoted
from unetlib.support.files import read_json, write_json
from unetlib.support.records import RECORD, TEXT, Kind, one_of, require

THRESHOLDS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
SIZES_ML = (0.0, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Decision:
    """How probabilities become a mask: tumour from `threshold` on, in components of at least `smallest_ml`.

    With `keep_largest` the largest component is always kept, so that a limit chosen on large tumours cannot erase a
    small one; see `keeps_largest`.
    """

    threshold: float
    smallest_ml: float = 0.0
    keep_largest: bool = True

    def mask(self, probabilities: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        """Return the boolean mask of a volume of probabilities, (X, Y, Z) or (K, X, Y, Z); `spacing`: mm per voxel."""
        if probabilities.ndim == 4:
            return np.stack([self.mask(region, spacing) for region in probabilities])
        found = probabilities >= self.threshold
        if not self.smallest_ml:
            return found
        labels, sizes = _components(found, spacing)
        return _kept(sizes, self.smallest_ml, self.keep_largest)[labels]

    def of(self, region: str) -> "Decision":
        """Return this decision, which holds for every region alike."""
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return threshold and smallest component as written to `decision.json`."""
        return {"threshold": self.threshold, "smallest_ml": self.smallest_ml}


@dataclass(frozen=True)
class Decisions:
    """A decision for each of several regions, by name, in the order of the recipe."""

    regions: dict[str, Decision]

    @property
    def threshold(self) -> np.ndarray:
        """The thresholds, (K, 1, 1), to compare with probabilities (..., K, H, W)."""
        return np.array([one.threshold for one in self.regions.values()])[:, None, None]

    def mask(self, probabilities: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        """Return the boolean masks of a volume of probabilities (K, X, Y, Z); `spacing`: mm per voxel."""
        both = zip(self.regions.values(), probabilities, strict=True)
        return np.stack([one.mask(region, spacing) for one, region in both])

    def of(self, region: str) -> Decision:
        """Return the decision for a region."""
        return self.regions[region]

    def as_dict(self) -> dict[str, Any]:
        """Return threshold and smallest component of each region as written to `decision.json`."""
        each = {name: one.as_dict() for name, one in self.regions.items()}
        return {kind: {name: one[kind] for name, one in each.items()} for kind in ("threshold", "smallest_ml")}


def keeps_largest(region: str) -> bool:
    """Tell whether the largest component of a region always stays: that of the whole tumour, which every patient has.

    A patient may lack any other region, also one of one's own that is the only one. There, a piece that stays whatever
    its size would be invented tumour.
    """
    return region == "whole"


def joined(regions: dict[str, Decision]) -> Decision | Decisions:
    """Return the decision for the only region, or those for several."""
    return Decisions(regions) if len(regions) > 1 else next(iter(regions.values()))


def mean_decision(decisions: Sequence[Decision | Decisions]) -> Decision | Decisions:
    """Return the decision with the mean threshold and the mean smallest component of several, for each region."""
    names = next((list(one.regions) for one in decisions if isinstance(one, Decisions)), [""])
    return joined({name: _mean([one.of(name) for one in decisions]) for name in names})


def _mean(decisions: Sequence[Decision]) -> Decision:
    thresholds, sizes = zip(*((one.threshold, one.smallest_ml) for one in decisions), strict=True)
    return Decision(float(np.mean(thresholds)), float(np.mean(sizes)), all(one.keep_largest for one in decisions))


def dice_table(
    probabilities: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float], keep_largest: bool = True
) -> list[list[float]]:
    """Return the Dice of a region for every threshold (rows) and smallest component (columns) that are tried.

    `probabilities`, `truth`: (X, Y, Z). `keep_largest` as in `Decision`.
    """
    table = []
    for threshold in THRESHOLDS:
        labels, sizes = _components(probabilities >= threshold, spacing)
        voxels = np.bincount(labels.ravel(), minlength=len(sizes))
        hits = np.bincount(labels[truth], minlength=len(sizes))
        row = []
        for smallest in SIZES_ML:
            kept = _kept(sizes, smallest, keep_largest)
            tp, positive, true = hits[kept].sum(), voxels[kept].sum(), int(truth.sum())
            tn = truth.size - positive - true + tp
            row.append(float(metrics.dice(metrics.Counts(tp, positive - tp, true - tp, tn))))
        table.append(row)
    return table


def choose(tables: list[list[list[float]]], keep_largest: bool = True) -> Decision:
    """Return the decision for a region with the highest mean Dice over the patients' tables.

    Ties go to the threshold nearest to 0.5, then to the smallest component.
    """
    mean = np.mean(tables, axis=0)
    _, _, smallest, threshold = min(
        (-round(float(mean[i, j]), 9), abs(threshold - 0.5), smallest, threshold)
        for i, threshold in enumerate(THRESHOLDS)
        for j, smallest in enumerate(SIZES_ML)
    )
    return Decision(threshold, smallest, keep_largest)


def _components(found: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return each voxel's component number (joined by faces; 0: none) and the components' volumes in millilitres."""
    labels, _ = ndimage.label(found)
    sizes = metrics.millilitres(np.bincount(labels.ravel()), spacing)
    sizes[0] = -1  # the background is never kept
    return labels, sizes


def _kept(sizes: np.ndarray, smallest_ml: float, keep_largest: bool) -> np.ndarray:
    """Tell which components stay: those of at least `smallest_ml`; if asked, the largest (all, if several are)."""
    return (sizes >= 0) & (sizes >= (min(smallest_ml, sizes.max()) if keep_largest else smallest_ml))


def write_decision(
    run: Run, decision: Decision | Decisions, mean_dice: float | dict[str, float], patients: int, mirror: bool
) -> None:
    """Write the decision of a run, with the hash of its weights and whether prediction uses a `mirror`.

    `mean_dice`: of the validation patients; of several regions, by name.
    """
    about = {"weights": run.weights, "validation_dice": mean_dice, "validation_patients": patients, "mirror": mirror}
    write_json(run.decision_file, decision.as_dict() | about)


def how_to_decide(run: Run) -> str:
    """Return how a run gets its decision; without the latest checkpoint, `train` refuses it."""
    again = f"in Python with unetlib.tune({str(run)!r})"
    if run.latest.exists():
        again = f"unetlib train PREPARED {quoted(run)}"
    return f"Copy {run.recipe_file.name} and {run.decision_file.name} from the original run, or choose again: {again}"


def read_decision(run: Run, recipe: Recipe) -> Decision | Decisions | None:
    """Return the decision of a run: the recipe's threshold, or the one tuned for its weights (`None` if not tuned yet).

    Raises `UnetlibError` when its file is damaged, was edited, or is of other regions.
    """
    if not recipe.tune:
        return Decision(recipe.threshold)
    path = run.decision_file
    if not path.exists():
        return None
    content, advice = read_json(path), f"Delete it. {how_to_decide(run)}"
    names = region_names(recipe)
    kinds = {"threshold": one_of(*THRESHOLDS), "smallest_ml": one_of(*SIZES_ML)}
    if len(names) > 1:
        kinds = {name: _for_each(names, kind) for name, kind in kinds.items()}
    require(content, path, advice, **kinds, weights=TEXT)
    if content["weights"] != run.weights:
        return None
    if "mirror" not in content:  # before 0.5 it was that of the training
        content["mirror"] = load_checkpoint(run.best)["recipe"].get("mirror", False)
    if content["mirror"] != recipe.mirror:
        return None
    pairs = [(content["threshold"], content["smallest_ml"])]
    if len(names) > 1:
        pairs = [(content["threshold"][name], content["smallest_ml"][name]) for name in names]
    return joined({name: Decision(*pair, keeps_largest(name)) for name, pair in zip(names, pairs, strict=True)})


def _for_each(names: Sequence[str], kind: Kind) -> Kind:
    """Return the kind of an object with a value of a kind for each of the names, in any order."""
    return Kind(
        lambda value: RECORD.fits(value) and value.keys() == set(names) and all(map(kind.fits, value.values())),
        f"for each of {', '.join(names)} {kind.expected}",
    )
