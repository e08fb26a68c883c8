"""The plain LSTM, zoneout and recurrent batch norm on sequential MNIST at 14 x 14 pixels, twenty minutes each."""

import argparse
import csv
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import report
from lightning import seed_everything
from trainer import quiet_trainer

from zoo.callbacks import LearningCurve, Row
from zoo.datamodules import SequentialMNIST
from zoo.datamodules.mnist import SIDE
from zoo.layers import LSTM
from zoo.models import RecurrentBatchNormClassifier, RecurrentClassifier, ZoneoutClassifier
from zoo.optim import RMSProp
from zoo.tasks import SequenceClassifier

CLASSES = 10
TARGET = 90
TRAIN, VALIDATION = "train/accuracy", "validation/accuracy"
COLUMNS = ("network", "epoch", "updates", "learning_rate", TRAIN, VALIDATION, "seconds")


def plain(units: int, steps: int) -> SequenceClassifier:
    """As lstm-pmnist."""
    layer = LSTM(1, units, bias="one", initial_state="learned")
    return RecurrentClassifier(layer, CLASSES, RMSProp(1e-3, 0.5), max_norm=1.0)


def zoneout(units: int, steps: int) -> SequenceClassifier:
    """As zoneout-pmnist."""
    return ZoneoutClassifier(hidden_size=units)


def batch_norm(units: int, steps: int) -> SequenceClassifier:
    """As rbn-mnist, but that no matrix starts at the identity."""
    return RecurrentBatchNormClassifier(hidden_size=units, max_steps=steps, initial_noise=0.1, identity=False)


NETWORKS: dict[str, Callable[[int, int], SequenceClassifier]] = {
    "LSTM": plain,
    "LSTM with zoneout": zoneout,
    "batch-normalised LSTM": batch_norm,
}
NOTES = """\
Accuracy in %. One layer of {units} units reads a pixel a step, {steps} steps, in the image's own order; batch 100,
RMSProp at 1e-3, the networks those of the recipes lstm-pmnist, zoneout-pmnist and rbn-mnist, with all matrices orthogonal
at first. 50,000 images to train on, 10,000 of validation, after every epoch; seed 1. Times include validation, and for batch
norm measuring its statistics beforehand. The papers train on all 784 pixels for 150 and 200 epochs."""


def train(build: Callable[[int, int], SequenceClassifier], units: int, downsample: int, limit: timedelta) -> list[Row]:
    """One row an epoch."""
    seed_everything(1, verbose=False)
    data = SequentialMNIST("sequential", downsample=downsample)
    curve = LearningCurve()
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(max_epochs=-1, max_time=limit, callbacks=[curve], default_root_dir=folder)
        trainer.fit(build(units, data.num_steps), datamodule=data)
    return curve.rows


def table(curves: dict[str, list[Row]]) -> list[list[str]]:
    """A line a network."""
    lines = []
    for name, rows in curves.items():
        best = max(rows, key=lambda row: row[VALIDATION])
        above = next((row for row in rows if row[VALIDATION] > TARGET), None)
        lines.append(
            [
                name,
                f"{best[VALIDATION]:.2f}",
                str(best["epoch"]),
                f"{above['epoch']}, {above['seconds'] / 60:.1f} min" if above else "never",
                f"{rows[-1]['epoch']}, {rows[-1]['seconds'] / 60:.1f} min",
                f"{rows[-1]['seconds'] / rows[-1]['epoch']:.0f}",
            ]
        )
    return lines


def draw(curves: dict[str, list[Row]], file: Path) -> None:
    """Validation and training accuracy by epoch and by minute."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for name, colour in zip(curves, ("black", "tab:orange", "tab:blue"), strict=True):
        rows = curves[name]
        for axes, x in zip(
            panels, ([row["epoch"] for row in rows], [row["seconds"] / 60 for row in rows]), strict=True
        ):
            axes.plot(x, [row[VALIDATION] for row in rows], color=colour, label=name)
            axes.plot(x, [row[TRAIN] for row in rows], color=colour, linestyle="--", linewidth=1, alpha=0.5)
    for axes, label in zip(panels, ("epoch", "minutes"), strict=True):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy in %: validation, dashed training")
    panels[0].legend(loc="lower right")
    figure.savefig(file, dpi=130)


def main() -> None:
    """Trains one after the other, then writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="for each network")
    parser.add_argument("--downsample", type=int, default=2)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    limit = timedelta(minutes=arguments.minutes)
    file = arguments.output / "downsampled_mnist.csv"
    curves = {}
    for name, build in NETWORKS.items():
        curves[name] = train(build, arguments.units, arguments.downsample, limit)
        print(f"{name}: {curves[name][-1]}", flush=True)
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows({"network": name, **row} for name, rows in curves.items() for row in rows)
    draw(curves, file.with_suffix(".png"))
    side = SIDE // arguments.downsample
    report.write(
        str(arguments.output / Path(__file__).name),
        f"Sequential MNIST at {side} x {side} pixels",
        ["network", "best validation", "at epoch", f"above {TARGET} after epoch", "run", "seconds an epoch"],
        table(curves),
        NOTES.format(units=arguments.units, steps=side * side),
    )


if __name__ == "__main__":
    main()
