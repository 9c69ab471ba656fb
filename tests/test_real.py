"""The main path on real MRI (see `real_data` in conftest.py)."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric

from unetlib import metrics
from unetlib.evaluation import evaluate
from unetlib.inference import predict
from unetlib.patients import find_cases, read_case
from unetlib.prepare import Prepared, prepare
from unetlib.recipe import Recipe
from unetlib.slices import mask_to_slices, slices_to_volume
from unetlib.training import train

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def some_cases(real_data):
    return find_cases(real_data / "lgg").cases[::10]


def test_the_grid_of_the_model_costs_a_real_mask_little(some_cases):
    """There and back again, 256 x 256 to 96 x 96, a real whole tumour keeps a Dice above 0.9 and 97 % of its volume."""
    for case in some_cases:
        truth = read_case(case)[1]
        small = mask_to_slices(truth, Recipe())
        back = slices_to_volume(small, truth.shape) >= 0.5
        assert metrics.dice(metrics.count(back[None], truth[None]))[0] > 0.9
        assert small.sum().item() * (256 / 96) ** 2 / truth.sum() == pytest.approx(1, abs=0.03)


def test_counts_of_real_masks_give_the_dice_of_monai(some_cases):
    for one, other in itertools.pairwise(some_cases):
        a, b = read_case(one)[1], read_case(other)[1]
        depth = min(a.shape[2], b.shape[2])
        a, b = a[:, :, :depth].transpose(2, 0, 1), b[:, :, :depth].transpose(2, 0, 1)
        keep = a.any((1, 2)) | b.any((1, 2))
        ours = metrics.dice(metrics.count(a[keep], b[keep]))
        monai = DiceMetric(ignore_empty=False)(torch.tensor(a[keep])[:, None], torch.tensor(b[keep])[:, None])
        np.testing.assert_allclose(ours, monai[:, 0].numpy(), atol=1e-6)


def test_a_small_network_finds_real_tumours_after_three_epochs(real_data, tmp_path):
    """Far above chance, in a minute: at least three times the Dice of calling every pixel tumour."""
    data = prepare(real_data / "lgg", tmp_path / "prepared")
    assert len(data.about["cases"]) == 70
    train(tmp_path / "prepared", tmp_path / "run", Recipe(width=8, epochs=3))
    summary = evaluate(tmp_path / "run")
    pooled = next(f for f in summary["figures"] if f["aggregation"] == "pooled" and f["slices"] == "tumour")
    everything = 2 * (share := Prepared.open(tmp_path / "prepared").masks.mean()) / (1 + share)
    assert pooled["dice"] > 3 * everything
    image = next((real_data / "lgg").glob("*/*_flair.nii.gz"))
    (mask,) = predict(tmp_path / "run", [image], tmp_path / "masks")
    assert nib.load(mask).shape == nib.load(image).shape
    np.testing.assert_array_equal(nib.load(mask).affine, nib.load(image).affine)
