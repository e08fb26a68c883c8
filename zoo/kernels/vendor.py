"""The vendor's networks (oneDNN on the CPU, cuDNN on CUDA) through the private call that torch.nn.LSTM and its kin make."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from zoo.functional import Weights


def run(
    cell: Literal["lstm", "gru", "rnn_tanh", "rnn_relu"], inputs: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, ...]:
    """One layer without noise: outputs (T, B, H), then the final state (B, H) each."""
    if inputs.shape[:2].numel() == 1 and inputs.device.type == "cpu":
        # oneDNN packs the weights at every call, which takes longer than the one step.
        final = getattr(torch, f"{cell}_cell")(inputs[0], state if cell == "lstm" else state[0], *weights)
        final = final if cell == "lstm" else (final,)
        return (final[0].unsqueeze(0), *final)
    of_input, of_hidden = weights.bias_input, weights.bias_hidden
    if of_input is None and of_hidden is not None:
        of_input = torch.zeros_like(of_hidden)
    elif of_hidden is None and of_input is not None:
        of_hidden = torch.zeros_like(of_input)
    parameters = [v for v in (weights.input, weights.hidden, of_input, of_hidden) if v is not None]
    layered = tuple(value.unsqueeze(0).contiguous() for value in state)  # cuDNN takes no other
    has_biases, num_layers, dropout, bidirectional, batch_first = len(parameters) == 4, 1, 0.0, False, False
    with _unpacked_quietly() if inputs.is_cuda else nullcontext():
        outputs, *final = getattr(torch._VF, cell)(
            inputs,
            layered if cell == "lstm" else layered[0],
            parameters,
            has_biases,
            num_layers,
            dropout,
            torch.is_grad_enabled(),
            bidirectional,
            batch_first,
        )
    return (outputs, *(value.squeeze(0) for value in final))


@contextmanager
def _unpacked_quietly() -> Iterator[None]:
    """Without torch's warning that cuDNN packs such weights at every call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield
