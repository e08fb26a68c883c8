"""Classifiers of whole sequences: from the steps of a sequence to the logits of its classes, and exact accuracy."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from zoo.batches import Labelled
from zoo.errors import UserError
from zoo.metrics import Accuracy, ExactMean, at_least_float32
from zoo.tasks.base import Task


class SequenceClassifier(Task):
    """Reads a whole sequence and names its class; trained by cross-entropy, measured by the share of right answers."""

    material = "images"
    predicted = "the class of every sequence"
    prediction_columns = ("label", "predicted", "probability")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"num_classes is {num_classes}; it must be 2 or more")
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, inputs: Any) -> Tensor:
        """The inputs of a `Labelled` batch -> logits (B, num_classes)."""

    @property
    def metric_type(self) -> type[ExactMean]:
        return Accuracy

    def name_of(self, label: int) -> str:
        """What a class is called: by its number where it has no name."""
        return self.labels[label] if self.labels else str(label)

    def training_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        loss = cross_entropy(at_least_float32(logits), labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        self.count_training(loss, right(logits, labels))
        return loss

    def evaluate_batch(self, batch: Labelled, batch_idx: int) -> Tensor:
        inputs, labels = batch
        if not len(labels):  # of several processes one may have no share of the last batch
            return labels.float()
        return self.judge(self(inputs), labels)

    def judge(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What the metric takes of a batch's logits (B, num_classes) and labels (B,)."""
        return right(logits, labels)

    def predict_batch(self, batch: Labelled, batch_idx: int) -> Tensor:
        """The probabilities of the classes, (B, num_classes)."""
        probabilities: Tensor = self(batch[0]).softmax(-1)
        return probabilities

    def prediction_rows(self, batch: Labelled, outputs: Tensor) -> Iterable[tuple[str, ...]]:
        best, chosen = outputs.max(-1)
        for label, named, probability in zip(batch[1].tolist(), chosen.tolist(), best.tolist(), strict=True):
            yield self.name_of(label), self.name_of(named), f"{probability:.4f}"


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the likeliest class is the label, else 0."""
    return (logits.argmax(-1) == labels).float()
