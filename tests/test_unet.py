"""The U-Net: shapes, sizes, and every number it computes."""

from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from torch.nn import functional as F

from unetlib.support.errors import UnetlibError
from unetlib.unet import UNet


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(seed=0, dtype=torch.float32, **options):
    """A network ready to predict, all of whose weights and running statistics are random and let signals through."""
    rng = torch.Generator().manual_seed(seed)
    model = UNet(**options).to(dtype)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=rng)
        elif name.endswith(("running_var", "weight")):
            tensor.uniform_(0.5, 1.5, generator=rng)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.2, generator=rng)
    return model.eval()


def pictures(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pooled(x):
    """Max-pooling in pairs that keeps a last odd row or column: an independent implementation."""
    height, width = x.shape[-2:]
    x = F.pad(x, (0, width % 2, 0, height % 2), value=-torch.inf)
    return x.reshape(*x.shape[:2], ceil(height / 2), 2, ceil(width / 2), 2).amax(dim=(3, 5))


def stretching(before, after):
    """The matrix (after, before) of linear interpolation between pixel centres."""
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for i in range(after):
        at = min(max((i + 0.5) * before / after - 0.5, 0), before - 1)
        low = min(int(at), before - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, before - 1)] += at - low
    return matrix


def forward_by_hand(weights, x, depth, training):
    """The forward pass from the names and values of the weights alone."""

    def block(name, x):
        for conv, norm in (("0", "1"), ("3", "4")):
            x = F.conv2d(x, weights[f"{name}.{conv}.weight"], padding=1)
            if training:
                mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
            else:
                mean, var = weights[f"{name}.{norm}.running_mean"], weights[f"{name}.{norm}.running_var"]
            scale = weights[f"{name}.{norm}.weight"] / (var + 1e-5).sqrt()
            shift = weights[f"{name}.{norm}.bias"] - mean * scale
            x = (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)
        return x

    left = [block("down.0", x)]
    for level in range(1, depth + 1):
        left.append(block(f"down.{level}", pooled(left[-1])))
    x = left[depth]
    for number, level in enumerate(reversed(range(depth))):
        skip = left[level]
        rows, columns = (stretching(x.shape[axis], skip.shape[axis]) for axis in (2, 3))
        x = block(f"up.{number}", torch.cat([skip, rows @ x @ columns.T], dim=1))
    return torch.einsum("oc,nchw->nohw", weights["head.weight"][:, :, 0, 0], x) + weights["head.bias"][:, None, None]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("depth", "size"), [(1, (6, 8)), (1, (5, 7)), (2, (8, 8)), (2, (7, 10)), (3, (9, 13))])
def test_the_forward_pass_equals_one_written_by_hand(depth, size, training):
    model = network(dtype=torch.float64, in_channels=2, out_channels=3, width=3, depth=depth)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = pictures(4, 2, *size, dtype=torch.float64)
    expected = forward_by_hand(weights, x, depth, training)
    assert expected.std() > 0.1
    assert torch.allclose(model.train(training)(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (5, 5), (15, 17), (16, 16), (31, 48), (96, 96), (100, 1)])
@pytest.mark.parametrize("depth", [1, 4])
def test_height_and_width_leave_as_they_came(size, depth):
    assert network(width=1, depth=depth)(pictures(2, 1, *size)).shape == (2, 1, *size)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_any_height_and_width_are_accepted_at_any_depth(height, width, depth, inputs, outputs):
    model = network(in_channels=inputs, out_channels=outputs, width=1, depth=depth)
    with torch.no_grad():
        assert model(pictures(2, inputs, height, width)).shape == (2, outputs, height, width)


@pytest.mark.parametrize(
    ("inputs", "outputs", "width", "depth"),
    [(1, 1, 32, 4), (1, 1, 16, 4), (1, 1, 8, 3), (1, 1, 1, 1), (4, 3, 5, 2), (2, 1, 3, 5)],
)
def test_the_parameter_count_is_the_sum_over_the_layers(inputs, outputs, width, depth):
    def block(before, after):  # two convolutions without bias, two batch norms of scale and shift
        return 9 * before * after + 9 * after * after + 2 * 2 * after

    levels = [width * 2**level for level in range(depth + 1)]
    expected = block(inputs, width) + sum(block(c, 2 * c) for c in levels[:-1])
    expected += sum(block(3 * c, c) for c in levels[:-1]) + width * outputs + outputs
    model = UNet(inputs, outputs, width, depth)
    assert model.parameter_count() == expected


@pytest.mark.parametrize(("height", "width"), [(96, 96), (17, 33), (1, 3), (240, 155)])
@pytest.mark.parametrize("depth", [1, 3])
def test_every_level_down_halves_the_picture_and_doubles_the_channels(height, width, depth):
    sizes = [(2 * 2**level, ceil(height / 2**level), ceil(width / 2**level)) for level in range(depth + 1)]
    expected = [(f"down {level}", sizes[level]) for level in range(depth + 1)]
    expected += [(f"up {level}", sizes[level]) for level in reversed(range(depth))]
    model = UNet(in_channels=3, out_channels=5, width=2, depth=depth)
    assert model.level_shapes(height, width) == [*expected, ("logits", (5, height, width))]


def left_as_it_was(model, training, before):
    after = model.state_dict()
    return (
        all(module.training == training and not module._forward_hooks for module in model.modules())
        and all(parameter.grad is None for parameter in model.parameters())
        and all(torch.equal(after[name], before[name]) for name in before)
    )


@pytest.mark.parametrize("training", [True, False])
def test_level_shapes_leaves_the_network_as_it_was(training):
    model = UNet(width=2, depth=2).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.level_shapes(8, 8)
    assert left_as_it_was(model, training, before)


@pytest.mark.parametrize("training", [True, False])
def test_level_shapes_leaves_the_network_as_it_was_even_when_it_fails(training):
    model = UNet(width=2, depth=2).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        model.level_shapes(0, 0)
    assert left_as_it_was(model, training, before)


def test_the_description_names_the_parameter_count_and_every_level():
    model = UNet(width=2, depth=2)
    text = model.describe(40, 24)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["down", "0", "2", "x", "40", "x", "24"],
        ["down", "1", "4", "x", "20", "x", "12"],
        ["down", "2", "8", "x", "10", "x", "6"],
        ["up", "1", "4", "x", "20", "x", "12"],
        ["up", "0", "2", "x", "40", "x", "24"],
        ["logits", "1", "x", "40", "x", "24"],
    ]


def test_probabilities_are_the_sigmoid_of_the_logits():
    model, x = network(width=2, depth=2), 20 * pictures(3, 1, 16, 16)
    with torch.no_grad():
        found, logits = model.probabilities(x).numpy(), model(x).numpy()
    assert np.allclose(found, expit(logits.astype(np.float64)), atol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.ptp(found) > 0.1


def test_in_eval_mode_a_slice_does_not_see_the_rest_of_its_batch():
    model, x = network(dtype=torch.float64, width=3, depth=3), pictures(5, 1, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([model(one[None]) for one in x])
        assert alone.std() > 0.1
        assert torch.allclose(model(x), alone, rtol=1e-10, atol=1e-12)


def test_in_eval_mode_a_forward_pass_changes_nothing_in_the_network():
    model = network(width=2, depth=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(pictures(2, 1, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_picture_given_is_left_as_it_was():
    x = pictures(2, 1, 8, 8)
    network(width=2, depth=2)(x)
    assert torch.equal(x, pictures(2, 1, 8, 8))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("half", ["skip", "below"])
def test_the_way_up_listens_to_the_skip_and_to_the_level_below(level, half):
    model, x = network(width=4, depth=3), pictures(1, 1, 24, 24)
    skip = 4 * 2**level

    def silence(_, inputs):
        joined = inputs[0].clone()
        joined[:, :skip] *= half != "skip"
        joined[:, skip:] *= half != "below"
        return (joined,)

    with torch.no_grad():
        before = model(x)
        assert before.std() > 0.1
        model.up[2 - level].register_forward_pre_hook(silence)
        assert not torch.allclose(model(x), before, rtol=0.1, atol=0.1)


def test_the_gradient_reaches_every_parameter():
    model = network(width=4, depth=3).train()
    model(pictures(4, 1, 24, 24)).square().sum().backward()
    reached = {name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters()}
    assert [name for name, yes in reached.items() if not yes] == []


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "width", "depth"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_network_of_nothing_is_refused_by_name(name, value):
    with pytest.raises(UnetlibError, match=rf"U-Net: .*{name}={value}.* each must be at least 1"):
        UNet(**{name: value})
