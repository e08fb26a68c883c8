"""The recurrent equations as readable loops: the reference that every fast path is tested against.

Noise comes in as masks; nothing here draws random numbers or holds parameters. Time comes first everywhere: (T, B, ...).
The sites of the noise are those of Krueger et al. 2017 (ckeep, hkeep), Semeniuta et al. 2016 (upd), Gal and Ghahramani 2016
(rec) and Moon et al. 2015 (cmul).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from zoo.noise import Noise, split_rec

LSTMState = tuple[Tensor, Tensor]
"""(h, c), each (B, H)."""


class Weights(NamedTuple):
    """What one recurrent layer learns, its gates stacked: G = 4 (i, f, g, o) of an LSTM, 3 (r, z, n) of a GRU, else 1."""

    input: Tensor
    """W, (G H, I)."""
    hidden: Tensor
    """R, (G H, H)."""
    bias_input: Tensor | None = None
    """b_W, (G H,)."""
    bias_hidden: Tensor | None = None
    """b_R, (G H,)."""


class LSTMRun(NamedTuple):
    """What an LSTM makes of a sequence."""

    outputs: Tensor
    """h(t), (T, B, H)."""
    state: LSTMState
    """(h(T), c(T))."""
    cells: Tensor | None
    """c(t), (T, B, H); None where a fast path was not asked for them."""


def lstm(inputs: Tensor, state: LSTMState, weights: Weights, noise: Noise = Noise()) -> LSTMRun:
    """A long short-term memory over a sequence, with noise on any of its sites.

        i, f, g, o = W x(t) + b_W + R (rec * h(t-1)) + b_R
        c' = cmul * (sigmoid(f) * c(t-1) + sigmoid(i) * tanh(g) * upd)      c(t) = c(t-1) + ckeep * (c' - c(t-1))
        h' = sigmoid(o) * tanh(c')                                          h(t) = out * (h(t-1) + hkeep * (h' - h(t-1)))

    Hochreiter and Schmidhuber 1997. Both keeps see the new cell before it is kept or not.

    inputs (T, B, I) -> outputs (T, B, H), final state, cells (T, B, H).
    """
    projected = linear(inputs, weights.input, weights.bias_input)
    return _lstm(projected, state, weights, noise, lambda a, t: a, lambda c, t: c)


def _lstm(
    projected: Tensor,
    state: LSTMState,
    weights: Weights,
    noise: Noise,
    norm_hidden: Callable[[Tensor, int], Tensor],
    norm_cell: Callable[[Tensor, int], Tensor],
) -> LSTMRun:
    h, c = state
    outputs, cells = [], []
    for t, from_inputs in enumerate(projected.unbind(0)):
        rec, upd, cmul, ckeep, hkeep, out = noise.at(t)
        gates = _plus(from_inputs + norm_hidden(_recurrent(h, weights.hidden, rec), t), weights.bias_hidden)
        i, f, g, o = gates.chunk(4, dim=-1)
        new_c = _times(f.sigmoid() * c + _times(i.sigmoid() * g.tanh(), upd), cmul)
        new_h = o.sigmoid() * norm_cell(new_c, t).tanh()
        c = _keep(c, new_c, ckeep)
        h = _times(_keep(h, new_h, hkeep), out)
        outputs.append(h)
        cells.append(c)
    return LSTMRun(torch.stack(outputs), (h, c), torch.stack(cells))


class Gains(NamedTuple):
    """What the three normalisations of an LSTM step learn; the biases of the first two are the gates' own."""

    input: Tensor
    """Scales the normalised W x(t), (4 H,)."""
    hidden: Tensor
    """Scales the normalised R h(t-1), (4 H,)."""
    cell: Tensor
    """Scales the normalised c', (H,)."""
    bias_cell: Tensor
    """Shifts the normalised c', (H,)."""


class Moments(NamedTuple):
    """Mean and (biased) variance over the batch at every time step, of each of the three normalised terms."""

    input_mean: Tensor
    """(T, 4 H)."""
    input_var: Tensor
    hidden_mean: Tensor
    hidden_var: Tensor
    cell_mean: Tensor
    """(T, H)."""
    cell_var: Tensor


def batch_norm_lstm(
    inputs: Tensor,
    state: LSTMState,
    weights: Weights,
    gains: Gains,
    noise: Noise = Noise(),
    population: Moments | None = None,
    eps: float = 1e-5,
) -> tuple[LSTMRun, Moments]:
    """An LSTM with batch normalisation of both matrix products and of the cell's way into the output.

        i, f, g, o = BN(W x(t); gain_input) + BN(R (rec * h(t-1)); gain_hidden) + b_W + b_R
        h' = sigmoid(o) * tanh(BN(c'; gain_cell, bias_cell))

    and the rest as in `lstm`; BN(a; g) = g * (a - mean) / sqrt(variance + eps) with the moments of its own time step over
    the batch or, where given, with those of the population. The carried cell is not normalised. Cooijmans et al. 2017,
    "Recurrent batch normalization", arXiv 1603.09025, equations 6 to 8; with zoneout both see the un-zoned c' (Krueger et
    al. 2017, section 4.3).

    inputs (T, B, I) -> the run, the moments that were used.
    """
    projected = linear(inputs, weights.input)
    if population is None:
        means, variances = _moments(projected, 1)
    else:
        means, variances = population.input_mean, population.input_var
    used: dict[str, list[Tensor]] = {"hidden_mean": [], "hidden_var": [], "cell_mean": [], "cell_var": []}

    def norm(site: Literal["hidden", "cell"], value: Tensor, t: int) -> Tensor:
        mean, var = f"{site}_mean", f"{site}_var"
        moments = (
            _moments(value, 0) if population is None else (getattr(population, mean)[t], getattr(population, var)[t])
        )
        for name, moment in zip((mean, var), moments, strict=True):
            used[name].append(moment)
        return (value - moments[0]) * (moments[1] + eps).rsqrt()

    projected = gains.input * (projected - means.unsqueeze(1)) * (variances.unsqueeze(1) + eps).rsqrt()
    run = _lstm(
        _plus(projected, weights.bias_input),
        state,
        weights,
        noise,
        lambda a, t: gains.hidden * norm("hidden", a, t),
        lambda c, t: gains.cell * norm("cell", c, t) + gains.bias_cell,
    )
    return run, Moments(means, variances, **{name: torch.stack(moments) for name, moments in used.items()})


def _moments(value: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    return value.mean(batch), value.var(batch, correction=0)


def layer_norm_lstm(
    inputs: Tensor, state: LSTMState, weights: Weights, gains: Gains, noise: Noise = Noise(), eps: float = 1e-5
) -> LSTMRun:
    """`batch_norm_lstm` with the moments over the units of one example: over 4 H for the products, over H for the cell.

    Ba, Kiros and Hinton 2016, "Layer normalization", arXiv 1607.06450, equations 20 to 22 (whose two shifts of the gates are
    the gates' bias here).
    """
    hidden_size = weights.hidden.shape[-1]
    return _lstm(
        _plus(
            layer_norm(linear(inputs, weights.input), (4 * hidden_size,), gains.input, None, eps), weights.bias_input
        ),
        state,
        weights,
        noise,
        lambda a, t: layer_norm(a, (4 * hidden_size,), gains.hidden, None, eps),
        lambda c, t: layer_norm(c, (hidden_size,), gains.cell, gains.bias_cell, eps),
    )


def gru(
    inputs: Tensor, state: Tensor, weights: Weights, noise: Noise = Noise(), reset_after: bool = True
) -> tuple[Tensor, Tensor]:
    """A gated recurrent unit over a sequence, with noise on any of its sites.

        r, z = sigmoid(W x(t) + b_W + R (rec * h(t-1)) + b_R)
        n = tanh(W_n x(t) + b_Wn + R_n (r * rec * h(t-1)) + b_Rn)        reset before the product (the papers)
        n = tanh(W_n x(t) + b_Wn + r * (R_n (rec * h(t-1)) + b_Rn))      reset_after: after it (cuDNN and torch.nn.GRU)
        h' = z * h(t-1) + (1 - z) * n * upd                              h(t) = out * (h(t-1) + hkeep * (h' - h(t-1)))

    Cho et al. 2014, arXiv 1406.1078, equations 5 to 8, in torch's sense of z (the part of the old state that stays).

    inputs (T, B, I), state (B, H) -> outputs (T, B, H), final state.
    """
    h, hidden_size = state, state.shape[-1]
    r_gates, r_new = weights.hidden.tensor_split([2 * hidden_size])
    b_gates, b_new = (
        (None, None) if weights.bias_hidden is None else weights.bias_hidden.tensor_split([2 * hidden_size])
    )
    outputs = []
    for t, from_inputs in enumerate(linear(inputs, weights.input, weights.bias_input).unbind(0)):
        rec, upd, _, _, hkeep, out = noise.at(t)
        rec_gates, rec_new = split_rec(rec)
        x_gates, x_new = from_inputs.tensor_split([2 * hidden_size], dim=-1)
        r, z = _plus(x_gates + _recurrent(h, r_gates, rec_gates), b_gates).sigmoid().chunk(2, dim=-1)
        if reset_after:
            n = x_new + r * _plus(_recurrent(h, r_new, rec_new), b_new)
        else:
            n = x_new + _plus(_recurrent(r * h, r_new, rec_new), b_new)
        new_h = z * h + _times((1 - z) * n.tanh(), upd)
        h = _times(_keep(h, new_h, hkeep), out)
        outputs.append(h)
    return torch.stack(outputs), h


def rnn(
    inputs: Tensor,
    state: Tensor,
    weights: Weights,
    noise: Noise = Noise(),
    nonlinearity: Literal["tanh", "relu"] = "tanh",
) -> tuple[Tensor, Tensor]:
    """A simple recurrent network over a sequence, with noise on any of its sites.

        h' = tanh(W x(t) + b_W + R (rec * h(t-1)) + b_R), or relu        h(t) = out * (h(t-1) + hkeep * (h' - h(t-1)))

    Elman 1990. inputs (T, B, I), state (B, H) -> outputs (T, B, H), final state.
    """
    h = state
    outputs = []
    for t, from_inputs in enumerate(linear(inputs, weights.input, weights.bias_input).unbind(0)):
        rec, _, _, _, hkeep, out = noise.at(t)
        before = _plus(from_inputs + _recurrent(h, weights.hidden, rec), weights.bias_hidden)
        h = _times(_keep(h, before.tanh() if nonlinearity == "tanh" else before.relu(), hkeep), out)
        outputs.append(h)
    return torch.stack(outputs), h


def _plus(value: Tensor, bias: Tensor | None) -> Tensor:
    return value if bias is None else value + bias


def _times(value: Tensor, mask: Tensor | None) -> Tensor:
    return value if mask is None else value * mask


def _keep(old: Tensor, new: Tensor, keep: Tensor | None) -> Tensor:
    return new if keep is None else old + keep * (new - old)


def _recurrent(h: Tensor, w_hidden: Tensor, rec: Tensor | None) -> Tensor:
    """R (rec * h) as (B, G H); a mask of shape (G, B, H) gives every gate its own copy of h."""
    if rec is None or rec.ndim == 2:
        return linear(_times(h, rec), w_hidden)
    hidden_size = h.shape[-1]
    gates = len(w_hidden) // hidden_size
    per_gate = torch.bmm(h * rec.expand(gates, *h.shape), w_hidden.view(gates, hidden_size, hidden_size).mT)
    return per_gate.movedim(0, 1).flatten(1)
