"""Contiguous streams for truncated back-propagation through time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.arguments import check_shares
from zoo.datamodules.loader import Draw, Loader
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
        draw = Draw(self.seed, self.epoch).generator()
        bounds = [0]
        while bounds[-1] < predictions - 1:
            base = bptt if draw.random() < 0.95 else bptt / 2
            length = max(SHORTEST, int(draw.normal(base, 5)))
            if self.max_bptt is not None:
                length = min(length, self.max_bptt)
            bounds.append(min(bounds[-1] + length, predictions))
        return bounds


class Stream(Loader[tuple[Tensor, Tensor]]):
    """A text as `batch_size` contiguous columns, read in windows of `bptt` steps: the loader of a language model.

    The text is cut into `batch_size` pieces of equal length (a remainder of fewer than `batch_size` tokens is left out);
    window k of every column follows window k-1, so a state carried from one to the next has read the whole column.
    Yields (inputs, targets), int64 of shape (T, B), targets being the inputs one step later. The last window is shorter
    than `bptt` unless `drop_last` drops it; with `random` the windows are those that it draws. With `world_size` processes
    each takes its share of the columns.
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
        if batch_size > 1:
            check_shares(batch_size, world_size)
        self._columns = np.array_split(ids[: rows * batch_size].reshape(batch_size, rows), world_size)[rank]
        shape: dict[str, int | str | None] = {"tokens": len(ids), "batch_size": batch_size, "bptt": bptt}
        self._bounds: Sequence[int]
        if random is None:
            windows = (rows - 1) // bptt if drop_last else -(-(rows - 1) // bptt)
            self._bounds = range(0, (windows + 1) * bptt, bptt)
            super().__init__(shape)
        else:
            self._bounds = random.bounds(bptt, rows - 1)
            super().__init__(shape | {"max_bptt": random.max_bptt}, Draw(random.seed, random.epoch))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        piece = self._columns[:, self._bounds[index] : self._bounds[index + 1] + 1]
        tokens = torch.from_numpy(piece.T.astype(np.int64))
        return tokens[:-1], tokens[1:]
