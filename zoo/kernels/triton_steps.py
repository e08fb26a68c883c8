# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""`zoo.kernels.pointwise` with one Triton kernel a function, for CUDA graphs too: no allocation, no synchronisation.

One program takes 128 neighbouring elements of the (B, H) state, one a thread: a step is bound by latency, and an H200
holds 270 000 threads at once. Nothing is tuned at run time, and no argument's value or alignment specialises a kernel.
It is compiled once for the dtypes and the masks that are there, so one eager sequence before a capture is enough.

Numbers are computed in float32, or in float64 where the tensors are, whatever the memory holds.
"""

import inspect
from collections.abc import Iterator
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.noise import Noise

_BLOCK = 128


def lstm(gates: Tensor, h: Tensor, c: Tensor, noise: Noise, h_out: Tensor, c_out: Tensor) -> None:
    """Writes the state after one step of an LSTM."""
    masks = _strided(noise.upd, noise.cmul, noise.ckeep, noise.hkeep, noise.out)
    _launch(_lstm, gates, h_out, c_out, *_strided(h, c), *masks, like=h)


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
    masks = _strided(noise.upd, noise.cmul, noise.ckeep, noise.hkeep, noise.out)
    _launch(_lstm_backward, gates, *_strided(dh, dc, c, doutput, dcell), *masks, like=dh)


def gru_gates(gates: Tensor, h: Tensor, rec: Tensor | None, reset_h: Tensor) -> None:
    """The reset gate before the product: opens both gates and writes r * rec * h, which the product takes."""
    _launch(_gru_gates, gates, reset_h, *_strided(h, rec), like=h)


def gru_reset(gates: Tensor, recurrent: Tensor) -> None:
    """The reset gate after the product: opens both gates and adds r * `recurrent` to what the tanh takes."""
    _launch(_gru_reset, gates, *_strided(recurrent), like=recurrent)


def gru(gates: Tensor, h: Tensor, noise: Noise, h_out: Tensor) -> None:
    """Writes the state after one step of a GRU whose gates are open."""
    _launch(_gru, gates, h_out, *_strided(h, noise.upd, noise.hkeep, noise.out), like=h)


def gru_backward(gates: Tensor, h: Tensor, noise: Noise, dh: Tensor, doutput: Tensor | None = None) -> None:
    """The gradients of z and n; r is left as it was, for `gru_gates_backward` or `gru_reset_backward`.

    `doutput` is added to `dh` on the way in.
    """
    _launch(_gru_backward, gates, *_strided(dh, h, doutput, noise.upd, noise.hkeep, noise.out), like=dh)


def gru_gates_backward(gates: Tensor, h: Tensor, rec: Tensor | None, dreset_h: Tensor, dh: Tensor) -> None:
    """From the gradient of r * rec * h to those of r and h."""
    _launch(_gru_gates_backward, gates, *_strided(dh, dreset_h, h, rec), like=dh)


def gru_reset_backward(gates: Tensor, recurrent: Tensor) -> None:
    """The gradient of r, and that of `recurrent` written over it."""
    _launch(_gru_reset_backward, gates, *_strided(recurrent), like=recurrent)


def rnn(gates: Tensor, h: Tensor, noise: Noise, h_out: Tensor, nonlinearity: Literal["tanh", "relu"]) -> None:
    """Writes the state after one step of a simple network."""
    masks = _strided(noise.hkeep, noise.out)
    _launch(_rnn, gates, h_out, *_strided(h), *masks, like=h, relu=nonlinearity == "relu")


def rnn_backward(
    gates: Tensor, noise: Noise, dh: Tensor, nonlinearity: Literal["tanh", "relu"], doutput: Tensor | None = None
) -> None:
    """The gradient of one step of a simple network; `doutput` is added to `dh` on the way in."""
    masks = _strided(noise.hkeep, noise.out)
    _launch(_rnn_backward, gates, *_strided(dh, doutput), *masks, like=dh, relu=nonlinearity == "relu")


def _strided(*values: Tensor | None) -> Iterator[Tensor | int | None]:
    """Each with its strides, 0 where it is broadcast."""
    for value in values:
        yield value
        for axis in range(2):
            yield 0 if value is None or value.shape[axis] == 1 else value.stride(axis)


def _launch(kernel: Any, gates: Tensor, *arguments: Tensor | int | None, like: Tensor, **constants: bool) -> None:
    """One kernel over the elements of `like` (B, H), on the gates' device and its current stream."""
    grid = (triton.cdiv(like.numel(), _BLOCK),)
    with torch.cuda.device_of(gates):  # type: ignore[no-untyped-call]
        kernel[grid](
            gates,
            gates.stride(0),
            *arguments,
            like.shape[1],
            like.numel(),
            block=_BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
            **constants,
        )


def _kernel(function):
    """A Triton kernel whose arguments, but for the annotated constants, do not specialise it."""
    free = [name for name in inspect.signature(function).parameters if name not in function.__annotations__]
    return triton.jit(function, do_not_specialize=free)


@triton.jit
def _place(hidden_size, count, block: tl.constexpr):
    """This program's elements of a contiguous (B, H), and (row, column, whether it is there) of each."""
    flat = tl.program_id(0) * block + tl.arange(0, block)
    row = flat // hidden_size
    column = flat - row * hidden_size
    return flat, (row.to(tl.int64), column, flat < count)  # a row's distance may take more than 32 bits


@triton.jit
def _load(pointer, inside):
    value = tl.load(pointer, mask=inside, other=0)
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def _at(pointer, row_stride, column_stride, place):
    row, column, inside = place
    return _load(pointer + row * row_stride + column * column_stride, inside)


@triton.jit
def _plus(value, other, row_stride, column_stride, place):
    if other is None:
        return value
    else:
        return value + _at(other, row_stride, column_stride, place)


@triton.jit
def _factor(mask, row_stride, column_stride, place):
    if mask is None:
        return 1.0
    else:
        return _at(mask, row_stride, column_stride, place)


@triton.jit
def _keep(old, new, mask, row_stride, column_stride, place):
    if mask is None:
        return new
    else:
        return old + _at(mask, row_stride, column_stride, place) * (new - old)


@triton.jit
def _rest(gradient, of_new, mask):
    """The part of a kept value's gradient that is the old value's."""
    if mask is None:
        return 0.0
    else:
        return gradient - of_new


@triton.jit
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))  # of -|x|: nothing overflows
    return tl.where(x < 0, small, 1) / (1 + small)


@triton.jit
def _tanh(x):
    small = tl.exp(-2 * tl.abs(x))
    size = (1 - small) / (1 + small)
    return tl.where(x < 0, -size, size)


@_kernel
def _lstm(
    gates, gates_row, h_out, c_out,
    h, h_row, h_column, c, c_row, c_column,
    upd, upd_row, upd_column, cmul, cmul_row, cmul_column,
    ckeep, ckeep_row, ckeep_column, hkeep, hkeep_row, hkeep_column, out, out_row, out_column,
    hidden_size, count, block: tl.constexpr,
):  # fmt: skip
    flat, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    i = _sigmoid(_load(gate, inside))
    f = _sigmoid(_load(gate + hidden_size, inside))
    g = _tanh(_load(gate + 2 * hidden_size, inside))
    o = _sigmoid(_load(gate + 3 * hidden_size, inside))
    old_c = _at(c, c_row, c_column, place)
    update = i * g * _factor(upd, upd_row, upd_column, place)
    new_c = (f * old_c + update) * _factor(cmul, cmul_row, cmul_column, place)
    new_h = o * _tanh(new_c)
    kept_c = _keep(old_c, new_c, ckeep, ckeep_row, ckeep_column, place)
    kept_h = _keep(_at(h, h_row, h_column, place), new_h, hkeep, hkeep_row, hkeep_column, place)
    tl.store(gate, i, mask=inside)
    tl.store(gate + hidden_size, f, mask=inside)
    tl.store(gate + 2 * hidden_size, g, mask=inside)
    tl.store(gate + 3 * hidden_size, o, mask=inside)
    tl.store(c_out + flat, kept_c, mask=inside)
    tl.store(h_out + flat, kept_h * _factor(out, out_row, out_column, place), mask=inside)


@_kernel
def _lstm_backward(
    gates, gates_row, dh, dh_row, dh_column, dc, dc_row, dc_column,
    c, c_row, c_column, doutput, doutput_row, doutput_column, dcell, dcell_row, dcell_column,
    upd, upd_row, upd_column, cmul, cmul_row, cmul_column,
    ckeep, ckeep_row, ckeep_column, hkeep, hkeep_row, hkeep_column, out, out_row, out_column,
    hidden_size, count, block: tl.constexpr,
):  # fmt: skip
    _, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    dh_at = dh + row * dh_row + column * dh_column
    dc_at = dc + row * dc_row + column * dc_column
    i = _load(gate, inside)
    f = _load(gate + hidden_size, inside)
    g = _load(gate + 2 * hidden_size, inside)
    o = _load(gate + 3 * hidden_size, inside)
    old_c = _at(c, c_row, c_column, place)
    update_mask = _factor(upd, upd_row, upd_column, place)
    cell_mask = _factor(cmul, cmul_row, cmul_column, place)
    tanh = _tanh((f * old_c + i * g * update_mask) * cell_mask)
    dkept_h = _plus(_load(dh_at, inside), doutput, doutput_row, doutput_column, place)
    dkept_h = dkept_h * _factor(out, out_row, out_column, place)
    dkept_c = _plus(_load(dc_at, inside), dcell, dcell_row, dcell_column, place)
    dnew_h = dkept_h * _factor(hkeep, hkeep_row, hkeep_column, place)
    of_new_c = dkept_c * _factor(ckeep, ckeep_row, ckeep_column, place)
    dnew_c = (of_new_c + dnew_h * o * (1 - tanh * tanh)) * cell_mask
    dupdate = dnew_c * update_mask
    tl.store(gate, dupdate * g * i * (1 - i), mask=inside)
    tl.store(gate + hidden_size, dnew_c * old_c * f * (1 - f), mask=inside)
    tl.store(gate + 2 * hidden_size, dupdate * i * (1 - g * g), mask=inside)
    tl.store(gate + 3 * hidden_size, dnew_h * tanh * o * (1 - o), mask=inside)
    tl.store(dc_at, _rest(dkept_c, of_new_c, ckeep) + dnew_c * f, mask=inside)
    tl.store(dh_at, _rest(dkept_h, dnew_h, hkeep), mask=inside)


@_kernel
def _gru_gates(
    gates, gates_row, reset_h, h, h_row, h_column, rec, rec_row, rec_column,
    hidden_size, count, block: tl.constexpr,
):  # fmt: skip
    flat, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    r = _sigmoid(_load(gate, inside))
    z = _sigmoid(_load(gate + hidden_size, inside))
    value = r * _at(h, h_row, h_column, place) * _factor(rec, rec_row, rec_column, place)
    tl.store(gate, r, mask=inside)
    tl.store(gate + hidden_size, z, mask=inside)
    tl.store(reset_h + flat, value, mask=inside)


@_kernel
def _gru_reset(
    gates, gates_row, recurrent, recurrent_row, recurrent_column, hidden_size, count, block: tl.constexpr
):  # fmt: skip
    _, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    r = _sigmoid(_load(gate, inside))
    z = _sigmoid(_load(gate + hidden_size, inside))
    n = _load(gate + 2 * hidden_size, inside) + r * _at(recurrent, recurrent_row, recurrent_column, place)
    tl.store(gate, r, mask=inside)
    tl.store(gate + hidden_size, z, mask=inside)
    tl.store(gate + 2 * hidden_size, n, mask=inside)


@_kernel
def _gru(
    gates, gates_row, h_out, h, h_row, h_column,
    upd, upd_row, upd_column, hkeep, hkeep_row, hkeep_column, out, out_row, out_column,
    hidden_size, count, block: tl.constexpr,
):  # fmt: skip
    flat, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    z = _load(gate + hidden_size, inside)
    n = _tanh(_load(gate + 2 * hidden_size, inside))
    old_h = _at(h, h_row, h_column, place)
    new_h = z * old_h + (1 - z) * n * _factor(upd, upd_row, upd_column, place)
    kept_h = _keep(old_h, new_h, hkeep, hkeep_row, hkeep_column, place)
    tl.store(gate + 2 * hidden_size, n, mask=inside)
    tl.store(h_out + flat, kept_h * _factor(out, out_row, out_column, place), mask=inside)


@_kernel
def _gru_backward(
    gates, gates_row, dh, dh_row, dh_column, h, h_row, h_column, doutput, doutput_row, doutput_column,
    upd, upd_row, upd_column, hkeep, hkeep_row, hkeep_column, out, out_row, out_column,
    hidden_size, count, block: tl.constexpr,
):  # fmt: skip
    _, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    dh_at = dh + row * dh_row + column * dh_column
    z = _load(gate + hidden_size, inside)
    n = _load(gate + 2 * hidden_size, inside)
    old_h = _at(h, h_row, h_column, place)
    update_mask = _factor(upd, upd_row, upd_column, place)
    dkept_h = _plus(_load(dh_at, inside), doutput, doutput_row, doutput_column, place)
    dkept_h = dkept_h * _factor(out, out_row, out_column, place)
    dnew_h = dkept_h * _factor(hkeep, hkeep_row, hkeep_column, place)
    tl.store(gate + hidden_size, dnew_h * (old_h - n * update_mask) * z * (1 - z), mask=inside)
    tl.store(gate + 2 * hidden_size, dnew_h * update_mask * (1 - z) * (1 - n * n), mask=inside)
    tl.store(dh_at, _rest(dkept_h, dnew_h, hkeep) + dnew_h * z, mask=inside)


@_kernel
def _gru_gates_backward(
    gates, gates_row, dh, dh_row, dh_column, dreset_h, dreset_h_row, dreset_h_column,
    h, h_row, h_column, rec, rec_row, rec_column,
    hidden_size, count, block: tl.constexpr,
):  # fmt: skip
    _, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    dh_at = dh + row * dh_row + column * dh_column
    r = _load(gate, inside)
    dvalue = _at(dreset_h, dreset_h_row, dreset_h_column, place) * _factor(rec, rec_row, rec_column, place)
    tl.store(gate, dvalue * _at(h, h_row, h_column, place) * r * (1 - r), mask=inside)
    tl.store(dh_at, _load(dh_at, inside) + dvalue * r, mask=inside)


@_kernel
def _gru_reset_backward(
    gates, gates_row, recurrent, recurrent_row, recurrent_column, hidden_size, count, block: tl.constexpr
):  # fmt: skip
    _, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    r = _load(gate, inside)
    dn = _load(gate + 2 * hidden_size, inside)
    value = recurrent + row * recurrent_row + column * recurrent_column
    tl.store(gate, dn * _load(value, inside) * r * (1 - r), mask=inside)
    tl.store(value, dn * r, mask=inside)


@_kernel
def _rnn(
    gates, gates_row, h_out, h, h_row, h_column, hkeep, hkeep_row, hkeep_column, out, out_row, out_column,
    hidden_size, count, block: tl.constexpr, relu: tl.constexpr,
):  # fmt: skip
    flat, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    before = _load(gate, inside)
    new_h = tl.where(before <= 0, 0, before) if relu else _tanh(before)  # a NaN stays one
    kept_h = _keep(_at(h, h_row, h_column, place), new_h, hkeep, hkeep_row, hkeep_column, place)
    tl.store(gate, new_h, mask=inside)
    tl.store(h_out + flat, kept_h * _factor(out, out_row, out_column, place), mask=inside)


@_kernel
def _rnn_backward(
    gates, gates_row, dh, dh_row, dh_column, doutput, doutput_row, doutput_column,
    hkeep, hkeep_row, hkeep_column, out, out_row, out_column,
    hidden_size, count, block: tl.constexpr, relu: tl.constexpr,
):  # fmt: skip
    _, place = _place(hidden_size, count, block)
    row, column, inside = place
    gate = gates + row * gates_row + column
    dh_at = dh + row * dh_row + column * dh_column
    new_h = _load(gate, inside)
    dkept_h = _plus(_load(dh_at, inside), doutput, doutput_row, doutput_column, place)
    dkept_h = dkept_h * _factor(out, out_row, out_column, place)
    dnew_h = dkept_h * _factor(hkeep, hkeep_row, hkeep_column, place)
    tl.store(gate, tl.where(new_h > 0, dnew_h, 0) if relu else dnew_h * (1 - new_h * new_h), mask=inside)
    tl.store(dh_at, _rest(dkept_h, dnew_h, hkeep), mask=inside)
