"""Dynamic evaluation: the weights follow the text that they predict."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.func import functional_call
from torch.linalg import vector_norm

from zoo.arguments import check_choice, check_counts, check_not_negative, check_positive
from zoo.batches import WINDOW, FreshWindow
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.metrics import token_nll
from zoo.score import Evaluation, Scorer
from zoo.tasks import LanguageModel

Statistics = Literal["gradient_rms", "none"]

_LEARNING_RATE = 5e-5

_COLUMNS = 100
"""Of the training text, as `prepare` reads it."""


class DynamicEvaluation(Evaluation):
    """Scores a segment of the text, then takes a step of gradient descent on it, and so on.

        p <- p + min(decay * D, 1) * (p0 - p) - learning_rate * g / (M + epsilon)
        M = sqrt(mean of g**2)        D = M / (mean over the parameters of mean(M))

    g is the gradient of the mean negative log-likelihood of the segment's tokens, cut off at the segment's start; p0 the
    trained weights; M, of each weight, comes from `prepare`: over the windows of the training text, 100 columns of `segment`
    steps, in evaluation mode. Krause, Kahembwe, Murray and Renals 2018, "Dynamic evaluation of neural sequence models",
    arXiv 1709.07432 (RMS with a global prior), with the constants of the authors' code for AWD-LSTM on Penn Treebank,
    https://github.com/benkrause/dynamic-evaluation. Learning rate and decay are to be tuned on the validation text, and
    scale with `segment`.

    With statistics "none" M + epsilon and D are 1: plain gradient descent. It wants a far greater learning rate than the
    5e-5 that the other has where none is given, and has to be given one.

    The model itself never changes: the adapted weights and two constants for each belong to the text's scorer. A text's
    last segment may be shorter, and so is the last of every 200 tokens, which are read at once, where `segment` does not
    divide 200.
    """

    def __init__(
        self,
        learning_rate: float | None = None,
        decay: float = 2e-3,
        epsilon: float = 2e-5,
        segment: int = 5,
        statistics: Statistics = "gradient_rms",
    ) -> None:
        check_choice("statistics", statistics, get_args(Statistics))
        if learning_rate is None:
            if statistics == "none":
                raise UserError("statistics is 'none', plain gradient descent: give a learning_rate too, such as 0.1")
            learning_rate = _LEARNING_RATE
        check_not_negative(learning_rate=learning_rate, decay=decay)
        check_positive(epsilon=epsilon)
        check_counts(segment=segment)
        if segment > WINDOW:
            raise UserError(f"segment is {segment}; a text is read {WINDOW} tokens at a time: give at most so many")
        self.learning_rate, self.decay, self.epsilon = learning_rate, decay, epsilon
        self.segment, self.statistics = segment, statistics
        self.training_windows = None if statistics == "none" else (_COLUMNS, segment)
        self._rms: dict[str, Tensor] | None = None
        self._prepared_on = torch.empty(0)

    def prepare(self, model: LanguageModel, windows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Takes the root mean square of each weight's gradient over the windows of the training text."""
        with evaluating(model), _gradients():
            pupil = _Pupil.of(model)
            squares = [torch.zeros_like(weight) for weight in pupil.weights]
            count, state = 0, None
            for window in windows:
                state = None if isinstance(window, FreshWindow) else state
                _, gradients, state = pupil.read(*window, state)
                torch._foreach_addcmul_(squares, gradients, gradients)
                count += 1
        if not count:
            raise UserError("windows is empty: dynamic evaluation takes statistics over the training text")
        rms = torch._foreach_sqrt(torch._foreach_div(squares, count))
        self._rms = dict(zip(pupil.names, rms, strict=True))
        self._prepared_on = pupil.fingerprint

    def begin(self, model: LanguageModel) -> Scorer:
        with _gradients():
            pupil = _Pupil.of(model)
            trained = [weight.detach() for weight in model.parameters()]
            decays, rates = self._constants(pupil)
        state = None

        def score(inputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal state
            surprisals = []
            with _gradients():
                for start in range(0, len(inputs), self.segment):
                    piece = slice(start, start + self.segment)
                    nll, gradients, state = pupil.read(inputs[piece], targets[piece], state)
                    surprisals.append(nll)
                    with torch.no_grad():
                        torch._foreach_lerp_(pupil.weights, trained, decays)
                        torch._foreach_addcmul_(pupil.weights, gradients, rates)
            return torch.cat(surprisals)

        return score

    def _constants(self, pupil: "_Pupil") -> tuple[list[Tensor], list[Tensor]]:
        """How far each weight falls back to its trained value at an update, and what its gradient is multiplied by."""
        if self.statistics == "none":
            one = torch.ones((), device=pupil.weights[0].device)
            count = len(pupil.weights)
            return [one * min(self.decay, 1.0)] * count, [one * -self.learning_rate] * count
        if self._rms is None:
            raise UserError(
                "dynamic evaluation needs statistics of the training text first: call its prepare(model, windows) with "
                f"zoo.datamodules.stream.Stream(data.ids('train'), {_COLUMNS}, {self.segment}), data being its "
                "data module, or give statistics='none' and a learning_rate"
            )
        shapes = {name: weight.shape for name, weight in zip(pupil.names, pupil.weights, strict=True)}
        same_shapes = {name: rms.shape for name, rms in self._rms.items()} == shapes
        if not same_shapes or not torch.allclose(self._prepared_on, pupil.fingerprint, rtol=1e-9, atol=1e-6):
            raise UserError(
                "dynamic evaluation was prepared on a model with other parameters than those of this "
                f"{type(pupil.model).__name__}: call prepare with this one"
            )
        rms = [self._rms[name].to(weight) for name, weight in zip(pupil.names, pupil.weights, strict=True)]
        mean = sum(float(value.mean()) for value in rms) / len(rms)
        decays = [(value * (self.decay / mean)).clamp_(max=1) for value in rms]
        return decays, [-self.learning_rate / (value + self.epsilon) for value in rms]


class _Pupil(NamedTuple):
    """A model and weights of its own to run it with."""

    model: LanguageModel
    names: list[str]
    weights: list[Tensor]

    @classmethod
    def of(cls, model: LanguageModel) -> "_Pupil":
        """The model with copies of its weights, a tied one once."""
        parameters = dict(model.named_parameters())
        weights = [weight.detach().clone().requires_grad_() for weight in parameters.values()]
        return cls(model, list(parameters), weights)

    @property
    def fingerprint(self) -> Tensor:
        """The sum of each weight and of its magnitudes, the same on every device but for rounding in float64."""
        sums = [(w.sum(dtype=torch.float64), vector_norm(w, 1, dtype=torch.float64)) for w in self.weights]
        return torch.tensor([(signed.item(), magnitudes.item()) for signed, magnitudes in sums], dtype=torch.float64)

    def read(self, inputs: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, tuple[Tensor, ...], Any]:
        """-ln p of the targets (T, B), the weights' gradients of the mean of it, and the state, all detached."""
        # Copies, as autograd takes no tensor that was made in inference mode.
        inputs, targets = inputs.to(self.model.device, copy=True), targets.to(self.model.device, copy=True)
        adapted = dict(zip(self.names, self.weights, strict=True))
        logits, state = functional_call(self.model, adapted, (inputs, state))
        nll = token_nll(logits, targets)
        gradients = torch.autograd.grad(nll.mean(), self.weights, materialize_grads=True)
        return nll.detach(), gradients, apply_to_collection(state, Tensor, Tensor.detach)


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients, within inference mode too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
