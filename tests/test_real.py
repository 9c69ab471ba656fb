"""The main path on real MRI (see `real_data` in conftest.py)."""

import nibabel as nib
import numpy as np
import pytest

from tests import oracles
from unetlib import metrics
from unetlib.data.patients import find_cases, read_case
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.data.slices import mask_to_slices, slices_to_volume
from unetlib.evaluation.evaluate import evaluate
from unetlib.prediction.predict import predict
from unetlib.recipe import Recipe
from unetlib.runs.training import train

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore:monai:FutureWarning")]


@pytest.fixture(scope="module")
def some_cases(real_data):
    return find_cases(real_data / "lgg").cases[::10]


def test_the_grid_of_the_model_costs_a_real_mask_little(some_cases):
    """There and back again, 256 x 256 to 96 x 96, a real whole tumour keeps a Dice above 0.9 and 97 % of its volume."""
    for case in some_cases:
        truth = read_case(case)[1]
        small = mask_to_slices(truth, Recipe())
        back = slices_to_volume(small, truth.shape)[0] >= 0.5
        assert metrics.dice(metrics.count(back[None, None], truth[None, None])).item() > 0.9
        assert small.sum().item() * (256 / 96) ** 2 / truth.sum() == pytest.approx(1, abs=0.03)


def figures(counts):
    return {name: np.atleast_1d(metric(counts, np.nan)) for name, metric in metrics.METRICS.items()}


def test_every_figure_of_real_tumours_agrees_with_that_of_others(some_cases):
    """Eight predictions each, slice by slice and of the whole patient; `make oracles` does it for all patients."""
    for case in some_cases[::4]:
        volume, truth, _ = read_case(case)
        for prediction in oracles.predictions(volume.voxels, truth).values():
            slices = [mask.transpose(2, 0, 1).reshape(mask.shape[2], -1) for mask in (prediction, truth)]
            counts = oracles.count_slices(*slices)
            for ours, masks in ((counts, slices), (counts.sum(), [mask.reshape(1, -1) for mask in slices])):
                for others in (oracles.by_monai(*masks)[0], oracles.by_sklearn(*masks), oracles.by_scipy(*masks)):
                    for name, values in others.items():
                        np.testing.assert_allclose(figures(ours)[name], values, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("spacing", [None, (0.9, 1.1, 5.0)])
def test_surfaces_of_real_tumours_agree_with_their_definition_and_with_monai(some_cases, spacing):
    for case in some_cases[::4]:
        volume, truth, _ = read_case(case)
        for prediction in oracles.predictions(volume.voxels, truth).values():
            if prediction.any():
                masks = prediction, truth, spacing or volume.spacing, 2.0
                ours, monai = metrics.surface_figures(*masks), oracles.surface_by_monai(*masks)
                assert ours == pytest.approx(oracles.surface_by_definition(*masks), rel=1e-6, abs=1e-6)
                assert ours[1] == pytest.approx(monai[1], abs=1e-6)
                assert oracles.hd95_between_voxels(*masks[:3]) == pytest.approx(monai[0], rel=1e-6)


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
