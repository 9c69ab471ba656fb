"""A synthetic cohort in BraTS 2021 layout: real average anatomy, deformed, with a grown tumour.

The anatomy is the MNI152 template inside nilearn's wheel, so nothing is downloaded. The course runs on it offline; a
result on it says nothing about patients.
"""

import shutil
from os import getpid, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from unetlib.phantom.anatomy import Phantom
from unetlib.phantom.plain import plain_patient
from unetlib.phantom.varied import varied_patient
from unetlib.support.errors import UnetlibError
from unetlib.support.files import atomic, locked, read_json, require_empty, takes_paths, write_json
from unetlib.support.jobs import run_jobs

GENERATOR = 1  # raised whenever the voxels of a given seed change
NOTICE = Path(__file__).with_name("notice.txt")


@takes_paths
def make_cohort(out: Path, patients: int = 24, seed: int = 0, workers: int | None = None, varied: bool = False) -> None:
    """Write `patients` synthetic patients as `out/Phantom_00000/Phantom_00000_flair.nii.gz` and so on.

    A patient depends on `seed` and its number alone, and is written whole or not at all: the same call again makes only
    what is missing, and a larger `patients` extends the cohort. `workers` is the number of processes, by default one
    per processor. `varied` makes the cohort to pre-train on for real MRI: FLAIR and mask only, most with their heads,
    in thick slices, with many contrasts.

    Raises `UnetlibError` when `patients` < 1 or `seed` < 0, when `out` holds anything but a cohort of this seed,
    generator and kind, when another process is writing it, and when it cannot be written.
    """
    if patients < 1 or seed < 0:
        raise UnetlibError(
            f"{patients} patients of seed {seed} were asked for; give at least 1 patient and a seed >= 0."
        )
    with locked(out):
        _claim(out, patients, seed, varied)
        jobs = [(out / f"Phantom_{index:05d}", seed, index, varied) for index in range(patients)]
        missing = [job for job in jobs if not job[0].exists()]
        for _ in run_jobs(_write_patient, missing, "Making synthetic patients", "patient", workers):
            pass


def make_patient(seed: int, index: int, varied: bool = False) -> Phantom:
    """Return patient number `index` of the cohort `seed`, a pure function of the numbers and of `varied`.

    The tumour grows by reaction and diffusion along the white matter (Swanson et al. 2000, Cell Proliferation 33) and
    pushes the tissue aside; lesions, bright rims, flow artefacts, a bias field and Rician noise (Gudbjartsson & Patz
    1995, MRM 34) are there to mislead a threshold.
    """
    if varied:
        return varied_patient(np.random.default_rng([seed, index, 1]))
    return plain_patient(np.random.default_rng([seed, index]))


def _claim(out: Path, patients: int, seed: int, varied: bool) -> None:
    """Make `out` the folder of this cohort, or continue it; refuse any other folder."""
    record = out / "phantom.json"
    identity = {"generator": GENERATOR, "seed": seed, "varied": varied}
    known = {"varied": False, **read_json(record)} if record.exists() else {}  # older records lack it
    found = {key: known.get(key) for key in identity}
    if not known:
        require_empty(out, "a folder of synthetic patients")
    elif found != identity:
        raise UnetlibError(
            f"{out} holds a synthetic cohort made with {found}, but {identity} was asked for. "
            "Choose an empty folder, or delete this one."
        )
    write_json(record, {**identity, "patients": max(patients, known.get("patients", 0))})
    with atomic(out / "SYNTHETIC.txt") as temporary:
        shutil.copyfile(NOTICE, temporary)


def _write_patient(job: tuple[Path, int, int, bool]) -> None:
    folder, seed, index, varied = job
    temporary = folder.with_name(f".tmp-{getpid()}-{folder.name}")
    phantom = make_patient(seed, index, varied)
    try:
        for name, voxels in {**phantom.images, "seg": phantom.seg}.items():
            image = nib.Nifti1Image(voxels, phantom.affine)
            image.header["descrip"] = f"SYNTHETIC unetlib phantom, not a patient; seed {seed}"
            image.header["intent_name"] = "SYNTHETIC"
            image.header.set_xyzt_units("mm")
            with atomic(temporary / f"{folder.name}_{name}.nii.gz") as path:
                nib.save(image, path)
        replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
