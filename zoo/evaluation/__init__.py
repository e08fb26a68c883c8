"""Other ways to score a text: each works on every language model, and reads the text as a stream."""

from zoo.evaluation.cache import Cache as Cache
from zoo.evaluation.cache import TunedCache as TunedCache
from zoo.evaluation.cache import tune_cache as tune_cache
from zoo.evaluation.dynamic import DynamicEvaluation as DynamicEvaluation
from zoo.evaluation.ensemble import Ensemble as Ensemble
from zoo.evaluation.monte_carlo import MonteCarlo as MonteCarlo
from zoo.evaluation.temperature import Temperature as Temperature
from zoo.score import Evaluation as Evaluation
from zoo.score import Plain as Plain
