"""The addition task: what is drawn, what is held out, how it is decoded and measured, and how it grows harder."""

from pathlib import Path

import pytest
import torch
from lightning import Callback, seed_everything
from torch.nn.functional import cross_entropy, one_hot

import zoo
from tests.conftest import quiet_trainer
from zoo import card
from zoo.callbacks import BestWeights, LastCheckpoint
from zoo.cli import main
from zoo.datamodules import Addition, addition
from zoo.datamodules.addition import split_of
from zoo.errors import UserError
from zoo.layers import LSTM
from zoo.metrics import ExactMatch
from zoo.models import EncoderDecoder


@pytest.fixture
def few_examples(monkeypatch):
    monkeypatch.setattr(addition, "EXAMPLES", 60)
    monkeypatch.setattr(addition, "EVALUATION_BATCH", 25)


def texts(loader, symbols=Addition.symbols):
    """(source, target) of every example, padding and all."""
    return [
        tuple("".join(symbols[i] for i in column) for column in columns)
        for batch in loader
        for columns in zip(*(ids.T.tolist() for ids in batch), strict=True)
    ]


def numbers(loader):
    return [tuple(map(int, source.strip("_").split("+"))) for source, _ in texts(loader)]


def at(difficulty):
    return Addition(first_difficulty=difficulty, batches=60)


class TestData:
    def test_sources_are_filled_on_the_left_and_their_sums_on_the_right(self):
        examples = texts(at(5).train_dataloader())
        assert len(examples) == 60 * 32
        for source, target in examples:
            a, b = map(int, source.strip("_").split("+"))
            assert source == f"{a}+{b}".rjust(13, "_")
            assert target == str(a + b).ljust(7, "_")

    @pytest.mark.parametrize("difficulty", [1, 2, 3])
    def test_the_exponents_are_uniform_and_both_ends_are_drawn(self, difficulty):
        drawn = [number for pair in numbers(at(difficulty).train_dataloader()) for number in pair]
        assert min(drawn) == 0
        assert max(drawn) <= 10**difficulty
        at_most_ten = sum(number <= 10 for number in drawn) / len(drawn)
        assert at_most_ten == pytest.approx(
            sum(11 / (10**k + 1) for k in range(1, difficulty + 1)) / difficulty, abs=0.04
        )
        if difficulty == 1:
            assert max(drawn) == 10

    def test_the_splits_share_no_sum_in_either_order(self, monkeypatch):
        monkeypatch.setattr(addition, "EXAMPLES", 1000)
        data = Addition(greatest_difficulty=2, batches=100)
        loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
        train, validation, test = ({frozenset(pair) for pair in numbers(loader)} for loader in loaders)
        assert min(map(len, (train, validation, test))) > 150
        assert not train & validation
        assert not train & test
        assert not validation & test
        assert all(split_of(a, b) == split_of(b, a) for a in range(30) for b in range(a))

    def test_one_sum_in_16_is_held_out_for_each(self):
        splits = [split_of(a, b) for a in range(101) for b in range(a, 101)]
        assert splits.count("validation") / len(splits) == pytest.approx(1 / 16, rel=0.1)
        assert splits.count("test") / len(splits) == pytest.approx(1 / 16, rel=0.1)

    def test_training_is_drawn_from_the_seed_and_evaluation_is_not(self, few_examples):
        drawn = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            data = Addition(batches=2)
            drawn.append((texts(data.train_dataloader()), texts(data.val_dataloader()), texts(data.test_dataloader())))
        first, second, again = drawn
        assert first == again
        assert first[0] != second[0]
        assert first[1:] == second[1:]

    def test_a_loader_goes_on_in_the_middle(self):
        torch.manual_seed(3)
        loader = Addition(batches=5).train_dataloader()
        batches = iter(loader)
        next(batches), next(batches)
        state, rest = loader.state_dict(), [sources for sources, _ in batches]
        resumed = Addition(batches=5).train_dataloader()
        resumed.load_state_dict(state)
        assert all(torch.equal(a, b) for a, (b, _) in zip(rest, resumed, strict=True))
        assert len(rest) == 3

    def test_validation_is_at_the_greatest_difficulty_outside_a_fit(self, few_examples):
        data = Addition(first_difficulty=1)
        assert max(max(pair) for pair in numbers(data.val_dataloader())) > 10_000
        assert max(max(pair) for pair in numbers(data.test_dataloader())) > 10_000
        assert max(max(pair) for pair in numbers(data.train_dataloader())) == 10


def small(**options):
    return EncoderDecoder(13, 13, 7, **{"hidden_size": 6, "init_range": 0.8} | options)


def with_symbols(model):
    model.alphabet.copy_(torch.tensor(list(map(ord, Addition.symbols))))
    return model


def by_formula(layers, inputs, state, cell, hidden):
    """Zoneout's expectation, step by step: the state of each layer, and the last layer's outputs."""
    states = []
    for index in range(layers.num_layers):
        weights, (h, c), outputs = layers.weights(index), (part[index] for part in state), []
        for x in inputs:
            gates = x @ weights.input.T + h @ weights.hidden.T + weights.bias_input
            i, f, g, o = gates.chunk(4, -1)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            new_h = o.sigmoid() * new_c.tanh()
            h, c = hidden * h + (1 - hidden) * new_h, cell * c + (1 - cell) * new_c
            outputs.append(h)
        inputs = torch.stack(outputs)
        states.append((h, c))
    return inputs, tuple(map(torch.stack, zip(*states, strict=True)))


class TestDecoding:
    def test_greedy_decoding_is_the_formula_with_expected_masks(self):
        torch.manual_seed(1)
        model = small(state_noise=zoo.Zoneout(0.5, 0.05)).double().eval()
        sources = torch.randint(13, (13, 20))
        written = model.greedy(sources)
        zeros = torch.zeros(2, 20, 6, dtype=torch.float64)
        _, state = by_formula(model.encoder, one_hot(sources, 13).double(), (zeros, zeros), 0.5, 0.05)
        symbols = torch.zeros(1, 20, dtype=torch.int64)
        for step in range(7):
            hidden, state = by_formula(model.decoder, one_hot(symbols, 13).double(), state, 0.5, 0.05)
            symbols = model.softmax(hidden).argmax(-1)
            assert torch.equal(written[step], symbols[0])
        assert len(written.unique(dim=1).T) > 10
        assert torch.equal(model.greedy(sources), written)

    def test_teacher_forcing_of_what_was_written_writes_it_again(self):
        torch.manual_seed(2)
        model = small().eval()
        sources = torch.randint(13, (13, 9))
        written = model.greedy(sources)
        assert torch.equal(model(sources, written).argmax(-1), written)

    def test_a_target_depends_on_those_before_it_alone(self):
        model = small().eval()
        sources, targets = torch.randint(13, (13, 3)), torch.randint(13, (7, 3))
        other = targets.clone()
        other[4] = (other[4] + 1) % 13
        logits, changed = model(sources, targets), model(sources, other)
        assert torch.equal(logits[:5], changed[:5])
        assert not torch.isclose(logits[5:], changed[5:]).any()

    def test_training_draws_masks_and_descends_the_mean_cross_entropy(self, monkeypatch):
        model = small(state_noise=zoo.Zoneout(0.5, 0.05))
        batch = torch.randint(13, (13, 4)), torch.randint(13, (7, 4))
        assert not torch.equal(model(*batch), model(*batch))
        monkeypatch.setattr(model, "log", lambda *args, **options: None)
        monkeypatch.setattr(model, "watch", lambda loss: None)
        torch.manual_seed(5)
        loss = model.training_step(batch, 0)
        torch.manual_seed(5)
        logits = model(*batch)
        by_hand = sum(cross_entropy(logits[t], batch[1][t], reduction="sum") for t in range(7)) / 7 / 4
        torch.testing.assert_close(loss, by_hand)

    def test_the_start(self):
        model = small(hidden_size=128, init_range=0.08)
        for stack in (model.encoder, model.decoder):
            assert isinstance(stack, LSTM)
            for layer in range(2):
                _, _, bias, _ = weights = stack.weights(layer)
                assert bias.view(4, -1).sum(1).tolist() == [0, 128, 0, 0]
                for matrix in (weights.input, weights.hidden):
                    assert 0.079 < matrix.abs().max() <= 0.08
        assert model.softmax.bias.any()
        assert not torch.equal(model.encoder.weight_ih_l0, model.decoder.weight_ih_l0)

    def test_it_learns(self, few_examples):
        seed_everything(1, verbose=False)
        losses = Losses()
        model = small(hidden_size=24, init_range=0.08, state_noise=zoo.Zoneout(0.1, 0.05))
        quiet_trainer(max_epochs=1, limit_val_batches=0, callbacks=[losses]).fit(
            model, datamodule=Addition(first_difficulty=1, batches=60)
        )
        assert losses.seen[0][1] == pytest.approx(2.56, abs=0.05)  # ln 13
        assert losses.seen[-1][1] < 0.9


class Adder(EncoderDecoder):
    """Adds well, but takes its last symbol from a wrong place whenever the first number is a multiple of three."""

    def greedy(self, sources):
        answers = []
        for column in sources.T.tolist():
            a, b = map(int, "".join(self.symbols[i] for i in column).strip("_").split("+"))
            answer = str(a + b).ljust(7, "_")
            answers.append(answer if a % 3 else f"{answer[:-1]}0")
        return torch.tensor([[self.symbols.index(symbol) for symbol in answer] for answer in answers]).T


class TestMetric:
    def test_counts_whole_sequences(self, few_examples):
        model, data = Adder(13, 13, 7, hidden_size=2), Addition()
        trainer = quiet_trainer()
        trainer.test(model, datamodule=data, verbose=False)
        right = [a % 3 > 0 for a, _ in numbers(data.test_dataloader())]
        assert model.measured["test"] == (pytest.approx(100 * sum(right) / 60), 60)
        assert model.metric_unit == "exact match in %"
        trainer.validate(model, datamodule=data, verbose=False)
        assert model.cost("validation") == -model.measured["validation"][0]

    def test_is_a_percentage(self):
        metric = ExactMatch()
        metric.update(torch.tensor([1.0, 0, 0, 1]))
        metric.update(torch.tensor([1.0]))
        assert metric.result() == (pytest.approx(60), 5)
        assert metric.higher_is_better

    def test_the_answer_to_a_text(self):
        model = with_symbols(Adder(13, 13, 7, hidden_size=2))
        assert model.answer("100+200") == "300"
        assert model.answer("3+4") == "7_____0"
        assert model.training

    def test_an_answer_that_is_wrong_by_what_fills_it_up_is_shown(self):
        model = with_symbols(Adder(13, 13, 7, hidden_size=2))
        column = torch.tensor([[Addition.symbols.index(symbol)] for symbol in "__24___"])
        ((source, target, output),) = model.prediction_rows((column, column), column)
        assert (source, target, output) == ("24___", "__24", "__24")

    def test_the_answer_is_that_of_evaluation(self):
        torch.manual_seed(4)
        model = with_symbols(small(state_noise=zoo.Zoneout(0.5, 0.5)))
        source = torch.tensor([[Addition.symbols.index(symbol)] for symbol in "________12+34"])
        expected = "".join(Addition.symbols[i] for i in model.eval().greedy(source)[:, 0].tolist()).rstrip("_")
        assert expected
        assert {model.train().answer("12+34") for _ in range(5)} == {expected}


class Losses(Callback):
    """Of every update: its epoch, loss, difficulty and rate; an end without warning after `stop` of them."""

    def __init__(self, stop=None):
        self.seen, self.stop = [], stop

    def on_train_batch_end(self, trainer, *_):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        loss = trainer.callback_metrics["train/loss"].item()
        self.seen.append((trainer.current_epoch, loss, trainer.datamodule.difficulty, rate))
        if trainer.global_step == self.stop:
            raise InterruptedError


class Scripted(EncoderDecoder):
    """Has these errors, one a validation."""

    errors = (0.5, 0.05, 0.2, 0.09, 0.4, 0.5, 0.5, 0.3, 0.35)

    def evaluate_batch(self, batch, batch_idx):
        return torch.tensor(1 - self.errors[self.trainer.current_epoch])


BATCHES = 3


def fit(folder, *, epochs=9, stop=None, resume=False, model_type=Scripted, first=3, **options):
    seed_everything(2, verbose=False)
    model = model_type(13, 13, 7, **{"hidden_size": 4, "learning_rate": 0.1, "patience": None} | options)
    losses, best = Losses(stop), BestWeights()
    trainer = quiet_trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[losses, best, LastCheckpoint(every_n_train_steps=1)],
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    data = Addition(first_difficulty=first, batches=BATCHES, batch_size=4)
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    except InterruptedError:
        return losses.seen, None, None
    return losses.seen, model, best


def rate_of(model):
    return model.trainer.optimizers[0].param_groups[0]["lr"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(addition, "EXAMPLES", 60)
        return fit(tmp_path_factory.mktemp("whole"), state_noise=zoo.Zoneout(0.5, 0.05))


class TestCurriculum:
    def test_it_follows_the_rule(self, uninterrupted):
        seen, model, best = uninterrupted
        assert [difficulty for _, _, difficulty, _ in seen[::BATCHES]] == [3, 3, 4, 4, 5, 5, 5, 5, 5]
        rates = [rate for *_, rate in seen[::BATCHES]]
        assert rates == pytest.approx([0.1] * 6 + [0.095] * 3)
        assert rate_of(model) == pytest.approx(0.1 * 0.95**2)
        assert best.epoch == 8  # 30 % wrong of the greatest difficulty, not 5 % of the least
        assert model.trainer.callback_metrics["difficulty"] == 5

    def test_a_new_fit_begins_at_the_first_difficulty(self, few_examples):
        data = Addition(batches=1)
        data.difficulty = 4
        quiet_trainer(max_epochs=1, log_every_n_steps=1).fit(small(), datamodule=data)
        assert data.difficulty == 2

    @pytest.mark.parametrize("stop", [4, 13, 25])
    def test_interrupted_anywhere_it_goes_on_bit_for_bit(self, stop, uninterrupted, few_examples, tmp_path):
        whole, model, best = uninterrupted
        fit(tmp_path, stop=stop, state_noise=zoo.Zoneout(0.5, 0.05))
        seen, resumed, again = fit(tmp_path, resume=True, state_noise=zoo.Zoneout(0.5, 0.05))
        assert seen == whole[-len(seen) :]
        assert len(whole) - len(seen) in (stop - 1, stop)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in resumed.state_dict().items())
        assert rate_of(resumed) == rate_of(model)
        assert again.epoch == best.epoch

    def test_a_hopeless_start_is_given_up(self, few_examples, tmp_path):
        class Hopeless(Scripted):
            errors = (0.9, 0.9, 0.9, 0.86, 0.84)
            drawn = 0

            def reset_parameters(self):
                self.drawn += 1
                super().reset_parameters()

        _, model, _ = fit(tmp_path, epochs=2, patience=2, model_type=Hopeless, init_range=0.01)
        assert model.drawn == 2
        parameters = list(model.parameters())
        assert not model.trainer.optimizers[0].state
        assert all(parameter.abs().max() in (0, 1) or parameter.abs().max() <= 0.01 for parameter in parameters)
        seen, model, _ = fit(tmp_path, epochs=5, patience=2, model_type=Hopeless)
        assert model.drawn == 3  # after epochs 2 and 4
        step = next(iter(model.trainer.optimizers[0].state.values()))["step"]
        assert step == BATCHES
        assert {rate for *_, rate in seen} == {0.1}

    def test_a_new_start_has_its_rate_again(self, few_examples, tmp_path):
        class Rising(Scripted):
            errors = (0.86, 0.87, 0.88)

        seen, model, _ = fit(tmp_path, epochs=3, patience=3, model_type=Rising, first=5)
        assert seen[-1][-1] == pytest.approx(0.095)
        assert rate_of(model) == 0.1

    def test_the_patience_survives_a_resume(self, few_examples, tmp_path):
        class Hopeless(Scripted):
            errors = (0.9,) * 5

        _, model, _ = fit(tmp_path / "whole", epochs=4, patience=3, model_type=Hopeless)
        fit(tmp_path, epochs=4, patience=3, model_type=Hopeless, stop=2 * BATCHES + 2)
        _, resumed, _ = fit(tmp_path, epochs=4, patience=3, model_type=Hopeless, resume=True)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in resumed.state_dict().items())


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"vocab_size": 2}, "vocab_size is 2; it must be 3 or more"),
            ({"source_length": 0}, "source_length is 0"),
            ({"decay": 1.5}, "decay is 1.5; it must lie in"),
            ({"mastered": -0.1}, "mastered is -0.1"),
            ({"patience": 0}, "patience is 0; it must be 1 or more, or null"),
        ],
    )
    def test_of_the_model(self, arguments, message):
        with pytest.raises(UserError, match=message):
            EncoderDecoder(**{"vocab_size": 13, "source_length": 13, "target_length": 7} | arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"first_difficulty": 0}, "first_difficulty is 0"),
            ({"first_difficulty": 6}, "greatest_difficulty is 5; it must be first_difficulty, 6, or more"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"batches": 0}, "batches is 0"),
        ],
    )
    def test_of_the_data(self, arguments, message):
        with pytest.raises(UserError, match=message):
            Addition(**arguments)

    def test_two_validations_an_epoch(self, few_examples):
        trainer = quiet_trainer(max_epochs=1, val_check_interval=0.5, log_every_n_steps=1)
        with pytest.raises(UserError, match="validated once an epoch: leave out trainer.val_check_interval"):
            trainer.fit(small(), datamodule=Addition(batches=4, batch_size=4))

    def test_a_checkpoint_of_harder_data(self):
        with pytest.raises(UserError, match="stopped at difficulty 5, and greatest_difficulty is 4"):
            Addition(greatest_difficulty=4).load_state_dict({"difficulty": 5})

    def test_data_that_do_not_fit_the_model(self):
        trainer = quiet_trainer()
        with pytest.raises(UserError, match=r"source_length is 11 .* for 13: set model.init_args.source_length to 11"):
            trainer.test(small(), datamodule=Addition(greatest_difficulty=4), verbose=False)
        model = with_symbols(small())
        model.alphabet[5] = ord("x")
        with pytest.raises(
            UserError, match=r"symbols are 'G_0123456789\+' and the model was trained on 'G_012x456789\+'"
        ):
            trainer.test(model, datamodule=Addition(), verbose=False)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "text has 0 symbols; the model reads 1 to 13"),
            ("1000000+100000", "text has 14 symbols"),
            ("12 + 3", r"text is '12 \+ 3', and the model does not know ' '; it reads '0123456789\+'"),
            ("_1+2", "does not know '_'"),
        ],
    )
    def test_of_a_question(self, text, message):
        with pytest.raises(UserError, match=message):
            with_symbols(small()).answer(text)

    def test_a_question_before_any_training(self):
        with pytest.raises(UserError, match="no symbols yet"):
            small().answer("1+2")


def test_by_name_from_the_command_line(few_examples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--model.hidden_size=8", "--data.batches=3", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
    main(["fit", "zoneout-addition", *options, "--trainer.enable_progress_bar=false"])
    folder = Path("logs/zoneout-addition/version_0/zoneout-addition")
    assert "difficulty" in (folder / "curve.csv").read_text().splitlines()[0]
    results = {result.split: result for result in card.read(folder).measured.results}
    for command, split in (("validate", "validation"), ("test", "test")):
        capsys.readouterr()
        main([command, str(folder)])
        line = f"exact match in % {results[split].value:.6g} over 60 predictions of the {split} examples"
        assert line in capsys.readouterr().out
    main(["predict", str(folder)])
    rows = [line.split("\t") for line in Path("logs/zoneout-addition/predictions.tsv").read_text().splitlines()]
    assert rows[0] == ["source", "target", "predicted"]
    assert len(rows) == 61
    for source, target, _ in rows[1:]:
        a, b = map(int, source.split("+"))
        assert target == str(a + b)
    model = zoo.load(str(folder))
    assert model.symbols == Addition.symbols
    assert model.answer(rows[1][0]) == rows[1][2]
    assert zoo.build("zoneout-addition").symbols == ""
