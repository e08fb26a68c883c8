"""Language models: the state carried from window to window, and exact metrics."""

from abc import abstractmethod
from typing import Any, cast

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from zoo.errors import UserError
from zoo.generate import generate
from zoo.metrics import TokenMetric, metric_of, token_nll
from zoo.score import Score, score
from zoo.tasks.base import Task
from zoo.tokenizer import Tokenizer

State = Any
"""The recurrent state of a model: nested tuples of tensors."""

Window = tuple[Tensor, Tensor]
"""(inputs, targets): token ids of shape (T, B)."""


class LanguageModel(Task):
    """Predicts the next token; trained by truncated back-propagation through time.

    The state starts at zero with each epoch and is carried, detached, from window to window. Losses are logged in nats per
    token, metrics as perplexity per word or bits per character, by the tokenizer's level.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        if vocab_size < 2:
            raise UserError(f"vocab_size is {vocab_size}; it must be 2 or more")
        self.vocab_size = vocab_size
        self.tokenizer: Tokenizer | None = None
        self.measured: dict[str, tuple[float, int]] = {}
        """By split, the metric of the last evaluation and the number of predictions it is of."""
        self._carried: State = None
        self._evaluated: State = None

    @abstractmethod
    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Token ids (T, B) and a state (None: zeros) -> logits (T, B, vocab_size), state."""

    @property
    def metric_unit(self) -> str:
        """What the model's numbers are: perplexity per word, or bits per character."""
        return metric_of("word" if self.tokenizer is None else self.tokenizer.level).unit

    def objective(self, nll: Tensor) -> Tensor:
        """The scalar to descend, from the negative log-likelihoods (T, B) of a window."""
        return nll.mean()

    def score(self, text: str) -> Score:
        """How well the model predicts `text`, token by token (`zoo.score.score`)."""
        return score(self, text)

    def generate(
        self,
        prompt: str = "",
        *,
        tokens: int = 50,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> str:
        """`prompt` continued by `tokens` sampled tokens (`zoo.generate.generate`)."""
        return generate(self, prompt, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)

    def setup(self, stage: str) -> None:
        """Takes the data's tokenizer and checks that it fits the model."""
        data: Any = getattr(self.trainer, "datamodule", None)
        tokenizer = data.tokenizer if hasattr(type(data), "tokenizer") else self.tokenizer
        if tokenizer and self.tokenizer and tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                "the data's vocabulary is not the one that the model was trained with: give the data the model's "
                "tokenizer.json (data.init_args.tokenizer)"
            )
        if tokenizer and tokenizer.vocab_size != self.vocab_size:
            raise UserError(
                f"the data's vocabulary has {tokenizer.vocab_size:,} types and the model was built for "
                f"{self.vocab_size:,}: set model.init_args.vocab_size to {tokenizer.vocab_size}, or give the data the "
                "model's tokenizer"
            )
        self.tokenizer = tokenizer
        metric = metric_of("word" if tokenizer is None else tokenizer.level)
        for split in ("train", "validation", "test"):
            self.add_module(f"{split}_metric", metric())

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        inputs, targets = batch
        # Not in on_train_epoch_start, which Lightning leaves out when it resumes.
        if batch_idx == 0:
            self._carried = None
        logits, state = self(inputs, self._carried)
        self._carried = apply_to_collection(state, Tensor, Tensor.detach)
        nll = token_nll(logits, targets)
        self._metric("train").update(nll)
        self.log("train/loss", nll.detach().mean(), prog_bar=True, batch_size=1)
        if self.trainer.is_last_batch:
            self._report("train")
        return self.objective(nll)

    def validation_step(self, batch: Window, batch_idx: int) -> None:
        self._evaluate("validation", batch, batch_idx)

    def test_step(self, batch: Window, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def predict_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The surprisal of each target in nats, (T, B)."""
        return self._nll(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._finish("validation")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def running_state(self) -> dict[str, Any]:
        return {"carried": self._carried, "train": dict(self._metric("train").metric_state)}

    def load_running_state(self, state: dict[str, Any]) -> None:
        self._carried = move_data_to_device(state["carried"], self.device)
        for name, value in state["train"].items():
            setattr(self._metric("train"), name, value.to(self.device))

    def _nll(self, batch: Window, batch_idx: int) -> Tensor:
        inputs, targets = batch
        if batch_idx == 0:
            self._evaluated = None
        if targets.numel() == 0:  # one stream under several processes: the others hold no column of it
            return torch.zeros(targets.shape, device=self.device)
        logits, self._evaluated = self(inputs, self._evaluated)
        return token_nll(logits, targets)

    def _evaluate(self, split: str, batch: Window, batch_idx: int) -> None:
        self._metric(split).update(self._nll(batch, batch_idx))

    def _finish(self, split: str) -> None:
        self._evaluated = None
        self._report(split)

    def _report(self, split: str) -> None:
        """Logs the metric of all tokens since the last report."""
        metric = self._metric(split)
        value, _ = self.measured[split] = metric.result()
        self.log(
            f"{split}/{metric.name}",
            torch.tensor(value, dtype=torch.float64),
            prog_bar=True,
            batch_size=1,
            sync_dist=True,
        )
        metric.reset()

    def _metric(self, split: str) -> TokenMetric:
        return cast(TokenMetric, self.get_submodule(f"{split}_metric"))
