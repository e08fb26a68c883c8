"""Non-overlapping pieces of a text, each a sequence of its own."""

import numpy as np
import numpy.typing as npt
import torch

from zoo.batches import FreshWindow
from zoo.datamodules.loader import Draw, Examples
from zoo.errors import UserError
from zoo.tokenizer import Ids


class Pieces(Examples[FreshWindow]):
    """A text cut into consecutive pieces of `bptt + 1` tokens that do not overlap, the state starting anew with each.

        piece k = ids[offset + k (bptt + 1) : offset + (k + 1) (bptt + 1)],   0 <= k < pieces

    A piece gives `bptt` predictions: its first token is predicted by none. Under `draw` the offset is random in
    [0, bptt + 1), floor(tokens / (bptt + 1)) - 1 pieces come in random order, and no token is predicted twice in an epoch;
    without, the offset is 0 and floor(tokens / (bptt + 1)) pieces come in order. Yields `FreshWindow`, int64 of shape
    (T, B). Processes share each batch as `Examples` says.

    Cooijmans, Ballas, Laurent, Gulcehre and Courville 2017, "Recurrent batch normalization", arXiv 1603.09025, section 5.2,
    and Krueger et al. 2017, "Zoneout", arXiv 1606.01305, section 4.1; the offset and the numbers of pieces as in their code,
    https://github.com/cooijmanstim/recurrent-batch-normalization.
    """

    def __init__(
        self,
        ids: Ids,
        batch_size: int,
        bptt: int,
        *,
        draw: Draw | None = None,
        rank: int = 0,
        world_size: int = 1,
        name: str = "text",
    ) -> None:
        length = bptt + 1
        needed = length if draw is None else length * (world_size + 1)
        if len(ids) < needed:
            raise UserError(
                f"the {name} has {len(ids):,} tokens, too few for pieces of bptt {bptt} + 1: it takes {needed:,}"
            )
        pieces = len(ids) // length - (draw is not None)
        shape: dict[str, int | str | None] = {
            "tokens": len(ids),
            "batch_size": batch_size,
            "bptt": bptt,
            "pieces": pieces,
        }
        super().__init__(pieces, batch_size, shape, draw, rank, world_size)
        offset = 0 if self.generator is None else int(self.generator.integers(length))
        self._pieces = ids[offset : offset + pieces * length].reshape(pieces, length)

    def take(self, examples: npt.NDArray[np.int64]) -> FreshWindow:
        tokens = torch.from_numpy(np.ascontiguousarray(self._pieces[examples].T, dtype=np.int64))
        return FreshWindow(tokens[:-1], tokens[1:])
