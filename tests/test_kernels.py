import pytest
import torch

from zoo import functional, kernels
from zoo.functional import Weights
from zoo.noise import Noise


def problem(time: int, batch: int, inputs: int, hidden: int, dtype: torch.dtype):
    torch.manual_seed(time)
    shapes = [(time, batch, inputs), (batch, hidden), (batch, hidden)]
    shapes += [(4 * hidden, inputs), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("sizes", [(1, 3, 4, 7), (13, 3, 5, 7), (13, 1, 1, 8)])
def test_vendor_equals_reference_with_all_gradients(sizes, dtype, tolerance):
    results = []
    for run in (functional.lstm, lambda *arguments: kernels.lstm(*arguments, backend="vendor")):
        x, h, c, *weights = leaves = problem(*sizes, dtype)
        outputs, (final_h, final_c), _ = run(x, (h, c), Weights(*weights))
        torch.manual_seed(0)
        loss = sum((value * torch.randn_like(value)).sum() for value in (outputs, final_h, final_c))
        gradients = torch.autograd.grad(loss, leaves)
        assert all(gradient.norm() > 1e-3 for gradient in gradients)
        results.append((outputs, final_h, final_c, *gradients))
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


def test_auto_runs_noise_on_the_reference():
    x, h, c, *weights = problem(5, 3, 4, 7, torch.float32)
    noise = Noise(hkeep=torch.full((1, 1, 1), 0.5))
    ours, *_ = kernels.lstm(x, (h, c), Weights(*weights), noise)
    torch.testing.assert_close(ours, functional.lstm(x, (h, c), Weights(*weights), noise)[0])
    assert not torch.allclose(ours, kernels.lstm(x, (h, c), Weights(*weights))[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(noise=Noise(upd=torch.ones(1, 1, 1)), backend="vendor"), "cannot run this LSTM"),
        (dict(noise=Noise(upd=torch.ones(1, 1, 9))), r"noise\.upd has shape \(1, 1, 9\)"),
        (
            dict(weights=Weights(*4 * (torch.zeros(28, 7),))),
            r"weights\.input has shape \(28, 7\), expected \(28, 4\)",
        ),
        (dict(inputs=torch.zeros(5, 3, 9)), r"weights\.input has shape \(28, 4\), expected \(28, 9\)"),
        (dict(inputs=torch.zeros(0, 3, 4)), "no time step"),
        (dict(state=(torch.zeros(2, 7), torch.zeros(3, 7))), r"state h has shape \(2, 7\), expected \(3, 7\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x, h, c, *weights = problem(5, 3, 4, 7, torch.float32)
    arguments = {"inputs": x, "state": (h, c), "weights": Weights(*weights), **change}
    with pytest.raises(ValueError, match=message):
        kernels.lstm(**arguments)
