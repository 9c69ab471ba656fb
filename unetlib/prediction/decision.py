"""From the probability of every voxel to a mask: a threshold, and the smallest component to keep.

Both come from the recipe, or are chosen after training on the validation patients, never on test patients.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from unetlib import metrics
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.runs.run import Run
from unetlib.support.files import read_json, write_json
from unetlib.support.records import TEXT, one_of, require

THRESHOLDS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
SIZES_ML = (0.0, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Decision:
    """How probabilities become a mask: tumour from `threshold` on, in components of at least `smallest_ml`.

    The largest component is always kept, so that a limit chosen on large tumours cannot erase a small one.
    """

    threshold: float
    smallest_ml: float = 0.0

    def mask(self, probabilities: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
        """Return the boolean mask of a volume of probabilities, (X, Y, Z) or (K, X, Y, Z); `spacing`: mm per voxel."""
        if probabilities.ndim == 4:
            return np.stack([self.mask(region, spacing) for region in probabilities])
        found = probabilities >= self.threshold
        if not self.smallest_ml:
            return found
        labels, sizes = _components(found, spacing)
        return _kept(sizes, self.smallest_ml)[labels]


def dice_table(probabilities: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> list[list[float]]:
    """Return the Dice of a volume for every threshold (rows) and smallest component (columns) that are tried."""
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
    """Return the decision with the highest mean Dice over the patients' tables.

    Ties go to the threshold nearest to 0.5, then to the smallest component.
    """
    mean = np.mean(tables, axis=0)
    ranked = sorted(
        (-round(float(mean[i, j]), 9), abs(threshold - 0.5), smallest, threshold)
        for i, threshold in enumerate(THRESHOLDS)
        for j, smallest in enumerate(SIZES_ML)
    )
    return Decision(ranked[0][3], ranked[0][2])


def _components(found: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return each voxel's component number (joined by faces; 0: none) and the components' volumes in millilitres."""
    labels, _ = ndimage.label(found)
    sizes = metrics.millilitres(np.bincount(labels.ravel()), spacing)
    sizes[0] = -1  # the background is never kept
    return labels, sizes


def _kept(sizes: np.ndarray, smallest_ml: float) -> np.ndarray:
    """Tell which components are kept: those of at least `smallest_ml`, and the largest (all, if several are)."""
    return (sizes >= 0) & (sizes >= min(smallest_ml, sizes.max()))


def write_decision(run: Run, decision: Decision, mean_dice: float, patients: int, mirror: bool) -> None:
    """Write the decision of a run, with the hash of its weights and whether prediction uses a `mirror`."""
    about = {"weights": run.weights, "validation_dice": mean_dice, "validation_patients": patients}
    about["mirror"] = mirror
    write_json(run.decision_file, asdict(decision) | about)


def how_to_decide(run: Run) -> str:
    """Return how a run gets its decision; without the latest checkpoint, `train` would replace the weights."""
    again = f"unetlib train PREPARED {run}" if run.latest.exists() else f"in Python with unetlib.tune({str(run)!r})"
    return f"Copy {run.recipe_file.name} and {run.decision_file.name} from the original run, or choose again: {again}"


def read_decision(run: Run, recipe: Recipe) -> Decision | None:
    """Return the decision of a run: the recipe's threshold, or the one tuned for its weights (`None` if not tuned yet).

    Raises `UnetlibError` when its file is damaged or was edited.
    """
    if not recipe.tune:
        return Decision(recipe.threshold)
    path = run.decision_file
    if not path.exists():
        return None
    content, advice = read_json(path), f"Delete it. {how_to_decide(run)}"
    require(content, path, advice, threshold=one_of(*THRESHOLDS), smallest_ml=one_of(*SIZES_ML), weights=TEXT)
    if content["weights"] != run.weights:
        return None
    if "mirror" not in content:  # before 0.5 it was that of the training
        content["mirror"] = load_checkpoint(run.best)["recipe"].get("mirror", False)
    return Decision(content["threshold"], content["smallest_ml"]) if content["mirror"] == recipe.mirror else None
