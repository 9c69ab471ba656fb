"""Files that do not say how they are oriented: refused by name, or read as the user says, from check to card."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import LPS, SMALL, write_patient
from unetlib.cli import main
from unetlib.course.start import start
from unetlib.data.check import check
from unetlib.data.patients import find_cases, read_case
from unetlib.data.prepare import prepare, prepare_shard
from unetlib.data.prepared import Prepared
from unetlib.data.volumes import ASSUME, Source, image_to_volume, read_volume
from unetlib.evaluation.evaluate import evaluate
from unetlib.prediction.predict import predict
from unetlib.prediction.tuning import tune
from unetlib.runs.training import train
from unetlib.show.card import write_card
from unetlib.show.viewer import SliceViewer
from unetlib.support.errors import UnetlibError

RNG = np.random.default_rng(0)
VOXELS = RNG.integers(0, 900, (6, 7, 5)).astype(np.int16)  # as LPS
TURNS = {"ras": (slice(None, None, -1), slice(None, None, -1)), "lps": (slice(None), slice(None))}


@pytest.fixture(params=["ras", "lps"])
def word(request):
    return request.param


def silent(path, voxels=VOXELS, kind=nib.Nifti1Image):
    """A file whose sform and qform codes are 0, of 1 x 2 x 3 mm."""
    image = kind(voxels, None)
    image.header.set_zooms((1, 2, 3))
    nib.save(image, path)
    header = nib.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    return path


def silence(folder, word):
    """Save every file of a folder as voxels in the order `word`, without an orientation."""
    for path in folder.rglob("*.nii.gz"):
        stored = np.asarray(nib.load(path).dataobj)
        nib.save(nib.Nifti1Image(stored[TURNS[word]], None), path)
    return folder


@pytest.fixture
def mute(cohort, tmp_path, word):
    """The small patients without an orientation, in the order `word`."""
    return silence(shutil.copytree(cohort, tmp_path / "data"), word)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_file_is_refused_by_name_or_read_as_assumed(tmp_path, word, kind):
    path = silent(tmp_path / "a.nii.gz", VOXELS[TURNS[word]], kind)
    with pytest.raises(UnetlibError, match=r"a\.nii\.gz does not say how it is oriented.*--assume-ras.*--assume-lps"):
        read_volume(Source((path,)))
    volume = read_volume(Source((path,), assume=word))
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_array_equal(volume.to_stored(volume.voxels), VOXELS[TURNS[word]])
    np.testing.assert_allclose(volume.affine, [[-1, 0, 0, 2.5], [0, -2, 0, 6], [0, 0, 3, -6], [0, 0, 0, 1]])
    assert volume.assumed == word


def test_an_assumption_changes_nothing_where_the_header_speaks(tmp_path, word):
    for codes in ((1, 0), (0, 1)):
        image = nib.Nifti1Image(VOXELS, LPS)
        image.set_sform(LPS, codes[0])
        image.set_qform(LPS, codes[1])
        nib.save(image, tmp_path / "a.nii")
        volume = read_volume(Source((tmp_path / "a.nii",), assume=word))
        np.testing.assert_array_equal(volume.voxels, VOXELS)
        assert volume.assumed == ""


def test_check_and_prepare_leave_the_patients_out_by_name(mute, tmp_path):
    report = check(mute, workers=1)
    assert len(report.left_out) == 10
    assert all("_flair.nii.gz does not say how it is oriented" in why for why in report.left_out.values())
    with pytest.raises(UnetlibError, match="--strict"):
        prepare(mute, tmp_path / "prepared", SMALL, 1, strict=True)


def test_a_prepared_folder_and_a_run_keep_the_assumption(mute, cohort, tmp_path, word):
    assert len(check(mute, 1, word).findings) == 10
    for shard in ("1/2", "2/2"):
        prepare_shard(mute, tmp_path / "prepared", shard, SMALL, 1, word)
    made = prepare(mute, tmp_path / "prepared", SMALL, 1, assume=word)
    straight = prepare(cohort, tmp_path / "straight", SMALL, 1)
    np.testing.assert_array_equal(made.images, straight.images)
    np.testing.assert_array_equal(made.masks, straight.masks)
    assert json.loads((tmp_path / "prepared" / "prepared.json").read_text())["assume"] == word
    with pytest.raises(UnetlibError, match=f"was prepared with --assume-{word}, not with no --assume flag"):
        prepare(mute, tmp_path / "prepared", SMALL, 1)
    recipe = SMALL.but(tune=True)
    train(tmp_path / "prepared", tmp_path / "run", recipe, device="cpu")
    tune(tmp_path / "run", "cpu")
    summary = evaluate(tmp_path / "run", device="cpu")
    assert summary["cases"] == 2
    assert write_card(tmp_path / "run", device="cpu").is_file()
    straight_run = tmp_path / "straight-run"
    train(tmp_path / "straight", straight_run, recipe, device="cpu")
    tune(straight_run, "cpu")
    assert evaluate(straight_run, device="cpu")["figures"] == summary["figures"]


def test_an_assumption_is_part_of_what_a_run_is_tied_to(mute, tmp_path, word):
    prepare(mute, tmp_path / "prepared", SMALL, 1, assume=word)
    train(tmp_path / "prepared", tmp_path / "run", SMALL.but(epochs=1), device="cpu")
    about = json.loads((tmp_path / "prepared" / "prepared.json").read_text())
    about["assume"] = {"ras": "lps", "lps": "ras"}[word]
    (tmp_path / "prepared" / "prepared.json").write_text(json.dumps(about))
    with pytest.raises(UnetlibError, match=f"other prepared slices .assume: {word} -> "):
        train(tmp_path / "prepared", tmp_path / "run", SMALL.but(epochs=1), device="cpu")
    about["assume"] = "upside down"
    (tmp_path / "prepared" / "prepared.json").write_text(json.dumps(about))
    with pytest.raises(UnetlibError, match="is damaged"):
        Prepared.open(tmp_path / "prepared")


def test_evaluate_takes_the_flag_for_other_data_only(run, mute, word, tmp_path, capsys):
    run = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UnetlibError, match="no case can be scored"):
        evaluate(run, mute, "all", device="cpu")
    assert "_flair.nii.gz does not say how it is oriented" in capsys.readouterr().out
    other = evaluate(run, mute, "all", device="cpu", assume=word)
    own = evaluate(run, split="all", device="cpu")
    assert other["figures"] == own["figures"]
    with pytest.raises(UnetlibError, match="can only be assumed with --data"):
        evaluate(run, device="cpu", assume=word)


def test_predict_puts_the_mask_where_the_tumour_is(trained, tmp_path, word):
    name = write_patient(tmp_path / "good", 50)
    image = tmp_path / "good" / name / f"{name}_flair.nii.gz"
    (straight,) = predict(trained, [image], tmp_path / "out", device="cpu")
    mute = silence(shutil.copytree(tmp_path / "good", tmp_path / "mute"), word) / name / image.name
    with pytest.raises(UnetlibError, match="does not say how it is oriented"):
        predict(trained, [mute], tmp_path / "mute-out", device="cpu")
    assert not (tmp_path / "mute-out").exists()
    (written,) = predict(trained, [mute], tmp_path / "mute-out", device="cpu", assume=word)
    found, expected = nib.load(written), np.asarray(nib.load(straight).dataobj)
    assert expected.sum() > 0
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected[TURNS[word]])
    np.testing.assert_array_equal(found.affine, nib.load(mute).affine)  # shown alike by every program
    assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (0, 0)
    assert predict(trained, [mute], tmp_path / "mute-out", device="cpu", assume=word) == [written]
    with pytest.raises(UnetlibError, match="another image"):
        predict(trained, [mute], tmp_path / "mute-out", device="cpu", assume={"ras": "lps", "lps": "ras"}[word])


@pytest.mark.parametrize("kind", ["flair", "seg"])
def test_a_lone_file_without_orientation_is_taken_only_where_it_lies_as_its_partner(tmp_path, kind, word):
    for other in ("flair", "seg"):
        nib.save(nib.Nifti1Image((VOXELS > 800).astype(np.uint8) if other == "seg" else VOXELS, LPS),
                 tmp_path / f"A_{other}.nii")  # fmt: skip
    voxels = np.asarray(nib.load(tmp_path / f"A_{kind}.nii").dataobj).copy()
    nib.save(nib.Nifti1Image(voxels, None), tmp_path / f"A_{kind}.nii")
    with pytest.raises(UnetlibError, match=rf"A_{kind}\.nii does not say how it is oriented"):
        read_case(find_cases(tmp_path).cases[0])
    case = find_cases(tmp_path, assume=word).cases[0]
    if word == "lps":
        image, mask, _ = read_case(case)
        np.testing.assert_array_equal(image.voxels, VOXELS)
        np.testing.assert_array_equal(mask, VOXELS > 800)
    else:
        with pytest.raises(UnetlibError, match=rf"A_{kind}\.nii does not say.* RAS was assumed, .* stored as LPS"):
            read_case(case)


def test_another_modality_without_orientation_is_noted(tmp_path):
    for name, affine in (("flair", LPS), ("seg", LPS), ("t1", None)):
        nib.save(nib.Nifti1Image((VOXELS > 800).astype(np.uint8) if name == "seg" else VOXELS, affine),
                 tmp_path / f"A_{name}.nii")  # fmt: skip
    report = check(tmp_path, workers=1)
    assert any("A_t1.nii does not say how it is oriented" in note for note in report.notes)
    assert not any("A_t1" in note for note in check(tmp_path, 1, "lps").notes)


def test_the_command_line_takes_one_of_two_flags(mute, word, capsys):
    main(["check", str(mute), f"--assume-{word}", "--workers", "1"])
    assert "10 of 10 cases usable" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["check", str(mute), "--assume-ras", "--assume-lps"])
    assert "not allowed with argument" in capsys.readouterr().err
    for command in ("check", "prepare", "evaluate", "predict", "course"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--assume-ras" in capsys.readouterr().out


def test_a_variable_stands_for_the_flag_and_the_course_heeds_it(mute, word, tmp_path, monkeypatch):
    monkeypatch.setenv(ASSUME, word.upper())
    course = start(mute, tmp_path / "work")
    assert course.cohort.assume == word
    np.testing.assert_array_equal(read_case(course.cohort.cases[0])[1].shape, (40, 48, 6))
    monkeypatch.setenv(ASSUME, "upside down")
    with pytest.raises(UnetlibError, match="'upside down'; ras or lps was expected"):
        find_cases(mute)


# The viewer goes on


def shown(viewer):
    content, buffers = viewer._data()
    panel = content["panels"][0]
    masks = [None if panel[kind] is None else
             np.frombuffer(buffers[panel[kind]], np.uint8).reshape(panel["shape"], order="F")
             for kind in ("truth", "prediction")]  # fmt: skip
    return content["notes"], *masks


@pytest.mark.parametrize("kind", ["path", "image", "fresh"])
def test_the_viewer_says_that_the_orientation_is_guessed(tmp_path, kind):
    path = silent(tmp_path / "a.nii.gz")
    given = {"path": path, "image": nib.load(path), "fresh": nib.Nifti1Image(VOXELS, None)}[kind]
    notes, _, _ = shown(SliceViewer(given))
    assert "is guessed (LAS): its file does not say it" in notes[0]
    assert not any("guessed" in note for note in shown(SliceViewer(nib.Nifti1Image(VOXELS, LPS)))[0])


def test_the_viewer_lays_a_mask_without_orientation_on_the_voxels_of_its_volume(tmp_path):
    mask = (VOXELS > 500).astype(np.uint8)
    for affine in (LPS, np.diag([1.0, 1, 1, 1])):
        notes, truth, prediction = shown(
            SliceViewer(nib.Nifti1Image(VOXELS, affine), nib.Nifti1Image(mask, None), silent(tmp_path / "p.nii", mask))
        )
        stored = image_to_volume(nib.Nifti1Image(mask, affine), "a").voxels
        np.testing.assert_array_equal(truth, stored)
        np.testing.assert_array_equal(prediction, stored)
        assert sum("guessed" in note for note in notes) == 2
    _, truth, _ = shown(SliceViewer(nib.Nifti1Image(VOXELS, None), nib.Nifti1Image(mask, LPS)))
    np.testing.assert_array_equal(truth, mask[:, ::-1])  # LAS is guessed for the volume
    with pytest.raises(UnetlibError, match=r"\(6, 7, 4\).*cannot be resampled"):
        SliceViewer(nib.Nifti1Image(VOXELS, LPS), nib.Nifti1Image(mask[:, :, :4], None))
