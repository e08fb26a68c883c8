"""The LSTMs with batch and layer normalisation: backpropagation through time by hand, in plain torch or compiled.

Both are one computation around torch's fused normalisations. The inputs' part of the gates is normalised for all steps at
once, outside of the loop (of narrow inputs their weights are, and native code multiplies them within the step); the
recurrent part and the cell step by step. What is kept and overwritten is as in `zoo.kernels.bptt`; in plain torch the
recurrent part too becomes its gradient on the way back.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from zoo.functional import Gains, LSTMRun, LSTMState, Moments, Weights
from zoo.kernels import bptt, native, pointwise
from zoo.kernels.checks import check
from zoo.kernels.loops import add_product, add_product_backward, hidden_weight_gradient
from zoo.noise import Noise

# A pass over inputs of no more columns costs nothing beside one over their product, of which batch norm takes several.
NARROW = 4


def batch_norm_lstm(
    inputs: Tensor,
    state: LSTMState,
    weights: Weights,
    bias: Tensor | None,
    gains: Gains,
    noise: Noise,
    population: Moments | None,
    eps: float,
    compiled: bool,
    bfloat16: bool,
) -> tuple[LSTMRun, Moments]:
    """`zoo.functional.batch_norm_lstm`; no gradient goes through the moments or into a population."""
    norms = [Norm("batch", eps) for _ in range(2)]
    given = None
    if population is not None:
        given, *in_loop = zip(population[::2], population[1::2], strict=True)
        norms = [Norm("batch", eps, mean, var) for mean, var in in_loop]
    projected: Tensor | native.Narrow
    if inputs.shape[-1] <= NARROW:
        projected, of_product = _narrow(inputs, weights.input, gains.input, bias, given, eps)
        if inputs.requires_grad or not compiled:
            ones = torch.ones_like(inputs[..., :1])
            projected = torch.cat([projected.inputs, ones], -1) @ projected.weights
    else:
        projected, of_product = _projected(inputs, weights.input, gains.input, bias, given, eps)
    run, of_loop = _run(projected, state, weights, gains, noise, norms[0], norms[1], compiled, bfloat16)
    return run, Moments(*of_product, *of_loop) if population is None else population


def _projected(
    inputs: Tensor, weight: Tensor, gain: Tensor, bias: Tensor | None, given: tuple[Tensor, Tensor] | None, eps: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The inputs' part of the gates, (T, B, 4 H), and the moments of W x that it was normalised by, (T, 4 H)."""
    time, batch, _ = inputs.shape
    norm = Norm("batch", eps) if given is None else Norm("batch", eps, *(moment.reshape(1, -1) for moment in given))
    # The steps side by side are the columns of one batch.
    product = linear(inputs.transpose(0, 1), weight).flatten(1)
    normal = norm(product, gain.repeat(time), None if bias is None else bias.repeat(time))
    mean, var = norm.moments() if given is None else given
    return normal.view(batch, time, -1).transpose(0, 1).contiguous(), (mean.view(time, -1), var.view(time, -1))


def _narrow(
    inputs: Tensor, weight: Tensor, gain: Tensor, bias: Tensor | None, given: tuple[Tensor, Tensor] | None, eps: float
) -> tuple[native.Narrow, tuple[Tensor, Tensor]]:
    """`_projected` as one product: the moments of W x follow from those of x, W mean(x) and w' cov(x) w."""
    shift = torch.zeros_like(gain) if bias is None else bias
    if given is None:
        # Of inputs that go together the differences may be small; MPS has no float64.
        wide = torch.float32 if inputs.device.type == "mps" else torch.float64
        exact, own = inputs.to(wide), weight.to(wide)
        mean_of_inputs = exact.mean(1, keepdim=True)
        exact = exact - mean_of_inputs
        inputs = exact.to(inputs.dtype)
        covariance = exact.mT @ exact / inputs.shape[1]
        mean = linear(mean_of_inputs, own).squeeze(1).to(weight.dtype)
        var = (own @ covariance * own).sum(-1).to(weight.dtype)
        scale = gain * (var + eps).rsqrt()
        shift = shift.expand_as(scale)
    else:
        mean, var = given
        scale = gain * (var + eps).rsqrt()
        shift = shift - scale * mean
    weights = torch.cat([scale.unsqueeze(1) * weight.mT, shift.unsqueeze(1)], 1)
    return native.Narrow(inputs, weights), (mean.detach(), var.detach())


def layer_norm_lstm(
    inputs: Tensor,
    state: LSTMState,
    weights: Weights,
    bias: Tensor | None,
    gains: Gains,
    noise: Noise,
    eps: float,
    compiled: bool,
    bfloat16: bool,
) -> LSTMRun:
    """`zoo.functional.layer_norm_lstm`."""
    projected = Norm("layer", eps)(linear(inputs, weights.input), gains.input, bias)
    norms = [Norm("layer", eps) for _ in range(2)]
    return _run(projected, state, weights, gains, noise, norms[0], norms[1], compiled, bfloat16)[0]


def check_gains(inputs: Tensor, weights: Weights, gains: Gains, population: Moments | None = None) -> None:
    """Raises `ValueError` for gains or a population that do not fit the inputs and weights."""
    gates, hidden_size = weights.hidden.shape
    given = {f"gains.{name}": gain for name, gain in gains._asdict().items()}
    if population is not None:
        given |= {f"population.{name}": moment for name, moment in population._asdict().items()}
    widths = {name: hidden_size if "cell" in name else gates for name in given}
    shapes = {name: (width,) if name.startswith("gains") else (len(inputs), width) for name, width in widths.items()}
    check(given, shapes, inputs)


class Norm:
    """One normalisation at every step: over the batch or, "layer", the units; by given moments of the batch, (T, N).

    Remembers the moments of each call, which `backward` needs.
    """

    def __init__(self, kind: native.Kind, eps: float, mean: Tensor | None = None, var: Tensor | None = None) -> None:
        self.kind, self.eps, self.given = kind, eps, None if mean is None or var is None else (mean, var)
        self._used: list[tuple[Tensor, Tensor]] = []

    def __call__(self, value: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        """gain * (value - mean) / sqrt(variance + eps) + bias of the next step; differentiable itself."""
        if self.kind == "layer":
            normal, *used = torch.native_layer_norm(value, gain.shape, gain, bias, self.eps)
        else:
            given = self._given(len(self._used))
            normal, *used = torch.native_batch_norm(value, gain, bias, *given, self.given is None, 0.0, self.eps)
        mean, reciprocal = used
        self._used.append((mean.detach(), reciprocal.detach()))
        return normal

    def backward(
        self, t: int, gradient: Tensor, value: Tensor, gain: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients of value, gain and bias at step t."""
        needed = [True, True, bias is not None]
        gradients: tuple[Tensor, Tensor, Tensor | None]
        if self.kind == "layer":
            gradients = torch.ops.aten.native_layer_norm_backward(
                gradient, value, gain.shape, *self._used[t], gain, bias, needed
            )
        else:
            given, training = self._given(t), self.given is None
            gradients = torch.ops.aten.native_batch_norm_backward(
                gradient, value, gain, *given, *self._used[t], training, self.eps, needed
            )
        return gradients

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over the batch at every step, (T, N)."""
        mean, reciprocal = (torch.stack(steps) for steps in zip(*self._used, strict=True))
        return mean, reciprocal.pow_(-2).sub_(self.eps).clamp_min_(0)

    def _given(self, t: int) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.given is None else (self.given[0][t], self.given[1][t])


def _run(
    projected: Tensor | native.Narrow,
    state: LSTMState,
    weights: Weights,
    gains: Gains,
    noise: Noise,
    norm_hidden: Norm,
    norm_cell: Norm,
    compiled: bool,
    bfloat16: bool,
) -> tuple[LSTMRun, Sequence[Tensor]]:
    """The run and, by batch, mean and variance of the hidden product and of the cell at every step."""
    _, *gains_in_loop = gains
    arguments = *state, weights.hidden, *gains_in_loop, noise, norm_hidden, norm_cell
    moments: Sequence[Tensor]
    if compiled:
        parts = projected if isinstance(projected, native.Narrow) else (None, projected)
        outputs, cells, h, c, *moments = CompiledLSTM.apply(*parts, *arguments, bfloat16)  # type: ignore[no-untyped-call]
    else:
        outputs, cells, h, c = LSTM.apply(projected, *arguments)  # type: ignore[no-untyped-call]
        moments = [*norm_hidden.moments(), *norm_cell.moments()] if norm_hidden.kind == "batch" else []
    return LSTMRun(outputs, (h, c), cells), moments


class LSTM(torch.autograd.Function):
    """(projected, h, c, R, gain_hidden, gain_cell, bias_cell, noise, norm_hidden, norm_cell) -> outputs, cells, final h, c.

    `projected` is the normalised inputs' part of the gates with their bias, (T, B, 4 H), and is taken over: nobody else may
    hold it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        h: Tensor,
        c: Tensor,
        w_hidden: Tensor,
        gain_hidden: Tensor,
        gain_cell: Tensor,
        bias_cell: Tensor,
        noise: Noise,
        norm_hidden: Norm,
        norm_cell: Norm,
    ) -> tuple[Tensor, ...]:
        gates, first_h, first_c = projected, h, c
        hidden = torch.zeros_like(gates)
        new_cells, tanh, outputs, cells = (gates.new_empty(*gates.shape[:2], h.shape[-1]) for _ in range(4))
        for t in range(len(gates)):
            step = noise.at(t)
            add_product(hidden[t], h, w_hidden, step.rec)
            gates[t] += norm_hidden(hidden[t], gain_hidden, None)
            i, f, g, o = pointwise.open_gates(gates[t])
            new_cells[t] = pointwise.new_cell(i, f, g, c, step)
            torch.tanh(norm_cell(new_cells[t], gain_cell, bias_cell), out=tanh[t])
            torch.mul(o, tanh[t], out=outputs[t])
            pointwise.mix(h, outputs[t], step.hkeep, step.out)
            cells[t] = new_cells[t]
            pointwise.mix(c, cells[t], step.ckeep)
            h, c = outputs[t], cells[t]
        saved = gates, hidden, new_cells, tanh, outputs, cells, first_h, first_c
        bptt.keep(ctx, noise, *saved, w_hidden, gain_hidden, gain_cell, bias_cell)
        ctx.norm_hidden, ctx.norm_cell = norm_hidden, norm_cell
        return outputs, cells, h.clone(), c.clone()

    @staticmethod
    @bptt.in_own_dtype
    def backward(ctx: Any, doutputs: Any, dcells: Any, dh: Any, dc: Any) -> tuple[Tensor | None, ...]:
        gates, hidden, new_cells, tanh, outputs, cells, first_h, first_c, *parameters = bptt.take(ctx)
        w_hidden, gain_hidden, gain_cell, bias_cell = parameters
        dh, dc = bptt.own(dh, first_h), bptt.own(dc, first_c)
        dgain_hidden, dgain_cell, dbias_cell = (torch.zeros_like(v) for v in (gain_hidden, gain_cell, bias_cell))
        for t in reversed(range(len(gates))):
            step = ctx.noise.at(t)
            if doutputs is not None:
                dh += doutputs[t]
            if dcells is not None:
                dc += dcells[t]
            o = gates[t].chunk(4, -1)[-1]
            dnew_h = pointwise.mix_backward(dh, step.hkeep, step.out)
            do = dnew_h * tanh[t]
            dnormal = dnew_h.mul_(o).mul_(1 - tanh[t] * tanh[t])
            dnew_c, dgain, dbias = ctx.norm_cell.backward(t, dnormal, new_cells[t], gain_cell, bias_cell)
            dgain_cell += dgain
            dbias_cell += dbias
            dnew_c += pointwise.mix_backward(dc, step.ckeep)
            pointwise.open_gates_backward(gates[t], cells[t - 1] if t else first_c, step, dnew_c, do, dc)
            hidden[t], dgain, _ = ctx.norm_hidden.backward(t, gates[t], hidden[t], gain_hidden, None)
            dgain_hidden += dgain
            add_product_backward(dh, hidden[t], w_hidden, step.rec)
        dw = hidden_weight_gradient(hidden, outputs, first_h, ctx.noise.rec) if ctx.needs_input_grad[3] else None
        return gates, dh, dc, dw, dgain_hidden, dgain_cell, dbias_cell, None, None, None


class CompiledLSTM(torch.autograd.Function):
    """`LSTM` in native code -> outputs, cells, final h, c and, of a batch, mean and variance of R h(t-1) and of c'.

    `projected` is what `LSTM` takes or, of narrow inputs, the weights of their product (`native.Narrow`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        narrow_inputs: Tensor | None,
        projected: Tensor,
        h: Tensor,
        c: Tensor,
        w_hidden: Tensor,
        gain_hidden: Tensor,
        gain_cell: Tensor,
        bias_cell: Tensor,
        noise: Noise,
        norm_hidden: Norm,
        norm_cell: Norm,
        bfloat16: bool,
    ) -> tuple[Tensor, ...]:
        gains = gain_hidden, gain_cell, bias_cell
        given = None if norm_hidden.given is None or norm_cell.given is None else (*norm_hidden.given, *norm_cell.given)
        narrow = None if narrow_inputs is None else native.Narrow(narrow_inputs, projected)
        ctx.kind, ctx.eps, ctx.population, ctx.bfloat16 = norm_hidden.kind, norm_hidden.eps, given is not None, bfloat16
        left = native.normalised(narrow or projected, h, c, w_hidden, gains, noise, ctx.kind, ctx.eps, given, bfloat16)
        bptt.keep(ctx, noise, *left, h, c, w_hidden, *gains, *(narrow or ()))
        of_batch = ctx.kind == "batch" and given is None
        moments = [moment.clone() for moment in left[5:]] if of_batch else []
        ctx.mark_non_differentiable(*moments)
        return left.outputs, left.cells, left.outputs[-1].clone(), left.cells[-1].clone(), *moments

    @staticmethod
    @bptt.in_own_dtype
    def backward(ctx: Any, doutputs: Any, dcells: Any, dh: Any, dc: Any, *_: Any) -> tuple[Tensor | None, ...]:
        saved = bptt.take(ctx)
        left, (h, c, w_hidden), gains, narrow = native.Normalised(*saved[:9]), saved[9:12], saved[12:15], saved[15:]
        dh, dc = bptt.own(dh, h), bptt.own(dc, c)
        dprojected, dw, dgains = native.normalised_backward(
            left,
            native.Narrow(*narrow) if narrow else None,
            h,
            c,
            w_hidden,
            gains,
            ctx.noise,
            ctx.kind,
            ctx.eps,
            ctx.population,
            ctx.bfloat16,
            doutputs,
            dcells,
            dh,
            dc,
            learns=ctx.needs_input_grad[4],
        )
        return None, dprojected, dh, dc, dw, *dgains, None, None, None, None
