"""Texts with a class each."""

import math
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import torch

from zoo.arguments import check_counts
from zoo.batches import Labelled, Texts
from zoo.datamodules import source
from zoo.datamodules.loader import DataModule, Draw, Examples, Split
from zoo.errors import UserError
from zoo.tokenizer import Ids, Tokenizer

HELD_OUT = 10
"""One distinct text in this many is drawn for validation, and as many for testing, where the data set has no such split."""

_SEED = 0
"""Of that draw, which is the same for every run."""

_SORTED = 50
"""So many batches are sorted by length together, which leaves little to fill up."""

MOST = 1_000
"""A column with more different values than this holds no classes."""


class LabelledText(DataModule):
    """A table of texts and their classes, read with a tokenizer that is given: batches of `Texts` and labels.

    `path` (likewise `validation` and `test`) is what `Corpus` takes, but for plain text: JSON lines, Parquet, CSV, a folder
    or pattern of such, or a data set of the Hub (`config` its configuration). Where there is no validation or test split, a
    tenth each of the distinct texts, drawn once for all, is taken from the training rows; a text that stands in several of
    them goes to one split with all of them.

    `text` and `label` name the columns. Classes are in the order of their names, numbers first and by size. A text stands
    between two ends of line; of a longer one its last `max_tokens` tokens are read. `tokenizer` names a `tokenizer.json`, or
    a folder with one.
    """

    def __init__(
        self,
        path: str,
        label: str,
        text: str = "text",
        validation: str | None = None,
        test: str | None = None,
        config: str | None = None,
        batch_size: int = 32,
        max_tokens: int = 1400,
        root: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        check_counts(batch_size=batch_size, max_tokens=max_tokens)
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.text, self.label, self.config, self.root = text, label, config, root
        self._paths: dict[Split, str | None] = {"train": path, "validation": validation, "test": test}
        self.given_tokenizer = tokenizer is not None
        self._tokenizer = Tokenizer.from_file(Path(tokenizer)) if tokenizer is not None else None
        self._examples: dict[Split, tuple[list[Ids], npt.NDArray[np.int64]]] = {}

    @property
    def dataset_id(self) -> str:
        """The name on the Hub of a data set, "own text" of files."""
        return source.dataset_id(str(self._paths["train"]), self.root)

    @property
    def dataset_name(self) -> str:
        """The bare name of the file, the folder or the data set."""
        return source.dataset_name(str(self._paths["train"]), self.config)

    @property
    def tokenizer(self) -> Tokenizer:
        """By which the texts are read; `UserError` where none was given."""
        if self._tokenizer is None:
            raise UserError(
                "LabelledText has no tokenizer: name the tokenizer.json of a language model, or its folder "
                "(data.init_args.tokenizer)"
            )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._examples.clear()

    @cached_property
    def _opened(self) -> dict[Split, "_Rows"]:
        opened = source.open_splits(self._paths, (self.text, self.label), config=self.config, root=self.root)
        return {split: _Rows.of(part.rows, self.text, self.label) for split, part in opened.items()}

    @cached_property
    def _rows(self) -> dict[Split, "_Rows"]:
        rows = dict(self._opened)
        drawn = rows["train"]
        distinct: dict[str, int] = {}
        number = np.array([distinct.setdefault(text, len(distinct)) for text in drawn.texts], dtype=np.int64)
        order = np.random.default_rng(_SEED).permutation(len(distinct))
        held_out = len(order) // HELD_OUT
        for split in ("test", "validation"):
            if split not in rows:
                chosen, order = order[:held_out], order[held_out:]
                rows[split] = drawn.take(np.flatnonzero(np.isin(number, chosen)))
        return {**rows, "train": drawn.take(np.flatnonzero(np.isin(number, order)))}

    @cached_property
    def labels(self) -> list[str]:
        """The names of the classes, by number: those of the training texts."""
        self._check_labels("train")
        found = set(self._rows["train"].labels)
        if len(found) == 1:
            raise UserError(f"the column {self.label!r} holds one class, {found.pop()}; two or more are expected")
        count = len(self._rows["train"].labels)
        if len(found) > min(MOST, count // 2):
            raise UserError(
                f"the column {self.label!r} holds {len(found):,} classes in {count:,} training texts; at most {MOST:,}, and "
                "two texts each, are expected: is it another column?"
            )
        return [str(label) for label in sorted(found, key=_order)]

    def _check_labels(self, split: Split) -> None:
        """Raises `UserError` where a text has none."""
        if missing := self._rows[split].labels.count(None):
            of = "training" if split == "train" else split
            raise UserError(f"{missing:,} {of} texts have no {self.label!r}: leave them out, or give them one")

    @property
    def sizes(self) -> str:
        """How many texts each split has, and which were drawn."""
        counts = {split: len(rows.texts) for split, rows in self._rows.items()}
        drawn = f"drawn once for all, one text in {HELD_OUT}"
        return source.sizes(counts, "texts", self._rows.keys() - self._opened.keys(), drawn)

    def texts(self, split: Split) -> list[str]:
        """The texts of a split, in order."""
        return self._rows[split].texts

    def open(self, split: Split) -> None:
        """Tokenises the split's texts."""
        if split in self._examples:
            return
        rows, numbers = self._rows[split], {label: number for number, label in enumerate(self.labels)}
        if not rows.texts:
            raise UserError(f"the {split} split has no texts: give {HELD_OUT} or more, or name another table for it")
        self._check_labels(split)
        labels = [str(label) for label in rows.labels]
        if unknown := sorted(set(labels) - numbers.keys()):
            some = ", ".join(unknown[:10]) + ", ..." * (len(unknown) > 10)
            raise UserError(
                f"the {split} texts have classes that no training text has: {some}; leave those texts out, or name a "
                "table for each split"
            )
        texts = [self.tokenizer.encode_document(text)[-self.max_tokens :] for text in rows.texts]
        self._examples[split] = texts, np.array([numbers[label] for label in labels])

    def train_dataloader(self) -> "LabelledTexts":
        """The training texts, shuffled, those of a batch of about the same length."""
        return self._loader("train", self.draw())

    def val_dataloader(self) -> "LabelledTexts":
        """The validation texts, in order."""
        return self._loader("validation")

    def test_dataloader(self) -> "LabelledTexts":
        """The test texts, in order."""
        return self._loader("test")

    predict_dataloader = test_dataloader

    def _loader(self, split: Split, draw: Draw | None = None) -> "LabelledTexts":
        self.open(split)
        return LabelledTexts(*self._examples[split], self.batch_size, draw, *self.share)


class LabelledTexts(Examples[Labelled]):
    """The batches of one epoch: under `draw` shuffled, then sorted by length within some batches' worth of texts.

    The shares of the batches are of equal size but for one text, so that none is left with a single one.
    """

    def __init__(
        self,
        texts: list[Ids],
        labels: npt.NDArray[np.int64],
        batch_size: int,
        draw: Draw | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(
            len(texts), batch_size, {"texts": len(texts), "batch_size": batch_size}, draw, rank, world_size
        )
        self._texts, self._labels = texts, labels
        if self.generator is None:
            self._batches = np.array_split(self._order, len(self))
            return
        lengths = np.array([len(text) for text in texts])
        spans = np.split(self._order, range(_SORTED * batch_size, len(self._order), _SORTED * batch_size))
        by_length = np.concatenate([span[np.argsort(lengths[span], stable=True)] for span in spans])
        batches = np.array_split(by_length.reshape(-1, world_size), len(self))  # of equal shares
        self._batches = [batches[index].flatten() for index in self.generator.permutation(len(batches))]

    def batch(self, index: int) -> Labelled:
        return self.take(np.array_split(self._batches[index], self._world_size)[self._rank])

    def take(self, examples: npt.NDArray[np.int64]) -> Labelled:
        return Texts.of([self._texts[example] for example in examples]), torch.from_numpy(self._labels[examples])


class _Rows:
    """Texts and the class of each as it stands in the table."""

    def __init__(self, texts: list[str], labels: list[str | int | None]) -> None:
        self.texts, self.labels = texts, labels

    @classmethod
    def of(cls, rows: datasets.Dataset, text: str, label: str) -> "_Rows":
        """Two columns of a table; numbers that have names give these."""
        source.check_strings(rows, text)
        source.check_column(rows, label)
        labels, names = list(rows[label]), getattr(rows.features[label], "names", None)
        if names:
            labels = [None if number is None or number < 0 else names[number] for number in labels]
        labels = [None if value == "" else value for value in labels]
        if others := [value for value in labels if not isinstance(value, str | int | float | None)]:
            raise UserError(f"the column {label!r} holds {others[0]!r}; names or numbers are expected")
        return cls([string or "" for string in rows[text]], labels)

    def take(self, rows: npt.NDArray[np.int64]) -> "_Rows":
        """Some of the rows."""
        return _Rows([self.texts[row] for row in rows], [self.labels[row] for row in rows])


def _order(label: str | int | None) -> tuple[bool, float, str]:
    try:
        number = float(label or 0)
    except ValueError:
        number = math.nan
    return (False, number, str(label)) if math.isfinite(number) else (True, 0.0, str(label))
