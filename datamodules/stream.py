"""Contiguous streams for truncated back-propagation through time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.tokenizer import Ids


class Stream:
    """A text as `batch_size` contiguous columns, read in windows of `bptt` steps: the loader of a language model.

    The text is cut into `batch_size` pieces of equal length (a remainder of fewer than `batch_size` tokens is left out);
    window k of every column follows window k-1, so a state carried from one to the next has read the whole column.
    Yields (inputs, targets), int64 of shape (T, B), targets being the inputs one step later. The last window is shorter
    than `bptt` unless `drop_last` drops it. With `world_size` processes each takes its share of the columns.

    `state_dict` holds how many windows were handed out, so that Lightning resumes in the middle of an epoch.
    """

    def __init__(
        self,
        ids: Ids,
        batch_size: int,
        bptt: int,
        *,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        name: str = "text",
    ) -> None:
        rows = len(ids) // batch_size
        needed = bptt if drop_last else 1
        if rows - 1 < needed:
            raise UserError(
                f"the {name} has {len(ids):,} tokens, too few for batch_size {batch_size} x bptt {bptt}: "
                f"it takes {batch_size * (needed + 1):,}"
            )
        if batch_size > 1 and batch_size % world_size:
            raise UserError(f"batch_size {batch_size} cannot be shared evenly by {world_size} processes")
        self.bptt = bptt
        self._columns = np.array_split(ids[: rows * batch_size].reshape(batch_size, rows), world_size)[rank]
        self._windows = (rows - 1) // bptt if drop_last else -(-(rows - 1) // bptt)
        self._shape = {"tokens": len(ids), "batch_size": batch_size, "bptt": bptt}
        self._start = 0
        self._given = 0

    def __len__(self) -> int:
        return self._windows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Lightning leaves a sized loader without exhausting it: the start is reset here, not after the last window.
        start, self._start = self._start, 0
        for window in range(start, self._windows):
            self._given = window + 1
            piece = self._columns[:, window * self.bptt : (window + 1) * self.bptt + 1]
            tokens = torch.from_numpy(piece.T.astype(np.int64))
            yield tokens[:-1], tokens[1:]

    def state_dict(self) -> dict[str, Any]:
        """Windows handed out in this epoch, and of what."""
        return {"windows": self._given, **self._shape}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `__iter__` goes on after the windows already handed out; another text or cut is a `UserError`."""
        if state != {"windows": state["windows"], **self._shape}:
            raise UserError(f"the checkpoint stopped in a stream of {state}, and this one has {self._shape}")
        self._given = state["windows"]
        self._start = self._given % self._windows
