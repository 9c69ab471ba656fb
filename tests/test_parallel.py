"""Several processes train as one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import BEST, LATEST, SMALL, some
from unetlib.engine import parallel
from unetlib.engine.parallel import SharedBatchNorm, share_statistics
from unetlib.networks import build_network
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.support.files import read_csv

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
FLAGS = ["--width", "4", "--depth", "2", "--epochs", "2", "--precision", "fp32", "--device", "cpu", "--batch-size", "3"]


def python(processes, *words):
    """Run Python with these words, in several processes by torchrun where there are several."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *(torchrun if processes > 1 else []), *map(str, words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


def command(processes, *words):
    """Run a command of unetlib."""
    return python(processes, "-m", "unetlib", *words)


@pytest.fixture(scope="module")
def runs(prepared, tmp_path_factory):
    """The same training by one process, by two, and by two that are stopped and resumed by one.

    28 slices in batches of 3 leave one for the last step: the second process then has none.
    """
    folder = tmp_path_factory.mktemp("runs")
    said = {}
    for name, processes, more in (("one", 1, []), ("two", 2, []), ("both", 2, ["--max-steps", "13"]), ("both", 1, [])):
        done = command(processes, "train", prepared, folder / name, *FLAGS, *more)
        assert done.returncode == 0, done.stderr
        assert ("same command goes on there" in done.stdout) == bool(more)
        said[name, processes] = done.stdout
    return folder, said


PROBE = """
import os, sys, torch
from lightning_fabric import Fabric
from unetlib.engine.device import leave_group
from unetlib.losses import get_loss
from unetlib.engine.parallel import gather, own_rows, share_statistics
from unetlib.unet import UNet

torch.set_default_dtype(torch.float64)  # in which the engine returns what a network gives

def main():
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2, precision="64-true")
    fabric.launch()
    for number in (1, 3, 4):
        torch.manual_seed(number)
        images, masks = torch.randn(number, 1, 16, 16).double(), (torch.rand(number, 1, 16, 16) > 0.5).double()
        networks = [UNet(width=4, depth=2).double() for _ in range(2)]
        networks[1].load_state_dict(networks[0].state_dict())
        share_statistics(networks[1])
        net = fabric.setup_module(networks[1])
        alone = get_loss("dice+bce")(networks[0](images), masks)
        alone.backward()
        both = get_loss("dice+bce")(gather(fabric, net(own_rows(fabric, images)), number), masks)
        fabric.backward(both)
        torch.testing.assert_close(both, alone, rtol=1e-12, atol=1e-12)
        for (name, a), b in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
            said = lambda text: f"{number} {name}: {text}"
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-8, atol=1e-12, msg=said)
        for (name, a), b in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
            said = lambda text: f"{number} {name}: {text}"
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12, msg=said)
    print("exact in", fabric.global_rank)

main()
leave_group()
"""


def test_in_double_precision_two_processes_have_the_loss_and_gradients_of_one(tmp_path):
    """The sums are the same sums: what differs in single precision is rounding, and Adam makes much of that."""
    (tmp_path / "probe.py").write_text(PROBE)
    done = python(2, tmp_path / "probe.py")
    assert done.stdout.count("exact in") == 2, done.stderr


@pytest.mark.parametrize("name", ["two", "both"])
def test_the_loss_curve_is_that_of_one_process_but_for_rounding(runs, name):
    folder, _ = runs
    curves = [read_csv(folder / one / "history.csv") for one in (name, "one")]
    for ours, alone in zip(*curves, strict=True):
        for column in ("train_loss", "val_loss", "val_dice"):
            assert float(ours[column]) == pytest.approx(float(alone[column]), rel=1e-2)


@pytest.mark.parametrize("name", ["two", "both"])
def test_the_weights_and_statistics_are_those_of_one_process_but_for_rounding(runs, name):
    folder, _ = runs
    ours, alone = (load_checkpoint(folder / one / LATEST) for one in (name, "one"))
    for key, value in alone["model"].items():
        torch.testing.assert_close(ours["model"][key], value, rtol=1e-2, atol=1e-2)
    assert ours["progress"]["epoch"] == alone["progress"]["epoch"] == 2


def test_one_process_writes_and_speaks(runs):
    folder, said = runs
    assert said["two", 2].count("epoch 1, train_loss") == 1
    assert said["two", 2].count("best validation Dice") == 1
    assert {path.name for path in (folder / "two").iterdir()} == {path.name for path in (folder / "one").iterdir()}
    assert (folder / "two" / BEST).exists()


def test_a_command_that_is_one_process_refuses_torchrun(runs):
    done = command(2, "evaluate", runs[0] / "one")
    assert done.returncode != 0
    assert "Start it without torchrun" in done.stderr


@pytest.fixture
def alone(monkeypatch):
    """Sums over one process: what it has itself."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_shared_batch_norm_is_batch_norm(alone, dtype, close):
    """In bfloat16 what comes out is rounded; the statistics and the gradients of the weights are not."""
    torch.manual_seed(0)
    theirs, ours = nn.BatchNorm2d(3), SharedBatchNorm(3)
    for module in (theirs, ours):
        nn.init.uniform_(module.weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(module.bias, -1, 1, generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        x = (5 * torch.randn(4, 3, 7, 6) + 100).to(dtype, memory_format=torch.channels_last).requires_grad_()
        y = x.detach().clone().requires_grad_()
        a, b = theirs(x), ours(y)
        assert b.dtype == dtype
        torch.testing.assert_close(b, a, rtol=close, atol=close)
        pull = torch.randn_like(a)
        (a * pull).sum().backward()
        (b * pull).sum().backward()
        torch.testing.assert_close(y.grad, x.grad, rtol=10 * close, atol=close)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=10 * close, atol=close)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-4)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(theirs.eval()(x).isfinite(), ours.eval()(x).isfinite())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_sharing_statistics_changes_neither_names_nor_weights():
    model, before = build_network(SMALL), build_network(SMALL).state_dict()
    share_statistics(model)
    assert any(isinstance(module, SharedBatchNorm) for module in model.modules())
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Team:
    """Stands in for the engine: the shares of several processes, one after the other."""

    def __init__(self, size, rank):
        self.world_size, self.global_rank = size, rank


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_the_shares_are_the_batch_in_order(size, number):
    batch = torch.arange(number)[:, None]
    shares = [parallel.own_rows(Team(size, rank), batch) for rank in range(size)]
    assert torch.equal(torch.cat(shares), batch)
    assert np.ptp([len(share) for share in shares]) <= 1


@pytest.mark.parametrize("size", [2, 3])
def test_gathered_rows_stand_where_they_were(alone, size):
    batch = torch.randn(5, 2)
    rows = [parallel.gather(Team(size, rank), parallel.own_rows(Team(size, rank), batch), 5) for rank in range(size)]
    assert torch.equal(torch.stack(rows).sum(0), batch)


def test_an_average_of_the_weights_and_neighbours_are_those_of_one_process(strong_prepared, tmp_path):
    """And the decision is chosen by one of them, on the averaged weights."""
    flags = [
        *FLAGS,
        "--recipe",
        "strong",
        "--no-phantoms",
        "--epochs",
        1,
        "--average",
        0.9,
        "--neighbours",
        1,
        "--no-warp",
        "--no-intensity",
    ]
    for name, processes in (("one", 1), ("two", 2)):
        done = command(processes, "train", strong_prepared, tmp_path / name, *flags)
        assert done.returncode == 0, done.stderr
    ours, alone = (load_checkpoint(tmp_path / name / LATEST) for name in ("two", "one"))
    for part in ("model", "average"):
        for key, value in alone[part].items():
            torch.testing.assert_close(ours[part][key], value, rtol=2e-2, atol=2e-2)
    two, one = (tmp_path / name for name in ("two", "one"))
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    best = load_checkpoint(two / BEST)["model"]
    assert all(torch.equal(best[key], value) for key, value in ours["average"].items())


THREADS = """
import atexit, os, sys
from pathlib import Path

def report(folder=Path(__file__).parent):  # a file each: lines of two processes on one pipe may mix
    left = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    (folder / ("left-" + os.environ["RANK"])).write_text(str([name for name in left if "gloo" in name]))

atexit.register(report)  # before the group registers its end, so that this comes after it
from unetlib.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not list a process's threads")
@pytest.mark.parametrize("more", some([(), ("--max-steps", "2")], [("--max-steps", "2")]))
def test_no_thread_of_the_group_outlives_the_command(prepared, tmp_path, more):
    """One that returns a tensor to Python while Python ends aborts the process, now and then."""
    (tmp_path / "threads.py").write_text(THREADS)
    done = python(2, tmp_path / "threads.py", "train", prepared, tmp_path / "run", *FLAGS, *more)
    left = [path.read_text() for path in tmp_path.glob("left-*")]
    assert set(left) == {"[]"}, done.stderr
    assert len(left) == 2, done.stderr
