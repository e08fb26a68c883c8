"""The language-modelling task, on the smallest model of the zoo."""

import math

import pytest
import torch
from matplotlib.figure import Figure

from tests.conftest import quiet_trainer
from zoo.callbacks import LearningCurve, draw_curve
from zoo.datamodules import PennTreebank
from zoo.errors import UserError
from zoo.evaluation import DynamicEvaluation
from zoo.metrics import token_nll
from zoo.models import Zaremba
from zoo.tokenizer import EOS, UNK, Tokenizer


@pytest.fixture
def data(data_tree):
    return PennTreebank(root=str(data_tree), batch_size=4, bptt=20)


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=8)
    model.tokenizer = data.tokenizer
    return model.eval()


class Watched(Zaremba):
    """Notes the state that each window starts from."""

    def encode(self, tokens, state=None):
        if self.training:
            self.seen.append((None if state is None else state[0], self.ends[-1] if self.ends else None))
        hidden, state = super().encode(tokens, state)
        if self.training:
            self.ends.append(state[0])
        return hidden, state


def test_the_state_is_carried_detached_and_starts_each_epoch_at_zero(data):
    model = Watched(data.tokenizer.vocab_size, hidden_size=8)
    model.seen, model.ends = [], []
    # A validation in the middle of the epoch must not touch the state of the training.
    quiet_trainer(max_epochs=2, limit_train_batches=6, val_check_interval=3, num_sanity_val_steps=0).fit(model, data)
    assert len(model.seen) == 12
    for index, (start, previous_end) in enumerate(model.seen):
        if index % 6 == 0:
            assert start is None
        else:
            assert torch.equal(start, previous_end)
            assert not start.requires_grad


def test_evaluation_equals_one_pass_over_the_whole_text(data, model):
    run = quiet_trainer()
    run.test(model, datamodule=data, verbose=False)
    ids = torch.from_numpy(data.ids("test").astype("int64")).unsqueeze(1)
    with torch.no_grad():
        logits, _ = model(ids[:-1])
    expected = token_nll(logits, ids[1:]).double().mean().exp().item()
    value, predictions = model.measured["test"]
    assert predictions == len(ids) - 1
    assert value == pytest.approx(expected, rel=1e-6)
    assert run.callback_metrics["test/perplexity"].item() == value


def test_mixed_precision_trains_in_it_and_measures_in_the_weights_own(data, model):
    exact = quiet_trainer()
    exact.test(model, datamodule=data, verbose=False)
    expected = model.measured["test"]
    mixed = quiet_trainer(precision="bf16-mixed")
    mixed.test(model, datamodule=data, verbose=False)
    assert model.measured["test"] == expected
    assert all(map(torch.equal, mixed.predict(model, datamodule=data), exact.predict(model, datamodule=data)))

    dtypes = []
    model.softmax.register_forward_hook(lambda _, inputs, outputs: dtypes.append((model.training, outputs.dtype)))
    fit = quiet_trainer(precision="bf16-mixed", max_epochs=1, limit_train_batches=2, num_sanity_val_steps=0)
    fit.fit(model.train(), datamodule=data)
    assert set(dtypes) == {(True, torch.bfloat16), (False, torch.float32)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_checkpoint_loads_as_lightnings_do(data, tmp_path):
    fitted = Zaremba(data.tokenizer.vocab_size, hidden_size=8)
    run = quiet_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    run.fit(fitted, datamodule=data)
    run.save_checkpoint(tmp_path / "some.ckpt")
    loaded = Zaremba.load_from_checkpoint(
        tmp_path / "some.ckpt", weights_only=True, vocab_size=data.tokenizer.vocab_size, hidden_size=8
    )
    for name, weights in fitted.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weights), name


def test_characters_are_measured_in_bits(data_tree):
    data = PennTreebank(level="character", root=str(data_tree))
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=8, init_range=1e-9)
    run = quiet_trainer()
    run.test(model, datamodule=data, verbose=False)
    assert model.measured["test"][0] == pytest.approx(math.log2(data.tokenizer.vocab_size), rel=1e-6)
    assert model.metric_unit == "bits per character"
    assert set(run.callback_metrics) == {"test/bits_per_character"}


def test_the_epochs_training_perplexity_is_that_of_all_its_tokens(data):
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=8, learning_rate=0.0)
    run = quiet_trainer(max_epochs=1, limit_val_batches=0)
    run.fit(model, datamodule=data)
    state, total, count = None, 0.0, 0
    with torch.no_grad():
        for inputs, targets in data.train_dataloader():
            logits, state = model(inputs, state)
            total += token_nll(logits, targets).double().sum().item()
            count += targets.numel()
    assert model.measured["train"] == (pytest.approx(math.exp(total / count), rel=1e-6), count)
    assert run.callback_metrics["train/perplexity"].item() == model.measured["train"][0]


def test_predict_gives_every_targets_surprisal(data, model):
    windows = quiet_trainer().predict(model, datamodule=data)
    nll = torch.cat(windows)
    assert nll.shape == (len(data.ids("test")) - 1, 1)
    quiet_trainer().test(model, datamodule=data, verbose=False)
    assert nll.double().mean().exp().item() == pytest.approx(model.measured["test"][0])


def test_a_vocabulary_of_another_size_is_refused(data):
    model = Zaremba(12, hidden_size=8)
    size = data.tokenizer.vocab_size
    with pytest.raises(
        UserError, match=rf"vocabulary has {size} types and the model was built for 12: set model.*{size}"
    ):
        quiet_trainer(max_epochs=1).fit(model, datamodule=data)


class TestScore:
    def test_every_token_and_the_lines_end_are_scored_from_a_zero_state(self, model):
        result = model.score("the bank rose")
        assert result.tokens == ["the", "bank", "rose", EOS]
        ids = torch.tensor(model.tokenizer.encode("\nthe bank rose\n").astype("int64")).unsqueeze(1)
        with torch.no_grad():
            expected = token_nll(model(ids[:-1])[0], ids[1:]).squeeze(1)
        torch.testing.assert_close(torch.tensor(result.nats), expected)
        assert result.total == pytest.approx(expected.sum().item())
        assert result.perplexity == pytest.approx(expected.mean().exp().item())
        assert result.bits[0] == pytest.approx(result.nats[0] / math.log(2))

    def test_a_text_longer_than_a_window_is_scored_as_one(self, model, monkeypatch):
        text = "the bank rose\n" * 30
        whole = model.score(text)
        monkeypatch.setattr("zoo.score.WINDOW", 7)
        assert model.score(text).nats == pytest.approx(whole.nats, rel=1e-5)

    def test_unknown_words_are_counted(self, model):
        result = model.score("the zebra rose\n")
        assert result.tokens == ["the", UNK, "rose", EOS]
        assert result.unk_rate == pytest.approx(1 / 3)
        assert "33.3% of the words are <unk>" in str(result)

    def test_leaves_the_model_in_its_mode(self, model):
        model.train()
        model.score("the bank rose")
        assert model.training

    def test_every_part_is_in_evaluation_mode_and_then_in_its_own(self, model):
        quiet = model.score("the bank rose").total
        model.output_dropout.train()
        assert model.score("the bank rose").total == quiet
        assert (model.training, model.output_dropout.training) == (False, True)
        model.train().embedding.eval()
        assert model.score("the bank rose").total == quiet
        assert (model.training, model.embedding.training) == (True, False)

    def test_an_empty_text_is_refused(self, model):
        model.tokenizer = Tokenizer.characters(["a", "\n"])
        with pytest.raises(UserError, match="empty"):
            model.score("")

    def test_an_evaluation_that_cannot_begin_leaves_the_model_in_its_mode(self, model):
        model.train()
        with pytest.raises(UserError, match="needs statistics of the training text"):
            model.score("the bank rose", DynamicEvaluation())
        assert model.training

    def test_a_model_without_a_vocabulary_says_so(self, model):
        model.tokenizer = None
        with pytest.raises(UserError, match="no tokenizer"):
            model.score("the bank rose")


def test_the_curve_has_a_models_own_metrics_and_no_other_callbacks(data_tree, tmp_path):
    data = PennTreebank(root=str(data_tree), batch_size=8, bptt=20)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=4)
    model.on_train_batch_end = lambda *_: model.log("train/length/mean", 3.0)
    model.on_validation_epoch_start = lambda: model.log("lr-SGD/pg1", 1.0)
    curve = LearningCurve()
    quiet_trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[curve]).fit(model, datamodule=data)
    metrics = {name for name in curve.rows[0] if "/" in name}
    assert metrics == {"train/length/mean", "train/perplexity", "validation/perplexity"}
    assert (tmp_path / "curve.png").exists()


def test_the_picture_of_a_curve_marks_the_best_of_the_last_grade(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    difficulties, values = [2, 2, 3, 3, 3], [50.0, 90.5, 40.0, 71.25, 70.0]
    rows = [
        {"epoch": epoch, "difficulty": difficulty, "validation/exact_match": value}
        for epoch, (difficulty, value) in enumerate(zip(difficulties, values, strict=True), start=1)
    ]
    draw_curve(rows, tmp_path / "curve.png")
    draw_curve([{key: row[key] for key in row if key != "difficulty"} for row in rows], tmp_path / "curve.png")
    graded, plain = ([text.get_text().strip() for text in figure.axes[0].texts] for figure in figures)
    assert graded == ["difficulty 3", "71.25"]
    assert plain == ["90.5"]
