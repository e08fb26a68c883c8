"""A small data tree in the Hub's layout, a small model, and caches that no test shares with the user."""

import atexit
import os
import random
import re
import shutil
import tempfile
from io import BytesIO
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

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from lightning import Trainer  # noqa: E402
from PIL import Image  # noqa: E402

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


def digits(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Noisy images (count, 28, 28), two bright rows of each saying its label."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(10, size=count)
    images = draw.integers(100, size=(count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 4 : 2 * label + 6] = 255
    return images, labels.tolist()


def png(image: np.ndarray) -> dict[str, Any]:
    """An image as it lies in a data set."""
    Image.fromarray(image).save(file := BytesIO(), "PNG")
    return {"bytes": file.getvalue(), "path": None}


def hub_folder(root: Path, dataset_id: str, config: str, files: str, splits: tuple[str, ...]) -> Path:
    """A data set's folder as on the Hub, its card declaring the configuration; the folder of its Parquet files."""
    (folder := root / dataset_id / files).mkdir(parents=True)
    paths = "".join(f"  - {{split: {split}, path: {files}/{split}-*}}\n" for split in splits)
    (root / dataset_id / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{paths}---\n")
    return folder


@pytest.fixture(scope="session")
def data_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of Penn Treebank, WikiText-2, text8 and MNIST as on the Hub, with other text and images in them."""
    root = tmp_path_factory.mktemp("datasets")
    sizes = {"train": 600, "validation": 60, "test": 70}
    wikitext = hub_folder(root, "Salesforce/wikitext", "wikitext-2-v1", "wikitext-2-v1", tuple(sizes))
    text8 = hub_folder(root, "afmck/text8", "default", "data", tuple(sizes))
    mnist = hub_folder(root, "ylecun/mnist", "mnist", "mnist", ("train", "test"))
    for seed, (split, count) in enumerate(sizes.items()):
        folder = root / "ptb-text-only" / "ptb_text_only" / "penn_treebank" / split
        folder.mkdir(parents=True)
        lines = sentences(count, seed)
        pq.write_table(pa.table({"sentence": lines}), folder / "0000.parquet")
        text = [f" {line} \n" for line in lines]
        pq.write_table(pa.table({"text": text}), wikitext / f"{split}-00000-of-00001.parquet")
        letters = " ".join(["the quick brown fox jumps over the lazy dog", *lines])
        one_row = pa.table({"text": [re.sub("[^a-z]+", " ", letters.lower())]})
        pq.write_table(one_row, text8 / f"{split}-00000-of-00001.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    for seed, (split, count) in enumerate({"train": 120, "test": 30}.items()):
        images, labels = digits(count, seed)
        rows = datasets.Dataset.from_dict({"image": [png(image) for image in images], "label": labels}, features)
        rows.to_parquet(mnist / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def real_datasets(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real corpora, where `ZOO_DATASETS` names them."""
    if REAL_DATASETS is None:
        pytest.skip("needs the real corpora: set ZOO_DATASETS")
    path = Path(REAL_DATASETS).resolve()
    monkeypatch.setenv("ZOO_DATASETS", str(path))
    return path
