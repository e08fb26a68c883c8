"""A callback for the trainings that tests interrupt."""

import os
import signal

from lightning import Callback


class KillAfter(Callback):
    """Sends its own process a signal after so many updates: SIGKILL, as a power cut would, or another."""

    def __init__(self, updates: int, number: int = signal.SIGKILL) -> None:
        self.updates, self.number = updates, number

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.updates:
            os.kill(os.getpid(), self.number)
