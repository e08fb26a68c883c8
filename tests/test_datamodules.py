import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datamodules import TINY_SHAKESPEARE, Corpus, PennTreebank
from tests.conftest import sentences
from zoo.errors import UserError
from zoo.tokenizer import EOS, UNK, Tokenizer


def text_of(data, split):
    return data.tokenizer.decode(data.ids(split))


class TestPennTreebank:
    def test_words(self, data_tree):
        data = PennTreebank(root=str(data_tree))
        assert data.tokenizer.level == "word"
        assert {EOS, UNK, "n't", "N"} <= set(data.tokenizer.tokens(range(data.tokenizer.vocab_size)))
        assert text_of(data, "test") == "".join(line + "\n" for line in sentences(70, seed=2))

    def test_characters(self, data_tree):
        data = PennTreebank(level="character", root=str(data_tree))
        lines = sentences(60, seed=1)
        assert len(data.ids("validation")) == sum(len(line) + 1 for line in lines)
        assert "_" in data.tokenizer.tokens(data.ids("validation"))
        assert text_of(data, "validation") == "".join(line + "\n" for line in lines)
        assert data.ids("train").dtype == np.uint8

    def test_a_column_that_is_not_there_is_named(self, tmp_path):
        for split in ("train", "validation", "test"):
            folder = tmp_path / "ptb-text-only" / "ptb_text_only" / "penn_treebank" / split
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"text": ["a"]}), folder / "0000.parquet")
        with pytest.raises(UserError, match="no column 'sentence'; its columns are text"):
            PennTreebank(root=str(tmp_path)).ids("test")

    def test_root_comes_from_the_environment_too(self, data_tree, monkeypatch):
        monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
        assert len(PennTreebank().ids("test"))

    def test_no_data_says_what_was_looked_for_and_which_variable_to_set(self, tmp_path):
        with pytest.raises(
            UserError, match=rf"looked for {tmp_path}/ptb-text-only/ptb_text_only .*set ZOO_DATASETS=DIR"
        ):
            PennTreebank(root=str(tmp_path)).ids("test")
        with pytest.raises(UserError, match=r"on the Hugging Face Hub.*set ZOO_DATASETS=DIR"):
            PennTreebank().ids("test")

    def test_evaluation_reads_one_stream_whole(self, data_tree):
        data = PennTreebank(root=str(data_tree), batch_size=4, bptt=5)
        for loader, split in ((data.val_dataloader(), "validation"), (data.test_dataloader(), "test")):
            targets = torch.cat([y for _, y in loader])
            assert targets.shape == (len(data.ids(split)) - 1, 1)

    def test_ids_are_a_view_of_a_file(self, data_tree):
        ids = PennTreebank(root=str(data_tree)).ids("train")
        assert not ids.flags.writeable
        assert not ids.flags.owndata

    def test_another_tokenizer_gives_other_ids(self, data_tree, tmp_path):
        vocabulary = [EOS, UNK, "the", "bank"]
        (tmp_path / "tokenizer.json").write_text(Tokenizer.words(vocabulary).to_json())
        for path in (tmp_path, tmp_path / "tokenizer.json"):
            data = PennTreebank(root=str(data_tree), tokenizer=str(path))
            assert data.ids("test").max() < 4
        assert PennTreebank(root=str(data_tree)).ids("test").max() > 4

    @pytest.mark.slow
    def test_counts_of_the_real_corpus(self, real_datasets):
        words, characters = PennTreebank(), PennTreebank(level="character")
        splits = ("train", "validation", "test")
        assert [len(words.ids(split)) for split in splits] == [929_589, 73_760, 82_430]
        assert words.tokenizer.vocab_size == 10_000
        assert [len(characters.ids(split)) for split in splits] == [5_017_482, 393_042, 442_423]
        assert characters.tokenizer.vocab_size == 50
        assert [sum(y.numel() for _, y in loader) for loader in (words.val_dataloader(), words.test_dataloader())] == [
            73_759,
            82_429,
        ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"a{i} b\n" for i in range(60)))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("".join(f"c{i}\n" for i in range(39)) + "last, without a line end")
    (tmp_path / "notes.md").write_text("not read")
    return tmp_path


class TestCorpus:
    def test_a_folder_is_cut_by_the_stated_rule(self, folder):
        data = Corpus(str(folder), level="character")
        lines = [f"a{i} b" for i in range(60)] + [f"c{i}" for i in range(39)] + ["last, without a line end"]
        for split, cut in {"train": lines[:90], "validation": lines[90:95], "test": lines[95:]}.items():
            assert text_of(data, split).replace(UNK, "?").splitlines() == [
                "".join(c if c in "".join(lines[:90]) else "?" for c in line) for line in cut
            ]

    def test_given_splits_are_read_whole(self, folder):
        data = Corpus(str(folder / "a.txt"), test=str(folder / "sub" / "*.txt"))
        assert len(data.ids("test")) == 39 * 2 + 6
        assert text_of(data, "validation") == "".join(f"{UNK} b\n" for _ in range(3))
        assert len(text_of(data, "train").splitlines()) == 57

    def test_documents_are_lines_or_files(self, folder):
        by_line = Corpus(str(folder), validation=str(folder / "a.txt"), test=str(folder / "a.txt"))
        by_file = Corpus(str(folder), validation=str(folder / "a.txt"), test=str(folder / "a.txt"), document="file")
        assert by_line.tokenizer.tokens(by_line.ids("train")).count(EOS) == 100
        assert by_file.tokenizer.tokens(by_file.ids("train")).count(EOS) == 2
        assert (
            text_of(by_file, "train") == text_of(by_line, "train").replace("\n", " ").replace(" c0", "\nc0")[:-1] + "\n"
        )

    def test_vocabulary_options(self, folder):
        assert Corpus(str(folder), min_count=2).tokenizer.vocab_size == 3
        assert Corpus(str(folder), max_vocabulary=10).tokenizer.vocab_size == 10
        data = Corpus(str(folder / "sub" / "b.txt"), normaliser="penn_treebank", validation=str(folder / "a.txt"))
        assert data.tokenizer.tokens(data.tokenizer.encode("C7, c8")) == ["c7", "c8"]

    def test_the_vocabulary_is_the_training_texts_alone(self, folder):
        data = Corpus(str(folder))
        assert "last," not in data.tokenizer.tokens(range(data.tokenizer.vocab_size))

    def test_a_changed_text_is_read_anew(self, folder):
        before = len(Corpus(str(folder)).ids("train"))
        with (folder / "a.txt").open("a") as file:
            file.write("one more line\n" * 100)
        assert len(Corpus(str(folder)).ids("train")) > before

    def test_blocks_do_not_change_the_tokens(self, folder, monkeypatch):
        whole = Corpus(str(folder)).ids("train").tolist()
        monkeypatch.setattr("datamodules.source.BLOCK", 1)
        monkeypatch.setattr("datamodules.token_file.directory", lambda: folder / "sub")
        assert Corpus(str(folder)).ids("train").tolist() == whole

    def test_files_may_be_called_anything(self, tmp_path):
        for name in ("my[1].txt", "a b*.txt", "{x}.txt"):
            (tmp_path / name).write_text("one line\n" * 40)
        assert len(Corpus(str(tmp_path)).ids("train")) == 108 * 3
        assert len(Corpus(str(tmp_path / "my[1].txt")).ids("train")) == 36 * 3

    def test_lines_end_as_python_reads_them(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datamodules.corpus._READ", 3)  # line ends fall across the pieces read
        (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc\n\r\n\n\rd")
        (tmp_path / "b.txt").write_bytes(b"e\r")
        path = str(tmp_path)
        data = Corpus(path, validation=path, test=path, document="file")
        assert text_of(data, "train") == "a b c d\ne\n"

    def test_a_byte_order_mark_and_windows_line_ends_are_no_text(self, tmp_path):
        (tmp_path / "w.txt").write_bytes("\ufeffa b\r\nc\r\n".encode() * 1)
        path = str(tmp_path / "w.txt")
        data = Corpus(path, validation=path, test=path, level="character")
        assert text_of(data, "train") == "a b\nc\n"

    def test_a_relative_path_is_looked_for_under_the_root(self, folder, monkeypatch):
        monkeypatch.setenv("ZOO_DATASETS", str(folder.parent))
        assert len(Corpus(folder.name).ids("train"))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "bad.txt is empty"),
            ("caf\u00e9\n".encode("latin-1"), "bad.txt is not UTF-8: byte 0xe9 at offset 3"),
            (b"ok\n" * 6_000_000 + b"\xff", "bad.txt is not UTF-8: byte 0xff at offset 18000000"),
            (b"text\0", "bad.txt is binary, not text: a zero byte at offset 4"),
            ("caf\u00e9".encode()[:-1], "bad.txt is not UTF-8: byte 0xc3 at offset 3"),
            (b"x" * ((1 << 24) - 1) + b"\xc3", f"bad.txt is not UTF-8: byte 0xc3 at offset {(1 << 24) - 1}"),
        ],
    )
    def test_what_is_no_text_is_named(self, tmp_path, content, message):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(UserError, match=message):
            Corpus(str(tmp_path)).ids("train")

    def test_no_text_at_all(self, tmp_path):
        with pytest.raises(UserError, match="no text at nowhere/.*txt: looked for"):
            Corpus("nowhere/*.txt").ids("train")
        with pytest.raises(UserError, match="holds no .txt file"):
            Corpus(str(tmp_path)).ids("train")

    def test_a_split_too_short_is_named(self, tmp_path):
        (tmp_path / "one.txt").write_text("a single line\n")
        with pytest.raises(UserError, match="the validation text has 0 tokens, too few for batch_size 1 x bptt"):
            Corpus(str(tmp_path)).val_dataloader()

    def test_the_shipped_text(self):
        data = Corpus(str(TINY_SHAKESPEARE), level="character")
        assert sum(len(data.ids(split)) for split in ("train", "validation", "test")) == 1_115_394
        assert data.tokenizer.vocab_size == 66  # 65 characters and <unk>


@pytest.mark.parametrize("option", ["batch_size", "bptt"])
def test_sizes_must_be_positive(option, data_tree):
    with pytest.raises(UserError, match=f"{option} is 0"):
        PennTreebank(root=str(data_tree), **{option: 0})
