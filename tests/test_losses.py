"""The losses: against torch, MONAI and closed forms; far from 0; their gradients; their sums."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.losses import DiceLoss, FocalLoss

from unetlib.losses import LOSSES, bce, dice, focal, get_loss
from unetlib.support.errors import UnetlibError

shapes = st.tuples(st.integers(1, 3), st.just(1), st.integers(1, 4), st.integers(1, 4))


@st.composite
def batches(draw, limit=20.0):
    """Logits within the limit and masks of 0 and 1, both (N, 1, H, W) in double precision."""
    shape = draw(shapes)
    logits = draw(hnp.arrays(np.float64, shape, elements=st.floats(-limit, limit)))
    masks = draw(hnp.arrays(np.bool_, shape))
    return torch.from_numpy(logits), torch.from_numpy(masks).double()


def batch(seed=0, shape=(2, 1, 3, 4)):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64), torch.rand(shape, generator=rng).round().double()


@given(batches())
def test_bce_is_the_bce_of_the_sigmoid(data):
    logits, masks = data
    assert torch.isclose(bce(logits, masks), torch.nn.BCELoss()(torch.sigmoid(logits), masks), rtol=1e-6)


@pytest.mark.parametrize("logit", [200.0, -200.0])
def test_bce_grows_with_the_logit_where_bce_of_the_sigmoid_has_saturated(logit):
    logits, wrong = torch.full((2, 1, 3, 3), logit), torch.full((2, 1, 3, 3), float(logit < 0))
    assert bce(logits, wrong).item() == 200
    assert torch.nn.BCELoss()(torch.sigmoid(logits), wrong).item() < 200


@pytest.mark.parametrize("logit", [200.0, -200.0])
def test_bce_keeps_its_gradient_where_bce_of_the_sigmoid_has_lost_it(logit):
    wrong = torch.full((1, 1, 1, 1), float(logit < 0))
    for loss, kept in ((bce, True), (lambda x, mask: torch.nn.BCELoss()(torch.sigmoid(x), mask), False)):
        logits = torch.full((1, 1, 1, 1), logit, requires_grad=True)
        loss(logits, wrong).backward()
        assert (logits.grad.item() == np.sign(logit)) == kept


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("logit", [200.0, -200.0, 0.0])
@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_loss_and_gradient_are_finite_far_from_0(name, logit, mask):
    logits = torch.full((2, 1, 3, 3), logit, requires_grad=True)
    loss = get_loss(name)(logits, torch.full((2, 1, 3, 3), mask))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@given(batches())
def test_dice_is_the_dice_loss_of_monai_over_the_batch(data):
    logits, masks = data
    oracle = DiceLoss(sigmoid=True, batch=True, include_background=True, smooth_nr=1, smooth_dr=1)
    assert torch.isclose(dice(logits, masks), oracle(logits, masks), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_perfect_prediction_costs_nothing(name, share):
    masks = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < share).float()
    assert get_loss(name)(200 * (2 * masks - 1), masks).item() == pytest.approx(0, abs=1e-6)


def test_dice_of_a_full_prediction_of_an_empty_mask_is_near_1():
    assert dice(torch.full((1, 1, 3, 3), 200.0), torch.zeros(1, 1, 3, 3)).item() == pytest.approx(1 - 1 / 10)


def test_dice_of_an_empty_prediction_of_a_full_mask_is_near_1():
    assert dice(torch.full((1, 1, 3, 3), -200.0), torch.ones(1, 1, 3, 3)).item() == pytest.approx(1 - 1 / 10)


def test_dice_is_pooled_over_the_batch_and_not_averaged_over_its_slices():
    masks = torch.zeros(2, 1, 2, 2)
    masks[0] = 1
    logits = torch.full((2, 1, 2, 2), 200.0)  # the first slice is perfect, the second all wrong
    assert dice(logits, masks).item() == pytest.approx(1 - (2 * 4 + 1) / (8 + 4 + 1))


@given(batches(), st.floats(0.1, 5))
def test_focal_is_the_mean_of_its_equation(data, gamma):
    logits, masks = data
    right = 1 / (1 + np.exp(np.where(masks.numpy() == 1, -logits, logits)))  # the probability of what is true
    wrong = 1 / (1 + np.exp(np.where(masks.numpy() == 1, logits, -logits)))
    expected = np.mean(wrong**gamma * -np.log(right))
    assert focal(logits, masks, gamma).item() == pytest.approx(expected, rel=1e-6, abs=1e-20)


@given(batches(), st.one_of(st.just(2.0), st.floats(1, 5)))
def test_focal_is_the_focal_loss_of_monai(data, gamma):
    logits, masks = data
    oracle = FocalLoss(gamma=gamma, alpha=None)(logits, masks).item()
    rounding = 20 * torch.finfo(torch.float32).eps  # MONAI subtracts logits of up to 20 in single precision
    assert focal(logits, masks, gamma).item() == pytest.approx(oracle, rel=1e-5, abs=2 * rounding)


@given(batches(limit=200.0))
def test_focal_of_gamma_0_is_bce(data):
    assert torch.isclose(focal(*data, gamma=0), bce(*data), rtol=1e-12)


@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_at_logit_0_the_losses_take_their_closed_forms(mask):
    logits, masks = torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), mask)
    assert bce(logits, masks).item() == pytest.approx(np.log(2))
    assert focal(logits, masks).item() == pytest.approx(np.log(2) / 4)
    assert dice(logits, masks).item() == pytest.approx(1 - (18 * mask + 1) / (9 + 18 * mask + 1))


@given(batches(limit=200.0))
def test_the_losses_stay_within_their_bounds(data):
    assert 0 <= focal(*data) <= bce(*data)
    assert 0 <= dice(*data) < 1


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_slices_does_not_matter(data, random):
    order = random.sample(range(len(data[0])), len(data[0]))
    for loss in LOSSES.values():
        assert torch.isclose(loss(data[0][order], data[1][order]), loss(*data), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*LOSSES, "dice+bce", "bce+dice+focal"])
def test_a_loss_is_one_number(name):
    assert get_loss(name)(*batch()).shape == ()


@pytest.mark.parametrize("name", [*LOSSES, "dice+bce"])
def test_the_gradient_agrees_with_finite_differences(name):
    logits, masks = batch()
    assert torch.autograd.gradcheck(lambda x: get_loss(name)(x, masks), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_against_the_gradient_lowers_the_loss(name):
    logits, masks = batch()
    loss = get_loss(name)(logits.requires_grad_(), masks)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert get_loss(name)(logits - gradient, masks) < loss


@pytest.mark.parametrize(("name", "loss"), [("bce", bce), ("dice", dice), ("focal", focal)])
def test_a_loss_is_found_by_its_name(name, loss):
    assert get_loss(name)(*batch()) == loss(*batch())


@pytest.mark.parametrize("names", [*permutations(LOSSES, 2), *permutations(LOSSES, 3), ("bce", "bce")])
@pytest.mark.parametrize("joint", ["+", " + "])
def test_a_sum_by_name_is_the_sum_of_the_losses(names, joint):
    expected = sum(LOSSES[name](*batch()) for name in names)
    assert torch.isclose(get_loss(joint.join(names))(*batch()), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "unknown"),
    [("mse", "mse"), ("", ""), ("BCE", "BCE"), ("dice+", ""), ("dice+mse", "mse"), ("a+b", "a"), (3, "3")],
)
def test_an_unknown_loss_is_refused_by_name(name, unknown):
    with pytest.raises(UnetlibError, match=rf"no loss named '{unknown}'; bce, dice, focal or a sum .* was expected"):
        get_loss(name)
