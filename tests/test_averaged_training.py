"""A fit whose optimiser validation steers: what validation sees, what is kept, resumes, and runs that diverge."""

import math
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from lightning import Callback, seed_everything

from tests.conftest import quiet_trainer
from zoo import bundle, card
from zoo.callbacks import BestWeights, LastCheckpoint
from zoo.cli import main
from zoo.datamodules import PennTreebank
from zoo.errors import UserError
from zoo.models import AWDLSTM, Zaremba
from zoo.optim import NonMonotonicSGD, ReduceOnPlateauSGD


class Watch(Callback):
    """The weights that each validation saw, those that training went on with, and every update's loss."""

    def __init__(self, stop=None):
        self.losses, self.validated, self.after, self.values, self.ends, self.stop = [], [], [], [], [], stop

    def on_train_batch_end(self, trainer, *_):
        self.losses.append((trainer.global_step, trainer.callback_metrics["train/loss"].item()))
        if trainer.global_step == self.stop:
            raise InterruptedError

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append({name: value.clone() for name, value in pl_module.state_dict().items()})
            self.values.append(pl_module.measured["validation"][0])

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append(trainer.global_step)
        self.after.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def fit(folder, data_tree, optimization, *, stop=None, resume=False, epochs=6):
    seed_everything(3, verbose=False)
    data = PennTreebank(root=str(data_tree), batch_size=24, bptt=15, random_bptt=True)
    model = AWDLSTM(data.tokenizer.vocab_size, 6, 8, num_layers=2, bptt=15, optimization=optimization)
    watch, best = Watch(stop), BestWeights()
    trainer = quiet_trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[watch, best, LastCheckpoint(every_n_train_steps=1)],
        enable_checkpointing=True,
    )
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    with suppress(InterruptedError):
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    return model, trainer, watch, best


def nt_asgd(**options):
    return NonMonotonicSGD(20.0, non_monotone=1, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_tree):
    return fit(tmp_path_factory.mktemp("whole"), data_tree, nt_asgd())


def same(one, other):
    return all(torch.equal(one[name], value) for name, value in other.items())


def test_validation_sees_the_averages_and_training_goes_on_with_the_weights(uninterrupted):
    model, trainer, watch, _ = uninterrupted
    optimizer = trainer.optimizers[0]
    assert 2 < len(optimizer.history) < 6  # the switch came on the way
    for epoch, (seen, after) in enumerate(zip(watch.validated, watch.after, strict=True), start=1):
        assert same(seen, after) == (epoch <= len(optimizer.history))
    assert optimizer.averaged == trainer.global_step - watch.ends[len(optimizer.history) - 1]
    assert not same(watch.validated[-1], watch.after[-1])
    assert same(model.state_dict(), watch.validated[-1])  # the fit has ended


def test_the_best_model_is_kept_as_validation_saw_it(uninterrupted):
    _, _, watch, best = uninterrupted
    index = min(range(len(watch.values)), key=watch.values.__getitem__)
    assert (best.epoch, best.value) == (index + 1, watch.values[index])
    assert same(best.weights, watch.validated[index])


def test_measuring_after_a_fit_sees_the_weights_at_hand(uninterrupted, data_tree):
    model, trainer, _, best = uninterrupted
    model.load_state_dict(best.weights)
    trainer.validate(model, verbose=False, datamodule=PennTreebank(root=str(data_tree)))
    assert model.measured["validation"][0] == pytest.approx(best.value, rel=1e-6)
    assert same(model.state_dict(), best.weights)


@pytest.mark.parametrize("part", [0.2, 0.7, 0.95])
def test_interrupted(part, uninterrupted, data_tree, tmp_path):
    _, trainer, watch, best = uninterrupted
    stop = int(trainer.global_step * part)
    fit(tmp_path, data_tree, nt_asgd(), stop=stop)
    again, resumed, later, kept = fit(tmp_path, data_tree, nt_asgd(), resume=True)
    assert later.losses == watch.losses[-len(later.losses) :]
    assert later.losses[0][0] in (stop - 1, stop)
    assert same(later.after[-1], watch.after[-1])
    assert same(again.state_dict(), later.validated[-1])
    ours, theirs = trainer.optimizers[0], resumed.optimizers[0]
    assert (theirs.history, theirs.averaged) == (ours.history, ours.averaged)
    assert (kept.epoch, kept.value) == (best.epoch, best.value)
    assert same(kept.weights, best.weights)


def test_fine_tuning_averages_at_once_and_ends_when_it_gets_worse(data_tree, tmp_path):
    _, trainer, watch, _ = fit(tmp_path, data_tree, nt_asgd(fine_tuning=True), epochs=30)
    optimizer = trainer.optimizers[0]
    assert optimizer.averaged == trainer.global_step
    assert len(watch.values) < 30
    assert watch.values[-1] > min(watch.values[:-2])


def test_a_plateau_divides_the_rate_and_ends_the_run(data_tree, tmp_path):
    optimization = ReduceOnPlateauSGD(1e-9, decay=2, least=2e-10)
    _, trainer, watch, _ = fit(tmp_path, data_tree, optimization, epochs=30)
    assert len(watch.values) < 30
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1.25e-10)
    again, resumed, later, _ = fit(tmp_path, data_tree, optimization, epochs=30, resume=True)
    assert (resumed.global_step, later.losses, again.ended) == (trainer.global_step, [], True)


def saving_every_update(data_tree, folder):
    """Data, a small model and a trainer that leaves a checkpoint after each update."""
    seed_everything(3, verbose=False)
    data = PennTreebank(root=str(data_tree), batch_size=16, bptt=15)
    trainer = quiet_trainer(
        max_epochs=1,
        default_root_dir=folder,
        callbacks=[LastCheckpoint(every_n_train_steps=1)],
        enable_checkpointing=True,
    )
    return data, Zaremba(data.tokenizer.vocab_size, 6), trainer


@pytest.mark.parametrize("after", [0, 3])
def test_a_run_that_diverges_names_the_last_good_checkpoint(after, data_tree, tmp_path):
    data, model, trainer = saving_every_update(data_tree, tmp_path)

    def poison(batch, batch_idx):
        if batch_idx == after:
            with torch.no_grad():
                model.softmax.bias[0] = math.nan

    model.on_train_batch_start = poison
    with pytest.raises(UserError, match=rf"the loss of update {after + 1} is not finite: the run diverged; ") as raised:
        trainer.fit(model, datamodule=data)
    file = tmp_path / "checkpoints" / "last.ckpt"
    assert (str(file) in str(raised.value)) == file.exists() == bool(after)
    if after:
        stored = torch.load(file, weights_only=True)
        assert stored["global_step"] == after
        assert all(value.isfinite().all() for value in stored["state_dict"].values())


def test_a_run_without_checkpoints_stops_too(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=16, bptt=15)
    model = Zaremba(data.tokenizer.vocab_size, 6, learning_rate=1e36, max_norm=1e36)
    with pytest.raises(UserError, match=r"the loss of update [23] is not finite: .*no checkpoint was written before"):
        quiet_trainer(max_epochs=1).fit(model, datamodule=data)


def test_weights_that_are_not_finite_are_not_saved(data_tree, tmp_path):
    data, model, trainer = saving_every_update(data_tree, tmp_path)
    model.on_before_optimizer_step = lambda optimizer: model.softmax.bias.grad.fill_(math.inf)
    model.max_norm = None
    with pytest.raises(
        UserError, match=r"softmax\.bias is not finite after 1 updates: .*no checkpoint was written before"
    ):
        trainer.fit(model, datamodule=data)


class TestFromTheCommandLine:
    @pytest.fixture
    def options(self, data_tree, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
        size = PennTreebank().tokenizer.vocab_size
        sizes = [f"--model.vocab_size={size}", "--model.hidden_size=8", "--model.embedding_size=8", "--data.bptt=10"]
        sizes += ["--model.bptt=10"]
        return ["fit", "awd-lstm-ptb", *sizes, "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]

    def test_the_best_epoch_is_stored_and_fine_tuned(self, options, capsys):
        main([*options, "--trainer.max_epochs=3", "--model.optimization.learning_rate=5"])
        folder = Path("logs/awd-lstm-ptb/version_0/awd-lstm-ptb")
        text = (folder / "README.md").read_text()
        assert "epoch kept: " in text
        tuning = ["--model.optimization.fine_tuning=true", "--model.optimization.non_monotone=1"]
        main([*options, *tuning, f"--weights={folder}", "--name=tuned", "--trainer.max_epochs=2"])
        assert f"started from: {folder.name}\n" in Path("logs/tuned/version_0/tuned/README.md").read_text()
        assert bundle.build(Path("logs/tuned/version_0/tuned")).optimization.fine_tuning

    def test_fine_tuning_wants_a_finished_model(self, options, capsys):
        tuning = [*options, "--model.optimization.fine_tuning=true", "--trainer.max_epochs=1"]
        with pytest.raises(SystemExit):
            main(tuning)
        assert "error: fine-tuning goes on from a finished model: name it with --weights" in capsys.readouterr().err
        main([*options, "--trainer.max_steps=2", "--trainer.limit_val_batches=1"])
        folder = "logs/awd-lstm-ptb/version_0/awd-lstm-ptb"
        with pytest.raises(SystemExit):
            main([*tuning, "--weights", folder])
        assert f"{folder} was cut short; fine-tuning goes on from a finished model" in capsys.readouterr().err

    def test_a_fine_tuning_that_never_improves_keeps_what_it_began_with(self, options):
        main([*options, "--trainer.max_epochs=2", "--model.optimization.learning_rate=5"])
        folder = Path("logs/awd-lstm-ptb/version_0/awd-lstm-ptb")
        tuning = ["--model.optimization.fine_tuning=true", "--model.optimization.learning_rate=3000"]
        main([*options, *tuning, f"--weights={folder}", "--name=tuned", "--trainer.max_epochs=1"])
        tuned = Path("logs/tuned/version_0/tuned")
        assert "epoch kept: 0" in (tuned / "README.md").read_text()
        assert (tuned / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()

    def test_a_run_that_is_stopped_from_outside_is_not_finished(self, options, capsys):
        main([*options, "--trainer.max_epochs=1000", "--trainer.max_time=00:00:00:01"])
        assert not card.read(Path("logs/awd-lstm-ptb/version_0/awd-lstm-ptb")).measured.finished
        assert ", cut short and so not measured;" in capsys.readouterr().out

    def test_a_run_that_stops_early_by_its_own_rule_is_finished(self, options):
        stopping = ["--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping"]
        stopping += ["--trainer.callbacks.monitor=validation/perplexity", "--trainer.callbacks.patience=1"]
        stopping += ["--trainer.callbacks.min_delta=1e9"]
        main([*options, *stopping, "--trainer.max_epochs=9"])
        measured = card.read(Path("logs/awd-lstm-ptb/version_0/awd-lstm-ptb")).measured
        assert (measured.finished, measured.training["epochs"]) == (True, 2)

    def test_a_schedule_that_has_come_to_its_end_is_finished(self, options):
        plateau = ["--model.optimization=zoo.optim.ReduceOnPlateauSGD", "--model.optimization.learning_rate=1e-9"]
        main([*options, *plateau, "--model.optimization.least=1e-9", "--seed_everything=5", "--trainer.max_epochs=99"])
        measured = card.read(Path("logs/awd-lstm-ptb/version_0/awd-lstm-ptb")).measured
        assert measured.finished
        assert measured.training["epochs"] < 99
        assert measured.training["seed"] == 5
        assert {result.split for result in measured.results} == {"validation", "test"}

    def test_a_run_on_a_few_batches_is_not_finished(self, options):
        main([*options, "--trainer.max_epochs=1", "--trainer.overfit_batches=2"])
        assert not card.read(Path("logs/awd-lstm-ptb/version_0/awd-lstm-ptb")).measured.finished

    def test_fine_tuning_wants_validations(self, options, capsys):
        with pytest.raises(SystemExit):
            main([*options, "--model.optimization.fine_tuning=true", "--trainer.limit_val_batches=0"])
        assert "ends by its validations, and trainer.limit_val_batches is 0" in capsys.readouterr().err

    def test_a_limit_of_the_training_is_none_of_the_scoring(self, options, capsys):
        main([*options, "--trainer.max_steps=2", "--trainer.limit_val_batches=1"])
        main(["validate", "logs/awd-lstm-ptb/version_0/awd-lstm-ptb"])
        predictions = len(PennTreebank().ids("validation")) - 1
        assert predictions > 200
        assert f" over {predictions:,} predictions" in capsys.readouterr().out
