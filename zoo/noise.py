"""The noise of one recurrent sequence: named masks that a step multiplies or interpolates by."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Cell = Literal["lstm", "gru", "rnn"]


class Noise(NamedTuple):
    """The masks of one sequence; None switches a site off.

    Each is broadcastable to (T, B, H), finite and >= 0, bool or of the sequence's dtype; `rec` may instead be
    (T, gates, B, H), one mask a gate. Sampling and scaling belong to the regulariser: a mask holds Bernoulli draws when
    training and their expectation (or whatever the paper prescribes) when evaluating, and the step's formula is one and
    the same (`zoo.functional`).
    """

    rec: Tensor | None = None
    """Multiplies h(t-1) on its way into the gates."""

    upd: Tensor | None = None
    """Multiplies the update: i * g of an LSTM, (1 - z) * n of a GRU."""

    cmul: Tensor | None = None
    """Multiplies the new cell state."""

    ckeep: Tensor | None = None
    """How much of the new cell state is taken; the rest stays the old one."""

    hkeep: Tensor | None = None
    """How much of the new hidden state is taken; the rest stays the old one."""

    out: Tensor | None = None
    """Multiplies the hidden state, both the one carried on and the one returned."""

    @property
    def off(self) -> bool:
        """True where no site is masked."""
        return all(mask is None for mask in self)

    def at(self, step: int) -> "Noise":
        """The masks of one step."""
        return Noise(*(None if mask is None else mask[step if len(mask) > 1 else 0] for mask in self))

    @staticmethod
    def union(noises: Iterable["Noise"]) -> "Noise":
        """The masks of several regularisers together; raises `ValueError` where two claim the same site."""
        together: dict[str, Tensor] = {}
        for noise in noises:
            for name, mask in noise._asdict().items():
                if mask is None:
                    continue
                if name in together:
                    raise ValueError(f"two regularisers claim the same mask, noise.{name}")
                together[name] = mask
        return Noise(**together)

    def check(self, like: Tensor, hidden_size: int, cell: Cell = "lstm", values: bool = True) -> None:
        """Raises `ValueError` for masks that cannot act on a sequence `like` (T, B, ...) of this cell.

        `values` are looked at on the CPU alone: on a GPU that would stall the stream and forbid CUDA graphs.
        """
        time, batch = like.shape[:2]
        for name, mask in self._asdict().items():
            if mask is None:
                continue
            if name not in SITES[cell]:
                raise ValueError(
                    f"noise.{name} has no place in a {cell.upper()}, whose sites are {', '.join(SITES[cell])}"
                )
            per_gate = name == "rec" and mask.ndim == 4
            expected = (time, GATES[cell], batch, hidden_size) if per_gate else (time, batch, hidden_size)
            if mask.ndim != len(expected) or any(s not in (1, e) for s, e in zip(mask.shape, expected, strict=True)):
                raise ValueError(f"noise.{name} has shape {tuple(mask.shape)}, which does not broadcast to {expected}")
            if mask.dtype not in (torch.bool, like.dtype):
                raise ValueError(f"noise.{name} is {mask.dtype}; it must be torch.bool or the inputs' {like.dtype}")
            if mask.requires_grad:
                raise ValueError(f"noise.{name} requires a gradient; masks are constants")
            if mask.device != like.device:
                raise ValueError(f"noise.{name} is on {mask.device}, the inputs on {like.device}")
            if values and mask.dtype != torch.bool and mask.device.type == "cpu":
                low, high = (value.item() for value in mask.aminmax())
                if not (low >= 0 and high < float("inf")):
                    raise ValueError(f"noise.{name} holds values from {low} to {high}; masks are finite and >= 0")


GATES: dict[Cell, int] = {"lstm": 4, "gru": 3, "rnn": 1}
"""How many rows of gates a cell's weights have, in units of the hidden size."""

SITES: dict[Cell, tuple[str, ...]] = {
    "lstm": Noise._fields,
    "gru": ("rec", "upd", "hkeep", "out"),
    "rnn": ("rec", "hkeep", "out"),
}
"""The masks that each cell's step has a place for."""


class Extent(NamedTuple):
    """What a regulariser of the state is told of the sequence that its masks are for."""

    time: int
    batch: int
    hidden_size: int
    cell: Cell
    device: torch.device
    dtype: torch.dtype


def split_rec(rec: Tensor | None, steps: bool = False) -> tuple[Tensor | None, Tensor | None]:
    """The masks of a GRU's two gates and of its new state: from `rec` of one step, or of all `steps`."""
    if rec is None or rec.ndim == 2 + steps:
        return rec, rec
    rec = rec.expand(*rec.shape[:-3], 3, -1, -1)
    return rec[..., :2, :, :], rec[..., 2, :, :]
