"""One step's element-wise pass, forward and backward, in plain torch.

`gates` (B, G H) comes in as what the nonlinearities take and leaves as what they give; the backward pass turns it into the
gradient of the former. Gradients of the state, `dh` and `dc` (B, H), leave as the part that did not pass through the gates.
Masks are those of one step (`Noise.at`); the equations are those of `zoo.functional`.
"""

from typing import Literal

import torch
from torch import Tensor

from zoo.noise import Noise


def lstm(gates: Tensor, h: Tensor, c: Tensor, noise: Noise, h_out: Tensor, c_out: Tensor) -> None:
    """Writes the state after one step of an LSTM."""
    i, f, g, o = open_gates(gates)
    new = new_cell(i, f, g, c, noise)
    torch.tanh(new, out=h_out).mul_(o)
    mix(h, h_out, noise.hkeep, noise.out)
    c_out.copy_(new)
    mix(c, c_out, noise.ckeep)


def open_gates(gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, f, g and o of an LSTM, in their places."""
    i, f, g, o = gates.chunk(4, -1)
    gates[:, : 2 * i.shape[-1]].sigmoid_()
    return i, f, g.tanh_(), o.sigmoid_()


def new_cell(i: Tensor, f: Tensor, g: Tensor, c: Tensor, noise: Noise) -> Tensor:
    """The new cell of open gates, before it is kept or not."""
    new = i * g
    if noise.upd is not None:
        new.mul_(noise.upd)
    new.addcmul_(f, c)
    return new if noise.cmul is None else new.mul_(noise.cmul)


def lstm_backward(
    gates: Tensor,
    c: Tensor,
    noise: Noise,
    dh: Tensor,
    dc: Tensor,
    doutput: Tensor | None = None,
    dcell: Tensor | None = None,
) -> None:
    """The gradient of one step of an LSTM; `c` is the cell before the step.

    `doutput` and `dcell` are added to `dh` and `dc` on the way in.
    """
    _add(dh, doutput)
    _add(dc, dcell)
    i, f, g, o = gates.chunk(4, -1)
    tanh = new_cell(i, f, g, c, noise).tanh_()
    dnew_h = mix_backward(dh, noise.hkeep, noise.out)
    dnew_c = mix_backward(dc, noise.ckeep)
    dnew_c = torch.addcmul(dnew_c, dnew_h * o, 1 - tanh * tanh)
    open_gates_backward(gates, c, noise, dnew_c, dnew_h.mul_(tanh), dc)


def open_gates_backward(gates: Tensor, c: Tensor, noise: Noise, dnew_c: Tensor, do: Tensor, dc: Tensor) -> None:
    """From the gradients of an LSTM's new cell and of o to those of what the gates take; `c` is the cell before the step.

    The cell's own part is added to `dc`; `dnew_c` is overwritten.
    """
    i, f, g, o = gates.chunk(4, -1)
    if noise.cmul is not None:
        dnew_c *= noise.cmul
    dc.addcmul_(dnew_c, f)
    dupdate = dnew_c if noise.upd is None else dnew_c * noise.upd
    di, dg = dupdate * g, dupdate * i
    i.mul_(di * (1 - i))
    f.mul_(dnew_c.mul_(c) * (1 - f))
    torch.mul(dg, 1 - g * g, out=g)
    o.mul_(do * (1 - o))


def gru_gates(gates: Tensor, h: Tensor, rec: Tensor | None, reset_h: Tensor) -> None:
    """The reset gate before the product: opens both gates and writes what the new state's product takes, r * rec * h."""
    hidden_size = h.shape[-1]
    torch.mul(gates[:, : 2 * hidden_size].sigmoid_()[:, :hidden_size], h, out=reset_h)
    if rec is not None:
        reset_h.mul_(rec)


def gru_reset(gates: Tensor, recurrent: Tensor) -> None:
    """The reset gate after the product: opens both gates and adds r * `recurrent` to what the new state's tanh takes."""
    hidden_size = recurrent.shape[-1]
    r = gates[:, : 2 * hidden_size].sigmoid_()[:, :hidden_size]
    gates[:, 2 * hidden_size :].addcmul_(r, recurrent)


def gru(gates: Tensor, h: Tensor, noise: Noise, h_out: Tensor) -> None:
    """Writes the state after one step of a GRU whose gates are open."""
    _, z, n = gates.chunk(3, -1)
    n.tanh_()
    torch.mul(1 - z, n, out=h_out)
    if noise.upd is not None:
        h_out.mul_(noise.upd)
    h_out.addcmul_(z, h)
    mix(h, h_out, noise.hkeep, noise.out)


def gru_backward(gates: Tensor, h: Tensor, noise: Noise, dh: Tensor, doutput: Tensor | None = None) -> None:
    """The gradients of z and n; r is left as it was, for `gru_gates_backward` or `gru_reset_backward`.

    `doutput` is added to `dh` on the way in.
    """
    _add(dh, doutput)
    _, z, n = gates.chunk(3, -1)
    dnew_h = mix_backward(dh, noise.hkeep, noise.out)
    dh.addcmul_(dnew_h, z)
    update = n if noise.upd is None else n * noise.upd
    dz = dnew_h * (h - update)
    if noise.upd is not None:
        dnew_h *= noise.upd
    torch.mul(dnew_h.mul_(1 - z), 1 - n * n, out=n)
    z.mul_(dz.mul_(1 - z))


def gru_gates_backward(gates: Tensor, h: Tensor, rec: Tensor | None, dreset_h: Tensor, dh: Tensor) -> None:
    """From the gradient of r * rec * h to those of r and h."""
    r = gates[:, : h.shape[-1]]
    if rec is not None:
        dreset_h.mul_(rec)
    dh.addcmul_(dreset_h, r)
    r.mul_(dreset_h.mul_(h) * (1 - r))


def gru_reset_backward(gates: Tensor, recurrent: Tensor) -> None:
    """The gradient of r, and that of `recurrent` written over it."""
    hidden_size = recurrent.shape[-1]
    r, dn = gates[:, :hidden_size], gates[:, 2 * hidden_size :]
    dr = dn * recurrent
    torch.mul(dn, r, out=recurrent)
    r.mul_(dr.mul_(1 - r))


def rnn(gates: Tensor, h: Tensor, noise: Noise, h_out: Tensor, nonlinearity: Literal["tanh", "relu"]) -> None:
    """Writes the state after one step of a simple network."""
    h_out.copy_(gates.tanh_() if nonlinearity == "tanh" else gates.relu_())
    mix(h, h_out, noise.hkeep, noise.out)


def rnn_backward(
    gates: Tensor, noise: Noise, dh: Tensor, nonlinearity: Literal["tanh", "relu"], doutput: Tensor | None = None
) -> None:
    """The gradient of one step of a simple network; `doutput` is added to `dh` on the way in."""
    _add(dh, doutput)
    dnew_h = mix_backward(dh, noise.hkeep, noise.out)
    slope = 1 - gates * gates if nonlinearity == "tanh" else gates > 0
    torch.mul(dnew_h, slope, out=gates)


def _add(gradient: Tensor, incoming: Tensor | None) -> None:
    if incoming is not None:
        gradient += incoming


def mix(old: Tensor, new: Tensor, keep: Tensor | None, out: Tensor | None = None) -> None:
    """Turns the new value into what is carried on: old + keep * (new - old), times out."""
    if keep is not None:
        torch.add(old, keep * (new - old), out=new)
    if out is not None:
        new.mul_(out)


def mix_backward(gradient: Tensor, keep: Tensor | None, out: Tensor | None = None) -> Tensor:
    """The gradient of the new value; that of the old one is left in `gradient`."""
    if out is not None:
        gradient.mul_(out)
    if keep is None:
        new = gradient.clone()
        gradient.zero_()
        return new
    new = gradient * keep
    gradient.sub_(new)
    return new
