"""What most of the papers' models are made of: recurrent layers, what stands before and after, and noise in its slots."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from zoo.arguments import check_counts, check_not_negative, check_type
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.heads import MixtureOfSoftmaxes, NoisySoftmax, TiedSoftmax
from zoo.initialisation import block_orthogonal_, initialise_
from zoo.layers import Bias, Recurrent, StateNoise
from zoo.optim import Optimization
from zoo.regularisers import (
    EmbeddingDropout,
    EmbeddingRegulariser,
    GaussianWeightNoise,
    LockedDropout,
    Penalty,
    SequenceRegulariser,
    WeightRegulariser,
)
from zoo.tasks import LanguageModel, SequenceClassifier


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
        check_counts(embedding_size=embedding_size)
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
        _check_time_first(self)
        if softmax == "own":
            self.softmax = nn.Linear(output_size, vocab_size)
        elif softmax == "tied":
            self.softmax = TiedSoftmax(self.embedding)
        else:
            self.softmax = MixtureOfSoftmaxes(self.embedding, output_size, softmax, latent_dropout)
        if init_range is None:
            nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        else:
            check_not_negative(init_range=init_range)
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


Initialisation = Literal["orthogonal", "block_orthogonal"]
_INITIALISERS: dict[Initialisation, Callable[[Tensor], Tensor]] = {
    "orthogonal": nn.init.orthogonal_,
    "block_orthogonal": block_orthogonal_,
}
_SEED = 1
"""Of the noise on the initial state in evaluation."""


class OneHotLanguageModel(LanguageModel):
    """One recurrent layer that reads tokens as one-hot vectors, and a softmax: the character models of 2016.

    - `layer` takes inputs of `vocab_size`, and holds the `state_noise` and `weight_noise`.
    - `softmax_noise` is on the softmax's matrix, not on its bias.
    - `penalties` are on the layer's outputs. The gradient's norm is clipped to `max_norm`.
    - `initialisation` of all matrices: "orthogonal", or square blocks that are (`zoo.initialisation.block_orthogonal_`), for
      which each matrix's one side must divide the other. Biases start at 0, those of an LSTM's forget gates at 1.

    Krueger et al. 2017, arXiv 1606.01305, section 4.1.1, and Cooijmans et al. 2017, arXiv 1603.09025, section 5.2.
    """

    def __init__(
        self,
        vocab_size: int,
        layer: Recurrent,
        optimization: Optimization,
        softmax_noise: GaussianWeightNoise | None = None,
        penalties: list[Penalty] | None = None,
        initialisation: Initialisation = "orthogonal",
        max_norm: float | None = None,
    ) -> None:
        super().__init__(vocab_size)
        output_size = _output_size(vocab_size, [layer])
        self.optimization, self.max_norm = optimization, max_norm
        self.layer = layer
        self.output_dropout = LockedDropout(0.0)
        self.softmax = (
            nn.Linear(output_size, vocab_size)
            if softmax_noise is None
            else NoisySoftmax(output_size, vocab_size, softmax_noise)
        )
        self.penalties.extend(penalties or [])
        _check_time_first(self)
        matrix_ = _INITIALISERS[initialisation]
        initialise_(layer, matrix_)
        matrix_(self.softmax.weight)
        nn.init.zeros_(self.softmax.bias)

    @classmethod
    def resized(cls, arguments: dict[str, Any], vocab_size: int) -> dict[str, Any]:
        """Starts orthogonal where the recipe's start is block-orthogonal, which sizes that do not divide do not have."""
        arguments = super().resized(arguments, vocab_size)
        if layer := arguments.get("layer"):
            arguments["layer"] = {**layer, "init_args": {**layer["init_args"], "input_size": vocab_size}}
        if "initialisation" in arguments:
            arguments["initialisation"] = "orthogonal"
        return arguments

    def encode(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        hidden, state = self.layer(self.vectors(tokens), state)
        return hidden, state

    def vectors(self, tokens: Tensor) -> Tensor:
        """Token ids (T, B) -> one-hot vectors (T, B, vocab_size)."""
        return one_hot(tokens, self.vocab_size).to(self.dtype)


class RecurrentClassifier(SequenceClassifier):
    """One recurrent layer, and a softmax on its last output.

    - `layer` takes the sequences' inputs, and holds the `state_noise` and `weight_noise`.
    - All matrices start orthogonal, biases at 0, those of an LSTM's forget gates at 1; with `identity` the hidden-to-hidden
      matrix of an LSTM's candidate at the identity (`zoo.initialisation.initialise_`).
    - `initial_noise`: the standard deviation of Gaussian noise on h(0). Training draws it afresh for each example;
      evaluation gives all the same, so that what is said of one depends on no other.
    - The gradient's norm is clipped to `max_norm`.

    Cooijmans et al. 2017, arXiv 1603.09025, section 5.1, and Krueger et al. 2017, arXiv 1606.01305, section 4.3.
    """

    def __init__(
        self,
        layer: Recurrent,
        num_classes: int,
        optimization: Optimization,
        identity: bool = False,
        initial_noise: float = 0.0,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(num_classes)
        check_not_negative(initial_noise=initial_noise)
        _output_size(layer.input_size, [layer])
        self.optimization, self.max_norm, self.initial_noise = optimization, max_norm, initial_noise
        self.layer = layer
        self.softmax = nn.Linear(layer.hidden_size, num_classes)
        initialise_(layer, nn.init.orthogonal_, identity_candidate=identity)
        nn.init.orthogonal_(self.softmax.weight)
        nn.init.zeros_(self.softmax.bias)

    @torch.inference_mode()
    def classify(self, inputs: Tensor) -> Tensor:
        """The probabilities of the classes (B, num_classes) of sequences (T, B, input_size), in evaluation mode."""
        check_type("inputs", inputs, Tensor)
        with evaluating(self):
            logits: Tensor = self(inputs.to(self.device))
            return logits.softmax(-1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Sequences (T, B, input_size) -> logits (B, num_classes)."""
        outputs, _ = self.layer(inputs, self._noisy_state(inputs.shape[1]) if self.initial_noise else None)
        logits: Tensor = self.softmax(outputs[-1])
        return logits

    def _noisy_state(self, batch: int) -> Any:
        """The layer's initial state, with noise on h: training draws from torch's generator, evaluation from a seed."""
        h, *rest = self.layer.initial(batch)
        if self.training:
            noise = torch.randn_like(h)
        else:  # on the CPU, so that every device has the same numbers
            noise = torch.randn(h[:, :1].shape, generator=torch.Generator().manual_seed(_SEED)).to(h)
        noisy = h + self.initial_noise * noise
        return (noisy, *rest) if rest else noisy


def stack(
    layer: Callable[..., Recurrent],
    widths: Sequence[int],
    state_noise: StateNoise = None,
    weight_noise: WeightRegulariser | None = None,
    bias: Bias = "two",
) -> list[Recurrent]:
    """Layers of one kind, each as wide as the next one's input, from the embedding on, with like biases and noise."""
    return [layer(*pair, bias=bias, state_noise=state_noise, weight_noise=weight_noise) for pair in pairwise(widths)]


def _check_time_first(model: nn.Module) -> None:
    """Raises `UserError` where a regulariser takes batches first."""
    for module in model.modules():
        if getattr(module, "batch_first", False):
            raise UserError(f"{module} does not fit a model that reads time first: leave out batch_first")


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
                f"layer {index} is bidirectional or batch_first; these models read forwards, time first: leave it out"
            )
        width = layer.hidden_size
    return width
