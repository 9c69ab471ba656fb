"""The study of networks: its arms, how their rates and epochs are chosen, its tables."""

import pandas as pd
import pytest

from studies import networks
from studies.cells import Cell
from studies.results import DICE
from tests.conftest import write_patient
from unetlib.data.prepare import prepare
from unetlib.dataset import epoch_order
from unetlib.networks import build_network
from unetlib.support.errors import UnetlibError

AS_UNET = {"network", "width", "depth", "deep_supervision"}  # what an arm in two dimensions may change


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "data"
    for index in range(12):
        write_patient(folder, index)
    return folder


@pytest.fixture
def scored(monkeypatch):
    """Scores by the names of cells, in the place of the table."""
    found = {}
    monkeypatch.setattr(Cell, "result", lambda cell: found.get(cell.name))
    monkeypatch.setattr(networks, "SECONDS", dict.fromkeys(networks.ARMS, 90.0))
    return found


def result(*dices, **about):
    rows = pd.DataFrame({DICE: dices, **about}, index=[f"p{number}" for number in range(len(dices))])
    return rows.assign(run="a", seconds=600.0, threads=1.0, **{"recipe.learning_rate": "0.002", "recipe.epochs": "10"})


def test_arms_in_two_dimensions_differ_in_nothing_but_their_network():
    unet = networks.ARMS["unet"].as_dict()
    for arm, recipe in networks.ARMS.items():
        build_network(recipe)
        if recipe.dims == 2:
            assert {name for name, value in recipe.as_dict().items() if value != unet[name]} <= AS_UNET, arm
        assert not recipe.phantoms


def test_the_rate_with_the_higher_mean_is_chosen_on_the_validation_patients_of_fold_0(scored, patients):
    names = [networks.rate_cell("unet", rate, patients).name for rate in networks.RATES]
    assert {networks.rate_cell("unet", rate, patients).part for rate in networks.RATES} == {"val"}
    scored[names[0]] = result(0.5, 0.7)
    with pytest.raises(UnetlibError, match=r"learning rate 0.0005 of unet is not measured yet"):
        networks.chosen_rate("unet", patients)
    scored[names[1]] = result(0.9, 0.2)
    assert networks.chosen_rate("unet", patients) == networks.RATES[0]
    scored[names[1]] = result(0.9, 0.4)
    assert networks.chosen_rate("unet", patients) == networks.RATES[1]
    for fold in range(networks.FOLDS):
        one, again = (networks.cell(name, fold, patients) for name in ("unet", "unet-seed-1"))
        assert one.part == "test"
        assert one.split == again.split
        assert (one.recipe.learning_rate, one.recipe.epochs) == (networks.RATES[1], 10)
        assert one.recipe.but(seed=1) == again.recipe


def test_the_time_of_an_epoch_is_that_of_its_steps(patients, tmp_path, monkeypatch):
    small = networks.ARMS["unet"].but(image_size=32, width=2, depth=2, batch_size=4)
    monkeypatch.setitem(networks.ARMS, "unet", small)
    times = iter([0, 24, 100, 103])  # two steps of 12 s, then a validation of 3 s
    monkeypatch.setattr(networks.time, "process_time", lambda: next(times))
    seconds = networks.seconds_of_epoch("unet", patients, tmp_path, steps=2)
    data = prepare(patients, tmp_path / "prepared-slices", small, workers=1)
    assert data.split == networks.folds_of(patients)[0]
    shown = len(epoch_order(data.dataset(), small.balance, small.seed, 0))
    assert seconds == 12 * -(-shown // 4) + 3


def test_before_its_time_is_measured_an_arm_has_no_epochs_and_the_page_can_be_written(patients, monkeypatch):
    monkeypatch.setattr(networks, "SECONDS", dict.fromkeys(networks.ARMS, 0.0))
    with pytest.raises(UnetlibError, match="the seconds of an epoch of dynunet are not measured yet: give --time"):
        networks.epochs_in("dynunet", 15)
    pages = []
    monkeypatch.setattr(networks, "record", lambda *blocks, page: pages.append(blocks))
    networks.write(patients)
    assert pages[0][1] == "Nothing is measured yet."


def test_the_means_are_also_given_without_the_patients_on_whom_rates_were_chosen(scored, patients, monkeypatch):
    for rate in networks.RATES:
        scored[networks.rate_cell("unet", rate, patients).name] = result(0.5)
    for fold in range(networks.FOLDS):
        one = networks.cell("unet", fold, patients)
        scored[one.name] = result(*[0.1 if fold == 1 else 0.9] * 2).set_index(pd.Index(one.split.test))
    pages = []
    monkeypatch.setattr(networks, "record", lambda *blocks, page: pages.append(blocks))
    networks.write(patients)
    rows = [block.splitlines()[2].split("|") for block in pages[0] if block.startswith("| arm | patients")]
    assert [(row[2].strip(), row[4].strip()) for row in rows] == [("12", "0.900"), ("10", "0.900")]
    assert "0.767" in rows[0][3]
    assert "0.900" in rows[1][3]


def test_arms_are_compared_on_the_patients_that_both_have_tested(scored):
    table = networks.compared({"unet": result(0.5, 0.6, 0.7), "dynunet": result(0.6, 0.7)})
    rows = [[word.strip() for word in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["unet", "3"], ["dynunet", "2"]]
    assert [row[-1] for row in rows] == ["10.0", "10.0"]
    assert rows[0][4] == ""
    assert rows[1][4].startswith("+0.100")
