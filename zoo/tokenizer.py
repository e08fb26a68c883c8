"""Word and character vocabularies: `tokenizer.json` files of the tokenizers library, with a fast path for whole corpora.

A text is a sequence of lines. At word level a line break is the token `<eos>`, as in Mikolov's Penn Treebank files; at
character level it is the character "\\n".
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from zoo.arguments import check_type
from zoo.errors import UserError

Level = Literal["word", "character"]
Normaliser = Literal["none", "penn_treebank"]
Ids = npt.NDArray[np.unsignedinteger]

EOS = "<eos>"
UNK = "<unk>"

_CODE_POINTS = 0x110000
_MAX_REMEMBERED = 500_000
_MAX_COUNTED = 4_000_000
# Arrow splits on these control characters and the library does not; neither do we.
_NOT_WHITESPACE = "\x1c\x1d\x1e\x1f"

# The abbreviations among Penn Treebank's 10,000 types, initials ("j.", "u.s.") apart: these keep their full stop.
_ABBREVIATIONS = (
    "adm ala ariz aug bros calif cie co col colo conn corp cos dec del dr etc feb fla ga gen gov ill inc ind jan jr kan "
    "ky ltd mass md messrs mich minn mo mr mrs ms neb nev no nov oct okla ore pa prof rep rev sen sens sept sr st tenn "
    "va vs wash wis"
).split()


def _penn_treebank_normaliser() -> list[normalizers.Normalizer]:
    r"""Maps running English text to the conventions of Mikolov's Penn Treebank, and leaves that text itself unchanged.

    Lower case, punctuation dropped, clitics split off ("don't" -> "do n't"), numbers and the per cent sign to N. Every
    rule looks at one whitespace-separated chunk alone (the blank put before the text makes `\s` mark a chunk's start),
    which is what lets `Tokenizer.encode` look chunks up.
    """

    def replace(pattern: str, by: str) -> normalizers.Normalizer:
        return normalizers.Replace(Regex(pattern), by)

    abbreviations = "|".join(rf"\s{word}" for word in _ABBREVIATIONS)
    clitic = r"(?:s|re|ve|ll|d|m)(?!\S)"
    return [
        normalizers.Prepend(" "),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        replace("[\u2018\u2019]", "'"),
        replace(r"(?<=\d)[,:](?=\d)", ""),
        replace("%", " n "),
        replace(r"[^a-z0-9\s$#&'*\-./<>\\]|--+|\.\.+|''+", " "),
        replace(r"<(?!(?:unk|eos)>)|(?<!<unk|<eos)>|\\(?![/*])|(?<!\\)[/*]", " "),
        replace(r"(?<=[$#])(?=\S)", " "),
        replace(rf"(?<!{abbreviations}|[\s.][a-z])\.(?='*(?!\S))", ""),
        replace(r"(?<=\s)[.\-]+|-(?='*(?!\S))", ""),
        replace(r"(?<=[a-z])n't(?!\S)", " n't"),
        replace(r"(?<=\scan)not(?!\S)", " not"),
        replace(rf"(?<=\S)'(?={clitic})|(?<=s)'(?!\S)", " '"),
        replace(rf"(?<=\s)'(?!{clitic}|\d\d|(?!\S))|(?<=[^\ss])'(?!\S)", ""),
        replace(r"(?<=\s)(?:n|\d+(?:\.\d+)*)(?!\S)", "N"),
    ]


_LEVELS: dict[tuple[type, type], Level] = {
    (pre_tokenizers.WhitespaceSplit, models.WordLevel): "word",
    (pre_tokenizers.Split, models.WordLevel): "character",
}


class Tokenizer:
    """A vocabulary: text to token ids and back.

    `library` is the definition (and what `tokenizer.json` holds); `encode` gives the same ids 5 to 100 times as fast by
    looking up whitespace-separated chunks or code points in a table that the library fills.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        rules = type(library.pre_tokenizer), type(library.model)
        if rules not in _LEVELS:
            raise UserError(f"a tokenizer of words or of characters is expected, this one has {rules}")
        self.level: Level = _LEVELS[rules]
        self.vocab_size: int = library.get_vocab_size()
        self.dtype = np.min_scalar_type(self.vocab_size - 1)
        self.unk_id: int | None = library.token_to_id(UNK)
        self.end_of_line: str = EOS if self.level == "word" else "\n"
        self.end_of_line_id: int | None = library.token_to_id(self.end_of_line)
        self.markers: set[int] = {mark for mark in (self.unk_id, self.end_of_line_id) if mark is not None}
        self._chunks: dict[str, list[int]] = {}
        self._characters = np.full(_CODE_POINTS if self.level == "character" else 0, -1, dtype=np.int32)

    def __repr__(self) -> str:
        return f"<Tokenizer: {self.vocab_size:,} {self.level}s>"

    @classmethod
    def words(cls, vocabulary: Sequence[str], normaliser: Normaliser = "none") -> "Tokenizer":
        """Whitespace-separated words, `<eos>` for a line break, `<unk>` for a word outside the vocabulary."""
        library = Library(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK))
        rules = _penn_treebank_normaliser() if normaliser == "penn_treebank" else []
        library.normalizer = normalizers.Sequence([normalizers.Replace("\n", f" {EOS} "), *rules])
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return cls(library)

    @classmethod
    def characters(cls, vocabulary: Sequence[str], blank: str = " ") -> "Tokenizer":
        """Single characters; `blank` is what stands for a space (Penn Treebank's character form writes "_").

        A vocabulary without `<unk>` refuses text with a character outside it.
        """
        unk = UNK if UNK in vocabulary else None
        library = Library(models.WordLevel({c: i for i, c in enumerate(vocabulary)}, unk_token=unk))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        decoder: list[decoders.Decoder] = [decoders.Fuse()]
        if blank != " ":
            library.normalizer = normalizers.Replace(" ", blank)
            decoder = [decoders.Replace(blank, " "), *decoder]
        library.decoder = decoders.Sequence(decoder)
        return cls(library)

    @classmethod
    def from_file(cls, file: Path) -> "Tokenizer":
        """Reads a `tokenizer.json`, or that of a folder."""
        if file.is_dir():
            file = file / "tokenizer.json"
        try:
            library = Library.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{file}: not a tokenizer file: {error}") from error
        return cls(library)

    def to_json(self) -> str:
        """The text of `tokenizer.json`, one token a line."""
        return self.library.to_str(pretty=True)

    @property
    def fingerprint(self) -> str:
        """Equal for equal vocabularies and rules."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def normaliser(self) -> Normaliser:
        """The rules by which a text is rewritten before it is cut into words; "none" for characters."""
        own = self.library.normalizer
        rules = Tokenizer.words([UNK], "penn_treebank").library.normalizer
        return "penn_treebank" if repr(own) == repr(rules) else "none"

    def encode(self, text: str) -> Ids:
        """The token ids of `text`, in the smallest unsigned type; the same as `library.encode(text).ids`."""
        check_type("text", text, str)
        return self._encode_words(text) if self.level == "word" else self._encode_characters(text)

    def encode_document(self, text: str) -> Ids:
        """A text that stands alone: between two ends of line, where the vocabulary has one."""
        return self.encode(text if self.end_of_line_id is None else f"\n{text}\n")

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text; at word level words are joined by blanks and `<eos>` breaks the line."""
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"ids from {min(ids)} to {max(ids)}; the vocabulary has 0 to {self.vocab_size - 1}")
        text = self.library.decode(ids, skip_special_tokens=False)
        return text if self.level == "character" else re.sub(rf" ?(?<!\S){EOS}(?!\S) ?", "\n", text)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The tokens themselves, one string an id."""
        tokens = []
        for i in ids:
            if (token := self.library.id_to_token(int(i))) is None:
                raise ValueError(f"id {int(i)} is not among the {self.vocab_size} of the vocabulary")
            tokens.append(token)
        return tokens

    def _encode_words(self, text: str) -> Ids:
        if any(map(text.__contains__, _NOT_WHITESPACE)):
            return np.asarray(self.library.encode(text).ids, dtype=self.dtype)
        distinct = split_words(text).dictionary_encode()
        chunks = distinct.dictionary.to_pylist()
        new = [chunk for chunk in chunks if chunk not in self._chunks]
        if len(self._chunks) + len(new) > _MAX_REMEMBERED:
            self._chunks.clear()
            new = chunks
        encodings = self.library.encode_batch_fast(new, add_special_tokens=False)
        self._chunks.update(zip(new, (encoding.ids for encoding in encodings), strict=True))
        ids = pa.array([self._chunks[chunk] for chunk in chunks], pa.list_(pa.from_numpy_dtype(self.dtype)))
        return np.asarray(ids.take(distinct.indices).flatten())

    def _encode_characters(self, text: str) -> Ids:
        codes = _code_points(text)
        ids = self._characters[codes]
        if (ids < 0).any():
            for code in np.unique(codes[ids < 0]):
                try:
                    (self._characters[code],) = self.library.encode(chr(code)).ids
                except Exception as error:  # the library raises bare Exceptions
                    raise UserError(
                        f"character {chr(code)!r} at offset {text.index(chr(code))} is not among the "
                        f"{self.vocab_size} of the vocabulary, which has no {UNK}"
                    ) from error
            ids = self._characters[codes]
        return ids.astype(self.dtype)


def split_words(text: str) -> pa.StringArray:
    """The whitespace-separated chunks of `text`, a line break being the chunk `<eos>`."""
    if any(map(text.__contains__, _NOT_WHITESPACE)):
        text = text.translate(dict.fromkeys(map(ord, _NOT_WHITESPACE), "\N{REPLACEMENT CHARACTER}"))
    # Arrow reads on past a blank that ends its buffer: a text of a multiple of 64 bytes has no padding.
    chunks = pc.utf8_split_whitespace(pa.array([text.replace("\n", f" {EOS} ").rstrip()])).flatten()
    return chunks.filter(pc.not_equal(chunks, ""))


def count_words(blocks: Iterable[str], normaliser: Normaliser = "none") -> Counter[str]:
    """How often each word stands in the blocks of text (each ending with a whole word), `<eos>` included.

    Whenever four million different words have come together, those seen once so far are forgotten: memory stays bounded.
    """
    chunks: Counter[str] = Counter()
    for block in blocks:
        for count in pc.value_counts(split_words(block)).to_pylist():
            chunks[count["values"]] += count["counts"]
        if len(chunks) > _MAX_COUNTED:
            chunks = Counter({chunk: count for chunk, count in chunks.items() if count > 1})
    if normaliser == "none":
        return chunks
    normalise = normalizers.Sequence(_penn_treebank_normaliser()).normalize_str
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word in normalise(chunk).split():
            words[word] += count
    return words


def word_vocabulary(counts: Counter[str], *, min_count: int = 1, max_size: int | None = None) -> list[str]:
    """The words by falling frequency, ties in alphabetical order; `<eos>` and `<unk>` always among them."""
    always = {EOS, UNK}
    words = sorted((w for w in counts if counts[w] >= min_count and w not in always), key=lambda w: (-counts[w], w))
    if max_size is not None:
        words = words[: max(max_size - len(always), 0)]
    return sorted([*words, *always], key=lambda w: (-counts[w], w))


def character_vocabulary(blocks: Iterable[str], *, min_count: int = 1, max_size: int | None = None) -> list[str]:
    """The characters of the blocks by falling frequency, ties by code point."""
    counts = np.zeros(_CODE_POINTS, dtype=np.int64)
    for block in blocks:
        counts += np.bincount(_code_points(block), minlength=_CODE_POINTS)
    frequent = np.argsort(-counts, stable=True)[: np.count_nonzero(counts >= min_count)]
    return [chr(code) for code in frequent[:max_size]]


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
