"""Recurrent Dropout without Memory Loss, and the variants that it is compared with.

Semeniuta, Severyn and Barth 2016, https://arxiv.org/abs/1603.05118; the authors' code:
https://github.com/stas-semeniuta/drop-rnn
"""

from functools import partial
from typing import Literal

from zoo.layers import GRU, LSTM
from zoo.models.recurrent import RecurrentLanguageModel, stack
from zoo.optim import ReduceOnPlateauSGD
from zoo.regularisers import CellDropout, Dropout, RecurrentDropout, StateRegulariser
from zoo.regularisers.state import Period


class _OneLayer(RecurrentLanguageModel):
    """The authors' network for words: one layer as wide as the embedding, dropout before and after it, plain SGD.

    A gate has one bias. The loss is the mean over the batch of the sum over the steps (in their code: 35 times the mean).
    The rate is divided by 1.5 whenever validation does not improve; the best model is kept.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        cell: Literal["lstm", "gru"],
        state_noise: StateRegulariser,
        input_dropout: float,
        output_dropout: float,
        init_range: float,
        learning_rate: float,
        max_norm: float,
    ) -> None:
        layer = LSTM if cell == "lstm" else partial(GRU, reset_after=False)
        super().__init__(
            vocab_size,
            hidden_size,
            stack(layer, [hidden_size, hidden_size], state_noise, bias="one"),
            ReduceOnPlateauSGD(learning_rate, decay=1.5),
            input_dropout=Dropout(input_dropout),
            output_dropout=Dropout(output_dropout),
            init_range=init_range,
            sums_steps=True,
            max_norm=max_norm,
        )


class RecurrentDropoutLanguageModel(_OneLayer):
    """An LSTM, or by `cell` its GRU twin, with dropout on the update to its state (`zoo.RecurrentDropout`, section 3).

    `recurrent_dropout` is the probability of dropping, drawn `per` step or once a window; the other two act on the vertical
    connections.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 256,
        cell: Literal["lstm", "gru"] = "lstm",
        recurrent_dropout: float = 0.5,
        per: Period = "sequence",
        input_dropout: float = 0.2,
        output_dropout: float = 0.5,
        init_range: float = 0.05,
        learning_rate: float = 1.0,
        max_norm: float = 10.0,
    ) -> None:
        noise = RecurrentDropout(recurrent_dropout, per)
        rest = (input_dropout, output_dropout, init_range, learning_rate, max_norm)
        super().__init__(vocab_size, hidden_size, cell, noise, *rest)


class RNNDrop(_OneLayer):
    """An LSTM that drops cells for a whole window (`zoo.CellDropout`), in the network of the paper that criticises it.

    Moon, Choi, Lee and Song 2015, "RNNDrop: a novel dropout for RNNs in ASR", ASRU, reports speech alone; as a language
    model it stands in Semeniuta et al. 2016, section 4, and in their code (`drop_candidates=False, per_step=False`).
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 256,
        cell_dropout: float = 0.25,
        input_dropout: float = 0.2,
        output_dropout: float = 0.5,
        init_range: float = 0.05,
        learning_rate: float = 1.0,
        max_norm: float = 10.0,
    ) -> None:
        rest = (input_dropout, output_dropout, init_range, learning_rate, max_norm)
        super().__init__(vocab_size, hidden_size, "lstm", CellDropout(cell_dropout), *rest)
