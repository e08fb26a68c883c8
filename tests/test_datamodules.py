from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning import Callback, seed_everything

from tests.conftest import quiet_trainer, sentences
from zoo.callbacks import LastCheckpoint
from zoo.datamodules import TINY_SHAKESPEARE, Corpus, PennTreebank
from zoo.datamodules.stream import RandomWindows, Stream
from zoo.errors import UserError
from zoo.models import Zaremba
from zoo.tokenizer import EOS, UNK, Tokenizer


def text_of(data, split):
    return data.tokenizer.decode(data.ids(split))


class TestPennTreebank:
    def test_words(self, data_tree):
        data = PennTreebank(root=str(data_tree))
        assert data.tokenizer.level == "word"
        assert {EOS, UNK, "n't", "N"} <= set(data.tokenizer.tokens(range(data.tokenizer.vocab_size)))
        assert text_of(data, "test") == "".join(line + "\n" for line in sentences(70, seed=2))

    def test_characters(self, data_tree):
        data = PennTreebank(level="character", root=str(data_tree))
        lines = sentences(60, seed=1)
        assert len(data.ids("validation")) == sum(len(line) + 1 for line in lines)
        assert "_" in data.tokenizer.tokens(data.ids("validation"))
        assert text_of(data, "validation") == "".join(line + "\n" for line in lines)
        assert data.ids("train").dtype == np.uint8

    def test_lines_keep_their_last_blank_and_their_end(self, data_tree):
        data = PennTreebank(level="character", text="lines", root=str(data_tree))
        text = "".join(f"{line} \n" for line in sentences(60, seed=1))
        assert text_of(data, "validation") == "".join(data.text("validation")) == text
        assert len(data.ids("validation")) == len(text)
        vocabulary = data.tokenizer.tokens(range(data.tokenizer.vocab_size))
        assert {" ", "\n"} < set(vocabulary)
        assert "_" not in vocabulary
        joined = PennTreebank(level="character", root=str(data_tree))
        assert len(data.ids("train")) == len(joined.ids("train")) + 600

    def test_lines_are_scored_as_they_are_written(self, data_tree):
        data = PennTreebank(level="character", text="lines", root=str(data_tree))
        model = Zaremba(data.tokenizer.vocab_size, hidden_size=4)
        model.tokenizer = data.tokenizer
        assert model.score("the bank rose").tokens == list("the bank rose")

    def test_lines_are_characters(self):
        with pytest.raises(UserError, match="text is 'lines' and level is 'word'.*set level to 'character'"):
            PennTreebank(text="lines")
        with pytest.raises(UserError, match="text is 'raw'; it must be one of 'joined', 'lines'"):
            PennTreebank(level="character", text="raw")

    def test_a_column_that_is_not_there_is_named(self, tmp_path):
        for split in ("train", "validation", "test"):
            folder = tmp_path / "ptb-text-only" / "ptb_text_only" / "penn_treebank" / split
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"text": ["a"]}), folder / "0000.parquet")
        with pytest.raises(UserError, match="no column 'sentence'; its columns are text"):
            PennTreebank(root=str(tmp_path)).ids("test")

    def test_root_comes_from_the_environment_too(self, data_tree, monkeypatch):
        monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
        assert len(PennTreebank().ids("test"))

    def test_no_data_says_what_was_looked_for_and_which_variable_to_set(self, tmp_path):
        with pytest.raises(
            UserError, match=rf"looked for {tmp_path}/ptb-text-only/ptb_text_only .*set ZOO_DATASETS=DIR"
        ):
            PennTreebank(root=str(tmp_path)).ids("test")
        with pytest.raises(UserError, match=r"on the Hugging Face Hub.*set ZOO_DATASETS=DIR"):
            PennTreebank().ids("test")

    def test_evaluation_reads_one_stream_whole(self, data_tree):
        data = PennTreebank(root=str(data_tree), batch_size=4, bptt=5)
        for loader, split in ((data.val_dataloader(), "validation"), (data.test_dataloader(), "test")):
            targets = torch.cat([y for _, y in loader])
            assert targets.shape == (len(data.ids(split)) - 1, 1)

    def test_ids_are_a_view_of_a_file(self, data_tree):
        ids = PennTreebank(root=str(data_tree)).ids("train")
        assert not ids.flags.writeable
        assert not ids.flags.owndata

    def test_another_tokenizer_gives_other_ids(self, data_tree, tmp_path):
        vocabulary = [EOS, UNK, "the", "bank"]
        (tmp_path / "tokenizer.json").write_text(Tokenizer.words(vocabulary).to_json())
        for path in (tmp_path, tmp_path / "tokenizer.json"):
            data = PennTreebank(root=str(data_tree), tokenizer=str(path))
            assert data.ids("test").max() < 4
        assert PennTreebank(root=str(data_tree)).ids("test").max() > 4

    @pytest.mark.slow
    def test_counts_of_the_real_corpus(self, real_datasets):
        words, characters = PennTreebank(), PennTreebank(level="character")
        splits = ("train", "validation", "test")
        assert [len(words.ids(split)) for split in splits] == [929_589, 73_760, 82_430]
        assert words.tokenizer.vocab_size == 10_000
        assert [len(characters.ids(split)) for split in splits] == [5_017_482, 393_042, 442_423]
        assert characters.tokenizer.vocab_size == 50
        lines = PennTreebank(level="character", text="lines")
        assert [len(lines.ids(split)) for split in splits] == [5_059_550, 396_412, 446_184]
        assert lines.tokenizer.vocab_size == 50
        assert [sum(y.numel() for _, y in loader) for loader in (words.val_dataloader(), words.test_dataloader())] == [
            73_759,
            82_429,
        ]


@pytest.mark.parametrize("option", ["batch_size", "bptt"])
def test_sizes_must_be_positive(option, data_tree):
    with pytest.raises(UserError, match=f"{option} is 0"):
        PennTreebank(root=str(data_tree), **{option: 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_bptt": True, "drop_last": True}, "drop_last and random_bptt are both true"),
        ({"max_bptt": 80}, "max_bptt is 80 and random_bptt is false"),
        ({"random_bptt": True, "max_bptt": 4}, "max_bptt is 4; it must be 5 or more"),
    ],
)
@pytest.mark.parametrize("data", [PennTreebank, lambda **options: Corpus(str(TINY_SHAKESPEARE), **options)])
def test_random_windows_that_contradict_are_named(data, options, message):
    with pytest.raises(UserError, match=message):
        data(**options)


EPOCHS = 3
SEED = 6


class Seen(Callback):
    """The windows of every epoch, the number of validations, and an end without warning before update `stop` is saved."""

    def __init__(self, stop=None):
        self.windows, self.validations, self.stop = [], [], stop

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.windows.append((trainer.current_epoch, batch_idx, batch[0].tolist()))
        if trainer.global_step == self.stop:
            raise InterruptedError

    def on_validation_end(self, trainer, *_):
        self.validations.append(trainer.current_epoch)


def random_windows(data_tree, **options):
    return PennTreebank(root=str(data_tree), batch_size=16, bptt=20, random_bptt=True, max_bptt=24, **options)


def fit(folder, data, *, save=1000, stop=None, resume=False, seed=SEED, **limits):
    """`save` is the number of updates from checkpoint to checkpoint."""
    seed_everything(seed, verbose=False)
    model = Zaremba(data.tokenizer.vocab_size, hidden_size=4, dropout=0.5)
    seen = Seen(stop)
    trainer = quiet_trainer(
        **limits or {"max_epochs": EPOCHS},
        limit_val_batches=1,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[seen, LastCheckpoint(save)],
        enable_checkpointing=True,
    )
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    except InterruptedError:
        return seen, None
    return seen, model.state_dict()


@pytest.fixture(scope="module")
def expected(data_tree):
    """(epoch, index, tokens) of every window of the run, and the number of windows by epoch."""
    ids = PennTreebank(root=str(data_tree)).ids("train")
    streams = [Stream(ids, 16, 20, random=RandomWindows(SEED, epoch, 24)) for epoch in range(EPOCHS)]
    windows = [(e, k, x.tolist()) for e, stream in enumerate(streams) for k, (x, _) in enumerate(stream)]
    return windows, [len(stream) for stream in streams]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_tree):
    return fit(tmp_path_factory.mktemp("whole"), random_windows(data_tree))


class TestRandomBPTT:
    def test_every_epoch_reads_its_own_windows_whole_and_validates_once(self, uninterrupted, expected):
        seen, _ = uninterrupted
        windows, counts = expected
        assert len(set(counts)) == EPOCHS
        assert seen.windows == windows
        assert seen.validations == list(range(EPOCHS))

    @pytest.mark.parametrize("by_steps", [False, True])  # Lightning resumes the two in different ways
    @pytest.mark.parametrize(("epochs", "updates"), [(1, -1), (1, 0), (1, 1), (2, 7)], ids=str)
    def test_an_interrupted_run_goes_on_with_the_same_windows(
        self, epochs, updates, by_steps, uninterrupted, expected, data_tree, tmp_path
    ):
        windows, counts = expected
        done = sum(counts[:epochs]) + updates
        limits = {"max_epochs": -1, "max_steps": len(windows)} if by_steps else {}
        fit(tmp_path, random_windows(data_tree), save=done, stop=done + 1, **limits)
        seen, weights = fit(tmp_path, random_windows(data_tree), resume=True, **limits)
        assert seen.windows == windows[done:]
        assert seen.validations == list(range(epochs - (updates < 0), EPOCHS))
        assert all(torch.equal(weights[name], value) for name, value in uninterrupted[1].items())

    def test_another_seed_is_refused(self, data_tree, tmp_path):
        fit(tmp_path, random_windows(data_tree), save=3, stop=4)
        with pytest.raises(UserError, match=f"the seed {SEED}, and this run has 4: give the same seed_everything"):
            fit(tmp_path, random_windows(data_tree), resume=True, seed=4)

    def test_windows_of_one_length_do_not_become_random_ones(self, data_tree, tmp_path):
        fit(tmp_path, PennTreebank(root=str(data_tree), batch_size=16, bptt=20), save=3, stop=4)
        with pytest.raises(UserError, match="the checkpoint stopped in"):
            fit(tmp_path, random_windows(data_tree), resume=True)

    def test_without_a_trainer_the_windows_are_the_first_epochs(self, data_tree, expected):
        seed_everything(SEED, verbose=False)
        windows, counts = expected
        loader = random_windows(data_tree).train_dataloader()
        assert [(0, k, x.tolist()) for k, (x, _) in enumerate(loader)] == windows[: counts[0]]

    def test_processes_seeded_apart_take_the_windows_of_the_first(self, data_tree):
        lengths = []
        for rank in (0, 1):
            seed_everything(rank, verbose=False)
            data = random_windows(data_tree)
            strategy = SimpleNamespace(broadcast=lambda seed: 0)
            data.trainer = SimpleNamespace(strategy=strategy, current_epoch=1, global_rank=rank, world_size=2)
            lengths.append([len(x) for x, _ in data.train_dataloader()])
        assert lengths[0] == lengths[1]

    def test_evaluation_keeps_its_windows(self, data_tree):
        random = PennTreebank(root=str(data_tree), random_bptt=True)
        fixed = PennTreebank(root=str(data_tree))
        for one, other in zip(random.val_dataloader(), fixed.val_dataloader(), strict=True):
            assert torch.equal(one[0], other[0])
