import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import LPS, SCANS, SMALL, STRONG, as_03, as_cases, write_patient
from unetlib import __version__
from unetlib.data import part
from unetlib.data import prepare as preparing
from unetlib.data.patients import find_cases, read_case
from unetlib.data.prepare import prepare, prepare_shard
from unetlib.data.prepared import Prepared
from unetlib.data.slices import Window, image_to_slices, mask_to_slices
from unetlib.data.split import Split
from unetlib.support.errors import UnetlibError
from unetlib.support.files import PARTIAL, digest, locked, read_csv


def test_prepared_slices_are_those_of_the_files(cohort, prepared):
    data = Prepared.open(prepared)
    rows = read_csv(prepared / "slices.csv")
    assert [int(row["index"]) for row in rows] == list(range(len(data.images)))
    for row in rows:
        folder = cohort / row["case"]
        image = np.asarray(nib.load(folder / f"{row['case']}_flair.nii.gz").dataobj)
        mask = np.asarray(nib.load(folder / f"{row['case']}_seg.nii.gz").dataobj) > 0
        z, index = int(row["z"]), int(row["index"])
        assert mask[:, :, z].sum() == int(row["tumour_voxels"]) > 0
        expected = image_to_slices(image, SMALL)[z].numpy()
        np.testing.assert_allclose(data.images[index], expected, atol=5e-4)  # float16
        np.testing.assert_array_equal(data.masks[index], mask_to_slices(mask, SMALL)[z].numpy())
        assert data.masks[index].sum() == int(row["tumour_pixels"])


def test_only_tumour_slices_are_kept_and_all_of_them(cohort, prepared):
    number = sum(int(np.asarray(nib.load(p).dataobj).any((0, 1)).sum()) for p in cohort.glob("*/*_seg.nii.gz"))
    assert len(Prepared.open(prepared).images) == number


def test_parts_share_no_patient_and_cover_every_slice(prepared):
    data = Prepared.open(prepared)
    parts = [data.dataset().indices(part) for part in ("train", "val", "test")]
    assert sorted(np.concatenate(parts)) == list(range(len(data.images)))
    patient = [row["patient"] for row in read_csv(prepared / "slices.csv")]
    train, val, test = ({patient[i] for i in part} for part in parts)
    assert not train & val
    assert not (train | val) & test
    assert train == set(data.split.train)


def test_slices_are_memory_mapped_and_batches_are_float32(prepared):
    data = Prepared.open(prepared)
    assert isinstance(data.images, np.memmap)
    images, masks = data.dataset().batch(np.array([3, 0]))
    assert images.dtype == masks.dtype == torch.float32
    np.testing.assert_array_equal(images[1].numpy(), data.images[0])
    np.testing.assert_array_equal(masks[0].numpy(), data.masks[3])


def test_the_number_of_processes_changes_nothing(cohort, prepared, tmp_path):
    prepare(cohort, tmp_path / "two", SMALL, workers=2)
    for name in ("images.npy", "masks.npy", "slices.csv", "split.json"):
        assert (tmp_path / "two" / name).read_bytes() == (prepared / name).read_bytes()


@pytest.mark.parametrize("axes", ["RAS", "LPI", "PIR", "SLA", "IAR"])
def test_a_volume_stored_in_another_orientation_gives_the_same_slices(cohort, prepared, tmp_path, axes):
    for path in sorted(cohort.glob("*/*.nii.gz")):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
        )
        (tmp_path / "turned" / path.parent.name).mkdir(parents=True, exist_ok=True)
        nib.save(image.as_reoriented(turn), tmp_path / "turned" / path.parent.name / path.name)
    prepare(tmp_path / "turned", tmp_path / "prepared", SMALL, workers=1)
    for name in ("images.npy", "masks.npy", "slices.csv"):
        assert (tmp_path / "prepared" / name).read_bytes() == (prepared / name).read_bytes()


def test_a_finished_folder_is_reused_without_reading_a_volume(cohort, prepared, monkeypatch):
    monkeypatch.setattr(part, "read_labels", None)  # calling it would fail
    before = (prepared / "images.npy").stat().st_mtime_ns
    prepare(cohort, prepared, SMALL, workers=1)
    assert (prepared / "images.npy").stat().st_mtime_ns == before


def test_an_interrupted_preparation_goes_on_where_it_stopped(cohort, prepared, tmp_path, monkeypatch):
    read, seen = part.read_labels, []

    def stop_at_the_sixth(case):
        seen.append(case.id)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return read(case)

    monkeypatch.setattr(part, "read_labels", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        prepare(cohort, tmp_path / "p", SMALL, workers=1)
    assert not (tmp_path / "p" / "prepared.json").exists()
    prepare(cohort, tmp_path / "p", SMALL, workers=1)
    assert len(seen) == 6 + 5  # the five that were done are not read again
    assert (tmp_path / "p" / "images.npy").read_bytes() == (prepared / "images.npy").read_bytes()
    assert not (tmp_path / "p" / PARTIAL).exists()


def test_an_unfinished_folder_never_mixes_two_recipes(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_merge", None)  # killed after the last part
    with pytest.raises(TypeError):
        prepare(cohort, tmp_path / "p", SMALL, workers=1)
    monkeypatch.undo()
    again = prepare(cohort, tmp_path / "p", SMALL.but(normalise="minmax-volume"), workers=1)
    fresh = prepare(cohort, tmp_path / "fresh", SMALL.but(normalise="minmax-volume"), workers=1)
    np.testing.assert_array_equal(again.images, fresh.images)


def test_another_recipe_is_refused_by_name_and_rebuilt_on_request(cohort, tmp_path):
    prepare(cohort, tmp_path / "p", SMALL, workers=1)
    with pytest.raises(
        UnetlibError, match=r"another recipe \(image_size: 32 -> 48\).* delete .* --rebuild to .* same command"
    ):
        prepare(cohort, tmp_path / "p", SMALL.but(image_size=48), workers=1)
    assert prepare(cohort, tmp_path / "p", SMALL.but(image_size=48), workers=1, rebuild=True).images.shape[2] == 48


def test_changed_data_are_refused_by_name_but_a_plain_copy_is_not(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "data")
    prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    for path in (tmp_path / "data").glob("*/*.nii.gz"):
        path.touch()  # a copy has new times
    prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    name = write_patient(tmp_path / "data", 3, shape=(40, 48, 7))
    with pytest.raises(UnetlibError, match=rf"other data: 1 case added.*\({name}\)"):
        prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    shutil.rmtree(tmp_path / "data" / name)
    with pytest.raises(UnetlibError, match=f"added, removed or changed.*{name}"):
        prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)


def test_one_bad_patient_is_named_left_out_and_counted_and_strict_stops(cohort, tmp_path, capsys):
    shutil.copytree(cohort, tmp_path / "data")
    victim = tmp_path / "data" / "BraTS2021_00004" / "BraTS2021_00004_flair.nii.gz"
    victim.write_bytes(victim.read_bytes()[:1000])
    data = prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=2)
    assert "left out BraTS2021_00004" in capsys.readouterr().out
    assert "left out: 1 (BraTS2021_00004)" in str(data)
    assert "BraTS2021_00004" not in data.about["cases"]
    prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)  # reused, though one case was unusable
    with pytest.raises(UnetlibError, match=r"BraTS2021_00004.*--strict"):
        prepare(tmp_path / "data", tmp_path / "q", SMALL, workers=1, strict=True)


def test_strict_holds_for_a_finished_folder_too(cohort, tmp_path, capsys):
    shutil.copytree(cohort, tmp_path / "data")
    (tmp_path / "data" / "BraTS2021_00004" / "BraTS2021_00004_flair.nii.gz").write_bytes(b"")
    prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    capsys.readouterr()
    prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    assert "left out BraTS2021_00004" in capsys.readouterr().out
    with pytest.raises(UnetlibError, match="--strict"):
        prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1, strict=True)


def test_a_link_to_nowhere_is_one_bad_patient(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "data")
    image = tmp_path / "data" / "BraTS2021_00004" / "BraTS2021_00004_flair.nii.gz"
    image.unlink()
    image.symlink_to(tmp_path / "gone.nii.gz")
    data = prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    assert "does not exist" in data.about["left_out"]["BraTS2021_00004"]


@pytest.mark.parametrize("name", ["parts/thesis.txt", "thesis.txt"])
def test_a_folder_of_somebody_elses_is_left_alone(cohort, tmp_path, name):
    (tmp_path / "own" / name).parent.mkdir(parents=True)
    (tmp_path / "own" / name).write_text("mine")
    with pytest.raises(UnetlibError, match="is not a prepared folder"):
        prepare(cohort, tmp_path / "own", SMALL, workers=1)
    with pytest.raises(UnetlibError, match="is not a prepared folder"):
        prepare(cohort, cohort, SMALL, workers=1)
    assert (tmp_path / "own" / name).read_text() == "mine"


def test_a_run_is_no_prepared_folder(cohort, trained, tmp_path):
    """It holds a split, as a folder does that is to be prepared with that one."""
    run = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(UnetlibError, match="is not a prepared folder"):
        prepare(cohort, run, SMALL, workers=1)
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in trained.iterdir())


def test_a_rebuild_that_fails_keeps_the_old_result_and_a_split_of_ones_own(cohort, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "p")
    shutil.copytree(cohort, tmp_path / "data")
    split = Prepared.open(prepared).split
    own = Split(train=split.train, val=split.test, test=split.val)
    own.save(tmp_path / "p" / "split.json")
    for path in (tmp_path / "data").glob("*/*_seg.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros((40, 48, 6), np.uint8), LPS), path)
    with pytest.raises(UnetlibError, match="no tumour"):
        prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1, rebuild=True)
    np.testing.assert_array_equal(Prepared.open(tmp_path / "p").images, Prepared.open(prepared).images)
    again = prepare(cohort, tmp_path / "p", SMALL.but(normalise="minmax-volume"), workers=1, rebuild=True)
    assert again.split == own
    assert prepare(cohort, tmp_path / "p", SMALL.but(split_seed=5), workers=1, rebuild=True).split != own


def test_no_tumour_anywhere_and_too_few_patients_are_sentences(tmp_path):
    for index in range(2):
        write_patient(tmp_path / "data", index)
    with pytest.raises(UnetlibError, match="2 usable patient"):
        prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    write_patient(tmp_path / "data", 2)
    for path in (tmp_path / "data").glob("*/*_seg.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros((40, 48, 6), np.uint8), LPS), path)
    with pytest.raises(UnetlibError, match="no tumour anywhere in 3 case"):
        prepare(tmp_path / "data", tmp_path / "q", SMALL.but(slices="all"), workers=1)
    assert not (tmp_path / "q" / "prepared.json").exists()


def test_time_points_of_one_patient_stay_on_one_side(tmp_path):
    source = tmp_path / "source"
    for index in range(8):
        name = write_patient(source, index)
        for time_point in (100, 101):
            case = f"BraTS-GLI-{index:05d}-{time_point}"
            (tmp_path / "data" / case).mkdir(parents=True)
            for kind, word in (("flair", "t2f"), ("seg", "seg")):
                target = tmp_path / "data" / case / f"{case}-{word}.nii.gz"
                image = nib.load(source / name / f"{name}_{kind}.nii.gz")
                voxels = np.asarray(image.dataobj)
                voxels = np.minimum(voxels, 3) if kind == "seg" else voxels + (time_point - 100)
                nib.save(nib.Nifti1Image(voxels, image.affine), target)
    data = prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    assert len(data.about["cases"]) == 16
    assert len(data.split.train + data.split.val + data.split.test) == 8


def test_a_split_that_lies_in_the_folder_is_reused_or_refused(cohort, prepared, tmp_path, caplog):
    split = Prepared.open(prepared).split
    own = Split(train=split.train, val=split.test, test=split.val)
    own.save(tmp_path / "p" / "split.json")
    assert prepare(cohort, tmp_path / "p", SMALL, workers=1).split == own
    assert "the split is reused, which is not the one that the seed 0 draws." in caplog.text
    caplog.clear()
    split.save(tmp_path / "drawn" / "split.json")  # as a call leaves it that was stopped after its split
    prepare(cohort, tmp_path / "drawn", SMALL, workers=1)
    assert "the split is reused.\n" in caplog.text
    Split(("a",), ("b",), split.test).save(tmp_path / "q" / "split.json")
    lacks = ", ".join(sorted({*split.train, *split.val})[:5])
    with pytest.raises(UnetlibError, match=rf"fit the data: no usable case is of a, b; it lacks {lacks} and 3 more\."):
        prepare(cohort, tmp_path / "q", SMALL, workers=1)


def test_the_seed_that_is_recorded_has_drawn_the_split(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "write_array_header_1_0", None)  # killed when the first array is written
    with pytest.raises(TypeError):
        prepare(cohort, tmp_path / "p", SMALL, workers=1)
    monkeypatch.undo()
    with pytest.raises(UnetlibError, match=r"split\.json is not the split that the seed 1 draws\. Delete it"):
        prepare(cohort, tmp_path / "p", SMALL.but(split_seed=1), workers=1)
    (tmp_path / "p" / "split.json").unlink()
    assert prepare(cohort, tmp_path / "p", SMALL.but(split_seed=1), workers=1).about["recipe"]["split_seed"] == 1


def test_a_prepared_folder_that_has_lost_its_table_is_not_reused(cohort, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "p")
    (tmp_path / "p" / "slices.csv").unlink()
    with pytest.raises(UnetlibError, match=r"p has lost its slices\.csv\. .* --rebuild"):
        prepare(cohort, tmp_path / "p", SMALL, workers=1)
    prepare(cohort, tmp_path / "p", SMALL, workers=1, rebuild=True)
    assert (tmp_path / "p" / "slices.csv").read_bytes() == (prepared / "slices.csv").read_bytes()


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "split.json", "prepared.json"])
def test_a_damaged_prepared_folder_is_a_sentence(prepared, tmp_path, name):
    shutil.copytree(prepared, tmp_path / "p")
    path = tmp_path / "p" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnetlibError, match=r"prepared\.json|split\.json|is damaged"):
        Prepared.open(tmp_path / "p")


def test_a_prepared_folder_of_another_kind_is_a_sentence(tmp_path):
    with pytest.raises(UnetlibError, match="not a finished prepared folder"):
        Prepared.open(tmp_path)
    (tmp_path / "prepared.json").write_text(json.dumps({"cases": {}}))
    with pytest.raises(UnetlibError, match="damaged"):
        Prepared.open(tmp_path)


def test_shards_merged_are_the_whole(cohort, prepared, tmp_path):
    for shard, cases in (("1/3", 4), ("3/3", 3), ("2/3", 3)):
        assert prepare_shard(cohort, tmp_path / "p", shard, SMALL, workers=1) == cases
    assert not (tmp_path / "p" / "prepared.json").exists()
    assert len(list((tmp_path / "p" / PARTIAL).iterdir())) == 10
    prepare(cohort, tmp_path / "p", SMALL, workers=1)
    for path in prepared.iterdir():
        assert (tmp_path / "p" / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in (tmp_path / "p").iterdir()} == {path.name for path in prepared.iterdir()}


def test_a_shard_refuses_the_folder_of_something_else_and_with_strict_a_case_that_cannot_be_used(cohort, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "masks.npy").write_text("my own")
    with pytest.raises(UnetlibError, match=r"masks.npy and is not a prepared folder"):
        prepare_shard(cohort, tmp_path / "thesis", "1/1", SMALL, workers=1)
    assert not (tmp_path / "thesis" / PARTIAL).exists()
    data = shutil.copytree(cohort, tmp_path / "data")
    damaged = sorted(data.iterdir())[0]
    (damaged / f"{damaged.name}_flair.nii.gz").write_bytes(b"damaged")
    assert prepare_shard(data, tmp_path / "p", "1/2", SMALL, workers=1) == 4
    with pytest.raises(UnetlibError, match="--strict stops at"):
        prepare_shard(data, tmp_path / "q", "1/2", SMALL, workers=1, strict=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_the_place_of_an_image_is_not_read(cohort, tmp_path, monkeypatch):
    """It would be read for ever."""
    data = shutil.copytree(cohort, tmp_path / "data")
    pipe = next(data.glob("*/*_flair.nii.gz"))
    pipe.unlink()
    os.mkfifo(pipe)
    read = []
    monkeypatch.setattr(preparing.files, "sha256", lambda *paths: read.extend(paths) or "hash")
    (case,) = (case for case in find_cases(data).cases if pipe in case.files())
    assert preparing._sha256(case) is None
    assert not read


def test_a_split_of_ones_own_without_slices_is_kept_even_by_a_rebuild(cohort, tmp_path):
    Split(train=("A",), val=("B",), test=("C",)).save(tmp_path / "p" / "split.json")
    before = (tmp_path / "p" / "split.json").read_bytes()
    for rebuild in (False, True):
        with pytest.raises(UnetlibError, match="does not fit the data"):
            prepare(cohort, tmp_path / "p", SMALL, workers=1, rebuild=rebuild)
    assert (tmp_path / "p" / "split.json").read_bytes() == before


def test_names_too_long_for_a_file_are_prepared(tmp_path):
    for index in range(3):
        write_patient(tmp_path / "flat", index)
        folder = tmp_path.joinpath("data", *(letter * 60 for letter in "abc"), f"{'d' * 60}{index}")
        folder.mkdir(parents=True)
        for path in (tmp_path / "flat" / f"BraTS2021_{index:05d}").iterdir():
            path.rename(folder / path.name.rpartition("_")[2])
    assert len(prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1).about["cases"]) == 3


def test_what_shards_have_done_is_not_done_again(cohort, tmp_path, capsys):
    prepare_shard(cohort, tmp_path / "p", "1/2", SMALL, workers=1)
    prepare(cohort, tmp_path / "p", SMALL, workers=1)
    assert "5 of 10 cases were prepared before" in capsys.readouterr().out


def test_shards_are_not_merged_while_one_is_at_work(cohort, tmp_path):
    prepare_shard(cohort, tmp_path / "p", "1/2", SMALL, workers=1)
    unfinished = tmp_path / "p" / ".unetlib-parts" / ".tmp-1-of-the-shard.npz"
    unfinished.touch()
    with locked(tmp_path / "p" / ".unetlib-shard-2-of-2"), pytest.raises(UnetlibError, match="2-of-2 is in use"):
        prepare(cohort, tmp_path / "p", SMALL, workers=1)
    assert unfinished.exists()
    prepare(cohort, tmp_path / "p", SMALL, workers=1)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5"])
def test_a_shard_that_does_not_exist_is_refused(cohort, tmp_path, shard):
    with pytest.raises(UnetlibError, match="two numbers such as 1/8"):
        prepare_shard(cohort, tmp_path / "p", shard, SMALL, workers=1)
    assert not (tmp_path / "p").exists()


def positions(data):
    """The positions of the slices of every case, by its name."""
    found = {}
    for row in read_csv(data.folder / "slices.csv"):
        found.setdefault(row["case"], []).append(int(row["index"]))
    return found


@pytest.mark.parametrize("neighbours", [0, 1, 3, 8])
def test_a_batch_shows_neighbours_of_the_same_case_only(strong_prepared, neighbours):
    data = Prepared.open(strong_prepared)
    expected = {}
    for own in positions(data).values():
        for z, index in enumerate(own):
            near = [own[min(max(z + by, 0), len(own) - 1)] for by in range(-neighbours, neighbours + 1)]
            expected[index] = torch.from_numpy(data.images[near, 0].astype(np.float32))
    order = np.random.default_rng(0).permutation(len(data.images))
    images, masks = data.dataset(neighbours).batch(order)
    assert images.dtype == masks.dtype == torch.float32
    assert images.shape == (len(order), 2 * neighbours + 1, 32, 32)
    for index, image, mask in zip(order, images, masks, strict=True):
        assert torch.equal(image, expected[index])
        np.testing.assert_array_equal(mask, data.masks[index])


def test_bounds_and_tumour_of_every_slice_are_those_of_its_case_and_its_mask(strong_prepared):
    data = Prepared.open(strong_prepared)
    for own in positions(data).values():
        for index in own:
            assert data.dataset().bounds[index].tolist() == [min(own), max(own)]
    assert len(data.dataset().bounds) == len(data.dataset().tumour) == len(data.images)
    assert data.dataset().tumour.tolist() == [bool(mask.any()) for mask in data.masks]
    assert 0 < data.dataset().tumour.sum() < len(data.dataset().tumour) / 2


def test_slices_are_cut_to_the_window_of_their_volume(strong_prepared, tall_cohort):
    data, recipe = Prepared.open(strong_prepared), STRONG
    for case in find_cases(tall_cohort).cases[:3]:
        volume, truth, _ = read_case(case)
        own = positions(data)[case.id]
        window = Window.of(volume.voxels, recipe)
        assert window != Window.whole(truth.shape)
        np.testing.assert_allclose(data.images[own], image_to_slices(volume.voxels, recipe), atol=5e-4)
        np.testing.assert_array_equal(data.masks[own], mask_to_slices(truth, recipe, window=window))


def without_crop(folder):
    """Write a prepared folder's description as versions did that knew no `crop`."""
    about = json.loads((folder / "prepared.json").read_text())
    del about["recipe"]["crop"]
    (folder / "prepared.json").write_text(json.dumps(about))


def test_a_folder_from_before_crop_opens_as_one_without_it_and_is_reused(cohort, prepared, tmp_path, capsys):
    shutil.copytree(prepared, tmp_path / "p")
    without_crop(tmp_path / "p")
    assert Prepared.open(tmp_path / "p").contents == Prepared.open(prepared).contents
    prepare(cohort, tmp_path / "p", SMALL, workers=1)
    assert "reused" in capsys.readouterr().out
    with pytest.raises(UnetlibError, match=r"another recipe \(crop: False -> True\)"):
        prepare(cohort, tmp_path / "p", SMALL.but(crop=True), workers=1)


# Who is one patient, whether a scan is there twice, and what has changed


def parts_of(data):
    """The parts that the cases of each person are in, by the person's part of the name."""
    found = {}
    for name, case in data.about["cases"].items():
        found.setdefault(name.rpartition("_")[0], set()).add(data.split.part_of(case["patient"]))
    return found


def test_two_scans_of_a_public_scheme_stay_on_one_side_and_the_scheme_is_written_down(cohort, tmp_path):
    data = prepare(as_cases(cohort, tmp_path / "data", SCANS), tmp_path / "p", SMALL, workers=1)
    assert len(data.about["cases"]) == 10
    assert all(len(parts) == 1 for parts in parts_of(data).values())
    assert {case["named_by"] for case in data.about["cases"].values()} == {"UPENN-GBM"}


def test_a_table_of_patients_is_honoured_kept_and_a_change_of_it_refused_by_name(cohort, tmp_path, capsys):
    names = [f"{number}_{scan}" for number in range(5) for scan in (1, 2)]
    folder = as_cases(cohort, tmp_path / "data", names)
    prepare(folder, tmp_path / "without", SMALL, workers=1)
    assert "0_1, 0_2 could be scans of one patient" in capsys.readouterr().out
    rows = [f"{name},{name[0]}" for name in names]
    (folder / "patients.csv").write_text("\n".join(["case,patient", *rows]))
    with pytest.raises(UnetlibError, match=r"patients\.csv has changed for 10 cases \(0_1, .*--rebuild"):
        prepare(folder, tmp_path / "without", SMALL, workers=1)
    data = prepare(folder, tmp_path / "p", SMALL, workers=1)
    assert "could be scans" not in capsys.readouterr().out
    assert data.split.patients() == set("01234")
    assert data.about["patients_csv"] == {name: name[0] for name in names}
    assert {case["named_by"] for case in data.about["cases"].values()} == {"patients.csv"}
    (folder / "patients.csv").write_text("\n".join(["patient,case", *(f"{name[0]},{name}" for name in names[::-1])]))
    prepare(folder, tmp_path / "p", SMALL, workers=1)  # another order of lines and columns says the same
    (folder / "patients.csv").write_text("\n".join(["case,patient", *rows[:-1], "4_2,x"]))
    with pytest.raises(UnetlibError, match=r"patients\.csv has changed for 1 case \(4_2\)"):
        prepare(folder, tmp_path / "p", SMALL, workers=1)
    (folder / "patients.csv").unlink()
    with pytest.raises(UnetlibError, match=r"patients\.csv has changed for 10 cases"):
        prepare(folder, tmp_path / "p", SMALL, workers=1)
    assert len(prepare(folder, tmp_path / "p", SMALL, workers=1, rebuild=True).split.patients()) == 10


def test_a_scan_that_is_there_under_two_names_counts_once_and_both_patients_are_one(cohort, tmp_path, capsys):
    """A second scan of each of the two lies there, too: neither may land on another side than the first."""
    names = ["TCGA_A_A_20000101", "TCGA_A_A_20010101", "TCGA_Z_Z_20010101", *(f"S{number}" for number in range(7))]
    folder = as_cases(cohort, tmp_path / "data", names)
    shutil.copytree(folder / names[0], folder / "copy")
    for kind in ("flair", "seg"):
        image = nib.load(folder / "copy" / f"{names[0]}_{kind}.nii.gz")
        voxels = np.asarray(image.dataobj, np.float32) + 0.0
        nib.save(nib.Nifti1Image(voxels, image.affine), folder / "copy" / f"TCGA_Z_Z_20000101_{kind}.nii")
        (folder / "copy" / f"{names[0]}_{kind}.nii.gz").unlink()
    for seed in range(4):
        data = prepare(folder, tmp_path / f"{seed}", SMALL.but(split_seed=seed), workers=1)
        assert "TCGA_Z_Z_20000101" not in data.about["cases"]
        assert data.about["cases"]["TCGA_Z_Z_20010101"]["patient"] == "TCGA_A_A"
        assert len(data.split.patients()) == 8
    assert f"left out TCGA_Z_Z_20000101: its image has the same voxels as that of {names[0]}" in capsys.readouterr().out
    prepare(folder, tmp_path / "0", SMALL, workers=1)
    assert "reused" in capsys.readouterr().out
    with pytest.raises(UnetlibError, match=r"TCGA_Z_Z_20000101: its image has the same voxels.*--strict"):
        prepare(folder, tmp_path / "strict", SMALL, workers=1, strict=True)


def test_files_compressed_or_named_anew_are_no_change_and_a_voxel_is(cohort, tmp_path, capsys):
    folder = as_cases(cohort, tmp_path / "data", [f"S{number}" for number in range(10)])
    before = prepare(folder, tmp_path / "p", SMALL, workers=1)
    for path in folder.glob("*/*.nii.gz"):
        image = nib.load(path)
        array = np.asarray(image.dataobj, np.float32)[::-1]
        mirrored = image.affine @ nib.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], array.shape)
        nib.save(nib.Nifti1Image(array, mirrored), path.with_name(path.name.removesuffix(".gz")))
        path.unlink()
    prepare(folder, tmp_path / "p", SMALL, workers=1)
    assert "reused" in capsys.readouterr().out
    again = prepare(folder, tmp_path / "q", SMALL, workers=1)
    assert again.contents == before.contents
    assert again.digest("sha256") != before.digest("sha256")
    mask = folder / "S3" / "S3_seg.nii"
    image = nib.load(mask)
    for value in (1, 0):  # another label is a change as well
        array = np.asarray(image.dataobj).copy()
        array[tuple(np.argwhere(array == 4)[0])] = value
        nib.save(nib.Nifti1Image(array, image.affine), mask)
        with pytest.raises(UnetlibError, match=r"other data: 1 case .*\(S3\)"):
            prepare(folder, tmp_path / "p", SMALL, workers=1)


def test_a_folder_of_version_0_3_opens_is_reused_and_told_as_such(cohort, prepared, tmp_path, capsys):
    assert "made by unetlib 0.3 or older" in str(Prepared.open(as_03(shutil.copytree(prepared, tmp_path / "p"))))
    assert f"made by unetlib {__version__}" in str(Prepared.open(prepared))
    old, new = Prepared.open(tmp_path / "p"), Prepared.open(prepared)
    assert (
        old.contents["data"] == new.digest("sha256") == digest({n: c["sha256"] for n, c in old.about["cases"].items()})
    )
    prepare(cohort, tmp_path / "p", SMALL, workers=1)
    assert "reused" in capsys.readouterr().out


def test_a_folder_of_version_0_3_keeps_its_patients_and_says_whose_scans_it_divides(cohort, tmp_path, capsys):
    folder = as_cases(cohort, tmp_path / "data", SCANS)
    data = prepare(folder, tmp_path / "p", SMALL, workers=1)
    as_03(tmp_path / "p", {name: name for name in SCANS})
    Split(tuple(SCANS[:7]), (SCANS[7],), tuple(SCANS[8:])).save(tmp_path / "p" / "split.json")
    again = prepare(folder, tmp_path / "p", SMALL, workers=1)
    assert again.split.patients() == set(SCANS)
    assert "scans of 1 patient (UPENN-GBM-00003) are in two parts" in " ".join(capsys.readouterr().out.split())
    assert prepare(folder, tmp_path / "p", SMALL, workers=1, rebuild=True).split == data.split


def test_a_rebuild_that_is_stopped_goes_on_with_its_split(cohort, tmp_path, monkeypatch):
    names = tuple(f"BraTS2021_{n:05d}" for n in range(10))
    folder, own = tmp_path / "p", Split(names[:7], names[7:8], names[8:])
    own.save(folder / "split.json")
    prepare(cohort, folder, SMALL, workers=1)
    for recipe, split in ((SMALL.but(image_size=48), own), (SMALL.but(split_seed=5), None)):
        monkeypatch.setattr(preparing, "write_array_header_1_0", None)  # killed when the first array is written
        with pytest.raises(TypeError):
            prepare(cohort, folder, recipe, workers=1, rebuild=True)
        monkeypatch.undo()
        assert not (folder / "prepared.json").exists()
        drawn = Split.load(folder / "split.json")
        assert drawn == own if split else drawn != own
        assert prepare(cohort, folder, recipe, workers=1, rebuild=True).split == drawn


def test_new_times_of_a_case_that_is_left_out_are_no_change(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "data")
    shutil.copytree(tmp_path / "data" / "BraTS2021_00003", tmp_path / "data" / "BraTS2021_00077")
    for path in (tmp_path / "data" / "BraTS2021_00077").iterdir():
        path.rename(path.with_name(path.name.replace("00003", "00077")))
    assert "BraTS2021_00077" in prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1).about["left_out"]
    for path in (tmp_path / "data").glob("*/*.nii.gz"):
        os.utime(path, (1, 1))
    prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)
    other = next((tmp_path / "data" / "BraTS2021_00077").glob("*flair*"))
    shutil.copy(next((cohort / "BraTS2021_00004").glob("*flair*")), other)
    with pytest.raises(UnetlibError, match=r"1 case added, removed or changed \(BraTS2021_00077\)"):
        prepare(tmp_path / "data", tmp_path / "p", SMALL, workers=1)


def unreadable(cohort, folder, number=3):
    """Copy patients, one of whom cannot be read; return the folder, the patient, and how to repair it.

    The file keeps its size and time, as one does that may not be read for a while.
    """
    shutil.copytree(cohort, folder)
    name = sorted(path.name for path in folder.iterdir())[number]
    (path,) = [path for path in (folder / name).iterdir() if "seg" not in path.name]
    good, time = path.read_bytes(), path.stat().st_mtime_ns

    def write(content):
        path.write_bytes(content)
        os.utime(path, ns=(time, time))

    write(bytes(len(good)))
    return folder, name, lambda: write(good)


def test_a_patient_who_could_not_be_read_is_tried_again(cohort, tmp_path, caplog):
    data, name, repair = unreadable(cohort, tmp_path / "data")
    prepare(data, tmp_path / "p", SMALL, workers=1)
    caplog.clear()
    assert name in prepare(data, tmp_path / "p", SMALL, workers=1).about["left_out"]
    assert f"left out {name}" in caplog.text
    repair()
    with pytest.raises(UnetlibError, match=f"was prepared without {name}, who can be read now.*--rebuild"):
        prepare(data, tmp_path / "p", SMALL, workers=1)
    rebuilt = prepare(data, tmp_path / "p", SMALL, workers=1, rebuild=True)
    assert name in rebuilt.about["cases"]


def test_what_a_user_should_know_of_the_data_is_said(cohort, tmp_path, caplog):
    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    shutil.copy(next(data.rglob("*_flair.nii.gz")), data / "something.nii.gz")
    prepare(data, tmp_path / "p", SMALL, workers=1)
    assert "something.nii.gz" in caplog.text
