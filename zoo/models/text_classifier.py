"""Universal Language Model Fine-tuning for Text Classification.

Howard and Ruder 2018, https://arxiv.org/abs/1801.06146; the authors' code: https://github.com/fastai/fastai, imdb_scripts.
"""

import copy
from typing import overload

import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn

from zoo.arguments import check_counts
from zoo.batches import Texts
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.heads import ConcatPooling
from zoo.layers import BatchNormLSTM
from zoo.metrics import MacroF1
from zoo.optim import DiscriminativeAdam, Optimization
from zoo.tasks import LanguageModel, SequenceClassifier

_ROWS = 32
"""How many texts are read at once."""

WEIGHT_DECAY = 1e-6
"""The authors', of the classifier (train_clas.py)."""


class TextClassifier(SequenceClassifier):
    """A language model's layers read a text, and `zoo.heads.ConcatPooling` names its class (section 3.3).

    - `encoder`: any language model but one with batch norm, whose statistics are those of steps of pieces of one length. It
      is read up to its last layer, with the noise within; softmax, output dropout and penalties are left out. Its parameters
      are shared with the model that was given.
    - `hidden_size`, `input_dropout` and `hidden_dropout` are the head's.
    - `optimization`: `zoo.optim.DiscriminativeAdam` at 1e-2 if not given, with a decay of `WEIGHT_DECAY`. The
      gradient's norm is clipped to `max_norm`.
    - `max_tokens`: of a longer text `classify` reads so many of its last tokens, as `zoo.datamodules.LabelledText` does.

    Measured by accuracy and by the mean of the classes' F1 (`macro_f1`).
    """

    material = "texts"
    predicted = "the class of every text"

    def __init__(
        self,
        encoder: LanguageModel,
        num_classes: int,
        hidden_size: int = 50,
        input_dropout: float = 0.4,
        hidden_dropout: float = 0.1,
        optimization: Optimization | None = None,
        max_norm: float | None = 25.0,
        max_tokens: int = 1400,
    ) -> None:
        super().__init__(num_classes)
        self.optimization, self.max_norm = optimization or DiscriminativeAdam(1e-2, weight_decay=WEIGHT_DECAY), max_norm
        check_counts(max_tokens=max_tokens)
        self.max_tokens = max_tokens
        encoder = copy.copy(encoder.unwrapped)
        encoder._modules = dict(encoder._modules)  # the caller's model keeps its softmax
        if any(isinstance(module, BatchNormLSTM) for module in encoder.modules()):
            raise UserError(
                "a model with recurrent batch norm reads pieces of one length, not texts: take another encoder"
            )
        with torch.no_grad(), evaluating(encoder):
            outputs, _ = encoder.encode(torch.zeros(1, 1, dtype=torch.long))
        encoder.softmax = nn.Identity()
        self.encoder = encoder
        self.vocab_size = encoder.vocab_size
        self.head = ConcatPooling(outputs.shape[-1], num_classes, hidden_size, input_dropout, hidden_dropout)
        self.f1 = MacroF1(num_classes)
        self.macro_f1: dict[str, float] = {}
        """By split, the mean of the classes' F1 in the last evaluation, in per cent."""

    def forward(self, inputs: Texts) -> Tensor:
        """Texts of B -> logits (B, num_classes)."""
        hidden, _ = self.encoder.encode(inputs.tokens)
        logits: Tensor = self.head(hidden, inputs.lengths)
        return logits

    @overload
    def classify(self, texts: str) -> dict[str, float]: ...
    @overload
    def classify(self, texts: list[str]) -> list[dict[str, float]]: ...
    @torch.inference_mode()
    def classify(self, texts: str | list[str]) -> dict[str, float] | list[dict[str, float]]:
        """The probability of every class by its name, of a text or of each of several, in evaluation mode.

        Texts of about one length are read side by side, which changes no more than the rounding.
        """
        if isinstance(texts, str):
            return self.classify([texts])[0]
        if self.tokenizer is None:
            raise UserError("this TextClassifier has no tokenizer: load a trained model (zoo.load)")
        read = [self.tokenizer.encode_document(text)[-self.max_tokens :] for text in texts]
        if not all(map(len, read)):
            raise UserError("a text has no tokens: leave it out")
        names = [self.name_of(label) for label in range(self.num_classes)]
        found: list[dict[str, float]] = [{}] * len(read)
        by_length = sorted(range(len(read)), key=lambda text: len(read[text]))
        with evaluating(self):
            for first in range(0, len(read), _ROWS):
                rows = by_length[first : first + _ROWS]
                logits = self(move_data_to_device(Texts.of([read[row] for row in rows]), self.device))
                for row, probabilities in zip(rows, logits.softmax(-1).tolist(), strict=True):
                    found[row] = dict(zip(names, probabilities, strict=True))
        return found

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The embedding, each recurrent layer, and the head."""
        *recurrent, embedding = self.encoder.layer_groups()
        return [embedding, *recurrent, list(self.head.parameters())]

    def setup(self, stage: str) -> None:
        """Takes a data module's tokenizer and classes, and checks that they fit the model."""
        self.take_tokenizer()
        labels: list[str] | None = getattr(getattr(self.trainer, "datamodule", None), "labels", None)
        if labels is not None:
            if labels != (self.labels or labels) or len(labels) != self.num_classes:
                raise UserError(
                    f"the data's classes are {', '.join(labels)}, and the model was built for "
                    f"{', '.join(self.labels or [str(self.num_classes)])}"
                )
            self.labels = labels
        super().setup(stage)

    def judge(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.f1.update(logits, labels)
        return super().judge(logits, labels)

    def report(self, split: str) -> None:
        super().report(split)
        if split != "train":
            self.macro_f1[split] = value = float(self.f1.compute())
            self.f1.reset()
            self.log(f"{split}/{self.f1.name}", value, batch_size=1)
