"""Two files of one scan have one hash, and nothing else has it."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from unetlib.data.cases import hash_case, hash_voxels
from unetlib.data.patients import find_cases, read_labels
from unetlib.data.volumes import Source, read_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCAN = np.random.default_rng(0).integers(-5, 250, (7, 8, 5)).astype(np.int16)
SCAN[0, 0, 0] = 0


def hash_file(path, array=SCAN, affine=LPS, slope=None, channel=None, kind=nib.Nifti1Image):
    image = kind(array, affine)
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return hash_voxels(read_volume(Source((path,), channel)).voxels)


def minus_zero(array):
    found = array.astype(np.float32)
    found[found == 0] = -0.0
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return hash_file(tmp_path_factory.mktemp("scan") / "scan.nii.gz")


@pytest.mark.parametrize("name", ["other.nii", "other.nii.gz"])
@pytest.mark.parametrize(
    ("array", "options"),
    [
        (SCAN, {"affine": np.diag([-3.0, -2.0, 5.0, 1.0])}),
        (SCAN.astype(np.float32), {}),
        (SCAN.astype(np.float64), {"kind": nib.Nifti2Image}),
        (SCAN.astype(">i4"), {}),
        (minus_zero(SCAN), {}),
        (SCAN[::-1], {"affine": np.diag([1.0, -1.0, 1.0, 1.0])}),
        (SCAN[:, ::-1, ::-1], {"affine": np.diag([-1.0, 1.0, -1.0, 1.0])}),
        (SCAN.transpose(2, 0, 1), {"affine": LPS[:, [2, 0, 1, 3]]}),
        (np.stack([SCAN + 1, SCAN], axis=3), {"channel": 1}),
        (SCAN[..., None], {}),
    ],
)
def test_the_same_scan_in_another_file_has_the_same_hash(tmp_path, expected, name, array, options):
    assert hash_file(tmp_path / name, array, **options) == expected


def test_a_scale_factor_is_applied_in_the_precision_that_is_compared(tmp_path):
    """The products of the stored numbers and 0.1, rounded once: as any program writes them in single precision."""
    scaled = (SCAN.astype(np.float64) * float(np.float32(0.1))).astype(np.float32)
    assert hash_file(tmp_path / "a.nii", SCAN, slope=(0.1, 0)) == hash_file(tmp_path / "b.nii.gz", scaled)
    assert hash_file(tmp_path / "a.nii", SCAN, slope=(2, -3)) == hash_file(tmp_path / "b.nii.gz", 2 * SCAN - 3)


def test_tiff_slices_and_a_volume_of_the_same_values_are_one_scan(tmp_path):
    scan = np.abs(SCAN).astype(np.uint8)
    for z in range(scan.shape[2]):
        Image.fromarray(scan[:, :, z].T).save(tmp_path / f"{z}.tif")
    slices = read_volume(Source(tuple(tmp_path / f"{z}.tif" for z in range(scan.shape[2]))))
    assert hash_voxels(slices.voxels) == hash_file(tmp_path / "scan.nii", scan)


@pytest.mark.parametrize(
    "other",
    [
        SCAN + (np.arange(SCAN.size).reshape(SCAN.shape) == 77),
        SCAN[::-1],
        SCAN[:-1],
        SCAN.transpose(1, 0, 2),
        SCAN.reshape(8, 7, 5),
        SCAN / 2,
        SCAN.astype(np.float32) + np.float32(1e-3),
    ],
)
def test_another_scan_has_another_hash(tmp_path, expected, other):
    assert hash_file(tmp_path / "other.nii", other.astype(np.float32)) != expected


def hash_pair(folder, labels, image=SCAN):
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(image, LPS), folder / "A_flair.nii.gz")
    nib.save(nib.Nifti1Image(labels, LPS), folder / "A_seg.nii.gz")
    [image], content = hash_case(*read_labels(find_cases(folder).cases[0])[:2])
    return image, content


def test_the_hash_of_image_and_mask_tells_every_change_of_either(tmp_path):
    labels = np.zeros(SCAN.shape, np.uint8)
    labels[2:4, 2:4, 2] = 2
    image, content = hash_pair(tmp_path / "a", labels)
    assert hash_pair(tmp_path / "b", labels.astype(np.float64)) == (image, content)
    for value in (0, 1, 4):
        other = labels.copy()
        other[2, 2, 2] = value
        assert hash_pair(tmp_path / "b", other)[0] == image
        assert hash_pair(tmp_path / "b", other)[1] != content
    assert not set(hash_pair(tmp_path / "b", labels, SCAN + np.int16(1))) & {image, content}


@pytest.mark.real
def test_a_real_scan_as_slices_and_as_a_volume_is_one(real_data):
    volumes = {case.id: case for case in find_cases(real_data / "lgg").cases}
    for case in find_cases(real_data / "kaggle_3m").cases:
        one, other = (hash_voxels(read_volume(each.images["flair"]).voxels) for each in (case, volumes[case.id]))
        assert one == other
