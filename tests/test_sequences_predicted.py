"""`predict` for several sequences and regions: the files of one patient or a folder, and what is written."""

import shutil
import tarfile

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import BEST, LPS, SMALL
from tests.test_cli import fails, run_cli
from tests.test_patients import kaggle
from unetlib.data.patients import find_cases, read_case, read_regions
from unetlib.data.prepare import prepare
from unetlib.data.volumes import read_volume
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import read_volumes, results_table
from unetlib.prediction import scans, tuning
from unetlib.prediction.decision import SIZES_ML, THRESHOLDS, Decision, Decisions, read_decision
from unetlib.prediction.predict import predict
from unetlib.prediction.predictor import Ensemble, Predictor
from unetlib.prediction.tuning import tune
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json, write_json

FOUR = ("flair", "t1", "t1ce", "t2")
NAMES = ("whole", "core", "enhancing")
RECIPE = SMALL.but(modalities=" ".join(FOUR), regions=" ".join(NAMES), loss="dice+bce", learning_rate=1e-2, epochs=20)


def write_four(folder, index, shape=(40, 48, 6)):
    """Write four noisy sequences of a box in a box in a box, labels 2, 1 and 4; every third patient has no label 4."""
    rng, name = np.random.default_rng(index), f"BraTS2021_{index:05d}"
    x, y = rng.integers(4, 18, 2)
    mask = np.zeros(shape, np.uint8)
    for z in range(5):
        mask[x + z : x + 18, y : y + 16 + 2 * z, z] = 2
        mask[x + 4 + z : x + 14, y + 3 : y + 13, z] = 1
        mask[x + 7 : x + 12, y + 5 : y + 11, z] = 4 if index % 3 else 1
    bright = {"flair": (1, 2, 4), "t1": (2,), "t1ce": (4,), "t2": (1, 4)}
    (folder / name).mkdir(parents=True)
    for kind in FOUR:
        image = rng.normal(100, 10, shape) + 60 * np.isin(mask, bright[kind])
        nib.save(nib.Nifti1Image(image.astype(np.int16), LPS), folder / name / f"{name}_{kind}.nii.gz")
    nib.save(nib.Nifti1Image(mask, LPS), folder / name / f"{name}_seg.nii.gz")
    return folder / name


def files_of(patient, *kinds):
    return {kind: patient / f"{patient.name}_{kind}.nii.gz" for kind in kinds or FOUR}


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Ten patients with four sequences; do not change them."""
    folder = tmp_path_factory.mktemp("four") / "data"
    for index in range(10):
        write_four(folder, index)
    return folder


@pytest.fixture(scope="module")
def make_run(patients, tmp_path_factory):
    """A function that returns a finished run of a recipe on these patients; do not change its files."""
    runs = {}

    def make(**changes):
        key = str(sorted(changes.items()))
        if key not in runs:
            folder, recipe = tmp_path_factory.mktemp("run"), RECIPE.but(**changes)
            prepare(patients, folder / "prepared", recipe, workers=1)
            train(folder / "prepared", folder / "run", recipe, device="cpu", threads=1)
            runs[key] = Run(folder / "run")
        return runs[key]

    return make


@pytest.fixture
def run(make_run):
    """A run that sees four sequences and finds three regions; do not change it."""
    return make_run()


@pytest.fixture
def patient(tmp_path):
    """A patient whom no run knows."""
    return write_four(tmp_path / "new", 50)


def test_the_files_of_a_patient_give_one_label_map_and_a_probability_for_each_region(run, patient, tmp_path):
    written = predict(run, files_of(patient), tmp_path / "out", probabilities=True, device="cpu")
    kinds = ["mask", *(f"{name}_probability" for name in NAMES)]
    assert [path.name for path in written] == [f"{patient.name}_{kind}.nii.gz" for kind in kinds]
    labels, *found = map(voxels, written)
    expected = np.zeros(labels.shape, np.uint8)
    for p, label in zip(found, (2, 1, 4), strict=True):
        expected[p >= 0.5] = label
    np.testing.assert_array_equal(labels, expected)
    assert set(np.unique(labels)) == {0, 1, 2, 4}
    assert nib.load(written[0]).header["cal_max"] == 4
    truth = voxels(patient / f"{patient.name}_seg.nii.gz")
    regions = (1, 2, 4), (1, 4), (4,)  # each is most like its own reference, unless two are swapped
    for place, values in enumerate(regions):
        one, others = np.isin(labels, values), [np.isin(truth, own) for own in regions]
        assert np.argmax([2 * (one & own).sum() / (one.sum() + own.sum()) for own in others]) == place


def test_an_orientation_that_is_assumed_for_any_sequence_tells_masks_apart(patient):
    volume = nib.load(patient / f"{patient.name}_t2.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), None), patient / f"{patient.name}_t2.nii.gz")
    readers = [scans.Reader(FOUR, assume=assume) for assume in ("ras", "lps")]
    marks = [reader.fingerprint(reader.find(files_of(patient))[0][0]) for reader in readers]
    assert [mark[-1] for mark in marks] == ["ras", "lps"]


def test_a_scan_that_shares_any_sequence_with_another_is_scored_once(run, tmp_path, capsys):
    first, second = (write_four(tmp_path / "other", index) for index in (50, 51))
    shutil.copy(*(patient / f"{patient.name}_t2.nii.gz" for patient in (first, second)))
    assert evaluate(run, data=tmp_path / "other", device="cpu")["cases"] == 1
    assert f"has the same voxels as that of {first.name}" in capsys.readouterr().out


def test_the_labels_are_those_of_the_training_data(patients, patient, tmp_path, make_run):
    other = tmp_path / "data"
    for index, folder in enumerate(sorted(patients.iterdir())):
        id = f"BraTS-GLI-{index:05d}-000"
        (other / id).mkdir(parents=True)
        for kind in FOUR:
            shutil.copy(folder / f"{folder.name}_{kind}.nii.gz", other / id / f"{id}-{kind}.nii.gz")
        mask = nib.load(folder / f"{folder.name}_seg.nii.gz")
        labels = np.asarray(mask.dataobj).copy()
        labels[labels == 4] = 3
        nib.save(nib.Nifti1Image(labels, mask.affine), other / id / f"{id}-seg.nii.gz")
    recipe = RECIPE.but(regions="enhancing whole")
    prepare(other, tmp_path / "prepared", recipe, workers=1)
    train(tmp_path / "prepared", tmp_path / "run", recipe, device="cpu", threads=1)
    (mask,) = predict(tmp_path / "run", files_of(patient), tmp_path / "out", device="cpu")
    assert set(np.unique(voxels(mask))) == {0, 2, 3}


def test_regions_of_ones_own_have_a_mask_each(make_run, patient, tmp_path):
    run = make_run(regions="whole solid=1+4")
    written = predict(run, files_of(patient), tmp_path / "out", probabilities=True, device="cpu")
    kinds = ("whole_mask", "solid_mask", "whole_probability", "solid_probability")
    assert [path.name for path in written] == [f"{patient.name}_{kind}.nii.gz" for kind in kinds]
    for mask, probability in zip(written[:2], written[2:], strict=True):
        np.testing.assert_array_equal(voxels(mask), voxels(probability) >= 0.5)
        assert voxels(mask).max() == 1


def test_files_of_two_scans_that_would_have_one_name_are_refused(make_run, patient, tmp_path):
    """Region `a_solid` of p and region `solid` of p_a."""
    run = make_run(modalities="flair", regions="solid=1+4 a_solid=2")
    images = [
        shutil.copy(patient / f"{patient.name}_flair.nii.gz", tmp_path / name) for name in ("p.nii.gz", "p_a.nii.gz")
    ]
    with pytest.raises(UnetlibError, match="give files of the same name"):
        predict(run, images, tmp_path / "out", device="cpu")


def test_one_region_of_several_sequences_is_written_as_ever(make_run, patient, tmp_path):
    run = make_run(modalities="t1ce flair", regions="core")
    written = predict(run, files_of(patient, "flair", "t1ce"), tmp_path / "out", probabilities=True, device="cpu")
    assert [path.name for path in written] == [f"{patient.name}_{kind}.nii.gz" for kind in ("mask", "probability")]
    np.testing.assert_array_equal(voxels(written[0]), voxels(written[1]) >= 0.5)


def test_a_folder_gives_what_the_files_give_with_or_without_a_mask(run, patient, tmp_path):
    (of_files,) = predict(run, files_of(patient), tmp_path / "files", device="cpu")
    (with_mask,) = predict(run, patient, tmp_path / "with", device="cpu")
    (patient / f"{patient.name}_seg.nii.gz").unlink()
    (of_folder,) = predict(run, [patient], tmp_path / "folder", device="cpu")
    assert of_files.read_bytes() == of_folder.read_bytes() == with_mask.read_bytes()
    write_four(patient.parent, 51)
    both = predict(run, patient.parent, tmp_path / "both", device="cpu")
    assert [path.name for path in both] == ["BraTS2021_00050_mask.nii.gz", "BraTS2021_00051_mask.nii.gz"]
    assert both[0].read_bytes() == of_files.read_bytes()
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(patient.parent, "data")
    packed = predict(run, tmp_path / "data.tar", tmp_path / "packed", device="cpu")
    assert [path.read_bytes() for path in packed] == [path.read_bytes() for path in both]


def test_the_order_in_which_files_are_named_does_not_matter(run, patient, tmp_path):
    files = files_of(patient)
    (one,) = predict(run, files, tmp_path / "one", device="cpu")
    (other,) = predict(run, dict(reversed(files.items())), tmp_path / "other", device="cpu")
    assert one.read_bytes() == other.read_bytes()


def test_what_is_predicted_is_the_volume_of_all_sequences(run, patient, tmp_path):
    written = predict(run, patient, tmp_path / "out", probabilities=True, device="cpu")
    case = find_cases(patient, modalities=" ".join(FOUR)).cases[0]
    volume = read_case(case)[0]
    assert volume.voxels.shape == (4, 40, 48, 6)
    found = Predictor.open(run, "cpu").volume(volume.voxels)
    for path, region in zip(written[1:], found, strict=True):
        np.testing.assert_array_equal(voxels(path), volume.to_stored(region))


def test_a_sequence_on_another_grid_is_brought_to_that_of_the_first(run, patient, tmp_path, capsys):
    straight = voxels(predict(run, files_of(patient), tmp_path / "straight", device="cpu")[0])
    path = files_of(patient)["t2"]
    image = nib.load(path)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("PIR"))
    padded = np.pad(np.asarray(turned.dataobj), ((3, 0), (0, 0), (0, 2)))
    affine = turned.affine.copy()
    affine[:3, 3] -= 3 * affine[:3, 0]
    nib.save(nib.Nifti1Image(padded, affine), path)
    (mask,) = predict(run, files_of(patient), tmp_path / "out", device="cpu")
    assert "t2 resampled to the grid of flair" in capsys.readouterr().out
    assert nib.load(mask).shape == (40, 48, 6)
    np.testing.assert_array_equal(nib.load(mask).affine, nib.load(files_of(patient)["flair"]).affine)
    assert (voxels(mask) != straight).mean() < 0.01


@pytest.mark.parametrize("changes", [{"missing": "zero"}, {"drop_modalities": 0.3}])
@pytest.mark.parametrize("lacking", ["t1ce", "flair"])
def test_a_run_that_has_learned_to_do_without_a_sequence_says_which_is_missing(
    make_run, patient, tmp_path, capsys, changes, lacking
):
    run, files = make_run(regions="whole", **changes), files_of(patient)
    gone = files.pop(lacking)
    (mask,) = predict(run, files, tmp_path / "out", device="cpu")
    assert f"{patient.name}: without {lacking}; the network sees 0 there" in capsys.readouterr().out
    there = np.stack([read_volume(scans.Source((files[name],))).voxels * 1.0 for name in FOUR if name in files])
    empty = np.insert(there, FOUR.index(lacking), 0, axis=0)
    predictor = Predictor.open(run, "cpu")
    np.testing.assert_array_equal(voxels(mask) == 1, predictor.volume(empty.astype(np.float32))[0] >= 0.5)
    gone.unlink()
    assert predict(run, patient, tmp_path / "folder", device="cpu")[0].read_bytes() == mask.read_bytes()
    same = dict.fromkeys(("t1", "t2"), files["t2"])
    with pytest.raises(UnetlibError, match=r"t2\.nii\.gz was given as t1, but its name says t2"):
        predict(run, same, tmp_path / "same", device="cpu")


def test_a_run_that_needs_all_sequences_refuses_a_patient_who_lacks_one(run, patient, tmp_path):
    with pytest.raises(
        UnetlibError, match=r"t1ce of this patient was not given.* --image: .*t1ce=FILE.*--missing zero"
    ):
        predict(run, files_of(patient, "flair", "t1", "t2"), tmp_path / "out", device="cpu")
    with pytest.raises(UnetlibError, match="t1ce and t2 of this patient were not given"):
        predict(run, files_of(patient, "flair", "t1"), tmp_path / "out", device="cpu")
    files_of(patient)["t1ce"].unlink()
    write_four(patient.parent, 51)
    with pytest.raises(UnetlibError, match=r"^1 of 2 patients got no mask: BraTS2021_00050: it has no t1ce image"):
        predict(run, patient.parent, tmp_path / "out", device="cpu")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["BraTS2021_00051_mask.nii.gz"]


def test_given_again_only_what_is_missing_is_made_and_another_image_of_any_sequence_is_told(
    run, patient, tmp_path, capsys
):
    write_four(patient.parent, 51)
    first = predict(run, patient.parent, tmp_path / "out", probabilities=True, device="cpu")
    content, untouched = {path: path.read_bytes() for path in first}, first[0].stat().st_mtime_ns
    first[5].unlink()
    assert predict(run, patient.parent, tmp_path / "out", probabilities=True, device="cpu") == first
    assert {path: path.read_bytes() for path in first} == content
    assert first[0].stat().st_mtime_ns == untouched
    assert "exists already, from these weights and this patient" in capsys.readouterr().out
    for kind in FOUR:
        path, before = files_of(patient)[kind], files_of(patient)[kind].read_bytes()
        nib.save(nib.Nifti1Image(voxels(path) + np.int16(1), LPS), path)
        with pytest.raises(UnetlibError, match="exists already, from other weights, another decision or another image"):
            predict(run, files_of(patient), tmp_path / "out", device="cpu")
        path.write_bytes(before)
    predict(run, files_of(patient), tmp_path / "out", device="cpu")
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for kind, other in zip(FOUR, ("t1", "flair", "t1ce", "t2"), strict=True):
        shutil.copy(files_of(patient)[other], swapped / f"{patient.name}_{kind}.nii.gz")
    with pytest.raises(UnetlibError, match="another image"):
        predict(run, swapped, tmp_path / "out", device="cpu")
    predict(run, swapped, tmp_path / "out", overwrite=True, device="cpu")
    assert first[0].read_bytes() != content[first[0]]


def test_one_image_as_another_sequence_is_another_scan(make_run, patient, tmp_path):
    run, image = make_run(regions="whole", missing="zero"), tmp_path / "scan.nii.gz"
    shutil.copy(files_of(patient)["t1"], image)
    (mask,) = predict(run, {"t1": image}, tmp_path / "out", device="cpu")
    assert mask.name == "scan_mask.nii.gz"
    with pytest.raises(UnetlibError, match="another image"):
        predict(run, {"t2": image}, tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("P7_flair", "P7_t1"), "P7"),
        (("sub-01_ses-2_FLAIR", "sub-01_ses-2_T1w"), "sub-01_ses-2"),
        (("p7/FLAIR", "p7/T1"), "p7"),
        (("p7/T2_FLAIR", "p7/T1"), "p7"),
        (("flair-p7", "t1-p7"), "p7"),
        (("p7-tra.flair", "p7-tra.t1"), "p7-tra"),
        (("one", "two"), "one"),
        (("a/p7_flair", "a/t1"), "p7"),
        (("a/p7_flair", "p7/t1"), "p7"),
        (("BraTS-GLI-00001-100-t2f", "two"), "BraTS-GLI-00001-100"),
    ],
)
def test_masks_are_named_after_the_patient(make_run, patient, tmp_path, names, expected):
    run, files = make_run(modalities="flair t1", regions="whole"), {}
    for (kind, path), name in zip(files_of(patient, "flair", "t1").items(), names, strict=True):
        files[kind] = tmp_path / "in" / f"{name}.nii.gz"
        files[kind].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, files[kind])
    assert [path.name for path in predict(run, files, tmp_path / "out", device="cpu")] == [f"{expected}_mask.nii.gz"]


@pytest.mark.parametrize(
    "names",
    [
        ("BraTS2021_00001_flair", "BraTS2021_00002_t1"),
        ("BraTS2021_00001_flair", "UPENN-GBM-00006_11_T1"),
        ("BraTS-GLI-00001-100-t2f", "BraTS-GLI-00001-101-t1n"),
        ("a_flair", "b_t1"),
        ("a/flair", "b/t1"),
        ("a/BraTS2021_00001_flair", "b/t1"),
        ("imagesTr/a_0000", "imagesTr/b_0001"),
        ("sub-01_FLAIR", "sub-02_T1w"),
    ],
)
def test_files_of_two_patients_are_refused(make_run, patient, tmp_path, names):
    run, files = make_run(modalities="flair t1", regions="whole"), {}
    for (kind, path), name in zip(files_of(patient, "flair", "t1").items(), names, strict=True):
        files[kind] = tmp_path / "in" / f"{name}.nii.gz"
        files[kind].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, files[kind])
    with pytest.raises(UnetlibError, match="are of two patients by their names"):
        predict(run, files, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_images_that_lie_apart_are_refused(run, patient, tmp_path):
    path = files_of(patient)["t2"]
    affine = LPS.copy()
    affine[0, 3] = 200
    nib.save(nib.Nifti1Image(voxels(path), affine), path)
    with pytest.raises(UnetlibError, match=r"BraTS2021_00050: its t2 image shows 0% of the head"):
        predict(run, patient, tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: files | {"t1c": files["t1ce"]}, "'t1c' is not a sequence. Known are flair, t1, t1ce, t2"),
        (lambda files: files | {3: files["t1ce"]}, "3 is not a sequence"),
        (lambda files: {}, "a patient without an image was given"),
        (lambda files: files | {"t1": files["flair"].with_name("none.nii.gz")}, "none.nii.gz does not exist"),
        (lambda files: files | {"t1": files["flair"].parent}, "is a folder"),
        (lambda files: files | {"t1": None}, "None was given where a path was expected"),
        (lambda files: files | {"t1": files["flair"]}, "was given as t1, but its name says flair"),
        (lambda files: files | {"t1": files["flair"].with_name("BraTS2021_00050_seg.nii.gz")}, "its name says mask"),
        (lambda files: files["flair"], "is one image, and the run sees flair t1 t1ce t2. Name the images"),
        (lambda files: files["flair"].parents[1] / "empty", "empty holds no patient: it holds no file at all"),
    ],
)
def test_a_patient_who_cannot_be_used_is_a_sentence_and_the_others_get_their_masks(
    run, patient, tmp_path, change, words
):
    (patient.parent / "empty").mkdir()
    other = write_four(tmp_path / "other", 51)
    with pytest.raises(UnetlibError) as caught:
        predict(run, [change(files_of(patient)), other], tmp_path / "out", device="cpu")
    assert words in str(caught.value)
    if "expected" not in words:
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["BraTS2021_00051_mask.nii.gz"]


def test_copies_of_one_image_are_refused(run, patient, tmp_path):
    shutil.copy(files_of(patient)["t1"], files_of(patient)["t2"])
    with pytest.raises(UnetlibError, match=r"BraTS2021_00050: its t2 image has the voxels of its t1 image"):
        predict(run, patient, tmp_path / "out", device="cpu")


def test_a_channel_is_for_a_run_that_sees_one_sequence(run, patient, tmp_path):
    with pytest.raises(UnetlibError, match="a channel was given, but the run sees flair t1 t1ce t2"):
        predict(run, patient, tmp_path / "out", channel=0, device="cpu")


def test_a_run_for_one_sequence_takes_plain_files_folders_and_a_named_file(make_run, patient, tmp_path):
    run, image = make_run(modalities="t1ce", regions="enhancing"), files_of(patient)["t1ce"]
    (plain,) = predict(run, image, tmp_path / "plain", device="cpu")
    (named,) = predict(run, {"t1ce": str(image)}, tmp_path / "named", device="cpu")
    (folder,) = predict(run, patient, tmp_path / "folder", device="cpu")
    names = ["BraTS2021_00050_t1ce_mask.nii.gz"] * 2 + ["BraTS2021_00050_mask.nii.gz"]
    assert [path.name for path in (plain, named, folder)] == names
    assert plain.read_bytes() == named.read_bytes() == folder.read_bytes()
    t1, mask = files_of(patient)["t1"], patient / f"{patient.name}_seg.nii.gz"
    for other, what in ((t1, "t1"), ({"t1ce": t1}, "t1"), (mask, "mask")):
        with pytest.raises(UnetlibError, match=f"was given as t1ce, but its name says {what}"):
            predict(run, other, tmp_path / "out", device="cpu")
    for files in (files_of(patient, "flair", "t1ce"), files_of(patient, "flair")):
        with pytest.raises(UnetlibError, match=r"the run does not see flair, only t1ce\. Leave it out"):
            predict(run, files, tmp_path / "out", device="cpu")


def test_the_longest_name_of_a_mask_counts(make_run, patient, tmp_path):
    run = make_run(modalities="t1ce", regions="everything=1+2+4 b=4")
    image = shutil.copy(files_of(patient)["t1ce"], tmp_path / f"{'n' * 185}.nii.gz")
    with pytest.raises(UnetlibError, match="its name is too long for the name of a mask"):
        predict(run, image, tmp_path / "out", device="cpu")


def test_on_the_command_line(run, patient, tmp_path, capsys, monkeypatch):
    other, out = write_four(tmp_path / "other", 51), tmp_path / "out"
    words = [[f"{kind}={path}" for kind, path in files_of(one).items()] for one in (patient, other)]
    run_cli("predict", run, "--image", *words[0], "--image", *words[1], "--out", out, "--device", "cpu")
    (folder,) = predict(run, patient, tmp_path / "folder", device="cpu")
    assert (out / folder.name).read_bytes() == folder.read_bytes()
    assert (out / "BraTS2021_00051_mask.nii.gz").exists()
    run_cli("predict", run, "--out", tmp_path / "third", "--device", "cpu", patient)  # after the flags, too
    assert (tmp_path / "third" / folder.name).read_bytes() == folder.read_bytes()
    monkeypatch.chdir(patient)
    run_cli("predict", run, ".", "--out", tmp_path / "fourth", "--device", "cpu")
    assert (tmp_path / "fourth" / folder.name).read_bytes() == folder.read_bytes()
    assert "no image was given" in fails(capsys, "predict", run, "--out", out)
    assert "'t1c' is not a sequence" in fails(capsys, "predict", run, "--image", "t1c=a.nii.gz", "--out", out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["flair=a.nii", "flair=b.nii"], "flair was given twice, a.nii and b.nii"),
        (["flair="], "'flair=' was given; NAME=FILE was expected"),
        (["=a.nii"], "NAME=FILE was expected"),
        (["a.nii"], "NAME=FILE was expected"),
    ],
)
def test_words_that_are_no_sequence_with_its_file_are_errors_of_the_command_line(tmp_path, capsys, words, told):
    with pytest.raises(SystemExit) as caught:
        run_cli("predict", "run", "--image", *words, "--out", tmp_path / "out")
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modalities": "flair t1"}, "4 input channels for 3 regions, trained with modalities flair t1,"),
        ({"regions": "whole core"}, "4 input channels for 3 regions, trained with regions whole core,"),
        ({"modalities": "flair t1 t1ce t2", "regions": "core whole enhancing"}, "has regions whole core enhancing"),
        ({"neighbours": 1, "slices": "all"}, "weights of another run than .*neighbours: 0 -> 1"),
    ],
)
def test_a_checkpoint_of_other_sequences_or_regions_than_its_recipe_is_a_sentence(run, tmp_path, change, words):
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"))
    content = torch.load(copy.best, weights_only=True)
    content["recipe"] |= change
    torch.save(content, copy.best)
    with pytest.raises(UnetlibError, match=words):
        Predictor.open(copy, "cpu")


def test_weights_of_another_run_are_a_sentence(run, make_run, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"))
    shutil.copy(make_run(modalities="flair t1", regions="whole").best, copy.folder / BEST)
    with pytest.raises(UnetlibError, match=r"weights of another run .*modalities: flair t1 t1ce t2 -> flair t1,"):
        Predictor.open(copy, "cpu")


def test_runs_of_other_sequences_or_regions_of_the_same_number_are_not_averaged(make_run):
    runs = [make_run(modalities="flair t1", regions="whole"), make_run(modalities="t1ce flair", regions="core")]
    with pytest.raises(UnetlibError, match=r"cannot be averaged: they differ \(modalities: flair t1 -> t1ce flair"):
        Predictor.open(runs, "cpu")


@pytest.fixture(scope="module")
def tuned(patients, tmp_path_factory):
    """A run that chooses threshold and smallest component; do not change it."""
    folder, recipe = tmp_path_factory.mktemp("tuned"), RECIPE.but(slices="all", tune=True, train_fraction=0.4)
    prepare(patients, folder / "prepared", recipe, workers=1)
    train(folder / "prepared", folder / "run", recipe, device="cpu", threads=1)
    tune(folder / "run", "cpu")
    return Run(folder / "run")


def test_the_decision_of_each_region_has_the_highest_mean_dice_of_all(tuned, patients):
    cohort = find_cases(patients, modalities=" ".join(FOUR))
    predictor, tables = Predictor.open(tuned, "cpu", decision=Decision(0.5)), []
    for case in cohort.cases:
        if case.patient not in tuned.split.val:
            continue
        volume, truth = read_regions(case, tuned.recipe)
        found = predictor.volume(volume.voxels)
        table = np.zeros((3, len(THRESHOLDS), len(SIZES_ML)))
        for k, i, j in np.ndindex(table.shape):
            mask = Decision(THRESHOLDS[i], SIZES_ML[j], keep_largest=k == 0).mask(found[k], volume.spacing)
            size = mask.sum() + truth[k].sum()
            table[k, i, j] = 2 * (mask & truth[k]).sum() / size if size else 1
        tables.append(table)
    assert len(tables) == len(tuned.split.val)
    mean, content = np.mean(tables, axis=0), read_json(tuned.decision_file)
    decision = read_decision(tuned, tuned.recipe)
    assert [*decision.regions] == [*NAMES] == [*content["threshold"]]
    for k, name in enumerate(NAMES):
        one = decision.of(name)
        assert (one.threshold, one.smallest_ml) == (content["threshold"][name], content["smallest_ml"][name])
        chosen = mean[k, THRESHOLDS.index(one.threshold), SIZES_ML.index(one.smallest_ml)]
        assert chosen == pytest.approx(mean[k].max(), abs=1e-9)
        assert content["validation_dice"][name] == pytest.approx(chosen, abs=1e-9)
        assert one.keep_largest == (name == "whole")


def test_masks_and_scores_are_those_of_each_regions_decision(tuned, patient, tmp_path):
    run = Run(shutil.copytree(tuned.folder, tmp_path / "run"))
    thresholds, sizes = dict(zip(NAMES, (0.2, 0.5, 0.8), strict=True)), dict(zip(NAMES, (0.0, 0.1, 3.0), strict=True))
    write_json(run.decision_file, read_json(run.decision_file) | {"threshold": thresholds, "smallest_ml": sizes})
    labels, *found = map(voxels, predict(run, patient, tmp_path / "out", probabilities=True, device="cpu"))
    expected = np.zeros(labels.shape, np.uint8)
    for name, label, p in zip(NAMES, (2, 1, 4), found, strict=True):
        expected[Decision(thresholds[name], sizes[name], name == "whole").mask(p, (1.0, 1.0, 1.0))] = label
    np.testing.assert_array_equal(labels, expected)
    assert (found[2] >= 0.8).any()
    assert 4 not in labels  # 3 ml are more than there is, and no piece of it stays whatever its size
    write_json(run.decision_file, read_json(run.decision_file) | {"smallest_ml": sizes | {"enhancing": 0.0}})
    with pytest.raises(UnetlibError, match="another decision"):
        predict(run, patient, tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.5},
        {"smallest_ml": 0.0},
        {"threshold": {"whole": 0.5, "core": 0.5}},
        {"threshold": {"whole": 0.5, "core": 0.5, "enhancing": 0.55}},
        {"smallest_ml": {"whole": 0.0, "core": 0.0, "enhancing": [0.0]}},
        {"threshold": {"whole": 0.5, "core": 0.5, "solid": 0.5}},
    ],
)
def test_an_edited_decision_of_several_regions_is_a_sentence(tuned, tmp_path, change):
    run = Run(shutil.copytree(tuned.folder, tmp_path / "run"))
    write_json(run.decision_file, read_json(run.decision_file) | change)
    with pytest.raises(UnetlibError, match=r"decision\.json: its .* for each of whole, core, enhancing one of .* was"):
        Predictor.open(run, "cpu")


def test_a_region_that_no_validation_patient_has_keeps_its_threshold(tuned, tmp_path, monkeypatch, caplog):
    run = Run(shutil.copytree(tuned.folder, tmp_path / "run"))
    run.decision_file.unlink()

    def without_the_last(*of):
        volume, truth = read_regions(*of)
        return volume, np.concatenate([truth[:-1], truth[-1:] & False])

    monkeypatch.setattr(tuning, "read_regions", without_the_last)
    decision, before = tune(run, "cpu"), read_decision(tuned, tuned.recipe)
    *others, last = decision.regions
    assert decision.of(last) == Decision(0.5, 0.0, keep_largest=False)
    assert all(decision.of(name) == before.of(name) for name in others)
    assert f"no validation patient shows {last}" in caplog.text
    assert f"{last}: threshold" not in caplog.text


def test_stopped_the_choice_for_several_regions_goes_on(tuned, tmp_path, monkeypatch):
    run = Run(shutil.copytree(tuned.folder, tmp_path / "run"))
    run.decision_file.unlink()
    read, calls = tuning.read_regions, []

    def stop_at_the_second(case, recipe):
        calls.append(case.id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(case, recipe)

    monkeypatch.setattr(tuning, "read_regions", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        tune(run, "cpu")
    assert tune(run, "cpu") == read_decision(tuned, tuned.recipe)
    assert run.decision_file.read_bytes() == tuned.decision_file.read_bytes()
    assert len(calls) == len(run.split.val) + 1


def test_the_decision_of_several_predictors_is_the_mean_of_each_region(run):
    one, other = Predictor.open(run, "cpu"), Predictor.open(run, "cpu")
    one.decision = Decisions(
        {"whole": Decision(0.3, 1.0), "core": Decision(0.5, 0.3, False), "enhancing": Decision(0.9)}
    )
    other.decision = Decision(0.5, 0.1)
    both = Ensemble([one, other])
    assert both.decision.of("whole") == Decision(pytest.approx(0.4), pytest.approx(0.55))
    assert both.decision.of("core") == Decision(0.5, pytest.approx(0.2), False)
    assert both.decision.of("enhancing") == Decision(0.7, 0.05)
    assert both.decision.threshold.ravel() == pytest.approx([0.4, 0.5, 0.7])
    other.decision = Decision(0.5, 0.3)
    assert Ensemble([one, other]).key != both.key


def test_the_largest_piece_stays_for_the_whole_tumour_only(make_run, tmp_path):
    found = np.zeros((3, 4, 4, 4), np.float32)
    found[:, 0, 0, 0] = found[:, 2, 2, 2] = found[:, 2, 2, 3] = 1
    decisions = Decisions({name: Decision(0.5, 3.0, name == "whole") for name in NAMES})
    assert decisions.mask(found, (1.0, 1.0, 1.0)).sum((1, 2, 3)).tolist() == [2, 0, 0]
    for regions, kept in (("whole", True), ("core", False), ("enhancing", False), ("mine=1+2+4", False)):
        run = Run(tmp_path / regions.partition("=")[0])
        run.folder.mkdir()
        run.best.write_bytes(b"weights")
        recipe = RECIPE.but(regions=regions, tune=True)
        write_json(run.decision_file, {"threshold": 0.5, "smallest_ml": 1.0, "weights": run.weights, "mirror": False})
        assert read_decision(run, recipe) == Decision(0.5, 1.0, kept)


def test_probabilities_of_slices_can_be_compared_with_the_thresholds():
    decisions = Decisions({name: Decision(t) for name, t in zip(NAMES, (0.9, 0.1, 0.9), strict=True)})
    found = np.random.default_rng(0).random((5, 3, 8, 8))
    above = found >= decisions.threshold
    for k, threshold in enumerate((0.9, 0.1, 0.9)):
        np.testing.assert_array_equal(above[:, k], found[:, k] >= threshold)


def test_slices_of_tiff_in_a_folder_are_predicted_on_their_grid(trained, tmp_path):
    folder = kaggle(tmp_path)
    (mask,) = predict(trained, folder, tmp_path / "out", device="cpu")
    assert mask.name == f"{folder.name}_mask.nii.gz"
    assert nib.load(mask).shape == (8, 9, 11)
    assert predict(trained, folder, tmp_path / "out", device="cpu") == [mask]


@pytest.mark.parametrize("train", [True, False])
def test_images_that_a_data_set_has_for_testing_are_predicted_too(run, patient, tmp_path, train):
    (expected,) = predict(run, patient, tmp_path / "expected", device="cpu")
    msd, nnunet = tmp_path / "Task01_BrainTumour", tmp_path / "Dataset001_Tumour"
    for folder in (msd, nnunet):
        for place in ("imagesTs", *(["imagesTr"] * train)):
            (folder / place).mkdir(parents=True)
    all_four = np.stack([voxels(path) for path in files_of(patient).values()], 3)
    nib.save(nib.Nifti1Image(all_four, LPS), msd / "imagesTs" / "BRATS_485.nii.gz")
    write_json(nnunet / "dataset.json", {"channel_names": {str(n): kind for n, kind in enumerate(FOUR)}})
    for number, path in enumerate(files_of(patient).values()):
        shutil.copy(path, nnunet / "imagesTs" / f"BRATS_485_{number:04}.nii.gz")
        if train:
            shutil.copy(path, nnunet / "imagesTr" / f"BRATS_001_{number:04}.nii.gz")
    for folder, number in ((msd, 1), (nnunet, 1 + train)):
        written = predict(run, folder, tmp_path / folder.name / "out", device="cpu")
        assert len(written) == number
        assert written[-1].name == "BRATS_485_mask.nii.gz"
        np.testing.assert_array_equal(voxels(written[-1]), voxels(expected))


def test_the_files_of_one_patient_after_two_flags_are_told(run, make_run, patient, tmp_path):
    apart = [{kind: file} for kind, file in files_of(patient, "flair", "t1").items()]
    with pytest.raises(UnetlibError, match="Name all images of a patient after one --image: flair=FILE t1=FILE"):
        predict(run, apart, tmp_path / "out")
    with pytest.raises(UnetlibError, match="or give the files of one patient after one --image"):
        predict(make_run(regions="whole", missing="zero"), apart, tmp_path / "out")


def test_what_an_evaluation_of_regions_says(run):
    table = results_table(evaluate(run, device="cpu"))
    (line,) = [line for line in table.splitlines() if "<- the published number" in line]
    assert line.startswith("whole "), "what others have published is the whole tumour"
    volumes, _ = read_volumes(run.evaluation)
    assert [*volumes] == ["whole", "core", "enhancing"]
