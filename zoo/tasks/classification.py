"""Classifiers of whole sequences: from the steps of a sequence to the logits of its classes, and exact accuracy."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zoo.batches import Labelled
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.metrics import Accuracy, ExactMean
from zoo.tasks.base import Task


class SequenceClassifier(Task):
    """Reads a whole sequence and names its class; trained by cross-entropy, measured by the share of right answers."""

    material = "images"
    predicted = "the class of every sequence"
    prediction_columns = ("label", "predicted", "probability")

    def __init__(self, input_size: int, num_classes: int) -> None:
        super().__init__()
        for name, value, least in (("input_size", input_size, 1), ("num_classes", num_classes, 2)):
            if value < least:
                raise UserError(f"{name} is {value}; it must be {least} or more")
        self.input_size, self.num_classes = input_size, num_classes

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Sequences (T, B, input_size) -> logits (B, num_classes)."""

    @property
    def metric_type(self) -> type[ExactMean]:
        return Accuracy

    @torch.inference_mode()
    def classify(self, inputs: Tensor) -> Tensor:
        """The probabilities of the classes (B, num_classes) of sequences (T, B, input_size), in evaluation mode."""
        with evaluating(self):
            logits: Tensor = self(inputs.to(self.device))
            return logits.softmax(-1)

    def training_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        loss = cross_entropy(logits.float(), labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        self.count_training(loss, _right(logits, labels))
        return loss

    def evaluate_batch(self, batch: Labelled, batch_idx: int) -> Tensor:
        inputs, labels = batch
        if not len(labels):  # of several processes one may have no share of the last batch
            return labels.float()
        return _right(self(inputs), labels)

    def predict_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        """The probabilities of the classes, (B, num_classes)."""
        probabilities: Tensor = self(batch[0]).softmax(-1)
        return probabilities

    def prediction_rows(self, batch: Labelled, outputs: Tensor) -> Iterable[tuple[str, ...]]:
        best, chosen = outputs.max(-1)
        for label, named, probability in zip(batch[1].tolist(), chosen.tolist(), best.tolist(), strict=True):
            yield str(label), str(named), f"{probability:.4f}"


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the likeliest class is the label, else 0."""
    return (logits.argmax(-1) == labels).float()
