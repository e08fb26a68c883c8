"""Text from every kind of language model: drawn, searched for, in batches, in pieces and step by step."""

import sys
from io import BytesIO, TextIOWrapper
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

from tests.test_cli import fails, home_of_models
from zoo import hub
from zoo.cli import main
from zoo.errors import UserError
from zoo.evaluation import Temperature
from zoo.generate import join, select
from zoo.layers import GRU, LSTM
from zoo.models import (
    AWDLSTM,
    FraternalLanguageModel,
    OneHotLanguageModel,
    RecurrentBatchNormLanguageModel,
    RecurrentDropoutLanguageModel,
    VariationalLSTM,
    Zaremba,
    ZoneoutLanguageModel,
)
from zoo.optim import StepAdam
from zoo.tokenizer import EOS, UNK, Tokenizer

WORDS = Tokenizer.words([EOS, UNK, "the", "bank", "rose", "fell", "N"])
LETTERS = Tokenizer.characters([*"abcdef \n"])
PROMPTS = {"word": ["the bank", "", "rose\nthe bank fell N", "N fell"], "character": ["ab", "", "fed a\ncab", "be"]}

V = LETTERS.vocab_size
MODELS = {
    "zaremba": (WORDS, lambda: Zaremba(7, 8, init_range=0.5)),
    "awd-lstm": (WORDS, lambda: AWDLSTM(7, 5, 8)),
    "awd-lstm-mos": (WORDS, lambda: AWDLSTM(7, 5, 8, softmaxes=2)),
    "variational": (WORDS, lambda: VariationalLSTM(7, 8, untied=True)),
    "recurrent-dropout-gru": (WORDS, lambda: RecurrentDropoutLanguageModel(7, 8, "gru")),
    "fraternal": (WORDS, lambda: FraternalLanguageModel(AWDLSTM(7, 5, 8))),
    "zoneout": (LETTERS, lambda: ZoneoutLanguageModel(V, 8)),
    "gru": (LETTERS, lambda: OneHotLanguageModel(V, GRU(V, 8), StepAdam(1e-3, weight_decay=0.0))),
    "two layers": (LETTERS, lambda: OneHotLanguageModel(V, LSTM(V, 8, 2), StepAdam(1e-3, weight_decay=0.0))),
    "batch norm": (LETTERS, lambda: RecurrentBatchNormLanguageModel(V, 8, max_steps=6)),
    "fraternal batch norm": (
        LETTERS,
        lambda: FraternalLanguageModel(RecurrentBatchNormLanguageModel(V, 8, max_steps=6)),
    ),
}


def build(name, seed=0):
    """A small model whose next token depends on all before it, in float64 and training mode."""
    tokenizer, make = MODELS[name]
    torch.manual_seed(seed)
    model = make().double()
    model.tokenizer = tokenizer
    if "batch norm" in name:
        for _ in range(3):
            model(torch.randint(V, (6, 4)))  # every step gets statistics of its own
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(params=MODELS)
def any_model(request):
    return build(request.param)


@pytest.fixture
def model():
    return build("zaremba")


def certain(probabilities):
    """Gives these probabilities to the letters a, b, c ..., whatever was before."""
    model = Zaremba(len(probabilities), hidden_size=8, init_range=1e-9)
    model.tokenizer = Tokenizer.characters([*"abcdefgh"[: len(probabilities)]])
    with torch.no_grad():
        model.softmax.bias.copy_(torch.tensor(probabilities).log())
    return model


def many(model, **how):
    """4,000 letters drawn one by one, whatever was before."""
    torch.manual_seed(1)
    return "".join(model.generate([""] * 50, tokens=80, **how))


class TestEveryModel:
    def test_step_by_step_is_one_pass(self, any_model):
        tokenizer = any_model.tokenizer
        prompt, rest = PROMPTS[tokenizer.level][0], [3, 5, 2, 2, 0, 4]
        logits, state = any_model.start(prompt)
        steps = [logits]
        for token in rest:
            logits, state = any_model.step(torch.tensor([token]), state)
            steps.append(logits)
        before = [tokenizer.end_of_line_id, *tokenizer.encode(prompt).tolist()]
        assert any_model.training
        whole, _ = any_model.eval()(torch.tensor([*before, *rest]).unsqueeze(1))
        torch.testing.assert_close(torch.cat(steps), whole[len(before) - 1 :, 0])
        assert not logits.requires_grad

    @pytest.mark.parametrize(
        "how", [{"seed": 1}, {"temperature": 0}, {"seed": 2, "top_k": 4, "top_p": 0.9}, {"beams": 3}]
    )
    def test_each_text_of_a_batch_is_the_one_alone(self, any_model, how):
        prompts = PROMPTS[any_model.tokenizer.level]
        together = any_model.generate(prompts, tokens=9, **how)
        assert together == [any_model.generate(prompt, tokens=9, **how) for prompt in prompts]
        assert together[::-1] == any_model.generate(prompts[::-1], tokens=9, **how)
        assert len(set(together)) == len(prompts)
        assert UNK not in "".join(together)
        assert any_model.training

    @pytest.mark.parametrize("how", [{"seed": 1}, {"beams": 3}])
    def test_the_pieces_of_a_stream_are_the_text(self, any_model, how):
        for prompt in PROMPTS[any_model.tokenizer.level]:
            pieces = list(any_model.stream(prompt, tokens=9, **how))
            assert "".join(pieces) == any_model.generate(prompt, tokens=9, **how)
            assert len(pieces) == 9 + (prompt != "")

    def test_a_batch_of_states_is_each_of_them(self, any_model):
        first, second = (prompt[:2] for prompt in ("ab", "fed")) if any_model.tokenizer is LETTERS else ("N", "the")
        logits, state = any_model.start([first, second])
        alone = [any_model.start(prompt) for prompt in (first, second)]
        assert torch.equal(logits, torch.cat([each for each, _ in alone]))
        tokens = torch.tensor([2, 3])
        expected = torch.cat([any_model.step(tokens[i : i + 1], alone[i][1])[0] for i in range(2)])
        torch.testing.assert_close(any_model.step(tokens, state)[0], expected)
        turned = select(join([each for _, each in alone]), torch.tensor([1, 0, 1]))
        torch.testing.assert_close(any_model.step(tokens[[1, 0, 1]], turned)[0], expected[[1, 0, 1]])


class TestSampling:
    def test_the_same_seed_gives_the_same_text(self, model):
        texts = [model.generate("the bank", tokens=30, seed=seed) for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        assert texts[0].startswith("the bank")

    def test_without_a_seed_equal_prompts_get_texts_of_their_own(self, model):
        torch.manual_seed(0)
        assert len(set(model.generate(["the", "the", "the"], tokens=20))) == 3

    def test_a_draw_is_torchs(self, model):
        text = model.generate("the", tokens=20, temperature=0.8, seed=3)
        generator, ids = torch.Generator().manual_seed(3), []
        logits, state = model.start("the")
        for _ in range(20):
            logits[:, model.tokenizer.unk_id] = -torch.inf
            token = torch.multinomial((logits[0].float() / 0.8).softmax(-1), 1, generator=generator)
            ids.append(int(token))
            logits, state = model.step(token, state)
        assert text == model.tokenizer.decode([*model.tokenizer.encode("the").tolist(), *ids])

    def test_unk_is_never_added(self, model):
        with torch.no_grad():
            model.softmax.bias[model.tokenizer.unk_id] = 20
        assert UNK not in model.generate(tokens=100, seed=1)
        assert UNK not in model.generate(tokens=10, temperature=0)
        assert UNK not in model.generate(tokens=10, beams=100)

    def test_temperature_zero_and_top_1_take_the_likeliest(self, model):
        greedy = model.generate("the", tokens=20, temperature=0)
        assert greedy == model.generate("the", tokens=20, top_k=1, seed=3)
        assert greedy == model.generate("the", tokens=20, top_p=1e-9, seed=3)
        assert greedy == model.generate("the", tokens=20, temperature=0, seed=4)
        assert greedy == model.generate("the", tokens=20, beams=1)

    def test_draws_follow_the_model(self):
        model = certain([0.4, 0.3, 0.2, 0.1])
        text = many(model)
        assert [text.count(c) / 4000 for c in "abcd"] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
        assert set(many(model, top_k=2)) == {"a", "b"}
        assert many(model, temperature=0.5).count("a") / 4000 == pytest.approx(0.16 / 0.30, abs=0.03)
        alone = model.generate(tokens=500, seed=1)
        assert [alone.count(c) / 500 for c in "abcd"] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.06)

    @pytest.mark.parametrize(
        ("top_p", "nucleus"),
        [
            (0.01, "c"),
            (0.39, "c"),
            (0.41, "cb"),
            (0.69, "cb"),
            (0.71, "cbe"),
            (0.91, "cbea"),
            (0.99, "cbead"),
            (1, "cbead"),
        ],
    )
    def test_the_nucleus_is_the_fewest_likeliest_that_reach_it(self, top_p, nucleus):
        model = certain([0.08, 0.3, 0.4, 0.02, 0.2])
        text = many(model, top_p=top_p)
        assert set(text) == set(nucleus)
        if nucleus == "cb":
            assert text.count("c") / 4000 == pytest.approx(4 / 7, abs=0.03)

    def test_the_nucleus_is_of_the_tempered_top_k(self):
        model = certain([0.08, 0.3, 0.4, 0.02, 0.2])  # of the top 3: 4/9, 3/9, 2/9; their squares: 16, 9 and 4 of 29
        assert set(many(model, top_k=3, top_p=0.76)) == set("cb")
        assert set(many(model, top_k=3, top_p=0.8)) == set("cbe")
        assert set(many(model, top_k=3, top_p=0.8, temperature=0.5)) == set("cb")

    def test_the_global_generator_is_left_alone_by_a_seed(self, model):
        before = torch.get_rng_state()
        model.generate(tokens=5, seed=1)
        assert torch.equal(torch.get_rng_state(), before)

    def test_two_streams_and_a_model_in_training(self, model):
        alone = [list(model.stream("the", tokens=9, seed=seed)) for seed in (1, 2)]
        first, second = (model.stream("the", tokens=9, seed=seed) for seed in (1, 2))
        both = []
        for pieces in zip(first, second, strict=True):
            assert model.training
            both.append(pieces)
        assert both == list(zip(*alone, strict=True))


class TestBeams:
    @pytest.mark.parametrize("name", ["zaremba", "batch norm"])
    def test_wide_enough_it_finds_the_likeliest_of_all_continuations(self, name):
        not_greedy = 0
        for seed in range(12):
            model, length = build(name, seed).eval(), 3
            tokenizer = model.tokenizer
            prompt = PROMPTS[tokenizer.level][0]
            ids = tokenizer.encode(prompt).tolist()
            allowed = [i for i in range(model.vocab_size) if i != tokenizer.unk_id]
            texts = torch.tensor(list(product(allowed, repeat=length))).T
            before = torch.tensor([tokenizer.end_of_line_id, *ids]).unsqueeze(1).expand(-1, texts.shape[1])
            with torch.no_grad():
                logits, _ = model(torch.cat([before, texts]))
            log_p = logits[len(ids) : -1].log_softmax(-1).gather(-1, texts.unsqueeze(-1)).sum((0, -1))
            found = model.generate(prompt, tokens=length, beams=len(allowed) ** (length - 1))
            assert found == tokenizer.decode([*ids, *texts[:, log_p.argmax()].tolist()])
            not_greedy += found != model.generate(prompt, tokens=length, temperature=0)
        assert not_greedy

    def test_a_narrow_search_keeps_the_best_of_each_length(self, model):
        prompt, beams, length = "the bank", 2, 6
        kept = [(0.0, [], *model.start(prompt))]
        for _ in range(length):
            longer = []
            for total, text, logits, state in kept:
                for token, log_p in enumerate(logits[0].log_softmax(-1).tolist()):
                    if token != model.tokenizer.unk_id:
                        longer.append((total + log_p, [*text, token], state))
            longer.sort(key=lambda beam: -beam[0])
            kept = [(total, text, *model.step(torch.tensor(text[-1:]), state)) for total, text, state in longer[:beams]]
        ids = model.tokenizer.encode(prompt).tolist()
        assert model.generate(prompt, tokens=length, beams=beams) == model.tokenizer.decode([*ids, *kept[0][1]])

    @pytest.mark.parametrize("option", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"seed": 1}])
    def test_it_takes_no_option_of_drawing(self, model, option):
        (name,) = option
        with pytest.raises(UserError, match=f"beams is 2, and a beam search draws nothing: leave out {name}"):
            model.generate(beams=2, **option)


class TestPrompts:
    def test_a_long_prompt_is_read_in_windows(self, model, monkeypatch):
        whole, _ = model.start("the bank rose\n" * 8)
        monkeypatch.setattr("zoo.generate.WINDOW", 7)
        windows, _ = model.start("the bank rose\n" * 8)
        torch.testing.assert_close(windows, whole)

    def test_more_prompts_than_go_on_at_once(self, model, monkeypatch):
        prompts = ["the", "bank", "rose", "fell", "N"]
        expected = model.generate(prompts, tokens=5, seed=1)
        monkeypatch.setattr("zoo.generate._ROWS", 2)
        assert model.generate(prompts, tokens=5, seed=1) == expected

    def test_nothing_to_add_and_nothing_to_add_to(self, model):
        assert model.generate("the bank", tokens=0) == "the bank"
        assert model.generate(["the", "N"], tokens=0, seed=1) == ["the", "N"]
        assert model.generate("the", tokens=0, beams=2) == "the"
        assert list(model.stream(tokens=0)) == []
        assert model.generate([]) == []

    def test_one_without_a_known_word_is_refused_by_its_words(self, model):
        with pytest.raises(
            UserError, match=r"none of its words \('zebra', 'gnu'\) is among the 7 that the model knows"
        ):
            model.generate("zebra gnu zebra\n")
        with pytest.raises(UserError, match="'zebra'"):
            model.stream("zebra")  # before anything is asked of the stream
        for call in (model.generate, model.start):
            with pytest.raises(UserError, match="^prompt 2: none of its words"):
                call(["the", "gnu", "zebra"])
        assert model.generate("the zebra", tokens=0) == f"the {UNK}"
        assert model.generate(UNK, tokens=0) == UNK

    def test_what_is_no_text_is_refused(self, model):
        for call in (
            lambda: model.generate(3),
            lambda: model.generate(["the", 3]),
            lambda: model.generate("the", tokens="5"),
            lambda: model.stream(["the", "bank"]),
            lambda: model.step([1], model.start("the")[1]),
            lambda: model.score(["the"]),
            lambda: model.score("the", evaluation=Temperature),
        ):
            with pytest.raises(UserError, match=r"(prompt|prompt 2|tokens|text|evaluation) is .*; expected a "):
                call()

    def test_states_that_count_other_steps_are_not_joined(self):
        model = build("batch norm")
        with pytest.raises(UserError, match=r"the states count \(3,\) and \(4,\) steps"):
            model.start(["ab", "abc"])

    def test_no_prompt_and_tokens_of_another_shape(self, model):
        with pytest.raises(UserError, match="prompt holds no text"):
            model.start([])
        _, state = model.start("the")
        with pytest.raises(UserError, match=r"tokens have shape \(1, 1\); expected \(B,\)"):
            model.step(torch.tensor([[2]]), state)


@pytest.mark.parametrize(
    "option",
    [
        {"tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-40},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"beams": 0},
        {"seed": 2**64},
        {"seed": "a"},
        {"top_k": 1.5},
        {"top_p": "high"},
        {"temperature": "hot"},
    ],
)
def test_options_out_of_range_are_named(model, option):
    (name,) = option
    with pytest.raises(UserError, match=f"^{name} is"):
        model.generate(**option)
    with pytest.raises(UserError, match=f"^{name} is"):
        model.stream(**option)


def test_a_model_whose_weights_are_no_numbers_says_so(model):
    with torch.no_grad():
        model.softmax.bias[0] = torch.nan
    with pytest.raises(UserError, match="nan"):
        model.generate("the")


class TestStop:
    @pytest.mark.parametrize("how", [{"seed": 4}, {"seed": 6, "temperature": 0.7}, {"seed": 5, "top_k": 4}])
    def test_a_text_ends_before_the_token(self, any_model, how):
        prompts = PROMPTS[any_model.tokenizer.level]
        tokenizer, ends = any_model.tokenizer, 0
        for stop in tokenizer.tokens(range(tokenizer.vocab_size)):
            if stop in (UNK, "<eos>"):
                continue
            read = [len(tokenizer.encode(prompt)) for prompt in prompts]
            whole = [tokenizer.encode(text).tolist() for text in any_model.generate(prompts, tokens=12, **how)]
            texts = any_model.generate(prompts, tokens=12, stop=stop, **how)
            (wanted,) = tokenizer.encode(stop).tolist()
            for prompt, text, all_of_it, first in zip(prompts, texts, whole, read, strict=True):
                added = all_of_it[first:]
                kept = added.index(wanted) if wanted in added else len(added)
                ends += kept < len(added)
                assert text == tokenizer.decode(all_of_it[: first + kept])
                assert text == any_model.generate(prompt, tokens=12, stop=stop, **how)
                assert text == "".join(any_model.stream(prompt, tokens=12, stop=stop, **how))
        assert ends

    def test_the_end_of_the_line(self, model):
        texts = model.generate(["the"] * 20, tokens=60, stop="\n")
        assert not any("\n" in text for text in texts)
        assert len({len(text) for text in texts}) > 1

    @pytest.mark.parametrize("stop", ["", "zebra", "the the", 3])
    def test_what_is_no_token_is_refused(self, model, stop):
        with pytest.raises(UserError, match="stop is"):
            model.generate("the", stop=stop)
        with pytest.raises(UserError, match="stop is"):
            model.stream("the", stop=stop)

    def test_a_beam_search_takes_none(self, model):
        with pytest.raises(UserError, match="leave out stop"):
            model.generate("the", beams=2, stop="\n")


class TestCommand:
    @pytest.fixture
    def tiny(self, tmp_path, monkeypatch):
        home_of_models(tmp_path, monkeypatch)
        return hub.load("tiny")

    def test_the_text_is_printed_as_it_comes(self, tiny, monkeypatch):
        output = TextIOWrapper(BytesIO(), encoding="utf-8")
        seen, forward = [], Zaremba.forward

        def watched(model, tokens, state=None):
            seen.append(output.buffer.getvalue().decode())
            return forward(model, tokens, state)

        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            patch.setattr(Zaremba, "forward", watched)
            main(["generate", "tiny", "--prompt", "a b", "--tokens", "5", "--seed", "1", "--top_p", "0.9"])
        assert seen[0] == "a b"
        assert len(seen) == 5
        assert all(len(before) < len(after) for before, after in pairwise(seen))
        output.flush()
        assert output.buffer.getvalue().decode() == tiny.generate("a b", tokens=5, seed=1, top_p=0.9) + "\n"

    def test_a_file_of_prompts_and_standard_input(self, tiny, monkeypatch, capsys):
        Path("prompts").write_text("a b\n\nc\n")
        options = ["--tokens", "20", "--seed", "3"]
        main(["generate", "tiny", "--prompts_file", "prompts", *options])
        texts = capsys.readouterr().out
        expected = tiny.generate(["a b", "", "c"], tokens=20, seed=3)
        assert any("\n" in text for text in expected)
        assert [line.replace("\\n", "\n") for line in texts.splitlines()] == expected
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"a b\n\nc")))
        main(["generate", "tiny", "--prompts_file", "-", *options])
        assert capsys.readouterr().out == texts

    def test_the_end_of_a_line_ends_the_text(self, tiny, capsys):
        main(["generate", "tiny", "--prompt", "a b", "--tokens", "40", "--seed", "3", "--stop", r"\n"])
        whole = tiny.generate("a b", tokens=40, seed=3)
        assert capsys.readouterr().out == whole.partition("\n")[0] + "\n"
        assert "\n" in whole

    def test_beams(self, tiny, capsys):
        main(["generate", "tiny", "--prompt", "c", "--tokens", "6", "--beams", "4"])
        assert capsys.readouterr().out == tiny.generate("c", tokens=6, beams=4) + "\n"

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--prompt", "zebra"], "none of its words ('zebra') is among the 5"),
            (["--prompts_file", "prompts"], "prompt 2: none of its words ('zebra') is among the 5"),
            (["--prompts_file", "nowhere"], "nowhere cannot be read"),
            (["--prompts_file", "empty"], "empty is empty; a prompt a line"),
            (["--prompts_file", "empty", "--prompt", "a"], "prompt and prompts_file are both given"),
            (["--device", "abacus"], "device is 'abacus': "),
            (["--top_p", "0"], "top_p is 0.0; it must lie in (0, 1]"),
            (["--beams", "2", "--temperature", "0.5", "--top_k", "3"], "leave out top_k and temperature"),
        ],
    )
    def test_bad_input_is_named(self, tiny, options, said, capsys):
        Path("empty").touch()
        Path("prompts").write_text("a b\nzebra\nc\n")
        assert said in fails(capsys, "generate", "tiny", *options)
