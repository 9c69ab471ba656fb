"""The model card of several regions: each has its scores under its name, and none is added to another."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.test_card import carded, words  # noqa: F401 - a fixture
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.summary import SLICES_FILE, patient_rows, results, surface_summary
from unetlib.recipe import Recipe
from unetlib.runs.run import Run
from unetlib.show import card, plots
from unetlib.support.files import read_csv

NAMES = ("whole", "core")


def with_core(rows):
    """The rows of one region as those of two: of the core only a third of what was found is found."""
    twice = [{**row, "region": region} for row in rows for region in (0, 1)]
    for row in twice[1::2]:
        for grid in ("model", "native"):
            lost = row[f"{grid}_tp"] - row[f"{grid}_tp"] // 3
            row[f"{grid}_tp"] -= lost
            row[f"{grid}_fn"] += lost
    return twice


@pytest.fixture(scope="module")
def page(carded):  # noqa: F811
    """The facts and the text of a card as if its network had found two regions, and the names of its images."""
    run = Run.of(carded[0])
    summary = evaluate(run, device="cpu")
    rank, read = plots.worst(run, 1, "cpu"), read_csv(run.evaluation / SLICES_FILE)
    numbers = [{k: int(v) if v.isdecimal() else v for k, v in row.items()} for row in read]
    slices = with_core(numbers)
    surfaces = [
        {
            "case": row["case"],
            "patient": row["patient"],
            "region": region,
            "hd95_mm": 2.0 + 7 * region,
            "surface_dice": 1,
            "lesion_dice": 1,
        }
        for row in numbers
        for region in (0, 1)
    ]
    found = patient_rows(slices, surfaces)
    patients = [{k: str(v) for k, v in row.items()} for row in found]
    patients = [row for row in patients if (row["grid"], row["slices"]) == ("native", "all")]
    stacks = [
        replace(one, truth=np.stack([one.truth] * 2), prediction=np.stack([one.prediction] * 2), regions=NAMES)
        for one in rank
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "named_regions", lambda _: NAMES)
        patch.setattr(
            card, "read_csv", lambda path, **kinds: slices if path.name == SLICES_FILE else read_csv(path, **kinds)
        )
        patch.setattr(card, "read_patients", lambda _: patients)
        facts = card._read(run, {**summary, "figures": results(slices), "surface": surface_summary(found)})
        return facts, card._page(run, facts, stacks), card._images(facts, stacks)


def row(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
    return [one.strip() for one in line.strip("| ").split(" | ")[1:]]


def test_every_score_stands_under_its_region(page):
    facts, text, _ = page
    assert "| on the test patients | whole | core |\n| --- | --- | --- |\n" in text
    dices = [[float(one) for one in region.dices] for region in facts.regions]
    assert np.mean(dices[0]) > np.mean(dices[1]) + 0.1
    shown = row(text, "**Dice, per patient")
    assert [float(one.split()[0]) for one in shown] == pytest.approx([np.mean(own) for own in dices], abs=0.0006)
    assert row(text, "HD95") == [f"{mm:.1f} mm (0 patients)" for mm in (2, 9)]
    for name, metric in (("precision", "precision"), ("recall", "recall")):
        own = [card._score(region, "native", "all", "per patient")[metric] for region in facts.regions]
        assert [float(one) for one in row(text, name)] == pytest.approx(own, abs=0.0006)
    pooled = [card._score(region, "model", "tumour", "pooled")["dice"] for region in facts.regions]
    assert [float(one) for one in row(text, "Dice, pooled")] == pytest.approx(pooled, abs=0.0006)


def test_the_text_names_the_regions_and_speaks_of_the_first_alone(page):
    facts, text, _ = page
    assert "the probability of each region (whole, core) for each pixel" in words(text)
    assert "at 0.5 for whole; at 0.5 for core" in words(text)
    assert "validation Dice (mean of the regions, pooled" in words(text)
    dices = facts.regions[0].dices
    assert f"Dice of a patient for whole ranges from {dices.min():.3f} to {dices.max():.3f}" in words(text)
    case = facts.regions[0].rows[0]["patient"]
    true = sum(
        (one["native_tp"] + one["native_fn"]) * one["ml"] for one in facts.regions[0].rows if one["patient"] == case
    )
    assert card._errors(facts.regions[0].rows, case)["true_ml"] == pytest.approx(true)
    assert re.search(r"The region whole has \d+\.\d ml", text)


def test_every_image_of_the_page_is_there(page):
    _, text, images = page
    assert sorted(re.findall(r"\((\S+\.png)\)", text)) == sorted(images)


def test_lesions_stand_under_their_region():
    lesions = [
        {"region": k, "dice": 0.5 - 0.1 * k, "lesions": 3, "lesions_missed": k, "lesion_false_alarms": 1}
        for k in (0, 1)
    ]
    surfaces = [{"region": k, "hd95_mm": k + 2.0, "hd95_undefined": k, "unit": "mm"} for k in (0, 1)]
    summary = {"figures": [], "lesions": lesions, "surface": surfaces}
    found = [card._region(k, name, summary, [], []) for k, name in enumerate(NAMES)]
    assert [one.lesions["dice"] for one in found] == [0.5, 0.4]
    assert [(one.hd95, one.hd95_undefined) for one in found] == [("2.0 mm", 0), ("3.0 mm", 1)]


def test_the_commands_of_the_card_need_no_quotes_which_not_every_shell_knows():
    recipe = Recipe.published.but(modalities="flair t1", regions="whole solid=1+4")
    changes = {name: (getattr(recipe, name), "") for name in ("modalities", "regions")}
    flags = card._flags(recipe, changes)["prepare"]
    assert flags == " --modalities flair t1 --regions whole solid=1+4"
