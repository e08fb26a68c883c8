"""Character models on one-hot tokens: zoneout's, its baselines', and the batch-normalised one."""

import pytest
import torch
from torch.nn.functional import one_hot

from tests.conftest import quiet_trainer
from zoo.datamodules import PennTreebank
from zoo.errors import UserError
from zoo.layers import GRU, LSTM, RNN
from zoo.metrics import token_nll
from zoo.models import OneHotLanguageModel, RecurrentBatchNormLanguageModel, ZoneoutLanguageModel
from zoo.optim import ClippedUpdateAdam, StepAdam
from zoo.regularisers import GaussianWeightNoise, NormStabiliser

V = 12


def build(layer=None, **options):
    torch.manual_seed(0)
    layer = layer or LSTM(V, 8, bias="one", initial_state="learned")
    return OneHotLanguageModel(V, layer, StepAdam(1e-3, weight_decay=0.0), **options)


def batch_normed():
    torch.manual_seed(0)
    return RecurrentBatchNormLanguageModel(V, 8, max_steps=9)


def tokens(steps=20, batch=3):
    return torch.randint(V, (steps, batch), generator=torch.Generator().manual_seed(1))


def test_the_layer_sees_one_hot_vectors():
    model = build()
    expected, _ = model.layer(one_hot(tokens(), V).float())
    hidden, _ = model.encode(tokens())
    assert torch.equal(hidden, expected)
    assert torch.equal(model(tokens())[0], model.softmax(expected))


@pytest.mark.parametrize("layer", [LSTM, GRU, RNN])
@pytest.mark.parametrize("initialisation", ["orthogonal", "block_orthogonal"])
def test_every_cell_starts_as_the_papers_do(layer, initialisation):
    model = build(layer(V, V, bias="one"), initialisation=initialisation)
    weights = model.layer.weights(0)
    blocks = len(weights.hidden) // V if initialisation == "block_orthogonal" else 1
    for columns in weights.hidden.chunk(blocks):
        torch.testing.assert_close(columns.T @ columns, torch.eye(V))
    assert weights.bias_input.sum().item() == (V if layer is LSTM else 0)
    assert not model.softmax.bias.any()


def test_weight_noise_is_on_the_softmax_too_and_in_training_alone():
    noise = GaussianWeightNoise(0.1)
    model = build(LSTM(V, 8, bias="one", weight_noise=noise), softmax_noise=noise)
    hidden = torch.randn(4, 3, 8)
    assert not torch.equal(model.softmax(hidden), model.softmax(hidden))
    assert not torch.equal(model.layer(hidden.new_ones(4, 3, V))[0], model.layer(hidden.new_ones(4, 3, V))[0])
    model.eval()
    assert torch.equal(model(tokens())[0], model(tokens())[0])


def test_the_penalty_is_on_the_layers_outputs():
    model = build(penalties=[NormStabiliser(50.0)])
    window = tokens()[:-1], tokens()[1:]
    loss, nll, _ = model.loss(window, None)
    hidden, _ = model.encode(window[0])
    change = hidden.norm(dim=-1).diff(dim=0).square().mean()
    torch.testing.assert_close(loss, nll.mean() + 50 * change)


def test_zoneout_has_the_authors_optimiser():
    model = ZoneoutLanguageModel(V, 8, max_update_norm=0.5)
    ((optimizer,), _) = model.configure_optimizers()
    assert isinstance(optimizer, ClippedUpdateAdam)
    assert optimizer.max_update_norm == 0.5
    assert optimizer.param_groups[0]["weight_decay"] == 0
    (zoneout,) = model.layer.state_noise
    assert (zoneout.cell, zoneout.hidden, zoneout.shared) == (0.5, 0.05, False)


class TestBatchNorm:
    def test_windows_with_the_state_carried_are_one_pass(self):
        model = batch_normed()
        for _ in range(5):
            model(tokens(9))  # the statistics move
        model.eval()
        whole, _ = model(tokens())
        first, state = model(tokens()[:4])
        second, state = model(tokens()[4:13], state)
        third, _ = model(tokens()[13:], state)
        torch.testing.assert_close(torch.cat([first, second, third]), whole)
        anew, _ = model(tokens()[4:13])
        assert not torch.allclose(anew, second)

    def test_steps_beyond_the_last_take_its_statistics(self):
        model = batch_normed()
        for _ in range(5):
            model(tokens(9))
        model.eval()
        hidden, state = model(tokens()[:15])
        model.layer.population_hidden_mean_l0[8] += 1
        changed, _ = model(tokens()[:15])
        assert torch.equal(changed[:8], hidden[:8])
        assert not torch.allclose(changed[9:], hidden[9:])
        assert state[1] == 15

    def test_a_stream_has_no_steps_to_have_statistics_of(self, data_tree):
        data = PennTreebank(level="character", text="lines", root=str(data_tree))
        model = RecurrentBatchNormLanguageModel(data.tokenizer.vocab_size, 8)
        with pytest.raises(UserError, match="set batching to 'pieces'"):
            quiet_trainer(max_epochs=1).fit(model, datamodule=data)

    def test_it_generates_with_the_state_carried(self, data_tree):
        data = PennTreebank(level="character", text="lines", root=str(data_tree))
        model = RecurrentBatchNormLanguageModel(data.tokenizer.vocab_size, 8, max_steps=9)
        model.tokenizer = data.tokenizer
        assert len(model.generate("the ", tokens=30, seed=1)) == 34


@pytest.mark.parametrize("make", [ZoneoutLanguageModel, RecurrentBatchNormLanguageModel])
def test_pieces_and_a_stream_are_both_measured_exactly(make, data_tree):
    options = dict(level="character", text="lines", batching="pieces", bptt=19, batch_size=8, root=str(data_tree))
    data = PennTreebank(**options)
    torch.manual_seed(0)
    model = make(data.tokenizer.vocab_size, 8)
    run = quiet_trainer(max_epochs=1, limit_train_batches=20, limit_val_batches=0)
    run.fit(model, datamodule=data)
    with torch.no_grad():  # until what was read before matters
        for parameter in model.parameters():
            parameter.mul_(3)
    model.tokenizer, ids = data.tokenizer, torch.from_numpy(data.ids("test").astype("int64"))
    run.test(model, datamodule=data, verbose=False)
    with torch.no_grad():
        logits, _ = model.eval()(ids[:-1].unsqueeze(1))
        stream = token_nll(logits, ids[1:].unsqueeze(1)).double().mean() / torch.tensor(2).log()
        pieces = ids[: len(ids) // 20 * 20].view(-1, 20).T
        logits, _ = model(pieces[:-1])
        reset = token_nll(logits, pieces[1:]).double().mean() / torch.tensor(2).log()
    assert model.measured["test"] == (pytest.approx(stream.item(), rel=1e-5), len(ids) - 1)
    run.test(model, datamodule=PennTreebank(**options, evaluation="pieces"), verbose=False)
    assert model.measured["test"] == (pytest.approx(reset.item(), rel=1e-5), pieces[1:].numel())
    assert reset > stream * 1.0001 or reset < stream * 0.9999


def test_a_piece_starts_from_the_initial_state(data_tree):
    data = PennTreebank(level="character", text="lines", batching="pieces", bptt=9, root=str(data_tree))
    model = ZoneoutLanguageModel(data.tokenizer.vocab_size, 8)
    states, encode = [], model.encode

    def watched(tokens, state=None):
        states.append(state)
        return encode(tokens, state)

    model.encode = watched
    quiet_trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=2).fit(model, datamodule=data)
    assert states == [None] * len(states)
    assert len(states) >= 7


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LSTM(V + 1, 8, bias="one"), f"layer 1 takes inputs of {V + 1}, and what comes before it gives {V}"),
        (LSTM(V, 8, bias="none"), "forget gates want one of 1"),
    ],
)
def test_layers_that_do_not_fit(layer, message):
    with pytest.raises(UserError, match=message):
        build(layer)
