"""The user's own text."""

import codecs
import glob
from collections.abc import Iterator
from copy import copy
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import datasets
from datasets.exceptions import DatasetsError

from datamodules import source
from datamodules.text import Batching, Split, TextDataModule
from zoo.errors import UserError
from zoo.tokenizer import UNK, Level, Normaliser, Tokenizer, character_vocabulary, count_words, word_vocabulary

TINY_SHAKESPEARE = Path(__file__).with_name("tiny_shakespeare.txt")
"""A million characters of Shakespeare's plays, in the public domain: the text that comes with the package."""

HELD_OUT = 20
"""One line in this many is cut from the end for validation, and as many for testing, where no file is given."""

_READ = 1 << 24


class Corpus(TextDataModule):
    """Plain text files of one's own, UTF-8.

    `path` (likewise `validation` and `test`) is a file, a glob pattern, or a folder, read with all its `.txt` files in
    order of their names; a relative path that does not exist is looked for under `root` (else `$ZOO_DATASETS`). Where
    `validation` or `test` is not given, it is cut from the end of `path`: the last twentieth of the lines each, validation
    before test.

    `document` says where `<eos>` stands at word level: after every line, or after every file, line breaks then being mere
    blanks. At character level a line break is a character like any other.

    The vocabulary is the training text's: words that stand there at least `min_count` times, at most `max_vocabulary` of
    them, the most frequent first (`normaliser="penn_treebank"` lower-cases, drops punctuation and splits clitics first); or
    its characters, with `<unk>` for all others.
    """

    def __init__(
        self,
        path: str,
        validation: str | None = None,
        test: str | None = None,
        level: Level = "word",
        document: Literal["line", "file"] = "line",
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
        self.level: Level = level
        self.normaliser: Normaliser = normaliser
        self.min_count, self.max_vocabulary = min_count, max_vocabulary
        self.root = root
        self.vocabulary_options = (min_count, max_vocabulary)
        self._paths: dict[Split, str | None] = {"train": path, "validation": validation, "test": test}
        self._whole_files = document == "file" and level == "word"

    @cached_property
    def _parts(self) -> dict[Split, "_Lines"]:
        given = {
            split: _Lines(_files(path, self.root), self._whole_files) for split, path in self._paths.items() if path
        }
        whole = given["train"]
        end = len(whole)
        for split in ("test", "validation"):
            if split not in given:
                held_out = len(whole) // HELD_OUT
                given[split] = whole.cut(end - held_out, end)
                end -= held_out
        return {**given, "train": whole.cut(0, end)}

    def text(self, split: Split) -> Iterator[str]:
        """The lines of a split."""
        return self._parts[split].blocks()

    def vocabulary(self) -> list[str]:
        """What the options keep of the training text's words, or its characters."""
        if self.level == "character":
            return [*character_vocabulary(self.text("train")), UNK]
        counts = count_words(self.text("train"), self.normaliser)
        return word_vocabulary(counts, min_count=self.min_count, max_size=self.max_vocabulary)

    def tokenizer_of(self, vocabulary: list[str]) -> Tokenizer:
        """Words by the normaliser, or characters."""
        if self.level == "character":
            return Tokenizer.characters(vocabulary)
        return Tokenizer.words(vocabulary, self.normaliser)


class _Lines:
    """Lines `start` to `stop` of some files read one after the other; `<eos>` after each file rather than each line."""

    def __init__(self, files: list[Path], whole_files: bool) -> None:
        ends = list(accumulate(_check(file) for file in files))
        # datasets takes a path for a pattern.
        paths = [glob.escape(str(file)) for file in files]
        try:
            loaded = datasets.load_dataset("text", data_files=paths, split="train", encoding="utf-8-sig")
        except (OSError, ValueError, DatasetsError) as error:
            raise UserError(f"{', '.join(map(str, files))} could not be read: {error}") from error
        self._rows: datasets.Dataset = loaded
        self._ends = ends if whole_files else None
        self._start, self._stop = 0, int(loaded.num_rows)
        assert self._stop == ends[-1], f"{self._stop} lines were read where {ends[-1]} were counted"

    def __len__(self) -> int:
        return self._stop - self._start

    def cut(self, start: int, stop: int) -> "_Lines":
        """Lines `start` to `stop` alone."""
        cut = copy(self)
        cut._start, cut._stop = start, stop
        return cut

    def blocks(self) -> Iterator[str]:
        """The lines as text, in blocks."""
        if self._ends is None:
            if len(self):
                yield from source.blocks(self._rows.select(range(self._start, self._stop)), "text")
            return
        start = self._start
        for end in self._ends:
            stop = min(end, self._stop)
            if start < stop:
                yield from source.blocks(self._rows.select(range(start, stop)), "text", separator=" ")
                if stop == end:
                    yield "\n"
                start = stop


def _files(path: str, root: str | None) -> list[Path]:
    """The files that `path` names; `UserError` where there are none."""
    local = source.data_root(root)
    places = [Path(path).expanduser(), *([local / path] if local else [])]
    for place in places:
        if place.is_file():
            return [place]
        if place.is_dir():
            files = sorted(file for file in place.rglob("*.txt") if file.is_file())
            if not files:
                raise UserError(f"the folder {place} holds no .txt file")
            return files
        if files := sorted(Path(file) for file in glob.glob(str(place), recursive=True) if Path(file).is_file()):
            return files
    raise UserError(f"no text at {path}: looked for a file, a folder or a pattern at {' and '.join(map(str, places))}")


def _check(file: Path) -> int:
    """The number of lines; raises `UserError` with the file and the byte offset where it is empty, binary or not UTF-8."""
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty")
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = lines = 0
    last = b""
    with file.open("rb") as source_file:
        while True:
            chunk = source_file.read(_READ)
            if (zero := chunk.find(b"\0")) >= 0:
                raise UserError(f"{file} is binary, not text: a zero byte at offset {offset + zero}")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                    f"{offset - pending + error.start}; convert it, for example with iconv -t utf-8"
                ) from error
            if not chunk:
                return lines + (last not in (b"\n", b"\r"))
            # A line ends with \n, \r\n or \r, as Python reads text.
            lines += chunk.count(b"\n") + chunk.count(b"\r") - chunk.count(b"\r\n")
            lines -= last == b"\r" and chunk.startswith(b"\n")
            offset, last = offset + len(chunk), chunk[-1:]
