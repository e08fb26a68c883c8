"""Recurrent layers: parameters and regularisers over `zoo.kernels`."""

import math
from abc import abstractmethod
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from zoo import kernels
from zoo.functional import LSTMState, Weights
from zoo.kernels import Backend
from zoo.noise import GATES, SITES, Cell, Extent, Noise
from zoo.regularisers import Dropout, StateRegulariser, WeightRegulariser, check_sites, draw_noise

Bias = Literal["two", "one", "none"]
InitialState = Literal["zero", "learned"]
Nonlinearity = Literal["tanh", "relu"]
StateNoise = StateRegulariser | list[StateRegulariser] | None
"""One regulariser of the state, several with masks of their own, or none."""
Lengths = Tensor | list[int]
"""How many steps each sequence of a padded batch has, (B,), the longest first."""


class Recurrent(nn.Module):
    """What `LSTM`, `GRU` and `RNN` share: torch's stack of layers and directions, with a place for noise in each.

    Arguments, parameter names, initialisation, inputs and states are those of torch's layers, so weights move both ways by
    `load_state_dict`. What torch does not have:

    - bias: "two" (True) and "none" (False) are torch's; "one" is `bias_ih` alone.
    - state_noise acts on the state within the steps: every layer and direction draws its own masks at every call.
    - weight_noise acts on the weights: once a call for every layer and direction.
    - initial_state: "learned" adds the parameters `initial_h` (and `initial_c`), (num_layers * directions, H), zero at
      first; the state where none is given.
    - backend: who runs it, see `zoo.kernels`.

    `dropout` acts between the layers, afresh at every time step (Zaremba et al. 2014, equations 7 to 9). Evaluation is
    deterministic: no dropout, and of the noise whatever its regulariser prescribes.

    inputs (T, B, input_size), or (B, T, input_size) where `batch_first`; state (num_layers * directions, B, H) ->
    outputs (T, B, directions * H), or (B, T, directions * H); the final state, whose reverse direction is that at the
    first step.

    With `lengths` a step past a sequence's end keeps its state and outputs 0, whatever stands in the padding: the final
    state is that at each sequence's own end, where the reverse direction starts.

    Under autocast the layer still runs in its weights' dtype, and its outputs have it (torch's layers mostly run and
    answer in autocast's): an error of rounding in a state is carried through the whole sequence.

    Raises `ValueError` for arguments that do not fit, before any work.
    """

    cell: ClassVar[Cell]
    _parts: ClassVar[tuple[str, ...]] = ("h",)
    _defaults: ClassVar[dict[str, object]] = {
        "num_layers": 1,
        "bias": "two",
        "batch_first": False,
        "bidirectional": False,
        "initial_state": "zero",
        "backend": "auto",
    }

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: Bias | bool = "two",
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        state_noise: StateNoise = None,
        weight_noise: WeightRegulariser | None = None,
        initial_state: InitialState = "zero",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        for name, size in {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be 1 or more")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias: Bias = ("two" if bias else "none") if isinstance(bias, bool) else bias
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.initial_state: InitialState = initial_state
        self.backend: Backend = backend
        _check_choice("bias", self.bias, get_args(Bias))
        _check_choice("initial_state", initial_state, get_args(InitialState))
        _check_choice("backend", backend, get_args(Backend))
        self.dropout = Dropout(dropout)
        regularisers = [state_noise] if isinstance(state_noise, StateRegulariser) else state_noise or []
        check_sites(regularisers, self.cell)
        self.state_noise, self.weight_noise = nn.ModuleList(regularisers), weight_noise

        gates = GATES[self.cell] * hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(num_layers):
            width = self.directions * hidden_size if layer else input_size
            for direction in range(self.directions):
                w_ih, w_hh, b_ih, b_hh = _names(layer, direction)
                shapes |= {w_ih: (gates, width), w_hh: (gates, hidden_size)}
                shapes |= {name: (gates,) for name in {"two": (b_ih, b_hh), "one": (b_ih,), "none": ()}[self.bias]}
        if initial_state == "learned":
            shapes |= {f"initial_{part}": (num_layers * self.directions, hidden_size) for part in self._parts}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def directions(self) -> int:
        """2 where bidirectional, else 1."""
        return 1 + self.bidirectional

    def reset_parameters(self) -> None:
        """Weights and biases at U(-1/sqrt(H), 1/sqrt(H)), as in torch; a learned initial state at zero."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("initial_"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def weights(self, layer: int, direction: int = 0) -> Weights:
        """The weights of a layer, without noise, as `zoo.functional` takes them; direction 1 is the reverse one."""
        return Weights(*(getattr(self, name, None) for name in _names(layer, direction)))  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        options = {name: getattr(self, name) for name in self._defaults}
        changed = (f"{name}={value!r}" for name, value in options.items() if value != self._defaults[name])
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])

    @abstractmethod
    def _sequence(
        self, inputs: Tensor, state: tuple[Tensor, ...], weights: Weights, noise: Noise, cells: bool
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """One layer in one direction by `zoo.kernels`: the outputs and, if asked for, the cells; the final state."""

    def _run(
        self, inputs: Tensor, state: tuple[Tensor, ...] | None, lengths: Lengths | None, cells: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
        """Outputs, final state and, where asked for, the cells of every layer and direction."""
        self._check(inputs, state)
        device = inputs.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = self.weights(0).input.dtype
            if state is not None:
                state = tuple(part.to(dtype) for part in state)
            with torch.autocast(device, enabled=False):
                return self._run(inputs.to(dtype), state, lengths, cells)

        sequence = inputs.transpose(0, 1) if self.batch_first else inputs
        time, batch, _ = sequence.shape
        padding = None if lengths is None else _padding(lengths, time, batch, sequence.device)
        if padding is not None:
            sequence = sequence.masked_fill(padding, 0)
        if state is None:
            state = self._initial(sequence)
        finals: list[tuple[Tensor, ...]] = []
        all_cells: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer:
                sequence = self.dropout(sequence)
            both = []
            for direction in range(self.directions):
                initial = tuple(part[layer * self.directions + direction] for part in state)
                (outputs, *own_cells), final = self._pass(sequence, initial, padding, layer, direction, cells)
                both.append(outputs)
                finals.append(final)
                all_cells += own_cells
            sequence = both[0] if len(both) == 1 else torch.cat(both, -1)
        if self.batch_first:
            sequence, all_cells = sequence.transpose(0, 1), [own_cells.transpose(0, 1) for own_cells in all_cells]
        return sequence, tuple(torch.stack(parts) for parts in zip(*finals, strict=True)), all_cells

    def _pass(
        self,
        sequence: Tensor,
        state: tuple[Tensor, ...],
        padding: Tensor | None,
        layer: int,
        direction: int,
        cells: bool,
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """One layer in one direction; turned round, the padding comes first and keeps the initial state."""
        time, batch, _ = sequence.shape
        extent = Extent(time, batch, self.hidden_size, self.cell, sequence.device, sequence.dtype)
        noise = draw_noise(self.state_noise, extent)  # type: ignore[arg-type]
        weights = self.weights(layer, direction)
        if self.weight_noise is not None:
            weights = self.weight_noise(weights)
        if padding is not None:
            noise = _hold(noise, padding.flip(0) if direction else padding, self.cell)
        turned = sequence.flip(0) if direction else sequence
        sequences, final = self._sequence(turned, state, weights, noise, cells)
        if direction:
            sequences = [value.flip(0) for value in sequences]
        if padding is not None:
            sequences = [value.masked_fill(padding, 0) for value in sequences]
        return sequences, final

    def _initial(self, sequence: Tensor) -> tuple[Tensor, ...]:
        batch = sequence.shape[1]
        if self.initial_state == "learned":
            return tuple(getattr(self, f"initial_{part}").unsqueeze(1).repeat(1, batch, 1) for part in self._parts)
        zeros = sequence.new_zeros(self.num_layers * self.directions, batch, self.hidden_size)
        return (zeros,) * len(self._parts)

    def _check(self, inputs: Tensor, state: tuple[Tensor, ...] | None) -> None:
        """What the kernels, who see one layer, cannot check or name."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 3:
            came = (
                f"have shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else f"are a {type(inputs).__name__}"
            )
            raise ValueError(
                f"inputs {came}, expected a tensor of shape ({'B, T' if self.batch_first else 'T, B'}, "
                f"{self.input_size}); for sequences of several lengths pad them and give `lengths`"
            )
        if inputs.shape[-1] != self.input_size:
            raise ValueError(f"inputs are {inputs.shape[-1]} wide, expected input_size {self.input_size}")
        if state is not None:
            shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in state]
            shape = (self.num_layers * self.directions, inputs.shape[0 if self.batch_first else 1], self.hidden_size)
            if shapes != [shape] * len(self._parts):
                raise ValueError(f"state has shapes {shapes}, expected {shape} for each of {', '.join(self._parts)}")


class LSTM(Recurrent):
    """Stacked LSTM layers in the place of `torch.nn.LSTM`, with noise: see `Recurrent`; equations in `functional.lstm`.

    inputs (T, B, I), state (h, c) -> outputs (T, B, directions * H), state.
    """

    cell = "lstm"
    _parts = ("h", "c")

    def forward(
        self, inputs: Tensor, state: LSTMState | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, LSTMState]:
        outputs, (h, c), _ = self._run(inputs, state, lengths)
        return outputs, (h, c)

    def with_cells(
        self, inputs: Tensor, state: LSTMState | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, LSTMState, list[Tensor]]:
        """`forward`, and c(t) of every layer and direction, in the order of the state.

        Each is (T, B, H), or (B, T, H) where `batch_first`, in the order of the inputs' steps, and 0 in the padding.
        """
        outputs, (h, c), cells = self._run(inputs, state, lengths, cells=True)
        return outputs, (h, c), cells

    def _sequence(
        self, inputs: Tensor, state: tuple[Tensor, ...], weights: Weights, noise: Noise, cells: bool
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        h, c = state
        run = kernels.lstm(inputs, (h, c), weights, noise, cells=cells, backend=self.backend)
        return [run.outputs, run.cells] if cells and run.cells is not None else [run.outputs], run.state


class GRU(Recurrent):
    """Stacked GRU layers in the place of `torch.nn.GRU`, with noise: see `Recurrent`; equations in `functional.gru`.

    The reset gate acts before the product with R, as in the papers; torch's and cuDNN's acts after it: `reset_after`, which
    weights from there need.

    inputs (T, B, I), state h -> outputs (T, B, directions * H), state.
    """

    cell = "gru"
    _defaults = Recurrent._defaults | {"reset_after": False}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: Bias | bool = "two",
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = False,
        state_noise: StateNoise = None,
        weight_noise: WeightRegulariser | None = None,
        initial_state: InitialState = "zero",
        backend: Backend = "auto",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            state_noise=state_noise,
            weight_noise=weight_noise,
            initial_state=initial_state,
            backend=backend,
        )
        self.reset_after = reset_after

    def forward(
        self, inputs: Tensor, state: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        outputs, (h,), _ = self._run(inputs, None if state is None else (state,), lengths)
        return outputs, h

    def _sequence(
        self, inputs: Tensor, state: tuple[Tensor, ...], weights: Weights, noise: Noise, cells: bool
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        outputs, h = kernels.gru(inputs, state[0], weights, noise, self.reset_after, backend=self.backend)
        return [outputs], (h,)


class RNN(Recurrent):
    """Stacked simple layers in the place of `torch.nn.RNN`, with noise: see `Recurrent`; equations in `functional.rnn`.

    inputs (T, B, I), state h -> outputs (T, B, directions * H), state.
    """

    cell = "rnn"
    _defaults = Recurrent._defaults | {"nonlinearity": "tanh"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: Bias | bool = "two",
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        state_noise: StateNoise = None,
        weight_noise: WeightRegulariser | None = None,
        initial_state: InitialState = "zero",
        backend: Backend = "auto",
    ) -> None:
        _check_choice("nonlinearity", nonlinearity, get_args(Nonlinearity))
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            state_noise=state_noise,
            weight_noise=weight_noise,
            initial_state=initial_state,
            backend=backend,
        )
        self.nonlinearity: Nonlinearity = nonlinearity

    def forward(
        self, inputs: Tensor, state: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        outputs, (h,), _ = self._run(inputs, None if state is None else (state,), lengths)
        return outputs, h

    def _sequence(
        self, inputs: Tensor, state: tuple[Tensor, ...], weights: Weights, noise: Noise, cells: bool
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        outputs, h = kernels.rnn(inputs, state[0], weights, noise, self.nonlinearity, backend=self.backend)
        return [outputs], (h,)


def _names(layer: int, direction: int) -> tuple[str, ...]:
    """Torch's names of what `Weights` holds, in its order."""
    suffix = f"l{layer}_reverse" if direction else f"l{layer}"
    return tuple(f"{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def _padding(lengths: Lengths, time: int, batch: int, device: torch.device) -> Tensor | None:
    """(T, B, 1), True past each sequence's end; None where all end together. Reads the lengths on the host."""
    lengths = torch.as_tensor(lengths)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths have shape {tuple(lengths.shape)} and are {lengths.dtype}, expected integers of shape ({batch},)"
        )
    steps = lengths.tolist()
    for before, length in pairwise([time, *steps]):
        if not 1 <= length <= time:
            raise ValueError(f"lengths hold {length}, expected 1 to the inputs' {time} steps")
        if length > before:
            raise ValueError(f"lengths hold {length} after {before}, expected the longest first")
    if min(steps, default=time) == time:
        return None
    return (torch.arange(time, device=device).unsqueeze(-1) >= lengths.to(device)).unsqueeze(-1)


def _hold(noise: Noise, padding: Tensor, cell: Cell) -> Noise:
    """The masks, such that steps in the padding leave the state as it is."""
    running = ~padding
    drawn = {site: getattr(noise, site) for site in ("ckeep", "hkeep") if site in SITES[cell]}
    keep = {site: running if mask is None else mask * running for site, mask in drawn.items()}
    return noise._replace(**keep, out=None if noise.out is None else noise.out.masked_fill(padding, 1))
