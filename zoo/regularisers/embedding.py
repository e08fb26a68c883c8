"""Regularisers of the embedding: from token ids to the vectors of a sequence."""

from abc import abstractmethod
from typing import Literal, get_args

from torch import Tensor, nn

from zoo.arguments import check_choice
from zoo.kernels import bernoulli
from zoo.regularisers.base import Regulariser, dropout_probability

Period = Literal["window", "sequence"]
"""How long a mask lasts."""


class EmbeddingRegulariser(Regulariser):
    """Looks up token ids (T, B) -> (T, B, D), noisy when training."""

    @abstractmethod
    def forward(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        """The vectors of the tokens; gradients reach `embedding.weight`."""


class EmbeddingDropout(EmbeddingRegulariser):
    """Drops word types with probability p: every occurrence of a type shares its fate; the others scale by 1 / (1 - p).

        y(t, b) = m[w(t, b), b] / (1 - p) * E[w(t, b)]        m ~ Bernoulli(1 - p), (V, B) or, shared by the batch, (V, 1)

    `per="window"` drops a type from the whole batch, that is a row of E: Merity et al. 2018, "Regularizing and optimizing
    LSTM language models", arXiv 1708.02182, section 4.3. `per="sequence"` drops it from each example by itself: Gal and
    Ghahramani 2016, arXiv 1512.05287, section 4.2. Evaluation is the plain look-up. The vectors are masked after it, so no
    copy of E is made. Raises `ValueError` for p outside [0, 1), another `per`, or tokens that are not (T, B).
    """

    probabilities = ("p",)

    def __init__(self, p: float, per: Period = "window") -> None:
        super().__init__()
        check_choice("per", per, get_args(Period))
        self.p, self.per = dropout_probability("p", p), per

    def forward(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        vectors: Tensor = embedding(tokens)
        if not self.training or self.p == 0:
            return vectors
        if tokens.ndim != 2:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}, expected (T, B)")
        batch = tokens.shape[1]
        types = bernoulli(
            1 - self.p, embedding.num_embeddings, batch if self.per == "sequence" else 1, device=tokens.device
        )
        kept = types.expand(-1, batch).gather(0, tokens.long())
        return vectors * kept.to(vectors.dtype).div_(1 - self.p).unsqueeze(-1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, per={self.per!r}"
