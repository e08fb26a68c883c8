"""The user's own text."""

import codecs
import glob
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import datasets

from datamodules import source
from datamodules.text import Split, TextDataModule
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
        batch_size: int = 20,
        bptt: int = 35,
        drop_last: bool = False,
        root: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(batch_size, bptt, drop_last, tokenizer)
        self.level: Level = level
        self.normaliser: Normaliser = normaliser
        self.min_count, self.max_vocabulary = min_count, max_vocabulary
        self.root = root
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

    def build_tokenizer(self) -> Tokenizer:
        """The vocabulary of the training text, by falling frequency."""
        if self.level == "character":
            return Tokenizer.characters([*character_vocabulary(self.text("train")), UNK])
        counts = count_words(self.text("train"), self.normaliser)
        vocabulary = word_vocabulary(counts, min_count=self.min_count, max_size=self.max_vocabulary)
        return Tokenizer.words(vocabulary, self.normaliser)

    @property
    def tokenizer_settings(self) -> str:
        rules = Tokenizer.words([UNK], self.normaliser) if self.level == "word" else Tokenizer.characters([UNK])
        return f"{self.min_count} {self.max_vocabulary} {rules.fingerprint}"


class _Lines:
    """Lines `start` to `stop` of some files read one after the other."""

    def __init__(self, files: list[Path], whole_files: bool) -> None:
        for file in files:
            _check(file)
        paths = [str(file) for file in files]
        data_files = {f"file{i}": [path] for i, path in enumerate(paths)} if whole_files else {"text": paths}
        self._parts: list[datasets.Dataset] = list(
            datasets.load_dataset("text", data_files=data_files, encoding="utf-8-sig").values()
        )
        self._whole_files = whole_files
        self._start, self._stop = 0, sum(int(part.num_rows) for part in self._parts)

    def __len__(self) -> int:
        return self._stop - self._start

    def cut(self, start: int, stop: int) -> "_Lines":
        """Lines `start` to `stop` alone."""
        cut = object.__new__(_Lines)
        cut._parts, cut._whole_files = self._parts, self._whole_files
        cut._start, cut._stop = start, stop
        return cut

    def blocks(self) -> Iterator[str]:
        ends = list(accumulate(part.num_rows for part in self._parts))
        for part, end in zip(self._parts, ends, strict=True):
            offset = end - part.num_rows
            first, last = max(self._start - offset, 0), min(self._stop - offset, part.num_rows)
            if first >= last:
                continue
            rows = part.select(range(first, last))
            if self._whole_files:
                yield from source.blocks(rows, "text", separator=" ")
                if self._stop >= end:
                    yield "\n"
            else:
                yield from source.blocks(rows, "text")


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


def _check(file: Path) -> None:
    """Raises `UserError` with the file and the byte offset where it is empty, binary or not UTF-8."""
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty")
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with file.open("rb") as source_file:
        while chunk := source_file.read(_READ):
            if (zero := chunk.find(b"\0")) >= 0:
                raise UserError(f"{file} is binary, not text: a zero byte at offset {offset + zero}")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=len(chunk) < _READ)
            except UnicodeDecodeError as error:
                where = offset - pending + error.start
                raise UserError(
                    f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {where}; convert it, for "
                    "example with iconv -t utf-8"
                ) from error
            offset += len(chunk)
