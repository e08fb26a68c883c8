"""A small data tree in the Hub's layout, a small model, and caches that no test shares with the user."""

import atexit
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

_HOME = tempfile.mkdtemp(prefix="zoo-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ |= {
    "HF_HOME": _HOME,  # read when huggingface_hub and datasets are imported
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # the tests' tensors are small, and further processes inherit it
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
REAL_DATASETS = os.environ.pop("ZOO_DATASETS", None)
os.environ.pop("ZOO_CHECKPOINTS", None)

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from lightning import Trainer  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


def sentences(count: int, seed: int) -> list[str]:
    """Lines of a small artificial language with something to learn in it."""
    draw = random.Random(seed)
    nouns, verbs = ["bank", "index", "mr.", "fund", "u.s.", "stock"], ["rose", "fell", "did n't move", "gained"]
    return [f"the {draw.choice(nouns)} {draw.choice(verbs)} N points <unk>" for _ in range(count)]


def quiet_trainer(**options: Any) -> Trainer:
    """A trainer on the CPU that writes nothing."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **quiet | options)


@pytest.fixture(scope="session")
def data_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of Penn Treebank and WikiText-2 as on the Hub, with other text in them."""
    root = tmp_path_factory.mktemp("datasets")
    wikitext = root / "Salesforce" / "wikitext" / "wikitext-2-v1"
    wikitext.mkdir(parents=True)
    (wikitext.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-2-v1\n  data_files:\n"
        + "".join(
            f"  - {{split: {split}, path: wikitext-2-v1/{split}-*}}\n" for split in ("train", "validation", "test")
        )
        + "---\n"
    )
    for seed, (split, count) in enumerate({"train": 600, "validation": 60, "test": 70}.items()):
        folder = root / "ptb-text-only" / "ptb_text_only" / "penn_treebank" / split
        folder.mkdir(parents=True)
        lines = sentences(count, seed)
        pq.write_table(pa.table({"sentence": lines}), folder / "0000.parquet")
        text = [f" {line} \n" for line in lines]
        pq.write_table(pa.table({"text": text}), wikitext / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def real_datasets(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real corpora, where `ZOO_DATASETS` names them."""
    if REAL_DATASETS is None:
        pytest.skip("needs the real corpora: set ZOO_DATASETS")
    path = Path(REAL_DATASETS).resolve()
    monkeypatch.setenv("ZOO_DATASETS", str(path))
    return path
