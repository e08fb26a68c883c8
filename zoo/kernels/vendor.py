"""The vendor's LSTM (oneDNN on the CPU, cuDNN on CUDA) through the one private call that torch.nn.LSTM makes too."""

import torch
from torch import Tensor

from zoo.functional import LSTMState, LSTMWeights


def lstm(inputs: Tensor, state: LSTMState, weights: LSTMWeights) -> tuple[Tensor, LSTMState]:
    """`zoo.functional.lstm` without noise."""
    h, c = (value.unsqueeze(0) for value in state)
    # input, (h, c), weights, has_biases, num_layers, dropout, train, bidirectional, batch_first
    outputs, h, c = torch._VF.lstm(inputs, (h, c), list(weights), True, 1, 0.0, torch.is_grad_enabled(), False, False)
    return outputs, (h.squeeze(0), c.squeeze(0))
