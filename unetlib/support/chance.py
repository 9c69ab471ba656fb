"""Random numbers without state: every random draw of training is a pure function of purpose, seed, epoch and step.

No generator keeps running from step to step, so a resumed run needs no generator state and draws the same numbers as an
uninterrupted one.
"""

import numpy as np

# Purposes: draws for different purposes are independent.
ORDER, AUGMENTATION, BALANCE, WARP, INTENSITY, LAYERS, DROP = 1, 2, 3, 4, 5, 6, 7


def generator(purpose: int, *coordinates: int) -> np.random.Generator:
    """Return a fresh generator for a purpose and its coordinates, such as seed, epoch and step."""
    return np.random.default_rng([purpose, *coordinates])


def step_seed(seed: int, epoch: int, step: int) -> int:
    """Return the seed of PyTorch's generator in one step, for random layers such as dropout."""
    return int(np.random.SeedSequence([LAYERS, seed, epoch, step]).generate_state(1)[0])


def balanced(indices: np.ndarray, tumour: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the `indices` (N,) with `tumour` (N,) and as many others, or all others if there are fewer."""
    number = min(int(tumour.sum()), int((~tumour).sum()))
    others = generator(BALANCE, seed, epoch).choice(indices[~tumour], number, replace=False)
    return np.concatenate([indices[tumour], others])


def shuffled(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return `indices` (N,) in the random order of one epoch."""
    return generator(ORDER, seed, epoch).permutation(indices)
