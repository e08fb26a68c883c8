"""The one place where data enters: `datasets.load_dataset`, from the Hub, a local tree laid out as on the Hub, or files."""

import codecs
import glob
import hashlib
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, get_args

import datasets
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
from datasets.exceptions import DatasetsError
from rich.console import Console
from rich.progress import Progress

from zoo.datamodules import token_file
from zoo.datamodules.loader import Split
from zoo.errors import UserError

BLOCK = 8_000_000
"""Characters of text handled at a time."""

PATIENCE = 2.0
"""Seconds after which a pass over a text shows how far it is."""

ROOT_VARIABLE = "ZOO_DATASETS"

_READ = 1 << 24
_KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", {}),
    "json": ("json", {"encoding": "utf-8-sig"}),
    "csv": ("csv", {"sep": ",", "keep_default_na": False}),  # "NA" is a word
    "tsv": ("csv", {"sep": "\t", "keep_default_na": False}),
    "parquet": ("parquet", {"batch_size": 10_000}),  # else a whole row group, which may be the file
}
_NO_TEXT = re.compile(r"\.|(readme|licen[cs]e|copying)(?![a-z])", re.IGNORECASE)
_SPLIT = re.compile(
    r"(?<![a-z])(?:(?P<train>train(ing)?)|(?P<test>test(ing)?)|(?P<validation>valid(ation)?|val|dev|eval(uation)?))(?![a-z])",
    re.IGNORECASE,
)

# Missing or broken files, no network, an unknown repository or configuration, a script where data should be.
_FAILURES = (OSError, ValueError, RuntimeError, DatasetsError)


def data_root(root: str | None) -> Path | None:
    """Where local data sets lie: the argument, else `$ZOO_DATASETS`, else None for the Hub."""
    chosen = root or os.environ.get(ROOT_VARIABLE)
    return Path(os.path.expanduser(chosen)) if chosen else None


def is_dataset_id(name: str) -> bool:
    """Whether a data set on the Hub can have that name, owner/name."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None


def load(
    dataset_id: str,
    *,
    config: str | None = None,
    data_files: dict[str, str] | None = None,
    revision: str | None = None,
    root: str | None = None,
) -> datasets.DatasetDict:
    """`datasets.load_dataset(dataset_id, ...)`, of `<root>/<dataset_id>` where a root is given.

    Raises `UserError` naming what was looked for, and where, when neither the tree nor the Hub has it.
    """
    local = data_root(root)
    path = str(local / dataset_id) if local else dataset_id
    where = f"{path} (from root or ${ROOT_VARIABLE})" if local else f"{dataset_id} on the Hugging Face Hub"
    try:
        cache = _cache(local / dataset_id) if local else None
        with _bars_on_terminals_alone():
            return datasets.load_dataset(
                path, config, data_files=data_files, revision=None if local else revision, cache_dir=cache
            )
    except _FAILURES as error:
        raise UserError(
            f"data set {dataset_id} not found: looked for {where}. With a copy on disk set {ROOT_VARIABLE}=DIR, where "
            f"DIR/{dataset_id} is laid out as on the Hub. The cause: {error}"
        ) from error


def _load_files(
    builder: str, files: Mapping[str, Sequence[Path]], options: Mapping[str, object]
) -> datasets.DatasetDict:
    """`datasets.load_dataset(builder, data_files=files, ...)`: local files of one kind, by split.

    Raises `UserError` naming the file that cannot be read or has no rows.
    """
    # datasets takes a path for a pattern.
    patterns = {split: [glob.escape(str(file)) for file in chosen] for split, chosen in files.items()}
    try:
        with _bars_on_terminals_alone():
            return datasets.load_dataset(builder, data_files=patterns, **options)
    except _FAILURES as error:
        every = [file for chosen in files.values() for file in chosen]
        if len(every) > 1:
            for file in every:  # the one at fault is named
                _load_files(builder, {"train": [file]}, options)
        together = f" and {len(every) - 1} more" if len(every) > 1 else ""
        cause = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"no rows could be read from {every[0]}{together}: {cause}") from error


@contextmanager
def _bars_on_terminals_alone() -> Iterator[None]:
    """Switches the bars of datasets off where standard error is no terminal and the user has not decided about them."""
    decided = datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None or datasets.are_progress_bars_disabled()
    if decided or sys.stderr.isatty():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _cache(folder: Path) -> str:
    """Where the converted files of a local folder lie, a place of their own for each state of the folder.

    datasets goes by the folder's name and card alone, and would give the files of another tree, or old ones.
    """
    state = hashlib.sha256()
    for file in sorted(file for file in folder.resolve().rglob("*") if file.is_file()):
        status = file.stat()
        state.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return str(token_file.directory() / state.hexdigest()[:32])


class Rows(NamedTuple):
    """The rows of a split; of plain text, where a row is a line, also after how many rows each file ends."""

    rows: datasets.Dataset
    file_ends: Sequence[int] | None = None


def open_splits(
    paths: Mapping[Split, str | None], columns: Sequence[str], *, config: str | None = None, root: str | None = None
) -> dict[Split, Rows]:
    """The rows of files and data sets by split: those that a split's own path has, or else the training path, if any.

    `zoo.datamodules.Corpus` says what a path may be; `config` is the configuration of the training path's data set. From CSV
    the columns are read as strings; the first of them holds the lines of plain text.
    """
    splits: dict[Split, Rows] = {}
    for split, path in paths.items():
        if path is None:
            continue
        opened = _open(path, columns, config if split == "train" else None, root)
        if not {split, "train"} & opened.keys():
            raise UserError(f"{path} has no split {split}; its splits are {', '.join(opened)}")
        splits[split] = opened[split if split in opened else "train"]
        if split == "train":
            splits |= {name: opened[name] for name in get_args(Split) if name in opened and paths.get(name) is None}
    return splits


def dataset_id(path: str, root: str | None) -> str:
    """The name on the Hub of the data set that `path` stands for, "own text" of files."""
    return "own text" if _find(path, root) else path


def dataset_name(path: str, config: str | None) -> str:
    """The bare name of the file, the folder or the data set that `path` stands for."""
    name = os.path.basename(os.path.abspath(path))
    return name if config is None else f"{name} ({config})"


def sizes(counts: Mapping[Split, int], of: str, held_out: Collection[Split], how: str) -> str:
    """How large the splits are, and how those came about that the data does not have."""
    splits: tuple[Split, ...] = get_args(Split)
    stated = f"{' / '.join(f'{counts[split]:,}' for split in splits)} {of} for training, validation and test"
    names = " and ".join(split for split in splits if split in held_out)
    return f"{stated}; {names} {how}{' each' * (len(held_out) > 1)}" if held_out else stated


def _open(path: str, columns: Sequence[str], config: str | None, root: str | None) -> dict[str, Rows]:
    """What a path holds, by split."""
    found = _find(path, root)
    if found and found[0].is_file():
        if config is not None:
            raise UserError(f"config is {config!r}, and {path} has no configurations: leave out config")
        return _read(found, columns)
    if found:
        folder = found[0].resolve()
        loaded = load(folder.name, config=config, root=str(folder.parent))
    else:
        places = " and ".join(dict.fromkeys(map(str, _places(path, root))))
        nothing = f"no text at {path}: looked for a file, a folder or a pattern at {places}"
        if not is_dataset_id(path):
            raise UserError(nothing)
        try:
            loaded = load(path, config=config, root=root)
        except UserError as error:
            raise UserError(f"{nothing}; {error}") from error
    return {split: Rows(rows) for split, rows in loaded.items()}


def _places(path: str, root: str | None) -> list[Path]:
    local = data_root(root)
    return [Path(path).expanduser(), *([local / path] if local else [])]


def _find(path: str, root: str | None) -> list[Path]:
    """The files that `path` names, or a folder laid out as a data set; none for a data set's name, and where nothing is."""
    if not path:
        return []
    own, *_ = places = _places(path, root)
    for place in places:
        if os.path.isfile(place):  # Path.is_file raises for a name too long
            return [place]
        if _is_data_set(place):
            return [] if place != own and is_dataset_id(path) else [place]
        if os.path.isdir(place):
            files = [file for file in place.rglob("*") if file.suffix.lower() in _KINDS and file.is_file()]
            texts = [file for file in files if not any(map(_NO_TEXT.match, file.relative_to(place).parts))]
            if not texts:
                raise UserError(f"the folder {place} holds no file that ends in {', '.join(_KINDS)}")
            return sorted(texts)
        if files := [Path(file) for file in glob.glob(str(place), recursive=True) if Path(file).is_file()]:
            return sorted(files)
    return []


def _is_data_set(folder: Path) -> bool:
    """Whether the folder has a card that declares configurations."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if os.path.isfile(card) else ""
    return re.match(r"---\n((?!---).*\n)*?configs:", text) is not None


def _read(files: list[Path], columns: Sequence[str]) -> dict[str, Rows]:
    """The rows of files of one kind, by split."""
    folder = os.path.commonpath([file.parent for file in files])
    kinds = {_KINDS.get(file.suffix.lower(), "text") for file in files}
    if len(kinds) > 1:
        endings = sorted({file.suffix or file.name for file in files})
        raise UserError(
            f"files of several kinds in {folder}: {', '.join(endings)}; choose one by a pattern, such as "
            f"{folder}/**/*{endings[0]}"
        )
    (kind,) = kinds
    splits = _splits(files, folder)
    lines = {file: _check(file) for file in files if kind != "parquet"}
    builder, options = _READERS[kind]
    strings = {column: datasets.Value("string") for column in columns[: 1 if kind == "text" else None]}
    if builder == "csv":
        for file in files:
            _check_header(file, options["sep"], columns)
    if builder in ("text", "csv"):  # of CSV the other columns are left out, whose types may change within a file
        options = {**options, "features": datasets.Features(strings)}
    loaded = _load_files(builder, splits, options)
    if kind != "text":
        return {split: Rows(rows) for split, rows in loaded.items()}
    texts = {}
    for split, rows in loaded.items():
        ends = list(accumulate(lines[file] for file in splits[split]))
        assert len(rows) == ends[-1], f"{len(rows)} lines were read where {ends[-1]} were counted"
        texts[split] = Rows(rows, ends)
    return texts


def _splits(files: list[Path], folder: str) -> dict[str, list[Path]]:
    """The files by the split that each is named for; where the names make no difference, all of them are for training.

    Raises `UserError` where some are named for a split and others for none, or none for training: a test text would be
    trained on.
    """
    named: dict[str | None, list[Path]] = {}
    for file in files:
        matches = (_SPLIT.search(part) for part in reversed(file.relative_to(folder).parts))
        named.setdefault(next((match.lastgroup for match in matches if match), None), []).append(file)
    if len(named) == 1:
        return {"train": files}
    splits = {split: of_split for split, of_split in named.items() if split is not None}
    if None in named:
        example = next(iter(splits.values()))[0]
        raise UserError(
            f"in {folder} {_several(named[None])} named for no split, and {example.relative_to(folder)} is: rename one "
            "kind, or choose files by a pattern"
        )
    if "train" not in splits:
        raise UserError(
            f"in {folder} no file is named for training, and others are for {' and '.join(sorted(splits))}: call one of "
            "them train, or choose files by a pattern"
        )
    return splits


def _several(files: list[Path]) -> str:
    """The first of the files, and how many more there are."""
    return f"{files[0].name} is" if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more are"


def _check_header(file: Path, separator: str, columns: Sequence[str]) -> None:
    """Raises `UserError` where a table has no such columns, or more fields in its first row than columns."""
    try:
        head = pd.read_csv(file, sep=separator, header=None, nrows=2, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise UserError(f"no rows could be read from {file}: {' '.join(str(error).split())}") from error
    names = head.iloc[0].tolist()
    for column in columns:
        if column not in names:
            raise _no_column(column, names)


def _check(file: Path) -> int:
    """The number of lines; raises `UserError` with the file and the byte offset where it is empty, binary or not UTF-8."""
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty")
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = lines = 0
    last = b""
    with file.open("rb") as source_file:
        while True:
            chunk = source_file.read(_READ)
            if (zero := chunk.find(b"\0")) >= 0:
                raise UserError(f"{file} is binary or UTF-16, not text in UTF-8: a zero byte at offset {offset + zero}")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                    f"{offset - pending + error.start}; convert it, for example with iconv -t utf-8"
                ) from error
            if not chunk:
                return lines + (last not in (b"\n", b"\r"))
            # A line ends with \n, \r\n or \r, as Python reads text.
            lines += chunk.count(b"\n") + chunk.count(b"\r") - chunk.count(b"\r\n")
            lines -= last == b"\r" and chunk.startswith(b"\n")
            offset, last = offset + len(chunk), chunk[-1:]


def _no_column(column: str, names: Iterable[str]) -> UserError:
    """What to raise where there is no such column."""
    return UserError(f"the data set has no column {column!r}; its columns are {', '.join(names)}")


def check_column(rows: datasets.Dataset, column: str) -> None:
    """Raises `UserError` where there is no such column."""
    if column not in rows.column_names:
        raise _no_column(column, rows.column_names)


def check_strings(rows: datasets.Dataset, column: str) -> None:
    """Raises `UserError` where there is no such column, or it holds something else."""
    check_column(rows, column)
    strings = [
        name
        for name, feature in rows.features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")
    ]
    if column not in strings:
        raise UserError(
            f"the column {column!r} holds {rows.features[column]}, not strings; columns of strings are: "
            f"{', '.join(strings) or 'none'}"
        )


def blocks(rows: datasets.Dataset, column: str, separator: str = "\n") -> Iterator[str]:
    """The column's strings, each followed by `separator`, in blocks of about `BLOCK` characters, or of one longer string.

    A missing string counts as empty. Where the separator is the zero byte, a string with one in it is a `UserError`.
    """
    check_strings(rows, column)
    return _shown(_joined(rows.select_columns(column), column, separator), len(rows))


def _joined(rows: datasets.Dataset, column: str, separator: str) -> Iterator[tuple[str, int]]:
    """The blocks, and how many rows each has."""
    pending: list[str] = []
    size = 0
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        strings = batch[column]
        if strings.null_count:
            strings = strings.cast(pa.large_string()).fill_null("")
        # Long ones come one by one: a thousand may be more than fits into memory.
        step = len(strings) if strings.nbytes < BLOCK else 1
        for start in range(0, len(strings), step):
            part = strings.slice(start, step)
            pending += part.to_pylist()
            size += part.nbytes
            if size >= BLOCK:
                yield _join(pending, column, separator), len(pending)
                pending, size = [], 0
    if pending:
        yield _join(pending, column, separator), len(pending)


def _join(strings: list[str], column: str, separator: str) -> str:
    if separator == "\0" and separator in "".join(strings):
        binary = next(string for string in strings if separator in string)
        raise UserError(f"the column {column!r} is binary, not text: a zero byte in the row {binary[:50]!r}")
    return separator.join([*strings, ""])


def _shown(blocks: Iterable[tuple[str, int]], rows: int) -> Iterator[str]:
    """The blocks; on a terminal a bar on standard error, once `PATIENCE` is over, of how many of the rows are done."""
    bar = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)
    task = bar.add_task("reading text", total=rows)
    start = time.monotonic()
    with ExitStack() as screen:
        for block, count in blocks:
            yield block
            bar.advance(task, count)
            if not bar.live.is_started and sys.stderr.isatty() and time.monotonic() - start > PATIENCE:
                screen.enter_context(bar)
