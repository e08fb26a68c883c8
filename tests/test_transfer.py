"""A pretrained model on another vocabulary: which weights move where."""

import pytest
import torch
import yaml

from tests.conftest import ROOT
from zoo import bundle
from zoo.errors import UserError
from zoo.tokenizer import EOS, UNK, Tokenizer
from zoo.transfer import origins, resized, transfer

OLD = [EOS, UNK, "the", "N", "bank", "fund"]
NEW = ["stock", "The", "bank", EOS, "7", UNK, "fund"]
ROWS = [None, 2, 4, 0, 3, 1, 5]
"""By the Penn Treebank's rules "The" is "the" and "7" is N."""

SMALL = {"hidden_size": 6, "embedding_size": 6, "num_layers": 2, "vocab_size": 6, "input_size": 6}
KINDS = [
    "zaremba-small-ptb",
    "awd-lstm-ptb",
    "awd-lstm-mos-ptb",
    "fraternal-lstm-ptb",
    "variational-untied-medium-ptb",
    "recurrent-dropout-gru-ptb",
    "lstm-char-ptb",
    "zoneout-char-ptb",
    "rbn-char-ptb",
]


def shrink(section):
    """A recipe's `model` section at a small size."""
    if isinstance(section, list):
        return [shrink(item) for item in section]
    if not isinstance(section, dict):
        return section
    return {key: SMALL[key] if key in SMALL else shrink(value) for key, value in section.items()}


def write(folder, section, tokenizer):
    """A bundle of a small model."""
    torch.manual_seed(3)
    model = bundle.instantiate(section, folder / "config.yaml")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    recipe = yaml.safe_dump({"model": section})
    weights = bundle.stored_weights(model)
    bundle.write(folder, weights, recipe=recipe, card="# a card\n", tokenizer=tokenizer, curve=[])
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def test_origins_are_by_the_old_rules():
    assert origins(Tokenizer.words(OLD, "penn_treebank"), Tokenizer.words(NEW)) == ROWS
    assert origins(Tokenizer.words(OLD), Tokenizer.words(NEW)) == [None, None, 4, 0, None, 1, 5]


def test_origins_of_characters_without_unk():
    old = Tokenizer.characters(["a", "_", "\n"], blank="_")
    assert origins(old, Tokenizer.characters([" ", "b", "a", "\n", UNK])) == [1, None, 0, 2, None]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_moves(name, tmp_path):
    """Rows of the vocabulary move, new ones are the mean, all else stays; the same words have the same logits."""
    section = shrink(bundle.read_recipe(ROOT / "checkpoints" / name)["model"])
    old = write(tmp_path / "old", section, Tokenizer.words(OLD, "penn_treebank"))
    model, other = transfer(tmp_path / "old", Tokenizer.words(NEW), ROWS)
    assert bundle.instantiate(other, tmp_path).vocab_size == model.vocab_size == 7
    moved = 0
    for weight, value in model.state_dict().items():
        if value.shape == old[weight].shape:
            assert torch.equal(value, old[weight])
            continue
        moved += 1
        (dimension,) = (d for d in range(value.ndim) if value.shape[d] != old[weight].shape[d])
        rows, before = value.movedim(dimension, 0), old[weight].movedim(dimension, 0)
        torch.testing.assert_close(rows[0], before.mean(0))
        for new, row in enumerate(ROWS[1:], 1):
            assert torch.equal(rows[new], before[row])
    assert moved >= 2
    pretrained = bundle.load(tmp_path / "old")
    tokens = torch.tensor([[1, 5], [2, 6], [3, 3]])
    logits, _ = model.eval()(tokens)
    expected, _ = pretrained(torch.tensor([*ROWS[1:], 0])[tokens - 1])
    difference = logits[..., 1:] - expected[..., ROWS[1:]]
    if name == "awd-lstm-mos-ptb":
        return  # the new word changes the norm of each softmax of the mixture by itself
    torch.testing.assert_close(difference, difference[..., :1].expand_as(difference), atol=1e-5, rtol=0)


def test_afresh_only_the_words_differ(tmp_path):
    section = shrink(bundle.read_recipe(ROOT / "checkpoints" / "awd-lstm-ptb")["model"])
    old = write(tmp_path / "old", section, Tokenizer.words(OLD))
    model, _ = transfer(tmp_path / "old", Tokenizer.words(NEW), None)
    for name, value in model.state_dict().items():
        assert torch.equal(value, old[name]) == (name not in ("embedding.weight", "softmax.bias"))
    assert model.softmax.bias.abs().max() == 0
    assert model.embedding.weight.abs().max() <= 0.1


def test_the_same_size_is_no_reason_to_mix_words_up(tmp_path):
    section = shrink(bundle.read_recipe(ROOT / "checkpoints" / "zaremba-small-ptb")["model"])
    old = write(tmp_path / "old", section, Tokenizer.words(OLD))
    backwards = Tokenizer.words(OLD[::-1])
    model, _ = transfer(tmp_path / "old", backwards, origins(Tokenizer.words(OLD), backwards))
    assert torch.equal(model.embedding.weight, old["embedding.weight"].flip(0))
    assert torch.equal(model.lstm.weight_ih_l0, old["lstm.weight_ih_l0"])


def test_no_word_in_common_is_an_error(tmp_path):
    section = shrink(bundle.read_recipe(ROOT / "checkpoints" / "zaremba-small-ptb")["model"])
    write(tmp_path / "old", section, Tokenizer.characters([*"abcd", UNK, " "]))
    letters = Tokenizer.characters([*"xyz", UNK])
    with pytest.raises(UserError, match="none of the 4 types of the corpus is among the 6 of old"):
        transfer(tmp_path / "old", letters, origins(Tokenizer.characters([*"abcd", UNK, " "]), letters))


def test_the_section_stays_as_it_is():
    section = {"class_path": "zoo.models.Zaremba", "init_args": {"vocab_size": 6, "hidden_size": 4}}
    assert resized(section, 9)["init_args"] == {"vocab_size": 9, "hidden_size": 4}
    assert section["init_args"]["vocab_size"] == 6
