"""Callbacks of the trainer: the checkpoint to resume from, the learning curve, the file of surprisals."""

import csv
import math
import time
from pathlib import Path
from typing import Any, TextIO

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from zoo.score import tokenizer_of, visible
from zoo.tasks import LanguageModel

Row = dict[str, float]


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the run's folder: every `every_n_train_steps` updates and after every epoch.

    Lightning's ModelCheckpoint would also write on an epoch's last update, before that epoch's validation, which a resumed
    run then leaves out.
    """

    def __init__(self, every_n_train_steps: int = 500) -> None:
        self.every_n_train_steps = every_n_train_steps

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        due = trainer.global_step % self.every_n_train_steps == 0 or trainer.global_step == trainer.max_steps
        if due and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch cut short by max_steps ends too, and would be saved as if it were complete.
        if trainer.is_last_batch:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(run_folder(trainer) / "checkpoints" / "last.ckpt")


class LearningCurve(Callback):
    """One row an epoch: updates, learning rate, the training and validation metrics, seconds; survives a resume.

    Written to `curve.csv` and drawn to `curve.png` in the run's folder after each epoch.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._seconds = 0.0
        self._since = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, validation included, interruptions not."""
        return self._seconds + time.monotonic() - self._since

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "train/loss"}
        if not metrics or not trainer.is_last_batch:
            return
        (rate, *_) = (group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        epoch = {"epoch": trainer.current_epoch + 1, "updates": trainer.global_step, "learning_rate": rate}
        self.rows.append({**epoch, **dict(sorted(metrics.items())), "seconds": round(self.seconds, 1)})
        if trainer.is_global_zero:
            write(self.rows, run_folder(trainer))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._seconds = list(state_dict["rows"]), state_dict["seconds"]


class SurprisalFile(Callback):
    """Writes what a language model predicts as it comes: every token of the text and its surprisal in bits."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._lines = self.file.open("w", encoding="utf-8")
        self._lines.write("token\tbits\n")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        assert isinstance(pl_module, LanguageModel)
        assert self._lines is not None
        tokens = tokenizer_of(pl_module).tokens(batch[1].flatten().tolist())
        for token, nats in zip(tokens, outputs.flatten().tolist(), strict=True):
            self._lines.write(f"{visible(token)}\t{nats / math.log(2):.4f}\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._lines is not None:
            self._lines.close()


def run_folder(trainer: Trainer) -> Path:
    """Where a run keeps its files: the logger's folder, else the trainer's."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def write(rows: list[Row], folder: Path) -> None:
    """`curve.csv` and `curve.png` of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "curve.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[-1])
        table.writeheader()
        table.writerows(rows)
    draw(rows, folder / "curve.png")


def draw(rows: list[Row], file: Path) -> None:
    """Every metric of the rows against the epochs, the best validation value marked."""
    from matplotlib.figure import Figure  # half a second to import
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in rows]
    names = [name for name in rows[-1] if "/" in name]
    for name in names:
        split, metric = name.split("/")
        values = [row[name] for row in rows]
        style = {"train": "--", "validation": "-"}.get(split, ":")
        axes.plot(epochs, values, style, marker=".", label=f"{split} {metric.replace('_', ' ')}")
        if split == "validation":
            best = min(range(len(values)), key=values.__getitem__)
            axes.annotate(
                f"{values[best]:.4g}", (epochs[best], values[best]), (0, 8), textcoords="offset points", ha="right"
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel(" and ".join(sorted({name.split("/")[1].replace("_", " ") for name in names})))
    if max(max(row[name] for row in rows) / min(row[name] for row in rows) for name in names) > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
