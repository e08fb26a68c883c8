from inspect import signature

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from zoo.datamodules import PennTreebank, WikiText2, WikiText103
from zoo.errors import UserError
from zoo.tokenizer import EOS, UNK

SPLITS = ("train", "validation", "test")
LINES = {
    "wikitext-2-v1": {
        "train": [
            "",
            " = Homarus gammarus = \n",
            "",
            " A 60 @-@ cm <unk> weighs 1 @,@ 000 g . \n",
            "",
            "",
            " = = 戦場のヴァルキュリア3 = = \n",
            "",
        ],
        "validation": ["", " = Robert = \n", " A g weighs <unk> . \n"],
        "test": [" A g . \n", "", "no blanks at its ends\n", "no line break"],
    },
    "wikitext-103-v1": {
        "train": [" = Valkyria = \n", ""],
        "validation": ["", " = Robert = \n"],
        "test": [" = Valkyria = \n", ""],
    },
}


def write(root, configs):
    """The repository as on the Hub: Parquet files, and a card that declares the configurations."""
    folder = root / "Salesforce" / "wikitext"
    card = ["---", "configs:"]
    for config in configs:
        (folder / config).mkdir(parents=True)
        card += [f"- config_name: {config}", "  data_files:"]
        for split in SPLITS:
            rows = pa.table({"text": LINES[config][split]})
            pq.write_table(rows, folder / config / f"{split}-00000-of-00001.parquet")
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write(tmp_path_factory.mktemp("datasets"), LINES)


def words(lines):
    return [word for line in lines for word in [*line.split(), EOS]]


@pytest.mark.parametrize("data", [WikiText2, WikiText103])
def test_every_row_is_one_line_empty_ones_too(data, tree):
    data, lines = data(root=str(tree)), LINES[data.config]
    assert data.tokenizer.tokens(data.ids("train")) == words(lines["train"])
    for split in SPLITS:
        assert "".join(data.text(split)) == "".join(line.removesuffix("\n") + "\n" for line in lines[split])


def test_the_vocabulary_is_the_training_texts_the_most_frequent_first(tree):
    data = WikiText2(root=str(tree))
    vocabulary = data.tokenizer.tokens(range(data.tokenizer.vocab_size))
    train = words(LINES["wikitext-2-v1"]["train"])
    assert set(vocabulary) == set(train)
    assert [train.count(word) for word in vocabulary] == sorted(map(train.count, vocabulary), reverse=True)
    assert vocabulary[:2] == [EOS, "="]
    expected = [word if word in vocabulary else UNK for word in words(LINES["wikitext-2-v1"]["validation"])]
    assert data.tokenizer.tokens(data.ids("validation")) == expected
    assert expected.count(UNK) == 2  # one stands in the text


def test_blocks_do_not_change_the_tokens(tree, tmp_path, monkeypatch):
    whole = WikiText2(root=str(tree)).ids("train").tolist()
    monkeypatch.setattr("zoo.datamodules.source.BLOCK", 1)
    monkeypatch.setattr("zoo.datamodules.token_file.directory", lambda: tmp_path)
    assert WikiText2(root=str(tree)).ids("train").tolist() == whole


def test_text_is_cut_at_blanks_alone(tree):
    data = WikiText2(root=str(tree))
    known = "A g weighs 1 @,@ 000 g ."
    assert data.tokenizer.tokens(data.tokenizer.encode(known)) == known.split()
    assert data.tokenizer.tokens(data.tokenizer.encode("a g.\n")) == [UNK, UNK, EOS]


def test_streams(tree):
    data = WikiText2(batch_size=2, bptt=4, root=str(tree), random_bptt=True, max_bptt=6)
    assert max(len(x) for x, _ in data.train_dataloader()) <= 6
    targets = torch.cat([y for _, y in data.test_dataloader()])
    assert targets.shape == (len(data.ids("test")) - 1, 1)


def test_its_arguments_are_penn_treebanks_without_those_of_characters():
    of_characters = ("level", "text", "batching", "evaluation")
    of_treebank = {
        name: value for name, value in signature(PennTreebank).parameters.items() if name not in of_characters
    }
    assert list(signature(WikiText2).parameters.values()) == list(of_treebank.values())


def test_the_cards_names():
    assert WikiText2.dataset_id == WikiText103.dataset_id == "Salesforce/wikitext"
    assert (WikiText2.dataset_name, WikiText103.dataset_name) == ("WikiText-2", "WikiText-103")


def test_a_configuration_that_is_not_there_is_named(tmp_path):
    root = write(tmp_path, ["wikitext-2-v1"])
    with pytest.raises(UserError, match=r"Salesforce/wikitext not found.*wikitext-103-v1"):
        WikiText103(root=str(root)).ids("test")


@pytest.mark.slow
def test_counts_of_the_real_corpus(real_datasets):
    data = WikiText2()
    assert [len(data.ids(split)) for split in SPLITS] == [2_088_628, 217_646, 245_569]
    assert data.tokenizer.vocab_size == 33_278
    # Every word of the other splits is in the vocabulary: what is unknown says <unk> already.
    unknown = [int((data.ids(split) == data.tokenizer.unk_id).sum()) for split in SPLITS]
    assert unknown == [sum(block.split().count(UNK) for block in data.text(split)) for split in SPLITS]
