"""T1, contrast-enhanced T1 and T2 of a varied patient, and the parts of its tumour that they show.

Signals are relative to grey matter, from ranges around those of patients (`studies/PHANTOMS.md`). Maps are float32 on
the grid `THICK`. Nothing here is drawn for FLAIR alone.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from unetlib.phantom.anatomy import THICK, Rng, field, fine
from unetlib.phantom.tumours import EDGE, patchy_age

Look = dict[str, float]  # signal of each tissue; of what is around the brain, relative to FLAIR's

LOOKS: dict[str, dict[str, tuple[float, float]]] = {
    "t1": {
        "csf": (0.25, 0.5),
        "white": (1.15, 1.45),
        "lesion": (0.9, 1.15),
        "oedema": (0.85, 1.2),
        "rim": (0.85, 1.2),
        "necrosis": (0.7, 1.1),
        "muscle": (1.0, 1.8),
        "fat": (1.0, 1.8),
        "eye": (0.8, 1.2),
    },
    "t2": {
        "csf": (2.0, 3.4),
        "white": (0.68, 0.92),
        "lesion": (1.1, 1.6),
        "oedema": (1.15, 1.9),
        "rim": (1.15, 1.9),
        "necrosis": (1.5, 2.6),
        "muscle": (0.5, 1.0),
        "fat": (0.6, 1.2),
        "eye": (3.0, 6.0),
    },
}


@dataclass(frozen=True)
class Core:
    """Where FLAIR shows the inner part of a tumour: where `age` is above `limit`; `cystic` is 0..1, 1 as CSF."""

    age: np.ndarray
    limit: float
    cystic: float


@dataclass(frozen=True)
class Parts:
    """The parts of a tumour as fractions (0..1) of each voxel, each painted over the one before.

    `enhancing` includes the necrosis that it surrounds. `cystic` tells how close the necrosis is to CSF, 0..1.
    """

    whole: np.ndarray
    enhancing: np.ndarray
    necrosis: np.ndarray
    cystic: float


def draw_parts(rng: Rng, whole: np.ndarray, density: np.ndarray, age: np.ndarray, shown: Core | None) -> Parts:
    """Return the parts of a tumour: its core is where cells have been longest, and where FLAIR shows one, around that.

    Of a quarter nothing enhances: the core is solid tumour, labelled as necrosis is. Of the others some have no
    necrosis, some several foci, and some a rim with gaps.
    """
    core = shown or _hidden_core(rng, density, age)
    inside, width = core.age[density > EDGE], rng.uniform(0.008, 0.03)
    if rng.random() < 0.25:
        return Parts(whole, 0 * whole, whole * expit((fine(core.age, THICK) - core.limit) / width), core.cystic)
    share = max(0.05, float(np.mean(inside <= core.limit)) - rng.uniform(0.08, 0.4))
    enhancing = whole * expit((fine(core.age, THICK) - float(np.quantile(inside, share))) / width)
    ragged = fine(core.age + rng.uniform(0, 0.06) * field(rng, 5), THICK)  # a rim of varying thickness
    return Parts(whole, enhancing, enhancing * expit((ragged - core.limit) / width), core.cystic)


def _hidden_core(rng: Rng, density: np.ndarray, age: np.ndarray) -> Core:
    """Return the inner part of a tumour that is homogeneous on FLAIR; a quarter have none."""
    age = patchy_age(rng, age) + rng.choice([0, 0.15, 0.3]) * field(rng, 6)  # the last: several foci
    if rng.random() < 0.25:
        return Core(age, float(age.max()) + 1, 0)
    return Core(age, float(np.quantile(age[density > EDGE], rng.uniform(0.5, 0.95))), rng.uniform(0, 0.4))


def draw_looks(rng: Rng, fluid: float) -> dict[str, Look]:
    """Return how T1, contrast-enhanced T1 and T2 show each tissue, of a head whose CSF on FLAIR is `fluid`."""
    looks = {name: {tissue: rng.uniform(*limits) for tissue, limits in look.items()} for name, look in LOOKS.items()}
    enhanced = {tissue: level * rng.uniform(0.96, 1.04) for tissue, level in looks["t1"].items()}
    uptake = {"rim": enhanced["white"] * rng.uniform(1.15, 2.2), "vessel": enhanced["white"] * rng.uniform(1.2, 2.2)}
    looks = {"t1": looks["t1"], "t1ce": enhanced | uptake, "t2": looks["t2"]}
    return {name: look | {"fluid": look["csf"] / fluid} for name, look in looks.items()}


def draw_signal(
    rng: Rng, look: Look, tissue: np.ndarray, lesion: np.ndarray, parts: Parts, vessels: np.ndarray
) -> np.ndarray:
    """Return the noiseless signal of one sequence: tissues (3, X, Y, Z), then lesions, vessels and tumour over them."""
    signal = look["csf"] * tissue[0] + tissue[1] + look["white"] * tissue[2]
    signal += rng.uniform(0.1, 0.7) * lesion * (look["lesion"] - signal)
    if "vessel" in look:
        signal += vessels * (look["vessel"] - signal)
    inner = look["necrosis"] + parts.cystic * (look["csf"] - look["necrosis"])
    cover = 1 - rng.uniform(0.5, 1) * tissue[0]
    for level, part in ((look["oedema"], parts.whole), (look["rim"], parts.enhancing), (inner, parts.necrosis)):
        patchy = rng.uniform(0.02, 0.15) * field(rng, 5) + rng.uniform(0.02, 0.15) * field(rng, 14)
        signal += cover * part * (level * (1 + fine(patchy, THICK)) - signal)
    return signal * (1 + fine(0.03 * field(rng, 3) + 0.03 * field(rng, 12), THICK))


def draw_vessels(rng: Rng, csf: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return how much (0..1) of each voxel is a vessel or choroid plexus; `depth`: mm to the brain's surface, coarse.

    Vessels run near the surface, where two smooth fields are both 0; the plexus lies in the ventricles.
    """
    deep = fine(depth, THICK)
    apart = np.hypot(fine(field(rng, 8), THICK), fine(field(rng, 8), THICK)) / rng.uniform(0.1, 0.25)
    lines = np.exp(-(apart**2) - deep / rng.uniform(6, 20))
    plexus = csf * (deep > 25) * expit(5 * (fine(field(rng, 5), THICK) - 1))
    return rng.uniform(0.3, 1) * np.clip(lines + plexus, 0, 1)
