"""What the text data modules share: a tokenizer, memory-mapped token ids, and streams or pieces of them."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from zoo.arguments import check_choice, check_counts, check_shares
from zoo.batches import WINDOW
from zoo.datamodules import token_file
from zoo.datamodules.loader import DataModule, Draw
from zoo.datamodules.loader import Split as Split
from zoo.datamodules.pieces import Pieces
from zoo.datamodules.stream import SHORTEST, RandomWindows, Stream
from zoo.errors import UserError
from zoo.tokenizer import UNK, Ids, Tokenizer

Batching = Literal["stream", "pieces"]

EVALUATION_PIECES = 100
"""Pieces read at a time when evaluating; each starts anew, so it changes memory and speed but no number."""


class TextDataModule(DataModule):
    """A tokenised text: training in `batch_size` columns or pieces, validation and test as one stream each, or in pieces.

    Subclasses say where the text comes from (`text`), which tokens it has (`vocabulary`) and how they are told apart
    (`tokenizer_of`), and pass the rest.

    `batching="stream"`: the columns follow the text, window after window of `bptt` steps, and the state is carried
    (`zoo.datamodules.stream.Stream`). `random_bptt` draws the length of each training window around `bptt`, anew in every
    epoch, at most `max_bptt` (`zoo.datamodules.stream.RandomWindows`).
    `batching="pieces"`: pieces of `bptt + 1` tokens in random order, the state starting anew with each
    (`zoo.datamodules.pieces.Pieces`).
    `evaluation` says how validation and test are read. Where it is None the test text is one stream, and so is the
    validation text, unless training reads pieces: then it is read in pieces too, as in the log of Krueger et al. 2017, arXiv
    1606.01305. (Cooijmans et al. 2017, arXiv 1603.09025, test on one stream; the code of Krueger et al. does not say.)
    `tokenizer` names a `tokenizer.json`, or a folder with one, to use in place of the vocabulary of the training text.
    """

    def __init__(
        self,
        batch_size: int,
        bptt: int,
        drop_last: bool,
        random_bptt: bool,
        max_bptt: int | None,
        tokenizer: str | None,
        batching: Batching = "stream",
        evaluation: Batching | None = None,
    ) -> None:
        super().__init__()
        check_counts(batch_size=batch_size, bptt=bptt)
        check_choice("batching", batching, get_args(Batching))
        check_choice("evaluation", evaluation, (None, *get_args(Batching)))
        of_streams = {"drop_last": drop_last, "random_bptt": random_bptt, "max_bptt": max_bptt}
        for name, option in of_streams.items():
            if option and batching == "pieces":
                raise UserError(
                    f"{name} is {option} and batching is 'pieces'; pieces are all of one length, and none is dropped: leave "
                    f"out {name}, or set batching to 'stream'"
                )
        if random_bptt and drop_last:
            raise UserError(
                "drop_last and random_bptt are both true; windows of random length have no partial one to drop: leave out "
                "one of the two"
            )
        if max_bptt is not None and not random_bptt:
            raise UserError(
                f"max_bptt is {max_bptt} and random_bptt is false; it caps windows of random length: set random_bptt to "
                "true, or leave out max_bptt"
            )
        if max_bptt is not None and max_bptt < SHORTEST:
            raise UserError(
                f"max_bptt is {max_bptt}; it must be {SHORTEST} or more, the least length of a random window"
            )
        self.batch_size, self.bptt, self.drop_last = batch_size, bptt, drop_last
        self.random_bptt, self.max_bptt = random_bptt, max_bptt
        self.batching, self.evaluation = batching, evaluation
        self.given_tokenizer = tokenizer is not None
        self._tokenizer: Tokenizer | None = None
        self._ids: dict[Split, Ids] = {}
        self._digests: dict[Split, str] = {}
        if tokenizer is not None:
            self.tokenizer = Tokenizer.from_file(Path(tokenizer))

    @abstractmethod
    def text(self, split: Split) -> Iterator[str]:
        """The text of a split in blocks, each ending with a word, or anywhere at character level."""

    @abstractmethod
    def vocabulary(self) -> list[str]:
        """The tokens of the training text, the most frequent first."""

    @abstractmethod
    def tokenizer_of(self, vocabulary: list[str]) -> Tokenizer:
        """The rules by which a text is cut into such tokens."""

    vocabulary_options: tuple[int | None, ...] = ()
    """Whatever `vocabulary` depends on beside the training text and the rules."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary in use: the one given, else that of the training text (built once, then kept on disk)."""
        if self._tokenizer is None:
            rules = self.tokenizer_of([UNK]).fingerprint
            key = f"{self.digest('train')} {rules} {self.vocabulary_options}"
            file = token_file.directory() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
            if not file.exists():
                with token_file.whole(file) as written:
                    written.write_text(self.tokenizer_of(self.vocabulary()).to_json(), encoding="utf-8")
            self._tokenizer = Tokenizer.from_file(file)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids.clear()

    def digest(self, split: Split) -> str:
        """The sha256 of a split's text."""
        if split not in self._digests:
            self._digests[split] = token_file.digest(self.text(split))
        return self._digests[split]

    def ids(self, split: Split) -> Ids:
        """All token ids of a split, in order, a view of a memory-mapped file."""
        if split not in self._ids:
            self._ids[split] = token_file.token_ids(self.text(split), self.digest(split), self.tokenizer)
        return self._ids[split]

    def open(self, split: Split) -> None:
        """Tokenises the split, or opens its token file."""
        self.ids(split)

    def train_dataloader(self) -> Stream | Pieces:
        """Columns in windows of `bptt` or of the random lengths of the trainer's epoch, or that epoch's pieces."""
        if self.batching == "pieces":
            return self._pieces("train", self.batch_size, self.draw())
        check_shares(self.batch_size, self.share[1])  # a stream lets a single column pass, for evaluation
        return self._stream("train", self.batch_size, self.bptt, self.drop_last, self._windows())

    def val_dataloader(self) -> Stream | Pieces:
        """The validation text, as one stream or in pieces."""
        return self._whole("validation", self.readings[0])

    def test_dataloader(self) -> Stream | Pieces:
        """The test text, as one stream or in pieces."""
        return self._whole("test", self.readings[1])

    def predict_dataloader(self) -> Stream | Pieces:
        """The test text as one stream: every token but the first, in order."""
        return self._whole("test", "stream")

    @property
    def readings(self) -> tuple[Batching, Batching]:
        """How the validation and the test text are read."""
        return self.evaluation or self.batching, self.evaluation or "stream"

    @property
    def draws(self) -> bool:
        return self.random_bptt or self.batching == "pieces"

    def _windows(self) -> RandomWindows | None:
        return RandomWindows(*self.draw(), self.max_bptt) if self.random_bptt else None

    def _whole(self, split: Split, batching: Batching) -> Stream | Pieces:
        if batching == "pieces":
            return self._pieces(split, EVALUATION_PIECES)
        return self._stream(split, 1, WINDOW, False)

    def _pieces(self, split: Split, batch_size: int, draw: Draw | None = None) -> Pieces:
        rank, world_size = self.share
        return Pieces(
            self.ids(split), batch_size, self.bptt, draw=draw, rank=rank, world_size=world_size, name=f"{split} text"
        )

    def _stream(
        self, split: Split, batch_size: int, bptt: int, drop_last: bool, random: RandomWindows | None = None
    ) -> Stream:
        rank, world_size = self.share
        return Stream(
            self.ids(split),
            batch_size,
            bptt,
            drop_last=drop_last,
            random=random,
            rank=rank,
            world_size=world_size,
            name=f"{split} text",
        )
