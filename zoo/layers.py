"""Recurrent layers: parameters and regularisers over `zoo.kernels`."""

import math
import re
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from zoo import kernels
from zoo.arguments import check_choice, check_counts, check_positive, check_type
from zoo.functional import Gains, LSTMRun, LSTMState, Moments, Weights
from zoo.kernels import Backend
from zoo.kernels.checks import autocasts
from zoo.kernels.untraced import untraced
from zoo.noise import GATES, SITES, Cell, Extent, Noise
from zoo.regularisers import Dropout, StateRegulariser, WeightRegulariser, check_sites, draw_noise

Bias = Literal["two", "one", "none"]
InitialState = Literal["zero", "learned"]
Nonlinearity = Literal["tanh", "relu"]
StateNoise = StateRegulariser | list[StateRegulariser] | None
"""One regulariser of the state, several with masks of their own, or none."""
Lengths = Tensor | list[int]
"""How many steps each sequence of a padded batch has, (B,)."""


class Call(NamedTuple):
    """Which layer and direction runs, and what is asked of it."""

    layer: int
    direction: int
    """1 is the reverse one."""
    cells: bool
    """Whether c(t) is asked for at every step."""
    first_step: int
    """How many steps of their sequences went before the inputs."""
    bfloat16: bool
    """Whether products may take factors that are rounded to it."""


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

    input (T, B, input_size), or (B, T, input_size) where `batch_first`; hx, the state (num_layers * directions, B, H) ->
    outputs (T, B, directions * H), or (B, T, directions * H); the final state, whose reverse direction is that at the
    first step.

    With `lengths` a step past a sequence's end keeps its state and outputs 0, whatever stands in the padding: the final
    state is that at each sequence's own end, where the reverse direction starts.

    Under autocast the layer still runs in its weights' dtype, and its outputs have it (torch's layers mostly run and
    answer in autocast's): an error of rounding in a state is carried through the whole sequence. Autocast to bfloat16 lets
    an LSTM on a processor that multiplies such numbers round the factors of its products alone (with normalisation that of
    R), which makes a large layer up to twice as fast.

    What torch's have and these do not: `proj_size`, packed sequences (`lengths` is their like), inputs without a batch or of
    a batch of 0, `all_weights`, `torch.jit.script`; `bias` and `dropout` are attributes of other types. A second backward
    pass through the same graph, a gradient of the gradient, `torch.compile(fullgraph=True)` and strict `torch.export` need
    the backend "reference", as the others write over what they saved; `torch.func`, `torch.export`, `torch.jit.trace`,
    `make_fx` and fake tensors find it by themselves.

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
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        state_noise: StateNoise = None,
        weight_noise: WeightRegulariser | None = None,
        initial_state: InitialState = "zero",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        check_counts(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias: Bias = ("two" if bias else "none") if isinstance(bias, bool) else bias
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.initial_state: InitialState = initial_state
        self.backend: Backend = backend
        check_choice("bias", self.bias, get_args(Bias))
        check_choice("initial_state", initial_state, get_args(InitialState))
        check_choice("backend", backend, get_args(Backend))
        self.dropout = Dropout(dropout)
        if dropout and num_layers == 1:
            warnings.warn(f"dropout is {dropout} and acts between layers, of which there is 1", stacklevel=2)
        regularisers = state_noise if isinstance(state_noise, list) else [] if state_noise is None else [state_noise]
        for regulariser in regularisers:
            check_type("state_noise", regulariser, StateRegulariser)
        if weight_noise is not None:
            check_type("weight_noise", weight_noise, WeightRegulariser)
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

    def parameters_by_layer(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer of the stack, the lowest first; learned initial states go with the lowest."""
        groups: list[list[nn.Parameter]] = [[] for _ in range(self.num_layers)]
        for name, parameter in self.named_parameters():
            layer = re.search(r"_l(\d+)(_reverse)?$", name)
            groups[int(layer[1]) if layer else 0].append(parameter)
        return groups

    def weights(self, layer: int, direction: int = 0) -> Weights:
        """The weights of a layer, without noise, as `zoo.functional` takes them; direction 1 is the reverse one."""
        return Weights(*(getattr(self, name, None) for name in _names(layer, direction)))  # type: ignore[arg-type]

    def flatten_parameters(self) -> None:
        """Nothing: for code that was written for torch's layers, which keep their weights in one piece for cuDNN."""

    def initial(self, batch: int) -> tuple[Tensor, ...]:
        """The state where none is given: h, of an LSTM also c, each (num_layers * directions, batch, H)."""
        if self.initial_state == "learned":
            return tuple(getattr(self, f"initial_{part}").unsqueeze(1).repeat(1, batch, 1) for part in self._parts)
        shape = self.num_layers * self.directions, batch, self.hidden_size
        return tuple(self.weights(0).hidden.new_zeros(shape) for _ in self._parts)

    def extra_repr(self) -> str:
        options = {name: getattr(self, name) for name in self._defaults}
        changed = (f"{name}={value!r}" for name, value in options.items() if value != self._defaults[name])
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])

    @abstractmethod
    def _sequence(
        self, inputs: Tensor, state: tuple[Tensor, ...], weights: Weights, noise: Noise, call: Call
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """One layer in one direction by `zoo.kernels`: the outputs and, if asked for, the cells; the final state."""

    def _run(
        self,
        inputs: Tensor,
        state: tuple[Tensor, ...] | None,
        lengths: Lengths | None,
        cells: bool = False,
        first_step: int = 0,
    ) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
        """Outputs, final state and, where asked for, the cells of every layer and direction."""
        run = self._stack if self.backend == "reference" else self._untraced_stack
        return run(inputs, state, lengths, cells, first_step)

    def _stack(
        self,
        inputs: Tensor,
        state: tuple[Tensor, ...] | None,
        lengths: Lengths | None,
        cells: bool,
        first_step: int,
        bfloat16: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
        """What `_run` gives; `torch.compile` looks into it for the readable loop alone."""
        self._check(inputs, state)
        if autocasts(inputs.device.type):
            dtype = self.weights(0).input.dtype
            if state is not None:
                state = tuple(part.to(dtype) for part in state)
            bfloat16 = torch.get_autocast_dtype(inputs.device.type) == torch.bfloat16
            with torch.autocast(inputs.device.type, enabled=False):
                return self._stack(inputs.to(dtype), state, lengths, cells, first_step, bfloat16)

        sequence = inputs.transpose(0, 1) if self.batch_first else inputs
        time, batch, _ = sequence.shape
        padding = None if lengths is None else _padding(lengths, time, batch, sequence.device)
        if padding is not None:
            sequence = sequence.masked_fill(padding, 0)
        if state is None:
            state = self.initial(batch)
        finals: list[tuple[Tensor, ...]] = []
        all_cells: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer:
                sequence = self.dropout(sequence)
            both = []
            for direction in range(self.directions):
                initial = tuple(part[layer * self.directions + direction] for part in state)
                call = Call(layer, direction, cells, first_step, bfloat16)
                (outputs, *own_cells), final = self._pass(sequence, initial, padding, call)
                both.append(outputs)
                finals.append(final)
                all_cells += own_cells
            sequence = both[0] if len(both) == 1 else torch.cat(both, -1)
        if self.batch_first:
            sequence, all_cells = sequence.transpose(0, 1), [own_cells.transpose(0, 1) for own_cells in all_cells]
        return sequence, tuple(torch.stack(parts) for parts in zip(*finals, strict=True)), all_cells

    _untraced_stack = untraced(_stack)

    def _pass(
        self, sequence: Tensor, state: tuple[Tensor, ...], padding: Tensor | None, call: Call
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """One layer in one direction; turned round, the padding comes first and keeps the initial state."""
        time, batch, _ = sequence.shape
        extent = Extent(time, batch, self.hidden_size, self.cell, sequence.device, sequence.dtype)
        noise = draw_noise(self.state_noise, extent)  # type: ignore[arg-type]
        weights = self.weights(call.layer, call.direction)
        if self.weight_noise is not None:
            weights = self.weight_noise(weights)
        if padding is not None:
            noise = _hold(noise, padding.flip(0) if call.direction else padding, self.cell)
        turned = sequence.flip(0) if call.direction else sequence
        sequences, final = self._sequence(turned, state, weights, noise, call)
        if call.direction:
            sequences = [value.flip(0) for value in sequences]
        if padding is not None:
            sequences = [value.masked_fill(padding, 0) for value in sequences]
        return sequences, final

    def _check(self, inputs: Tensor, state: tuple[Tensor, ...] | None) -> None:
        """What the kernels, who see one layer, cannot check or name."""
        expected = f"({'B, T' if self.batch_first else 'T, B'}, {self.input_size})"
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"inputs are a {type(inputs).__name__}, expected a tensor of shape {expected}; sequences of several lengths "
                "are padded, and `lengths` says how long each is"
            )
        if inputs.ndim != 3:
            raise ValueError(
                f"inputs have shape {tuple(inputs.shape)}, expected {expected}; a sequence by itself is a batch of 1: "
                f"inputs.unsqueeze({0 if self.batch_first else 1})"
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

    input (T, B, I), hx (h, c) -> outputs (T, B, directions * H), (h, c).
    """

    cell = "lstm"
    _parts = ("h", "c")

    def forward(
        self, input: Tensor, hx: LSTMState | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, LSTMState]:
        outputs, (h, c), _ = self._run(input, hx, lengths)
        return outputs, (h, c)

    def with_cells(
        self, input: Tensor, hx: LSTMState | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, LSTMState, list[Tensor]]:
        """`forward`, and c(t) of every layer and direction, in the order of the state.

        Each is (T, B, H), or (B, T, H) where `batch_first`, in the order of the inputs' steps, and 0 in the padding.
        """
        outputs, (h, c), cells = self._run(input, hx, lengths, cells=True)
        return outputs, (h, c), cells

    def _sequence(
        self, inputs: Tensor, state: tuple[Tensor, ...], weights: Weights, noise: Noise, call: Call
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        h, c = state
        run = self._lstm(inputs, (h, c), weights, noise, call)
        return [run.outputs, run.cells] if call.cells and run.cells is not None else [run.outputs], run.state

    def _lstm(self, inputs: Tensor, state: LSTMState, weights: Weights, noise: Noise, call: Call) -> LSTMRun:
        return kernels.lstm(
            inputs, state, weights, noise, cells=call.cells, bfloat16=call.bfloat16, backend=self.backend
        )


class GRU(Recurrent):
    """Stacked GRU layers in the place of `torch.nn.GRU`, with noise: see `Recurrent`; equations in `functional.gru`.

    The reset gate acts after the product with R, as torch's and cuDNN's; in the papers before it: `reset_after=False`.

    input (T, B, I), hx h -> outputs (T, B, directions * H), h.
    """

    cell = "gru"
    _defaults = Recurrent._defaults | {"reset_after": True}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: Bias | bool = "two",
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        reset_after: bool = True,
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
            device=device,
            dtype=dtype,
            state_noise=state_noise,
            weight_noise=weight_noise,
            initial_state=initial_state,
            backend=backend,
        )
        self.reset_after = reset_after

    def forward(self, input: Tensor, hx: Tensor | None = None, lengths: Lengths | None = None) -> tuple[Tensor, Tensor]:
        outputs, (h,), _ = self._run(input, None if hx is None else (hx,), lengths)
        return outputs, h

    def _sequence(
        self, inputs: Tensor, state: tuple[Tensor, ...], weights: Weights, noise: Noise, call: Call
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        outputs, h = kernels.gru(inputs, state[0], weights, noise, self.reset_after, backend=self.backend)
        return [outputs], (h,)


class RNN(Recurrent):
    """Stacked simple layers in the place of `torch.nn.RNN`, with noise: see `Recurrent`; equations in `functional.rnn`.

    input (T, B, I), hx h -> outputs (T, B, directions * H), h.
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
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        state_noise: StateNoise = None,
        weight_noise: WeightRegulariser | None = None,
        initial_state: InitialState = "zero",
        backend: Backend = "auto",
    ) -> None:
        check_choice("nonlinearity", nonlinearity, get_args(Nonlinearity))
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            state_noise=state_noise,
            weight_noise=weight_noise,
            initial_state=initial_state,
            backend=backend,
        )
        self.nonlinearity: Nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None, lengths: Lengths | None = None) -> tuple[Tensor, Tensor]:
        outputs, (h,), _ = self._run(input, None if hx is None else (hx,), lengths)
        return outputs, h

    def _sequence(
        self, inputs: Tensor, state: tuple[Tensor, ...], weights: Weights, noise: Noise, call: Call
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        outputs, h = kernels.rnn(inputs, state[0], weights, noise, self.nonlinearity, backend=self.backend)
        return [outputs], (h,)


class _NormalisedLSTM(LSTM):
    """What `BatchNormLSTM` and `LayerNormLSTM` share: the gains of the three normalisations, and shifts that start at 0."""

    gain: float
    eps: float

    def gains(self, layer: int, direction: int = 0) -> Gains:
        """The gains of a layer, as `zoo.functional` takes them; direction 1 is the reverse one."""
        return Gains(*(getattr(self, f"{name}_{_suffix(layer, direction)}") for name in _GAINS))

    def reset_parameters(self) -> None:
        """Weights at U(-1/sqrt(H), 1/sqrt(H)), gains at `gain`, biases and a learned initial state at zero."""
        super().reset_parameters()
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("gain_"):
                nn.init.constant_(parameter, self.gain)
            elif name.startswith("bias_"):
                nn.init.zeros_(parameter)

    def _add_norms(
        self, gain: float, eps: float, device: torch.device | str | int | None, dtype: torch.dtype | None
    ) -> None:
        check_positive(eps=eps)
        self.gain, self.eps = gain, eps
        for suffix in self._suffixes():
            for name in _GAINS:
                width = self.hidden_size if "cell" in name else 4 * self.hidden_size
                start = torch.full((width,), gain if name.startswith("gain") else 0.0, device=device, dtype=dtype)
                self.register_parameter(f"{name}_{suffix}", nn.Parameter(start))

    def _suffixes(self) -> list[str]:
        return [_suffix(layer, direction) for layer in range(self.num_layers) for direction in range(self.directions)]


class LayerNormLSTM(_NormalisedLSTM):
    """Stacked LSTM layers that normalise over the units of each example: equations in `functional.layer_norm_lstm`.

    Ba, Kiros and Hinton 2016, "Layer normalization", arXiv 1607.06450, equations 20 to 22. Arguments, inputs and states are
    those of `LSTM`; training and evaluation are alike. What it has besides, or otherwise:

    - gain: where the gains of the three normalisations start; they are the parameters `gain_input_l0`, `gain_hidden_l0`
      and `gain_cell_l0`, with the shift `bias_cell_l0`.
    - bias: "one" is enough for the shifts of both products, which are summed; biases start at 0.
    - eps: added to every variance.
    """

    _defaults = LSTM._defaults | {"bias": "one", "gain": 1.0, "eps": 1e-5}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: Bias | bool = "one",
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        gain: float = 1.0,
        eps: float = 1e-5,
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
            device=device,
            dtype=dtype,
            state_noise=state_noise,
            weight_noise=weight_noise,
            initial_state=initial_state,
            backend=backend,
        )
        self._add_norms(gain, eps, device, dtype)

    def _lstm(self, inputs: Tensor, state: LSTMState, weights: Weights, noise: Noise, call: Call) -> LSTMRun:
        gains = self.gains(call.layer, call.direction)
        return kernels.layer_norm_lstm(
            inputs, state, weights, gains, noise, self.eps, bfloat16=call.bfloat16, backend=self.backend
        )


class BatchNormLSTM(_NormalisedLSTM):
    """Stacked LSTM layers that normalise over the batch at every time step: equations in `functional.batch_norm_lstm`.

    Cooijmans et al. 2017, "Recurrent batch normalization", arXiv 1603.09025, equations 6 to 8. Arguments, inputs and states
    are those of `LSTM`, as are gains and biases those of `LayerNormLSTM`. What it has besides:

    - max_steps: each of the first `max_steps` steps of a sequence has population statistics of its own.
    - momentum: how far a training step moves them towards the (biased) moments of its batch, but the n-th since
      `reset_population` at least 1/n of the way, so that they are a mean from the first on; None gives every batch since
      then the same weight. The authors' code has 0.05 on text and 0.01 on MNIST, and starts at mean 0 and variance 1, of
      which at 0.01 a third is left after 100 updates.

    Training normalises by the moments of the batch, of 2 examples or more, and averages them in the buffers
    `population_*_l0`, (max_steps, 4 H) or (max_steps, H); steps from max_steps on leave no trace there. Evaluation
    normalises by the averages, and steps beyond the last one that training has seen by those of that one. The paper's own
    numbers have them measured anew after training: `estimating_population`.

    Statistics belong to the steps of a sequence, not of a call: where a state is carried from one call to the next,
    `first_step` says how many steps went before.

    The moments of a batch would count sequences that have ended, and the reverse direction meets its first step elsewhere in
    each of them: where `lengths` differ, training and bidirectional layers refuse them.

    Where all examples agree, as in the black rows that MNIST's images begin with, the variance is 0. Outputs stay finite,
    but each such step can multiply the gradient by gain / sqrt(eps), 32 at first. Section 5.1 of the paper therefore adds
    noise to h(0), N(0, 0.1^2) in the code, in training and evaluation: give it as the state.
    """

    _defaults = LSTM._defaults | {"bias": "one", "max_steps": None, "gain": 0.1, "momentum": 0.05, "eps": 1e-5}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: Bias | bool = "one",
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        max_steps: int,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        gain: float = 0.1,
        momentum: float | None = 0.05,
        eps: float = 1e-5,
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
            device=device,
            dtype=dtype,
            state_noise=state_noise,
            weight_noise=weight_noise,
            initial_state=initial_state,
            backend=backend,
        )
        self._add_norms(gain, eps, device, dtype)
        check_counts(max_steps=max_steps)
        if momentum is not None and not 0 < momentum <= 1:
            raise ValueError(f"momentum is {momentum}, expected None or a number in (0, 1]")
        self.max_steps, self.momentum = max_steps, momentum
        for suffix in self._suffixes():
            for name in Moments._fields:
                width = hidden_size if "cell" in name else 4 * hidden_size
                empty = torch.empty(max_steps, width, device=device, dtype=dtype)
                self.register_buffer(f"population_{name}_{suffix}", empty)
            batches = torch.empty(max_steps, dtype=torch.int64, device=device)
            self.register_buffer(f"population_batches_{suffix}", batches)
        self.reset_population()

    def forward(
        self, input: Tensor, hx: LSTMState | None = None, lengths: Lengths | None = None, first_step: int = 0
    ) -> tuple[Tensor, LSTMState]:
        outputs, (h, c), _ = self._run(input, hx, lengths, first_step=first_step)
        return outputs, (h, c)

    def with_cells(
        self, input: Tensor, hx: LSTMState | None = None, lengths: Lengths | None = None, first_step: int = 0
    ) -> tuple[Tensor, LSTMState, list[Tensor]]:
        outputs, (h, c), cells = self._run(input, hx, lengths, cells=True, first_step=first_step)
        return outputs, (h, c), cells

    def reset_population(self) -> None:
        """Forgets the averages: means of 0, variances of 1, no batch seen."""
        for name, buffer in self.named_buffers(recurse=False):
            buffer.fill_(1 if "_var_" in name else 0)

    @contextmanager
    def estimating_population(self) -> Iterator[None]:
        """The averages start afresh, and every batch that runs within counts the same: run the training set through, once.

        In training mode, and best under `torch.no_grad()`. As in section 3 of the paper.
        """
        momentum, self.momentum = self.momentum, None
        self.reset_population()
        try:
            yield
        finally:
            self.momentum = momentum

    def _check(self, inputs: Tensor, state: tuple[Tensor, ...] | None) -> None:
        super()._check(inputs, state)
        if self.training and inputs.shape[0 if self.batch_first else 1] == 1:
            raise ValueError("inputs have a batch of 1, which has no variance; when training give 2 examples or more")

    def _pass(
        self, sequence: Tensor, state: tuple[Tensor, ...], padding: Tensor | None, call: Call
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        if padding is not None and (self.training or self.bidirectional):
            why = (
                "the moments of a batch would count the padding"
                if self.training
                else "the reverse direction's statistics are those of whole sequences"
            )
            raise ValueError(f"lengths differ, but {why}; give sequences of one length")
        if call.first_step < 0 or (call.first_step and self.bidirectional):
            raise ValueError(
                f"first_step is {call.first_step}, expected 0"
                + (" for a bidirectional layer, which sees whole sequences" if self.bidirectional else " or more")
            )
        return super()._pass(sequence, state, padding, call)

    def _lstm(self, inputs: Tensor, state: LSTMState, weights: Weights, noise: Noise, call: Call) -> LSTMRun:
        gains, suffix = self.gains(call.layer, call.direction), _suffix(call.layer, call.direction)
        population = None if self.training else self._population(suffix, call.first_step, len(inputs))
        run, used = kernels.batch_norm_lstm(
            inputs, state, weights, gains, noise, population, self.eps, bfloat16=call.bfloat16, backend=self.backend
        )
        if self.training:
            self._average(suffix, call.first_step, used)
        return run

    def _population(self, suffix: str, first_step: int, time: int) -> Moments:
        """The averages for these steps: past the last one that was seen, its."""
        batches = self.get_buffer(f"population_batches_{suffix}")
        steps = torch.arange(self.max_steps, device=batches.device)
        last = (steps * (batches > 0)).amax()
        rows = torch.arange(first_step, first_step + time, device=batches.device).minimum(last)
        return Moments(*(self.get_buffer(f"population_{name}_{suffix}")[rows] for name in Moments._fields))

    def _average(self, suffix: str, first_step: int, used: Moments) -> None:
        rows = slice(first_step, first_step + len(used.input_mean))
        batches = self.get_buffer(f"population_batches_{suffix}")[rows]
        batches += 1
        for name, moment in used._asdict().items():
            average = self.get_buffer(f"population_{name}_{suffix}")[rows]
            weight = batches.unsqueeze(-1).to(average.dtype).reciprocal().clamp(min=self.momentum or 0)
            average.lerp_(moment[: len(average)].to(average.dtype), weight)  # CUDA has those of halves in float32


_GAINS = ("gain_input", "gain_hidden", "gain_cell", "bias_cell")
"""The names of what `Gains` holds, in its order."""


def _names(layer: int, direction: int) -> tuple[str, ...]:
    """Torch's names of what `Weights` holds, in its order."""
    return tuple(f"{name}_{_suffix(layer, direction)}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def _suffix(layer: int, direction: int) -> str:
    return f"l{layer}_reverse" if direction else f"l{layer}"


def _padding(lengths: Lengths, time: int, batch: int, device: torch.device) -> Tensor | None:
    """(T, B, 1), True past each sequence's end; None where all end together. Reads the lengths on the host."""
    lengths = torch.as_tensor(lengths)
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths have shape {tuple(lengths.shape)} and are {lengths.dtype}, expected integers of shape ({batch},)"
        )
    steps = lengths.tolist()
    for length in steps:
        if not 1 <= length <= time:
            raise ValueError(f"lengths hold {length}, expected 1 to the inputs' {time} steps")
    if min(steps, default=time) == time:
        return None
    return (torch.arange(time, device=device).unsqueeze(-1) >= lengths.to(device)).unsqueeze(-1)


def _hold(noise: Noise, padding: Tensor, cell: Cell) -> Noise:
    """The masks, such that steps in the padding leave the state as it is."""
    running = ~padding
    drawn = {site: getattr(noise, site) for site in ("ckeep", "hkeep") if site in SITES[cell]}
    keep = {site: running if mask is None else mask * running for site, mask in drawn.items()}
    return noise._replace(**keep, out=None if noise.out is None else noise.out.masked_fill(padding, 1))
