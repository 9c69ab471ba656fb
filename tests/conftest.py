"""Small data for every test, and the real MRI for those that ask for it."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

# Before torch is loaded: a measured number would depend on the machine's load. Two workers share two cores, and what is
# computed here is small: more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import settings

from figures.make import find_browser
from unetlib.data.prepare import prepare
from unetlib.recipe import Recipe
from unetlib.runs.training import train
from unetlib.support.files import read_json, write_json
from unetlib.support.messages import show_messages

OF_USERS = ("COURSE_DATA", "COURSE_SHORT", "UNETLIB_ASSUME", "UNETLIB_EXTRACTED", "UNETLIB_EMBED_BYTES", "WORLD_SIZE")
for variable in OF_USERS:  # of whoever starts the tests
    os.environ.pop(variable, None)
if "UNETLIB_DEVICE" not in os.environ:  # results are those of the CPU
    torch.cuda.is_available = torch.backends.mps.is_available = lambda: False

SMALL = Recipe(image_size=32, width=4, depth=2, epochs=2, precision="fp32")
STRONG = SMALL.but(  # every part of Recipe.strong, and what was tried beside it, in small
    slices="all",
    normalise="median-volume",
    crop=True,
    train_fraction=0.6,
    neighbours=1,
    balance=True,
    loss="dice+bce",
    learning_rate=1e-2,
    schedule="cosine",
    average=0.9,
    upright=True,
    warp=True,
    intensity=True,
    mirror=True,
    tune=True,
)
LATEST, BEST = "latest_checkpoint.pth", "best_model.pth"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Properties are tried on the same examples each time, so that a failure can be repeated; `make test-long` tries more.
settings.register_profile("quick", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=1000, derandomize=True)
settings.load_profile("quick")


def some(values: Iterable, often: Iterable) -> list:
    """Return the parameters of a test: all `values` in `make test-long`, of which `make test` tries those `often`."""
    often = list(often)
    return [value if value in often else pytest.param(value, marks=pytest.mark.long) for value in values]


def rounds(number: int) -> list:
    """Return the seeds of a test that draws what it tries: 0 in `make test`, the others in `make test-long`."""
    return some(range(number), [0])


@pytest.fixture(scope="session", autouse=True)
def messages():
    """Print what a command or a notebook would print."""
    show_messages()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(request):
    """Fail when a test has written into the repository."""
    root = request.config.rootpath
    before = {path.name for path in root.iterdir()}
    yield
    new = {path.name for path in root.iterdir()} - before
    assert not {name for name in new if not name.startswith(".")}, f"a test has written {new} into the repository"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real MRI; without it the test is skipped, with a wrong one it fails."""
    if "UNETLIB_DATA" not in os.environ:
        pytest.skip("UNETLIB_DATA does not name a folder of real MRI")
    folder = Path(os.environ["UNETLIB_DATA"])
    assert (folder / "lgg").is_dir(), f"UNETLIB_DATA is {folder}, which holds no folder lgg"
    return folder


@pytest.fixture(scope="session")
def browser() -> str:
    """The browser of this machine; without one the test is skipped, or fails where one is required."""
    found = find_browser()
    if found is None:
        missing = "there is no Chromium or Chrome on this machine (apt-get install chromium)"
        (pytest.fail if os.environ.get("UNETLIB_REQUIRE_BROWSER") else pytest.skip)(missing)
    return found


def write_patient(folder: Path, index: int, shape: tuple[int, int, int] = (40, 48, 6), affine: np.ndarray = LPS) -> str:
    """Write a noisy volume with a bright box as its tumour, in BraTS 2021 layout; return the case's id."""
    rng, name = np.random.default_rng(index), f"BraTS2021_{index:05d}"
    image = rng.normal(100, 10, shape)
    x, y = rng.integers(4, 20, 2)
    mask = np.zeros(shape, np.uint8)
    for z in range(4):  # no two slices alike, and no symmetry that would hide a reversed axis
        mask[x + z : x + 14, y : y + 12 + 3 * z, z] = 4
    image[mask > 0] += 60
    for kind, array in (("flair", image.astype(np.int16)), ("seg", mask)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), folder / name / f"{name}_{kind}.nii.gz")
    return name


def as_cases(
    cohort: Path,
    folder: Path,
    names: Iterable[str],
    change: Callable[[str, np.ndarray], np.ndarray] = lambda name, voxels: voxels,
) -> Path:
    """Copy the small patients in order under these names; `change` alters the voxels of an image."""
    for source, name in zip(sorted(cohort.iterdir()), names, strict=False):
        (folder / name).mkdir(parents=True)
        for kind in ("flair", "seg"):
            image = nib.load(source / f"{source.name}_{kind}.nii.gz")
            voxels = np.asarray(image.dataobj)
            voxels = change(name, voxels) if kind == "flair" else voxels
            nib.save(nib.Nifti1Image(voxels, image.affine), folder / name / f"{name}_{kind}.nii.gz")
    return folder


def as_03(folder: Path, patients: dict[str, str] | None = None) -> Path:
    """Write a prepared folder's description as version 0.3 did, with these patients' names where given."""
    about = read_json(folder / "prepared.json")
    for name in ("unetlib", "patients_csv"):
        del about[name]
    for name, case in about["cases"].items():
        for new in ("image", "content", "named_by"):
            del case[new]
        case["patient"] = patients[name] if patients else case["patient"]
    write_json(folder / "prepared.json", about)
    return folder


SCANS = [f"UPENN-GBM-{number:05d}_{scan}" for number in range(5) for scan in (11, 21)]  # of 0.3, a patient each


def as_03_run(run: Path) -> Path:
    """Write what a run tells of itself as version 0.3 did."""
    about, known = read_json(run / "recipe.json"), read_json(run / "provenance.json")
    del about["unetlib"], known["prepared_by"]
    for case in known["cases"].values():
        for new in ("image", "content", "named_by"):
            case.pop(new, None)
    write_json(run / "recipe.json", about)
    write_json(run / "provenance.json", known)
    return run


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small patients; do not change them."""
    folder = tmp_path_factory.mktemp("cohort")
    for index in range(10):
        write_patient(folder, index)
    return folder


@pytest.fixture(scope="session")
def prepared(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small patients, prepared; do not change it."""
    folder = tmp_path_factory.mktemp("prepared") / "prepared"
    prepare(cohort, folder, SMALL, workers=1)
    return folder


@pytest.fixture(scope="session")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the small patients; do not change it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(prepared, folder, SMALL, device="cpu")
    return folder


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to find the boxes; do not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(prepared, folder, SMALL.but(epochs=12, learning_rate=1e-2), device="cpu")
    return folder


@pytest.fixture(scope="session")
def tall_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small patients with 9, 10 or 11 slices, most of them without tumour; do not change them."""
    folder = tmp_path_factory.mktemp("tall") / "cohort"
    for index in range(10):
        write_patient(folder, index, (40, 48, 9 + index % 3))
    return folder


@pytest.fixture(scope="session")
def strong_prepared(tall_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The taller patients, prepared for the small strong recipe; do not change it."""
    folder = tmp_path_factory.mktemp("strong-prepared") / "prepared"
    prepare(tall_cohort, folder, STRONG, workers=1)
    return folder


@pytest.fixture(scope="session")
def untuned(strong_prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small strong recipe, without its decision; do not change it."""
    folder = tmp_path_factory.mktemp("untuned") / "run"
    train(strong_prepared, folder, STRONG.but(epochs=4), device="cpu")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of three small patients, named mine."""
    for index in range(3):
        write_patient(tmp_path / "mine", index)
    return tmp_path / "mine"
