"""What the tasks read at a time."""

from typing import Any, NamedTuple

from torch import Tensor

Window = tuple[Tensor, Tensor]
"""(inputs, targets): token ids of shape (T, B). Each column goes on where it ended in the window before."""


class FreshWindow(NamedTuple):
    """A window whose columns are texts of their own: they go on from nothing, and the state starts anew."""

    inputs: Tensor
    """Token ids, (T, B)."""

    targets: Tensor
    """Token ids, (T, B): the inputs one step later."""


class Texts(NamedTuple):
    """Texts filled up at their ends."""

    tokens: Tensor
    """Token ids, (T, B)."""

    lengths: Tensor
    """How many tokens each text has, (B,)."""


Labelled = tuple[Any, Tensor]
"""(inputs, labels): sequences (T, B, D) or `Texts`, and the number of each one's class (B,)."""

Translated = tuple[Tensor, Tensor]
"""(sources, targets): symbol ids, (S, B) and (T, B); sources are filled up on the left, targets on the right."""

GO, PAD = 0, 1
"""The ids of the symbol that a decoder starts from, and of the one that fills up."""
