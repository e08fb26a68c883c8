"""LightningModule bases: what a model is trained and evaluated for."""

from zoo.tasks.base import Task as Task
from zoo.tasks.classification import SequenceClassifier as SequenceClassifier
from zoo.tasks.language import LanguageModel as LanguageModel
from zoo.tasks.sequence_to_sequence import SequenceToSequence as SequenceToSequence
