"""Chance and augmentation: draws that are pure functions, and the eight symmetries of the square."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from unetlib.augment import apply_symmetries, augment, draw_symmetries
from unetlib.chance import AUGMENTATION, ORDER, generator, shuffled
from unetlib.errors import UnetlibError

seeds = st.integers(0, 2**32 - 1)
small = st.integers(0, 1000)
COINS = [torch.tensor(coins).reshape(3, 1) for coins in product([False, True], repeat=3)]


def picture(size=3, slices=1):
    """Slices whose pixels all differ: (slices, 1, size, size)."""
    return torch.arange(slices * size * size, dtype=torch.float32).reshape(slices, 1, size, size)


def symmetries(square):
    """The eight symmetries of a square array, by rotating and mirroring it."""
    return [np.rot90(side, turns) for side in (square, np.fliplr(square)) for turns in range(4)]


def which(before, after):
    """The number of the symmetry that took the square `before` to `after`."""
    (number,) = [i for i, one in enumerate(symmetries(before.numpy())) if np.array_equal(one, after.numpy())]
    return number


def test_the_eight_tosses_are_the_eight_symmetries_of_the_square():
    square = picture()
    assert sorted(which(square[0, 0], apply_symmetries(square, coins)[0, 0]) for coins in COINS) == list(range(8))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_a_symmetry_is_a_rotation_of_the_picture_or_of_its_mirror_image(size):
    square = picture(size)
    for coins in COINS:
        moved = apply_symmetries(square, coins)[0, 0].numpy()
        assert any(np.array_equal(moved, one) for one in symmetries(square[0, 0].numpy()))


def test_no_heads_leave_the_picture_as_it_is():
    assert torch.equal(apply_symmetries(picture(), torch.zeros(3, 1, dtype=torch.bool)), picture())


@given(seeds, small, small)
def test_every_slice_is_moved_by_its_own_coins(seed, epoch, step):
    batch, coins = picture(4, 6), draw_symmetries(seed, epoch, step, 6)
    moved = apply_symmetries(batch, coins)
    for i in range(6):
        assert torch.equal(moved[i : i + 1], apply_symmetries(batch[i : i + 1], coins[:, i : i + 1]))


@given(seeds, small, small)
def test_all_channels_of_a_slice_move_alike(seed, epoch, step):
    first = picture(4, 3)
    moved, _ = augment(torch.cat([first, first + 0.5], dim=1), first, seed, epoch, step)
    assert torch.equal(moved[:, :1] + 0.5, moved[:, 1:])


@given(seeds, small, small)
def test_values_are_moved_and_never_changed(seed, epoch, step):
    images = torch.randn(4, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    moved, _ = augment(images, images, seed, epoch, step)
    assert torch.equal(moved.flatten(1).sort().values, images.flatten(1).sort().values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8, torch.bool])
def test_the_type_of_the_values_is_kept(dtype):
    images, masks = augment(picture(slices=8).to(dtype), picture(slices=8).to(dtype), 0, 0, 0)
    assert images.dtype == masks.dtype == dtype


def test_the_input_is_left_as_it_was():
    images = picture(slices=8)
    augment(images, images, 0, 0, 0)
    assert torch.equal(images, picture(slices=8))


@pytest.mark.parametrize("moving", ["seed", "epoch", "step"])
def test_each_of_the_eight_symmetries_is_equally_likely(moving):
    times, square = np.zeros(8), picture(slices=4)
    for draw in range(500):
        place = {"seed": 1, "epoch": 2, "step": 3} | {moving: draw}
        moved, _ = augment(square, square, **place)
        for before, after in zip(square, moved, strict=True):
            times[which(before[0], after[0])] += 1
    assert times.sum() == 2000
    assert chisquare(times).pvalue > 0.001


def test_the_symmetries_of_two_slices_of_a_batch_are_drawn_independently():
    weights, pairs = torch.tensor([4, 2, 1]), np.zeros((8, 8))
    for step in range(3200):
        first, second = weights @ draw_symmetries(0, 0, step, 2).long()
        pairs[first, second] += 1
    assert chisquare(pairs.ravel()).pvalue > 0.001


@given(seeds, small, small)
def test_the_draw_is_a_pure_function_of_seed_epoch_and_step(seed, epoch, step):
    first = draw_symmetries(seed, epoch, step, 16)
    torch.manual_seed(seed + 1)
    draw_symmetries(seed, epoch, step + 1, 16)
    assert torch.equal(draw_symmetries(seed, epoch, step, 16), first)


def test_the_draw_leaves_the_generator_of_torch_alone():
    before = torch.get_rng_state()
    draw_symmetries(0, 0, 0, 16)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_draw_differs_between_seeds_epochs_and_steps():
    draws = {draw_symmetries(*place, 64).numpy().tobytes() for place in product(range(4), repeat=3)}
    assert len(draws) == 64


def test_coins_are_three_booleans_a_slice():
    coins = draw_symmetries(0, 0, 0, 5)
    assert coins.shape == (3, 5)
    assert coins.dtype == torch.bool


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 1, 5, 4), (1, 1, 1, 3)])
def test_slices_that_are_not_square_are_refused(shape):
    with pytest.raises(UnetlibError, match=rf"{shape[2]}, {shape[3]}\) cannot be rotated.*squares were expected"):
        augment(torch.zeros(shape), torch.zeros(shape), 0, 0, 0)


@given(st.sets(st.integers(0, 10**6), max_size=50), seeds, small)
def test_the_order_of_an_epoch_is_a_permutation(indices, seed, epoch):
    indices = np.array(sorted(indices), dtype=np.int64)
    assert np.array_equal(np.sort(shuffled(indices, seed, epoch)), indices)


def test_the_indices_given_are_left_as_they_were():
    indices = np.arange(100)
    shuffled(indices, 0, 0)
    assert np.array_equal(indices, np.arange(100))


def test_the_order_differs_between_seeds_and_epochs():
    orders = {shuffled(np.arange(50), *place).tobytes() for place in product(range(8), repeat=2)}
    assert len(orders) == 64


@given(seeds, small)
def test_the_order_is_a_pure_function_of_seed_and_epoch(seed, epoch):
    first = shuffled(np.arange(50), seed, epoch)
    shuffled(np.arange(50), seed, epoch + 1)
    assert np.array_equal(shuffled(np.arange(50), seed, epoch), first)


def test_every_slice_is_equally_likely_to_come_first():
    times = np.bincount([shuffled(np.arange(10), 0, epoch)[0] for epoch in range(2000)], minlength=10)
    assert chisquare(times).pvalue > 0.001


def test_order_and_coins_share_no_stream():
    # numpy fills missing coordinates up with zeros, so step 0 of the coins is where they would meet.
    for seed, epoch in product(range(10), repeat=2):
        as_coins = generator(AUGMENTATION, seed, epoch, 0).permutation(np.arange(50))
        assert not np.array_equal(shuffled(np.arange(50), seed, epoch), as_coins)


def test_every_purpose_and_place_has_a_stream_of_its_own():
    places = [(purpose, *place) for purpose in (ORDER, AUGMENTATION) for place in product(range(6), repeat=3)]
    first = {int(generator(*place).integers(0, 2**63)) for place in places}
    assert len(first) == len(places)
