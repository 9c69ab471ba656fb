"""A synthetic cohort in BraTS 2021 layout: real average anatomy, deformed, with a grown tumour.

The anatomy is the MNI152 template inside nilearn's wheel, so nothing is downloaded. The course runs on it offline; a
result on it says nothing about patients.
"""

import shutil
from os import getpid, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from unetlib.phantom.anatomy import Phantom
from unetlib.phantom.plain import plain_patient
from unetlib.phantom.varied import varied_patient
from unetlib.recipe import MODALITIES
from unetlib.support.errors import UnetlibError
from unetlib.support.files import atomic, locked, read_json, require_empty, write_json
from unetlib.support.jobs import run_jobs
from unetlib.support.messages import say
from unetlib.support.paths import takes_paths
from unetlib.support.records import COUNT, optional, require

GENERATOR = 1  # raised whenever the voxels of a given seed change
NOTICE = Path(__file__).with_name("notice.txt")


@takes_paths
def make_cohort(
    out: Path,
    patients: int = 24,
    seed: int = 0,
    workers: int | None = None,
    varied: bool = False,
    modalities: str | None = None,
) -> None:
    """Write `patients` synthetic patients as `out/Phantom_00000/Phantom_00000_flair.nii.gz` and so on.

    A patient depends on `seed` and its number alone, and is written whole or not at all: the same call again makes only
    what is missing, and a larger `patients` extends the cohort. `workers` is the number of processes, by default one
    per idle processor. `varied` makes the cohort to pre-train on for real MRI: most with their heads, in thick slices,
    with many contrasts. `modalities` are the sequences to write, words such as `"flair t1 t1ce t2"`; by default all
    four, of a varied patient FLAIR. Its mask has the labels 1, 2 and 4, but only 2, the whole tumour, beside FLAIR
    alone.

    Raises `UnetlibError` when `patients` < 1 or `seed` < 0, for an unknown sequence, when `out` holds anything but a
    cohort of this seed, generator, kind and sequences, is in use by another process, or cannot be written.
    """
    if patients < 1 or seed < 0:
        raise UnetlibError(f"patients is {patients} and seed {seed}; give at least 1 patient and a seed >= 0.")
    chosen = _chosen(modalities, varied)
    with locked(out):
        identity = {"generator": GENERATOR, "seed": seed, "varied": varied, "modalities": " ".join(chosen)}
        there = _claim(out, patients, identity)
        if there > patients:
            say(f"{out} is a cohort of {there} patients already, more than {patients}: all of them stay.")
        jobs = [(out / f"Phantom_{index:05d}", seed, index, varied, chosen) for index in range(patients)]
        missing = [job for job in jobs if not all(path.is_file() for path in _files(job[0], chosen).values())]
        for _ in run_jobs(_write_patient, missing, "Making synthetic patients", "patient", workers):
            pass


def _chosen(modalities: str | None, varied: bool) -> tuple[str, ...]:
    """Return the sequences to write, in the usual order; raises `UnetlibError` for an unknown one, or none."""
    words = (("flair",) if varied else MODALITIES) if modalities is None else modalities.split()
    if not words or set(words) - set(MODALITIES):
        raise UnetlibError(
            f"phantoms with the sequences {modalities!r} were asked for; "
            f"one or several of {', '.join(MODALITIES)} were expected."
        )
    return tuple(name for name in MODALITIES if name in words)


def make_patient(seed: int, index: int, varied: bool = False, parts: bool = False) -> Phantom:
    """Return patient number `index` of the cohort `seed`, a pure function of its arguments.

    `parts`: a varied patient, too, has all four sequences and the labels 1, 2 and 4, not just FLAIR and the label 2.

    The tumour grows by reaction and diffusion along the white matter (Swanson et al. 2000, Cell Proliferation 33) and
    pushes the tissue aside; lesions, bright rims, flow artefacts, a bias field and Rician noise (Gudbjartsson & Patz
    1995, MRM 34) are there to mislead a threshold.
    """
    if varied:
        return varied_patient(np.random.default_rng([seed, index, 1]), parts=parts)
    return plain_patient(np.random.default_rng([seed, index]))


def _claim(out: Path, patients: int, identity: dict[str, Any]) -> int:
    """Make `out` the folder of this cohort, or continue it; refuse any other folder. Return how many belong to it."""
    record = out / "phantom.json"
    if record.exists():
        known = {"varied": False, **read_json(record)}  # older records lack this, and the sequences
        require(known, record, "Choose an empty folder, or delete this one.", patients=optional(COUNT))
        known.setdefault("modalities", " ".join(_chosen(None, known["varied"])))
        if (found := {key: known.get(key) for key in identity}) != identity:
            raise UnetlibError(
                f"{out} holds a synthetic cohort made with {found}, but {identity} was asked for. "
                "Choose an empty folder, or delete this one."
            )
        patients = max(patients, known.get("patients", 0))
    else:
        require_empty(out, "a folder of synthetic patients")
    write_json(record, {**identity, "patients": patients})
    with atomic(out / "SYNTHETIC.txt") as temporary:
        shutil.copyfile(NOTICE, temporary)
    return patients


def _files(folder: Path, modalities: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of a patient by what they show."""
    return {name: folder / f"{folder.name}_{name}.nii.gz" for name in (*modalities, "seg")}


def _write_patient(job: tuple[Path, int, int, bool, tuple[str, ...]]) -> None:
    folder, seed, index, varied, modalities = job
    files = _files(folder, modalities)
    temporary = folder.with_name(f".tmp-{getpid()}-{folder.name}")
    phantom = make_patient(seed, index, varied, modalities != ("flair",))
    try:
        for name, voxels in {**{name: phantom.images[name] for name in modalities}, "seg": phantom.seg}.items():
            image = nib.Nifti1Image(voxels, phantom.affine)
            image.header["descrip"] = f"SYNTHETIC unetlib phantom, not a patient; seed {seed}"
            image.header["intent_name"] = "SYNTHETIC"
            image.header.set_xyzt_units("mm")
            with atomic(temporary / files[name].name) as path:
                nib.save(image, path)
        if folder.is_dir():  # some of its files are gone
            for path in files.values():
                replace(temporary / path.name, path)
        else:
            replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
