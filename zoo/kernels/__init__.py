"""The recurrent equations made fast: each function takes the arguments of its reference in `zoo.functional`."""

from typing import Literal

from torch import Tensor

from zoo import functional
from zoo.functional import LSTMState, LSTMWeights
from zoo.kernels import vendor
from zoo.noise import Noise

Backend = Literal["auto", "reference", "vendor"]


def lstm(
    inputs: Tensor, state: LSTMState, weights: LSTMWeights, noise: Noise = Noise(), backend: Backend = "auto"
) -> tuple[Tensor, LSTMState]:
    """`zoo.functional.lstm` by the fastest path that can run it; `backend` forces one.

    Raises `ValueError` where shapes disagree or the forced backend cannot run the noise.
    """
    _check(inputs, state, weights, noise)
    if backend == "auto":
        backend = "vendor" if noise.off else "reference"
    if backend == "reference":
        return functional.lstm(inputs, state, weights, noise)
    if not noise.off:
        raise ValueError(f"backend {backend!r} cannot run noise; use 'auto' or 'reference'")
    return vendor.lstm(inputs, state, weights)


def _check(inputs: Tensor, state: LSTMState, weights: LSTMWeights, noise: Noise) -> None:
    w_input, w_hidden, *_ = weights
    hidden_size = w_hidden.shape[-1]
    expected = [(4 * hidden_size, w_input.shape[-1]), (4 * hidden_size, hidden_size)] + 2 * [(4 * hidden_size,)]
    if [value.shape for value in weights] != expected:
        raise ValueError(f"weights have shapes {[tuple(value.shape) for value in weights]}, expected {expected}")
    if inputs.ndim != 3 or inputs.shape[2] != w_input.shape[1]:
        raise ValueError(f"inputs have shape {tuple(inputs.shape)}, expected (T, B, {w_input.shape[1]})")
    time, batch, _ = inputs.shape
    if time == 0:
        raise ValueError("inputs have no time step: shape " + str(tuple(inputs.shape)))
    for name, value in zip("hc", state, strict=True):
        if value.shape != (batch, hidden_size):
            raise ValueError(f"the state's {name} has shape {tuple(value.shape)}, expected {(batch, hidden_size)}")
    noise.check(time, batch, hidden_size)
