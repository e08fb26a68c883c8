"""The LSTMs with batch and layer normalisation: backpropagation through time by hand, in plain torch, on any device.

Both are one computation; what differs is the dimension that a mean is taken over, -2 (the batch) or -1 (the units). The
inputs' part of the gates is normalised for all steps at once, the recurrent part and the cell step by step. What has been
normalised becomes its gradient on the way back, as the gates do: see `zoo.kernels.bptt`.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.functional import Gains, LSTMRun, LSTMState, Moments, Weights
from zoo.kernels import bptt, pointwise
from zoo.kernels.loops import add_product, add_product_backward, hidden_weight_gradient
from zoo.noise import Noise

Kind = Literal["batch", "layer"]
_DIM: dict[Kind, int] = {"batch": -2, "layer": -1}


def lstm(
    kind: Kind,
    product: Tensor,
    state: LSTMState,
    w_hidden: Tensor,
    bias: Tensor | None,
    gains: Gains,
    noise: Noise,
    population: Moments | None,
    eps: float,
) -> tuple[LSTMRun, Moments]:
    """The run and the moments that it used: (T, 1, 4 H) and (T, 1, H) over the batch, (T, B, 1) over the units.

    `product` is W x(t), (T, B, 4 H), and is taken over: nobody else may hold it.
    """
    given = None if population is None else Moments(*(moment.unsqueeze(1) for moment in population))
    arguments = product, *state, w_hidden, bias, *gains, noise, given, eps, _DIM[kind]
    outputs, cells, h, c, *used = LSTM.apply(*arguments)  # type: ignore[no-untyped-call]
    return LSTMRun(outputs, (h, c), cells), Moments(*used) if given is None else given


def check(inputs: Tensor, weights: Weights, gains: Gains, population: Moments | None = None) -> None:
    """Raises `ValueError` for gains or a population that do not fit the inputs and weights."""
    gates, hidden_size = weights.hidden.shape
    given = {f"gains.{name}": gain for name, gain in gains._asdict().items()}
    if population is not None:
        given |= {f"population.{name}": moment for name, moment in population._asdict().items()}
    for name, value in given.items():
        width = hidden_size if "cell" in name else gates
        expected = (width,) if name.startswith("gains") else (len(inputs), width)
        if value.shape != expected:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {expected}")
        if value.dtype != inputs.dtype:
            raise ValueError(f"{name} is {value.dtype}, the inputs are {inputs.dtype}")
        if value.device != inputs.device:
            raise ValueError(f"{name} is on {value.device}, the inputs are on {inputs.device}")


class LSTM(torch.autograd.Function):
    """(W x, h, c, R, bias or None, gains, noise, population or None, eps, dim) -> outputs, cells, final h, final c, moments.

    The moments come out where no population is given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        product: Tensor,
        h: Tensor,
        c: Tensor,
        w_hidden: Tensor,
        bias: Tensor | None,
        gain_input: Tensor,
        gain_hidden: Tensor,
        gain_cell: Tensor,
        bias_cell: Tensor,
        noise: Noise,
        population: Moments | None,
        eps: float,
        dim: int,
    ) -> tuple[Tensor, ...]:
        first_h, first_c, given = h, c, population is not None
        hidden = torch.zeros_like(product)
        cell, outputs, cells = (product.new_empty(*product.shape[:2], h.shape[-1]) for _ in range(3))
        moments = population or _empty(product, cell, dim)
        _normalise(product, moments.input_mean, moments.input_var, eps, dim, given)
        gates = product * gain_input if bias is None else torch.addcmul(bias, product, gain_input)
        for t in range(len(gates)):
            step = noise.at(t)
            add_product(hidden[t], h, w_hidden, step.rec)
            _normalise(hidden[t], moments.hidden_mean[t], moments.hidden_var[t], eps, dim, given)
            gates[t].addcmul_(hidden[t], gain_hidden)
            i, f, g, o = gates[t].chunk(4, -1)
            gates[t][:, : 2 * h.shape[-1]].sigmoid_()
            g.tanh_()
            o.sigmoid_()
            new = pointwise._new_cell(i, f, g, c, step)
            cell[t] = new
            _normalise(cell[t], moments.cell_mean[t], moments.cell_var[t], eps, dim, given)
            torch.addcmul(bias_cell, cell[t], gain_cell, out=outputs[t]).tanh_().mul_(o)
            pointwise._keep(h, outputs[t], step.hkeep, step.out)
            cells[t] = new
            pointwise._keep(c, cells[t], step.ckeep)
            h, c = outputs[t], cells[t]
        variances = moments.input_var, moments.hidden_var, moments.cell_var
        saved = product, gates, hidden, cell, outputs, cells, first_h, first_c, w_hidden
        bptt.keep(ctx, noise, *saved, gain_input, gain_hidden, gain_cell, bias_cell, *variances)
        ctx.given, ctx.eps, ctx.dim = given, eps, dim
        used = () if given else moments
        ctx.mark_non_differentiable(*used)
        return outputs, cells, h.clone(), c.clone(), *used

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutputs: Any, dcells: Any, dh: Any, dc: Any, *_: Any) -> tuple[Tensor | None, ...]:
        product, gates, hidden, cell, outputs, cells, first_h, first_c, w_hidden, *rest = bptt.take(ctx)
        gain_input, gain_hidden, gain_cell, bias_cell, *variances = rest
        of_input, of_hidden, of_cell = ((variance + ctx.eps).rsqrt_() for variance in variances)
        dim, given, noise = ctx.dim, ctx.given, ctx.noise
        dh, dc = bptt.own(dh, first_h), bptt.own(dc, first_c)
        dgain_hidden, dgain_cell, dbias_cell = (torch.zeros_like(v) for v in (gain_hidden, gain_cell, bias_cell))
        for t in reversed(range(len(gates))):
            step = noise.at(t)
            if doutputs is not None:
                dh += doutputs[t]
            if dcells is not None:
                dc += dcells[t]
            i, f, g, o = gates[t].chunk(4, -1)
            tanh = torch.addcmul(bias_cell, cell[t], gain_cell).tanh_()
            dnew_h = pointwise._keep_backward(dh, step.hkeep, step.out)
            do = dnew_h * tanh
            dnormal = dnew_h.mul_(o).mul_(1 - tanh * tanh)
            dbias_cell += dnormal.sum(0)
            dgain_cell += _normalise_backward(dnormal, cell[t], gain_cell, of_cell[t], dim, given)
            dnew_c = pointwise._keep_backward(dc, step.ckeep).add_(cell[t])
            if step.cmul is not None:
                dnew_c *= step.cmul
            dc.addcmul_(dnew_c, f)
            dupdate = dnew_c if step.upd is None else dnew_c * step.upd
            di, dg = dupdate * g, dupdate * i
            i.mul_(di * (1 - i))
            f.mul_(dnew_c.mul_(cells[t - 1] if t else first_c) * (1 - f))
            torch.mul(dg, 1 - g * g, out=g)
            o.mul_(do * (1 - o))
            dgain_hidden += _normalise_backward(gates[t], hidden[t], gain_hidden, of_hidden[t], dim, given)
            add_product_backward(dh, hidden[t], w_hidden, step.rec)
        dw = hidden_weight_gradient(hidden, outputs, first_h, noise.rec) if ctx.needs_input_grad[3] else None
        dbias = gates.sum((0, 1)) if ctx.needs_input_grad[4] else None
        dgain_input = _normalise_backward(gates, product, gain_input, of_input, dim, given)
        return product, dh, dc, dw, dbias, dgain_input, dgain_hidden, dgain_cell, dbias_cell, None, None, None, None


def _empty(product: Tensor, cell: Tensor, dim: int) -> Moments:
    likes = product, product, product, product, cell, cell
    return Moments(*(torch.empty_like(like.narrow(dim, 0, 1)) for like in likes))


def _normalise(value: Tensor, mean: Tensor, var: Tensor, eps: float, dim: int, given: bool) -> None:
    """value = (value - mean) / sqrt(var + eps); writes the moments unless they are given.

    Sums, for torch's own `var_mean` takes 40 times as long over a batch on the CPU.
    """
    if not given:
        torch.mean(value, dim, keepdim=True, out=mean)
    value.sub_(mean)
    if not given:
        torch.mean(value * value, dim, keepdim=True, out=var)
    value.mul_((var + eps).rsqrt_())


def _normalise_backward(
    gradient: Tensor, normal: Tensor, gain: Tensor, reciprocal: Tensor, dim: int, given: bool
) -> Tensor:
    """From the gradient of gain * normal to that of what was normalised, written over `normal`; returns the gain's.

    d = gain * gradient;        (d - mean(d) - normal * mean(d * normal)) / deviation, and d / deviation for given moments.
    """
    product = gradient * normal
    dgain = product.flatten(0, -2).sum(0)
    d = gradient * gain
    if given:
        torch.mul(d, reciprocal, out=normal)
        return dgain
    along = product.mul_(gain).mean(dim, keepdim=True)
    d.sub_(d.mean(dim, keepdim=True))
    torch.addcmul(d, normal, along, value=-1, out=normal).mul_(reciprocal)
    return dgain
