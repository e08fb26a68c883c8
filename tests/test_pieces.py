from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import seed_everything

from tests.reading import read
from zoo.batches import FreshWindow
from zoo.datamodules import Corpus, PennTreebank, Text8, WikiText2
from zoo.datamodules.loader import Draw
from zoo.datamodules.pieces import Pieces
from zoo.datamodules.stream import Stream
from zoo.datamodules.text import EVALUATION_PIECES
from zoo.errors import UserError

IDS = np.arange(103, dtype=np.uint8)


def columns(loader):
    """The pieces, one a row, their last tokens included."""
    windows = list(loader)
    assert len(windows) == len(loader)
    for inputs, targets in windows:
        assert torch.equal(inputs[1:], targets[:-1])
    return torch.cat([torch.cat([inputs, targets[-1:]]).T for inputs, targets in windows])


def test_in_order_the_pieces_are_the_text():
    for bptt in (1, 9, 50, 102):
        pieces = columns(Pieces(IDS, 4, bptt))
        count = 103 // (bptt + 1)
        assert torch.equal(pieces, torch.arange(count * (bptt + 1)).view(count, bptt + 1))


def test_windows_start_anew():
    window = next(iter(Pieces(IDS, 4, 9)))
    assert isinstance(window, FreshWindow)
    assert window.inputs.shape == window.targets.shape == (9, 4)
    assert window.inputs.dtype == window.targets.dtype == torch.int64
    assert [x.shape[1] for x, _ in Pieces(IDS, 4, 9)] == [4, 4, 2]


@pytest.mark.parametrize("epoch", range(12))
def test_drawn_pieces_lie_side_by_side_and_predict_no_token_twice(epoch):
    loader = Pieces(IDS, 4, 9, draw=Draw(3, epoch))
    pieces = columns(loader)
    assert pieces.shape == (9, 10)  # one fewer than in order
    begins = pieces[:, 0].sort().values
    assert 0 <= begins[0] < 10
    assert torch.equal(begins, begins[0] + 10 * torch.arange(9))
    assert torch.equal(pieces, pieces[:, :1] + torch.arange(10))
    predicted = torch.cat([targets.flatten() for _, targets in loader])
    assert len(predicted) == len(predicted.unique()) == 81


def test_offsets_and_orders_are_of_the_seed_and_the_epoch():
    epochs = [columns(Pieces(IDS, 4, 9, draw=Draw(3, epoch))) for epoch in range(60)]
    assert {int(pieces.min()) for pieces in epochs} == set(range(10))
    assert len({tuple((pieces[:, 0] // 10).tolist()) for pieces in epochs}) > 55
    assert torch.equal(epochs[7], columns(Pieces(IDS, 4, 9, draw=Draw(3, 7))))
    assert not torch.equal(epochs[7], columns(Pieces(IDS, 4, 9, draw=Draw(4, 7))))


def test_a_text_of_the_least_length():
    assert len(Pieces(IDS, 4, 102)) == 1
    with pytest.raises(
        UserError, match=r"the test text has 103 tokens, too few for pieces of bptt 103 \+ 1: it takes 104"
    ):
        Pieces(IDS, 4, 103, name="test text")
    assert len(Pieces(IDS, 4, 50, draw=Draw(0, 0))) == 1
    with pytest.raises(UserError, match="has 103 tokens, too few for pieces .* it takes 104"):
        Pieces(IDS, 4, 51, draw=Draw(0, 0))
    with pytest.raises(UserError, match="has 103 tokens, too few for pieces .* it takes 153"):
        Pieces(IDS, 4, 50, draw=Draw(0, 0), world_size=2)


def test_goes_on_after_the_batches_handed_out():
    whole = [x.tolist() for x, _ in Pieces(IDS, 2, 9, draw=Draw(1, 2))]
    for given in range(len(whole)):
        stopped = Pieces(IDS, 2, 9, draw=Draw(1, 2))
        for _ in zip(range(given), stopped, strict=False):
            pass
        resumed = Pieces(IDS, 2, 9, draw=Draw(1, 2))
        resumed.load_state_dict(stopped.state_dict())
        assert [x.tolist() for x, _ in resumed] == whole[given:]


@pytest.mark.parametrize(
    "other",
    [
        Stream(IDS, 4, 9),
        Pieces(IDS, 4, 9),
        Pieces(IDS, 4, 8, draw=Draw(0, 0)),
        Pieces(IDS, 2, 9, draw=Draw(0, 0)),
        Pieces(IDS[1:], 4, 9, draw=Draw(0, 0)),
    ],
)
def test_another_cut_does_not_go_on_from_this_ones_place(other):
    pieces = Pieces(IDS, 4, 9, draw=Draw(0, 0))
    for one, another in ((pieces, other), (other, pieces)):
        with pytest.raises(UserError, match="the checkpoint stopped in"):
            one.load_state_dict(another.state_dict())


class TestProcesses:
    def test_drawn_batches_are_shared_evenly(self):
        whole = columns(Pieces(IDS, 4, 9, draw=Draw(1, 0)))  # 9 pieces, of which two cannot share the last
        shares = [list(Pieces(IDS, 4, 9, draw=Draw(1, 0), rank=rank, world_size=2)) for rank in (0, 1)]
        assert [[x.shape[1] for x, _ in share] for share in shares] == [[2, 2], [2, 2]]
        parts = [torch.cat([inputs for inputs, _ in batch], dim=1) for batch in zip(*shares, strict=True)]
        assert torch.equal(torch.cat(parts, dim=1).T, whole[:8, :9])

    def test_no_share_is_of_one_example(self):
        """In which batch norm has no variance; but of batches that are small themselves."""
        sizes = {size: [x.shape[1] for x, _ in Pieces(IDS, size, 9, draw=Draw(1, 0))] for size in (4, 8, 7, 2, 1, 20)}
        assert sizes == {4: [4, 3, 2], 8: [7, 2], 7: [7, 2], 2: [2, 2, 2, 2, 1], 1: [1] * 9, 20: [9]}
        assert [x.shape[1] for x, _ in Pieces(IDS[:20], 4, 9, draw=Draw(1, 0))] == [1]
        assert [x.shape[1] for x, _ in Pieces(IDS, 6, 9, draw=Draw(1, 0), world_size=2)] == [2, 2]
        assert [x.shape[1] for x, _ in Pieces(IDS, 3, 9)] == [3, 3, 3, 1]  # for evaluation

    def test_what_is_left_out_differs_from_epoch_to_epoch(self):
        left_out = set()
        for epoch in range(20):
            draw = Draw(1, epoch)
            shares = [columns(Pieces(IDS, 4, 9, draw=draw, rank=rank, world_size=4)) for rank in range(4)]
            whole = columns(Pieces(IDS, 4, 9, draw=draw))
            missing = set(whole[:, 0].tolist()) - set(torch.cat(shares)[:, 0].tolist())
            assert len(missing) == 1
            left_out.add((missing.pop() - int(whole.min())) // 10)
        assert len(left_out) > 4

    def test_in_order_no_piece_is_left_out(self):
        shares = [Pieces(IDS, 4, 9, rank=rank, world_size=3) for rank in range(3)]
        assert [[x.shape for x, _ in share] for share in shares] == [
            [(9, 2), (9, 2), (9, 1)],
            [(9, 1), (9, 1), (9, 1)],
            [(9, 1), (9, 1), (9, 0)],
        ]
        together = torch.cat([columns(share) for share in shares])
        assert sorted(together[:, 0].tolist()) == list(range(0, 100, 10))

    def test_batches_that_cannot_be_shared_are_refused(self):
        with pytest.raises(UserError, match="batch_size 4 cannot be shared evenly by 3 processes"):
            Pieces(IDS, 4, 9, draw=Draw(0, 0), world_size=3)

    def test_processes_seeded_apart_share_the_draws_of_the_first(self, data_tree):
        shares = []
        for rank in (0, 1):
            seed_everything(rank, verbose=False)
            data = in_pieces(data_tree)
            strategy = SimpleNamespace(broadcast=lambda seed: 0)
            data.trainer = SimpleNamespace(strategy=strategy, current_epoch=1, global_rank=rank, world_size=2)
            shares.append(columns(data.train_dataloader()))
        whole = columns(Pieces(data.ids("train"), 16, 20, draw=Draw(0, 1)))
        assert len(shares[0]) == len(shares[1])
        shared = {tuple(piece) for piece in torch.cat(shares).tolist()}
        assert shared <= {tuple(piece) for piece in whole.tolist()}


def in_pieces(data_tree, **options):
    return PennTreebank(root=str(data_tree), batching="pieces", batch_size=16, bptt=20, **options)


class TestDataModule:
    @pytest.mark.parametrize(
        ("batching", "evaluation", "validation", "test"),
        [
            ("stream", None, Stream, Stream),
            ("pieces", None, Pieces, Stream),
            ("pieces", "stream", Stream, Stream),
            ("pieces", "pieces", Pieces, Pieces),
            ("stream", "pieces", Pieces, Pieces),
        ],
    )
    def test_what_is_read_how(self, data_tree, batching, evaluation, validation, test):
        data = Text8(batching=batching, evaluation=evaluation, root=str(data_tree), batch_size=8, bptt=9)
        assert type(data.train_dataloader()) is {"stream": Stream, "pieces": Pieces}[batching]
        assert type(data.val_dataloader()) is validation
        assert type(data.test_dataloader()) is test
        assert type(data.predict_dataloader()) is Stream
        assert data.draws == (batching == "pieces")

    def test_evaluation_in_pieces_reads_many_at_a_time_and_in_order(self, data_tree):
        data = PennTreebank(level="character", root=str(data_tree), batching="pieces", batch_size=16, bptt=9)
        ids = data.ids("validation")
        loader = data.val_dataloader()
        assert next(iter(loader)).inputs.shape == (9, EVALUATION_PIECES)
        assert columns(loader).flatten().tolist() == ids[: len(ids) // 10 * 10].tolist()

    @pytest.mark.parametrize("option", [{"drop_last": True}, {"random_bptt": True}, {"max_bptt": 80}])
    @pytest.mark.parametrize("data", [PennTreebank, Text8, lambda **options: Corpus("a.txt", **options)])
    def test_options_of_streams_are_refused(self, data, option):
        ((name, value),) = option.items()
        with pytest.raises(UserError, match=f"{name} is {value} and batching is 'pieces'.*leave out {name}"):
            data(batching="pieces", **option)

    @pytest.mark.parametrize("name", ["batching", "evaluation"])
    def test_other_words_are_refused(self, name):
        with pytest.raises(UserError, match=f"{name} is 'piece'; it must be one of .*'stream', 'pieces'"):
            PennTreebank(**{name: "piece"})

    def test_wikitext_is_read_as_a_stream(self):
        with pytest.raises(TypeError, match="batching"):
            WikiText2(batching="pieces")

    def test_own_text(self, tmp_path):
        (tmp_path / "a.txt").write_text("a b c\n" * 100)
        data = Corpus(str(tmp_path), level="character", batching="pieces", batch_size=8, bptt=5)
        pieces = columns(data.train_dataloader())
        assert pieces.shape == (89, 6)
        assert len(pieces.unique(dim=0)) == 1  # each begins at the same place of a line


def test_an_interrupted_run_goes_on_with_the_same_pieces(data_tree, tmp_path):
    whole = read(tmp_path, in_pieces(data_tree))
    ids = in_pieces(data_tree).ids("train")
    drawn = [Pieces(ids, 16, 20, draw=Draw(6, epoch)) for epoch in (0, 1)]
    assert whole.seen == [(e, x.tolist(), y.tolist()) for e in (0, 1) for x, y in drawn[e]]
    assert whole.validations == 2 * len(in_pieces(data_tree).val_dataloader())
    for done in (3, len(drawn[0]), len(drawn[0]) + 2):
        read(tmp_path, in_pieces(data_tree), save=done, stop=done + 1)
        assert read(tmp_path, in_pieces(data_tree), resume=True).seen == whole.seen[done:]


@pytest.mark.slow
def test_counts_of_the_real_corpus(real_datasets):
    data = PennTreebank(level="character", text="lines", batching="pieces", batch_size=32, bptt=99)
    loader = data.train_dataloader()
    assert sum(x.shape[1] for x, _ in loader) == 50_594
    assert len(loader) == 1_582
    assert sum(x.shape[1] for x, _ in data.val_dataloader()) == 3_964
    assert sum(y.numel() for _, y in data.test_dataloader()) == 446_183
