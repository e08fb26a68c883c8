"""Exact metrics: what every prediction gives is summed in float64 and divided once."""

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score


def at_least_float32(logits: Tensor) -> Tensor:
    """The logits as they are or, of a half precision, in float32: autocast on a CPU takes logarithms in what it is given."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) in nats, of the shape of the targets: logits (..., V), targets (...)."""
    return cross_entropy(at_least_float32(logits).flatten(0, -2), targets.flatten(), reduction="none").view(
        targets.shape
    )


class ExactMean(Metric):
    """A function of the mean of all values seen, over all processes; the sum is in float64.

    torchmetrics' own Perplexity keeps float32 sums and takes the logarithm of a softmax, and so is off in the fifth digit
    over a test set and infinite at unlikely tokens.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Takes one value a prediction, in any shape: for language models -ln p, in nats."""
        self.total += values.detach().sum(dtype=torch.float64)
        self.count += values.numel()

    def compute(self) -> Tensor:
        """The metric over all predictions; NaN before the first one."""
        return self.of(self.total / self.count)

    def result(self) -> tuple[float, int]:
        """The metric and the number of predictions it is of, over all processes."""
        with self.sync_context():
            return float(self.of(self.total / self.count)), int(self.count)

    @staticmethod
    @abstractmethod
    def of(mean: Tensor) -> Tensor:
        """The metric for a mean."""


class Perplexity(ExactMean):
    """exp(mean negative log-likelihood), per token."""

    name = "perplexity"
    unit = "perplexity per word"

    @staticmethod
    def of(mean: Tensor) -> Tensor:
        return mean.exp()


class BitsPerCharacter(ExactMean):
    """Mean negative log-likelihood / ln 2, where tokens are characters."""

    name = "bits_per_character"
    unit = "bits per character"

    @staticmethod
    def of(mean: Tensor) -> Tensor:
        return mean / math.log(2)


class Accuracy(ExactMean):
    """The share of examples whose likeliest class is theirs, in per cent; its values are 1 and 0."""

    name = "accuracy"
    unit = "accuracy in %"
    higher_is_better = True

    @staticmethod
    def of(mean: Tensor) -> Tensor:
        return 100 * mean


class ExactMatch(Accuracy):
    """The share of sequences that are right in every symbol, in per cent; its values are 1 and 0."""

    name = "exact_match"
    unit = "exact match in %"


class MacroF1(MulticlassF1Score):
    """The mean over the classes of each one's F1, in per cent: logits or classes (B, ...), labels (B,)."""

    name = "macro_f1"

    def compute(self) -> Tensor:
        return 100 * super().compute()


METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Perplexity, BitsPerCharacter, Accuracy, ExactMatch, MacroF1)
}
"""By the name that logs and curves have."""


def metric_of(level: str) -> type[ExactMean]:
    """The field's metric for a tokenizer level: perplexity of words, bits per character."""
    return {"word": Perplexity, "character": BitsPerCharacter}[level]
