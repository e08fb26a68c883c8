"""Regularisers of sequences and embeddings, and what all of them share."""

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

import zoo
from zoo import regularisers
from zoo.noise import Extent
from zoo.regularisers import (
    ActivationRegularisation,
    CellDropout,
    DropConnect,
    EmbeddingDropout,
    EmbeddingRegulariser,
    GaussianWeightNoise,
    InputGateDropout,
    LockedDropout,
    NormStabiliser,
    Penalty,
    RecurrentDropout,
    SequenceRegulariser,
    StateDropout,
    StateRegulariser,
    StochasticDepth,
    TemporalActivationRegularisation,
    WeightDrop,
    WeightRegulariser,
    Zoneout,
)

T, B, D = 30, 20, 50


def rate_of_zeros(tensor):
    return (tensor == 0).double().mean().item()


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


def test_locked_dropout_holds_its_mask_for_the_sequence_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = LockedDropout(0.3)
    dropped = layer(torch.ones(T, 100, 200, dtype=torch.float64))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (dropped == dropped[:1]).all()
    assert rate_of_zeros(dropped[0]) == pytest.approx(0.3, abs=0.015)
    assert not torch.equal(dropped[0, 0], dropped[0, 1])
    assert not torch.equal(dropped, layer(torch.ones(T, 100, 200, dtype=torch.float64)))


def test_locked_dropout_of_batches_that_come_first():
    torch.manual_seed(0)
    dropped = LockedDropout(0.3, batch_first=True)(torch.ones(100, T, 200))
    assert (dropped == dropped[:, :1]).all()
    assert not torch.equal(dropped[0], dropped[1])


def test_locked_dropout_passes_the_gradient_of_what_it_keeps():
    torch.manual_seed(0)
    sequence = torch.randn(T, B, D, requires_grad=True)
    dropped = LockedDropout(0.4)(sequence)
    dropped.sum().backward()
    torch.testing.assert_close(sequence.grad, (dropped != 0) / 0.6)


@pytest.mark.parametrize("layer", [zoo.Dropout(0.9), LockedDropout(0.9), LockedDropout(0.0).train()])
def test_the_identity_in_evaluation_and_without_dropout(layer):
    sequence = torch.randn(T, B, D)
    if layer.p:
        layer.eval()
    assert torch.equal(layer(sequence), sequence)


@pytest.fixture
def text():
    """An embedding of 40 types, and tokens (T, B) in which each comes five times in every example."""
    torch.manual_seed(0)
    return nn.Embedding(40, 6, dtype=torch.float64), torch.stack([torch.randperm(200) % 40 for _ in range(B)], 1)


@pytest.mark.parametrize("per", ["window", "sequence"])
def test_embedding_dropout_drops_types(text, per):
    embedding, tokens = text
    plain = embedding(tokens)
    dropped = EmbeddingDropout(0.4, per)(embedding, tokens)
    gone = (dropped == 0).all(-1)
    torch.testing.assert_close(dropped[~gone], plain[~gone] / 0.6)
    fates = [[set(gone[:, b][tokens[:, b] == word].tolist()) for word in range(40)] for b in range(B)]
    assert all(len(fate) == 1 for example in fates for fate in example)
    assert (len({str(example) for example in fates}) == 1) == (per == "window")


@pytest.mark.parametrize("per", ["window", "sequence"])
def test_embedding_dropout_has_its_rate_and_keeps_the_mean(per):
    torch.manual_seed(0)
    embedding = nn.Embedding.from_pretrained(torch.ones(20_000, 1))
    tokens = torch.arange(20_000).unsqueeze(1).expand(-1, 3)
    dropped = EmbeddingDropout(0.1, per)(embedding, tokens)
    assert rate_of_zeros(dropped) == pytest.approx(0.1, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("per", ["window", "sequence"])
def test_embedding_dropout_sends_gradients_to_the_rows_that_were_kept(per):
    torch.manual_seed(0)
    embedding = nn.Embedding(9, 3, padding_idx=0, dtype=torch.float64)
    tokens = torch.randint(9, (50, 2))
    dropped = EmbeddingDropout(0.5, per)(embedding, tokens)
    dropped.sum().backward()
    used = tokens[(dropped != 0).any(-1)]
    assert 0 < len(used) < tokens.numel()
    torch.testing.assert_close(embedding.weight.grad[:, 0], used.bincount(minlength=9).double() / 0.5)
    assert (embedding(torch.zeros(1, 1, dtype=torch.long)) == 0).all()  # so no gradient for the padding in `used`


def test_embedding_dropout_evaluates_as_the_plain_look_up(text):
    embedding, tokens = text
    layer = EmbeddingDropout(0.9)
    assert not torch.equal(layer(embedding, tokens), embedding(tokens))
    assert torch.equal(layer.eval()(embedding, tokens), embedding(tokens))
    assert not torch.equal(layer.train()(embedding, tokens), embedding(tokens))
    assert torch.equal(EmbeddingDropout(0.0)(embedding, tokens), embedding(tokens))


def test_embedding_dropout_names_what_does_not_fit(text):
    with pytest.raises(ValueError, match=r"tokens have shape \(5,\), expected \(T, B\)"):
        EmbeddingDropout(0.1)(text[0], torch.arange(5))
    with pytest.raises(ValueError, match="per is 'word'"):
        EmbeddingDropout(0.1, "word")


INVERTED = [zoo.Dropout, LockedDropout, EmbeddingDropout, StateDropout, WeightDrop]
UNSCALED = [RecurrentDropout, InputGateDropout, CellDropout, StochasticDepth]


@pytest.mark.parametrize("kind", INVERTED)
@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_probability_that_scales_lies_below_one(kind, p):
    with pytest.raises(ValueError, match=rf"p is {p}; a dropout probability lies in \[0, 1\)"):
        kind(p)


@pytest.mark.parametrize("kind", [*UNSCALED, lambda p: DropConnect(2, 3, p)])
@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_a_probability_that_does_not_scale_may_be_one(kind, p):
    with pytest.raises(ValueError, match=rf"p is {p}; a probability lies in \[0, 1\]"):
        kind(p)
    assert kind(1).p == 1


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (GaussianWeightNoise, "std"),
        (ActivationRegularisation, "alpha"),
        (TemporalActivationRegularisation, "beta"),
        (NormStabiliser, "beta"),
    ],
)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_coefficient_is_finite_and_not_negative(make, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be finite and 0 or more"):
        make(value)


@pytest.mark.parametrize("kind", [*INVERTED, *UNSCALED, Zoneout])
def test_probabilities_are_declared_and_shown(kind):
    layer = kind(0.25)
    assert getattr(layer, layer.probabilities[0]) == 0.25
    assert f"{layer.probabilities[0]}=0.25" in repr(layer)


def draw(kind):
    """What each kind of regulariser does to ones."""
    layer = kind(0.5)
    ones = torch.ones(T, B, D)
    if isinstance(layer, SequenceRegulariser):
        return layer(ones)
    if isinstance(layer, EmbeddingRegulariser):
        return layer(nn.Embedding.from_pretrained(torch.ones(90, 4)), torch.arange(T * B).view(T, B) % 90)
    if isinstance(layer, WeightRegulariser):
        return layer(zoo.LSTM(4, 8).weights(0)._replace(hidden=torch.ones(32, 8))).hidden
    noise = layer(Extent(T, B, D, "lstm", torch.device("cpu"), torch.float32))
    return next(mask for mask in noise if mask is not None)


@pytest.mark.parametrize("kind", [*INVERTED, *UNSCALED, lambda p: Zoneout(p, p), GaussianWeightNoise])
def test_a_seed_fixes_the_draws(kind):
    torch.manual_seed(7)
    first, second = draw(kind), draw(kind)
    torch.manual_seed(7)
    assert torch.equal(first, draw(kind))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("slot", "name", "arguments"),
    [
        (StateRegulariser, "Zoneout", {"cell": 0.5, "hidden": 0.05}),
        (StateRegulariser, "RecurrentDropout", {"p": 0.5, "per": "sequence"}),
        (WeightRegulariser, "GaussianWeightNoise", {"std": 0.075}),
        (EmbeddingRegulariser, "EmbeddingDropout", {"p": 0.1, "per": "sequence"}),
        (SequenceRegulariser, "LockedDropout", {"p": 0.4}),
        (Penalty, "NormStabiliser", {"beta": 50.0}),
        (nn.Module, "DropConnect", {"in_features": 2, "out_features": 3, "p": 0.5, "activation": None}),
    ],
)
def test_a_recipe_fills_a_slot(slot, name, arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(slot, "slot")
    config = {"slot": {"class_path": f"zoo.regularisers.{name}", "init_args": arguments}}
    built = parser.instantiate(parser.parse_object(config)).slot
    assert type(built) is getattr(regularisers, name)
    assert {key: getattr(built, key) for key in arguments} == arguments
