"""Backpropagation through time by hand: what is kept, what is overwritten, and the weights' gradient in one product.

Every function takes `projected` (T, B, G H), the inputs' part of the gates with all biases that can be added ahead, and
takes it over: it becomes the gates, and on the way back their gradient. So nobody else may hold it, and a second backward
pass, which would find it consumed, raises.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.kernels.loops import Loops
from zoo.noise import Noise

Nonlinearity = Literal["tanh", "relu"]


class LSTM(torch.autograd.Function):
    """(projected, h, c, R, noise, loops) -> outputs, cells, final h, final c."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, h: Tensor, c: Tensor, w_hidden: Tensor, noise: Noise, loops: Loops
    ) -> tuple[Tensor, ...]:
        outputs, cells = loops.lstm(projected, h, c, w_hidden, noise)
        _keep(ctx, noise, loops, projected, h, c, w_hidden, outputs, cells)
        return outputs, cells, outputs[-1].clone(), cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutputs: Any, dcells: Any, dh: Any, dc: Any) -> tuple[Tensor | None, ...]:
        gates, h, c, w_hidden, outputs, cells = _take(ctx)
        dh, dc = _own(dh, h), _own(dc, c)
        ctx.loops.lstm_backward(gates, cells, c, w_hidden, ctx.noise, doutputs, dcells, dh, dc)
        dw = _weight_gradient(gates, outputs, h, ctx.noise.rec) if ctx.needs_input_grad[3] else None
        return gates, dh, dc, dw, None, None


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
        _keep(ctx, noise, loops, projected, h, w_hidden, outputs, reset)
        ctx.reset_after = reset_after
        return outputs, outputs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutputs: Any, dh: Any) -> tuple[Tensor | None, ...]:
        gates, h, w_hidden, outputs, reset = _take(ctx)
        dh = _own(dh, h)
        # Before the product its factor r * rec * h is kept, and backward does not touch it; after it, its gradient comes back.
        ctx.loops.gru_backward(gates, outputs, reset, h, w_hidden, ctx.noise, ctx.reset_after, doutputs, dh)
        dw = db = None
        hidden_size, rec = h.shape[-1], ctx.noise.rec
        rec_gates, rec_new = (rec, rec) if rec is None or rec.ndim == 3 else rec.expand(-1, 3, -1, -1).split([2, 1], 1)
        if ctx.needs_input_grad[2]:
            two, new = gates.split([2 * hidden_size, hidden_size], -1)
            of_new = _weight_gradient(reset, outputs, h, rec_new) if ctx.reset_after else _product(new, reset)
            dw = torch.cat([_weight_gradient(two, outputs, h, rec_gates), of_new])
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
        _keep(ctx, noise, loops, projected, h, w_hidden, outputs)
        ctx.nonlinearity = nonlinearity
        return outputs, outputs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutputs: Any, dh: Any) -> tuple[Tensor | None, ...]:
        gates, h, w_hidden, outputs = _take(ctx)
        dh = _own(dh, h)
        ctx.loops.rnn_backward(gates, w_hidden, ctx.noise, doutputs, dh, ctx.nonlinearity)
        dw = _weight_gradient(gates, outputs, h, ctx.noise.rec) if ctx.needs_input_grad[2] else None
        return gates, dh, dw, None, None, None


def _keep(ctx: Any, noise: Noise, loops: Loops, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.noise, ctx.loops, ctx.consumed = noise, loops, False


def _take(ctx: Any) -> tuple[Tensor, ...]:
    if ctx.consumed:
        raise RuntimeError(
            "a second backward pass through a recurrent layer, whose buffers the first one consumed; "
            "backend='reference' keeps them"
        )
    ctx.consumed = True
    return tuple(ctx.saved_tensors)


def _own(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient that the loops may write into."""
    return torch.zeros_like(like) if gradient is None else gradient.clone(memory_format=torch.contiguous_format)


def _weight_gradient(dgates: Tensor, outputs: Tensor, h: Tensor, rec: Tensor | None) -> Tensor:
    """The gradient of R, from all steps at once."""
    if rec is None:
        return _product(dgates[1:], outputs[:-1]).addmm_(dgates[0].T, h)
    previous = torch.cat([h.unsqueeze(0), outputs[:-1]])
    if rec.ndim == 3:
        return _product(dgates, previous.mul_(rec))
    blocks = dgates.unflatten(-1, (-1, h.shape[-1])).unbind(-2)
    masks = rec.expand(-1, len(blocks), -1, -1).unbind(1)
    return torch.cat([_product(block, previous * mask) for block, mask in zip(blocks, masks, strict=True)])


def _product(left: Tensor, right: Tensor) -> Tensor:
    return left.flatten(0, 1).T @ right.flatten(0, 1)
