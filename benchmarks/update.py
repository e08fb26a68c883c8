"""A training update of a recipe under Lightning beside the same update in a bare loop over torch.nn.LSTM."""

import logging
import statistics
import time
import warnings
from typing import Any

import numpy as np
import report
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from datamodules.stream import Stream
from zoo.models import Zaremba

VOCABULARY = 10_000
ROUNDS = 3
SIZES = {"zaremba-small": (200, 20, 0.0, 60), "zaremba-medium": (650, 35, 0.5, 15)}


class Clock(Callback):
    """The time from the end of each update to the end of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.times.append(time.perf_counter())


def ours(stream: Stream, hidden_size: int, dropout: float) -> float:
    """Seconds an update, the median of one run."""
    clock = Clock()
    trainer = Trainer(
        max_epochs=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Zaremba(VOCABULARY, hidden_size, dropout=dropout), train_dataloaders=stream)
    return statistics.median(np.diff(clock.times))


class Bare(nn.Module):
    """The same network of torch's parts."""

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, 2, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.softmax = nn.Linear(hidden_size, VOCABULARY)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits and the state."""
        outputs, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return self.softmax(self.dropout(outputs)), state


def bare(stream: Stream, hidden_size: int, dropout: float) -> float:
    """Seconds an update, the median of one run."""
    model = Bare(hidden_size, dropout)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state, times = None, []
    for inputs, targets in stream:
        optimizer.zero_grad()
        logits, state = model(inputs, state)
        state = tuple(part.detach() for part in state)
        loss = len(inputs) * cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        times.append(time.perf_counter())
    return statistics.median(np.diff(times))


def main() -> None:
    """Interleaved rounds of both."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    for name, (hidden_size, bptt, dropout, updates) in SIZES.items():
        ids = np.random.default_rng(0).integers(VOCABULARY, size=20 * (bptt * updates + 1), dtype=np.uint16)
        stream = Stream(ids, 20, bptt)
        pairs = [(ours(stream, hidden_size, dropout), bare(stream, hidden_size, dropout)) for _ in range(ROUNDS)]
        zoo_time, bare_time = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / z for z, b in pairs)
        rows.append([name, f"{zoo_time * 1e3:.1f}", f"{bare_time * 1e3:.1f}", f"{ratio:.2f}"])
    report.write(
        __file__,
        "One training update",
        ["model", "zoo with Lightning, ms", "bare torch.nn.LSTM loop, ms", "bare / zoo"],
        rows,
        f"Batch 20, vocabulary {VOCABULARY:,}; the median of the updates of a run, and of {ROUNDS} interleaved runs.",
    )


if __name__ == "__main__":
    main()
