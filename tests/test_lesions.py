"""Lesion-wise figures: five cases worked out by hand, the definition as a flood fill, and what must always hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from studies import lesions
from tests import oracles
from unetlib import metrics
from unetlib.evaluation.lesions import lesion_figures
from unetlib.support.errors import UnetlibError


def found(prediction, truth, spacing=(1.0, 1.0, 1.0)):
    one = lesion_figures(prediction, truth, spacing)
    return one.dice, one.hd95, one.lesions, one.missed, one.false_alarms


CUBE = (6, 6, 6)  # 216 voxels
A = ((4, 4, 4), CUBE)  # x from 4 to 9; its surface from 3.5 to 9.5


def test_case_1_of_two_lesions_one_is_missed():
    # A is found as it is: Dice 1, HD95 0. B, 5 x 5 x 5 voxels, is missed: Dice 0, HD95 374.
    # The mean is 1 / 2 and 374 / 2 = 187, while the Dice of the volume is 2 * 216 / (216 + 341) = 0.776.
    truth, prediction = oracles.drawn(A, ((22, 4, 4), (5, 5, 5))), oracles.drawn(A)
    assert found(prediction, truth) == (0.5, 187.0, 2, 1, 0)
    assert metrics.dice(metrics.count(prediction[None, None], truth[None, None])).item() == pytest.approx(432 / 557)


@pytest.mark.parametrize(("small", "scored"), [((2, 5, 5), False), ((3, 3, 6), True)])
def test_case_2_a_lesion_of_50_mm3_is_not_scored_but_claims_its_part(small, scored):
    # 2 x 5 x 5 = 50 mm3 are not scored, 3 x 3 x 6 = 54 are. One voxel lies 2 voxels beside: within its dilation, so no
    # false alarm; against a lesion of 54 it has Dice 0. One voxel far from all is a false alarm: 0 and 374.
    truth = oracles.drawn(A, ((20, 4, 4), small))
    prediction = oracles.drawn(A, ((20, 4, 2), (1, 1, 1)), ((30, 14, 18), (1, 1, 1)))
    dice, hd95, *numbers = found(prediction, truth)
    assert tuple(numbers) == (1 + scored, 0, 1)
    assert dice == (pytest.approx(1 / 3) if scored else 0.5)  # (1 + 0) / 2, or (1 + 0 + 0) / 3
    assert scored or hd95 == 187.0  # (0 + 374) / 2


@pytest.mark.parametrize(("gap", "expected"), [(6, (2 / 3, 12.0, 1, 0, 0)), (7, (0.5, 187.0, 2, 1, 0))])
def test_case_3_parts_up_to_6_voxels_apart_are_one_lesion(gap, expected):
    # Each part grows by 3: 6 voxels apart they touch, 7 apart there is a voxel between them.
    # One lesion of 432 voxels, half of it found: 2 * 216 / (216 + 432) = 2 / 3. The far face of the missing half lies
    # 6 + 6 = 12 voxels from the found one, and is a twelfth of the surface of the lesion, more than 5 %.
    # Two lesions: 1 and 0 for the first, 0 and 374 for the second.
    truth = oracles.drawn(A, ((10 + gap, 4, 4), CUBE))
    assert found(oracles.drawn(A), truth) == pytest.approx(expected)


def test_case_4_one_part_serves_two_lesions():
    # A bar of 20 x 6 x 6 = 720 voxels covers both lesions and the 8 voxels between them. For each of the two:
    # Dice 2 * 216 / (216 + 720) = 0.4615, and the far end of the bar, 7 % of its surface, lies 8 + 6 = 14 voxels away.
    truth, bar = oracles.drawn(A, ((18, 4, 4), CUBE)), oracles.drawn(((4, 4, 4), (20, 6, 6)))
    assert found(bar, truth) == pytest.approx((432 / 936, 14.0, 2, 0, 0))


def test_case_5_all_parts_that_touch_the_dilation_are_the_match():
    # The match is a half of the lesion, 3 x 6 x 6 = 108 voxels, and a slab beside it, 2 x 6 x 6 = 72 voxels, which
    # touches its dilation only: Dice 2 * 108 / (216 + 108 + 72) = 0.5455. The far face of the slab, at 12.5, lies 3
    # from the lesion's, at 9.5: 14 % of the surface of the match. From the lesion to the match it is 2 at the most.
    truth, match = oracles.drawn(A), oracles.drawn(((4, 4, 4), (3, 6, 6)), ((11, 4, 4), (2, 6, 6)))
    assert found(match, truth) == pytest.approx((216 / 396, 3.0, 1, 0, 0))


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ((), (), (1.0, 0.0, 0, 0, 0)),
        ((A,), (), (0.0, 374.0, 0, 0, 1)),
        ((), (A,), (0.0, 374.0, 1, 1, 0)),
        ((), (((4, 4, 4), (2, 5, 5)),), (1.0, 0.0, 0, 0, 0)),  # too small to be scored
    ],
)
def test_where_one_or_both_are_empty(prediction, truth, expected):
    assert found(oracles.drawn(*prediction), oracles.drawn(*truth)) == expected


def test_the_smallest_size_is_in_mm3_and_hd95_in_mm_but_the_dilation_in_voxels():
    truth, moved = oracles.drawn(((4, 4, 4), (3, 3, 5))), oracles.drawn(((4, 4, 5), (3, 3, 5)))  # 45 voxels, 225 mm3
    assert found(moved, truth, (1.0, 1.0, 5.0)) == pytest.approx((72 / 90, 5.0, 1, 0, 0))
    assert found(moved, truth) == (1.0, 0.0, 0, 0, 0)
    near = oracles.drawn(((4, 4, 11), (3, 3, 5)))  # three steps of the dilation, 15 mm, away
    assert found(near, truth, (1.0, 1.0, 5.0))[2:] == (1, 0, 0)


def test_parts_that_touch_at_a_corner_are_one():
    corner = oracles.drawn(A, ((10, 10, 10), CUBE))
    assert found(corner, corner)[2:] == (1, 0, 0)
    assert found(corner, oracles.drawn())[2:] == (0, 0, 1)


volumes = arrays.arrays(bool, (11, 7, 9), elements=st.booleans(), fill=st.just(False))


@given(volumes, volumes, st.sampled_from([(1.0, 1.0, 1.0), (4.0, 3.0, 5.0)]))
def test_it_is_the_definition(prediction, truth, spacing):
    assert found(prediction, truth, spacing) == pytest.approx(oracles.lesions_by_definition(prediction, truth, spacing))


@given(volumes, volumes, st.integers(0, 2))
def test_it_depends_on_no_axis_and_no_margin(prediction, truth, axis):
    one = found(prediction, truth, (5.0, 5.0, 5.0))
    for change in (lambda v: np.flip(v, axis), lambda v: np.pad(v, 4), lambda v: np.moveaxis(v, 0, axis)):
        assert found(change(prediction), change(truth), (5.0, 5.0, 5.0)) == pytest.approx(one)


def test_the_truth_itself_is_perfect_where_it_is_not_divided():
    two = oracles.drawn(A, ((24, 4, 4), CUBE))
    assert found(two, two) == (1.0, 0.0, 2, 0, 0)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 5), bool), np.zeros((4, 4, 4)), np.zeros((1, 4, 4, 4), bool)])
def test_other_volumes_are_a_sentence(wrong):
    with pytest.raises(UnetlibError, match="two boolean volumes"):
        lesion_figures(wrong, np.zeros((4, 4, 4), bool))


@pytest.mark.parametrize(
    ("boxes", "same"),
    [
        *((lesions.DRAWN[name][:2], True) for name in ("one of two lesions missed", "a false alarm", "both empty")),
        *((lesions.DRAWN[name][:2], False) for name in ("one part over two lesions", "two parts for one lesion")),
        (lesions.DRAWN["two parts 3 voxels apart, one found"][:2], False),
        (lesions.DRAWN["a lesion of 50 voxels missed"][:2], False),
        (([((4, 4, 11), (6, 6, 6))], [lesions.A]), False),  # it touches the dilated lesion only
    ],
)
def test_lesions_are_compared_where_the_definitions_are_the_same(boxes, same):
    assert lesions.same_definition(*(oracles.drawn(*some) for some in boxes)) == same


def test_the_dice_over_lesions_follows_from_that_over_matches():
    found = {"tp": 2, "fp": 1, "fn": 1, "sq_dsc": 0.8}
    assert lesions.dice_of(found) == pytest.approx(0.4)  # (0.8 + 0.8 + 0 + 0) / 4
    assert lesions.dice_of({"tp": 0, "fp": 1, "fn": 0, "sq_dsc": 0.0}) == 0
