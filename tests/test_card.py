"""The model card: its numbers are those of the run, its images are there, and it is whole or absent."""

import ast
import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import BEST, LATEST, SMALL, some
from unetlib.cli import main
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.summary import interval_remark
from unetlib.metrics import bootstrap_interval
from unetlib.runs.checkpoint import load_checkpoint, save_checkpoint
from unetlib.runs.provenance import learned
from unetlib.runs.run import SHIPPED, Run
from unetlib.show import card as module
from unetlib.show import plots
from unetlib.show.card import TEMPLATE, write_card
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_csv, read_json, sha256, write_json

ROOT = Path(__file__).parents[1]
TABLE = TEMPLATE.read_text(encoding="utf-8").split("for word, source in ")[1].split(".items()")[0]
SOURCES = ast.literal_eval(TABLE)  # word of a layout -> what to cite
MILLILITRE = 0.001  # of a voxel of 1 mm, as `write_patient` has them


@pytest.fixture(scope="module")
def carded(trained, tmp_path_factory):
    """A run with its card, and the text of the card; do not change it."""
    folder = tmp_path_factory.mktemp("card") / "run"
    shutil.copytree(trained, folder)
    return folder, write_card(folder, device="cpu").read_text(encoding="utf-8")


@pytest.fixture
def copy(carded, tmp_path):
    """The run of `carded`, evaluated, without its card."""
    shutil.copytree(carded[0], tmp_path / "run", ignore=shutil.ignore_patterns("card"))
    return tmp_path / "run"


def cell(text, name):
    """Return the second cell of the one row of a table that begins with `name`."""
    (line,) = [line for line in text.splitlines() if line.strip("| *").startswith(name)]
    return line.split(" | ")[1].removesuffix(" |")


def words(text):
    """Return a text in one line: where the lines of a paragraph end says nothing."""
    return " ".join(text.split())


def numbers(text):
    return [float(one) for one in re.findall(r"\d+(?:\.\d+)?", text)]


def by_patient(run):
    """Return, for each test patient, the sums of tp, fp, fn over all slices, and of fp over those without tumour."""
    sums = defaultdict(lambda: np.zeros(4))
    for row in read_csv(run / "evaluation" / "slices.csv"):
        tp, fp, fn = (int(row[f"native_{name}"]) for name in ("tp", "fp", "fn"))
        sums[row["patient"]] += (tp, fp, fn, fp * (row["tumour"] == "0"))
    return {name: sums[name] for name in sorted(sums)}


def dice(tp, fp, fn):
    return 2 * tp / (2 * tp + fp + fn)


def test_the_numbers_are_those_of_the_slices(carded):
    run, text = carded
    sums, rows = by_patient(run), read_csv(run / "evaluation" / "slices.csv")
    dices = np.array([dice(*one[:3]) for one in sums.values()])
    main = [float(dices.mean()), 95, *bootstrap_interval(dices)]
    assert f"The interval is {interval_remark(len(dices))}." in words(text)
    assert numbers(cell(text, "Dice, per patient")) == pytest.approx(main, abs=0.0006)
    tumour = [row for row in rows if row["tumour"] == "1"]
    pooled = dice(*(sum(int(row[f"model_{name}"]) for row in tumour) for name in ("tp", "fp", "fn")))
    assert numbers(cell(text, "Dice, pooled")) == pytest.approx([pooled], abs=0.0006)
    counts = [[int(row[f"native_{name}"]) for name in ("tp", "fp", "fn")] for row in rows]
    slices = [dice(*one) if any(one) else 1.0 for one in counts]
    assert numbers(cell(text, "Dice, per slice")) == pytest.approx([np.mean(slices)], abs=0.0006)
    empty = sum(not any(one) for one in counts)
    assert f"In {empty} of {len(rows)} slices there is no tumour, and none was marked" in words(text)
    for name, place in (("precision", 1), ("recall", 2)):
        values = [one[0] / (one[0] + one[place]) for one in sums.values()]
        assert numbers(cell(text, f"{name}, per")) == pytest.approx([np.mean(values)], abs=0.0006)
    alarms = [one[3] * MILLILITRE for one in sums.values()]
    assert numbers(cell(text, "false alarms")) == pytest.approx([np.mean(alarms), max(alarms)], abs=0.006)
    spread = f"ranges from {dices.min():.3f} to {dices.max():.3f} (standard deviation {dices.std(ddof=1):.3f})"
    assert spread in words(text)


def test_surface_training_and_data_are_those_of_the_run(carded):
    run, text = carded
    surface = read_json(run / "evaluation" / "summary.json")["surface"]
    assert cell(text, "HD95").startswith(f"{surface['hd95_mm']:.1f} mm")
    assert cell(text, "HD95").endswith(f"for {surface['hd95_undefined']} patients)")
    (lesions,) = read_json(run / "evaluation" / "summary.json")["lesions"]
    assert cell(text, "Dice, lesion by lesion").startswith(f"{lesions['dice']:.3f} ({lesions['lesions']} lesion")
    history = read_csv(run / "history.csv")
    best = max(history, key=lambda row: float(row["val_dice"]))
    assert f"epoch {best['epoch']}, with a validation Dice" in words(text)
    assert f"of {float(best['val_dice']):.3f}." in words(text)
    assert f"{len(history)} of {len(history)} epochs in " in words(text)
    about, split = Run.of(run).provenance, read_json(run / "split.json")
    for part in ("train", "val", "test"):
        slices = sum(case["slices"] for case in about["cases"].values() if case["part"] == part)
        assert f"| {part} | {len(split[part])} | {len(split[part])} | {slices} |" in text
    for sha in (about["contents"], split["hash"]):
        assert sha in text
    weights = load_checkpoint(run / BEST)["model"]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    expected = sum(weight.numel() for name, weight in weights.items() if not name.endswith(buffers))
    assert f"{expected:,} parameters" in words(text)


def test_the_worst_patients_are_told_from_their_slices(carded):
    run, text = carded
    sums = by_patient(run)
    worst = sorted(sums, key=lambda name: dice(*sums[name][:3]))[:3]
    assert re.findall(r"^### (\S+),", text, re.MULTILINE) == worst
    for name in worst:
        tp, fp, fn, outside = sums[name]
        told = words(text.split(f"### {name}")[1].split("![")[0])
        assert f"Dice {dice(tp, fp, fn):.3f}" in told
        assert f"has {(tp + fn) * MILLILITRE:.1f} ml; {(tp + fp) * MILLILITRE:.1f} ml were marked" in told
        assert f"Precision {tp / (tp + fp):.3f}, recall {tp / (tp + fn):.3f}" in told
        assert f"{100 * outside / (fp + fn):.0f} % of the wrong voxels lie in slices without tumour" in told


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((5, 0, 0), "no error"),
        ((0, 5, 0), "no tumour"),
        ((0, 0, 5), "Nothing was marked"),
        ((4, 1, 6), "recall 0.400: most of the tumour was missed."),
        ((4, 6, 1), "recall 0.800: most of what was marked is false alarm."),
        ((1, 9, 9), "missed and most of what was marked is false"),
        ((5, 1, 1), "more than half was found"),
    ],
)
def test_the_kind_of_failure_is_named(counts, words):
    assert words in module._kind(*counts)


def test_every_linked_picture_is_a_png_beside_the_page(carded):
    run, text = carded
    linked = re.findall(r"\]\(([^)]+)\)", text)
    shown = min(3, len(by_patient(run)))
    assert sorted(linked) == sorted(["patients.png", "metrics.png", *(f"failure-{n}.png" for n in range(1, shown + 1))])
    for name in linked:
        assert (run / "card" / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (run / "card").iterdir()) == sorted([*linked, "README.md"])


def test_nothing_of_the_machines_folders_is_told(carded, cohort):
    run, text = carded
    assert f"The folder `{cohort.name}`" in text
    assert str(cohort) not in text
    assert str(run) not in text
    assert not re.findall(r"(?<![\w.])/\w+/|[A-Z]:\\", text)


def test_what_differs_from_the_published_recipe_is_named_and_can_be_given_again(carded):
    _, text = carded
    published, own = type(SMALL).published.as_dict(), SMALL.but(epochs=12, learning_rate=1e-2).as_dict()
    differing = {name for name in own if own[name] != published[name]} - {"precision"}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == differing
    for name in differing:
        assert f"| `{name}` | {own[name]} | {published[name]} |" in text
    assert "unetlib prepare DATA PREPARED --image-size 32\n" in text
    assert "RUN --width 4 --depth 2 --learning-rate 0.01 --epochs 12 --precision fp32 --threads " in text
    assert module._flag("augment", False) == "--no-augment"


def test_real_images_are_not_called_synthetic_and_synthetic_ones_are(copy, carded, monkeypatch):
    assert "synthetic" not in carded[1]
    monkeypatch.setattr("unetlib.show.plots.is_synthetic", lambda volume: True)
    text = write_card(copy, device="cpu").read_text(encoding="utf-8")
    assert "No result on this page was measured on MRI" in words(text)
    assert SOURCES["synthetic"] in text


def test_sources_are_cited_as_in_the_readme():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for word, text in SOURCES.items():
        assert word in ("Decathlon", "(TCIA)") or text in readme


@pytest.mark.parametrize("at", some(range(5), [0, 3]))
def test_interrupted_anywhere_and_given_again_it_has_the_same_bytes(copy, carded, monkeypatch, at):
    write, calls = module._save, []

    def stops(path, content):
        calls.append(path)
        if len(calls) > at:
            raise KeyboardInterrupt
        write(path, content)

    (copy / "card").mkdir()
    (copy / "card" / "failure-9.png").touch()  # of a card with more patients
    (copy / "card" / "failure-mine.png").touch()
    (copy / "card" / "README.md").write_text(module.TITLE)
    monkeypatch.setattr(module, "_save", stops)
    if at < len(list((carded[0] / "card").iterdir())):
        with pytest.raises(KeyboardInterrupt):
            write_card(copy, device="cpu")
        page = copy / "card" / "README.md"
        assert page.read_text() in (module.TITLE, module.UNFINISHED)
    monkeypatch.undo()
    write_card(copy, device="cpu")
    (copy / "card" / "failure-mine.png").unlink()  # it has stayed
    bytes_of = [{p.name: p.read_bytes() for p in (run / "card").iterdir()} for run in (copy, carded[0])]
    assert bytes_of[0] == bytes_of[1]


def test_a_machine_is_named_once_however_often_the_training_went_on_there(copy):
    path = copy / "provenance.json"
    about = read_json(path)
    other = {**about["sessions"][0], "processor": "Another"}
    write_json(path, {**about, "sessions": [*about["sessions"] * 2, other]})
    text = write_card(copy, device="cpu").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| cpu; ", text, re.MULTILINE)) == 2
    assert text.count("Another") == 1


def test_a_card_that_is_there_is_not_written_again(copy):
    page = write_card(copy, device="cpu")
    before = {path: path.stat().st_mtime_ns for path in page.parent.iterdir()}
    write_card(copy, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in page.parent.iterdir()} == before


def test_what_cannot_be_had_is_a_sentence(copy, tmp_path):
    with pytest.raises(UnetlibError, match="not a run folder"):
        write_card(tmp_path / "nothing", device="cpu")
    for name in ("README.md", "patients.png"):
        (tmp_path / name / "mine").mkdir(parents=True)
        (tmp_path / name / "mine" / name).write_text("# Mine\n")
        with pytest.raises(UnetlibError, match=f"holds {name} and is not a model card"):
            write_card(copy, tmp_path / name / "mine", "cpu")
        assert (tmp_path / name / "mine" / name).read_text() == "# Mine\n"
    for path in copy.glob("*best_model.pth"):
        path.unlink()
    with pytest.raises(UnetlibError, match="Train first"):
        write_card(copy, device="cpu")
    assert not (copy / "card").exists()


def test_a_changed_file_of_the_run_is_a_sentence(copy):
    path = copy / "provenance.json"
    path.write_text(path.read_text().replace('"processor"', '"something"'))
    with pytest.raises(
        UnetlibError, match=r"provenance\.json lacks processor: .*To make it again, delete it, then give"
    ):
        write_card(copy, device="cpu")


def test_a_value_that_the_template_misses_is_a_sentence(copy):
    content = load_checkpoint(copy / LATEST)
    progress = {name: value for name, value in content["progress"].items() if name != "seconds"}
    save_checkpoint(copy / LATEST, {**content, "progress": progress})
    with pytest.raises(UnetlibError, match="not one that unetlib wrote"):
        write_card(copy, device="cpu")


def test_an_unfinished_training_and_lost_weights_are_told(copy):
    content = load_checkpoint(copy / LATEST)
    save_checkpoint(copy / LATEST, {**content, "progress": {**content["progress"], "epoch": 1, "best_dice": 0.99}})
    epochs = content["recipe"]["epochs"]
    text = write_card(copy, device="cpu").read_text(encoding="utf-8")
    assert f"The training is not finished: 1 of {epochs} epochs." in text
    assert "with a validation Dice of 0.9900, are lost" in text


def test_whose_data_the_first_weights_have_seen_is_told(copy):
    assert "another run" not in write_card(copy, device="cpu").read_text(encoding="utf-8")
    write_json(copy / "recipe.json", read_json(copy / "recipe.json") | {"start_from": "abc"})
    save_checkpoint(copy / BEST, load_checkpoint(copy / BEST) | {"start_from": "abc"})
    assert "whose data are not recorded" in words(write_card(copy, device="cpu").read_text(encoding="utf-8"))
    about = Run.of(copy).provenance
    case = about["cases"]["BraTS2021_00000"]
    earlier = {str(n): {"files": [], "patient": f"E{n // 2}", "sha256": f"{n}"} for n in range(6)}
    earlier = {name: {**one, "part": "val" if one["patient"] == "E2" else "train"} for name, one in earlier.items()}
    write_json(copy / "provenance.json", about | {"earlier": earlier})
    text = words(write_card(copy, device="cpu").read_text(encoding="utf-8"))
    assert (
        "which were trained on 2 patients (E0, E1), with 1 more for choices. They are others than those below." in text
    )
    write_json(copy / "provenance.json", about | {"earlier": {"6": {**case, "part": "train"}, **earlier}})
    text = words(write_card(copy, device="cpu").read_text(encoding="utf-8"))
    assert "They include 1 case of those below." in text


def test_phantoms_are_no_patients_and_are_counted_without_those_for_choices(copy, monkeypatch):
    start, about = Run(SHIPPED["phantoms"]), Run.of(copy).provenance
    known = read_json(copy / "recipe.json")
    known["recipe"]["phantoms"] = True
    write_json(copy / "recipe.json", known | {"start_from": sha256(start.best)})
    save_checkpoint(copy / BEST, load_checkpoint(copy / BEST) | {"start_from": sha256(start.best)})
    phantoms = {"earlier": learned(start)}
    write_json(copy / "provenance.json", about | phantoms)
    monkeypatch.setattr("unetlib.show.plots.is_synthetic", lambda volume: True)
    text = words(write_card(copy, device="cpu").read_text(encoding="utf-8"))
    assert f"from the weights `phantoms` of the library (SHA-256 `{sha256(start.best)}`)" in text
    assert "trained on 104 phantoms, with 5 more for choices, and on no patient. They are others than those" in text
    assert "though phantoms may have the same names" in text
    patient = {"7": {"files": [], "patient": "E", "sha256": "7", "part": "train"}}
    write_json(copy / "provenance.json", about | {"earlier": {**phantoms["earlier"], **patient}})
    text = words(write_card(copy, device="cpu").read_text(encoding="utf-8"))
    assert "trained on 104 phantoms, with 5 more for choices, and on 1 patient (E). They are" in text


def test_the_threads_are_given_or_said_to_have_changed(copy):
    about = Run.of(copy).provenance
    (session,) = about["sessions"]
    for threads, device, expected in (
        ((3,), "cpu", "--threads 3 unetlib evaluate"),
        ((3, 3, 1, 3), "cpu", "The number of threads changed during training (3, then 1, then 3)"),
        ((3,), "NVIDIA", "--precision fp32 unetlib evaluate"),
        ((), "", "How many threads were used is not recorded"),
    ):
        sessions = [{**session, "threads": number, "device": device} for number in threads]
        write_json(copy / "provenance.json", {**about, "sessions": sessions})
        text = words(write_card(copy, device="cpu").read_text(encoding="utf-8"))
        assert expected in text
        assert ("--threads" in text) == ("--threads" in expected)


def test_one_patient_has_no_range_and_no_interval(carded):
    run = Run.of(carded[0])
    facts = module._read(run, evaluate(run, device="cpu"))
    facts.summary = {**facts.summary, "patients": 1}
    facts.regions[0].dices, facts.remark = facts.regions[0].dices[:1], interval_remark(1)
    text = words(module._page(run, facts, plots.worst(run, 1, "cpu")))
    assert "1 test patient from one folder and one split" in text
    assert "The Dice of one patient says little" in text
    for wrong in ("ranges from", "too narrow", "The interval is", "the lowest first"):
        assert wrong not in text


def test_sources_are_those_of_the_images_whatever_the_layout_of_their_files(copy, monkeypatch):
    shutil.rmtree(copy / "evaluation")
    monkeypatch.setattr("unetlib.evaluation.evaluate.has_nominal_spacing", lambda *_: True)
    text = write_card(copy, device="cpu").read_text(encoding="utf-8")
    assert "1 ml here means 1000 voxels" in words(text)
    assert SOURCES["TCGA-LGG (Kaggle)"] in text
    assert SOURCES["(TCIA)"] not in text


@pytest.mark.parametrize("first", ["phantoms", "other"])
def test_the_commands_to_reproduce_it_name_orientation_and_first_weights(copy, first):
    about, best = read_json(copy / "recipe.json"), load_checkpoint(copy / BEST)
    about["recipe"]["phantoms"] = best["recipe"]["phantoms"] = first == "phantoms"
    start = sha256(SHIPPED["phantoms"] / "best_model.safetensors") if first == "phantoms" else "abc"
    save_checkpoint(copy / BEST, {**best, "start_from": start})
    write_json(copy / "recipe.json", {**about, "assume": "lps", "start_from": start})
    text = write_card(copy, device="cpu").read_text(encoding="utf-8")
    assert re.search(r"unetlib prepare DATA PREPARED.* --assume-lps\n", text)
    assert ("--start-from OTHER" in text) == ("OTHER the run" in text) == (first == "other")
    assert ("--phantoms" in text) == (first == "phantoms")


def test_the_command_names_the_page(copy, tmp_path, capsys):
    main(["card", str(copy), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "README.md")
    assert (tmp_path / "out" / "README.md").exists()
