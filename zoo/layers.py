"""Recurrent layers: parameters and regularisers over `zoo.kernels`."""

import math

import torch
from torch import Tensor, nn

from zoo import kernels
from zoo.functional import LSTMState, Weights
from zoo.regularisers import Dropout


class LSTM(nn.Module):
    """Stacked LSTM layers with the parameter names, the initialisation and the states of `torch.nn.LSTM`.

    `dropout` acts between the layers, afresh at every time step (Zaremba et al. 2014, equations 7 to 9).

    inputs (T, B, input_size), state (h, c) each (num_layers, B, hidden_size) or None for zeros ->
    outputs (T, B, hidden_size), state. Raises `ValueError` where shapes disagree.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        for name, size in {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be 1 or more")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.dropout = Dropout(dropout)
        gates = 4 * hidden_size
        for layer in range(num_layers):
            width = hidden_size if layer else input_size
            self.register_parameter(f"weight_ih_l{layer}", nn.Parameter(torch.empty(gates, width)))
            self.register_parameter(f"weight_hh_l{layer}", nn.Parameter(torch.empty(gates, hidden_size)))
            self.register_parameter(f"bias_ih_l{layer}", nn.Parameter(torch.empty(gates)))
            self.register_parameter(f"bias_hh_l{layer}", nn.Parameter(torch.empty(gates)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(-1/sqrt(H), 1/sqrt(H)), as in torch."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def weights(self, layer: int) -> Weights:
        """The four weights of a layer, as `zoo.functional.lstm` takes them."""
        w_ih, w_hh, b_ih, b_hh = (
            self.get_parameter(f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return Weights(w_ih, w_hh, b_ih, b_hh)

    def forward(self, inputs: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        if state is None:
            zeros = inputs.new_zeros(self.num_layers, *inputs.shape[1:2], self.hidden_size)
            state = (zeros, zeros)
        elif any(len(part) != self.num_layers for part in state):
            raise ValueError(f"the state has {[len(part) for part in state]} layers, expected {self.num_layers}")
        outputs, finals = inputs, []
        for layer, initial in enumerate(zip(*state, strict=True)):
            if layer:
                outputs = self.dropout(outputs)
            outputs, final, _ = kernels.lstm(outputs, initial, self.weights(layer))
            finals.append(final)
        h, c = (torch.stack(parts) for parts in zip(*finals, strict=True))
        return outputs, (h, c)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
