from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from lightning import seed_everything

from tests.conftest import digits, hub_folder, png
from tests.reading import read
from zoo.datamodules import SequentialMNIST
from zoo.datamodules.loader import Draw
from zoo.datamodules.mnist import EVALUATION_BATCH, Sequences, pixel_order
from zoo.errors import UserError

IMAGES = np.arange(11 * 784, dtype=np.uint32).reshape(11, 28, 28).astype(np.uint8)
LABELS = np.arange(11) % 10


def test_splits(data_tree):
    data = SequentialMNIST("sequential", root=str(data_tree))
    images, labels = digits(120, seed=0)
    of_test = digits(30, seed=1)
    expected = {"train": (images[:100], labels[:100]), "validation": (images[100:], labels[100:]), "test": of_test}
    for split, (pixels, classes) in expected.items():
        found = data.images(split)
        assert np.array_equal(found[0], pixels)
        assert found[1].tolist() == list(classes)


def test_images_are_decoded_once(data_tree, monkeypatch):
    first, _ = SequentialMNIST("sequential", root=str(data_tree)).images("test")
    monkeypatch.setattr("zoo.datamodules.mnist._decode", None)
    again, _ = SequentialMNIST("permuted", root=str(data_tree)).images("test")
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    assert np.array_equal(first, again)


def test_an_evaluation_batch_is_the_images_pixel_by_pixel(data_tree):
    data = SequentialMNIST("sequential", root=str(data_tree))
    pixels, labels = data.images("test")
    ((inputs, classes),) = data.test_dataloader()
    assert (inputs.shape, inputs.dtype) == ((784, 30, 1), torch.float32)
    assert (classes.shape, classes.dtype) == ((30,), torch.int64)
    assert classes.tolist() == labels.tolist()
    for k in (0, 29):
        assert torch.equal(inputs[:, k, 0], torch.from_numpy(pixels[k].flatten().astype(np.float32) / np.float32(255)))
    assert inputs.max() == 1


class TestOrders:
    def test_the_papers_order_draws_with_replacement(self):
        order = pixel_order("paper", 784)
        assert order[:10].tolist() == [37, 235, 72, 767, 715, 645, 144, 129, 583, 749]
        assert len(order) == 784
        assert len(set(order.tolist())) == 501

    def test_a_permutation_is_one_and_always_the_same(self):
        order = pixel_order("permuted", 784)
        assert sorted(order.tolist()) == list(range(784))
        assert order[:5].tolist() == np.random.RandomState(1).permutation(784)[:5].tolist()
        assert np.array_equal(order, pixel_order("permuted", 784))
        assert (order != np.arange(784)).mean() > 0.9

    @pytest.mark.parametrize("order", ["permuted", "paper"])
    @pytest.mark.parametrize("downsample", [1, 4])
    def test_they_reorder_the_steps(self, order, downsample):
        (plain, _), (reordered, _) = (
            next(iter(Sequences(IMAGES, LABELS, each, downsample, 11))) for each in ("sequential", order)
        )
        assert torch.equal(reordered, plain[pixel_order(order, len(plain))])

    def test_names(self):
        assert SequentialMNIST("sequential").dataset_name == "sequential MNIST"
        assert SequentialMNIST("permuted").dataset_name == "permuted MNIST"
        assert (
            SequentialMNIST("paper", 2).dataset_name == "permuted MNIST (pixels drawn with replacement), 14 x 14 pixels"
        )
        assert (SequentialMNIST.dataset_id, SequentialMNIST.num_classes) == ("ylecun/mnist", 10)


@pytest.mark.parametrize("downsample", [1, 2, 4, 7, 14, 28])
def test_downsampling_averages_squares(downsample):
    side = 28 // downsample
    ((inputs, _),) = Sequences(IMAGES, LABELS, "sequential", downsample, 11)
    assert SequentialMNIST("paper", downsample).num_steps == len(inputs) == side * side
    for row, column in ((0, 0), (side - 1, side // 2), (side // 2, side - 1)):
        square = IMAGES[7, row * downsample : (row + 1) * downsample, column * downsample : (column + 1) * downsample]
        assert inputs[row * side + column, 7, 0].item() == pytest.approx(square.mean() / 255, rel=1e-6)


class TestEpochs:
    def test_each_reads_every_image_once_in_an_order_of_its_own(self):
        orders = []
        for epoch in (0, 1, 0):
            batches = list(Sequences(IMAGES, np.arange(11), "sequential", 28, 4, Draw(1, epoch)))
            assert [x.shape[1] for x, _ in batches] == [4, 4, 3]
            orders.append(torch.cat([labels for _, labels in batches]).tolist())
            assert sorted(orders[-1]) == list(range(11))
        assert orders[0] == orders[2] != orders[1]

    def test_two_processes_share_them(self):
        whole = list(Sequences(IMAGES, LABELS, "paper", 7, 4, Draw(1, 0)))
        shares = [list(Sequences(IMAGES, LABELS, "paper", 7, 4, Draw(1, 0), rank, 2)) for rank in (0, 1)]
        for (inputs, labels), *parts in zip(whole[:2], *shares, strict=False):
            assert torch.equal(torch.cat([x for x, _ in parts], dim=1), inputs)
            assert torch.equal(torch.cat([y for _, y in parts]), labels)
        assert [[len(y) for _, y in share] for share in shares] == [[2, 2, 1], [2, 2, 1]]
        evaluated = [list(Sequences(IMAGES, LABELS, "paper", 7, 4, None, rank, 2)) for rank in (0, 1)]
        assert [[len(y) for _, y in share] for share in evaluated] == [[2, 2, 2], [2, 2, 1]]

    def test_processes_seeded_apart_share_the_draws_of_the_first(self, data_tree):
        labels = []
        for rank in (0, 1):
            seed_everything(rank, verbose=False)
            data = SequentialMNIST("sequential", 14, batch_size=10, root=str(data_tree))
            strategy = SimpleNamespace(broadcast=lambda seed: 0)
            data.trainer = SimpleNamespace(strategy=strategy, current_epoch=1, global_rank=rank, world_size=2)
            labels += [y for _, y in data.train_dataloader()]
        assert torch.cat(labels).sort().values.tolist() == sorted(data.images("train")[1].tolist())

    def test_evaluation_is_in_order_and_in_large_batches(self):
        pixels, labels = np.zeros((1001, 28, 28), dtype=np.uint8), np.arange(1001)
        data = SequentialMNIST("sequential", 14, batch_size=7)
        data.images = lambda split: (pixels, labels)
        assert [len(y) for _, y in data.val_dataloader()] == [EVALUATION_BATCH, EVALUATION_BATCH, 1]
        assert torch.cat([y for _, y in data.predict_dataloader()]).tolist() == labels.tolist()

    def test_an_interrupted_run_goes_on_with_the_same_images(self, data_tree, tmp_path):
        def data(**options):
            return SequentialMNIST(
                **{"order": "paper", "downsample": 7, "batch_size": 16, "root": str(data_tree)} | options
            )

        whole = read(tmp_path, data())
        drawn = [Sequences(*data().images("train"), "paper", 7, 16, Draw(6, epoch)) for epoch in (0, 1)]
        assert whole.seen == [(e, x.tolist(), y.tolist()) for e in (0, 1) for x, y in drawn[e]]
        for done in (3, 7, 9):
            read(tmp_path, data(), save=done, stop=done + 1)
            assert read(tmp_path, data(), resume=True).seen == whole.seen[done:]
        read(tmp_path, data(), save=3, stop=4)
        for other in ({"order": "permuted"}, {"downsample": 4}, {"batch_size": 8}):
            with pytest.raises(UserError, match="the checkpoint stopped in"):
                read(tmp_path, data(**other), resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "random"}, "order is 'random'; it must be one of 'sequential', 'permuted', 'paper'"),
        ({"downsample": 3}, "downsample is 3; it must be one of 1, 2, 4, 7, 14, 28"),
        ({"downsample": 0}, "downsample is 0; it must be one of"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        SequentialMNIST(**{"order": "paper"} | options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (png(np.zeros((32, 28), dtype=np.uint8)), r"image 1 .* has the shape \(32, 28\) and the type uint8; 28 x 28"),
        (png(np.zeros((28, 28, 3), dtype=np.uint8)), r"image 1 .* has the shape \(28, 28, 3\)"),
        ({"bytes": b"no image", "path": None}, "image 1 of the data set could not be decoded"),
        ({"bytes": png(IMAGES[0])["bytes"][:60], "path": None}, "image 1 of the data set could not be decoded"),
    ],
)
def test_other_images_are_refused(tmp_path, image, message):
    folder = hub_folder(tmp_path, "ylecun/mnist", "mnist", "mnist", ("train", "test"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    rows = datasets.Dataset.from_dict({"image": [png(IMAGES[0]), image], "label": [0, 1]}, features)
    for split in ("train", "test"):
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    with pytest.raises(UserError, match=message):
        SequentialMNIST("sequential", root=str(tmp_path)).images("test")


def test_a_column_that_is_not_there_is_named(tmp_path):
    folder = hub_folder(tmp_path, "ylecun/mnist", "mnist", "mnist", ("train", "test"))
    for split in ("train", "test"):
        datasets.Dataset.from_dict({"picture": [0]}).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="no column 'image'; its columns are picture"):
        SequentialMNIST("sequential", root=str(tmp_path)).images("test")


@pytest.mark.slow
def test_counts_of_the_real_images(real_datasets):
    data = SequentialMNIST("paper")
    assert [len(data.images(split)[1]) for split in ("train", "validation", "test")] == [50_000, 10_000, 10_000]
    assert data.images("train")[1][:5].tolist() == [5, 0, 4, 1, 9]
    assert data.images("test")[1][:5].tolist() == [7, 2, 1, 0, 4]
    assert round(data.images("test")[0].mean(), 3) == 33.791
    assert len(data.train_dataloader()) == 500
