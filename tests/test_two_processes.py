"""Training and measuring under two processes."""

import os
import subprocess
import sys

import pytest

from datamodules import PennTreebank
from tests.conftest import ROOT

CODE = """
import sys, torch
from lightning import Trainer, seed_everything
from datamodules import PennTreebank
from zoo.callbacks import LastCheckpoint
from zoo.models import Zaremba

root, folder, devices, resume = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:] == ["resume"]
torch.set_num_threads(1)
seed_everything(1, verbose=False)
data = PennTreebank(root=root, batch_size=4, bptt=20)
model = Zaremba(data.tokenizer.vocab_size, hidden_size=8)
trainer = Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=14 if resume else 9,
    limit_train_batches=10, limit_val_batches=3, default_root_dir=folder, callbacks=[LastCheckpoint(4)], logger=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(model, datamodule=data, ckpt_path=f"{folder}/checkpoints/last.ckpt" if resume else None)
trainer.test(model, datamodule=data, verbose=False)
if trainer.is_global_zero:
    print("RESULT", *model.measured["test"])
"""


def run(tmp_path, data_tree, devices, *options):
    script = tmp_path / "run.py"
    script.write_text(CODE)
    command = [sys.executable, str(script), str(data_tree), str(tmp_path / f"by{devices}"), str(devices), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done


def result(done):
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    _, value, predictions = line.split()
    return float(value), int(predictions)


@pytest.mark.slow
def test_two_processes_train_and_measure_as_one(tmp_path, data_tree):
    one, two = run(tmp_path, data_tree, 1), run(tmp_path, data_tree, 2)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert result(two)[1] == result(one)[1] == len(PennTreebank(root=str(data_tree)).ids("test")) - 1
    assert result(two)[0] == pytest.approx(result(one)[0], rel=1e-5)

    resumed_one, resumed_two = run(tmp_path, data_tree, 1, "resume"), run(tmp_path, data_tree, 2, "resume")
    assert result(resumed_two)[0] == pytest.approx(result(resumed_one)[0], rel=1e-5)
    assert result(resumed_one)[0] != result(one)[0]

    (tmp_path / "by2").rename(tmp_path / "kept")
    (tmp_path / "by1").rename(tmp_path / "by2")
    other = run(tmp_path, data_tree, 2, "resume")
    assert other.returncode != 0
    assert "the checkpoint was written by 1 processes and cannot go on under 2" in other.stderr
