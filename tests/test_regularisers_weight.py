"""Regularisers of the weights, and DropConnect's linear layer."""

import pytest
import torch
from torch import nn

from zoo import kernels
from zoo.functional import Weights
from zoo.regularisers import DropConnect, GaussianWeightNoise, WeightDrop

H, I = 60, 40


@pytest.fixture
def weights():
    torch.manual_seed(0)
    shapes = (4 * H, I), (4 * H, H), (4 * H,), (4 * H,)
    return Weights(*(torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes))


def test_weight_drop_masks_the_recurrent_matrix_alone(weights):
    dropped = WeightDrop(0.3)(weights)
    assert all(getattr(dropped, name) is getattr(weights, name) for name in ("input", "bias_input", "bias_hidden"))
    kept = dropped.hidden != 0
    assert kept.double().mean().item() == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(dropped.hidden, weights.hidden * kept / 0.7)


def test_weight_drop_keeps_the_mean(weights):
    drop = WeightDrop(0.3)
    mean = torch.stack([drop(weights).hidden.detach() for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, weights.hidden.detach(), rtol=0.2, atol=0.01)


def test_weight_drop_sends_the_gradient_through_the_mask_to_the_raw_weights(weights):
    dropped = WeightDrop(0.3)(weights)
    inputs, state = torch.randn(5, 3, I).double(), (torch.randn(3, H).double(), torch.randn(3, H).double())
    kernels.lstm(inputs, state, dropped)[0].square().sum().backward()
    kept = dropped.hidden != 0
    assert (weights.hidden.grad[kept] != 0).double().mean() > 0.9
    assert (weights.hidden.grad[~kept] == 0).all()
    assert weights.input.grad.abs().sum() > 0


@pytest.mark.parametrize("regulariser", [WeightDrop(0.5), GaussianWeightNoise(0.1)], ids=str)
def test_weights_are_drawn_for_every_call_and_clean_in_evaluation(weights, regulariser):
    first, second = regulariser(weights).hidden, regulariser(weights).hidden
    assert not torch.equal(first, second)
    assert regulariser.eval()(weights).hidden is weights.hidden
    assert not torch.equal(regulariser.train()(weights).hidden, weights.hidden)


def test_weight_noise_has_its_spread_on_the_matrices_and_spares_the_biases(weights):
    noisy = GaussianWeightNoise(0.075)(weights)
    for name in ("input", "hidden"):
        noise = (getattr(noisy, name) - getattr(weights, name)).detach()
        assert noise.mean().item() == pytest.approx(0, abs=0.003)
        assert noise.std().item() == pytest.approx(0.075, rel=0.02)
    assert noisy.bias_input is weights.bias_input
    assert noisy.bias_hidden is weights.bias_hidden


def test_weight_noise_takes_the_gradient_at_the_noisy_point(weights):
    noisy = GaussianWeightNoise(0.5)(weights)
    noisy.hidden.pow(3).sum().backward()
    torch.testing.assert_close(weights.hidden.grad, 3 * noisy.hidden.detach().square())


def test_weight_noise_reaches_a_matrix_of_the_model():
    torch.manual_seed(0)
    noise, softmax = GaussianWeightNoise(0.1), nn.Linear(100, 200)
    assert (noise.noisy(softmax.weight) - softmax.weight).std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.eval().noisy(softmax.weight) is softmax.weight


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return DropConnect(6, 5, 0.3, samples=20_000, activation=nn.Tanh()).double()


def test_drop_connect_masks_every_example_by_itself(layer):
    layer.activation = None
    nn.init.ones_(layer.weight)
    nn.init.constant_(layer.bias, 100)
    ones = layer(torch.ones(8, 9, 6).double())
    assert ones.shape == (8, 9, 5)
    kept, bias = ones % 100, ones >= 100  # how many of the 6 connections, and the bias
    assert kept.mean().item() == pytest.approx(6 * 0.7, abs=0.2)
    assert bias.double().mean().item() == pytest.approx(0.7, abs=0.05)
    assert len({str(example.tolist()) for example in ones.flatten(end_dim=1)}) == 72


@pytest.mark.parametrize("bias", [True, False])
def test_drop_connect_gaussian_has_the_moments_of_the_masked_sum(bias):
    torch.manual_seed(0)
    layer, example = DropConnect(6, 5, 0.3, bias).double(), torch.randn(6).double()
    mean, variance = layer.moments(example)
    masked = layer(example.expand(100_000, -1)).detach()
    torch.testing.assert_close(masked.mean(0), mean, rtol=0, atol=0.005)
    torch.testing.assert_close(masked.var(0), variance, rtol=0.02, atol=0)


def test_drop_connect_evaluates_as_the_mean_activation_over_the_gaussian(layer):
    example = torch.randn(3, 6).double()
    mean, variance = layer.moments(example)
    points = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    density = torch.exp(-points.square() / 2)
    at = (mean.unsqueeze(-1) + variance.sqrt().unsqueeze(-1) * points).tanh()
    expected = (at * density).sum(-1) / density.sum()
    evaluated = layer.eval()(example)
    torch.testing.assert_close(evaluated, expected, rtol=0, atol=0.01)
    assert not torch.allclose(evaluated, mean.tanh(), rtol=0, atol=0.01)
    layer.activation = None
    assert torch.equal(layer(example), mean)
    assert not torch.equal(layer.train()(example), mean)


def test_drop_connect_draws_its_samples_from_torch_s_generator(layer):
    layer.samples = 3
    example = torch.randn(2, 6).double()
    for mode in (layer.eval(), layer.train()):
        torch.manual_seed(5)
        first, second = mode(example), mode(example)
        torch.manual_seed(5)
        assert torch.equal(first, mode(example))
        assert not torch.equal(first, second)


@pytest.mark.parametrize("training", [True, False])
def test_drop_connect_gradients(layer, training):
    layer.train(training).samples = 7
    inputs = torch.randn(4, 6).double().requires_grad_()

    def run(value, weight, bias):
        torch.manual_seed(0)
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, value)

    assert torch.autograd.gradcheck(run, (inputs, layer.weight, layer.bias))


def test_drop_connect_has_a_gradient_where_nothing_varies(layer):
    layer.eval().samples = 7
    nn.init.zeros_(layer.bias)
    inputs = torch.zeros(2, 6).double().requires_grad_()
    layer(inputs).sum().backward()
    assert inputs.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()


def test_drop_connect_without_dropping_is_a_linear_layer(layer):
    layer.p = 0.0
    inputs = torch.randn(2, 3, 6).double()
    expected = nn.functional.linear(inputs, layer.weight, layer.bias).tanh()
    assert torch.equal(layer(inputs), expected)
    assert torch.equal(layer.eval()(inputs), expected)
    assert layer.state_dict().keys() == nn.Linear(6, 5).state_dict().keys()


def test_drop_connect_needs_a_sample():
    with pytest.raises(ValueError, match="samples is 0; it must be 1 or more"):
        DropConnect(2, 3, 0.5, samples=0)
