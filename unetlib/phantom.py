"""A synthetic cohort in BraTS 2021 layout: real average anatomy, deformed, with a grown tumour.

The anatomy is the MNI152 template inside nilearn's wheel, so nothing is downloaded. The course
runs on it offline; a result on it says nothing about patients. The arrays in this module are
float32 in LPS order on one of two grids: the box (1 mm) that holds the head, or the coarse grid
(3 mm) of everything that is smooth. Arrays that hold several maps have them along axis 0.
"""

import shutil
from dataclasses import dataclass
from functools import lru_cache
from os import getpid, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.special import expit

from unetlib.errors import UnetlibError
from unetlib.files import atomic, locked, read_json, takes_paths, write_json
from unetlib.jobs import run_jobs

Rng = np.random.Generator

GENERATOR = 1  # raised whenever the voxels of a given seed change
GRID = (240, 240, 155)  # the grid of BraTS, 1 mm
BOX = (169, 205, 155)  # the part of it that a head fills
CORNER = (35, 17, 0)  # where the box begins
COARSE = (57, 69, 52)
STEP = 3.0  # mm between two coarse points
ATLAS_CENTRE = (98.0, 115.0, 77.0)  # middle of the brain, in voxels of the atlas
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])

NECROSIS, OEDEMA, ENHANCING = 1, 2, 4  # the labels of BraTS
EDGE = 0.3  # cell density at the outline that an expert draws
DIFFUSION, PROLIFERATION, MAX_STEPS = 0.12, 0.06, 600  # per time step, on the coarse grid

# Signal relative to the scanner's range:  CSF   GM    WM    oedema rim  necrosis lesion
SIGNAL = {
    "flair": (0.14, 0.56, 0.46, 0.88, 0.80, 0.45, 0.84),
    "t1": (0.22, 0.55, 0.75, 0.54, 0.56, 0.36, 0.60),
    "t1ce": (0.22, 0.55, 0.73, 0.52, 1.15, 0.34, 0.60),
    "t2": (1.00, 0.58, 0.45, 0.78, 0.72, 0.92, 0.72),
}

NOTICE = """\
SYNTHETIC DATA: these are not patients. The images were computed by unetlib.phantom for research and
education only: not for diagnosis, and a result on them is no result on MRI.

The anatomy derives from the ICBM 152 2009a templates, whose notice is:
Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
Institute, McGill University. Permission to use, copy, modify, and distribute this software and its
documentation for any purpose and without fee is hereby granted, provided that the above copyright
notice appear in all copies. The authors and McGill University make no representations about the
suitability of this software for any purpose. It is provided "as is" without express or implied
warranty. The authors are not responsible for any data loss, equipment damage, property loss, or
injury to subjects or patients resulting from the use or misuse of this software package.
"""


@dataclass(frozen=True)
class Phantom:
    """One synthetic patient.

    `images`: flair, t1, t1ce and t2, each (240, 240, 155) int16 in LPS order, skull-stripped, 0
    outside the brain and at least 1 inside, in arbitrary scanner units. `seg`: the same shape,
    uint8: 1 necrotic core, 2 oedema, 4 enhancing rim, 0 else. `affine`: (4, 4), voxel to mm.
    A varied patient has flair alone, (240, 240, 20 to 60), and 2 for the whole tumour.
    """

    images: dict[str, np.ndarray]
    seg: np.ndarray
    affine: np.ndarray


@takes_paths
def make_cohort(out: Path, patients: int = 24, seed: int = 0, workers: int | None = None, varied: bool = False) -> None:
    """Write `patients` synthetic patients as `out/Phantom_00000/Phantom_00000_flair.nii.gz` and so on.

    A patient depends on `seed` and its number alone, and is written whole or not at all: the same
    call again makes only what is missing, and a larger `patients` extends the cohort. `workers` is
    the number of processes, by default one per processor. `varied` makes the cohort to pre-train on
    for real MRI: FLAIR and mask only, most with their heads, in thick slices, with many contrasts.

    Raises `UnetlibError` when `patients` < 1 or `seed` < 0, when `out` holds anything but a cohort of
    this seed, generator and kind, when another process is writing it, and when it cannot be written.
    """
    if patients < 1 or seed < 0:
        raise UnetlibError(
            f"{patients} patients of seed {seed} were asked for; give at least 1 patient and a seed >= 0."
        )
    with locked(out):
        _claim(out, patients, seed, varied)
        missing = [(out, seed, index, varied) for index in range(patients) if not (out / _case(index)).exists()]
        for _ in run_jobs(_write_patient, missing, "Making synthetic patients", "patient", workers):
            pass


def make_patient(seed: int, index: int, varied: bool = False) -> Phantom:
    """Return patient number `index` of the cohort `seed`, a pure function of the numbers and of `varied`.

    The tumour grows by reaction and diffusion along the white matter (Swanson et al. 2000, Cell
    Proliferation 33) and pushes the tissue aside; lesions, bright rims, artefacts of flow, a bias
    field and Rician noise (Gudbjartsson & Patz 1995, MRM 34) are there to mislead a threshold.
    """
    if varied:
        from unetlib.varied import varied_patient  # which builds on this module

        return varied_patient(np.random.default_rng([seed, index, 1]))
    rng = np.random.default_rng([seed, index])
    atrophy = rng.uniform(1.0, 2.2)
    volume = min(max(float(rng.lognormal(np.log(50e3), 0.75)), 5e3), 150e3)  # mm3
    coords = _deformation(rng)
    coarse, brain = _tissue(coords, atrophy)
    depth = ndimage.distance_transform_edt(brain).astype(np.float32) * STEP
    start = _start(rng, coords, coarse, depth)
    coords = _push(coords, start, rng.uniform(0.15, 0.5), 0.8 * volume ** (1 / 3), np.clip(depth / 20, 0, 1))
    coarse, _ = _tissue(coords, atrophy)
    tissue, brain = _tissue(_fine(coords), atrophy)
    parts, seg = _tumour(rng, *_grow(rng, coarse, start, volume), tissue[0], brain)
    lesion, artefact = _distractors(rng, tissue[0], coarse[0], depth)
    contrast, scale = rng.uniform(0.65, 1.0), float(np.exp(rng.uniform(np.log(300), np.log(3000))))
    texture = 1 + _fine(0.04 * _field(rng, 3) + 0.02 * _field(rng, 12))
    images = {}
    for name in SIGNAL:
        gain = texture * artefact if name == "flair" else texture
        signal = _signal(rng, name, tissue, (*parts, lesion), contrast)
        images[name] = _acquire(rng, gain * signal, brain, scale)
    return Phantom(images, _embed(seg), AFFINE)


def _field(rng: Rng, width: float) -> np.ndarray:
    """Return a smooth random field on the coarse grid, of `width` mm, mean about 0 and deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(COARSE, dtype=np.float32), width / STEP)
    return noise / noise.std()


def _fine(coarse: np.ndarray, shape: tuple[int, ...] = BOX) -> np.ndarray:
    """Return one or several maps of the coarse grid, interpolated on the box, or stretched to another `shape`."""
    for axis, (fine, few) in enumerate(zip(shape, COARSE, strict=True), start=coarse.ndim - 3):
        place = np.linspace(0, few - 1, fine)
        below = np.minimum(place.astype(int), few - 2)
        share = np.expand_dims(place - below, tuple(range(1, coarse.ndim - axis))).astype(np.float32)
        coarse = coarse.take(below, axis) * (1 - share) + coarse.take(below + 1, axis) * share
    return coarse


@lru_cache(maxsize=1)
def _atlas() -> np.ndarray:
    """Return grey matter, white matter and brain mask of the MNI152 template, (3, 197, 233, 189)."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template  # 1 s

    loaders = (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    maps = [load(resolution=1).get_fdata(dtype=np.float32) for load in loaders]
    return np.ascontiguousarray(np.stack(maps)[:, ::-1, ::-1])  # the template is RAS


def _points() -> np.ndarray:
    """Return the place of the coarse points in the box, in mm from its corner."""
    axes = [np.linspace(0, fine - 1, few, dtype=np.float32) for fine, few in zip(BOX, COARSE, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _deformation(rng: Rng) -> np.ndarray:
    """Return which voxel of the atlas lies at each coarse point: an affine map, an elastic one, ventricles widened."""
    turn = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    matrix = (turn * rng.uniform([0.97, 0.97, 1.02], [1.1, 1.1, 1.12])).astype(np.float32)
    shift = rng.uniform([-3, -4, -3], [3, 4, 3])
    points = _points() - np.reshape(BOX, (3, 1, 1, 1)).astype(np.float32) / 2
    coords = np.einsum("ij,jxyz->ixyz", matrix, points) + np.reshape(ATLAS_CENTRE + shift, (3, 1, 1, 1))
    coords += np.stack([2.5 * _field(rng, 16) + 0.9 * _field(rng, 7) for _ in range(3)])
    ventricles = np.array([BOX[0] / 2, BOX[1] / 2 + 5, BOX[2] / 2 + 20])
    return _push(coords.astype(np.float32), ventricles, rng.uniform(-0.05, 0.3), 20.0, 1.0)


def _push(
    coords: np.ndarray, centre: np.ndarray, strength: float, reach: float, room: np.ndarray | float
) -> np.ndarray:
    """Return `coords` with the tissue within about `reach` mm of `centre` pushed outwards.

    `strength` is the share of its distance by which tissue at the centre moves; `room`, 0..1, is where it may.
    """
    away = _points() - np.reshape(centre, (3, 1, 1, 1)).astype(np.float32)
    share = strength * room * np.exp(-(away**2).sum(axis=0) / (2 * reach**2))
    return (coords - share * away).astype(np.float32)


def _tissue(coords: np.ndarray, atrophy: float, crisp: float = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of CSF, grey and white matter at atlas voxels `coords`, and the brain mask.

    The template is an average of many heads; the power `crisp` of the shares makes its tissues
    crisp again, and `atrophy` > 1 widens the furrows and ventricles.
    """
    grey, white, brain = (ndimage.map_coordinates(one, coords, order=1) for one in _atlas())
    shares = np.stack([atrophy * np.clip(1 - grey - white, 0, 1), grey, white]) ** crisp
    return shares / shares.sum(axis=0), brain > 0.5


def _start(rng: Rng, coords: np.ndarray, tissue: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return where a tumour begins, mm in the box: in the cerebrum, more often in white matter."""
    x, y, z = coords[0] - 98, 98 - coords[1], coords[2] - 72  # mm of MNI space, but x to the left
    cerebrum = (z > 2) | ((y > -25) & (np.abs(x) > 18) & (z > -30))
    weight = np.where(cerebrum & (depth > 8), 0.3 * tissue[1] + tissue[2], 0).ravel().astype(np.float64)
    place = rng.choice(weight.size, p=weight / weight.sum())
    return _points().reshape(3, -1)[:, place]


def _grow(rng: Rng, tissue: np.ndarray, start: np.ndarray, volume: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the cell density, and its mean over time, of a tumour of `volume` mm3, both 0..1, on the coarse grid.

    Solves du/dt = div(D grad u) + rho u (1 - u) by explicit steps; D is 10 times larger in white
    matter than in grey and 0 in CSF, and both D and rho vary smoothly so that the outline is ragged.
    """
    _, grey, white = tissue
    mobility = np.clip((white + grey / 10) * np.exp(0.7 * _field(rng, 6)), 0, 1.3) * DIFFUSION
    rate = (white + 0.6 * grey) * np.exp(0.6 * _field(rng, 9)) * PROLIFERATION
    faces = [np.minimum(mobility, np.roll(mobility, -1, axis)) for axis in range(3)]  # 0 where the grid wraps round
    density = np.exp(-((_points() - start.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) / (2 * STEP**2))
    burden = np.zeros_like(density)
    for _ in range(MAX_STEPS):
        if (density > EDGE).sum() * STEP**3 >= volume:
            break
        change = rate * density * (1 - density)
        for axis, face in enumerate(faces):
            flow = face * (np.roll(density, -1, axis) - density)
            change += flow - np.roll(flow, 1, axis)
        density += change
        burden += density
    return density, burden / burden.max()


def _tumour(
    rng: Rng, density: np.ndarray, age: np.ndarray, csf: np.ndarray, brain: np.ndarray
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the shares (0..1, soft) of oedema, enhancing rim and necrosis on the box, and the labels.

    The inner parts are where the cells have been longest; one patient in four has no enhancing rim.
    """
    age = age + 0.08 * _field(rng, 5) + 0.1 * _field(rng, 12)
    inside = age[density > EDGE]
    share = rng.uniform(0.12, 0.5)
    core, necrosis = (float(np.quantile(inside, 1 - part)) for part in (share, share * rng.uniform(0.2, 0.6)))
    if rng.random() < 0.25:
        core = np.inf  # a low grade: nothing enhances
    density, age = _fine(density + 0.05 * _field(rng, 4)), _fine(age)
    healthy = (density <= EDGE) | ~brain | (csf > 0.6)
    seg = np.select([healthy, age > necrosis, age > core], [0, NECROSIS, ENHANCING], OEDEMA).astype(np.uint8)
    visible = expit((density - EDGE - rng.uniform(-0.1, 0.1)) / 0.08) * (1 - csf)
    return (visible, *(visible * expit((age - limit) / 0.015) for limit in (core, necrosis))), seg


def _distractors(rng: Rng, csf: np.ndarray, fluid: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share (0..1) of healthy tissue that is a bright lesion, and the gain of artefacts on FLAIR.

    `csf` is the share of CSF on the box, `fluid` the same on the coarse grid, `depth` the mm to the brain's surface.
    """
    ventricle = ndimage.distance_transform_edt((fluid < 0.5) | (depth < 30)).astype(np.float32) * STEP
    near = np.exp(-ventricle / 6)
    blobs = _field(rng, 4) + _field(rng, 9) + 2.2 * near - rng.uniform(1.6, 2.8)
    caps = near * (1 + 0.6 * _field(rng, 12)) * rng.uniform(0.3, 1.3)
    lesion = np.maximum(
        expit(5 * _fine(blobs, csf.shape)) * rng.uniform(0.7, 1.0), _fine(np.clip(caps, 0, 0.9), csf.shape)
    )
    low = np.linspace(1, 0.2, COARSE[2], dtype=np.float32)
    rim = np.exp(-depth / 7) * low * np.clip(_field(rng, 14) + 0.3, 0, 2) * rng.uniform(0.15, 0.6)
    pulsation = _fine(np.clip(_field(rng, 9) - 0.5, 0, 2), csf.shape) * rng.uniform(0, 1.8) * csf
    return lesion * (1 - csf), 1 + _fine(rim, csf.shape) + pulsation


def _signal(rng: Rng, name: str, tissue: np.ndarray, layers: tuple[np.ndarray, ...], contrast: float) -> np.ndarray:
    """Return the noiseless signal of one modality on the box: tissues, then the layers painted over them."""
    levels = np.array(SIGNAL[name], dtype=np.float32) * (1 + 0.05 * rng.standard_normal(7, dtype=np.float32))
    csf, grey, white, *over = levels
    signal = csf * tissue[0] + grey * tissue[1] + white * tissue[2]
    patchy = 1 + _fine(0.13 * _field(rng, 5) + 0.13 * _field(rng, 12))
    over[0] = grey + contrast * (over[0] - grey)
    over[2] *= rng.uniform(0.7, 1.6)
    for level, share in zip(over, layers, strict=True):
        signal += share * (level * patchy - signal)
    return signal


def _acquire(rng: Rng, signal: np.ndarray, brain: np.ndarray, scale: float) -> np.ndarray:
    """Return the scan of a signal on the grid of BraTS: coil profile, slice thickness, noise, scanner units."""
    signal = signal * np.exp(_fine(rng.uniform(0.06, 0.18) * _field(rng, 40)))
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
    whole = np.zeros(GRID, dtype=box.dtype)
    whole[tuple(slice(begin, begin + size) for begin, size in zip(CORNER, BOX, strict=True))] = box
    return whole


def _case(index: int) -> str:
    return f"Phantom_{index:05d}"


def _claim(out: Path, patients: int, seed: int, varied: bool) -> None:
    """Make `out` the folder of this cohort, or go on with it; refuse any other folder."""
    record = out / "phantom.json"
    identity = {"generator": GENERATOR, "seed": seed, "varied": varied}
    known = {"varied": False, **read_json(record)} if record.exists() else {}  # older records lack it
    found = {key: known.get(key) for key in identity}
    if known and found != identity:
        raise UnetlibError(
            f"{out} holds a synthetic cohort made with {found}, but {identity} was asked for. "
            "Choose an empty folder, or delete this one."
        )
    if not known and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UnetlibError(
            f"{out} exists and is not a folder of synthetic patients (it has no phantom.json). Choose an empty folder."
        )
    write_json(record, {**identity, "patients": max(patients, known.get("patients", 0))})
    with atomic(out / "SYNTHETIC.txt") as temporary:
        temporary.write_text(NOTICE, encoding="utf-8")


def _write_patient(job: tuple[Path, int, int, bool]) -> None:
    """Write one patient's folder, whole or not at all."""
    out, seed, index, varied = job
    case = _case(index)
    temporary = out / f".tmp-{getpid()}-{case}"
    phantom = make_patient(seed, index, varied)
    try:
        for name, voxels in {**phantom.images, "seg": phantom.seg}.items():
            image = nib.Nifti1Image(voxels, phantom.affine)
            image.header["descrip"] = f"SYNTHETIC unetlib phantom, not a patient; seed {seed}"
            image.header["intent_name"] = "SYNTHETIC"
            image.header.set_xyzt_units("mm")
            with atomic(temporary / f"{case}_{name}.nii.gz") as path:
                nib.save(image, path)
        replace(temporary, out / case)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
