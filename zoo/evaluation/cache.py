"""The continuous cache: words that came lately, in a context like the present one, are likely to come again."""

import math

import torch
from torch import Tensor

from zoo.arguments import check_counts, check_not_negative
from zoo.errors import UserError
from zoo.metrics import token_nll
from zoo.score import Evaluation, Scorer
from zoo.tasks import LanguageModel


class Cache(Evaluation):
    """Mixes the model's probabilities with those of a cache of the last `window` positions.

        p(w) = weight * p_cache(w) + (1 - weight) * p_model(w)
        p_cache(w) = sum over i of softmax_i(theta * h(t) . h(i)) [x(i+1) = w]        i = t - window .. t - 1

    h is the last layer's output before dropout. Grave, Joulin and Usunier 2017, "Improving neural language models with a
    continuous cache", arXiv 1612.04426, section 3; the constants are to be tuned on the validation text.

    The cache is used as soon as it holds a position. With `wait` only positions with more than `window` before them use it,
    as in AWD-LSTM's pointer.py (Merity, Keskar and Socher 2018, arXiv 1708.02182), which also leaves it out at the first
    position of each of its batches.

    Holds `window` vectors and tokens; a window of T steps takes O(T (window + T)).
    """

    def __init__(self, window: int = 500, theta: float = 1.0, weight: float = 0.1, wait: bool = False) -> None:
        check_counts(window=window)
        check_not_negative(theta=theta)
        if not 0 < weight < 1:
            raise UserError(f"weight is {weight}; it must lie between 0 and 1")
        self.window, self.theta, self.weight, self.wait = window, theta, weight, wait

    def check(self, predictions: int) -> None:
        if self.wait and self.window > predictions:
            raise UserError(
                f"window is {self.window:,}, and the text has {predictions:,} predictions: give a window of that many or "
                "fewer, or a longer text"
            )

    def begin(self, model: LanguageModel) -> Scorer:
        state = None
        contexts, followers = torch.empty(0), torch.empty(0)
        before = 0

        def score(inputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal state, contexts, followers, before
            outputs = model.run(inputs, state)
            state = outputs.state
            nll = token_nll(outputs.logits, targets)
            hidden = outputs.hidden.float()
            contexts = torch.cat([contexts, hidden]) if before else hidden
            followers = torch.cat([followers, targets]) if before else targets
            log_cache = self._log_probability(hidden, contexts, followers)
            mixed = torch.logaddexp(math.log(self.weight) + log_cache, math.log1p(-self.weight) - nll)
            position = torch.arange(before, before + len(inputs), device=nll.device).unsqueeze(1)
            contexts, followers = contexts[-self.window :], followers[-self.window :]
            before += len(inputs)
            return torch.where(position > (self.window if self.wait else 0), -mixed, nll)

        return score

    def _log_probability(self, hidden: Tensor, contexts: Tensor, followers: Tensor) -> Tensor:
        """ln p_cache of the latest followers, (T, B), from the contexts (up to window + T, B, D); NaN for an empty cache."""
        similarity = self.theta * hidden.transpose(0, 1) @ contexts.permute(1, 2, 0)
        key = torch.arange(len(contexts), device=hidden.device)
        query = key[-len(hidden) :].unsqueeze(1)
        similarity.masked_fill_((key >= query) | (key < query - self.window), -torch.inf)
        targets = followers[-len(hidden) :]
        other = followers.T.unsqueeze(1) != targets.T.unsqueeze(2)
        return (similarity.masked_fill(other, -torch.inf).logsumexp(-1) - similarity.logsumexp(-1)).T
