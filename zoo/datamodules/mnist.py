"""MNIST as sequences: a pixel a step."""

import hashlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Literal, get_args

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from PIL import Image

from zoo.arguments import check_choice, check_counts
from zoo.batches import Labelled
from zoo.datamodules import source, token_file
from zoo.datamodules.loader import DataModule, Draw, Examples, Split
from zoo.errors import UserError

Order = Literal["sequential", "permuted", "paper"]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
SIDE = 28

EVALUATION_BATCH = 500
"""Sequences read at a time when evaluating; it changes memory and speed but no number."""

_HELD_OUT = 6
"""One training image in this many, the last 10,000 of 60,000, is for validation."""


class SequentialMNIST(DataModule):
    """MNIST, its images read a pixel a step, row by row: T = 784 / downsample^2 steps of a number in [0, 1].

    50,000 / 10,000 / 10,000 images: the first 50,000 of the training set, its last 10,000, and the test set. Training images
    are shuffled anew in every epoch, and the last batch may be smaller. Yields (inputs, labels), float32 of shape (T, B, 1)
    and int64 (B,).

    `order` is which pixel each step reads:
    - "sequential": the image's own order;
    - "permuted": a fixed permutation, `RandomState(1).permutation(T)`;
    - "paper": `RandomState(1).randint(0, T, size=T)`, as in the papers' code. It draws with replacement: 501 of the 784
      pixels are read, some of them several times, and the others never.

    `downsample` averages squares of so many pixels by so many, before they are ordered.

    Cooijmans et al. 2017, arXiv 1603.09025, section 5.1, and Krueger et al. 2017, arXiv 1606.01305, section 4.3; the split
    and the order as in their code, https://github.com/cooijmanstim/recurrent-batch-normalization. LeCun, Bottou, Bengio and
    Haffner 1998, "Gradient-based learning applied to document recognition": the images come from `ylecun/mnist` on the Hub,
    or from `root` (else `$ZOO_DATASETS`), a folder laid out as on the Hub.
    """

    dataset_id = "ylecun/mnist"
    num_classes = 10

    def __init__(self, order: Order, downsample: int = 1, batch_size: int = 100, root: str | None = None) -> None:
        super().__init__()
        check_choice("order", order, get_args(Order))
        check_choice("downsample", downsample, tuple(n for n in range(1, SIDE + 1) if SIDE % n == 0))
        check_counts(batch_size=batch_size)
        self.order, self.downsample, self.batch_size, self.root = order, downsample, batch_size, root
        self.num_steps = (SIDE // downsample) ** 2
        """T."""
        self.dataset_name = {
            "sequential": "sequential MNIST",
            "permuted": "permuted MNIST",
            "paper": "permuted MNIST (pixels drawn with replacement)",
        }[order] + (f", {SIDE // downsample} x {SIDE // downsample} pixels" if downsample > 1 else "")
        self._data: dict[Split, tuple[Pixels, Labels]] = {}

    def images(self, split: Split) -> tuple[Pixels, Labels]:
        """Pixels (N, 28, 28), a view of a memory-mapped file, and labels (N,)."""
        if split not in self._data:
            rows = source.load(self.dataset_id, config="mnist", root=self.root)["test" if split == "test" else "train"]
            pixels, labels = _pixels(rows), _labels(rows)
            if split == "test":
                self._data["test"] = pixels, labels
            else:
                end = len(labels) - len(labels) // _HELD_OUT
                self._data["train"] = pixels[:end], labels[:end]
                self._data["validation"] = pixels[end:], labels[end:]
        return self._data[split]

    def open(self, split: Split) -> None:
        """Decodes the images, or opens the file of those decoded before."""
        self.images(split)

    def train_dataloader(self) -> "Sequences":
        """The trainer's epoch of the training images, shuffled."""
        return self._sequences("train", self.batch_size, self.draw())

    def val_dataloader(self) -> "Sequences":
        """The validation images in order."""
        return self._sequences("validation", EVALUATION_BATCH)

    def test_dataloader(self) -> "Sequences":
        """The test images in order."""
        return self._sequences("test", EVALUATION_BATCH)

    predict_dataloader = test_dataloader

    def _sequences(self, split: Split, batch_size: int, draw: Draw | None = None) -> "Sequences":
        return Sequences(*self.images(split), self.order, self.downsample, batch_size, draw, *self.share)


class Sequences(Examples[Labelled]):
    """Images (N, H, W) and labels (N,) in batches, as `SequentialMNIST` says; shared by processes as `Examples` says."""

    def __init__(
        self,
        pixels: Pixels,
        labels: Labels,
        order: Order,
        downsample: int,
        batch_size: int,
        draw: Draw | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        shape: dict[str, int | str | None] = {"images": len(labels), "order": order, "downsample": downsample}
        super().__init__(len(labels), batch_size, shape | {"batch_size": batch_size}, draw, rank, world_size)
        self._pixels, self._labels, self._downsample = pixels, labels, downsample
        self._height, self._width = (size // downsample for size in pixels.shape[1:])
        self._steps = pixel_order(order, self._height * self._width)

    def take(self, examples: npt.NDArray[np.int64]) -> Labelled:
        count, n = len(examples), self._downsample
        squares = self._pixels[examples].reshape(count, self._height, n, self._width, n)
        averages = squares.sum(axis=(2, 4), dtype=np.float32).reshape(count, -1) / np.float32(255 * n * n)
        inputs = np.ascontiguousarray(averages[:, self._steps].T)
        return torch.from_numpy(inputs).unsqueeze(-1), torch.from_numpy(self._labels[examples])


def pixel_order(order: Order, num_steps: int) -> npt.NDArray[np.int64]:
    """(T,), which pixel each step reads, counted row by row; the same in every run."""
    draw = np.random.RandomState(1)  # numpy's old generator, which the papers' code seeds with 1
    if order == "permuted":
        return draw.permutation(num_steps)
    if order == "paper":
        return draw.randint(0, num_steps, size=num_steps)
    return np.arange(num_steps)


def _pixels(rows: datasets.Dataset) -> Pixels:
    """The decoded images (N, 28, 28), a view of a file that is written once, beside the token files."""
    source.check_column(rows, "image")
    sha = hashlib.sha256()
    for image in _encoded(rows):
        sha.update(image)
    file = token_file.directory() / f"{sha.hexdigest()[:32]}.npy"
    if not file.exists():
        with token_file.whole(file) as written:
            np.save(written, _decode(_encoded(rows), rows.num_rows))
    pixels: Pixels = np.load(file, mmap_mode="r")
    return pixels


def _labels(rows: datasets.Dataset) -> Labels:
    source.check_column(rows, "label")
    labels: Labels = rows.select_columns("label").with_format("numpy")[:]["label"].astype(np.int64)
    return labels


def _encoded(rows: datasets.Dataset) -> Iterator[bytes]:
    for batch in rows.select_columns("image").with_format("arrow").iter(batch_size=1000):
        yield from pc.struct_field(batch["image"], "bytes").to_pylist()


def _decode(images: Iterable[bytes], count: int) -> Pixels:
    pixels = np.empty((count, SIDE, SIDE), dtype=np.uint8)
    for i, image in enumerate(images):
        try:
            decoded = np.asarray(Image.open(BytesIO(image)))
        except (OSError, SyntaxError) as error:
            raise UserError(f"image {i} of the data set could not be decoded: {error}") from error
        if decoded.shape != (SIDE, SIDE) or decoded.dtype != np.uint8:
            raise UserError(
                f"image {i} of the data set has the shape {decoded.shape} and the type {decoded.dtype}; {SIDE} x {SIDE} "
                "grey pixels of one byte each are expected"
            )
        pixels[i] = decoded
    return pixels
