"""Chance and augmentation: draws that are pure functions, and the eight symmetries of the square."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import center_of_mass, map_coordinates
from scipy.stats import chisquare

from unetlib import augment as module
from unetlib.augment import apply_symmetries, augment, change_intensity, draw_symmetries, draw_warp, warp
from unetlib.support.chance import AUGMENTATION, BALANCE, INTENSITY, ORDER, WARP, balanced, generator, shuffled
from unetlib.support.errors import UnetlibError

seeds = st.integers(0, 2**32 - 1)
small = st.integers(0, 1000)
PURPOSES = (ORDER, AUGMENTATION, BALANCE, WARP, INTENSITY)
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
    places = [(purpose, *place) for purpose in PURPOSES for place in product(range(6), repeat=3)]
    first = {int(generator(*place).integers(0, 2**63)) for place in places}
    assert len(first) == len(places)


def test_upright_slices_are_mirrored_left_to_right_or_not_with_equal_chance():
    times, square = np.zeros(2), picture(4, 8)
    for step in range(250):
        moved, masks = augment(square, square + 0.5, 1, 2, step, upright=True)
        assert torch.equal(moved + 0.5, masks)
        for before, after in zip(square, moved, strict=True):
            mirrored = torch.equal(after, torch.from_numpy(np.fliplr(before[0].numpy()).copy())[None])
            assert mirrored or torch.equal(after, before)
            times[int(mirrored)] += 1
    assert chisquare(times).pvalue > 0.001


def test_an_upright_slice_is_mirrored_where_its_coin_says_so():
    coins = draw_symmetries(3, 1, 4, 32)
    moved, _ = augment(picture(slices=32), picture(slices=32), 3, 1, 4, upright=True)
    for i in range(32):
        assert torch.equal(moved[i], picture(slices=32)[i].flip(-1) if coins[2, i] else picture(slices=32)[i])


def blobs(slices, size=24, channels=1):
    """Smooth pictures in 0..1, (slices, channels, size, size)."""
    coarse = torch.rand(slices, channels, 5, 5, generator=torch.Generator().manual_seed(slices))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


@given(seeds, small, small)
def test_a_warped_picture_equals_scipys_interpolation_at_the_drawn_places(seed, epoch, step):
    images = blobs(2, channels=3)
    moved, masks = warp(images, (images[:, 1:2] > 0.5).float(), seed, epoch, step)
    places = (draw_warp(seed, epoch, step, 2, (24, 24)).numpy() + 1) * 12 - 0.5  # x and y, in pixels
    for i in range(2):
        where = places[i, ..., 1], places[i, ..., 0]
        for channel in range(3):
            expected = map_coordinates(images[i, channel].numpy(), where, order=1, mode="grid-constant")
            np.testing.assert_allclose(moved[i, channel], expected, atol=1e-4)
        soft = map_coordinates((images[i, 1] > 0.5).numpy().astype(float), where, order=1, mode="grid-constant")
        sure = np.abs(soft - 0.5) > 1e-4
        assert ((masks[i, 0].numpy() == 1) == (soft >= 0.5))[sure].all()


@given(seeds, small, small, st.sampled_from([torch.float32, torch.uint8]))
def test_image_and_mask_are_warped_alike_and_masks_stay_0_and_1(seed, epoch, step, dtype):
    truth = (blobs(4) > 0.5).to(dtype)
    moved, masks = warp(truth.float(), truth, seed, epoch, step)
    assert masks.dtype == dtype
    assert masks.shape == truth.shape
    assert set(masks.unique().tolist()) <= {0, 1}
    assert torch.equal(moved >= 0.5, masks == 1)


@given(seeds, small, small)
def test_a_warp_is_a_pure_function_that_keeps_the_range_and_its_input(seed, epoch, step):
    images, masks = blobs(3), (blobs(3) > 0.5).float()
    before = images.clone(), masks.clone()
    torch.manual_seed(seed)
    first = warp(images, masks, seed, epoch, step)
    torch.manual_seed(seed + 1)
    again = warp(images, masks, seed, epoch, step)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])
    assert first[0].min() >= 0  # and no NaN
    assert first[0].max() <= 1 + 1e-6
    assert not torch.equal(first[0], warp(images, masks, seed, epoch, step + 1)[0])


def test_slices_of_a_batch_are_warped_each_in_its_own_way():
    moved, _ = warp(blobs(1).repeat(6, 1, 1, 1), torch.zeros(6, 1, 24, 24), 0, 0, 0)
    assert len({one.numpy().tobytes() for one in moved}) == 6


def test_angles_scales_and_shifts_have_the_deviations_that_are_stated():
    """The linear map that fits the drawn places best, for 2000 slices."""
    slices, size = 2000, 8
    centres = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid(centres, centres)
    even = np.stack([x.ravel(), y.ravel(), np.ones(size**2)], axis=1)
    grid = draw_warp(0, 0, 0, slices, (size, size)).numpy().reshape(slices, size**2, 2)
    maps = np.stack([np.linalg.lstsq(even, one, rcond=None)[0].T for one in grid])  # (slices, 2, 3)
    angles = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
    scales = np.log(np.linalg.norm(maps[:, :, :2], axis=1))
    for found, deviation in ((angles, 10), (scales, 0.12), (maps[:, :, 2] / 2, 0.04)):  # a slice is 2 wide
        assert np.std(found) == pytest.approx(deviation, rel=0.15)
        assert np.abs(np.mean(found)) < 0.1 * deviation
    bend = (grid - np.einsum("pk,nck->npc", even, maps)) / 2
    assert 0.01 < np.std(bend) < 0.03


def test_a_disc_in_the_middle_stays_there_on_average_and_keeps_its_size():
    x, y = np.mgrid[:32, :32] - 15.5
    disc = torch.from_numpy((np.hypot(x, y) < 9).astype(np.float32))[None, None]
    _, moved = warp(disc.repeat(1000, 1, 1, 1), disc.repeat(1000, 1, 1, 1), 5, 0, 0)
    centres = np.array([center_of_mass(one) for one in moved[:, 0].numpy()])
    np.testing.assert_allclose(centres.mean(0), 15.5, atol=0.25)
    assert centres.std(0).min() > 0.5
    assert moved.sum((1, 2, 3)).log().mean() == pytest.approx(disc.sum().log().item(), abs=0.1)


class Quiet:
    """Stands in for a generator: its draws, but no noise."""

    def __init__(self, *place):
        self.chance = np.random.default_rng(place)

    def normal(self, *args):
        return self.chance.normal(*args)

    def uniform(self, low, high, shape):
        return np.zeros(shape)

    def standard_normal(self, shape, dtype):
        return self.chance.standard_normal(shape, dtype=dtype)


@given(seeds, small, small)
def test_changed_intensities_stay_in_range_and_are_a_pure_function(seed, epoch, step):
    images = blobs(3, channels=3)
    before = images.clone()
    first = change_intensity(images, seed, epoch, step)
    torch.manual_seed(seed + 1)
    assert torch.equal(first, change_intensity(images, seed, epoch, step))
    assert not torch.equal(first, change_intensity(images, seed, epoch, step + 1))
    assert torch.equal(images, before)
    assert first.min() >= 0  # and no NaN
    assert first.max() <= 1


def test_air_stays_0_but_for_noise_of_no_more_than_4_percent(monkeypatch):
    air = torch.zeros(200, 1, 16, 16)
    found = change_intensity(air, 0, 0, 0)
    deviations = np.sqrt((found.square().mean((1, 2, 3)) * 2).numpy())  # half of the noise is below 0, and cut off
    assert deviations.max() < 0.04 * 1.2
    assert deviations.mean() == pytest.approx(0.02, rel=0.2)
    monkeypatch.setattr(module, "generator", Quiet)
    assert not change_intensity(air, 0, 0, 0).any()


@given(seeds, small)
def test_without_noise_all_channels_change_alike_and_what_is_brighter_stays_brighter(seed, step):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "generator", Quiet)
        values = torch.linspace(0, 1, 9)[:, None, None].expand(9, 12, 12)
        moved = change_intensity(values[None].repeat(4, 1, 1, 1), seed, 0, step)
        assert (moved.diff(dim=1) >= 0).all()
        same = change_intensity(blobs(4).repeat(1, 3, 1, 1), seed, 0, step)
        assert torch.equal(same[:, 0], same[:, 1])
        assert torch.equal(same[:, 0], same[:, 2])


def test_gamma_gain_and_bias_have_the_deviations_that_are_stated(monkeypatch):
    """Of a constant picture the logarithm is gamma times its own, plus that of the gain, plus a field around 0."""
    monkeypatch.setattr(module, "generator", Quiet)
    one, two = (change_intensity(torch.full((2000, 1, 8, 8), value), 0, 0, 0).log() for value in (0.05, 0.1))
    gamma = (two - one) / np.log(2)
    assert gamma.std((1, 2, 3)).max() < 1e-3  # the same everywhere in a slice
    assert gamma.mean((1, 2, 3)).log().std() == pytest.approx(0.25, rel=0.1)
    rest = two - gamma * np.log(0.1)  # gain and bias field
    assert rest.mean((1, 2, 3)).std() == pytest.approx(0.15, rel=0.15)
    assert 0.03 < rest.std((1, 2, 3)).mean() < 0.12


@given(st.lists(st.booleans(), max_size=40), seeds, small)
def test_a_balanced_epoch_shows_all_tumour_and_as_many_others(marks, seed, epoch):
    tumour = np.array(marks, dtype=bool)
    indices = 3 * np.arange(len(tumour)) + 1
    found = balanced(indices, tumour, seed, epoch)
    with_it, without = set(indices[tumour]), set(indices[~tumour])
    assert len(set(found)) == len(found)  # nothing twice
    assert set(found) & with_it == with_it
    assert len(set(found) & without) == min(len(with_it), len(without))
    assert set(found) <= with_it | without
    assert np.array_equal(found, balanced(indices, tumour, seed, epoch))


def test_the_others_of_a_balanced_epoch_are_drawn_anew_with_equal_chance():
    tumour = np.arange(40) < 8
    times = np.zeros(32)
    for epoch in range(1000):
        others = balanced(np.arange(40), tumour, 0, epoch)
        times[others[others >= 8] - 8] += 1
    assert times.sum() == 8000
    assert chisquare(times).pvalue > 0.001
