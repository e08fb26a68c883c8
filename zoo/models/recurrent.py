"""What most of the papers' language models are made of: embedding, recurrent layers, softmax, and noise in its slots."""

from typing import Any, Literal

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.heads import MixtureOfSoftmaxes, TiedSoftmax
from zoo.layers import GRU, LSTM, RNN, Recurrent, StateNoise
from zoo.noise import Cell
from zoo.optim import Optimization
from zoo.regularisers import (
    EmbeddingDropout,
    EmbeddingRegulariser,
    LockedDropout,
    Penalty,
    SequenceRegulariser,
    WeightRegulariser,
)
from zoo.tasks import LanguageModel

_LAYERS: dict[Cell, type[Recurrent]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}

Objective = Literal["mean", "sum_of_steps"]


class RecurrentLanguageModel(LanguageModel):
    """Embedding, recurrent layers and softmax, with a slot for a regulariser of every kind; an empty slot adds no noise.

        embedding, embedding_dropout -> input_dropout -> layer -> hidden_dropout -> ... -> layer -> output_dropout -> softmax

    - `hidden_sizes` are the units of the layers, one each; `cell` is what they are made of.
    - `state_noise` and `weight_noise` act in every layer, with masks of its own.
    - `penalties` are on the last layer's outputs.
    - `softmax`: "own" is a linear layer, "tied" shares the embedding's matrix, a number is that of a mixture of them; the
      last two want a last layer as wide as the embedding, the mixture does not care.
    - `init_range`: all parameters start at U(-init_range, init_range); without it the embedding starts at U(-0.1, 0.1), the
      softmax's bias at 0 and the rest as in torch.
    - `objective`: the loss is the mean over batch and steps, or, as in Zaremba et al.'s code, the mean over the batch of the
      sum over the steps. The gradient's norm is clipped to `max_norm`.
    - `bptt`: the learning rate is for windows of so many steps and scales with a window's length.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        hidden_sizes: list[int],
        optimization: Optimization,
        cell: Cell = "lstm",
        embedding_dropout: EmbeddingRegulariser | None = None,
        input_dropout: SequenceRegulariser | None = None,
        hidden_dropout: SequenceRegulariser | None = None,
        output_dropout: SequenceRegulariser | None = None,
        state_noise: StateNoise = None,
        weight_noise: WeightRegulariser | None = None,
        penalties: list[Penalty] | None = None,
        softmax: Literal["own", "tied"] | int = "own",
        latent_dropout: float = 0.0,
        init_range: float | None = None,
        objective: Objective = "mean",
        max_norm: float | None = None,
        bptt: int | None = None,
    ) -> None:
        super().__init__(vocab_size)
        if not hidden_sizes:
            raise UserError("hidden_sizes is empty; it must name the units of one layer or more")
        if softmax == "tied" and hidden_sizes[-1] != embedding_size:
            raise UserError(
                f"the last layer has {hidden_sizes[-1]} units and the embedding {embedding_size}; tied, they are as many"
            )
        if isinstance(softmax, int) and softmax < 1:
            raise UserError(f"softmax is {softmax}; a mixture takes 1 or more")
        self.optimization, self.max_norm, self.bptt = optimization, max_norm, bptt
        self.sums_steps = objective == "sum_of_steps"
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.embedding_dropout = embedding_dropout or EmbeddingDropout(0.0)
        self.input_dropout = input_dropout or LockedDropout(0.0)
        self.layers = nn.ModuleList(
            self._layer(cell, width, size, state_noise, weight_noise)
            for width, size in zip([embedding_size, *hidden_sizes], hidden_sizes, strict=False)
        )
        self.hidden_dropout = hidden_dropout or LockedDropout(0.0)
        self.output_dropout = output_dropout or LockedDropout(0.0)
        self.penalties.extend(penalties or [])
        if softmax == "own":
            self.softmax = nn.Linear(hidden_sizes[-1], vocab_size)
        elif softmax == "tied":
            self.softmax = TiedSoftmax(self.embedding)
        else:
            self.softmax = MixtureOfSoftmaxes(self.embedding, hidden_sizes[-1], softmax, latent_dropout)
        if init_range is None:
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        else:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -init_range, init_range)

    def _layer(
        self, cell: Cell, width: int, size: int, state_noise: StateNoise, weight_noise: WeightRegulariser | None
    ) -> Recurrent:
        return _LAYERS[cell](width, size, state_noise=state_noise, weight_noise=weight_noise)

    def encode(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        sequence = self.input_dropout(self.embedding_dropout(self.embedding, tokens))
        states = []
        for index, layer in enumerate(self.layers):
            if index:
                sequence = self.hidden_dropout(sequence)
            sequence, final = layer(sequence, None if state is None else state[index])
            states.append(final)
        return sequence, tuple(states)
