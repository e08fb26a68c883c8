"""Penalties on the activations."""

import pytest
import torch

from zoo.regularisers import ActivationRegularisation, NormStabiliser, TemporalActivationRegularisation

ALL = [ActivationRegularisation, TemporalActivationRegularisation, NormStabiliser]
SUCCESSIVE = [TemporalActivationRegularisation, NormStabiliser]


@pytest.fixture
def activations():
    torch.manual_seed(0)
    return torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)


def by_hand(kind, h):
    time, batch, size = h.shape
    total = 0.0
    if kind is ActivationRegularisation:
        return sum(float(x) ** 2 for x in h.flatten()) / (time * batch * size)
    for t in range(1, time):
        for b in range(batch):
            if kind is NormStabiliser:
                total += (float(h[t, b].norm()) - float(h[t - 1, b].norm())) ** 2 / ((time - 1) * batch)
            else:
                total += sum(float(x) ** 2 for x in h[t, b] - h[t - 1, b]) / ((time - 1) * batch * size)
    return total


@pytest.mark.parametrize("kind", ALL)
def test_penalties_follow_their_formulas(activations, kind):
    penalty = kind(2.5)
    assert penalty(activations).shape == ()
    assert penalty(activations).item() == pytest.approx(2.5 * by_hand(kind, activations.detach()), rel=1e-12)
    assert torch.equal(penalty.eval()(activations), penalty.train()(activations))
    assert kind(0.0)(activations) == 0


@pytest.mark.parametrize("kind", ALL)
def test_gradients(activations, kind):
    assert torch.autograd.gradcheck(kind(2.5), activations)


@pytest.mark.parametrize("kind", SUCCESSIVE)
def test_the_batch_may_come_first(activations, kind):
    torch.testing.assert_close(kind(2.5, batch_first=True)(activations.transpose(0, 1)), kind(2.5)(activations))
    assert kind(2.5, batch_first=True)(activations[:1].transpose(0, 1)) == 0


@pytest.mark.parametrize("kind", SUCCESSIVE)
def test_one_step_has_no_change(activations, kind):
    h = activations[:1]
    penalty = kind(2.5)(h)
    assert penalty == 0
    (gradient,) = torch.autograd.grad(penalty, h)
    assert (gradient == 0).all()


def test_the_norm_stabiliser_sees_lengths_alone(activations):
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    turned = torch.cat([activations[:1], activations[1:] @ rotation])
    torch.testing.assert_close(NormStabiliser(1)(turned), NormStabiliser(1)(activations))
    assert not torch.allclose(
        TemporalActivationRegularisation(1)(turned), TemporalActivationRegularisation(1)(activations)
    )


def test_the_norm_stabiliser_has_a_gradient_at_zero(activations):
    h = activations.detach().clone()
    h[0] = h[2] = 0
    h.requires_grad_()
    NormStabiliser(50)(h).backward()
    assert h.grad.isfinite().all()
    assert (h.grad[1] != 0).all()
