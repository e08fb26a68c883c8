"""Regularisers of a sequence (T, B, D) between two layers."""

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn.functional import dropout


class SequenceRegulariser(nn.Module):
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

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p is {p}; a dropout probability lies in [0, 1)")
        self.p = p

    def forward(self, sequence: Tensor) -> Tensor:
        return dropout(sequence, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
