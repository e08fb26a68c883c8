"""Backpropagation through time by hand: what is kept, what is overwritten, and the weights' gradient in one product.

The loops may turn the gates (T, B, G H) into their gradient on the way back, so a second backward pass, which could find
them consumed, raises. The GRU and the simple network start from `projected`, the inputs' part of the gates with all
biases that can be added ahead, and take it over: nobody else may hold it.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.kernels.checks import autocasts
from zoo.kernels.loops import Loops, hidden_weight_gradient, product_of_steps
from zoo.noise import Noise, split_rec

Nonlinearity = Literal["tanh", "relu"]
Gradients = tuple[Tensor | None, ...]


def in_own_dtype(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Its products stay in the dtype of their tensors where it is called within autocast, too."""

    @wraps(backward)
    def call(ctx: Any, *gradients: Any) -> Gradients:
        if not autocasts(ctx.device):
            return backward(ctx, *gradients)
        with torch.autocast(ctx.device, enabled=False):
            return backward(ctx, *gradients)

    return call


class LSTM(torch.autograd.Function):
    """(inputs, h, c, W, R, bias or None, noise, loops) -> outputs, cells, final h, final c."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        h: Tensor,
        c: Tensor,
        w_input: Tensor,
        w_hidden: Tensor,
        bias: Tensor | None,
        noise: Noise,
        loops: Loops,
    ) -> tuple[Tensor, ...]:
        gates, outputs, cells = loops.lstm(inputs, h, c, w_input, w_hidden, bias, noise)
        ctx.loops = loops
        keep(ctx, noise, gates, inputs, outputs, cells, h, c, w_input, w_hidden)
        return outputs, cells, outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    @in_own_dtype
    def backward(ctx: Any, doutputs: Any, dcells: Any, dh: Any, dc: Any) -> Gradients:
        saved = take(ctx)
        dh, dc = (own(gradient, state) for gradient, state in ((dh, saved[4]), (dc, saved[5])))
        needed = [ctx.needs_input_grad[n] for n in (0, 3, 4, 5)]
        dx, *of_weights = ctx.loops.lstm_backward(*saved, ctx.noise, doutputs, dcells, dh, dc, needed)
        return dx, dh, dc, *of_weights, None, None


class GRU(torch.autograd.Function):
    """(projected, h, R, bias of the reset product or None, noise, reset_after, loops) -> outputs, final h."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        h: Tensor,
        w_hidden: Tensor,
        b_new: Tensor | None,
        noise: Noise,
        reset_after: bool,
        loops: Loops,
    ) -> tuple[Tensor, ...]:
        outputs, reset = loops.gru(projected, h, w_hidden, b_new, noise, reset_after)
        ctx.loops = loops
        keep(ctx, noise, projected, h, w_hidden, outputs, reset)
        ctx.reset_after = reset_after
        return outputs, outputs[-1].clone()

    @staticmethod
    @in_own_dtype
    def backward(ctx: Any, doutputs: Any, dh: Any) -> Gradients:
        gates, h, w_hidden, outputs, reset = take(ctx)
        dh = own(dh, h)
        # Before the product, `reset` is its factor r * rec * h, left as it was; after it, its gradient.
        ctx.loops.gru_backward(gates, outputs, reset, h, w_hidden, ctx.noise, ctx.reset_after, doutputs, dh)
        dw = db = None
        hidden_size = h.shape[-1]
        rec_gates, rec_new = split_rec(ctx.noise.rec, steps=True)
        if ctx.needs_input_grad[2]:
            two, new = gates.tensor_split([2 * hidden_size], -1)
            of_new = (
                hidden_weight_gradient(reset, outputs, h, rec_new) if ctx.reset_after else product_of_steps(new, reset)
            )
            dw = torch.cat([hidden_weight_gradient(two, outputs, h, rec_gates), of_new])
        if ctx.needs_input_grad[3]:
            db = reset.sum((0, 1))
        return gates, dh, dw, db, None, None, None


class RNN(torch.autograd.Function):
    """(projected, h, R, noise, nonlinearity, loops) -> outputs, final h."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, h: Tensor, w_hidden: Tensor, noise: Noise, nonlinearity: Nonlinearity, loops: Loops
    ) -> tuple[Tensor, ...]:
        outputs = loops.rnn(projected, h, w_hidden, noise, nonlinearity)
        ctx.loops = loops
        keep(ctx, noise, projected, h, w_hidden, outputs)
        ctx.nonlinearity = nonlinearity
        return outputs, outputs[-1].clone()

    @staticmethod
    @in_own_dtype
    def backward(ctx: Any, doutputs: Any, dh: Any) -> Gradients:
        gates, h, w_hidden, outputs = take(ctx)
        dh = own(dh, h)
        ctx.loops.rnn_backward(gates, w_hidden, ctx.noise, doutputs, dh, ctx.nonlinearity)
        dw = hidden_weight_gradient(gates, outputs, h, ctx.noise.rec) if ctx.needs_input_grad[2] else None
        return gates, dh, dw, None, None, None


def keep(ctx: Any, noise: Noise, *tensors: Tensor) -> None:
    """Saves what `take` gives the one backward pass."""
    ctx.save_for_backward(*noise, *tensors)
    ctx.set_materialize_grads(False)
    ctx.consumed, ctx.device = False, tensors[0].device.type


def take(ctx: Any) -> tuple[Tensor, ...]:
    """The saved tensors, whose buffers may be overwritten; raises `RuntimeError` at a second backward pass."""
    if ctx.consumed:
        raise RuntimeError(
            "a second backward pass through a recurrent layer, whose buffers the first one consumed: detach the state that "
            "goes on to the next window; to go back twice on purpose give the layer backend='reference'"
        )
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a recurrent layer differentiates its gradient (create_graph=True) with backend='reference' alone"
        )
    ctx.consumed = True
    saved, sites = ctx.saved_tensors, len(Noise._fields)
    ctx.noise = Noise(*saved[:sites])
    return tuple(saved[sites:])


def own(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient that the loops may write into."""
    if gradient is None:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    return gradient.clone(memory_format=torch.contiguous_format)
