"""Texts with a class each: splits, classes, batches."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.conftest import quiet_trainer
from zoo.batches import Texts
from zoo.datamodules import LabelledText
from zoo.datamodules.labelled_text import LabelledTexts
from zoo.datamodules.loader import Draw
from zoo.errors import UserError
from zoo.heads import ConcatPooling
from zoo.models import TextClassifier, Zaremba
from zoo.optim import StepAdam
from zoo.tokenizer import EOS, UNK, Tokenizer

WORDS = Tokenizer.words([EOS, UNK, *"abcde"])
A, B = 2, 3


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes rows (text, label) to a file and opens it."""
    monkeypatch.chdir(tmp_path)

    def write(rows, name="mine.jsonl", **options):
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        Path(name).write_text("\n".join(lines) + "\n")
        data = LabelledText(name, **{"label": "label", "batch_size": 4} | options)
        data.tokenizer = WORDS
        return data

    return write


def numbered(count, classes=3):
    return [(f"a {number}", number % classes) for number in range(count)]


def texts_of(loader):
    """The texts (as lists of ids) and labels of all batches."""
    pairs = []
    for (tokens, lengths), labels in loader:
        for column, length, label in zip(tokens.T, lengths, labels, strict=True):
            assert not column[length:].any()
            pairs.append((column[:length].tolist(), int(label)))
    return pairs


def test_a_text_stands_between_two_ends_of_line_and_its_last_tokens_are_read(table):
    rows = [("a b\nc", "x"), ("b", "y"), *[("a", "x")] * 38]
    data = table(rows)
    data.open("train")
    long, short = data._examples["train"][0][:2]
    assert WORDS.tokens(long) == [EOS, "a", "b", EOS, "c", EOS]
    assert WORDS.tokens(short) == [EOS, "b", EOS]
    data = table(rows, max_tokens=3)
    data.open("train")
    assert WORDS.tokens(data._examples["train"][0][0]) == [EOS, "c", EOS]


def test_a_tenth_each_is_drawn_once_for_all(table):
    splits = [table(numbered(40), seed)._rows for seed in ("one.jsonl", "two.jsonl")]
    assert [len(splits[0][split].texts) for split in ("train", "validation", "test")] == [32, 4, 4]
    for split in splits[0]:
        assert splits[0][split].texts == splits[1][split].texts
    every = [text for split in splits[0].values() for text in split.texts]
    assert sorted(every) == sorted(text for text, _ in numbered(40))
    assert splits[0]["test"].texts != [text for text, _ in numbered(40)][-4:]


def test_a_text_that_stands_twice_is_in_one_split(table):
    rows = [(f"a {number % 25}", number % 3) for number in range(50)]
    splits = table(rows)._rows
    texts = {split: splits[split].texts for split in splits}
    assert {split: len(texts[split]) for split in texts} == {"train": 42, "test": 4, "validation": 4}
    assert len(set().union(*texts.values())) == sum(len(set(each)) for each in texts.values()) == 25


def test_given_splits_are_taken(table):
    table([("b", 0), ("c", 1)], "held.jsonl")
    data = table(numbered(30), "mine.jsonl", test="held.jsonl")
    assert data._rows["test"].texts == ["b", "c"]
    assert len(data._rows["validation"].texts) == 3
    assert len(data._rows["train"].texts) == 27


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 2], ["2", "9", "10"]),
        (["good", "bad", "so so"], ["bad", "good", "so so"]),
        ([True, False], ["False", "True"]),
        (["10", "9", "1.5", "none"], ["1.5", "9", "10", "none"]),
    ],
)
def test_classes_are_in_order(table, labels, names):
    data = table([(f"a {number}", labels[number % len(labels)]) for number in range(60)])
    assert data.labels == names
    for split in ("train", "validation", "test"):
        data.open(split)
        numbers = data._examples[split][1]
        assert [names[number] for number in numbers] == [str(label) for label in data._rows[split].labels]


def test_named_numbers_give_their_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": ["a"] * 40, "label": [0, 1] * 20}
    folder = tmp_path / "set"
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    data = LabelledText(str(folder / "train.parquet"), label="label")
    assert data.labels == ["neg", "pos"]


def test_training_batches_are_even_shuffled_and_of_like_length(table):
    draw = np.random.default_rng(0)
    texts = [draw.integers(2, 7, size=size).astype(np.uint8) for size in draw.integers(1, 200, size=401)]
    labels = np.arange(401) % 2
    loader = LabelledTexts(texts, labels, 4, Draw(1, 0))
    assert len(loader) == 101
    sizes = [len(label) for _, label in loader]
    assert set(sizes) == {3, 4}
    assert sum(sizes) == 401
    seen = texts_of(loader)
    assert sorted(seen) == sorted((text.tolist(), int(label)) for text, label in zip(texts, labels, strict=True))
    filled = sum(tokens.numel() for (tokens, _), _ in loader)
    assert filled < 1.2 * sum(map(len, texts))
    assert seen != texts_of(LabelledTexts(texts, labels, 4, Draw(1, 1)))
    assert seen == texts_of(LabelledTexts(texts, labels, 4, Draw(1, 0)))


def test_evaluation_is_in_order_and_shared_by_processes(table):
    data = table(numbered(100))
    data.open("test")
    texts, labels = data._examples["test"]
    whole = LabelledTexts(texts, labels, 4)
    assert [label for _, label in texts_of(whole)] == labels.tolist()
    shares = [texts_of(LabelledTexts(texts, labels, 4, None, rank, 3)) for rank in range(3)]
    assert sum(map(len, shares)) == 10
    assert sorted(pair for share in shares for pair in share) == sorted(texts_of(whole))


def test_it_goes_on_in_the_middle_of_an_epoch(table):
    texts = [np.full(size, 2, dtype=np.uint8) for size in range(1, 40)]
    make = lambda: LabelledTexts(texts, np.zeros(39, dtype=np.int64), 4, Draw(3, 2))  # noqa: E731
    first = make()
    batches = iter(first)
    for _ in range(3):
        next(batches)
    second = make()
    second.load_state_dict(first.state_dict())
    assert texts_of(second) == texts_of(make())[sum(len(label) for _, label in list(make())[:3]) :]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x")] * 40, "holds one class, x; two or more are expected"),
        ([(f"a {number}", [number % 2]) for number in range(40)], r"holds \[0\]; names or numbers are expected"),
        ([(f"a {number}", "" if number else "x") for number in range(40)], "training texts have no 'label'"),
        ([("a", None), *[("a", "x"), ("b", "y")] * 20], "1 training texts have no 'label'"),
        ([(f"a {number}", f"{number}") for number in range(1300)], "holds 1,040 classes .* at most 1,000"),
        ([("a", "x"), ("b", "y")] * 4, "the (test|validation) split has no texts"),
    ],
)
def test_labels_that_cannot_be(table, rows, message):
    data = table(rows)
    with pytest.raises(UserError, match=message):
        data.open("test")


def test_a_held_out_text_without_a_label(table):
    table([("a", "None"), ("b", None)], "held.jsonl")
    data = table([("a", "None"), ("b", "y")] * 20, test="held.jsonl")
    with pytest.raises(UserError, match="1 test texts have no 'label'"):
        data.open("test")


def test_classes_of_the_test_texts_alone(table):
    table([("b", 0), ("c", 7)], "held.jsonl")
    data = table(numbered(30), "mine.jsonl", test="held.jsonl")
    with pytest.raises(UserError, match="the test texts have classes that no training text has: 7"):
        data.open("test")


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="LabelledText has no tokenizer"):
        _ = LabelledText("mine.jsonl", label="label").tokenizer


def test_pooling_sees_each_text_as_if_alone():
    torch.manual_seed(0)
    head = ConcatPooling(4, 2, 5, 0.4, 0.1).eval()
    hidden, lengths = torch.randn(6, 3, 4), torch.tensor([6, 1, 3])
    together = head(hidden, lengths)
    for column, length in enumerate(lengths):
        own = hidden[:length, column : column + 1]
        torch.testing.assert_close(together[column : column + 1], head(own, length[None]))
        pooled = torch.cat([own[-1], own.amax(0), own.mean(0)], -1)
        torch.testing.assert_close(together[column : column + 1], head.layers(pooled))


def test_a_classifier_leaves_the_language_model_as_it_is():
    torch.manual_seed(0)
    model = Zaremba(7, hidden_size=4)
    before, _ = model(torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(0)))
    classifier = TextClassifier(model, 2)
    after, _ = model(torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, after)
    assert classifier.encoder.embedding.weight is model.embedding.weight


def test_a_classifier_reads_the_last_tokens_of_a_text():
    torch.manual_seed(0)
    model = TextClassifier(Zaremba(7, hidden_size=4), 2, max_tokens=4)
    model.tokenizer = WORDS
    assert model.classify("a b a b a c d e") == model.classify("e e e c d e") != model.classify("e e e c d a")


def test_many_texts_are_classified_as_each_of_them_alone(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("zoo.models.text_classifier._ROWS", 3)
    model = TextClassifier(Zaremba(7, hidden_size=4), 2)
    model.tokenizer = WORDS
    texts = ["a b", "c", "d e a b c", "e", "b b b", "a b", "d c b a"]
    together = model.classify(texts)
    assert [each["0"] for each in together] == pytest.approx([model.classify(text)["0"] for text in texts], rel=1e-5)
    assert together[0] == together[5] != together[4]
    assert model.classify([]) == []
    model.tokenizer = Tokenizer.characters([*"abcdefg"])
    with pytest.raises(UserError, match="a text has no tokens"):
        model.classify(["a", ""])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_a_training_are_equal(processes):
    texts = [np.arange(size % 50 + 1).astype(np.uint8) for size in range(1001)]
    loaders = [
        LabelledTexts(texts, np.zeros(1001, np.int64), 32, Draw(1, 0), rank, processes) for rank in range(processes)
    ]
    for batches in zip(*loaders, strict=True):
        sizes = {len(labels) for _, labels in batches}
        assert len(sizes) == 1
        assert 1 < min(sizes) * processes <= 32


def test_a_classifier_fits_with_plain_batches():
    torch.manual_seed(0)
    model = TextClassifier(Zaremba(7, hidden_size=4), 2, optimization=StepAdam(1e-3, weight_decay=0.0))
    batch = (Texts(torch.randint(7, (5, 4)), torch.tensor([5, 4, 3, 2])), torch.tensor([0, 1, 1, 0]))
    loader = DataLoader([batch, batch], batch_size=None)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, loader, loader)
    assert model.measured["validation"][1] == 8
