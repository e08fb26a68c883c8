"""What all loaders share: the place where an epoch stands, so that a run goes on in the middle of one."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningDataModule

from zoo.arguments import check_shares
from zoo.errors import UserError

Split = Literal["train", "validation", "test"]

_SPLITS: dict[str, tuple[Split, ...]] = {"fit": ("train", "validation"), "validate": ("validation",)}


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


class Examples(Loader[Batch]):
    """Batches of `batch_size` examples out of `count`, each a sequence of its own: shuffled by `draw`, or in order.

    The last batch may be smaller. Each of `world_size` processes takes its share of every batch. Under `draw` the shares
    are equal, for training: the last batch leaves out what cannot be shared, fewer than `world_size` examples, others in
    each epoch; and a last share of one example, in which batch norm has no variance, takes another from the batch before,
    where shares are of three or more. In order no example is left out, for evaluation: a share may be larger by one than
    another, or empty.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        shape: dict[str, int | str | None],
        draw: Draw | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(shape, draw)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._order = np.arange(count)
        self.generator = None if draw is None else draw.generator()
        """For whatever else is drawn; None where nothing is."""
        if self.generator is not None:
            check_shares(batch_size, world_size)
            self._order = self.generator.permutation(count)[: count - count % world_size]
        self._ends = [*range(batch_size, len(self._order), batch_size), len(self._order)]
        of_one = len(self._order) % batch_size == world_size
        if draw is not None and of_one and len(self._ends) > 1 and batch_size > 2 * world_size:
            self._ends[-2] -= world_size

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def batch(self, index: int) -> Batch:
        whole = self._order[self._ends[index - 1] if index else 0 : self._ends[index]]
        return self.take(np.array_split(whole, self._world_size)[self._rank])

    @abstractmethod
    def take(self, examples: npt.NDArray[np.int64]) -> Batch:
        """The batch of the examples of those numbers."""


class DataModule(LightningDataModule):
    """What all data modules share: splits opened when a stage needs them, and an epoch's own draws.

    `torch.initial_seed()`, which `seed_everything` sets, and the epoch decide the draws. A single
    `train_dataloader()` has those of its epoch for good: give the trainer the data module.
    """

    @property
    def draws(self) -> bool:
        """Whether anything is drawn."""
        return True

    @abstractmethod
    def open(self, split: Split) -> None:
        """Makes a split ready to be read: once for good on disk, then for this process."""

    def prepare_data(self) -> None:
        """Writes, on one process, the files that the coming stage reads."""
        self.setup(self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else "fit")

    def setup(self, stage: str) -> None:
        """Opens what the stage reads (fit, validate, test or predict); has a fit ask for a new loader in every epoch."""
        for split in _SPLITS.get(stage, ("test",)):
            self.open(split)
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
