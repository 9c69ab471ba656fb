"""What a chapter shows of the studies."""

import re

import pytest

from unetlib.course import studies
from unetlib.course.start import REPOSITORY


def test_of_the_study_six_steps_are_shown_and_a_link_or_it_is_missed_in_a_sentence(tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(studies, "display", shown.append)
    studies.show_steps(tmp_path)
    assert "no studies/ABLATION.md" in capsys.readouterr().out
    assert not shown
    (tmp_path / "ABLATION.md").write_text(
        "# Study\n\n| step | changed | Dice | gain | pooled |\n|---|---|---|---|---|\n"
        "| published | - | 0.1 | | 0.2 |\n| cut to the head | crop True | 0.3 | +0.2 | 0.4 |\n"
        "\n![stairs](ablation.png)\n"
    )
    studies.show_steps(tmp_path)
    assert shown[0].data.splitlines()[:4] == [
        "| step | changed | Dice | gain |",
        "|---|---|---|---|",
        "| cut to the head | crop True | 0.3 | +0.2 |",
        "",
    ]
    assert "holds all 2 steps" in shown[0].data


def test_the_steps_of_the_committed_study_are_found(monkeypatch):
    shown = []
    monkeypatch.setattr(studies, "display", shown.append)
    studies.show_steps()
    (page,) = shown
    rows = [line.split("|")[1].strip() for line in page.data.splitlines() if line.startswith("|")][2:]
    assert rows == list(studies.STEPS)
    assert len(rows) == 6
    for link in re.findall(r"\]\(([^)]+)\)", page.data):
        assert (REPOSITORY / "notebooks" / link).exists()


@pytest.mark.parametrize("name", ["networks", "regions"])
def test_a_study_is_shown_as_far_as_it_is_measured(name, tmp_path, monkeypatch, capsys):
    shown, page = [], f"{name.upper()}.md"
    monkeypatch.setattr(studies, "display", shown.append)
    studies.show_measured(name, tmp_path)
    assert f"no studies/{page}" in capsys.readouterr().out
    assert not shown
    table = "| arm | Dice |\n|---|---|\n| unet | 0.8 |"
    text = f"# Study\n\n<!-- {name} -->\n{table}\n<!-- end of {name} -->\n\nmore"
    (tmp_path / page).write_text(text, "utf-8")
    studies.show_measured(name, tmp_path)
    assert shown[0].data.startswith(f"{table}\n\n[")
    assert "more" not in shown[0].data
    studies.show_measured(name)
    assert (REPOSITORY / "notebooks" / f"../studies/{page}").exists()
    assert shown[1].data.partition("\n\n[")[0], "the markers of the committed page are found"
