"""The temperature of the softmax."""

from torch import Tensor

from zoo.arguments import check_positive
from zoo.metrics import token_nll
from zoo.score import Evaluation, Scorer
from zoo.tasks import LanguageModel


class Temperature(Evaluation):
    """Divides the logits by a constant, to be tuned on the validation text; above 1 the probabilities become more even.

        p = softmax(logits / temperature)

    As in Melis, Kocisky and Blunsom 2020, "Mogrifier LSTM", arXiv 1909.01792.
    """

    def __init__(self, temperature: float) -> None:
        check_positive(temperature=temperature)
        self.temperature = temperature

    def begin(self, model: LanguageModel) -> Scorer:
        state = None

        def score(inputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal state
            logits, state = model(inputs, state)
            return token_nll(logits / self.temperature, targets)

        return score
