"""Several models that predict together."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo import hub
from zoo.arguments import check_type
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.score import Evaluation, Plain, Scorer
from zoo.tasks import LanguageModel


class Ensemble(Evaluation):
    """The mean of the probabilities of the tested model and of others on the same vocabulary, of whatever architecture.

        p = (1 / n) sum over the n models of p_k

    `members` are names, folders or Hub repositories (`zoo.load`), the tested model not among them; `of` takes models. They
    are loaded when the first text begins and move to the tested model's device. As in Zaremba, Sutskever and Vinyals 2014,
    arXiv 1409.2329, table 1 ("model averaging").
    """

    def __init__(self, members: list[str]) -> None:
        check_type("members", members, list)
        self.members = members
        self._models: dict[str, LanguageModel] | None = None

    @classmethod
    def of(cls, models: Sequence[LanguageModel]) -> "Ensemble":
        """An ensemble of the tested model and these."""
        ensemble = cls([f"member {index + 1} ({type(model).__name__})" for index, model in enumerate(models)])
        ensemble._models = dict(zip(ensemble.members, models, strict=True))
        return ensemble

    def begin(self, model: LanguageModel) -> Scorer:
        with torch.inference_mode(False):  # weights made or moved within it could never be trained
            if self._models is None:
                self._models = {name: _load(name) for name in self.members}
            for member in self._models.values():
                member.to(model.device)
        for name, member in self._models.items():
            _check(name, member, model)
        return mean_of([Plain().begin(model), *map(_in_evaluation, self._models.values())])


def mean_of(scorers: list[Scorer]) -> Scorer:
    """Scores by the mean of the scorers' probabilities, in logarithms."""

    def score(inputs: Tensor, targets: Tensor) -> Tensor:
        log_p = torch.stack([-scorer(inputs, targets) for scorer in scorers])
        return math.log(len(scorers)) - log_p.logsumexp(0)

    return score


def _load(name: str) -> LanguageModel:
    model = hub.load(name)
    if not isinstance(model, LanguageModel):
        raise UserError(f"{name} is a {type(model).__name__}; an ensemble takes language models")
    return model


def _check(name: str, member: LanguageModel, model: LanguageModel) -> None:
    """Raises `UserError` where the two do not number the same tokens alike, or are the same."""
    if member.tokenizer is not None and model.tokenizer is not None:
        same = member.tokenizer.fingerprint == model.tokenizer.fingerprint
    else:
        same = member.vocab_size == model.vocab_size
    if not same:
        raise UserError(
            f"{name} has another vocabulary ({_described(member)}) than the tested {type(model).__name__} "
            f"({_described(model)}): an ensemble takes models that were trained with one tokenizer.json"
        )
    mine, others = model.state_dict(), member.state_dict()
    if mine.keys() == others.keys() and all(torch.equal(mine[key], others[key]) for key in mine):
        raise UserError(f"{name} is the tested model itself, which counts already: leave it out")


def _described(model: LanguageModel) -> str:
    if model.tokenizer is None:
        return f"{model.vocab_size:,} types"
    return f"{model.vocab_size:,} types at {model.tokenizer.level} level, sha256 {model.tokenizer.fingerprint[:8]}"


def _in_evaluation(model: LanguageModel) -> Scorer:
    """The model's own probabilities, without noise, whatever mode it is in."""
    scorer = Plain().begin(model)

    def score(inputs: Tensor, targets: Tensor) -> Tensor:
        with evaluating(model):
            return scorer(inputs, targets)

    return score
