"""The learning rate and the average of the weights, against closed forms and torch's own average."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel

from tests.conftest import SMALL
from unetlib.hooks import move_average
from unetlib.networks import build_network
from unetlib.recipe import Recipe
from unetlib.schedule import learning_rate

COSINE = Recipe(schedule="cosine", learning_rate=3e-3)


@given(st.integers(1, 5000), st.data())
def test_a_constant_schedule_is_constant(steps, data):
    assert learning_rate(Recipe(learning_rate=0.25), data.draw(st.integers(0, steps - 1)), steps) == 0.25


@given(st.integers(1, 5000))
def test_the_cosine_rises_for_a_twentieth_of_the_steps_and_then_falls_to_nearly_0(steps):
    rates = np.array([learning_rate(COSINE, step, steps) for step in range(steps)])
    rise = -(-steps // 20)
    up = 3e-3 * np.arange(1, rise + 1) / rise
    share = np.arange(steps - rise) / max(steps - rise, 1)
    down = 3e-3 * (1 - np.sin(np.pi * share / 2) ** 2)  # cos x = 1 - 2 sin^2 (x / 2)
    np.testing.assert_allclose(rates, np.concatenate([up, down]), rtol=1e-9, atol=1e-12)
    assert rates.min() > 0
    assert rates[-1] == pytest.approx(3e-3) if steps < 3 else rates[-1] <= rates[rise:].min()


def test_the_last_step_of_a_long_training_has_nearly_no_learning_rate():
    assert learning_rate(COSINE, 999, 1000) < 1e-5 * COSINE.learning_rate


def test_the_cosine_equals_torchs_own():
    steps, rise = 200, 10
    weight = torch.nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weight], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps - rise)
    for step in range(rise, steps):
        assert learning_rate(COSINE, step, steps) == pytest.approx(adam.param_groups[0]["lr"], rel=1e-6)
        adam.step()
        schedule.step()


def changed_models(number):
    """A network at some steps of a training: weights, statistics and the count of batches move."""
    model = build_network(SMALL)
    for step in range(number):
        model.train()(torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(step)))
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 + step))
        yield step, model


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_average_is_that_of_torchs_averaged_model(share):
    ours = copy.deepcopy(build_network(SMALL))
    keep = iter([min(share, (step + 1) / (step + 10)) for step in range(100)])
    kept = {}

    def average(one, other, number):
        part = kept.setdefault(int(number), None) or kept.update({int(number): next(keep)}) or kept[int(number)]
        return part * one + (1 - part) * other

    theirs = AveragedModel(build_network(SMALL), avg_fn=average, use_buffers=True)
    theirs.n_averaged += 1  # at 0 it would take the first weights as they are
    for step, model in changed_models(12):
        move_average(ours, model, share, step)
        theirs.update_parameters(model)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(ours.state_dict()[name], model.state_dict()[name])


def test_the_average_equals_a_weighted_sum_of_all_weights():
    ours, share, number = copy.deepcopy(build_network(SMALL)), 0.9, 150
    name = "head.bias"
    history, values = [ours.state_dict()[name].double()], torch.linspace(-1, 1, number).double()
    model = build_network(SMALL)
    for step in range(number):
        model.state_dict()[name].fill_(values[step])
        history.append(model.state_dict()[name].double())
        move_average(ours, model, share, step)
    parts = [min(share, (step + 1) / (step + 10)) for step in range(number)]
    weights = [math.prod(parts)] + [(1 - parts[i]) * math.prod(parts[i + 1 :]) for i in range(number)]
    assert sum(weights) == pytest.approx(1)
    expected = sum(weight * value for weight, value in zip(weights, history, strict=True))
    torch.testing.assert_close(ours.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert weights[0] < 1e-6  # the random weights of the start are forgotten


def test_the_network_itself_is_left_alone():
    model, average = build_network(SMALL), build_network(SMALL.but(seed=1))
    before = copy.deepcopy(model.state_dict())
    move_average(average, model, 0.5, 7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
