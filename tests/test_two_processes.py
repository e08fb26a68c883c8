"""Training and measuring under two processes, through the command line."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, quiet_trainer
from zoo import card, load
from zoo.datamodules import PennTreebank, SequentialMNIST


@pytest.fixture
def run(tmp_path, data_tree):
    size = PennTreebank(root=str(data_tree)).tokenizer.vocab_size

    def fit(processes, *options):
        folder = tmp_path / f"by{processes}"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(ROOT / "cli.py"), "fit", "zaremba-small-ptb", f"--data.root={data_tree}"]
        command += [
            f"--model.vocab_size={size}",
            "--model.hidden_size=8",
            "--data.bptt=10",
            "--trainer.accelerator=cpu",
        ]
        command += ["--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", "--checkpoint.every_n_train_steps=4"]
        command += [f"--trainer.devices={processes}", f"--trainer.strategy={'ddp' if processes > 1 else 'auto'}"]
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
        )

    return fit


def fit_images(folder, data_tree, processes):
    command = [sys.executable, str(ROOT / "cli.py"), "fit", "zoneout-rbn-pmnist", f"--data.root={data_tree}"]
    command += ["--data.downsample=7", "--model.max_steps=16", "--model.hidden_size=6", "--data.batch_size=20"]
    command += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    command += [f"--trainer.devices={processes}", "--trainer.strategy=ddp"]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_the_population_is_that_of_both_processes(tmp_path, data_tree):
    done = fit_images(tmp_path, data_tree, 2)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "logs/zoneout-rbn-pmnist/version_0/zoneout-rbn-pmnist"
    results = {result.split: result for result in card.read(folder).measured.results}
    data = SequentialMNIST("paper", downsample=7, root=str(data_tree))
    model = load(str(folder))
    assert int(model.layer.population_batches_l0[0]) == 2 * 5
    quiet_trainer().test(model, datamodule=data, verbose=False)  # one process, on the stored statistics
    assert model.measured["test"] == (pytest.approx(results["test"].value), 30)
    assert results["test"].predictions == 30


NOISE = """\
import torch
from lightning import Trainer
from zoo.datamodules import SequentialMNIST
from zoo.models import ZoneoutClassifier

model = ZoneoutClassifier(hidden_size=6)
trainer = Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
)
draws = []
model.on_train_batch_start = lambda *_: draws.append(torch.rand(()).item())
trainer.fit(model, datamodule=SequentialMNIST("paper", downsample=7, batch_size=20))
print("drawn", *trainer.strategy.all_gather(torch.tensor(draws)).flatten().tolist())
"""


def test_each_process_draws_noise_of_its_own(tmp_path, data_tree):
    (tmp_path / "noise.py").write_text(NOISE)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environment |= {"ZOO_DATASETS": str(data_tree)}
    done = subprocess.run(
        [sys.executable, "noise.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    drawn = next(line for line in done.stdout.splitlines() if "drawn" in line).split()[-2:]
    assert drawn[0] != drawn[1]


def results(tmp_path, processes, version):
    """The numbers that the card gives, and the curve."""
    folder = tmp_path / f"by{processes}" / "logs" / "zaremba-small-ptb" / f"version_{version}"
    measured = card.read(folder / "zaremba-small-ptb").measured
    assert (folder / "curve.png").exists()
    return {result.split: (result.value, result.predictions) for result in measured.results}


def test_two_processes_train_measure_and_resume_as_one(run, tmp_path, data_tree):
    for processes in (1, 2):
        done = run(processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("the model lies in") == 1
    one, two = results(tmp_path, 1, 0), results(tmp_path, 2, 0)
    data = PennTreebank(root=str(data_tree))
    for split in ("validation", "test"):
        assert two[split][1] == one[split][1] == len(data.ids(split)) - 1
        assert two[split][0] == pytest.approx(one[split][0], rel=1e-5)

    stopped = run(2, "--trainer.max_steps=26")
    resumed = run(2, "--ckpt_path=last")
    assert (stopped.returncode, resumed.returncode) == (0, 0), resumed.stderr
    assert results(tmp_path, 2, 2) == two

    (tmp_path / "by2").rename(tmp_path / "kept")
    (tmp_path / "by1").rename(tmp_path / "by2")
    other = run(2, "--ckpt_path=last")
    assert other.returncode != 0
    assert "the checkpoint was written by 1 processes and cannot go on under 2" in other.stderr
