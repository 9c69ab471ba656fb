"""From probabilities to a mask, against a flood fill by hand; the choice, against every mask that is tried."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import BEST, LATEST, STRONG
from unetlib.prediction.decision import (
    SIZES_ML,
    THRESHOLDS,
    Decision,
    choose,
    dice_table,
    read_decision,
    write_decision,
)
from unetlib.runs.checkpoint import save_checkpoint
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json

SPACING = (2.0, 3.0, 5.0)  # 0.03 ml a voxel


def flood_fill(found):
    """The pieces of a mask that touch by their faces, each as a list of voxels."""
    left, pieces = {tuple(place) for place in np.argwhere(found).tolist()}, []
    while left:
        piece, edge = [], [left.pop()]
        while edge:
            x, y, z = edge.pop()
            piece.append((x, y, z))
            near = {(x + 1, y, z), (x - 1, y, z), (x, y + 1, z), (x, y - 1, z), (x, y, z + 1), (x, y, z - 1)}
            edge += near & left
            left -= near
        pieces.append(piece)
    return pieces


def probabilities(seed, shape=(7, 6, 5)):
    """Probabilities, some of them exactly a threshold that is tried."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.3, rng.choice(THRESHOLDS, shape), rng.random(shape)).astype(np.float32)


@given(st.integers(0, 10**6), st.sampled_from(THRESHOLDS), st.sampled_from((0.0, 0.03, 0.05, 0.1, 0.3, 1.0, 3.0)))
def test_a_mask_holds_the_pieces_that_are_large_enough_and_the_largest(seed, threshold, smallest):
    found = probabilities(seed)
    expected = np.zeros(found.shape, bool)
    pieces = flood_fill(found >= threshold)
    for piece in pieces:
        if len(piece) * 2 * 3 * 5 / 1000 >= smallest or len(piece) == max(map(len, pieces)):
            expected[tuple(np.transpose(piece))] = True
    mask = Decision(threshold, smallest).mask(found, SPACING)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)


def test_voxels_that_touch_by_an_edge_are_two_pieces():
    found = np.zeros((3, 3, 1), np.float32)
    found[0, 0] = found[1, 1] = found[1, 2] = 1
    assert Decision(0.5, 0.06).mask(found, SPACING).sum() == 2
    found[0, 1] = 1
    assert Decision(0.5, 0.06).mask(found, SPACING).sum() == 4


def test_a_small_tumour_is_not_erased_by_a_number_chosen_on_large_ones():
    found = np.zeros((4, 4, 4), np.float32)
    found[0, 0, 0] = found[2, 2, 2] = found[2, 2, 3] = 1
    assert Decision(0.5, 3.0).mask(found, SPACING).sum() == 2


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("smallest", [0.0, 0.1])
def test_nothing_and_everything_are_masks_too(value, smallest):
    found = np.full((4, 4, 4), value, np.float32)
    assert Decision(0.5, smallest).mask(found, SPACING).all() == (value == 1)
    assert Decision(0.5, smallest).mask(found, SPACING).any() == (value == 1)


@given(st.integers(0, 10**6), st.booleans())
def test_every_entry_of_the_table_is_the_dice_of_its_mask(seed, empty):
    found = probabilities(seed)
    truth = (np.random.default_rng(seed + 1).random(found.shape) < 0.4) & (not empty)
    table = dice_table(found, truth, SPACING)
    assert np.shape(table) == (len(THRESHOLDS), len(SIZES_ML))
    for i, threshold in enumerate(THRESHOLDS):
        for j, smallest in enumerate(SIZES_ML):
            mask = Decision(threshold, smallest).mask(found, SPACING)
            one, other = set(np.flatnonzero(mask)), set(np.flatnonzero(truth))
            expected = 2 * len(one & other) / (len(one) + len(other)) if one | other else 1.0
            assert table[i][j] == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10**6))
def test_the_highest_mean_is_chosen(seed):
    tables = np.random.default_rng(seed).random((3, len(THRESHOLDS), len(SIZES_ML)))
    best, chosen = -1.0, None
    for i, threshold in enumerate(THRESHOLDS):
        for j, smallest in enumerate(SIZES_ML):
            if (mean := sum(table[i, j] for table in tables) / 3) > best:
                best, chosen = mean, Decision(threshold, smallest)
    assert choose(tables.tolist()) == chosen


def test_of_equal_ones_the_most_usual_is_chosen():
    even = np.full((len(THRESHOLDS), len(SIZES_ML)), 0.5)
    assert choose([even.tolist()]) == Decision(0.5, 0.0)
    at = {threshold: i for i, threshold in enumerate(THRESHOLDS)}
    for better, expected in (
        ([(0.6, 1.0), (0.9, 0.0)], Decision(0.6, 1.0)),  # first the threshold, then the component
        ([(0.6, 1.0), (0.6, 0.3)], Decision(0.6, 0.3)),
        ([(0.2, 0.0), (0.7, 3.0)], Decision(0.7, 3.0)),
    ):
        table = even.copy()
        for threshold, smallest in better:
            table[at[threshold], SIZES_ML.index(smallest)] = 0.9
        assert choose([table.tolist()]) == expected
        assert choose([table.tolist(), (table + 1e-15).tolist()]) == expected  # rounding is no difference


@pytest.fixture
def run(tmp_path):
    """A folder with weights and the decision for them."""
    (tmp_path / BEST).write_bytes(b"weights")
    write_decision(Run(tmp_path), Decision(0.3, 1.0), 0.75, 8, STRONG.mirror)
    return tmp_path


def test_a_decision_is_read_as_it_was_written(run):
    assert read_decision(Run(run), STRONG) == Decision(0.3, 1.0)
    content = read_json(run / "decision.json")
    assert (content["validation_dice"], content["validation_patients"]) == (0.75, 8)


def test_a_decision_of_an_older_version_was_made_with_the_mirror_of_its_training(run):
    save_checkpoint(run / BEST, {"model": {}, "recipe": {"mirror": True}})
    write_decision(Run(run), Decision(0.3, 1.0), 0.75, 8, mirror=True)
    content = read_json(run / "decision.json")
    del content["mirror"]
    (run / "decision.json").write_text(json.dumps(content))
    assert read_decision(Run(run), STRONG.but(mirror=True)) == Decision(0.3, 1.0)
    assert read_decision(Run(run), STRONG.but(mirror=False)) is None


def test_a_recipe_that_does_not_tune_has_its_threshold_whatever_lies_there(run):
    assert read_decision(Run(run), STRONG.but(tune=False, threshold=0.4)) == Decision(0.4, 0.0)


def test_without_a_file_or_for_other_weights_nothing_has_been_decided(run):
    (run / BEST).write_bytes(b"weights of a later epoch")
    assert read_decision(Run(run), STRONG) is None
    (run / "decision.json").unlink()
    assert read_decision(Run(run), STRONG) is None


@pytest.mark.parametrize(
    "change",
    [
        *({"threshold": wrong} for wrong in (0.31, 0, None, "0.5", [0.5])),
        *({"smallest_ml": wrong} for wrong in (-1.0, 1e9, {})),
    ],
)
def test_an_edited_decision_is_a_sentence(run, change):
    (run / "decision.json").write_text(json.dumps(read_json(run / "decision.json") | change))
    wrong = r"decision\.json: its (threshold|smallest_ml) is .* was expected.*"
    with pytest.raises(UnetlibError, match=wrong + r"unetlib\.tune") as caught:
        read_decision(Run(run), STRONG)
    assert "unetlib train" not in str(caught.value)  # without a checkpoint it would replace the weights
    (run / LATEST).touch()
    with pytest.raises(UnetlibError, match=wrong + "unetlib train"):
        read_decision(Run(run), STRONG)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"threshold": NaN}', "{}"])
def test_a_damaged_decision_is_a_sentence(run, text):
    (run / "decision.json").write_text(text)
    with pytest.raises(UnetlibError, match=r"decision\.json"):
        read_decision(Run(run), STRONG)
