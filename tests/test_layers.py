import pytest
import torch
from torch import nn

import zoo


@pytest.mark.parametrize("num_layers", [1, 3])
def test_weights_move_to_torch_and_back(num_layers):
    ours, theirs = zoo.LSTM(4, 6, num_layers), nn.LSTM(4, 6, num_layers)
    theirs.load_state_dict(ours.state_dict())
    inputs, state = torch.randn(5, 3, 4), (torch.randn(num_layers, 3, 6), torch.randn(num_layers, 3, 6))
    torch.testing.assert_close(ours(inputs, state), theirs(inputs, state))
    torch.testing.assert_close(ours(inputs), theirs(inputs))
    ours.load_state_dict(nn.LSTM(4, 6, num_layers).state_dict())


def test_starts_as_torch_does():
    layer = zoo.LSTM(50, 400)
    for parameter in layer.parameters():
        assert parameter.abs().max() <= 400**-0.5
        assert parameter.std().item() == pytest.approx(400**-0.5 / 3**0.5, rel=0.1)


def test_dropout_acts_between_the_layers_alone():
    torch.manual_seed(0)
    layer = zoo.LSTM(4, 6, num_layers=2, dropout=0.5)
    inputs = torch.randn(5, 3, 4)
    first, (h, _) = layer(inputs)
    second, (h_again, _) = layer(inputs)
    torch.testing.assert_close(h[0], h_again[0])  # nothing before the first layer
    assert not torch.allclose(first, second)  # something between them
    assert (first != 0).all()  # nothing after the last
    layer.eval()
    torch.testing.assert_close(layer(inputs), layer(inputs))


@pytest.mark.parametrize("sizes", [(0, 6), (4, 0), (4, 6, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="must be 1 or more"):
        zoo.LSTM(*sizes)


def test_a_state_of_other_sizes_is_named():
    layer = zoo.LSTM(4, 6, num_layers=2)
    with pytest.raises(ValueError, match=r"\[1, 1\] layers, expected 2"):
        layer(torch.randn(5, 3, 4), (torch.zeros(1, 3, 6), torch.zeros(1, 3, 6)))
    with pytest.raises(ValueError, match=r"state h has shape \(2, 6\)"):
        layer(torch.randn(5, 3, 4), (torch.zeros(2, 2, 6), torch.zeros(2, 2, 6)))
