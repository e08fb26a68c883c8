"""Layer groups, discriminative rates along the slanted triangle, gradual unfreezing."""

from contextlib import suppress

import pytest
import torch

from tests.conftest import quiet_trainer
from zoo import LSTM
from zoo.callbacks import GradualUnfreezing, LastCheckpoint
from zoo.errors import UserError
from zoo.models import AWDLSTM, FraternalLanguageModel, TextClassifier, Zaremba
from zoo.optim import DiscriminativeAdam, slanted_triangle


def names(model):
    """The layer groups by their parameters' names."""
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [sorted(by_id[id(parameter)] for parameter in group) for group in model.layer_groups()]


def test_groups_are_the_layers_and_then_the_rest():
    layer = ["bias_hh", "bias_ih", "weight_hh", "weight_ih"]
    assert names(Zaremba(7, hidden_size=4)) == [
        [f"lstm.{name}_l0" for name in layer],
        [f"lstm.{name}_l1" for name in layer],
        ["embedding.weight", "softmax.bias", "softmax.weight"],
    ]
    tied = AWDLSTM(7, embedding_size=4, hidden_size=5, num_layers=2)
    assert names(tied)[-1] == ["embedding.weight", "softmax.bias"]
    assert names(FraternalLanguageModel(tied)) == [[f"model.{name}" for name in group] for group in names(tied)]


def test_a_classifiers_groups_have_the_embedding_below_and_the_head_above():
    groups = names(TextClassifier(Zaremba(7, hidden_size=4), 2))
    assert groups[0] == ["encoder.embedding.weight"]
    assert len(groups) == 4
    assert all(name.startswith("head.") for name in groups[-1])


def test_every_layer_and_direction_has_its_parameters():
    layer = LSTM(3, 4, num_layers=2, bidirectional=True, initial_state="learned")
    lower, upper = layer.parameters_by_layer()
    assert len(lower) == 8 + 2  # the learned initial states too
    assert len(upper) == 8
    assert {*map(id, lower), *map(id, upper)} == {*map(id, layer.parameters())}


def test_the_triangle():
    """Howard and Ruder's equation 3 for T = 100, cut 0.1, ratio 32: from 1/32 up to 1 at update 10, and down."""
    assert slanted_triangle(0, 100, 0.1, 32) == 1 / 32
    assert slanted_triangle(5, 100, 0.1, 32) == (1 + 0.5 * 31) / 32
    assert slanted_triangle(10, 100, 0.1, 32) == 1
    assert slanted_triangle(55, 100, 0.1, 32) == (1 + 0.5 * 31) / 32
    assert slanted_triangle(100, 100, 0.1, 32) == 1 / 32
    assert slanted_triangle(130, 100, 0.1, 32) == 1 / 32
    assert slanted_triangle(0, 5, 0.1, 32) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"factor": 0.5}, "factor is 0.5; it must be finite and 1 or more"),
        ({"cut": 1.0}, r"cut is 1.0; it must lie in \[0, 1\)"),
    ],
)
def test_bad_constants(wrong, message):
    with pytest.raises(UserError, match=message):
        DiscriminativeAdam(**wrong)


class Seen(GradualUnfreezing):
    """Notes, after every update, the rates and which groups moved."""

    def __init__(self, stop=None):
        self.rates, self.moved, self.stop = [], [], stop
        self._before = None

    def on_train_batch_start(self, trainer, pl_module, *_):
        self._before = [[parameter.detach().clone() for parameter in group] for group in pl_module.layer_groups()]
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer, pl_module, *_):
        pairs = zip(self._before, pl_module.layer_groups(), strict=True)
        self.moved.append([any(not torch.equal(*pair) for pair in zip(*groups, strict=True)) for groups in pairs])
        if trainer.global_step == self.stop:
            raise InterruptedError


def fit(text_data, folder, stop=None, resume=False):
    torch.manual_seed(1)
    model = Zaremba(text_data.tokenizer.vocab_size, hidden_size=4)
    model.optimization = DiscriminativeAdam(0.1)
    seen = Seen(stop)
    trainer = quiet_trainer(
        max_epochs=4,
        limit_train_batches=None,
        default_root_dir=folder,
        callbacks=[seen, LastCheckpoint(every_n_train_steps=1)],
        enable_checkpointing=True,
    )
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    with suppress(InterruptedError):
        trainer.fit(model, datamodule=text_data, ckpt_path=checkpoint, weights_only=True if resume else None)
    return seen, model


def test_a_fit_unfreezes_group_by_group_along_the_triangle_and_resumes(corpus, tmp_path):
    data = corpus()
    seen, model = fit(data, tmp_path / "whole")
    an_epoch = len(data.train_dataloader())
    assert an_epoch > 2
    assert len(seen.moved) == 4 * an_epoch
    for epoch, moved in enumerate(seen.moved[::an_epoch]):
        assert moved == [epoch >= 2, epoch >= 1, True]
    for update, rates in enumerate(seen.rates):
        expected = 0.1 * slanted_triangle(update, 4 * an_epoch, 0.1, 32)
        torch.testing.assert_close(rates, [expected / 2.6**2, expected / 2.6, expected])
    assert all(parameter.requires_grad for parameter in model.parameters())

    interrupted, model_at_hand = fit(corpus(), tmp_path / "broken", stop=1)
    assert interrupted.moved == [[False, False, True]]
    assert all(parameter.requires_grad for parameter in model_at_hand.parameters())

    stop = an_epoch + 2  # the last checkpoint is of the update before, within the second epoch
    fit(corpus(), tmp_path / "cut", stop=stop)
    again, resumed = fit(corpus(), tmp_path / "cut", resume=True)
    assert again.moved == seen.moved[stop - 1 :]
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.fixture
def corpus(tmp_path):
    from tests.conftest import sentences
    from zoo.datamodules import Corpus

    file = tmp_path / "mine.txt"
    file.write_text("\n".join(sentences(60, seed=1)) + "\n")
    return lambda: Corpus(str(file), batch_size=4, bptt=20)
