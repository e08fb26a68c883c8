"""The temperature of the softmax."""

import math

from torch import Tensor

from zoo.errors import UserError
from zoo.metrics import token_nll
from zoo.score import Evaluation, Scorer
from zoo.tasks import LanguageModel


class Temperature(Evaluation):
    """Divides the logits by a constant, to be tuned on the validation text; above 1 the probabilities become more even.

        p = softmax(logits / temperature)

    As in Melis, Kocisky and Blunsom 2020, "Mogrifier LSTM", arXiv 1909.01792.
    """

    def __init__(self, temperature: float) -> None:
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature is {temperature}; it must be positive and finite")
        self.temperature = temperature

    def begin(self, model: LanguageModel) -> Scorer:
        state = None

        def score(inputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal state
            logits, state = model(inputs, state)
            return token_nll(logits / self.temperature, targets)

        return score
