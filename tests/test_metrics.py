import math
import subprocess
import sys

import pytest
import torch
import torchmetrics.text

from zoo.metrics import BitsPerCharacter, Perplexity, token_nll


def test_equals_torchmetrics_where_that_is_exact():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3, 11), torch.randint(11, (5, 3))
    theirs = torchmetrics.text.Perplexity()
    theirs.update(logits.transpose(0, 1), targets.T)
    ours = Perplexity()
    ours.update(token_nll(logits, targets))
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_many_tokens_lose_no_digit():
    ours = Perplexity()
    nll = torch.full((1000,), math.log(10_000), dtype=torch.float64)
    for _ in range(84):
        ours.update(nll)
    assert float(ours.compute()) == pytest.approx(10_000, rel=1e-12)  # torchmetrics: 9999.877


def test_an_unlikely_token_stays_finite():
    logits = torch.zeros(100, 4)
    logits[:, 0] = 110
    targets = torch.zeros(100, dtype=torch.int64)
    targets[0] = 1
    ours = Perplexity()
    ours.update(token_nll(logits, targets))
    assert float(ours.compute()) == pytest.approx(math.exp(1.1), rel=1e-6)  # torchmetrics: inf


def test_half_precision_logits_are_summed_in_float32():
    logits, targets = torch.randn(20, 50) * 30, torch.randint(50, (20,))
    nll = token_nll(logits.bfloat16(), targets)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, token_nll(logits.bfloat16().float(), targets))


def test_windows_of_unequal_length_count_by_token():
    ours = BitsPerCharacter()
    ours.update(torch.full((10, 2), math.log(2)))
    ours.update(torch.full((1, 2), 12 * math.log(2)))
    assert float(ours.compute()) == pytest.approx((20 + 24) / 22, rel=1e-6)
    assert ours.result() == (pytest.approx(2, rel=1e-6), 22)


def test_half_does_not_touch_the_sums():
    ours = Perplexity().half()
    ours.update(torch.ones(3))
    assert ours.total.dtype == torch.float64


TWO_PROCESSES = """
import os, sys, torch
from torch import distributed
from zoo.metrics import Perplexity
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
metric = Perplexity()
metric.update(torch.full((1 + 2 * int(sys.argv[2]),), float(sys.argv[2])))
value, tokens = metric.result()
assert tokens == 4 and abs(value - torch.tensor(3 / 4).exp().item()) < 1e-6, (value, tokens)
assert int(metric.count) == 1 + 2 * int(sys.argv[2])
assert abs(float(metric.compute()) - value) < 1e-6
distributed.destroy_process_group()
"""


def test_two_processes_agree_on_the_sum(tmp_path):
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "store")]
    processes = [subprocess.Popen([*command, rank]) for rank in ("0", "1")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
