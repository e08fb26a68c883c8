"""Token ids of a text as a memory-mapped Arrow file, written once and found again by content."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from zoo.tokenizer import Ids, Tokenizer


def directory() -> Path:
    """Beside the data sets' own cache (`$HF_HOME`, `$HF_DATASETS_CACHE`); safe to delete."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "recurrent_zoo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(blocks: Iterable[str]) -> str:
    """The sha256 of the text, however it is cut into blocks."""
    sha = hashlib.sha256()
    for block in blocks:
        sha.update(block.encode())
    return sha.hexdigest()


def token_ids(blocks: Iterable[str], text_digest: str, tokenizer: Tokenizer) -> Ids:
    """The ids of the blocks, a read-only view of a memory-mapped file; `blocks` is read only where there is none yet."""
    key = hashlib.sha256(f"{text_digest} {tokenizer.fingerprint}".encode()).hexdigest()
    file = directory() / f"{key[:32]}.arrow"
    if not file.exists():
        _write(file, blocks, tokenizer)
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        return np.asarray(reader.get_batch(0).column("ids"))


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path, in a folder of its own; what was written there at the end becomes `file`, after an error nothing does."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        yield (written := Path(folder, file.name))
        os.replace(written, file)


def _write(file: Path, blocks: Iterable[str], tokenizer: Tokenizer) -> None:
    """One record batch, so that the ids read back as one array; memory stays flat: the ids pass through a scratch file."""
    with whole(file) as finished:
        scratch = finished.with_suffix(".ids")
        with scratch.open("wb") as sink:
            for block in blocks:
                sink.write(tokenizer.encode(block).tobytes())
        ids = np.memmap(scratch, tokenizer.dtype, "r") if scratch.stat().st_size else np.empty(0, tokenizer.dtype)
        batch = pa.record_batch({"ids": pa.array(ids)})
        with pa.OSFile(str(finished), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
