"""The one place where data enters: `datasets.load_dataset`, from the Hub or from a local tree laid out as on the Hub."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError

from datamodules import token_file
from zoo.errors import UserError

BLOCK = 8_000_000
"""Characters of text handled at a time."""

ROOT_VARIABLE = "ZOO_DATASETS"


def data_root(root: str | None) -> Path | None:
    """Where local data sets lie: the argument, else `$ZOO_DATASETS`, else None for the Hub."""
    chosen = root or os.environ.get(ROOT_VARIABLE)
    return Path(os.path.expanduser(chosen)) if chosen else None


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
        return datasets.load_dataset(
            path, config, data_files=data_files, revision=None if local else revision, cache_dir=cache
        )
    except (
        OSError,
        ValueError,
        DatasetsError,
    ) as error:  # missing files, no network, unknown repository or configuration
        raise UserError(
            f"data set {dataset_id} not found: looked for {where}. With a copy on disk set {ROOT_VARIABLE}=DIR, where "
            f"DIR/{dataset_id} is laid out as on the Hub. The cause: {error}"
        ) from error


def _cache(folder: Path) -> str:
    """Where the converted files of a local folder lie, a place of their own for each state of the folder.

    datasets goes by the folder's name and card alone, and would give the files of another tree, or old ones.
    """
    state = hashlib.sha256()
    for file in sorted(file for file in folder.resolve().rglob("*") if file.is_file()):
        status = file.stat()
        state.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return str(token_file.directory() / state.hexdigest()[:32])


def check_column(rows: datasets.Dataset, column: str) -> None:
    """Raises `UserError` where there is no such column."""
    if column not in rows.column_names:
        raise UserError(f"the data set has no column {column!r}; its columns are {', '.join(rows.column_names)}")


def blocks(rows: datasets.Dataset, column: str, separator: str = "\n") -> Iterator[str]:
    """The column's strings, each followed by `separator`, in blocks of about `BLOCK` characters, or of one longer string."""
    check_column(rows, column)
    pending: list[str] = []
    size = 0
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        strings = batch[column].to_pylist()
        pending += strings
        size += batch.nbytes
        if size >= BLOCK:
            yield separator.join([*pending, ""])
            pending, size = [], 0
    if pending:
        yield separator.join([*pending, ""])
