"""Contiguous streams for truncated back-propagation through time."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.tokenizer import Ids

SHORTEST = 5
"""No window drawn at random is made shorter than this; the end of the text may cut the last one to two steps."""


class RandomWindows(NamedTuple):
    """The windows of one epoch, their lengths drawn at random; the same for the same seed, epoch and text.

        length = min(max(5, int(N(base, 5))), max_bptt),   base = bptt with probability 0.95, else bptt / 2

    A window begins wherever two predictions or more are left, and ends with the text at the latest.

    Merity, Keskar and Socher 2017, "Regularizing and optimizing LSTM language models", arXiv 1708.02182, section 4.1; the
    floor of 5 and the end of the text as in the authors' code, https://github.com/salesforce/awd-lstm-lm.
    """

    seed: int
    epoch: int
    max_bptt: int | None = None

    def bounds(self, bptt: int, predictions: int) -> list[int]:
        """Where each window of a column with so many `predictions` begins, and where the last one ends."""
        draw = np.random.default_rng((self.seed, self.epoch))
        bounds = [0]
        while bounds[-1] < predictions - 1:
            base = bptt if draw.random() < 0.95 else bptt / 2
            length = max(SHORTEST, int(draw.normal(base, 5)))
            if self.max_bptt is not None:
                length = min(length, self.max_bptt)
            bounds.append(min(bounds[-1] + length, predictions))
        return bounds


class Stream:
    """A text as `batch_size` contiguous columns, read in windows of `bptt` steps: the loader of a language model.

    The text is cut into `batch_size` pieces of equal length (a remainder of fewer than `batch_size` tokens is left out);
    window k of every column follows window k-1, so a state carried from one to the next has read the whole column.
    Yields (inputs, targets), int64 of shape (T, B), targets being the inputs one step later. The last window is shorter
    than `bptt` unless `drop_last` drops it; with `random` the windows are those that it draws. With `world_size` processes
    each takes its share of the columns.

    `state_dict` holds how many windows were handed out, so that Lightning resumes in the middle of an epoch, and the seed
    and the epoch of `random`.
    """

    def __init__(
        self,
        ids: Ids,
        batch_size: int,
        bptt: int,
        *,
        drop_last: bool = False,
        random: RandomWindows | None = None,
        rank: int = 0,
        world_size: int = 1,
        name: str = "text",
    ) -> None:
        rows = len(ids) // batch_size
        shortest = 1 if random is None else 2
        needed = bptt if drop_last else shortest
        if rows - 1 < needed:
            raise UserError(
                f"the {name} has {len(ids):,} tokens, too few for batch_size {batch_size} x bptt {bptt}: "
                f"it takes {batch_size * (needed + 1):,}"
            )
        if batch_size > 1 and batch_size % world_size:
            raise UserError(f"batch_size {batch_size} cannot be shared evenly by {world_size} processes")
        self._columns = np.array_split(ids[: rows * batch_size].reshape(batch_size, rows), world_size)[rank]
        self._shape: dict[str, int | None] = {"tokens": len(ids), "batch_size": batch_size, "bptt": bptt}
        self._bounds: Sequence[int]
        if random is None:
            windows = (rows - 1) // bptt if drop_last else -(-(rows - 1) // bptt)
            self._bounds = range(0, (windows + 1) * bptt, bptt)
        else:
            self._bounds = random.bounds(bptt, rows - 1)
            self._shape |= {"max_bptt": random.max_bptt}
        self._random = random
        self._start = 0
        self._given = 0

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Lightning leaves a sized loader without exhausting it: the start is reset here, not after the last window.
        start, self._start = self._start, 0
        for window in range(start, len(self)):
            self._given = window + 1
            piece = self._columns[:, self._bounds[window] : self._bounds[window + 1] + 1]
            tokens = torch.from_numpy(piece.T.astype(np.int64))
            yield tokens[:-1], tokens[1:]

    def state_dict(self) -> dict[str, Any]:
        """Windows handed out in this epoch, and of what."""
        drawn = {} if self._random is None else {"seed": self._random.seed, "epoch": self._random.epoch}
        return {"windows": self._given, **self._shape, **drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `__iter__` goes on after the windows already handed out, or begins if those were another epoch's.

        Another text, cut or seed is a `UserError`.
        """
        if {key: value for key, value in state.items() if key not in ("windows", "seed", "epoch")} != self._shape:
            raise UserError(f"the checkpoint stopped in a stream of {state}, and this one has {self._shape}")
        self._given = state["windows"]
        if self._random is not None:
            if state["seed"] != self._random.seed:
                raise UserError(
                    f"the checkpoint's windows were drawn with the seed {state['seed']}, and this run has "
                    f"{self._random.seed}: give the same seed_everything"
                )
            if state["epoch"] != self._random.epoch:
                self._given = 0
        self._start = self._given % len(self)
