"""The continuous cache: words that came lately, in a context like the present one, are likely to come again."""

import math
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.arguments import check_counts, check_not_negative, check_type
from zoo.batches import FreshWindow
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.metrics import token_nll
from zoo.score import Evaluation, Scorer, windows_of
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
        if self.wait and self.window + 2 > predictions:
            raise UserError(
                f"window is {self.window:,}, and the text has {predictions:,} predictions, none of them with more than that "
                "before it: give a shorter window, or a longer text"
            )

    def begin(self, model: LanguageModel) -> Scorer:
        read = _reader(model, self.window)

        def score(inputs: Tensor, targets: Tensor) -> Tensor:
            seen = read(inputs, targets)
            log_cache = _log_probability(seen, self.window, self.theta)
            return _mixed(seen, log_cache, torch.tensor(self.weight), self.window if self.wait else 0)

        return score


class TunedCache(NamedTuple):
    """A cache, and how well a text is predicted with it."""

    cache: Cache
    perplexity: float
    """Per token, over all tokens of the text."""


@torch.inference_mode()
def tune_cache(
    model: LanguageModel,
    text: str | Iterable[tuple[Tensor, Tensor]],
    windows: Sequence[int] = (100, 200, 500, 1000, 2000),
    thetas: Sequence[float] = (0.1, 0.15, 0.2, 0.3, 0.45, 0.65, 1.0),
    weights: Sequence[float] = (0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4),
) -> list[TunedCache]:
    """Caches of all these constants on a text, the best first: the model reads it once for all of them.

    `text` is the validation text, or its windows as a data module gives them: ids (T, B) and the ids that follow each. Where
    one starts afresh (`zoo.batches.FreshWindow`), so do state and caches.
    """
    check_type("text", text, str, Iterable)
    for name, values in {"windows": windows, "thetas": thetas, "weights": weights}.items():
        check_type(name, values, Sized)
        if not len(values):
            raise UserError(f"{name} is empty; give the values to try")
    caches = {(w, t): [Cache(w, t, weight) for weight in weights] for w, t in product(windows, thetas)}
    totals = dict.fromkeys(caches, torch.zeros(len(weights), dtype=torch.float64))
    predictions = 0
    read = _reader(model, max(windows))
    with evaluating(model):
        for window_of_text in windows_of(model, text) if isinstance(text, str) else text:
            if isinstance(window_of_text, FreshWindow):
                read = _reader(model, max(windows))
            inputs, targets = window_of_text
            seen = read(inputs.to(model.device), targets.to(model.device))
            predictions += targets.numel()
            every = torch.tensor(weights, device=model.device).view(-1, 1, 1)
            for window, theta in totals:
                nll = _mixed(seen, _log_probability(seen, window, theta), every)
                totals[window, theta] = totals[window, theta] + nll.sum((1, 2), dtype=torch.float64).cpu()
    if not predictions:
        raise UserError("text has no windows; at least one is needed")
    tuned = [
        TunedCache(cache, math.exp(total / predictions))
        for point, total_of in totals.items()
        for cache, total in zip(caches[point], total_of.tolist(), strict=True)
    ]
    return sorted(tuned, key=lambda each: each.perplexity)


class _Seen(NamedTuple):
    """A window of T steps of B columns beside the S positions that a cache may hold, its own the last T of them."""

    nll: Tensor
    """The model's own -ln p of the targets, (T, B)."""
    similarity: Tensor
    """h(t) . h(i), (B, T, S)."""
    followers: Tensor
    """x(i + 1), (S, B)."""
    before: int
    """How many positions of the text came before the window."""


def _reader(model: LanguageModel, window: int) -> Callable[[Tensor, Tensor], _Seen]:
    """Reads a text window by window, and keeps what a cache of so many positions holds."""
    state = None
    contexts, followers = torch.empty(0), torch.empty(0)
    before = 0

    def read(inputs: Tensor, targets: Tensor) -> _Seen:
        nonlocal state, contexts, followers, before
        outputs = model.run(inputs, state)
        state = outputs.state
        hidden = outputs.hidden.float()
        contexts = torch.cat([contexts, hidden]) if before else hidden
        followers = torch.cat([followers, targets]) if before else targets
        similarity = hidden.transpose(0, 1) @ contexts.permute(1, 2, 0)
        seen = _Seen(token_nll(outputs.logits, targets), similarity, followers, before)
        contexts, followers = contexts[-window:], followers[-window:]
        before += len(inputs)
        return seen

    return read


def _log_probability(seen: _Seen, window: int, theta: float) -> Tensor:
    """ln p_cache of the targets, (T, B); NaN for an empty cache."""
    steps = len(seen.nll)
    reach = steps + window
    followers = seen.followers[-reach:].T.unsqueeze(1)
    similarity = theta * seen.similarity[..., -reach:]
    key = torch.arange(similarity.shape[-1], device=similarity.device)
    query = key[-steps:].unsqueeze(1)
    similarity.masked_fill_((key >= query) | (key < query - window), -torch.inf)
    right = similarity.masked_fill(followers != followers[..., -steps:].mT, -torch.inf)
    return (right.logsumexp(-1) - similarity.logsumexp(-1)).T


def _mixed(seen: _Seen, log_cache: Tensor, weight: Tensor, wait: int = 0) -> Tensor:
    """-ln p of the targets, (T, B), or (..., T, B) for weights (..., 1, 1); the model's own up to position `wait`."""
    mixed = torch.logaddexp(weight.log() + log_cache, (-weight).log1p() - seen.nll)
    position = seen.before + torch.arange(len(seen.nll), device=seen.nll.device).unsqueeze(1)
    return torch.where(position > wait, -mixed, seen.nll)
