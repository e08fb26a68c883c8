"""The variational LSTM against its equations written out with the masks that it drew."""

import pytest
import torch
from torch.nn.functional import linear

from tests.conftest import quiet_trainer
from zoo.datamodules import PennTreebank
from zoo.models import VariationalLSTM

TOKENS = torch.randint(30, (6, 3), generator=torch.Generator().manual_seed(0))


def tiny(untied, **options):
    torch.manual_seed(0)
    return VariationalLSTM(30, hidden_size=8, untied=untied, init_range=0.3, **options).double()


def drawn(monkeypatch, target):
    """The masks that a module's draws give, in order."""
    masks = []
    draw = target.inverted_mask

    def note(*arguments, **options):
        masks.append(draw(*arguments, **options))
        return masks[-1]

    monkeypatch.setattr(target, "inverted_mask", note)
    return masks


@pytest.mark.parametrize("untied", [False, True])
def test_a_pass_is_that_of_the_equations(untied, monkeypatch):
    from zoo.regularisers import sequence, state

    vertical, recurrent = drawn(monkeypatch, sequence), drawn(monkeypatch, state)
    model = tiny(untied)
    vectors = []
    model.embedding_dropout.register_forward_hook(lambda module, inputs, output: vectors.append(output))
    run = model.run(TOKENS)
    hidden = vectors[0]
    for index, layer in enumerate(model.layers):
        x, z = vertical[index], recurrent[index]
        # One mask for all gates, or four, and always one for all steps and another for each example.
        assert x.shape == (1, 3, 32 if untied else 8)
        assert z.shape == ((1, 4, 3, 8) if untied else (1, 3, 8))
        xs = x[0].view(3, 4, 8).unbind(1) if untied else [x[0]] * 4
        zs = z[0].unbind(0) if untied else [z[0]] * 4
        w, r = layer.weight_ih_l0.chunk(4), layer.weight_hh_l0.chunk(4)
        b = (layer.bias_ih_l0 + layer.bias_hh_l0).chunk(4)
        h = c = torch.zeros(3, 8, dtype=torch.float64)
        outputs = []
        for step in hidden:
            i, f, g, o = (linear(step * xs[k], w[k]) + linear(h * zs[k], r[k]) + b[k] for k in range(4))
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        hidden = torch.stack(outputs)
    torch.testing.assert_close(run.hidden, hidden)
    torch.testing.assert_close(run.dropped, hidden * vertical[2])
    assert len(vertical) == 3
    assert len(recurrent) == 2


def test_untied_and_tied_masks_evaluate_alike():
    tied, untied = tiny(False), tiny(True)
    untied.load_state_dict(tied.state_dict())
    torch.testing.assert_close(tied.eval()(TOKENS)[0], untied.eval()(TOKENS)[0])


@pytest.mark.parametrize("untied", [False, True])
def test_every_parameter_learns(untied):
    model = tiny(untied)
    loss, _, _ = model.loss((TOKENS, TOKENS), None)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.count_nonzero() > 0, name


def test_word_types_are_dropped_from_each_example_by_itself():
    model = tiny(False, embedding_dropout=0.5)
    words = torch.arange(30).repeat(2, 2).T
    dropped = (model.embedding_dropout(model.embedding, words) == 0).all(-1)
    assert torch.equal(dropped[:30], dropped[30:])
    assert not torch.equal(dropped[:, 0], dropped[:, 1])


def test_the_weights_shrink_by_the_same_share_whatever_the_rate(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20)
    model = VariationalLSTM(data.tokenizer.vocab_size, hidden_size=4, learning_rate=0.0, weight_decay=0.125)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quiet_trainer(max_steps=2, limit_val_batches=0).fit(model, datamodule=data)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name] * 0.875**2)
