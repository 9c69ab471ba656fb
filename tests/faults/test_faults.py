"""A few points of the kill matrix, damaged checkpoints, full disks, and two commands at once."""

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("needs fork and POSIX signals", allow_module_level=True)

from jupyter_client.manager import start_new_kernel

from tests.conftest import BEST, LATEST, SMALL, rounds, some
from tests.faults.harness import HOLD, Fault, Running, content, run, same
from tests.faults.matrix import COMMANDS, EVERY, FAILURES, KILLS, SIGNALS, Matrix
from unetlib.evaluation.evaluate import evaluate
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.support.errors import UnetlibError


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    return Matrix(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("seed", rounds(6))
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("what", "kinds", "number"),
    [(signal.SIGKILL, KILLS, 4), (SIGNALS[0], KILLS[:1], 1), (SIGNALS[1], KILLS[:1], 1), (errno.ENOSPC, FAILURES, 2)],
)
def test_whatever_stops_it_the_same_command_ends_with_the_same_bits(matrix, command, what, kinds, number, seed):
    if command in ("prepare, 2 workers", "card"):  # three interpreters; many figures
        number = 1
    elif seed == 0:
        number = (number + 1) // 2
    for index, fault in enumerate(matrix.points(command, what, kinds, number, seed)):
        trial = matrix.trial(command, fault, f"{command}-{what}-{index}")
        assert not trial.problems, (fault, trial.problems)


def test_the_matrix_notices_what_is_wrong(matrix):
    """The measure itself: commands that fail, leave other bits, or go back too far are named."""
    kill = Fault(signal.SIGKILL, "after fsync", 4)
    for flags, problem in (
        (["--epochs", 3], "latest_checkpoint.pth differs"),
        (["--width", 5, "--seed", -1], "ended with 1"),
        (["--checkpoint-every", 100], "steps lost"),
    ):
        trial = matrix.trial("train", kill, "wrong", flags)
        assert any(problem in found for found in trial.problems), trial.problems


def held(matrix, command, out):
    """A command that writes to `out`, held there in mid-work."""
    matrix.start(command, out)
    first = Running(matrix.words(command, out), matrix.folder / "first.log", Fault(HOLD, "before fsync", 2))
    assert first.held.wait(60)
    return first


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate"])
def test_of_two_at_once_the_second_is_refused_and_the_first_unharmed(matrix, command):
    out = matrix.folder / f"two-{command}"
    first = held(matrix, command, out)
    second = run(matrix.words(command, out), matrix.folder / "second.log")
    first.go_on.set()
    assert second.code == 1
    assert f"{out} is in use" in second.output.replace("/evaluation", "")
    assert first.end().code == 0
    assert same(content(out), matrix.undisturbed(command)[0])


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate"])
def test_the_lock_dies_with_its_process(matrix, command):
    out = matrix.folder / f"dead-{command}"
    first = held(matrix, command, out)
    first.process.kill()
    assert first.end().code == -signal.SIGKILL
    assert list(out.rglob(".unetlib-lock"))
    assert run(matrix.words(command, out), matrix.folder / "second.log").code == 0
    assert same(content(out), matrix.undisturbed(command)[0])


def stopped_run(matrix, out, steps=7):
    """A run that was stopped after some steps, with a checkpoint and its predecessor."""
    assert run([*matrix.words("train", out), "--max-steps", steps], matrix.folder / "log").code == 0


def damaged(path, how):
    """Damage a file: cut to a share of its bytes, or flip a bit at a share of them."""
    data, (kind, share) = bytearray(path.read_bytes()), how
    place = int(share * len(data))
    if kind == "cut":
        del data[place:]
    else:
        data[place] ^= 16
    path.write_bytes(data)


CUTS = [("cut", 0), ("cut", 0.01), ("cut", 0.5), ("cut", 0.99)]
FLIPS = [("flip", share) for share in (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9999)]


@pytest.mark.parametrize("how", some(CUTS + FLIPS, [CUTS[0], CUTS[2], FLIPS[0], FLIPS[3]]), ids=str)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before_and_the_user_is_told(matrix, tmp_path, how):
    stopped_run(matrix, out := tmp_path / "run")
    before = content(out)
    damaged(out / LATEST, how)
    bytes_now = (out / LATEST).read_bytes()
    again = run(matrix.words("train", out), tmp_path / "log")
    assert again.code == 0
    assert ": resumed at epoch" in again.output  # not from the start
    if f"{out / LATEST} is damaged" in again.output:
        assert f"previous_{LATEST}, the checkpoint before it, is used" in again.output
        assert (out / f"damaged_{LATEST}").read_bytes() == bytes_now
        (out / f"damaged_{LATEST}").unlink()
    else:  # a bit that means nothing: between two tensors, say
        assert how[0] == "flip"
        assert same(before[LATEST], content_of(matrix, bytes_now, tmp_path))
    assert same(content(out), matrix.undisturbed("train")[0])


def content_of(matrix, data, folder):
    (folder / "alone").mkdir()
    (folder / "alone" / LATEST).write_bytes(data)
    return content(folder / "alone")[LATEST]


def test_flipped_bits_in_the_weights_are_noticed(trained, tmp_path):
    """Not every bit of a file matters, but those of the weights do: the check sums know them."""
    path = tmp_path / LATEST
    shutil.copy(trained / LATEST, path)
    weights = load_checkpoint(path)["model"]["head.weight"].numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(weights) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UnetlibError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("how", CUTS, ids=str)
def test_with_a_damaged_best_model_the_one_before_is_judged_and_named(matrix, trained, tmp_path, how):
    shutil.copytree(trained, out := tmp_path / "run")
    damaged(out / BEST, how)
    summary = evaluate(out, device="cpu")
    older = load_checkpoint(out / f"previous_{BEST}")
    assert summary["epoch"] == older["epoch"] != load_checkpoint(trained / BEST)["epoch"]
    assert f"{BEST} is damaged" in summary["note"]
    assert f"previous_{BEST}, the checkpoint before it, is used" in summary["note"]


def test_with_no_good_checkpoint_left_nothing_is_made_up(matrix, tmp_path):
    stopped_run(matrix, out := tmp_path / "run")
    for name in (LATEST, f"previous_{LATEST}"):
        damaged(out / name, ("cut", 0.5))
    before = content_bytes(out)
    outcome = run(matrix.words("train", out), tmp_path / "log")
    assert outcome.code == 1
    assert f"{out / LATEST} is damaged" in outcome.output
    assert "delete it to start over" in outcome.output
    assert content_bytes(out) == before


def content_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def has_namespaces():
    """True where this user may mount a small disk of their own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="no mount namespaces on this machine")
@pytest.mark.parametrize(("command", "share"), [("prepare", 0.6), ("train", 0.7)])
def test_on_a_disk_that_is_full_or_read_only_the_good_state_is_kept(matrix, tmp_path, command, share):
    """A real file system: too small, then read-only, then large enough, each with the same command."""
    expected, disk = matrix.undisturbed(command)[0], tmp_path / "disk"
    size = sum(path.stat().st_size for path in (matrix.folder / "undisturbed" / command).rglob("*"))
    words = " ".join(shlex.quote(str(word)) for word in [sys.executable, "-m", "unetlib", *matrix.words(command, disk)])
    script = f"""
        mount -t tmpfs -o size={int(size * share) // 1024}k none {disk} || exit 9
        {words} > {tmp_path}/full 2>&1; echo $? >> {tmp_path}/codes
        mount -o remount,ro {disk}
        {words} > {tmp_path}/readonly 2>&1; echo $? >> {tmp_path}/codes
        mount -o remount,rw,size=100m {disk}
        {words} > {tmp_path}/room 2>&1; echo $? >> {tmp_path}/codes
        cp -a {disk} {tmp_path}/kept
    """
    disk.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], env=environment, check=True)
    full, readonly, room = ((tmp_path / name).read_text() for name in ("full", "readonly", "room"))
    assert (tmp_path / "codes").read_text().split() == ["1", "1", "0"], full + readonly + room
    assert "No space left on device" in full
    assert "Read-only file system" in readonly
    assert "Traceback" not in full + readonly + room
    assert same(content(tmp_path / "kept"), expected)


def test_the_stop_button_of_a_notebook_ends_with_a_checkpoint_and_says_how_to_go_on(matrix, tmp_path):
    out = tmp_path / "run"
    recipe = f"Recipe(width={SMALL.width}, depth={SMALL.depth}, epochs={SMALL.epochs}, precision='fp32')"
    code = f"""
import signal, socket
from pathlib import Path
import torch
from unetlib.recipe import Recipe
from unetlib.runs.training import train

torch.set_num_threads(1)

def wait(rows):  # for the signal, which may come before the next line, and to any thread
    read, write = socket.socketpair()
    write.setblocking(False)
    before = signal.set_wakeup_fd(write.fileno())
    print("an epoch is done", flush=True)
    read.recv(1)
    signal.set_wakeup_fd(before)

train(Path({str(matrix.folder / "prepared")!r}), Path({str(out)!r}), {recipe}, "cpu", {EVERY}, on_epoch=wait)
"""
    manager, client = start_new_kernel(kernel_name="python3", cwd=Path.cwd())
    try:
        request = client.execute(code)
        while "an epoch is done" not in client.get_iopub_msg(timeout=120)["content"].get("text", ""):
            pass
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != request:
            pass
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "KeyboardInterrupt")
    assert "with a checkpoint. The same command goes on there." in reply["content"]["evalue"]
    assert run(matrix.words("train", out), tmp_path / "log").code == 0
    assert same(content(out), matrix.undisturbed("train")[0])
