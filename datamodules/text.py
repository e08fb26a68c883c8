"""What the text data modules share: a tokenizer, memory-mapped token ids and contiguous streams."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from datamodules import token_file
from datamodules.loader import DrawnEpochs
from datamodules.stream import SHORTEST, RandomWindows, Stream
from zoo.errors import UserError
from zoo.tokenizer import UNK, Ids, Tokenizer

Split = Literal["train", "validation", "test"]

EVALUATION_WINDOW = 200
"""Steps read at a time when evaluating; the state is carried over, so it changes memory and speed but no number."""


class TextDataModule(DrawnEpochs):
    """Streams of a tokenised text: training in `batch_size` columns, validation and test as one stream each.

    Subclasses say where the text comes from (`text`), which tokens it has (`vocabulary`) and how they are told apart
    (`tokenizer_of`), and pass the rest.

    `random_bptt` draws the length of each training window around `bptt`, anew in every epoch, at most `max_bptt`
    (`datamodules.stream.RandomWindows`).
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
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "bptt": bptt}.items():
            if value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
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
        self.given_tokenizer = tokenizer is not None
        self._tokenizer: Tokenizer | None = None
        self._ids: dict[Split, Ids] = {}
        self._digests: dict[Split, str] = {}
        if tokenizer is not None:
            path = Path(tokenizer)
            self.tokenizer = Tokenizer.from_file(path / "tokenizer.json" if path.is_dir() else path)

    @abstractmethod
    def text(self, split: Split) -> Iterator[str]:
        """The text of a split in blocks, each ending with a line."""

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
                token_file.write_text(file, self.tokenizer_of(self.vocabulary()).to_json())
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

    def prepare_data(self) -> None:
        """Tokenises, on one process, what the coming stage reads."""
        self.setup(self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else "fit")

    def setup(self, stage: str) -> None:
        """Opens the token files of the stage (fit, validate, test or predict)."""
        super().setup(stage)
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "validation"), "validate": ("validation",)}
        for split in splits.get(stage, ("test",)):
            self.ids(split)

    def train_dataloader(self) -> Stream:
        """`batch_size` columns in windows of `bptt`, or of the random lengths of the trainer's epoch."""
        return self._stream("train", self.batch_size, self.bptt, self.drop_last, self._windows())

    def val_dataloader(self) -> Stream:
        """The validation text as one stream."""
        return self._stream("validation", 1, EVALUATION_WINDOW, False)

    def test_dataloader(self) -> Stream:
        """The test text as one stream."""
        return self._stream("test", 1, EVALUATION_WINDOW, False)

    predict_dataloader = test_dataloader

    @property
    def draws(self) -> bool:
        return self.random_bptt

    def _windows(self) -> RandomWindows | None:
        return RandomWindows(*self.draw(), self.max_bptt) if self.random_bptt else None

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
