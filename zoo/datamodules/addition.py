"""Sums to be read and worked out digit by digit, ever larger ones."""

from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from zoo.arguments import check_counts
from zoo.batches import PAD, Translated
from zoo.datamodules.loader import DataModule, Draw, Examples, Split
from zoo.errors import UserError

EXAMPLES = 4096
"""In the validation and in the test: the 128 batches of 32 of the authors' script."""

EVALUATION_BATCH = 512
"""Examples read at a time when evaluating; it changes memory and speed but no number."""

# By the remainder of a sum's hash.
_SPLITS: tuple[Split, ...] = ("test", "validation", *("train",) * 14)


class Addition(DataModule):
    """Pairs such as ("__________9+2", "11_____"): two numbers to be added, and their sum.

    At difficulty n each number is uniform on 0 .. 10^k, both ends included, with k uniform on 1 .. n. The `difficulty`
    begins at `first_difficulty` and is raised from outside, up to `greatest_difficulty`; it holds from the next epoch on,
    and checkpoints keep it. Sources are filled up on the left to 2 (greatest_difficulty + 1) + 1 symbols, targets on the
    right to greatest_difficulty + 2. The symbols are the decoder's start `G`, `_`, the digits and `+`.

    An epoch is `batches` batches of `batch_size` examples, drawn anew. Validation during a fit is at the difficulty of the
    training, else, and in every test, at the greatest; its examples are always the same ones for a difficulty.

    A sum belongs to one split, at every difficulty and in whichever order its numbers stand, by a hash of it: one in 16 to
    validation and one to the test, 670 of the 5,151 sums of two numbers up to 100. (The authors' script has no split. The
    generator of their program task has one by halves, https://github.com/teganmaharaj/seq2seq_experiments; at difficulty 2
    that leaves too few sums to learn the rule from.) Yields (sources, targets), symbol ids of shape (S, B) and (T, B).

    https://github.com/teganmaharaj/zoneout, zoneout_seq2seq.py.
    """

    dataset_id = "addition"
    symbols = "G_0123456789+"

    def __init__(
        self, first_difficulty: int = 2, greatest_difficulty: int = 5, batch_size: int = 32, batches: int = 20
    ) -> None:
        super().__init__()
        check_counts(first_difficulty=first_difficulty, batch_size=batch_size, batches=batches)
        if greatest_difficulty < first_difficulty:
            raise UserError(
                f"greatest_difficulty is {greatest_difficulty}; it must be first_difficulty, {first_difficulty}, or more"
            )
        self.first_difficulty, self.greatest_difficulty = first_difficulty, greatest_difficulty
        self.difficulty = first_difficulty
        self.batch_size, self.batches = batch_size, batches
        self.source_length, self.target_length = 2 * (greatest_difficulty + 1) + 1, greatest_difficulty + 2
        self.dataset_name = f"sums of two numbers of up to 10^{greatest_difficulty}"

    def open(self, split: Split) -> None:
        """A training begins at the first difficulty; that of a checkpoint comes after this."""
        if split == "train":
            self.difficulty = self.first_difficulty

    def train_dataloader(self) -> "Sums":
        """The trainer's epoch of the training sums."""
        return self._sums("train", self.difficulty, self.batches * self.batch_size, self.batch_size, self.draw())

    def val_dataloader(self) -> "Sums":
        """The validation sums: during a fit of its difficulty, else of the greatest."""
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        difficulty = self.difficulty if fitting else self.greatest_difficulty
        return self._sums("validation", difficulty, EXAMPLES, EVALUATION_BATCH)

    def test_dataloader(self) -> "Sums":
        """The test sums, of the greatest difficulty."""
        return self._sums("test", self.greatest_difficulty, EXAMPLES, EVALUATION_BATCH)

    predict_dataloader = test_dataloader

    def state_dict(self) -> dict[str, Any]:
        return {"difficulty": self.difficulty}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the checkpoint's difficulty."""
        difficulty = state_dict["difficulty"]
        if difficulty > self.greatest_difficulty:
            raise UserError(
                f"the checkpoint stopped at difficulty {difficulty}, and greatest_difficulty is {self.greatest_difficulty}: "
                "give it as it was"
            )
        self.difficulty = difficulty

    def _sums(self, split: Split, difficulty: int, count: int, batch_size: int, draw: Draw | None = None) -> "Sums":
        lengths = self.source_length, self.target_length
        return Sums(split, difficulty, count, batch_size, self.symbols, lengths, draw, *self.share)


class Sums(Examples[Translated]):
    """`count` sums of a split and a difficulty in batches: an epoch's own by `draw`, else always the same ones."""

    def __init__(
        self,
        split: Split,
        difficulty: int,
        count: int,
        batch_size: int,
        symbols: str,
        lengths: tuple[int, int],
        draw: Draw | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(count, batch_size, {"sums": count, "batch_size": batch_size}, draw, rank, world_size)
        generator = self.generator or np.random.default_rng((difficulty, _SPLITS.index(split)))
        sums = sample(split, difficulty, count, generator)
        source_length, target_length = lengths
        fill = symbols[PAD]
        self._sources = _ids([f"{a}+{b}".rjust(source_length, fill) for a, b in sums], symbols)
        self._targets = _ids([str(a + b).ljust(target_length, fill) for a, b in sums], symbols)

    def take(self, examples: npt.NDArray[np.int64]) -> Translated:
        return self._sources[:, examples], self._targets[:, examples]


def sample(split: Split, difficulty: int, count: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """So many pairs of numbers of a split, those of another drawn again."""
    kept: list[tuple[int, int]] = []
    while len(kept) < count:
        exponents = generator.integers(1, difficulty, (count, 2), endpoint=True)
        pairs = generator.integers(0, 10**exponents, endpoint=True)
        kept += [(a, b) for a, b in pairs.tolist() if split_of(a, b) == split]
    return kept[:count]


def split_of(a: int, b: int) -> Split:
    """The split of a + b and of b + a."""
    digest = blake2b(f"{min(a, b)}+{max(a, b)}".encode(), digest_size=8).digest()
    return _SPLITS[int.from_bytes(digest) % len(_SPLITS)]


def _ids(texts: list[str], symbols: str) -> Tensor:
    """The symbols' ids of texts of one length, (T, N)."""
    table = np.zeros(128, dtype=np.int64)
    table[np.frombuffer(symbols.encode("ascii"), np.uint8)] = np.arange(len(symbols))
    codes = np.frombuffer("".join(texts).encode("ascii"), np.uint8).reshape(len(texts), -1)
    return torch.from_numpy(np.ascontiguousarray(table[codes].T))
