import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import BEST, write_patient
from tests.test_patients import style
from unetlib.data.slices import Window, image_to_slices, slices_to_volume
from unetlib.data.volumes import Source, Volume, read_volume
from unetlib.prediction import predictor as predictors
from unetlib.prediction import scans
from unetlib.prediction.decision import Decision
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Predictor
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.15, 0.3) @ np.diag([-0.9, -1.1, 3.0]), [12.5, -7, 40]
)


@pytest.fixture
def image(tmp_path):
    name = write_patient(tmp_path, 50)
    return tmp_path / name / f"{name}_flair.nii.gz"


def save_as(image, path, affine=None, axes=None, dtype=None):
    loaded = nib.load(image)
    result = nib.Nifti1Image(np.asarray(loaded.dataobj), loaded.affine if affine is None else affine)
    if axes:
        codes = nib.orientations.axcodes2ornt(axes)
        result = result.as_reoriented(
            nib.orientations.ornt_transform(nib.orientations.io_orientation(result.affine), codes)
        )
    if dtype:
        result.set_data_dtype(dtype)
    result.header["descrip"] = b"from the scanner"
    result.header.set_xyzt_units("mm", "sec")
    nib.save(result, path)
    return path


def test_the_mask_has_the_shape_affine_and_header_of_the_image(trained, image, tmp_path):
    path = save_as(image, tmp_path / "oblique.nii.gz", OBLIQUE)
    (written,) = predict(trained, [path], tmp_path / "out", device="cpu")
    before, after = nib.load(path), nib.load(written)
    assert written.name == "oblique_mask.nii.gz"
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    for key in before.header:
        if key not in ("datatype", "bitpix", "scl_slope", "scl_inter", "cal_max", "cal_min", "vox_offset", "descrip"):
            np.testing.assert_array_equal(after.header[key], before.header[key], err_msg=key)
    assert after.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(after.dataobj))) <= {0, 1}


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "SAL", "IRP"])
@pytest.mark.parametrize("affine", [None, OBLIQUE])
def test_a_turned_image_gets_the_same_mask_turned(trained, image, tmp_path, axes, affine):
    straight = save_as(image, tmp_path / "straight.nii.gz", affine)
    turned = save_as(image, tmp_path / "turned.nii.gz", affine, axes)
    masks = predict(trained, [straight, turned], tmp_path / "out", device="cpu")
    first, second = (read_volume(Source((path,))) for path in masks)
    assert first.voxels.sum() > 0
    np.testing.assert_array_equal(first.voxels, second.voxels)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)


@pytest.mark.parametrize("shape", [(33, 47, 2), (64, 20, 3), (96, 96, 1)])
def test_any_shape_gets_a_mask_of_that_shape(trained, tmp_path, shape):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(shape).astype(np.float32), OBLIQUE), path)
    (written,) = predict(trained, [path], tmp_path / "out", device="cpu")
    assert nib.load(written).shape == shape


def test_probabilities_are_written_on_request_and_agree_with_the_mask(trained, image, tmp_path):
    mask, probability = predict(trained, [image], tmp_path / "out", probabilities=True, device="cpu")
    p = np.asarray(nib.load(probability).dataobj)
    assert p.dtype == np.float32
    assert 0 <= p.min() < p.max() <= 1
    np.testing.assert_array_equal(p >= 0.5, np.asarray(nib.load(mask).dataobj) == 1)


def test_a_scaled_integer_image_is_read_in_its_real_values_and_written_unscaled(trained, image, tmp_path):
    scaled = nib.load(image)
    scaled = nib.Nifti1Image(np.asarray(scaled.dataobj) * 0.37 - 5, scaled.affine)
    scaled.set_data_dtype(np.int16)
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    plain, of_scaled = predict(trained, [image, tmp_path / "scaled.nii.gz"], tmp_path / "out", device="cpu")
    a, b = (np.asarray(nib.load(path).dataobj) for path in (plain, of_scaled))
    assert (a != b).mean() < 0.001  # min-max removes the scale, up to its rounding
    assert b.max() == 1


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (np.ones((8, 8, 4), complex), "the volume holds voxels of type complex128; real numbers"),
        (np.full((8, 8, 4), "1"), "the volume holds voxels of type <U1; real numbers"),
        (3, r"a volume of shape \(\) was given to a network for 1 sequence"),
        (None, r"a volume of shape \(\) was given to a network for 1 sequence"),
        (np.full((8, 8, 4), -1e300), r"the volume holds values as large as 1e\+300; numbers of up to 1e\+30 were"),
    ],
)
def test_an_array_that_is_no_volume_is_a_sentence(trained, voxels, words):
    with pytest.raises(UnetlibError, match=words):
        Predictor.open(trained, "cpu").volume(voxels)


def test_slices_of_another_kind_or_number_of_channels_are_a_sentence(trained):
    predictor = Predictor.open(trained, "cpu")
    with pytest.raises(UnetlibError, match="slices are a ndarray; a torch tensor was expected"):
        predictor.slices(np.ones((1, 1, 32, 32), np.float32))
    words = r"\(1, 4, 32, 32\) was given to a network for 1 input channel; \(N, 1, ...\) was expected"
    with pytest.raises(UnetlibError, match=words):
        predictor.slices(torch.ones(1, 4, 32, 32))


def test_the_members_of_an_ensemble_may_have_other_splits_but_not_other_slices(trained):
    one, other, ones = Predictor.open(trained, "cpu"), Predictor.open(trained, "cpu"), torch.ones(1, 1, 32, 32)
    other.recipe = one.recipe.but(split_seed=9)
    assert torch.equal(predictors.Ensemble([one, other]).slices(ones), one.slices(ones))
    other.recipe = one.recipe.but(normalise="median-volume")
    with pytest.raises(UnetlibError, match="prepare their slices differently"):
        predictors.Ensemble([one, other]).slices(ones)


def test_slices_may_be_whole_numbers(trained):
    predictor, ones = Predictor.open(trained, "cpu"), torch.ones(1, 1, 32, 32)
    assert torch.equal(predictor.slices(ones.to(torch.int32)), predictor.slices(ones))


def test_a_number_of_threads_is_checked_before_any_image_is_read(trained, tmp_path):
    with pytest.raises(UnetlibError, match="threads is 100000; 1 to"):
        predict(trained, [tmp_path / "missing.nii"], tmp_path / "out", device="cpu", threads=100000)


def test_batching_changes_nothing(trained, image, monkeypatch):
    predictor = Predictor.open(trained, "cpu")
    voxels = read_volume(Source((image,))).voxels
    together = predictor.volume(voxels)
    monkeypatch.setitem(predictors.VALIDATION_BATCH, 2, 1)
    np.testing.assert_allclose(predictor.volume(voxels), together, atol=1e-6)


def test_one_channel_of_a_4d_image_can_be_named(trained, image, tmp_path):
    flair = np.asarray(nib.load(image).dataobj)
    nib.save(nib.Nifti1Image(np.stack([flair, flair * 0 + 7], 3), nib.load(image).affine), tmp_path / "4d.nii.gz")
    with pytest.raises(UnetlibError, match="4-D"):
        predict(trained, [tmp_path / "4d.nii.gz"], tmp_path / "out", device="cpu")
    written = predict(trained, [image, tmp_path / "4d.nii.gz"][1:], tmp_path / "out", channel=0, device="cpu")
    plain = predict(trained, [image], tmp_path / "out", device="cpu")
    np.testing.assert_array_equal(nib.load(written[0]).dataobj, nib.load(plain[0]).dataobj)


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (np.full((8, 8, 4), np.nan, np.float32), "256 NaN or infinite voxels"),
        (np.full((8, 8, 4), 3, np.int16), "is constant"),
        (np.zeros((8, 8), np.int16), "2-D"),
        (np.zeros((8, 8, 4), np.complex64), "complex64"),
    ],
)
def test_an_image_that_cannot_be_used_is_a_sentence_and_leaves_nothing(trained, tmp_path, voxels, words):
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "bad.nii.gz")
    with pytest.raises(UnetlibError, match=words):
        predict(trained, [tmp_path / "bad.nii.gz"], tmp_path / "out", device="cpu")
    assert not list(tmp_path.glob("out/*"))


def test_images_of_one_name_are_refused_and_the_others_predicted(trained, image, tmp_path):
    (tmp_path / "b").mkdir()
    twin, other = save_as(image, tmp_path / "b" / image.name.upper()), save_as(image, tmp_path / "other.nii")
    with pytest.raises(UnetlibError, match=r"^2 of 3 images got no mask") as caught:
        predict(trained, [image, twin, other], tmp_path / "out", device="cpu")
    assert f"{image} and {twin} give files of the same name" in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other_mask.nii.gz"]


def test_no_image_of_the_call_is_overwritten(trained, image, tmp_path):
    """`a_mask` may be an image, and is then no place for the mask of `a`."""
    one, other = save_as(image, tmp_path / "a.nii.gz"), save_as(image, tmp_path / "a_mask.nii.gz")
    before = other.read_bytes()
    for images in ([one, other], [other, one]):
        with pytest.raises(UnetlibError, match=r"a_mask.nii.gz would overwrite an image of this call"):
            predict(trained, images, tmp_path, overwrite=True, device="cpu")
        assert other.read_bytes() == before
    assert (tmp_path / "a_mask_mask.nii.gz").exists()


def test_a_mask_that_was_cut_short_is_made_again(trained, image, tmp_path):
    (mask,) = predict(trained, [image], tmp_path / "out", device="cpu")
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-20])
    predict(trained, [image], tmp_path / "out", device="cpu")
    assert mask.read_bytes() == whole


def test_a_name_too_long_for_a_mask_keeps_no_other_from_its_mask(trained, image, tmp_path):
    (tmp_path / "in").mkdir()
    named = save_as(image, tmp_path / "in" / f"{'n' * 215}.nii.gz")
    other = save_as(image, tmp_path / "other.nii.gz")
    with pytest.raises(UnetlibError, match="its name is too long for the name of a mask"):
        predict(trained, [named, other], tmp_path / "out", device="cpu")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other_mask.nii.gz"]


def test_one_image_given_twice_is_predicted_once(trained, image, tmp_path, capsys):
    (mask,) = predict(trained, [image, image], tmp_path / "out", device="cpu")
    assert mask.exists()
    assert " 1/1 " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("images", [[], ()])
def test_no_image_is_a_sentence(trained, tmp_path, images):
    with pytest.raises(UnetlibError, match="no image was given"):
        predict(trained, images, tmp_path / "out", device="cpu")


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_one_image_need_not_be_in_a_list(trained, image, tmp_path, kind):
    (mask,) = predict(str(trained), kind(image), str(tmp_path / "out"), device="cpu")
    assert mask.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"images": 3}, "3 was given where a path was expected"),
        ({"images": [None]}, "None was given where a path was expected"),
        ({"images": None}, "predict: images is None; list was expected"),
        ({"out": None}, "predict: out is None; Path was expected"),
        ({"out": 3}, "3 was given where a path was expected"),
        ({"channel": "0"}, "predict: channel is '0'; None or int was expected"),
        ({"overwrite": "no"}, "predict: overwrite is 'no'; bool was expected"),
        ({"threads": 1.5}, "predict: threads is 1.5"),
        ({"device": None}, "predict: device is None; str was expected"),
        ({"assume": 3}, "predict: assume is 3"),
        ({"run": 3}, "predict: run is 3; Path or Run or Sequence or str was expected"),
        ({"run": None}, "predict: run is None"),
        ({"run": [None]}, "None was given where a path was expected"),
    ],
)
def test_an_argument_of_another_type_is_a_sentence(trained, image, tmp_path, given, words):
    with pytest.raises(UnetlibError, match=words):
        predict(**({"run": trained, "images": [image], "out": tmp_path / "out", "device": "cpu"} | given))


def test_a_file_that_exists_is_not_overwritten_unasked(trained, image, tmp_path):
    expert = tmp_path / "out" / image.name.replace(".nii.gz", "_mask.nii.gz")
    expert.parent.mkdir()
    expert.write_bytes(b"days of work")
    with pytest.raises(UnetlibError, match="exists already"):
        predict(trained, [image], tmp_path / "out", device="cpu")
    assert expert.read_bytes() == b"days of work"
    predict(trained, [image], tmp_path / "out", overwrite=True, device="cpu")
    assert nib.load(expert).shape == nib.load(image).shape


def test_no_probability_of_an_earlier_mask_stays_beside_a_new_one(trained, image, tmp_path, capsys):
    out, own = tmp_path / "out", tmp_path / "image.nii.gz"
    shutil.copy(image, own)
    mask, probability = predict(trained, [own], out, probabilities=True, device="cpu")
    assert predict(trained, [own], out, device="cpu") == [mask]
    assert probability.exists()  # of the same weights and image
    save_as(image, own, OBLIQUE)
    mask.unlink()
    with pytest.raises(UnetlibError, match=rf"{probability.name} exists already, from other weights"):
        predict(trained, [own], out, device="cpu")
    assert predict(trained, [own], out, overwrite=True, device="cpu") == [mask]
    assert f"{probability} was of an earlier mask, and is removed" in capsys.readouterr().out
    assert not probability.exists()
    shutil.copy(image, probability)  # what another program has written is left alone
    assert predict(trained, [own], out, device="cpu") == [mask]
    assert probability.exists()


def test_given_again_it_makes_only_what_is_missing(trained, image, tmp_path, capsys):
    other = save_as(image, tmp_path / "other.nii.gz", OBLIQUE)
    first = predict(trained, [image, other], tmp_path / "out", probabilities=True, device="cpu")
    content = {path: path.read_bytes() for path in first}
    first[1].unlink()
    (tmp_path / "out" / f".tmp-999999999-{first[2].name}").touch()  # as a kill leaves it
    running = tmp_path / "out" / f".tmp-{os.getppid()}-{first[2].name}"  # of a call that writes there now
    running.touch()
    untouched = first[2].stat().st_mtime_ns
    assert predict(trained, [image, other], tmp_path / "out", probabilities=True, device="cpu") == first
    running.unlink()
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == content
    assert first[2].stat().st_mtime_ns == untouched
    assert "exists already" in capsys.readouterr().out


def test_a_mask_of_other_weights_or_of_another_image_is_not_taken_for_done(trained, run, image, tmp_path):
    predict(trained, [image], tmp_path / "out", device="cpu")
    with pytest.raises(UnetlibError, match="from other weights"):
        predict(run, [image], tmp_path / "out", device="cpu")
    save_as(image, image, OBLIQUE)
    with pytest.raises(UnetlibError, match="another image"):
        predict(trained, [image], tmp_path / "out", device="cpu")


def make_bad(folder, image, kind):
    """Return an image that cannot be predicted, named BAD, and the words that say why."""
    path, array = folder / "BAD.nii.gz", np.asarray(nib.load(image).dataobj)
    if kind == "missing":
        return path, "does not exist"
    if kind == "no image":
        path.write_bytes(b"not an image")
        return path, "BAD.nii.gz"
    if kind == "truncated":
        path.write_bytes(image.read_bytes()[:-2000])
        return path, "damaged"
    if kind == "wrong name":
        shutil.copy(image, folder / "BAD.tif")
        return folder / "BAD.tif", "is not named .nii or .nii.gz"
    if kind == "done by other weights":
        (folder / "out").mkdir()
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "out" / "BAD_mask.nii.gz")
        shutil.copy(image, path)
        return path, "exists already, from other weights"
    voxels = {"constant": array * 0, "4-D": np.stack([array] * 2, 3), "NaN": array * np.float32("nan")}[kind]
    nib.save(nib.Nifti1Image(voxels, OBLIQUE), path)
    return path, {"constant": "is constant", "4-D": "is 4-D", "NaN": "NaN or infinite"}[kind]


@pytest.mark.parametrize(
    "kind", ["missing", "no image", "truncated", "wrong name", "done by other weights", "constant", "4-D", "NaN"]
)
def test_an_image_that_cannot_be_used_keeps_no_other_from_its_mask(trained, image, tmp_path, capsys, kind):
    (tmp_path / "in").mkdir()
    first, last = (save_as(image, tmp_path / "in" / name) for name in ("a.nii", "b.nii.gz"))
    bad, reason = make_bad(tmp_path, image, kind)
    with pytest.raises(UnetlibError, match=r"^1 of 3 images got no mask: ") as caught:
        predict(trained, [first, bad, last], tmp_path / "out", device="cpu")
    assert "BAD" in str(caught.value)
    assert reason in str(caught.value)
    assert {"a_mask.nii.gz", "b_mask.nii.gz"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert " 3/3 " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.nii.gz.part", None, "a.nii.gz.part is not named .nii or .nii.gz. It begins like NIfTI: rename it"),
        ("a.dcm", bytes(128) + b"DICM", "it is DICOM. Convert the whole series"),
        ("a.mat", bytes(range(256)), "Convert it, or copy"),
        ("missing", b"", "missing does not exist"),
        ("folder", b"", "folder holds no patient: it holds no file at all"),
        ("x" * 300 + ".nii", b"", "cannot be reached (File name too long). Check its name"),
    ],
)
def test_what_is_not_named_like_an_image_gets_advice_by_what_it_is(trained, image, tmp_path, name, content, told):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content != b"":
        (tmp_path / name).write_bytes(content or image.read_bytes())
    with pytest.raises(UnetlibError, match=r"^1 of 2 images got no mask: ") as caught:
        predict(trained, [tmp_path / name, image], tmp_path / "out", device="cpu")
    assert told in str(caught.value)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_header_and_voxels_of_a_pair_are_one_image(trained, image, tmp_path):
    loaded = nib.load(image)
    nib.save(nib.Nifti1Pair(np.asarray(loaded.dataobj), loaded.affine), tmp_path / "pair.img")
    written = predict(trained, [tmp_path / "pair.hdr", tmp_path / "pair.img"], tmp_path / "out", device="cpu")
    assert written == [tmp_path / "out" / "pair_mask.nii.gz"]


def test_of_several_images_that_cannot_be_used_each_is_named(trained, image, tmp_path):
    four = save_as(image, tmp_path / "four.nii")
    nib.save(nib.Nifti1Image(np.stack([np.asarray(nib.load(image).dataobj)] * 2, 3), OBLIQUE), four)
    with pytest.raises(UnetlibError, match=r"^2 of 3 images got no mask:") as caught:
        predict(trained, [tmp_path / "none.nii", image, four], tmp_path / "out", channel=1, device="cpu")
    assert "\n- " + str(tmp_path / "none.nii") + " does not exist" in str(caught.value)
    assert "4-D file with at least 2 channels" in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["four_mask.nii.gz"]


def test_a_file_in_the_place_of_the_folder_is_said_to_be_one(trained, image):
    with pytest.raises(UnetlibError, match="A file stands where a folder was expected"):
        predict(trained, [image], image, device="cpu")


def test_weights_that_are_not_numbers_give_a_sentence_not_an_empty_mask(trained, image, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    content = torch.load(trained / BEST, weights_only=True)
    content["model"]["head.bias"] *= float("nan")
    torch.save(content, tmp_path / "run" / BEST)
    with pytest.raises(UnetlibError, match="NaN"):
        predict(tmp_path / "run", [image], tmp_path / "out", device="cpu")


def test_missing_and_truncated_files_are_sentences(trained, image, tmp_path):
    with pytest.raises(UnetlibError, match="does not exist"):
        predict(trained, [tmp_path / "none.nii.gz"], tmp_path / "out", device="cpu")
    image.write_bytes(image.read_bytes()[:-2000])
    with pytest.raises(UnetlibError, match="damaged"):
        predict(trained, [image], tmp_path / "out", device="cpu")
    with pytest.raises(UnetlibError, match="Train first"):
        predict(tmp_path / "norun", [image], tmp_path / "out", device="cpu")


def test_the_spacing_of_an_oblique_volume_is_the_length_of_its_axes():
    assert Volume(np.ones((1, 1, 1)), OBLIQUE, OBLIQUE, nib.Nifti1Header()).spacing == pytest.approx((0.9, 1.1, 3.0))


def test_with_mirror_neighbours_and_crop_a_volume_is_predicted_as_by_hand(untuned):
    voxels = np.random.default_rng(0).normal(100, 10, (40, 48, 5))
    model, recipe, _ = Run.of(untuned).load()
    assert recipe.mirror
    assert recipe.crop
    small, found = image_to_slices(voxels, recipe), []
    for z in range(5):
        three = torch.stack([small[max(z - 1, 0), 0], small[z, 0], small[min(z + 1, 4), 0]])[None]
        with torch.no_grad():
            straight = model.probabilities(three)[0, 0].numpy()
            mirrored = model.probabilities(torch.from_numpy(np.ascontiguousarray(three.numpy()[..., ::-1])))[0, 0]
        found.append((straight + mirrored.numpy()[:, ::-1]) / 2)
        assert np.abs(straight - found[-1]).max() > 1e-3  # the mirror matters
    by_hand = torch.from_numpy(np.stack(found))[:, None]
    predictor = Predictor.open(untuned, "cpu", decision=Decision(0.5))
    torch.testing.assert_close(predictor.all_slices(voxels), by_hand, rtol=1e-4, atol=1e-5)
    window = Window.of(voxels, recipe)
    assert window != Window.whole(voxels.shape)
    expected = slices_to_volume(by_hand, voxels.shape, window)[0]
    np.testing.assert_allclose(predictor.volume(voxels)[0], expected, rtol=1e-4, atol=1e-5)


def test_with_mirror_a_mirrored_slice_is_predicted_as_the_mirror_image(untuned):
    predictor = Predictor.open(untuned, "cpu", decision=Decision(0.5))
    slices = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, mirrored = predictor.slices(slices), predictor.slices(slices.flip(-1))
    torch.testing.assert_close(mirrored, found.flip(-1), rtol=1e-4, atol=1e-6)


def test_cut_to_the_head_it_does_not_matter_where_in_the_picture_the_head_is(untuned):
    head = np.zeros((70, 80, 4), np.int16)
    head[10:40, 15:45] = np.random.default_rng(0).integers(80, 120, (30, 30, 4))
    predictor = Predictor.open(untuned, "cpu", decision=Decision(0.5))
    moved = predictor.volume(np.roll(head, (20, 25), (0, 1)))[0]
    np.testing.assert_allclose(moved, np.roll(predictor.volume(head)[0], (20, 25), (0, 1)), atol=1e-6)
    assert moved.max() > 0
    assert not moved[:25].any()  # there the window does not reach


def test_an_image_that_breaks_what_no_message_foresees_does_not_keep_the_others(trained, tmp_path, monkeypatch):
    good, bad = style(tmp_path, "a"), style(tmp_path, "b")
    real = scans.read_volume

    def read(source):
        if source.paths[0].name.startswith("b"):
            raise ZeroDivisionError("odd")
        return real(source)

    monkeypatch.setattr(scans, "read_volume", read)
    images = [folder / f"{id}_flair.nii.gz" for folder, id in ((bad, "b"), (good, "a"))]
    with pytest.raises(UnetlibError, match=r"1 of 2 images got no mask.*b_flair.nii.gz: it cannot be read .ZeroDiv"):
        predict(trained, images, tmp_path / "out", device="cpu")
    assert (tmp_path / "out/a_flair_mask.nii.gz").exists()
