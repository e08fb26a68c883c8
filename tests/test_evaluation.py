"""Other ways to score a text, on models of several kinds."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from tests.conftest import quiet_trainer
from tests.test_bundle import make
from zoo.batches import FreshWindow
from zoo.datamodules import PennTreebank
from zoo.datamodules.stream import Stream
from zoo.errors import UserError
from zoo.evaluation import Cache, DynamicEvaluation, Ensemble, MonteCarlo, Plain, Temperature, tune_cache
from zoo.layers import GRU, RNN, BatchNormLSTM
from zoo.metrics import token_nll
from zoo.models import AWDLSTM, RecurrentBatchNormLanguageModel, RecurrentLanguageModel, VariationalLSTM, Zaremba
from zoo.models.recurrent import stack
from zoo.optim import DecayedSGD
from zoo.regularisers import Dropout, EmbeddingDropout, LockedDropout, Zoneout
from zoo.tasks import LanguageModel
from zoo.tokenizer import EOS, UNK, Tokenizer

VOCABULARY = 11
TOKENIZER = Tokenizer.words([EOS, UNK, *"abcdefghi"])
TEXT = "a b c d a b c e\nf g a b c h i\n" * 4


def zaremba():
    return Zaremba(VOCABULARY, hidden_size=8, dropout=0.5, init_range=0.5)


def awd_lstm():
    return AWDLSTM(VOCABULARY, embedding_size=6, hidden_size=8, num_layers=2)


def mixture_of_grus():
    noise = Zoneout(hidden=0.3)
    descent = DecayedSGD(1.0, 4, 2.0)
    return RecurrentLanguageModel(VOCABULARY, 6, stack(GRU, [6, 7], noise), descent, softmax=2)


def simple_network():
    descent = DecayedSGD(1.0, 4, 2.0)
    return RecurrentLanguageModel(VOCABULARY, 6, stack(RNN, [6, 7, 5]), descent, output_dropout=LockedDropout(0.3))


def variational():
    return VariationalLSTM(VOCABULARY, hidden_size=6, untied=True, init_range=0.5)


class BatchNormModel(LanguageModel):
    """A layer that keeps statistics, and torch's own dropout."""

    def __init__(self):
        super().__init__(VOCABULARY)
        self.embedding = nn.Embedding(VOCABULARY, 5)
        self.lstm = BatchNormLSTM(5, 6, max_steps=4, state_noise=Zoneout(0.4, 0.4))
        self.dropout = nn.Dropout(0.5)
        self.output_dropout = Dropout(0.5)
        self.softmax = nn.Linear(6, VOCABULARY)

    def encode(self, tokens, state=None):
        return self.lstm(self.dropout(self.embedding(tokens)), state)


def batch_normalised():
    return RecurrentBatchNormLanguageModel(VOCABULARY, 6, max_steps=4, state_noise=Zoneout(0.4, 0.4))


MODELS = [zaremba, awd_lstm, mixture_of_grus, simple_network, variational, BatchNormModel, batch_normalised]


def build(make_model, seed=0):
    torch.manual_seed(seed)
    model = make_model()
    model.tokenizer = TOKENIZER
    return model.eval()


def ids(steps=24, columns=2, seed=0):
    """Inputs and targets (T, B)."""
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(VOCABULARY, size=(steps + 1, columns)))
    return tokens[:-1], tokens[1:]


@torch.inference_mode()
def scored(evaluation, model, inputs, targets, steps=None):
    """The text in windows of so many steps (None: in one)."""
    steps = steps or len(inputs)
    score = evaluation.begin(model)
    return torch.cat(
        [score(inputs[i : i + steps], targets[i : i + steps]) for i in range(0, len(inputs), steps)]
    ).clone()


def dynamic(**options):
    """Dynamic evaluation whose steps are large enough to be seen."""
    return DynamicEvaluation(**{"learning_rate": 0.05, "decay": 0.1, "epsilon": 0.01} | options)


def training_windows(columns=3, steps=5):
    tokens = np.random.default_rng(1).integers(VOCABULARY, size=123, dtype=np.uint16)
    return Stream(tokens, columns, steps)


def every_evaluation(model):
    """One of each, ready for the model."""
    prepared = dynamic()
    prepared.prepare(model, training_windows())
    return {
        "plain": Plain(),
        "temperature": Temperature(1.3),
        "cache": Cache(window=9, theta=0.7, weight=0.3),
        "dynamic": prepared,
        "descent": dynamic(statistics="none"),
        "monte_carlo": MonteCarlo(samples=2, seed=0),
        "ensemble": Ensemble.of([build(zaremba, seed=5), build(awd_lstm, seed=5)]),
    }


def state_of(model):
    """All that an evaluation must leave as it was."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return weights, [p.grad for p in model.parameters()], [module.training for module in model.modules()]


def assert_as_before(model, before):
    weights, gradients, modes = before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [p.grad for p in model.parameters()] == gradients
    assert all(p.requires_grad for p in model.parameters())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("make_model", MODELS)
def test_each_works_on_every_model_and_leaves_it_as_it_was(make_model):
    model = build(make_model)
    before = state_of(model)
    evaluations = every_evaluation(model)
    tokens = len(TOKENIZER.encode(TEXT))
    plain = model.score(TEXT).nats
    for name, evaluation in evaluations.items():
        result = model.score(TEXT, evaluation=evaluation)
        assert len(result.nats) == tokens
        assert all(math.isfinite(nats) for nats in result.nats)
        assert (result.nats == plain) == (name == "plain"), name
        assert_as_before(model, before)


def test_every_evaluation_counts_the_same_predictions_under_the_trainer(data_tree):
    data = PennTreebank(root=str(data_tree), batch_size=4)
    torch.manual_seed(0)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=8, dropout=0.5, init_range=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = dynamic()
    prepared.prepare(model, Stream(data.ids("train"), *prepared.training_windows))
    others = [Temperature(2.0), Cache(window=20), dynamic(statistics="none"), MonteCarlo(2), Ensemble([])]
    values = set()
    for evaluation in [Plain(), prepared, *others]:
        model.evaluation = evaluation
        quiet_trainer().test(model, datamodule=data, verbose=False)
        value, predictions = model.measured["test"]
        assert predictions == len(data.ids("test")) - 1
        values.add(value)
    assert len(values) == 6  # an ensemble of one is plain
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["temperature", "cache", "dynamic", "descent", "ensemble"])
def test_windows_change_nothing(name):
    model = build(awd_lstm)
    evaluation = every_evaluation(model)[name]
    whole = scored(evaluation, model, *ids())
    torch.testing.assert_close(scored(evaluation, model, *ids(), steps=5), whole)


@pytest.mark.parametrize("name", ["temperature", "cache", "dynamic", "ensemble"])
def test_each_text_starts_from_nothing(name):
    model = build(zaremba)
    evaluation = every_evaluation(model)[name]
    first = scored(evaluation, model, *ids())
    assert torch.equal(scored(evaluation, model, *ids()), first)


class TestTemperature:
    def test_divides_the_logits(self):
        model, (inputs, targets) = build(zaremba), ids()
        p = (model(inputs)[0].detach() / 1.7).softmax(-1)
        expected = -p.gather(-1, targets.unsqueeze(-1)).squeeze(-1).log()
        torch.testing.assert_close(scored(Temperature(1.7), model, inputs, targets), expected)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
    def test_out_of_range(self, temperature):
        with pytest.raises(UserError, match="temperature is"):
            Temperature(temperature)


def brute_force_cache(model, inputs, targets, evaluation):
    """Probabilities of the whole vocabulary, one position and column at a time."""
    with torch.no_grad():
        outputs = model.run(inputs)
    nll = torch.empty(inputs.shape)
    for t in range(len(inputs)):
        for b in range(inputs.shape[1]):
            p = outputs.logits[t, b].softmax(-1)
            start = max(0, t - evaluation.window)
            if t > (evaluation.window if evaluation.wait else 0):
                history = outputs.hidden[start:t, b]
                attention = (evaluation.theta * history @ outputs.hidden[t, b]).softmax(-1)
                cache = torch.zeros(VOCABULARY).index_add(0, targets[start:t, b], attention)
                p = evaluation.weight * cache + (1 - evaluation.weight) * p
                torch.testing.assert_close(p.sum(), torch.ones(()))
            nll[t, b] = -p[targets[t, b]].log()
    return nll


def test_each_shows_its_arguments():
    assert repr(Cache(20, 0.5)) == "Cache(window=20, theta=0.5, weight=0.1, wait=False)"
    assert repr(Ensemble(["a"])) == "Ensemble(members=['a'])"
    assert repr(Plain()) == "Plain()"
    with pytest.raises(UserError, match=r"evaluation is the class Cache; expected a Evaluation: Cache\(\.\.\.\)"):
        build(zaremba).score("a", evaluation=Cache)


class TestCache:
    @pytest.mark.parametrize("wait", [False, True])
    @pytest.mark.parametrize("window", [1, 6, 24])
    @pytest.mark.parametrize("steps", [None, 1, 4, 17])
    def test_against_brute_force(self, wait, window, steps):
        model, text = build(mixture_of_grus), ids(columns=3)
        evaluation = Cache(window=window, theta=2.5, weight=0.4, wait=wait)
        expected = brute_force_cache(model, *text, evaluation)
        torch.testing.assert_close(scored(evaluation, model, *text, steps=steps), expected)

    def test_a_text_of_few_words_becomes_likelier(self):
        model, (inputs, targets) = build(zaremba), (tokens % 2 for tokens in ids(steps=40))
        cached = scored(Cache(window=20, weight=0.5), model, inputs, targets)
        assert cached[10:].mean() < 0.7 * scored(Plain(), model, inputs, targets)[10:].mean()

    def test_what_it_keeps_does_not_grow(self):
        model, (inputs, targets) = build(zaremba), ids(steps=60)
        score = Cache(window=7).begin(model)
        for start in range(0, 60, 5):
            score(inputs[start : start + 5], targets[start : start + 5])
        read = inspect.getclosurevars(score).nonlocals["read"]
        kept = inspect.getclosurevars(read).nonlocals
        assert len(kept["contexts"]) == len(kept["followers"]) == 7
        assert kept["contexts"].untyped_storage().nbytes() <= (7 + 5) * 2 * 8 * 4

    def test_a_window_that_leaves_nothing_to_the_cache_is_refused_where_it_waits(self):
        model = build(zaremba)
        for window in (500, 3):
            with pytest.raises(UserError, match=f"window is {window}, and the text has 4 predictions"):
                model.score("a b c", evaluation=Cache(window, wait=True))
        plain, last = (model.score("a b c", evaluation=each).nats for each in (Plain(), Cache(2, wait=True)))
        assert [one == other for one, other in zip(plain, last, strict=True)] == [True, True, True, False]
        short, long = (model.score("a b c", evaluation=Cache(window)).nats for window in (4, 500))
        assert short == long

    @pytest.mark.parametrize(
        "option", [{"window": 0}, {"theta": -0.1}, {"theta": math.inf}, {"weight": 0.0}, {"weight": 1.0}]
    )
    def test_out_of_range(self, option):
        (name,) = option
        with pytest.raises(UserError, match=f"{name} is"):
            Cache(**option)


class TestTuneCache:
    def test_every_point_is_that_cache_and_the_best_comes_first(self):
        model = build(awd_lstm).train()
        text = TEXT * 12  # several windows
        tuned = tune_cache(model, text, windows=(3, 30, 300), thetas=(0.0, 2.5), weights=(0.1, 0.6))
        assert model.training
        assert len({(c.window, c.theta, c.weight) for c, _ in tuned}) == len(tuned) == 12
        for cache, perplexity in tuned:
            assert perplexity == pytest.approx(model.score(text, evaluation=cache).perplexity, rel=1e-6)
        perplexities = [each.perplexity for each in tuned]
        assert perplexities == sorted(perplexities)
        assert perplexities[0] < 0.9 * perplexities[-1]

    def test_columns_of_a_data_module(self):
        model, (inputs, targets) = build(simple_network), ids(steps=40, columns=3)
        windows = [(inputs[:25], targets[:25]), (inputs[25:], targets[25:])]
        (tuned,) = tune_cache(model, iter(windows), [6], [2.5], [0.4])
        nll = scored(tuned.cache, model, inputs, targets)
        assert tuned.perplexity == pytest.approx(nll.mean().exp().item(), rel=1e-6)

    def test_pieces_of_a_data_module_start_afresh(self):
        model, (inputs, targets) = build(simple_network), ids(steps=20, columns=5)
        pieces = [FreshWindow(inputs[:, part], targets[:, part]) for part in (slice(0, 3), slice(3, 5))]
        (tuned,) = tune_cache(model, pieces, [6], [2.5], [0.4])
        assert tuned.perplexity == pytest.approx(
            scored(tuned.cache, model, inputs, targets).mean().exp().item(), rel=1e-6
        )

    def test_what_cannot_be_tuned_is_named(self):
        model = build(zaremba)
        with pytest.raises(UserError, match="thetas is empty"):
            tune_cache(model, TEXT, thetas=np.zeros(0))
        with pytest.raises(UserError, match="windows is 50, a int; expected a list"):
            tune_cache(model, TEXT, windows=50)
        with pytest.raises(UserError, match="window is 5.5, a float; expected a whole number"):
            tune_cache(model, TEXT, windows=[5.5])
        with pytest.raises(UserError, match="weight is 1.5"):
            tune_cache(model, TEXT, weights=[1.5])
        with pytest.raises(UserError, match="the text is empty"):
            tune_cache(model, "")
        with pytest.raises(UserError, match="text has no windows"):
            tune_cache(model, [])


def dynamic_by_hand(model, inputs, targets, evaluation, rms):
    """The equations, weight by weight, on a copy of the model."""
    model = copy.deepcopy(model)
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    mean = sum(value.mean() for value in rms.values()) / len(rms) if rms else None
    nll, state = [], None
    for start in range(0, len(inputs), evaluation.segment):
        piece = slice(start, start + evaluation.segment)
        logits, state = model(inputs[piece], state)
        nll.append(token_nll(logits, targets[piece]))
        state = [tuple(part.detach() for part in pair) for pair in state]
        model.zero_grad()
        nll[-1].mean().backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                decay, scale = torch.tensor(evaluation.decay), 1.0
                if rms:
                    decay = (evaluation.decay * rms[name] / mean).clamp(max=1)
                    scale = 1 / (rms[name] + evaluation.epsilon)
                p += decay * (trained[name] - p) - evaluation.learning_rate * scale * p.grad
    return torch.cat(nll).detach()


class TestDynamicEvaluation:
    @pytest.mark.parametrize("statistics", ["gradient_rms", "none"])
    def test_against_the_equations_on_a_model_with_a_tied_softmax(self, statistics):
        model, (inputs, targets) = build(awd_lstm), ids()
        evaluation = dynamic(statistics=statistics, segment=4, decay=0.4)
        rms = {}
        if statistics == "gradient_rms":
            state, squares, windows = None, {}, list(training_windows(steps=4))
            for window in windows:
                logits, state = model(window[0], state)
                state = [tuple(part.detach() for part in pair) for pair in state]
                model.zero_grad()
                token_nll(logits, window[1]).mean().backward()
                for name, p in model.named_parameters():
                    squares[name] = squares.get(name, 0) + p.grad.square()
            rms = {name: (total / len(windows)).sqrt() for name, total in squares.items()}
            model.zero_grad()
            evaluation.prepare(model, windows)
        expected = dynamic_by_hand(model, inputs, targets, evaluation, rms)
        torch.testing.assert_close(scored(evaluation, model, inputs, targets), expected)
        plain = scored(Plain(), model, inputs, targets)
        torch.testing.assert_close(expected[:4], plain[:4])
        assert not torch.isclose(expected[4:], plain[4:]).all()

    def test_a_text_of_few_words_becomes_likelier(self):
        model, (inputs, targets) = build(zaremba), (tokens % 2 for tokens in ids(steps=40))
        evaluation = dynamic()
        evaluation.prepare(model, training_windows())
        adapted = scored(evaluation, model, inputs, targets)
        assert adapted[10:].mean() < 0.7 * scored(Plain(), model, inputs, targets)[10:].mean()

    def test_without_a_learning_rate_it_is_plain(self):
        model = build(mixture_of_grus)
        evaluation = dynamic(learning_rate=0.0)
        evaluation.prepare(model, training_windows())
        torch.testing.assert_close(scored(evaluation, model, *ids()), scored(Plain(), model, *ids()))

    def test_preparing_is_without_noise_and_leaves_a_training_model_as_it_was(self):
        model = build(awd_lstm).train()
        before = state_of(model)
        first, second = dynamic(), dynamic()
        first.prepare(model, training_windows())
        assert_as_before(model, before)
        model.eval()
        with torch.inference_mode():  # as in the trainer's loops
            second.prepare(model, training_windows())
        torch.testing.assert_close(scored(first, model, *ids()), scored(second, model, *ids()), rtol=0, atol=0)

    def test_windows_of_the_training_text_are_as_long_as_a_segment(self):
        assert DynamicEvaluation().training_windows == (100, 5)
        assert DynamicEvaluation(segment=7).training_windows == (100, 7)
        assert DynamicEvaluation(0.1, statistics="none").training_windows is None

    def test_plain_descent_has_no_rate_by_itself(self):
        assert DynamicEvaluation().learning_rate == 5e-5
        with pytest.raises(UserError, match="give a learning_rate too"):
            DynamicEvaluation(statistics="none")

    def test_unprepared_it_says_what_to_do(self):
        with pytest.raises(UserError, match=r"call its prepare\(model, windows\) with .*100, 5.*statistics='none'"):
            build(zaremba).score("a b", evaluation=DynamicEvaluation())

    def test_statistics_of_another_model_are_refused(self):
        evaluation = DynamicEvaluation()
        evaluation.prepare(build(zaremba), training_windows())
        with pytest.raises(UserError, match="other parameters than those of this AWDLSTM"):
            build(awd_lstm).score("a b", evaluation=evaluation)

    def test_statistics_of_other_weights_are_refused(self):
        evaluation = dynamic()
        evaluation.prepare(build(zaremba), training_windows())
        scored(evaluation, build(zaremba), *ids())
        for seed, change in ((1, 0.0), (0, 1e-3)):
            model = build(zaremba, seed)
            with torch.no_grad():
                next(model.parameters())[0, 0] += change
            with pytest.raises(UserError, match="other parameters than those of this Zaremba"):
                scored(evaluation, model, *ids())

    def test_preparing_on_pieces_starts_each_afresh(self):
        model, (inputs, targets) = build(zaremba), ids(steps=10, columns=4)
        parts = [FreshWindow(inputs[:, part], targets[:, part]) for part in (slice(0, 2), slice(2, 4))]
        pieces, turned = dynamic(), dynamic()
        pieces.prepare(model, parts)
        turned.prepare(model, parts[::-1])
        torch.testing.assert_close(scored(pieces, model, *ids()), scored(turned, model, *ids()))

    def test_a_segment_is_no_longer_than_what_is_read_at_once(self):
        with pytest.raises(UserError, match="segment is 201; a text is read 200 tokens at a time"):
            DynamicEvaluation(segment=201)

    def test_no_training_text_at_all(self):
        with pytest.raises(UserError, match="windows is empty"):
            DynamicEvaluation().prepare(build(zaremba), [])

    @pytest.mark.parametrize(
        "option",
        [
            {"learning_rate": -1.0},
            {"decay": math.nan},
            {"epsilon": 0.0},
            {"segment": 0},
            {"statistics": "rms"},
        ],
    )
    def test_out_of_range(self, option):
        (name,) = option
        with pytest.raises(UserError, match=f"{name} is"):
            DynamicEvaluation(**option)


class Recorded(AWDLSTM):
    """Notes the logits of every pass, and the state that it starts from."""

    def forward(self, tokens, state=None):
        logits, final = super().forward(tokens, state)
        self.passes.append((state, logits, final))
        return logits, final


class TestMonteCarlo:
    def test_the_probabilities_of_passes_with_different_masks_are_averaged(self):
        model, (inputs, targets) = build(lambda: Recorded(VOCABULARY, 6, 8, num_layers=2)), ids()
        model.passes = []
        nll = scored(MonteCarlo(samples=3), model, inputs, targets, steps=12)
        assert len(model.passes) == 6
        windows = model.passes[:3], model.passes[3:]
        p = torch.cat([torch.stack([logits.softmax(-1) for _, logits, _ in window]).mean(0) for window in windows])
        torch.testing.assert_close(nll, -p.gather(-1, targets.unsqueeze(-1)).squeeze(-1).log())
        for window in windows:
            one, two, three = (logits for _, logits, _ in window)
            assert not torch.isclose(one, two).all()
            assert not torch.isclose(two, three).all()
        assert [state for state, _, _ in windows[0]] == [None] * 3
        for (_, _, final), (state, _, _) in zip(*windows, strict=True):
            assert state is final

    def test_masks_are_drawn_anew_in_every_window(self):
        model, (inputs, targets) = build(variational), ids(steps=1)
        score = MonteCarlo(samples=1, seed=0).begin(model)
        # Every gate has masks of its own, which the layer applies in training mode alone.
        drawn = {score(inputs, targets)[0, 0].item() for _ in range(4)}
        assert len(drawn) == 4

    @pytest.mark.parametrize("make_model", MODELS)
    def test_a_seed_makes_it_repeatable_and_leaves_the_global_generator_alone(self, make_model, monkeypatch):
        model = build(make_model)
        for name in ("manual_seed", "manual_seed_all"):
            monkeypatch.setattr(f"torch.cuda.{name}", lambda seed: pytest.fail("a GPU that the model is not on"))
        before = torch.get_rng_state()
        first, second, other = (scored(MonteCarlo(2, seed), model, *ids(), steps=12) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.isclose(first, other).all()
        assert torch.equal(torch.get_rng_state(), before)
        unseeded = [scored(MonteCarlo(2), model, *ids()) for _ in range(2)]
        assert not torch.isclose(*unseeded).all()

    @pytest.mark.parametrize("embedding_dropout", [None, EmbeddingDropout(0.9)])
    def test_without_noise_but_the_embeddings_it_is_plain(self, embedding_dropout):
        def model():
            descent = DecayedSGD(1.0, 4, 2.0)
            layers = stack(RNN, [6, 6])
            return RecurrentLanguageModel(VOCABULARY, 6, layers, descent, embedding_dropout=embedding_dropout)

        model = build(model)
        torch.testing.assert_close(scored(MonteCarlo(3), model, *ids()), scored(Plain(), model, *ids()))

    def test_an_error_leaves_the_modes_as_they_were(self):
        model = build(zaremba)
        with pytest.raises(IndexError):
            scored(MonteCarlo(2), model, torch.full((3, 1), VOCABULARY), torch.zeros(3, 1, dtype=torch.int64))
        assert not any(module.training for module in model.modules())

    def test_out_of_range(self):
        with pytest.raises(UserError, match="samples is 0"):
            MonteCarlo(samples=0)


class TestEnsemble:
    def test_of_one_it_equals_the_model(self):
        model = build(awd_lstm)
        assert torch.equal(scored(Ensemble([]), model, *ids()), scored(Plain(), model, *ids()))

    def test_the_tested_model_is_no_member(self):
        model = build(awd_lstm)
        for member in (model, build(awd_lstm)):
            with pytest.raises(UserError, match=r"member 1 \(AWDLSTM\) is the tested model itself"):
                model.score("a b", Ensemble.of([member]))

    def test_probabilities_of_different_architectures_are_averaged(self):
        models, (inputs, targets) = [build(make_model) for make_model in (zaremba, awd_lstm, mixture_of_grus)], ids()
        for model in models[1:]:
            model.train()
        nll = scored(Ensemble.of(models[1:]), models[0], inputs, targets, steps=9)
        assert all(model.training for model in models[1:])
        p = torch.stack([model.eval()(inputs)[0].detach().softmax(-1) for model in models]).mean(0)
        torch.testing.assert_close(nll, -p.gather(-1, targets.unsqueeze(-1)).squeeze(-1).log())

    def test_members_are_loaded_by_name_when_the_first_text_begins(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ZOO_CHECKPOINTS", str(tmp_path))
        one, two = make(tmp_path / "one"), make(tmp_path / "two", seed=1)
        model = zoo.load("one")
        ensemble = Ensemble(["two", str(tmp_path / "two")])
        p = [math.exp(-nats) for nats in model.score("a b c").nats]
        two.tokenizer = model.tokenizer
        q = [math.exp(-nats) for nats in two.score("a b c").nats]
        expected = [-math.log((x + 2 * y) / 3) for x, y in zip(p, q, strict=True)]
        assert model.score("a b c", evaluation=ensemble).nats == pytest.approx(expected, rel=1e-5)
        (tmp_path / "two" / "config.yaml").unlink()
        assert model.score("a b c", evaluation=ensemble).nats == pytest.approx(expected, rel=1e-5)
        with pytest.raises(UserError, match="no model 'three'"):
            model.score("a", evaluation=Ensemble(["three"]))
        assert one.vocab_size == model.vocab_size

    def test_a_member_moved_while_scoring_can_still_be_trained(self, monkeypatch):
        model, member = build(zaremba), build(awd_lstm)

        def move(device):
            for parameter in member.parameters():
                parameter.data = parameter.data.clone()
            return member

        monkeypatch.setattr(member, "to", move)
        model.score("a b c", Ensemble.of([member]))
        assert not any(parameter.data.is_inference() for parameter in member.parameters())

    def test_other_vocabularies_are_refused(self):
        model, other = build(zaremba), build(awd_lstm)
        other.tokenizer = Tokenizer.words([EOS, UNK, *"abcdefgih"])
        with pytest.raises(
            UserError,
            match=r"member 1 \(AWDLSTM\) has another vocabulary \(11 types at word level, sha256 \w{8}\) than the tested "
            r"Zaremba \(11 types at word level, sha256 \w{8}\)",
        ):
            model.score("a", evaluation=Ensemble.of([other]))
        other.tokenizer = None
        assert len(model.score("a", evaluation=Ensemble.of([other])).nats) == 2
        small = Zaremba(7, hidden_size=3)
        with pytest.raises(
            UserError, match=r"member 2 \(Zaremba\) has another vocabulary \(7 types\) than .* \(11 types"
        ):
            model.score("a", evaluation=Ensemble.of([other, small]))
