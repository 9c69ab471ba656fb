"""Lesion-wise Dice and HD95: the mean over the lesions of a scan, as the BraTS challenge counts since 2023.

A patient with one large tumour and one small metastasis keeps a high volumetric Dice when the small one is missed; by
lesion, half of the score is lost.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unetlib.metrics import count, dice, surface_figures
from unetlib.support.errors import UnetlibError

DILATIONS = 3  # parts of the reference that touch after so many steps are one lesion
SMALLEST_MM3 = 50.0  # lesions up to this size are not scored
WORST = 374.0  # HD95 of a missed lesion or a false alarm: about the diagonal of a BraTS volume, in millimetres
STEP, TOUCHING = ndimage.generate_binary_structure(3, 2), ndimage.generate_binary_structure(3, 3)  # 18, 26 neighbours


@dataclass(frozen=True)
class LesionFigures:
    """The figures of one scan: `dice` in 0..1 and `hd95` in the unit of the spacing, means over what was scored.

    What was scored: `lesions` of the reference above the smallest size, `missed` of them without a match, and
    `false_alarms`, parts of the prediction that touch no lesion.
    """

    dice: float
    hd95: float
    lesions: int
    missed: int
    false_alarms: int


def lesion_figures(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> LesionFigures:
    """Return the lesion-wise figures of two boolean volumes (X, Y, Z); `spacing`: mm per voxel.

    A lesion is what is left of the reference in one 26-connected part of its dilation, three steps of 18 neighbours.
    Its match is all 26-connected parts of the prediction that touch this dilation, so one part may match two lesions.
    Both are compared undilated. Lesions of 50 mm3 or less are not scored, but their matches are no false alarms. A
    missed lesion and a predicted part that touches no lesion count as Dice 0 and HD95 374. If nothing is left to score,
    Dice is 1 and HD95 0. Raises `UnetlibError` unless the volumes are boolean and of one shape.

    Source: the code and the rules of the BraTS challenge 2023 for gliomas (R. Saluja, BraTS-2023-Metrics).
    """
    if not (prediction.shape == truth.shape and truth.ndim == 3 and prediction.dtype == truth.dtype == bool):
        raise UnetlibError(
            f"a prediction {prediction.shape} of {prediction.dtype} cannot be compared by lesion with a reference "
            f"{truth.shape} of {truth.dtype}; two boolean volumes (X, Y, Z) of one shape were expected."
        )
    box = _box(prediction | truth)
    prediction, truth = prediction[box], truth[box]
    grown = ndimage.binary_dilation(truth, STEP, iterations=DILATIONS)
    (lesions, number), (parts, found) = (ndimage.label(mask, TOUCHING) for mask in (grown, prediction))
    both = grown & prediction
    pairs = np.unique(np.stack([lesions[both], parts[both]]), axis=1)  # the lesions, and the parts that touch them
    scores, missed = [], 0
    for lesion in range(1, number + 1):
        own = truth & (lesions == lesion)
        if round(own.sum() * float(np.prod(spacing)), 3) <= SMALLEST_MM3:
            continue
        match = np.isin(parts, pairs[1, pairs[0] == lesion])
        missed += not match.any()
        scores.append(_compare(match, own, spacing))
    false_alarms = found - len(np.unique(pairs[1]))
    means = np.mean([*scores, *[(0.0, WORST)] * false_alarms] or [(1.0, 0.0)], axis=0)
    return LesionFigures(float(means[0]), float(means[1]), len(scores), missed, false_alarms)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the box around a mask, with room for the dilation."""
    box = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(0, s.start - DILATIONS), s.stop + DILATIONS) for s in box[0]) if box else (slice(0),) * 3


def _compare(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> tuple[float, float]:
    hd95 = surface_figures(prediction, truth, spacing)[0]
    return dice(count(prediction[None, None], truth[None, None])).item(), hd95 if np.isfinite(hd95) else WORST
