"""The race: what its contenders learn from, and how they are scored."""

import re

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F

from benchmarks import peers, race
from tests.conftest import STRONG
from unetlib import Run
from unetlib.data.prepared import Prepared
from unetlib.runs.checkpoint import load_checkpoint
from unetlib.support.errors import UnetlibError


@pytest.fixture(scope="module")
def volumes():
    rng, found = np.random.default_rng(0), []
    for _ in range(2):
        mask = np.zeros((120, 112, 5), bool)
        mask[20:50, 30:70, 1:4] = True
        found.append((rng.normal(100, 10, mask.shape) + 80 * mask, mask))
    return found


@pytest.mark.parametrize("name", ["basic", "attention"])
def test_half_of_the_crops_are_centred_on_tumour_where_there_is_some(volumes, name):
    peer, tumour, number = peers.PEERS[name](volumes), 0, 0
    for _ in range(20):
        images, masks = peer.draw()
        assert images.shape == masks.shape == (8, 1, 96, 96)
        assert (images.amin(), images.amax()) >= (0, 0)
        assert set(masks.unique().tolist()) <= {0, 1}
        tumour, number = tumour + int(masks.flatten(1).any(1).sum()), number + 8
    assert 0.3 < tumour / number < 0.9


def test_whole_slices_are_drawn_mostly_with_tumour_and_stay_aligned(volumes):
    peer = peers.BrainSegmentation(volumes)
    images, masks = peer.draw()
    assert images.shape == (16, 3, 256, 256)
    assert masks.flatten(1).any(1).float().mean() > 0.7
    inside = masks[:, 0] > 0
    assert images[:, 1][inside].mean() > images[:, 1][~inside].mean() + 0.5


def test_a_prediction_has_the_shape_of_its_volume_and_a_step_changes_the_weights(volumes):
    peer = peers.Basic(volumes)
    before = [weight.clone() for weight in peer.network.parameters()]
    peer.step()
    assert any(not torch.equal(now, then) for now, then in zip(peer.network.parameters(), before, strict=True))
    assert peer.predict(volumes[0][0]).shape == volumes[0][0].shape


def test_the_score_is_the_dice_of_each_patient(volumes):
    found = {id(image): np.roll(mask, 7, axis=0) for image, mask in volumes}
    expected = [f1_score(mask.ravel(), found[id(image)].ravel()) for image, mask in volumes]
    assert race.score(lambda image: found[id(image)].astype(float), volumes) == pytest.approx(expected)
    with pytest.raises(UnetlibError, match="not finite"):
        race.score(lambda image: np.full(image.shape, np.nan), volumes)


def test_the_table_puts_points_under_their_planned_minutes():
    ours = [{"planned": 10, "minutes": 10.1, "dice": [0.7, 0.9]}]
    theirs = [{"planned": 2.5, "minutes": 2.5, "dice": [0.1]}, {"planned": 10, "minutes": 10.0, "dice": [0.5]}]
    lines = race.race_table({"strong": ours, "basic": theirs}).splitlines()
    assert lines[0] == "| contender | 2.5 min | 10 min |"
    assert lines[2:] == [
        "| ours: Recipe.strong |  | 0.800 (10.1) |",
        "| MONAI BasicUNet | 0.100 (2.5) | 0.500 (10.0) |",
    ]


def test_the_readme_has_the_scores_of_the_page():
    text = race.PAGE.parents[1].joinpath("README.md").read_text("utf-8").partition("**Time to quality**")[2]
    readme = [[*map(float, found)] for row in text.splitlines() if (found := re.findall(r"(\d\.\d{3}) \|", row))]
    curves = race.race_curves(race.PAGE.read_text("utf-8"))
    assert [*curves] == [*race.NAMES.values()]
    page = [[dice for minutes, dice in points if minutes > 4] for points in curves.values()]
    assert sorted(readme) == sorted(page)


def test_the_figure_has_a_curve_for_each_contender():
    curves = {race.NAMES["strong"]: [(5.0, 0.8), (40.0, 0.9)], "another": [(250.0, 0.7)]}
    axes = race.race_figure(curves).axes[0]
    assert {line.get_label(): [*map(tuple, line.get_xydata())] for line in axes.lines} == curves
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2.5", "5", "10", "20", "40", "80", "160"]


def test_a_peer_that_was_stopped_goes_on_where_it_was(volumes, tmp_path, monkeypatch):
    times = iter(range(0, 10**6, 20))  # each step takes 20 seconds of this clock
    monkeypatch.setattr(race.time, "process_time", lambda: next(times))
    monkeypatch.setattr(race, "MINUTES", (1, 3))
    monkeypatch.setattr(race, "score", lambda predict, val: [0.0])
    monkeypatch.setattr(peers.Basic, "make", lambda self: torch.nn.Conv2d(1, 1, 3, padding=1))
    whole, *stopped = (peers.Basic(volumes) for _ in range(4))
    points = list(race.race_peer(whole, volumes, tmp_path / "whole.pt", 0))
    kept = tmp_path / "kept.pt"
    first = next(race.race_peer(stopped[0], volumes, kept, 0))
    step, left = stopped[1].step, iter(range(4))  # the fifth is stopped: one of the four was not kept
    monkeypatch.setattr(stopped[1], "step", lambda: next(left) is None or step())
    begun = race.race_peer(stopped[1], volumes, kept, 1)
    with pytest.raises(RuntimeError):
        next(begun)
    assert [first, *race.race_peer(stopped[2], volumes, kept, 1)] == points
    for one, other in zip(whole.network.parameters(), stopped[2].network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["basic", "attention"])
def test_the_loss_of_crops_is_that_of_each_and_the_cross_entropy(volumes, name):
    """The mean of the Dice losses of the crops, not one Dice of all crops together; crops without tumour pull, too."""
    peer = peers.PEERS[name](volumes)
    logits, masks = torch.randn(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)
    masks[0, 0, :4] = 1
    p = torch.sigmoid(logits).flatten(1)
    each = 1 - (2 * (p * masks.flatten(1)).sum(1) + 1e-5) / (p.sum(1) + masks.flatten(1).sum(1) + 1e-5)
    pixels = F.binary_cross_entropy_with_logits(logits, masks)
    assert peer.loss(logits, masks).item() == pytest.approx((each.mean() + pixels).item())
    empty = logits.clone().requires_grad_()
    peer.loss(empty, torch.zeros_like(masks)).backward()
    assert empty.grad.abs().max() > 1e-4


@pytest.fixture
def ours(prepared, cohort, tmp_path, monkeypatch):
    """A race of our recipe alone on small patients, with trainings of one and two epochs."""
    monkeypatch.setattr(race, "EPOCHS", {5: 1, 10: 2})
    monkeypatch.setattr(race.Recipe, "strong", STRONG.but(upright=False))
    split = Prepared.open(prepared).split
    val = race.volumes(cohort, split.val)
    return lambda done=0: list(race.race_ours("scratch", cohort, split, tmp_path, val, done))


def test_ours_is_scored_with_the_last_averaged_weights(ours, tmp_path):
    points = ours()
    assert len(points) == 2
    run = Run(tmp_path / "scratch-10")
    trained = race.last(run).members[0]
    expected = load_checkpoint(run.latest)["average"]
    for name, weight in trained.network.state_dict().items():
        assert torch.equal(weight, expected[name.removeprefix("module.")])


def test_a_training_that_was_stopped_is_measured_as_a_whole(ours, tmp_path, monkeypatch):
    trained, train = [], race.train
    monkeypatch.setattr(
        race, "train", lambda *given, **more: trained.append(given[1].folder.exists()) or train(*given, **more)
    )
    (tmp_path / "scratch-10").mkdir()
    (tmp_path / "scratch-10" / "split.json").write_text("{}")
    assert len(ours(done=1)) == 1
    assert trained == [False]
