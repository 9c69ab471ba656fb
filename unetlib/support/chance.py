"""Chance without state: every random draw of training is a pure function of what it is for.

Nothing keeps a generator running from step to step, so a resumed run needs no generator state and
draws what the uninterrupted run would have drawn.
"""

import numpy as np

ORDER, AUGMENTATION, BALANCE, WARP, INTENSITY = 1, 2, 3, 4, 5  # purposes: draws for one never repeat those for another


def generator(purpose: int, *coordinates: int) -> np.random.Generator:
    """Return a fresh generator for a purpose and its coordinates, such as seed, epoch and step."""
    return np.random.default_rng([purpose, *coordinates])


def balanced(indices: np.ndarray, tumour: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return those of `indices` (N,) with `tumour` (N,) and as many others, or all others where they are fewer."""
    number = balanced_number(tumour) - int(tumour.sum())
    others = generator(BALANCE, seed, epoch).choice(indices[~tumour], number, replace=False)
    return np.concatenate([indices[tumour], others])


def balanced_number(tumour: np.ndarray) -> int:
    """Return how many slices `balanced` shows, for the slices with `tumour` (N,)."""
    return min(2 * int(tumour.sum()), len(tumour))


def shuffled(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return `indices` (N,) in the random order of one epoch."""
    return generator(ORDER, seed, epoch).permutation(indices)
