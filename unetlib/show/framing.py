"""The box of its volumes that a viewer shows at first: the head, without the air around it."""

import numpy as np

from unetlib.data.slices import outermost
from unetlib.show.panels import Panel, around

SIGNAL = 0.15  # of the width of the window: smaller differences from the background are noise or ghosts
LEAST = 0.005  # of a slice: fewer voxels are specks
MARGIN = 3  # voxels


def frames(panels: list[Panel]) -> list[np.ndarray]:
    """Return the box (2, 3) that is shown of each volume, lowest and highest corner in its own voxels.

    It is one box in space: the smallest that holds all heads and masks, cut to the first volume. A voxel reaches from
    half below its index to half above.
    """
    found = np.array([around(_head(panel), np.linalg.inv(panel.link)) for panel in panels])
    last = np.array(panels[0].volume.voxels.shape) - 0.5
    shown = np.clip([found[:, 0].min(0), found[:, 1].max(0)], -0.5, last)
    return [around(shown, panel.link) for panel in panels]


def _head(panel: Panel) -> np.ndarray:
    """Return the box (2, 3) of what is brighter or darker than the background, and of the masks, with a margin."""
    voxels, (low, high) = panel.volume.voxels, panel.window
    inside = np.abs(voxels - outermost(voxels)) > SIGNAL * (high - low)
    boxes = [_box(inside, LEAST)]
    boxes += [_box(mask > 0, 0) for mask in (panel.truth, panel.prediction) if mask is not None and mask.any()]
    start, stop = np.min(boxes, axis=0)[0] - MARGIN, np.max(boxes, axis=0)[1] + MARGIN
    return np.stack([np.maximum(start, 0), np.minimum(stop, voxels.shape)]) - 0.5


def _box(inside: np.ndarray, least: float) -> np.ndarray:
    """Return the first voxel and the one after the last (2, 3) of the slices with more than a fraction inside."""
    ends = []
    for axis, length in enumerate(inside.shape):
        counts = np.count_nonzero(inside, axis=tuple({0, 1, 2} - {axis}))
        along = np.flatnonzero(counts > least * inside.size / length)
        ends.append((along[0], along[-1] + 1) if along.size else (0, length))
    return np.array(ends, float).T
