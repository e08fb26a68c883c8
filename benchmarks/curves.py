"""What the figures of learning curves share: the runs of several recipes in one table and one picture.

The curves are what `python cli.py fit NAME` leaves under `logs/`, finished or not; `SCRIPT.csv` keeps the longest of each.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import report

from zoo import card
from zoo.callbacks import Row
from zoo.metrics import ExactMean
from zoo.runs import LOGS

ROOT = Path(__file__).resolve().parent.parent

NOTES = """\
Each model is its recipe, `python cli.py fit NAME --trainer.precision bf16-mixed`; the paper's number is that of its best
epoch. The dashed lines of the picture are training with the noise on. A model that has had fewer epochs than its recipe
asks for is not finished: its card has no number, and it has no weights."""
"""What is said of every such figure."""


@dataclass
class Curves:
    """One figure: the models, their metric and what stands beside them."""

    script: str
    title: str
    models: Sequence[str]
    metric: type[ExactMean]
    epochs: Sequence[int]
    """Those that the table has columns for."""
    limits: tuple[float, float]
    """Of the picture."""
    digits: int
    notes: str
    """What the numbers are."""
    published: tuple[str, Mapping[int, float]] | None = None
    """A published curve: what it is of, and its values by epoch."""

    @property
    def train(self) -> str:
        return f"train/{self.metric.name}"

    @property
    def validation(self) -> str:
        return f"validation/{self.metric.name}"

    def main(self) -> None:
        """Takes what the runs have left, then writes the table and the picture."""
        parser = argparse.ArgumentParser(description=f"{self.title}: the table and the picture of all runs so far.")
        parser.add_argument("--output", type=Path, default=Path(self.script).parent)
        script = parser.parse_args().output / Path(self.script).name
        file = script.with_suffix(".csv")
        curves = {}
        for name in self.models:
            runs = [self._read(found) for found in (LOGS / name).glob("version_*/curve.csv")]
            if longest := max([self._read(file, name), *runs], key=len):
                curves[name] = longest
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, ("model", *self._columns()))
            writer.writeheader()
            writer.writerows({"model": name, **row} for name, rows in curves.items() for row in rows)
        self._draw(curves, file.with_suffix(".png"))
        report.write(
            str(script),
            self.title,
            ["model", "epochs", *map(str, self.epochs), "best", "the paper's"],
            self._table(curves),
            f"{self.notes}\n{NOTES}",
        )

    def _columns(self) -> tuple[str, ...]:
        """Those of a run's own `curve.csv`."""
        return "epoch", "updates", "learning_rate", self.train, self.validation, "seconds"

    def _read(self, file: Path, model: str | None = None) -> list[Row]:
        """A run's learning curve, or that of the model in a file of several; empty where there is no file."""
        if not file.exists():
            return []
        with file.open(newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row.get("model") == model]
        return [{column: float(row[column]) for column in self._columns()} for row in rows]

    def _table(self, curves: dict[str, list[Row]]) -> list[list[str]]:
        """A line a model, the published curve the first."""
        lines = []
        if self.published:
            name, values = self.published
            lines.append(self._line(name, values, max(values), ""))
        for name, rows in curves.items():
            published = card.read(ROOT / "checkpoints" / name).card.published.get("validation")
            values = {int(row["epoch"]): row[self.validation] for row in rows}
            lines.append(self._line(name, values, len(rows), card.as_published(published)))
        return lines

    def _line(self, name: str, values: Mapping[int, float], epochs: int, published: str) -> list[str]:
        """What is known of a run after some of its epochs."""
        at = (max if self.metric.higher_is_better else min)(values, key=values.__getitem__)
        some = [f"{values[epoch]:.{self.digits}f}" if epoch in values else "" for epoch in self.epochs]
        return [name, f"{epochs}", *some, f"{values[at]:.{self.digits + 1}f}, epoch {at}", published]

    def _draw(self, curves: dict[str, list[Row]], file: Path) -> None:
        """Validation and training against the epochs."""
        from matplotlib.figure import Figure  # half a second to import

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        if self.published:
            name, values = self.published
            axes.plot(*zip(*values.items(), strict=True), color="black", marker="o", markersize=3, label=name)
        for number, (name, rows) in enumerate(curves.items()):
            epochs = [row["epoch"] for row in rows]
            axes.plot(epochs, [row[self.validation] for row in rows], color=f"C{number}", marker=".", label=name)
            train = [row[self.train] for row in rows]
            axes.plot(epochs, train, color=f"C{number}", linestyle="--", linewidth=1, alpha=0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{self.metric.unit}: validation, dashed training")
        axes.set_ylim(*self.limits)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.savefig(file, dpi=130)
