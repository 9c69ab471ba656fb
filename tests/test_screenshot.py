import numpy as np
import pytest
from PIL import Image

from figures import make as screenshot
from unetlib import SliceViewer
from unetlib.support.errors import UnetlibError


@pytest.fixture
def viewer():
    volume = np.random.default_rng(0).normal(100, 20, (16, 20, 12))
    truth, prediction = np.zeros((2, *volume.shape), bool)
    truth[4:10, 4:10, 3:9] = True
    prediction[6:12, 4:10, 3:9] = True
    return SliceViewer(volume, truth=truth, prediction=prediction)


def test_the_picture_shows_the_viewer_with_its_masks(browser, viewer, tmp_path):
    path = screenshot.viewer_picture(viewer, tmp_path / "viewer.png")
    picture = Image.open(path)
    assert picture.size == screenshot.SIZE
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    greenish = (colours[:, 1] > colours[:, 0] + 30) & (colours[:, 1] > colours[:, 2] + 10)
    assert greenish.mean() > 0.005, "the voxels that are found are green"
    assert (colours.max(1) < 10).mean() > 0.1, "the pictures stand on black"


def test_without_a_browser_the_sentence_says_what_to_install(viewer, tmp_path, monkeypatch):
    monkeypatch.setattr(screenshot.shutil, "which", lambda name: None)
    with pytest.raises(UnetlibError, match="install one of chromium"):
        screenshot.viewer_picture(viewer, tmp_path / "viewer.png")


def test_a_browser_that_draws_nothing_is_a_sentence(viewer, tmp_path, monkeypatch):
    monkeypatch.setattr(screenshot, "find_browser", lambda: "false")
    monkeypatch.setattr(screenshot.subprocess, "run", lambda *_, **__: None)
    with pytest.raises(UnetlibError, match="made no screenshot"):
        screenshot.viewer_picture(viewer, tmp_path / "viewer.png")
    assert not (tmp_path / "viewer.png").exists()
