"""The beginning and the end of a command: stopped at its first imports, its reader gone, its outputs closed."""

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import some
from unetlib import commands
from unetlib.cli import main
from unetlib.support.command import BEGINS_ANEW, GOES_ON, NOT_BEGUN, run_command
from unetlib.support.errors import UnetlibError
from unetlib.support.messages import LOG, say

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and pipes")
# Put on the path as sitecustomize.py: the process then stops itself when it imports that module.
STOPPER = """
import os, sys
def stop(event, args):
    if event == "import" and args[0] == os.environ["MODULE"]:
        os.kill(os.getpid(), int(os.environ["NUMBER"]))
sys.addaudithook(stop)
"""


def start(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, text=True, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        ("argparse", ["-m", "unetlib", "--help"], NOT_BEGUN),
        ("tqdm", ["-m", "unetlib", "check", "nowhere"], BEGINS_ANEW),
        ("numpy", ["-m", "unetlib", "check", "nowhere"], BEGINS_ANEW),
        ("torch", ["-m", "unetlib", "prepare", "nowhere", "nothing"], GOES_ON),
        ("nbclient", ["-m", "unetlib", "course"], GOES_ON),
        ("numpy", ["-m", "studies.protocol", "nowhere", "--status"], NOT_BEGUN),
        ("torch", ["-m", "benchmarks.train_step"], NOT_BEGUN),
    ],
)
def test_a_stop_during_the_imports_ends_with_a_sentence(tmp_path, number, module, words, told):
    (tmp_path / "sitecustomize.py").write_text(STOPPER)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {"PYTHONPATH": path, "MODULE": module, "NUMBER": str(int(number))}
    done = start(*words, env=environment, capture_output=True)
    assert (done.returncode, done.stderr, done.stdout) == (130, f"{told}\n", "")


@pytest.mark.parametrize("both", some([False, True], [False]))
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-m", "unetlib", "check", "DATA", "--workers", "1"], 0),
        (["-m", "unetlib", "--help"], 0),
        (["-m", "unetlib", "--version"], 0),
        (["-m", "unetlib", "check", "nowhere"], 1),
        (["-m", "benchmarks.predict", "--help"], 0),
        (["-m", "studies.protocol", "DATA", "--status"], 1),  # what has been measured is of other patients
    ],
)
def test_a_reader_who_leaves_is_no_error(cohort, words, status, both):
    """As `head` does; here the reader is gone from the start, so that whatever is printed first meets it."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [cohort if word == "DATA" else word for word in words]
    done = start(*words, stdout=writer, stderr=writer if both else subprocess.PIPE)
    os.close(writer)
    assert done.returncode == status
    assert not re.search("Error|Traceback|Exception", done.stderr or "")


def test_work_goes_on_when_its_reader_leaves(cohort, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    words = ["-m", "unetlib", "prepare", cohort, tmp_path / "p", "--image-size", 32, "--workers", 1]
    assert start(*words, stdout=writer, stderr=writer).returncode == 0
    os.close(writer)
    assert (tmp_path / "p" / "prepared.json").exists()


def test_outputs_that_are_closed_are_no_error(cohort):
    line = [sys.executable, "-m", "unetlib", "check", str(cohort), "--workers", "1"]
    assert subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *line], cwd=ROOT).returncode == 0


def test_an_error_in_the_wake_of_a_stop_is_a_stop(capsys):
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as stop:
            raise ImportError("numpy is broken") from stop

    with pytest.raises(SystemExit) as end:
        run_command(work)
    assert end.value.code == 130
    assert capsys.readouterr().err == f"{GOES_ON}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check", "DATA"], BEGINS_ANEW),
        (["networks"], BEGINS_ANEW),
        (["lab"], BEGINS_ANEW),
        (["course", "--refresh"], BEGINS_ANEW),
        (["course"], GOES_ON),
        (["prepare", "DATA", "PREPARED"], GOES_ON),
    ],
)
def test_a_stopped_command_says_whether_it_goes_on_or_begins_anew(words, told, monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    stop.__name__ = words[0]
    monkeypatch.setattr(commands, words[0], stop)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 130
    assert capsys.readouterr().err == f"{told}\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UnetlibError("a.nii is empty."), "error: a.nii is empty."),
        (PermissionError(13, "Permission denied", "a.nii"), "error: a.nii cannot be used (Permission denied)."),
        (MemoryError(), "error: there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: there is not enough memory (CUDA out of memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "error: there is not enough memory (DefaultCPU"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you"), "error: there is not enough memory (DefaultCPU"),
        (RuntimeError("MPS backend out of memory (MPS allocated)"), "error: there is not enough memory (MPS backend"),
    ],
)
def test_an_error_with_a_sentence_ends_with_it(error, told):
    def work():
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(work)
    assert str(end.value.code).startswith(told)


def test_its_messages_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(LOG, "handlers", [])
    monkeypatch.setattr(LOG, "level", logging.WARNING)
    run_command(lambda: say("done"))
    assert capsys.readouterr().out == "done\n"


def test_any_other_error_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize("status", [None, 0, 3])
def test_the_status_is_that_of_the_work(status):
    if not status:
        assert run_command(lambda: status) is None
        return
    with pytest.raises(SystemExit) as end:
        run_command(lambda: status)
    assert end.value.code == status


def test_a_name_that_the_output_cannot_hold_is_written_with_escapes(cohort, tmp_path):
    """As in a file or pipe on Windows."""
    folder = tmp_path / "\u0414\u0430\u043d\u043d\u044b\u0435"
    folder.symlink_to(cohort)
    words = [sys.executable, "-m", "unetlib", "check", str(folder), "--workers", "1"]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True)
    assert done.returncode == 0
    assert b"\\u0414" in done.stdout
