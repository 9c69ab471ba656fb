"""The study of what each sequence shows: medians over tissues, relative to white matter."""

import nibabel as nib
import numpy as np
import pytest

from studies import contrasts
from tests.conftest import LPS

SEQUENCES = {"flair": (20, 60, 50), "t1": (20, 60, 80), "t1ce": (20, 60, 100), "t2": (300, 90, 60)}  # CSF, GM, WM
TUMOUR = {"flair": (100, 100, 70), "t1": (56, 56, 40), "t1ce": (80, 150, 70), "t2": (120, 90, 180)}  # labels 2, 4, 1


def write(folder, stripped=True):
    """Write a patient of three slabs of healthy tissue and a tumour of three blocks."""
    name, seg = folder.name, np.zeros((80, 80, 12), dtype=np.uint8)
    seg[40:44, 20:40], seg[44:48, 20:40], seg[48:52, 20:40] = 2, 4, 1
    for kind, healthy in SEQUENCES.items():
        voxels = np.zeros(seg.shape, dtype=np.int16)
        for level, slab in zip(healthy, (slice(8, 14), slice(14, 24), slice(24, 54)), strict=True):
            voxels[slab, 10:50] = level
        for label, level in zip((2, 4, 1), TUMOUR[kind], strict=True):
            voxels[seg == label] = level
        folder.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels + (not stripped), LPS), folder / f"{name}_{kind}.nii.gz")
    nib.save(nib.Nifti1Image(seg, LPS), folder / f"{name}_seg.nii.gz")


def test_levels_are_relative_to_white_matter(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", stripped=False)
    (patient,) = contrasts.patients(tmp_path)  # the other has its head
    found = contrasts.contrasts(*patient)
    for kind, (csf, grey, white) in SEQUENCES.items():
        expected = dict(zip(("oedema", "enhancing", "necrosis"), TUMOUR[kind], strict=True))
        for tissue, level in {"CSF": csf, "grey matter": grey, "white matter": white, **expected}.items():
            assert found[kind, tissue] == pytest.approx(level / white), (kind, tissue)
