"""Files: whole or absent, read as written, refused when damaged."""

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetlib.engine.device import start_engine
from unetlib.support import files
from unetlib.support.errors import UnetlibError
from unetlib.support.files import atomic, digest, keep_as, locked, read_csv, read_json, sha256, write_csv, write_json
from unetlib.support.messages import first_process, process_count
from unetlib.support.paths import takes_paths

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.just("\n"), max_size=10)
plain = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
contents = st.dictionaries(
    st.text(max_size=5),
    st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)),
    max_size=4,
)


def refuse(code):
    """A function that fails as the system does."""

    def function(*_):
        raise OSError(code, os.strerror(code))

    return function


def turned(value):
    """The same value with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(list(value))}
    return [turned(one) for one in value] if isinstance(value, list) else value


@pytest.fixture
def old(tmp_path):
    """A file that was there before."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def only(path):
    """True when the file is alone in its folder: no temporary file was left."""
    return list(path.parent.iterdir()) == [path]


def test_a_block_that_succeeds_replaces_the_file(old):
    with atomic(old) as temporary:
        temporary.write_text("new")
    assert old.read_text() == "new"
    assert only(old)


def test_inside_the_block_the_old_file_is_untouched(old):
    with atomic(old) as temporary:
        temporary.write_text("new")
        assert old.read_text() == "old"


def test_the_temporary_file_lies_beside_the_file_and_has_its_suffix(tmp_path):
    with atomic(tmp_path / "figure.png") as temporary:
        temporary.touch()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert temporary.name != "figure.png"


@pytest.mark.parametrize("error", [ValueError, KeyError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_file_and_passes_its_error_on(old, error):
    def interrupted():
        with atomic(old) as temporary:
            temporary.write_text("half")
            raise error("own")

    with pytest.raises(error, match="own"):
        interrupted()
    assert old.read_text() == "old"
    assert only(old)


def test_a_block_that_raises_before_it_writes_leaves_no_file(tmp_path):
    def interrupted():
        with atomic(tmp_path / "file.txt"):
            raise ValueError("own")

    with pytest.raises(ValueError, match="own"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_full_or_failing_disk_leaves_the_old_file_and_is_told_in_a_sentence(old, monkeypatch, call, code):
    monkeypatch.setattr(files.os, call, refuse(code))
    sentence = f"{old} cannot be written ({os.strerror(code)})"
    with pytest.raises(UnetlibError, match=re.escape(sentence)), atomic(old) as temporary:
        temporary.write_text("new")
    assert old.read_text() == "old"
    assert only(old)


def test_a_disk_that_fills_up_while_the_block_writes_is_told_in_a_sentence(old):
    def fill_up():
        with atomic(old) as temporary:
            temporary.write_text("half")
            refuse(errno.ENOSPC)()

    with pytest.raises(UnetlibError, match=rf"^{re.escape(str(old))} cannot be written \(No space left"):
        fill_up()
    assert old.read_text() == "old"
    assert only(old)


def test_a_write_beyond_the_limit_of_the_system_is_told_in_a_sentence(old):
    code = (
        "import resource, signal, sys; from pathlib import Path; from unetlib.support.files import write_json\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_json(Path(sys.argv[1]), {'long': 'x' * 100_000})"
    )
    done = subprocess.run([sys.executable, "-c", code, old], capture_output=True, text=True)
    assert f"UnetlibError: {old} cannot be written" in done.stderr
    assert old.read_text() == "old"
    assert only(old)


def test_a_process_killed_inside_the_block_leaves_the_old_file(old):
    code = (
        "import os, signal, sys; from pathlib import Path; from unetlib.support.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, old]).returncode == -signal.SIGKILL
    assert old.read_text() == "old"


def test_the_content_is_on_disk_before_the_file_is_renamed(old, monkeypatch):
    events = []
    monkeypatch.setattr(files.os, "fsync", lambda number: events.append(("fsync", os.fstat(number).st_ino)))
    monkeypatch.setattr(files.os, "replace", lambda *paths: events.append(("replace", *paths)))
    with atomic(old) as temporary:
        temporary.write_text("new")
        file = temporary.stat().st_ino
    assert events == [("fsync", file), ("replace", temporary, old)]


def test_missing_parent_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_file_where_the_folder_should_be_is_told_in_a_sentence(old):
    path = old / "below.json"
    with pytest.raises(UnetlibError, match=rf"^{re.escape(str(path))} cannot be written"):
        write_json(path, {})


def test_a_name_that_is_too_long_is_told_in_a_sentence(tmp_path):
    path = tmp_path / ("x" * 300)
    with pytest.raises(UnetlibError, match=f"^{re.escape(str(path))} cannot be written"):
        write_json(path, {})


def test_a_folder_in_the_place_of_the_file_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file.json").mkdir()
    with pytest.raises(UnetlibError, match=r"file\.json cannot be written"):
        write_json(tmp_path / "file.json", {})
    assert only(tmp_path / "file.json")


@given(content=contents)
def test_an_object_survives_json(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "content.json"
    write_json(path, content)
    assert read_json(path) == content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_is_refused_and_leaves_the_old_file(old, value):
    with pytest.raises((ValueError, TypeError), match="JSON"):
        write_json(old, {"value": value})
    assert old.read_text() == "old"
    assert only(old)


def test_json_is_written_for_eyes_and_other_programs(tmp_path):
    write_json(tmp_path / "file.json", {"a": [1]})
    assert (tmp_path / "file.json").read_bytes() == b'{\n  "a": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b'{"a" 1}', b"\xff\xfe{}", b"{} {}", b"\x80"])
def test_damaged_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UnetlibError, match=f"^{re.escape(str(path))} cannot be read as JSON"):
        read_json(path)


@pytest.mark.parametrize("content", [[1], "text", 1, None, True])
def test_json_that_is_no_object_is_refused_by_name_and_kind(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UnetlibError, match=f"^{re.escape(str(path))} holds a JSON {type(content).__name__} where"):
        read_json(path)


@pytest.mark.parametrize("read", [read_json, read_csv])
def test_a_missing_file_is_refused_by_name(tmp_path, read):
    with pytest.raises(UnetlibError, match=rf"^{re.escape(str(tmp_path / 'none'))} cannot be read.*No such file"):
        read(tmp_path / "none")


@pytest.mark.parametrize("read", [read_json, read_csv])
def test_a_folder_is_refused_by_name(tmp_path, read):
    with pytest.raises(UnetlibError, match=f"^{re.escape(str(tmp_path))} cannot be read"):
        read(tmp_path)


@given(st.lists(st.fixed_dictionaries({"id": texts, "a,b": texts, 'say "c"': texts}), max_size=5))
def test_rows_survive_csv(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    write_csv(path, rows, ["id", "a,b", 'say "c"'])
    assert read_csv(path) == rows


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_numbers_survive_csv_to_the_last_digit(tmp_path_factory, numbers):
    path = tmp_path_factory.getbasetemp() / "numbers.csv"
    write_csv(path, [{"n": number} for number in numbers], ["n"])
    assert [float(row["n"]) for row in read_csv(path)] == numbers


def test_columns_are_written_in_the_order_asked_for(tmp_path):
    write_csv(tmp_path / "file.csv", [{"a": 1, "b": 2}], ["b", "a"])
    assert (tmp_path / "file.csv").read_bytes() == b"b,a\n2,1\n"


@pytest.mark.parametrize("row", [{"b": "x"}, {"a": None, "b": "x"}])
def test_a_missing_value_is_left_empty(tmp_path, row):
    write_csv(tmp_path / "file.csv", [row], ["a", "b"])
    assert read_csv(tmp_path / "file.csv") == [{"a": "", "b": "x"}]


def test_without_rows_the_columns_are_still_named(tmp_path):
    write_csv(tmp_path / "file.csv", [], ["a", "b"])
    assert (tmp_path / "file.csv").read_bytes() == b"a,b\n"
    assert read_csv(tmp_path / "file.csv") == []


def test_a_row_with_an_unknown_column_is_refused_and_leaves_the_old_file(old):
    with pytest.raises(ValueError, match="not in fieldnames: 'c'"):
        write_csv(old, [{"a": 1}, {"a": 1, "c": 2}], ["a"])
    assert old.read_text() == "old"
    assert only(old)


@pytest.mark.parametrize("content", [b"a\n\xff\n", b"a\n" + b"x" * 200_000])
def test_damaged_csv_is_refused_by_name(tmp_path, content):
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(UnetlibError, match=f"^{re.escape(str(path))} cannot be read as CSV"):
        read_csv(path)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sha256_is_that_of_the_whole_file(tmp_path, size):
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_sha256_of_several_files_is_that_of_their_bytes_in_order(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 1000)
    expected = hashlib.sha256(b"b" * 1000 + b"a" * 1000 + b"c" * 1000).hexdigest()
    assert sha256(*(tmp_path / name for name in "bac")) == expected


@given(contents)
def test_the_digest_does_not_depend_on_the_order_of_keys(content):
    assert digest(turned(content)) == digest(content)


@given(contents, contents)
def test_the_digest_differs_exactly_when_the_json_does(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same


def test_the_digest_depends_on_every_key_value_and_order_of_a_list():
    values = [{}, {"a": 1}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": {"a": 1}}, [], [{}]]
    assert len({digest(value) for value in values}) == len(values)


def test_a_locked_folder_is_refused_to_another_process_and_to_another_thread(tmp_path):
    code = "from pathlib import Path; from unetlib.support.files import locked\n"
    code += f"with locked(Path({str(tmp_path)!r})): pass"
    with locked(tmp_path):
        for refused in (lambda: locked(tmp_path).__enter__(), lambda: ThreadPool(1).apply(locked(tmp_path).__enter__)):
            with pytest.raises(UnetlibError, match="is in use: another process is writing to it"):
                refused()
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "is in use" in other.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_lock_leaves_nothing_behind(tmp_path):
    with locked(tmp_path / "new"):
        assert (tmp_path / "new" / files.LOCK).exists()
    assert not (tmp_path / "new").exists()
    with locked(tmp_path):
        (tmp_path / "result").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_lock_removes_what_a_killed_process_was_writing(tmp_path):
    for place in (tmp_path, tmp_path / files.PARTIAL):
        place.mkdir(exist_ok=True)
        (place / ".tmp-1-a.json").touch()
    (tmp_path / ".tmp-1-patient").mkdir()
    (tmp_path / ".tmp-1-patient" / "image").touch()
    (tmp_path / "kept").touch()
    with locked(tmp_path):
        found = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == [files.LOCK, "kept"]


def test_variables_of_others_do_not_make_one_process_a_part_of_several(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x"}.items():
        monkeypatch.setenv(name, value)
    assert process_count() == 1
    assert first_process()
    assert start_engine("cpu", "fp32").world_size == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun sets it
    assert process_count() == 4
    assert not first_process()


def test_a_folder_that_cannot_be_locked_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UnetlibError, match=r"A file stands where a folder was expected"), locked(tmp_path / "file"):
        pass
    monkeypatch.setattr(os, "mkdir", refuse(errno.EROFS))
    with pytest.raises(UnetlibError, match="Read-only file system"), locked(tmp_path / "new"):
        pass


@pytest.mark.parametrize("links", [True, False])
def test_the_old_content_is_kept_where_that_is_asked_for(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    for content in ("one", "two"):
        with atomic(tmp_path / "file", keep=tmp_path / "before") as temporary:
            temporary.write_text(content)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "two", "before": "one"}
    keep_as(tmp_path / "file", tmp_path / "before")  # as a kill before the last rename leaves it
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "two", "before": "two"}
    with atomic(tmp_path / "file", keep=tmp_path / "before") as temporary:
        temporary.write_text("three")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "three", "before": "two"}


def test_a_stop_in_the_midst_of_a_zip_file_is_a_stop(tmp_path):
    class Stopped:
        def __array__(self, *_, **__):
            raise KeyboardInterrupt("stop")

    def write():
        with atomic(tmp_path / "a.npz") as temporary, open(temporary, "wb") as file, zipfile.ZipFile(file, "w") as made:
            member = made.open("member", "w")  # still open when the stop comes, as in numpy
            np.asarray(Stopped())
            member.close()

    with pytest.raises(KeyboardInterrupt, match="stop"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "Free some space there"),
        (errno.EDQUOT, "Free some space there"),
        (errno.EROFS, "Name a folder in which you may write"),
        (errno.EACCES, "Name a folder in which you may write"),
        (errno.ENAMETOOLONG, "Choose a shorter name"),
        (errno.EISDIR, "Rename it"),
    ],
)
def test_the_cure_is_that_of_the_fault(old, monkeypatch, code, cure):
    monkeypatch.setattr(files.os, "replace", refuse(code))
    with pytest.raises(UnetlibError) as caught, atomic(old) as temporary:
        temporary.write_text("new")
    assert cure in str(caught.value)
    assert ("space" in str(caught.value)) == (code in (errno.ENOSPC, errno.EDQUOT))


def test_where_the_folder_cannot_be_chosen_the_one_that_can_is_offered(tmp_path, monkeypatch):
    monkeypatch.setattr(files.Path, "mkdir", lambda *_, **__: refuse(errno.EROFS)())
    copy = re.escape(f"It belongs in {tmp_path / 'run'}: copy that folder to a place where you may write")
    with pytest.raises(UnetlibError, match=copy), locked(tmp_path / "run" / "evaluation", belongs_to=tmp_path / "run"):
        pass


def test_an_empty_text_is_no_path_and_none_where_a_path_may_be_left_out():
    @takes_paths
    def paths(one: Path, other: Path | None = None) -> list:
        return [one, other]

    assert paths("a", "") == [Path("a"), None]
    with pytest.raises(UnetlibError, match="an empty text was given"):
        paths("")


def test_a_file_that_another_program_has_open_on_windows_is_waited_for(old, monkeypatch):
    waited, replace = [], os.replace

    def busy(temporary, path):
        if len(waited) < 2:
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(temporary, path)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", waited.append)
    monkeypatch.setattr(files.os, "replace", busy)
    write_json(old, {"new": 1})
    assert read_json(old) == {"new": 1}
    assert 0 < sum(waited) < 1


def test_a_file_that_stays_open_on_windows_gets_the_advice_to_close_it(old, monkeypatch):
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(files.os, "replace", refuse(errno.EACCES))
    with pytest.raises(UnetlibError, match="Another program may have it open"):
        write_json(old, {"new": 1})
