"""From the probability of every voxel to a mask: a threshold, and the smallest component that is kept.

Both are the recipe's, or chosen after training on the validation patients, never on those of the test.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from unetlib import metrics
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import BEST
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json, sha256, write_json

FILE = "decision.json"
THRESHOLDS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
SIZES_ML = (0.0, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Decision:
    """How a probability becomes a mask: tumour from `threshold` on, in pieces of `smallest_ml` or more.

    The largest piece stays whatever its size: a number chosen on large tumours must not erase all of a small one.
    """

    threshold: float
    smallest_ml: float = 0.0

    def mask(self, probabilities: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        """Return the boolean mask of a volume of probabilities (X, Y, Z); `spacing`: mm a voxel."""
        found = probabilities >= self.threshold
        if not self.smallest_ml:
            return found
        labels, sizes = _components(found, spacing)
        return _kept(sizes, self.smallest_ml)[labels]


def dice_table(probabilities: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> list[list[float]]:
    """Return the Dice of a volume for every threshold (rows) and every smallest component (columns) that is tried."""
    table = []
    for threshold in THRESHOLDS:
        labels, sizes = _components(probabilities >= threshold, spacing)
        voxels = np.bincount(labels.ravel(), minlength=len(sizes))
        hits = np.bincount(labels[truth], minlength=len(sizes))
        row = []
        for smallest in SIZES_ML:
            kept = _kept(sizes, smallest)
            tp, positive, true = hits[kept].sum(), voxels[kept].sum(), int(truth.sum())
            tn = truth.size - positive - true + tp
            row.append(float(metrics.dice(metrics.Counts(tp, positive - tp, true - tp, tn))))
        table.append(row)
    return table


def choose(tables: list[list[list[float]]]) -> Decision:
    """Return the decision with the highest mean Dice over the patients' tables; of equal ones the most usual.

    Usual is a threshold near 0.5 and then a small component.
    """
    mean = np.mean(tables, axis=0)
    ranked = sorted(
        (-round(float(mean[i, j]), 9), abs(threshold - 0.5), smallest, threshold)
        for i, threshold in enumerate(THRESHOLDS)
        for j, smallest in enumerate(SIZES_ML)
    )
    return Decision(ranked[0][3], ranked[0][2])


def _components(found: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each voxel's component (joined by faces; 0 is none) and the components' millilitres."""
    labels, _ = ndimage.label(found)
    sizes = np.bincount(labels.ravel()) * np.prod(spacing) / 1000
    sizes[0] = -1  # what was not found is never kept
    return labels, sizes


def _kept(sizes: np.ndarray, smallest_ml: float) -> np.ndarray:
    """Tell which components stay: those of `smallest_ml` or more, and the largest (of equal ones all)."""
    return (sizes >= 0) & (sizes >= min(smallest_ml, sizes.max()))


def write_decision(run: Path, decision: Decision, mean_dice: float, patients: int) -> None:
    """Keep the decision of a run beside the weights that it was made for."""
    about = {"weights": sha256(run / BEST), "validation_dice": mean_dice, "validation_patients": patients}
    write_json(run / FILE, asdict(decision) | about)


def read_decision(run: Path, recipe: Recipe) -> Decision | None:
    """Return the decision of a run: the recipe's threshold, or what was chosen for its weights; `None` before that.

    Raises `UnetlibError` when its file is damaged or was edited.
    """
    if not recipe.tune:
        return Decision(recipe.threshold)
    path = run / FILE
    if not path.exists():
        return None
    content = read_json(path)
    threshold, smallest = content.get("threshold"), content.get("smallest_ml")
    if threshold not in THRESHOLDS or smallest not in SIZES_ML:
        raise UnetlibError(
            f"{path}: a threshold of {THRESHOLDS} and a smallest component of {SIZES_ML} were expected; it was edited "
            f"or damaged. Delete it, and choose anew with: unetlib train PREPARED {run}"
        )
    return Decision(threshold, smallest) if content.get("weights") == sha256(run / BEST) else None
