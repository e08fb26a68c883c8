"""How well a language model predicts a text, token by token."""

import inspect
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise, tee, zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.arguments import check_type
from zoo.batches import WINDOW
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.metrics import token_nll
from zoo.tokenizer import EOS, UNK, Ids, Tokenizer

if TYPE_CHECKING:
    from zoo.tasks.language import LanguageModel

_SENTENCES = 1_000
"""So many lines are sorted by length together."""

_BATCH = 1_000
"""So many predictions at most are made together of several sentences."""

Scorer = Callable[[Tensor, Tensor], Tensor]
"""Token ids of a window (T, B) and the ids that follow each (T, B) -> -ln p of those that follow, in nats (T, B)."""


class Evaluation(ABC):
    """A way to score a text: how the probabilities of the next token come about.

    The text is handed over in windows, each going on where the one before it ended, so memory does not grow with the text.
    """

    training_windows: tuple[int, int] | None = None
    """The columns and steps of the windows of the training text that `prepare` wants to see; None where it wants none."""

    def prepare(self, model: "LanguageModel", windows: Iterable[tuple[Tensor, Tensor]]) -> None:  # noqa: B027
        """Learns what it needs from the training text; to be called once, where `training_windows` is not None."""

    def check(self, predictions: int) -> None:  # noqa: B027
        """Raises `UserError` where a text of so many predictions does not fit."""

    @abstractmethod
    def begin(self, model: "LanguageModel") -> Scorer:
        """What scores the windows of a text, one after the other, from a zero state; the model is left as it was."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in inspect.signature(type(self)).parameters)
        return f"{type(self).__name__}({arguments})"


class Plain(Evaluation):
    """The model's own probabilities."""

    def begin(self, model: "LanguageModel") -> Scorer:
        state = None

        def score(inputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal state
            logits, state = model(inputs, state)
            return token_nll(logits, targets)

        return score


@dataclass(frozen=True)
class Totals:
    """How well a text is predicted on the whole."""

    level: str
    """"word" or "character": what a token is."""

    predictions: int
    """The number of tokens, line ends included."""

    words: int
    """The same, line ends at word level not counted."""

    unknown: int
    """How many tokens are `<unk>`."""

    total: float
    """-ln p of the whole text, in nats, rounded once."""

    @property
    def perplexity(self) -> float:
        """Per token: exp(total / number of tokens)."""
        try:
            return math.exp(self.total / self.predictions)
        except OverflowError:
            return math.inf

    @property
    def bits_per_token(self) -> float:
        """total / number of tokens / ln 2: bits per character where tokens are characters."""
        return self.total / self.predictions / math.log(2)

    @property
    def unk_rate(self) -> float:
        """The share of `<unk>` among the words, line ends not counted."""
        return self.unknown / self.words if self.words else 0.0

    def __str__(self) -> str:
        if self.level == "character":
            return f"{self.bits_per_token:.3f} bits per character over {self.predictions:,} characters"
        return (
            f"perplexity per word {self.perplexity:.1f} over {self.predictions:,} tokens "
            f"({self.total:,.1f} nats; {self.unk_rate:.1%} of the words are {UNK})"
        )


@dataclass(frozen=True)
class Score(Totals):
    """Surprisals of a text under a model."""

    tokens: list[str]
    """The tokens as the model reads them; a line break is `<eos>` at word level."""

    nats: list[float]
    """-ln p of each token given all before it."""

    @property
    def bits(self) -> list[float]:
        """-log2 p of each token given all before it."""
        return [nats / math.log(2) for nats in self.nats]


class Surprisal(NamedTuple):
    """A token, and how well it was predicted."""

    token: str
    nats: float
    """-ln p of the token given all before it."""

    line: int
    """From 1; a line's end belongs to the line."""

    position: int
    """Of the token in its line, from 1."""

    @property
    def bits(self) -> float:
        """-log2 p of the token given all before it."""
        return self.nats / math.log(2)


class Line(NamedTuple):
    """A line of a text, and how well it was predicted."""

    line: int
    """From 1."""

    nats: float
    """-ln p of the line and its end given all before it."""

    tokens: int

    @property
    def bits(self) -> float:
        """-log2 p of the line and its end given all before it."""
        return self.nats / math.log(2)


class Sentence(NamedTuple):
    """A line by itself."""

    text: str
    log_probability: float
    """ln p of the line and its end, in nats, not above 0; ARPA tools give log10 p, which is this / ln 10."""

    tokens: int
    """The number of tokens, the line's end included."""

    unknown: int
    """How many of them are `<unk>`."""


class Stream:
    """The surprisals of a text that comes in blocks: to be iterated over once, in memory that does not grow with the text.

    The blocks may be cut anywhere. Tokens and nats are, to the last bit, those of `score` on the whole text, which is read
    as there: the first token as if a line had just ended, a last line without a line break given one at word level. Where a
    character vocabulary has neither a line break nor `<unk>`, the break that ends the text is left out. `UserError` for a
    text without a character, on the first step.

    `evaluation` is the model's own unless given; what its `check` wants of a text's length is not looked at, since the
    length is not known before the end.
    """

    def __init__(self, model: "LanguageModel", blocks: Iterable[str], evaluation: Evaluation | None = None) -> None:
        self.tokenizer = tokenizer_of(model)
        self._windows = _surprisals(model, _encoded(self.tokenizer, blocks), evaluation or model.evaluation)
        self._predictions = self._words = self._unknown = 0
        self._sum = _ExactSum()

    @property
    def totals(self) -> Totals:
        """Of the windows read so far, at the end of the whole text."""
        return Totals(self.tokenizer.level, self._predictions, self._words, self._unknown, self._sum.value)

    def windows(self) -> Iterator[tuple[list[str], list[float]]]:
        """The tokens and -ln p of each, a window at a time."""
        for ids, nats in self._windows:
            tokens = self.tokenizer.tokens(ids)
            self._predictions += len(tokens)
            self._words += len(tokens) - tokens.count(EOS)
            self._unknown += tokens.count(UNK)
            self._sum.add(nats)
            yield tokens, nats

    def __iter__(self) -> Iterator[Surprisal]:
        line, position = 1, 0
        for tokens, window in self.windows():
            for token, nats in zip(tokens, window, strict=True):
                position += 1
                yield Surprisal(token, nats, line, position)
                if token == self.tokenizer.end_of_line:
                    line, position = line + 1, 0

    def lines(self) -> Iterator[Line]:
        """The surprisals summed by line."""
        line, total, tokens = 1, 0.0, 0
        for token in self:
            if token.line != line:
                yield Line(line, total, tokens)
                line, total, tokens = token.line, 0.0, 0
            total, tokens = total + token.nats, token.position
        yield Line(line, total, tokens)


class Comparison:
    """Two models on the same text, which comes in blocks as for `Stream`: to be read once, by `tokens` or by `lines`."""

    def __init__(
        self,
        model: "LanguageModel",
        other: "LanguageModel",
        blocks: Iterable[str],
        evaluation: Evaluation | None = None,
    ) -> None:
        first, second = tee(blocks)
        self.streams = Stream(model, first, evaluation), Stream(other, second, evaluation)
        mine, others = (stream.tokenizer for stream in self.streams)
        self.same_tokens = mine.fingerprint == others.fingerprint
        """Whether both cut a text into the same tokens."""
        self._types: defaultdict[str, float] = defaultdict(float)

    @property
    def totals(self) -> tuple[Totals, Totals]:
        """Of what was read so far, at the end of the whole text."""
        return self.streams[0].totals, self.streams[1].totals

    @property
    def difference(self) -> float:
        """The first model's total less the other's, in bits: below 0 where the first predicts the text better."""
        mine, other = self.totals
        return (mine.total - other.total) / math.log(2)

    def tokens(self) -> Iterator[tuple[Surprisal, Surprisal]]:
        """Each token under both models; `UserError` where they do not read the same tokens."""
        if not self.same_tokens:
            raise UserError("the two models cut a text into different tokens: compare them by lines")
        for mine, other in zip(*self.streams, strict=True):
            self._types[mine.token] += mine.bits - other.bits
            yield mine, other

    def lines(self) -> Iterator[tuple[Line, Line]]:
        """Each line under both models, whatever tokens they read."""
        for mine, other in zip_longest(*(stream.lines() for stream in self.streams)):
            if mine is None or other is None:
                raise UserError(
                    f"the two models see different numbers of lines: the text holds {EOS} as a word, or one of the "
                    "vocabularies has no line break"
                )
            yield mine, other

    def easier(self, count: int = 20) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """The types with the largest differences summed over the tokens read, in bits, all above 0.

        First those that the first model finds easier, then those that the other does; at most `count` each.
        """
        ordered = sorted(self._types.items(), key=lambda pair: (pair[1], pair[0]))
        mine = [(token, -bits) for token, bits in ordered[:count] if bits < 0]
        return mine, [(token, bits) for token, bits in ordered[: -count - 1 : -1] if bits > 0]


class _ExactSum:
    """A sum that is rounded once, as by `math.fsum`, of numbers that come by and by."""

    def __init__(self) -> None:
        self._parts: list[float] = []

    def add(self, values: list[float]) -> None:
        rest, self._parts = [*self._parts, *values], []
        while part := math.fsum(rest):
            self._parts.append(part)
            if not math.isfinite(part):
                return
            rest.append(-part)

    @property
    def value(self) -> float:
        return math.fsum(self._parts)


def visible(token: str) -> str:
    """The token as it can stand in a line of a table: blanks and line breaks quoted."""
    return token if token.strip() else repr(token)


def tokenizer_of(model: "LanguageModel") -> Tokenizer:
    """The model's vocabulary; `UserError` where it has none."""
    if model.tokenizer is None:
        raise UserError(
            f"this {type(model).__name__} has no tokenizer: load a trained model (zoo.load) or set model.tokenizer"
        )
    return model.tokenizer


def score(model: "LanguageModel", text: str, evaluation: Evaluation) -> Score:
    """Scores every token of `text` from a zero state, the first one as if a line had just ended.

    At word level a last line without a line break is given one, so that a sentence's end is scored with it. Where a
    character vocabulary has neither a line break nor `<unk>`, the break that ends the text is left out. `UserError` for a
    text without a character.
    """
    check_type("text", text, str)
    check_type("evaluation", evaluation, Evaluation)
    tokenizer = tokenizer_of(model)
    evaluation.check(sum(map(len, _encoded(tokenizer, [text]))))
    stream = Stream(model, [text], evaluation)
    tokens: list[str] = []
    nats: list[float] = []
    for window in stream.windows():
        tokens += window[0]
        nats += window[1]
    return Score(**vars(stream.totals), tokens=tokens, nats=nats)


def lines_of(blocks: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in blocks, without their breaks; the last one may lack it."""
    held: list[str] = []
    for block in blocks:
        *whole, rest = block.split("\n")
        for line in whole:
            yield "".join([*held, line])
            held.clear()
        held.append(rest)
    if rest := "".join(held):
        yield rest


def score_sentences(model: "LanguageModel", sentences: Iterable[str]) -> Iterator[Sentence]:
    """The log-probability of each line by itself, from a zero state, as if a line had just ended; many at a time.

    By the model's own probabilities, with the line's end where the vocabulary has one. They come in the order of the lines,
    which are read a thousand at a time. A line may bring its line break along; `UserError` for one within it.
    """
    if isinstance(sentences, str):
        raise UserError("sentences is one text; give a list of them, or what else gives one at a time")
    tokenizer = tokenizer_of(model)
    remaining, read = iter(sentences), 0
    while chunk := list(islice(remaining, _SENTENCES)):
        for sentence in chunk:
            check_type("sentence", sentence, str)
        texts = [sentence.removesuffix("\n") for sentence in chunk]
        encoded = []
        for number, text in enumerate(texts, start=read + 1):
            if "\n" in text:
                raise UserError(f"sentence {number} holds a line break: give one line a sentence")
            with _placed(f"in sentence {number}"):
                encoded.append(tokenizer.encode(text))
        for text, ids, total in zip(texts, encoded, _totals(model, encoded), strict=True):
            ends = tokenizer.end_of_line_id is not None
            unknown = 0 if tokenizer.unk_id is None else int((ids == tokenizer.unk_id).sum())
            yield Sentence(text, -total, len(ids) + ends, unknown)
        read += len(chunk)


def _totals(model: "LanguageModel", sentences: Sequence[Ids]) -> list[float]:
    """-ln p of each, its end included where the vocabulary has one; sentences of like length go together."""
    end = tokenizer_of(model).end_of_line_id
    before, after = [first_context(model)], [] if end is None else [end]
    lines = [np.concatenate([before, ids, after]).astype(np.int64) for ids in sentences]
    order = sorted(range(len(lines)), key=lambda index: len(lines[index]))
    totals = [0.0] * len(lines)
    while order:
        longest = len(lines[order[-1]]) - 1
        if not longest:  # no line end, and nothing before it
            break
        size = max(_BATCH // longest, 1)
        batch, order = order[-size:], order[:-size]
        padded = np.zeros((longest + 1, len(batch)), dtype=np.int64)
        for column, index in enumerate(batch):
            padded[: len(lines[index]), column] = lines[index]
        columns = _columns(model, torch.from_numpy(padded).to(model.device))
        for index, nats in zip(batch, columns, strict=True):
            totals[index] = math.fsum(nats[: len(lines[index]) - 1])
    return totals


@torch.inference_mode()
def _columns(model: "LanguageModel", tokens: Tensor) -> list[list[float]]:
    """-ln p of tokens (T + 1, B) from the second row on: B lists of T."""
    with evaluating(model):
        scorer = Plain().begin(model)
        starts = range(0, len(tokens) - 1, WINDOW)
        windows = [tokens[start : start + WINDOW + 1] for start in starts]
        nats: list[list[float]] = torch.cat([scorer(w[:-1], w[1:]) for w in windows]).T.tolist()
    return nats


def _encoded(tokenizer: Tokenizer, blocks: Iterable[str]) -> Iterator[Ids]:
    """The ids of a text, the same wherever its blocks are cut; `UserError` where there is not a character."""
    words = tokenizer.level == "word"
    held: list[str] = []  # what the next block may go on with
    read, last = 0, ""

    def encode(text: str) -> Ids:
        with _placed(f"from character {read:,} on" if read else ""):
            return tokenizer.encode(text)

    for block in blocks:
        last = block[-1:] or last
        if words:
            end = max(block.rfind("\n"), block.rfind(" ")) + 1
        else:
            end = len(block) - (block.endswith("\n") and _lacks_line_breaks(tokenizer))
        if not end:
            held.append(block)
            continue
        text = "".join([*held, block[:end]])
        yield encode(text)
        read, held = read + len(text), [block[end:]]
    rest = "".join(held)
    if not words:
        rest = rest.removesuffix("\n")
    elif last not in ("", "\n"):
        rest += "\n"
    if not (read or rest):
        raise UserError("the text is empty: there is nothing to score")
    if rest:
        yield encode(rest)


def _lacks_line_breaks(tokenizer: Tokenizer) -> bool:
    return tokenizer.end_of_line_id is None and tokenizer.unk_id is None


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Says in what part of the text an error is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}, {place}" if place else str(error)) from error


@torch.inference_mode()
def _surprisals(
    model: "LanguageModel", blocks: Iterable[Ids], evaluation: Evaluation
) -> Iterator[tuple[Ids, list[float]]]:
    """The ids in windows that do not depend on the blocks, and -ln p of each, in evaluation mode."""
    with evaluating(model):
        scorer = evaluation.begin(model)
    for ids, inputs, targets in _steps(model, blocks):
        with evaluating(model):
            nats: list[float] = scorer(inputs, targets).squeeze(1).tolist()
        yield ids, nats


def windows_of(model: "LanguageModel", text: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A text as it is scored: the ids of each window (T, 1) and the ids that follow each; `UserError` for an empty one."""
    for _, inputs, targets in _steps(model, _encoded(tokenizer_of(model), [text])):
        yield inputs, targets


def _steps(model: "LanguageModel", blocks: Iterable[Ids]) -> Iterator[tuple[Ids, Tensor, Tensor]]:
    """The ids in windows, the tokens before them (T, 1) and they themselves (T, 1)."""
    before = np.array([first_context(model)])
    for ids in _windows(blocks):
        window = torch.from_numpy(np.concatenate([before, ids]).astype(np.int64)).to(model.device).unsqueeze(1)
        yield ids, window[:-1], window[1:]
        before = ids[-1:]


def _windows(blocks: Iterable[Ids]) -> Iterator[Ids]:
    """The ids in arrays of `WINDOW`, the last one shorter."""
    rest: list[Ids] = []
    length = 0
    for block in blocks:
        rest.append(block)
        length += len(block)
        if length >= WINDOW:
            ids = np.concatenate(rest)
            whole = length - length % WINDOW
            for start, stop in pairwise(range(0, whole + 1, WINDOW)):
                yield ids[start:stop]
            rest, length = [ids[whole:]], length - whole
    if length:
        yield np.concatenate(rest)


def first_context(model: "LanguageModel") -> int:
    """What stands before a text: the end of a line, or token 0 where the vocabulary has none."""
    end = tokenizer_of(model).end_of_line_id
    return 0 if end is None else end
