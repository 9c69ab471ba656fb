"""A patient of the plain cohort: four sequences, skull-stripped, on the grid of BraTS."""

import numpy as np
from scipy import ndimage

from unetlib.phantom.anatomy import BOX, GRID, Phantom, Rng, field, fine, tissues_at
from unetlib.phantom.tumours import distractors, grow, make_room, tumour

CORNER = (35, 17, 0)  # where the box begins in the grid
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])

# Signal relative to the scanner's range:  CSF   GM    WM    oedema rim  necrosis lesion
SIGNAL = {
    "flair": (0.14, 0.56, 0.46, 0.88, 0.80, 0.45, 0.84),
    "t1": (0.22, 0.55, 0.75, 0.54, 0.56, 0.36, 0.60),
    "t1ce": (0.22, 0.55, 0.73, 0.52, 1.15, 0.34, 0.60),
    "t2": (1.00, 0.58, 0.45, 0.78, 0.72, 0.92, 0.72),
}


def plain_patient(rng: Rng) -> Phantom:
    """Return a patient of the plain cohort: FLAIR, T1, contrast-enhanced T1 and T2, and a tumour of three labels."""
    atrophy = rng.uniform(1.0, 2.2)
    volume = float(np.clip(rng.lognormal(np.log(50e3), 0.75), 5e3, 150e3))  # mm3
    coords, coarse, _, depth, start = make_room(rng, atrophy, volume, least=0.15)
    tissue, brain = tissues_at(fine(coords), atrophy)
    layers, seg = tumour(rng, *grow(rng, coarse, start, volume), tissue[0], brain)
    lesion, artefact = distractors(rng, tissue[0], coarse[0], depth)
    contrast, scale = rng.uniform(0.65, 1.0), float(np.exp(rng.uniform(np.log(300), np.log(3000))))
    texture = 1 + fine(0.04 * field(rng, 3) + 0.02 * field(rng, 12))
    images = {}
    for name in SIGNAL:
        gain = texture * artefact if name == "flair" else texture
        signal = _signal(rng, name, tissue, (*layers, lesion), contrast)
        images[name] = _acquire(rng, gain * signal, brain, scale)
    return Phantom(images, _embed(seg), AFFINE)


def _signal(rng: Rng, name: str, tissue: np.ndarray, layers: tuple[np.ndarray, ...], contrast: float) -> np.ndarray:
    """Return the noiseless signal of one modality on the box: tissues, then the layers painted over them."""
    levels = np.array(SIGNAL[name], dtype=np.float32) * (1 + 0.05 * rng.standard_normal(7, dtype=np.float32))
    csf, grey, white, *over = levels
    signal = csf * tissue[0] + grey * tissue[1] + white * tissue[2]
    patchy = 1 + fine(0.13 * field(rng, 5) + 0.13 * field(rng, 12))
    over[0] = grey + contrast * (over[0] - grey)
    over[2] *= rng.uniform(0.7, 1.6)
    for level, layer in zip(over, layers, strict=True):
        signal += layer * (level * patchy - signal)
    return signal


def _acquire(rng: Rng, signal: np.ndarray, brain: np.ndarray, scale: float) -> np.ndarray:
    """Return the scan of a signal on the grid of BraTS: coil profile, slice thickness, noise, scanner units."""
    signal = signal * np.exp(fine(rng.uniform(0.06, 0.18) * field(rng, 40)))
    signal = ndimage.gaussian_filter(signal, rng.choice([0, 0.5, 0.9], p=[0.4, 0.4, 0.2]), axes=(0, 1))
    signal = ndimage.uniform_filter1d(signal, rng.choice([1, 3, 5]), axis=2)
    level = rng.uniform(0.01, 0.05)
    real, imaginary = (level * rng.standard_normal(BOX, dtype=np.float32) for _ in range(2))
    scan = ndimage.gaussian_filter(np.hypot(signal + real, imaginary), 0.4)
    if rng.random() < 0.3:
        scan.flat[rng.choice(np.flatnonzero(brain), rng.integers(1, 12))] = scan.max() * rng.uniform(1.1, 1.8)
    units = np.clip(np.rint(scan / scan[brain].max() * scale), 1, None)
    return _embed(np.where(brain, units, 0).astype(np.int16))


def _embed(box: np.ndarray) -> np.ndarray:
    """Return the whole BraTS grid with `box` in its place and 0 around it."""
    margins = [(begin, whole - begin - size) for begin, size, whole in zip(CORNER, BOX, GRID, strict=True)]
    return np.pad(box, margins)
