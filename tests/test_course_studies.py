"""What a chapter shows of the studies."""

import pytest

from unetlib.course import studies
from unetlib.course.start import REPOSITORY


@pytest.mark.parametrize("name", ["best", "networks", "regions"])
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
