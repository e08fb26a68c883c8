"""Every regulariser of the zoo on one small network and a small text, beside none and beside the mistakes.

A row is one training; each is appended to `regularisers.csv` when it ends, and a stopped study goes on where it was. Table
and picture are made of that file alone.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import report
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from trainer import quiet_trainer

from zoo.callbacks import BestWeights, DropoutCurriculum
from zoo.datamodules import PennTreebank
from zoo.datamodules.stream import Stream
from zoo.layers import GRU, LSTM
from zoo.models import FraternalLanguageModel, RecurrentLanguageModel
from zoo.models.recurrent import stack
from zoo.noise import Cell, Extent, Noise
from zoo.optim import StepAdam
from zoo.provenance import hardware
from zoo.regularisers import (
    ActivationRegularisation,
    CellDropout,
    Dropout,
    EmbeddingDropout,
    GaussianWeightNoise,
    LockedDropout,
    NormStabiliser,
    RecurrentDropout,
    SequenceRegulariser,
    StateDropout,
    StateRegulariser,
    StochasticDepth,
    TemporalActivationRegularisation,
    WeightDrop,
    WeightRegulariser,
    Zoneout,
)
from zoo.regularisers.base import dropout_probability, inverted_mask
from zoo.tasks import LanguageModel

Twin = Literal["lstm", "gru"]
LAYERS: dict[Twin, Callable[..., LSTM | GRU]] = {"lstm": LSTM, "gru": partial(GRU, reset_after=False)}
TWINS: tuple[Twin, ...] = get_args(Twin)

SHARE = 10  # the first of so many parts of the training text
VOCABULARY, UNITS, BATCH, BPTT, MAX_NORM = 10_000, 200, 20, 35, 1.0
RATE = 3e-3  # see `NOTES`
UPDATES, EVERY = 1064, 133  # 8 epochs of 133 windows, one validation each

NONE = "none"
MISTAKES = ("naive dropout of h(t-1)", "naive dropout of the memory")
HALVES = (0.25, 0.5)

NOTES = f"""\
Perplexity per word. One layer of {UNITS} units, an LSTM or a GRU, embeddings as wide and a softmax of its own over
the 10,000 words of Penn Treebank, trained on the first tenth of its training text (92,958 tokens, in which 3,215 of
the words never occur) and evaluated without noise: on the whole validation and test texts, one stream each, the state
carried, and on that tenth in the {BATCH} columns of the training. Batch {BATCH}, windows of {BPTT}, Adam at {RATE:g}
throughout, the gradient's norm clipped to {MAX_NORM:g}; {{updates:,}} updates for all, a validation every {{every}}.
The first three perplexities are at the best validation, as a model would be used; those of the end tell who overfits.

The rate was chosen for the unregularised LSTM on the first 15,000 tokens of the validation text: 2e-3, 3e-3 and 5e-3 come
to 430, 435 and 444, after 5, 3 and 2 epochs; 3e-3 is nearly the best and early enough for the regularised networks to come
to theirs. A row whose best is its last validation was still improving. One seed a row, but three for the unregularised
networks, whose differences say how little a small difference means. It is a network and a text on which overfitting is the
trouble; it ranks nothing for large ones.

- The naive ones are the mistakes that the others avoid, and no part of the zoo: a fresh mask at every step, scaled by
  1 / (1 - p), on h(t-1) as the gates read it, or on the carried memory (c of the LSTM, h of the GRU), of which a
  value lives through T steps with probability (1 - p)^T.
- Vertical dropout (Zaremba) and locked dropout act on the embeddings and before the softmax. Curriculum and fraternal
  dropout are vertical dropout, that of fraternal dropout with p 0.5. Variational dropout is locked dropout, tied
  state dropout and embedding dropout per sequence together. Embedding dropout is per window. Zoneout's c has a tenth
  of it for h beside it.
- AWD-LSTM's set: locked dropout 0.4, weight drop 0.5, embedding dropout 0.1, AR 2, TAR 1, all of them times the
  number.
- Weight noise is on the matrices of the recurrent layer.
- In the run of 2026-11-22: where a training perplexity stands far above its neighbours (LSTM, variational dropout p
  0.5: 1041; GRU, embedding dropout p 0.1: 331), the first of the {BATCH} columns is lost: it begins with the corpus's
  list of 24 names that stand nowhere else ("aer banknote berlitz ..."), on which the state grows as long as it lasts
  (|c| up to 32) and from which it never comes back; 37 and 24 nats a token there, and a perplexity of 213 and 129 in
  the others.
- No row: input-gate dropout is recurrent dropout per step, the same product by another name. DropConnect draws a
  matrix for each example, here {UNITS} x 10,000 numbers for each of {BATCH * BPTT} words; its like on the recurrent
  matrix is weight drop. A GRU has no cell to drop (RNNDrop), and no second state to share zoneout's mask.

Trained on {{machines}}; milliseconds are the processor's time of the median update of a row there."""


class Naive(StateRegulariser):
    """Drops elements of the state afresh at every step and scales the others by 1 / (1 - p): the mistake, to compare with.

        a(t) = R (m(t) / (1 - p) * h(t-1))                          what the gates read
        c(t) = m(t) / (1 - p) * (f * c(t-1) + i * g)                `memory`, of a GRU h(t) likewise
                                                                    m(t) ~ Bernoulli(1 - p), (T, B, H)

    A memory that every step may drop lives through T of them with probability (1 - p)^T; what the gates read is not lost,
    but carries fresh noise at every step. Semeniuta, Severyn and Barth 2016, arXiv 1603.05118, section 3, and Zaremba et
    al. 2014, arXiv 1409.2329, section 3.2, argue against both. Evaluation leaves the state alone.
    """

    probabilities = ("p",)

    def __init__(self, p: float, memory: bool = False) -> None:
        super().__init__()
        self.p, self.memory = dropout_probability("p", p), memory

    def sites(self, cell: Cell) -> tuple[str, ...]:
        if not self.memory:
            return ("rec",)
        return ("cmul",) if cell == "lstm" else ("out",)

    def forward(self, extent: Extent) -> Noise:
        if not self.training:
            return Noise()
        (site,) = self.sites(extent.cell)
        shape = extent.time, extent.batch, extent.hidden_size
        return Noise(**{site: inverted_mask(self.p, *shape, dtype=extent.dtype, device=extent.device)})


class Recipe(NamedTuple):
    """How a row differs from the unregularised network."""

    slots: dict[str, Any]
    """What fills the slots of `RecurrentLanguageModel`; the two that follow are the layer's."""

    state_noise: StateRegulariser | None = None
    weight_noise: WeightRegulariser | None = None
    seed: int = 1
    curriculum: bool = False
    kappa: float | None = None
    """Of fraternal dropout, where there is one."""


class Series(NamedTuple):
    """A regulariser at several strengths."""

    regulariser: str
    symbol: str
    strengths: tuple[float, ...]
    recipe: Callable[[float], Recipe]


def series(cell: Twin) -> list[Series]:
    """The table's order: the mistakes, the inputs and outputs, the state, the weights, the penalties, whole sets."""
    lstm = cell == "lstm"
    return [
        Series(NONE, "seed", (1, 2, 3), lambda seed: Recipe({}, seed=int(seed))),
        Series(MISTAKES[0], "p", HALVES, lambda p: _state(Naive(p))),
        Series(MISTAKES[1], "p", HALVES, lambda p: _state(Naive(p, memory=True))),
        Series("vertical dropout", "p", (0.25, 0.5, 0.7), lambda p: Recipe(_vertical(Dropout(p)))),
        Series("curriculum dropout", "p", (0.5, 0.7), lambda p: Recipe(_vertical(Dropout(p)), curriculum=True)),
        Series("fraternal dropout", "kappa", (0.05, 0.15), lambda kappa: Recipe(_vertical(Dropout(0.5)), kappa=kappa)),
        Series("locked dropout", "p", HALVES, lambda p: Recipe(_vertical(LockedDropout(p)))),
        Series("embedding dropout", "p", (0.1, 0.3), lambda p: Recipe({"embedding_dropout": EmbeddingDropout(p)})),
        Series("state dropout, tied", "p", HALVES, lambda p: _state(StateDropout(p))),
        Series("state dropout, untied", "p", HALVES, lambda p: _state(StateDropout(p, untied=True))),
        Series("variational dropout", "p", HALVES, _variational),
        Series("recurrent dropout, per step", "p", HALVES, lambda p: _state(RecurrentDropout(p))),
        Series("recurrent dropout, per sequence", "p", HALVES, lambda p: _state(RecurrentDropout(p, "sequence"))),
        *([Series("RNNDrop", "p", HALVES, lambda p: _state(CellDropout(p)))] if lstm else []),
        Series("zoneout", "c", HALVES, lambda c: _state(Zoneout(cell=c, hidden=c / 10)))
        if lstm
        else Series("zoneout", "h", (0.05, 0.15), lambda h: _state(Zoneout(hidden=h))),
        *([Series("zoneout, shared mask", "p", (0.05, 0.15), _shared_zoneout)] if lstm else []),
        Series("stochastic depth", "p", (0.05, 0.15), lambda p: _state(StochasticDepth(p))),
        Series("weight drop", "p", HALVES, lambda p: Recipe({}, weight_noise=WeightDrop(p))),
        Series("weight noise", "std", (0.025, 0.075), lambda std: Recipe({}, weight_noise=GaussianWeightNoise(std))),
        Series("AR", "alpha", (2, 10), lambda alpha: Recipe({"penalties": [ActivationRegularisation(alpha)]})),
        Series("TAR", "beta", (1, 10), lambda beta: Recipe({"penalties": [TemporalActivationRegularisation(beta)]})),
        Series("norm stabiliser", "beta", (5, 50), lambda beta: Recipe({"penalties": [NormStabiliser(beta)]})),
        Series("AWD-LSTM's set", "times", (0.5, 1), _awd),
    ]


def _state(noise: StateRegulariser) -> Recipe:
    return Recipe({}, state_noise=noise)


def _vertical(noise: SequenceRegulariser) -> dict[str, Any]:
    return {"input_dropout": noise, "output_dropout": noise}


def _variational(p: float) -> Recipe:
    types = EmbeddingDropout(p, per="sequence")
    return Recipe({**_vertical(LockedDropout(p)), "embedding_dropout": types}, state_noise=StateDropout(p))


def _shared_zoneout(p: float) -> Recipe:
    return _state(Zoneout(cell=p, hidden=p, shared=True))


def _awd(share: float) -> Recipe:
    return Recipe(
        {
            **_vertical(LockedDropout(0.4 * share)),
            "embedding_dropout": EmbeddingDropout(0.1 * share),
            "penalties": [ActivationRegularisation(2 * share), TemporalActivationRegularisation(share)],
        },
        weight_noise=WeightDrop(0.5 * share),
    )


class Row(NamedTuple):
    """Which training."""

    cell: Twin
    regulariser: str
    strength: str

    def __str__(self) -> str:
        return " ".join(self)


def catalogue() -> dict[Row, Recipe]:
    """All rows in the table's order."""
    return {
        Row(cell, one.regulariser, f"{one.symbol} {strength:g}"): one.recipe(strength)
        for cell in TWINS
        for one in series(cell)
        for strength in one.strengths
    }


class Point(NamedTuple):
    """What a validation found; the other texts are read at the best validation and at the last alone."""

    updates: int
    validation: float
    train: float | None = None
    test: float | None = None


class Result(NamedTuple):
    """A finished row."""

    points: list[Point]
    milliseconds: float

    @property
    def best(self) -> Point:
        """The lowest validation."""
        return min(self.points, key=lambda point: (math.isnan(point.validation), point.validation))

    @property
    def last(self) -> Point:
        """The end of the training."""
        return self.points[-1]

    @property
    def overfits(self) -> bool:
        """Whether the training went past its validation minimum."""
        return self.best.validation < self.last.validation


class Curve(Callback):
    """The validations, and the processor's time of every update, on one thread."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seconds.append(time.process_time() - self._start)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)
        self.points.append(Point(trainer.global_step, pl_module.measured["validation"][0]))


def train(row: Row, updates: int, every: int) -> Result:
    """One row, from its seed to the perplexities of all texts."""
    recipe = catalogue()[row]
    seed_everything(recipe.seed, verbose=False)
    model: LanguageModel = RecurrentLanguageModel(
        VOCABULARY,
        UNITS,
        stack(LAYERS[row.cell], [UNITS, UNITS], recipe.state_noise, recipe.weight_noise),
        StepAdam(RATE, [], weight_decay=0.0),
        max_norm=MAX_NORM,
        **recipe.slots,
    )
    if recipe.kappa is not None:
        model = FraternalLanguageModel(model, recipe.kappa)
    curve, kept = Curve(), BestWeights()
    trainer = quiet_trainer(
        max_steps=updates,
        max_epochs=-1,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        callbacks=[curve, kept, *([DropoutCurriculum()] if recipe.curriculum else [])],
    )
    data = PennTreebank()
    text = training_text(data)
    trainer.fit(model, text, data.val_dataloader())

    def read(point: Point) -> Point:
        perplexities = []
        for stream in (text, data.test_dataloader()):
            trainer.test(model, stream, verbose=False)
            perplexities.append(model.measured["test"][0])
        return point._replace(train=perplexities[0], test=perplexities[1])

    points = [*curve.points[:-1], read(curve.points[-1])]
    best = points.index(Result(points, 0.0).best)
    if best != len(points) - 1:
        model.load_state_dict(kept.weights)
        points[best] = read(points[best])
    return Result(points, statistics.median(curve.seconds) * 1e3)


def training_text(data: PennTreebank) -> Stream:
    """The first part of the training text, in columns."""
    ids = data.ids("train")
    return Stream(ids[: len(ids) // SHARE], BATCH, BPTT, name="training text")


class Record:
    """The file of the finished rows."""

    header = (*Row._fields, *Point._fields, "milliseconds", "machine")

    def __init__(self, file: Path) -> None:
        self.file = file
        self.results: dict[Row, Result] = {}
        self.machines: set[str] = set()
        if not file.exists():
            return
        with file.open(newline="") as lines:
            for line in csv.DictReader(lines):
                row = Row(*(line[name] for name in Row._fields))  # type: ignore[arg-type]
                point = Point(int(line["updates"]), *(float(line[n]) if line[n] else None for n in Point._fields[1:]))  # type: ignore[arg-type]
                self.results.setdefault(row, Result([], float(line["milliseconds"]))).points.append(point)
                self.machines.add(line["machine"])

    def add(self, row: Row, result: Result, machine: str) -> None:
        """Appends a row's lines, all at once."""
        fresh = not self.file.exists()
        self.results[row] = result
        self.machines.add(machine)
        with self.file.open("a", newline="") as file:
            table = csv.writer(file)
            if fresh:
                table.writerow(self.header)
            for updates, *perplexities in result.points:
                values = ("" if value is None else f"{value:.3f}" for value in perplexities)
                table.writerow((*row, updates, *values, f"{result.milliseconds:.1f}", machine))


def train_in_fresh_process(row: Row, updates: int, every: int) -> Result:
    """`train` on one thread of its own."""
    command = [sys.executable, __file__, "--train", *row, "--updates", str(updates), "--every", str(every)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    points, milliseconds = json.loads(done.stdout.splitlines()[-1])
    return Result([Point(*point) for point in points], milliseconds)


def train_all(rows: Iterable[Row], record: Record, processes: int, updates: int, every: int) -> None:
    """Trains what the record lacks, so many rows at a time; a row that fails says why and is left out."""
    missing = [row for row in rows if row not in record.results]
    if missing:
        PennTreebank().setup("validate")  # tokenises once, before several processes would
    machine = f"{hardware(torch.device('cpu'))}, {processes} rows at a time on a thread each"
    pool = ThreadPoolExecutor(processes)
    try:
        futures = {pool.submit(train_in_fresh_process, row, updates, every): row for row in missing}
        for count, future in enumerate(as_completed(futures), 1):
            row, progress = futures[future], f"{count}/{len(missing)} {futures[future]}"
            if isinstance(future.exception(), subprocess.CalledProcessError):
                print(f"{progress}: failed", flush=True)
                continue
            result = future.result()
            record.add(row, result, machine)
            best = result.best
            print(f"{progress}: {best.validation:.1f} at {best.updates}, {result.milliseconds:.0f} ms", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def table(results: dict[Row, Result]) -> list[list[str]]:
    """A line a row, in the catalogue's order."""
    lines = []
    for row in catalogue():
        if row not in results:
            continue
        result = results[row]
        best, last = (
            [f"{value:.1f}" for value in (point.train, point.validation, point.test) if value is not None]
            for point in (result.best, result.last)
        )
        cell, *rest = row
        lines.append([cell.upper(), *rest, str(result.best.updates), *best, *last, f"{result.milliseconds:.0f}"])
    return lines


COLOURS: dict[Twin, str] = {"lstm": "tab:blue", "gru": "tab:orange"}
CURVES = {
    (NONE, "seed 1"): "black",
    (MISTAKES[1], "p 0.5"): "tab:red",
    ("vertical dropout", "p 0.5"): "tab:blue",
    ("recurrent dropout, per step", "p 0.5"): "tab:green",
    ("variational dropout", "p 0.25"): "tab:purple",
    ("AWD-LSTM's set", "times 0.5"): "tab:brown",
}


def draw(results: dict[Row, Result], file: Path) -> None:
    """The best validation of every row above, the course of some below."""
    from matplotlib.figure import Figure  # half a second to import
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    best = {row: result.best.validation for row, result in results.items()}
    names = {row.regulariser for row in best} - {NONE}
    lowest = {name: min(value for row, value in best.items() if row.regulariser == name) for name in names}
    order = sorted(names, key=lambda name: -lowest[name])

    figure = Figure(figsize=(8.5, 4.2 + 0.26 * len(order)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(0.26 * len(order) + 1, 3.2))[:, 0]
    dots = upper.subplots()
    for cell, shift in zip(TWINS, (0.16, -0.16), strict=True):
        plain = [value for row, value in best.items() if (row.cell, row.regulariser) == (cell, NONE)]
        dots.axvspan(min(plain), max(plain), color=COLOURS[cell], alpha=0.25, linewidth=0)
        dots.axvline(statistics.median(plain), color=COLOURS[cell], linestyle="--", linewidth=1)
        for height, name in enumerate(order):
            values = [best[row] for row in catalogue() if row in best and row[:2] == (cell, name)]
            heights = [height + shift] * len(values)
            dots.plot(values, heights, color=COLOURS[cell], linewidth=1, alpha=0.5)
            dots.scatter(values, heights, [18 + 26 * n for n in range(len(values))], color=COLOURS[cell], zorder=3)
        dots.scatter([], [], color=COLOURS[cell], label=cell.upper())
    dots.plot([], [], "--", color="grey", label="no regulariser, three seeds")
    dots.set_yticks(range(len(order)), order)
    for label in dots.get_yticklabels():
        label.set_color("tab:red" if label.get_text() in MISTAKES else "black")
    dots.set_ylim(-0.6, len(order) - 0.4)
    dots.grid(axis="y", alpha=0.25)
    dots.set_title("best validation perplexity, the larger the dot the stronger", fontsize="medium")
    dots.legend(loc="upper right")
    panels = lower.subplots(1, 2, sharey=True)
    for cell, axes in zip(TWINS, panels, strict=True):
        for (name, strength), colour in CURVES.items():
            result = results.get(Row(cell, name, strength))
            if result is not None:
                updates = [point.updates for point in result.points]
                label = name if name == NONE else f"{name}, {strength}"
                axes.plot(updates, [point.validation for point in result.points], marker=".", color=colour, label=label)
        axes.set_title(f"{cell.upper()}, validation perplexity by update", fontsize="medium")
        axes.grid(alpha=0.25)
    lower.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    for axis, marks in (
        (dots.xaxis, (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8)),
        (panels[0].yaxis, (1, 1.5, 2, 3, 4, 6)),
    ):
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=marks))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    panels[0].set_ylim(270, 1500)  # the one above comes down from thousands
    figure.savefig(file, dpi=130)


def main() -> None:
    """Trains, then writes the table and the picture; ends with an error where they are void."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", nargs="*", default=[""], help="only those whose name has one of these, and the unregularised"
    )
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--every", type=int, default=EVERY, help="updates from validation to validation")
    parser.add_argument("--processes", type=int, default=torch.get_num_threads(), help="rows at a time, a thread each")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where the csv, md and png are")
    parser.add_argument("--train", nargs=3, metavar=Row._fields, help="train one row and print its result, no more")
    arguments = parser.parse_args()
    updates, every = arguments.updates, arguments.every
    torch.set_num_threads(1)
    if updates % every:
        parser.error(f"--updates {updates} is no multiple of --every {every}")
    if arguments.train:
        print(json.dumps(train(Row(*arguments.train), updates, every)))
        return

    record = Record(arguments.output / "regularisers.csv")
    if any(
        (len(result.points), result.last.updates) != (updates // every, updates) for result in record.results.values()
    ):
        sys.exit(f"{record.file} has rows of another number of updates or validations: move it away")
    rows = catalogue()
    plain = [row for row in rows if row.regulariser == NONE]
    train_all(plain, record, arguments.processes, updates, every)
    void = [str(row) for row in plain if row not in record.results or not record.results[row].overfits]
    if void:
        sys.exit(f"The table is void: within {updates} updates no validation minimum was passed by {', '.join(void)}.")
    chosen = [row for row in rows if any(part in str(row) for part in arguments.rows)]
    train_all(chosen, record, arguments.processes, updates, every)

    record = Record(record.file)
    report.write(
        str(arguments.output / Path(__file__).name),
        "Every regulariser on one small network",
        [
            *("cell", "regulariser", "strength", "best at update", "train", "validation", "test"),
            *("end: train", "end: validation", "end: test", "ms an update"),
        ],
        table(record.results),
        NOTES.format(updates=updates, every=every, machines=" and ".join(sorted(record.machines))),
    )
    draw(record.results, arguments.output / "regularisers.png")
    failed = [str(row) for row in chosen if row not in record.results]
    if failed:
        sys.exit(f"Not in the table, for they failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
