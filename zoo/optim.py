"""Optimisers and schedules that torch lacks, and how a recipe names them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from itertools import accumulate
from typing import Any, overload

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from zoo.arguments import check_counts, check_not_negative, check_positive
from zoo.errors import UserError

Tensors = tuple[Tensor, ...] | list[Tensor]


class Descent(Optimizer, ABC):
    """An optimiser that moves the parameters of each group together."""

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(group, parameters, [p.grad for p in parameters])
        self._stepped()
        return loss

    @abstractmethod
    def _move(self, group: dict[str, Any], parameters: list[Tensor], gradients: Tensors) -> None:
        """Updates those of a group that have a gradient; without gradients of its own."""

    def _stepped(self) -> None:
        """What follows an update; without gradients."""


class ValidatedSGD(Descent):
    """SGD, without momentum, that learns after every validation how the text was predicted.

        p <- p - lr (g + weight_decay p)

    All that it decides by lies in its `state_dict`, so that a resumed run decides alike.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        check_not_negative(lr=lr, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.history: list[float] = []
        """What the validations gave, those that the rule still looks at."""
        self.swapped = False
        """Whether what validation sees stands in the weights' place."""

    @property
    def parameters(self) -> list[Tensor]:
        """Those of all groups."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _move(self, group: dict[str, Any], parameters: list[Tensor], gradients: Tensors) -> None:
        if self.swapped:
            raise RuntimeError("the averages stand in the place of the weights: swap before the next step")
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        torch._foreach_add_(parameters, gradients, alpha=-group["lr"])

    @abstractmethod
    def observe(self, value: float) -> bool:
        """Takes a validation's loss, or what rises with it; True where the training has come to its end."""

    def swap(self) -> None:
        """Exchanges the weights and what validation is to see in their place; a second call undoes the first."""

    _own: tuple[str, ...] = ("history",)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "validated": deepcopy({name: getattr(self, name) for name in self._own})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for name, value in deepcopy(state_dict["validated"]).items():
            setattr(self, name, value)


class NTASGD(ValidatedSGD):
    """SGD that begins to average its iterates when validation stops improving: non-monotonically triggered ASGD.

        p(k) = p(k-1) - lr (g + weight_decay p(k-1))
        a(1) = p(1), a(k) = a(k-1) + (p(k) - a(k-1)) / max(1, k - 1)        k counts from the trigger

    so that a(k) is the mean of p(2) to p(k). The trigger is the authors' code's: after a validation worse than the best of
    all but the `non_monotone` latest before it (the paper's algorithm 1 lets the latest ones count; its authors call that a
    typo). Validation sees the averages (`swap`), the training goes on with the weights.

    With `fine_tuning` it averages from the first update on, and the same rule ends the training.

    The averages are torch.optim.ASGD's with t0 = 0 and lambd = 0, but that one steps with the learning rate of the update
    before. Merity, Keskar and Socher 2018, "Regularizing and optimizing LSTM language models", arXiv 1708.02182,
    section 3; https://github.com/salesforce/awd-lstm-lm, main.py and finetune.py.
    """

    _own = ("history", "averaged", "swapped")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        non_monotone: int = 5,
        fine_tuning: bool = False,
    ) -> None:
        check_counts(non_monotone=non_monotone)
        super().__init__(params, lr, weight_decay)
        self.non_monotone, self.fine_tuning = non_monotone, fine_tuning
        self.averaged: int | None = 0 if fine_tuning else None
        """Updates since the averaging began; None before."""

    def _stepped(self) -> None:
        if self.averaged is None:
            return
        self.averaged += 1
        if self.averaged <= 2:
            for parameter in self.parameters:
                self.state[parameter]["average"] = parameter.detach().clone()
        else:
            averages = [self.state[parameter]["average"] for parameter in self.parameters]
            torch._foreach_lerp_(averages, self.parameters, 1 / (self.averaged - 1))

    def observe(self, value: float) -> bool:
        if self.averaged is not None and not self.fine_tuning:
            return False
        earlier = self.history[: -self.non_monotone]
        worse = bool(earlier) and value > min(earlier)
        self.history.append(value)
        if worse and self.averaged is None:
            self.averaged = 0
        return worse and self.fine_tuning

    @torch.no_grad()
    def swap(self) -> None:
        if not self.averaged:
            return
        for parameter in self.parameters:
            average = self.state[parameter]["average"]
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)
        self.swapped = not self.swapped

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken; one taken while the averages stood in the weights' place is put right.

        The weights must be loaded first.
        """
        super().load_state_dict(state_dict)
        if self.swapped:
            self.swap()


class PlateauSGD(ValidatedSGD):
    """SGD whose rate is divided by `decay` when validation has not improved for more than `patience` validations.

    With `reload_best` the weights of the best validation come back at that moment. The training ends when the rate falls
    below `least`.
    """

    _own = ("history", "failures")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        decay: float = 3.0,
        patience: int = 0,
        least: float = 0.0,
        reload_best: bool = False,
    ) -> None:
        if decay <= 1:
            raise UserError(f"decay is {decay}; it must be above 1")
        if patience < 0:
            raise UserError(f"patience is {patience}; it must be 0 or more")
        super().__init__(params, lr, weight_decay)
        self.decay, self.patience, self.least, self.reload_best = decay, patience, least, reload_best
        self.failures = 0
        """Validations since the last that was better than all before it, or since the rate last fell."""

    @torch.no_grad()
    def observe(self, value: float) -> bool:
        if not self.history or not value >= self.history[0]:
            self.history, self.failures = [value], 0
            if self.reload_best:
                for parameter in self.parameters:
                    self.state[parameter]["best"] = parameter.detach().clone()
            return False
        self.failures += 1
        if self.failures > self.patience:
            self.failures = 0
            for group in self.param_groups:
                group["lr"] /= self.decay
            if self.reload_best:
                for parameter in self.parameters:
                    parameter.copy_(self.state[parameter]["best"])
        return any(group["lr"] < self.least for group in self.param_groups)


class FlooredRMSprop(Descent):
    """RMSprop without momentum, whose divisor is floored: that of the library Blocks.

        v <- decay v + (1 - decay) g^2        p <- p - lr g / max(sqrt(v), floor)        v = 0 at first

    `torch.optim.RMSprop` divides by sqrt(v) + eps. With its eps of 1e-8 a gradient far below 1e-5 is multiplied by up to
    1e8, not 1e5; with 1e-5 every step is shortened, at sqrt(v) = 1e-4 by a tenth.

    Blocks, https://github.com/mila-iqia/blocks, algorithms, BasicRMSProp: the optimiser of Cooijmans et al. 2017, arXiv
    1603.09025, and of Krueger et al. 2017, arXiv 1606.01305, on MNIST.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, decay: float, floor: float = 1e-5) -> None:
        check_not_negative(lr=lr)
        check_positive(floor=floor)
        if not 0 <= decay <= 1:
            raise UserError(f"decay is {decay}; it must lie in [0, 1]")
        super().__init__(params, {"lr": lr, "decay": decay, "floor": floor})

    def _move(self, group: dict[str, Any], parameters: list[Tensor], gradients: Tensors) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["square"] = torch.zeros_like(parameter)
        squares = [self.state[parameter]["square"] for parameter in parameters]
        torch._foreach_mul_(squares, group["decay"])
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["decay"])
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_clamp_min_(divisors, group["floor"])
        torch._foreach_addcdiv_(parameters, gradients, divisors, value=-group["lr"])


class ClippedUpdateAdam(Adam):
    """Adam whose update, the learning rate in it, is scaled down to an L2 norm of at most `max_update_norm`.

        u = -lr m^ / (sqrt(v^) + eps)        p <- p + u min(1, max_update_norm / ||u||)        ||u|| over all groups

    The moments are those of plain Adam. So the zoneout authors' code has it, [Adam, StepClipping], where the paper speaks of
    clipping gradients. Adam's first updates move every element by lr, so that ||u|| is lr times the root of their number:
    4.1 for the 4.3 million of their character model at lr 0.002, with a maximum of 1.

    Their library adds eps to the root of v before its bias is corrected, which is this Adam with eps / sqrt(1 - beta_2^t) in
    the place of eps. Where sqrt(v^) is 1e-4 and eps 1e-8 that moves a weight by 0.3 % less at the first update and 0.02 %
    less at the hundredth.

    Krueger et al. 2017, arXiv 1606.01305, section 4.1; https://github.com/teganmaharaj/zoneout, zoneout_char_ptb.py.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, max_update_norm: float, weight_decay: float = 0.0) -> None:
        check_positive(max_update_norm=max_update_norm)
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.max_update_norm = max_update_norm
        self._before: list[Tensor] = []
        # Not in `step`: torch would run the hooks of others once more in Adam's.
        self.register_step_pre_hook(self._remember)
        self.register_step_post_hook(self._clip)

    @torch.no_grad()
    def _remember(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._before = [parameter.clone() for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def _clip(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Takes back what is too much: nothing, to the bit, where the norm is within the bound."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        back, self._before = self._before, []
        torch._foreach_sub_(back, parameters)
        # Not `vector_norm`, which on a CPU errs by 0.3 % where 4 million elements are equal, as Adam's first updates are.
        norm = torch.stack([change.square().sum() for change in back]).sum().sqrt()
        torch._foreach_mul_(back, 1 - (self.max_update_norm / norm).clamp(max=1))
        torch._foreach_add_(parameters, back)


class OneCycle(LRScheduler):
    """Up, flat, down, and a last anneal: the learning rate and the momentum (Adam's beta_1) over a whole run.

        rate        max / div -> max      max          max -> max / div      max / div -> 0
                    linear                constant     linear                half a cosine
        momentum    high -> low           low          low -> high           high

    `updates` are those of the four phases. Smith 2018, "A disciplined approach to neural network hyper-parameters", arXiv
    1803.09820, in the form of https://github.com/sgugger/Adam-experiments, utils.py.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rate: float,
        updates: tuple[int, int, int, int],
        div: float = 10.0,
        momentum: tuple[float, float] = (0.8, 0.7),
    ) -> None:
        self.rate, self.div, self.momentum = rate, div, momentum
        self.ends = list(accumulate(updates))
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        rate, momentum = self.at(self.last_epoch)
        for group in self.optimizer.param_groups:
            group["betas"] = (momentum, *group["betas"][1:])
        return [rate] * len(self.optimizer.param_groups)

    def at(self, update: int) -> tuple[float, float]:
        """The rate and the momentum after so many updates."""
        low, high = self.rate / self.div, self.rate
        most, least = self.momentum
        starts = [0, *self.ends]
        phase = next((phase for phase, end in enumerate(self.ends) if update < end), None)
        if phase is None:
            return 0.0, most
        done = (update - starts[phase]) / (self.ends[phase] - starts[phase])
        return (
            (low + (high - low) * done, most + (least - most) * done),
            (high, least),
            (high + (low - high) * done, least + (most - least) * done),
            (low * (1 + math.cos(math.pi * done)) / 2, most),
        )[phase]


def slanted_triangle(update: int, updates: int, cut: float, ratio: float) -> float:
    """The share of the highest learning rate before the given update of a run of `updates`.

        (1 + p (ratio - 1)) / ratio        p = t / c up to c = floor(cut * updates), then 1 - (t - c) / (updates - c)

    Up for the share `cut` of the run, then down to 1 / ratio: the slanted triangular learning rates of Howard and Ruder
    2018, "Universal language model fine-tuning for text classification", arXiv 1801.06146, equation 3.
    """
    top = math.floor(cut * updates)
    p = update / top if update < top else 1 - (update - top) / max(updates - top, 1)
    return (1 + max(p, 0.0) * (ratio - 1)) / ratio


def updates_per_epoch(model: LightningModule) -> int:
    """By the length of the trainer's data module and what it is limited to; raises `UserError` where it has none.

    The trainer's own estimate would load the data before a resumed run has its position.
    """
    trainer: Any = model.trainer
    if trainer.datamodule is None:
        raise UserError("the schedule takes the length of an epoch from a data module: give the fit one (datamodule)")
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    updates: int = math.ceil(batches / trainer.accumulate_grad_batches)
    return updates


def updates_of_run(model: LightningModule) -> int:
    """Those of all the trainer's epochs or, without a number of these, `max_steps`; `UserError` where it has neither."""
    trainer: Any = model.trainer
    if trainer.max_epochs not in (None, -1):
        return updates_per_epoch(model) * int(trainer.max_epochs)
    if trainer.max_steps == -1:
        raise UserError("the schedule takes its length from trainer.max_epochs or trainer.max_steps: give one of them")
    return int(trainer.max_steps)


class Optimization(ABC):
    """How a model's weights descend: the optimiser and its schedule, as a recipe names them."""

    keeps_best = False
    """Whether the model of the best validation is kept, in the place of the last one."""

    fine_tuning = False
    """Whether it goes on from a finished model."""

    @abstractmethod
    def configure(self, model: LightningModule) -> OptimizerLRScheduler:
        """What `configure_optimizers` of such a model returns."""


class _Constant(Optimization):
    """One of the optimisers above, without a schedule; the best model is kept."""

    keeps_best = True
    _optimizer: Callable[[Iterable[Tensor]], Optimizer]

    def configure(self, model: LightningModule) -> OptimizerLRScheduler:
        return self._optimizer(model.parameters())


class NonMonotonicSGD(_Constant):
    """`NTASGD`; the best model is kept, averages and all."""

    def __init__(
        self,
        learning_rate: float = 30.0,
        weight_decay: float = 1.2e-6,
        non_monotone: int = 5,
        fine_tuning: bool = False,
    ) -> None:
        self.fine_tuning = fine_tuning
        self._optimizer = partial(
            NTASGD, lr=learning_rate, weight_decay=weight_decay, non_monotone=non_monotone, fine_tuning=fine_tuning
        )


class ReduceOnPlateauSGD(_Constant):
    """`PlateauSGD`; the best model is kept."""

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float = 0.0,
        decay: float = 3.0,
        patience: int = 0,
        least: float = 0.0,
        reload_best: bool = False,
    ) -> None:
        self._optimizer = partial(
            PlateauSGD,
            lr=learning_rate,
            weight_decay=weight_decay,
            decay=decay,
            patience=patience,
            least=least,
            reload_best=reload_best,
        )


class DecayedSGD(Optimization):
    """SGD at a constant rate for `constant_epochs` epochs and one more, divided by `decay` in each later one.

    Where Zaremba et al. 2014 (section 4.1) write "after 6 epochs we decrease it", their code trains one more epoch at the
    full rate (main.lua tests epoch > 6 at an epoch's end). After each update the weights shrink by `shrinkage` of
    themselves, whatever the rate: the weight decay of Gal and Ghahramani's code. The last model is kept.
    """

    def __init__(self, learning_rate: float, constant_epochs: int, decay: float, shrinkage: float = 0.0) -> None:
        check_not_negative(learning_rate=learning_rate, constant_epochs=constant_epochs, shrinkage=shrinkage)
        check_positive(decay=decay)
        self.learning_rate, self.constant_epochs, self.decay = learning_rate, constant_epochs, decay
        self.shrinkage = shrinkage

    def configure(self, model: LightningModule) -> OptimizerLRScheduler:
        optimizer = SGD(model.parameters(), lr=self.learning_rate)
        if self.shrinkage:
            optimizer.register_step_post_hook(self._shrink)
        schedule = LambdaLR(optimizer, lambda epoch: self.decay ** -max(0, epoch - self.constant_epochs))
        return [optimizer], [schedule]

    @torch.no_grad()
    def _shrink(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            torch._foreach_mul_(group["params"], 1 - self.shrinkage)


class StepAdam(Optimization):
    """Adam whose rate is divided by `decay` after each of the epochs `milestones`; the best model is kept.

    Without milestones the rate stays. `max_update_norm` bounds each update, the rate in it, as in `ClippedUpdateAdam`.
    """

    keeps_best = True

    def __init__(
        self,
        learning_rate: float,
        milestones: list[int] | None = None,
        weight_decay: float = 1.2e-6,
        decay: float = 10.0,
        max_update_norm: float | None = None,
    ) -> None:
        check_not_negative(learning_rate=learning_rate, weight_decay=weight_decay)
        check_positive(decay=decay, max_update_norm=max_update_norm)
        self.learning_rate, self.milestones = learning_rate, milestones or []
        self.weight_decay, self.decay = weight_decay, decay
        self.max_update_norm = max_update_norm

    def configure(self, model: LightningModule) -> OptimizerLRScheduler:
        parameters, rate, weight_decay = model.parameters(), self.learning_rate, self.weight_decay
        if self.max_update_norm is None:
            optimizer = Adam(parameters, lr=rate, weight_decay=weight_decay)
        else:
            optimizer = ClippedUpdateAdam(parameters, rate, self.max_update_norm, weight_decay)
        return [optimizer], [MultiStepLR(optimizer, self.milestones, 1 / self.decay)]


class RMSProp(_Constant):
    """`FlooredRMSprop` at a constant rate; the best model is kept."""

    def __init__(self, learning_rate: float, decay: float) -> None:
        self._optimizer = partial(FlooredRMSprop, lr=learning_rate, decay=decay)


class OneCycleAdam(Optimization):
    """Adam along `OneCycle`, whose phases last `epochs`, each of as many windows as the first; the last model is kept.

    Where the trainer has another number of epochs than their sum, all phases are stretched or shortened alike.
    """

    def __init__(
        self,
        learning_rate: float,
        epochs: tuple[float, float, float, float],
        weight_decay: float = 1.2e-6,
        beta_2: float = 0.99,
        div: float = 10.0,
        momentum: tuple[float, float] = (0.8, 0.7),
    ) -> None:
        check_not_negative(learning_rate=learning_rate, weight_decay=weight_decay)
        check_positive(div=div)
        self.learning_rate, self.epochs, self.weight_decay = learning_rate, epochs, weight_decay
        self.beta_2, self.div, self.momentum = beta_2, div, momentum

    def configure(self, model: LightningModule) -> OptimizerLRScheduler:
        optimizer = Adam(
            model.parameters(),
            lr=self.learning_rate,
            betas=(self.momentum[0], self.beta_2),
            weight_decay=self.weight_decay,
        )
        updates = updates_of_run(model)
        first, second, third, fourth = (round(epochs * updates / sum(self.epochs)) for epochs in self.epochs)
        schedule = OneCycle(optimizer, self.learning_rate, (first, second, third, fourth), self.div, self.momentum)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class DiscriminativeAdam(Optimization):
    """Adam for fine-tuning: each layer group at the rate of the one above it divided by `factor`, all along one triangle.

    The last of the model's `layer_groups` has the rate `learning_rate`; over the whole run the rates follow
    `slanted_triangle`. The best model is kept. Howard and Ruder 2018, arXiv 1801.06146, section 3.2, with its cut and ratio;
    betas and decay are those of fastai's imdb_scripts, finetune_lm.py.
    """

    keeps_best = True

    def __init__(
        self,
        learning_rate: float = 4e-3,
        factor: float = 2.6,
        cut: float = 0.1,
        ratio: float = 32.0,
        weight_decay: float = 1e-7,
        betas: tuple[float, float] = (0.8, 0.99),
    ) -> None:
        check_positive(learning_rate=learning_rate)
        for name, value in {"factor": factor, "ratio": ratio}.items():
            if not 1 <= value < math.inf:
                raise UserError(f"{name} is {value}; it must be finite and 1 or more")
        if not 0 <= cut < 1:
            raise UserError(f"cut is {cut}; it must lie in [0, 1)")
        self.learning_rate, self.factor, self.cut, self.ratio = learning_rate, factor, cut, ratio
        self.weight_decay, self.betas = weight_decay, betas

    def configure(self, model: LightningModule) -> OptimizerLRScheduler:
        groups: list[list[Tensor]] = model.layer_groups()  # type: ignore[operator]  # of a `zoo.tasks.Task`
        rates = (self.learning_rate / self.factor**depth for depth in reversed(range(len(groups))))
        optimizer = Adam(
            [{"params": group, "lr": rate} for group, rate in zip(groups, rates, strict=True)],
            betas=self.betas,
            weight_decay=self.weight_decay,
        )
        updates = updates_of_run(model)
        schedule = LambdaLR(optimizer, lambda update: slanted_triangle(update, updates, self.cut, self.ratio))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
