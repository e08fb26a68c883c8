"""How well a language model predicts a text, token by token."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.metrics import token_nll
from zoo.tokenizer import EOS, UNK, Tokenizer

if TYPE_CHECKING:
    from zoo.tasks.language import LanguageModel

_WINDOW = 200

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
class Score:
    """Surprisals of a text under a model."""

    tokens: list[str]
    """The tokens as the model reads them; a line break is `<eos>` at word level."""

    nats: list[float]
    """-ln p of each token given all before it."""

    level: str
    """"word" or "character": what a token is."""

    @property
    def total(self) -> float:
        """-ln p of the whole text, in nats."""
        return math.fsum(self.nats)

    @property
    def bits(self) -> list[float]:
        """-log2 p of each token given all before it."""
        return [nats / math.log(2) for nats in self.nats]

    @property
    def perplexity(self) -> float:
        """Per token: exp(total / number of tokens)."""
        return math.exp(self.total / len(self.tokens))

    @property
    def bits_per_token(self) -> float:
        """total / number of tokens / ln 2: bits per character where tokens are characters."""
        return self.total / len(self.tokens) / math.log(2)

    @property
    def unk_rate(self) -> float:
        """The share of `<unk>` among the words, line ends not counted."""
        words = len(self.tokens) - self.tokens.count(EOS)
        return self.tokens.count(UNK) / words if words else 0.0

    def __str__(self) -> str:
        if self.level == "character":
            return f"{self.bits_per_token:.3f} bits per character over {len(self.tokens):,} characters"
        return (
            f"perplexity per word {self.perplexity:.1f} over {len(self.tokens):,} tokens "
            f"({self.total:,.1f} nats; {self.unk_rate:.1%} of the words are {UNK})"
        )


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

    At word level a last line without a line break is given one, so that a sentence's end is scored with it.
    """
    tokenizer = tokenizer_of(model)
    if tokenizer.level == "word" and not text.endswith("\n"):
        text += "\n"
    ids = tokenizer.encode(text)
    if not len(ids):
        raise UserError("the text is empty: there is nothing to score")
    evaluation.check(len(ids))
    nats = [nll for window in surprisals(model, ids.tolist(), evaluation) for nll in window]
    return Score(tokenizer.tokens(ids), nats, tokenizer.level)


@torch.inference_mode()
def surprisals(model: "LanguageModel", ids: list[int], evaluation: Evaluation) -> Iterator[list[float]]:
    """-ln p of each id, a window at a time, in evaluation mode."""
    training, device = model.training, model.device
    previous = first_context(model)
    try:
        model.eval()
        scorer = evaluation.begin(model)
        for start in range(0, len(ids), _WINDOW):
            window = torch.tensor([previous, *ids[start : start + _WINDOW]], device=device).unsqueeze(1)
            yield scorer(window[:-1], window[1:]).squeeze(1).tolist()
            previous = ids[start + len(window) - 2]
    finally:
        model.train(training)


def first_context(model: "LanguageModel") -> int:
    """What stands before a text: the end of a line, or token 0 where the vocabulary has none."""
    end = tokenizer_of(model).end_of_line_id
    return 0 if end is None else end
