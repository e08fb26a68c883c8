"""The user's own text."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import datasets

from zoo.arguments import check_choice, check_counts
from zoo.datamodules import source
from zoo.datamodules.text import Batching, Split, TextDataModule
from zoo.errors import UserError
from zoo.tokenizer import UNK, Level, Normaliser, Tokenizer, character_vocabulary, count_words, word_vocabulary

TINY_SHAKESPEARE = Path(__file__).with_name("tiny_shakespeare.txt")
"""A million characters of Shakespeare's plays, in the public domain: the text that comes with the package."""

HELD_OUT = 20
"""One row in this many is cut from the end for validation, and as many for testing, where there is no such text."""

Document = Literal["line", "file"]

_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
_BLANK = re.compile(r"[ \n]")


class Corpus(TextDataModule):
    """A text of one's own: files, or a data set of the Hugging Face Hub.

    `path` (likewise `validation` and `test`) is a file, a folder, a glob pattern, or the name of a data set on the Hub,
    owner/name (with `config` where it has several configurations). What lies on disk comes first: at `path`, then at `path`
    under `root` (else `$ZOO_DATASETS`), where a data set is laid out as on the Hub.

    - Plain text, UTF-8: `.txt`, and any other ending that a name or a pattern asks for. A row is a line.
    - Tables: `.jsonl` (UTF-8, an object a line), `.json` (also one list, of objects or of strings, read whole), `.csv` and
      `.tsv` (UTF-8, with a header), `.parquet`, and data sets. A row is the string in `column`; a missing one is empty.

    A folder is read with all its files of these endings, in order of their names, except hidden ones, readmes and licences;
    they are of one kind.

    Where `validation` or `test` is not given, a data set's own split of that name is read; files have splits where each is
    named for one (`train.txt`, `ptb.valid.txt`, `test/0.parquet`; also training, validation, val, dev, eval, evaluation,
    testing). Where there is none, it is cut from the end of the training text: the last twentieth of its rows each,
    validation before test. `UserError` where some files are named for a split and others are not, or none for training.

    `document` says where `<eos>` stands at word level: after every line ("line"), those within a row too; or after every
    file of plain text and every row of a table ("file"), line breaks within being mere blanks. At character level a line
    break is a character like any other, and each row ends with one. The line break at the end of a row, where it has one,
    counts once; those of Windows and of old Macs are as those of Unix; a byte-order mark is no text.

    The vocabulary is the training text's: words (`normaliser="penn_treebank"` lower-cases, drops punctuation and splits
    clitics first) or characters that stand there at least `min_count` times, at most `max_vocabulary` of them, the most
    frequent first, with `<unk>` for all others.
    """

    def __init__(
        self,
        path: str,
        validation: str | None = None,
        test: str | None = None,
        column: str = "text",
        config: str | None = None,
        level: Level = "word",
        document: Document = "line",
        normaliser: Normaliser = "none",
        min_count: int = 1,
        max_vocabulary: int | None = None,
        batching: Batching = "stream",
        batch_size: int = 20,
        bptt: int = 35,
        drop_last: bool = False,
        random_bptt: bool = False,
        max_bptt: int | None = None,
        evaluation: Batching | None = None,
        root: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(batch_size, bptt, drop_last, random_bptt, max_bptt, tokenizer, batching, evaluation)
        check_choice("level", level, get_args(Level))
        check_choice("document", document, get_args(Document))
        check_choice("normaliser", normaliser, get_args(Normaliser))
        check_counts(min_count=min_count, max_vocabulary=max_vocabulary)
        self.level: Level = level
        self.normaliser: Normaliser = normaliser
        self.min_count, self.max_vocabulary = min_count, max_vocabulary
        self.column, self.config, self.root = column, config, root
        self.vocabulary_options = (min_count, max_vocabulary)
        self._path = path
        self._paths: dict[Split, str | None] = {"train": path, "validation": validation, "test": test}
        self._by_line = document == "line" or level == "character"

    @property
    def dataset_id(self) -> str:
        """The name on the Hub of a data set, "own text" of files."""
        return source.dataset_id(self._path, self.root)

    @property
    def dataset_name(self) -> str:
        """The bare name of the file, the folder or the data set."""
        return source.dataset_name(self._path, self.config)

    @property
    def sizes(self) -> str:
        """How many tokens each split has, and which were cut from the end."""
        counts = {split: len(self.ids(split)) for split in self._parts}
        cut = f"cut from the end of the corpus, one line or row in {HELD_OUT}"
        return source.sizes(counts, "tokens", self._parts.keys() - self._opened.keys(), cut)

    @cached_property
    def _opened(self) -> dict[Split, "_Part"]:
        opened = source.open_splits(self._paths, [self.column], config=self.config, root=self.root)
        return {split: _Part(*rows, self.column, self._by_line) for split, rows in opened.items()}

    @cached_property
    def _parts(self) -> dict[Split, "_Part"]:
        parts = dict(self._opened)
        whole = parts["train"]
        held_out, end = len(whole) // HELD_OUT, len(whole)
        for split in ("test", "validation"):
            if split not in parts:
                parts[split] = whole.cut(end - held_out, end)
                end -= held_out
        return {**parts, "train": whole.cut(0, end)}

    def text(self, split: Split) -> Iterator[str]:
        """The rows of a split."""
        part = self._parts[split]
        if not len(part):
            raise UserError(
                f"{self._path} is too short to hold out a {split} text: it has {len(self._parts['train'])} lines or rows, "
                f"and one in {HELD_OUT} is held out; give {HELD_OUT} or more, or name a text in `{split}`"
            )
        return part.blocks()

    def vocabulary(self) -> list[str]:
        """What the options keep of the training text's words, or its characters."""
        if self.level == "character":
            size = None if self.max_vocabulary is None else self.max_vocabulary - 1
            return [*character_vocabulary(self.text("train"), min_count=self.min_count, max_size=size), UNK]
        counts = count_words(self.text("train"), self.normaliser)
        return word_vocabulary(counts, min_count=self.min_count, max_size=self.max_vocabulary)

    def tokenizer_of(self, vocabulary: list[str]) -> Tokenizer:
        """Words by the normaliser, or characters."""
        if self.level == "character":
            return Tokenizer.characters(vocabulary)
        return Tokenizer.words(vocabulary, self.normaliser)


class _Part:
    """Rows `start` to `stop` of a column as text, with `<eos>` after each line, or after each file or row of a table."""

    def __init__(self, rows: datasets.Dataset, file_ends: Sequence[int] | None, column: str, by_line: bool) -> None:
        self._rows, self._column = rows, column
        self._start, self._stop = 0, len(rows)
        self._ends = None if by_line else file_ends or range(1, len(rows) + 1)

    def __len__(self) -> int:
        return self._stop - self._start

    def cut(self, start: int, stop: int) -> "_Part":
        """Rows `start` to `stop` alone."""
        cut = copy(self)
        cut._start, cut._stop = start, stop
        return cut

    def blocks(self) -> Iterator[str]:
        """The rows as text, in blocks that end after a blank or a line break."""
        row = self._start
        for block in source.blocks(self._rows.select(range(row, self._stop)), self._column, separator="\0"):
            yield from _cut(self._text(block, row))
            row += block.count("\0") if self._ends else 0

    def _text(self, block: str, row: int) -> str:
        """Of rows from `row` on, a zero byte after each."""
        # Most texts have none of these characters in a row, and to look for one character costs nothing.
        if "\r" in block:
            block = block.replace("\r\n", "\n").replace("\r", "\n")
        if "\n" in block:
            block = block.replace("\n\0", "\0")
        if _BYTE_ORDER_MARK in block:
            block = ("\0" + block).replace("\0" + _BYTE_ORDER_MARK, "\0")[1:]
        if self._ends is None:
            return block.replace("\0", "\n")
        lines = block.replace("\n", " ").split("\0")
        first, last = (bisect_right(self._ends, row + count) for count in (0, len(lines) - 1))
        for end in self._ends[first:last]:
            lines[end - row - 1] += "\n"
        return " ".join(lines).replace("\n ", "\n")


def _cut(text: str) -> Iterator[str]:
    """A long text in blocks that each end after a blank or a line break."""
    start = 0
    while len(text) - start > 2 * source.BLOCK:
        blank = _BLANK.search(text, start + source.BLOCK)
        stop = blank.end() if blank else len(text)
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]
