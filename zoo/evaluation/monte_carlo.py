"""Monte-Carlo dropout: the layers' noise of training stays on, and the probabilities of many passes are averaged."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoo.arguments import check_counts
from zoo.evaluating import modes_kept, seeded
from zoo.evaluation.ensemble import mean_of
from zoo.regularisers.embedding import EmbeddingRegulariser
from zoo.score import Evaluation, Plain, Scorer
from zoo.tasks import LanguageModel


class MonteCarlo(Evaluation):
    """The mean of the probabilities of `samples` passes with the regularisers' noise on, but for that of the embedding.

        p = (1 / samples) sum over the passes of p(w | masks of the pass)

    Each pass carries a state of its own and draws its masks anew in every window, those that the batch shares too. What
    keeps statistics in buffers, such as batch normalisation, stays in evaluation mode and so as it was. Gal and Ghahramani
    2016, "A theoretically grounded application of dropout in recurrent neural networks", arXiv 1512.05287, section 4; the
    paper averages 1,000 passes, and its code, which drops no words then either, draws the masks once for the whole text.

    `seed` makes the masks repeatable and leaves torch's global generators as they were; without it they come from those.
    """

    def __init__(self, samples: int = 10, seed: int | None = None) -> None:
        check_counts(samples=samples)
        self.samples, self.seed = samples, seed

    def begin(self, model: LanguageModel) -> Scorer:
        scorer = mean_of([Plain().begin(model) for _ in range(self.samples)])
        seeds = None if self.seed is None else torch.Generator().manual_seed(self.seed)

        @torch.no_grad()
        def score(inputs: Tensor, targets: Tensor) -> Tensor:
            with _noisy(model):
                if seeds is None:
                    return scorer(inputs, targets)
                with seeded(int(torch.empty((), dtype=torch.int64).random_(generator=seeds)), model.device):
                    return scorer(inputs, targets)

        return score


@contextmanager
def _noisy(model: nn.Module) -> Iterator[None]:
    """Training mode for all modules but the embedding's noise and those with buffers, which training would change."""
    with modes_kept(model):
        for module in model.modules():
            has_buffers = next(module.buffers(recurse=False), None) is not None
            module.training = not has_buffers and not isinstance(module, EmbeddingRegulariser)
        yield
