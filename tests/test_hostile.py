"""Files of a stranger: nothing in them is executed, nothing is written outside, and each is told in a sentence."""

import builtins
import copy
import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import BEST, LATEST, LPS, SMALL, write_patient
from unetlib.cli import main
from unetlib.data.archive import open_data
from unetlib.data.cases import HASHES
from unetlib.data.check import check
from unetlib.data.prepare import prepare
from unetlib.data.prepared import Prepared
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import read_patients, results_table
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.show.plots import best_median_worst, make_figures
from unetlib.support.errors import UnetlibError
from unetlib.support.files import PARTIAL, read_csv, read_json, write_json
from unetlib.unet import UNet

CPU = {"device": "cpu"}
KEY = "BraTS2021_00000"


@pytest.fixture(autouse=True)
def fence(tmp_path):
    """What lies outside of the folders given to the library stays as it was, and no payload has run."""
    precious = tmp_path / "outside" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("precious")
    before = set(tmp_path.parent.iterdir())
    yield precious
    assert precious.read_text() == "precious"
    assert list(precious.parent.iterdir()) == [precious], "something was written outside"
    assert set(tmp_path.parent.iterdir()) == before, "something was written outside"
    assert not (tmp_path / "executed").exists(), "a payload was executed"


def refused(function, *arguments, **options):
    """The sentence with which the library refuses: short, in printable characters."""
    with pytest.raises(UnetlibError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert len(message) < 3000, "a stranger decides how long the message is"
    return message


def told(capsys, *command):
    """The sentence with which the command line refuses."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in command])
    assert isinstance(stop.value.code, str)
    assert stop.value.code.startswith("error: ")
    assert stop.value.code.replace("\n", " ").isprintable()
    assert "Traceback" not in capsys.readouterr().err
    return stop.value.code


def clone(folder, path):
    return Path(shutil.copytree(folder, path, symlinks=True, ignore=shutil.ignore_patterns("previous_*")))


class Payload:
    """Unpickled without care, it makes the folder `path`."""

    def __init__(self, path, call="os"):
        self.call, self.path = call, str(path)

    def __reduce__(self):
        if self.call == "os":
            return os.system, (f'mkdir "{self.path}"',)
        return getattr(builtins, self.call), (f"__import__('os').mkdir({self.path!r})",)


class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x


# Checkpoints


def hostile_checkpoints():
    """Name -> a function that writes the file, given its path and what the payload would make."""

    def pickled(path, made):
        path.write_bytes(pickle.dumps(Payload(made)))

    def zipped(call):
        return lambda path, made: torch.save({"model": Payload(made, call), "recipe": {}}, path)

    def legacy(path, made):
        torch.save({"model": {}, "recipe": Payload(made)}, path, _use_new_zipfile_serialization=False)

    def script(path, made):
        torch.jit.script(Doubled()).save(str(path))

    def no_checkpoint(content):
        return lambda path, made: torch.save(content, path)

    return {
        "a pickle": pickled,
        "a torch file that calls os.system": zipped("os"),
        "a torch file that calls exec": zipped("exec"),
        "a torch file that calls eval": zipped("eval"),
        "the old format of torch with a payload": legacy,
        "TorchScript": script,
        "a list": no_checkpoint([1]),
        "text": lambda path, made: path.write_text("hello"),
        "a zip without torch": lambda path, made: zipfile.ZipFile(path, "w").close(),
    }


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", hostile_checkpoints())
def test_a_hostile_checkpoint_is_not_executed(prepared, run, cohort, tmp_path, capsys, kind):
    folder = clone(run, tmp_path / "run")
    image = cohort / KEY / f"{KEY}_flair.nii.gz"
    for name, command in (
        (LATEST, ["train", prepared, folder]),
        (BEST, ["predict", folder, image, "--out", tmp_path / "masks"]),
    ):
        hostile_checkpoints()[kind](folder / name, tmp_path / "executed")
        assert name in told(capsys, *command, "--device", "cpu")
    assert not (tmp_path / "masks").exists()


def shared(depth=60):
    """A list of 120 lists whose text would fill every disk: each holds the one below it twice."""
    nested = []
    for _ in range(depth):
        nested = [nested, nested]
    return nested


def giant(dtype=torch.float32):
    return torch.zeros(1, dtype=dtype).expand(2**20, 2**20)  # a few bytes that announce terabytes


def sparse():
    return torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (2**20, 2**20))


WEIGHT = ("model", "down.0.0.weight")
MOMENT = ("optimizer", "state", 0, "exp_avg")
CHANGES = {  # where in a checkpoint -> what a stranger may put there
    ("recipe",): [None, 5, [], {}, {"width": 4, "evil": 1}, shared()],
    ("recipe", "width"): [10**9, "4", math.nan, [4], shared(), 10**5000],
    ("recipe", "depth"): [10**6, -1, None],
    ("recipe", "loss"): [None, 3],
    ("recipe", "learning_rate"): [math.nan, math.inf, "x", -1.0],
    ("model",): [None, 5, [], {}, {1: 2}, {"down.0.0.weight": 3}],
    WEIGHT: [None, "x", giant(), sparse(), torch.zeros(0), torch.zeros(4, 1, 3, 3, device="meta")],
}
RESUME = {
    ("recipe", "precision"): ["fp64", "x" * 10**6],
    ("prepared",): [None, 5, [], {}, shared()],
    ("prepared", "data"): [5, shared()],
    ("optimizer",): [None, 5, [], {}, {"state": 5, "param_groups": []}],
    ("optimizer", "state"): [None, 5, {0: 5}, {"x": {}}],
    MOMENT: [
        None,
        "x",
        giant(),
        giant(torch.float64),
        sparse(),
        torch.zeros(0),
        torch.zeros(4, 1, 3, 3, device="meta"),
    ],
    ("optimizer", "state", 0, "step"): [None, "x", torch.zeros(3)],
    ("progress",): [None, 5, [], {}, {"epoch": 1, "evil": 2}],
    ("progress", "epoch"): ["x", -1, 10**30, 0.5, None, True],
    ("progress", "step"): ["x", -1, 10**30, None],
    ("progress", "loss_sum"): ["x", math.nan, math.inf, None],
    ("progress", "best_dice"): ["x", math.nan, 7.0, None],
    ("progress", "seconds"): ["x", math.nan, -1.0, math.inf],
    ("progress", "history"): [5, [5], {}, [{"epoch": 1}], shared(), [[]] * 2],
    ("progress", "history", 0, "val_dice"): ["x", None, math.nan, math.inf],
}


def changed_at(content, path, value):
    """A copy of nested dictionaries and lists with another value at `path`."""
    content = copy.copy(content)
    content[path[0]] = changed_at(content[path[0]], path[1:], value) if len(path) > 1 else value
    return content


@pytest.mark.parametrize("where", [*CHANGES, *RESUME], ids=lambda where: ".".join(map(str, where)))
def test_a_checkpoint_with_wrong_types_or_giant_values_is_refused_by_name(prepared, run, tmp_path, where):
    content = torch.load(run / LATEST, weights_only=True)
    for value in {**CHANGES, **RESUME}[where]:
        folder = clone(run, tmp_path / "run")
        torch.save(changed_at(content, where, value), folder / LATEST)
        assert str(folder) in refused(train, prepared, folder, SMALL.but(epochs=3), **CPU)
        shutil.rmtree(folder)


@pytest.mark.parametrize("where", [*CHANGES, ("epoch",)], ids=lambda where: ".".join(map(str, where)))
def test_weights_with_wrong_types_or_giant_values_are_refused_by_name(run, tmp_path, where):
    content = torch.load(run / BEST, weights_only=True)
    folder = clone(run, tmp_path / "run")
    for value in CHANGES.get(where, [None, "x", shared(), -1]):
        torch.save(changed_at(content, where, value), folder / BEST)
        assert BEST in refused(Run(folder).load)


def test_a_recipe_of_a_network_larger_than_its_weights_takes_no_memory(run, tmp_path):
    """512 channels, doubled 8 times, are 600 GB of weights: whoever makes them before reading the file is killed."""
    content = torch.load(run / BEST, weights_only=True)
    content["recipe"] |= {"width": 512, "depth": 8, "image_size": 1024}
    torch.save(content, tmp_path / BEST)
    assert "another architecture" in refused(Run(tmp_path).load)
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in UNet(width=512, depth=8).state_dict().items()}
    content["model"] = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}  # four bytes each
    torch.save(content, tmp_path / BEST)
    assert "plain tensors" in refused(Run(tmp_path).load)


# Prepared folders and tables


@pytest.fixture
def own(prepared, tmp_path):
    """A prepared folder of a stranger."""
    return clone(prepared, tmp_path / "prepared")


def use(folder):
    """Open a prepared folder and use all that it says."""
    found = Prepared.open(folder)
    positions = np.concatenate([found.dataset().indices(part) for part in ("train", "val", "test")])
    assert sorted(positions) == list(range(len(found.images))), "the parts do not make the whole"
    found.dataset().batch(positions[:2])
    return str(found), found.contents, found.data


def npy(header, body=b""):
    text = header.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def hostile_arrays(shape, made):
    """Name -> the content of an images.npy of a stranger."""
    good = "{'descr': '<f2', 'fortran_order': False, 'shape': %s, }"

    def saved(array):
        np.save(buffer := io.BytesIO(), array, allow_pickle=True)
        return buffer.getvalue()

    np.savez(archive := io.BytesIO(), images=np.zeros(shape, np.float16))
    return {
        "objects": saved(np.array([Payload(made)] * 3, dtype=object)),
        "a pickle": pickle.dumps(Payload(made)),
        "a header of 10^12": npy(good % "(1000000000000,)"),
        "a header of 10^30": npy(good % "(10**30,)"),
        "a header of 10^24": npy(good % "(1000000000000, 1000000000000)"),
        "a negative header": npy(good % "(-5, 1, 32, 32)"),
        "an expression": npy(f"__import__('os').mkdir({str(made)!r})"),
        "a nested header": npy("(" * 5000),
        "a nested tuple": npy(good % ("[" * 90 + "]" * 90)),
        "another type": saved(np.zeros(shape, np.float64)),
        "complex": saved(np.zeros(shape, np.complex64)),
        "fields": saved(np.zeros(shape, [("a", np.float16)])),
        "text": saved(np.zeros(shape, "U1")),
        "another shape": saved(np.zeros((3, 1, 32, 32), np.float16)),
        "no dimension": saved(np.float16(1)),
        "npz": archive.getvalue(),
        "truncated": saved(np.zeros(shape, np.float16))[:-1],
        "half a header": saved(np.zeros(shape, np.float16))[:50],
        "empty": b"",
    }


@pytest.mark.parametrize("kind", hostile_arrays((2, 1, 32, 32), ""))
@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
def test_hostile_arrays_are_refused_by_folder(own, tmp_path, name, kind):
    shape = np.load(own / name).shape
    (own / name).write_bytes(hostile_arrays(shape, tmp_path / "executed")[kind])
    message = refused(train, own, tmp_path / "run", SMALL, **CPU)
    assert str(own) in message
    assert "--rebuild" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [lambda a: np.asfortranarray(a), lambda a: a.astype(a.dtype.newbyteorder(">"))])
def test_arrays_in_another_order_are_read_rightly(own, prepared, change):
    for name in ("images.npy", "masks.npy"):
        np.save(own / name, change(np.load(own / name)))
    indices = np.array([3, 0, 7])
    for found, expected in zip(
        Prepared.open(own).dataset().batch(indices), Prepared.open(prepared).dataset().batch(indices), strict=True
    ):
        assert torch.equal(found, expected)


def hostile_parts(made):
    """Name -> the content of a part of a stranger."""

    def saved(**arrays):
        np.savez(buffer := io.BytesIO(), **arrays)
        return buffer.getvalue()

    good = {
        "images": np.zeros((2, 1, 32, 32), np.float16),
        "masks": np.ones((2, 1, 32, 32), np.uint8),
        "z": np.arange(2),
        "tumour_voxels": np.ones(2, np.int64),
        **{kind: np.array("0" * 64) for kind in HASHES},
    }
    return {
        "objects": saved(**good | {"images": np.array([Payload(made)] * 2, dtype=object)}),
        **{f"an object as {kind}": saved(**good | {kind: np.array(Payload(made), dtype=object)}) for kind in HASHES},
        "a pickle": pickle.dumps(Payload(made)),
        "lacking": saved(images=good["images"]),
        "another shape": saved(**good | {"masks": np.ones((3, 1, 32, 32), np.uint8)}),
        "another type": saved(**good | {"images": np.zeros((2, 1, 32, 32), np.float64)}),
        "other values": saved(**good | {"masks": np.full((2, 1, 32, 32), 9, np.uint8)}),
        "NaN": saved(**good | {"images": np.full((2, 1, 32, 32), np.nan, np.float16)}),
        "a header of 10^12": _zip({f"{name}.npy": npy("{'descr': '<f2', 'fortran_order': False, 'shape': (10**12,)}")
                                   for name in good}),
        "truncated": saved(**good)[:-50],
        "npy": npy("{'descr': '<f2', 'fortran_order': False, 'shape': (0,)}"),
        "empty": b"",
    }  # fmt: skip


def _zip(members):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", hostile_parts(""))
def test_a_hostile_part_of_an_unfinished_preparation_is_refused_by_name(cohort, tmp_path, monkeypatch, kind):
    folder = tmp_path / "prepared"
    with monkeypatch.context() as patch:
        patch.setattr("unetlib.data.prepare._merge", lambda *_: (_ for _ in ()).throw(UnetlibError("stopped")))
        refused(prepare, cohort, folder, SMALL, workers=1)
    part = sorted((folder / PARTIAL).glob("*.npz"))[0]
    part.write_bytes(hostile_parts(tmp_path / "executed")[kind])
    assert str(part) in refused(prepare, cohort, folder, SMALL, workers=1)
    part.unlink()
    assert len(prepare(cohort, folder, SMALL, workers=1).about["cases"]) == 10


def hostile_texts():
    return {
        "empty": b"",
        "null": b"null",
        "an empty object": b"{}",
        "not UTF-8": b'{"train": "\xff\xfe"}',
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf{}",
        "nested lists": b'{"a": ' + b"[" * 200_000,
        "nested objects": b'{"a":' * 200_000,
        "five thousand digits": b'{"a": ' + b"9" * 5000 + b"}",
        "NaN": b'{"a": NaN}',
        "lone surrogate": b'{"\\ud800": "\\ud800\\u001b[2J"}',
        "NUL": b"\0" * 1000,
        "100 MB": b"9" * 100_000_000,
    }


@pytest.mark.parametrize("kind", hostile_texts())
@pytest.mark.parametrize("name", ["prepared.json", "split.json"])
def test_hostile_json_in_a_prepared_folder_is_refused_by_name(own, tmp_path, capsys, name, kind):
    (own / name).write_bytes(hostile_texts()[kind])
    assert str(own) in told(capsys, "train", own, tmp_path / "run")


@pytest.mark.parametrize("kind", hostile_texts())
@pytest.mark.parametrize("name", ["recipe.json", "split.json", "evaluation/summary.json"])
def test_hostile_json_in_a_run_is_refused_by_name_or_replaced(scored, tmp_path, kind, name):
    folder = clone(scored, tmp_path / "run")
    (folder / name).write_bytes(hostile_texts()[kind])
    if name.startswith("evaluation"):
        assert results_table(evaluate(folder, **CPU)) == results_table(evaluate(scored, **CPU))
    else:
        assert str(folder / name) in refused(evaluate, folder, **CPU)


@pytest.fixture(scope="module")
def scored(run, tmp_path_factory):
    """An evaluated run; do not change it."""
    folder = clone(run, tmp_path_factory.mktemp("scored") / "run")
    evaluate(folder, device="cpu")
    return folder


def places(content, path=()):
    """The path of every value in nested dictionaries and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


PID = f".tmp-{os.getpid()}"  # how temporary files begin
STRANGE = (None, True, "x", "\x1b[2J", "../../outside/evil", "a\0b", -1, 1.5, 10**30, [], [[]], {}, {"x": 1})


def survives(function, *arguments):
    """Run a function that may refuse, but only in a sentence; return whether it did."""
    try:
        function(*arguments)
    except UnetlibError:
        return True
    return False


def test_every_value_of_prepared_json_may_be_of_any_type(own):
    content, refusals = read_json(own / "prepared.json"), 0
    few = {**content, "cases": dict(list(content["cases"].items())[:2])}
    for path in (path for path in places(content) if len(path) < 2 or path[1] in few["cases"] or path[0] != "cases"):
        for value in STRANGE:
            (own / "prepared.json").write_text(json.dumps(changed_at(content, path, value)))
            refusals += survives(use, own)
    assert refusals > 200


def test_every_value_of_recipe_json_may_be_of_any_type(run, tmp_path):
    content, refusals = read_json(run / "recipe.json"), 0
    for path in places(content):
        for value in STRANGE:
            (tmp_path / "recipe.json").write_text(json.dumps(changed_at(content, path, value)))
            refusals += survives(Run(tmp_path).about)
    assert refusals > 150


def test_every_value_of_a_summary_may_be_of_any_type(scored):
    content = read_json(scored / "evaluation" / "summary.json")
    content["figures"], refusals = content["figures"][:3], 0
    for where in places(content):
        for value in STRANGE:
            refusals += survives(results_table, changed_at(content, where, value))
    assert refusals > 100


def hostile_tables():
    return {
        "empty": b"",
        "another header": b"a,b\n1,2\n",
        "short rows": b"patient,grid,slices,number\nA\n",
        "not UTF-8": b"patient,grid\n\xff\xfe,native\n",
        "NUL": b"patient,grid\n\0,native\n",
        "a giant field": b"patient,grid\n" + b"x" * 200_000 + b",native\n",
        "an open quote": b'patient,grid\n"x,native\n',
        "100 MB": b"1,2\n" * 25_000_000,
    }


DAMAGES = [*hostile_tables(), "text for numbers", "NaN"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("history.csv", kind) for kind in DAMAGES),
        *(("evaluation/patients.csv", kind) for kind in [*DAMAGES, "a patient elsewhere"]),
    ],
)
def test_hostile_tables_of_a_run_are_refused_by_name(scored, tmp_path, name, kind):
    folder = clone(scored, tmp_path / "run")
    path = folder / name
    good = path.read_text()
    first = next(csv_row for csv_row in read_csv(path) if csv_row.get("grid", "native") == "native")
    dice = first.get("val_dice") or first["dice"]
    if kind == "a patient elsewhere":
        content = good.replace("BraTS2021", "../../outside/BraTS2021").encode()
    else:
        words = {"text for numbers": "x", "NaN": "nan"}
        content = good.replace(dice, words[kind]).encode() if kind in words else hostile_tables()[kind]
    path.write_bytes(content)
    if name == "history.csv":
        assert str(folder) in refused(make_figures, folder, **CPU)
        return
    if kind != "a patient elsewhere":
        assert str(path) in refused(read_patients, path.parent)
    assert len(best_median_worst(folder, "cpu")) == 2
    assert path.read_text() == good


# Archives


def tar_of(path, *members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name, size=0, **fields):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def test_a_tar_with_more_than_fits_the_disk_is_refused_before_it_is_full(tmp_path, monkeypatch):
    content = os.urandom(3000)
    archive = tar_of(tmp_path / "a.tar", *[(member(f"{i}_flair.nii", 3000), content) for i in range(3)])
    written = []

    def free(path):
        size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        written.append(size)
        return shutil._ntuple_diskusage(2**30, 0, 2**28 + 7000 - size)

    monkeypatch.setattr("unetlib.data.archive.shutil.disk_usage", free)
    message = refused(open_data, archive)
    assert "2_flair.nii" in message
    assert "room" in message
    assert max(written) == 6000
    assert sorted(tmp_path.iterdir()) == [archive, tmp_path / "outside"]


def test_a_member_with_terminal_codes_or_a_newline_in_its_name_is_told_harmlessly(tmp_path, capsys):
    names = ["../\x1b[2Jevil_flair.nii", "../a\nerror: b_flair.nii"]
    for name in names:
        assert "a path with '..'" in told(capsys, "check", tar_of(tmp_path / "a.tar", (member(name), b"")))


def test_a_chain_of_a_thousand_headers_is_refused(tmp_path):
    long = member("././@LongLink", 600, type=tarfile.GNUTYPE_LONGNAME)
    blocks = (long.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(1024, b"\0")) * 3000
    (tmp_path / "a.tar").write_bytes(blocks + bytes(10240))
    assert "a.tar" in refused(open_data, tmp_path / "a.tar")


def test_an_extracted_folder_of_a_stranger_is_read_and_never_written_through(cohort, tmp_path, fence):
    archive = tar_of(tmp_path / "a.tar", (member("x.txt"), b""))
    target = tmp_path / "a.extracted"
    target.symlink_to(fence.parent, target_is_directory=True)
    assert "a.tar" in refused(open_data, archive) + refused(check, archive, workers=1)
    target.unlink()
    temporary = tmp_path / ".tmp-a.extracted"
    temporary.symlink_to(fence.parent, target_is_directory=True)
    assert ".tmp-a.extracted is a link" in refused(check, archive, workers=1)


# Links


@pytest.mark.parametrize("name", [".tmp-PID-recipe.json", "recipe.json", "history.csv", ".tmp-PID-split.json"])
def test_a_link_in_a_run_is_replaced_not_written_through(prepared, run, tmp_path, fence, name):
    folder, name = clone(run, tmp_path / "run"), name.replace(".tmp-PID", PID)
    if name.endswith("recipe.json"):
        fence.write_text("precious")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(fence)
    train(prepared, folder, SMALL.but(epochs=3), **CPU)
    assert not (folder / name).is_symlink()


def test_a_link_in_the_place_of_a_folder_of_our_own_is_refused(cohort, scored, tmp_path, fence):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / PARTIAL).symlink_to(fence.parent, target_is_directory=True)
    assert "is a link" in refused(prepare, cohort, tmp_path / "prepared", SMALL, workers=1)
    folder = clone(scored, tmp_path / "run")
    shutil.rmtree(folder / "evaluation")
    (folder / "evaluation").symlink_to(fence.parent, target_is_directory=True)
    assert "is a link" in refused(evaluate, folder, **CPU)
    (folder / "evaluation").unlink()
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / PARTIAL).symlink_to(fence.parent, target_is_directory=True)
    assert "is a link" in refused(evaluate, folder, **CPU)


def test_a_temporary_name_that_is_a_link_is_not_written_through(tmp_path, fence):
    (tmp_path / f"{PID}-a.json").symlink_to(fence)
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_pipe_in_the_place_of_a_file_does_not_hang(own, run, tmp_path):
    for name in ("split.json", "images.npy", "prepared.json"):
        content = (own / name).read_bytes()
        (own / name).unlink()
        os.mkfifo(own / name)
        assert str(own) in refused(use, own)
        (own / name).unlink()
        (own / name).write_bytes(content)
    folder = tmp_path / "data" / "kaggle"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "TCGA_CS_5395_19981004_1.tif")
    Image.new("L", (8, 8)).save(folder / "TCGA_CS_5395_19981004_1_mask.tif")
    os.mkfifo(folder / "A_flair.nii")
    os.mkfifo(folder / "A_seg.nii.gz")
    assert len(check(folder, workers=1).left_out) == 2


def test_links_among_the_patients_are_read_but_never_written_through(cohort, tmp_path, fence):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        (data / name).symlink_to(cohort, target_is_directory=True)  # one folder, linked twice, is read once
    (data / "up").symlink_to(data, target_is_directory=True)
    (data / "gone_flair.nii").symlink_to(tmp_path / "nowhere")
    (data / "gone_seg.nii").symlink_to(fence)
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    found = prepare(data, tmp_path / "prepared", SMALL, workers=1)
    assert len(found.about["cases"]) == 10
    assert list(found.about["left_out"]) == ["gone"]
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before


# Names


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["\x1b[2Jclear", "new\nline", "tab\t", "bell\a", "\u202egpj", os.fsdecode(b"\xff")])
def test_a_folder_with_control_characters_in_its_name_is_told_harmlessly(cohort, tmp_path, capsys, name):
    data = clone(cohort, tmp_path / "data")
    write_patient(data / name, 77)
    (data / name / "B_flair.nii").write_bytes(b"")
    main(["check", str(data), "--workers", "1"])
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert "is ignored" in " ".join(printed.split())
    assert "10 of 10 cases usable" in printed


def test_names_of_patients_are_never_used_as_a_way_out_of_a_folder(cohort, tmp_path):
    inner, before = tmp_path / "in" / "here", {tmp_path / "in", *tmp_path.iterdir()}
    data = clone(cohort, inner / "data")
    evil = ("../../outside/evil", "../evil", "C:\\evil", "/tmp/evil-unetlib")
    rows = zip(sorted(path.name for path in data.iterdir()), evil, strict=False)
    (data / "patients.csv").write_text("case,patient\n" + "".join(f"{case},{name}\n" for case, name in rows), "utf-8")
    prepare(data, inner / "p", SMALL, workers=1)
    train(inner / "p", inner / "r", SMALL.but(epochs=1), "cpu")
    evaluate(inner / "r", split="all", device="cpu")
    make_figures(inner / "r", device="cpu")
    assert {row["patient"] for row in read_csv(inner / "r" / "evaluation" / "all" / "patients.csv")} > set(evil)
    assert set(tmp_path.iterdir()) == before
    assert {path.name for path in inner.iterdir()} == {"data", "p", "r"}
    assert not Path("/tmp/evil-unetlib").exists()


# Bombs: measured in a process of their own


def zeros(gigabytes):
    """A gzip of so many GB of zeros, as members of 16 MB."""
    return compressed(bytes(1 << 24)) * (64 * gigabytes)


@cache
def compressed(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def header(shape=(40, 48, 6), dtype=np.int16, **fields):
    """A NIfTI header and the four bytes behind it."""
    image = nib.Nifti1Header()
    image.set_data_dtype(dtype)
    image["magic"], image["vox_offset"] = b"n+1", 352
    image["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    image["pixdim"][1:4], image["sform_code"] = 1, 1
    image["srow_x"], image["srow_y"], image["srow_z"] = LPS[:3]
    for key, value in fields.items():
        image[key] = value
    return image.binaryblock + bytes(4)


def bombs(folder, cohort, run):
    """Name -> the words of a command, given to files written below `folder`."""
    commands = {}

    def nifti(name, content):
        end = ".nii.gz" if content[:2] == b"\x1f\x8b" else ".nii"
        path = folder / name / f"A_flair{end}"
        path.parent.mkdir()
        path.write_bytes(content)
        commands[name] = ["predict", run, path, "--out", folder / "masks", "--device", "cpu"]

    tera, extension = (10000, 10000, 10000), struct.pack("<4Bii", 1, 0, 0, 0, 2**31 - 16, 6)
    nifti("nii that announces 10^12 voxels", header(tera) + bytes(1000))
    nifti("nii.gz that announces 10^12 voxels", compressed(header(tera)) + zeros(4))
    nifti("nii.gz of 2 GB behind a small header", compressed(header()) + zeros(2))
    nifti("nii.gz of 2 GB of voxels", compressed(header((1024, 1024, 1024))) + zeros(2))
    nifti("nii.gz of 2 GB of numbers", compressed(header((512, 512, 512), np.complex128)) + zeros(2))
    nifti("nii.gz of 4 GB of quadruple precision", compressed(header((512, 512, 1023), "f8")) + zeros(4))
    nifti("nii.gz with voxels 10^18 bytes away", compressed(header(vox_offset=1e18)) + zeros(4))
    nifti("nii.gz with an extension of 2 GB", compressed(header(vox_offset=2**31)[:348] + extension) + zeros(4))
    negative = struct.pack("<4Bii", 1, 0, 0, 0, -16, 6)
    nifti("nii.gz with a negative extension", compressed(header(vox_offset=3000)[:348] + negative) + zeros(4))
    tiny = struct.pack("<4B", 1, 0, 0, 0) + struct.pack("<ii", 8, 6) * 2**20
    nifti("nii.gz with a million extensions", compressed(header(vox_offset=2**30)[:348] + tiny * 16) + zeros(1))

    def tar(name, *blocks):
        path = folder / name / "a.tar.gz"
        path.parent.mkdir()
        path.write_bytes(b"".join(block if block[:2] == b"\x1f\x8b" else compressed(block) for block in blocks))
        commands[name] = ["check", path, "--workers", "1"]

    def block(name, size, kind=tarfile.REGTYPE, **pax):
        return member(name, size, type=kind, pax_headers=pax).tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)

    tar("tar with an image of 4 GB", block("A_flair.nii", 2**32), zeros(4))
    tar("tar with a header of 4 GB", block("x", 2**32, tarfile.XHDTYPE), zeros(4))
    tar("tar with a name of 4 GB", block("x", 2**32, tarfile.GNUTYPE_LONGNAME), zeros(4))
    ones = compressed(b"1\n" * 2**23) * 64
    sparse_pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**12)}
    tar("tar with a sparse map of 1 GB", block("A_flair.nii", 2**30, **sparse_pax),
        b"9" * 11 + b"\n" + b"1\n" * 250, ones)  # fmt: skip
    old = bytearray(block("A_flair.nii", 512, tarfile.GNUTYPE_SPARSE))
    old[386:410], old[482], old[483:495] = b"00000000000\0" * 2, 0, b"77777777777\0"
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + 256 + sum(old[156:512]))
    tar("tar with a sparse file of 8 GB", bytes(old) + bytes(512 * 30))

    def tiff(name, write):
        path = folder / name / "TCGA_CS_5395_19981004_1.tif"
        path.parent.mkdir()
        write(path)
        Image.new("L", (8, 8)).save(path.with_name("TCGA_CS_5395_19981004_1_mask.tif"))
        commands[name] = ["check", path.parent, "--workers", "1"]

    def announce(width, height):
        def write(path):
            Image.new("RGB", (8, 8)).save(path)
            content = path.read_bytes()
            for tag, value in ((256, width), (257, height), (278, height)):
                old = struct.pack("<HHI", tag, 4, 1) + struct.pack("<I", 8)
                short = struct.pack("<HHI", tag, 3, 1) + struct.pack("<HH", 8, 0)
                new = struct.pack("<HHI", tag, 4, 1) + struct.pack("<I", value)
                content = content.replace(old, new).replace(short, new)
            path.write_bytes(content)

        return write

    tiff("tif that announces 10^9 pixels", announce(32000, 32000))
    tiff("tif that announces 4 10^9 columns", announce(4_000_000_000, 1))

    def many(path):  # 60 pictures of 48 million bytes, in 50 kB each
        Image.new("RGB", (4000, 4000)).save(path, compression="tiff_adobe_deflate")
        for number in range(2, 61):
            shutil.copy(path, path.with_name(f"TCGA_CS_5395_19981004_{number}.tif"))
            Image.new("L", (8, 8)).save(path.with_name(f"TCGA_CS_5395_19981004_{number}_mask.tif"))

    tiff("60 tif of 48 MB", many)

    def weights(name, write):
        path = clone(run, folder / name)
        write(path / BEST)
        commands[name] = ["predict", path, cohort / KEY / f"{KEY}_flair.nii.gz", "--out", folder / "masks"]

    def storage(path):
        torch.save({"model": torch.zeros(10), "recipe": {}}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes().replace(struct.pack("<BB", 75, 10) + b"N", b"J\x00\x00\x00\x7fN"))

    def packed(path):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        buffer = io.BytesIO()
        torch.save({"model": {"a": torch.zeros(1)}, "recipe": {}}, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
            for info in old.infolist():
                data = old.read(info)
                if info.filename.endswith("data.pkl"):
                    data = data.replace(b"cpuq\x08K\x01", b"cpuq\x08J" + struct.pack("<i", 2**30))
                if info.filename.endswith("data/0"):
                    data = block * 256 + zlib.compress(b"", wbits=-15)
                new.writestr(info.filename, data)
                if info.filename.endswith("data/0"):
                    entry = new.infolist()[-1]
                    entry.compress_type, entry.file_size = zipfile.ZIP_DEFLATED, 2**32 - 2

    weights("checkpoint in the old format", storage)
    weights("checkpoint that unpacks to 4 GB", packed)
    return commands


MEASURE = r"""
import json, re, resource, sys
sys.path.insert(0, sys.argv[1])
import torch, unetlib.prediction.predict, unetlib.data.check, unetlib.evaluation.evaluate
from unetlib.cli import main
resource.setrlimit(resource.RLIMIT_AS, (9 << 30, 9 << 30))
for name, words in json.load(open(sys.argv[2])).items():
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts anew
    try:
        main(words)
        said = "nothing"
    except SystemExit as stop:
        said = str(stop.code)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    peak = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]
    print("@" + json.dumps([name, said, int(peak) >> 10]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is measured as Linux tells it")
def test_bombs_are_refused_in_bounded_memory(cohort, run, tmp_path):
    inner = tmp_path / "bombs"
    inner.mkdir()
    commands = bombs(inner, cohort, run)
    (tmp_path / "commands.json").write_text(json.dumps(commands, default=str))
    files = sorted(inner.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, Path(__file__).parents[1], tmp_path / "commands.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]
    assert [name for name, _, _ in found] == list(commands), done.stderr[-2000:]
    for name, said, peak in found:
        assert said.startswith("error: "), f"{name}: {said}"
        assert peak < 1500, f"{name}: {peak} MB"
    assert sorted(inner.rglob("*")) == files, "something was written"
