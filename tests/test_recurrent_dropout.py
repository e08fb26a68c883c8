"""Recurrent dropout's network and its variants."""

import pytest
import torch

from tests.conftest import quiet_trainer
from zoo.datamodules import PennTreebank
from zoo.layers import GRU, LSTM
from zoo.models import RecurrentDropoutLanguageModel, RNNDrop
from zoo.regularisers import CellDropout, Dropout, RecurrentDropout

MODELS = [
    (RecurrentDropoutLanguageModel, {"recurrent_dropout": 0.5}, LSTM, RecurrentDropout),
    (RecurrentDropoutLanguageModel, {"recurrent_dropout": 0.5, "cell": "gru"}, GRU, RecurrentDropout),
    (RNNDrop, {"cell_dropout": 0.5}, LSTM, CellDropout),
]


@pytest.mark.parametrize(("build", "options", "layer", "noise"), MODELS)
def test_one_layer_with_noise_in_its_state_alone(build, options, layer, noise):
    torch.manual_seed(0)
    model = build(30, hidden_size=8, input_dropout=0.0, output_dropout=0.0, **options)
    (own,) = model.layers
    assert type(own) is layer
    (regulariser,) = own.state_noise
    assert type(regulariser) is noise
    assert regulariser.p == 0.5
    tokens = torch.randint(30, (6, 3))
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    loss, _, _ = model.train().loss((tokens, tokens), None)
    loss.backward()
    assert all(parameter.grad.count_nonzero() for parameter in model.parameters())


def test_vertical_dropout_is_fresh_at_every_step():
    model = RecurrentDropoutLanguageModel(30, hidden_size=8, input_dropout=0.2, output_dropout=0.5)
    assert (type(model.input_dropout), model.input_dropout.p) == (Dropout, 0.2)
    assert (type(model.output_dropout), model.output_dropout.p) == (Dropout, 0.5)


def test_the_loss_is_summed_over_the_steps():
    nll = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert RecurrentDropoutLanguageModel(30, hidden_size=8).objective(nll) == 5.0


def test_the_rate_falls_whenever_validation_does_not_improve(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20)
    model = RecurrentDropoutLanguageModel(data.tokenizer.vocab_size, hidden_size=4, learning_rate=9.0)
    trainer = quiet_trainer(max_epochs=4, limit_train_batches=2, limit_val_batches=1)
    rates = []

    model.on_train_epoch_start = lambda: rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    model.on_before_optimizer_step = lambda optimizer: [p.grad.zero_() for p in model.parameters()]
    trainer.fit(model, datamodule=data)
    assert rates == pytest.approx([9, 9, 6, 4])
