"""What the benchmarks say rests on these: the counts, the contenders, the patients, the file of results."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import common, contenders, train_step
from benchmarks.quality import reached
from tests.conftest import SMALL, some
from unetlib.data.patients import find_cases
from unetlib.data.prepare import prepare
from unetlib.unet import UNet

ROOT = Path(__file__).parents[1]


def test_make_bench_runs_every_benchmark_and_make_study_every_study():
    makefile = (ROOT / "Makefile").read_text()
    shared = {
        "benchmarks": {"__init__", "common", "contenders", "peers"},
        "studies": {"__init__", "cells", "deep", "encoder", "results", "oracles", "lesions", "contrasts", "gpu"},
    }
    for folder, target in (("benchmarks", "bench"), ("studies", "study")):
        made = {path.stem for path in (ROOT / folder).glob("*.py")} - shared[folder]
        recipe = makefile.partition(f"\n{target}:")[2].partition("\n\n")[0]
        assert set(re.findall(rf"{folder}\.(\w+)", recipe)) == made


def test_operations_are_those_of_the_convolutions():
    network, found = UNet(width=4, depth=2), []

    def count(module: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        products = output[0].numel() * module.in_channels * module.kernel_size[0] ** 2
        found.append(products * (2 if inputs[0] is picture else 3))  # the picture needs no gradient

    picture = torch.zeros(1, 1, 96, 96)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network(picture)
    assert contenders.gflop(partial(UNet, width=4, depth=2)) == pytest.approx(2 * sum(found) / 1e9, rel=1e-9)


@pytest.mark.parametrize("make", some([contenders.basic_unet, contenders.monai_unet], []))
def test_the_other_networks_have_as_many_operations_as_ours(make):
    ours = contenders.gflop(UNet)
    width = contenders.fitting_width(make, ours)
    assert contenders.gflop(partial(make, width)) == pytest.approx(ours, rel=0.04)


def test_all_contenders_are_given_the_same_slices():
    slices = train_step.noisy_discs(4)
    slices = replace(slices, masks=slices.images)  # so that a mask which is turned otherwise than its image is seen
    samples = train_step.Samples(slices)
    for index in range(4):
        image, mask = samples[index]
        assert torch.equal(image, mask)
        assert torch.equal(image.flatten().sort().values, slices.batch(np.array([index]))[0].flatten().sort().values)


def test_linked_patients_count_each(cohort, tmp_path):
    made = sorted(cohort.iterdir())[:2]
    folder = common.link(made, tmp_path / "many", 5)
    prepared = prepare(folder, tmp_path / "prepared", SMALL, workers=1)
    assert (len(prepared.about["cases"]), prepared.about["left_out"]) == (5, {})
    masks = [np.asarray(nib.load(case.files()[1]).dataobj) for case in find_cases(folder).cases]
    assert all((masks[index] == masks[index % 2]).all() for index in range(5))


def test_every_benchmark_ends_as_a_command_does():
    """A stop then ends the programs that it has started, and its folders are deleted."""
    for path in [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "studies").glob("*.py")]:
        if end := path.read_text().partition('__name__ == "__main__":\n')[2]:
            assert end.strip().startswith("run_command(main"), path.name


def test_a_section_replaces_its_predecessor_and_leaves_the_others(tmp_path):
    page = tmp_path / "RESULTS.md"
    for name, text in (("a", "first"), ("b", "other"), ("a", "second")):
        common.record(name, text, "more", page=page)
    text = page.read_text()
    assert "first" not in text
    assert text.index("second\n\nmore") < text.index("other")
    page.write_text(text.replace("<!-- a -->", "By hand.\n\n<!-- a -->"))
    common.record("a", "third", page=page)
    assert "By hand.\n\n<!-- a -->\nthird\n<!-- end of a -->" in page.read_text()


def test_a_report_says_what_was_run(monkeypatch):
    recorded = []
    monkeypatch.setattr(common, "record", lambda name, *blocks: recorded.append((name, *blocks)))
    options = common.parser("benchmarks.some", "What it does.\n\nMore.", seconds=4.0, device="cpu")
    options.add_argument("--patients", type=int, nargs="+", default=[10, 100])
    options.add_argument("--compile", action="store_true")
    options.add_argument("--measure", nargs=3)
    given = options.parse_args(["--compile", "--seconds", "2"])
    common.report("some", "Title", "About.", "table", options=given, packages=("numpy",))
    name, title, about, table, signature = recorded[0]
    assert (name, title, table) == ("some", "## Title", "table")
    assert about == "About. Everything is defined at the top of `benchmarks/some.py`."
    command = (
        "`python -m benchmarks.some --seconds 2.0 --device cpu --patients 10 100 --compile`, medians (quartiles); "
    )
    assert signature == f"{command}{common.machine(('numpy',))}."


def test_a_table_is_markdown():
    assert common.markdown_table(("a", "b"), [(1, "x"), (2, "")]) == "| a | b |\n|---|---|\n| 1 | x |\n| 2 |  |"


@pytest.mark.parametrize(
    ("values", "text"), [([5], "5 (5 to 5)"), ([110, 100], "105 (100 to 110)"), ([4, 1, 2, 3], "2.5 (1.25 to 3.75)")]
)
def test_a_spread_is_the_median_and_what_surrounds_it(values, text):
    assert common.spread(values) == text


def test_every_round_begins_with_the_next():
    orders = ["".join(name for name, _ in common.in_turn({"a": 1, "b": 2, "c": 3}, turn)) for turn in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]


@pytest.mark.parametrize(("dice", "epoch"), [([0.1, 0.5, 0.4], 2), ([0.1, 0.2, 0.3], 3), ([0.3, 0.3], 1)])
def test_a_quality_is_reached_by_the_first_epoch_no_worse_than_the_last(dice, epoch):
    assert reached([{"epoch": i, "val_dice": value} for i, value in enumerate(dice, 1)]) == epoch


def test_the_profile_tells_kinds_of_work_apart():
    layer = nn.Conv2d(8, 8, 3)
    adam = torch.optim.Adam(layer.parameters())

    def step() -> None:
        layer(torch.ones(4, 8, 64, 64)).sum().backward()
        adam.step()

    shares = train_step.profile(step)
    assert min(shares["convolutions"], shares["Adam"]) > 0
    assert shares["batch norm"] == shares["ReLU"] == 0
