"""A Theoretically Grounded Application of Dropout in Recurrent Neural Networks.

Gal and Ghahramani 2016, https://arxiv.org/abs/1512.05287; the authors' code: https://github.com/yaringal/BayesianRNN
"""

import torch
from torch import Tensor

from zoo.functional import LSTMRun, LSTMState, Weights
from zoo.layers import LSTM, Call, Recurrent, StateNoise
from zoo.models.recurrent import RecurrentLanguageModel, stack
from zoo.noise import Noise
from zoo.optim import DecayedSGD
from zoo.regularisers import EmbeddingDropout, LockedDropout, StateDropout


class VariationalLSTM(RecurrentLanguageModel):
    """Zaremba's network with one dropout mask for all steps of a window, on every connection, the recurrent ones too.

    - `embedding_dropout` drops word types from each example (section 4.2), as `x` in the authors' code.
    - `state_dropout` drops units of h(t-1) (z_h, section 4), `h` in the code.
    - `input_dropout` drops units of every layer's input (z_x), `i` in the code, and `output_dropout` those before the
      softmax, `o`; all masks hold for a window and are drawn for each example.
    - `untied`: each gate has masks of its own for its input and for h(t-1). The paper's "untied weights"; it has nothing to
      do with the softmax, which is not tied to the embeddings here.

    Schedule, loss and clip are those of `Zaremba`; after each update all weights shrink by `weight_decay` of themselves, as
    in the code. Monte-Carlo dropout, which the paper reports beside this, is `zoo.evaluation.MonteCarlo`.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 1500,
        num_layers: int = 2,
        embedding_dropout: float = 0.3,
        input_dropout: float = 0.5,
        state_dropout: float = 0.3,
        output_dropout: float = 0.5,
        untied: bool = False,
        init_range: float = 0.04,
        learning_rate: float = 1.0,
        constant_epochs: int = 10,
        decay: float = 1.15,
        weight_decay: float = 1e-7,
        max_norm: float = 10.0,
    ) -> None:
        noise = StateDropout(state_dropout, untied)
        layers: list[Recurrent]
        if untied:
            inputs = None
            layers = [UntiedLSTM(hidden_size, hidden_size, input_dropout, noise) for _ in range(num_layers)]
        else:
            inputs = LockedDropout(input_dropout)
            layers = stack(LSTM, [hidden_size] * (num_layers + 1), state_noise=noise)
        super().__init__(
            vocab_size,
            hidden_size,
            layers,
            DecayedSGD(learning_rate, constant_epochs, decay, weight_decay),
            embedding_dropout=EmbeddingDropout(embedding_dropout, per="sequence"),
            input_dropout=inputs,
            hidden_dropout=inputs,
            output_dropout=LockedDropout(output_dropout),
            init_range=init_range,
            sums_steps=True,
            max_norm=max_norm,
        )


class UntiedLSTM(LSTM):
    """A layer whose gates each see the inputs through a locked mask of their own.

        a_k(t) = W_k (m_k / (1 - p) * x(t)) + ...        k over the gates, m_k ~ Bernoulli(1 - p), (B, I)

    Section 4, "untied weights". The four products run as one, with a block-diagonal matrix, at four times the work of
    the plain product with the inputs.
    """

    def __init__(self, input_size: int, hidden_size: int, p: float, state_noise: StateNoise = None) -> None:
        super().__init__(input_size, hidden_size, state_noise=state_noise)
        self.gate_dropout = LockedDropout(p)

    def _lstm(self, inputs: Tensor, state: LSTMState, weights: Weights, noise: Noise, call: Call) -> LSTMRun:
        if self.training and self.gate_dropout.p > 0:
            inputs = self.gate_dropout(inputs.repeat(1, 1, 4))
            weights = weights._replace(input=torch.block_diag(*weights.input.chunk(4)))  # type: ignore[no-untyped-call]
        return super()._lstm(inputs, state, weights, noise, call)
