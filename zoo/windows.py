"""What a language model reads at a time."""

from typing import NamedTuple

from torch import Tensor

Window = tuple[Tensor, Tensor]
"""(inputs, targets): token ids of shape (T, B). Each column goes on where it ended in the window before."""


class FreshWindow(NamedTuple):
    """A window whose columns are texts of their own: they go on from nothing, and the state starts anew."""

    inputs: Tensor
    """Token ids, (T, B)."""

    targets: Tensor
    """Token ids, (T, B): the inputs one step later."""
