"""From one sequence of symbols to another: trained by teacher forcing, measured by greedy decoding."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zoo.arguments import check_type
from zoo.batches import GO, PAD, Translated
from zoo.errors import UserError
from zoo.evaluating import evaluating
from zoo.metrics import ExactMatch, ExactMean, at_least_float32
from zoo.tasks.base import Task

State = Any
"""What the encoder hands to the decoder: nested tuples of tensors."""


@runtime_checkable
class SymbolData(Protocol):
    """What the data module of such a model says of its batches."""

    symbols: str
    """By id; `GO` and `PAD` come first."""

    source_length: int
    """S."""

    target_length: int
    """T."""


class SequenceToSequence(Task):
    """Reads a sequence of symbols and writes another, symbol by symbol.

        p(y | x) = prod over t of p(y(t) | y(1) .. y(t-1), x)

    Sources are filled up on the left, to `source_length` symbols, and targets on the right, to `target_length`. The loss is
    the mean cross-entropy over all symbols of the targets, the decoder's inputs being the targets themselves (teacher
    forcing). It is measured by the share of targets got right in every symbol, where the decoder is given nothing but its
    own likeliest symbols (`greedy`).

    The symbols themselves are the data's; they are stored with the weights.
    """

    material = "examples"
    predicted = "the answer to every example"
    prediction_columns = ("source", "target", "predicted")

    alphabet: Tensor
    """The code points of the symbols (vocab_size,); 0 before the data gave them."""

    def __init__(self, vocab_size: int, source_length: int, target_length: int) -> None:
        super().__init__()
        sizes = {
            "vocab_size": (vocab_size, 3),
            "source_length": (source_length, 1),
            "target_length": (target_length, 1),
        }
        for name, (value, least) in sizes.items():
            if value < least:
                raise UserError(f"{name} is {value}; it must be {least} or more")
        self.vocab_size, self.source_length, self.target_length = vocab_size, source_length, target_length
        self.register_buffer("alphabet", torch.zeros(vocab_size, dtype=torch.int32))

    @abstractmethod
    def encode(self, sources: Tensor) -> State:
        """Symbol ids (S, B) -> the state that the decoder starts from."""

    @abstractmethod
    def decode(self, symbols: Tensor, state: State) -> tuple[Tensor, State]:
        """The symbols before those to predict (T, B) and a state -> logits (T, B, vocab_size), state."""

    def forward(self, sources: Tensor, targets: Tensor) -> Tensor:
        """Symbol ids (S, B) and (T, B) -> the logits (T, B, vocab_size) of each target given those before it."""
        before = torch.cat([torch.full_like(targets[:1], GO), targets[:-1]])
        logits, _ = self.decode(before, self.encode(sources))
        return logits

    def greedy(self, sources: Tensor) -> Tensor:
        """Symbol ids (S, B) -> the likeliest symbols (target_length, B), each given the likeliest ones before it."""
        state = self.encode(sources)
        symbols = torch.full_like(sources[:1], GO)
        written = []
        for _ in range(self.target_length):
            logits, state = self.decode(symbols, state)
            symbols = logits.argmax(-1)
            written.append(symbols)
        return torch.cat(written)

    @property
    def metric_type(self) -> type[ExactMean]:
        return ExactMatch

    @property
    def symbols(self) -> str:
        """By id; empty before the data, or trained weights, gave them."""
        return "".join(map(chr, self.alphabet.tolist())) if self.alphabet.any() else ""

    @torch.inference_mode()
    def answer(self, text: str) -> str:
        """What the model writes in reply to `text`, by greedy decoding in evaluation mode.

        Raises `UserError` for a text that is empty, too long or in other symbols, or a model that was never trained.
        """
        check_type("text", text, str)
        symbols = self.symbols
        if not symbols:
            raise UserError("the model has no symbols yet: they come with a fit's data, or with trained weights")
        if not 0 < len(text) <= self.source_length:
            raise UserError(f"text has {len(text)} symbols; the model reads 1 to {self.source_length}")
        readable = symbols[PAD + 1 :]
        if unknown := sorted(set(text) - set(readable)):
            raise UserError(
                f"text is {text!r}, and the model does not know {', '.join(map(repr, unknown))}; it reads {readable!r}"
            )
        padded = text.rjust(self.source_length, symbols[PAD])
        source = torch.tensor([[symbols.index(symbol)] for symbol in padded], device=self.device)
        with evaluating(self):
            return self._answer(self.greedy(source)[:, 0])

    def setup(self, stage: str) -> None:
        """Takes the data's symbols and checks that the data fits the model."""
        data: object = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SymbolData):
            sizes = {
                "vocab_size": (len(data.symbols), self.vocab_size),
                "source_length": (data.source_length, self.source_length),
                "target_length": (data.target_length, self.target_length),
            }
            for name, (theirs, own) in sizes.items():
                if theirs != own:
                    raise UserError(
                        f"the data's {name} is {theirs} and the model was built for {own}: set model.init_args.{name} to "
                        f"{theirs}"
                    )
            if self.symbols not in ("", data.symbols):
                raise UserError(
                    f"the data's symbols are {data.symbols!r} and the model was trained on {self.symbols!r}: give it data "
                    "in its own symbols"
                )
            self.alphabet.copy_(torch.tensor([ord(symbol) for symbol in data.symbols]))
        super().setup(stage)

    def training_step(self, batch: Translated, batch_idx: int) -> Tensor:
        sources, targets = batch
        loss = cross_entropy(at_least_float32(self(sources, targets)).flatten(0, 1), targets.flatten())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        self.watch(loss)  # no metric: teacher forcing would flatter it
        return loss

    def evaluate_batch(self, batch: Translated, batch_idx: int) -> Tensor:
        sources, targets = batch
        if not sources.shape[1]:  # of several processes one may have no share of the last batch
            return targets[0].float()
        return (self.greedy(sources) == targets).all(0).float()

    def predict_batch(self, batch: Translated, batch_idx: int) -> Tensor:
        """The symbols written, (T, B)."""
        return self.greedy(batch[0])

    def prediction_rows(self, batch: Translated, outputs: Tensor) -> Iterable[tuple[str, ...]]:
        sources, targets = batch
        for source, target, output in zip(*(ids.unbind(1) for ids in (sources, targets, outputs)), strict=True):
            yield self._text(source).lstrip(self.symbols[PAD]), self._answer(target), self._answer(output)

    def _text(self, ids: Tensor) -> str:
        symbols = self.symbols
        return "".join(symbols[i] for i in ids.tolist())

    def _answer(self, ids: Tensor) -> str:
        """Without what fills it up on the right; what stands elsewhere is wrong, and is shown."""
        return self._text(ids).rstrip(self.symbols[PAD])
