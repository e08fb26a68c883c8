"""AWD-LSTM at a quarter of its width, trained for a few epochs with shares of its regularisers' rates, none among them.

Each is a run of the recipe `awd-lstm-ptb` with other numbers, which a stopped script goes on with. Table and picture are
made of the runs' curves and cards.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

import report
import yaml

from zoo import card
from zoo.files import RECIPE as CONFIG
from zoo.runs import LOGS, last_checkpoints

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "awd-lstm-ptb"
SIZES = {"embedding_size": 100, "hidden_size": 288}
RATES = (
    *("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop"),
    *("activation", "temporal_activation", "optimization.weight_decay"),
)
SHARES = (0.0, 0.25, 0.5)

NOTES = """\
Perplexity per word of Penn Treebank. The recipe awd-lstm-ptb with embeddings of {embedding_size} and {hidden_size} units
({hidden_size}-{hidden_size}-{embedding_size}; the full network has 400 and 1150), {epochs} epochs each, the same seed,
batches, rate of 30 and rule for the averaging. The share multiplies all five dropouts, AR, TAR and the weight decay; with
0 there is none of them. The shares compete on validation; the test text is read once, at each run's best epoch. Training
perplexity is that of the epoch, with the noise on and the weights changing.

{verdict}"""


def settings(share: float) -> list[str]:
    """The options by which a run differs from the recipe."""
    recipe = yaml.safe_load((ROOT / "checkpoints" / RECIPE / CONFIG).read_text(encoding="utf-8"))
    arguments = recipe["model"]["init_args"]
    arguments = {**arguments, "optimization.weight_decay": arguments["optimization"]["init_args"]["weight_decay"]}
    changed = {**SIZES, **{name: share * arguments[name] for name in RATES}}
    return [f"--model.{name}={value}" for name, value in changed.items()]


def name_of(share: float) -> str:
    """What a run is called."""
    return f"quarter-{RECIPE}-{share:g}"


def bundles_of(share: float) -> list[Path]:
    """The bundle of the finished run, if there is one."""
    name = name_of(share)
    found = [file.parent for file in (LOGS / name).glob(f"version_*/{name}/{CONFIG}")]
    return [folder for folder in found if card.read(folder).ours() is not None]


def train(share: float, epochs: int) -> None:
    """Runs or goes on."""
    command = [sys.executable, str(ROOT / "cli.py"), "fit", RECIPE, "--name", name_of(share), *settings(share)]
    command += [f"--trainer.max_epochs={epochs}", "--trainer.enable_progress_bar=false"]
    if last_checkpoints(name_of(share)):
        command += ["--ckpt_path", "last"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def curve_of(share: float) -> list[dict[str, float]]:
    """A row an epoch of a finished run."""
    with (bundles_of(share)[0] / "curve.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def line(share: float, kept: dict[str, float], last: dict[str, float]) -> list[str]:
    """The table's line of a run, from the epoch that it kept and its last one."""
    train, validation = "train/perplexity", "validation/perplexity"
    values = (kept[train], kept[validation], card.read(bundles_of(share)[0]).ours(), last[train], last[validation])
    return [f"{share:g}", f"{kept['epoch']:g}", *(f"{value:.1f}" for value in values)]


def draw(curves: dict[float, list[dict[str, float]]], file: Path) -> None:
    """Validation and training perplexity by epoch."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for (share, rows), colour in zip(curves.items(), ("black", "tab:blue", "tab:orange", "tab:green"), strict=False):
        epochs = [row["epoch"] for row in rows]
        label = f"{share:g} of the rates" if share else "no regulariser"
        axes.plot(epochs, [row["validation/perplexity"] for row in rows], marker=".", color=colour, label=label)
        axes.plot(
            epochs, [row["train/perplexity"] for row in rows], color=colour, linestyle="--", linewidth=1, alpha=0.5
        )
    axes.set(xlabel="epoch", ylabel="perplexity: validation, dashed training", yscale="log")
    ticks = [50, 70, 100, 150, 200, 300, 500]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=130)


def main() -> None:
    """Trains what is not finished, then writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--train", action="store_true", help="train, and write nothing")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    for share in arguments.shares:
        if not bundles_of(share):
            train(share, arguments.epochs)
    if arguments.train:
        return
    curves = {share: curve_of(share) for share in arguments.shares}
    kept = {share: min(rows, key=lambda row: row["validation/perplexity"]) for share, rows in curves.items()}
    chosen = min(kept, key=lambda share: kept[share]["validation/perplexity"])
    verdict = f"By validation the best of these shares is {chosen:g}."
    with (arguments.output / "quarter_awd_lstm.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["share", *curves[chosen][0]])
        writer.writerows([share, *row.values()] for share, rows in curves.items() for row in rows)
    report.write(
        str(arguments.output / Path(__file__).name),
        "AWD-LSTM at a quarter of its width, with and without its regularisers",
        ["share", "best epoch", "train", "validation", "test", "last: train", "last: validation"],
        [line(share, kept[share], rows[-1]) for share, rows in curves.items()],
        NOTES.format(**SIZES, epochs=len(curves[chosen]), verdict=verdict),
    )
    draw(curves, arguments.output / "quarter_awd_lstm.png")


if __name__ == "__main__":
    main()
