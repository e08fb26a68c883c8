"""Exact metrics of language models: negative log-likelihood summed in float64 over every token, divided once."""

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in nats, of the shape of the targets: logits (..., V), targets (...)."""
    return cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none").view(targets.shape)


class TokenMetric(Metric):
    """A function of the mean negative log-likelihood of all tokens seen, over all processes.

    torchmetrics' own Perplexity keeps float32 sums and takes the logarithm of a softmax, and so is off in the fifth digit
    over a test set and infinite at unlikely tokens.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    full_state_update = False
    nll: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor) -> None:
        """Takes negative log-likelihoods in nats, one a token, in any shape."""
        self.nll += nll.detach().sum(dtype=torch.float64)
        self.tokens += nll.numel()

    def compute(self) -> Tensor:
        """The value over all tokens; NaN before the first one."""
        return self.of(self.nll / self.tokens)

    def result(self) -> tuple[float, int]:
        """The value and the number of tokens it is of, over all processes."""
        with self.sync_context():
            return float(self.of(self.nll / self.tokens)), int(self.tokens)

    @staticmethod
    @abstractmethod
    def of(mean: Tensor) -> Tensor:
        """The value for a mean negative log-likelihood in nats."""


class Perplexity(TokenMetric):
    """exp(mean negative log-likelihood), per token."""

    name = "perplexity"
    unit = "perplexity per word"

    @staticmethod
    def of(mean: Tensor) -> Tensor:
        return mean.exp()


class BitsPerCharacter(TokenMetric):
    """Mean negative log-likelihood / ln 2, where tokens are characters."""

    name = "bits_per_character"
    unit = "bits per character"

    @staticmethod
    def of(mean: Tensor) -> Tensor:
        return mean / math.log(2)


def metric_of(level: str) -> type[TokenMetric]:
    """The field's metric for a tokenizer level: perplexity of words, bits per character."""
    return {"word": Perplexity, "character": BitsPerCharacter}[level]
