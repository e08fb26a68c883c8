"""Recurrent Zoo: the recurrent networks and regularisers that defined language modelling from 2014 to 2018.

Sequences are time-major everywhere, (T, B, ...); losses are in nats inside and in perplexity per word or bits per
character at the edges; a probability is the probability of dropping, or of keeping the old value.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.hub import build as build
    from zoo.hub import load as load
    from zoo.hub import names as names
    from zoo.layers import LSTM as LSTM
    from zoo.regularisers import Dropout as Dropout

_HOME = {
    "names": "zoo.hub",
    "load": "zoo.hub",
    "build": "zoo.hub",
    "LSTM": "zoo.layers",
    "Dropout": "zoo.regularisers",
}

__version__ = "0.1.0"

__all__ = ["LSTM", "Dropout", "build", "load", "names"]


def __getattr__(name: str) -> object:
    # Imported on first use, so that `import zoo` and `recurrent-zoo list` do not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
