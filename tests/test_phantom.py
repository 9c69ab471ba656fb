"""The synthetic cohort: layout, determinism, resuming, anatomy, and that no threshold finds its tumours."""

import hashlib
import json
import shutil
from itertools import pairwise
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nilearn.datasets import load_mni152_brain_mask
from scipy import ndimage

from unetlib.cli import main
from unetlib.data.cases import hash_case
from unetlib.data.patients import find_cases, read_case, read_labels
from unetlib.phantom.anatomy import COARSE, GRID, THICK, Phantom, atlas, coarse_points, column
from unetlib.phantom.cohort import make_cohort, make_patient
from unetlib.phantom.plain import AFFINE
from unetlib.phantom.sequences import Parts, draw_looks, draw_parts, draw_signal
from unetlib.runs.run import SHIPPED, Run
from unetlib.support.errors import UnetlibError
from unetlib.support.files import sha256

MODALITIES = ("flair", "t1", "t1ce", "t2")
PATIENTS = 4


def hashes(folder):
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.glob("Phantom_*/*"))}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "cohort"
    make_cohort(out, PATIENTS, seed=0, workers=2)
    return out


@pytest.fixture(scope="module")
def scans(cohort):
    """One dictionary per patient: the voxels of its four modalities and `seg`."""
    return [
        {name: np.asarray(nib.load(folder / f"{folder.name}_{name}.nii.gz").dataobj) for name in (*MODALITIES, "seg")}
        for folder in sorted(cohort.glob("Phantom_*"))
    ]


def test_layout_is_that_of_brats(cohort):
    expected = [
        f"Phantom_{i:05d}/Phantom_{i:05d}_{n}.nii.gz" for i in range(PATIENTS) for n in sorted((*MODALITIES, "seg"))
    ]
    assert list(hashes(cohort)) == expected
    assert not list(cohort.glob(".tmp-*"))
    assert json.loads((cohort / "phantom.json").read_text()) == {
        "generator": 1,
        "seed": 0,
        "varied": False,
        "modalities": "flair t1 t1ce t2",
        "patients": PATIENTS,
    }
    notice = (cohort / "SYNTHETIC.txt").read_text()
    assert "SYNTHETIC" in notice
    assert "Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre" in notice


def test_headers_say_synthetic_and_lps(cohort):
    for path in sorted(cohort.glob("Phantom_*/*.nii.gz")):
        image = nib.load(path)
        assert image.shape == GRID == (240, 240, 155)
        assert image.get_data_dtype() == (np.uint8 if "seg" in path.name else np.int16)
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.header["descrip"].item().startswith(b"SYNTHETIC")
        assert image.header["intent_name"].item() == b"SYNTHETIC"


def test_labels_are_those_of_brats(scans):
    for scan in scans:
        assert set(np.unique(scan["seg"])) <= {0, 1, 2, 4}
        assert {1, 2} <= set(np.unique(scan["seg"]))
        assert 4e3 < np.count_nonzero(scan["seg"]) < 170e3  # mm3
        assert 20 < scan["seg"].any(axis=(0, 1)).sum() < 110
    assert any((scan["seg"] == 4).any() for scan in scans)


def test_background_is_zero_and_the_tumour_inside_the_brain(scans):
    for scan in scans:
        brain = scan["flair"] > 0
        assert 1.0e6 < brain.sum() < 2.0e6  # mm3: a human brain
        assert not brain[[0, -1]].any()
        assert not brain[:, [0, -1]].any()
        assert brain[scan["seg"] > 0].all()
        for name in MODALITIES:
            assert scan[name].min() == 0
            assert 250 < scan[name].max() <= 3000
            np.testing.assert_array_equal(scan[name] > 0, brain)


def test_patients_and_seeds_differ(scans):
    for first, second in pairwise(scans):
        assert (first["seg"] != second["seg"]).any()
        assert np.mean(first["flair"] != second["flair"]) > 0.1
    assert np.mean(make_patient(1, 0).images["flair"] != scans[0]["flair"]) > 0.1


def test_bytes_depend_on_neither_the_number_of_patients_nor_of_workers(cohort, tmp_path):
    make_cohort(tmp_path / "one", patients=1, seed=0, workers=1)
    one = hashes(tmp_path / "one")
    assert len(one) == 5
    assert one == {name: digest for name, digest in hashes(cohort).items() if name in one}


def test_resumes_and_keeps_what_is_finished(cohort):
    before = hashes(cohort)
    times = {path: path.stat().st_mtime_ns for path in cohort.glob("Phantom_*/*")}
    shutil.rmtree(cohort / "Phantom_00003")
    stale = cohort / ".tmp-1-Phantom_00003"
    stale.mkdir()
    (stale / "Phantom_00003_flair.nii.gz").write_bytes(b"half")
    make_cohort(cohort, PATIENTS, seed=0, workers=1)
    assert hashes(cohort) == before
    assert not stale.exists()
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if "Phantom_00003" not in path.name)


def test_fewer_patients_than_there_are_remove_none_and_it_is_said(cohort, caplog):
    before = hashes(cohort)
    with caplog.at_level("INFO", "unetlib"):
        make_cohort(cohort, 1, seed=0, workers=1)
    assert f"is a cohort of {PATIENTS} patients already, more than 1: all of them stay." in caplog.text
    assert hashes(cohort) == before


def test_files_of_a_patient_that_are_gone_are_made_again(tmp_path):
    make_cohort(tmp_path / "c", 2, workers=1)
    before = hashes(tmp_path / "c")
    (tmp_path / "c" / "Phantom_00001" / "Phantom_00001_seg.nii.gz").unlink()
    for path in (tmp_path / "c" / "Phantom_00000").iterdir():
        path.unlink()
    (tmp_path / "c" / "Phantom_00001" / "notes.txt").write_text("my own")
    make_cohort(tmp_path / "c", 2, workers=1)
    assert (tmp_path / "c" / "Phantom_00001" / "notes.txt").exists()
    (tmp_path / "c" / "Phantom_00001" / "notes.txt").unlink()
    assert hashes(tmp_path / "c") == before


def test_an_interrupted_patient_leaves_nothing(tmp_path, monkeypatch):
    voxels = np.zeros((2, 2, 2), dtype=np.int16)
    empty, saved = Phantom(dict.fromkeys(MODALITIES, voxels), voxels, AFFINE), []

    def stop_at_the_third(image, path):
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt
        path.write_bytes(b"voxels")

    monkeypatch.setattr("unetlib.phantom.cohort.make_patient", lambda *_: empty)
    monkeypatch.setattr("unetlib.phantom.cohort.nib.save", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_cohort(tmp_path / "cut", patients=1, workers=1)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["SYNTHETIC.txt", "phantom.json"]


@pytest.mark.parametrize("request_", [{"patients": 0}, {"patients": -3}, {"seed": -1}])
def test_refuses_numbers_out_of_range(tmp_path, request_):
    with pytest.raises(UnetlibError, match=r"at least 1 patient and a seed >= 0\.$"):
        make_cohort(tmp_path / "none", **request_)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("key", ["seed", "generator"])
def test_refuses_another_cohort(tmp_path, key):
    record = {"generator": 1, "seed": 0, "patients": 1} | {key: 7}
    (tmp_path / "phantom.json").write_text(json.dumps(record))
    with pytest.raises(UnetlibError, match=rf"'{key}': 7.* was asked for\. Choose an empty folder"):
        make_cohort(tmp_path, patients=1, workers=1)
    assert json.loads((tmp_path / "phantom.json").read_text()) == record


def test_refuses_a_record_that_was_edited(tmp_path):
    (tmp_path / "phantom.json").write_text(json.dumps({"generator": 1, "seed": 0, "patients": "many"}))
    with pytest.raises(UnetlibError, match=r"its patients is 'many'; a whole number of at least 0 was expected"):
        make_cohort(tmp_path, patients=1, workers=1)


@pytest.mark.parametrize(("first", "then"), [(False, True), (True, False)])
def test_refuses_to_mix_plain_and_varied_patients(tmp_path, monkeypatch, first, then):
    monkeypatch.setattr("unetlib.phantom.cohort.run_jobs", lambda *_: iter(()))
    make_cohort(tmp_path / "cohort", patients=1, varied=first)
    with pytest.raises(UnetlibError, match=rf"'varied': {first}.*'varied': {then}.* was asked for\. Choose an empty"):
        make_cohort(tmp_path / "cohort", patients=1, varied=then)


def test_a_record_without_the_key_is_that_of_plain_patients(tmp_path, monkeypatch):
    monkeypatch.setattr("unetlib.phantom.cohort.run_jobs", lambda *_: iter(()))
    (tmp_path / "phantom.json").write_text(json.dumps({"generator": 1, "seed": 0, "patients": 3}))
    with pytest.raises(UnetlibError, match=r"'varied': True.* was asked for"):
        make_cohort(tmp_path, patients=1, varied=True)
    make_cohort(tmp_path, patients=1)
    record = json.loads((tmp_path / "phantom.json").read_text())
    assert record == {"generator": 1, "seed": 0, "varied": False, "modalities": " ".join(MODALITIES), "patients": 3}


def test_refuses_a_folder_or_file_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for place, reason in (
        (tmp_path, r"is not a folder of synthetic patients"),
        (tmp_path / "thesis.txt", "A file stands where a folder was expected"),
    ):
        with pytest.raises(UnetlibError, match=rf"{reason}.*[Cc]hoose a.*\.$"):
            make_cohort(place, patients=1, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("index", "flair", "whole"),
    [(0, "09a3cd6d26f078c5", "2e0ed9403a554d11"), (1, "5e469660e4a7336b", "2e84e5adc8d7999f")],
)
def test_the_seed_gives_the_flair_and_the_whole_tumour_that_it_always_gave(scans, index, flair, whole):
    for voxels, expected in ((scans[index]["flair"], flair), (scans[index]["seg"] > 0, whole)):
        assert hashlib.sha256(np.ascontiguousarray(voxels).tobytes()).hexdigest()[:16] == expected


def overlap(a, b):
    return np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))


def test_anatomy_is_the_right_way_round(scans):
    """Nose towards small y and head towards large z, as in the template, which nibabel turns to LPS here."""
    image = load_mni152_brain_mask(resolution=1)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPS"))
    turned = apply_orientation(image.get_fdata(dtype=np.float32), turn)
    np.testing.assert_array_equal(atlas()[2], turned)
    template = np.zeros(GRID, dtype=np.float32)
    template[22:219, 4:237] = turned[:, :, :155]
    for scan in scans:
        brain = (scan["flair"] > 0).astype(np.float32)
        right = overlap(template, brain)
        assert right > 0.85
        for axis in (1, 2):
            assert right > overlap(template, np.flip(brain, axis)) + 0.02


def dice(found, truth):
    return 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))


def otsu(values):
    """Return the threshold of the largest variance between two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, mass = counts.cumsum()[:-1], (counts * centres).cumsum()[:-1]
    above, total = counts.sum() - below, (counts * centres).sum()
    return centres[:-1][np.argmax(below * above * (mass / below - (total - mass) / above) ** 2)]


@pytest.mark.parametrize("slices", ["all slices", "tumour slices"])
def test_no_threshold_finds_the_tumours(scans, slices):
    relative, truth, otsus = [], [], []
    for scan in scans:
        tumour = scan["seg"] > 0
        kept = tumour.any(axis=(0, 1)) | (slices == "all slices")
        brain = (scan["flair"] > 0) & kept  # the background, 0, is never above a threshold
        relative.append(scan["flair"][brain] / scan["flair"].max())  # the minimum is 0
        truth.append(tumour[brain])
        otsus.append(relative[-1] > otsu(relative[-1]))
    pooled, truth = np.concatenate(relative), np.concatenate(truth)
    best = max(dice(pooled > threshold, truth) for threshold in np.linspace(0, 1, 101))
    assert 0.1 < best < 0.6  # below: no contrast is left to learn from
    assert dice(np.concatenate(otsus), truth) < 0.6


def test_tumours_are_brighter_than_the_brain_but_not_alone(scans):
    """Oedema stands out on FLAIR; lesions and artefacts outside the tumour are as bright."""
    for scan in scans:
        flair, tumour = scan["flair"], scan["seg"] > 0
        healthy = flair[(flair > 0) & ~tumour]
        assert np.median(flair[scan["seg"] == 2]) > 1.1 * np.median(healthy)
        assert np.count_nonzero(healthy > np.median(flair[tumour])) > 3e3  # mm3


def test_contrast_is_that_of_each_sequence(scans):
    """Fluid, which is darkest on T1, is brightest on T2 and dark on FLAIR; the rim takes up contrast medium."""
    for scan in scans:
        healthy = (scan["flair"] > 0) & (scan["seg"] == 0)
        fluid = healthy & (scan["t1"] < np.quantile(scan["t1"][healthy], 0.03))
        assert np.median(scan["t2"][fluid]) > 1.3 * np.median(scan["t2"][healthy])
        assert np.median(scan["flair"][fluid]) < 0.7 * np.median(scan["flair"][healthy])
        if (scan["seg"] == 4).any():
            t1, t1ce = (
                np.median(scan[n][scan["seg"] == 4]) / np.median(scan[n][scan["seg"] == 2]) for n in ("t1", "t1ce")
            )
            assert t1ce > 1.2 * t1


VARIED = 6


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantoms") / "varied"
    make_cohort(out, VARIED, seed=0, workers=1, varied=True)
    return out


@pytest.fixture(scope="module")
def varied_scans(varied):
    """Of each varied patient the volume (FLAIR) and the mask of the whole tumour, as `prepare` reads them."""
    return [read_case(case)[:2] for case in find_cases(varied).cases]


def test_varied_cohort_is_flair_and_mask_and_says_synthetic(varied):
    names = [f"Phantom_{i:05d}/Phantom_{i:05d}_{n}.nii.gz" for i in range(VARIED) for n in ("flair", "seg")]
    assert list(hashes(varied)) == names
    assert [case.patient for case in find_cases(varied).cases] == [f"Phantom_{i:05d}" for i in range(VARIED)]
    assert json.loads((varied / "phantom.json").read_text())["varied"] is True
    assert "SYNTHETIC" in (varied / "SYNTHETIC.txt").read_text()
    for name in names:
        header = nib.load(varied / name).header
        assert header["descrip"].item().startswith(b"SYNTHETIC")
        assert header["intent_name"].item() == b"SYNTHETIC"


def test_varied_patients_are_a_pure_function_of_seed_and_number(varied_scans):
    """The same again, after others were made and in memory; another number or seed is another patient."""
    again = make_patient(0, 2, varied=True)
    np.testing.assert_array_equal(again.images["flair"], varied_scans[2][0].voxels)
    np.testing.assert_array_equal(again.seg > 0, varied_scans[2][1])
    assert not np.array_equal(make_patient(1, 2, varied=True).images["flair"], again.images["flair"])
    for (one, mask), (two, mask_two) in pairwise(varied_scans):
        assert one.voxels.shape != two.voxels.shape or (one.voxels != two.voxels).mean() > 0.1
        assert mask.shape != mask_two.shape or (mask != mask_two).any()


def test_plain_patients_know_nothing_of_the_varied_ones(scans, monkeypatch):
    """A plain patient is drawn from its own two numbers, and no code of the varied kind runs for it."""
    drawn = []
    default_rng = np.random.default_rng
    monkeypatch.setattr("numpy.random.default_rng", lambda key: drawn.append(key) or default_rng(key))
    monkeypatch.setattr("unetlib.phantom.cohort.varied_patient", None)
    plain = make_patient(0, 0)
    assert drawn == [[0, 0]]
    assert set(plain.images) == set(MODALITIES)
    for name, voxels in {**plain.images, "seg": plain.seg}.items():
        np.testing.assert_array_equal(voxels, scans[0][name])
    with pytest.raises(TypeError):
        make_patient(0, 0, varied=True)


def test_varied_scans_have_thick_slices(varied_scans):
    for volume, mask in varied_scans:
        assert volume.voxels.shape[:2] == (240, 240)
        assert 20 <= volume.voxels.shape[2] <= 60
        assert 3 <= volume.affine[2, 2] <= 7
        assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
        assert 500 < np.count_nonzero(mask) * abs(np.linalg.det(volume.affine[:3, :3])) < 200e3  # mm3


def test_varied_tumours_lie_in_the_head_and_stand_out(varied_scans):
    """Brighter than the tissue around them, in most patients; by little in some, for that is what is hard."""
    ratios = []
    for volume, mask in varied_scans:
        flair, square = volume.voxels, np.ones((15, 15, 1))
        head = flair > 0.1 * np.quantile(flair, 0.99)
        assert head[mask].mean() > 0.95
        around = ndimage.binary_dilation(mask, square) & ~ndimage.binary_dilation(mask, square[5:10, 5:10]) & head
        ratios.append(np.median(flair[mask]) / np.median(flair[around]))
    assert np.mean(np.array(ratios) > 1.1) > 0.7
    assert np.ptp(ratios) > 0.2


def test_most_varied_patients_have_their_heads(varied_scans):
    """Where the skull is on, the air around it has noise; of a stripped brain all else is 0."""
    heads = [np.mean(volume.voxels > 0) > 0.5 for volume, _ in varied_scans]
    assert 0.5 <= np.mean(heads) < 1


def test_varied_patients_are_those_from_whom_the_shipped_weights_have_learned(varied):
    shipped = Run(SHIPPED["phantoms"]).provenance["cases"]
    for case in find_cases(varied).cases:
        assert hash_case(*read_labels(case)[:2]) == ([shipped[case.id]["image"]], shipped[case.id]["content"])


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The folder of two varied patients with all sequences and labels."""
    out = tmp_path_factory.mktemp("phantoms") / "four"
    make_cohort(out, 2, seed=0, workers=1, varied=True, modalities="t2 t1ce flair t1")
    return out


def read(folder, index):
    """Return the voxels of a patient's files by their kind, and their affines."""
    name = f"Phantom_{index:05d}"
    images = {kind: nib.load(folder / name / f"{name}_{kind}.nii.gz") for kind in (*MODALITIES, "seg")}
    return {kind: np.asarray(image.dataobj) for kind, image in images.items()}, [one.affine for one in images.values()]


def test_four_sequences_of_varied_patients_keep_flair_and_the_whole_tumour(four, varied_scans):
    assert json.loads((four / "phantom.json").read_text())["modalities"] == "flair t1 t1ce t2"
    for index in range(2):
        found, affines = read(four, index)
        volume, mask = varied_scans[index]
        np.testing.assert_array_equal(found["flair"], volume.voxels)
        np.testing.assert_array_equal(found["seg"] > 0, mask)
        assert all((affine == volume.affine).all() for affine in affines)
        assert {1, 2} <= set(np.unique(found["seg"])) <= {0, 1, 2, 4}
        for one, other in pairwise(MODALITIES):
            assert found[one].shape == found[other].shape == found["seg"].shape
            assert found[one].dtype == found[other].dtype == np.int16
            assert (found[one] != found[other]).mean() > 0.1
    assert (read(four, 1)[0]["seg"] == 4).any()


def test_all_sequences_of_a_varied_patient_are_a_pure_function_of_seed_and_number(four):
    found, _ = read(four, 1)
    again = make_patient(0, 1, varied=True, parts=True)
    for name, voxels in {**again.images, "seg": again.seg}.items():
        np.testing.assert_array_equal(voxels, found[name])
    assert list(again.images) == list(MODALITIES)


def test_a_stripped_varied_patient_is_stripped_in_all_sequences(four):
    found, _ = read(four, 1)
    assert (found["flair"] == 0).mean() > 0.5
    brain = ndimage.binary_dilation(found["flair"] > 0)
    for name in MODALITIES:
        assert not found[name][~brain].any()
        assert found[name][found["seg"] > 0].all()


def test_the_rim_surrounds_the_necrosis_and_stands_out_with_contrast_alone(four):
    found, _ = read(four, 1)
    seg, necrosis = found["seg"], found["seg"] == 1
    around = ndimage.binary_dilation(necrosis, np.ones((3, 3, 1))) & ~necrosis
    assert (seg[around] == 4).mean() > 0.8
    level = {name: [np.median(found[name][seg == label]) for label in (1, 2, 4)] for name in MODALITIES}
    assert level["t1ce"][2] > 1.2 * max(level["t1ce"][:2])
    assert level["t1"][2] < 1.2 * level["t1"][1]
    assert level["t1"][0] < level["t1"][1]
    assert level["t2"][0] > level["t2"][1]


def ball():
    """Return the cell density of a tumour of 3 cm, and how old it is, on the coarse grid."""
    away = np.sqrt(((coarse_points() - column((80, 100, 80))) ** 2).sum(axis=0))
    return np.clip(1 - away / 50, 0, 1), np.clip(1 - away / 40, 0, 1)


def test_some_tumours_do_not_enhance_and_some_are_not_necrotic():
    density, age = ball()
    whole, kinds, shares = np.ones(THICK, dtype=np.float32), [], []
    for seed in range(20, 40):
        parts = draw_parts(np.random.default_rng(seed), whole, density, age, None)
        enhancing, necrosis = parts.enhancing > 0.5, parts.necrosis > 0.5
        kinds.append((enhancing.any(), necrosis.any()))
        if all(kinds[-1]):
            assert not (necrosis & ~enhancing).any()
            shares.append(necrosis.sum() / enhancing.sum())
            assert ndimage.binary_fill_holes(enhancing).sum() < 1.2 * enhancing.sum()
    assert set(kinds) == {(False, True), (True, True), (True, False), (False, False)}
    assert np.ptp(shares) > 0.3  # from thin to thick rims


def test_parts_follow_the_core_that_flair_shows():
    density, age = ball()
    core = SimpleNamespace(age=age, limit=0.6, cystic=0.7)
    for seed in range(4):
        parts = draw_parts(np.random.default_rng(seed), np.ones(THICK, dtype=np.float32), density, age, core)
        inside = ndimage.zoom(age, np.array(THICK) / COARSE, order=1, grid_mode=False) > 0.6
        assert dice(parts.necrosis > 0.5, inside) > 0.75
        assert parts.cystic == 0.7


def test_each_sequence_shows_tissues_and_tumour_as_it_should():
    """Six blocks along x of pure CSF, grey and white matter, oedema, rim and necrosis."""
    blocks = np.arange(THICK[0]) * 6 // THICK[0]
    maps = (np.broadcast_to((blocks == block)[:, None, None], THICK).astype(np.float32) for block in range(6))
    csf, grey, white, oedema, rim, necrosis = maps
    tissue = np.stack([csf, grey, white + oedema + rim + necrosis])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        parts = Parts(oedema + rim + necrosis, rim + necrosis, necrosis, 0.2)
        found = {
            name: [np.median(one) for one in np.array_split(draw_signal(rng, look, tissue, 0 * csf, parts, 0 * csf), 6)]
            for name, look in draw_looks(rng, 0.2).items()
        }
        assert list(found) == ["t1", "t1ce", "t2"]
        fluid, grey_level, white_level, *tumour = found["t1"]
        assert fluid < grey_level < white_level
        assert max(tumour) < white_level
        fluid, grey_level, white_level, swollen, enhancing, dead = found["t1ce"]
        assert max(fluid, dead, swollen) < white_level < enhancing
        fluid, grey_level, white_level, *tumour = found["t2"]
        assert fluid > grey_level > white_level
        assert white_level < min(tumour)
        assert max(tumour[:2]) < fluid


def test_vessels_take_up_contrast_and_nothing_else_shows_them():
    csf = np.zeros(THICK, dtype=np.float32)
    parts, tissue = Parts(csf, csf, csf, 0.0), np.stack([csf, csf + 1, csf])
    for name, look in draw_looks(np.random.default_rng(0), 0.2).items():
        with_them, without = (
            draw_signal(np.random.default_rng(1), look, tissue, csf, parts, csf + some) for some in (1, 0)
        )
        assert (np.median(with_them) > 1.2 * np.median(without)) == (name == "t1ce"), name
        assert np.array_equal(with_them, without) == (name != "t1ce")


def test_writes_the_sequences_that_were_asked_for_and_refuses_to_mix_them(tmp_path, monkeypatch):
    voxels = np.zeros((2, 2, 2), dtype=np.int16)
    patient = Phantom(dict.fromkeys(MODALITIES, voxels), voxels, AFFINE)
    asked = []
    monkeypatch.setattr("unetlib.phantom.cohort.make_patient", lambda *job: asked.append(job) or patient)
    for varied, words, parts in ((True, "t1ce t1ce flair", True), (True, None, False), (False, "t2", True)):
        out = tmp_path / f"{varied}-{words}"
        make_cohort(out, 1, workers=1, varied=varied, modalities=words)
        names = sorted({*(words or "flair").split(), "seg"})
        assert [path.name for path in sorted(out.glob("*/*"))] == [f"Phantom_00000_{name}.nii.gz" for name in names]
        assert asked.pop() == (0, 0, varied, parts)
        with pytest.raises(UnetlibError, match=r"'modalities': 'flair t1'.* was asked for\. Choose an empty"):
            make_cohort(out, 1, workers=1, varied=varied, modalities="t1 flair")


def test_a_varied_cohort_of_an_older_version_is_of_flair(tmp_path, monkeypatch):
    monkeypatch.setattr("unetlib.phantom.cohort.run_jobs", lambda *_: iter(()))
    (tmp_path / "phantom.json").write_text(json.dumps({"generator": 1, "seed": 0, "varied": True, "patients": 3}))
    with pytest.raises(UnetlibError, match=r"'modalities': 'flair'\}, but .*'flair t1 t1ce t2'\} was asked for"):
        make_cohort(tmp_path, 1, varied=True, modalities="flair t1 t1ce t2")
    make_cohort(tmp_path, 1, varied=True)
    assert json.loads((tmp_path / "phantom.json").read_text())["modalities"] == "flair"


@pytest.mark.parametrize("words", ["", "  ", "flair dwi", "FLAIR"])
def test_refuses_unknown_sequences(tmp_path, words):
    with pytest.raises(UnetlibError, match=rf"{words!r} were asked for; one or several of flair, t1, t1ce, t2 were"):
        make_cohort(tmp_path / "none", 1, modalities=words)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("words", "expected"), [(["--modalities", "t1", "flair"], "t1 flair"), ([], None)])
def test_the_command_takes_sequences_as_words(tmp_path, monkeypatch, words, expected):
    made = []
    monkeypatch.setattr("unetlib.make_cohort", lambda *call: made.append(call))
    main(["phantom", str(tmp_path / "out"), "--varied", "--patients", "2", *words])
    assert made == [(tmp_path / "out", 2, 0, None, True, expected)]
