"""What the tasks read at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

WINDOW = 200
"""So many tokens of a text are measured at once. The state is carried over: the model's own numbers do not depend on it."""

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

    @classmethod
    def of(cls, texts: Sequence[npt.NDArray[Any]]) -> "Texts":
        """Each text's token ids, filled up to the longest."""
        ids = [torch.from_numpy(text.astype(np.int64)) for text in texts]
        tokens = pad_sequence(ids) if ids else torch.empty(0, 0, dtype=torch.long)
        return cls(tokens, torch.tensor([len(text) for text in texts], dtype=torch.long))


Labelled = tuple[Any, Tensor]
"""(inputs, labels): sequences (T, B, D) or `Texts`, and the number of each one's class (B,)."""

Translated = tuple[Tensor, Tensor]
"""(sources, targets): symbol ids, (S, B) and (T, B); sources are filled up on the left, targets on the right."""

GO, PAD = 0, 1
"""The ids of the symbol that a decoder starts from, and of the one that fills up."""
