"""Softmaxes that no model's own tests cover."""

import pytest
import torch
from torch import nn

from zoo.heads import NoisySoftmax
from zoo.regularisers import GaussianWeightNoise

D, V = 100, 80


@pytest.fixture
def softmax():
    torch.manual_seed(0)
    return NoisySoftmax(D, V, GaussianWeightNoise(0.075))


def test_the_matrix_is_noisy_in_training_alone(softmax):
    hidden = torch.randn(3, 2, D)
    clean = nn.functional.linear(hidden, softmax.weight, softmax.bias)
    assert not torch.allclose(softmax(hidden), clean)
    assert not torch.equal(softmax(hidden), softmax(hidden))
    assert torch.equal(softmax.eval()(hidden), clean)


def test_the_noise_has_its_spread_and_spares_the_bias(softmax):
    noise = (softmax(torch.eye(D)) - softmax.bias).T - softmax.weight
    assert noise.std().item() == pytest.approx(0.075, rel=0.03)
    assert torch.equal(softmax(torch.zeros(2, D)), softmax.bias.expand(2, V))


def test_one_draw_holds_for_all_steps_and_examples(softmax):
    logits = softmax(torch.randn(D).expand(5, 3, D))
    torch.testing.assert_close(logits, logits[:1, :1].expand(5, 3, V))


def test_the_gradient_is_that_at_the_noisy_point(softmax):
    hidden = torch.eye(D)
    logits = softmax(hidden)
    logits.pow(3).sum().backward()
    torch.testing.assert_close(softmax.weight.grad, 3 * logits.detach().square().T)


def test_its_parameters_are_a_linear_layers(softmax):
    linear = nn.Linear(D, V)
    linear.load_state_dict(softmax.state_dict())
    hidden = torch.randn(4, D)
    assert torch.equal(softmax.eval()(hidden), linear(hidden))
