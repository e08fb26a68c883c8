"""The noise of one recurrent sequence: named masks that a step multiplies or interpolates by."""

from typing import NamedTuple

from torch import Tensor


class Noise(NamedTuple):
    """The masks of one sequence; None switches a site off.

    Each is broadcastable to (T, B, H), finite and >= 0; `rec` may instead be (T, 4, B, H), one mask a gate. Sampling and
    scaling belong to the regulariser: a mask holds Bernoulli draws when training and their expectation (or whatever the
    paper prescribes) when evaluating, and the step's formula is one and the same (`zoo.functional.lstm`).
    """

    rec: Tensor | None = None
    """Multiplies h(t-1) on its way into the gates."""

    upd: Tensor | None = None
    """Multiplies the cell's update i * g."""

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

    def check(self, time: int, batch: int, hidden_size: int) -> None:
        """Raises `ValueError` for a mask that does not broadcast to (time, batch, hidden_size)."""
        for name, mask in zip(self._fields, self, strict=True):
            if mask is None:
                continue
            per_gate = name == "rec" and mask.ndim == 4
            expected = (time, 4, batch, hidden_size) if per_gate else (time, batch, hidden_size)
            if mask.ndim != len(expected) or any(s not in (1, e) for s, e in zip(mask.shape, expected, strict=True)):
                raise ValueError(f"noise.{name} has shape {tuple(mask.shape)}, which does not broadcast to {expected}")
