"""A callback for the trainings that tests interrupt."""

import os
import signal

from lightning import Callback


class KillAfter(Callback):
    """Kills its own process after so many updates, as a power cut would."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.updates:
            os.kill(os.getpid(), signal.SIGKILL)
