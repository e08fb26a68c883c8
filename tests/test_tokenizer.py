import numpy as np
import pytest
import tokenizers

from tests.conftest import ROOT
from zoo.errors import UserError
from zoo.tokenizer import (
    EOS,
    UNK,
    Tokenizer,
    character_vocabulary,
    count_words,
    word_vocabulary,
)

TRICKY = (
    "Mr. Smith's $5.2 million (about 10%) isn't in the U.S.; he said: \"no.\" 'Tis 1,000 dogs' -- well-known... #5 3:30 "
    "p.m. cannot caf\u00e9 5/6 a_b <unk> I'm 'hello.' Jan. 3rd, the '80s AT&T. \u201cfoo\u201d\u2014bar it\u2019s\n"
    " <eos>\tx<eos>y \\/ \\* \u3000wide\u00a0blank\x1cseparator\x85next  \n\n N n 12.5 c$ us$7 \U0001f600 the end"
)


@pytest.fixture(scope="module")
def penn_treebank() -> Tokenizer:
    return Tokenizer.from_file(ROOT / "checkpoints" / "zaremba-small-ptb" / "tokenizer.json")


@pytest.mark.parametrize("normaliser", ["none", "penn_treebank"])
def test_words_are_encoded_as_the_library_does(normaliser):
    half = word_vocabulary(count_words([TRICKY], normaliser))[::2]
    tokenizer = Tokenizer.words(list(dict.fromkeys([*half, EOS, UNK])), normaliser)
    for text in (TRICKY, TRICKY * 3, "", "\n", " ", "the", "no\nend"):
        assert tokenizer.encode(text).tolist() == tokenizer.library.encode(text).ids


def test_every_code_point_splits_words_as_in_the_library():
    tokenizer = Tokenizer.words([EOS, UNK, "a", "b"])
    points = [c for c in range(0x3100) if not 0xD800 <= c < 0xE000]
    text = "".join(f"a{chr(point)}b " for point in points)
    assert tokenizer.encode(text).tolist() == tokenizer.library.encode(text).ids


@pytest.mark.parametrize("blank", [" ", "_"])
def test_characters_are_encoded_as_the_library_does(blank):
    vocabulary = [*character_vocabulary([TRICKY.replace(" ", blank)]), UNK]
    tokenizer = Tokenizer.characters(vocabulary, blank)
    for text in (TRICKY, "\n\n", "", "unseen: \u4e2d"):
        assert tokenizer.encode(text).tolist() == tokenizer.library.encode(text).ids
    assert tokenizer.decode(tokenizer.encode("a b\n\nc")) == "a b\n\nc"


def test_a_remembered_table_that_is_full_starts_anew(monkeypatch):
    monkeypatch.setattr("zoo.tokenizer._MAX_REMEMBERED", 3)
    tokenizer = Tokenizer.words([EOS, UNK, "a", "b", "c", "d", "e"])
    for text in ("a b c", "d e a", "a b c d e"):
        assert tokenizer.encode(text).tolist() == tokenizer.library.encode(text).ids


def test_a_character_outside_a_closed_vocabulary_is_named():
    with pytest.raises(UserError, match="'c' at offset 2 is not among the 2"):
        Tokenizer.characters(["a", "b"]).encode("abc")


def test_a_file_gives_the_same_tokenizer(tmp_path):
    for tokenizer in (Tokenizer.words([EOS, UNK, "a"], "penn_treebank"), Tokenizer.characters(["\n", "a"], "_")):
        (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        again = Tokenizer.from_file(tmp_path / "tokenizer.json")
        assert (again.level, again.vocab_size, again.fingerprint) == (
            tokenizer.level,
            tokenizer.vocab_size,
            tokenizer.fingerprint,
        )


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(UserError, match="a tokenizer of words or of characters is expected"):
        Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))


def test_an_id_outside_the_vocabulary_is_named():
    with pytest.raises(ValueError, match="id 7 is not among the 2"):
        Tokenizer.characters(["a", "b"]).tokens([0, 7])


def test_ids_take_the_smallest_unsigned_type():
    assert Tokenizer.characters([chr(c) for c in range(256)]).encode("a").dtype == np.uint8
    assert Tokenizer.words([EOS, UNK, *map(str, range(255))]).encode("7").dtype == np.uint16
    assert Tokenizer.words([EOS, UNK, *map(str, range(65_535))]).encode("7").dtype == np.uint32


def test_decoding_breaks_lines():
    tokenizer = Tokenizer.words([EOS, UNK, "a", "b"])
    assert tokenizer.decode(tokenizer.encode("a b\n\nb a\n")) == "a b\n\nb a\n"
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("wrong", [4, -1])
def test_what_is_no_id_is_not_decoded(wrong):
    tokenizer = Tokenizer.words([EOS, UNK, "a", "b"])
    assert repr(tokenizer) == "<Tokenizer: 4 words>"
    with pytest.raises(ValueError, match=f"ids from .*{wrong}.*; the vocabulary has 0 to 3"):
        tokenizer.decode([2, wrong])


def test_vocabularies_are_by_falling_frequency():
    counts = count_words(["b a b\nc b a\n"])
    assert word_vocabulary(counts) == ["b", EOS, "a", "c", UNK]
    assert word_vocabulary(counts, min_count=2) == ["b", EOS, "a", UNK]
    assert word_vocabulary(counts, max_size=3) == ["b", EOS, UNK]
    assert character_vocabulary(["abb\n", "c\n"]) == ["\n", "b", "a", "c"]


def test_penn_treebank_rules_leave_its_own_words_alone(penn_treebank):
    words = penn_treebank.tokens(range(penn_treebank.vocab_size))
    assert len(words) == 10_000
    text = "\n".join(" ".join(words[start : start + 50]) for start in range(0, len(words), 50))
    assert penn_treebank.library.normalizer.normalize_str(text).split() == text.replace("\n", f" {EOS} ").split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't", "do n't"),
        ("It's the dogs' $5.", "it 's the dogs ' $ N"),
        ("Mr. Smith, of the U.S., cannot.", "mr. smith of the u.s. can not"),
        ("1,000 (10%) in 1989--or 3:30", "N N N in N or N"),
        ("\u201cCaf\u00e9,\u201d he\u2019d said...", "cafe he 'd said"),
    ],
)
def test_penn_treebank_rules_turn_english_into_its_form(penn_treebank, text, words):
    assert penn_treebank.library.normalizer.normalize_str(text).split() == words.split()


def test_penn_treebank_rules_halve_the_unknown_words_of_shakespeare(penn_treebank):
    from zoo.datamodules import TINY_SHAKESPEARE

    text = TINY_SHAKESPEARE.read_text(encoding="utf-8")
    plain = Tokenizer.words(penn_treebank.tokens(range(10_000)))

    def unknown(tokenizer: Tokenizer) -> float:
        words = [word for word in tokenizer.tokens(tokenizer.encode(text)) if word != EOS]
        return words.count(UNK) / len(words)

    assert unknown(plain) == pytest.approx(0.487, abs=0.001)
    assert unknown(penn_treebank) == pytest.approx(0.202, abs=0.001)
