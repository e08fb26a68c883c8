"""What the benchmarks that train share."""

import logging
import time
import warnings
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer

Precision = Literal["32-true", "bf16-mixed"]


def quiet_trainer(**options: Any) -> Trainer:
    """A trainer on the CPU that writes and says nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", num_sanity_val_steps=0, **quiet, **options)


class Clock(Callback):
    """The time from the end of each update to the end of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.times.append(time.perf_counter())
