"""A training update of a recipe under Lightning beside the same update in a bare loop over torch.nn.LSTM."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, get_args

import numpy as np
import report
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from trainer import Clock, Precision, quiet_trainer

from zoo.batches import Window
from zoo.cli import prepare_memory
from zoo.datamodules.stream import Stream
from zoo.models import AWDLSTM, Zaremba
from zoo.tasks import LanguageModel

VOCABULARY = 10_000
ROUNDS = 3


class Size(NamedTuple):
    """One row: the model, the widths of the bare network (embedding first), and what it is fed."""

    build: Callable[[], LanguageModel]
    widths: tuple[int, ...]
    bptt: int
    updates: int
    dropout: float = 0.0
    tied: bool = False
    vocabulary: int = VOCABULARY


SIZES = {
    "zaremba-small": Size(lambda: Zaremba(VOCABULARY, 200), (200, 200, 200), 20, 60),
    "zaremba-medium": Size(lambda: Zaremba(VOCABULARY, 650, dropout=0.5), (650, 650, 650), 35, 15, 0.5),
    "awd-lstm-ptb": Size(lambda: AWDLSTM(VOCABULARY), (400, 1150, 1150, 400), 70, 8, tied=True),
}


def ours(stream: Stream, size: Size, precision: Precision = "32-true") -> float:
    """Seconds an update, the median of one run."""
    clock = Clock()
    trainer = quiet_trainer(max_epochs=1, callbacks=[clock], precision=precision)
    trainer.fit(size.build(), train_dataloaders=stream)
    return statistics.median(np.diff(clock.times))


class Bare(nn.Module):
    """The same network of torch's parts, with no noise but dropout between the layers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tied = size.tied
        self.embedding = nn.Embedding(size.vocabulary, size.widths[0])
        self.lstms = nn.ModuleList(nn.LSTM(*pair) for pair in zip(size.widths, size.widths[1:], strict=False))
        self.dropout = nn.Dropout(size.dropout)
        self.softmax = nn.Linear(size.widths[-1], size.vocabulary)

    def forward(self, tokens: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        """Logits and the states."""
        hidden, finals = self.embedding(tokens), []
        for lstm, state in zip(self.lstms, states, strict=True):
            hidden, final = lstm(self.dropout(hidden), state)
            finals.append(final)
        weight = self.embedding.weight if self.tied else self.softmax.weight
        return linear(self.dropout(hidden), weight, self.softmax.bias), finals


def bare(
    stream: Iterable[Window],
    size: Size,
    precision: Precision = "32-true",
    optimizer_type: type[torch.optim.SGD | torch.optim.Adam] = torch.optim.SGD,
) -> float:
    """Seconds an update, the median of one run."""
    model = Bare(size)
    optimizer = optimizer_type(model.parameters())
    states: list[Any] = [None] * len(model.lstms)
    times = []
    for inputs, targets in stream:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits, finals = model(inputs, states)
        states = [tuple(part.detach() for part in state) for state in finals]
        loss = len(inputs) * cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        times.append(time.perf_counter())
    return statistics.median(np.diff(times))


def main() -> None:
    """Interleaved rounds of both."""
    prepare_memory()
    rows = []
    for name, size in SIZES.items():
        ids = np.random.default_rng(0).integers(VOCABULARY, size=20 * (size.bptt * size.updates + 1), dtype=np.uint16)
        stream = Stream(ids, 20, size.bptt)
        for precision in get_args(Precision):
            pairs = [(ours(stream, size, precision), bare(stream, size, precision)) for _ in range(ROUNDS)]
            zoo_time, bare_time = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(b / z for z, b in pairs)
            rows.append([name, precision, f"{zoo_time * 1e3:.1f}", f"{bare_time * 1e3:.1f}", f"{ratio:.2f}"])
    report.write(
        __file__,
        "One training update",
        ["model", "precision", "zoo with Lightning, ms", "bare torch.nn.LSTM loop, ms", "bare / zoo"],
        rows,
        f"Batch 20, vocabulary {VOCABULARY:,}; the median of the updates of a run, and of {ROUNDS} interleaved runs; the "
        "ratio is the median of each run's. The zoo's models have all their noise on, the bare loop has the first two's "
        "dropout and none of AWD-LSTM's. Both keep freed memory, as the command line does.",
    )


if __name__ == "__main__":
    main()
