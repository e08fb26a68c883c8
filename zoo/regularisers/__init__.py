"""Regularisers, by the site they act on."""

from zoo.regularisers.sequence import Dropout as Dropout
from zoo.regularisers.sequence import SequenceRegulariser as SequenceRegulariser
