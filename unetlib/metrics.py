"""Every figure is a function of four counts: true and false positives and negatives.

Three ways to bring many slices to one figure are in use, and they differ. They are always named:

- pooled: add the counts of all slices, then compute once (the published figure; Dice equals F1);
- per slice: compute for each slice, then take the mean;
- per patient: add the counts of each patient's slices (volumetric), compute, then take the mean.

The rule for 0/0: a figure whose denominator is 0 is 1 where there is no error at all (FP = FN = 0,
such as an empty mask predicted empty) and 0 otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unetlib.support.errors import UnetlibError


@dataclass(frozen=True)
class Counts:
    """Numbers of pixels, as int64 arrays of one shape (one entry a slice, a patient, or a scalar)."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    def sum(self) -> "Counts":
        """Return the counts added up over all entries."""
        return Counts(*(np.asarray(part.sum()) for part in (self.tp, self.fp, self.fn, self.tn)))

    def grouped(self, keys: np.ndarray) -> tuple[np.ndarray, "Counts"]:
        """Return the distinct keys, sorted, and the counts added up over the entries of each key."""
        names, group = np.unique(keys, return_inverse=True)
        parts = []
        for part in (self.tp, self.fp, self.fn, self.tn):
            total = np.zeros(len(names), dtype=np.int64)
            np.add.at(total, group, part)
            parts.append(total)
        return names, Counts(*parts)

    @classmethod
    def concatenate(cls, many: "Sequence[Counts]") -> "Counts":
        """Return the entries of several counts behind one another."""
        return cls(*(np.concatenate([getattr(one, name) for one in many]) for name in ("tp", "fp", "fn", "tn")))


def count(prediction: np.ndarray, truth: np.ndarray) -> Counts:
    """Count the pixels of each slice: masks (N, ...) of 0 and 1 give four int64 arrays (N,).

    Raises `UnetlibError` when the shapes differ or a mask holds other values than 0 and 1.
    """
    if prediction.shape != truth.shape:
        raise UnetlibError(
            f"prediction of shape {prediction.shape} and truth of shape {truth.shape} cannot be compared."
        )
    p, t = _as_bool(prediction, "prediction"), _as_bool(truth, "truth")
    axes = tuple(range(1, p.ndim))
    tp, positive, true = ((p & t).sum(axes), p.sum(axes), t.sum(axes))
    pixels = np.prod(p.shape[1:], dtype=np.int64)
    return Counts(*(np.asarray(x, np.int64) for x in (tp, positive - tp, true - tp, pixels - positive - true + tp)))


def _as_bool(mask: np.ndarray, name: str) -> np.ndarray:
    if mask.dtype != bool and not np.isin(values := np.unique(mask), (0, 1)).all():
        raise UnetlibError(
            f"the {name} holds {values[:5].tolist()}; a mask of 0 and 1 was expected. Divide a 0/255 mask by 255, "
            "and threshold probabilities first."
        )
    return mask.astype(bool)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, c: Counts, undefined: float | None) -> np.ndarray:
    """Divide; 0/0 becomes `undefined`, or what the rule of this module says."""
    rule = np.where((c.fp == 0) & (c.fn == 0), 1.0, 0.0)
    return np.where(denominator == 0, rule if undefined is None else undefined, numerator / np.maximum(denominator, 1))


# Each takes counts of any shape and gives figures of that shape. 0/0 follows the rule at the top of
# this page, unless `undefined` names another value (NaN to find the entries that the rule touched).


def dice(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return 2 TP / (2 TP + FP + FN), in 0..1 (Dice 1945)."""
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn, c, undefined)


def iou(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return TP / (TP + FP + FN), intersection over union, in 0..1 (Jaccard 1912)."""
    return _ratio(c.tp, c.tp + c.fp + c.fn, c, undefined)


def accuracy(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return (TP + TN) / all pixels, in 0..1. High for any network where tumour is rare: read it with care."""
    return _ratio(c.tp + c.tn, c.tp + c.fp + c.fn + c.tn, c, undefined)


def precision(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return TP / (TP + FP), the share of the prediction that is tumour, in 0..1."""
    return _ratio(c.tp, c.tp + c.fp, c, undefined)


def recall(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return TP / (TP + FN), the share of the tumour that is found (sensitivity), in 0..1."""
    return _ratio(c.tp, c.tp + c.fn, c, undefined)


def specificity(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return TN / (TN + FP), the share of the healthy pixels that is left alone, in 0..1."""
    return _ratio(c.tn, c.tn + c.fp, c, undefined)


def f1(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return the harmonic mean of precision and recall, in 0..1; equal to Dice on the same counts."""
    p, r = precision(c), recall(c)
    mean = 2 * p * r / np.where(p + r == 0, 1, p + r)
    return mean if undefined is None else np.where(c.tp + c.fp + c.fn == 0, undefined, mean)


class Metric(Protocol):
    """A function of counts."""

    def __call__(self, c: Counts, undefined: float | None = None) -> np.ndarray: ...  # noqa: D102


METRICS: dict[str, Metric] = {
    "dice": dice,
    "iou": iou,
    "accuracy": accuracy,
    "precision": precision,
    "recall": recall,
    "specificity": specificity,
    "f1": f1,
}


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 10_000) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of the mean of `values` (one a patient).

    `None` for fewer than two values, which say nothing of the spread. The draws are by position: the
    same values in another order give an interval that differs by the chance of the draws.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    if len(values) < 2:
        return None
    rows = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def surface_figures(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float], tolerance: float = 2.0
) -> tuple[float, float]:
    """Return HD95 and the surface Dice at `tolerance`, both in millimetres, of two boolean volumes (X, Y, Z).

    HD95 is the larger of the two directed 95th percentiles of the surface distances; `inf` when one
    mask is empty, 0 when both are (the surface Dice is then 0 and 1). `spacing`: mm a voxel. Where
    exactly 95 % of a surface ends at one distance, rounding decides between it and the next.

    Source: Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy", JMIR 2021,
    whose implementation computes them; each surface element counts with its area.
    """
    from surface_distance import metrics as surface  # brings scipy: 0.3 s of the start of every training

    if not prediction.any() or not truth.any():
        return (0.0, 1.0) if prediction.any() == truth.any() else (float("inf"), 0.0)
    distances = surface.compute_surface_distances(truth, prediction, spacing)
    return (
        float(surface.compute_robust_hausdorff(distances, 95)),
        float(surface.compute_surface_dice_at_tolerance(distances, tolerance)),
    )
