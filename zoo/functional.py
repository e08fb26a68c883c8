"""The recurrent equations as readable loops: the reference that every fast path is tested against.

Noise comes in as masks; nothing here draws random numbers or holds parameters. Time comes first everywhere: (T, B, ...).
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from zoo.noise import Noise

LSTMState = tuple[Tensor, Tensor]
"""(h, c), each (B, H)."""

LSTMWeights = tuple[Tensor, Tensor, Tensor, Tensor]
"""(W, R, b_W, b_R) of shapes (4H, I), (4H, H), (4H,), (4H,), the gates in torch's order i, f, g, o."""


def lstm(inputs: Tensor, state: LSTMState, weights: LSTMWeights, noise: Noise = Noise()) -> tuple[Tensor, LSTMState]:
    """A long short-term memory over a sequence, with noise on any of its sites.

        i, f, g, o = W x(t) + b_W + R (rec * h(t-1)) + b_R
        c' = cmul * (sigmoid(f) * c(t-1) + sigmoid(i) * tanh(g) * upd)      c(t) = c(t-1) + ckeep * (c' - c(t-1))
        h' = sigmoid(o) * tanh(c')                                          h(t) = out * (h(t-1) + hkeep * (h' - h(t-1)))

    Hochreiter and Schmidhuber 1997; the sites are those of Krueger et al. 2017 (ckeep, hkeep), Semeniuta et al. 2016 (upd),
    Gal and Ghahramani 2016 (rec) and Moon et al. 2015 (cmul). Both keeps see the new cell before it is kept or not.

    inputs (T, B, I) -> outputs (T, B, H), final state.
    """
    w_input, w_hidden, b_input, b_hidden = weights
    h, c = state
    outputs = []
    for t, projected in enumerate(linear(inputs, w_input, b_input).unbind(0)):
        rec, upd, cmul, ckeep, hkeep, out = noise.at(t)
        gates = projected + _recurrent(h, w_hidden, rec) + b_hidden
        i, f, g, o = gates.chunk(4, dim=-1)
        new_c = _times(f.sigmoid() * c + _times(i.sigmoid() * g.tanh(), upd), cmul)
        new_h = o.sigmoid() * new_c.tanh()
        c = _keep(c, new_c, ckeep)
        h = _times(_keep(h, new_h, hkeep), out)
        outputs.append(h)
    return torch.stack(outputs), (h, c)


def _times(value: Tensor, mask: Tensor | None) -> Tensor:
    return value if mask is None else value * mask


def _keep(old: Tensor, new: Tensor, keep: Tensor | None) -> Tensor:
    return new if keep is None else old + keep * (new - old)


def _recurrent(h: Tensor, w_hidden: Tensor, rec: Tensor | None) -> Tensor:
    """R (rec * h) as (B, 4H); a mask of shape (4, B, H) gives every gate its own copy of h."""
    if rec is None or rec.ndim == 2:
        return linear(_times(h, rec), w_hidden)
    hidden_size = h.shape[-1]
    per_gate = torch.bmm(h * rec.expand(4, *h.shape), w_hidden.view(4, hidden_size, hidden_size).mT)
    return per_gate.movedim(0, 1).flatten(1)
