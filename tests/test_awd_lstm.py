"""AWD-LSTM: what its ports get wrong, and its training against a plain loop of torch's parts."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from tests.conftest import quiet_trainer
from zoo.datamodules import PennTreebank
from zoo.errors import UserError
from zoo.layers import GRU, LSTM
from zoo.metrics import token_nll
from zoo.models import AWDLSTM, RecurrentLanguageModel
from zoo.optim import NonMonotonicSGD, StepAdam
from zoo.regularisers import LockedDropout, TemporalActivationRegularisation

TOKENS = torch.randint(30, (11, 5), generator=torch.Generator().manual_seed(0))


def tiny(**options):
    torch.manual_seed(0)
    silent = dict.fromkeys(
        ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop"), 0.0
    )
    return AWDLSTM(30, embedding_size=6, hidden_size=9, **silent | options)


def test_the_layers_are_400_1150_1150_400():
    with torch.device("meta"):
        model = AWDLSTM(10_000)
    assert [(layer.input_size, layer.hidden_size) for layer in model.layers] == [(400, 1150), (1150, 1150), (1150, 400)]
    assert sum(parameter.numel() for parameter in model.parameters()) == 24_221_600


def test_it_starts_as_the_authors_code_does():
    model = AWDLSTM(300, embedding_size=50, hidden_size=100)
    assert 0.09 < model.embedding.weight.abs().max() <= 0.1
    assert not model.softmax.bias.any()
    for layer, bound in zip(model.layers, (0.1, 0.1, 50**-0.5), strict=True):
        assert 0.9 * bound < layer.weight_hh_l0.abs().max() <= bound


class TestWeightDrop:
    def test_it_trains_the_matrix_that_it_drops(self):
        model = tiny(weight_drop=0.5)
        loss, _, _ = model.loss((TOKENS, TOKENS), None)
        loss.backward()
        for layer in model.layers:
            gradient = layer.weight_hh_l0.grad
            # Dropped elements have none, all others do.
            assert 0.3 < gradient.count_nonzero() / gradient.numel() < 0.7

    def test_two_passes_differ_from_their_second_step_on(self):
        model = tiny(weight_drop=0.5)
        first, second = model(TOKENS)[0], model(TOKENS)[0]
        assert torch.equal(first[0], second[0])
        assert not torch.isclose(first[1:], second[1:]).all(-1).any()

    def test_the_parameters_are_the_layers_own(self):
        model = tiny(weight_drop=0.5)
        names = [name for name, _ in model.named_parameters() if "hh" in name]
        assert names == [f"layers.{i}.{name}_hh_l0" for i in range(3) for name in ("weight", "bias")]

    def test_training_after_an_evaluation_drops_again(self):
        model = tiny(weight_drop=0.5)
        model.eval()(TOKENS)
        model.train()
        assert not torch.equal(model(TOKENS)[0], model(TOKENS)[0])

    def test_evaluation_is_that_of_torchs_lstms(self):
        model = AWDLSTM(30, embedding_size=6, hidden_size=9).eval()
        hidden = model.embedding(TOKENS)
        for layer in model.layers:
            plain = nn.LSTM(layer.input_size, layer.hidden_size)
            plain.load_state_dict(layer.state_dict())
            hidden, _ = plain(hidden)
        expected = linear(hidden, model.embedding.weight, model.softmax.bias)
        torch.testing.assert_close(model(TOKENS)[0], expected)


@pytest.mark.parametrize("site", ["input_dropout", "hidden_dropout", "output_dropout"])
def test_locked_masks_hold_over_time_and_differ_over_the_batch(site):
    model = tiny(**{site: 0.5})
    ones = torch.ones(4, 5, 100)
    masked = getattr(model, site)(ones)
    assert all(torch.equal(step, masked[0]) for step in masked)
    assert not torch.equal(masked[0, 0], masked[0, 1])
    assert not torch.equal(model(TOKENS)[0], model(TOKENS)[0])  # and it is on the way


def test_unlocked_masks_change_with_every_step():
    masked = tiny(input_dropout=0.5, locked=False).input_dropout(torch.ones(4, 5, 100))
    assert not torch.equal(masked[0], masked[1])


def test_embedding_dropout_drops_words_from_the_input_alone():
    model = tiny(embedding_dropout=0.5)
    words = torch.arange(30).repeat(2, 1).T  # every word in both columns
    vectors = model.embedding_dropout(model.embedding, words)
    dropped = (vectors == 0).all(-1)
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert 0 < dropped[:, 0].sum() < 30
    run = model.run(words)
    torch.testing.assert_close(run.logits, linear(run.dropped, model.embedding.weight, model.softmax.bias))


def test_ar_is_of_the_dropped_outputs_and_tar_of_the_raw_ones():
    model = tiny(output_dropout=0.5, activation=2.0, temporal_activation=1.0)
    run = model.run(TOKENS)
    assert not torch.equal(run.hidden, run.dropped)
    expected = 2 * run.dropped.square().mean() + (run.hidden[1:] - run.hidden[:-1]).square().mean()
    torch.testing.assert_close(model.penalty(run), expected)


def test_the_embedding_learns_from_both_of_its_uses():
    model = tiny()
    loss, _, _ = model.loss((TOKENS, TOKENS), None)
    loss.backward()
    unused = sorted(set(range(30)) - set(TOKENS.flatten().tolist()))
    assert unused
    assert model.embedding.weight.grad[unused].count_nonzero() > 0  # through the softmax


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_the_rate_follows_the_windows_length(windows, data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20, random_bptt=True)
    model = AWDLSTM(data.tokenizer.vocab_size, 4, 4, num_layers=1, bptt=20, optimization=NonMonotonicSGD(1e-3))
    rates, lengths = [], []
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=20, limit_val_batches=0, accumulate_grad_batches=windows)
    model.on_fit_start = lambda: trainer.optimizers[0].register_step_post_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    model.on_train_batch_end = lambda outputs, batch, batch_idx: lengths.append(len(batch[0]))
    trainer.fit(model, datamodule=data)
    assert len(set(lengths)) > 4
    updates = [lengths[start : start + windows] for start in range(0, 20, windows)]
    assert rates == pytest.approx([1e-3 * sum(update) / len(update) / 20 for update in updates])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-3


def test_windows_that_the_rate_is_not_for(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20)
    model = AWDLSTM(data.tokenizer.vocab_size, 4, 4, num_layers=1, bptt=70)
    with pytest.raises(UserError, match=r"windows are of 20 steps .*, and the learning rate is for 70"):
        quiet_trainer(max_epochs=1).fit(model, datamodule=data)


def test_trains_as_a_plain_loop_of_torchs_parts_does(data_tree):
    """An epoch without noise but with both penalties, weight decay, the clip and random windows, written once more."""
    torch.manual_seed(3)
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20, random_bptt=True)
    options = dict.fromkeys(
        ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop"), 0.0
    )
    model = AWDLSTM(
        data.tokenizer.vocab_size,
        8,
        12,
        optimization=NonMonotonicSGD(2.0, weight_decay=1e-3),
        bptt=20,
        **options,
    )
    embedding = nn.Parameter(model.embedding.weight.detach().clone())
    bias = nn.Parameter(torch.zeros(model.vocab_size))
    lstms = [nn.LSTM(layer.input_size, layer.hidden_size) for layer in model.layers]
    for theirs, ours in zip(lstms, model.layers, strict=True):
        theirs.load_state_dict(ours.state_dict())
    parameters = [embedding, *(p for lstm in lstms for p in lstm.parameters()), bias]
    expected, states = [], [None] * 3
    for inputs, targets in data.train_dataloader():
        hidden = embedding[inputs]
        for index, lstm in enumerate(lstms):
            hidden, (h, c) = lstm(hidden, states[index])
            states[index] = (h.detach(), c.detach())
        nll = cross_entropy(linear(hidden, embedding, bias).flatten(0, 1), targets.flatten())
        loss = nll + 2 * hidden.pow(2).mean() + (hidden[1:] - hidden[:-1]).pow(2).mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                rate = 2.0 * len(inputs) / 20
                parameter -= rate * (gradient * (0.25 / norm).clamp(max=1) + 1e-3 * parameter)
        expected.append(nll.item())

    losses: list[float] = []
    model.on_train_batch_end = lambda *_: losses.append(model.trainer.callback_metrics["train/loss"].item())
    quiet_trainer(max_epochs=1, limit_val_batches=0).fit(model, datamodule=data)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0] - 0.2


def test_a_mixture_of_softmaxes_is_the_weighted_sum_of_them():
    model = tiny(softmaxes=3, latent_dropout=0.0, output_size=7)
    head = model.softmax
    hidden = torch.randn(4, 5, 7, dtype=torch.float64)
    model.double()
    prior = head.prior(hidden).softmax(-1)
    latent = head.latent(hidden).tanh().view(4, 5, 3, 6)
    p = linear(latent, model.embedding.weight, head.softmax.bias).softmax(-1)
    expected = (prior.unsqueeze(-1) * p).sum(2).log()
    torch.testing.assert_close(head(hidden), expected)
    torch.testing.assert_close(head(hidden).exp().sum(-1), torch.ones(4, 5, dtype=torch.float64))
    logits, targets = head(hidden), torch.randint(30, (4, 5))
    torch.testing.assert_close(token_nll(logits, targets), -logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1))


def test_a_mixture_under_autocast_is_a_distribution():
    """Whose logarithms are in float32: in bfloat16 the probabilities of 30 words are off by 1 %."""
    model = tiny(softmaxes=3, latent_dropout=0.0, output_size=7)
    with torch.autocast("cpu", torch.bfloat16):
        log_probabilities = model.softmax(torch.randn(4, 5, 7))
    assert log_probabilities.dtype == torch.float32
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(4, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_size": 7}, "the last layer has 7 units and the embedding 6"),
        ({"softmaxes": 0}, "softmaxes is 0"),
        ({"latent_dropout": 0.5}, "latent_dropout is 0.5"),
        ({"num_layers": 1}, "hidden_size is 9 and the one layer's output 6"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(UserError, match=message):
        tiny(**options)


def test_a_mixtures_latent_dropout_is_locked():
    head = tiny(softmaxes=3, latent_dropout=0.5).softmax
    masked = head.latent_dropout(torch.ones(4, 5, 18))
    assert torch.equal(masked[0], masked[3])
    assert not torch.equal(masked[0, 0], masked[0, 1])


def test_dropout_is_where_the_authors_have_it():
    """A training pass with all five kinds, the masks read back from the pass itself."""
    model = tiny(embedding_dropout=0.2, input_dropout=0.3, hidden_dropout=0.3, output_dropout=0.3)
    masks = []

    def note(module, inputs, output):
        masks.append(output / inputs[0])

    for site in (model.input_dropout, model.hidden_dropout, model.output_dropout):
        site.register_forward_hook(note)
    vectors = []
    model.embedding_dropout.register_forward_hook(lambda module, inputs, output: vectors.append(output))
    run = model.run(TOKENS)
    assert len(masks) == 4  # in, twice between, out
    hidden = vectors[0] * masks[0].nan_to_num()
    for index, layer in enumerate(model.layers):
        if index:
            hidden = hidden * masks[index]
        plain = nn.LSTM(layer.input_size, layer.hidden_size)
        plain.load_state_dict(layer.state_dict())
        hidden, _ = plain(hidden)
    torch.testing.assert_close(run.hidden, hidden)
    torch.testing.assert_close(run.dropped, hidden * masks[3])


@pytest.mark.parametrize(
    "slot",
    [
        {"input_dropout": LockedDropout(0.5, batch_first=True)},
        {"penalties": [TemporalActivationRegularisation(1.0, batch_first=True)]},
    ],
)
def test_what_goes_along_the_wrong_axis_is_refused(slot):
    with pytest.raises(UserError, match=r"batch_first=True\) does not fit a model that reads time first"):
        RecurrentLanguageModel(9, 6, [LSTM(6, 6)], StepAdam(1e-3), **slot)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "layers is empty"),
        ([LSTM(5, 6)], "layer 1 takes inputs of 5, and what comes before it gives 6"),
        ([LSTM(6, 7), GRU(6, 6)], "layer 2 takes inputs of 6, and what comes before it gives 7"),
        ([LSTM(6, 3, bidirectional=True)], "layer 1 is bidirectional or batch_first"),
        ([LSTM(6, 6, batch_first=True)], "layer 1 is bidirectional or batch_first"),
        ([LSTM(6, 7)], "the last layer has 7 units and the embedding 6"),
    ],
)
def test_layers_that_do_not_follow_one_another_are_named(layers, message):
    with pytest.raises(UserError, match=message):
        RecurrentLanguageModel(30, 6, layers, NonMonotonicSGD(), softmax="tied")
