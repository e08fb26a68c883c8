"""Fraternal dropout around several models."""

import pytest
import torch

from tests.conftest import quiet_trainer
from zoo.datamodules import PennTreebank
from zoo.errors import UserError
from zoo.metrics import token_nll
from zoo.models import (
    AWDLSTM,
    FraternalLanguageModel,
    RecurrentBatchNormLanguageModel,
    RecurrentDropoutLanguageModel,
    Zaremba,
)
from zoo.optim import NonMonotonicSGD

TOKENS = torch.randint(30, (6, 3), generator=torch.Generator().manual_seed(0))
WINDOW = (TOKENS, TOKENS.roll(1, 0))
MODELS = {
    "awd": lambda: AWDLSTM(30, 6, 9),
    "mixture": lambda: AWDLSTM(30, 6, 9, softmaxes=2, output_size=7, latent_dropout=0.3),
    "zaremba": lambda: Zaremba(30, 6, dropout=0.5),
    "gru": lambda: RecurrentDropoutLanguageModel(30, 6, cell="gru"),
}


def passes(model):
    """The logits of every pass through a model, and whether it was in training."""
    seen = []
    run = model.run

    def note(tokens, state=None):
        outputs = run(tokens, state)
        seen.append((outputs, model.training, state))
        return outputs

    model.run = note
    return seen


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("variant", ["fraternal", "pi", "expectation_linear"])
def test_the_loss_is_the_papers(name, variant):
    torch.manual_seed(0)
    model = MODELS[name]()
    fraternal = FraternalLanguageModel(model, kappa=0.7, variant=variant)
    seen = passes(model)
    _, _, state = model.loss(WINDOW, None)
    seen.clear()
    loss, nll, carried = fraternal.loss(WINDOW, state)
    (first, _, start), (second, noisy, other_start) = seen
    assert start is other_start is state
    assert carried is first.state
    assert noisy == (variant != "expectation_linear")
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(nll, token_nll(first.logits, WINDOW[1]))
    losses = [model.objective(token_nll(run.logits, WINDOW[1])) + model.penalty(run) for run, _, _ in seen]
    expected = sum(losses) / 2 if variant == "fraternal" else losses[0]
    expected = expected + 0.7 * (first.logits - second.logits).pow(2).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad.count_nonzero() for parameter in model.parameters())
    assert all(module.training for module in fraternal.modules())


def test_without_dropout_it_is_the_model_itself():
    model = Zaremba(30, 6)
    torch.testing.assert_close(FraternalLanguageModel(model, kappa=9.0).loss(WINDOW, None), model.loss(WINDOW, None))


@pytest.mark.parametrize("variant", ["pi", "expectation_linear"])
def test_a_second_pass_that_counts_for_nothing_is_not_made(variant):
    model = MODELS["awd"]()
    seen = passes(model)
    loss, _, _ = FraternalLanguageModel(model, kappa=0.0, variant=variant).loss(WINDOW, None)
    assert len(seen) == 1
    torch.testing.assert_close(loss, model.loss_of(seen[0][0], WINDOW[1])[0])


def test_its_objective_is_the_models():
    nll = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert FraternalLanguageModel(Zaremba(30, 6)).objective(nll) == Zaremba(30, 6).objective(nll) == 5.0


def test_evaluation_is_the_models():
    model = MODELS["awd"]().eval()
    fraternal = FraternalLanguageModel(model).eval()
    assert torch.equal(fraternal(TOKENS)[0], model(TOKENS)[0])


def test_a_batch_normalised_model_takes_no_stream():
    model = FraternalLanguageModel(RecurrentBatchNormLanguageModel(30, 6, max_steps=6))
    _, _, state = model.loss(WINDOW, None)
    with pytest.raises(UserError, match="batching is 'stream'"):
        model.loss(WINDOW, state)


def test_it_forgets_as_often_as_it_is_told_to():
    torch.manual_seed(0)
    model = Zaremba(30, 6)
    _, _, state = model.loss(WINDOW, None)
    seen = passes(model)
    fraternal = FraternalLanguageModel(model, forget=0.25)
    for _ in range(200):
        fraternal.loss(WINDOW, state)
    forgotten = [start is None for _, _, start in seen]
    assert forgotten[::2] == forgotten[1::2]
    assert 0.15 < sum(forgotten) / len(forgotten) < 0.35


def test_it_trains_with_the_models_own_optimiser(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=4, bptt=20, random_bptt=True)
    torch.manual_seed(0)
    model = AWDLSTM(data.tokenizer.vocab_size, 8, 12, 2, optimization=NonMonotonicSGD(3.0), bptt=20)
    fraternal = FraternalLanguageModel(model)
    trainer = quiet_trainer(max_epochs=2, limit_val_batches=1)
    losses = []
    fraternal.on_train_batch_end = lambda *_: losses.append(trainer.callback_metrics["train/loss"].item())
    trainer.fit(fraternal, datamodule=data)
    assert (fraternal.max_norm, fraternal.bptt, fraternal.sums_steps) == (0.25, 20, False)
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.1
    assert trainer.optimizers[0].history


@pytest.mark.parametrize(("name", "value"), [("kappa", -1.0), ("forget", 1.5), ("variant", "sisterly")])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(UserError, match=f"{name} is"):
        FraternalLanguageModel(Zaremba(30, 6), **{name: value})
