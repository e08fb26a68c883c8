"""The scripts of the papers' figures, run small."""

import csv
import importlib
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, cross_entropy

import zoo
from tests.conftest import ROOT
from zoo.datamodules import PennTreebank
from zoo.evaluation import tune_cache


@pytest.fixture
def semantic(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("semantic_consistency")


@pytest.fixture
def gradients(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("batch_norm_gradients")


def run(script, monkeypatch, output, *options):
    """Runs the script and returns the rows of its csv; there is a picture too."""
    monkeypatch.setattr("sys.argv", [script.__name__, "--output", str(output), *options])
    script.main()
    assert (output / f"{script.__name__}.png").read_bytes().startswith(b"\x89PNG")
    with (output / f"{script.__name__}.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_reconstruction_is_that_of_the_product_of_all_steps(semantic):
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    start = torch.randn(4, 2, dtype=torch.float64)
    masks = torch.randint(2, (5, 3, 1, 2)).double()
    loss = semantic.reconstruction(weight, start, masks)
    eye = torch.eye(2, dtype=torch.float64)
    steps = eye + (weight - eye) * masks  # h(t) = h(t-1) (I + (W - I) diag(m))
    wrong = torch.linalg.multi_dot([start, *steps[:, 1]]) - start
    torch.testing.assert_close(loss[1], wrong.square().sum())
    ours, theirs = (torch.autograd.grad(value, weight)[0] for value in (loss[1], wrong.square().sum()))
    torch.testing.assert_close(ours, theirs)
    assert theirs[1].abs().min() > 0
    assert semantic.reconstruction(weight, start, torch.zeros_like(masks)).tolist() == [0, 0, 0]
    by_hand = torch.linalg.multi_dot([start, *[weight[2]] * 5]) - start
    torch.testing.assert_close(
        semantic.reconstruction(weight, start, torch.ones_like(masks))[2], by_hand.square().sum()
    )


def test_each_run_takes_plain_steps_from_minus_one_and_has_its_own_seed(semantic):
    start, first, second = semantic.train(2, 6, 3)
    assert (start.updates, first.updates, second.updates) == (0, 3, 6)
    assert start.loss.isnan().all()
    assert torch.equal(start.weight[0], start.weight[1])
    assert not torch.equal(start.weight[0, 0], start.weight[0, 1])
    assert start.distance(-1).max() < 0.1
    alone = semantic.train(1, 6, 3)
    torch.testing.assert_close(alone[2].weight[:, 0], second.weight[:, 0])

    # By hand, of seed 0 without zoneout: start, then every minibatch of the first point.
    generator = torch.Generator().manual_seed(0)
    weight = 0.01 * torch.randn(2, 2, generator=generator) - torch.eye(2)
    torch.testing.assert_close(start.weight[0, 0], weight)
    losses = []
    for x in torch.randn(3, 32, 2, generator=generator):
        weight.requires_grad_()
        loss = (x @ torch.linalg.matrix_power(weight, 10) - x).square().sum()
        losses.append(loss.item())
        weight = (weight - 1e-4 * torch.autograd.grad(loss, weight)[0]).detach()
    torch.testing.assert_close(first.weight[0, 0], weight, rtol=0, atol=1e-5)
    assert first.loss[0, 0].item() == pytest.approx(sum(losses) / 3, rel=1e-3)


def test_zoneout_leaves_the_start_that_solves_the_task_without_it(semantic):
    plain, zoned = semantic.train(1, 60, 60)[-1].distance(-1)[:, 0]
    assert plain < 0.005 < 0.2 < zoned


def path(semantic, *signs):
    """A point per entry, of (z = 0, z = 0.1), W being so many times I."""
    eye = torch.eye(2)
    return [
        semantic.Point(10 * number, torch.stack([one * eye, other * eye]).unsqueeze(1), torch.zeros(2, 1))
        for number, (one, other) in enumerate(signs)
    ]


def test_a_run_arrives_when_it_comes_to_stay(semantic):
    points = path(semantic, (-1, 1), (-1, -1), (-1, 0.99), (-1, 1))
    assert semantic.arrivals(points, 1) == [[math.inf], [20]]
    assert semantic.arrivals(points, -1) == [[0], [math.inf]]
    assert semantic.table(points)[1] == ["0.1", "0", "1.0000", "0.0000", "0.0000", "1.0000", "0", "20", "never"]
    assert "z = 0.1: 1 of 1 runs end at I, 0 at -I." in semantic.conclusion(points)


@pytest.mark.parametrize(
    ("ends", "verdict"), [((-1, 1), "agrees"), ((-1, 0.5), "does not agree"), ((1, 1), "does not agree")]
)
def test_the_verdict_is_that_of_the_ends(semantic, ends, verdict):
    assert f"That {verdict} with" in semantic.conclusion(path(semantic, (-1, -1), ends))


def test_semantic_consistency_writes_what_it_trained(semantic, monkeypatch, tmp_path, capsys):
    rows = run(semantic, monkeypatch, tmp_path, "--seeds", "2", "--updates", "20", "--every", "10")
    assert [(row["z"], row["seed"], row["updates"]) for row in rows] == [
        (z, seed, updates) for z in ("0.0", "0.1") for seed in "01" for updates in ("0", "10", "20")
    ]
    last = semantic.train(2, 20, 10)[-1]
    written = [float(rows[-1][name]) for name in ("w11", "w12", "w21", "w22", "loss")]
    assert written == pytest.approx([*last.weight[1, 1].flatten().tolist(), last.loss[1, 1].item()], rel=1e-4)
    assert semantic.conclusion([last]) in (tmp_path / "semantic_consistency.md").read_text()
    with pytest.raises(SystemExit):
        run(semantic, monkeypatch, tmp_path, "--updates", "15", "--every", "10")
    assert "--updates 15 is no multiple of --every 10" in capsys.readouterr().err


def sequences(seed=0):
    torch.manual_seed(seed)
    return torch.rand(7, 6, 1, dtype=torch.float64), torch.randint(10, (6,))


def test_the_tanh_rnn_has_the_gradients_of_zeros_added_to_its_states(gradients):
    inputs, labels = sequences()
    norms = gradients.tanh_rnn(inputs, labels, 12, 0.7)
    torch.manual_seed(gradients.SEED)
    w_input, w_softmax = (nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64)) for shape in ((1, 12), (12, 10)))
    added = torch.zeros(7, 6, 12, dtype=torch.float64, requires_grad=True)
    h = inputs.mean(0).expand(6, 12)
    for x, zero in zip(inputs, added, strict=True):
        gain = torch.full((12,), 0.7, dtype=torch.float64)
        h = batch_norm(h + x * w_input, None, None, gain, training=True, eps=1e-5).tanh() + zero
    (gradient,) = torch.autograd.grad(cross_entropy(h @ w_softmax, labels), added)
    torch.testing.assert_close(norms, gradient.square().sum(2).sqrt())
    assert norms.min() > 0


@pytest.mark.parametrize("step", [1, 4, 6])
def test_the_lstm_run_by_steps_has_the_gradients_of_a_whole_run(gradients, step):
    inputs, labels = sequences()
    norms = gradients.batch_norm_lstm(inputs, labels, 12, 0.3)
    assert norms.shape == (7, 6)
    torch.manual_seed(gradients.SEED)
    model = gradients.RecurrentBatchNormClassifier(1, 10, 12, 7, 0.3).double()
    h = 0.1 * torch.randn(1, 6, 12, dtype=torch.float64)
    _, (h, c) = model.layer(inputs[:step], (h, torch.zeros_like(h)))
    outputs, _ = model.layer(inputs[step:], (h, c), first_step=step)
    (gradient,) = torch.autograd.grad(cross_entropy(model.softmax(outputs[-1]), labels), h)
    torch.testing.assert_close(norms[step - 1], gradient[0].norm(dim=-1))


def test_curves_are_means_and_quartiles(gradients):
    one = gradients.curve(torch.tensor([[0.0, 1, 2, 3, 9], [1, 1, 1, 1, 1]]))
    assert [part.tolist() for part in one] == [[3, 1], [1, 1], [3, 1]]
    assert (one.ratio, one.range) == (3, 3)
    sigma, derivative = gradients.tanh_derivative()
    assert (sigma[0], derivative.mean[0], derivative.lower[0]) == (0, 1, 1)
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = (-x.square() / 2).exp()
    exact = ((1 - x.tanh().square()) * density).sum() / density.sum()
    assert derivative.mean[-50:].mean().item() == pytest.approx(exact.item(), abs=0.02)
    assert (derivative.lower[1:] < derivative.mean[1:]).all()


def flat(gradients, *norms):
    mean = torch.tensor(norms, dtype=torch.float64)
    return gradients.Curve(mean, mean, mean)


def test_the_verdict_is_that_of_the_smallest_and_the_largest_gain(gradients):
    constant, gone = flat(gradients, 0.5, 1), flat(gradients, 1e-9, 1)
    large, varied = flat(gradients, 1e9, 1), flat(gradients, 0.5, 0.01, 1)
    names = [gradients.behaviour(one) for one in (constant, gone, large, varied)]
    assert names == ["is nearly constant", "vanishes", "explodes", "varies"]
    falling = flat(gradients, *torch.linspace(1, 0.5, 20).tolist())
    found = {
        "tanh RNN": {gamma: constant if gamma < 0.5 else gone for gamma in gradients.GAMMAS},
        "LSTM": {gamma: constant if gamma < 0.5 else large for gamma in gradients.GAMMAS},
    }
    text = gradients.conclusion(found, falling)
    assert "the tanh RNN agrees, the LSTM does not agree," in text
    assert "gamma 1 it vanishes (first / last 1e-09" in text
    assert "falls throughout as sigma grows, from 1.00 to 0.50." in text
    text = gradients.conclusion(dict.fromkeys(found, found["LSTM"]), flat(gradients, *[1.0] * 20))
    assert "the tanh RNN does not agree, the LSTM does not agree," in text
    assert "does not fall throughout" in text


def test_batch_norm_gradients_writes_what_it_measured(gradients, data_tree, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    monkeypatch.setattr(gradients, "GAMMAS", (0.1, 1.0))
    rows = run(gradients, monkeypatch, tmp_path, "--units", "10", "--batch", "20", "--downsample", "7")
    steps = [1, 6, 11, 16]  # one in 5 of 16
    assert [(row["curve"], row["gamma"], int(row["at"])) for row in rows if row["gamma"]] == [
        (network, gamma, step) for network in ("tanh RNN", "LSTM") for gamma in ("0.1", "1") for step in steps
    ]
    assert len([row for row in rows if row["curve"] == "tanh'"]) == 200
    torch.manual_seed(gradients.SEED)
    data = gradients.SequentialMNIST("sequential", 7, 20)
    inputs, labels = next(iter(data.train_dataloader()))
    norms = gradients.batch_norm_lstm(inputs.double(), labels, 10, 1.0)[5]
    (row,) = (row for row in rows if (row["curve"], row["gamma"], row["at"]) == ("LSTM", "1", "6"))
    assert float(row["mean"]) == pytest.approx(norms.mean().item(), rel=1e-3)
    assert float(row["lower"]) < float(row["upper"])
    assert "20 training images of\n16 pixels" in (tmp_path / "batch_norm_gradients.md").read_text()


def test_continuous_cache_writes_what_it_tuned(data_tree, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("continuous_cache")
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    name = "zaremba-small-ptb"
    grid = {"WINDOWS": (20, 60), "THETAS": (0.3, 1.0), "WEIGHTS": (0.1, 0.4)}
    for constant, values in grid.items() | {("MODELS", (name,))}:
        monkeypatch.setattr(script, constant, values)
    rows = run(script, monkeypatch, tmp_path)
    data = PennTreebank()
    data.prepare_data()
    model = zoo.load(name)
    tuned = tune_cache(model, data.val_dataloader(), *grid.values())
    best = {(c.window, c.theta): (c.weight, p) for c, p in reversed(tuned)}
    written = {(int(row["window"]), float(row["theta"])): row for row in rows}
    assert written.keys() == best.keys()
    for point, (weight, perplexity) in best.items():
        assert float(written[point]["weight"]) == weight
        assert float(written[point]["validation perplexity"]) == pytest.approx(perplexity, abs=1e-4)
    cache, validation = tuned[0]
    ((_, test),) = tune_cache(model, data.test_dataloader(), [cache.window], [cache.theta], [cache.weight])
    line = (tmp_path / "continuous_cache.md").read_text().splitlines()[4]
    plain, with_cache, *constants, plain_test, with_cache_test = line.strip("| ").split(" | ")[1:]
    assert [with_cache, with_cache_test] == [f"{validation:.2f}", f"{test:.2f}"]
    assert constants == [str(cache.window), f"{cache.theta:g}", f"{cache.weight:g}"]
    assert validation < float(plain)
    assert test < float(plain_test)
