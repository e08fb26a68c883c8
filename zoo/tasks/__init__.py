"""LightningModule bases: what a model is trained and evaluated for."""

from zoo.tasks.base import Task as Task
from zoo.tasks.language import LanguageModel as LanguageModel
