"""Regularizing and Optimizing LSTM Language Models.

Merity, Keskar and Socher 2018, https://arxiv.org/abs/1708.02182; the authors' code:
https://github.com/salesforce/awd-lstm-lm
"""

from zoo.arguments import check_counts
from zoo.errors import UserError
from zoo.layers import LSTM
from zoo.models.recurrent import RecurrentLanguageModel, stack
from zoo.optim import NonMonotonicSGD, Optimization
from zoo.regularisers import (
    ActivationRegularisation,
    Dropout,
    EmbeddingDropout,
    LockedDropout,
    TemporalActivationRegularisation,
    WeightDrop,
)


class AWDLSTM(RecurrentLanguageModel):
    """Stacked LSTMs with weight drop, locked dropout, tied embeddings and averaged SGD.

    - `weight_drop` on the hidden-to-hidden matrix of every layer (section 2).
    - `input_dropout` on the embeddings, `hidden_dropout` between the layers, `output_dropout` before the softmax, each with
      one mask for the whole window (section 4.2); `locked` False draws one for every step, as the one-layer network of
      fraternal dropout's authors does.
    - `embedding_dropout` on the rows of the embedding's matrix, one mask for the batch (section 4.3); the softmax, which is
      tied to it (section 4.4), sees it whole.
    - `activation` (AR) on the last layer's dropped outputs, `temporal_activation` (TAR) on the same before dropout (4.6).
    - `softmaxes`: with more than one, a mixture of them (`zoo.heads.MixtureOfSoftmaxes`) with `latent_dropout`, and a last
      layer of `output_size` units, which else has those of the embedding (section 4.5).
    - `bptt`: the learning rate is for windows of so many steps and scales with a window's length (section 4.1); the windows'
      lengths are the data's affair (`random_bptt`). None leaves the rate alone.
    - `optimization`: NT-ASGD (section 3) with the authors' constants if not given.

    The embedding starts at U(-0.1, 0.1), the softmax's bias at 0. The gradient's norm is clipped to `max_norm`.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int = 400,
        hidden_size: int = 1150,
        num_layers: int = 3,
        output_size: int | None = None,
        embedding_dropout: float = 0.1,
        input_dropout: float = 0.4,
        hidden_dropout: float = 0.25,
        output_dropout: float = 0.4,
        weight_drop: float = 0.5,
        locked: bool = True,
        activation: float = 2.0,
        temporal_activation: float = 1.0,
        softmaxes: int = 1,
        latent_dropout: float = 0.0,
        optimization: Optimization | None = None,
        max_norm: float | None = 0.25,
        bptt: int | None = 70,
    ) -> None:
        check_counts(num_layers=num_layers, softmaxes=softmaxes)
        last = output_size or embedding_size
        if num_layers == 1 and hidden_size != last:
            raise UserError(f"hidden_size is {hidden_size} and the one layer's output {last}; they must be the same")
        if softmaxes == 1 and latent_dropout:
            raise UserError(
                f"latent_dropout is {latent_dropout}, and one softmax has no latent vectors; set softmaxes too"
            )
        dropout = LockedDropout if locked else Dropout
        super().__init__(
            vocab_size,
            embedding_size,
            stack(
                LSTM, [embedding_size, *[hidden_size] * (num_layers - 1), last], weight_noise=WeightDrop(weight_drop)
            ),
            optimization or NonMonotonicSGD(),
            embedding_dropout=EmbeddingDropout(embedding_dropout),
            input_dropout=dropout(input_dropout),
            hidden_dropout=dropout(hidden_dropout),
            output_dropout=dropout(output_dropout),
            penalties=[ActivationRegularisation(activation), TemporalActivationRegularisation(temporal_activation)],
            softmax=softmaxes if softmaxes > 1 else "tied",
            latent_dropout=latent_dropout,
            max_norm=max_norm,
            bptt=bptt,
        )
