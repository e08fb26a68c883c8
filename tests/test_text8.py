import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import hub_folder
from zoo.datamodules import Text8
from zoo.errors import UserError

SPLITS = ("train", "validation", "test")


def write(root, dataset_id, **texts):
    folder = hub_folder(root, dataset_id, "default", "data", SPLITS)
    for split in SPLITS:
        pq.write_table(pa.table({"text": [texts[split]]}), folder / f"{split}-00000-of-00001.parquet")
    return str(root)


def test_every_character_is_a_symbol(data_tree):
    data = Text8(root=str(data_tree))
    alphabet = data.tokenizer.tokens(range(data.tokenizer.vocab_size))
    assert sorted(alphabet) == list(" abcdefghijklmnopqrstuvwxyz")
    assert alphabet[0] == " "  # the most frequent
    for split in SPLITS:
        text = "".join(data.text(split))
        assert len(data.ids(split)) == len(text)
        assert data.tokenizer.decode(data.ids(split)) == text
        assert text.startswith("the quick brown fox jumps over the lazy dog the ")


def test_one_long_row_is_read_in_blocks(data_tree, tmp_path, monkeypatch):
    whole = Text8(root=str(data_tree))
    expected, tokens = whole.ids("train").tolist(), whole.tokenizer.to_json()
    monkeypatch.setattr("zoo.datamodules.source.BLOCK", 1000)
    monkeypatch.setattr("zoo.datamodules.token_file.directory", lambda: tmp_path)
    data = Text8(root=str(data_tree))
    assert {len(block) for block in list(data.text("train"))[:-1]} == {1000}
    assert data.ids("train").tolist() == expected
    assert data.tokenizer.to_json() == tokens


def test_blanks_at_the_ends_of_a_split_are_symbols(tmp_path):
    data = Text8(root=write(tmp_path, "afmck/text8", train=" a b ", validation="b", test="a "))
    assert data.tokenizer.decode(data.ids("train")) == " a b "
    assert len(data.ids("test")) == 2


def test_another_data_set_of_that_layout_is_not_called_text8(tmp_path):
    root = write(tmp_path, "someone/letters", train="abc " * 9, validation="ab", test="c")
    data = Text8("someone/letters", root=root)
    assert data.tokenizer.decode(data.ids("train")) == "abc " * 9
    assert (data.dataset_id, data.dataset_name) == ("someone/letters", "someone/letters (not text8)")
    assert (Text8().dataset_id, Text8().dataset_name) == ("afmck/text8", "text8")


@pytest.mark.parametrize("name", ["text8", "/etc/text8", "../..", "a/../b", "a/b/c", ""])
def test_a_data_set_has_an_owner_and_a_name(name):
    with pytest.raises(UserError, match="it must be the data set's name on the Hub, owner/name"):
        Text8(name)


def test_another_tree_and_a_changed_file_are_read_anew(tmp_path):
    for train in ("ab", "cd"):
        root = write(tmp_path / train, "afmck/text8", train=train, validation="ab", test="ab")
        assert "".join(Text8(root=root).text("train")) == train
    changed = pa.table({"text": ["a longer one"]})
    pq.write_table(changed, tmp_path / "cd" / "afmck" / "text8" / "data" / "train-00000-of-00001.parquet")
    assert "".join(Text8(root=root).text("train")) == "a longer one"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"data set afmck/text8 not found: looked for {tmp_path}/afmck/text8"):
        Text8(root=str(tmp_path)).ids("test")
    root = write(tmp_path, "afmck/text8", train="ab", validation="ab", test="aB")
    with pytest.raises(UserError, match="character 'B' at offset 1 is not among the 2 of the vocabulary"):
        Text8(root=root).ids("test")


@pytest.mark.slow
def test_counts_of_the_real_prefix(real_datasets):
    data = Text8("local/text8_prefix", batching="pieces", batch_size=128, bptt=179)
    assert [len(data.ids(split)) for split in SPLITS] == [6_190_042, 343_891, 343_892]
    assert data.tokenizer.vocab_size == 27
    assert sum(x.shape[1] for x, _ in data.train_dataloader()) == 6_190_042 // 180 - 1
