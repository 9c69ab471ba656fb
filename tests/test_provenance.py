"""A run says by itself where it comes from."""

import hashlib
import json
import platform
import shutil
import subprocess
from collections import Counter
from importlib.metadata import version

import pytest
import torch

from tests.conftest import SMALL
from unetlib import __version__
from unetlib.data.cases import HASHES
from unetlib.data.prepared import Prepared
from unetlib.evaluation.evaluate import evaluate
from unetlib.runs import provenance
from unetlib.runs.provenance import note_threads, part_by_sign, signs
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv, read_json

NAME = "provenance.json"


def test_every_file_of_the_data_is_named_with_its_bytes_and_its_part(cohort, prepared, run):
    about, split = Run.of(run).provenance, read_json(run / "split.json")
    names = [name for case in about["cases"].values() for name, _, _ in case["files"]]
    assert sorted(names) == sorted(path.relative_to(cohort).as_posix() for path in cohort.glob("*/*.nii.gz"))
    assert about["files"] == hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()
    for case in about["cases"].values():
        data = b"".join((cohort / name).read_bytes() for name, _, _ in case["files"])
        assert case["sha256"] == hashlib.sha256(data).hexdigest()
        assert case["patient"] in split[case["part"]]
    assert about["contents"] == Prepared.open(prepared).contents["data"]
    rows = [row["case"] for row in read_csv(prepared / "slices.csv")]
    assert {name: case["slices"] for name, case in about["cases"].items()} == Counter(rows)
    assert about["left_out"] == []
    assert about["split"] == split["hash"]
    assert about["data"] == str(cohort)


def test_software_and_machine_are_named(run):
    (session,) = Run.of(run).provenance["sessions"]
    assert session["torch"] == torch.__version__.split("+")[0] or session["torch"] == torch.__version__
    assert session["numpy"] == version("numpy")
    assert session["python"] == platform.python_version()
    assert session["threads"] == torch.get_num_threads()
    assert (session["device"], session["precision"], session["seed"]) == ("cpu", "fp32", SMALL.seed)


def test_the_recipe_is_the_one_trained(run):
    assert Run.of(run).provenance["recipe"] == SMALL.as_dict() == read_json(run / "recipe.json")["recipe"]


def test_a_session_is_added_where_something_differs_and_only_there(prepared, run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    before = (tmp_path / "run" / NAME).read_bytes()
    train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert (tmp_path / "run" / NAME).read_bytes() == before
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    train(prepared, tmp_path / "run", SMALL, device="cpu")
    assert [session["python"] for session in Run.of(tmp_path / "run").provenance["sessions"]][1:] == ["3.99.0"]


def test_the_commit_is_that_of_the_library_not_of_the_folder_around_it(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    if not shutil.which("git"):
        pytest.skip("there is no git on this machine")
    (tmp_path / "site-packages" / "unetlib").mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site-packages" / "unetlib" / "runs" / "provenance.py"))
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    assert provenance._commit() is None
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "unetlib" / "runs" / "provenance.py"))
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert provenance._commit() == head
    (tmp_path / "file").touch()
    subprocess.run([*git, "add", "file"], check=True)
    assert provenance._commit() == f"{head}-dirty"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert provenance._commit() is None


def test_a_run_of_an_older_version_has_none(tmp_path):
    assert Run.of(tmp_path).provenance == {}


def test_the_hashes_of_every_case_and_who_named_it_are_those_of_the_prepared_data(prepared, run):
    known = Prepared.open(prepared).about["cases"]
    for name, case in Run.of(run).provenance["cases"].items():
        assert {kind: case[kind] for kind in HASHES} == {kind: known[name][kind] for kind in HASHES}
        assert len({case[kind] for kind in HASHES}) == 3
        assert case["named_by"] == "BraTS 2021"


def test_versions_are_written_down(prepared, run):
    assert read_json(prepared / "prepared.json")["unetlib"] == __version__
    assert read_json(run / "recipe.json")["unetlib"] == __version__
    assert Run.of(run).provenance["prepared_by"] == __version__


def test_a_case_is_known_by_its_voxels_its_files_and_a_name_that_nobody_else_has():
    tcga = signs({"patient": "TCGA_02_0006", "sha256": "a", "image": "b"}, "TCGA_02_0006_19960823")
    assert tcga == {"a", "b", "tcga-02-0006"}
    assert signs({"patient": "P7", "sha256": "a", "case": "P7_t0"}) == {"a"}
    assert signs({"patient": "P7", "image": "b", "images": ["b", "c"]}) == {"b", "c"}


def test_of_several_records_of_a_person_the_training_weighs_most():
    records = [{"patient": "P", "sha256": "a", "part": part} for part in ("test", "train", "val")]
    assert part_by_sign(records) == part_by_sign(records[::-1]) == {"a": "train"}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"sessions": 3}', '{"cases": []}', '{"cases": {"a": {}}}', '{"sessions": [{}]}']
)
def test_a_damaged_provenance_is_a_sentence_and_deleted_it_is_made_again(prepared, run, tmp_path, text):
    copy = Run(shutil.copytree(run, tmp_path / "run"))
    before = copy.provenance
    copy.provenance_file.write_text(text)
    for use in (lambda: train(prepared, copy, SMALL, "cpu"), lambda: evaluate(copy, device="cpu")):
        with pytest.raises(
            UnetlibError, match=rf"{NAME}.* To make it again, delete it, then give `unetlib train` with"
        ):
            use()
    copy.provenance_file.unlink()
    train(prepared, copy, SMALL, "cpu")
    assert copy.provenance == before


def test_whom_the_first_weights_had_learned_from_is_recorded_again_when_their_run_is_named(
    prepared, run, tmp_path, caplog
):
    copy, recipe = Run(tmp_path / "run"), SMALL.but(epochs=1)
    train(prepared, copy, recipe, "cpu", start_from=run)
    before = copy.provenance
    copy.provenance_file.unlink()
    train(prepared, copy, recipe, "cpu")
    assert f"{NAME} is gone: it no longer says whom that run had learned from" in caplog.text
    assert not copy.provenance["earlier"]
    train(prepared, copy, recipe, "cpu", start_from=run)
    assert copy.provenance == before
    train(prepared, copy, recipe, "cpu")
    assert copy.provenance == before
    assert caplog.text.count("is gone") == 1


def test_a_provenance_that_was_removed_does_not_stop_a_training(tmp_path):
    note_threads(Run(tmp_path), 2)
    assert not list(tmp_path.iterdir())
