"""What a continuous cache is worth, by its window and its theta: trained models on Penn Treebank."""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import report
import torch
from torch import Tensor

import zoo
from zoo.datamodules import PennTreebank
from zoo.evaluating import evaluating
from zoo.evaluation import Evaluation, Plain, TunedCache, tune_cache
from zoo.metrics import Perplexity
from zoo.runs import hush
from zoo.tasks import LanguageModel

MODELS = ("zaremba-small-ptb", "recurrent-dropout-ptb", "zaremba-medium-ptb")
WINDOWS = (100, 200, 300, 500, 700, 1000, 2000)
THETAS = (0.05, 0.1, 0.16, 0.22, 0.32, 0.45, 0.6, 0.75, 1.0, 1.5)
WEIGHTS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.4)
GRID = len(WINDOWS) * len(THETAS) * len(WEIGHTS)
COLUMNS = ("model", "window", "theta", "weight", "validation perplexity")

NOTES = f"""\
Perplexity per word of all predictions. Window, theta and weight are the best of {GRID} points on the
validation text (`zoo.evaluation.tune_cache`); the test text is read once, with those. In the picture each point has
the best weight for it, and the dashed line is the model without a cache. As in Grave, Joulin and Usunier 2017, "Improving
neural language models with a continuous cache", arXiv 1612.04426, section 4."""

Windows = Iterable[tuple[Tensor, Tensor]]


class Found(NamedTuple):
    """What a cache is worth to one model."""

    name: str
    plain: tuple[float, float]
    """Perplexity of validation and test without a cache."""
    tuned: list[TunedCache]
    """On the validation text, the best first."""
    test: float
    """Perplexity with the best."""

    def curves(self) -> dict[int, list[TunedCache]]:
        """By window, the best weight for each theta, in the order of the thetas."""
        best = {(each.cache.window, each.cache.theta): each for each in reversed(self.tuned)}
        return {window: [best[window, theta] for theta in THETAS] for window in WINDOWS}

    def row(self) -> list[str]:
        """Its line of the table."""
        cache, validation = self.tuned[0]
        before = [f"{perplexity:.2f}" for perplexity in self.plain]
        constants = [str(cache.window), f"{cache.theta:g}", f"{cache.weight:g}"]
        return [self.name, before[0], f"{validation:.2f}", *constants, before[1], f"{self.test:.2f}"]


@torch.inference_mode()
def perplexity(model: LanguageModel, evaluation: Evaluation, windows: Windows) -> float:
    """Of one text."""
    metric, score = Perplexity(), evaluation.begin(model)
    with evaluating(model):
        for inputs, targets in windows:
            metric.update(score(inputs, targets))
    return metric.result()[0]


def measure(name: str, validation: Windows, test: Windows) -> Found:
    """One model."""
    model = zoo.load(name)
    assert isinstance(model, LanguageModel)
    plain = perplexity(model, Plain(), validation), perplexity(model, Plain(), test)
    tuned = tune_cache(model, validation, WINDOWS, THETAS, WEIGHTS)
    return Found(name, plain, tuned, perplexity(model, tuned[0].cache, test))


def draw(all_found: list[Found], file: Path) -> None:
    """Perplexity against theta, a line a window, a panel a model."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(4 * len(all_found), 4), layout="constrained")
    (panels,) = figure.subplots(1, len(all_found), squeeze=False)
    for axes, found in zip(panels, all_found, strict=True):
        for window, curve in found.curves().items():
            axes.plot(THETAS, [each.perplexity for each in curve], marker=".", label=f"{window}")
        axes.axhline(found.plain[0], color="black", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(found.name)
        axes.set_xlabel("theta")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation perplexity per word")
    figure.legend(*panels[0].get_legend_handles_labels(), title="window", loc="outside right center")
    figure.savefig(file, dpi=130)


def main() -> None:
    """All models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    script = parser.parse_args().output / Path(__file__).name
    hush()
    data = PennTreebank()
    data.prepare_data()
    found = [measure(name, data.val_dataloader(), data.test_dataloader()) for name in MODELS]
    with script.with_suffix(".csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(COLUMNS)
        for one in found:
            for curve in one.curves().values():
                writer.writerows([one.name, c.window, c.theta, c.weight, f"{p:.4f}"] for c, p in curve)
    draw(found, script.with_suffix(".png"))
    header = ["model", "validation", "with cache", "window", "theta", "weight", "test", "with cache"]
    report.write(str(script), "What a continuous cache is worth", header, [one.row() for one in found], NOTES)


if __name__ == "__main__":
    main()
