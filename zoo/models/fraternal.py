"""Fraternal Dropout.

Zolna, Arpit, Suhubdy and Bengio 2018, https://arxiv.org/abs/1711.00066; the authors' code:
https://github.com/kondiz/fraternal-dropout
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from zoo.arguments import check_choice, check_not_negative
from zoo.batches import Window
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.tasks import LanguageModel
from zoo.tasks.language import Outputs, State

Variant = Literal["fraternal", "pi", "expectation_linear"]


class FraternalLanguageModel(LanguageModel):
    """Any language model, trained to predict alike under two draws of its dropout.

        L = (L_1 + L_2) / 2 + kappa * mean of (logits_1 - logits_2)**2        over steps, batch and vocabulary

    Both passes start from the same state; that of the first is carried on (equations 1 to 3). `variant`:

    - "fraternal": both passes with masks of their own, both losses.
    - "pi": the Pi-model; the second pass with masks of its own, the loss of the first alone (section 5).
    - "expectation_linear": the second pass without dropout, the loss of the first alone (section 3); the gradient flows
      through both passes (in the authors' code, too, but not into the embedding of the second).

    Loss, optimiser, clip and penalties are those of the `model`; of the penalties each pass has its own. In training the
    carried state is zeroed before a window with probability `forget`. The second pass doubles the time of an update; with
    `kappa` 0 the last two variants have none. Of a mixture of softmaxes the log-probabilities stand for the logits. The
    term of kappa is a mean even where the model's loss is a sum over the steps.
    """

    def __init__(
        self,
        model: LanguageModel,
        kappa: float = 0.15,
        variant: Variant = "fraternal",
        forget: float = 0.0,
    ) -> None:
        super().__init__(model.vocab_size)
        check_not_negative(kappa=kappa)
        if not 0 <= forget <= 1:
            raise UserError(f"forget is {forget}; a probability lies in [0, 1]")
        check_choice("variant", variant, get_args(Variant))
        self.model, self.kappa, self.variant, self.forget = model, kappa, variant, forget
        self.optimization, self.max_norm = model.optimization, model.max_norm
        self.bptt, self.sums_steps = model.bptt, model.sums_steps

    @classmethod
    def resized(cls, arguments: dict[str, Any], vocab_size: int) -> dict[str, Any]:
        return arguments  # the vocabulary is the model's within

    @property
    def unwrapped(self) -> LanguageModel:
        return self.model.unwrapped

    def encode(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        return self.model.encode(tokens, state)

    def run(self, tokens: Tensor, state: State = None) -> Outputs:
        return self.model.run(tokens, state)

    def loss(self, window: Window, state: State) -> tuple[Tensor, Tensor, State]:
        inputs, targets = window
        if self.forget and torch.rand(()) < self.forget:
            state = None
        first = self.run(inputs, state)
        loss, nll = self.model.loss_of(first, targets)
        if not self.kappa and self.variant != "fraternal":
            return loss, nll, first.state
        second = self._second(inputs, state)
        if self.variant == "fraternal":
            other, _ = self.model.loss_of(second, targets)
            loss = (loss + other) / 2
        return loss + self.kappa * (first.logits - second.logits).square().mean(), nll, first.state

    def _second(self, inputs: Tensor, state: State) -> Outputs:
        if self.variant != "expectation_linear":
            return self.run(inputs, state)
        with evaluating(self.model):
            return self.run(inputs, state)
