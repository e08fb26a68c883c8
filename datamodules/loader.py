"""What all loaders share: the place where an epoch stands, so that a run goes on in the middle of one."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule

from zoo.errors import UserError


class Draw(NamedTuple):
    """What an epoch's random draws are made from: the same seed and epoch draw alike."""

    seed: int
    epoch: int

    def generator(self) -> np.random.Generator:
        """A fresh generator."""
        return np.random.default_rng(self)


Batch = TypeVar("Batch")


class Loader(ABC, Generic[Batch]):
    """The batches of one epoch, by number.

    `state_dict` holds how many were handed out, of what (`shape`), and the seed and the epoch of `draw`, where anything was
    drawn.
    """

    def __init__(self, shape: dict[str, int | str | None], draw: Draw | None = None) -> None:
        self._shape, self._draw = shape, draw
        self._start = 0
        self._given = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, index: int) -> Batch:
        """The batch of that number, from 0."""

    def __iter__(self) -> Iterator[Batch]:
        # Lightning leaves a sized loader without exhausting it: the start is reset here, not after the last batch.
        start, self._start = self._start, 0
        for index in range(start, len(self)):
            self._given = index + 1
            yield self.batch(index)

    def state_dict(self) -> dict[str, Any]:
        """Batches handed out in this epoch, and of what."""
        drawn = {} if self._draw is None else self._draw._asdict()
        return {"batches": self._given, **self._shape, **drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next `__iter__` goes on after the batches already handed out, or begins if those were another epoch's.

        Other data, another cut or seed is a `UserError`.
        """
        if {key: value for key, value in state.items() if key not in ("batches", *Draw._fields)} != self._shape:
            raise UserError(f"the checkpoint stopped in {state}, and this run reads {self._shape}")
        self._given = state["batches"]
        if self._draw is not None:
            if state["seed"] != self._draw.seed:
                raise UserError(
                    f"the checkpoint's batches were drawn with the seed {state['seed']}, and this run has "
                    f"{self._draw.seed}: give the same seed_everything"
                )
            if state["epoch"] != self._draw.epoch:
                self._given = 0
        self._start = self._given % len(self)


class DrawnEpochs(LightningDataModule):
    """A data module whose training loader draws anew in every epoch.

    `torch.initial_seed()`, which `seed_everything` sets, and the epoch decide the draws. A single
    `train_dataloader()` has those of its epoch for good: give the trainer the data module.
    """

    @property
    def draws(self) -> bool:
        """Whether anything is drawn."""
        return True

    def setup(self, stage: str) -> None:
        """Has the trainer ask for a new loader in every epoch."""
        if stage == "fit" and self.draws and self.trainer:
            # Lightning reads this attribute before each epoch.
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    def draw(self) -> Draw:
        """The epoch's; of epoch 0 without a trainer."""
        seed = torch.initial_seed()
        if self.trainer is None:
            return Draw(seed, 0)
        # Processes may be seeded apart, and must take equally many steps of equal length.
        return Draw(self.trainer.strategy.broadcast(seed), self.trainer.current_epoch)

    @property
    def share(self) -> tuple[int, int]:
        """(rank, number of processes)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
