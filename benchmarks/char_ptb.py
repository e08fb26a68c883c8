"""Learning curves of the character models on Penn Treebank, beside the log that the zoneout authors published.

They are what `python cli.py fit NAME` leaves under `logs/`, finished or not; `char_ptb.csv` keeps the longest of each model.
"""

import argparse
import csv
from pathlib import Path

import report

from zoo import card
from zoo.callbacks import Row
from zoo.runs import LOGS

ROOT = Path(__file__).resolve().parent.parent
MODELS = (
    "zoneout-char-ptb",
    "lstm-char-ptb",
    "weight-noise-char-ptb",
    "norm-stabiliser-char-ptb",
    "stochastic-depth-char-ptb",
    "recurrent-dropout-char-ptb",
    "rbn-char-ptb",
)
LOG = {
    1: 1.733,
    2: 1.602,
    5: 1.488,
    10: 1.438,
    20: 1.402,
    40: 1.378,
    60: 1.370,
    80: 1.366,
    82: 1.3645,
    107: 1.3644,
    110: 1.367,
}
"""By epoch, validation bits per character of zoneout: github.com/teganmaharaj/zoneout,
drop_prob_cells=0.5_drop_prob_states=0.95.4/log.txt."""

TRAIN, VALIDATION = "train/bits_per_character", "validation/bits_per_character"
COLUMNS = ("epoch", "updates", "learning_rate", TRAIN, VALIDATION, "seconds")

EPOCHS = (1, 2, 5, 10, 20, 40, 60, 80)

NOTES = """\
Bits per character of the validation text after so many epochs, read in pieces of 100 symbols as the authors' log has it, and
at best. Each model is its recipe, `python cli.py fit NAME --trainer.precision bf16-mixed`; the paper's number is that of its
best epoch. The dashed lines of the picture are training with the noise on. A model that has had fewer epochs than its recipe
asks for is not finished: its card has no number, and it has no weights."""


def read(file: Path, model: str | None = None) -> list[Row]:
    """A run's learning curve, or that of the model in a file of several; empty where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("model") == model]
    return [{column: float(row[column]) for column in COLUMNS} for row in rows]


def table(curves: dict[str, list[Row]]) -> list[list[str]]:
    """A line a model, the authors' log the first."""
    lines = [line("zoneout, the authors' log", LOG, max(LOG), "")]
    for name, rows in curves.items():
        published = card.read(ROOT / "checkpoints" / name).card.published.get("validation")
        values = {int(row["epoch"]): row[VALIDATION] for row in rows}
        lines.append(line(name, values, len(rows), card.as_published(published)))
    return lines


def line(name: str, values: dict[int, float], epochs: int, published: str) -> list[str]:
    """What is known of a run after some of its epochs."""
    at = min(values, key=values.__getitem__)
    some = [f"{values[epoch]:.3f}" if epoch in values else "" for epoch in EPOCHS]
    return [name, f"{epochs}", *some, f"{values[at]:.4f}, epoch {at}", published]


def draw(curves: dict[str, list[Row]], file: Path) -> None:
    """Validation and training against the epochs."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        *zip(*LOG.items(), strict=True), color="black", marker="o", markersize=3, label="zoneout, the authors' log"
    )
    for number, (name, rows) in enumerate(curves.items()):
        epochs = [row["epoch"] for row in rows]
        axes.plot(epochs, [row[VALIDATION] for row in rows], color=f"C{number}", marker=".", label=name)
        axes.plot(epochs, [row[TRAIN] for row in rows], color=f"C{number}", linestyle="--", linewidth=1, alpha=0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("bits per character of validation")
    axes.set_ylim(1.25, 1.95)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, dpi=130)


def main() -> None:
    """Takes what the runs have left, then writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    file = arguments.output / "char_ptb.csv"
    curves = {}
    for name in MODELS:
        runs = [read(found) for found in (LOGS / name).glob("version_*/curve.csv")]
        if longest := max([read(file, name), *runs], key=len):
            curves[name] = longest
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, ("model", *COLUMNS))
        writer.writeheader()
        writer.writerows({"model": name, **row} for name, rows in curves.items() for row in rows)
    draw(curves, file.with_suffix(".png"))
    report.write(
        str(arguments.output / Path(__file__).name),
        "Characters of Penn Treebank",
        ["model", "epochs", *map(str, EPOCHS), "best", "the paper's"],
        table(curves),
        NOTES,
    )


if __name__ == "__main__":
    main()
