"""What every task shares: the model's own gradient clip, and checkpoints from which a run goes on bit for bit."""

import random
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed
from torch.optim import Optimizer

from zoo.errors import UserError
from zoo.optim import Optimization

_RANKS = "ranks"


class Task(LightningModule):
    """A LightningModule whose checkpoints hold all that the next update depends on.

    Beside what Lightning saves, that is the state of every random generator and whatever `running_state` of a subclass
    returns, of each process.
    """

    max_norm: float | None = None
    """The gradient's norm is clipped to this, unless the trainer sets `gradient_clip_val`."""

    optimization: Optimization
    """How the weights descend."""

    _resumed: dict[str, Any] | None = None
    _diverged: Tensor | None = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.optimization.configure(self)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the paper does, or as the trainer is told to."""
        norm = self.max_norm if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, norm, gradient_clip_algorithm or "norm")

    def running_state(self) -> dict[str, Any]:
        """What else changes from update to update: plain types and tensors only."""
        return {}

    def load_running_state(self, state: dict[str, Any]) -> None:
        """Puts back what `running_state` gave."""

    def watch(self, loss: Tensor) -> None:
        """Takes an update's loss; one that is not finite ends the run with a `UserError`.

        On a GPU the losses are looked at together, every 50 updates, for each look waits for the GPU; of several processes
        none looks, as the others would wait for the one that stops: there the weights tell, when a checkpoint is written.
        """
        if self.trainer.world_size > 1:
            return
        step = self.trainer.global_step + 1
        bad = torch.where(loss.detach().isfinite(), 0, step)
        self._diverged = bad if self._diverged is None else torch.where(self._diverged > 0, self._diverged, bad)
        if self.device.type == "cpu" or step % 50 == 0:
            self._check_finite(weights=False)

    def _check_finite(self, weights: bool) -> None:
        if self._diverged is not None and (step := int(self._diverged)):
            raise self._divergence(f"the loss of update {step:,} is not finite")
        if weights:
            names = [name for name, _ in self.named_parameters()]
            finite = torch.stack([parameter.isfinite().all() for parameter in self.parameters()]).tolist()
            if not all(finite):
                raise self._divergence(
                    f"{names[finite.index(False)]} is not finite after {self.trainer.global_step:,} updates"
                )

    def _divergence(self, what: str) -> UserError:
        written = [str(getattr(callback, "last_model_path", "")) for callback in self.trainer.checkpoint_callbacks]
        good = next(filter(None, [*written, self.trainer.ckpt_path]), None)
        last = f"the last good checkpoint is {good} (--ckpt_path)" if good else "no checkpoint was written before"
        return UserError(f"{what}: the run diverged; {last}. A lower learning rate may help")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the generators and the running state of every process; refuses numbers that are not finite."""
        self._check_finite(weights=True)
        own = {"generators": _generators(), "running": self.running_state()}
        ranks = [own]
        if self.trainer.world_size > 1:
            ranks = [None] * self.trainer.world_size  # type: ignore[list-item]
            distributed.all_gather_object(ranks, own)
        checkpoint[_RANKS] = ranks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps this process's part for the start of training."""
        ranks = checkpoint.get(_RANKS, [])
        if len(ranks) != self.trainer.world_size and self.trainer.training:
            raise UserError(
                f"the checkpoint was written by {len(ranks)} processes and cannot go on under {self.trainer.world_size}"
            )
        self._resumed = ranks[self.trainer.global_rank] if self.trainer.training else None

    def on_train_start(self) -> None:
        """Puts back the generators and the running state of the checkpoint."""
        self._diverged = None
        if self._resumed is not None:
            self.load_running_state(self._resumed["running"])
            _set_generators(self._resumed["generators"])
            self._resumed = None


def _generators() -> dict[str, Any]:
    """The states of all generators, in types that torch loads without executing code."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the global one is meant)
    version, numbers, cached = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": [version, list(numbers), cached],
    }


def _set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    version, numbers, cached = state["python"]
    random.setstate((version, tuple(numbers), cached))
