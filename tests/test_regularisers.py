import pytest
import torch

import zoo


def test_dropout_is_drawn_afresh_at_every_step_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = zoo.Dropout(0.3)
    dropped = layer(torch.ones(50, 40, 100))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    zeros = dropped == 0
    assert zeros.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not torch.equal(zeros[0], zeros[1])
    assert not torch.equal(zeros[:, 0], zeros[:, 1])


def test_dropout_evaluates_as_the_identity():
    sequence = torch.randn(5, 3, 4)
    assert torch.equal(zoo.Dropout(0.9).eval()(sequence), sequence)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match=str(p)):
        zoo.Dropout(p)
