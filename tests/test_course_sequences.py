"""Chapter 6: sequences of a cohort, networks that see some of them, and their Dice."""

import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import LPS, SMALL, write_patient
from unetlib import metrics
from unetlib.course import start as course
from unetlib.course.sequences import choose_sequences, contrasts, learn, open_sequences, validate, validation_cases
from unetlib.data.cases import read_regions
from unetlib.phantom.cohort import make_cohort
from unetlib.prediction.predictor import Predictor

RECIPE = SMALL.but(learning_rate=1e-2, train_fraction=0.34)  # of six patients two to train, two to validate


def add_sequence(folder, name, kind, index):
    """Write an image of another sequence beside that of FLAIR."""
    image = nib.load(folder / name / f"{name}_flair.nii.gz")
    noise = np.random.default_rng([index, len(kind)]).normal(0, 5, image.shape)
    found = nib.Nifti1Image((np.asarray(image.dataobj) + noise).astype(np.int16), LPS)
    nib.save(found, folder / name / f"{name}_{kind}.nii.gz")


@pytest.fixture
def opened(tmp_path):
    """A course of six small patients with FLAIR and T1ce, with all three regions, and T1 of two of them."""
    folder = tmp_path / "mine"
    for index in range(6):
        name = write_patient(folder, index)
        add_sequence(folder, name, "t1ce", index)
        if index < 2:
            add_sequence(folder, name, "t1", index)
        path = folder / name / f"{name}_seg.nii.gz"
        labels = np.asarray(nib.load(path).dataobj).copy()
        labels[:16][labels[:16] > 0] = 2
        labels[20:][labels[20:] > 0] = 1
        nib.save(nib.Nifti1Image(labels, LPS), path)
    return replace(course.start(folder, tmp_path / "work"), length=replace(course.FULL, sequence_slices=40))


def test_the_sequences_that_most_patients_have_are_prepared_with_three_regions(opened, capsys):
    other, data = open_sequences(opened, RECIPE)
    assert other is opened
    assert (data.about["recipe"]["modalities"], data.about["recipe"]["regions"]) == (
        "flair t1ce",
        "whole core enhancing",
    )
    assert data.images.shape[1] == 2
    assert "embedded" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """An embedded cohort of three."""
    make_cohort(folder := tmp_path_factory.mktemp("embedded") / "cohort", 3, workers=1)
    return folder


@pytest.mark.parametrize("lack", ["sequences", "labels"])
def test_data_that_lack_something_give_way_to_the_embedded_cohort_in_a_sentence(
    opened, lack, phantoms, monkeypatch, capsys
):
    monkeypatch.setattr(course, "make_cohort", lambda folder, patients: shutil.copytree(phantoms, folder))
    for path in opened.data.rglob("*_t1ce.nii.gz" if lack == "sequences" else "*_seg.nii.gz"):
        if lack == "sequences":
            path.unlink()
        else:
            whole = (np.asarray(nib.load(path).dataobj) > 0).astype(np.uint8)
            nib.save(nib.Nifti1Image(whole, LPS), path)
    again = replace(opened, cohort=course.find_cases(opened.data))
    other, data = open_sequences(again, RECIPE)
    assert other.synthetic
    assert other.length == opened.length
    assert data.about["recipe"]["modalities"] == "flair t1 t1ce t2"
    told = capsys.readouterr().out
    assert "goes on with the embedded synthetic cohort" in told
    assert ("mine have flair only" in told) == (lack == "sequences")
    assert ("enhancing" in told) == (lack == "labels")


def test_chosen_sequences_are_the_channels_of_that_name_in_that_order(opened):
    _, data = open_sequences(opened, RECIPE)
    for words, channels in (("flair", [0]), ("t1ce", [1]), ("t1ce flair", [1, 0])):
        np.testing.assert_array_equal(choose_sequences(data, words).images, data.images[:, channels])
    for words in ("t1ce", RECIPE.modalities):  # mapped from the disk, not copied
        assert isinstance(choose_sequences(data, words).images, np.memmap)


def test_a_network_sees_its_sequences_alone_for_the_same_number_of_slices_and_is_trained_once(opened, capsys):
    _, data = open_sequences(opened, RECIPE)
    one, both, hiding = (learn(opened, data, RECIPE, *how) for how in (["t1ce"], ["flair t1ce"], ["flair t1ce", 0.5]))
    shown = len(data.dataset().indices("train"))
    for run, channels, drop in ((one, 1, 0), (both, 2, 0), (hiding, 2, 0.5)):
        assert Predictor.open(run).channels == (channels, 3)
        assert run.recipe.epochs == round(40 / shown)
        assert run.recipe.drop_modalities == drop
    before = one.best.stat().st_mtime_ns
    assert learn(opened, data, RECIPE, "t1ce") == one
    assert one.best.stat().st_mtime_ns == before
    assert "flair t1ce, each hidden in 50% of slices: " in capsys.readouterr().out


def test_the_dice_is_that_of_each_patients_slices_and_a_hidden_sequence_is_black(opened):
    _, data = open_sequences(opened, RECIPE)
    longer = replace(opened, length=replace(opened.length, sequence_slices=300))
    run = learn(longer, data, RECIPE, "t1ce flair")
    slices, seen = choose_sequences(data, "t1ce flair"), []
    for hidden, channel in (("", None), ("flair", 1), ("t1ce", 0)):
        expected = []
        for patient in sorted(data.split.val):
            own = [i for i, case in enumerate(data.about["cases"].values()) if case["patient"] == patient]
            ends = slices.cases.cumsum()
            images, masks = slices.batch(np.concatenate([np.arange(ends[i] - slices.cases[i], ends[i]) for i in own]))
            if channel is not None:
                images[:, channel] = 0
            found = Predictor.open(run).slices(images) >= 0.5
            counts = metrics.count(found.numpy(), masks.numpy())
            expected.append(metrics.dice(counts.sum()))
        np.testing.assert_allclose(validate(run, data, hidden), expected)
        seen.append(expected)
    assert not np.allclose(seen[0], seen[1]), "or the test shows nothing"


def test_the_validation_cases_come_with_all_sequences_the_largest_last_region_first(opened):
    _, data = open_sequences(opened, RECIPE)
    cases = validation_cases(opened, data)
    assert {case.patient for case in cases} == set(data.split.val)
    sizes = []
    for case in cases:
        volume, truth = read_regions(case, RECIPE.but(regions="whole core enhancing"))
        assert volume.voxels.shape[0] == 2
        sizes.append(truth[2].sum())
    assert sizes == sorted(sizes, reverse=True)


def test_a_contrast_is_the_difference_to_what_a_part_is_told_from_in_its_deviations():
    images = torch.zeros(1, 2, 4, 8)
    images[0, :, :2] = torch.tensor([4.0, 6] * 4)  # the head: mean 5, deviation 1
    masks = torch.zeros(1, 3, 4, 8)
    masks[0, 0, 0, :6] = masks[0, 1, 0, 2:6] = masks[0, 2, 0, 4:6] = 1  # two pixels each of oedema, core, enhancing
    images[0, 0, 0, :6], images[0, 1, 0, :6] = torch.tensor([6.0, 8, 9, 11, 20, 20]), torch.tensor([6.0, 4, 5, 5, 5, 5])
    table = contrasts(images, masks)
    rest = np.array([6.0, 8, 9, 11])
    np.testing.assert_allclose(table, [[2, 3, (20 - 8.5) / rest.std()], [0, 0, 0]], atol=1e-6)
    assert np.isnan(contrasts(images, masks * torch.tensor([1, 1, 0])[:, None, None])[:, 2]).all(), "none enhances"
