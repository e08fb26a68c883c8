import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import hub_folder, sentences
from tests.test_datamodules import text_of
from zoo.datamodules import TINY_SHAKESPEARE, Corpus, WikiText2
from zoo.errors import UserError
from zoo.tokenizer import EOS, UNK

SPLITS = ("train", "validation", "test")


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
        monkeypatch.setattr("zoo.datamodules.source.BLOCK", 1)
        monkeypatch.setattr("zoo.datamodules.token_file.directory", lambda: folder / "sub")
        assert Corpus(str(folder)).ids("train").tolist() == whole

    def test_files_may_be_called_anything(self, tmp_path):
        for name in ("my[1].txt", "a b*.txt", "{x}.txt"):
            (tmp_path / name).write_text("one line\n" * 40)
        assert len(Corpus(str(tmp_path)).ids("train")) == 108 * 3
        assert len(Corpus(str(tmp_path / "my[1].txt")).ids("train")) == 36 * 3

    def test_lines_end_as_python_reads_them(self, tmp_path, monkeypatch):
        monkeypatch.setattr("zoo.datamodules.source._READ", 3)  # line ends fall across the pieces read
        (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc\n\r\n\n\rd")
        (tmp_path / "b.txt").write_bytes(b"e\r")
        path = str(tmp_path)
        data = Corpus(path, validation=path, test=path, document="file")
        assert text_of(data, "train") == "a b c d\ne\n"

    def test_a_byte_order_mark_and_windows_line_ends_are_no_text(self, tmp_path):
        (tmp_path / "w.txt").write_bytes("\ufeffa b\r\nc\r\n".encode())
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
            (b"text\0", "bad.txt is binary or UTF-16, not text in UTF-8: a zero byte at offset 4"),
            ("caf\u00e9".encode()[:-1], "bad.txt is not UTF-8: byte 0xc3 at offset 3"),
            (b"x" * ((1 << 24) - 1) + b"\xc3", f"bad.txt is not UTF-8: byte 0xc3 at offset {(1 << 24) - 1}"),
        ],
    )
    def test_what_is_no_text_is_named(self, tmp_path, content, message):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(UserError, match=message):
            Corpus(str(tmp_path)).ids("train")

    def test_no_text_at_all_says_what_was_looked_for(self, tmp_path, monkeypatch):
        with pytest.raises(
            UserError, match=r"no text at nowhere/\*\*/a.txt: looked for a file, .* at nowhere/\*\*/a.txt$"
        ):
            Corpus("nowhere/**/a.txt").ids("train")
        with pytest.raises(UserError, match="no text at : looked for"):
            Corpus("").ids("train")
        with pytest.raises(
            UserError, match="at own/er; data set own/er not found: looked for own/er on the Hugging Face Hub"
        ):
            Corpus("own/er").ids("train")
        with pytest.raises(UserError, match=f"at own/er and {tmp_path}/own/er; .* looked for {tmp_path}/own/er"):
            Corpus("own/er", root=str(tmp_path)).ids("train")
        (tmp_path / "README.txt").write_text("no text")
        with pytest.raises(UserError, match="holds no file that ends in .txt, .jsonl, .json, .csv, .tsv, .parquet"):
            Corpus(str(tmp_path)).ids("train")

    def test_a_text_too_short_to_be_cut_says_how_many_lines_are_needed(self, tmp_path):
        (tmp_path / "one.txt").write_text("a single line\n")
        path = str(tmp_path / "one.txt")
        for split in ("validation", "test"):
            message = (
                f"one.txt is too short to hold out a {split} text: it has 1 lines .* 20 or more, or name .* `{split}`"
            )
            with pytest.raises(UserError, match=message):
                Corpus(path).ids(split)
        data = Corpus(path, validation=path, test=path)
        assert {text_of(data, split) for split in SPLITS} == {"a single line\n"}
        (tmp_path / "one.txt").write_text("a line\n" * 20)
        assert [len(Corpus(path).ids(split)) for split in SPLITS] == [54, 3, 3]

    def test_the_shipped_text(self):
        data = Corpus(str(TINY_SHAKESPEARE), level="character")
        assert sum(len(data.ids(split)) for split in ("train", "validation", "test")) == 1_115_394
        assert data.tokenizer.vocab_size == 66  # 65 characters and <unk>


def json_lines(file, rows, encoding="utf-8"):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding)


def json_list(file, rows, encoding="utf-8"):
    file.write_text(json.dumps(rows, indent=1), encoding)


def parquet(file, rows, encoding=None):
    pq.write_table(pa.Table.from_pylist(rows), file)


def separated(separator):
    def write(file, rows, encoding="utf-8"):
        lines = [["n", "text"], *([str(row["n"]), f'"{row["text"] or ""}"'] for row in rows)]
        file.write_bytes("".join(separator.join(line) + "\r\n" for line in lines).encode(encoding))

    return write


WRITERS = {
    "jsonl": json_lines,
    "json": json_list,
    "parquet": parquet,
    "csv": separated(","),
    "tsv": separated("\t"),
}


@pytest.fixture(params=WRITERS)
def table(request, tmp_path):
    """Writes rows of a text and a number into a file of each kind."""

    def write(texts, name="table", **options):
        rows = [{"n": n, "text": text} for n, text in enumerate(texts)]
        WRITERS[request.param](file := tmp_path / f"{name}.{request.param}", rows, **options)
        return str(file)

    return write


class TestTables:
    def test_rows_are_lines(self, table):
        data = Corpus(table(sentences(40, seed=1)))
        lines = [line + "\n" for line in sentences(40, seed=1)]
        for split, expected in {"train": lines[:36], "validation": lines[36:38], "test": lines[38:]}.items():
            assert "".join(data.text(split)) == "".join(expected)
        assert EOS in data.tokenizer.tokens(data.ids("test"))

    def test_line_breaks_in_a_row_end_lines_or_are_blanks(self, table):
        texts = ["a\nb", "c\r\nd\r\n", "\rNA", "", None, "e\n\n", "\n", "\ufefff"]
        path = table(texts)
        by_line, by_row, characters = (
            Corpus(path, **options)
            for options in ({}, {"document": "file"}, {"level": "character", "document": "file"})
        )
        lines = ["a", "b", "c", "d", "", "NA", "", "", "e", "", "", "f"]
        assert "".join(by_line.text("train")) == "".join(characters.text("train")) == "\n".join([*lines, ""])
        assert by_line.tokenizer.tokens(by_line.ids("train")).count(EOS) == len(lines)
        rows = "".join(by_row.text("train"))
        assert [row.split() for row in rows.splitlines()] == [["a", "b"], ["c", "d"], ["NA"], [], [], ["e"], [], ["f"]]

    def test_a_byte_order_mark_is_no_part_of_a_table(self, tmp_path):
        for name, write in WRITERS.items():
            for i in range(2):
                write(tmp_path / f"{i}.{name}", [{"n": i, "text": f"row {i}"}], encoding="utf-8-sig")
            assert "".join(Corpus(str(tmp_path / f"*.{name}")).text("train")) == "row 0\nrow 1\n"

    def test_a_list_of_strings_is_a_column(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps(["a", "b"]))
        assert "".join(Corpus(str(tmp_path)).text("train")) == "a\nb\n"

    def test_csv_holds_strings_whatever_they_look_like(self, tmp_path):
        (tmp_path / "a.csv").write_text("".join(["rating,text\n", "1,12\n" * 10_000, "good,null\n", ',"1,5"\n']))
        whole = {"path": str(tmp_path), "validation": str(TINY_SHAKESPEARE), "test": str(TINY_SHAKESPEARE)}
        assert "".join(Corpus(**whole).text("train")) == "12\n" * 10_000 + "null\n1,5\n"
        assert "".join(Corpus(**whole, column="rating").text("train")).endswith("1\ngood\n\n")

    def test_a_column_must_be_there_and_hold_strings(self, table):
        path = table(["a", "b"])
        with pytest.raises(UserError, match="no column 'words'; its columns are n, text"):
            Corpus(path, column="words").ids("train")
        if not path.endswith("sv"):
            with pytest.raises(
                UserError, match=r"'n' holds Value\('int64'\), not strings; columns of strings are: text"
            ):
                Corpus(path, column="n").ids("train")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("bad.jsonl", b'{"text": "a"}\n{"text"\n', "no rows could be read from .*bad.jsonl: "),
            ("bad.json", b"", "bad.json is empty"),
            ("bad.jsonl", b'{"text": "caf\xe9"}\n', "bad.jsonl is not UTF-8: byte 0xe9 at offset 13"),
            ("bad.csv", b"\n", "no rows could be read from .*bad.csv: No columns"),
            ("bad.csv", b"id,text\n1,a,b\n", "bad.csv: .* Expected 2 fields in line 2, saw 3"),
            ("bad.csv", b"id,text\n1,a\n2,a,b\n", "bad.csv: .* Expected 2 fields in line 3, saw 3"),
            ("bad.csv", b"id,text\n1,caf\xe9\n", "bad.csv is not UTF-8"),
            ("bad.parquet", b"PAR1", "no rows could be read from .*bad.parquet: "),
        ],
    )
    def test_the_file_that_cannot_be_read_is_named(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        kind = name.partition(".")[2]
        WRITERS[kind](tmp_path / f"a.{kind}", [{"n": 1, "text": "good"}])
        with pytest.raises(UserError, match=message):
            Corpus(str(tmp_path)).ids("train")

    @pytest.mark.parametrize(("name", "content"), [("a.json", b"[]"), ("a.csv", b"id,text\n"), ("a.jsonl", b"\n")])
    def test_a_table_without_rows_is_named(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"no rows could be read from .*{name}: "):
            Corpus(str(tmp_path)).ids("train")

    def test_a_zero_byte_is_no_text(self, tmp_path):
        parquet(tmp_path / "a.parquet", [{"text": "a"}, {"text": "b\0c"}])
        with pytest.raises(UserError, match="the column 'text' is binary, not text: a zero byte in the row 'b"):
            Corpus(str(tmp_path)).ids("train")

    def test_files_of_several_kinds_are_named(self, tmp_path):
        for name in ("a.csv", "b.txt", "c.txt", "README.txt", "LICENSE.json", ".hidden.parquet"):
            (tmp_path / name).write_text("text\na\n")
        with pytest.raises(
            UserError, match=rf"files of several kinds in {tmp_path}: .csv, .txt; choose one by a pattern"
        ):
            Corpus(str(tmp_path)).ids("train")
        assert "".join(Corpus(str(tmp_path / "*.csv")).text("train")) == "a\n"

    def test_a_configuration_of_files_is_refused(self, table):
        with pytest.raises(UserError, match="config is 'en', and .* has no configurations: leave out config"):
            Corpus(table(["a"]), config="en").ids("train")

    def test_the_same_table_is_tokenised_once_and_a_changed_one_anew(self, table):
        before = Corpus(path := table(["a"] * 40)).ids("train")
        assert Corpus(path).ids("train").tolist() == before.tolist()
        table(["a b"] * 50)
        assert len(Corpus(path).ids("train")) == 46 * 3

    def test_rows_of_any_length_are_read_in_blocks(self, tmp_path, monkeypatch):
        texts = ["a b\n" * 400, "word" * 300, "", "c d " * 300, *sentences(1500, seed=1)]
        parquet(tmp_path / "a.parquet", [{"text": text} for text in texts])
        expected = {
            document: Corpus(str(tmp_path), document=document).ids("train").tolist() for document in ("line", "file")
        }
        monkeypatch.setattr("zoo.datamodules.source.BLOCK", 400)
        monkeypatch.setattr("zoo.datamodules.token_file.directory", lambda: tmp_path)
        for document, ids in expected.items():
            data = Corpus(str(tmp_path / "a.parquet"), document=document)
            assert sorted(map(len, data.text("train")))[-2] <= 800  # all but the long word
            assert data.ids("train").tolist() == ids


class TestSplits:
    @pytest.mark.parametrize(
        "names",
        [
            ("train.txt", "valid.txt", "test.txt"),
            ("ptb.train.txt", "ptb.dev.txt", "ptb.test.txt"),
            ("data/train/a.txt", "data/val/a.txt", "data/test/a.txt"),
            ("Train-0.jsonl", "validation-0.jsonl", "test-0.jsonl"),
            ("training.txt", "evaluation.txt", "testing.txt"),
            ("train.txt", "eval.txt", "test.txt"),
        ],
    )
    def test_files_named_for_splits_keep_them(self, tmp_path, names):
        for name, text in zip(names, ("a", "b", "c"), strict=True):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f'{{"text": "{text}"}}\n' if name.endswith("jsonl") else text)
        for path in (tmp_path, tmp_path / "**" / "*.*"):
            data = Corpus(str(path))
            assert ["".join(data.text(split)) for split in SPLITS] == ["a\n", "b\n", "c\n"]
        data = Corpus(str(tmp_path), test=str(tmp_path / names[0]))
        assert "".join(data.text("test")) == "a\n"

    def test_files_whose_names_make_no_difference_are_one_text(self, tmp_path):
        for folder in ("latest", "test"):
            (tmp_path / folder).mkdir()
            for name in ("contest.txt", "strain.txt"):
                (tmp_path / folder / name).write_text(name)
            data = Corpus(str(tmp_path / folder), validation=__file__, test=__file__)
            assert "".join(data.text("train")) == "contest.txt\nstrain.txt\n"
        (tmp_path / "latest" / "test-1.txt").write_text("one")
        (tmp_path / "latest" / "test-2.txt").write_text("two")
        assert "".join(Corpus(str(tmp_path / "latest" / "test-*")).text("train")) == "one\ntwo\n"

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("train", "valid", "test", "vocab"), "vocab.txt is named for no split, and test.txt is: rename one kind"),
            (("corpus", "notes", "valid", "test"), "corpus.txt and 1 more are named for no split, and test.txt is"),
            (("valid", "test"), "no file is named for training, and others are for test and validation"),
        ],
    )
    def test_a_test_text_that_would_be_trained_on_is_refused(self, tmp_path, names, message):
        for name in names:
            (tmp_path / f"{name}.txt").write_text("a b\n" * 40)
        with pytest.raises(UserError, match=message):
            Corpus(str(tmp_path)).text("train")

    def test_missing_splits_are_cut_from_the_end_of_train(self, tmp_path):
        (tmp_path / "train.txt").write_text("a\n" * 40)
        (tmp_path / "test.txt").write_text("b\n")
        data = Corpus(str(tmp_path))
        assert ["".join(data.text(split)) for split in SPLITS] == ["a\n" * 38, "a\n" * 2, "b\n"]


class TestDataSets:
    def test_a_name_on_the_hub_is_read_from_the_tree(self, data_tree):
        data = Corpus("Salesforce/wikitext", config="wikitext-2-v1", root=str(data_tree))
        twin = WikiText2(root=str(data_tree))
        for split in SPLITS:
            assert data.ids(split).tolist() == twin.ids(split).tolist()
        assert data.tokenizer.fingerprint == twin.tokenizer.fingerprint
        assert (data.dataset_id, data.dataset_name) == ("Salesforce/wikitext", "wikitext (wikitext-2-v1)")

    def test_a_folder_with_such_a_card_is_read_likewise(self, data_tree, monkeypatch):
        expected = WikiText2(root=str(data_tree)).ids("validation").tolist()
        data = Corpus(str(data_tree / "Salesforce" / "wikitext"), config="wikitext-2-v1")
        assert data.ids("validation").tolist() == expected
        assert (data.dataset_id, data.dataset_name) == ("own text", "wikitext (wikitext-2-v1)")
        monkeypatch.chdir(data_tree / "Salesforce" / "wikitext")
        assert Corpus(".").ids("validation").tolist() == expected
        assert Corpus(".").dataset_name == "wikitext"

    def test_what_lies_here_comes_first(self, data_tree, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "afmck" / "text8").mkdir(parents=True)
        (tmp_path / "afmck" / "text8" / "a.txt").write_text("mine\n")
        data = Corpus("afmck/text8", root=str(data_tree))
        assert "".join(data.text("train")) == "mine\n"
        assert (data.dataset_id, data.dataset_name) == ("own text", "text8")

    def test_splits_that_are_not_there_are_cut_or_given(self, tmp_path):
        folder = hub_folder(tmp_path, "own/er", "default", "data", ("train",))
        parquet(folder / "train-0.parquet", [{"text": line} for line in sentences(40, seed=1)])
        (tmp_path / "test.txt").write_text("another\n")
        data = Corpus("own/er", test=str(tmp_path / "test.txt"), root=str(tmp_path))
        assert ["".join(data.text(split)).count("\n") for split in SPLITS] == [38, 2, 1]

    def test_a_data_set_without_a_training_split_is_named(self, tmp_path):
        folder = hub_folder(tmp_path, "own/er", "default", "data", ("test",))
        parquet(folder / "test-0.parquet", [{"text": "a"}])
        with pytest.raises(UserError, match="own/er has no split train; its splits are test"):
            Corpus("own/er", root=str(tmp_path)).ids("test")
        data = Corpus(str(TINY_SHAKESPEARE), test="own/er", root=str(tmp_path))
        assert "".join(data.text("test")) == "a\n"

    def test_a_configuration_that_is_not_there_is_named(self, data_tree):
        with pytest.raises(UserError, match=r"Salesforce/wikitext.*'other' not found. Available: \['wikitext-2-v1'\]"):
            Corpus("Salesforce/wikitext", config="other", root=str(data_tree)).ids("train")

    @pytest.mark.slow
    def test_counts_of_a_real_one(self, real_datasets):
        data = Corpus("Salesforce/wikitext", config="wikitext-2-v1")
        assert [len(data.ids(split)) for split in SPLITS] == [2_088_628, 217_646, 245_569]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    @pytest.mark.parametrize(("screen", "patience"), [(Terminal, 0.0), (Terminal, 1000.0), (io.StringIO, 0.0)])
    def test_a_bar_is_shown_on_a_terminal_once_it_takes_long(self, tmp_path, monkeypatch, screen, patience):
        (tmp_path / "a.txt").write_text("a b\n" * 40)
        monkeypatch.setattr(sys, "stderr", screen())
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("zoo.datamodules.source.BLOCK", 100)
        monkeypatch.setattr("zoo.datamodules.source.PATIENCE", patience)
        assert "".join(Corpus(str(tmp_path)).text("train")) == "a b\n" * 36
        assert ("reading text" in sys.stderr.getvalue()) == (screen is Terminal and not patience)

    def test_the_bars_of_the_reader_are_off_where_there_is_no_terminal(self, tmp_path, monkeypatch):
        shown = []
        monkeypatch.setattr("datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS", None)
        monkeypatch.setattr("datasets.are_progress_bars_disabled", lambda: False)
        monkeypatch.setattr("datasets.disable_progress_bars", lambda: shown.append(False))
        monkeypatch.setattr("datasets.enable_progress_bars", lambda: shown.append(True))
        (tmp_path / "a.txt").write_text("a b\n")
        for screen, expected in ((io.StringIO(), [False, True]), (Terminal(), [])):
            shown.clear()
            monkeypatch.setattr(sys, "stderr", screen)
            "".join(Corpus(str(tmp_path)).text("train"))
            assert shown[:2] == expected


@pytest.mark.parametrize(("option", "value"), [("level", "letter"), ("document", "row")])
def test_choices_are_checked(option, value):
    with pytest.raises(UserError, match=f"{option} is '{value}'; it must be one of"):
        Corpus(str(TINY_SHAKESPEARE), **{option: value})


def test_a_word_of_a_million_characters_is_a_word(tmp_path):
    (tmp_path / "a.txt").write_text("a b\n" * 40 + "x" * 1_000_000 + " c\n" + "a b\n" * 40)
    data = Corpus(str(tmp_path))
    assert len(data.ids("train")) == 73 * 3
    assert "x" * 1_000_000 in data.tokenizer.tokens(data.ids("train"))
