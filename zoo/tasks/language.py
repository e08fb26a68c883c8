"""Language models: from tokens to logits, the state carried from window to window, and exact metrics."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.batches import FreshWindow, Window
from zoo.errors import UserError
from zoo.generate import Decoding, generate, start, step, stream
from zoo.metrics import ExactMean, metric_of, token_nll
from zoo.regularisers import Penalty, SequenceRegulariser
from zoo.score import Evaluation, Plain, Score, Scorer, Sentence, score, score_sentences, tokenizer_of, visible
from zoo.tasks.base import Task

State = Any
"""The recurrent state of a model: nested tuples of tensors (layers, B, H), and of numbers that all texts share."""

Prompt = TypeVar("Prompt", str, list[str])
"""A text, or several: what comes in comes out."""


class Outputs(NamedTuple):
    """What a window of T steps and B columns gives."""

    logits: Tensor
    """(T, B, vocab_size); of a mixture of softmaxes, its log-probabilities."""

    hidden: Tensor
    """(T, B, D), the last layer's outputs as they come."""

    dropped: Tensor
    """(T, B, D), the same as the softmax sees them."""

    state: State


class LanguageModel(Task):
    """Predicts the next token; trained by truncated back-propagation through time.

    A subclass says how tokens become the last layer's outputs (`encode`) and sets `output_dropout` and `softmax`, which
    make logits of them.

    The state starts anew with each epoch and is carried, detached, from window to window, except into one that starts
    afresh (`zoo.batches.FreshWindow`). Losses are logged in nats per
    token, metrics as perplexity per word or bits per character, by the tokenizer's level.
    """

    material = "text"
    predicted = "the surprisal of every token but the first"
    prediction_columns = ("token", "bits")

    output_dropout: SequenceRegulariser
    softmax: nn.Module

    sums_steps = False
    """Whether the loss is the mean over the batch of the sum over the steps, in the place of the mean over both."""

    bptt: int | None = None
    """Where it is set, the learning rate is for windows of so many steps, and scales with a window's length; with the mean
    length of windows whose gradients accumulate.

    AWD-LSTM's code takes the length that was drawn even for an epoch's last window, which the text's end cuts short; this
    takes the length that it has.
    """

    evaluation: Evaluation = Plain()
    """How the validation and test texts are scored."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        if vocab_size < 2:
            raise UserError(f"vocab_size is {vocab_size}; it must be 2 or more")
        self.vocab_size = vocab_size
        self.penalties = nn.ModuleList()
        """Each a `Penalty` on the last layer's outputs, added to the training loss."""
        self._carried: State = None
        self._scorer: Scorer | None = None
        self._steps: list[int] = []

    @classmethod
    def resized(cls, arguments: dict[str, Any], vocab_size: int) -> dict[str, Any]:
        """A recipe's arguments, for a vocabulary of another size."""
        return {**arguments, "vocab_size": vocab_size}

    @abstractmethod
    def encode(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Token ids (T, B) and a state (None: zeros) -> the last layer's outputs (T, B, D), state."""

    @property
    def unwrapped(self) -> "LanguageModel":
        """The model itself, or the one within that it trains in another way."""
        return self

    def run(self, tokens: Tensor, state: State = None) -> Outputs:
        """`encode`, and what the softmax makes of it."""
        hidden, state = self.encode(tokens, state)
        dropped = self.output_dropout(hidden)
        return Outputs(self.softmax(dropped), hidden, dropped, state)

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Token ids (T, B) and a state (None: zeros) -> logits (T, B, vocab_size), state."""
        outputs = self.run(tokens, state)
        return outputs.logits, outputs.state

    @property
    def metric_type(self) -> type[ExactMean]:
        return metric_of("word" if self.tokenizer is None else self.tokenizer.level)

    def objective(self, nll: Tensor) -> Tensor:
        """The scalar to descend, from the negative log-likelihoods (T, B) of a window."""
        return nll.sum(0).mean() if self.sums_steps else nll.mean()

    def loss(self, window: Window, state: State) -> tuple[Tensor, Tensor, State]:
        """The scalar to descend, the negative log-likelihoods (T, B) to report, and the state to carry on."""
        inputs, targets = window
        outputs = self.run(inputs, state)
        return *self.loss_of(outputs, targets), outputs.state

    def loss_of(self, outputs: Outputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The objective and the penalties of a pass, and the negative log-likelihoods of its targets (T, B)."""
        nll = token_nll(outputs.logits, targets)
        return self.objective(nll) + self.penalty(outputs), nll

    def penalty(self, outputs: Outputs) -> Tensor:
        """The sum of the penalties, 0 without any."""
        total = outputs.hidden.new_zeros(())
        for penalty in cast("list[Penalty]", self.penalties):
            total = total + penalty(outputs.dropped if penalty.of_dropped else outputs.hidden)
        return total

    def score(self, text: str, evaluation: Evaluation | None = None) -> Score:
        """How well the model predicts `text`, token by token (`zoo.score.score`)."""
        return score(self, text, evaluation or self.evaluation)

    def score_sentences(self, sentences: Iterable[str]) -> list[Sentence]:
        """The log-probability of each sentence by itself (`zoo.score.score_sentences`)."""
        return list(score_sentences(self, sentences))

    def generate(
        self,
        prompt: Prompt = "",  # type: ignore[assignment]  # of a default mypy asks that it be each of the types
        *,
        tokens: int = 50,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        beams: int | None = None,
        seed: int | None = None,
        stop: str | None = None,
    ) -> Prompt:
        """A text continued by `tokens` tokens, or each of a list of texts (`zoo.generate.Decoding` says how).

        A text of a list goes on as it does alone, but for rounding: sums of products run in another order in a batch.
        """
        how = Decoding(tokens, temperature, top_k, top_p, beams, seed, stop)
        return generate(self, [prompt], how)[0] if isinstance(prompt, str) else generate(self, prompt, how)

    def stream(
        self,
        prompt: str = "",
        *,
        tokens: int = 50,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        beams: int | None = None,
        seed: int | None = None,
        stop: str | None = None,
    ) -> Iterator[str]:
        """The text of `generate` in pieces, as they come: the prompt, then token by token."""
        return stream(self, prompt, Decoding(tokens, temperature, top_k, top_p, beams, seed, stop))

    def start(self, prompt: str | list[str] = "") -> tuple[Tensor, State]:
        """Reads a text, or several -> logits of the token after each (B, vocab_size), and the state for `step`.

        In evaluation mode and without gradients, as is `step`. `zoo.generate.join` and `select` put states together and
        take texts out of them.
        """
        return start(self, prompt)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The next token of every text (B,) and the state before it -> logits of the one after (B, vocab_size), state."""
        return step(self, tokens, state)

    def setup(self, stage: str) -> None:
        """Takes the data's tokenizer and checks that it and the windows fit the model."""
        self.take_tokenizer()
        bptt = getattr(getattr(self.trainer, "datamodule", None), "bptt", None)
        if stage == "fit" and None not in (self.bptt, bptt) and self.bptt != bptt:
            raise UserError(
                f"the data's windows are of {bptt} steps (data.init_args.bptt), and the learning rate is for {self.bptt} "
                "(bptt of the model): give both the same"
            )
        super().setup(stage)

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        # Not in on_train_epoch_start, which Lightning leaves out when it resumes.
        if batch_idx == 0 or isinstance(batch, FreshWindow):
            self._carried = None
        loss, nll, state = self.loss(batch, self._carried)
        self._carried = apply_to_collection(state, Tensor, Tensor.detach)
        self.log("train/loss", nll.detach().mean(), prog_bar=True, batch_size=1)
        self.count_training(loss, nll)
        return loss

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> None:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._steps = []
        self._steps.append(len(batch[0]))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Scales the learning rate by the mean length of the update's windows over `bptt`, for this update."""
        scale = 1.0 if self.bptt is None else sum(self._steps) / len(self._steps) / self.bptt
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= scale
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def predict_batch(self, batch: Window, batch_idx: int) -> Tensor:
        """The surprisal of each target in nats, (T, B)."""
        return self.evaluate_batch(batch, batch_idx)

    def on_predict_end(self) -> None:
        self._scorer = None

    def on_validation_end(self) -> None:
        super().on_validation_end()
        self._scorer = None

    def on_test_end(self) -> None:
        self._scorer = None

    def running_state(self) -> dict[str, Any]:
        return {"carried": self._carried, **super().running_state()}

    def load_running_state(self, state: dict[str, Any]) -> None:
        super().load_running_state(state)
        self._carried = move_data_to_device(state["carried"], self.device)

    def prediction_rows(self, batch: Window, outputs: Tensor) -> Iterable[tuple[str, ...]]:
        tokens = tokenizer_of(self).tokens(batch[1].flatten().tolist())
        for token, nats in zip(tokens, outputs.flatten().tolist(), strict=True):
            yield visible(token), f"{nats / math.log(2):.4f}"

    def evaluate_batch(self, batch: Window, batch_idx: int) -> Tensor:
        """The negative log-likelihoods of the targets, (T, B)."""
        inputs, targets = batch
        if batch_idx == 0 or isinstance(batch, FreshWindow):
            self._scorer = self.evaluation.begin(self)
        if targets.numel() == 0:  # one stream under several processes: the others hold no column of it
            return torch.zeros(targets.shape, device=self.device)
        assert self._scorer is not None
        return self._scorer(inputs, targets)
