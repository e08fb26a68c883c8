"""A run that was interrupted anywhere goes on bit for bit."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, seed_everything

from tests.conftest import ROOT, quiet_trainer
from zoo.callbacks import LastCheckpoint, LearningCurve
from zoo.datamodules import PennTreebank
from zoo.models import Zaremba
from zoo.runs import last_checkpoints

UPDATES_AN_EPOCH = 7


class Losses(Callback):
    """Every update's loss, and an end after some of them: after `stop` without warning, after `told` as trainers do."""

    def __init__(self, stop=None, told=None):
        self.losses, self.stop, self.told = [], stop, told

    def on_train_batch_end(self, trainer, *_):
        self.losses.append((trainer.global_step, trainer.callback_metrics["train/loss"].item()))
        if trainer.global_step == self.stop:
            raise InterruptedError
        trainer.should_stop |= trainer.global_step == self.told


def fit(folder, data_tree, *, stop=None, told=None, every=1, resume=False, epochs=3, **options):
    seed_everything(3, verbose=False)
    data = PennTreebank(root=str(data_tree), batch_size=8, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=8, dropout=0.5, constant_epochs=0)
    losses, curve = Losses(stop, told), LearningCurve()
    trainer = quiet_trainer(
        max_epochs=epochs,
        limit_train_batches=UPDATES_AN_EPOCH,
        limit_val_batches=2,
        default_root_dir=folder,
        callbacks=[losses, curve, LastCheckpoint(every_n_train_steps=every)],
        enable_checkpointing=True,
        **options,
    )
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    except InterruptedError:
        return losses.losses, None, None
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in curve.rows]
    return losses.losses, rows, model.state_dict()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_tree):
    return fit(tmp_path_factory.mktemp("whole"), data_tree)


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 8, 13, 14, 15, 20])
def test_interrupted_once(stop, uninterrupted, data_tree, tmp_path):
    # The checkpoint at hand is that of the update before, for the interruption strikes before it is written.
    fit(tmp_path, data_tree, stop=stop + 1)
    losses, rows, weights = fit(tmp_path, data_tree, resume=True)
    # An epoch's last update is saved with its validation, so an interruption between the two repeats the update.
    assert losses == uninterrupted[0][-len(losses) :]
    assert losses[0][0] in (stop, stop + 1)
    assert rows == uninterrupted[1]
    assert all(torch.equal(weights[name], value) for name, value in uninterrupted[2].items())


@pytest.mark.parametrize(
    "options", [{"val_check_interval": 3}, {"val_check_interval": 4, "check_val_every_n_epoch": None}]
)
@pytest.mark.parametrize("stop", [4, 5, 7, 9, 12])
def test_interrupted_with_validations_in_mid_epoch(options, stop, data_tree, tmp_path):
    whole = fit(tmp_path / "whole", data_tree, epochs=2, **options)
    fit(tmp_path, data_tree, stop=stop, epochs=2, **options)
    losses, rows, _ = fit(tmp_path, data_tree, resume=True, epochs=2, **options)
    assert losses == whole[0][-len(losses) :]
    assert rows == whole[1]
    assert all("validation/perplexity" in row for row in rows)


def test_a_run_that_is_told_to_stop_is_saved_where_it_stops(data_tree, tmp_path):
    whole = fit(tmp_path / "whole", data_tree, epochs=2)
    fit(tmp_path, data_tree, epochs=2, told=4, every=100)
    losses, rows, _ = fit(tmp_path, data_tree, resume=True, epochs=2)
    assert losses == whole[0][4:]
    assert rows == whole[1]


def test_interrupted_while_gradients_accumulate(data_tree, tmp_path):
    options = {"accumulate_grad_batches": 3, "epochs": 2}
    whole = fit(tmp_path / "whole", data_tree, **options)
    fit(tmp_path, data_tree, stop=2, **options)
    fit(tmp_path, data_tree, stop=2, resume=True, **options)  # the windows of half an update were in no checkpoint
    losses, rows, weights = fit(tmp_path, data_tree, resume=True, **options)
    assert losses == whole[0][-len(losses) :]
    assert rows == whole[1]
    assert all(torch.equal(weights[name], value) for name, value in whole[2].items())


def test_interrupted_twice(uninterrupted, data_tree, tmp_path):
    fit(tmp_path, data_tree, stop=5)
    fit(tmp_path, data_tree, stop=11, resume=True)
    losses, rows, _ = fit(tmp_path, data_tree, resume=True)
    assert losses == uninterrupted[0][-len(losses) :]
    assert losses[0][0] == 11
    assert rows == uninterrupted[1]


def test_a_finished_run_goes_on_when_given_more_epochs(uninterrupted, data_tree, tmp_path):
    fit(tmp_path, data_tree, epochs=2)
    losses, rows, _ = fit(tmp_path, data_tree, resume=True)
    assert losses == uninterrupted[0][2 * UPDATES_AN_EPOCH :]
    assert rows == uninterrupted[1]


def test_a_checkpoint_that_is_not_written_to_its_end_leaves_the_one_before(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "last.ckpt"
    file.write_bytes(b"whole")

    def half(path):
        Path(path).write_bytes(b"ha")
        raise OSError("no space left")

    trainer = SimpleNamespace(log_dir=str(tmp_path), save_checkpoint=half, is_global_zero=True)
    with pytest.raises(OSError, match="no space left"):
        LastCheckpoint()._save(trainer)
    assert file.read_bytes() == b"whole"


def test_the_seconds_of_an_interrupted_run_are_counted_on(monkeypatch):
    clock = iter([100.0, 130.0, 500.0, 507.0])
    monkeypatch.setattr("zoo.callbacks.time.monotonic", lambda: next(clock))
    first, second = LearningCurve(), LearningCurve()
    first.on_train_start(None, None)
    second.load_state_dict(first.state_dict())
    second.on_train_start(None, None)
    assert second.seconds == 37.0


def test_the_newest_run_is_that_of_the_highest_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for version in ("version_9", "version_10", "version_11.bak", "version_x"):
        file = tmp_path / "logs/tiny" / version / "checkpoints/last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
    assert [file.parts[2] for file in last_checkpoints("tiny")] == ["version_9", "version_10"]


def run_command(folder, data_tree, vocab_size, *options, expect=0):
    command = [sys.executable, str(ROOT / "cli.py"), "fit", "zaremba-medium-ptb", *options]
    command += [f"--data.init_args.root={data_tree}", "--data.init_args.batch_size=8", "--data.init_args.bptt=20"]
    command += [f"--model.init_args.vocab_size={vocab_size}", "--model.init_args.hidden_size=8"]
    command += ["--trainer.max_steps=60", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    command += ["--checkpoint.every_n_train_steps=5", "--trainer.accelerator=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stderr
    return done.stdout


def logged(folder, version):
    with (folder / f"logs/zaremba-medium-ptb/version_{version}/metrics.csv").open() as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


@pytest.mark.parametrize(("number", "status", "kept"), [(signal.SIGKILL, -signal.SIGKILL, 20), (signal.SIGTERM, 0, 23)])
def test_a_run_of_60_updates_killed_after_23_logs_the_same_losses(number, status, kept, data_tree, tmp_path):
    """By a power cut after the last checkpoint; a SIGTERM leaves the time for one more."""
    vocab_size = PennTreebank(root=str(data_tree)).tokenizer.vocab_size
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    run_command(whole, data_tree, vocab_size)
    kill = ["--trainer.callbacks+=tests.killing.KillAfter", "--trainer.callbacks.updates=23"]
    run_command(broken, data_tree, vocab_size, *kill, f"--trainer.callbacks.number={int(number)}", expect=status)
    output = run_command(broken, data_tree, vocab_size, "--ckpt_path=last")
    assert "going on from logs/zaremba-medium-ptb/version_0/checkpoints/last.ckpt" in output
    expected, before, resumed = logged(whole, 0), logged(broken, 0), logged(broken, 1)
    assert before == {step: expected[step] for step in before}
    assert sorted(expected) == list(range(60))
    assert sorted(resumed) == list(range(kept, 60))
    assert resumed == {step: expected[step] for step in resumed}
