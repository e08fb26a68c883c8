"""The recurrent equations made fast: each function takes the arguments of its reference in `zoo.functional`.

Backends: `reference`, the readable loop itself; `torch`, backpropagation by hand in plain torch, on any device; `native`,
the same compiled on first use, on the CPU; `triton`, the same with fused steps on CUDA; `vendor`, oneDNN or cuDNN, which
know no noise. `auto` takes the first of native, vendor, triton and torch that can run the call: native code is as fast as
oneDNN within a few per cent, needs about half its memory, and far faster where the layer is small.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from zoo import functional
from zoo.functional import Gains, LSTMRun, LSTMState, Moments, Weights
from zoo.kernels import bptt, fused, native, normalised, pointwise, vendor
from zoo.kernels.checks import autocasts, check
from zoo.kernels.draws import bernoulli as bernoulli
from zoo.kernels.loops import Loops
from zoo.kernels.untraced import traced as traced
from zoo.noise import GATES, Cell, Noise

Backend = Literal["auto", "reference", "torch", "native", "triton", "vendor"]


def choose(
    backend: Backend,
    cell: Cell,
    inputs: Tensor,
    plain: bool,
    normalised: bool = False,
    others: Iterable[Tensor | None] = (),
) -> Backend:
    """The backend that runs a call: the forced one, else the fastest that can; `plain` is what the vendor can run too.

    `others` are what it reads beside the inputs. Raises `ValueError` where the forced one cannot.
    """
    able: dict[Backend, Callable[[], bool]] = {  # asked only where it matters: an answer may take a compiler
        "native": lambda: native.can_run(cell, inputs),
        "vendor": lambda: plain,
        "triton": lambda: inputs.device.type == "cuda" and not normalised and fused.available(),
        "torch": lambda: True,
        "reference": lambda: True,
    }
    if backend == "auto":
        if traced(inputs, *others):
            return "reference"  # nobody sees what the others write to
        # It packs the weights at every call, which pays for a sequence or a batch.
        slow = ("native",) if inputs.shape[:2].numel() == 1 and inputs.device.type == "cpu" else ()
        return next(name for name, can in able.items() if name not in slow and can())
    if backend not in able or not able[backend]():
        name = f"normalised {cell.upper()}" if normalised else cell.upper()
        raise ValueError(
            f"backend {backend!r} cannot run this {name} on {inputs.device} in {inputs.dtype}; "
            f"those that can: {', '.join(name for name, can in able.items() if can())}"
        )
    return backend


def lstm(
    inputs: Tensor,
    state: LSTMState,
    weights: Weights,
    noise: Noise = Noise(),
    *,
    cells: bool = False,
    bfloat16: bool = False,
    backend: Backend = "auto",
) -> LSTMRun:
    """`zoo.functional.lstm` by the fastest path that can run it; `backend` forces one.

    Every cell state is promised where `cells` asks for it. With `bfloat16` native code rounds the factors of its products to
    it, where the processor multiplies such numbers, and so the gates' gradients; gates and states keep their dtype, as do
    the products of up to 4 inputs on the way forward. Raises `ValueError` for arguments that do not fit together, for a
    forced backend that cannot run them, and under autocast, before any work.
    """
    _check("lstm", inputs, {"h": state[0], "c": state[1]}, weights, noise)
    chosen = choose(backend, "lstm", inputs, plain=noise.off and not cells, others=(*state, *weights))
    if chosen == "reference":
        return functional.lstm(inputs, state, weights, noise)
    if chosen == "vendor":
        outputs, *final = vendor.run("lstm", inputs, state, weights)
        return LSTMRun(outputs, (final[0], final[1]), None)
    bias = _sum(weights.bias_input, weights.bias_hidden)
    arguments = inputs, *state, weights.input, weights.hidden, bias, noise
    if torch.is_grad_enabled():
        outputs, all_cells, h, c = bptt.LSTM.apply(*arguments, _loops(chosen, bfloat16))  # type: ignore[no-untyped-call]
    else:
        _, outputs, all_cells = _loops(chosen, bfloat16).lstm(*arguments, keep=cells)
        h, c = outputs[-1].clone(), all_cells[-1].clone()
    return LSTMRun(outputs, (h, c), all_cells if cells else None)


def gru(
    inputs: Tensor,
    state: Tensor,
    weights: Weights,
    noise: Noise = Noise(),
    reset_after: bool = True,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`zoo.functional.gru` by the fastest path that can run it; `backend` forces one. Errors as in `lstm`."""
    _check("gru", inputs, {"h": state}, weights, noise)
    chosen = choose(backend, "gru", inputs, plain=noise.off and reset_after, others=(state, *weights))
    if chosen == "reference":
        return functional.gru(inputs, state, weights, noise, reset_after)
    if chosen == "vendor":
        outputs, h = vendor.run("gru", inputs, (state,), weights)
        return outputs, h
    bias, b_new = weights.bias_hidden, None
    if reset_after and bias is not None:
        hidden_size = state.shape[-1]
        b_new = bias[2 * hidden_size :]
        bias = torch.cat([bias[: 2 * hidden_size], torch.zeros_like(b_new)])
    projected = linear(inputs, weights.input, _sum(weights.bias_input, bias))
    return bptt.GRU.apply(projected, state, weights.hidden, b_new, noise, reset_after, _loops(chosen))  # type: ignore[no-untyped-call, no-any-return]


def rnn(
    inputs: Tensor,
    state: Tensor,
    weights: Weights,
    noise: Noise = Noise(),
    nonlinearity: bptt.Nonlinearity = "tanh",
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`zoo.functional.rnn` by the fastest path that can run it; `backend` forces one. Errors as in `lstm`."""
    _check("rnn", inputs, {"h": state}, weights, noise)
    chosen = choose(backend, "rnn", inputs, plain=noise.off, others=(state, *weights))
    if chosen == "reference":
        return functional.rnn(inputs, state, weights, noise, nonlinearity)
    if chosen == "vendor":
        outputs, h = vendor.run("rnn_tanh" if nonlinearity == "tanh" else "rnn_relu", inputs, (state,), weights)
        return outputs, h
    projected = linear(inputs, weights.input, _sum(weights.bias_input, weights.bias_hidden))
    return bptt.RNN.apply(projected, state, weights.hidden, noise, nonlinearity, _loops(chosen))  # type: ignore[no-untyped-call, no-any-return]


def batch_norm_lstm(
    inputs: Tensor,
    state: LSTMState,
    weights: Weights,
    gains: Gains,
    noise: Noise = Noise(),
    population: Moments | None = None,
    eps: float = 1e-5,
    *,
    bfloat16: bool = False,
    backend: Backend = "auto",
) -> tuple[LSTMRun, Moments]:
    """`zoo.functional.batch_norm_lstm` by the fastest path that can run it; `backend` forces one.

    No gradient goes through the moments that come out, nor, but by the reference, into a population. `bfloat16`, of the
    recurrent product alone, and errors as in `lstm`.
    """
    _check("lstm", inputs, {"h": state[0], "c": state[1]}, weights, noise)
    normalised.check_gains(inputs, weights, gains, population)
    chosen = choose(backend, "lstm", inputs, plain=False, normalised=True, others=(*state, *weights))
    if chosen == "reference":
        run, used = functional.batch_norm_lstm(inputs, state, weights, gains, noise, population, eps)
        return run, Moments(*(moment.detach() for moment in used))
    bias = _sum(weights.bias_input, weights.bias_hidden)
    compiled = chosen == "native"
    return normalised.batch_norm_lstm(inputs, state, weights, bias, gains, noise, population, eps, compiled, bfloat16)


def layer_norm_lstm(
    inputs: Tensor,
    state: LSTMState,
    weights: Weights,
    gains: Gains,
    noise: Noise = Noise(),
    eps: float = 1e-5,
    *,
    bfloat16: bool = False,
    backend: Backend = "auto",
) -> LSTMRun:
    """`zoo.functional.layer_norm_lstm` by the fastest path that can run it; `backend` forces one.

    `bfloat16`, of the recurrent product alone, and errors as in `lstm`.
    """
    _check("lstm", inputs, {"h": state[0], "c": state[1]}, weights, noise)
    normalised.check_gains(inputs, weights, gains)
    chosen = choose(backend, "lstm", inputs, plain=False, normalised=True, others=(*state, *weights))
    if chosen == "reference":
        return functional.layer_norm_lstm(inputs, state, weights, gains, noise, eps)
    bias = _sum(weights.bias_input, weights.bias_hidden)
    compiled = chosen == "native"
    return normalised.layer_norm_lstm(inputs, state, weights, bias, gains, noise, eps, compiled, bfloat16)


def _loops(backend: Backend, bfloat16: bool = False) -> Loops:
    if backend == "native":
        return native.Loops(bfloat16)
    return Loops(fused.pointwise() if backend == "triton" else pointwise)


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _check(cell: Cell, inputs: Tensor, state: dict[str, Tensor], weights: Weights, noise: Noise) -> None:
    if inputs.ndim != 3:
        raise ValueError(f"inputs have shape {tuple(inputs.shape)}, expected (T, B, I)")
    if autocasts(inputs.device.type):
        raise ValueError(
            f"autocast is on, but a recurrence runs in its tensors' dtype, {inputs.dtype}: call it in "
            f"torch.autocast({inputs.device.type!r}, enabled=False), as `zoo.layers` do"
        )
    time, batch, width = inputs.shape
    hidden_size = weights.hidden.shape[-1]
    for name, size in {"time step": time, "batch": batch, "column": width, "hidden unit": hidden_size}.items():
        if size == 0:
            raise ValueError(
                f"there is no {name}: inputs {tuple(inputs.shape)}, weights.hidden {tuple(weights.hidden.shape)}"
            )
    gates = GATES[cell] * hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "weights.input": (gates, width),
        "weights.hidden": (gates, hidden_size),
        "weights.bias_input": (gates,),
        "weights.bias_hidden": (gates,),
        **{f"state {name}": (batch, hidden_size) for name in state},
    }
    given = {f"weights.{name}": value for name, value in weights._asdict().items()}
    check(given | {f"state {name}": value for name, value in state.items()}, shapes, inputs)
    noise.check(inputs, hidden_size, cell, values=not traced(inputs))
