"""What one does with a pretrained model, beside the same in bare torch: fine-tuning, scoring, writing, loading."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import report
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from trainer import Clock, quiet_trainer
from update import Bare, Size, bare

from zoo import bundle, hub
from zoo.datamodules import TINY_SHAKESPEARE, Corpus
from zoo.models import Zaremba
from zoo.optim import DiscriminativeAdam
from zoo.tasks import LanguageModel
from zoo.tokenizer import EOS, UNK, Tokenizer
from zoo.transfer import origins, transfer

NAME = "zaremba-small-ptb"
WIDTHS = (200, 200, 200)
WINDOW = 200
TOKENS = 300
UPDATES = 40
ROUNDS = 5


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """The medians of both over interleaved rounds, and that of ours / theirs."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    mine, its = (statistics.median(times) for times in zip(*pairs, strict=True))
    return mine, its, statistics.median(a / b for a, b in pairs)


def fine_tuning() -> list[str]:
    """An update of fine-tuning on the shipped text, all layers at once."""
    found = hub.find(NAME)
    own = Tokenizer.from_file(found.folder / "tokenizer.json")
    data = Corpus(str(TINY_SHAKESPEARE), normaliser="penn_treebank", min_count=2, bptt=70)
    size = Size(lambda: tuned(), WIDTHS, 70, 0, vocabulary=data.tokenizer.vocab_size)

    def tuned() -> LanguageModel:
        model, _ = transfer(found.folder, data.tokenizer, origins(own, data.tokenizer))
        model.optimization = DiscriminativeAdam()
        return model

    def ours() -> float:
        clock = Clock()
        trainer = quiet_trainer(max_epochs=1, callbacks=[clock], limit_train_batches=UPDATES, limit_val_batches=0)
        trainer.fit(size.build(), datamodule=data)
        return statistics.median(np.diff(clock.times))

    stream = list(islice(data.train_dataloader(), UPDATES))
    mine, its, ratio = in_turns(ours, lambda: bare(stream, size, optimizer_type=torch.optim.Adam), 3)
    of = f"an update of fine-tuning on Tiny Shakespeare, vocabulary {size.vocabulary:,}"
    return [of, f"{mine * 1e3:.1f} ms", "a loop over torch.nn.LSTM", f"{its * 1e3:.1f} ms", f"{ratio:.2f}", "1.18"]


def scoring(model: LanguageModel) -> list[str]:
    """A text of the model's own kind, read as one stream."""
    text = TINY_SHAKESPEARE.read_text(encoding="utf-8")[:100_000]
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer.encode(text).astype("int64")).unsqueeze(1)
    network = Bare(Size(lambda: model, WIDTHS, 0, 0)).eval()

    @torch.inference_mode()
    def theirs() -> None:
        states = [None] * len(network.lstms)
        for start in range(0, len(ids) - 1, WINDOW):
            window = ids[start : start + WINDOW + 1]
            logits, states = network(window[:-1], states)
            cross_entropy(logits.flatten(0, 1), window[1:].flatten(), reduction="none").tolist()

    mine, its, ratio = in_turns(lambda: timed(lambda: model.score(text)), lambda: timed(theirs))
    of = f"a text of {len(ids):,} words scored, read from characters"
    return [of, f"{mine:.2f} s", "a forward pass, its softmax, of ids", f"{its:.2f} s", f"{ratio:.2f}", "1.2"]


def generating(model: LanguageModel) -> list[str]:
    """One text, token by token."""
    network = Bare(Size(lambda: model, WIDTHS, 0, 0)).eval()
    cells = [nn.LSTMCell(200, 200) for _ in network.lstms]

    @torch.inference_mode()
    def theirs() -> None:
        generator = torch.Generator().manual_seed(1)
        token, states = torch.zeros(1, dtype=torch.long), [(torch.zeros(1, 200), torch.zeros(1, 200)) for _ in cells]
        for _ in range(TOKENS):
            hidden = network.embedding(token)
            for index, cell in enumerate(cells):
                states[index] = cell(hidden, states[index])
                hidden = states[index][0]
            token = torch.multinomial(network.softmax(hidden).softmax(-1), 1, generator=generator).flatten()
            token.item()

    mine, its, ratio = in_turns(
        lambda: timed(lambda: model.generate("", tokens=TOKENS, seed=1)), lambda: timed(theirs), 5 * ROUNDS
    )
    milliseconds = (f"{seconds / TOKENS * 1e3:.2f} ms" for seconds in (mine, its))
    ours, bare_loop = milliseconds
    return ["a word written, one text", ours, "a loop over torch.nn.LSTMCell", bare_loop, f"{ratio:.2f}", "1.3"]


def loading() -> list[str]:
    """A bundle of 20 million parameters, verified, in a process that has imported all."""
    vocabulary = [EOS, UNK, *map(str, range(9_998))]
    recipe = "model:\n  class_path: zoo.models.Zaremba\n  init_args: {vocab_size: 10000, hidden_size: 650}\n"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "model")
        weights = bundle.stored_weights(Zaremba(10_000, 650))
        bundle.write(place, weights, recipe=recipe, card="# a card\n", tokenizer=Tokenizer.words(vocabulary), curve=[])
        hub.load(str(place))
        seconds = statistics.median(timed(lambda: hub.load(str(place))) for _ in range(ROUNDS))
    return ["zoo.load of 19.8 million parameters", f"{seconds:.2f} s", "", "", "", "1 s"]


def starting() -> list[list[str]]:
    """What a fresh process waits for."""

    def python(*arguments: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))

    own, torchs, ratio = in_turns(lambda: python("-c", "import zoo; zoo.load"), lambda: python("-c", "import torch"))
    cli = str(Path(__file__).resolve().parent.parent / "cli.py")
    listing = statistics.median(python(cli, "list") for _ in range(ROUNDS))
    return [
        ["import zoo, and zoo.load", f"{own:.2f} s", "import torch", f"{torchs:.2f} s", f"{ratio:.2f}", "1.2"],
        ["python cli.py list", f"{listing:.2f} s", "", "", "", "1 s"],
    ]


def main() -> None:
    """All rows."""
    model = hub.load(NAME)
    assert isinstance(model, LanguageModel)
    rows = [fine_tuning(), scoring(model), generating(model), loading(), *starting()]
    report.write(
        __file__,
        "Using a pretrained model",
        ["what", "zoo", "bare torch", "takes", "zoo / bare", "limit"],
        rows,
        f'{NAME}, two layers of 200 units. Medians of interleaved rounds, of the ratios too. "Limit" is the most that we '
        "allow ourselves.",
    )


if __name__ == "__main__":
    main()
