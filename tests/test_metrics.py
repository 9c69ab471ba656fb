"""The figures: against scikit-learn, MONAI, scipy, hand-computed values and plain loops."""

import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import (
    ConfusionMatrixMetric,
    DiceMetric,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)
from monai.metrics.utils import get_mask_edges
from scipy.spatial.distance import cdist

from tests.oracles import MONAI
from tests.oracles import count_slices as count
from unetlib import metrics
from unetlib.evaluation.summary import COVERAGE, interval_remark
from unetlib.metrics import METRICS, Counts, bootstrap_interval, surface_figures
from unetlib.support.errors import UnetlibError

pytestmark = pytest.mark.filterwarnings("ignore:monai:FutureWarning")  # MONAI warns of its own calls
NAMES = ("tp", "fp", "fn", "tn")
NAN = float("nan")
SKLEARN = {
    "dice": sklearn.metrics.f1_score,
    "iou": sklearn.metrics.jaccard_score,
    "precision": sklearn.metrics.precision_score,
    "recall": sklearn.metrics.recall_score,
    "specificity": lambda *masks, **options: sklearn.metrics.recall_score(*masks, pos_label=0, **options),
    "f1": sklearn.metrics.f1_score,
}


@st.composite
def masks(draw):
    """A prediction and a truth, both (N, H, W) booleans, with empty and full slices among them."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
    mask = hnp.arrays(np.bool_, shape) | st.booleans().map(lambda full: np.full(shape, full))
    return draw(mask), draw(mask)


@st.composite
def counts(draw, fewest=1):
    """Counts with many zeros, (N,)."""
    number = draw(st.integers(fewest, 6))
    part = hnp.arrays(np.int64, number, elements=st.just(0) | st.integers(0, 100))
    return Counts(*(draw(part) for _ in NAMES))


def make(tp, fp, fn, tn):
    return Counts(*(np.array(part, np.int64) for part in (tp, fp, fn, tn)))


def parts(c):
    return [getattr(c, name).tolist() for name in NAMES]


def noisy(seed=0, shape=(6, 12, 12)):
    """Slices with tumour in both masks, none empty or full."""
    rng = np.random.default_rng(seed)
    truth = rng.random(shape) < 0.4
    return truth ^ (rng.random(shape) < 0.2), truth


def as_tensor(mask):
    return torch.from_numpy(mask[:, None].astype(np.float32))


# Counting


@given(masks())
def test_counts_agree_with_a_loop_over_the_pixels(pair):
    expected = {name: [0] * len(pair[0]) for name in NAMES}
    for i, p, t in ((i, p, t) for i, slices in enumerate(zip(*pair, strict=True)) for p, t in np.nditer(slices)):
        expected["tp" if p and t else "fp" if p else "fn" if t else "tn"][i] += 1
    assert parts(count(*pair)) == list(expected.values())


@given(masks())
def test_counts_agree_with_the_confusion_matrix_of_scikit_learn(pair):
    prediction, truth = pair
    (tn, fp), (fn, tp) = sklearn.metrics.confusion_matrix(truth.ravel(), prediction.ravel(), labels=[False, True])
    assert parts(count(prediction, truth).sum()) == [tp, fp, fn, tn]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_masks_of_every_type_are_counted_alike(dtype):
    prediction, truth = noisy()
    found = count(prediction.astype(dtype), truth.astype(dtype))
    assert parts(found) == parts(count(prediction, truth))
    assert all(getattr(found, name).dtype == np.int64 for name in NAMES)


@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (2, 3, 4, 5, 6), (0, 1, 4, 4)])
def test_slices_and_volumes_are_counted_region_by_region(shape):
    prediction, truth = np.ones(shape, bool), np.zeros(shape, bool)
    each, none = np.full(shape[:2], np.prod(shape[2:])).tolist(), np.zeros(shape[:2]).tolist()
    assert parts(metrics.count(prediction, truth)) == [none, each, none, none]


def test_regions_are_never_added_up():
    pair = noisy(shape=(6, 3, 8, 8))
    found, keys = metrics.count(*pair), np.array(list("abacba"))
    alone = [count(*(mask[:, region] for mask in pair)) for region in range(3)]
    for region, one in enumerate(alone):
        assert [part[region] for part in parts(found.sum())] == parts(one.sum())
        assert [[row[region] for row in part] for part in parts(found.grouped(keys)[1])] == parts(one.grouped(keys)[1])
    assert metrics.dice(found.sum()).tolist() == [float(metrics.dice(one.sum())) for one in alone]


@given(masks(), st.randoms(use_true_random=False))
def test_the_order_of_the_pixels_does_not_matter(pair, random):
    flat = [mask.reshape(len(mask), -1) for mask in pair]
    order = random.sample(range(flat[0].shape[1]), flat[0].shape[1])
    assert parts(count(*(mask[:, order] for mask in flat))) == parts(count(*pair))


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (np.array([[0, 255]], np.uint8), "[0, 255]"),
        (np.array([[0.0, 0.3, 1.0]]), "[0.0, 0.3, 1.0]"),
        (np.array([[0, 1, 2, 4]]), "[0, 1, 2, 4]"),
        (np.array([[-1, 0]]), "[-1, 0]"),
        (np.array([[0.0, NAN]]), "[0.0, nan]"),
    ],
)
def test_a_mask_of_other_values_than_0_and_1_is_refused_by_name(bad, found):
    fine = np.zeros(bad.shape, bool)
    with pytest.raises(UnetlibError, match=re.escape(f"the prediction holds {found}; a mask of 0 and 1 was expected")):
        count(bad, fine)
    with pytest.raises(UnetlibError, match=re.escape(f"the truth holds {found}; a mask of 0 and 1 was expected")):
        count(fine, bad)


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (1, 1, 4, 4), (2, 2, 4, 4), (2, 4, 4)])
def test_masks_of_different_shapes_are_refused(shape):
    sentence = f"(2, 1, 4, 4) cannot be compared with a reference of shape {shape}"
    with pytest.raises(UnetlibError, match=re.escape(sentence)):
        metrics.count(np.zeros((2, 1, 4, 4), bool), np.zeros(shape, bool))


def test_masks_without_an_axis_for_the_regions_are_refused_with_what_adds_one():
    with pytest.raises(UnetlibError, match=r"slices, regions, height, width.*masks\[:, None\] adds an axis"):
        metrics.count(np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool))


# Figures


@pytest.mark.parametrize("name", SKLEARN)
def test_a_figure_agrees_with_scikit_learn_slice_by_slice(name):
    pairs = list(zip(*noisy(), strict=True))
    expected = [SKLEARN[name](truth.ravel(), prediction.ravel()) for prediction, truth in pairs]
    assert METRICS[name](count(*noisy())) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in SKLEARN if name != "iou"])  # jaccard_score knows no NaN
@given(pair=masks())
def test_a_figure_of_any_masks_agrees_with_scikit_learn_where_it_is_defined(name, pair):
    found = METRICS[name](count(*pair).sum(), NAN)
    expected = SKLEARN[name](pair[1].ravel(), pair[0].ravel(), zero_division=NAN)
    assert float(found) == pytest.approx(expected, rel=1e-12, nan_ok=True)


@given(masks())
def test_accuracy_agrees_with_scikit_learn(pair):
    expected = sklearn.metrics.accuracy_score(pair[1].ravel(), pair[0].ravel())
    assert float(metrics.accuracy(count(*pair).sum())) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", MONAI)
@pytest.mark.parametrize("pooled", [False, True])
def test_a_figure_agrees_with_the_confusion_matrix_of_monai(name, pooled):
    oracle = ConfusionMatrixMetric(metric_name=MONAI[name], compute_sample=not pooled, reduction="mean")
    oracle(as_tensor(noisy()[0]), as_tensor(noisy()[1]))
    found = count(*noisy()).sum() if pooled else count(*noisy())
    assert METRICS[name](found).mean() == pytest.approx(oracle.aggregate()[0].item(), rel=1e-6)


@given(masks())
def test_dice_agrees_with_monai_also_for_empty_masks(pair):
    expected = DiceMetric(ignore_empty=False, reduction="none")(*map(as_tensor, pair))[:, 0]
    assert metrics.dice(count(*pair)) == pytest.approx(expected.numpy(), rel=1e-6)


@given(masks())
def test_iou_agrees_with_monai_also_for_empty_masks(pair):
    expected = compute_iou(*map(as_tensor, pair), ignore_empty=False)[:, 0]
    assert metrics.iou(count(*pair)) == pytest.approx(expected.numpy(), rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
@given(c=counts())
def test_a_figure_lies_between_0_and_1(name, c):
    found = METRICS[name](c)
    assert found.shape == c.tp.shape
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("name", METRICS)
def test_a_figure_of_a_perfect_prediction_is_1_and_of_its_opposite_0(name):
    truth = noisy()[1]
    assert (METRICS[name](count(truth, truth)) == 1).all()
    assert (METRICS[name](count(~truth, truth)) == 0).all()


@given(counts())
def test_f1_is_dice(c):
    assert metrics.f1(c) == pytest.approx(metrics.dice(c), rel=1e-12, abs=1e-15)


@given(counts())
def test_dice_is_2_iou_over_1_plus_iou(c):
    iou = metrics.iou(c)
    assert metrics.dice(c) == pytest.approx(2 * iou / (1 + iou), rel=1e-12)


@pytest.mark.parametrize("name", ["dice", "iou", "accuracy", "f1"])
@given(pair=masks())
def test_a_symmetric_figure_does_not_care_which_mask_is_the_truth(name, pair):
    there, back = METRICS[name](count(*pair)), METRICS[name](count(*pair[::-1]))
    assert there == pytest.approx(back, rel=1e-12)


@given(masks())
def test_swapping_prediction_and_truth_turns_precision_into_recall(pair):
    assert metrics.precision(count(*pair)).tolist() == metrics.recall(count(*pair[::-1])).tolist()


@given(masks())
def test_swapping_tumour_and_health_turns_recall_into_specificity(pair):
    complement = count(~pair[0], ~pair[1])
    assert metrics.recall(complement).tolist() == metrics.specificity(count(*pair)).tolist()
    assert metrics.accuracy(complement).tolist() == metrics.accuracy(count(*pair)).tolist()


# 0/0: (tp, fp, fn, tn), the figures that are 0/0, and what the rule makes of them.
ZERO_BY_ZERO = [
    ((0, 0, 0, 9), ("dice", "iou", "precision", "recall", "f1"), 1),
    ((0, 0, 0, 0), tuple(METRICS), 1),
    ((9, 0, 0, 0), ("specificity",), 1),
    ((0, 2, 0, 7), ("recall",), 0),
    ((0, 0, 2, 7), ("precision",), 0),
    ((7, 0, 2, 0), ("specificity",), 0),
    ((0, 0, 9, 0), ("precision", "specificity"), 0),
    ((0, 9, 0, 0), ("recall",), 0),
    ((0, 2, 3, 4), (), None),
    ((1, 2, 3, 4), (), None),
]


@pytest.mark.parametrize(("entry", "names", "value"), ZERO_BY_ZERO)
def test_0_by_0_is_1_without_any_error_and_0_otherwise(entry, names, value):
    assert {name: float(METRICS[name](make(*entry))) for name in names} == dict.fromkeys(names, value)


@pytest.mark.parametrize(("entry", "names", "value"), ZERO_BY_ZERO)
def test_undefined_nan_finds_exactly_the_figures_that_are_0_by_0(entry, names, value):
    assert {name for name in METRICS if np.isnan(METRICS[name](make(*entry), NAN))} == set(names)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("undefined", [0.0, 0.25, 1.0])
@given(c=counts())
def test_undefined_replaces_the_entries_that_are_0_by_0_and_no_others(name, undefined, c):
    touched = np.isnan(METRICS[name](c, NAN))
    assert METRICS[name](c, undefined).tolist() == np.where(touched, undefined, METRICS[name](c)).tolist()


# Aggregation: patient A has two slices, patient B one.
THREE = make(tp=[1, 3, 0], fp=[1, 0, 0], fn=[0, 1, 4], tn=[7, 5, 5])
PATIENT = np.array(["A", "A", "B"])


def test_pooled_per_slice_and_per_patient_differ_as_computed_by_hand():
    pooled = Fraction(2 * 4, 2 * 4 + 1 + 5)
    per_slice = (Fraction(2, 3) + Fraction(6, 7) + 0) / 3
    per_patient = (Fraction(8, 8 + 1 + 1) + 0) / 2
    assert len({pooled, per_slice, per_patient}) == 3
    assert metrics.dice(THREE.sum()) == pytest.approx(float(pooled), rel=1e-12)
    assert metrics.dice(THREE).mean() == pytest.approx(float(per_slice), rel=1e-12)
    assert metrics.dice(THREE.grouped(PATIENT)[1]).mean() == pytest.approx(float(per_patient), rel=1e-12)


def test_the_pooled_dice_is_the_dice_of_all_pixels_at_once():
    prediction, truth = noisy()
    expected = sklearn.metrics.f1_score(truth.ravel(), prediction.ravel())
    assert metrics.dice(count(prediction, truth).sum()) == pytest.approx(expected, rel=1e-12)


@given(st.data(), counts())
def test_grouped_agrees_with_a_loop(data, c):
    keys = data.draw(st.lists(st.sampled_from(["b", "a", "c10", "c9"]), min_size=len(c.tp), max_size=len(c.tp)))
    names, groups = c.grouped(np.array(keys))
    assert names.tolist() == sorted(set(keys))
    for name, part in zip(NAMES, parts(groups), strict=True):
        values = getattr(c, name).tolist()
        assert part == [sum(v for v, key in zip(values, keys, strict=True) if key == one) for one in sorted(set(keys))]


def test_grouped_takes_whole_numbers_as_keys():
    names, groups = THREE.grouped(np.array([5, 2, 5]))
    assert names.tolist() == [2, 5]
    assert parts(groups) == [[3, 1], [0, 1], [1, 4], [5, 12]]


@given(st.lists(counts(fewest=0), min_size=1, max_size=4))
def test_concatenate_puts_the_entries_behind_one_another(many):
    expected = [[value for one in many for value in getattr(one, name).tolist()] for name in NAMES]
    assert parts(Counts.concatenate(many)) == expected


def test_counts_of_batches_put_together_are_the_counts_of_all_slices():
    prediction, truth = noisy()
    batches = [count(prediction[low:high], truth[low:high]) for low, high in pairwise([0, 2, 3, 6])]
    assert parts(Counts.concatenate(batches)) == parts(count(prediction, truth))


# The bootstrap


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_agrees_with_the_bootstrap_of_scipy(seed):
    values = np.random.default_rng(seed).beta(5, 1.5, size=12)
    oracle = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(99)
    )
    # Each bound has a Monte-Carlo error of about 0.027 standard errors of the mean.
    near = 0.15 * values.std() / np.sqrt(len(values))
    assert bootstrap_interval(values) == pytest.approx(tuple(oracle.confidence_interval), abs=near)


@given(hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(0, 1)))
def test_the_interval_holds_the_mean_and_stays_within_the_values(values):
    low, high = bootstrap_interval(values, draws=1000)
    assert values.min() - 1e-12 <= low <= values.mean() + 1e-12
    assert values.mean() - 1e-12 <= high <= values.max() + 1e-12


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_values_have_no_interval(values):
    assert bootstrap_interval(np.array(values)) is None


@pytest.mark.parametrize("patients", [2, 5, 9])
def test_an_interval_over_few_patients_has_the_stated_coverage(patients):
    draw = np.random.default_rng(patients)
    intervals = [bootstrap_interval(draw.normal(size=patients), draws=400) for _ in range(2000)]
    held = 100 * np.mean([low <= 0 <= high for low, high in intervals])
    assert held == pytest.approx(COVERAGE[patients], abs=3)
    assert f"{patients} patients: about {COVERAGE[patients]} %" in interval_remark(patients)


def test_only_an_interval_over_few_patients_has_a_remark():
    assert [n for n in range(100) if interval_remark(n)] == [*range(2, 10)]


def test_the_interval_of_equal_values_is_that_value():
    assert bootstrap_interval(np.full(5, 0.5)) == (0.5, 0.5)


def test_the_interval_is_the_same_for_the_same_seed_only():
    values = np.random.default_rng(0).random(20)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_four_times_the_patients_halve_the_interval():
    values = np.random.default_rng(0).random(25)
    (low, high), (low4, high4) = bootstrap_interval(values), bootstrap_interval(np.tile(values, 4))
    assert (high4 - low4) / (high - low) == pytest.approx(0.5, abs=0.05)


# Surfaces


def box(shape, *bounds):
    """A volume that is True from the low to the high bound of each axis."""
    volume = np.zeros(shape, bool)
    volume[tuple(slice(low, high) for low, high in bounds)] = True
    return volume


def ellipsoid(shape, centre, radii, spacing):
    """A volume that is True inside an ellipsoid given in millimetres."""
    places = np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij")
    return sum(((x - c) / r) ** 2 for x, c, r in zip(places, centre, radii, strict=True)) <= 1


def blobs(spacing, seed):
    rng = np.random.default_rng(seed)
    shape = (20, 18, 16)
    middle = [n * mm / 2 for n, mm in zip(shape, spacing, strict=True)]
    reach = [0.35 * n * mm for n, mm in zip(shape, spacing, strict=True)]
    return [ellipsoid(shape, middle + rng.normal(0, 1.5, 3), reach * rng.uniform(0.6, 1, 3), spacing) for _ in range(2)]


SPACINGS = [(1.0, 1.0, 1.0), (0.5, 1.0, 2.5), (3.0, 0.7, 1.2)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_hd95_of_a_shifted_cube_is_the_shift(spacing, axis, shift):
    # A sixth of the surface, more than 5 %, is exactly one shift away, and nothing is further.
    cube = box((14, 14, 14), (2, 8), (2, 8), (2, 8))
    hd95, _ = surface_figures(np.roll(cube, shift, axis), cube, spacing)
    assert hd95 == pytest.approx(shift * spacing[axis], rel=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_dice_of_two_parallel_planes_steps_at_their_distances(spacing, axis):
    # Two planes of one voxel, 4 apart: of each, the far side is 4 voxels from the other plane, the near side 3.
    plane = np.moveaxis(box((8, 12, 12), (1, 2), (0, 12), (0, 12)), 0, axis)
    other, mm = np.roll(plane, 4, axis), spacing[axis]
    tolerances = (2.9 * mm, 3.1 * mm, 3.9 * mm, 4.1 * mm)
    found = [surface_figures(plane, other, spacing, tolerance)[1] for tolerance in tolerances]
    assert found == pytest.approx([0, 0.5, 0.5, 1])
    assert surface_figures(plane, other, spacing)[0] == pytest.approx(4 * mm)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_hd95_agrees_with_all_pairs_of_surface_elements(spacing, seed):
    prediction, truth = blobs(spacing, seed)
    edges = get_mask_edges(prediction, truth, spacing=spacing)
    points = [np.argwhere(edge) * spacing for edge in edges[:2]]
    distances, directed = cdist(*points), []
    for nearest, edge, areas in zip((distances.min(axis=1), distances.min(axis=0)), edges[:2], edges[2:], strict=True):
        order, area, passed = np.argsort(nearest), areas[edge], 0.0
        for i in order:  # walk outwards until 95 % of the area is behind
            passed += area[i]
            if passed >= 0.95 * area.sum():
                directed.append(nearest[i])
                break
    assert surface_figures(prediction, truth, spacing)[0] == pytest.approx(max(directed), rel=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_hd95_is_within_a_voxel_of_that_of_monai(spacing, seed):
    # MONAI measures between voxel centres and counts every surface voxel alike, whatever its area.
    prediction, truth = blobs(spacing, seed)
    pair = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
    oracle = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing).item()
    assert oracle > 0
    assert surface_figures(prediction, truth, spacing)[0] == pytest.approx(oracle, abs=max(spacing))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("tolerance", [0.8, 2.0])
def test_surface_dice_agrees_with_that_of_monai(spacing, tolerance):
    prediction, truth = blobs(spacing, seed=1)
    pair = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
    oracle = compute_surface_dice(*pair, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True)
    found = surface_figures(prediction, truth, spacing, tolerance)[1]
    assert 0 < found < 1
    assert found == pytest.approx(oracle.item(), rel=1e-5)


def test_the_tolerance_is_2_mm_by_default():
    pair = blobs(SPACINGS[0], seed=1)
    assert surface_figures(*pair, SPACINGS[0]) == surface_figures(*pair, SPACINGS[0], 2.0)
    assert surface_figures(*pair, SPACINGS[0]) != surface_figures(*pair, SPACINGS[0], 1.0)


def test_both_surface_figures_are_the_same_with_prediction_and_truth_swapped():
    prediction, truth = blobs(SPACINGS[1], seed=0)
    there, back = (surface_figures(*pair, SPACINGS[1]) for pair in ((prediction, truth), (truth, prediction)))
    assert there == pytest.approx(back, rel=1e-12)


def test_a_far_voxel_of_little_surface_does_not_count():
    truth = box((30, 30, 30), (2, 14), (2, 14), (2, 14))
    prediction = truth.copy()
    prediction[28, 28, 28] = True
    assert surface_figures(prediction, truth, (1.0, 1.0, 1.0))[0] == 0


def test_hd95_is_the_larger_of_the_two_directions():
    truth = box((40, 10, 10), (1, 7), (1, 7), (1, 7))
    both = truth | box((40, 10, 10), (30, 36), (1, 7), (1, 7))  # all of the truth, and as much again 23 mm away
    assert surface_figures(both, truth, (1.0, 1.0, 1.0))[0] > 23
    assert surface_figures(truth, both, (1.0, 1.0, 1.0))[0] > 23


def test_equal_masks_have_no_distance():
    prediction, _ = blobs(SPACINGS[1], seed=0)
    assert surface_figures(prediction, prediction.copy(), SPACINGS[1]) == (0, 1)


def test_two_empty_masks_have_no_distance():
    empty = np.zeros((4, 5, 6), bool)
    assert surface_figures(empty, empty, (1.0, 1.0, 1.0)) == (0, 1)


def test_one_empty_mask_is_infinitely_far_away():
    empty, full = np.zeros((4, 5, 6), bool), np.ones((4, 5, 6), bool)
    assert surface_figures(empty, full, (1.0, 1.0, 1.0)) == (float("inf"), 0)
    assert surface_figures(full, empty, (1.0, 1.0, 1.0)) == (float("inf"), 0)


def test_a_mask_that_touches_the_border_of_the_volume_has_its_surface_there():
    full = np.ones((6, 6, 6), bool)
    inner = np.pad(full, 2)
    outer = np.pad(box((6, 6, 6), (0, 6), (0, 6), (0, 5)), 2)
    there = surface_figures(full, box((6, 6, 6), (0, 6), (0, 6), (0, 5)), (1.0, 1.0, 2.0))
    assert there == surface_figures(inner, outer, (1.0, 1.0, 2.0)) == (2.0, 1.0)


def test_lists_are_counted_like_arrays():
    masks = np.random.default_rng(0).integers(0, 2, (2, 3, 1, 4, 4))
    arrays, lists = metrics.count(*masks), metrics.count(*masks.tolist())
    for name in metrics.COUNTS:
        np.testing.assert_array_equal(getattr(arrays, name), getattr(lists, name))
