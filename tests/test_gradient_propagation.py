"""The zoneout paper's figure of gradients on permuted MNIST, run small."""

import importlib
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from tests.conftest import ROOT
from tests.test_figures import run
from zoo.functional import lstm
from zoo.layers import LSTM
from zoo.models.recurrent import RecurrentClassifier
from zoo.noise import Extent, Noise
from zoo.optim import RMSProp
from zoo.regularisers import draw_noise

STEPS, BATCH, UNITS = 7, 4, 5
NETWORKS = (
    "no regulariser",
    "zoneout of c",
    "zoneout of (c, h)",
    "dropout of i * g",
    "dropout of c",
    "scaled dropout of c",
)


@pytest.fixture
def propagation(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gradient_propagation")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(STEPS, BATCH, 1, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(10, (BATCH,), generator=generator)


def classifier(propagation, network):
    """A small one in float64, its weights large enough for every path of the gradient to show."""
    torch.manual_seed(1)
    layer = LSTM(1, UNITS, bias="one", initial_state="learned", state_noise=propagation.NETWORKS[network])
    model = RecurrentClassifier(layer, 10, RMSProp(1e-3, 0.5)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def measured(propagation, network, batch):
    """The model, and the loss and norms of a batch under the masks of a seed."""
    model = classifier(propagation, network)
    torch.manual_seed(2)
    return model, *propagation.gradients(model, *batch)


def test_the_networks_are_those_of_the_tests(propagation):
    assert tuple(propagation.NETWORKS) == NETWORKS
    extent = Extent(STEPS, BATCH, UNITS, "lstm", torch.device("cpu"), torch.float64)
    zoneout = propagation.NETWORKS["zoneout of (c, h)"](extent)
    assert torch.equal(zoneout.ckeep, zoneout.hkeep)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_is_that_of_the_model_in_training(propagation, batch, network):
    model, loss, norms = measured(propagation, network, batch)
    inputs, labels = batch
    torch.manual_seed(2)
    torch.testing.assert_close(loss, cross_entropy(model(inputs), labels).detach())
    assert norms.shape == (3, STEPS, BATCH)
    without = cross_entropy(model.eval()(inputs), labels)
    assert torch.isclose(loss, without).item() is (network == "no regulariser")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_the_norms_are_those_of_finite_differences(propagation, batch, network, step):
    model, _, norms = measured(propagation, network, batch)
    inputs, labels = batch
    torch.manual_seed(2)
    noise = draw_noise(model.layer.state_noise, Extent(STEPS, BATCH, UNITS, "lstm", torch.device("cpu"), torch.float64))
    weights = model.layer.weights(0)
    here = slice(step, step + 1)

    def cut(steps):
        return Noise(*(None if mask is None else mask[steps] for mask in noise))

    @torch.no_grad()
    def losses(place, change):
        """Of each example, where the cell, the new cell or the output of the step is so much larger."""
        h, c = (part.squeeze(0) for part in model.layer.initial(BATCH))
        if step:
            _, (h, c), _ = lstm(inputs[:step], (h, c), weights, cut(slice(step)))
        old = torch.zeros(())
        if place == 1:  # c~ = f * c + ..., so c / f is changed, of which what c(t) takes over from c(t-1) is undone
            gates = linear(inputs[step], weights.input, weights.bias_input) + linear(h, weights.hidden)
            old = change / gates.chunk(4, -1)[1].sigmoid()
        kept = 0 if noise.ckeep is None else 1 - noise.ckeep[step].double()
        _, (h, c), _ = lstm(inputs[here], (h, c + old), weights, cut(here))
        c = c - kept * old
        h, c = (h, c + change) if place == 0 else (h + change, c) if place == 2 else (h, c)
        if step < STEPS - 1:
            _, (h, c), _ = lstm(inputs[step + 1 :], (h, c), weights, cut(slice(step + 1, None)))
        return cross_entropy(model.softmax(h), labels, reduction="none") / BATCH

    for place in range(3):
        moves = 1e-5 * torch.eye(UNITS, dtype=torch.float64)
        slopes = torch.stack([(losses(place, move) - losses(place, -move)) / 2e-5 for move in moves])
        torch.testing.assert_close(norms[place, step], slopes.norm(dim=0), rtol=1e-6, atol=1e-9)
    assert (norms[0, step] > 0).all() == (step < STEPS - 1)


def test_cells_are_dropped_afresh_at_every_step(propagation):
    extent = Extent(50, 4, 30, "lstm", torch.device("cpu"), torch.float64)
    regulariser = propagation.CellDropoutPerStep(0.25)
    (site,) = regulariser.sites("lstm")
    torch.manual_seed(0)
    mask = getattr(regulariser(extent), site)
    assert mask.shape == (50, 4, 30)
    assert mask.unique().tolist() == [0, 1]
    assert mask.double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert not torch.equal(mask[0], mask[1])


def results(propagation, *scaled):
    """In the paper's order, but for the scaled dropout; with so much of 1 in each of the first two steps of four."""
    shares = {network: (part,) * 3 for network, part in zip(NETWORKS, (0.1, 0.3, 0.2, 0.05, 0.01, 0.02), strict=True)}
    if scaled:
        shares["scaled dropout of c"] = scaled
    return {
        propagation.Training(network, 1, 5, 1): propagation.Result(
            2.5, torch.tensor([[part, part, 0.5 - part, 0.5 - part] for part in parts], dtype=torch.float64)
        )
        for network, parts in shares.items()
    }


def test_the_conclusion_is_that_of_the_shares(propagation, monkeypatch):
    monkeypatch.setattr(propagation, "EARLY", 1)
    found = results(propagation)
    torch.testing.assert_close(
        found[propagation.Training("zoneout of c", 1, 5, 1)].early, torch.tensor([[0.3], [0.6]]).double().expand(2, 3)
    )
    text = propagation.conclusion(found)
    assert (
        "The first half's share of dL/dc~(t): zoneout of c 60 %, zoneout of (c, h) 40 %, no regulariser 20 %, dropout of "
        "i * g 10 %, scaled dropout of c 4 %, dropout of c 2 %." in text
    )
    assert text.endswith("dropout (trainings of each: 1): by dL/dc(t), dL/dc~(t), dL/dh(t) it holds.")
    text = propagation.conclusion(results(propagation, 0.02, 0.15, 0.02))
    assert text.endswith(
        "by dL/dc(t), dL/dh(t) it holds; by dL/dc~(t) it holds, but these fail: no regulariser > scaled dropout of c."
    )
    equal = propagation.conclusion(results(propagation, 0.1, 0.02, 0.02))
    assert "by dL/dc(t) it holds, but these fail: no regulariser > scaled dropout of c;" in equal

    # Each share of each training counts.
    plain, zoned = (propagation.Training(network, 2, 5, 1) for network in NETWORKS[:2])
    more = {propagation.Training(training.network, 2, 5, 1): one for training, one in found.items()}
    norms = more[zoned].norms.clone()
    norms[2] = torch.tensor([0.05, 0.9, 0.0, 0.05])
    more[zoned] = more[zoned]._replace(norms=norms)
    assert more[zoned].early[:, 2].tolist() == pytest.approx([0.05, 0.95])
    assert more[plain].early[:, 2].tolist() == pytest.approx([0.1, 0.2])
    text = propagation.conclusion(found | more)
    assert (
        "(trainings of each: 2): by dL/dc(t), dL/dc~(t) it holds; by dL/dh(t) it holds, but these fail: zoneout of c >"
        in text
    )
    assert propagation.percent(1.5e-20) == "1.5e-18 %"


def test_the_file_gives_back_what_was_added(propagation, tmp_path):
    file = tmp_path / "curves.csv"
    assert propagation.read(file) == {}
    found = results(propagation, 1.25e-30, 0.5, 0.0)
    for training, one in found.items():
        propagation.add(file, training, one)
    again = propagation.read(file)
    assert list(again) == list(found)
    for training, one in found.items():
        assert again[training].loss == 2.5
        torch.testing.assert_close(again[training].norms, one.norms)


def test_an_update_is_that_of_the_recipe(propagation, data_tree, monkeypatch):
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    warnings.simplefilter("ignore")  # Lightning's, of loaders and accelerators
    after = propagation.train(propagation.Training(NETWORKS[0], 4, 6, 1), 7)
    torch.manual_seed(4)
    layer = LSTM(1, 6, bias="one", initial_state="learned")
    before = RecurrentClassifier(layer, 10, RMSProp(1e-3, 0.5))
    inputs, labels = next(iter(propagation.SequentialMNIST("paper", 7, 100).train_dataloader()))
    gradients = torch.autograd.grad(cross_entropy(before(inputs), labels), list(before.parameters()))
    for new, old, gradient in zip(after.parameters(), before.parameters(), gradients, strict=True):
        clear = gradient.abs() > 1e-4
        assert clear.any()
        torch.testing.assert_close((new - old)[clear], -1e-3 * 2**0.5 * gradient.sign()[clear], rtol=1e-3, atol=0)


def test_a_run_trains_once_and_writes_what_it_measured(propagation, data_tree, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    options = "--units", "6", "--updates", "2", "--downsample", "7"
    rows = run(propagation, monkeypatch, tmp_path, *options)
    keys = [(row["network"], row["seed"], row["units"], row["updates"], row["derivative"]) for row in rows]
    assert keys == [(n, "1", "6", "2", d) for n in NETWORKS for d in ("dL/dc(t)", "dL/dc~(t)", "dL/dh(t)")]
    assert [name for name in rows[0] if name.isdigit()] == [str(step) for step in range(1, 17)]

    training = propagation.Training(NETWORKS[2], 1, 6, 2)
    model = propagation.train(training, 7)
    one = propagation.measure(model, 7)
    assert model.trainer.global_step == 2
    written = [[float(row[str(step)]) for step in range(1, 17)] for row in rows[6:9]]
    torch.testing.assert_close(torch.tensor(written).double(), one.norms, rtol=1e-2, atol=0)
    assert float(rows[6]["loss"]) == pytest.approx(one.loss, abs=1e-3)
    text = (tmp_path / "gradient_propagation.md").read_text()
    assert propagation.conclusion(propagation.read(tmp_path / "gradient_propagation.csv")) in text
    assert "of 16 steps" in text

    monkeypatch.setattr(propagation, "train", lambda *arguments: pytest.fail("it trains again"))
    assert run(propagation, monkeypatch, tmp_path, *options) == rows
    with pytest.raises(SystemExit, match="other units, updates or steps"):
        run(propagation, monkeypatch, tmp_path, *options, "--updates", "3")
