"""Scoring: texts as streams, sentences by themselves, two models side by side, and what is written of them."""

import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT
from tests.test_bundle import make
from tests.test_cli import fails, home_of_models
from zoo import bundle, report
from zoo.cli import main
from zoo.errors import UserError
from zoo.evaluation import Cache, Temperature
from zoo.models import AWDLSTM, RecurrentBatchNormLanguageModel, Zaremba
from zoo.score import Comparison, Stream, lines_of, score_sentences
from zoo.tokenizer import EOS, UNK, Tokenizer

WORDS = Tokenizer.words([EOS, UNK, "a", "b", "c", "<script>alert(1)</script>"])
CHARACTERS = Tokenizer.characters(["\n", *" abc<>&\"'", UNK])
TEXT = "a b  c d\n\n b\tc a\u3000a\na <script>alert(1)</script> c b a\n" * 30 + "c b a"


def zaremba(tokenizer=WORDS, seed=0):
    torch.manual_seed(seed)
    model = Zaremba(tokenizer.vocab_size, hidden_size=6, init_range=0.5)
    model.tokenizer = tokenizer
    return model.eval()


def awd_lstm(tokenizer=WORDS):
    torch.manual_seed(0)
    model = AWDLSTM(tokenizer.vocab_size, embedding_size=5, hidden_size=7, num_layers=2)
    model.tokenizer = tokenizer
    return model.eval()


def batch_norm(tokenizer=WORDS):
    """With statistics that differ from step to step."""
    torch.manual_seed(0)
    model = RecurrentBatchNormLanguageModel(tokenizer.vocab_size, hidden_size=6, max_steps=9, gain=1.0)
    for _ in range(3):
        model(torch.randint(tokenizer.vocab_size, (9, 4)))
    model.tokenizer = tokenizer
    return model.eval()


MODELS = [
    zaremba,
    awd_lstm,
    batch_norm,
    lambda: zaremba(CHARACTERS),
    lambda: batch_norm(CHARACTERS),
    lambda: awd_lstm(Tokenizer.characters(["_", *sorted(set("abcd\n\u3000\t<>script()alert1/"))], blank="_")),
]


class Page(HTMLParser):
    """The tokens, tooltips and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tokens, self.tips, self.tags, self.open, self.text = [], [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        for name, value in attributes:
            assert name in ("class", "title", "lang", "charset", "name", "content")
            if tag == "span" and name == "title":
                self.tips.append(value)
                self.tokens.append("")

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        tag = self.open[-1] if self.open else ""
        self.text[tag] = self.text.get(tag, "") + data
        if "span" in self.open:
            self.tokens[-1] += data


class TestStream:
    @pytest.mark.parametrize("make_model", MODELS)
    @pytest.mark.parametrize("size", [1, 7, 300])
    def test_blocks_cut_anywhere_give_the_same_bits(self, make_model, size):
        model = make_model()
        whole = model.score(TEXT)
        stream = Stream(model, (TEXT[i : i + size] for i in range(0, len(TEXT), size)))
        tokens = list(stream)
        assert [token.token for token in tokens] == whole.tokens == model.tokenizer.tokens(ids_of(model, TEXT))
        assert [token.nats for token in tokens] == whole.nats
        assert len(whole.nats) > 400  # more than two windows
        assert stream.totals.total == whole.total == math.fsum(whole.nats)
        assert str(stream.totals) == str(whole)

    def test_lines_and_positions(self):
        places = [(token.token, token.line, token.position) for token in Stream(zaremba(), ["a b\n", "\nc"])]
        assert places == [("a", 1, 1), ("b", 1, 2), (EOS, 1, 3), (EOS, 2, 1), ("c", 3, 1), (EOS, 3, 2)]
        lines = list(Stream(zaremba(), ["a b\n", "\nc"]).lines())
        nats = zaremba().score("a b\n\nc").nats
        assert [line.tokens for line in lines] == [3, 1, 2]
        assert [line.nats for line in lines] == pytest.approx([sum(nats[:3]), nats[3], sum(nats[4:])], rel=1e-12)

    def test_sums_are_exact(self):
        class Extreme(Temperature):
            def begin(self, model):
                return lambda inputs, targets: torch.tensor([1e16, 1.0, -1e16], dtype=torch.float64)[targets % 3]

        stream = Stream(zaremba(), [TEXT], Extreme(1.0))
        nats = [token.nats for token in stream]
        assert stream.totals.total == math.fsum(nats) != sum(nats)

    def test_the_mode_is_the_models_own_between_two_windows(self):
        model = zaremba().train()
        stream = iter(Stream(model, [TEXT]))
        next(stream)
        assert model.training

    def test_by_an_evaluation(self):
        model, cache = zaremba(), Cache(window=5, theta=0.3)
        assert [token.nats for token in Stream(model, TEXT, cache)] == model.score(TEXT, cache).nats

    @pytest.mark.parametrize("make_model", MODELS[2:4])
    @pytest.mark.parametrize("blocks", [[], [""], ["", ""]])
    def test_an_empty_text_is_refused(self, make_model, blocks):
        with pytest.raises(UserError, match="text is empty"):
            list(Stream(make_model(), blocks))
        with pytest.raises(UserError, match="text is empty"):
            make_model().score("")

    def test_a_vocabulary_without_line_breaks(self):
        model = zaremba(Tokenizer.characters(["a", "b", " "]))
        assert model.score("ab a\n").tokens == list("ab a")
        assert [token.token for token in Stream(model, ["ab a", "\n"])] == list("ab a")
        with pytest.raises(UserError, match=r"character '\\n' at offset 0 .*, from character 2 on"):
            list(Stream(model, ["ab", "\na"]))
        with pytest.raises(UserError, match="text is empty"):
            model.score("\n")

    def test_one_line_of_a_million_characters(self):
        tokenizer = Tokenizer.words([EOS, UNK, "a"])
        quick = SimpleNamespace(tokenizer=tokenizer, device="cpu", modules=list)

        class Even(Temperature):
            def begin(self, model):
                return lambda inputs, targets: torch.ones(targets.shape)

        def blocks(text):
            return (text[i : i + 65_536] for i in range(0, len(text), 65_536))

        one_word = Stream(quick, blocks("x" * 1_000_000), Even(1.0))
        assert [token.token for token in one_word] == [UNK, EOS]
        many = Stream(quick, blocks("a " * 500_000), Even(1.0))
        assert sum(len(tokens) for tokens, _ in many.windows()) == 500_001 == many.totals.total
        assert many.totals.unknown == 0


def ids_of(model, text):
    return model.tokenizer.encode(text + "\n" if model.tokenizer.level == "word" else text)


class TestSentences:
    @pytest.mark.parametrize("make_model", MODELS[:5])
    def test_equal_to_each_alone(self, make_model, monkeypatch):
        monkeypatch.setattr("zoo.score.WINDOW", 13)
        monkeypatch.setattr("zoo.score._SENTENCES", 7)
        model = make_model()
        lines = [
            "a b c",
            "",
            "b",
            "a zebra " * 20,
            "c a",
            "a b c",
            "b b\n",
            *(("a b c " * n).strip() for n in range(14)),
        ]
        results = list(score_sentences(model, lines))
        assert [result.text for result in results] == [line.removesuffix("\n") for line in lines]
        for result in results:
            alone = model.score(result.text + "\n")
            assert result.tokens == len(alone.nats)
            assert result.unknown == alone.tokens.count(UNK)
            assert result.log_probability == pytest.approx(-alone.total, rel=1e-5)

    def test_without_line_ends(self):
        model = zaremba(Tokenizer.characters(["a", "b"]))
        empty, one = score_sentences(model, ["", "ab"])
        assert (empty.log_probability, empty.tokens) == (0, 0)
        assert one.log_probability == pytest.approx(-model.score("ab").total)

    def test_bad_ones_are_numbered(self):
        with pytest.raises(UserError, match="sentence 2 holds a line break"):
            list(score_sentences(zaremba(), ["a", "a\nb"]))
        with pytest.raises(UserError, match="'z' at offset 1 .*, in sentence 1"):
            list(score_sentences(zaremba(Tokenizer.characters(["a", "b"])), ["az"]))
        with pytest.raises(UserError, match="sentences is one text; give a list"):
            zaremba().score_sentences("a b")

    def test_lines_of_blocks(self):
        text = "a b\n\n\nc"
        for size in (1, 3, 100):
            blocks = [text[i : i + size] for i in range(0, len(text), size)]
            assert list(lines_of(blocks)) == ["a b", "", "", "c"]
        assert list(lines_of(["a\n", "\n"])) == ["a", ""]


class TestComparison:
    def test_by_tokens(self):
        mine, other = zaremba(), zaremba(seed=1)
        comparison = Comparison(mine, other, TEXT)
        pairs = list(comparison.tokens())
        assert [pair[0].nats for pair in pairs] == mine.score(TEXT).nats
        assert [pair[1].nats for pair in pairs] == other.score(TEXT).nats
        assert [str(totals) for totals in comparison.totals] == [str(mine.score(TEXT)), str(other.score(TEXT))]
        difference = {}
        for first, second in pairs:
            difference[first.token] = difference.get(first.token, 0) + first.bits - second.bits
        easier, harder = map(dict, comparison.easier())
        assert easier == pytest.approx({token: -bits for token, bits in difference.items() if bits < 0})
        assert harder == pytest.approx({token: bits for token, bits in difference.items() if bits > 0})
        assert easier
        assert harder
        assert sum(harder.values()) - sum(easier.values()) == pytest.approx(comparison.difference)
        assert comparison.easier(1) == tuple(
            sorted(part.items(), key=lambda item: -item[1])[:1] for part in (easier, harder)
        )

    def test_by_lines(self):
        mine, other = zaremba(), zaremba(CHARACTERS)
        comparison = Comparison(mine, other, [TEXT[:100], TEXT[100:]])
        assert not comparison.same_tokens
        lines = list(comparison.lines())
        assert [pair[0].line for pair in lines] == [pair[1].line for pair in lines] == list(range(1, 122))
        for side, model in enumerate((mine, other)):
            assert sum(pair[side].nats for pair in lines) == pytest.approx(model.score(TEXT).total)
        with pytest.raises(UserError, match="compare them by lines"):
            next(Comparison(mine, other, TEXT).tokens())

    def test_lines_that_are_none(self):
        with pytest.raises(UserError, match="different numbers of lines"):
            list(Comparison(zaremba(), zaremba(CHARACTERS), [f"a {EOS} b\n"]).lines())


class TestReport:
    @pytest.mark.parametrize("make_model", MODELS)
    def test_json_lines_hold_every_token_and_sum_to_the_total(self, make_model):
        model = make_model()
        whole = model.score(TEXT)
        rows = [json.loads(row) for row in report.of_stream(Stream(model, [TEXT]), "jsonl", "tiny")]
        assert [row["token"] for row in rows] == whole.tokens
        assert [row["bits"] for row in rows] == whole.bits
        assert math.fsum(row["bits"] for row in rows) * math.log(2) == pytest.approx(whole.total, rel=1e-14)
        assert rows[-1]["line"] == 121

    @pytest.mark.parametrize("make_model", MODELS)
    def test_a_page_holds_every_token(self, make_model):
        model = make_model()
        whole = model.score(TEXT)
        text = "".join(report.of_stream(Stream(model, [TEXT]), "html", 'a "<b>" & c'))
        page = Page(text)
        assert page.tokens == whole.tokens
        assert [float(tip.split()[0]) for tip in page.tips] == pytest.approx(whole.bits, abs=0.006)
        assert set(page.tags) <= set("html head meta title style body header h1 p b main span footer".split())
        assert page.text["title"] == page.text["h1"] == 'a "<b>" & c'
        assert page.text["footer"] == str(whole)
        assert "<script>" not in text
        assert page.open == []
        breaks = page.text["main"].count("\n") if model.tokenizer.level == "word" else "".join(page.tokens).count("\n")
        assert breaks == TEXT.count("\n") + (model.tokenizer.level == "word")
        assert "http" not in text

    def test_hostile_characters(self):
        text = "<b a='\"'>&amp;</b>\n</span></main><script>&lt;\n"
        model = zaremba(Tokenizer.characters(sorted(set(text))))
        page = Page("".join(report.of_stream(Stream(model, [text]), "html", "x")))
        assert "".join(page.tokens) == text
        assert "script" not in page.tags

    def test_darker_shades_for_greater_surprisal(self):
        model = zaremba()
        with torch.no_grad():
            model.softmax.weight.zero_()
            model.softmax.bias.zero_()[2] = 5 * math.log(2)
        rows = "".join(report.of_stream(Stream(model, ["a b\n"]), "html", "x")).split("<main>")[1].split("</main>")[0]
        assert [part.split('"')[1] for part in rows.split("<span ")[1:]] == ["w0", "w5", "w5"]

    def test_a_page_of_two_models(self):
        comparison = Comparison(zaremba(), zaremba(seed=1), [TEXT])
        page = Page("".join(report.of_comparison(comparison, "html", ("<one>", "two"))))
        assert page.tokens == zaremba().score(TEXT).tokens
        bits = [tuple(map(float, (tip.split()[1], tip.split()[4]))) for tip in page.tips]
        assert bits[0] == pytest.approx((zaremba().score(TEXT).bits[0], zaremba(seed=1).score(TEXT).bits[0]), abs=0.006)
        assert page.text["footer"] == report.compared(comparison, ("<one>", "two")).rstrip()
        with pytest.raises(UserError, match="different tokens"):
            list(report.of_comparison(Comparison(zaremba(), zaremba(CHARACTERS), [TEXT]), "html", ("one", "two")))


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = home_of_models(tmp_path, monkeypatch)
    make(home / "other", seed=1)
    characters = zaremba(Tokenizer.characters(["\n", *" abc", UNK]))
    curve = home / "curve.csv"
    recipe = "model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: 6, hidden_size: 6}}\n"
    weights = bundle.stored_weights(characters)
    bundle.write(
        home / "letters", weights, recipe=recipe, card="# a card\n", tokenizer=characters.tokenizer, curve=[curve]
    )
    Path("text").write_text("a b\nc d\n")
    return home


def said(capsys, *arguments):
    main(["score", *arguments])
    return capsys.readouterr().out


class TestCommand:
    def test_formats(self, home, capsys):
        line = said(capsys, "tiny", "text")
        assert line.startswith("perplexity per word ")
        table = said(capsys, "tiny", "text", "--format", "table")
        assert table.endswith("\n" + line)
        rows = [json.loads(row) for row in said(capsys, "tiny", "text", "--format=jsonl").splitlines()]
        assert [f"{row['bits']:8.3f}  {row['token']}" for row in rows] == table.splitlines()[:-1]
        assert Page(said(capsys, "tiny", "text", "--format=html")).tokens == ["a", "b", EOS, "c", UNK, EOS]
        assert "bits per character over 8 characters" in said(capsys, "letters", "text")

    def test_an_output_file_is_not_overwritten_unasked(self, home, capsys):
        line = said(capsys, "tiny", "text")
        assert said(capsys, "tiny", "text", "--format=html", "--output=page.html") == line
        page = Path("page.html").read_text()
        assert Page(page).tokens == ["a", "b", EOS, "c", UNK, EOS]
        assert "page.html exists" in fails(capsys, "score", "tiny", "text", "--output=page.html")
        assert Path("page.html").read_text() == page
        said(capsys, "tiny", "text", "--output=page.html", "--overwrite=true")
        assert Path("page.html").read_text() == line
        assert "exists" in fails(capsys, "score", "tiny", "text", "--output=.", "--overwrite=true")
        assert "nowhere/x cannot be written" in fails(capsys, "score", "tiny", "text", "--output=nowhere/x")

    def test_a_text_that_goes_wrong_leaves_no_output(self, home, capsys, monkeypatch):
        monkeypatch.setattr("zoo.cli._BLOCK", 4)
        Path("latin").write_bytes("é a b\né".encode() + b" caf\xe9 a")
        assert "latin is not UTF-8: byte 0xe9 at offset 13" in fails(
            capsys, "score", "tiny", "latin", "--format=jsonl", "--output=x"
        )
        assert sorted(path.name for path in Path().iterdir()) == ["latin", "text"]

    @pytest.mark.parametrize("block", [1, 2, 5, 1000])
    def test_line_ends_and_byte_order_marks(self, home, capsys, monkeypatch, block):
        monkeypatch.setattr("zoo.cli._BLOCK", block)
        for name in ("tiny", "letters"):
            expected = said(capsys, name, "text", "--format=table")
            for windows in (b"\xef\xbb\xbfa b\r\nc d\r\n", b"a b\rc d\r"):
                Path("other").write_bytes(windows)
                assert said(capsys, name, "other", "--format=table") == expected

    def test_bad_input(self, home, capsys):
        for content, message in ((b"", "text is empty"), (b"\xef\xbb\xbf", "text is empty"), (b"a\xc3", "at offset 1")):
            Path("bad").write_bytes(content)
            assert message in fails(capsys, "score", "tiny", "bad")
        Path("bad").write_bytes("\ufeffa b".encode("utf-16-le"))
        assert "byte 0xff at offset 0" in fails(capsys, "score", "tiny", "bad")
        assert "cannot be read" in fails(capsys, "score", "tiny", ".")
        with pytest.raises(SystemExit) as stop:
            main(["score", "tiny", "text", "--format=xml"])
        assert stop.value.code == 2
        assert "xml" in capsys.readouterr().err
        assert "leave out" in fails(capsys, "score", "tiny", "text", "--compare=other", "--sentences=true")
        assert "no model 'othr'" in fails(capsys, "score", "tiny", "text", "--compare=othr")
        assert "table or jsonl" in fails(capsys, "score", "tiny", "text", "--format=html", "--sentences=true")

    def test_sentences(self, home, capsys, monkeypatch):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(b"a b\n\nc d")))
        rows = [row.split("\t") for row in said(capsys, "tiny", "-", "--sentences=true").splitlines()]
        assert [row[1:] for row in rows] == [["3", "0", "a b"], ["1", "0", ""], ["3", "1", "c d"]]
        objects = [
            json.loads(row) for row in said(capsys, "tiny", "text", "--sentences=true", "--format=jsonl").splitlines()
        ]
        assert [row["sentence"] for row in objects] == ["a b", "c d"]
        assert float(rows[0][0]) == pytest.approx(objects[0]["log_probability"], abs=1e-4)

    def test_by_an_evaluation(self, home, capsys):
        hot = ["--evaluation=zoo.evaluation.Temperature", "--evaluation.temperature=1e9"]
        assert said(capsys, "tiny", "text", *hot).startswith("perplexity per word 5.0 over 6 tokens")
        both = said(capsys, "tiny", "text", "--compare=other", *hot).splitlines()
        assert [" 5.0 over 6" in line for line in both[:2]] == [True, True]
        assert "leave out" in fails(capsys, "score", "tiny", "text", "--sentences=true", *hot)

    def test_compare(self, home, capsys):
        lines = said(capsys, "tiny", "text", "--compare=other").splitlines()
        assert lines[0] == f"tiny: {said(capsys, 'tiny', 'text')}".rstrip()
        assert lines[1] == f"other: {said(capsys, 'other', 'text')}".rstrip()
        assert " bits less" in lines[2]
        rows = [
            json.loads(row) for row in said(capsys, "tiny", "text", "--compare=other", "--format=jsonl").splitlines()
        ]
        assert [row["token"] for row in rows] == ["a", "b", EOS, "c", UNK, EOS]
        table = said(capsys, "tiny", "text", "--compare=letters", "--format=table").splitlines()
        assert [row.split(maxsplit=3)[3] for row in table[:2]] == ["line 1", "line 2"]
        assert "compared by lines" in table[-1]


STATUS = Path("/proc/self/status")
MEASURED = f"""
import re
import torch
from zoo.cli import main
torch.set_num_threads(1)
for options in (["--format=html"], ["--compare=other", "--format=jsonl"], ["--sentences=true"]):
    for size in ("short", "long"):
        main(["score", "tiny", size, *options, "--output=out", "--overwrite=true"])
        print(*re.findall(r"VmHWM:\\s+(\\d+)", open("{STATUS}").read()), "at most")
"""


@pytest.mark.skipif(not STATUS.exists(), reason="reads the peak of its memory from /proc")
def test_memory_does_not_grow_with_the_text(home):
    for size, lines in (("short", 2_000), ("long", 10_000)):
        Path(size).write_text("a b c d a b c d\n" * lines)
    environment = {"PYTHONPATH": str(ROOT), "ZOO_CHECKPOINTS": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peaks = [int(line.split()[0]) for line in done.stdout.splitlines() if line.endswith("at most")]
    assert len(peaks) == 6
    for short, long in zip(peaks[::2], peaks[1::2], strict=True):
        assert long - short < 4_000, peaks  # KiB; lists of the tokens would take 11,000


def test_a_perplexity_beyond_all_numbers_is_infinite():
    model = zaremba()
    with torch.no_grad():
        model.softmax.weight.zero_()
        model.softmax.bias.zero_()[0] = 1e5
    result = model.score("a b")
    assert result.perplexity == float("inf")
    assert "perplexity per word inf" in str(result)
