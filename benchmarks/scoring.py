"""What a continuous cache adds to scoring one stream, for a small and for a large model."""

import statistics
import time

import report
import torch
from torch import Tensor

from zoo.cli import prepare_memory
from zoo.evaluation import Cache, Evaluation, Plain
from zoo.models import AWDLSTM, Zaremba
from zoo.tasks import LanguageModel

VOCABULARY = 10_000
STEPS = 200  # as the data modules evaluate
ROUNDS = 5
WINDOWS = 10
CACHE = 500


def seconds(model: LanguageModel, evaluation: Evaluation, tokens: Tensor) -> float:
    """Seconds a window, the median of those that find the cache full."""
    times = []
    with torch.inference_mode():
        score = evaluation.begin(model)
        for start in range(0, len(tokens) - 1, STEPS):
            window = tokens[start : start + STEPS + 1]
            before = time.perf_counter()
            score(window[:-1], window[1:])
            times.append(time.perf_counter() - before)
    return statistics.median(times[-(-CACHE // STEPS) :])


def measure(name: str, model: LanguageModel) -> list[str]:
    """A row of the table: interleaved rounds of both."""
    model.eval()
    tokens = torch.randint(VOCABULARY, (STEPS * WINDOWS + 1, 1), generator=torch.Generator().manual_seed(0))
    pairs = [(seconds(model, Plain(), tokens), seconds(model, Cache(window=CACHE), tokens)) for _ in range(ROUNDS)]
    plain, cached = (STEPS / statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(with_cache / without for without, with_cache in pairs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [f"{name}, {parameters / 1e6:.1f}M parameters", f"{plain:,.0f}", f"{cached:,.0f}", f"{ratio:.2f}"]


def main() -> None:
    """Both sizes."""
    prepare_memory()
    rows = [
        measure("zaremba-small", Zaremba(VOCABULARY, hidden_size=200)),
        measure("awd-lstm", AWDLSTM(VOCABULARY)),
    ]
    report.write(
        __file__,
        "Scoring one stream with a continuous cache",
        ["model", "plain, tokens/s", f"cache of {CACHE}, tokens/s", "time with / without"],
        rows,
        f"One stream in windows of {STEPS} steps, vocabulary {VOCABULARY:,}; the median of the windows that find the cache "
        f"full, and of {ROUNDS} interleaved rounds; the ratio is the median of each round's. Freed memory is kept, as by "
        "the command line.",
    )


if __name__ == "__main__":
    main()
