"""Regularisers, by the site they act on.

`sequence` between the layers, `embedding` at the look-up, `weight` on the weights, `state` inside the recurrence, `penalty`
in the loss; `schedule` moves their probabilities.
"""

from zoo.regularisers.base import Regulariser as Regulariser
from zoo.regularisers.embedding import EmbeddingDropout as EmbeddingDropout
from zoo.regularisers.embedding import EmbeddingRegulariser as EmbeddingRegulariser
from zoo.regularisers.penalty import ActivationRegularisation as ActivationRegularisation
from zoo.regularisers.penalty import NormStabiliser as NormStabiliser
from zoo.regularisers.penalty import Penalty as Penalty
from zoo.regularisers.penalty import TemporalActivationRegularisation as TemporalActivationRegularisation
from zoo.regularisers.schedule import CurriculumDropout as CurriculumDropout
from zoo.regularisers.sequence import Dropout as Dropout
from zoo.regularisers.sequence import LockedDropout as LockedDropout
from zoo.regularisers.sequence import SequenceRegulariser as SequenceRegulariser
from zoo.regularisers.state import CellDropout as CellDropout
from zoo.regularisers.state import InputGateDropout as InputGateDropout
from zoo.regularisers.state import RecurrentDropout as RecurrentDropout
from zoo.regularisers.state import StateDropout as StateDropout
from zoo.regularisers.state import StateRegulariser as StateRegulariser
from zoo.regularisers.state import StochasticDepth as StochasticDepth
from zoo.regularisers.state import Zoneout as Zoneout
from zoo.regularisers.state import check_sites as check_sites
from zoo.regularisers.state import draw_noise as draw_noise
from zoo.regularisers.weight import DropConnect as DropConnect
from zoo.regularisers.weight import GaussianWeightNoise as GaussianWeightNoise
from zoo.regularisers.weight import WeightDrop as WeightDrop
from zoo.regularisers.weight import WeightRegulariser as WeightRegulariser
