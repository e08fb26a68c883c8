"""What every task shares: exact metrics, the model's own gradient clip, checkpoints from which a run goes on bit for bit."""

import random
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from typing import Any, ClassVar, cast

import numpy as np
import torch
from lightning import LightningModule
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from zoo.arguments import check_positive
from zoo.errors import UserError
from zoo.evaluating import seeded
from zoo.layers import BatchNormLSTM, Recurrent
from zoo.metrics import ExactMean
from zoo.optim import Optimization, ValidatedSGD
from zoo.tokenizer import Tokenizer

POPULATION_BATCHES = 50
"""Of the training data, before each validation of a fit."""

_RANKS = "ranks"


class Task(LightningModule):
    """A LightningModule that measures exactly, and whose checkpoints hold all that the next update depends on.

    The metric of a split is of every prediction since the last report: `measured`. Validation during a fit sees the averages
    of an optimiser that keeps them (`zoo.optim.NTASGD`).

    The checkpoints hold, beside what Lightning saves, the state of every random generator and whatever `running_state`
    returns, of each process.
    """

    material: ClassVar[str]
    """What is predicted, in the words of a report."""

    predicted: ClassVar[str]
    """What `predict` writes, in the words of a report."""

    prediction_columns: ClassVar[tuple[str, ...]]
    """The columns of what `predict` writes."""

    max_norm: float | None = None
    """The gradient's norm is clipped to this, unless the trainer sets `gradient_clip_val`."""

    optimization: Optimization
    """How the weights descend."""

    vocab_size = 0
    """Of a model that reads text, the number of its tokens."""

    tokenizer: Tokenizer | None = None
    """Of a model that reads text, what cuts the text into them."""

    labels: list[str] | None = None
    """Of a classifier, what the classes are called, where they have names."""

    _resumed: dict[str, Any] | None = None
    _diverged: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.measured: dict[str, tuple[float, int]] = {}
        """By split, the metric of the last evaluation and the number of predictions it is of."""
        self.ended = False
        """Whether its own optimiser brought the training to its end."""

    @property
    @abstractmethod
    def metric_type(self) -> type[ExactMean]:
        """The task's metric."""

    @property
    def metric_unit(self) -> str:
        """What the model's numbers are, with their unit."""
        return self.metric_type.unit

    @abstractmethod
    def evaluate_batch(self, batch: Any, batch_idx: int) -> Tensor:
        """What the metric takes of a batch of validation or test."""

    @abstractmethod
    def predict_batch(self, batch: Any, batch_idx: int) -> Tensor:
        """What `predict` gives of a batch."""

    @abstractmethod
    def prediction_rows(self, batch: Any, outputs: Any) -> Iterable[tuple[str, ...]]:
        """The lines that `predict` writes for a batch and what `predict_batch` made of it."""

    def cost(self, split: str) -> float:
        """The last measured metric of a split, its sign such that less is better."""
        value, _ = self.measured[split]
        return -value if self.metric_type.higher_is_better else value

    def setup(self, stage: str) -> None:
        """Makes the metrics."""
        for split in ("train", "validation", "test"):
            self.add_module(f"{split}_metric", self.metric_type())

    def take_tokenizer(self) -> None:
        """Reads by the data's tokenizer; `UserError` where it is not the one that the model was trained with."""
        data: Any = getattr(self.trainer, "datamodule", None)
        tokenizer: Tokenizer | None = data.tokenizer if hasattr(type(data), "tokenizer") else self.tokenizer
        if tokenizer and self.tokenizer and tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                "the data's vocabulary is not the one that the model was trained with: give the data the model's "
                "tokenizer.json (data.init_args.tokenizer)"
            )
        if tokenizer and tokenizer.vocab_size != self.vocab_size:
            raise UserError(
                f"the data's vocabulary has {tokenizer.vocab_size:,} types and the model was built for "
                f"{self.vocab_size:,}: set model.init_args.vocab_size to {tokenizer.vocab_size}, or give the data the "
                "model's tokenizer"
            )
        self.tokenizer = tokenizer

    def estimate_population(self, batches: Iterable[Any]) -> None:
        """Measures the population statistics of recurrent batch norm anew, on the final weights; no other model changes.

        One pass over the training data in training mode, every batch counting the same, and of several processes each
        one's: Cooijmans et al. 2017, arXiv 1603.09025, section 3. The noise is the same at every call.
        """
        layers = self._batch_norms()
        if not layers:
            return
        training = self.training
        try:
            with ExitStack() as stack, torch.no_grad():
                stack.enter_context(seeded(1, self.device))
                for layer in layers:
                    stack.enter_context(layer.estimating_population())
                self.train()
                for inputs, *_ in batches:
                    if inputs.shape[1] > 1:  # one example has no variance
                        self(move_data_to_device(inputs, self.device))
        finally:
            self.train(training)
        if distributed.is_available() and distributed.is_initialized():
            for buffer in (buffer for layer in layers for buffer in layer.buffers()):
                distributed.all_reduce(buffer)
                if buffer.is_floating_point():
                    buffer /= distributed.get_world_size()

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The parameters by depth, for rates and unfreezing that go by it: each recurrent layer, the lowest first, then all
        others, such as embedding and softmax."""
        layers = [module for module in self.modules() if isinstance(module, Recurrent)]
        groups = [group for layer in layers for group in layer.parameters_by_layer()]
        recurrent = {parameter for group in groups for parameter in group}
        return [*groups, [parameter for parameter in self.parameters() if parameter not in recurrent]]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        check_positive(max_norm=self.max_norm)
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

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("validation", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        with self._own_precision():
            return self.predict_batch(batch, batch_idx)

    def _evaluate(self, split: str, batch: Any, batch_idx: int) -> None:
        with self._own_precision():
            self.metric(split).update(self.evaluate_batch(batch, batch_idx))

    def _own_precision(self) -> torch.autocast:
        """The weights', whatever the trainer's is: a model has the same numbers everywhere."""
        return torch.autocast(self.device.type, enabled=False)

    def on_validation_epoch_end(self) -> None:
        self.report("validation")

    def on_test_epoch_end(self) -> None:
        self.report("test")

    def on_validation_start(self) -> None:
        """Puts the optimiser's averages in the place of the weights, and of a fit's data module takes batches to measure
        population statistics on: running averages trail behind the weights."""
        for optimizer in self._validated_optimizers():
            optimizer.swap()
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        data: Any = getattr(self.trainer, "datamodule", None)
        if fitting and data is not None and self._batch_norms():
            self.estimate_population(islice(data.train_dataloader(), POPULATION_BATCHES))

    def _batch_norms(self) -> list[BatchNormLSTM]:
        return [module for module in self.modules() if isinstance(module, BatchNormLSTM)]

    def on_validation_end(self) -> None:
        """Puts the weights back, and tells the optimiser how well it went: callbacks still saw the averages."""
        for optimizer in self._validated_optimizers():
            optimizer.swap()
            if not self.trainer.sanity_checking and optimizer.observe(self.cost("validation")):
                self.trainer.should_stop = self.ended = True

    def on_fit_end(self) -> None:
        """Leaves the averages, which validation saw, in the place of the weights."""
        for optimizer in self._validated_optimizers():
            optimizer.swap()

    def _validated_optimizers(self) -> list[ValidatedSGD]:
        if self.trainer.state.fn != TrainerFn.FITTING:
            return []  # the trainer still has the last fit's
        return [optimizer for optimizer in self.trainer.optimizers if isinstance(optimizer, ValidatedSGD)]

    def running_state(self) -> dict[str, Any]:
        """What else changes from update to update: plain types and tensors only."""
        return {"train": dict(self.metric("train").metric_state), "ended": self.ended}

    def load_running_state(self, state: dict[str, Any]) -> None:
        """Puts back what `running_state` gave."""
        for name, value in state["train"].items():
            setattr(self.metric("train"), name, value.to(self.device))
        self.ended = state.get("ended", False)  # the first checkpoints had none
        self.trainer.should_stop |= self.ended

    def metric(self, split: str) -> ExactMean:
        """The metric of a split."""
        return cast(ExactMean, self.get_submodule(f"{split}_metric"))

    def count_training(self, loss: Tensor, values: Tensor) -> None:
        """Takes an update's loss and what the metric is of."""
        self.metric("train").update(values)
        self.watch(loss)
        if self.trainer.is_last_batch:
            self.report("train")

    def report(self, split: str) -> None:
        """Logs the metric of all predictions since the last report."""
        metric = self.metric(split)
        value, _ = self.measured[split] = metric.result()
        self.log(
            f"{split}/{metric.name}",
            torch.tensor(value, dtype=torch.float64),
            prog_bar=True,
            batch_size=1,
            sync_dist=True,
        )
        metric.reset()

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
        last = f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
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
        """Keeps this process's part for the start of training; weights alone (`load_from_checkpoint`) need no trainer."""
        if self._trainer is None:
            return
        ranks = checkpoint.get(_RANKS, [])
        if len(ranks) != self.trainer.world_size and self.trainer.training:
            raise UserError(
                f"the checkpoint was written by {len(ranks)} processes and cannot go on under {self.trainer.world_size}"
            )
        self._resumed = ranks[self.trainer.global_rank] if self.trainer.training else None

    def on_train_start(self) -> None:
        """Puts back the generators and the running state of the checkpoint; without one, of several processes each draws
        noise of its own."""
        self._diverged = None
        if self._resumed is not None:
            self.load_running_state(self._resumed["running"])
            _set_generators(self._resumed["generators"])
            self._resumed = None
        elif self.global_rank:  # the first keeps the seed, which the data's draws are made from
            torch.manual_seed(torch.initial_seed() + self.global_rank)


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
