import numpy as np
import pytest
import torch

from zoo.datamodules import PennTreebank
from zoo.datamodules.stream import RandomWindows, Stream
from zoo.errors import UserError

IDS = np.arange(103, dtype=np.uint8)


@pytest.mark.parametrize(("batch_size", "bptt"), [(1, 7), (4, 7), (4, 25), (3, 100), (1, 102)])
def test_every_token_of_a_column_is_read_once_and_predicted_once(batch_size, bptt):
    stream = Stream(IDS, batch_size, bptt)
    windows = list(stream)
    assert len(windows) == len(stream)
    inputs, targets = (torch.cat(parts) for parts in zip(*windows, strict=True))
    rows = len(IDS) // batch_size
    columns = torch.from_numpy(IDS[: rows * batch_size].astype(np.int64)).view(batch_size, rows).T
    assert torch.equal(inputs, columns[:-1])
    assert torch.equal(targets, columns[1:])
    assert all(len(x) == bptt for x, _ in windows[:-1])
    assert 1 <= len(windows[-1][0]) <= bptt
    assert inputs.dtype == torch.int64


def test_drop_last_drops_only_a_partial_window():
    assert [len(x) for x, _ in Stream(IDS, 4, 10, drop_last=True)] == [10, 10]
    assert [len(x) for x, _ in Stream(IDS, 4, 10)] == [10, 10, 4]
    assert [len(x) for x, _ in Stream(IDS, 4, 12, drop_last=True)] == [12, 12]


def test_zarembas_small_network_makes_2323_updates_an_epoch():
    assert len(Stream(np.empty(929_589, np.uint16), 20, 20, drop_last=True)) == 2323


def test_goes_on_after_the_windows_handed_out():
    whole = [x.tolist() for x, _ in Stream(IDS, 4, 7)]
    for given in range(len(whole)):
        stream = Stream(IDS, 4, 7)
        for _ in zip(range(given), stream, strict=False):
            pass
        assert stream.state_dict() == {"batches": given, "tokens": 103, "batch_size": 4, "bptt": 7}
        resumed = Stream(IDS, 4, 7)
        resumed.load_state_dict(stream.state_dict())
        assert [x.tolist() for x, _ in resumed] == whole[given:]
        assert [x.tolist() for x, _ in resumed] == whole  # and from the start in the epoch after


def test_an_epoch_handed_out_whole_is_followed_by_a_whole_one():
    stream = Stream(IDS, 4, 7)
    for _ in range(2):
        for _ in zip(range(len(stream)), stream, strict=False):  # Lightning does not exhaust the iterator either
            pass
    resumed = Stream(IDS, 4, 7)
    resumed.load_state_dict(stream.state_dict())
    assert len(list(resumed)) == len(stream)


def test_processes_share_the_columns():
    whole = torch.cat([x for x, _ in Stream(IDS, 4, 7)])
    shares = [torch.cat([x for x, _ in Stream(IDS, 4, 7, rank=rank, world_size=2)]) for rank in (0, 1)]
    assert torch.equal(torch.cat(shares, dim=1), whole)


def test_a_single_stream_goes_to_the_first_process_whole():
    first, second = (list(Stream(IDS, 1, 7, rank=rank, world_size=2)) for rank in (0, 1))
    assert len(first) == len(second)
    assert sum(y.numel() for _, y in first) == 102
    assert sum(y.numel() for _, y in second) == 0


def test_a_single_column_is_not_trained_on_by_two(data_tree, monkeypatch):
    monkeypatch.setattr(PennTreebank, "share", (0, 2))
    data = PennTreebank(root=str(data_tree), batch_size=1)
    with pytest.raises(UserError, match="batch_size 1 cannot be shared evenly by 2 processes"):
        data.train_dataloader()
    assert len(data.val_dataloader())


def test_columns_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match="batch_size 3 cannot be shared evenly by 2 processes"):
        Stream(IDS, 3, 7, world_size=2)


@pytest.mark.parametrize(("batch_size", "bptt", "drop_last", "needed"), [(20, 35, True, 720), (103, 1, False, 206)])
def test_a_text_too_short_says_both_numbers(batch_size, bptt, drop_last, needed):
    with pytest.raises(UserError, match=rf"the training text has 103 tokens, too few .* it takes {needed}"):
        Stream(IDS, batch_size, bptt, drop_last=drop_last, name="training text")


@pytest.mark.parametrize("other", [Stream(IDS, 4, 8), Stream(IDS, 2, 7), Stream(IDS[:-1], 4, 7)])
def test_another_stream_does_not_go_on_from_this_ones_place(other):
    with pytest.raises(UserError, match="the checkpoint stopped in"):
        other.load_state_dict(Stream(IDS, 4, 7).state_dict())


def drawn_by_hand(seed, epoch, count):
    draw = np.random.default_rng((seed, epoch))
    lengths = []
    for _ in range(count):
        base = 70 if draw.random() < 0.95 else 35
        lengths.append(max(5, int(draw.normal(base, 5))))
    return lengths


class TestRandomWindows:
    def test_the_lengths_are_the_draws(self):
        lengths = np.diff(RandomWindows(3, 2).bounds(70, 50_000)).tolist()
        assert lengths[:-1] == drawn_by_hand(3, 2, len(lengths) - 1)
        capped = np.diff(RandomWindows(3, 2, max_bptt=72).bounds(70, 50_000)).tolist()
        assert capped[:-1] == [min(length, 72) for length in drawn_by_hand(3, 2, len(capped) - 1)]
        assert max(lengths) > 80

    def test_their_distribution(self):
        lengths = np.diff(RandomWindows(1, 0).bounds(70, 5_000_000))[:-1]
        half = lengths < 52
        assert half.mean() == pytest.approx(0.05, abs=0.003)
        assert lengths[half].mean() == pytest.approx(34.5, abs=0.3)  # int() takes half a step off the mean
        assert lengths[~half].mean() == pytest.approx(69.5, abs=0.1)
        assert lengths[~half].std() == pytest.approx(5, abs=0.1)

    def test_no_window_but_the_last_is_shorter_than_5(self):
        lengths = np.diff(RandomWindows(1, 0).bounds(6, 5_000))
        assert lengths[:-1].min() == 5
        assert np.bincount(lengths[:-1])[5] > len(lengths) / 3

    def test_a_window_begins_where_two_predictions_or_more_are_left(self):
        left = []
        for rows in range(3, 150):
            start = 0
            bounds = [0]
            for length in drawn_by_hand(0, 0, rows):
                if start < rows - 2:
                    bounds.append(min(start + length, rows - 1))
                start += length
            assert RandomWindows(0, 0).bounds(70, rows - 1) == bounds
            assert bounds[-1] - bounds[-2] >= 2
            left.append(rows - 1 - bounds[-1])
        assert set(left) == {0, 1}

    @pytest.mark.parametrize(("batch_size", "bptt"), [(1, 7), (4, 7), (4, 25), (3, 100)])
    def test_every_token_of_a_column_is_read_once_and_predicted_once(self, batch_size, bptt):
        rows = len(IDS) // batch_size
        columns = torch.from_numpy(IDS[: rows * batch_size].astype(np.int64)).view(batch_size, rows).T
        counts = set()
        for epoch in range(20):
            stream = Stream(IDS, batch_size, bptt, random=RandomWindows(5, epoch))
            windows = list(stream)
            assert len(windows) == len(stream)
            inputs, targets = (torch.cat(parts) for parts in zip(*windows, strict=True))
            assert rows - 2 <= len(inputs) <= rows - 1
            assert torch.equal(inputs, columns[: len(inputs)])
            assert torch.equal(targets, columns[1 : len(inputs) + 1])
            counts.add(len(stream))
        assert len(counts) > 1 or bptt > rows

    def test_awd_lstm_makes_686_updates_an_epoch(self):
        # 681 where int() is taken for rounding
        counts = [len(RandomWindows(141, epoch).bounds(70, 929_589 // 20 - 1)) - 1 for epoch in range(100)]
        assert np.mean(counts) == pytest.approx(46_478 / 67.75, abs=1.5)

    def test_goes_on_after_the_windows_handed_out(self):
        whole = [x.tolist() for x, _ in Stream(IDS, 4, 7, random=RandomWindows(1, 2))]
        for given in range(len(whole)):
            stream = Stream(IDS, 4, 7, random=RandomWindows(1, 2))
            for _ in zip(range(given), stream, strict=False):
                pass
            resumed = Stream(IDS, 4, 7, random=RandomWindows(1, 2))
            resumed.load_state_dict(stream.state_dict())
            assert resumed.state_dict() == stream.state_dict()
            assert [x.tolist() for x, _ in resumed] == whole[given:]

    def test_another_epochs_place_is_no_place_in_this_one(self):
        before = Stream(IDS, 4, 7, random=RandomWindows(1, 2))
        windows = list(before)
        state = before.state_dict()
        names = {"seed": 1, "epoch": 2, "tokens": 103, "batch_size": 4, "bptt": 7, "max_bptt": None}
        assert state == {"batches": len(windows), **names}
        for given in (len(windows), 1):
            stream = Stream(IDS, 4, 7, random=RandomWindows(1, 3))
            stream.load_state_dict(state | {"batches": given})
            assert stream.state_dict()["batches"] == 0
            assert len(list(stream)) == len(stream)

    def test_processes_share_the_columns(self):
        random = RandomWindows(1, 2)
        whole = [x for x, _ in Stream(IDS, 4, 7, random=random)]
        shares = [[x for x, _ in Stream(IDS, 4, 7, random=random, rank=rank, world_size=2)] for rank in (0, 1)]
        assert all(torch.equal(torch.cat(parts, dim=1), x) for x, *parts in zip(whole, *shares, strict=True))

    def test_another_seed_is_named(self):
        stream = Stream(IDS, 4, 7, random=RandomWindows(2, 0))
        with pytest.raises(UserError, match="drawn with the seed 1, and this run has 2: give the same seed_everything"):
            stream.load_state_dict(Stream(IDS, 4, 7, random=RandomWindows(1, 0)).state_dict())

    @pytest.mark.parametrize("random", [None, RandomWindows(1, 0, max_bptt=9)])
    def test_another_cut_is_refused(self, random):
        streams = Stream(IDS, 4, 7, random=random), Stream(IDS, 4, 7, random=RandomWindows(1, 0))
        for one, other in (streams, streams[::-1]):
            with pytest.raises(UserError, match="the checkpoint stopped in"):
                one.load_state_dict(other.state_dict())

    def test_a_text_too_short_says_both_numbers(self):
        assert len(Stream(IDS[:12], 4, 7, random=RandomWindows(1, 0))) == 1
        with pytest.raises(UserError, match="has 11 tokens, too few .* it takes 12"):
            Stream(IDS[:11], 4, 7, random=RandomWindows(1, 0))
