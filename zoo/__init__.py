"""Recurrent Zoo: the recurrent networks and regularisers that defined language modelling from 2014 to 2018.

Sequences are time-major everywhere, (T, B, ...); losses are in nats inside and in perplexity per word or bits per
character at the edges; a probability is the probability of dropping, or of keeping the old value.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo import callbacks as callbacks
    from zoo import datamodules as datamodules
    from zoo import evaluation as evaluation
    from zoo import functional as functional
    from zoo import heads as heads
    from zoo import hub as hub
    from zoo import initialisation as initialisation
    from zoo import kernels as kernels
    from zoo import layers as layers
    from zoo import metrics as metrics
    from zoo import models as models
    from zoo import noise as noise
    from zoo import optim as optim
    from zoo import regularisers as regularisers
    from zoo import tasks as tasks
    from zoo import tokenizer as tokenizer
    from zoo.errors import UserError as UserError
    from zoo.finetuning import finetune as finetune
    from zoo.finetuning import finetune_classifier as finetune_classifier
    from zoo.hub import build as build
    from zoo.hub import load as load
    from zoo.hub import names as names
    from zoo.layers import GRU as GRU
    from zoo.layers import LSTM as LSTM
    from zoo.layers import RNN as RNN
    from zoo.layers import BatchNormLSTM as BatchNormLSTM
    from zoo.layers import LayerNormLSTM as LayerNormLSTM
    from zoo.regularisers import ActivationRegularisation as ActivationRegularisation
    from zoo.regularisers import CellDropout as CellDropout
    from zoo.regularisers import CurriculumDropout as CurriculumDropout
    from zoo.regularisers import DropConnect as DropConnect
    from zoo.regularisers import Dropout as Dropout
    from zoo.regularisers import EmbeddingDropout as EmbeddingDropout
    from zoo.regularisers import GaussianWeightNoise as GaussianWeightNoise
    from zoo.regularisers import InputGateDropout as InputGateDropout
    from zoo.regularisers import LockedDropout as LockedDropout
    from zoo.regularisers import NormStabiliser as NormStabiliser
    from zoo.regularisers import RecurrentDropout as RecurrentDropout
    from zoo.regularisers import StateDropout as StateDropout
    from zoo.regularisers import StochasticDepth as StochasticDepth
    from zoo.regularisers import TemporalActivationRegularisation as TemporalActivationRegularisation
    from zoo.regularisers import WeightDrop as WeightDrop
    from zoo.regularisers import Zoneout as Zoneout

_HOME = {
    "UserError": "zoo.errors",
    **dict.fromkeys(("finetune", "finetune_classifier"), "zoo.finetuning"),
    **dict.fromkeys(("names", "load", "build"), "zoo.hub"),
    **dict.fromkeys(("BatchNormLSTM", "GRU", "LSTM", "LayerNormLSTM", "RNN"), "zoo.layers"),
    **dict.fromkeys(
        (
            "ActivationRegularisation",
            "CellDropout",
            "CurriculumDropout",
            "DropConnect",
            "Dropout",
            "EmbeddingDropout",
            "GaussianWeightNoise",
            "InputGateDropout",
            "LockedDropout",
            "NormStabiliser",
            "RecurrentDropout",
            "StateDropout",
            "StochasticDepth",
            "TemporalActivationRegularisation",
            "WeightDrop",
            "Zoneout",
        ),
        "zoo.regularisers",
    ),
}

__version__ = "0.1.0"

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    # Imported on first use, so that `import zoo` and `recurrent-zoo list` do not wait for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name not in _modules():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"zoo.{name}")


def __dir__() -> list[str]:
    return sorted({*_HOME, *_modules(), *(name for name in globals() if name.startswith("__"))})


def _modules() -> set[str]:
    return {module.name for module in iter_modules(__path__)}
