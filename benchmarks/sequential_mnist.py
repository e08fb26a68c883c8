"""An update of the sequential MNIST models beside the same with the layer's readable loop, and what the data takes."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import report
from trainer import Clock, Precision, quiet_trainer

from zoo.datamodules.loader import Draw
from zoo.datamodules.mnist import Sequences
from zoo.layers import Recurrent
from zoo.models import RecurrentBatchNormClassifier, ZoneoutClassifier
from zoo.tasks import SequenceClassifier

BATCH, UPDATES, ROUNDS = 100, 6, 3
MODELS: dict[str, Callable[[], SequenceClassifier]] = {
    "zoneout-pmnist": ZoneoutClassifier,
    "rbn-pmnist": RecurrentBatchNormClassifier,
}


def seconds(
    build: Callable[[], SequenceClassifier], images: Sequences, backend: str, precision: Precision = "32-true"
) -> float:
    """One update, the median of a run."""
    model, clock = build(), Clock()
    for layer in model.modules():
        if isinstance(layer, Recurrent):
            layer.backend = backend  # type: ignore[assignment]
    quiet_trainer(max_epochs=1, callbacks=[clock], precision=precision).fit(model, train_dataloaders=images)
    return statistics.median(np.diff(clock.times))


def main() -> None:
    """Interleaved rounds of both."""
    draw, count = np.random.default_rng(0), BATCH * (UPDATES + 1)
    pixels = draw.integers(256, size=(count, 28, 28), dtype=np.uint8)
    images = Sequences(pixels, draw.integers(10, size=count), "paper", 1, BATCH, Draw(1, 0))
    start = time.perf_counter()
    for _ in images:
        pass
    loading = (time.perf_counter() - start) / len(images)
    rows = []
    for name, build in MODELS.items():
        rounds = [
            (
                seconds(build, images, "auto"),
                seconds(build, images, "auto", "bf16-mixed"),
                seconds(build, images, "reference"),
            )
            for _ in range(ROUNDS)
        ]
        ours, rounded, loop = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratio = statistics.median(o / e for o, _, e in rounds)
        times = [f"{time * 1e3:.0f}" for time in (ours, rounded, loop)]
        rows.append([name, *times, f"{ratio:.2f}", f"{loading / ours:.1%}"])
    report.write(
        __file__,
        "One update on sequential MNIST",
        ["model", "zoo, ms", "in bfloat16, ms", "eager step loop, ms", "zoo / loop", "data's part"],
        rows,
        f"100 units, 784 steps, batch {BATCH}, under Lightning; an epoch is 500 updates. The loop is `backend: "
        f"reference`, the zoo's own readable one, in float32. The median of the updates of a run, and of {ROUNDS} "
        "interleaved runs; the ratio is the median of each run's.",
    )


if __name__ == "__main__":
    main()
