import shutil
from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from tests.conftest import write_patient
from unetlib import metrics, plots
from unetlib.data.patients import find_cases, read_case
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.table import read_patients
from unetlib.runs.run import Run
from unetlib.runs.training import train
from unetlib.show.plots import colours
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv, read_json, write_json


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "run"
    shutil.copytree(trained, folder)
    evaluate(folder, device="cpu")
    return folder


def test_curves_show_every_epoch_of_the_history(evaluated):
    history = read_csv(evaluated / "history.csv")
    losses, dices = plots.curves_figure(history).axes
    for line, column in ((losses.lines[0], "train_loss"), (losses.lines[1], "val_loss"), (dices.lines[0], "val_dice")):
        np.testing.assert_array_equal(line.get_xdata(), range(1, len(history) + 1))
        np.testing.assert_allclose(line.get_ydata(), [float(row[column]) for row in history])


def test_overlays_colour_found_missed_and_false_alarm():
    truth, prediction = np.zeros((2, 8, 8), bool)
    truth[2:6, 2:4] = True
    prediction[2:6, 3:6] = True
    figure = plots.overlay_figure([plots.Overlay("one", np.arange(64.0).reshape(8, 8), truth, prediction)])
    found, alarm, missed = (image.get_array() for image in figure.axes[2].images[1:])
    for layer, where, colour in (
        (found, truth & prediction, plots.TRUE_POSITIVE),
        (alarm, prediction & ~truth, plots.FALSE_POSITIVE),
        (missed, truth & ~prediction, plots.FALSE_NEGATIVE),
    ):
        assert ((layer[..., 3] > 0) == where).all()
        np.testing.assert_allclose(layer[where][0][:3], to_rgb(colour))


def test_every_overlay_says_that_it_is_no_clinical_tool():
    empty = np.zeros((4, 4), bool)
    figure = plots.overlay_figure([plots.Overlay("one", np.ones((4, 4)), empty, empty)], "a note")
    assert "never for clinical use" in figure.get_supxlabel()
    assert "a note" in figure.get_supxlabel()


def test_best_median_and_worst_patient_are_those_of_the_table(evaluated, cohort):
    shown = plots.best_median_worst(evaluated, device="cpu")
    ranked = read_patients(evaluated / "evaluation")
    dices = [float(row["dice"]) for row in ranked]
    assert dices == sorted(dices, reverse=True)
    assert [one.case.patient for one in (shown[0], shown[-1])] == [ranked[0]["patient"], ranked[-1]["patient"]]
    case = next(case for case in find_cases(cohort).cases if case.patient == ranked[0]["patient"])
    volume, mask, _ = read_case(case)
    z, row = plots.largest_slice(mask), shown[0].overlay()
    assert case.id in row.title
    np.testing.assert_array_equal(row.truth, mask[:, :, z].T)
    np.testing.assert_array_equal(row.image, volume.voxels[:, :, z].T)


def test_the_slice_with_most_tumour_is_chosen(cohort):
    case = find_cases(cohort).cases[0]
    _, mask, _ = read_case(case)
    assert mask[:, :, plots.largest_slice(mask)].sum() == max(mask[:, :, z].sum() for z in range(mask.shape[2]))


def test_a_case_is_shown_with_the_modalities_it_has(cohort):
    figure = plots.case_figure(find_cases(cohort).cases[:2])
    assert [len(axes.images) for axes in figure.axes] == [1, 0, 0, 0] * 2
    assert "synthetic" not in figure.get_supxlabel()


def test_figures_are_those_of_the_decision_of_today(evaluated, prepared, tmp_path, monkeypatch):
    shown, run = [], Run(shutil.copytree(evaluated, tmp_path / "run"))
    monkeypatch.setattr("unetlib.show.plots.overlays.metrics_figure", lambda *words: shown.append(words[0]))
    monkeypatch.setattr("unetlib.show.plots.overlays.save", lambda *_: None)
    train(prepared, run, run.recipe.but(threshold=0.9), device="cpu")
    for ranked in plots.best_median_worst(run, "cpu"):
        dice = metrics.dice(metrics.count(ranked.prediction[None, None], ranked.truth[None, None])).item()
        assert ranked.dice == pytest.approx(dice)
    plots.make_figures(run, device="cpu")
    assert shown == [evaluate(run, device="cpu")]
    assert shown[0]["figures"] != evaluate(evaluated, device="cpu")["figures"]


def test_a_run_that_was_not_evaluated_is_evaluated_first(run, tmp_path):
    run = Run(shutil.copytree(run, tmp_path / "run"))
    assert not run.evaluation.exists()
    made = plots.make_figures(run, device="cpu")
    assert all(path.exists() for path in made)
    assert {"metrics.png", "overlays.png"} <= {path.name for path in made}
    assert (run.evaluation / "summary.json").exists()


def test_a_patient_who_is_gone_is_a_sentence(evaluated, cohort, tmp_path):
    shutil.copytree(evaluated, tmp_path / "run")
    write_patient(tmp_path / "data", 77)
    about = read_json(tmp_path / "run" / "recipe.json")
    write_json(tmp_path / "run" / "recipe.json", about | {"data": str(tmp_path / "data")})
    with pytest.raises(UnetlibError, match=r"lacks 2 patients .* Put back"):
        plots.make_figures(tmp_path / "run", device="cpu")


def test_the_colours_of_a_picture_are_kept_whatever_greys_surround_them():
    """A legend has few pixels, an MRI has many: as one palette of 256, the greys would win."""
    kept = [colours.TRUE_POSITIVE, colours.FALSE_POSITIVE, colours.FALSE_NEGATIVE, colours.OUTLINE]
    figure = Figure(figsize=(4, 4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.random.default_rng(0).random((400, 400)), cmap="gray", aspect="auto")
    axes.imshow(np.random.default_rng(1).random((40, 40)), cmap="viridis", extent=(0, 200, 200, 399), aspect="auto")
    for number, colour in enumerate(kept):
        axes.add_patch(Rectangle((100 * number, 100), 8, 8, color=colour, lw=0))
    axes.set(xlim=(0, 400), ylim=(400, 0))
    image = Image.open(BytesIO(plots.to_png(figure)))
    assert image.mode == "P"
    shown = np.asarray(image.convert("RGB")).astype(int)
    for number, colour in enumerate(kept):
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert np.abs(shown[104, 100 * number + 4] - wanted).max() <= 3
