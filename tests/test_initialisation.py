"""What recurrent layers start from."""

import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.initialisation import block_orthogonal_, initialise_
from zoo.layers import GRU, LSTM, RNN, BatchNormLSTM

H, I = 12, 4


def orthonormal_columns(matrix):
    return torch.allclose(matrix.T @ matrix, torch.eye(matrix.shape[1]), atol=1e-5)


@pytest.mark.parametrize("shape", [(400, 100), (200, 50), (50, 200), (60, 60), (20, 1)])
def test_blocks_are_square_orthogonal_and_drawn_apart(shape):
    torch.manual_seed(0)
    size, other = min(shape), max(shape) // min(shape)
    matrix = nn.Parameter(torch.zeros(shape))
    assert block_orthogonal_(matrix) is matrix
    blocks = matrix.view(other, size, size) if shape[0] >= shape[1] else matrix.view(size, other, size).transpose(0, 1)
    torch.testing.assert_close(blocks @ blocks.mT, torch.eye(size).expand(other, size, size), rtol=0, atol=1e-5)
    assert len({block.detach().numpy().round(4).tobytes() for block in blocks}) == (other if size > 1 else 2)


def test_elements_of_an_lstm_are_twice_those_of_one_orthogonal_matrix():
    torch.manual_seed(0)
    blocks, whole = block_orthogonal_(torch.empty(200, 50)), nn.init.orthogonal_(torch.empty(200, 50))
    torch.testing.assert_close(blocks.square().mean(), 4 * whole.square().mean())
    assert orthonormal_columns(whole)


@pytest.mark.parametrize("shape", [(27, 100), (6, 4), (8,), (2, 4, 8)])
def test_shapes_without_blocks_are_refused(shape):
    with pytest.raises(UserError, match=r"matrix has shape \(.*one divides the other"):
        block_orthogonal_(torch.empty(shape))


LAYERS = {
    "lstm": lambda: LSTM(I, H, bias="one", initial_state="learned"),
    "gru": lambda: GRU(I, H, bias="one", initial_state="learned"),
    "rnn": lambda: RNN(I, H, bias="one"),
    "batch-norm": lambda: BatchNormLSTM(I, H, max_steps=5),
    "two of all": lambda: LSTM(I, H, 2, bias="two", bidirectional=True),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_matrices_are_filled_and_biases_zero_but_the_forget_gates(make):
    torch.manual_seed(0)
    layer = make()
    others = {name: p.detach().clone() for name, p in layer.named_parameters() if name.startswith(("gain", "initial"))}
    assert initialise_(layer, nn.init.orthogonal_) is layer
    for name, parameter in layer.named_parameters():
        if name.startswith("weight_"):
            rows, columns = parameter.shape
            assert orthonormal_columns(parameter if rows >= columns else parameter.T), name
        elif name.startswith("bias_"):
            forget = torch.zeros_like(parameter)
            if isinstance(layer, LSTM) and name.startswith("bias_ih"):
                forget[H : 2 * H] = 1
            assert torch.equal(parameter, forget), name
        else:
            assert torch.equal(parameter, others[name]), name


@pytest.mark.parametrize("bias", ["one", "two"])
def test_the_cells_forget_by_the_sigmoid_of_one(bias):
    layer = initialise_(LSTM(I, H, bias=bias), nn.init.orthogonal_)
    c = torch.randn(1, 3, H)
    _, (_, final) = layer(torch.zeros(1, 3, I), (torch.zeros(1, 3, H), c))
    torch.testing.assert_close(final, torch.tensor(1.0).sigmoid() * c)


def test_the_identity_is_the_candidates_alone():
    torch.manual_seed(0)
    layer = initialise_(LSTM(I, H, bias="one"), nn.init.orthogonal_, identity_candidate=True)
    i, f, g, o = layer.weight_hh_l0.chunk(4)
    assert torch.equal(g, torch.eye(H))
    assert orthonormal_columns(torch.cat([i, f, o]))
    assert not any(orthonormal_columns(gate) for gate in (i, f, o))
    h = torch.randn(1, 3, H)
    _, (_, c) = layer(torch.zeros(1, 3, I), (h, torch.zeros(1, 3, H)))
    torch.testing.assert_close(c, (h @ i.T).sigmoid() * h.tanh())


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("fill_", [nn.init.orthogonal_, block_orthogonal_])
def test_layers_without_storage_are_left_so(fill_, identity):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with torch.device("meta"):
        layer = initialise_(LSTM(I, H, bias="one"), fill_, identity)
    assert all(parameter.is_meta for parameter in layer.parameters())
    assert torch.equal(torch.rand(1), expected)


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match="LSTM without biases"):
        initialise_(LSTM(I, H, bias="none"), nn.init.orthogonal_)
    with pytest.raises(UserError, match="identity_candidate is for an LSTM, and layer is a GRU"):
        initialise_(GRU(I, H), nn.init.orthogonal_, identity_candidate=True)
    assert initialise_(RNN(I, H, bias="none"), nn.init.orthogonal_)
