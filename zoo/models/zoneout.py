"""Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations.

Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville and Pal 2017, https://arxiv.org/abs/1606.01305; the
authors' code: https://github.com/teganmaharaj/zoneout. The models without zoneout that they compare with are
`OneHotLanguageModel`s and `RecurrentClassifier`s; on words it is `Zaremba` with zoneout.
"""

from zoo.layers import LSTM
from zoo.models.recurrent import Initialisation, OneHotLanguageModel, RecurrentClassifier
from zoo.optim import RMSProp, StepAdam
from zoo.regularisers import Zoneout


class ZoneoutLanguageModel(OneHotLanguageModel):
    """One LSTM on one-hot characters, with zoneout (section 4.1.1).

    `zoneout_cell` and `zoneout_hidden` are the probabilities of keeping the old c and the old h. Adam's *update* is clipped
    to the norm `max_update_norm`, as in the authors' code.
    """

    def __init__(
        self,
        vocab_size: int = 50,
        hidden_size: int = 1000,
        zoneout_cell: float = 0.5,
        zoneout_hidden: float = 0.05,
        initialisation: Initialisation = "orthogonal",
        learning_rate: float = 2e-3,
        max_update_norm: float = 1.0,
    ) -> None:
        zoneout = Zoneout(cell=zoneout_cell, hidden=zoneout_hidden)
        super().__init__(
            vocab_size,
            LSTM(vocab_size, hidden_size, bias="one", initial_state="learned", state_noise=zoneout),
            StepAdam(learning_rate, weight_decay=0.0, max_update_norm=max_update_norm),
            initialisation=initialisation,
        )


class ZoneoutClassifier(RecurrentClassifier):
    """One LSTM on the pixels of an image, one a step, with a zoneout mask that c and h share (section 4.3).

    `zoneout` is the probability of keeping the old values. RMSProp with the mean of squares decaying by `decay`; the
    gradient's norm is clipped to `max_norm`.
    """

    def __init__(
        self,
        input_size: int = 1,
        num_classes: int = 10,
        hidden_size: int = 100,
        zoneout: float = 0.15,
        learning_rate: float = 1e-3,
        decay: float = 0.5,
        max_norm: float = 1.0,
    ) -> None:
        shared = Zoneout(cell=zoneout, hidden=zoneout, shared=True)
        super().__init__(
            LSTM(input_size, hidden_size, bias="one", initial_state="learned", state_noise=shared),
            num_classes,
            RMSProp(learning_rate, decay),
            max_norm=max_norm,
        )
