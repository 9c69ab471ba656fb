"""Several sequences and regions: found, read on one grid, prepared, hashed and trained on."""

import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import LPS, SMALL
from unetlib import augment
from unetlib.augment import drop_sequences
from unetlib.data.cases import read_case, read_regions
from unetlib.data.check import check
from unetlib.data.patients import find_cases
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.data.regions import Regions
from unetlib.data.sequences import resampled
from unetlib.data.slices import image_to_slices, mask_to_slices, packed
from unetlib.dataset import SliceDataset, unpacked
from unetlib.evaluation.evaluate import evaluate
from unetlib.recipe import Recipe
from unetlib.runs.run import Run
from unetlib.runs.training import open_loop, train
from unetlib.show.score import score
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json, write_json

SEQUENCES = ("flair", "t1", "t1ce", "t2")
ALL = "flair t1 t1ce t2"
THREE = "whole core enhancing"
FOUR = SMALL.but(modalities=ALL, regions=THREE, slices="all")
SHAPE = (36, 40, 6)


def save(path, voxels, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def write(folder, index, sequences=SEQUENCES, labels=(2, 1, 4), name="BraTS2021_{:05d}"):
    """Write a patient: nested boxes of labels, each bright in a sequence of its own."""
    rng, id = np.random.default_rng(index), name.format(index)
    outer, core, inner = labels
    seg = np.zeros(SHAPE, np.uint8)
    x, y = rng.integers(4, 14, 2)
    seg[x : x + 14, y : y + 16, 1:5] = outer
    seg[x + 3 : x + 10, y + 3 : y + 11, 2:4] = core
    seg[x + 5 : x + 8, y + 5 : y + 8, 2:4] = inner
    for number, sequence in enumerate(sequences):
        voxels = rng.normal(100, 5, SHAPE) + 40 * np.isin(seg, labels[number % 3 :])
        save(folder / id / f"{id}_{sequence}.nii.gz", voxels.astype(np.int16))
    save(folder / id / f"{id}_seg.nii.gz", seg)
    return id


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    for index in range(5):
        write(folder, index)
    return folder


@pytest.fixture(scope="module")
def prepared(cohort, tmp_path_factory):
    return prepare(cohort, tmp_path_factory.mktemp("prepared") / "p", FOUR, workers=1)


def stored(cohort, id, kind):
    return np.asarray(nib.load(cohort / id / f"{id}_{kind}.nii.gz").dataobj)


def test_each_sequence_is_a_channel_and_each_region_a_bit(cohort, prepared):
    data, start = prepared.dataset(), 0
    for id, case in prepared.about["cases"].items():
        images, masks = data.batch(np.arange(start, start + case["slices"]))
        start += case["slices"]
        seg = stored(cohort, id, "seg")
        for channel, sequence in enumerate(SEQUENCES):
            expected = image_to_slices(stored(cohort, id, sequence), FOUR)[:, 0]
            np.testing.assert_allclose(images[:, channel], expected, atol=5e-4)  # float16
        for region, own in enumerate(([1, 2, 4], [1, 4], [4])):
            np.testing.assert_array_equal(masks[:, region], mask_to_slices(np.isin(seg, own), FOUR)[:, 0])
    assert start == len(data)
    assert prepared.masks.dtype == np.uint8
    assert prepared.masks.shape[1] == 1


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_unpacked_masks_are_those_that_were_packed(regions, seed):
    masks = np.random.default_rng(seed).integers(0, 2, (3, regions, 4, 5)).astype(np.uint8)
    assert packed(masks).shape == (3, 1, 4, 5)
    np.testing.assert_array_equal(unpacked(packed(masks), regions), masks)


def test_a_data_set_in_memory_may_hold_one_mask_a_region():
    masks = np.random.default_rng(0).integers(0, 2, (4, 3, 8, 8)).astype(np.uint8)
    images, parts = np.zeros((4, 1, 8, 8), np.float32), {"train": np.arange(4)}
    plain = SliceDataset(images, masks, parts, np.array([4]))
    small = SliceDataset(images, packed(masks), parts, np.array([4]), regions=3)
    for one in (plain, small):
        np.testing.assert_array_equal(one.batch(np.array([2, 0]))[1], masks[[2, 0]])
    np.testing.assert_array_equal(plain.tumour, small.tumour)


def test_the_order_of_the_words_is_the_order_of_the_channels(cohort, tmp_path):
    recipe = FOUR.but(modalities="t2 flair", regions="enhancing whole")
    data = prepare(cohort, tmp_path / "p", recipe, workers=1)
    images, masks = data.dataset().batch(np.arange(6))
    id = next(iter(data.about["cases"]))
    np.testing.assert_allclose(images[:, 0], image_to_slices(stored(cohort, id, "t2"), recipe)[:, 0], atol=5e-4)
    np.testing.assert_array_equal(masks[:, 1], mask_to_slices(stored(cohort, id, "seg") > 0, recipe)[:, 0])


def test_a_case_without_a_sequence_is_left_out_by_name_or_seen_empty(cohort, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(cohort, folder)
    (folder / "BraTS2021_00002" / "BraTS2021_00002_t1ce.nii.gz").unlink()
    (folder / "BraTS2021_00003" / "BraTS2021_00003_flair.nii.gz").unlink()
    left = prepare(folder, tmp_path / "p", FOUR, workers=1)
    assert set(left.about["left_out"]) == {"BraTS2021_00002", "BraTS2021_00003"}
    assert "no t1ce image" in left.about["left_out"]["BraTS2021_00002"]
    filled = prepare(folder, tmp_path / "q", FOUR.but(missing="zero", crop=True), workers=1)
    assert not filled.about["left_out"]
    images, _ = filled.dataset().batch(np.arange(len(filled.images)))
    cases = np.repeat(np.arange(5), [case["slices"] for case in filled.about["cases"].values()])
    empty = [(case, channel) for case in range(5) for channel in range(4) if not images[cases == case, channel].any()]
    assert empty == [(2, 2), (3, 0)]


def test_a_sequence_that_no_case_has_is_refused(cohort, tmp_path):
    for id in ("BraTS2021_00007", "BraTS2021_00008"):
        write(tmp_path / "data", int(id[-1]), ("flair", "t1"))
    for missing in ("leave-out", "zero"):
        with pytest.raises(UnetlibError, match=r"no case has a t1ce or t2 image. Add it, or prepare without it"):
            prepare(tmp_path / "data", tmp_path / "p", SMALL.but(modalities=ALL, missing=missing), workers=1)
    with pytest.raises(UnetlibError, match="'t9' is not a modality"):
        find_cases(cohort, "flair t9")


def test_a_sequence_on_another_grid_is_brought_to_the_first(cohort, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(cohort, folder)
    path = folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    x, y, z = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij")
    ramp = 3 * x + 2 * y + 5 * z  # linear interpolation gives a linear image again
    save(path, ramp)
    finer = np.diag([-0.5, -0.5, 1.0, 1.0])
    big = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (71, 79, 6)), indexing="ij"))
    expected = read_case(find_cases(folder, "flair t1").cases[1])[0]
    save(path, (3 * big[0] / 2 + 2 * big[1] / 2 + 5 * big[2]).astype(np.float32), finer)
    found = read_case(find_cases(folder, "flair t1").cases[1])[0]
    assert (expected.resampled, found.resampled) == ((), ("t1",))
    np.testing.assert_allclose(found.voxels[1], expected.voxels[1], atol=1e-3)
    np.testing.assert_array_equal(found.voxels[0], expected.voxels[0])
    assert prepare(folder, tmp_path / "p", FOUR, workers=1).about["cases"]["BraTS2021_00001"]["resampled"] == ["t1"]
    assert "Resampled to the grid of flair: sequences of 1 case (BraTS2021_00001)" in capsys.readouterr().out


def test_the_head_that_two_sequences_share_is_all_of_it_where_its_mean_is_that_of_the_air(cohort):
    """As many voxels of the head are darker than the air: here its left half, which the other image shows."""
    flair = read_case(find_cases(cohort, "flair").cases[0])[0]
    voxels = np.zeros(flair.voxels.shape, np.float32)
    inner = voxels[4:-4, 4:-4, 1:-1]
    inner[:] = np.linspace(-1, 1, len(inner))[:, None, None]
    wide, part = replace(flair, voxels=voxels), replace(flair, voxels=voxels[: 6 * len(voxels) // 10])
    np.testing.assert_array_equal(resampled(part, wide, "t1")[: len(part.voxels)], part.voxels)


def test_sequences_that_lie_apart_are_refused(cohort, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(cohort, folder)
    far = LPS.copy()
    far[:3, 3] = -30, 0, 0
    path = folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    save(path, stored(cohort, "BraTS2021_00001", "t1"), far)
    with pytest.raises(UnetlibError, match=r"BraTS2021_00001: its t1 image shows \d+% of the head .* brought together"):
        read_case(find_cases(folder, "flair t1").cases[1])


def test_a_copy_of_another_sequence_counts_as_missing(cohort, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(cohort, folder)
    save(folder / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz", stored(cohort, "BraTS2021_00001", "flair"))
    with pytest.raises(UnetlibError, match="its t2 image has the voxels of its flair image, so it is missing"):
        read_case(find_cases(folder, ALL).cases[1])
    voxels = read_case(find_cases(folder, ALL, missing="zero").cases[1])[0].voxels
    assert [bool(one.any()) for one in voxels] == [True, True, True, False]


def test_any_changed_sequence_is_a_change_and_any_equal_one_the_same_scan(cohort, prepared, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(cohort, folder)
    prepare(folder, tmp_path / "p", FOUR, workers=1)
    for kind in (*SEQUENCES, "seg"):
        path = folder / "BraTS2021_00004" / f"BraTS2021_00004_{kind}.nii.gz"
        before, voxels = path.read_bytes(), stored(cohort, "BraTS2021_00004", kind).copy()
        voxels[20, 20, 3] = 2 if kind == "seg" and voxels[20, 20, 3] != 2 else voxels[20, 20, 3] // 2
        save(path, voxels)
        with pytest.raises(UnetlibError, match=r"1 case added, removed or changed \(BraTS2021_00004\)"):
            prepare(folder, tmp_path / "p", FOUR, workers=1)
        path.write_bytes(before)
    other = tmp_path / "more" / write(tmp_path / "more", 8)
    shutil.copytree(cohort, tmp_path / "more", dirs_exist_ok=True)
    shutil.copy(cohort / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz", other / "BraTS2021_00008_t2.nii.gz")
    about = prepare(tmp_path / "more", tmp_path / "q", FOUR, workers=1).about
    assert "same voxels as that of BraTS2021_00001" in about["left_out"]["BraTS2021_00008"]
    assert check(tmp_path / "more", workers=1, modalities=ALL).left_out == about["left_out"]


def test_regions_follow_the_labels_of_each_data_set(tmp_path):
    seen = {}
    for labels, name in (((2, 1, 4), "BraTS2021_{:05d}"), ((2, 1, 3), "BraTS-GLI-{:05d}-000")):
        folder = tmp_path / str(labels)
        id = write(folder, 1, ("flair",), labels, name)
        if "GLI" in name:
            for kind in ("flair", "seg"):
                (folder / id / f"{id}_{kind}.nii.gz").rename(
                    folder / id / f"{id}-{'t2f' if kind == 'flair' else kind}.nii.gz"
                )
        seen[labels] = read_regions(find_cases(folder).cases[0], FOUR)[1]
    np.testing.assert_array_equal(seen[2, 1, 4], seen[2, 1, 3])
    whole, core, enhancing = seen[2, 1, 4]
    assert whole.sum() > core.sum() > enhancing.sum() > 0
    assert not (core & ~whole).any()
    assert not (enhancing & ~core).any()


def test_labels_decide_where_the_names_do_not(tmp_path):
    write(tmp_path / "data", 1, ("flair",), (1, 2, 3), "case{:d}")
    case = find_cases(tmp_path / "data").cases[0]
    with pytest.raises(UnetlibError, match="Say so: --labels"):
        read_regions(case, FOUR)
    masks = read_regions(case, FOUR.but(labels="decathlon"))[1]
    seg = stored(tmp_path / "data", case.id, "seg")
    for mask, own in zip(masks, ([1, 2, 3], [2, 3], [3]), strict=True):
        np.testing.assert_array_equal(mask, np.isin(seg, own))
    assert read_regions(case, FOUR.but(regions="whole solid=2+3"))[1][1].sum() == masks[1].sum()


def test_a_region_of_labels_that_the_data_lack_is_refused(cohort, tmp_path):
    with pytest.raises(UnetlibError, match="no case has a voxel of the region cyst"):
        prepare(cohort, tmp_path / "p", FOUR.but(regions="whole cyst=3"), workers=1)


@pytest.mark.parametrize("scheme", ["brats2021", "brats2023", "decathlon"])
def test_a_label_map_gives_its_regions_back(scheme):
    regions = Regions.of(FOUR.but(labels=scheme))
    labels = np.random.default_rng(0).choice([0, *{"brats2021": (1, 2, 4)}.get(scheme, (1, 2, 3))], (5, 6, 7))
    np.testing.assert_array_equal(regions.label_map(regions.masks(labels)), labels)
    assert Regions.of(FOUR.but(regions="whole solid=1+4")).label_map(np.zeros((2, 3, 3, 3), bool)) is None


def test_dropped_sequences_are_a_pure_function_and_never_all():
    seed = 3
    images = torch.ones(200, 8, 4, 4)  # four sequences of two slices
    found = drop_sequences(images, seed, 1, 2, 4, 0.6)
    assert torch.equal(found, drop_sequences(images, seed, 1, 2, 4, 0.6))
    assert not torch.equal(found, drop_sequences(images, seed, 1, 3, 4, 0.6))
    kept = found.amax((2, 3))
    assert torch.equal(kept, found.amin((2, 3)))  # whole channels
    assert torch.equal(kept[:, :4], kept[:, 4:])  # a sequence with its neighbours
    assert (kept[:, :4].sum(1) >= 1).all()
    expected = 0.4 + 0.6**4 / 4  # one of all four comes back
    assert abs(float(kept.mean()) - expected) < 0.05


def test_a_sequence_that_is_missing_is_never_the_one_that_is_kept():
    images = torch.ones(300, 4, 4, 4)
    images[:, 1:3] = 0
    images[-1] = 0  # air in all
    kept = drop_sequences(images, 0, 1, 2, 4, 0.6).amax((2, 3))
    assert (kept[:-1].sum(1) >= 1).all()
    assert {tuple(row) for row in kept[:-1, [0, 3]].int().tolist()} == {(1, 0), (0, 1), (1, 1)}
    assert not kept[:, 1:3].any()


def test_a_sequence_that_is_missing_stays_0_whatever_changes():
    recipe = FOUR.but(missing="zero", warp=True, intensity=True, drop_modalities=0.3)
    images = torch.rand(40, 4, 32, 32) + 0.1
    images[::2, 2] = 0
    found, _ = augment.change(images.clone(), torch.zeros(40, 3, 32, 32), recipe, 0, 0)
    assert not found[::2, 2].any()
    assert found[1::2, 2].any()
    assert found.flatten(1).any(1).all()


def test_four_sequences_and_three_regions_are_trained_and_resumed(prepared, tmp_path):
    recipe = FOUR.but(drop_modalities=0.3, loss="dice+bce")
    whole = train(prepared, tmp_path / "whole", recipe, threads=1)
    train(prepared, tmp_path / "parts", recipe, threads=1, max_steps=3)
    train(prepared, tmp_path / "parts", recipe, threads=1)
    one, other = (Run(tmp_path / name) for name in ("whole", "parts"))
    assert one.best.read_bytes() == other.best.read_bytes()
    assert whole.best_dice > 0
    assert one.recipe.labels == "brats2021"  # as the names of the files showed
    network = one.load()[0]
    assert network(torch.zeros(1, 4, 32, 32)).shape == (1, 3, 32, 32)
    assert len(read_json(one.provenance_file)["cases"]["BraTS2021_00000"]["images"]) == 4


def test_runs_that_differ_in_what_they_can_do_without_are_averaged_over_whole_patients(prepared, tmp_path, capsys):
    runs = [tmp_path / "needs all", tmp_path / "copes"]
    for run, drop in zip(runs, (0, 0.3), strict=True):
        train(prepared, run, FOUR.but(epochs=1, drop_modalities=drop), threads=1)
    for index in range(20, 23):
        write(tmp_path / "other", index, SEQUENCES if index < 22 else ("flair", "t1"))
    assert evaluate(runs[1], data=tmp_path / "other")["patients"] == 3
    assert evaluate(runs, data=tmp_path / "other")["patients"] == 2
    assert evaluate(runs[::-1], data=tmp_path / "other")["patients"] == 2


def test_a_run_that_copes_with_gaps_does_not_lend_its_patients_to_one_that_does_not(cohort, prepared, tmp_path):
    folder = shutil.copytree(cohort, tmp_path / "data")
    for name in prepared.split.test:
        (folder / name / f"{name}_t1.nii.gz").unlink()
    data = prepare(folder, tmp_path / "gaps", FOUR.but(missing="zero"), workers=1)
    train(data, tmp_path / "copes", FOUR.but(epochs=1), threads=1)
    train(prepared, tmp_path / "needs", FOUR.but(epochs=1), threads=1)
    assert evaluate(tmp_path / "copes")["patients"]
    with pytest.raises(UnetlibError, match="it has no t1 image"):
        evaluate([tmp_path / "copes", tmp_path / "needs"])


def test_other_sequences_or_regions_are_refused_on_resuming(cohort, prepared, tmp_path):
    train(prepared, tmp_path / "run", FOUR, threads=1, max_steps=1)
    for change in ({"modalities": "flair t1"}, {"regions": "whole"}):
        other = prepare(cohort, tmp_path / next(iter(change)), FOUR.but(**change), workers=1)
        with pytest.raises(UnetlibError, match=next(iter(change))):
            train(other, tmp_path / "run", FOUR.but(**change), threads=1)


def test_published_slices_do_not_know_of_sequences_and_regions(cohort, tmp_path):
    """A folder of version 0.5 has none of these fields and opens; it holds the same bytes."""
    data = prepare(cohort, tmp_path / "p", SMALL, workers=1)
    assert data.images.shape[1] == data.masks.shape[1] == 1
    assert all("images" not in case for case in data.about["cases"].values())
    for name in ("modalities", "regions", "labels", "missing"):
        assert data.about["recipe"].pop(name) == getattr(Recipe.published, name)

    write_json(tmp_path / "p" / "prepared.json", data.about)
    assert Prepared.open(tmp_path / "p").about["recipe"]["modalities"] == "flair"


def test_a_run_may_start_from_weights_of_further_sequences_and_regions(cohort, prepared, tmp_path):
    train(prepared, tmp_path / "four", FOUR, threads=1)
    recipe = FOUR.but(modalities="t1ce flair", regions="enhancing whole")
    data = prepare(cohort, tmp_path / "two", recipe, workers=1)
    loop = open_loop(data, Run(tmp_path / "run"), recipe, start_from=Run(tmp_path / "four"), threads=1)
    images = torch.rand(2, 2, 32, 32)
    four = torch.zeros(2, 4, 32, 32)
    four[:, 2], four[:, 0] = images[:, 0], images[:, 1]
    with torch.inference_mode():
        found, expected = loop.network.eval()(images), Run(tmp_path / "four").load()[0](four)
    torch.testing.assert_close(found, expected[:, [2, 0]])
    train(data, tmp_path / "two-run", recipe, threads=1)
    with pytest.raises(UnetlibError, match="two-run has no weights for t1, t2: its modalities are t1ce flair"):
        train(prepared, tmp_path / "again", FOUR, threads=1, start_from=tmp_path / "two-run")


@pytest.mark.parametrize("regions", ["bg=0", "solid=0+1", "whole=1+2 core=4", "enhancing=4", "whole solid=01"])
def test_a_region_of_ones_own_has_a_name_and_labels_of_its_own(regions):
    with pytest.raises(UnetlibError, match="a text of 1 to 8 different words in small letters"):
        Recipe.published.but(regions=regions)


def test_labels_that_no_mask_has_are_not_taken_for_empty_masks(cohort, tmp_path):
    with pytest.raises(UnetlibError, match="no case has a voxel of the region cyst"):
        prepare(cohort, tmp_path / "p", SMALL.but(regions="cyst=9"), workers=1)


def test_regions_that_the_labels_do_not_tell_apart_are_named(tmp_path, caplog):
    for index in range(3):
        write(tmp_path / "data", index, labels=(1, 1, 1), name="P{}")
    prepare(tmp_path / "data", tmp_path / "p", SMALL.but(regions="whole core", labels="brats2021"), workers=1)
    assert "the regions whole and core are the same in all masks" in caplog.text
    for index in range(3, 6):
        write(tmp_path / "data", index, labels=(2, 1, 4), name="P{}")
    caplog.clear()
    prepare(tmp_path / "data", tmp_path / "q", SMALL.but(regions="whole core", labels="brats2021"), workers=1)
    assert "are the same" not in caplog.text


@pytest.mark.parametrize("regions", [THREE, "solid=1+4", "whole solid=1+3"])
def test_two_numberings_of_labels_are_not_mixed(tmp_path, regions):
    for index in range(3):
        write(tmp_path, index)
        write(tmp_path, index + 3, labels=(2, 1, 3), name="BraTS-GLI-{:05d}-000")
    with pytest.raises(UnetlibError, match=r"several schemes \(brats2021, brats2023\)"):
        prepare(tmp_path, tmp_path / "p", SMALL.but(regions=regions), workers=1)


def test_labels_other_than_those_that_the_names_show_are_refused(cohort, tmp_path):
    with pytest.raises(UnetlibError, match=r"--labels brats2023 was given, but .* \(BraTS 2021\) show .* brats2021"):
        prepare(cohort, tmp_path / "p", SMALL.but(regions=THREE, labels="brats2023"), workers=1)


def test_the_only_sequence_may_be_one_that_no_case_has(tmp_path):
    for index in range(3):
        write(tmp_path, index, sequences=("flair",))
    with pytest.raises(UnetlibError, match="no case has a t1 image"):
        prepare(tmp_path, tmp_path / "p", SMALL.but(modalities="t1"), workers=1)


@pytest.mark.parametrize("kind", ["data", "masks"])
def test_a_label_that_the_scheme_does_not_have_is_refused(cohort, tmp_path, kind):
    for index in range(3):
        write(tmp_path / "three", index, labels=(2, 1, 3), name="P{}")
    expected = r"holds the label 3; brats2021 has 1, 2, 4 only"
    if kind == "data":
        with pytest.raises(UnetlibError, match=expected):
            prepare(tmp_path / "three", tmp_path / "p", SMALL.but(regions=THREE, labels="brats2021"), 1, strict=True)
    else:
        name = "BraTS2021_00000"
        mask = stored(cohort, name, "seg").copy()
        mask[tuple(np.argwhere(mask == 4)[0])] = 3  # 3 beside 4 is not the 3 that stands for it
        save(tmp_path / "masks" / f"{name}.nii.gz", mask)
        with pytest.raises(UnetlibError, match=expected):
            score(tmp_path / "masks", cohort, regions=THREE)
        assert score(tmp_path / "masks", cohort)["cases"] == 1, "for the whole tumour any label is tumour"


def test_a_mask_on_the_grid_of_another_sequence_says_to_name_that_one_first(tmp_path):
    for index in range(3):
        id = write(tmp_path / "data", index)
        save(tmp_path / "data" / id / f"{id}_t1.nii.gz", stored(tmp_path / "data", id, "t1")[::2])
    with pytest.raises(UnetlibError, match="has the grid of the mask, name it first in --modalities"):
        prepare(tmp_path / "data", tmp_path / "p", SMALL.but(modalities="t1 flair"), 1, strict=True)


@pytest.mark.parametrize(("field", "value"), [("missing", "zero"), ("drop_modalities", 0.5)])
def test_data_without_a_sequence_are_scored_by_a_run_that_can_do_without(cohort, tmp_path, field, value):
    recipe = SMALL.but(modalities="flair t1", **{"slices": "all"} | {field: value})
    plain = SMALL.but(modalities="flair t1", slices="all")
    for index in range(20, 22):
        write(tmp_path / "other", index, ("flair",))
    for name, one in (("gaps", recipe), ("plain", plain)):
        train(prepare(cohort, tmp_path / f"{name}-p", one, workers=1), Run(tmp_path / name), one, device="cpu")
    assert evaluate(tmp_path / "gaps", data=tmp_path / "other")["cases"] == 2
    with pytest.raises(UnetlibError, match="no case has a t1 image"):
        evaluate(tmp_path / "plain", data=tmp_path / "other")
