"""Heads: from a layer's outputs to the logits of every token, or of a text's class."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax

from zoo.metrics import at_least_float32
from zoo.regularisers import GaussianWeightNoise, LockedDropout
from zoo.regularisers.base import dropout_probability


class TiedSoftmax(nn.Module):
    """A softmax whose matrix is that of the embedding, without its noise, and whose bias is its own, zero at first.

        logits = E d + b        E (V, D) the embedding

    (T, B, D) -> (T, B, V). The matrix stays the embedding's parameter and counts once. Inan, Khosravi and Socher 2017,
    "Tying word vectors and word classifiers", arXiv 1611.01462; Press and Wolf 2017, arXiv 1608.05859.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, which does not register it a second time
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    @property
    def weight(self) -> Tensor:
        """The embedding's matrix."""
        return self._embedding[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight, self.bias)


class NoisySoftmax(nn.Linear):
    """A softmax of its own whose matrix, not its bias, gets `noise` at every forward of training.

        logits = (W + std e) d + b        e ~ N(0, 1), (V, D), one for all steps and examples

    (T, B, D) -> (T, B, V). The parameters are those of `torch.nn.Linear`. Krueger et al. 2017, arXiv 1606.01305, table 1,
    "weight noise", whose code puts noise on every matrix of the network.
    """

    def __init__(self, in_features: int, out_features: int, noise: GaussianWeightNoise) -> None:
        super().__init__(in_features, out_features)
        self.noise = noise

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.noise.noisy(self.weight), self.bias)


class ConcatPooling(nn.Module):
    """A classifier of texts: two layers on a text's last, greatest and mean outputs.

        [h(L), max over t of h(t), mean over t of h(t)] -> norm, dropout, linear, ReLU -> norm, dropout, linear

    t from 1 to the text's own length L; the norms are batch norms. Howard and Ruder 2018, arXiv 1801.06146, section 3.3.

    Outputs (T, B, input_size) and lengths (B,) -> logits (B, num_classes).
    """

    def __init__(
        self, input_size: int, num_classes: int, hidden_size: int, input_dropout: float, hidden_dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(3 * input_size),
            nn.Dropout(dropout_probability("input_dropout", input_dropout)),
            nn.Linear(3 * input_size, hidden_size),
            nn.ReLU(),
            nn.BatchNorm1d(hidden_size),
            nn.Dropout(dropout_probability("hidden_dropout", hidden_dropout)),
            nn.Linear(hidden_size, num_classes),
        )

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        steps, batch = hidden.shape[:2]
        within = (torch.arange(steps, device=hidden.device).unsqueeze(1) < lengths).unsqueeze(-1)
        last = hidden[lengths - 1, torch.arange(batch, device=hidden.device)]
        greatest = hidden.masked_fill(~within, -torch.inf).amax(0)
        mean = (hidden * within).sum(0) / lengths.unsqueeze(1)
        logits: Tensor = self.layers(torch.cat([last, greatest, mean], -1))
        return logits


class MixtureOfSoftmaxes(nn.Module):
    """A mixture of softmaxes over one embedding, which lifts the rank of the matrix of log-probabilities above D.

        p = sum over k of pi_k softmax(E m * tanh(L_k d) + b)        pi = softmax(P d)

    m is a locked dropout of the latent vectors. E is the embedding's matrix, without its noise; P has no bias. In logarithms
    throughout, where the authors' code takes log(p + 1e-8). Yang, Dai, Salakhutdinov and Cohen 2018, "Breaking the softmax
    bottleneck: a high-rank RNN language model", arXiv 1711.03953, section 2.3.

    (T, B, hidden_size) -> log p, (T, B, V), which serve as logits.
    """

    def __init__(self, embedding: nn.Embedding, hidden_size: int, softmaxes: int, latent_dropout: float = 0.0) -> None:
        super().__init__()
        self.size = embedding.embedding_dim
        self.prior = nn.Linear(hidden_size, softmaxes, bias=False)
        self.latent = nn.Linear(hidden_size, softmaxes * self.size)
        self.latent_dropout = LockedDropout(latent_dropout)
        self.softmax = TiedSoftmax(embedding)

    def forward(self, hidden: Tensor) -> Tensor:
        latent = self.latent_dropout(self.latent(hidden).tanh()).unflatten(-1, (-1, self.size))
        prior = log_softmax(at_least_float32(self.prior(hidden)), -1).unsqueeze(-1)
        return (prior + log_softmax(at_least_float32(self.softmax(latent)), -1)).logsumexp(-2)
