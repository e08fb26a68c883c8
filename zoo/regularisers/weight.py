"""Regularisers of the weights, applied once to every sequence."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from zoo.arguments import check_counts
from zoo.functional import Weights
from zoo.kernels import bernoulli
from zoo.regularisers.base import Regulariser, coefficient, dropout_probability, inverted_mask, probability


class WeightRegulariser(Regulariser):
    """Weights of one recurrent layer -> weights of the same shapes, noisy when training."""

    @abstractmethod
    def forward(self, weights: Weights) -> Weights:
        """The weights that the sequence sees; gradients reach the ones that were given."""


class WeightDrop(WeightRegulariser):
    """Drops elements of the hidden-to-hidden matrix R with probability p, and scales the others by 1 / (1 - p).

        R' = M / (1 - p) * R        M ~ Bernoulli(1 - p), of R's shape

    One mask for the whole batch and all steps of the sequence. Evaluation takes R as it is. Merity, Keskar and Socher 2018,
    "Regularizing and optimizing LSTM language models", arXiv 1708.02182, section 2. Raises `ValueError` for p outside
    [0, 1).
    """

    probabilities = ("p",)

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = dropout_probability("p", p)

    def forward(self, weights: Weights) -> Weights:
        if not self.training or self.p == 0:
            return weights
        hidden = weights.hidden
        mask = inverted_mask(self.p, *hidden.shape, dtype=hidden.dtype, device=hidden.device)
        return weights._replace(hidden=hidden * mask)


class GaussianWeightNoise(WeightRegulariser):
    """Adds Gaussian noise of standard deviation `std` to the weight matrices, not to the biases, once a sequence.

        W' = W + std * e        e ~ N(0, 1), of W's shape

    The gradient is taken at the noisy point and applied to the clean weights, as they are in evaluation. Graves 2011,
    "Practical variational inference for neural networks", NIPS, and Graves, Mohamed and Hinton 2013, "Speech recognition
    with deep recurrent neural networks", arXiv 1303.5778, with std = 0.075. Raises `ValueError` for a std that is
    negative or not finite.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = coefficient("std", std)

    def forward(self, weights: Weights) -> Weights:
        return weights._replace(input=self.noisy(weights.input), hidden=self.noisy(weights.hidden))

    def noisy(self, matrix: Tensor) -> Tensor:
        """One matrix with noise (training) or as it is: for those of the model, such as the softmax's."""
        if not self.training or self.std == 0:
            return matrix
        return matrix + torch.empty_like(matrix).normal_(0, self.std)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class DropConnect(Regulariser, nn.Linear):
    """A linear layer that drops connections with probability p, those of each example by themselves, unscaled.

        y = a((M * W) v + m * b)                            training        M, m ~ Bernoulli(1 - p)
        y = mean of a(u), u ~ N(mean, variance)             evaluation, over `samples` draws of u, per unit
        mean = (1 - p) (W v + b)        variance = p (1 - p) ((W * W) (v * v) + b * b)

    which are the two moments of the masked sum. With `activation` None a is the identity, and evaluation the mean itself.
    Evaluation draws from torch's generator. Training holds a mask and a masked matrix for each of the N examples,
    O(N out_features in_features) in memory; evaluation O(samples N out_features). Wan et al. 2013, "Regularization of neural
    networks using DropConnect", ICML. `WeightDrop` is its like for a recurrent matrix.

    (..., in_features) -> (..., out_features); each leading index is an example. Raises `ValueError` for p outside [0, 1] or
    fewer samples than one.
    """

    probabilities = ("p",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        p: float,
        bias: bool = True,
        samples: int = 1000,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        check_counts(samples=samples)
        self.p, self.samples, self.activation = probability("p", p), samples, activation

    def forward(self, input: Tensor) -> Tensor:
        if self.p == 0:
            return self._activate(linear(input, self.weight, self.bias))
        if self.training:
            masked = self._masked(input.reshape(-1, self.in_features))
            return self._activate(masked.view(*input.shape[:-1], self.out_features))
        mean, variance = self.moments(input)
        if self.activation is None:
            return mean
        # The square root has no derivative at 0.
        std = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        u = mean + std * torch.randn(self.samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return self._activate(u).mean(0)

    def moments(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over the masks of what the activation takes, each (..., out_features)."""
        mean = (1 - self.p) * linear(input, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.square()
        return mean, self.p * (1 - self.p) * linear(input.square(), self.weight.square(), bias)

    def _masked(self, examples: Tensor) -> Tensor:
        count, device = len(examples), examples.device
        weights = self.weight * bernoulli(1 - self.p, count, *self.weight.shape, device=device)
        product = torch.bmm(weights, examples.unsqueeze(-1)).squeeze(-1)
        if self.bias is None:
            return product
        return product + self.bias * bernoulli(1 - self.p, count, self.out_features, device=device)

    def _activate(self, value: Tensor) -> Tensor:
        return value if self.activation is None else self.activation(value)

    def extra_repr(self) -> str:
        return f"{nn.Linear.extra_repr(self)}, {Regulariser.extra_repr(self)}, samples={self.samples}"
