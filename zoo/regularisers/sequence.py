"""Regularisers of a sequence (T, B, D) between two layers."""

from abc import abstractmethod

from torch import Tensor
from torch.nn.functional import dropout

from zoo.kernels import traced
from zoo.regularisers.base import Regulariser, dropout_probability, inverted_mask


class SequenceRegulariser(Regulariser):
    """(T, B, D) -> (T, B, D), noisy when training."""

    @abstractmethod
    def forward(self, sequence: Tensor) -> Tensor:
        """The sequence with noise (training) or its expectation (evaluation)."""


class Dropout(SequenceRegulariser):
    """Drops each element with probability p, afresh at every time step, and scales the others by 1 / (1 - p).

    Put on the vertical connections only (into, between and out of the recurrent layers), never on h(t-1): Zaremba,
    Sutskever and Vinyals 2014, "Recurrent neural network regularization", arXiv 1409.2329, section 3.2. Evaluation is the
    identity. Raises `ValueError` for p outside [0, 1).
    """

    probabilities = ("p",)

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = dropout_probability("p", p)

    def forward(self, sequence: Tensor) -> Tensor:
        if not self.training or self.p == 0 or sequence.device.type != "cpu" or traced(sequence):
            return dropout(sequence, self.p, self.training)
        return sequence * inverted_mask(self.p, *sequence.shape, dtype=sequence.dtype, device=sequence.device)


class LockedDropout(SequenceRegulariser):
    """Drops each unit of each example with probability p for the whole sequence, and scales the others by 1 / (1 - p).

        y(t) = m / (1 - p) * x(t)        m ~ Bernoulli(1 - p), (1, B, D)

    With `batch_first` sequences are (B, T, D). Put on the vertical connections; `StateDropout` is its like on h(t-1).
    Evaluation is the identity. Gal and Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural
    networks", arXiv 1512.05287, section 4 (the mask z_x), where it is called variational; locked in Merity et al. 2018,
    arXiv 1708.02182, section 4.2. Raises `ValueError` for p outside [0, 1).
    """

    probabilities = ("p",)

    def __init__(self, p: float, batch_first: bool = False) -> None:
        super().__init__()
        self.p, self.batch_first = dropout_probability("p", p), batch_first

    def forward(self, sequence: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return sequence
        shape = [*sequence.shape]
        shape[1 if self.batch_first else 0] = 1
        return sequence * inverted_mask(self.p, *shape, dtype=sequence.dtype, device=sequence.device)

    def extra_repr(self) -> str:
        return super().extra_repr() + ", batch_first=True" * self.batch_first
