import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.conftest import quiet_trainer
from zoo.datamodules import PennTreebank
from zoo.models import Zaremba
from zoo.regularisers import Dropout, Zoneout


def test_every_parameter_starts_uniform_in_the_range():
    torch.manual_seed(0)
    for name, parameter in Zaremba(100, hidden_size=50, init_range=0.04).named_parameters():
        assert 0.035 < parameter.abs().max() <= 0.04, name
        assert parameter.std().item() == pytest.approx(0.04 / 3**0.5, rel=0.15), name


def test_the_softmax_is_not_tied_and_has_a_bias():
    model = Zaremba(100, hidden_size=50)
    assert model.softmax.weight is not model.embedding.weight
    assert model.softmax.bias.shape == (100,)


def test_the_loss_sums_over_steps_and_averages_over_the_batch():
    nll = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    assert Zaremba(10, hidden_size=4).objective(nll) == pytest.approx(12.0)


def test_dropout_has_three_sites():
    torch.manual_seed(0)
    model = Zaremba(10, hidden_size=6, dropout=0.5)
    sites = [model.input_dropout, model.lstm.dropout, model.output_dropout]
    assert [site.p for site in sites] == [0.5] * 3
    tokens = torch.randint(10, (4, 3))
    for active in sites:
        model.eval()
        active.train()
        assert not torch.allclose(model(tokens)[0], model(tokens)[0])
    model.eval()
    torch.testing.assert_close(model(tokens), model(tokens), rtol=0, atol=0)


def test_state_noise_acts_in_every_layer_and_adds_no_parameter():
    torch.manual_seed(0)
    model = Zaremba(10, hidden_size=6, state_noise=Zoneout(cell=1.0, hidden=0.25))
    tokens = torch.randint(10, (4, 3))
    _, (h, c) = model.train()(tokens)
    assert h.shape == (2, 3, 6)
    assert (c == 0).all()  # every cell keeps its old value
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    assert torch.equal(model.eval()(tokens)[0], model(tokens)[0])
    assert list(model.state_dict()) == list(Zaremba(10, hidden_size=6).state_dict())


@pytest.mark.parametrize(
    ("constant", "decay", "rates"),
    [(4, 2.0, [1, 1, 1, 1, 1, 0.5, 0.25, 0.125]), (1, 1.25, [1, 1, 0.8, 0.64, 0.512])],
)
def test_the_rate_falls_first_in_the_second_epoch_after_the_constant_ones(data_tree, constant, decay, rates):
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=4, constant_epochs=constant, decay=decay)
    seen = []
    model.on_train_epoch_start = lambda: seen.append(model.optimizers().param_groups[0]["lr"])
    quiet_trainer(max_epochs=len(rates), limit_train_batches=2, limit_val_batches=0).fit(model, datamodule=data)
    assert seen == pytest.approx(rates)


@pytest.mark.parametrize(("trainer_clip", "norm"), [(None, 0.25), (0.125, 0.125)])
def test_the_gradient_is_clipped_by_the_models_norm_unless_the_trainer_says_otherwise(data_tree, trainer_clip, norm):
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=4, max_norm=0.25)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    quiet_trainer(max_steps=1, limit_val_batches=0, gradient_clip_val=trainer_clip).fit(model, datamodule=data)
    step = torch.cat([(new - old).flatten() for new, old in zip(model.parameters(), before, strict=True)])
    assert step.norm().item() == pytest.approx(norm, rel=1e-3)  # the learning rate is 1


def test_trains_as_a_plain_loop_of_torchs_parts_does(data_tree):
    """The paper's training written once more, with nothing of the zoo in it but the windows and the draws of dropout."""
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20, drop_last=True)
    torch.manual_seed(0)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=16, dropout=0.5, max_norm=0.5, constant_epochs=0)
    embedding, softmax = nn.Embedding(model.vocab_size, 16), nn.Linear(16, model.vocab_size)
    layers, dropout = [nn.LSTM(16, 16), nn.LSTM(16, 16)], Dropout(0.5)
    for theirs, ours in ((embedding, model.embedding), (softmax, model.softmax)):
        theirs.load_state_dict(ours.state_dict())
    for depth, layer in enumerate(layers):
        own = {name: value for name, value in model.lstm.state_dict().items() if name.endswith(f"_l{depth}")}
        layer.load_state_dict({name.replace(f"_l{depth}", "_l0"): value for name, value in own.items()})
    parameters = [parameter for part in (embedding, *layers, softmax) for parameter in part.parameters()]

    windows, expected = list(data.train_dataloader()), []
    torch.manual_seed(1)
    for rate in (1.0, 0.5):
        states = [None, None]
        for inputs, targets in windows:
            outputs = embedding(inputs)
            for depth, layer in enumerate(layers):
                outputs, state = layer(dropout(outputs), states[depth])
                states[depth] = tuple(part.detach() for part in state)
            loss = cross_entropy(softmax(dropout(outputs)).flatten(0, 1), targets.flatten())
            gradients = torch.autograd.grad(20 * loss, parameters)
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= rate * gradient * (0.5 / norm).clamp(max=1)
            expected.append(loss.item())

    losses: list[float] = []
    model.on_train_batch_end = lambda *_: losses.append(model.trainer.callback_metrics["train/loss"].item())
    torch.manual_seed(1)
    quiet_trainer(max_epochs=2, limit_val_batches=0).fit(model, datamodule=data)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0] - 0.2
