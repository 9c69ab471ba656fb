"""What part of its volumes a viewer shows at first: the head, not the air around it."""

from itertools import product

import numpy as np

from unetlib.show.panels import Panel

SIGNAL = 0.15  # of the width of the window: what differs less from the background is noise or a ghost
LEAST = 0.005  # of a slice: fewer voxels are specks
MARGIN = 3  # voxels


def frames(panels: list[Panel]) -> list[np.ndarray]:
    """Return for each volume the box (2, 3) that is shown, lowest and highest corner in its own voxels.

    It is the same box in space for all: the smallest that holds all heads and all masks. A voxel reaches from
    half below its index to half above.
    """
    found = np.array([_bounds(_head(panel), np.linalg.inv(panel.link)) for panel in panels])
    last = np.array(panels[0].volume.voxels.shape) - 0.5
    whole = np.stack([np.clip(found[:, 0].min(0), -0.5, last), np.clip(found[:, 1].max(0), -0.5, last)])
    if (whole[1] - whole[0] < 1).any():  # the heads lie outside the first volume
        whole = np.stack([np.full(3, -0.5), last])
    return [_bounds(whole, panel.link) for panel in panels]


def _head(panel: Panel) -> np.ndarray:
    """Return the box (2, 3) of what is brighter or darker than the background, and of the masks, with a margin."""
    voxels, (low, high) = panel.volume.voxels, panel.window
    inside = np.abs(voxels - _background(voxels)) > SIGNAL * (high - low)
    boxes = [_box(inside, LEAST)]
    boxes += [_box(mask > 0, 0) for mask in (panel.truth, panel.prediction) if mask is not None and mask.any()]
    start, stop = np.min([box[0] for box in boxes], axis=0), np.max([box[1] for box in boxes], axis=0)
    shape = np.array(voxels.shape)
    return np.stack([np.maximum(start - MARGIN, 0) - 0.5, np.minimum(stop + MARGIN, shape) - 0.5])


def _background(voxels: np.ndarray) -> float:
    """Return the median of the outermost voxels; air, where there is any."""
    faces = [voxels.take(side, axis).ravel() for axis in range(3) for side in (0, -1)]
    return float(np.median(np.concatenate(faces)))


def _box(inside: np.ndarray, share: float) -> np.ndarray:
    """Return the first voxel and the one behind the last (2, 3) whose slices are inside by more than a share."""
    ends = []
    for axis, length in enumerate(inside.shape):
        counts = np.count_nonzero(inside, axis=tuple({0, 1, 2} - {axis}))
        along = np.flatnonzero(counts > share * inside.size / length)
        ends.append((along[0], along[-1] + 1) if along.size else (0, length))
    return np.array(ends, float).T


def _bounds(box: np.ndarray, link: np.ndarray) -> np.ndarray:
    """Return the box (2, 3) around a box in another volume; `link`: (4, 4), from voxels to voxels."""
    corners = np.array([(*corner, 1) for corner in product(*box.T)]) @ link[:3].T
    return np.stack([corners.min(0), corners.max(0)])
