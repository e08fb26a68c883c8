"""The curriculum of the drop probabilities, by hand and in a trainer."""

import math

import pytest
import torch
from lightning import Callback, LightningModule, seed_everything
from torch import nn

import zoo
from tests.conftest import quiet_trainer
from zoo.callbacks import DropoutCurriculum, LastCheckpoint
from zoo.datamodules import PennTreebank
from zoo.errors import UserError
from zoo.models import Zaremba
from zoo.regularisers import (
    CurriculumDropout,
    DropConnect,
    Dropout,
    GaussianWeightNoise,
    Regulariser,
    WeightDrop,
    Zoneout,
)


@pytest.fixture
def model():
    shared = Dropout(0.5)
    return nn.ModuleDict(
        {
            "a": nn.Sequential(shared, nn.Linear(2, 2), DropConnect(2, 2, 0.4)),
            "b": nn.ModuleList([shared, Zoneout(cell=0.5, hidden=0.05), WeightDrop(0.3), GaussianWeightNoise(0.1)]),
        }
    )


def probabilities(model):
    zoneout = model["b"][1]
    return [model["a"][0].p, model["a"][2].p, zoneout.cell, zoneout.hidden, model["b"][2].p]


TARGETS = [0.5, 0.4, 0.5, 0.05, 0.3]


def test_every_probability_rises_from_0_to_its_target(model):
    schedule = CurriculumDropout(model, gamma=0.1)
    assert probabilities(model) == [0] * 5
    for t in range(1, 30):
        schedule.step()
        assert probabilities(model) == pytest.approx([p * (1 - math.exp(-0.1 * t)) for p in TARGETS], rel=1e-12)
    for _ in range(500):
        schedule.step()
    assert probabilities(model) == pytest.approx(TARGETS)
    assert model["b"][3].std == 0.1


def test_several_modules_may_be_given(model):
    schedule = CurriculumDropout([model["a"], model["b"]], gamma=0.1)  # both hold the shared one
    schedule.at(1000)
    assert probabilities(model) == pytest.approx(TARGETS)
    CurriculumDropout(model["b"], gamma=0.1)
    assert probabilities(model)[1] == pytest.approx(0.4)
    assert probabilities(model)[2] == 0


def test_a_layer_s_own_regularisers_are_found():
    layer = zoo.LSTM(3, 4, num_layers=2, dropout=0.5)
    schedule = CurriculumDropout(layer, gamma=1)
    inputs = torch.randn(5, 2, 3)
    assert torch.equal(layer(inputs)[0], layer(inputs)[0])
    schedule.step()
    assert not torch.equal(layer(inputs)[0], layer(inputs)[0])


def test_finish_puts_the_targets_back_and_keeps_the_count(model):
    schedule = CurriculumDropout(model, gamma=0.1)
    schedule.step()
    schedule.finish()
    assert probabilities(model) == TARGETS
    assert schedule.updates == 1


def test_a_state_restores_the_probabilities_exactly(model):
    schedule = CurriculumDropout(model, gamma=0.013)
    for _ in range(17):
        schedule.step()
    expected, state = probabilities(model), schedule.state_dict()
    schedule.finish()
    other = CurriculumDropout(model, gamma=0.5)
    assert probabilities(model) == [0] * 5
    other.load_state_dict(state)
    assert probabilities(model) == expected
    schedule.at(18)
    expected = probabilities(model)
    other.step()
    assert probabilities(model) == expected


@pytest.mark.parametrize("gamma", [0, -1.0, float("inf"), float("nan")])
def test_gamma_is_positive(model, gamma):
    with pytest.raises(ValueError, match=f"gamma is {gamma}; it must be positive and finite"):
        CurriculumDropout(model, gamma=gamma)
    with pytest.raises(UserError, match=f"gamma is {gamma}; it must be positive and finite"):
        DropoutCurriculum(gamma)


def test_nothing_to_schedule_is_an_error():
    with pytest.raises(ValueError, match="no regulariser"):
        CurriculumDropout(nn.Linear(2, 2), gamma=1)


class Model(LightningModule):
    """Dropout and zoneout's probabilities over one weight; `validated` is what each validation ran under."""

    def __init__(self):
        super().__init__()
        self.dropout, self.zoneout, self.linear = Dropout(0.5), Zoneout(cell=0.4, hidden=0.2), nn.Linear(20, 1)
        self.validated = []

    def training_step(self, batch, batch_idx):
        return self.linear(self.dropout(batch)).square().mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(now(self))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.linspace(-1, 1, 120).view(6, 20))

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(1, 20))


def now(model):
    return [getattr(m, name) for m in model.modules() if isinstance(m, Regulariser) for name in m.probabilities]


class Watch(Callback):
    """The probabilities of every training step, the losses, and an end without warning after `stop` updates."""

    def __init__(self, stop):
        self.seen, self.losses, self.stop = [], [], stop

    def on_train_batch_start(self, trainer, model, *_):
        self.seen.append(now(model))

    def on_train_batch_end(self, trainer, model, outputs, *_):
        self.losses.append(outputs["loss"].item())
        if trainer.global_step == self.stop:
            raise InterruptedError


def fit(folder, model, *, data=None, gamma=None, stop=None, resume=False, curriculum=True, **options):
    watch = Watch(stop)
    options = {"max_epochs": 4, "enable_checkpointing": True, "num_sanity_val_steps": 0} | options
    callbacks = [*[DropoutCurriculum(gamma)] * curriculum, watch, LastCheckpoint(every_n_train_steps=1)]
    trainer = quiet_trainer(default_root_dir=folder, callbacks=callbacks, **options)
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    except InterruptedError:
        assert trainer.global_step == stop
    return watch


def curve(gamma, updates, targets=(0.5, 0.4, 0.2)):
    return [[p * -math.expm1(-gamma * t) for p in targets] for t in range(updates)]


def test_the_trainer_raises_the_probabilities_with_every_update(tmp_path):
    model = Model()
    assert fit(tmp_path, model).seen == curve(10 / 24, 24)
    assert model.validated == [curve(10 / 24, 25)[t] for t in (6, 12, 18, 24)]
    assert now(model) == [0.5, 0.4, 0.2]


def test_accumulated_gradients_count_once(tmp_path):
    seen = fit(tmp_path, Model(), gamma=0.3, accumulate_grad_batches=2).seen
    assert seen == [p for p in curve(0.3, 12) for _ in range(2)]


def test_a_second_fit_starts_from_the_model_s_own_probabilities(tmp_path):
    model = Model()
    fit(tmp_path, model, stop=5)
    assert now(model) == [0.5, 0.4, 0.2]  # an exception puts them back too
    assert fit(tmp_path, model).seen == curve(10 / 24, 24)


def test_a_run_without_end_needs_a_gamma(tmp_path):
    with pytest.raises(UserError, match="this run has no end"):
        fit(tmp_path, Model(), max_epochs=-1)
    assert fit(tmp_path, Model(), gamma=0.2, max_epochs=-1, stop=9).seen == curve(0.2, 9)


def test_a_model_without_probabilities_is_an_error(tmp_path):
    model = Model()
    model.dropout, model.zoneout = nn.Identity(), nn.Identity()
    with pytest.raises(UserError, match="DropoutCurriculum: modules has no regulariser"):
        fit(tmp_path, model)


def fit_text(folder, data_tree, **options):
    seed_everything(3, verbose=False)
    data = PennTreebank(root=str(data_tree), batch_size=8, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=4, dropout=0.6)
    limits = {"max_epochs": 2, "limit_train_batches": 5, "limit_val_batches": 1}
    return fit(folder, model, data=data, **limits | options)


@pytest.mark.parametrize("stop", [2, 5, 6, 9])
def test_a_run_cut_anywhere_goes_on_as_the_whole_one(data_tree, tmp_path, stop):
    whole = fit_text(tmp_path / "whole", data_tree)
    assert whole.seen == curve(1, 10, [0.6] * 3)
    assert fit_text(tmp_path / "cut", data_tree, stop=stop).seen == whole.seen[:stop]
    resumed = fit_text(tmp_path / "cut", data_tree, resume=True)
    # The interruption strikes before its update is saved; an epoch's last update is saved with its end.
    assert resumed.seen == whole.seen[stop - 1 :]
    assert resumed.losses == whole.losses[stop - 1 :]


def test_a_longer_resumed_run_keeps_the_gamma_it_began_with(data_tree, tmp_path):
    fit_text(tmp_path, data_tree)
    assert fit_text(tmp_path, data_tree, resume=True, max_epochs=3).seen == curve(1, 15, [0.6] * 3)[10:]


def test_a_curriculum_may_join_a_run_that_had_none(data_tree, tmp_path):
    assert fit_text(tmp_path, data_tree, curriculum=False, max_epochs=1).seen == [[0.6] * 3] * 5
    assert fit_text(tmp_path, data_tree, resume=True).seen == curve(1, 10, [0.6] * 3)[5:]
