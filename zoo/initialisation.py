"""How recurrent networks start, where torch's layers and `torch.nn.init` have no like."""

from collections.abc import Callable
from math import gcd
from typing import TypeVar

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.layers import Recurrent

Layer = TypeVar("Layer", bound=Recurrent)


@torch.no_grad()
def block_orthogonal_(matrix: Tensor) -> Tensor:
    """Fills a matrix with square orthogonal blocks, each drawn by itself.

        (rows, columns) -> blocks Q (s, s), Q Q^T = I        s = gcd(rows, columns)

    Every gate's block of a hidden-to-hidden matrix is orthogonal. `torch.nn.init.orthogonal_` instead makes the columns of
    all gates together orthonormal, an LSTM's elements thereby half as large: the `orthogonal` of Cooijmans et al.
    2017, arXiv 1603.09025, and of the zoneout authors' first release, whose matrices are the transposes of ours.

    Krueger et al. 2017, arXiv 1606.01305; https://github.com/teganmaharaj/zoneout, initialization.py. Raises `UserError`,
    as the authors' code fails, where neither side divides the other.
    """
    if matrix.ndim != 2 or (size := gcd(*matrix.shape)) not in matrix.shape:
        raise UserError(
            f"matrix has shape {tuple(matrix.shape)}, expected two sides of which one divides the other; "
            "take torch.nn.init.orthogonal_ for others"
        )
    for rows in torch.split(matrix, size):
        for block in torch.split(rows, size, 1):
            nn.init.orthogonal_(block)
    return matrix


@torch.no_grad()
def initialise_(layer: Layer, fill_: Callable[[Tensor], Tensor], identity_candidate: bool = False) -> Layer:
    """Sets a recurrent layer's matrices by `fill_`, its biases to 0 and the bias of an LSTM's forget gates to 1.

    Where a layer has two biases the 1 is in the input's. Gains and learned initial states stay as they are. The zoneout
    authors' code adds a constant 1 to the forget gates in its place: the same function, and without weight decay the same
    training.

    With `identity_candidate` the hidden-to-hidden matrix of an LSTM has the identity for its candidate g, and `fill_` sets
    the other three gates as one matrix, (3 H, H). Cooijmans et al. 2017, arXiv 1603.09025, section 5.1, has the whole matrix
    be the identity, its code g alone: https://github.com/cooijmanstim/recurrent-batch-normalization, sequential_mnist.py.

    Returns the layer. Raises `UserError` for an LSTM without biases, and for `identity_candidate` of another cell.
    """
    lstm, size = layer.cell == "lstm", layer.hidden_size
    if lstm and layer.bias == "none":
        raise UserError(
            "layer is an LSTM without biases, and its forget gates want one of 1; give it bias='one' or 'two'"
        )
    if identity_candidate and not lstm:
        raise UserError(f"identity_candidate is for an LSTM, and layer is a {type(layer).__name__}; leave it out")
    for index in range(layer.num_layers):
        for direction in range(layer.directions):
            weights = layer.weights(index, direction)
            fill_(weights.input)
            if identity_candidate:
                i, f, g, o = weights.hidden.chunk(4)
                gates = fill_(torch.empty_like(weights.hidden[size:])).chunk(3)
                for block, start in zip((i, f, o), gates, strict=True):
                    block.copy_(start)
                nn.init.eye_(g)
            else:
                fill_(weights.hidden)
            for bias in (weights.bias_input, weights.bias_hidden):
                if bias is not None:
                    nn.init.zeros_(bias)
            if lstm and weights.bias_input is not None:
                nn.init.ones_(weights.bias_input[size : 2 * size])
    return layer
