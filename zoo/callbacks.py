"""Callbacks of the trainer: the checkpoint to resume from, the best weights, the learning curve, the file of predictions."""

import csv
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from zoo.arguments import check_counts, check_positive
from zoo.errors import UserError
from zoo.metrics import METRICS
from zoo.regularisers import CurriculumDropout
from zoo.tasks import LanguageModel, Task

Row = dict[str, float]


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` in the run's folder: every `every_n_train_steps` updates and after every epoch.

    A run that is told to stop in mid-epoch (`max_steps`, `max_time`, a SIGTERM to a single process) is saved where it stops.
    Else never between an update and the validation that follows it, which a resumed run would leave out: an epoch's last
    update is saved with its validation, and one with a validation in mid-epoch gives way to the next (a `val_check_interval`
    in updates; one in time is not foreseen).
    """

    def __init__(self, every_n_train_steps: int = 500) -> None:
        check_counts(every_n_train_steps=every_n_train_steps)
        self.every_n_train_steps = every_n_train_steps
        self.last_model_path = ""
        """Where the newest checkpoint lies; the name is Lightning's."""
        self._step = 0
        self._due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        step, before = trainer.global_step, self._step
        if step == before:  # gradients accumulate, and those are in no checkpoint
            return
        self._step = step
        self._due |= step % self.every_n_train_steps == 0
        if trainer.is_last_batch:
            return
        stops = step == trainer.max_steps or (trainer.should_stop and trainer.fit_loop._can_stop_early)
        # Of several processes the others may not know of a signal.
        stops |= trainer.received_sigterm and trainer.world_size == 1
        if stops or (self._due and not _validates(trainer)):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch cut short by max_steps ends too, and would be saved as if it were complete.
        if trainer.is_last_batch:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Replaces the old checkpoint in one move: at any moment there is a whole one."""
        self._due = False
        file = run_folder(trainer) / "checkpoints" / "last.ckpt"
        written = file.with_suffix(".new")
        trainer.save_checkpoint(written)
        if trainer.is_global_zero:
            os.replace(written, file)
        self.last_model_path = str(file)


def _validates(trainer: Trainer) -> bool:
    """Whether a validation in mid-epoch follows the update."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    updates = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx
    return every is not None and (updates + 1) % every == 0


class Patience(EarlyStopping):
    """`EarlyStopping` that lets a resumed run end where it had already stopped."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        trainer.should_stop |= self.wait_count >= self.patience


class BestWeights(Callback):
    """Keeps the weights with which the model did best in validation.

    They are what validation saw: averages, where the optimiser keeps them. They travel in the checkpoint, so that a resumed
    run has them.
    """

    def __init__(self) -> None:
        self.value = math.inf
        """The task's `cost`: less is better."""
        self.epoch = 0
        """Counted from 1; 0 before the first validation, or for the weights that a fine-tuning begins with."""
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            assert isinstance(pl_module, Task)
            self.take(pl_module, trainer.current_epoch + 1)

    def take(self, model: Task, epoch: int) -> None:
        """Keeps the model's weights if its last validation was the best so far."""
        value = model.cost("validation")
        if value < self.value:
            self.value, self.epoch = value, epoch
            self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value, self.epoch, self.weights = state_dict["value"], state_dict["epoch"], state_dict["weights"]


class LearningCurve(Callback):
    """One row an epoch: updates, learning rate, the training and validation metrics, seconds; survives a resume.

    Of several learning rates the highest stands there. Written to `curve.csv` and drawn to `curve.png` in the run's folder
    after each epoch.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._rate = 0.0
        self._validation: Row = {}
        """What the epoch's last validation so far gave."""
        self._seconds = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, validation included, interruptions not."""
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        # At the epoch's end the schedule has already set the next epoch's rate.
        self._rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation = _logged(trainer, validation=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_last_batch:
            return
        metrics = _logged(trainer, validation=False) | self._validation
        self._validation = {}
        epoch = {"epoch": trainer.current_epoch + 1, "updates": trainer.global_step, "learning_rate": self._rate}
        self.rows.append({**epoch, **dict(sorted(metrics.items())), "seconds": round(self.seconds, 1)})
        if trainer.is_global_zero:
            write_curve(self.rows, folder)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds, "validation": self._validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._seconds = list(state_dict["rows"]), state_dict["seconds"]
        self._validation = state_dict.get("validation", {})  # the first checkpoints had none


def _logged(trainer: Trainer, validation: bool) -> Row:
    """The newest metrics of validation, or of training and the difficulty of graded data; no other callback's."""
    prefixes = ("validation/",) if validation else ("train/", "difficulty")
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "train/loss"}
    return {name: value for name, value in logged.items() if name.startswith(prefixes)}


class DropoutCurriculum(Callback):
    """Raises the model's drop probabilities from 0 to their own values as the fit goes on (`CurriculumDropout`).

    gamma is a rate per update; None takes 10 / the run's number of updates. A resumed run keeps the gamma it began with.
    Validation during the fit sees the current probabilities; after it, or when it breaks off, the model has its own back.
    """

    def __init__(self, gamma: float | None = None) -> None:
        check_positive(gamma=gamma)
        self.gamma = gamma
        self._schedule: CurriculumDropout | None = None
        self._resumed: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in on_fit_start: counting the updates loads the data, which then misses its position in the checkpoint.
        gamma = self.gamma
        if gamma is None:
            updates = trainer.estimated_stepping_batches
            if updates == math.inf:
                raise UserError("gamma is None, which stands for 10 / the number of updates, and this run has no end")
            gamma = 10 / max(updates, 1)
        try:
            self._schedule = CurriculumDropout(pl_module, gamma)
        except ValueError as error:
            raise UserError(f"DropoutCurriculum: {error}") from error
        if self._resumed is not None:
            self._schedule.load_state_dict(self._resumed)
            self._resumed = None
        self._schedule.at(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self._schedule is not None and self._schedule.updates != trainer.global_step:
            self._schedule.at(trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._schedule is None else self._schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def _finish(self) -> None:
        if self._schedule is not None:
            self._schedule.finish()


class GradualUnfreezing(Callback):
    """Trains the last of the model's `layer_groups` alone in the first epoch, and one more in each epoch that follows.

    Howard and Ruder 2018, arXiv 1801.06146, section 3.3.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_upper(pl_module, trainer.current_epoch + 1)  # Lightning starts no epoch that it resumes

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_upper(pl_module, trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_upper(pl_module, sys.maxsize)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._train_upper(pl_module, sys.maxsize)

    def _train_upper(self, model: LightningModule, count: int) -> None:
        assert isinstance(model, Task)
        for depth, group in enumerate(reversed(model.layer_groups())):
            for parameter in group:
                parameter.requires_grad_(depth < count)


class PredictionFile(Callback):
    """Writes what a model predicts as it comes, a line a prediction, between tabs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lines: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:  # which has the whole of a single stream
            assert isinstance(pl_module, Task)
            if trainer.world_size > 1 and not isinstance(pl_module, LanguageModel):
                raise UserError(
                    f"predict runs on {trainer.world_size} processes, of which each has its share of the "
                    f"{pl_module.material} and one writes: set trainer.devices to 1"
                )
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lines = self.file.open("w", encoding="utf-8")
            self._lines.write("\t".join(pl_module.prediction_columns) + "\n")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if self._lines is not None:
            assert isinstance(pl_module, Task)
            self._lines.writelines("\t".join(row) + "\n" for row in pl_module.prediction_rows(batch, outputs))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._lines is not None:
            self._lines.close()


def run_folder(trainer: Trainer) -> Path:
    """Where a run keeps its files: the logger's folder, else the trainer's. To be called by every process."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def write_curve(rows: list[Row], folder: Path) -> None:
    """`curve.csv` and `curve.png` of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (folder / "curve.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    try:
        draw_curve(rows, folder / "curve.png")
    except Exception:  # a picture is no reason to end a run
        logging.getLogger(__name__).exception("the learning curve could not be drawn")


def draw_curve(rows: list[Row], file: Path) -> None:
    """Every metric of the rows against the epochs, the best validation value marked: of graded data, of the last grade."""
    from matplotlib.figure import Figure  # half a second to import
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for row in rows for name in row if "/" in name))
    spread = 1.0
    grades = [row.get("difficulty") for row in rows]
    for row, before, grade in zip(rows[1:], grades, grades[1:], strict=False):
        if grade != before:
            axes.axvline(row["epoch"] - 0.5, color="gray", linewidth=1)
            axes.annotate(f" difficulty {grade:g}", (row["epoch"] - 0.5, 0.02), xycoords=("data", "axes fraction"))
    for name in names:
        split, metric = name.split("/", 1)
        measured = [row for row in rows if name in row]
        epochs, values = zip(*((row["epoch"], row[name]) for row in measured), strict=True)
        known = METRICS.get(metric)
        rises = known is not None and known.higher_is_better
        style = {"train": "--", "validation": "-"}.get(split, ":")
        axes.plot(epochs, values, style, marker=".", label=f"{split} {metric.replace('_', ' ')}")
        if min(values) > 0 and not rises:
            spread = max(spread, max(values) / min(values))
        if split == "validation" and known is not None:
            of_last_grade = [at for at, row in enumerate(measured) if row.get("difficulty") == grades[-1]]
            best = (max if rises else min)(of_last_grade, key=values.__getitem__)
            text, point = f"{values[best]:.4g}", (epochs[best], values[best])
            covered = measured[best].get(f"train/{metric}", -math.inf) > values[best]  # by the curve above
            offset = (0, -16 if rises and covered else 8)
            axes.annotate(text, point, offset, textcoords="offset points", ha="center" if rises else "right")
    axes.margins(y=0.1)
    axes.set_xlabel("epoch")
    axes.set_ylabel(" and ".join(sorted({name.split("/", 1)[1].replace("_", " ") for name in names})))
    if spread > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
