"""The metrics of `unetlib.metrics` as others compute them, for the tests and for `studies/oracles.py`.

Masks of slices are booleans (N, pixels), volumes (X, Y, Z). A figure that is 0/0 is NaN.
"""

from itertools import product

import numpy as np
import scipy.spatial.distance
import sklearn.metrics
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.metrics.confusion_matrix import compute_confusion_matrix_metric, get_confusion_matrix
from monai.metrics.utils import create_table_neighbour_code_to_surface_area
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from unetlib import metrics
from unetlib.metrics import Counts

Spacing = tuple[float, float, float]
MONAI = {
    "dice": "f1 score",
    "iou": "threat score",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "sensitivity",
    "specificity": "specificity",
    "f1": "f1 score",
}


def count_slices(prediction: np.ndarray, truth: np.ndarray) -> Counts:
    """Return our counts of each slice, (N,), of masks (N, ...) of one region."""
    pair = (mask.reshape(len(mask), 1, -1, 1) for mask in (prediction, truth))
    counts = metrics.count(*pair)
    return Counts(*(getattr(counts, name)[:, 0] for name in metrics.COUNTS))


def predictions(flair: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return plausible and difficult predictions of a real tumour, without chance and without training."""
    smooth = ndimage.gaussian_filter(flair.astype(np.float32), (2, 2, 0.5))
    within = ndimage.binary_erosion(smooth > smooth.mean(), np.ones((3, 3, 1)), iterations=12)  # without the skull
    far = truth.copy()
    far[8:11, 8:11, 1:3] = True
    half = truth.copy()
    half[:, :, : int(np.median(np.nonzero(truth.any((0, 1)))))] = False
    return {
        "bright and smooth": within & (smooth > 1.4 * smooth[within].mean()),
        "shifted": np.roll(truth, (4, -3, 1), (0, 1, 2)),
        "eroded": ndimage.binary_erosion(truth, iterations=2),
        "dilated": ndimage.binary_dilation(truth, iterations=3),
        "half of the slices": half,
        "a far false alarm": far,
        "empty": np.zeros_like(truth),
        "the truth": truth.copy(),
    }


def by_sklearn(prediction: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return every figure (N,) by scikit-learn, to which each slice is a label of one multilabel problem."""
    n, none = len(truth), np.zeros_like(truth[:1])  # one label more, since a single one would be no multilabel problem
    labels = [sparse.csr_matrix(np.concatenate([mask, none]).T) for mask in (truth, prediction)]
    options = {"average": None, "zero_division": np.nan}
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(*labels, **options)
    iou = sklearn.metrics.jaccard_score(*labels, average=None, zero_division=0)[:n]
    iou = np.where((truth | prediction).any(1), iou, np.nan)  # jaccard_score knows no NaN
    pairs = list(zip(truth, prediction, strict=True))
    healthy = [sklearn.metrics.recall_score(*pair, pos_label=False, zero_division=np.nan) for pair in pairs]
    accuracy = [sklearn.metrics.accuracy_score(*pair) for pair in pairs]
    found = {"dice": f1[:n], "iou": iou, "accuracy": np.array(accuracy), "precision": precision[:n]}
    return found | {"recall": recall[:n], "specificity": np.array(healthy), "f1": f1[:n]}


def by_monai(prediction: np.ndarray, truth: np.ndarray) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """Return every figure (N,) by MONAI, and its confusion matrices (N, 4) to add up."""
    matrix = get_confusion_matrix(*(torch.from_numpy(mask)[:, None].float() for mask in (prediction, truth)))[:, 0]
    return from_monai(matrix), matrix.double()  # in float32 the counts of a cohort would be rounded


def from_monai(matrix: torch.Tensor) -> dict[str, np.ndarray]:
    """Return every figure (N,) that MONAI computes from confusion matrices (N, 4)."""
    return {name: compute_confusion_matrix_metric(word, matrix).numpy() for name, word in MONAI.items()}


def by_scipy(prediction: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Return Dice and IoU (N,) as one minus the dissimilarities of scipy."""
    empty = ~(truth | prediction).any(1)
    measures = {"dice": scipy.spatial.distance.dice, "iou": scipy.spatial.distance.jaccard}
    found = {}
    for name, measure in measures.items():
        pairs = zip(truth, prediction, empty, strict=True)
        found[name] = np.array([np.nan if nothing else 1 - measure(t, p) for t, p, nothing in pairs])
    return found


def cropped(*masks: np.ndarray) -> list[np.ndarray]:
    """Return the masks cut to the smallest box that holds all of them."""
    box = ndimage.find_objects(np.logical_or.reduce(masks).astype(np.uint8))[0]
    return [mask[box] for mask in masks]


def surfels(mask: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """Return places in mm (N, 3) and areas in mm2 (N,) of the surface: the corners whose eight voxels differ."""
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for weight, corner in zip(range(7, -1, -1), product((0, 1), repeat=3), strict=True):
        code += padded[tuple(slice(i, i + n + 1) for i, n in zip(corner, mask.shape, strict=True))] << weight
    there = (code > 0) & (code < 255)
    areas = create_table_neighbour_code_to_surface_area(spacing)[0].double().numpy()
    return np.argwhere(there) * spacing, areas[code[there]]


def surface_by_definition(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing, tolerance: float
) -> tuple[float, float]:
    """Return HD95 and surface Dice as Nikolov et al. 2021 define them, from nearest neighbours, neither mask empty."""
    (a, area_a), (b, area_b) = (surfels(mask, spacing) for mask in cropped(prediction, truth))
    directed, near = [], 0.0
    for distances, area in ((cKDTree(b).query(a)[0], area_a), (cKDTree(a).query(b)[0], area_b)):
        order = np.argsort(distances)
        reached = np.cumsum(area[order]) >= 0.95 * area.sum()
        directed.append(distances[order][reached][0])
        near += area[distances <= tolerance].sum()
    return max(directed), near / (area_a.sum() + area_b.sum())


def between_voxels(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances between centres of surface voxels, to the truth and back, neither mask empty."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in cropped(prediction, truth)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return maps[1][edges[0]], maps[0][edges[1]]


def hd95_between_voxels(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> float:
    """Return HD95 by MONAI's definition, with its percentile in float32."""
    distances = (torch.from_numpy(part).float() for part in between_voxels(prediction, truth, spacing))
    return max(torch.quantile(part, 0.95).item() for part in distances)


def surface_by_monai(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing, tolerance: float
) -> tuple[float, float]:
    """Return HD95 (between voxel centres) and surface Dice (with areas) by MONAI."""
    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": spacing}
    hd95 = compute_hausdorff_distance(*pair, percentile=95, **options)
    return hd95.item(), compute_surface_dice(*pair, [tolerance], use_subvoxels=True, **options).item()


def drawn(*boxes: tuple[tuple[int, int, int], tuple[int, int, int]]) -> np.ndarray:
    """Return a volume of 32 x 16 x 20 voxels with these boxes: corner and size, each (x, y, z)."""
    volume = np.zeros((32, 16, 20), bool)
    for (x, y, z), (width, depth, height) in boxes:
        volume[x : x + width, y : y + depth, z : z + height] = True
    return volume


def grown(voxels: set[tuple[int, ...]], shape: tuple[int, ...], most: int) -> set[tuple[int, ...]]:
    """Return voxels with their neighbours inside `shape` that differ in at most `most` of three coordinates."""
    steps = [step for step in product((-1, 0, 1), repeat=3) if np.count_nonzero(step) <= most]
    near = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for voxel in voxels for step in steps}
    return {voxel for voxel in near if all(0 <= at < size for at, size in zip(voxel, shape, strict=True))}


def pieces(voxels: set[tuple[int, ...]], shape: tuple[int, ...]) -> list[set[tuple[int, ...]]]:
    """Return the 26-connected parts of a set of voxels, by flood fill."""
    rest, found = set(voxels), []
    while rest:
        part, edge = set(), {min(rest)}
        while edge:
            part |= edge
            edge = grown(edge, shape, 3) & rest - part
        rest -= part
        found.append(part)
    return found


def lesions_by_definition(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing
) -> tuple[float, float, int, int, int]:
    """Return lesion-wise Dice and HD95 as BraTS counts since 2023, lesions scored and missed, and false alarms.

    Each lesion is dilated on its own, as in the code of the challenge; HD95 is that of `surface_by_definition`.
    """
    shape, scores, touched = truth.shape, [], set()
    predicted, true = ({tuple(at) for at in np.argwhere(mask).tolist()} for mask in (prediction, truth))

    def dilated(voxels: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
        for _ in range(3):
            voxels = grown(voxels, shape, 2)
        return voxels

    def mask(voxels: set[tuple[int, ...]]) -> np.ndarray:
        array = np.zeros(shape, bool)
        array[tuple(np.array(sorted(voxels)).T)] = True
        return array

    parts, missed = pieces(predicted, shape), 0
    for place in pieces(dilated(true), shape):
        lesion = place & true
        claimed = [number for number, part in enumerate(parts) if part & dilated(lesion)]
        touched |= set(claimed)
        if len(lesion) * spacing[0] * spacing[1] * spacing[2] <= 50:
            continue
        match = set().union(*(parts[number] for number in claimed))
        missed += not match
        hd95 = surface_by_definition(mask(match), mask(lesion), spacing, 2)[0] if match else 374.0
        scores.append((2 * len(match & lesion) / (len(match) + len(lesion)), hd95))
    alarms, numbers = len(parts) - len(touched), len(scores)
    scores = scores + [(0.0, 374.0)] * alarms or [(1.0, 0.0)]
    dice, hd95 = (sum(values) / len(scores) for values in zip(*scores, strict=True))
    return dice, hd95, numbers, missed, alarms
