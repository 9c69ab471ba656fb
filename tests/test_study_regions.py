"""The study of sequences and regions: its folds, its scores, its tables."""

import numpy as np
import pandas as pd
import pytest

from studies import regions
from studies.cells import scores_of_regions
from tests.test_sequences import FOUR, write
from unetlib.data.prepare import prepare
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import results_table
from unetlib.metrics import Counts, dice
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.support.files import read_json


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions") / "data"
    for index in range(12):
        write(folder, index)
    return folder


def test_every_patient_is_tested_once_and_validates_once(patients):
    splits = regions.folds_of(patients)
    for part in ("test", "val"):
        seen = [patient for split in splits for patient in getattr(split, part)]
        assert len(seen) == len(set(seen)) == 12
    assert {len(split.train) for split in splits} == {8}


def test_the_arms_differ_in_nothing_but_their_sequences():
    flair, four = regions.ARMS["flair"].as_dict(), regions.ARMS["four"].as_dict()
    assert {name for name in flair if flair[name] != four[name]} == {"modalities"}


def test_the_scores_of_every_region_are_those_of_the_evaluation(patients, tmp_path):
    train(prepare(patients, tmp_path / "p", FOUR, workers=1), tmp_path / "run", FOUR, threads=1)
    summary = evaluate(tmp_path / "run", device="cpu")
    run = Run(tmp_path / "run")
    found = pd.DataFrame(scores_of_regions(run.evaluation)).T
    assert set(found.index) == run.split.patients("test")
    for region, begin in regions.REGIONS.items():

        def score(*wanted, region=region):
            return next(
                entry
                for entry in summary["figures"]
                if (entry["region"], entry["grid"], entry["slices"], entry["aggregation"]) == (region, *wanted)
            )

        assert found[begin + "dice"].mean() == pytest.approx(score("native", "all", "per patient")["dice"])
        counts = Counts(*(np.array(found[f"{begin}model.{name}"].sum()) for name in ("tp", "fp", "fn", "tn")))
        assert float(dice(counts)) == pytest.approx(score("model", "tumour", "pooled")["dice"])
    assert read_json(run.evaluation / "summary.json")["tumour_slices"] == 4 * len(found)


def test_the_table_gives_the_paired_difference_of_each_region():
    columns = [
        begin + score for begin in regions.REGIONS.values() for score in ("dice", "lesion_dice", "lesion_hd95_mm")
    ]
    flair = pd.DataFrame(0.5, index=["a", "b", "c"], columns=columns)
    four = flair.copy()
    four["enhancing.dice"] = [0.7, 0.8, 0.9]
    table = regions.compared({"flair": flair, "four": four[::-1]})
    row = next(line for line in table.splitlines() if line.startswith("| Dice | enhancing"))
    assert "0.500" in row
    assert "+0.300 (+0.200 to +0.400)" in row
    assert "+0.000" in next(line for line in table.splitlines() if line.startswith("| Dice | whole"))


def test_the_printed_table_names_every_region(patients, tmp_path):
    train(prepare(patients, tmp_path / "p", FOUR, workers=1), tmp_path / "run", FOUR, threads=1)
    lines = results_table(evaluate(tmp_path / "run", device="cpu")).splitlines()
    for region in regions.REGIONS:
        assert sum(line.startswith(f"{region} ") for line in lines) == 12
        assert sum(line.startswith(f"region {region}: ") for line in lines) == 3  # surfaces, lesions, volumes
