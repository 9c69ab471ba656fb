import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

from unetlib import plots
from unetlib.losses import bce
from unetlib.show.plots.training import COLOURS, CONVOLUTION, HEAD, POOLING, SKIP, UPSAMPLING
from unetlib.unet import UNet

HISTORY = [
    {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 2 / epoch, "val_dice": dice}
    for epoch, dice in enumerate((0.1, 0.6, 0.8, 0.5), start=1)
]


def boxes_of(axes):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def arrows_of(axes):
    """Return the arrows as (colour, start, end)."""
    arrows = [text for text in axes.texts if isinstance(text, Annotation)]
    return [(to_rgb(a.arrow_patch.get_edgecolor()), a.xyann, a.xy) for a in arrows]


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (4, 2), (16, 4), (8, 5)])
def test_the_architecture_has_every_picture_and_arrow_of_the_network(width, depth):
    (axes,) = plots.architecture_figure(UNet(width=width, depth=depth)).axes
    assert len(boxes_of(axes)) == 3 * (depth + 1) + 4 * depth + 1
    kinds = [colour for colour, _, _ in arrows_of(axes)]
    expected = {CONVOLUTION: 4 * depth + 2, POOLING: depth, UPSAMPLING: depth, SKIP: depth, HEAD: 1}
    assert {kind: kinds.count(to_rgb(COLOURS[kind])) for kind in expected} == expected


@pytest.mark.parametrize("size", [96, 50])
def test_the_architecture_says_the_channels_and_sizes_of_the_network(size):
    net = UNet(in_channels=2, out_channels=3, width=4, depth=2)
    (axes,) = plots.architecture_figure(net, size).axes
    texts = [text.get_text() for text in axes.texts if text.get_text()]
    sides = [shape[1] for name, shape in net.level_shapes(size, size) if name.startswith("down")]
    assert [text for text in texts if " x " in text] == [f"{side} x {side}" for side in sides]
    numbers = sorted(int(text) for text in texts if text.isdecimal())
    down, up = [2, 4, 4, 4, 8, 8, 8, 16, 16], [16, 8, 8, 8, 8, 4, 4, 4]
    assert numbers == sorted([*down, *up, 3])


def test_the_architecture_is_one_of_this_network():
    net = UNet(width=6, depth=3)
    figure = plots.architecture_figure(net)
    assert f"width 6, depth 3: {net.parameter_count():,} parameters" in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(COLOURS)


def test_arrows_of_the_architecture_lead_from_picture_to_picture():
    (axes,) = plots.architecture_figure(UNet(width=16, depth=3)).axes
    boxes = [box.get_bbox() for box in boxes_of(axes)]
    for colour, (x0, y0), (x1, y1) in arrows_of(axes):
        if colour in (to_rgb(COLOURS[POOLING]), to_rgb(COLOURS[UPSAMPLING])):
            assert x0 == x1
            assert (y1 < y0) == (colour == to_rgb(COLOURS[POOLING]))
            upper = max(y0, y1)
            assert any(box.x0 < x0 < box.x1 and 0 < box.y0 - upper < 0.1 for box in boxes)
        else:
            assert y0 == y1
            assert x0 < x1
            assert any(box.y0 < y0 < box.y1 and 0 < x0 - box.x1 < 0.1 for box in boxes)
            assert any(box.y0 < y1 < box.y1 and 0 < box.x0 - x1 < 0.1 for box in boxes)
        assert not any(box.x0 < (x0 + x1) / 2 < box.x1 and box.y0 < (y0 + y1) / 2 < box.y1 for box in boxes)


def test_the_network_is_as_it_was_after_it_is_drawn():
    net = UNet(width=4, depth=2).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plots.architecture_figure(net)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_drawn_loss_and_gradient_are_those_of_the_library():
    losses, gradients = plots.loss_figure().axes
    for target, loss_line, gradient_line in zip((1.0, 0.0), losses.lines, gradients.lines, strict=False):
        assert loss_line.get_label().startswith(f"target {target:.0f}")
        for logit, loss, gradient in list(zip(*loss_line.get_data(), gradient_line.get_ydata(), strict=True))[::20]:
            x = torch.tensor(float(logit), dtype=torch.float64, requires_grad=True)
            expected = bce(x, torch.tensor(target, dtype=torch.float64))
            expected.backward()
            assert loss == pytest.approx(expected.item())
            assert gradient == pytest.approx(x.grad.item(), abs=1e-9)


def test_the_legend_of_the_losses_lies_beside_the_curves():
    figure = plots.loss_figure()
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 2
    assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_a_batch_is_shown_slice_by_slice_with_its_errors():
    images = np.random.default_rng(0).random((3, 8, 8))
    truths, predictions = images > 0.5, images > 0.7
    figure = plots.batch_figure(images, truths, predictions, "a note")
    assert len(figure.axes) == 3
    for axes, image, truth, prediction in zip(figure.axes, images, truths, predictions, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        missed = axes.images[3].get_array()
        np.testing.assert_array_equal(missed[..., 3] > 0, truth & ~prediction)
    assert figure.get_supxlabel() == "a note"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["found", "false alarm", "missed"]


def test_a_probability_is_shown_from_0_to_1_and_thresholded():
    probability = np.linspace(0.1, 0.9, 64).reshape(8, 8)
    image, truth = probability * 500, probability > 0.6
    outlined, shaded, compared, _ = plots.probability_figure(image, truth, probability, threshold=0.25).axes
    np.testing.assert_array_equal(outlined.images[0].get_array(), image)
    np.testing.assert_array_equal(shaded.images[0].get_array(), probability)
    assert shaded.images[0].get_clim() == (0, 1)
    alarm = compared.images[2].get_array()
    np.testing.assert_array_equal(alarm[..., 3] > 0, (probability >= 0.25) & ~truth)


def test_figures_without_a_note_say_that_they_are_for_no_clinic():
    image, mask = np.ones((4, 4)), np.zeros((4, 4), bool)
    for figure in (
        plots.batch_figure(image[None], mask[None], mask[None]),
        plots.probability_figure(image, mask, image),
    ):
        assert "never for clinical use" in figure.get_supxlabel()


def test_curves_mark_the_best_epoch():
    losses, dices = plots.curves_figure(HISTORY, "a title").axes
    assert (list(dices.lines[1].get_xdata()), list(dices.lines[1].get_ydata())) == ([3], [0.8])
    assert dices.texts[0].get_text() == "best: 0.800 in epoch 3"
    assert len(losses.lines) == 2


def test_a_single_epoch_has_one_tick_and_the_mean_of_regions_its_name():
    losses, dices = plots.curves_figure(HISTORY[:1], regions=("whole", "core")).axes
    for axes in (losses, dices):
        assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1]
    assert dices.get_ylabel().replace("\n", " ") == "validation Dice, pooled, mean of 2 regions"
    assert plots.curves_figure(HISTORY).axes[1].get_ylabel() == "validation Dice, pooled"


def test_curves_mark_where_the_run_was_killed():
    for axes in plots.curves_figure(HISTORY, killed_at=2.25).axes:
        assert list(axes.lines[-1].get_xdata()) == [2.25, 2.25]
    losses = plots.curves_figure(HISTORY, killed_at=2.25).axes[0]
    assert "killed and resumed" in [text.get_text() for text in losses.get_legend().get_texts()]


def test_live_curves_are_redrawn_in_one_place(monkeypatch):
    drawn, shown = [], []

    class Place:
        def update(self, picture):
            shown.append(("update", picture.data))

    def display(picture, display_id):
        shown.append(("new", picture.data))
        return Place()

    def curves(*arguments):
        drawn.append(arguments)
        return plots.loss_figure()

    monkeypatch.setattr("unetlib.show.plots.training.notebook.display", display)
    monkeypatch.setattr("unetlib.show.plots.training.curves_figure", curves)
    live = plots.LiveCurves("a title", killed_at=1.5)
    for epochs in (1, 2, 3):
        live(HISTORY[:epochs])
    assert [kind for kind, _ in shown] == ["new", "update", "update"]
    assert all(data.startswith(b"\x89PNG") for _, data in shown)
    assert drawn == [(HISTORY[:epochs], "a title", 1.5) for epochs in (1, 2, 3)]
