"""The loops over time, forward and backward: one recurrent product and one element-wise pass a step.

`gates` (T, B, G H) holds the projected inputs, which the LSTM's loop makes and the others' are given, then the open gates
and, on the way back, their gradients.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from zoo.noise import Noise, split_rec


class Loops:
    """The loops of every cell around one implementation of the element-wise pass, such as `zoo.kernels.pointwise`."""

    def __init__(self, pointwise: ModuleType) -> None:
        self._pointwise = pointwise

    def lstm(
        self,
        inputs: Tensor,
        h: Tensor,
        c: Tensor,
        w_input: Tensor,
        w_hidden: Tensor,
        bias: Tensor | None,
        noise: Noise,
        keep: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gates, outputs (T, B, H) and cells (T, B, H); without `keep` maybe unfit gates and the last cells alone."""
        gates = linear(inputs, w_input, bias)
        outputs, cells = (gates.new_empty(*gates.shape[:2], h.shape[-1]) for _ in range(2))
        for t in range(len(gates)):
            step = noise.at(t)
            add_product(gates[t], h, w_hidden, step.rec)
            self._pointwise.lstm(gates[t], h, c, step, outputs[t], cells[t])
            h, c = outputs[t], cells[t]
        return gates, outputs, cells

    def lstm_backward(
        self,
        gates: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        cells: Tensor,
        h: Tensor,
        c: Tensor,
        w_input: Tensor,
        w_hidden: Tensor,
        noise: Noise,
        doutputs: Tensor | None,
        dcells: Tensor | None,
        dh: Tensor,
        dc: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Leaves the initial state's gradients in `dh` and `dc`; returns those of inputs, W, R and bias, where needed."""
        for t in reversed(range(len(gates))):
            step = noise.at(t)
            incoming = (None if value is None else value[t] for value in (doutputs, dcells))
            self._pointwise.lstm_backward(gates[t], cells[t - 1] if t else c, step, dh, dc, *incoming)
            add_product_backward(dh, gates[t], w_hidden, step.rec)
        return (
            gates @ w_input if needed[0] else None,
            product_of_steps(gates, inputs) if needed[1] else None,
            hidden_weight_gradient(gates, outputs, h, noise.rec) if needed[2] else None,
            gates.sum((0, 1)) if needed[3] else None,
        )

    def gru(
        self,
        gates: Tensor,
        h: Tensor,
        w_hidden: Tensor,
        b_new: Tensor | None,
        noise: Noise,
        reset_after: bool,
    ) -> tuple[Tensor, Tensor]:
        """Outputs (T, B, H), and (T, B, H) what the reset gate multiplied (after) or made (before the product)."""
        outputs, reset = (gates.new_empty(*gates.shape[:2], h.shape[-1]) for _ in range(2))
        two, w_gates, w_new = _parts(w_hidden)
        if reset_after:
            reset.copy_(reset.new_zeros(()) if b_new is None else b_new)
        for t in range(len(gates)):
            step = noise.at(t)
            rec_gates, rec_new = split_rec(step.rec)
            add_product(gates[t][:, :two], h, w_gates, rec_gates)
            if reset_after:
                add_product(reset[t], h, w_new, rec_new)
                self._pointwise.gru_reset(gates[t], reset[t])
            else:
                self._pointwise.gru_gates(gates[t], h, rec_new, reset[t])
                add_product(gates[t][:, two:], reset[t], w_new, None)
            self._pointwise.gru(gates[t], h, step, outputs[t])
            h = outputs[t]
        return outputs, reset

    def gru_backward(
        self,
        gates: Tensor,
        outputs: Tensor,
        reset: Tensor,
        h: Tensor,
        w_hidden: Tensor,
        noise: Noise,
        reset_after: bool,
        doutputs: Tensor | None,
        dh: Tensor,
    ) -> None:
        """Leaves the gradients of the gates in `gates`, of the product that the reset gate follows in `reset`, and `dh`."""
        two, w_gates, w_new = _parts(w_hidden)
        for t in reversed(range(len(gates))):
            step = noise.at(t)
            rec_gates, rec_new = split_rec(step.rec)
            previous = outputs[t - 1] if t else h
            self._pointwise.gru_backward(gates[t], previous, step, dh, None if doutputs is None else doutputs[t])
            if reset_after:
                self._pointwise.gru_reset_backward(gates[t], reset[t])
                add_product_backward(dh, reset[t], w_new, rec_new)
            else:
                dreset = gates[t][:, two:] @ w_new
                self._pointwise.gru_gates_backward(gates[t], previous, rec_new, dreset, dh)
            add_product_backward(dh, gates[t][:, :two], w_gates, rec_gates)

    def rnn(
        self, gates: Tensor, h: Tensor, w_hidden: Tensor, noise: Noise, nonlinearity: Literal["tanh", "relu"]
    ) -> Tensor:
        """Outputs (T, B, H)."""
        outputs = torch.empty_like(gates)
        for t in range(len(gates)):
            step = noise.at(t)
            add_product(gates[t], h, w_hidden, step.rec)
            self._pointwise.rnn(gates[t], h, step, outputs[t], nonlinearity)
            h = outputs[t]
        return outputs

    def rnn_backward(
        self,
        gates: Tensor,
        w_hidden: Tensor,
        noise: Noise,
        doutputs: Tensor | None,
        dh: Tensor,
        nonlinearity: Literal["tanh", "relu"],
    ) -> None:
        """Leaves the gradients of what the nonlinearity takes in `gates`, and of the initial state in `dh`."""
        for t in reversed(range(len(gates))):
            step = noise.at(t)
            doutput = None if doutputs is None else doutputs[t]
            self._pointwise.rnn_backward(gates[t], step, dh, nonlinearity, doutput)
            add_product_backward(dh, gates[t], w_hidden, step.rec)


def _parts(w_hidden: Tensor) -> tuple[int, Tensor, Tensor]:
    two = 2 * w_hidden.shape[-1]
    return two, w_hidden[:two], w_hidden[two:]


def add_product(gates: Tensor, h: Tensor, w_hidden: Tensor, rec: Tensor | None) -> None:
    """gates += R (rec * h); a mask of shape (gates, B, H) gives every gate its own copy of h."""
    if rec is None or rec.ndim == 2:
        gates.addmm_(h if rec is None else h * rec, w_hidden.T)
    else:
        blocks = _gates(w_hidden, 0, h.shape[-1])
        _gates(gates, 1, h.shape[-1]).movedim(1, 0).baddbmm_((h * rec).expand(len(blocks), *h.shape), blocks.mT)


def add_product_backward(dh: Tensor, dgates: Tensor, w_hidden: Tensor, rec: Tensor | None) -> None:
    """dh += rec * (R' dgates)."""
    if rec is None:
        dh.addmm_(dgates, w_hidden)
    elif rec.ndim == 2:
        dh += rec * (dgates @ w_hidden)
    else:
        blocks = _gates(w_hidden, 0, dh.shape[-1])
        dh += (rec * torch.bmm(_gates(dgates, 1, dh.shape[-1]).movedim(1, 0), blocks)).sum(0)


def hidden_weight_gradient(dgates: Tensor, outputs: Tensor, h: Tensor, rec: Tensor | None) -> Tensor:
    """The gradient of R, from all steps at once."""
    if rec is None:
        return product_of_steps(dgates[1:], outputs[:-1]).addmm_(dgates[0].T, h)
    previous = torch.cat([h.unsqueeze(0), outputs[:-1]])
    if rec.ndim == 3:
        return product_of_steps(dgates, previous.mul_(rec))
    blocks = _gates(dgates, -1, h.shape[-1]).unbind(-2)
    masks = rec.expand(-1, len(blocks), -1, -1).unbind(1)
    return torch.cat([product_of_steps(block, previous * mask) for block, mask in zip(blocks, masks, strict=True)])


def product_of_steps(left: Tensor, right: Tensor) -> Tensor:
    """The sum over steps and batch of left' right: (T, B, M), (T, B, N) -> (M, N)."""
    return left.flatten(0, 1).T @ right.flatten(0, 1)


def _gates(stacked: Tensor, dim: int, hidden_size: int) -> Tensor:
    return stacked.unflatten(dim, (-1, hidden_size))  # type: ignore[no-untyped-call, no-any-return]
