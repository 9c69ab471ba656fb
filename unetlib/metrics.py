"""Metrics as functions of four counts: true and false positives and negatives.

There are three common ways to summarise many slices in one number. They differ, so each is always named:

- pooled: add the counts of all slices, then compute once (as published; Dice equals F1);
- per slice: compute for each slice, then take the mean;
- per patient: add the counts of each patient's slices (volumetric), compute, then take the mean.

The rule for 0/0: a metric whose denominator is 0 is 1 where there is no error at all (FP = FN = 0,
such as an empty mask predicted empty) and 0 otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unetlib.support.errors import UnetlibError

COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True)
class Counts:
    """Numbers of pixels in four int64 arrays of one shape (..., K): entries (slices or patients) and K regions.

    Counts are summed over entries, never over regions.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    def sum(self) -> "Counts":
        """Return the counts (K,) of each region, added up over all entries (N, K)."""
        return Counts(*(getattr(self, name).sum(0) for name in COUNTS))

    def grouped(self, keys: np.ndarray) -> tuple[np.ndarray, "Counts"]:
        """Return the distinct keys, sorted, and the counts (keys, K), added up over the entries (N, K) of each key."""
        names, group = np.unique(keys, return_inverse=True)
        totals = [np.zeros((len(names), *self.tp.shape[1:]), np.int64) for _ in COUNTS]
        for total, name in zip(totals, COUNTS, strict=True):
            np.add.at(total, group, getattr(self, name))
        return names, Counts(*totals)

    @classmethod
    def concatenate(cls, many: "Sequence[Counts]") -> "Counts":
        """Return the entries of several counts, one after another."""
        return cls(*(np.concatenate([getattr(one, name) for one in many]) for name in COUNTS))


def count(prediction: np.ndarray, truth: np.ndarray) -> Counts:
    """Count the pixels of each slice and region: masks (N, K, H, W) of 0 and 1 give four int64 arrays (N, K).

    Volumes (N, K, X, Y, Z) work in the same way. Raises `UnetlibError` when the shapes differ, the axis of the
    regions is missing, or a mask holds other values than 0 and 1.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim < 4:
        raise UnetlibError(
            f"a prediction of shape {prediction.shape} cannot be compared with a reference of shape {truth.shape}; "
            "two of one shape (slices, regions, height, width) were expected. masks[:, None] adds an axis for one "
            "region."
        )
    p, t = _as_bool(prediction, "prediction"), _as_bool(truth, "truth")
    axes = tuple(range(2, p.ndim))
    tp, positive, true = (p & t).sum(axes), p.sum(axes), t.sum(axes)
    return Counts(tp, positive - tp, true - tp, np.prod(p.shape[2:], dtype=np.int64) - positive - true + tp)


def _as_bool(mask: np.ndarray, name: str) -> np.ndarray:
    if mask.dtype != bool and not np.isin(values := np.unique(mask), (0, 1)).all():
        raise UnetlibError(
            f"the {name} holds {values[:5].tolist()}; a mask of 0 and 1 was expected. Divide a 0/255 mask by 255, "
            "and threshold probabilities first."
        )
    return mask.astype(bool)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, c: Counts, undefined: float | None) -> np.ndarray:
    """Divide; 0/0 becomes `undefined`, or follows the rule at the top of this module."""
    rule = np.where((c.fp == 0) & (c.fn == 0), 1.0, 0.0)
    return np.where(denominator == 0, rule if undefined is None else undefined, numerator / np.maximum(denominator, 1))


# Each metric takes counts of any shape and returns numbers of that shape. 0/0 follows the rule at the top of this
# module, unless `undefined` gives another value (NaN to find the entries that the rule affects).


def dice(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return 2 TP / (2 TP + FP + FN), in 0..1 (Dice 1945)."""
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn, c, undefined)


def iou(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return TP / (TP + FP + FN), intersection over union, in 0..1 (Jaccard 1912)."""
    return _ratio(c.tp, c.tp + c.fp + c.fn, c, undefined)


def accuracy(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return (TP + TN) / all pixels, in 0..1. Where tumour is rare, it is high for any network."""
    return _ratio(c.tp + c.tn, c.tp + c.fp + c.fn + c.tn, c, undefined)


def precision(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return TP / (TP + FP), the fraction of the prediction that is tumour, in 0..1."""
    return _ratio(c.tp, c.tp + c.fp, c, undefined)


def recall(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return TP / (TP + FN), the fraction of the tumour that is found (sensitivity), in 0..1."""
    return _ratio(c.tp, c.tp + c.fn, c, undefined)


def specificity(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return TN / (TN + FP), the fraction of the healthy pixels that is left unmarked, in 0..1."""
    return _ratio(c.tn, c.tn + c.fp, c, undefined)


def f1(c: Counts, undefined: float | None = None) -> np.ndarray:
    """Return the harmonic mean of precision and recall, in 0..1; equal to Dice on the same counts."""
    p, r = precision(c), recall(c)
    mean = 2 * p * r / np.where(p + r == 0, 1, p + r)
    return mean if undefined is None else np.where(c.tp + c.fp + c.fn == 0, undefined, mean)


class Metric(Protocol):
    """A function of counts."""

    def __call__(self, c: Counts, undefined: float | None = None) -> np.ndarray: ...  # noqa: D102


METRICS: dict[str, Metric] = {one.__name__: one for one in (dice, iou, accuracy, precision, recall, specificity, f1)}


def bootstrap_interval(values: np.ndarray, seed: int = 0, draws: int = 10_000) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of the mean of `values` (one per patient).

    `None` for fewer than two values, which have no spread. Values are drawn by position, so the same values in another
    order give a slightly different interval.

    Of few values the interval is too narrow. Simulated with normal data (6,000 samples of each size), it holds the true
    mean in 50 % of samples of 2 values, 75 % of 3, 80 % of 4, 84 % of 5, 90 % of 10, 92 % of 20 and 94 % of 70. With
    fewer than 10 values, tables and figures say so.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    if len(values) < 2:
        return None
    rows = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def millilitres(voxels: Any, spacing: Sequence[float]) -> Any:
    """Return the volume of a number of voxels, or of an array of numbers; `spacing`: mm per voxel."""
    return voxels * np.prod(spacing) / 1000


def surface_figures(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float], tolerance: float = 2.0
) -> tuple[float, float]:
    """Return HD95 and the surface Dice at `tolerance`, both in millimetres, of two boolean volumes (X, Y, Z).

    HD95 is the larger of the two directed 95th percentiles of the surface distances; `inf` when one
    mask is empty, 0 when both are (the surface Dice is then 0 and 1). `spacing`: mm per voxel. If
    exactly 95 % of a surface lies within one distance, rounding decides between it and the next.

    Source: Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy", JMIR 2021,
    whose implementation computes them; each surface element counts with its area.
    """
    from surface_distance import metrics as surface  # here, since scipy adds 0.3 s to every start

    if not prediction.any() or not truth.any():
        return (0.0, 1.0) if prediction.any() == truth.any() else (float("inf"), 0.0)
    distances = surface.compute_surface_distances(truth, prediction, spacing)
    return (
        float(surface.compute_robust_hausdorff(distances, 95)),
        float(surface.compute_surface_dice_at_tolerance(distances, tolerance)),
    )
