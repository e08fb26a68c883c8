"""What all regularisers share: drop probabilities that a schedule can change, and the draws of an inverted mask."""

from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.arguments import check_not_negative, check_type
from zoo.kernels import bernoulli


class Regulariser(nn.Module):
    """A module whose drop probabilities are plain floats, read at every forward, so that a schedule can change them.

    A captured CUDA graph holds the numbers of its capture.
    """

    probabilities: ClassVar[tuple[str, ...]] = ()
    """The attributes that hold them."""

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.probabilities)


def probability(name: str, value: float) -> float:
    """`value`, where it lies in [0, 1]; raises `ValueError` elsewhere."""
    check_type(name, value, Real)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; a probability lies in [0, 1]")
    return float(value)


def dropout_probability(name: str, value: float) -> float:
    """`value`, where 1 / (1 - value) is a scale: in [0, 1); raises `ValueError` elsewhere."""
    check_type(name, value, Real)
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; a dropout probability lies in [0, 1)")
    return float(value)


def coefficient(name: str, value: float) -> float:
    """`value`, where it is finite and >= 0; raises `ValueError` elsewhere."""
    check_not_negative(**{name: value})
    return float(value)


def inverted_mask(p: float, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draws of mean 1: 0 with probability p, else 1 / (1 - p)."""
    return bernoulli(1 - p, *shape, device=device).to(dtype).div_(1 - p)
