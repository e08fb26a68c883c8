"""Recurrent Batch Normalization.

Cooijmans, Ballas, Laurent, Gülçehre and Courville 2017, https://arxiv.org/abs/1603.09025; the authors' code:
https://github.com/cooijmanstim/recurrent-batch-normalization. The layer is `zoo.layers.BatchNormLSTM`.
"""

from typing import Any

from torch import Tensor

from zoo.batches import Labelled
from zoo.errors import UserError
from zoo.layers import BatchNormLSTM, StateNoise
from zoo.models.recurrent import OneHotLanguageModel, RecurrentClassifier
from zoo.optim import RMSProp, StepAdam


def _check_steps(layer: Any, steps: int) -> None:
    """Raises `UserError` for a training sequence that goes on where its steps have no statistics."""
    if steps > layer.max_steps:
        raise UserError(
            f"a training sequence has {steps} steps and max_steps is {layer.max_steps}: set max_steps to {steps}, so that "
            "each has statistics of its own"
        )


class RecurrentBatchNormLanguageModel(OneHotLanguageModel):
    """One batch-normalised LSTM on one-hot characters (sections 5.2 and 5.3).

    Each of the first `max_steps` steps has statistics of its own, which every update moves by `momentum` towards its
    batch's; steps beyond take those of the last. The gains start at `gain`, all matrices orthogonal. The gradient's norm is
    clipped to `max_norm`. It trains on pieces (`batching: pieces`), since the statistics belong to the steps from a text's
    beginning on.
    """

    def __init__(
        self,
        vocab_size: int = 50,
        hidden_size: int = 1000,
        max_steps: int = 99,
        gain: float = 0.1,
        momentum: float = 0.05,
        state_noise: StateNoise = None,
        learning_rate: float = 2e-3,
        max_norm: float = 1.0,
    ) -> None:
        layer = BatchNormLSTM(
            vocab_size,
            hidden_size,
            max_steps=max_steps,
            gain=gain,
            momentum=momentum,
            state_noise=state_noise,
            initial_state="learned",
        )
        super().__init__(vocab_size, layer, StepAdam(learning_rate, weight_decay=0.0), max_norm=max_norm)

    def encode(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The state holds, beside the layer's, how many steps of the text went before; in training none goes before."""
        if self.layer.training and state is not None:
            raise UserError(
                "batching is 'stream'; batch norm's statistics belong to the steps from a text's beginning on: set "
                "batching to 'pieces'"
            )
        if self.layer.training:
            _check_steps(self.layer, len(tokens))
        layers, step = (None, 0) if state is None else state
        hidden, layers = self.layer(self.vectors(tokens), layers, first_step=step)
        return hidden, (layers, step + len(tokens))


class RecurrentBatchNormClassifier(RecurrentClassifier):
    """One batch-normalised LSTM on the pixels of an image, one a step (section 5.1).

    Each step has statistics of its own, which every update moves by `momentum` towards its batch's. The gains start at
    `gain`; with `identity` the candidate's hidden-to-hidden matrix at the identity, as in the authors' code (the paper says
    so of the whole matrix). `initial_noise` is on h(0): images whose first pixels are all black have no variance there.
    RMSProp with the mean of squares decaying by `decay`; the gradient's norm is clipped to `max_norm`.
    """

    def __init__(
        self,
        input_size: int = 1,
        num_classes: int = 10,
        hidden_size: int = 100,
        max_steps: int = 784,
        gain: float = 0.1,
        momentum: float = 0.01,
        state_noise: StateNoise = None,
        identity: bool = True,
        initial_noise: float = 0.0,
        learning_rate: float = 1e-3,
        decay: float = 0.5,
        max_norm: float = 1.0,
    ) -> None:
        super().__init__(
            BatchNormLSTM(
                input_size,
                hidden_size,
                max_steps=max_steps,
                gain=gain,
                momentum=momentum,
                state_noise=state_noise,
                initial_state="learned",
            ),
            num_classes,
            RMSProp(learning_rate, decay),
            identity=identity,
            initial_noise=initial_noise,
            max_norm=max_norm,
        )

    def training_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        _check_steps(self.layer, len(batch[0]))
        return super().training_step(batch, batch_idx)
