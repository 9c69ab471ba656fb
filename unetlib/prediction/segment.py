"""One volume in; mask, probability and millilitres out. It reads, writes and logs nothing."""

from dataclasses import dataclass

import numpy as np

from unetlib.data.volumes import Volume
from unetlib.metrics import millilitres
from unetlib.prediction.predictor import Predictor
from unetlib.support.paths import takes_paths


@dataclass(frozen=True)
class Segmentation:
    """The prediction for a volume, for each of K regions.

    `mask`: (K, X, Y, Z) booleans. `probability`: (K, X, Y, Z) float32 in 0..1. `millilitres`: (K,), of the mask.
    """

    mask: np.ndarray
    probability: np.ndarray
    millilitres: np.ndarray


@takes_paths
def segment(predictor: Predictor, volume: Volume) -> Segmentation:
    """Return the tumour that a predictor finds in a volume, in LPS order; for research, never for clinical use."""
    probability = predictor.volume(volume.voxels, volume.spacing)
    mask = predictor.decision.mask(probability, volume.spacing)
    return Segmentation(mask, probability, millilitres(mask.sum((1, 2, 3)), volume.spacing))
