"""Classifiers of sequences: the task, the zoneout papers' and the batch-normalised network."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, seed_everything
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from tests.conftest import quiet_trainer
from zoo import card
from zoo.callbacks import BestWeights, LastCheckpoint, PredictionFile
from zoo.cli import main
from zoo.datamodules import SequentialMNIST
from zoo.errors import UserError
from zoo.layers import GRU, LSTM, BatchNormLSTM
from zoo.models import RecurrentBatchNormClassifier, RecurrentClassifier, ZoneoutClassifier
from zoo.optim import RMSProp
from zoo.regularisers import Zoneout

STEPS = 16


@pytest.fixture
def data(data_tree):
    return SequentialMNIST("sequential", downsample=7, batch_size=16, root=str(data_tree))


def classifier(seed=0, hidden_size=12, **options):
    torch.manual_seed(seed)
    return ZoneoutClassifier(hidden_size=hidden_size, **options)


def test_it_learns_and_counts_every_image_once(data):
    model = classifier(hidden_size=32, zoneout=0.0, learning_rate=5e-3)
    best = BestWeights()
    trainer = quiet_trainer(max_epochs=40, callbacks=[best], log_every_n_steps=1)
    trainer.fit(model, datamodule=data)
    _, images = model.measured["train"]
    assert images == 100
    assert model.measured["validation"][1] == 20
    assert -best.value > 40  # ten classes
    model.load_state_dict(best.weights)
    trainer.test(model, datamodule=data, verbose=False)
    right = sum((model(x).argmax(-1) == y).sum().item() for x, y in data.test_dataloader())
    assert model.measured["test"] == (pytest.approx(100 * right / 30), 30)
    assert trainer.callback_metrics["test/accuracy"].item() == model.measured["test"][0]


def test_the_best_weights_are_those_of_the_highest_accuracy(data):
    model, best = classifier(), BestWeights()
    accuracies = iter([30.0, 50.0, 40.0])

    class Measured(Callback):
        def on_validation_end(self, trainer, pl_module):
            pl_module.measured["validation"] = (next(accuracies), 20)

    trainer = quiet_trainer(max_epochs=3, callbacks=[Measured(), best], num_sanity_val_steps=0, limit_train_batches=1)
    trainer.fit(model, datamodule=data)
    assert (best.epoch, best.value) == (2, -50.0)


def test_the_loss_is_that_of_the_last_output(data):
    model = classifier()
    inputs, labels = next(iter(data.val_dataloader()))
    model.eval()
    outputs, _ = model.layer(inputs)
    assert torch.equal(model(inputs), model.softmax(outputs[-1]))
    torch.manual_seed(1)
    expected = cross_entropy(model.train()(inputs), labels)
    losses = []

    class Take(Callback):
        def on_train_batch_start(self, *_):
            torch.manual_seed(1)

        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            losses.append(outputs["loss"].item())

    trainer = quiet_trainer(max_steps=1, limit_val_batches=1, num_sanity_val_steps=0, callbacks=[Take()])
    trainer.fit(model, DataLoader([(inputs, labels)], batch_size=None), data.val_dataloader())
    assert losses == [pytest.approx(expected.item(), rel=1e-6)]


def test_classify_leaves_the_model_in_training(data):
    model = classifier()
    inputs, _ = next(iter(data.test_dataloader()))
    probabilities = model.classify(inputs)
    assert model.training
    assert probabilities.shape == (30, 10)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(30))
    assert torch.equal(probabilities, model.eval()(inputs).softmax(-1))


def test_predictions_have_a_line_an_image(data):
    model = classifier()
    batch = next(iter(data.test_dataloader()))
    (outputs,) = quiet_trainer().predict(model, datamodule=data)
    rows = list(model.prediction_rows(batch, outputs))
    assert [row[0] for row in rows] == [str(label) for label in batch[1].tolist()]
    assert [row[1] for row in rows] == [str(label) for label in model.eval()(batch[0]).argmax(-1).tolist()]
    assert rows[0][2] == f"{outputs[0].max().item():.4f}"


def fit(folder, data_tree, *, stop=None, resume=False):
    seed_everything(3, verbose=False)
    data = SequentialMNIST("paper", downsample=7, batch_size=16, root=str(data_tree))
    model = RecurrentBatchNormClassifier(
        hidden_size=6, max_steps=STEPS, initial_noise=0.1, state_noise=Zoneout(cell=0.2, hidden=0.2, shared=True)
    )

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == stop:
                raise InterruptedError

    trainer = quiet_trainer(
        max_epochs=3,
        default_root_dir=folder,
        callbacks=[Stop(), BestWeights(), LastCheckpoint(every_n_train_steps=1)],
        enable_checkpointing=True,
    )
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    except InterruptedError:
        return None
    return {**model.state_dict(), "train": torch.tensor(model.measured["train"])}


@pytest.mark.parametrize("stop", [3, 7, 8, 16])
def test_an_interrupted_run_goes_on_bit_for_bit(stop, data_tree, tmp_path):
    whole = fit(tmp_path / "whole", data_tree)  # 7 updates an epoch
    fit(tmp_path / "cut", data_tree, stop=stop)
    resumed = fit(tmp_path / "cut", data_tree, resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_run_that_ended_before_its_bundle_was_written_leaves_the_same_one(data_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    arguments = ["fit", "zoneout-rbn-pmnist", "--data.downsample=7", "--model.max_steps=16", "--model.hidden_size=6"]
    arguments += ["--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
    main(arguments)
    torch.manual_seed(7)  # another process has other draws
    main([*arguments, "--ckpt_path=last"])
    first, second = (Path(f"logs/zoneout-rbn-pmnist/version_{run}/zoneout-rbn-pmnist") for run in (0, 1))
    for file in ("model.safetensors", "curve.csv"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert (second / "curve.png").exists()
    seconds = [card.read(folder).measured.training["seconds"] for folder in (first, second)]
    assert seconds[1] <= seconds[0] + 1


def test_from_the_command_line(data_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    small = ["--data.downsample=7", "--model.max_steps=16", "--model.hidden_size=6"]
    main(["fit", "zoneout-rbn-pmnist", *small, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", *quiet])
    folder = Path("logs/zoneout-rbn-pmnist/version_0/zoneout-rbn-pmnist")
    assert f"next: python cli.py test {folder}" in capsys.readouterr().out
    assert "over all images of a split" in (folder / "README.md").read_text()
    results = {result.split: result for result in card.read(folder).measured.results}
    main(["test", str(folder), *quiet])
    line = f"zoneout-rbn-pmnist: accuracy in % {results['test'].value:.6g} over 30 predictions of the test images"
    assert line in capsys.readouterr().out
    main(["predict", str(folder), *quiet])
    assert "the class of every sequence: logs/" in capsys.readouterr().out
    lines = Path("logs/zoneout-rbn-pmnist/predictions.tsv").read_text().splitlines()
    assert lines[0] == "label\tpredicted\tprobability"
    rows = [line.split("\t") for line in lines[1:]]
    assert 100 * sum(label == predicted for label, predicted, _ in rows) / 30 == pytest.approx(results["test"].value)
    with pytest.raises(SystemExit):
        main(["score", str(folder), str(folder / "README.md")])
    assert "is a RecurrentBatchNormClassifier, not a language model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["test", str(folder), "--evaluation=zoo.evaluation.Temperature", "--evaluation.temperature=2"])
    assert "--evaluation is for a language model on a text" in capsys.readouterr().err


class TestZoneout:
    def test_evaluation_takes_the_expectation_and_the_new_h_the_unzoned_cell(self):
        model = classifier(hidden_size=5, zoneout=0.3).double().eval()
        inputs = torch.randn(7, 3, 1, dtype=torch.float64)
        weights = model.layer.weights(0)
        h, c = (part.squeeze(0) for part in model.layer.initial(3))
        for x in inputs:
            gates = x @ weights.input.T + weights.bias_input + h @ weights.hidden.T
            i, f, g, o = gates.chunk(4, -1)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            new_h = o.sigmoid() * new_c.tanh()  # of the cell before zoneout
            c, h = 0.3 * c + 0.7 * new_c, 0.3 * h + 0.7 * new_h
        torch.testing.assert_close(model(inputs), model.softmax(h))

    def test_one_mask_for_both_states_when_training(self):
        model = classifier(hidden_size=40, zoneout=0.5)
        with torch.no_grad():
            for part in (model.layer.initial_h, model.layer.initial_c):
                part.fill_(0.25)
        _, (h, c) = model.layer(torch.randn(1, 6, 1))
        assert torch.equal(h == 0.25, c == 0.25)
        assert 60 < (h == 0.25).sum() < 180  # of 240, each with probability 1/2

    def test_it_starts_as_the_papers_do(self):
        model = classifier(hidden_size=8)
        weights = model.layer.weights(0)
        for columns in (weights.input, weights.hidden):
            torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1]))
        assert weights.bias_input.tolist() == [0] * 8 + [1] * 8 + [0] * 16
        assert not model.layer.initial_h.any()
        assert model.layer.initial_h.requires_grad
        assert not torch.equal(weights.hidden[16:24], torch.eye(8))


class TestInitialNoise:
    @staticmethod
    def model(noise=0.1):
        torch.manual_seed(0)
        return RecurrentBatchNormClassifier(hidden_size=6, max_steps=STEPS, initial_noise=noise)

    def test_evaluation_repeats_and_training_does_not(self):
        model, inputs = self.model(), torch.rand(STEPS, 5, 1)
        torch.manual_seed(1)
        assert not torch.equal(model(inputs), model(inputs))
        model.eval()
        first = model(inputs)
        torch.manual_seed(2)
        assert torch.equal(model(inputs), first)

    @pytest.mark.parametrize("training", [True, False])
    def test_it_is_on_h_alone_with_that_deviation(self, training):
        torch.manual_seed(0)
        model = RecurrentBatchNormClassifier(hidden_size=200, max_steps=STEPS, initial_noise=0.1).train(training)
        with torch.no_grad():
            model.layer.initial_h.fill_(2)
        seen = []
        model.layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[1]))
        model(torch.rand(STEPS, 50, 1))
        ((h, c),) = seen
        assert not c.any()
        assert h.mean().item() == pytest.approx(2, abs=0.01)
        assert h.std().item() == pytest.approx(0.1, rel=0.15)
        assert torch.equal(h[0, 0], h[0, 1]) != training

    def test_what_is_said_of_an_image_depends_on_no_other(self):
        model, inputs = self.model(), torch.rand(STEPS, 5, 1)
        for _ in range(3):
            model(inputs)
        torch.testing.assert_close(model.eval()(inputs[:, 3:]), model(inputs)[3:])

    def test_without_noise_the_layer_starts_by_itself(self):
        model, seen = self.model(0.0), []
        model.layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[1:]))
        model(torch.rand(STEPS, 5, 1))
        assert seen == [(None,)]

    def test_a_layer_with_one_state(self):
        optimization = RMSProp(1e-3, 0.5)
        model = RecurrentClassifier(GRU(1, 4, bias="one"), 3, optimization, initial_noise=0.1)
        assert model(torch.rand(5, 2, 1)).shape == (2, 3)


class TestBadInput:
    def test_fewer_statistics_than_steps(self, data):
        model = RecurrentBatchNormClassifier(hidden_size=6, max_steps=STEPS - 1)
        with pytest.raises(UserError, match="has 16 steps and max_steps is 15: set max_steps to 16"):
            quiet_trainer(max_epochs=1).fit(model, datamodule=data)

    def test_a_single_example_teaches_the_population_nothing(self):
        model = RecurrentBatchNormClassifier(hidden_size=6, max_steps=STEPS)
        model.estimate_population([(torch.rand(STEPS, size, 1), None) for size in (4, 3, 1)])
        assert model.layer.population_batches_l0.tolist() == [2] * STEPS

    def test_an_empty_share_counts_nothing(self, data):
        model = classifier()
        run = quiet_trainer()
        inputs, labels = next(iter(data.test_dataloader()))
        run.test(model, DataLoader([(inputs, labels), (inputs[:, :0], labels[:0])], batch_size=None), verbose=False)
        assert model.measured["test"][1] == 30

    def test_a_limit_of_one_batch_is_no_whole_epoch(self, data_tree, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
        limits = [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
        small = [
            "--data.downsample=7",
            "--model.hidden_size=6",
            "--trainer.max_epochs=1",
            "--trainer.log_every_n_steps=1",
        ]
        main(["fit", "zoneout-pmnist", *small, *limits])
        assert not card.read(Path("logs/zoneout-pmnist/version_0/zoneout-pmnist")).measured.finished

    @pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
    def test_noise(self, noise):
        with pytest.raises(UserError, match="initial_noise is"):
            RecurrentBatchNormClassifier(initial_noise=noise)

    def test_sizes(self):
        with pytest.raises(UserError, match="num_classes is 1; it must be 2 or more"):
            ZoneoutClassifier(num_classes=1)

    @pytest.mark.parametrize("options", [{"bidirectional": True}, {"batch_first": True}])
    def test_layers_that_read_otherwise(self, options):
        with pytest.raises(UserError, match="bidirectional or batch_first"):
            RecurrentClassifier(LSTM(1, 4, bias="one", **options), 3, RMSProp(1e-3, 0.5))


def test_other_modules_have_no_population(data):
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def never():
        raise AssertionError("read for nothing")
        yield

    model.estimate_population(never())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_population_is_measured_anew_over_every_batch(data):
    torch.manual_seed(0)
    model = RecurrentBatchNormClassifier(hidden_size=6, max_steps=STEPS).eval()
    batches = list(data.train_dataloader())
    nn.init.constant_(model.layer.population_cell_mean_l0, 7)
    model.estimate_population(batches)
    assert not model.training
    torch.manual_seed(0)
    layer = RecurrentBatchNormClassifier(hidden_size=6, max_steps=STEPS).layer
    assert isinstance(layer, BatchNormLSTM)
    layer.load_state_dict({n: p for n, p in model.layer.state_dict().items() if "population" not in n}, strict=False)
    layer.momentum = None
    with torch.no_grad():
        for inputs, _ in batches:
            layer(inputs)
    for name, value in layer.named_buffers():
        torch.testing.assert_close(model.layer.get_buffer(name), value)
    assert int(model.layer.population_batches_l0[0]) == len(batches)


def test_validation_has_the_statistics_of_the_weights_that_it_sees(data, monkeypatch):
    monkeypatch.setattr("zoo.tasks.base.POPULATION_BATCHES", 3)
    torch.manual_seed(0)
    model = RecurrentBatchNormClassifier(hidden_size=6, max_steps=STEPS, learning_rate=0.05)
    seen = []

    class Seen(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append({name: value.clone() for name, value in pl_module.state_dict().items()})
                first = list(data.train_dataloader())[:3]
                assert not pl_module.training
                pl_module.estimate_population(first)
                torch.testing.assert_close(pl_module.state_dict(), seen[-1], rtol=0, atol=0)

    quiet_trainer(max_epochs=2, callbacks=[Seen()], log_every_n_steps=1).fit(model, datamodule=data)
    assert len(seen) == 2
    assert seen[0]["layer.population_batches_l0"].tolist() == [3] * STEPS
    assert not torch.equal(seen[0]["layer.population_cell_mean_l0"], seen[1]["layer.population_cell_mean_l0"])


def test_without_a_data_module_it_has_the_running_averages(data):
    model = RecurrentBatchNormClassifier(hidden_size=6, max_steps=STEPS)
    trainer = quiet_trainer(max_epochs=1, log_every_n_steps=1)
    data.setup("fit")
    trainer.fit(model, data.train_dataloader(), data.val_dataloader())
    assert model.layer.population_batches_l0.tolist() == [7] * STEPS


def test_predictions_of_several_processes_would_be_a_part_of_them(tmp_path):
    trainer = SimpleNamespace(is_global_zero=True, world_size=2)
    with pytest.raises(UserError, match="predict runs on 2 processes, of which each has its share of the images"):
        PredictionFile(tmp_path / "predictions.tsv").on_predict_start(trainer, ZoneoutClassifier(hidden_size=3))
    assert not (tmp_path / "predictions.tsv").exists()
