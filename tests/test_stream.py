import numpy as np
import pytest
import torch

from datamodules.stream import Stream
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
        assert stream.state_dict() == {"windows": given, "tokens": 103, "batch_size": 4, "bptt": 7}
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


def test_columns_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match="batch_size 3 cannot be shared evenly by 2 processes"):
        Stream(IDS, 3, 7, world_size=2)


@pytest.mark.parametrize(("batch_size", "bptt", "drop_last", "needed"), [(20, 35, True, 720), (103, 1, False, 206)])
def test_a_text_too_short_says_both_numbers(batch_size, bptt, drop_last, needed):
    with pytest.raises(UserError, match=rf"the training text has 103 tokens, too few .* it takes {needed}"):
        Stream(IDS, batch_size, bptt, drop_last=drop_last, name="training text")


@pytest.mark.parametrize("other", [Stream(IDS, 4, 8), Stream(IDS, 2, 7), Stream(IDS[:-1], 4, 7)])
def test_another_stream_does_not_go_on_from_this_ones_place(other):
    with pytest.raises(UserError, match="the checkpoint stopped in a stream of"):
        other.load_state_dict(Stream(IDS, 4, 7).state_dict())
