"""The addition task of the zoneout authors' repository: an encoder and a decoder, and data that grow harder.

Krueger et al. 2017, https://arxiv.org/abs/1606.01305, has no such experiment; the repository, which calls it "not yet in the
paper", has its script, without numbers: https://github.com/teganmaharaj/zoneout, zoneout_seq2seq.py.
"""

from collections import defaultdict
from functools import partial
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.nn.functional import one_hot

from zoo.arguments import check_positive
from zoo.errors import UserError
from zoo.functional import LSTMState
from zoo.initialisation import initialise_
from zoo.layers import LSTM, StateNoise
from zoo.optim import StepAdam
from zoo.tasks import SequenceToSequence


@runtime_checkable
class Graded(Protocol):
    """Data of several difficulties."""

    difficulty: int
    """That of the next epoch."""

    greatest_difficulty: int


class EncoderDecoder(SequenceToSequence):
    """A stack of LSTMs reads the source; another, which starts from its final state, writes the target.

        state = encoder(x(1) .. x(S))        logits = W decoder(GO, y(1) .. y(T-1); state) + b        x, y one-hot

    The stacks share no weights. All matrices and b start at U(-init_range, init_range), the LSTMs' biases at 0 and those of
    their forget gates at 1.

    - `state_noise` acts in both stacks. The softmax sees the h(t) that is carried on, as everywhere here; the authors'
      wrapper hands it the one before zoneout, and samples its masks in evaluation too.
    - After a validation with an error below `mastered` the data are one step harder from the next epoch on. At the greatest
      difficulty the rate of Adam is multiplied by `decay` whenever the error rose (in the authors' script also where the
      error before was of a lower one).
    - Where the error is still above `hopeless` after `patience` validations, all starts anew: the weights, Adam's moments
      and its rate. A `patience` of None never gives up.
    - The model kept is that of the best validation at the greatest difficulty reached.

    The error is the share of targets not got right in every symbol. Data without a `difficulty` are of one difficulty alone.
    """

    def __init__(
        self,
        vocab_size: int,
        source_length: int,
        target_length: int,
        hidden_size: int = 128,
        num_layers: int = 2,
        state_noise: StateNoise = None,
        init_range: float = 0.08,
        learning_rate: float = 0.01,
        decay: float = 0.95,
        mastered: float = 0.1,
        hopeless: float = 0.85,
        patience: int | None = 16,
    ) -> None:
        super().__init__(vocab_size, source_length, target_length)
        for name, value in {"decay": decay, "mastered": mastered, "hopeless": hopeless}.items():
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}; it must lie in [0, 1]")
        check_positive(init_range=init_range)
        if patience is not None and patience < 1:
            raise UserError(f"patience is {patience}; it must be 1 or more, or null")
        self.init_range, self.decay = init_range, decay
        self.mastered, self.hopeless, self.patience = mastered, hopeless, patience
        self.optimization = StepAdam(learning_rate, weight_decay=0.0)
        self.encoder = LSTM(vocab_size, hidden_size, num_layers, bias="one", state_noise=state_noise)
        self.decoder = LSTM(vocab_size, hidden_size, num_layers, bias="one", state_noise=state_noise)
        self.softmax = nn.Linear(hidden_size, vocab_size)
        self._validations = 0
        """Since the weights were drawn."""
        self._last_error: float | None = None
        """That of the validation before, where it was of the greatest difficulty."""
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        uniform_ = partial(nn.init.uniform_, a=-self.init_range, b=self.init_range)
        for stack in (self.encoder, self.decoder):
            initialise_(stack, uniform_)
        for parameter in self.softmax.parameters():
            uniform_(parameter)

    def encode(self, sources: Tensor) -> LSTMState:
        state: LSTMState
        _, state = self.encoder(self._one_hot(sources))
        return state

    def decode(self, symbols: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        hidden, state = self.decoder(self._one_hot(symbols), state)
        logits: Tensor = self.softmax(hidden)
        return logits, state

    @property
    def graded(self) -> Graded | None:
        """The data of the fit that is under way, where they have a difficulty."""
        data: object = getattr(self.trainer, "datamodule", None)
        return data if self.trainer.state.fn == TrainerFn.FITTING and isinstance(data, Graded) else None

    def cost(self, split: str) -> float:
        """During a fit any validation of a greater difficulty is the better one."""
        difficulty = 0 if self.graded is None else self.graded.difficulty
        return super().cost(split) - 100 * difficulty

    def on_train_start(self) -> None:
        """Refuses a second validation in an epoch, which would still be of the difficulty before."""
        super().on_train_start()
        trainer: Any = self.trainer
        if self.graded is not None and (trainer.val_check_batch or 0) < trainer.num_training_batches:
            raise UserError(
                "data that grow harder are validated once an epoch: leave out trainer.val_check_interval, and take shorter "
                "epochs (data.init_args.batches)"
            )

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.graded is not None:
            self.log("difficulty", float(self.graded.difficulty), batch_size=1, sync_dist=True)

    def on_validation_end(self) -> None:
        """Draws the consequence of a validation: harder data, a lower rate, or a new start."""
        super().on_validation_end()
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return
        value, _ = self.measured["validation"]
        error, before = 1 - value / 100, self._last_error
        self._validations, self._last_error = self._validations + 1, None
        if self._validations == self.patience and error > self.hopeless:
            self._restart()
        elif self.graded is not None and self.graded.difficulty < self.graded.greatest_difficulty:
            if error < self.mastered:
                self.graded.difficulty += 1
        else:
            self._last_error = error
            if before is not None and error > before:
                for group in self._groups():
                    group["lr"] *= self.decay

    def _restart(self) -> None:
        self.reset_parameters()
        if self.trainer.world_size > 1:  # whose generators may differ
            for parameter in self.parameters():
                distributed.broadcast(parameter.data, 0)
        for optimizer in self.trainer.optimizers:
            optimizer.state = defaultdict(dict)
        for group in self._groups():
            group["lr"] = group["initial_lr"]
        self._validations = 0

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]

    def running_state(self) -> dict[str, Any]:
        schedule = {"validations": self._validations, "last_error": self._last_error}
        return {"schedule": schedule, **super().running_state()}

    def load_running_state(self, state: dict[str, Any]) -> None:
        super().load_running_state(state)
        self._validations, self._last_error = state["schedule"]["validations"], state["schedule"]["last_error"]

    def _one_hot(self, symbols: Tensor) -> Tensor:
        return one_hot(symbols, self.vocab_size).to(self.softmax.weight.dtype)
