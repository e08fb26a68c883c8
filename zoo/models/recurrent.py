"""What most of the papers' language models are made of: embedding, recurrent layers, softmax, and noise in its slots."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.heads import MixtureOfSoftmaxes, TiedSoftmax
from zoo.layers import Recurrent, StateNoise
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


class RecurrentLanguageModel(LanguageModel):
    """Embedding, recurrent layers and softmax, with a slot for a regulariser of every kind; an empty slot adds no noise.

        embedding, embedding_dropout -> input_dropout -> layer -> hidden_dropout -> ... -> layer -> output_dropout -> softmax

    - `layers`: of any kind, each with the `state_noise` and `weight_noise` of its own slots; `stack` makes plain ones.
    - `penalties` are on the last layer's outputs.
    - `softmax`: "own" is a linear layer, "tied" shares the embedding's matrix and wants a last layer as wide, a number is
      that of a mixture of them over the embedding's matrix, with `latent_dropout`.
    - `init_range`: all parameters start at U(-init_range, init_range); without it the embedding starts at U(-0.1, 0.1), the
      tied softmax's bias at 0 and the rest as in torch.
    - `sums_steps`: the loss is the mean over the batch of the sum over the steps, as in Zaremba et al.'s code, in the place
      of the mean over both. The gradient's norm is clipped to `max_norm`.
    - `bptt`: the learning rate is for windows of so many steps and scales with a window's length.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        layers: list[Recurrent],
        optimization: Optimization,
        embedding_dropout: EmbeddingRegulariser | None = None,
        input_dropout: SequenceRegulariser | None = None,
        hidden_dropout: SequenceRegulariser | None = None,
        output_dropout: SequenceRegulariser | None = None,
        penalties: list[Penalty] | None = None,
        softmax: Literal["own", "tied"] | int = "own",
        latent_dropout: float = 0.0,
        init_range: float | None = None,
        sums_steps: bool = False,
        max_norm: float | None = None,
        bptt: int | None = None,
    ) -> None:
        super().__init__(vocab_size)
        output_size = _output_size(embedding_size, layers)
        if softmax == "tied" and output_size != embedding_size:
            raise UserError(
                f"the last layer has {output_size} units and the embedding {embedding_size}; a tied softmax wants the same"
            )
        if isinstance(softmax, int) and softmax < 1:
            raise UserError(f"softmax is {softmax}; a mixture takes 1 or more")
        self.optimization, self.max_norm, self.bptt = optimization, max_norm, bptt
        self.sums_steps = sums_steps
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.embedding_dropout = embedding_dropout or EmbeddingDropout(0.0)
        self.input_dropout = input_dropout or LockedDropout(0.0)
        self.layers = nn.ModuleList(layers)
        self.hidden_dropout = hidden_dropout or LockedDropout(0.0)
        self.output_dropout = output_dropout or LockedDropout(0.0)
        self.penalties.extend(penalties or [])
        if softmax == "own":
            self.softmax = nn.Linear(output_size, vocab_size)
        elif softmax == "tied":
            self.softmax = TiedSoftmax(self.embedding)
        else:
            self.softmax = MixtureOfSoftmaxes(self.embedding, output_size, softmax, latent_dropout)
        if init_range is None:
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        else:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -init_range, init_range)

    def encode(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        sequence = self.input_dropout(self.embedding_dropout(self.embedding, tokens))
        states = []
        for index, layer in enumerate(self.layers):
            if index:
                sequence = self.hidden_dropout(sequence)
            sequence, final = layer(sequence, None if state is None else state[index])
            states.append(final)
        return sequence, tuple(states)


def stack(
    layer: type[Recurrent],
    widths: Sequence[int],
    state_noise: StateNoise = None,
    weight_noise: WeightRegulariser | None = None,
) -> list[Recurrent]:
    """Layers of one kind, each as wide as the next one's input, from the embedding on, with the same noise in each."""
    return [layer(*pair, state_noise=state_noise, weight_noise=weight_noise) for pair in pairwise(widths)]


def _output_size(embedding_size: int, layers: Sequence[Recurrent]) -> int:
    """The width of the last layer; raises `UserError` for layers that do not follow one another."""
    if not layers:
        raise UserError("layers is empty; a recurrent model has one or more")
    width = embedding_size
    for index, layer in enumerate(layers, start=1):
        if layer.input_size != width:
            raise UserError(f"layer {index} takes inputs of {layer.input_size}, and what comes before it gives {width}")
        if layer.bidirectional or layer.batch_first:
            raise UserError(
                f"layer {index} is bidirectional or batch_first; a language model reads forwards, time first: leave it out"
            )
        width = layer.hidden_size
    return width
