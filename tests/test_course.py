import pytest

from tests.conftest import write_patient
from unetlib import course
from unetlib.checkpoint import LATEST
from unetlib.errors import UnetlibError


@pytest.fixture
def small_cohort(monkeypatch):
    """Small boxes in place of the phantom, which has tests of its own; a small network in place of the course's."""

    def make(out, patients):
        for index in range(10):
            write_patient(out, index)

    monkeypatch.setattr(course, "make_cohort", make)
    monkeypatch.setattr(course, "WIDTH", 2)


def test_the_course_kills_and_resumes_the_training_and_reuses_what_is_done(small_cohort, tmp_path, capsys):
    course.run_course(tmp_path / "course")
    told = capsys.readouterr().out
    assert told.index("the training process was killed") < told.index("resumed at epoch") < told.index("== 6. Results")
    assert "<- the published figure" in told
    assert {path.name for path in (tmp_path / "course" / "figures").iterdir()} == {
        "cohort.png",
        "curves.png",
        "overlays.png",
    }
    before = (tmp_path / "course" / "run" / LATEST).stat().st_mtime_ns
    course.run_course(tmp_path / "course")
    assert "the training process was killed" not in capsys.readouterr().out
    assert (tmp_path / "course" / "run" / LATEST).stat().st_mtime_ns == before


def test_a_training_that_fails_before_its_first_checkpoint_is_a_sentence(tmp_path):
    with pytest.raises(UnetlibError, match="ended before its first checkpoint"):
        course._train_until_killed(tmp_path / "nothing", tmp_path / "run")
