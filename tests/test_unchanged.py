"""What version 0.3 drew and chose: other digests here would make every published run another one.

Whole numbers only, so that they hold on every processor. `python -m tests.same_as COMMIT` compares the rest.
"""

from hashlib import sha256
from typing import Any

import numpy as np

from unetlib.augment import draw_symmetries
from unetlib.data.slices import choose_slices
from unetlib.data.split import make_split
from unetlib.support.chance import balanced, shuffled


def first_digits(values: Any) -> str:
    return sha256(np.ascontiguousarray(values, "<i8").tobytes()).hexdigest()[:16]


def test_split_order_draws_and_chosen_slices_are_those_of_version_0_3():
    split = make_split([f"BraTS2021_{number:05d}" for number in range(100)], seed=0)
    parts = repr((split.train, split.val, split.test)).encode()
    assert sha256(parts).hexdigest()[:16] == "83ee278a28ed71ee"
    numbers = np.arange(1000)
    assert first_digits(shuffled(numbers, seed=0, epoch=3)) == "1e4d89ed9c6b071a"
    assert first_digits(balanced(numbers[:300], numbers[:300] % 3 == 0, seed=0, epoch=2)) == "496da084a73d7d78"
    coins = draw_symmetries(seed=0, epoch=3, step=5, slices=64).numpy()
    assert sha256(np.ascontiguousarray(coins, "u1").tobytes()).hexdigest()[:16] == "554085e8b54909be"
    x, y, z = np.indices((240, 240, 155))
    ball = (x - 100) ** 2 + (y - 140) ** 2 + 4 * (z - 80) ** 2 < 900
    assert first_digits(choose_slices(ball.astype(np.float32) + 1, ball, "tumour")) == "886b566040eeffa3"
