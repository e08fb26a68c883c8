"""Penalties on the activations of a recurrent layer, to be added to the loss."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.linalg import vector_norm

from zoo.regularisers.base import coefficient


class Penalty(nn.Module):
    """Activations (T, B, H) -> a scalar, the same in training and evaluation: the caller adds it in training alone."""

    of_dropped: ClassVar[bool] = False
    """Whether it is of the last layer's outputs as the softmax sees them, with dropout; else of those before it."""

    @abstractmethod
    def forward(self, activations: Tensor) -> Tensor:
        """The penalty, its coefficient included."""


class ActivationRegularisation(Penalty):
    """Pulls activations towards zero: alpha times the mean of their squares (AR).

        alpha * mean of h(t, b, k)**2

    Takes the last layer's output as the softmax sees it, dropped: the paper's L2(m * h), and its code. Merity, McCann and
    Socher 2017, "Revisiting activation regularization for language RNNs", arXiv 1708.01009. Raises
    `ValueError` for an alpha that is negative or not finite.
    """

    of_dropped = True

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = coefficient("alpha", alpha)

    def forward(self, activations: Tensor) -> Tensor:
        return self.alpha * activations.square().mean()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class _ChangePenalty(Penalty):
    """A penalty on what changes from step to step."""

    def __init__(self, beta: float, batch_first: bool = False) -> None:
        super().__init__()
        self.beta, self.batch_first = coefficient("beta", beta), batch_first

    def _mean_square_change(self, values: Tensor) -> Tensor:
        changes = values.diff(dim=1 if self.batch_first else 0)
        return changes.square().mean() if changes.numel() else changes.sum()

    def extra_repr(self) -> str:
        return f"beta={self.beta}" + ", batch_first=True" * self.batch_first


class TemporalActivationRegularisation(_ChangePenalty):
    """Pulls successive activations together: beta times the mean of their squared differences (TAR).

        beta * mean of (h(t+1, b, k) - h(t, b, k))**2        0 for one step

    With `batch_first` activations are (B, T, H). Takes the last layer's output as it comes, before dropout. Merity, McCann
    and Socher 2017, arXiv 1708.01009. Raises `ValueError` for a beta that is negative or not finite.
    """

    def forward(self, activations: Tensor) -> Tensor:
        return self.beta * self._mean_square_change(activations)


class NormStabiliser(_ChangePenalty):
    """Holds the norm of the state steady over time: beta times the mean squared change of the norm.

        beta * mean over b and t = 2..T of (||h(t, b)|| - ||h(t-1, b)||)**2        0 for one step

    With `batch_first` activations are (B, T, H). Takes hidden states or cell states; the step from h(0) is not counted.
    Krueger and Memisevic 2016, "Regularizing RNNs by stabilizing activations", arXiv 1511.08400. The code of Krueger et al.
    2017, arXiv 1606.01305, divides the T - 1 changes by T: for its 99 steps its beta of 50 is 49.5 here. The gradient of a
    norm at the zero vector is taken as 0. Raises `ValueError` for a beta that is negative or not finite.
    """

    def forward(self, activations: Tensor) -> Tensor:
        return self.beta * self._mean_square_change(vector_norm(activations, dim=-1))
